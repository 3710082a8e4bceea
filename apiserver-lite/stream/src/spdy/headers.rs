//! Header blocks (draft 3.1, section 2.6.10): name and value pairs, one zlib
//! stream per direction, primed with the draft's dictionary.

use bytes::Bytes;
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::frame::broken;
use crate::error::StreamError;

/// Longest header block after inflation, in bytes.
pub const MAX_HEADERS_BYTES: usize = 16 << 10;
/// Most headers of one stream.
pub const MAX_HEADERS_COUNT: u32 = 64;

/// Headers in the order they were sent; names in lower case.
pub type Headers = Vec<(String, String)>;

/// The value of a header; names are compared without case.
#[must_use]
pub fn get<'a>(headers: &'a Headers, name: &str) -> Option<&'a str> {
    let found = headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name));
    found.map(|(_, value)| value.as_str())
}

/// Words of the dictionary that stand with their length before them.
const WORDS: &[&str] = &[
    "options",
    "head",
    "post",
    "put",
    "delete",
    "trace",
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "age",
    "allow",
    "authorization",
    "cache-control",
    "connection",
    "content-base",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-md5",
    "content-range",
    "content-type",
    "date",
    "etag",
    "expect",
    "expires",
    "from",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "last-modified",
    "location",
    "max-forwards",
    "pragma",
    "proxy-authenticate",
    "proxy-authorization",
    "range",
    "referer",
    "retry-after",
    "server",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "method",
    "get",
    "status",
    "200 OK",
    "version",
    "HTTP/1.1",
    "url",
    "public",
    "set-cookie",
    "keep-alive",
    "origin",
];

/// The dictionary's end: words without lengths.
const TAIL: &str = "1001012012022052063003023033043053063074024054064074084094104114124134144154\
164175025045052\
03 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized\
403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable\
Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT\
chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,\
text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

fn dictionary() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1423);
    for word in WORDS {
        put(&mut bytes, word);
    }
    bytes.extend_from_slice(TAIL.as_bytes());
    bytes
}

