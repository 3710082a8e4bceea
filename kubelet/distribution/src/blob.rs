//! Blobs that stream: from the network to the thread that unpacks, and from a
//! file to the network. Both sides wait for each other, so memory is bounded.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_RANGE, RANGE};
use http_body::{Frame, SizeHint};
use rkube_image::Digest;
use tokio::sync::mpsc;

use crate::error::{Error, Result, chain};
use crate::limits::{MAX_BLOB_CUTS, PROGRESS_BYTES};
use crate::session::{Ask, Session};

/// Pieces of a file that is sent.
const SEND_CHUNK_BYTES: usize = 256 << 10;

/// The receiving end, for a plain thread.
#[derive(Debug)]
pub(crate) struct ChannelReader {
    chunks: mpsc::Receiver<io::Result<Bytes>>,
    now: Bytes,
}

impl ChannelReader {
    pub(crate) fn new(chunks: mpsc::Receiver<io::Result<Bytes>>) -> Self {
        Self {
            chunks,
            now: Bytes::new(),
        }
    }
}

impl Read for ChannelReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.now.is_empty() {
            match self.chunks.blocking_recv() {
                Some(chunk) => self.now = chunk?,
                None => return Ok(0),
            }
        }
        let n = buf.len().min(self.now.len());
        self.now.copy_to_slice(&mut buf[..n]);
        Ok(n)
    }
}

/// A blob that is to be streamed.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) index: usize,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    pub(crate) offset: u64,
    /// Where it ends: at the blob's end or before.
    pub(crate) until: u64,
    pub(crate) chunks: mpsc::Sender<io::Result<Bytes>>,
}

/// How a stream goes.
pub(crate) enum News {
    /// Bytes that are here, from the blob's first on.
    At(u64),
    Retrying,
}

/// Streams a blob from an offset on; where the way is cut it goes on with what
/// is missing. An error is told to the reader too.
pub(crate) async fn stream(
    session: &Session<'_>,
    wanted: Wanted,
    news: &(dyn Fn(News) + Sync),
) -> Result<()> {
    let result = deliver(session, &wanted, news).await;
    if let Err(e) = &result {
        let kind = match e {
            Error::Transport { source, .. } | Error::Connect { source, .. } => source.kind(),
            Error::Status { .. } | Error::Denied { .. } => io::ErrorKind::ConnectionAborted,
            _ => io::ErrorKind::InvalidData,
        };
        // The reader may have given up.
        let _ = wanted
            .chunks
            .send(Err(io::Error::new(kind, chain(e))))
            .await;
    }
    result
}

async fn deliver(
    session: &Session<'_>,
    wanted: &Wanted,
    news: &(dyn Fn(News) + Sync),
) -> Result<()> {
    let (mut at, mut tries, mut cuts) = (wanted.offset, 0, 0);
    while at < wanted.until {
        let before = at;
        let error = match piece(session, wanted, &mut at, news).await {
            Ok(()) => return Ok(()),
            Err(e) if e.is_transient() => e,
            Err(e) => return Err(e),
        };
        tries = if at - before >= PROGRESS_BYTES {
            1
        } else {
            tries + 1
        };
        cuts += 1;
        let pause = session
            .pause(tries, &error)
            .filter(|_| cuts < MAX_BLOB_CUTS);
        let Some(pause) = pause else {
            return Err(error);
        };
        news(News::Retrying);
        tokio::time::sleep(pause).await;
    }
    Ok(())
}

