//! Reading quantities that are already validated, as amounts.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// The value in thousandths, rounded up (`100m` is 100, `2` is 2000).
/// `None` for what is no quantity or is negative; what is too large saturates.
#[must_use]
pub fn millis(quantity: &Quantity) -> Option<u64> {
    u64::try_from(parse(quantity)?.milli_value()).ok()
}

/// The value in whole units, rounded up (`1Ki` is 1024, `100m` is 1).
#[must_use]
pub fn units(quantity: &Quantity) -> Option<u64> {
    u64::try_from(parse(quantity)?.value()).ok()
}

fn parse(quantity: &Quantity) -> Option<rkube_api::quantity::Quantity> {
    quantity.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities() {
        let q = |text: &str| Quantity(text.to_owned());
        for (text, m, u) in [
            ("100m", 100, 1),
            ("2", 2000, 2),
            ("0.5", 500, 1),
            ("1.5Gi", 1_610_612_736_000, 1_610_612_736),
            ("64Mi", 67_108_864_000, 67_108_864),
            ("1e3", 1_000_000, 1000),
            ("1n", 1, 1),
            ("0", 0, 0),
            (".5", 500, 1),
            ("128M", 128_000_000_000, 128_000_000),
        ] {
            assert_eq!(
                (millis(&q(text)), units(&q(text))),
                (Some(m), Some(u)),
                "{text}"
            );
        }
        for text in ["", "x", "1x", "1e99999999999", "-1"] {
            assert_eq!(units(&q(text)), None, "{text}");
        }
    }
}