fn put(out: &mut Vec<u8>, text: &str) {
    let len = u32::try_from(text.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// One direction's compressor.
#[derive(Debug)]
pub struct Deflater(Compress);

impl Deflater {
    /// # Errors
    /// zlib refuses the dictionary (a defect).
    pub fn new() -> Result<Self, StreamError> {
        let mut zlib = Compress::new(Compression::fast(), true);
        zlib.set_dictionary(&dictionary())
            .map_err(|_| broken("the dictionary of header blocks"))?;
        Ok(Self(zlib))
    }

    /// Compresses headers; the result depends on all blocks before it.
    ///
    /// # Errors
    /// zlib fails.
    pub fn block(&mut self, headers: &Headers) -> Result<Bytes, StreamError> {
        let mut plain = Vec::new();
        let count = u32::try_from(headers.len()).unwrap_or(u32::MAX);
        plain.extend_from_slice(&count.to_be_bytes());
        for (name, value) in headers {
            put(&mut plain, &name.to_ascii_lowercase());
            put(&mut plain, value);
        }
        let mut out = Vec::with_capacity(plain.len() + 64);
        let start = self.0.total_in();
        loop {
            let done = usize::try_from(self.0.total_in() - start).unwrap_or(usize::MAX);
            let room = out.capacity() - out.len();
            let input = plain.get(done..).unwrap_or(&[]);
            self.0
                .compress_vec(input, &mut out, FlushCompress::Sync)
                .map_err(|_| broken("header compression"))?;
            // A flush that left room is complete.
            if out.len() < out.capacity() || room == 0 && input.is_empty() {
                return Ok(out.into());
            }
            out.reserve(256);
        }
    }
}

/// One direction's decompressor.
#[derive(Debug)]
pub struct Inflater(Decompress);

impl Default for Inflater {
    fn default() -> Self {
        Self(Decompress::new(true))
    }
}

impl Inflater {
    /// Reads a block; every block of a direction must pass here, in order.
    ///
    /// # Errors
    /// Not zlib, another dictionary, more than [`MAX_HEADERS_BYTES`] or
    /// [`MAX_HEADERS_COUNT`], or pairs that do not add up.
    pub fn headers(&mut self, block: &[u8]) -> Result<Headers, StreamError> {
        let mut plain = Vec::with_capacity(512);
        let start = self.0.total_in();
        loop {
            let done = usize::try_from(self.0.total_in() - start).unwrap_or(usize::MAX);
            let input = block.get(done..).unwrap_or(&[]);
            let room = plain.capacity() - plain.len();
            let produced = plain.len();
            match self
                .0
                .decompress_vec(input, &mut plain, FlushDecompress::Sync)
            {
                Ok(Status::StreamEnd) => return Err(broken("header blocks that end")),
                Ok(_) => {}
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0
                        .set_dictionary(&dictionary())
                        .map_err(|_| broken("header blocks of another dictionary"))?;
                    continue;
                }
                Err(_) => return Err(broken("header blocks that do not inflate")),
            }
            let left = block.len() as u64 > self.0.total_in() - start;
            if plain.len() > MAX_HEADERS_BYTES {
                return Err(StreamError::Limit {
                    protocol: "SPDY",
                    what: "bytes of headers",
                    value: plain.len() as u64,
                    limit: MAX_HEADERS_BYTES as u64,
                });
            }
            if !left && plain.len() < plain.capacity() {
                return parse(&plain);
            }
            if left && plain.len() == produced && room > 0 && input.len() == block.len() - done {
                let now = usize::try_from(self.0.total_in() - start).unwrap_or(usize::MAX);
                if now == done {
                    return Err(broken("header blocks that do not inflate"));
                }
            }
            plain.reserve(512);
        }
    }
}

/// Reads pairs: a count, and for each length and bytes of name and value.
fn parse(mut plain: &[u8]) -> Result<Headers, StreamError> {
    fn word(plain: &mut &[u8]) -> Result<u32, StreamError> {
        let (word, rest) = plain
            .split_first_chunk::<4>()
            .ok_or(broken("headers that are cut off"))?;
        *plain = rest;
        Ok(u32::from_be_bytes(*word))
    }
    fn text(plain: &mut &[u8]) -> Result<String, StreamError> {
        let len = word(plain)? as usize;
        let bytes = plain.get(..len).ok_or(broken("headers that are cut off"))?;
        *plain = &plain[len..];
        String::from_utf8(bytes.to_vec()).map_err(|_| broken("a header that is not UTF-8"))
    }
    let count = word(&mut plain)?;
    if count > MAX_HEADERS_COUNT {
        return Err(StreamError::Limit {
            protocol: "SPDY",
            what: "headers",
            value: count.into(),
            limit: MAX_HEADERS_COUNT.into(),
        });
    }
    let pair = |plain: &mut &[u8]| Ok((text(plain)?, text(plain)?));
    let headers: Headers = (0..count)
        .map(|_| pair(&mut plain))
        .collect::<Result<_, StreamError>>()?;
    if plain.is_empty() {
        Ok(headers)
    } else {
        Err(broken("bytes after the headers"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn headers(pairs: &[(&str, &str)]) -> Headers {
        pairs
            .iter()
            .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
            .collect()
    }

    #[test]
    fn the_dictionary_is_the_drafts() {
        let dictionary = dictionary();
        assert_eq!(dictionary.len(), 1423);
        let mut zlib = Compress::new(Compression::fast(), true);
        // The Adler-32 that every SPDY/3 stream carries.
        assert_eq!(zlib.set_dictionary(&dictionary).unwrap(), 0xe3c6_a7c2);
    }

    #[test]
    fn blocks_build_on_each_other() {
        let mut deflater = Deflater::new().unwrap();
        let mut inflater = Inflater::default();
        for i in 0..50 {
            let sent = headers(&[("streamtype", "error"), ("requestid", &i.to_string())]);
            let block = deflater.block(&sent).unwrap();
            assert_eq!(inflater.headers(&block).unwrap(), sent);
        }
        let big = headers(&[("x", &"ab1c".repeat(3000))]);
        let block = deflater.block(&big).unwrap();
        assert_eq!(inflater.headers(&block).unwrap(), big);
        assert_eq!(
            inflater
                .headers(&deflater.block(&Vec::new()).unwrap())
                .unwrap(),
            []
        );
        assert_eq!(get(&big, "X").map(str::len), Some(12_000));
    }

    #[test]
    fn bombs_and_lies_are_refused() {
        let mut deflater = Deflater::new().unwrap();
        let bomb = headers(&[("x", &"a".repeat(4 << 20))]);
        let block = deflater.block(&bomb).unwrap();
        assert!(block.len() < 64 << 10, "a bomb indeed: {}", block.len());
        let error = Inflater::default().headers(&block).unwrap_err();
        assert!(matches!(error, StreamError::Limit { .. }), "{error}");

        let many: Headers = (0..65).map(|i| (format!("h{i}"), String::new())).collect();
        let block = Deflater::new().unwrap().block(&many).unwrap();
        assert!(matches!(
            Inflater::default().headers(&block),
            Err(StreamError::Limit { .. })
        ));
        assert!(parse(&[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff]).is_err());
        assert!(parse(&[0, 0, 0, 0, 1]).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_headers_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Inflater::default().headers(&bytes);
            let _ = parse(&bytes);
        }

        #[test]
        fn a_flipped_byte_is_headers_or_an_error(at in 0usize..100, bit in 0u8..8) {
            let mut block = Deflater::new().unwrap().block(&headers(&[("streamtype", "data"), ("port", "80")])).unwrap().to_vec();
            let at = at % block.len();
            block[at] ^= 1 << bit;
            let _ = Inflater::default().headers(&block);
        }
    }
}
