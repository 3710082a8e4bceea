//! One connection to systemd: over the system bus, or to its own socket where
//! no bus runs. Blocking, with a limit for every answer.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use super::wire::{self, Header, Writer};
use crate::error::{Error, Result};

/// How long one answer may take: systemd starts a unit within milliseconds,
/// and is slow only while it reloads.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// Longest line of the handshake, in bytes.
const MAX_LINE_BYTES: usize = 1024;

const SYSTEMD: &str = "org.freedesktop.systemd1";
const BUS: &str = "org.freedesktop.DBus";

/// A connection.
#[derive(Debug)]
pub(super) struct Bus {
    stream: UnixStream,
    serial: u32,
    /// Through a bus, which routes by names.
    routed: bool,
    /// Signals that came while something else was waited for.
    pending: Vec<(Header, Vec<u8>)>,
}

fn io(what: &'static str) -> impl Fn(std::io::Error) -> Error {
    move |source| Error::BusIo { what, source }
}

impl Bus {
    /// Connects, and asks to be told of jobs that end.
    ///
    /// # Errors
    /// The socket, the handshake or the answer.
    pub(super) fn connect(path: &Path, routed: bool) -> Result<Self> {
        let stream = UnixStream::connect(path).map_err(io("connect to systemd"))?;
        stream
            .set_read_timeout(Some(ANSWER_LIMIT))
            .and_then(|()| stream.set_write_timeout(Some(ANSWER_LIMIT)))
            .map_err(io("limit the answers of systemd"))?;
        let mut bus = Self {
            stream,
            serial: 0,
            routed,
            pending: Vec::new(),
        };
        bus.authenticate()?;
        if routed {
            bus.ask_bus("Hello", "", &[])?;
            let mut rule = Writer::default();
            rule.text(
                "type='signal',sender='org.freedesktop.systemd1',\
                 interface='org.freedesktop.systemd1.Manager',member='JobRemoved'",
            );
            bus.ask_bus("AddMatch", "s", &rule.0)?;
        }
        bus.manager("Subscribe", "", &[])?;
        Ok(bus)
    }

    /// EXTERNAL: the kernel tells who this is (D-Bus Specification,
    /// Authentication Protocol).
    fn authenticate(&mut self) -> Result<()> {
        let uid = rustix::process::geteuid().as_raw().to_string();
        let hex: String = uid.bytes().map(|b| format!("{b:02x}")).collect();
        let hello = format!("\0AUTH EXTERNAL {hex}\r\n");
        self.stream
            .write_all(hello.as_bytes())
            .map_err(io("greet systemd"))?;
        let line = self.line()?;
        if !line.starts_with("OK ") {
            return Err(Error::Bus {
                reason: "it does not accept this user (authentication EXTERNAL)",
            });
        }
        self.stream
            .write_all(b"BEGIN\r\n")
            .map_err(io("greet systemd"))
    }

    fn line(&mut self) -> Result<String> {
        let mut line = Vec::new();
        let mut byte = [0_u8; 1];
        while !line.ends_with(b"\r\n") {
            if line.len() > MAX_LINE_BYTES {
                return Err(Error::Bus {
                    reason: "a line of the handshake has no end",
                });
            }
            self.stream
                .read_exact(&mut byte)
                .map_err(io("hear from systemd"))?;
            line.extend(byte);
        }
        Ok(String::from_utf8_lossy(&line).into_owned())
    }

    fn ask_bus(&mut self, member: &str, signature: &str, body: &[u8]) -> Result<Vec<u8>> {
        self.call(BUS, "/org/freedesktop/DBus", BUS, member, (signature, body))
    }

    /// Calls the manager.
    pub(super) fn manager(
        &mut self,
        member: &str,
        signature: &str,
        body: &[u8],
    ) -> Result<Vec<u8>> {
        let interface = "org.freedesktop.systemd1.Manager";
        let path = "/org/freedesktop/systemd1";
        self.call(SYSTEMD, path, interface, member, (signature, body))
    }

    /// A text property of a unit.
    pub(super) fn unit_property(
        &mut self,
        path: &str,
        interface: &str,
        name: &str,
    ) -> Result<String> {
        let mut body = Writer::default();
        body.text(interface);
        body.text(name);
        let properties = "org.freedesktop.DBus.Properties";
        let answer = self.call(SYSTEMD, path, properties, "Get", ("ss", &body.0))?;
        wire::Reader::new(&answer).text_variant()
    }

    fn call(
        &mut self,
        destination: &str,
        path: &str,
        interface: &str,
        member: &str,
        (signature, body): (&str, &[u8]),
    ) -> Result<Vec<u8>> {
        self.serial += 1;
        let serial = self.serial;
        let text = |t: &str| Some(t.to_owned()).filter(|t| !t.is_empty());
        let header = Header {
            kind: wire::METHOD_CALL,
            serial,
            path: text(path),
            interface: text(interface),
            member: text(member),
            destination: if self.routed { text(destination) } else { None },
            signature: text(signature),
            ..Header::default()
        };
        self.stream
            .write_all(&wire::message(&header, body))
            .map_err(io("ask systemd"))?;
        let deadline = Instant::now() + ANSWER_LIMIT;
        loop {
            let (header, body) = self.read(deadline)?;
            match header.kind {
                wire::METHOD_RETURN if header.reply_to == Some(serial) => return Ok(body),
                wire::ERROR if header.reply_to == Some(serial) => {
                    let message = match header.signature.as_deref() {
                        Some(s) if s.starts_with('s') => wire::Reader::new(&body).text()?,
                        _ => String::new(),
                    };
                    return Err(Error::Systemd {
                        call: member.to_owned(),
                        name: header.error.unwrap_or_default(),
                        message,
                    });
                }
                wire::SIGNAL => self.pending.push((header, body)),
                // What nobody waits for any more.
                _ => {}
            }
        }
    }

    fn read(&mut self, deadline: Instant) -> Result<(Header, Vec<u8>)> {
        if Instant::now() > deadline {
            return Err(Error::Bus {
                reason: "it does not answer within 30 s",
            });
        }
        let mut start = [0_u8; 16];
        self.stream
            .read_exact(&mut start)
            .map_err(io("hear from systemd"))?;
        let size = wire::size_of_message(&start)?;
        let mut whole = vec![0_u8; size];
        let (head, rest) = whole.split_at_mut(16);
        head.copy_from_slice(&start);
        self.stream
            .read_exact(rest)
            .map_err(io("hear from systemd"))?;
        let (header, body) = wire::parse(&whole)?;
        let body = body.to_vec();
        Ok((header, body))
    }

    /// Waits until a job has ended; its result (`done`, `failed`, ...).
    pub(super) fn job_end(&mut self, job: &str) -> Result<String> {
        let deadline = Instant::now() + ANSWER_LIMIT;
        let mut waiting = std::mem::take(&mut self.pending).into_iter();
        loop {
            let (header, body) = match waiting.next() {
                Some(message) => message,
                None => self.read(deadline)?,
            };
            if header.kind != wire::SIGNAL || header.member.as_deref() != Some("JobRemoved") {
                continue;
            }
            // uoss: id, job, unit, result.
            let mut reader = wire::Reader::new(&body);
            reader.u32()?;
            if reader.text()? != job {
                continue;
            }
            reader.text()?;
            return reader.text();
        }
    }
}
