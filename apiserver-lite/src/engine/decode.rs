//! Bodies to objects: media types, field validation, types.

use rkube_api::decode::{DecodeErrors, Problem, documents};
use rkube_api::field::{ErrorKind, FieldError};
use rkube_api::proto;
use rkube_api::resources::Gvk;
use rkube_api::status::{Named, Status};
use rkube_api::strict;
use rkube_api::syntax;
use rkube_api::types::{self, Type};
use serde_json::Value;

use super::{json, normal, unfit};
use crate::options::FieldValidation;
use crate::request::BodyType;

/// The media types of bodies.
const BODY_TYPES: [&str; 3] = [
    "application/json",
    "application/yaml",
    "application/vnd.kubernetes.protobuf",
];

/// What a body is read as.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expected {
    /// The type that the path stands for.
    pub(crate) gvk: Gvk,
    /// What happens to unknown and doubled fields.
    pub(crate) validation: FieldValidation,
    /// Report fields that are missing: for kinds without a validation of their own.
    pub(crate) required: bool,
}

impl Expected {
    fn ty(&self) -> Result<&'static Type, Status> {
        let Gvk {
            group,
            version,
            kind,
        } = self.gvk;
        types::by_gvk(group, version, kind)
            .or_else(|| types::by_kind("v1", kind))
            .ok_or_else(|| Status::internal(&format!("no type for {kind}")))
    }
}

/// Reads JSON or YAML; the second part names doubled keys.
///
/// # Errors
/// 415 for another media type, 400 where the text is broken.
pub(crate) fn value(bytes: &[u8], body_type: BodyType) -> Result<(Value, Vec<String>), Status> {
    match body_type {
        BodyType::Json | BodyType::JsonPatch | BodyType::MergePatch | BodyType::StrategicPatch => {
            json::parse(bytes).map_err(|e| {
                let why = syntax::fault(bytes).unwrap_or_else(|| e.to_string());
                Status::bad_request(format!("{UNTYPED}{why}"))
            })
        }
        BodyType::Yaml => {
            let mut documents =
                documents(bytes, "body").map_err(|e| Status::bad_request(yaml_fault(bytes, &e)))?;
            match (documents.pop(), documents.is_empty()) {
                (Some(document), true) => Ok((document.value, Vec::new())),
                _ => Err(Status::bad_request("the body must be one YAML document")),
            }
        }
        BodyType::Protobuf => {
            let object = proto::decode(bytes).map_err(|e| Status::bad_request(e.to_string()))?;
            Ok((object, Vec::new()))
        }
        BodyType::ApplyPatch | BodyType::Unknown => {
            Err(Status::unsupported_media_type(&BODY_TYPES))
        }
    }
}

/// What is wrong with YAML, in the words of upstream's library where its grammar is broken.
fn yaml_fault(bytes: &[u8], errors: &DecodeErrors) -> String {
    if let [error] = &errors.0[..]
        && let Problem::Syntax { reason, .. } = &error.problem
    {
        // Both libraries descend from one; upstream's leaves out what was being read.
        let is_context = |(before, _): &(&str, &str)| before.starts_with("while ");
        let said = reason.split_once(", ").filter(is_context);
        let why = said.map_or(reason.as_str(), |(_, why)| why);
        // A list or map that nothing closes is told by what could have followed.
        let closing = match why {
            "unclosed bracket '['" => Some(']'),
            "unclosed bracket '{'" => Some('}'),
            _ => None,
        };
        let why = match (closing, bytes.trim_ascii_end().last()) {
            (None, _) => why.to_owned(),
            (Some(_), Some(b'[' | b'{' | b',')) => "did not find expected node content".to_owned(),
            (Some(closing), _) => format!("did not find expected ',' or '{closing}'"),
        };
        return format!("yaml: line {}: {why}", error.mark.line);
    }
    format!("error parsing YAML: {errors}")
}

