//! What types and fields are for: the texts that `kubectl explain` shows.
//!
//! `data/descriptions.txt`, made by `tools/descriptions.rs` of `rkube-api`: a line for each type,
//! and under it ` FIELD TEXT` (` ` and the text for the type itself), `\n` for a line's end.
//! Unpacked for each document, since few are asked for and clients keep them.

use std::collections::HashMap;
use std::io::Read as _;

const PACKED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptions.gz"));

/// All texts.
pub(super) struct Descriptions(HashMap<String, HashMap<String, String>>);

impl Descriptions {
    /// Unpacks them. They are part of the program: what cannot be read is left out.
    pub(super) fn unpack() -> Self {
        let mut text = String::new();
        if let Err(error) = flate2::read::GzDecoder::new(PACKED).read_to_string(&mut text) {
            tracing::error!(%error, "unpack the descriptions of the API");
        }
        let mut all: HashMap<String, HashMap<String, String>> = HashMap::new();
        let mut current = String::new();
        for line in text.lines().filter(|l| !l.starts_with('#')) {
            match line.strip_prefix(' ').map(|l| l.split_once(' ')) {
                Some(Some((field, text))) => {
                    let texts = all.entry(current.clone()).or_default();
                    texts.insert(field.to_owned(), text.replace("\\n", "\n"));
                }
                Some(None) => {}
                None => line.clone_into(&mut current),
            }
        }
        Self(all)
    }

    /// The text of a type's field; "" is the type itself.
    pub(super) fn of(&self, ty: &str, field: &str) -> Option<&str> {
        self.0.get(ty)?.get(field).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_and_fields_have_texts() {
        let all = Descriptions::unpack();
        let of = |ty: &str, field: &str| all.of(ty, field).unwrap_or("").to_owned();
        assert!(of("api.core.v1.Pod", "").starts_with("Pod is a collection"));
        assert!(of("api.core.v1.PodStatus", "hostIP").contains("IP address"));
        assert!(of("api.core.v1.PodSpec", "containers").contains("List of containers"));
        assert!(all.of("api.core.v1.Pod", "nope").is_none());
    }
}
