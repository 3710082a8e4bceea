//! Which objects a list or watch is about: label and field selectors over stored bytes.
//!
//! Only the fields that a selector names are read from the bytes; the rest is skipped.

use std::borrow::Cow;

use rkube_api::resources::Resource;
use rkube_api::selector::{FieldSelector, LabelSelector};
use rkube_api::status::Status;
use serde_json::{Map, Value};

use crate::objects::stored_as;
use crate::options::Options;
use crate::pick::pick;

/// Fields, each with the text that an absent one has.
type Known = &'static [(&'static str, &'static str)];

/// Fields of kinds that can be selected by, beside `metadata.name` and `metadata.namespace`
/// (`pkg/apis/*/v1/conversion.go` and the kinds'
/// `GetAttrs` of upstream).
const FIELDS: &[(&str, &str, Known)] = &[
    (
        "",
        "pods",
        &[
            ("spec.nodeName", ""),
            ("spec.restartPolicy", ""),
            ("spec.schedulerName", ""),
            ("spec.serviceAccountName", ""),
            ("spec.hostNetwork", "false"),
            ("status.phase", ""),
            ("status.podIP", ""),
            ("status.nominatedNodeName", ""),
        ],
    ),
    ("", "nodes", &[("spec.unschedulable", "false")]),
    ("", "namespaces", &[("status.phase", "")]),
    ("", "secrets", &[("type", "")]),
    ("", "services", &[("spec.clusterIP", ""), ("spec.type", "")]),
    ("", "replicationcontrollers", &[("status.replicas", "0")]),
    ("batch", "jobs", &[("status.successful", "0")]),
    (
        "",
        "events",
        &[
            ("involvedObject.kind", ""),
            ("involvedObject.namespace", ""),
            ("involvedObject.name", ""),
            ("involvedObject.uid", ""),
            ("involvedObject.apiVersion", ""),
            ("involvedObject.resourceVersion", ""),
            ("involvedObject.fieldPath", ""),
            ("reason", ""),
            ("reportingComponent", ""),
            ("source", ""),
            ("type", ""),
        ],
    ),
    (
        "certificates.k8s.io",
        "certificatesigningrequests",
        &[("spec.signerName", "")],
    ),
    (
        "resource.k8s.io",
        "resourceslices",
        &[("spec.nodeName", ""), ("spec.driver", "")],
    ),
];

/// Names of one view of a resource for fields of the stored form.
fn stored_name(field: &str) -> Cow<'_, str> {
    match field {
        "reportingController" => "reportingComponent".into(),
        _ => match field.strip_prefix("regarding.") {
            Some(rest) => format!("involvedObject.{rest}").into(),
            None => field.into(),
        },
    }
}

/// Where the stored form keeps what a field means.
fn stored_path(group: &str, field: &str) -> String {
    match (group, field) {
        ("", "source") => "source.component".to_owned(),
        ("batch", "status.successful") => "status.succeeded".to_owned(),
        _ => field.to_owned(),
    }
}

/// A compiled selection.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    labels: LabelSelector,
    fields: FieldSelector,
    /// Paths into the stored form, in the order of `terms`; the labels' path is the last.
    paths: Vec<String>,
    /// Field names as the selector has them, with the text of an absent value.
    terms: Vec<(String, &'static str)>,
    /// Terms whose value is that of another path where their own has none: both places.
    instead: Vec<(usize, usize)>,
}

/// Upstream words this in three ways, by who converts the kind's field labels.
fn unknown_field(resource: &Resource, field: &str) -> String {
    match (resource.gvk.group, resource.plural) {
        ("batch", "jobs") => format!("field label {field:?} not supported for batchv1.Job"),
        ("", "pods" | "nodes" | "secrets" | "events" | "namespaces" | "replicationcontrollers")
        | ("events.k8s.io", "events") => format!("field label not supported: {field}"),
        _ => format!(
            "{field:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
        ),
    }
}

impl Selection {
    /// Compiles the selectors of a request.
    ///
    /// # Errors
    /// 400 for a field that the resource cannot be selected by.
    pub fn new(resource: &'static Resource, options: &Options) -> Result<Self, Status> {
        let stored = stored_as(resource);
        let known = FIELDS
            .iter()
            .find(|(group, plural, _)| *group == stored.gvk.group && *plural == stored.plural)
            .map_or(&[][..], |(_, _, fields)| *fields);
        let mut selection = Self {
            labels: options.labels.clone(),
            fields: options.fields.clone(),
            ..Self::default()
        };
        for term in &options.fields.0 {
            let name = stored_name(&term.field);
            let absent = match &*name {
                "metadata.name" | "metadata.namespace" => "",
                name => known
                    .iter()
                    .find(|(f, _)| *f == name)
                    .map(|(_, absent)| *absent)
                    .ok_or_else(|| Status::bad_request(unknown_field(resource, &term.field)))?,
            };
            selection.paths.push(stored_path(stored.gvk.group, &name));
            selection.terms.push((term.field.clone(), absent));
        }
        for (term, (field, _)) in selection.terms.iter().enumerate() {
            // Who reports by `events.k8s.io` names itself in the newer field only.
            if stored.plural == "events" && field == "source" {
                selection.instead.push((term, selection.paths.len()));
                selection.paths.push("reportingComponent".to_owned());
            }
        }
        if !selection.labels.is_everything() {
            selection.paths.push("metadata.labels".to_owned());
        }
        Ok(selection)
    }

