//! A registry that makes its one layer while it sends it: no file and no
//! memory of the layer's size is needed, however large it is.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, ensure};
use serde_json::json;

use crate::command::Cmd;

/// The tag of its image.
pub const TAG: &str = "long:1";
/// Bytes of each file in the layer.
const FILE_BYTES: u64 = 64 << 20;
/// A tar header (POSIX.1-2017, pax, "ustar Interchange Format").
const HEADER_BYTES: u64 = 512;
/// Content repeats after so many bytes, but for its number.
const BLOCK_BYTES: u64 = 1 << 20;
/// What is made at a time.
const PIECE_BYTES: usize = 256 << 10;

/// A tar archive of files of [`FILE_BYTES`], whose every byte is known.
#[derive(Debug)]
struct Layer {
    files: u64,
    block: Vec<u8>,
}

impl Layer {
    fn new(files: u64) -> Layer {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut block = Vec::new();
        while (block.len() as u64) < BLOCK_BYTES {
            // xorshift64 (Marsaglia, 2003): nothing that compresses.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            block.extend(state.to_le_bytes());
        }
        Layer { files, block }
    }

    fn bytes(&self) -> u64 {
        self.files * (HEADER_BYTES + FILE_BYTES) + 2 * HEADER_BYTES
    }

    fn header(number: u64) -> [u8; 512] {
        let mut h = [0; 512];
        let name = format!("data/{number}");
        h[..name.len()].copy_from_slice(name.as_bytes());
        let mut field = |at: usize, text: &str| {
            h[at..at + text.len()].copy_from_slice(text.as_bytes());
        };
        field(100, "0000644");
        field(108, "0000000");
        field(116, "0000000");
        field(124, &format!("{FILE_BYTES:011o}"));
        field(136, "00000000000");
        field(148, "        ");
        field(156, "0");
        field(257, "ustar\x0000");
        let sum: u32 = h.iter().map(|b| u32::from(*b)).sum();
        h[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        h
    }

    /// Fills the buffer with the layer's bytes from `at` on; how many.
    fn read_at(&self, at: u64, buf: &mut [u8]) -> anyhow::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            let at = at + done as u64;
            let entry = HEADER_BYTES + FILE_BYTES;
            let (number, inner) = (at / entry, at % entry);
            let room = &mut buf[done..];
            let part: Vec<u8> = if number >= self.files {
                let left = self.bytes().saturating_sub(at);
                vec![0; usize::try_from(left)?.min(room.len())]
            } else if inner < HEADER_BYTES {
                Self::header(number)[usize::try_from(inner)?..].to_vec()
            } else {
                let content = inner - HEADER_BYTES;
                let from = usize::try_from(content % BLOCK_BYTES)?;
                let most = (from + room.len()).min(self.block.len());
                let mut part = self.block[from..most].to_vec();
                // No two blocks are the same.
                let name = ((number << 32) | (content / BLOCK_BYTES)).to_le_bytes();
                for (byte, own) in part.iter_mut().zip(name.iter().skip(from)) {
                    *byte = *own;
                }
                part
            };
            if part.is_empty() {
                break;
            }
            let n = part.len().min(room.len());
            room[..n].copy_from_slice(&part[..n]);
            done += n;
        }
        Ok(done)
    }

    /// Writes all of it from `from` to `to`.
    fn write(&self, from: u64, to: u64, out: &mut impl Write) -> anyhow::Result<()> {
        let mut buf = vec![0; PIECE_BYTES];
        let mut at = from;
        while at < to {
            let step = (PIECE_BYTES as u64).min(to - at);
            let n = self.read_at(at, &mut buf[..usize::try_from(step)?])?;
            ensure!(n > 0, "the layer ends at {at}");
            out.write_all(&buf[..n])?;
            at += n as u64;
        }
        Ok(())
    }

    /// Its digest, as sha256sum says.
    fn digest(&self) -> anyhow::Result<String> {
        let mut sum = Command::new("sha256sum")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start sha256sum")?;
        let mut pipe = sum.stdin.take().context("its input is piped")?;
        self.write(0, self.bytes(), &mut pipe)?;
        drop(pipe);
        let out = sum.wait_with_output().context("wait for sha256sum")?;
        let text = String::from_utf8(out.stdout)?;
        Ok(format!(
            "sha256:{}",
            text.split(' ').next().unwrap_or_default()
        ))
    }
}

#[derive(Debug)]
struct Served {
    layer: Layer,
    digest: String,
    config: (String, Vec<u8>),
    manifest: Vec<u8>,
    /// The first transfer of the layer is cut in its middle.
    cut: AtomicBool,
    sent: AtomicU64,
}

/// The registry; it serves until the process ends.
#[derive(Debug)]
pub struct Generator {
    /// `127.0.0.1:PORT`.
    pub host: String,
    served: Arc<Served>,
}

