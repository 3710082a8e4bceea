//! Alarms on pressure that a pod asks for, by an annotation with the
//! container's name behind the slash:
//!
//! `pressure-alarm.rkube.dev/NAME: memory some 150ms/2s, cpu full 1s/4s`
//!
//! Each is a resource, whether `some` or all (`full`) of the container's tasks
//! wait, for how long they do, and within which time
//! (Documentation/accounting/psi.rst).

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use rkube_engine::api::{Alarm, MAX_WINDOW_USEC, MIN_WINDOW_USEC, PressureResource};

use super::TranslateError;

/// Prefix of the annotation.
pub const PRESSURE_ALARM: &str = "pressure-alarm.rkube.dev/";
/// Most alarms of one container.
pub const MAX_ALARMS: usize = 16;

/// The alarms that a pod asks for a container.
///
/// # Errors
/// A value that means nothing.
pub fn asked(pod: &Pod, container: &str) -> Result<Vec<Alarm>, TranslateError> {
    let key = format!("{PRESSURE_ALARM}{container}");
    let annotations = pod.metadata.annotations.as_ref();
    let Some(text) = annotations.and_then(|a| a.get(&key)) else {
        return Ok(Vec::new());
    };
    let alarms = text.split(',').map(one).collect::<Option<Vec<Alarm>>>();
    alarms
        .filter(|list| list.len() <= MAX_ALARMS)
        .ok_or_else(|| TranslateError::Annotation {
            key,
            value: text.clone(),
            wanted: "at most 16 of \"cpu|memory|io some|full STALL/WINDOW\", with commas between, \
                     the window from 500ms to 10s",
        })
}

fn one(text: &str) -> Option<Alarm> {
    let mut words = text.split_ascii_whitespace();
    let resource = match words.next()? {
        "cpu" => PressureResource::Cpu,
        "memory" => PressureResource::Memory,
        "io" => PressureResource::Io,
        _ => return None,
    };
    let full = match words.next()? {
        "some" => false,
        "full" => true,
        _ => return None,
    };
    let (stall, window) = words.next()?.split_once('/')?;
    let (stall_usec, window_usec) = (microseconds(stall)?, microseconds(window)?);
    let fits = stall_usec > 0
        && stall_usec < window_usec
        && (MIN_WINDOW_USEC..=MAX_WINDOW_USEC).contains(&window_usec);
    (fits && words.next().is_none()).then_some(Alarm {
        resource,
        full,
        stall_usec,
        window_usec,
    })
}

fn microseconds(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let unit: u64 = match unit {
        "us" => 1,
        "ms" => 1_000,
        "s" => 1_000_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit)
}

/// What an event says of an alarm.
#[must_use]
pub fn told(alarm: &Alarm) -> String {
    let who = if alarm.full { "all" } else { "some" };
    format!(
        "{} pressure: {who} tasks waited for {:?} or more within {:?}",
        alarm.resource.as_str(),
        Duration::from_micros(alarm.stall_usec),
        Duration::from_micros(alarm.window_usec),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Vec<Alarm>, TranslateError> {
        let pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "annotations": {"pressure-alarm.rkube.dev/a": text}}}));
        asked(&pod.unwrap(), "a")
    }

    #[test]
    fn alarms_are_read() {
        let found = of("memory some 150ms/2s, cpu full 1s/4s").unwrap();
        assert_eq!(found.len(), 2);
        let memory = Alarm {
            resource: PressureResource::Memory,
            full: false,
            stall_usec: 150_000,
            window_usec: 2_000_000,
        };
        assert_eq!(found[0], memory);
        assert_eq!(
            told(&found[1]),
            "cpu pressure: all tasks waited for 1s or more within 4s"
        );
        assert_eq!(
            told(&memory),
            "memory pressure: some tasks waited for 150ms or more within 2s"
        );
    }

    #[test]
    fn values_without_a_meaning_are_refused() {
        let many = vec!["io some 1ms/1s"; MAX_ALARMS + 1].join(",");
        for bad in [
            "",
            "memory",
            "memory some",
            "disk some 1ms/1s",
            "memory all 1ms/1s",
            "memory some 0ms/1s",
            "memory some 1s/1s",
            "memory some 1ms/499ms",
            "memory some 1ms/11s",
            "memory some 1/2",
            "memory some 1ms/1s x",
            "memory some 99999999999999999999s/1s",
            many.as_str(),
        ] {
            let error = of(bad).unwrap_err().to_string();
            assert!(
                error.contains("pressure-alarm.rkube.dev/a"),
                "{bad}: {error}"
            );
        }
    }
}
