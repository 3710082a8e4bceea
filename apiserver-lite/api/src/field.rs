//! Field paths and field errors, with the wording of upstream's API machinery.

use std::fmt;

use serde_json::Value;

/// One step of a [`FieldPath`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Segment {
    /// A field of a struct, printed `.name`.
    Field(Box<str>),
    /// An element of a list, printed `[0]`.
    Index(usize),
    /// An entry of a map, printed `[key]`.
    Key(Box<str>),
}

/// The way from an object's root to one of its values.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FieldPath(pub Vec<Segment>);

impl FieldPath {
    /// This path with a field appended.
    #[must_use]
    pub fn field(mut self, name: &str) -> Self {
        self.0.push(Segment::Field(name.into()));
        self
    }

    /// This path with a list index appended.
    #[must_use]
    pub fn index(mut self, index: usize) -> Self {
        self.0.push(Segment::Index(index));
        self
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, segment) in self.0.iter().enumerate() {
            match segment {
                Segment::Field(name) if i == 0 => f.write_str(name)?,
                Segment::Field(name) => write!(f, ".{name}")?,
                Segment::Index(index) => write!(f, "[{index}]")?,
                Segment::Key(key) => write!(f, "[{key}]")?,
            }
        }
        if self.0.is_empty() {
            f.write_str("<root>")?;
        }
        Ok(())
    }
}

/// What is wrong with a field; the classes of upstream's `field.Error`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The type has no such field.
    Unknown,
    /// The value has the wrong JSON type, or does not decode as its format.
    TypeInvalid,
    /// A value must be given.
    Required,
    /// The value breaks a rule.
    Invalid,
    /// The value is not one of a closed set.
    NotSupported,
    /// The value may occur once only.
    Duplicate,
    /// The value would be fine elsewhere, and is not allowed here.
    Forbidden,
    /// The value refers to something that is not there.
    NotFound,
    /// The value has too many bytes.
    TooLong,
    /// The list or map has too many entries.
    TooMany,
}

impl ErrorKind {
    /// The `reason` of a cause in a `metav1.Status`.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Unknown => "FieldValueUnknown",
            Self::TypeInvalid => "FieldValueTypeInvalid",
            Self::Required => "FieldValueRequired",
            Self::Invalid => "FieldValueInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Forbidden => "FieldValueForbidden",
            Self::NotFound => "FieldValueNotFound",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
        }
    }
}

/// One thing that is wrong with one field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// Where.
    pub path: FieldPath,
    /// What class of error.
    pub kind: ErrorKind,
    /// The offending value as JSON text, where the message shows it.
    pub value: Option<Box<str>>,
    /// The rule, as a phrase; empty where the class says all.
    pub detail: Box<str>,
}

/// Longest value shown in a message, in bytes; longer ones are cut.
const SHOWN_VALUE_BYTES: usize = 512;

/// Renders a value the way messages show it, cut to 512 bytes.
#[must_use]
pub fn shown(value: &Value) -> Box<str> {
    let mut text = value.to_string();
    if text.len() > SHOWN_VALUE_BYTES {
        let cut = (0..=SHOWN_VALUE_BYTES)
            .rev()
            .find(|i| text.is_char_boundary(*i));
        text.truncate(cut.unwrap_or(0));
        text.push_str("...");
    }
    text.into()
}

impl FieldError {
    /// The message without the path, as in a `Status` cause.
    #[must_use]
    pub fn body(&self) -> String {
        let value = self.value.as_deref().unwrap_or("null");
        let head = match self.kind {
            ErrorKind::Unknown => "unknown field".to_owned(),
            ErrorKind::TypeInvalid | ErrorKind::Invalid => format!("Invalid value: {value}"),
            ErrorKind::Required => "Required value".to_owned(),
            ErrorKind::NotSupported => format!("Unsupported value: {value}"),
            ErrorKind::Duplicate => format!("Duplicate value: {value}"),
            ErrorKind::Forbidden => "Forbidden".to_owned(),
            ErrorKind::NotFound => format!("Not found: {value}"),
            ErrorKind::TooLong => "Too long".to_owned(),
            ErrorKind::TooMany => format!("Too many: {value}"),
        };
        match (&*self.detail, self.kind) {
            ("", _) => head,
            (detail, ErrorKind::Unknown) => format!("{head}; {detail}"),
            (detail, _) => format!("{head}: {detail}"),
        }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.body())
    }
}

impl std::error::Error for FieldError {}

/// Most errors gathered for one object; the rest is dropped (a count of 256
/// is far beyond what anybody reads, and bounds a hostile object's answer).
pub const MAX_ERRORS_COUNT: usize = 256;

/// Gathers field errors, at most [`MAX_ERRORS_COUNT`].
#[derive(Debug, Default)]
pub struct Errors(Vec<FieldError>);

impl Errors {
    /// Adds one error.
    pub fn push(&mut self, error: FieldError) {
        if self.0.len() < MAX_ERRORS_COUNT {
            self.0.push(error);
        }
    }

    /// Whether more errors would be dropped.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.0.len() >= MAX_ERRORS_COUNT
    }

    /// How many were gathered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether none was gathered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The errors in the order they were found.
    #[must_use]
    pub fn into_vec(self) -> Vec<FieldError> {
        self.0
    }
}
