//! `metav1.Status`: every error of the API as one value, with upstream's
//! reasons, codes and sentences (`k8s.io/apimachinery/pkg/api/errors`).

use serde_json::{Map, Value, json};

use crate::field::FieldError;

/// An answer that is no object: an error, or a bare success.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The HTTP status.
    pub code: u16,
    /// The machine-readable reason, such as `NotFound`.
    pub reason: &'static str,
    /// The sentence for people.
    pub message: String,
    /// `details`, absent when empty.
    pub details: Map<String, Value>,
    /// `details` are written even where they are empty, as for answers that no resource gives.
    pub bare: bool,
    /// The answer is the message alone, as text: of what is no part of the API.
    pub text: bool,
    /// `metadata.continue`: where a list whose page expired may go on; empty for none.
    pub continue_token: String,
}

/// A resource in an error: `pods`, `deployments.apps`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Named<'a> {
    /// The group; "" is core.
    pub group: &'a str,
    /// The plural of the resource; for [`Status::invalid`] the kind.
    pub resource: &'a str,
    /// The object's name.
    pub name: &'a str,
}

impl Named<'_> {
    /// `pods` or `deployments.apps`.
    fn qualified(&self) -> String {
        if self.group.is_empty() {
            self.resource.to_owned()
        } else {
            format!("{}.{}", self.resource, self.group)
        }
    }

    fn details(&self) -> Map<String, Value> {
        let mut details = Map::new();
        let fields = [
            ("name", self.name),
            ("group", self.group),
            ("kind", self.resource),
        ];
        for (key, value) in fields {
            if !value.is_empty() {
                details.insert(key.into(), value.into());
            }
        }
        details
    }
}

impl Status {
    fn new(code: u16, reason: &'static str, message: String, details: Map<String, Value>) -> Self {
        Self {
            code,
            reason,
            message,
            details,
            bare: false,
            text: false,
            continue_token: String::new(),
        }
    }

    /// 404.
    #[must_use]
    pub fn not_found(object: Named<'_>) -> Self {
        let message = format!("{} {:?} not found", object.qualified(), object.name);
        Self::new(404, "NotFound", message, object.details())
    }

    /// 404 for a path that serves nothing.
    #[must_use]
    pub fn no_such_resource() -> Self {
        Self::generic(
            404,
            "NotFound",
            "the server could not find the requested resource",
        )
    }

    /// 404 for a path outside of the API, as text (`http.NotFound` of Go).
    #[must_use]
    pub fn page_not_found() -> Self {
        Self::as_text(404, "NotFound", "404 page not found\n".to_owned())
    }

    /// An answer of the filters before the API, as text.
    #[must_use]
    pub fn as_text(code: u16, reason: &'static str, message: String) -> Self {
        let mut status = Self::new(code, reason, message, Map::new());
        status.text = true;
        status
    }

    /// An answer of the HTTP layer (`NewGenericServerResponse`).
    fn generic(code: u16, reason: &'static str, message: &str) -> Self {
        let mut status = Self::new(code, reason, message.to_owned(), Map::new());
        status.bare = true;
        status
    }

    /// 405 for a method that a path does not have.
    #[must_use]
    pub fn no_such_method() -> Self {
        Self::generic(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )
    }

    /// 406 for a media type that no resource has.
    #[must_use]
    pub fn no_such_form(served: &[&str]) -> Self {
        let list = served.join(", ");
        let message = format!("406: Not Acceptable\n\nAvailable representations: {list}");
        Self::generic(406, "NotAcceptable", &message)
    }

    /// 415 for a media type that a method does not take.
    #[must_use]
    pub fn no_such_body() -> Self {
        Self::generic(415, "UnsupportedMediaType", "415: Unsupported Media Type")
    }

    /// 422 for a patch that does not apply; upstream does not tell why.
    #[must_use]
    pub fn patch_rejected() -> Self {
        Self::generic(
            422,
            "Invalid",
            "the server rejected our request due to an error in our request",
        )
    }

