//! What a request may fail with.

use rkube_api::status::Status;
use serde_json::Value;

/// The API's own refusal, a `metav1.Status`.
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal {
    /// The HTTP status.
    pub code: u16,
    /// The machine-readable reason, such as `NotFound`.
    pub reason: String,
    /// The sentence for people.
    pub message: String,
    /// `details`, null when there are none.
    pub details: Value,
}

/// Why a request has no answer of the wanted kind.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ApiError {
    /// The API server refused.
    #[error("{}", .0.message)]
    Refused(Box<Refusal>),
    /// The API server could not be reached, or the connection broke.
    #[error("{attempt}: {reason}")]
    Connection {
        /// What was tried: the verb and the path, or the address.
        attempt: String,
        /// What went wrong.
        reason: String,
    },
    /// The answer is not what the API promises.
    #[error("decode the answer to {attempt}: {reason}")]
    Decode {
        /// The verb and the path.
        attempt: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A request that cannot be sent as it is.
    #[error("encode {what}: {reason}")]
    Encode {
        /// The body or parameter.
        what: &'static str,
        /// Why.
        reason: String,
    },
}

impl ApiError {
    /// From the JSON of a `metav1.Status`; `code` stands in for one without.
    #[must_use]
    pub fn from_status(value: &Value, code: u16) -> Self {
        let text = |name: &str| {
            value
                .get(name)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let told = value
            .get("code")
            .and_then(Value::as_u64)
            .and_then(|c| u16::try_from(c).ok());
        let mut message = text("message");
        if message.is_empty() {
            message = format!("the API server answered {code}");
        }
        Self::Refused(Box::new(Refusal {
            code: told.filter(|c| *c != 0).unwrap_or(code),
            reason: text("reason"),
            message,
            details: value.get("details").cloned().unwrap_or_default(),
        }))
    }

    /// The refusal, if it is one.
    #[must_use]
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }

    /// The HTTP status of a refusal, 0 for anything else.
    #[must_use]
    pub fn code(&self) -> u16 {
        self.refusal().map_or(0, |r| r.code)
    }

    fn has_reason(&self, reason: &str) -> bool {
        self.refusal().is_some_and(|r| r.reason == reason)
    }

    /// 404: there is no such object.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.code() == 404
    }

    /// 409 `AlreadyExists`.
    #[must_use]
    pub fn is_already_exists(&self) -> bool {
        self.has_reason("AlreadyExists")
    }

    /// 409 `Conflict`: the object is not the one that the request was made for.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        self.has_reason("Conflict")
    }

    /// 410: the revision is not kept any more; list again.
    #[must_use]
    pub fn is_expired(&self) -> bool {
        self.code() == 410
    }

    /// 422: the object breaks a rule.
    #[must_use]
    pub fn is_invalid(&self) -> bool {
        self.code() == 422
    }

    /// Whether the namespace is on its way out (a cause of a 403).
    #[must_use]
    pub fn is_namespace_terminating(&self) -> bool {
        self.refusal()
            .and_then(|r| r.details.get("causes")?.as_array())
            .is_some_and(|causes| {
                causes.iter().any(|c| {
                    c.get("reason").and_then(Value::as_str) == Some("NamespaceTerminating")
                })
            })
    }
}

impl From<Status> for ApiError {
    fn from(status: Status) -> Self {
        Self::Refused(Box::new(Refusal {
            code: status.code,
            reason: status.reason.to_owned(),
            message: status.message,
            details: Value::Object(status.details),
        }))
    }
}
