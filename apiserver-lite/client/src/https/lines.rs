//! The events of a watch: one JSON object a line.

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Body;
use serde::de::IgnoredAny;
use serde_json::Value;

use crate::error::ApiError;
use crate::transport::{BoxFuture, Frame, FrameKind, Frames};

/// The longest event, 16 MiB: the largest object that an API server takes has
/// 3 MiB, and its JSON can grow by escapes.
pub(super) const MAX_LINE_BYTES: usize = 16 << 20;

/// The frames of a response's body.
pub(super) struct LineFrames<B> {
    attempt: String,
    body: B,
    buffer: BytesMut,
    /// What of `buffer` has no line end.
    searched: usize,
    over: bool,
}

/// An event taken apart: its members' values as they stand in the line.
#[derive(Default)]
struct Line<'a> {
    kind: Option<&'a [u8]>,
    object: Option<&'a [u8]>,
}

impl<'a> Line<'a> {
    /// Reads one JSON object (RFC 8259, 4). `serde_json`'s `RawValue` would
    /// do the same, but with it each serializer knows one type more, which
    /// every type of Kubernetes is then compiled for.
    fn parse(line: &'a [u8]) -> serde_json::Result<Self> {
        // What is wrong is told by the library's own words.
        let wrong = || match serde_json::from_slice::<serde_json::Map<String, Value>>(line) {
            Err(error) => error,
            Ok(_) => serde::de::Error::custom("an event lacks its type or object"),
        };
        let mut parsed = Self::default();
        let mut rest = line.trim_ascii().strip_prefix(b"{").ok_or_else(wrong)?;
        rest = rest.trim_ascii_start();
        while !rest.starts_with(b"}") {
            let name = take(&mut rest).ok_or_else(wrong)?;
            rest = rest
                .trim_ascii_start()
                .strip_prefix(b":")
                .ok_or_else(wrong)?;
            let value = take(&mut rest).ok_or_else(wrong)?;
            match name {
                b"\"type\"" => parsed.kind = Some(value),
                b"\"object\"" => parsed.object = Some(value),
                name if name.starts_with(b"\"") => {}
                _ => return Err(wrong()),
            }
            rest = rest.trim_ascii_start();
            match rest.strip_prefix(b",") {
                Some(more) if !more.trim_ascii_start().starts_with(b"}") => {
                    rest = more.trim_ascii_start();
                }
                None if rest.starts_with(b"}") => {}
                _ => return Err(wrong()),
            }
        }
        if rest != b"}" || parsed.kind.is_none() || parsed.object.is_none() {
            return Err(wrong());
        }
        Ok(parsed)
    }
}

/// Takes one JSON value off the front, white space before it left out.
fn take<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let text = rest.trim_ascii_start();
    let mut values = serde_json::Deserializer::from_slice(text).into_iter::<IgnoredAny>();
    values.next()?.ok()?;
    let (value, after) = text.split_at_checked(values.byte_offset())?;
    *rest = after;
    Some(value)
}