const UNTYPED: &str = "couldn't get version/kind; json parse error: ";
/// What upstream's decoder says of JSON that is no object, in the words of its library.
const NO_OBJECT: &str = r#"into Go value of type struct { APIVersion string "json:\"apiVersion,omitempty\""; Kind string "json:\"kind,omitempty\"" }"#;
/// Bytes of a broken body that the answer shows.
const SUMMARY_BYTES: usize = 30;

/// A patch of one of the three forms, with its doubled keys.
///
/// # Errors
/// 400 where it is none, in upstream's words for its form.
pub(crate) fn patch(bytes: &[u8], body_type: BodyType) -> Result<(Value, Vec<String>), Status> {
    let (wanted, go) = match body_type {
        BodyType::JsonPatch => ("array", "[]handlers.jsonPatchOp"),
        _ => ("object", "map[string]interface {}"),
    };
    // Strategic patches are read elsewhere, where nothing is put in front.
    let before = match body_type {
        BodyType::StrategicPatch => "",
        _ => "error decoding patch: ",
    };
    let bad = |why: String| Status::bad_request(format!("{before}{why}"));
    let (value, doubled) = json::parse(bytes)
        .map_err(|e| bad(syntax::fault(bytes).unwrap_or_else(|| e.to_string())))?;
    let what = match &value {
        Value::Null if body_type == BodyType::MergePatch => {
            return Err(Status::bad_request("Invalid JSON Patch"));
        }
        // An empty patch of its form.
        Value::Null => {
            let empty = match body_type {
                BodyType::JsonPatch => Value::Array(Vec::new()),
                _ => Value::Object(serde_json::Map::new()),
            };
            return Ok((empty, doubled));
        }
        value => kind_of(value),
    };
    if what == wanted {
        return Ok((value, doubled));
    }
    Err(bad(format!(
        "json: cannot unmarshal {what} into Go value of type {go}"
    )))
}

/// JSON's word for a value.
fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Array(_) => "array",
        Value::String(_) => "string",
        Value::Number(_) => "number",
        Value::Bool(_) => "bool",
        Value::Null => "null",
        Value::Object(_) => "object",
    }
}

/// As [`value`], for the options of a deletion.
///
/// # Errors
/// As [`value`]; upstream takes what cannot be read for a failure of its own: a 500.
pub(crate) fn options(bytes: &[u8], body_type: BodyType) -> Result<(Value, Vec<String>), Status> {
    let failed = |status: Status| match status.code {
        400 => Status::unknown(status.message),
        _ => status,
    };
    let (value, doubled) = value(bytes, body_type).map_err(failed)?;
    match no_object(&value) {
        Some(why) => Err(Status::unknown(why)),
        None => Ok((value, doubled)),
    }
}

/// What upstream's decoder says of a value that is no object.
fn no_object(value: &Value) -> Option<String> {
    let is_object = value.is_null() || value.is_object();
    let what = kind_of(value);
    (!is_object).then(|| format!("{UNTYPED}json: cannot unmarshal {what} {NO_OBJECT}"))
}

/// As [`value`], for a body that is to be an object of a kind.
///
/// # Errors
/// As [`value`]; what cannot be read is shown in part.
pub(crate) fn read(
    kind: &str,
    bytes: &[u8],
    body_type: BodyType,
) -> Result<(Value, Vec<String>), Status> {
    let unrecognized = |why: &str| {
        let shown = summary(bytes);
        Status::bad_request(format!(
            "the object provided is unrecognized (must be of type {kind}): {why} ({shown})"
        ))
    };
    match value(bytes, body_type) {
        Ok((value, _)) if body_type == BodyType::Json && !value.is_object() => {
            match no_object(&value) {
                Some(why) => Err(unrecognized(&why)),
                // `null` is an empty object to upstream.
                None => Ok((Value::Object(serde_json::Map::new()), Vec::new())),
            }
        }
        Err(status) if status.code == 400 && is_text(body_type) => {
            Err(unrecognized(&status.message))
        }
        other => other,
    }
}

/// Whether a body is one that people write.
fn is_text(body_type: BodyType) -> bool {
    matches!(body_type, BodyType::Json | BodyType::Yaml)
}

