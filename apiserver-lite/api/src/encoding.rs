//! How upstream's structs write their fields: protobuf numbers, and which zero
//! values are left out (`data/encoding.txt`, made by `tools/encoding.rs`).
//!
//! Grammar, one type or field a line:
//!
//! ```text
//! TYPE
//!  FIELD NUMBER[FLAGS]      flags: * pointer, o omitempty, z omitzero, w a list in a message
//!  ~TYPE NUMBER             an embedded struct, whose fields are this type's in JSON
//! ```

use std::collections::HashMap;
use std::sync::OnceLock;

/// How one field is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Encoding {
    /// The JSON name.
    pub name: &'static str,
    /// The protobuf number.
    pub number: u32,
    /// Absent and zero differ.
    pub pointer: bool,
    /// A zero value is left out of JSON (structs are written all the same).
    pub omit_empty: bool,
    /// A zero struct is left out too.
    pub omit_zero: bool,
    /// In protobuf the list is a message with its items as field 1.
    pub wrapped: bool,
}

/// How the fields of one struct are written.
#[derive(Debug, Default)]
pub struct Encodings {
    /// Its own fields.
    pub fields: Vec<Encoding>,
    /// Embedded structs with their numbers.
    pub embedded: Vec<(u32, &'static str)>,
}

impl Encodings {
    /// The field with a protobuf number.
    #[must_use]
    pub fn by_number(&self, number: u32) -> Option<&Encoding> {
        self.fields.iter().find(|f| f.number == number)
    }

    /// The struct embedded under a protobuf number.
    #[must_use]
    pub fn embedded(&self, number: u32) -> Option<&'static str> {
        self.embedded
            .iter()
            .find(|(n, _)| *n == number)
            .map(|(_, name)| *name)
    }
}

const TEXT: &str = include_str!("../data/encoding.txt");

fn table() -> &'static HashMap<&'static str, Encodings> {
    static TABLE: OnceLock<HashMap<&'static str, Encodings>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut table: HashMap<&'static str, Encodings> = HashMap::new();
        let mut current = "";
        for line in TEXT.lines().filter(|l| !l.starts_with('#')) {
            let Some(field) = line.strip_prefix(' ') else {
                current = line;
                table.entry(current).or_default();
                continue;
            };
            let (name, rest) = field.split_once(' ').unwrap_or((field, ""));
            let digits = rest.trim_end_matches(|c: char| !c.is_ascii_digit());
            let flags = &rest[digits.len()..];
            let number = digits.parse().unwrap_or(0);
            let entry = table.entry(current).or_default();
            match name.strip_prefix('~') {
                Some(embedded) => entry.embedded.push((number, embedded)),
                None => entry.fields.push(Encoding {
                    name,
                    number,
                    pointer: flags.contains('*'),
                    omit_empty: flags.contains('o'),
                    omit_zero: flags.contains('z'),
                    wrapped: flags.contains('w'),
                }),
            }
        }
        table
    })
}

/// How the fields of a type are written, by its name without `io.k8s.`.
/// `None` for types whose structs are not in the table.
#[must_use]
pub fn of(name: &str) -> Option<&'static Encodings> {
    table().get(name)
}

/// All fields of a type, those of embedded structs included.
pub fn each(name: &str, found: &mut impl FnMut(&'static Encoding)) {
    if let Some(encodings) = of(name) {
        encodings.fields.iter().for_each(&mut *found);
        for (_, embedded) in &encodings.embedded {
            each(embedded, found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types;

    #[test]
    fn the_table_fits_the_types() {
        let mut fields = 0;
        for name in table().keys() {
            let Some(ty) = types::by_name(name) else {
                continue;
            };
            each(name, &mut |encoding| {
                assert!(encoding.number > 0, "{name}.{}", encoding.name);
                fields += usize::from(ty.field(encoding.name).is_some());
            });
        }
        assert!(fields > 2500, "{fields}");
        let container = of("api.core.v1.Container").unwrap();
        assert_eq!(container.by_number(24).unwrap().name, "restartPolicy");
        assert!(container.by_number(24).unwrap().pointer);
        let volume = of("api.core.v1.Volume").unwrap();
        assert_eq!(volume.embedded(2), Some("api.core.v1.VolumeSource"));
        let wrapped = of("api.rbac.v1.PolicyRule").unwrap();
        assert!(wrapped.fields.iter().all(|f| !f.wrapped));
        let resource = of("apimachinery.pkg.apis.meta.v1.APIResource").unwrap();
        assert!(
            resource
                .fields
                .iter()
                .any(|f| f.name == "verbs" && f.wrapped)
        );
    }
}
