//! The encoding of plans and keeper messages: little-endian, length-prefixed,
//! without self-description; both sides state the protocol version first.
//!
//! Decoding is bounded: a length is checked against the bytes that are left
//! before anything is allocated for it.

use std::ffi::CString;

/// Version of everything that is encoded here. A reader refuses a higher
/// one; a writer replaces a keeper that speaks a lower one, which adopts its
/// processes.
///
/// 2: plans have mapped mounts, clocks, stream owners and seccomp agents; output
/// is copied to whoever is attached, input can end.
pub const PROTOCOL_VERSION: u32 = 2;

/// Why bytes are no value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WireError {
    /// They end in the middle of a value.
    Truncated,
    /// Bytes are left over after the value.
    Trailing,
    /// A tag, a boolean or a text is out of its range.
    Invalid(&'static str),
}

impl std::fmt::Display for WireError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Truncated => f.write_str("message ends in the middle of a value"),
            Self::Trailing => f.write_str("message has bytes after its value"),
            Self::Invalid(what) => write!(f, "message holds an invalid {what}"),
        }
    }
}

impl std::error::Error for WireError {}

/// What is left of a message.
#[derive(Debug)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Takes the next `n` bytes.
    fn bytes(&mut self, n: usize) -> Result<&'a [u8], WireError> {
        let (head, tail) = self.0.split_at_checked(n).ok_or(WireError::Truncated)?;
        self.0 = tail;
        Ok(head)
    }

    /// A length prefix, checked against what is left: each element takes at
    /// least one byte.
    fn length(&mut self) -> Result<usize, WireError> {
        let n = u32::take(self)?;
        let n = usize::try_from(n).map_err(|_| WireError::Truncated)?;
        if n > self.0.len() {
            Err(WireError::Truncated)
        } else {
            Ok(n)
        }
    }
}

/// A value that can be encoded.
pub trait Wire: Sized {
    /// Appends the value.
    fn put(&self, out: &mut Vec<u8>);
    /// Takes a value off the front.
    ///
    /// # Errors
    /// Where the bytes are none.
    fn take(r: &mut Reader<'_>) -> Result<Self, WireError>;
}

/// Encodes one value.
pub fn encode<T: Wire>(value: &T) -> Vec<u8> {
    let mut out = Vec::new();
    value.put(&mut out);
    out
}

/// Decodes exactly one value.
///
/// # Errors
/// Where the bytes are none, or more than one.
pub fn decode<T: Wire>(bytes: &[u8]) -> Result<T, WireError> {
    let mut r = Reader(bytes);
    let value = T::take(&mut r)?;
    if r.0.is_empty() {
        Ok(value)
    } else {
        Err(WireError::Trailing)
    }
}

macro_rules! wire_int {
    ($($t:ty),*) => {$(
        impl Wire for $t {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
            fn take(r: &mut Reader<'_>) -> Result<Self, WireError> {
                let bytes = r.bytes(size_of::<$t>())?;
                Ok(<$t>::from_le_bytes(bytes.try_into().map_err(|_| WireError::Truncated)?))
            }
        }
    )*};
}
wire_int!(u8, u16, u32, u64, i32, i64);

impl Wire for bool {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
    fn take(r: &mut Reader<'_>) -> Result<Self, WireError> {
        match u8::take(r)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(WireError::Invalid("boolean")),
        }
    }
}

fn put_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    // A message is far below 4 GiB: its memory file is limited to
    // MAX_PLAN_BYTES.
    let n = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    n.put(out);
    out.extend_from_slice(bytes);
}

impl Wire for String {
    fn put(&self, out: &mut Vec<u8>) {
        put_bytes(self.as_bytes(), out);
    }
    fn take(r: &mut Reader<'_>) -> Result<Self, WireError> {
        let n = r.length()?;
        let text = std::str::from_utf8(r.bytes(n)?).map_err(|_| WireError::Invalid("text"))?;
        Ok(text.to_owned())
    }
}

impl Wire for CString {
    fn put(&self, out: &mut Vec<u8>) {
        put_bytes(self.as_bytes(), out);
    }
    fn take(r: &mut Reader<'_>) -> Result<Self, WireError> {
        let n = r.length()?;
        CString::new(r.bytes(n)?).map_err(|_| WireError::Invalid("string with a NUL byte"))
    }
}