    /// 500 for a failure that has no reason of its own.
    #[must_use]
    pub fn unknown(message: impl Into<String>) -> Self {
        Self::new(500, "", message.into(), Map::new())
    }

    /// 409 on creation.
    #[must_use]
    pub fn already_exists(object: Named<'_>) -> Self {
        let message = format!("{} {:?} already exists", object.qualified(), object.name);
        Self::new(409, "AlreadyExists", message, object.details())
    }

    /// 409 on update, for a reason.
    #[must_use]
    pub fn conflict(object: Named<'_>, why: &str) -> Self {
        let (resource, name) = (object.qualified(), object.name);
        let message = format!("Operation cannot be fulfilled on {resource} {name:?}: {why}");
        Self::new(409, "Conflict", message, object.details())
    }

    /// 409 where the resourceVersion of an update is not the newest.
    #[must_use]
    pub fn stale(object: Named<'_>) -> Self {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(object, why)
    }

    /// 422: `object.resource` is the kind here.
    #[must_use]
    pub fn invalid(object: Named<'_>, errors: &[FieldError]) -> Self {
        let mut texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        texts.dedup();
        let list = match &texts[..] {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let message = format!(
            "{} {:?} is invalid: {list}",
            object.qualified(),
            object.name
        );
        let mut details = object.details();
        let causes: Vec<Value> = errors
            .iter()
            .map(|e| json!({"reason": e.kind.reason(), "message": e.body(), "field": e.path.to_string()}))
            .collect();
        if !causes.is_empty() {
            details.insert("causes".into(), causes.into());
        }
        Self::new(422, "Invalid", message, details)
    }

    /// 400.
    #[must_use]
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message.into(), Map::new())
    }

    /// 400 for fields that strict decoding refuses.
    #[must_use]
    pub fn strict_decoding(kind: &str, version: &str, problems: &[String]) -> Self {
        let list = problems.join(", ");
        Self::bad_request(format!(
            "{kind} in version {version:?} cannot be handled as a {kind}: strict decoding error: {list}"
        ))
    }

    /// 401.
    #[must_use]
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized".into(), Map::new())
    }

    /// 403: an object's operation, for a reason.
    #[must_use]
    pub fn forbidden(object: Named<'_>, why: &str) -> Self {
        let message = if object.name.is_empty() {
            format!("{} is forbidden: {why}", object.qualified())
        } else {
            format!(
                "{} {:?} is forbidden: {why}",
                object.qualified(),
                object.name
            )
        };
        Self::new(403, "Forbidden", message, object.details())
    }

    /// 406.
    #[must_use]
    pub fn not_acceptable(accepted: &[&str]) -> Self {
        let message = format!(
            "only the following media types are accepted: {}",
            accepted.join(", ")
        );
        Self::new(406, "NotAcceptable", message, Map::new())
    }

    /// 406 for a form that an answer cannot take.
    #[must_use]
    pub fn not_that_form(message: String) -> Self {
        Self::new(406, "NotAcceptable", message, Map::new())
    }

    /// 410 for a watch or page whose revision is compacted.
    #[must_use]
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message.into(), Map::new())
    }

    /// 413.
    #[must_use]
    pub fn too_large(limit_bytes: usize) -> Self {
        let message = format!("Request entity too large: limit is {limit_bytes}");
        Self::new(413, "RequestEntityTooLarge", message, Map::new())
    }

    /// 415.
    #[must_use]
    pub fn unsupported_media_type(accepted: &[&str]) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            accepted.join(", ")
        );
        Self::new(415, "UnsupportedMediaType", message, Map::new())
    }

    /// 429: come back after some seconds.
    #[must_use]
    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: u32) -> Self {
        let mut details = Map::new();
        if retry_after_seconds > 0 {
            details.insert("retryAfterSeconds".into(), retry_after_seconds.into());
        }
        Self::new(429, "TooManyRequests", message.into(), details)
    }

    /// 504: the request may have been carried out.
    #[must_use]
    pub fn timeout(message: &str, retry_after_seconds: u32) -> Self {
        let mut details = Map::new();
        if retry_after_seconds > 0 {
            details.insert("retryAfterSeconds".into(), retry_after_seconds.into());
        }
        Self::new(504, "Timeout", format!("Timeout: {message}"), details)
    }

    /// 504 for a resourceVersion that the server has not reached yet.
    #[must_use]
    pub fn revision_too_high(wanted: u64, current: u64) -> Self {
        let message = format!("Too large resource version: {wanted}, current: {current}");
        let mut status = Self::timeout(&message, 1);
        let cause =
            json!({"reason": "ResourceVersionTooLarge", "message": "Too large resource version"});
        status.details.insert("causes".into(), vec![cause].into());
        status
    }

    /// 500.
    #[must_use]
    pub fn internal(why: &str) -> Self {
        let message = format!("Internal error occurred: {why}");
        let mut details = Map::new();
        details.insert("causes".into(), vec![json!({"message": why})].into());
        Self::new(500, "InternalError", message, details)
    }

    /// 503.
    #[must_use]
    pub fn unavailable(why: impl Into<String>) -> Self {
        Self::new(503, "ServiceUnavailable", why.into(), Map::new())
    }

    /// The `metav1.Status` object of this failure.
    #[must_use]
    pub fn to_value(&self) -> Value {
        let mut value = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "code": self.code,
        });
        if !self.reason.is_empty() {
            value["reason"] = self.reason.into();
        }
        if self.bare || !self.details.is_empty() {
            value["details"] = Value::Object(self.details.clone());
        }
        if !self.continue_token.is_empty() {
            value["metadata"] = json!({"continue": self.continue_token});
        }
        value
    }

    /// The answer to a deletion that left no object behind.
    #[must_use]
    pub fn success(object: Named<'_>, uid: &str) -> Value {
        let mut details = object.details();
        if !uid.is_empty() {
            details.insert("uid".into(), uid.into());
        }
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field::{ErrorKind, FieldPath};

    const DEPLOYMENT: Named<'_> = Named {
        group: "apps",
        resource: "deployments",
        name: "web",
    };

    #[test]
    fn sentences_as_upstream() {
        let pod = Named {
            group: "",
            resource: "pods",
            name: "p",
        };
        assert_eq!(Status::not_found(pod).message, "pods \"p\" not found");
        assert_eq!(
            Status::already_exists(DEPLOYMENT).message,
            "deployments.apps \"web\" already exists"
        );
        assert_eq!(
            Status::stale(DEPLOYMENT).message,
            "Operation cannot be fulfilled on deployments.apps \"web\": the object has been modified; please apply your changes to the latest version and try again"
        );
        assert_eq!(
            Status::not_found(DEPLOYMENT).to_value(),
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                   "message": "deployments.apps \"web\" not found", "reason": "NotFound", "code": 404,
                   "details": {"name": "web", "group": "apps", "kind": "deployments"}})
        );
    }

    #[test]
    fn invalid_objects_carry_a_cause_per_field() {
        let error = |name: &str, kind, value: Option<&str>, detail: &str| FieldError {
            path: FieldPath::default().field("spec").field(name),
            kind,
            value: value.map(Into::into),
            detail: detail.into(),
        };
        let kind = Named {
            group: "apps",
            resource: "Deployment",
            name: "web",
        };
        let one = [error("a", ErrorKind::Required, None, "")];
        let status = Status::invalid(kind, &one);
        assert_eq!(
            status.message,
            "Deployment.apps \"web\" is invalid: spec.a: Required value"
        );
        let two = [
            one[0].clone(),
            error("b", ErrorKind::Invalid, Some("3"), "must be 1"),
        ];
        let status = Status::invalid(kind, &two);
        assert_eq!(
            status.message,
            "Deployment.apps \"web\" is invalid: [spec.a: Required value, spec.b: Invalid value: 3: must be 1]"
        );
        assert_eq!(
            status.details["causes"][1],
            json!({"reason": "FieldValueInvalid", "message": "Invalid value: 3: must be 1", "field": "spec.b"})
        );
        assert_eq!(status.code, 422);
    }
}
