//! Bodies of the node's answers.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use rkube_stream::node::LogBody;
use tokio::io::{AsyncRead, ReadBuf};

/// What is read of a log at a time, in bytes.
const CHUNK_BYTES: usize = 16 << 10;

/// A whole body, or one that comes bit by bit.
pub struct NodeBody(Kind);

enum Kind {
    Whole(Option<Bytes>),
    Log(LogBody),
}

impl std::fmt::Debug for NodeBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.0 {
            Kind::Whole(_) => "NodeBody(whole)",
            Kind::Log(_) => "NodeBody(log)",
        })
    }
}

impl NodeBody {
    /// No body.
    #[must_use]
    pub fn empty() -> Self {
        Self(Kind::Whole(None))
    }

    /// A whole body.
    #[must_use]
    pub fn full(text: impl Into<Bytes>) -> Self {
        Self(Kind::Whole(Some(text.into())))
    }

    /// A log.
    #[must_use]
    pub fn log(body: LogBody) -> Self {
        Self(Kind::Log(body))
    }
}

impl Body for NodeBody {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        match &mut self.0 {
            Kind::Whole(bytes) => Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            Kind::Log(body) => {
                let mut chunk = vec![0; CHUNK_BYTES];
                let mut buf = ReadBuf::new(&mut chunk);
                ready!(Pin::new(body).poll_read(cx, &mut buf))?;
                let filled = buf.filled().len();
                if filled == 0 {
                    return Poll::Ready(None);
                }
                chunk.truncate(filled);
                Poll::Ready(Some(Ok(Frame::data(chunk.into()))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.0, Kind::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Whole(bytes) => {
                let len = bytes.as_ref().map_or(0, Bytes::len);
                SizeHint::with_exact(u64::try_from(len).unwrap_or(u64::MAX))
            }
            Kind::Log(_) => SizeHint::default(),
        }
    }
}