impl<T: Wire> Wire for Vec<T> {
    fn put(&self, out: &mut Vec<u8>) {
        u32::try_from(self.len()).unwrap_or(u32::MAX).put(out);
        for item in self {
            item.put(out);
        }
    }
    fn take(r: &mut Reader<'_>) -> Result<Self, WireError> {
        let n = r.length()?;
        let mut items = Vec::new();
        for _ in 0..n {
            items.push(T::take(r)?);
        }
        Ok(items)
    }
}

impl<T: Wire> Wire for Option<T> {
    fn put(&self, out: &mut Vec<u8>) {
        self.is_some().put(out);
        if let Some(value) = self {
            value.put(out);
        }
    }
    fn take(r: &mut Reader<'_>) -> Result<Self, WireError> {
        Ok(if bool::take(r)? {
            Some(T::take(r)?)
        } else {
            None
        })
    }
}

impl<A: Wire, B: Wire> Wire for (A, B) {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
        self.1.put(out);
    }
    fn take(r: &mut Reader<'_>) -> Result<Self, WireError> {
        Ok((A::take(r)?, B::take(r)?))
    }
}

/// Declares structs that encode field by field.
#[macro_export]
macro_rules! wire_struct {
    ($($(#[$meta:meta])* $vis:vis struct $name:ident {
        $($(#[$fmeta:meta])* pub $field:ident: $ty:ty,)*
    })*) => {$(
        $(#[$meta])*
        $vis struct $name {
            $($(#[$fmeta])* pub $field: $ty,)*
        }
        impl $crate::wire::Wire for $name {
            fn put(&self, out: &mut Vec<u8>) {
                $(self.$field.put(out);)*
                let _ = out;
            }
            fn take(
                r: &mut $crate::wire::Reader<'_>,
            ) -> Result<Self, $crate::wire::WireError> {
                let _ = &r;
                Ok(Self { $($field: $crate::wire::Wire::take(r)?,)* })
            }
        }
    )*};
}

/// Declares enums that encode as a one-byte tag and the fields of the variant.
#[macro_export]
macro_rules! wire_enum {
    ($(#[$meta:meta])* $vis:vis enum $name:ident {
        $($(#[$vmeta:meta])* $tag:literal $variant:ident {
            $($(#[$fmeta:meta])* $field:ident: $ty:ty,)*
        })*
    }) => {
        $(#[$meta])*
        $vis enum $name {
            $($(#[$vmeta])* $variant { $($(#[$fmeta])* $field: $ty,)* },)*
        }
        impl $crate::wire::Wire for $name {
            fn put(&self, out: &mut Vec<u8>) {
                match self {
                    $(Self::$variant { $($field,)* } => {
                        out.push($tag);
                        $($field.put(out);)*
                    })*
                }
            }
            fn take(
                r: &mut $crate::wire::Reader<'_>,
            ) -> Result<Self, $crate::wire::WireError> {
                match u8::take(r)? {
                    $($tag => Ok(Self::$variant {
                        $($field: $crate::wire::Wire::take(r)?,)*
                    }),)*
                    _ => Err($crate::wire::WireError::Invalid(stringify!($name))),
                }
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    wire_struct! {
        #[derive(Debug, PartialEq, Clone)]
        struct Sample {
            pub a: u32,
            pub b: Vec<String>,
            pub c: Option<(i32, u64)>,
        }
    }

    fn sample() -> Sample {
        Sample {
            a: 7,
            b: vec!["x".into(), String::new()],
            c: Some((-1, 9)),
        }
    }

    #[test]
    fn a_value_comes_back() {
        assert_eq!(decode::<Sample>(&encode(&sample())), Ok(sample()));
    }

    #[test]
    fn every_truncation_is_refused() {
        let bytes = encode(&sample());
        for n in 0..bytes.len() {
            assert!(decode::<Sample>(&bytes[..n]).is_err(), "{n} bytes");
        }
    }

    #[test]
    fn a_huge_length_allocates_nothing() {
        assert_eq!(
            decode::<Vec<u8>>(&[255, 255, 255, 255, 1]),
            Err(WireError::Truncated)
        );
        assert_eq!(decode::<u8>(&[1, 2]), Err(WireError::Trailing));
    }
}