    /// Whether every object is selected.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.terms.is_empty() && self.labels.is_everything()
    }

    /// The only name that can be selected, where the fields say one.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.fields.required_value("metadata.name")
    }

    /// The only namespace that can be selected, where the fields say one.
    #[must_use]
    pub fn namespace(&self) -> Option<&str> {
        self.fields.required_value("metadata.namespace")
    }

    /// Whether a stored object is selected. Bytes that are no object are not.
    #[must_use]
    pub fn matches(&self, stored: &[u8]) -> bool {
        if self.is_everything() {
            return true;
        }
        let Ok(values) = pick(stored, &self.paths) else {
            return false;
        };
        let texts: Vec<(&str, Cow<'_, str>)> = self
            .terms
            .iter()
            .zip(&values)
            .enumerate()
            .map(|(term, ((field, absent), value))| {
                let other = self.instead.iter().find(|(own, _)| *own == term);
                let other = other.and_then(|(_, path)| values.get(*path));
                let value = match (text(value, absent), other) {
                    (own, Some(other)) if own.is_empty() => text(other, absent),
                    (own, _) => own,
                };
                (field.as_str(), value)
            })
            .collect();
        let field = |name: &str| texts.iter().find(|(f, _)| *f == name).map(|(_, v)| &**v);
        if !self.fields.matches(field).unwrap_or(false) {
            return false;
        }
        if self.labels.is_everything() {
            return true;
        }
        let labels: Option<&Map<String, Value>> = values.last().and_then(Value::as_object);
        self.labels.matches(labels)
    }
}

fn text<'a>(value: &'a Value, absent: &'static str) -> Cow<'a, str> {
    match value {
        Value::Null => absent.into(),
        Value::String(text) => text.as_str().into(),
        other => other.to_string().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rkube_api::resources::by_plural;

    fn selected(
        group: &str,
        plural: &str,
        query: &[(&str, &str)],
        object: &str,
    ) -> Result<bool, Status> {
        let options = Options::from_query(query.iter().copied())?;
        let resource = by_plural(group, "v1", plural).unwrap();
        Ok(Selection::new(resource, &options)?.matches(object.as_bytes()))
    }

    #[test]
    fn labels_and_fields() {
        let pod = r#"{"metadata":{"labels":{"a":"b"},"name":"p","namespace":"n"},"spec":{"nodeName":"x","containers":[{"name":"c"}]},"status":{"phase":"Running"}}"#;
        for (query, expected) in [
            (("labelSelector", "a=b"), true),
            (("labelSelector", "a!=b"), false),
            (("labelSelector", "!c"), true),
            (
                ("fieldSelector", "spec.nodeName=x,status.phase!=Failed"),
                true,
            ),
            (("fieldSelector", "spec.nodeName="), false),
            (("fieldSelector", "metadata.name=p"), true),
            (("fieldSelector", "spec.hostNetwork=false"), true),
        ] {
            assert_eq!(
                selected("", "pods", &[query], pod),
                Ok(expected),
                "{query:?}"
            );
        }
        let both = [
            ("labelSelector", "a=b"),
            ("fieldSelector", "status.phase=Running"),
        ];
        assert_eq!(selected("", "pods", &both, pod), Ok(true));
        let unknown = selected("", "pods", &[("fieldSelector", "spec.priority=1")], pod);
        assert_eq!(unknown.unwrap_err().code, 400);
        let event = r#"{"metadata":{"name":"e"},"involvedObject":{"name":"p"},"source":{"component":"kubelet"}}"#;
        let query = [("fieldSelector", "regarding.name=p")];
        assert_eq!(selected("events.k8s.io", "events", &query, event), Ok(true));
        let query = [("fieldSelector", "source=kubelet")];
        assert_eq!(selected("", "events", &query, event), Ok(true));
        let newer = r#"{"metadata":{"name":"e"},"source":{},"reportingComponent":"kubelet"}"#;
        assert_eq!(selected("", "events", &query, newer), Ok(true));
        let both = [("labelSelector", "!a"), query[0]];
        assert_eq!(selected("", "events", &both, newer), Ok(true));
        let job = r#"{"metadata":{"name":"j"},"status":{}}"#;
        assert_eq!(
            selected(
                "batch",
                "jobs",
                &[("fieldSelector", "status.successful=0")],
                job
            ),
            Ok(true)
        );
    }
}