/// The beginning of a body: text where it looks like an object, else hexadecimal.
fn summary(bytes: &[u8]) -> String {
    let part = &bytes[..bytes.len().min(SUMMARY_BYTES)];
    let shown = match part.first() {
        None => return "<empty>".to_owned(),
        Some(b'{') => String::from_utf8_lossy(part).into_owned(),
        Some(_) => part.iter().map(|b| format!("{b:02x}")).collect(),
    };
    let more = if part.len() < bytes.len() { " ..." } else { "" };
    shown + more
}

/// Checks a decoded body against its type and brings it into normal form. Adds warnings.
///
/// # Errors
/// 400 for another type than expected, for values that do not fit and, where asked for, for
/// unknown and doubled fields; 422 for values outside a closed set and for missing ones.
pub(crate) fn object(
    mut object: Value,
    doubled: Vec<String>,
    expected: &Expected,
    warnings: &mut Vec<String>,
) -> Result<Value, Status> {
    let gvk = &expected.gvk;
    let Some(map) = object.as_object_mut() else {
        return Err(Status::bad_request(format!(
            "{} in version {:?} cannot be handled as a {}: the body must be an object",
            gvk.kind, gvk.version, gvk.kind
        )));
    };
    let own = gvk.api_version();
    let text = |name: &str, absent: &str| match map.get(name).and_then(Value::as_str) {
        None | Some("") => absent.to_owned(),
        Some(text) => text.to_owned(),
    };
    let (api_version, kind) = (text("apiVersion", &own), text("kind", gvk.kind));
    if api_version != own || kind != gvk.kind {
        return Err(other_type(gvk, &api_version, &kind));
    }
    map.insert("apiVersion".into(), own.into());
    map.insert("kind".into(), gvk.kind.into());
    let ty = expected.ty()?;
    let errors = if expected.required {
        strict::check_required(&object, ty)
    } else {
        strict::check(&object, ty)
    };
    let name = object.pointer("/metadata/name").and_then(Value::as_str);
    let unfit = |error: &FieldError| unfit::why(&object, ty, error);
    sort_out(
        errors,
        &doubled,
        expected,
        (name.unwrap_or(""), &unfit),
        warnings,
    )?;
    normal::object(&mut object, ty);
    Ok(object)
}

/// The answer to an object of another type than the path's.
fn other_type(gvk: &Gvk, api_version: &str, kind: &str) -> Status {
    let own = gvk.api_version();
    let (group, version) = types::split_api_version(api_version);
    let why = if types::by_gvk(group, version, kind).is_none() {
        // Upstream names the place in its sources where the types are registered.
        format!(
            "no kind {kind:?} is registered for version {api_version:?} in scheme \"k8s.io/kubernetes/pkg/api/legacyscheme/scheme.go:30\""
        )
    } else if kind == gvk.kind {
        return Status::bad_request(format!(
            "the API version in the data ({api_version}) does not match the expected API version ({own})"
        ));
    } else {
        let package = match gvk.group.split('.').next() {
            None | Some("" | "events") => "core",
            Some(package) => package,
        };
        format!(
            "converting ({version}.{kind}) to ({package}.{}): unknown conversion",
            gvk.kind
        )
    };
    Status::bad_request(format!(
        "{kind} in version {version:?} cannot be handled as a {}: {why}",
        gvk.kind
    ))
}

/// Most warnings about fields of one request, as upstream's strict decoder stops too.
const WARNINGS_MAX: usize = 100;

