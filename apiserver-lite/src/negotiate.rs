//! What an `Accept` header asks for.

use rkube_api::status::Status;

/// How values are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Encoding {
    /// `application/json`.
    #[default]
    Json,
    /// `application/yaml`.
    Yaml,
}

/// What an object is turned into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Shape {
    /// Itself.
    #[default]
    Object,
    /// A `Table` of `meta.k8s.io`, in `v1` or `v1beta1`.
    Table(MetaVersion),
    /// `PartialObjectMetadata` of one object.
    Partial(MetaVersion),
    /// `PartialObjectMetadataList` of a list.
    PartialList(MetaVersion),
}

/// The versions of `meta.k8s.io`; they differ in name only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MetaVersion {
    /// `meta.k8s.io/v1`.
    V1,
    /// `meta.k8s.io/v1beta1`.
    V1Beta1,
}

impl MetaVersion {
    /// The `apiVersion`.
    #[must_use]
    pub const fn api_version(self) -> &'static str {
        match self {
            Self::V1 => "meta.k8s.io/v1",
            Self::V1Beta1 => "meta.k8s.io/v1beta1",
        }
    }
}

/// The form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Format {
    /// How it is written.
    pub encoding: Encoding,
    /// What it shows.
    pub shape: Shape,
}

impl Format {
    /// Plain JSON.
    pub const JSON: Self = Self {
        encoding: Encoding::Json,
        shape: Shape::Object,
    };

    /// The `Content-Type` of answers.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self.encoding {
            Encoding::Json => "application/json",
            Encoding::Yaml => "application/yaml",
        }
    }
}

/// The media types that every resource has.
pub const MEDIA_TYPES: [&str; 2] = ["application/json", "application/yaml"];

/// Clauses of one header looked at; clients send fewer than ten.
const CLAUSES_MAX: usize = 64;

/// One clause of an `Accept` header.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Clause<'a> {
    /// `type/subtype`, in lower case as clients write it.
    pub(crate) media: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
    quality: f32,
}

impl Clause<'_> {
    /// The value of a parameter, or "".
    pub(crate) fn parameter(&self, name: &str) -> &str {
        self.parameters
            .iter()
            .find(|(key, _)| *key == name)
            .map_or("", |(_, value)| value)
    }

    /// Whether the clause takes a media type.
    pub(crate) fn takes(&self, media: &str) -> bool {
        // `application/*` is none of these to upstream's router.
        self.media == media || self.media == "*/*" || self.media == "*"
    }
}

/// The clauses of a header, the preferred first; equal ones in their order.
pub(crate) fn clauses(accept: &str) -> Vec<Clause<'_>> {
    let mut clauses: Vec<Clause<'_>> = accept
        .split(',')
        .take(CLAUSES_MAX)
        .filter_map(|text| {
            let mut parts = text.split(';').map(str::trim);
            let media = parts.next().filter(|m| !m.is_empty())?;
            let mut quality = 1.0;
            let mut parameters = Vec::new();
            for part in parts {
                let (key, value) = part.split_once('=').unwrap_or((part, ""));
                if key == "q" {
                    quality = value.parse().unwrap_or(1.0);
                } else {
                    parameters.push((key, value.trim_matches('"')));
                }
            }
            Some(Clause {
                media,
                parameters,
                quality,
            })
        })
        .collect();
    clauses.sort_by(|a, b| b.quality.total_cmp(&a.quality));
    clauses
}

/// The form that an `Accept` header asks for; an absent one asks for JSON.
///
/// # Errors
/// 406 where nothing that it names is served.
pub fn accept(header: &str) -> Result<Format, Status> {
    let clauses = clauses(header);
    if clauses.is_empty() {
        return Ok(Format::JSON);
    }
    for clause in &clauses {
        let encoding = if clause.takes("application/json") {
            Encoding::Json
        } else if clause.takes("application/yaml") {
            Encoding::Yaml
        } else {
            continue;
        };
        if let Some(shape) = shape(clause) {
            return Ok(Format { encoding, shape });
        }
    }
    let known = clauses
        .iter()
        .any(|c| MEDIA_TYPES.iter().any(|media| c.takes(media)));
    Err(if known {
        Status::not_acceptable(&MEDIA_TYPES)
    } else {
        Status::no_such_form(&MEDIA_TYPES)
    })
}

/// The shape of a clause; `None` for one that is not known.
fn shape(clause: &Clause<'_>) -> Option<Shape> {
    let kind = clause.parameter("as");
    if kind.is_empty() {
        return Some(Shape::Object);
    }
    let version = match (clause.parameter("g"), clause.parameter("v")) {
        ("meta.k8s.io", "v1") => MetaVersion::V1,
        ("meta.k8s.io", "v1beta1") => MetaVersion::V1Beta1,
        _ => return None,
    };
    match kind {
        "Table" => Some(Shape::Table(version)),
        "PartialObjectMetadata" => Some(Shape::Partial(version)),
        "PartialObjectMetadataList" => Some(Shape::PartialList(version)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clients_send() {
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(
            accept(table).unwrap().shape,
            Shape::Table(MetaVersion::V1),
            "kubectl get"
        );
        assert_eq!(
            accept("application/vnd.kubernetes.protobuf,application/json"),
            Ok(Format::JSON),
            "protobuf is not spoken, the second choice is"
        );
        assert_eq!(accept(""), Ok(Format::JSON));
        assert_eq!(accept("*/*"), Ok(Format::JSON));
        assert_eq!(
            accept("application/json;q=0.1, application/yaml")
                .unwrap()
                .encoding,
            Encoding::Yaml
        );
        for bad in [
            "text/html",
            "application/*",
            "application/vnd.kubernetes.protobuf",
            "application/json;as=Table;v=v9;g=meta.k8s.io",
        ] {
            assert_eq!(accept(bad).unwrap_err().code, 406, "{bad}");
        }
    }
}