fn sha256(bytes: &[u8]) -> anyhow::Result<String> {
    let said = Cmd::new("sha256sum", ["-"]).stdin(bytes).ok()?.stdout;
    Ok(format!(
        "sha256:{}",
        said.split(' ').next().unwrap_or_default()
    ))
}

impl Generator {
    /// Serves an image with one layer of about so many MiB; its first transfer
    /// is cut off in the middle.
    ///
    /// # Errors
    /// No port is free, or sha256sum does not work.
    pub fn start(mib: u64) -> anyhow::Result<Generator> {
        let layer = Layer::new((mib << 20).div_ceil(FILE_BYTES));
        let digest = layer.digest()?;
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": [digest]},
        });
        let config = config.to_string().into_bytes();
        let config = (sha256(&config)?, config);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": config.0, "size": config.1.len(),
            },
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": digest, "size": layer.bytes(),
            }],
        });
        let served = Arc::new(Served {
            layer,
            digest,
            config,
            manifest: manifest.to_string().into_bytes(),
            cut: AtomicBool::new(true),
            sent: AtomicU64::new(0),
        });
        let listener = TcpListener::bind("127.0.0.1:0").context("find a free port")?;
        let host = listener.local_addr()?.to_string();
        let own = Arc::clone(&served);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let served = Arc::clone(&own);
                // A client that is killed or cut off ends its conversation.
                std::thread::spawn(move || served.talk(stream));
            }
        });
        Ok(Generator { host, served })
    }

    /// The image's name.
    pub fn image(&self) -> String {
        format!("{}/{TAG}", self.host)
    }

    /// Bytes of the layer.
    pub fn layer_bytes(&self) -> u64 {
        self.served.layer.bytes()
    }

    /// Bytes of it that were sent so far, all transfers together.
    pub fn sent_bytes(&self) -> u64 {
        self.served.sent.load(Ordering::Relaxed)
    }
}

impl Served {
    fn talk(&self, stream: TcpStream) -> anyhow::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut stream = stream;
        loop {
            let mut line = String::new();
            if reader.by_ref().take(8192).read_line(&mut line)? == 0 {
                return Ok(());
            }
            let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
            let mut from = None;
            loop {
                let mut header = String::new();
                reader.by_ref().take(8192).read_line(&mut header)?;
                let header = header.trim_end().to_ascii_lowercase();
                if header.is_empty() {
                    break;
                }
                if let Some(range) = header.strip_prefix("range: bytes=") {
                    from = range.trim_end_matches('-').parse::<u64>().ok();
                }
            }
            // A TLS greeting has no path: it is told that this is plain HTTP.
            ensure!(path.starts_with("/v2/"), "no request: {line:?}");
            if path.ends_with(&self.digest) {
                self.send_layer(&mut stream, from)?;
            } else if path.ends_with(&self.config.0) {
                whole(&mut stream, "application/octet-stream", &self.config.1)?;
            } else {
                let kind = "application/vnd.oci.image.manifest.v1+json";
                whole(&mut stream, kind, &self.manifest)?;
            }
        }
    }

    fn send_layer(&self, stream: &mut TcpStream, from: Option<u64>) -> anyhow::Result<()> {
        let all = self.layer.bytes();
        let start = from.unwrap_or(0);
        let status = match from {
            Some(_) => format!(
                "206 Partial Content\r\nContent-Range: bytes {start}-{}/{all}",
                all - 1
            ),
            None => "200 OK".to_owned(),
        };
        let length = all - start;
        write!(
            stream,
            "HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n"
        )?;
        let cut = self.cut.swap(false, Ordering::Relaxed);
        let end = if cut { start + length / 2 } else { all };
        let mut counted = Counted(stream, &self.sent);
        self.layer.write(start, end, &mut counted)?;
        ensure!(!cut, "cut off as planned");
        Ok(())
    }
}

fn whole(stream: &mut TcpStream, kind: &str, body: &[u8]) -> anyhow::Result<()> {
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    )?;
    Ok(stream.write_all(body)?)
}

struct Counted<'c>(&'c mut TcpStream, &'c AtomicU64);

impl Write for Counted<'_> {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        let n = self.0.write(buf)?;
        self.1.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_the_same_from_wherever_it_is_read() {
        let layer = Layer::new(1);
        let mut whole = Vec::new();
        layer.write(0, layer.bytes(), &mut whole).unwrap();
        assert_eq!(whole.len() as u64, layer.bytes());
        for from in [
            1,
            511,
            512,
            700,
            (1 << 20) + 512,
            (1 << 20) + 513,
            whole.len() - 1,
        ] {
            let mut part = Vec::new();
            layer.write(from as u64, layer.bytes(), &mut part).unwrap();
            assert!(part == whole[from..], "from {from}");
        }
        let mut archive = tar::Archive::new(&whole[..]);
        let sizes: Vec<u64> = archive
            .entries()
            .unwrap()
            .map(|e| e.unwrap().header().size().unwrap())
            .collect();
        assert_eq!(sizes, [FILE_BYTES]);
    }
}