/// One request: from `at` as far as it comes.
async fn piece(
    session: &Session<'_>,
    wanted: &Wanted,
    at: &mut u64,
    news: &(dyn Fn(News) + Sync),
) -> Result<()> {
    let repository = &session.endpoint.repository;
    let path = format!("/v2/{repository}/blobs/{}", wanted.digest);
    let scope = pull_scope(repository);
    let mut ask = Ask::get(&path, &scope).header(ACCEPT, "*/*");
    if wanted.until < wanted.size {
        ask = ask.header(RANGE, format!("bytes={at}-{}", wanted.until - 1));
    } else if *at > 0 {
        ask = ask.header(RANGE, format!("bytes={at}-"));
    }
    let mut answer = session.send_noting(&ask, &|| news(News::Retrying)).await?;
    let name = format!("GET {}", answer.url.shown());
    let protocol = |reason: String| Error::Protocol {
        request: name.clone(),
        reason,
    };
    // A registry may ignore the range: then what is known is skipped.
    let (mut skip, mut end) = (0, wanted.until);
    let start = if answer.status().as_u16() == 206 {
        let range = answer.header(&CONTENT_RANGE).and_then(range_start);
        if range != Some(*at) {
            return Err(protocol(format!(
                "asked for bytes from {at} on, it sends {range:?}"
            )));
        }
        *at
    } else {
        skip = *at;
        end = wanted.size;
        0
    };
    let length = answer
        .header(&CONTENT_LENGTH)
        .and_then(|v| v.parse::<u64>().ok());
    if let Some(length) = length
        && length != end - start
    {
        return Err(protocol(format!(
            "the blob has {} bytes, the manifest says {}",
            start + length,
            wanted.size
        )));
    }
    let body = answer.response.body_mut();
    let mut pace = session.pace();
    while let Some(mut bytes) = session.next_data(body, &mut pace, &name).await? {
        let known = usize::try_from(skip).map_or(bytes.len(), |s| s.min(bytes.len()));
        bytes.advance(known);
        skip -= known as u64;
        if bytes.is_empty() {
            continue;
        }
        if end > wanted.until {
            // The rest of the whole is not wanted.
            let most = usize::try_from(wanted.until - *at).unwrap_or(usize::MAX);
            bytes.truncate(most);
        }
        if bytes.len() as u64 > wanted.until - *at {
            return Err(protocol(format!(
                "it sends more than the {} bytes of the manifest",
                wanted.size
            )));
        }
        *at += bytes.len() as u64;
        if wanted.chunks.send(Ok(bytes)).await.is_err() {
            // The reader has found an error of its own, which counts.
            return Ok(());
        }
        news(News::At(*at));
        if end > wanted.until && *at == wanted.until {
            return Ok(());
        }
    }
    if *at < wanted.until {
        let text = format!("it ended after {at} of {} bytes", wanted.until);
        return Err(Error::Transport {
            request: name,
            source: io::Error::new(io::ErrorKind::UnexpectedEof, text),
        });
    }
    Ok(())
}

/// `bytes START-END/SIZE` (RFC 9110, 14.4).
pub(crate) fn range_start(value: &str) -> Option<u64> {
    let (start, _) = value.trim().strip_prefix("bytes ")?.split_once('-')?;
    start.parse().ok()
}

/// The scope of a token for reading a repository.
pub(crate) fn pull_scope(repository: &str) -> String {
    format!("repository:{repository}:pull")
}

/// A file as a request's body. Its pages are read where it is sent: this
/// thread has nothing else to do.
pub(crate) struct FileBody {
    file: Arc<File>,
    at: u64,
    size: u64,
    sent: Arc<dyn Fn(u64) + Send + Sync>,
}

impl FileBody {
    pub(crate) fn new(file: Arc<File>, size: u64, sent: Arc<dyn Fn(u64) + Send + Sync>) -> Self {
        Self {
            file,
            at: 0,
            size,
            sent,
        }
    }
}

impl http_body::Body for FileBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let left = self.size - self.at;
        if left == 0 {
            return Poll::Ready(None);
        }
        let most = usize::try_from(left).map_or(SEND_CHUNK_BYTES, |l| l.min(SEND_CHUNK_BYTES));
        let mut chunk = vec![0; most];
        let read = self.file.read_at(&mut chunk, self.at);
        Poll::Ready(Some(match read {
            Ok(0) => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the blob in the store is cut",
            )),
            Ok(n) => {
                chunk.truncate(n);
                self.at += n as u64;
                (self.sent)(self.at);
                Ok(Frame::data(chunk.into()))
            }
            Err(e) => Err(e),
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.at == self.size
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.size - self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_answers() {
        assert_eq!(range_start("bytes 5-9/10"), Some(5));
        assert_eq!(range_start("bytes 5-9/*"), Some(5));
        for bad in ["", "bytes */10", "5-9/10", "bytes -9/10"] {
            assert_eq!(range_start(bad), None, "{bad}");
        }
    }
}
