//! Why a write gets no number, in upstream's words.

use rkube_api::field::{ErrorKind, FieldError, FieldPath, shown};
use rkube_api::kinds::service;
use rkube_api::status::Status;
use serde_json::Value;

/// Why a number cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("provided {0} is already allocated")]
    Taken(&'static str),
    #[error("the provided network does not match the current range")]
    OtherNetwork,
    #[error("provided port is not in the valid range. The range of valid ports is {0}-{1}")]
    OtherPort(u16, u16),
    #[error("range is full")]
    Full,
}

/// What is to be done to a number, told with its answer.
pub(super) enum Failure {
    Refused(Refusal),
    Status(Box<Status>),
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Status(Box::new(status))
    }
}

/// Why a write cannot be.
pub(super) enum Problem {
    Invalid(Vec<FieldError>),
    Status(Box<Status>),
}

impl From<Status> for Problem {
    fn from(status: Status) -> Self {
        Self::Status(Box::new(status))
    }
}

pub(super) fn address_problem(failure: Failure, wanted: Option<&str>, new: &Value) -> Problem {
    match (failure, wanted) {
        (Failure::Status(status), _) => Problem::Status(status),
        (Failure::Refused(why), Some(ip)) => Problem::Invalid(vec![FieldError {
            path: FieldPath::default().field("spec").field("clusterIPs"),
            kind: ErrorKind::Invalid,
            value: Some(shown(service::spec(new, "clusterIPs"))),
            detail: format!("failed to allocate IP {ip}: {why}").into(),
        }]),
        (Failure::Refused(why), None) => {
            Status::internal(&format!("failed to allocate a serviceIP: {why}")).into()
        }
    }
}

pub(super) fn port_problem(failure: Failure, index: usize, wanted: i64) -> Problem {
    let why = match failure {
        Failure::Status(status) => return Problem::Status(status),
        Failure::Refused(why) => why,
    };
    let path = FieldPath::default().field("spec").field("ports");
    Problem::Invalid(vec![FieldError {
        path: path.index(index).field("nodePort"),
        kind: ErrorKind::Invalid,
        value: Some(wanted.to_string().into()),
        detail: why.to_string().into(),
    }])
}

pub(super) fn port_full(failure: Failure) -> Problem {
    match failure {
        Failure::Status(status) => Problem::Status(status),
        Failure::Refused(why) => {
            Status::internal(&format!("failed to allocate a nodePort: {why}")).into()
        }
    }
}