impl<B> LineFrames<B>
where
    B: Body<Data = Bytes> + Send + Unpin,
    B::Error: std::error::Error + Send + 'static,
{
    pub(super) fn new(attempt: String, body: B) -> Self {
        Self {
            attempt,
            body,
            buffer: BytesMut::new(),
            searched: 0,
            over: false,
        }
    }

    /// The next line that is in the buffer, without its end.
    fn line(&mut self) -> Option<Bytes> {
        loop {
            let rest = self.buffer.get(self.searched..).unwrap_or_default();
            let Some(at) = rest.iter().position(|b| *b == b'\n') else {
                self.searched = self.buffer.len();
                return None;
            };
            let line = self.buffer.split_to(self.searched + at + 1).freeze();
            self.searched = 0;
            let line = line.slice(..line.len() - 1);
            if !line.iter().all(u8::is_ascii_whitespace) {
                return Some(line);
            }
        }
    }

    fn frame(&self, line: &Bytes) -> Result<Frame, ApiError> {
        let wrong = |reason: String| ApiError::Decode {
            attempt: self.attempt.clone(),
            reason,
        };
        let parsed = Line::parse(line).map_err(|e| wrong(e.to_string()))?;
        let object = parsed.object.unwrap_or_default();
        let kind: &[u8] = parsed.kind.unwrap_or_default();
        let kind = match kind {
            b"\"ADDED\"" => FrameKind::Added,
            b"\"MODIFIED\"" => FrameKind::Modified,
            b"\"DELETED\"" => FrameKind::Deleted,
            b"\"BOOKMARK\"" => FrameKind::Bookmark,
            b"\"ERROR\"" => {
                let value: Value = serde_json::from_slice(object).unwrap_or(Value::Null);
                return Err(ApiError::from_status(&value, 500));
            }
            other => {
                let other = String::from_utf8_lossy(other);
                return Err(wrong(format!("{other} is no event of a watch")));
            }
        };
        let object = line.slice_ref(object);
        Ok(Frame { kind, object })
    }

    async fn read(&mut self) -> Option<Result<Frame, ApiError>> {
        while !self.over {
            if let Some(line) = self.line() {
                let frame = self.frame(&line);
                self.over |= frame.is_err();
                return Some(frame);
            }
            if self.buffer.len() > MAX_LINE_BYTES {
                self.over = true;
                return Some(Err(ApiError::Decode {
                    attempt: self.attempt.clone(),
                    reason: format!("an event of more than {MAX_LINE_BYTES} bytes"),
                }));
            }
            match self.body.frame().await {
                None => {
                    self.over = true;
                    // Half a line: the connection broke inside an event.
                    return (!self.buffer.is_empty()).then(|| {
                        Err(ApiError::Connection {
                            attempt: self.attempt.clone(),
                            reason: "the watch ended inside an event".to_owned(),
                        })
                    });
                }
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                Some(Err(error)) => {
                    self.over = true;
                    return Some(Err(ApiError::Connection {
                        attempt: self.attempt.clone(),
                        reason: super::chain(&error),
                    }));
                }
            }
        }
        None
    }
}

impl<B> Frames for LineFrames<B>
where
    B: Body<Data = Bytes> + Send + Unpin,
    B::Error: std::error::Error + Send + 'static,
{
    fn next(&mut self) -> BoxFuture<'_, Option<Result<Frame, ApiError>>> {
        Box::pin(self.read())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::Full;

    fn frames(text: &str) -> LineFrames<Full<Bytes>> {
        LineFrames::new("watch x".to_owned(), Full::new(text.to_owned().into()))
    }

    #[tokio::test]
    async fn lines_become_frames_and_errors_end_the_watch() {
        let mut watch = frames(
            "{\"type\":\"ADDED\",\"object\":{\"a\":1}}\n\n{\"object\":{\"b\":2},\"type\":\"BOOKMARK\"}\n\
             {\"type\":\"ERROR\",\"object\":{\"kind\":\"Status\",\"code\":410,\"message\":\"too old\"}}\n\
             {\"type\":\"ADDED\",\"object\":{}}\n",
        );
        let first = watch.next().await.unwrap().unwrap();
        assert_eq!(
            (first.kind, &first.object[..]),
            (FrameKind::Added, &b"{\"a\":1}"[..])
        );
        let second = watch.next().await.unwrap().unwrap();
        assert_eq!(second.kind, FrameKind::Bookmark);
        assert!(watch.next().await.unwrap().unwrap_err().is_expired());
        assert!(watch.next().await.is_none());
    }

    #[tokio::test]
    async fn what_is_no_event_is_refused() {
        let event = "\"type\":\"ADDED\",\"object\":{}";
        for text in [
            "{}\n",
            "[]\n",
            "{\"type\":\"NEW\",\"object\":{}}\n",
            "{\"type\":\"ADDED\"}\n",
            "{\"type\":\"ADDED\",\"object\":{]}\n",
            &format!("{{{event},}}\n"),
            &format!("{{{event} \"a\":1}}\n"),
            &format!("{{{event}}} x\n"),
            &format!("{{{event},7:1}}\n"),
            &format!("{{{event}\n"),
        ] {
            let mut watch = frames(text);
            let error = watch.next().await.unwrap().unwrap_err();
            assert!(matches!(error, ApiError::Decode { .. }), "{text}");
            assert!(watch.next().await.is_none());
        }
        let mut half = frames("{\"type\":\"ADDED\"");
        let error = half.next().await.unwrap().unwrap_err();
        assert!(matches!(error, ApiError::Connection { .. }));
        assert!(frames("").next().await.is_none());
    }

    #[tokio::test]
    async fn a_line_without_end_is_bounded() {
        let mut watch = frames(&"x".repeat(MAX_LINE_BYTES + 1));
        let error = watch.next().await.unwrap().unwrap_err();
        assert!(error.to_string().contains("bytes"), "{error}");
    }
}