fn sort_out(
    errors: Vec<FieldError>,
    doubled: &[String],
    expected: &Expected,
    (name, unfit): (&str, &dyn Fn(&FieldError) -> String),
    warnings: &mut Vec<String>,
) -> Result<(), Status> {
    let gvk = &expected.gvk;
    let mut problems: Vec<String> = doubled
        .iter()
        .map(|path| format!("duplicate field {path:?}"))
        .collect();
    let mut invalid = Vec::new();
    for error in errors {
        match error.kind {
            ErrorKind::Unknown => {
                problems.push(format!("unknown field {:?}", error.path.to_string()))
            }
            // Kinds with a validation of their own tell it beside everything else.
            ErrorKind::NotSupported if !expected.required => {}
            ErrorKind::NotSupported | ErrorKind::Required => invalid.push(error),
            _ => {
                return Err(Status::bad_request(format!(
                    "{} in version {:?} cannot be handled as a {}: {}",
                    gvk.kind,
                    gvk.version,
                    gvk.kind,
                    unfit(&error)
                )));
            }
        }
    }
    match expected.validation {
        FieldValidation::Ignore => {}
        FieldValidation::Warn => warnings.extend(problems.into_iter().take(WARNINGS_MAX)),
        FieldValidation::Strict if problems.is_empty() => {}
        FieldValidation::Strict => {
            return Err(Status::strict_decoding(gvk.kind, gvk.version, &problems));
        }
    }
    if invalid.is_empty() {
        return Ok(());
    }
    let named = Named {
        group: gvk.group,
        resource: gvk.kind,
        name,
    };
    Err(Status::invalid(named, &invalid))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG_MAP: Gvk = Gvk {
        group: "",
        version: "v1",
        kind: "ConfigMap",
    };

    fn read(
        text: &str,
        body_type: BodyType,
        validation: FieldValidation,
    ) -> Result<(Value, Vec<String>), Status> {
        let expected = Expected {
            gvk: CONFIG_MAP,
            validation,
            required: false,
        };
        let (body, doubled) = value(text.as_bytes(), body_type)?;
        let mut warnings = Vec::new();
        object(body, doubled, &expected, &mut warnings).map(|o| (o, warnings))
    }

    #[test]
    fn field_validation_has_three_answers() {
        let text = r#"{"metadata": {"name": "a", "name": "b"}, "foo": 1}"#;
        let (object, warnings) = read(text, BodyType::Json, FieldValidation::Warn).unwrap();
        assert_eq!(
            warnings,
            [
                r#"duplicate field "metadata.name""#,
                r#"unknown field "foo""#
            ]
        );
        assert_eq!(object["metadata"]["name"], "b");
        assert_eq!(object["kind"], "ConfigMap");
        assert!(object.get("foo").is_none());
        let strict = read(text, BodyType::Json, FieldValidation::Strict).unwrap_err();
        assert_eq!(
            strict.message,
            r#"ConfigMap in version "v1" cannot be handled as a ConfigMap: strict decoding error: duplicate field "metadata.name", unknown field "foo""#
        );
        assert!(
            read(text, BodyType::Json, FieldValidation::Ignore)
                .unwrap()
                .1
                .is_empty()
        );
    }

    #[test]
    fn other_types_are_refused() {
        for (text, code) in [
            (r#"{"kind": "Secret"}"#, 400),
            (r#"{"apiVersion": "v2"}"#, 400),
            (r#"{"data": 1}"#, 400),
            ("[]", 400),
            ("{", 400),
        ] {
            let status = read(text, BodyType::Json, FieldValidation::Ignore).unwrap_err();
            assert_eq!(status.code, code, "{text}");
        }
        let yaml = "apiVersion: v1\nkind: ConfigMap\ndata:\n  a: b\n";
        let (object, _) = read(yaml, BodyType::Yaml, FieldValidation::Strict).unwrap();
        assert_eq!(object["data"]["a"], "b");
        assert_eq!(
            read(yaml, BodyType::Unknown, FieldValidation::Strict)
                .unwrap_err()
                .code,
            415
        );
    }

    #[test]
    fn broken_yaml_is_told_in_upstreams_words() {
        for (text, words) in [
            ("a: [", "line 1: did not find expected node content"),
            ("a: {b: 1, ", "line 1: did not find expected node content"),
            ("a: [1", "line 1: did not find expected ',' or ']'"),
            ("a: {b: 1\n", "did not find expected ',' or '}'"),
        ] {
            let status = super::value(text.as_bytes(), BodyType::Yaml).unwrap_err();
            assert!(status.message.starts_with("yaml: "), "{}", status.message);
            assert!(
                status.message.ends_with(words),
                "{text}: {}",
                status.message
            );
        }
    }
}
