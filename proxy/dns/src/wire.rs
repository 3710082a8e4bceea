//! DNS messages (RFC 1035, EDNS0 of RFC 6891): a bounded decoder of queries
//! and of answers from elsewhere, and a writer that truncates.
//!
//! A name is at most 255 bytes; nothing here allocates for a query.

/// Longest name in wire format, in bytes, with the root (RFC 1035 2.3.4).
pub const NAME_MAX_BYTES: usize = 255;
/// Bytes of a message header.
pub const HEADER_BYTES: usize = 12;
/// Most labels of a name with 255 bytes.
const LABELS_MAX_COUNT: usize = 128;
/// Most records that are looked through in a message, in all sections.
const RECORDS_MAX_COUNT: usize = 512;

/// `A` (RFC 1035).
pub const A: u16 = 1;
/// `NS`.
pub const NS: u16 = 2;
/// `CNAME`.
pub const CNAME: u16 = 5;
/// `SOA`.
pub const SOA: u16 = 6;
/// `PTR`.
pub const PTR: u16 = 12;
/// `TXT`.
pub const TXT: u16 = 16;
/// `AAAA` (RFC 3596).
pub const AAAA: u16 = 28;
/// `SRV` (RFC 2782).
pub const SRV: u16 = 33;
/// `OPT` (RFC 6891).
pub const OPT: u16 = 41;
/// `*`, all types.
pub const ANY: u16 = 255;
/// Class `IN`.
pub const IN: u16 = 1;

/// Response codes (RFC 1035 4.1.1; BADVERS of RFC 6891).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Rcode {
    /// No error.
    NoError = 0,
    /// The query has no sense.
    FormErr = 1,
    /// The server has a problem.
    ServFail = 2,
    /// The name does not exist.
    NxDomain = 3,
    /// This kind of query is not known.
    NotImp = 4,
    /// The server does not want to.
    Refused = 5,
    /// An EDNS version that is not known.
    BadVers = 16,
}

/// A name: lower case, uncompressed, with the root at its end.
#[derive(Clone, Copy)]
pub struct Name {
    bytes: [u8; NAME_MAX_BYTES],
    len: u8,
}

impl std::fmt::Debug for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for label in self.labels() {
            write!(f, "{}.", label.escape_ascii())?;
        }
        Ok(())
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for Name {}

impl Name {
    /// Reads a name at `at`; answers it and what follows. Pointers must lead
    /// backwards, so that reading ends.
    #[must_use]
    pub fn read(message: &[u8], at: usize) -> Option<(Self, usize)> {
        let mut name = Self {
            bytes: [0; NAME_MAX_BYTES],
            len: 0,
        };
        let (mut at, mut end, mut lowest) = (at, None, at);
        loop {
            let length = *message.get(at)?;
            match length {
                0 => {
                    name.push(&[0])?;
                    return Some((name, end.unwrap_or(at + 1)));
                }
                1..=63 => {
                    let label = message.get(at..=at + usize::from(length))?;
                    name.push(label)?;
                    at += label.len();
                }
                192.. => {
                    let low = *message.get(at + 1)?;
                    let to = usize::from(u16::from_be_bytes([length & 0x3f, low]));
                    end.get_or_insert(at + 2);
                    if to >= lowest {
                        return None;
                    }
                    (at, lowest) = (to, to);
                }
                _ => return None,
            }
        }
    }

    fn push(&mut self, bytes: &[u8]) -> Option<()> {
        let start = usize::from(self.len);
        let to = self.bytes.get_mut(start..start + bytes.len())?;
        to.copy_from_slice(bytes);
        // Lengths are at most 63 and no letters.
        to.make_ascii_lowercase();
        self.len = u8::try_from(start + bytes.len()).ok()?;
        Some(())
    }

    /// A name from text, with or without a final dot.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut name = Self {
            bytes: [0; NAME_MAX_BYTES],
            len: 0,
        };
        let bare = text.strip_suffix('.').unwrap_or(text);
        for label in bare.split('.').filter(|_| !bare.is_empty()) {
            let length = u8::try_from(label.len())
                .ok()
                .filter(|l| (1..64).contains(l))?;
            name.push(&[length])?;
            name.push(label.as_bytes())?;
        }
        name.push(&[0])?;
        Some(name)
    }

    /// The wire format.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// The labels from left to right, without the root.
    pub fn labels(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = self.as_bytes();
        std::iter::from_fn(move || {
            let (length, more) = rest.split_first().filter(|(l, _)| **l != 0)?;
            let (label, more) = more.split_at_checked(usize::from(*length))?;
            rest = more;
            Some(label)
        })
    }
}

/// The labels of a name by number.
#[derive(Debug)]
pub struct Labels<'n> {
    labels: [&'n [u8]; LABELS_MAX_COUNT],
    count: usize,
}

impl<'n> Labels<'n> {
    /// Those of a name.
    #[must_use]
    pub fn of(name: &'n Name) -> Self {
        let mut labels = [&[][..]; LABELS_MAX_COUNT];
        let mut count = 0;
        for (place, label) in labels.iter_mut().zip(name.labels()) {
            *place = label;
            count += 1;
        }
        Self { labels, count }
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> &[&'n [u8]] {
        &self.labels[..self.count]
    }

    /// Those in front of a suffix, if the name ends so.
    #[must_use]
    pub fn before(&self, suffix: &Name) -> Option<&[&'n [u8]]> {
        let last = suffix.labels().count();
        let (front, back) = self.all().split_at_checked(self.count.checked_sub(last)?)?;
        back.iter().copied().eq(suffix.labels()).then_some(front)
    }
}

/// What a client said about EDNS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edns {
    /// Longest UDP answer, in bytes.
    pub payload: u16,
    /// Version; only 0 is known.
    pub version: u8,
    /// DNSSEC records are welcome.
    pub dnssec: bool,
}

/// A query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Query<'m> {
    /// To be repeated in the answer.
    pub id: u16,
    /// Recursion is desired.
    pub recursion: bool,
    /// The name.
    pub name: Name,
    /// Type.
    pub kind: u16,
    /// Class.
    pub class: u16,
    /// The question as it came.
    pub question: &'m [u8],
    /// EDNS, if the client has it.
    pub edns: Option<Edns>,
}

/// Why a message is no query to be answered in the normal way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// Not even worth an answer: too short, or an answer itself.
    Silent,
    /// To be answered with a code only.
    Code(u16, Rcode),
}

fn be16(message: &[u8], at: usize) -> Option<u16> {
    let bytes = message.get(at..)?.first_chunk()?;
    Some(u16::from_be_bytes(*bytes))
}

impl<'m> Query<'m> {
    /// Reads a query.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn read(message: &'m [u8]) -> Result<Self, Malformed> {
        let header = message
            .first_chunk::<HEADER_BYTES>()
            .ok_or(Malformed::Silent)?;
        let id = u16::from_be_bytes([header[0], header[1]]);
        let code = |code| Malformed::Code(id, code);
        if header[2] & 0x80 != 0 {
            return Err(Malformed::Silent);
        }
        if header[2] & 0x78 != 0 {
            return Err(code(Rcode::NotImp));
        }
        let count = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        if count(4) != 1 || count(6) != 0 {
            return Err(code(Rcode::FormErr));
        }
        let malformed = || code(Rcode::FormErr);
        let (name, end) = Name::read(message, HEADER_BYTES).ok_or_else(malformed)?;
        let kind = be16(message, end).ok_or_else(malformed)?;
        let class = be16(message, end + 2).ok_or_else(malformed)?;
        let mut query = Self {
            id,
            recursion: header[2] & 1 != 0,
            name,
            kind,
            class,
            question: &message[HEADER_BYTES..end + 4],
            edns: None,
        };
        let rest = usize::from(count(8)) + usize::from(count(10));
        for record in Records::new(message, end + 4, rest) {
            let record = record.ok_or_else(malformed)?;
            if record.kind == OPT {
                if query.edns.is_some() || record.owner.as_bytes() != [0] {
                    return Err(malformed());
                }
                let [_, version, flags, _] = record.ttl.to_be_bytes();
                query.edns = Some(Edns {
                    payload: record.class,
                    version,
                    dnssec: flags & 0x80 != 0,
                });
            }
        }
        Ok(query)
    }
}

/// A record of a message.
#[derive(Debug, Clone, Copy)]
pub struct Record {
    /// Whose it is.
    pub owner: Name,
    /// Type.
    pub kind: u16,
    /// Class.
    pub class: u16,
    /// Time to live, in seconds.
    pub ttl: u32,
    /// Where the TTL lies in the message.
    pub ttl_at: usize,
    /// Where the data begins.
    pub data_at: usize,
    /// Where it ends.
    pub data_end: usize,
}

/// Reads records one after the other; `None` for one that is malformed.
#[derive(Debug)]
pub struct Records<'m> {
    message: &'m [u8],
    at: usize,
    left: usize,
}

impl<'m> Records<'m> {
    /// The next `count` records from `at` on.
    #[must_use]
    pub fn new(message: &'m [u8], at: usize, count: usize) -> Self {
        Self {
            message,
            at,
            left: count.min(RECORDS_MAX_COUNT),
        }
    }

    fn read(&mut self) -> Option<Record> {
        let (owner, at) = Name::read(self.message, self.at)?;
        let fixed = self.message.get(at..)?.first_chunk::<10>()?;
        let &[k0, k1, c0, c1, t0, t1, t2, t3, l0, l1] = fixed;
        let data_at = at + 10;
        let data_end = data_at + usize::from(u16::from_be_bytes([l0, l1]));
        self.message.get(data_at..data_end)?;
        self.at = data_end;
        Some(Record {
            owner,
            kind: u16::from_be_bytes([k0, k1]),
            class: u16::from_be_bytes([c0, c1]),
            ttl: u32::from_be_bytes([t0, t1, t2, t3]),
            ttl_at: at + 4,
            data_at,
            data_end,
        })
    }
}

impl Iterator for Records<'_> {
    type Item = Option<Record>;

    fn next(&mut self) -> Option<Option<Record>> {
        self.left = self.left.checked_sub(1)?;
        let record = self.read();
        if record.is_none() {
            self.left = 0;
        }
        Some(record)
    }
}

/// The parts of an answer from elsewhere.
#[derive(Debug, Clone, Copy)]
pub struct Answer {
    /// Code.
    pub rcode: u8,
    /// The answer did not fit.
    pub truncated: bool,
    /// Where the records begin.
    pub records_at: usize,
    /// Numbers of answer, authority and additional records.
    pub counts: [usize; 3],
}

impl Answer {
    /// Reads an answer to a query with this id and question (with its name in
    /// any case).
    #[must_use]
    pub fn read(message: &[u8], id: u16, question: &[u8]) -> Option<Self> {
        let header = message.first_chunk::<HEADER_BYTES>()?;
        let asked = message.get(HEADER_BYTES..HEADER_BYTES + question.len())?;
        let count = |at: usize| usize::from(u16::from_be_bytes([header[at], header[at + 1]]));
        let fits = be16(message, 0)? == id
            && header[2] & 0x80 != 0
            && count(4) == 1
            && asked.eq_ignore_ascii_case(question);
        fits.then_some(Self {
            rcode: header[3] & 0xf,
            truncated: header[2] & 2 != 0,
            records_at: HEADER_BYTES + question.len(),
            counts: [count(6), count(8), count(10)],
        })
    }
}

/// Whose a written record is.
#[derive(Debug, Clone, Copy)]
pub enum Owner<'n> {
    /// The name of the question: a pointer to it.
    Question,
    /// Another name.
    Name(&'n [u8]),
}

/// Sections of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(usize)]
pub enum Section {
    /// Answer.
    Answer = 0,
    /// Authority.
    Authority = 1,
    /// Additional.
    Additional = 2,
}

/// Writes an answer.
#[derive(Debug)]
pub struct Reply<'o> {
    out: &'o mut Vec<u8>,
    limit: usize,
    counts: [u16; 3],
    edns: Option<Edns>,
    truncated: bool,
}

/// Longest UDP answer, in bytes: what no path fragments (DNS flag day 2020).
pub const UDP_PAYLOAD_BYTES: u16 = 1232;
/// Longest UDP answer without EDNS, in bytes.
const UDP_PLAIN_BYTES: usize = 512;
/// Bytes of an OPT record without options.
const OPT_BYTES: usize = 11;

/// Longest answer to a query.
#[must_use]
pub fn limit(edns: Option<Edns>, tcp: bool) -> usize {
    match edns {
        _ if tcp => usize::from(u16::MAX),
        None => UDP_PLAIN_BYTES,
        Some(edns) => usize::from(edns.payload.min(UDP_PAYLOAD_BYTES)).max(UDP_PLAIN_BYTES),
    }
}

impl<'o> Reply<'o> {
    /// Begins an answer, which is authoritative or not.
    pub fn new(out: &'o mut Vec<u8>, query: &Query<'_>, limit: usize, authority: bool) -> Self {
        out.clear();
        out.extend_from_slice(&query.id.to_be_bytes());
        // QR, AA, RD; RA.
        let aa = if authority { 0x04 } else { 0 };
        let flags = [0x80 | aa | u8::from(query.recursion), 0x80];
        out.extend_from_slice(&flags);
        out.extend_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
        out.extend_from_slice(query.question);
        Self {
            out,
            limit: limit - query.edns.map_or(0, |_| OPT_BYTES),
            counts: [0; 3],
            edns: query.edns,
            truncated: false,
        }
    }

    /// Writes a record, unless it does not fit: then the answer is truncated,
    /// or the additional record left out.
    pub fn record(
        &mut self,
        section: Section,
        owner: Owner<'_>,
        kind: u16,
        ttl: u32,
        data: &[&[u8]],
    ) {
        let owner: &[u8] = match owner {
            Owner::Question => &[0xc0, 12],
            Owner::Name(name) => name,
        };
        let length: usize = data.iter().map(|part| part.len()).sum();
        let fits = self.out.len() + owner.len() + 10 + length <= self.limit;
        let Some(length) = u16::try_from(length)
            .ok()
            .filter(|_| fits && !self.truncated)
        else {
            self.truncated |= section != Section::Additional;
            return;
        };
        self.out.extend_from_slice(owner);
        self.out.extend_from_slice(&kind.to_be_bytes());
        self.out.extend_from_slice(&IN.to_be_bytes());
        self.out.extend_from_slice(&ttl.to_be_bytes());
        self.out.extend_from_slice(&length.to_be_bytes());
        for part in data {
            self.out.extend_from_slice(part);
        }
        self.counts[section as usize] += 1;
    }

    /// Whether there is an answer record.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.counts[0] == 0 && !self.truncated
    }

    /// Ends the answer.
    pub fn finish(mut self, rcode: Rcode) {
        let code = rcode as u16;
        if let Some(edns) = self.edns {
            let high = code.to_be_bytes()[1] >> 4;
            let dnssec = if edns.dnssec { 0x80 } else { 0 };
            self.out.extend_from_slice(&[0]);
            self.out.extend_from_slice(&OPT.to_be_bytes());
            self.out.extend_from_slice(&UDP_PAYLOAD_BYTES.to_be_bytes());
            self.out.extend_from_slice(&[high, 0, dnssec, 0, 0, 0]);
            self.counts[2] += 1;
        }
        let low = code.to_be_bytes()[1] & 0xf;
        self.out[2] |= if self.truncated { 2 } else { 0 };
        self.out[3] |= low;
        for (at, count) in [6, 8, 10].into_iter().zip(self.counts) {
            self.out[at..at + 2].copy_from_slice(&count.to_be_bytes());
        }
    }
}

/// An answer with a code and nothing else.
pub fn code_only(out: &mut Vec<u8>, id: u16, rcode: Rcode) {
    out.clear();
    out.extend_from_slice(&id.to_be_bytes());
    let low = (rcode as u16).to_be_bytes()[1] & 0xf;
    out.extend_from_slice(&[0x80, 0x80 | low, 0, 0, 0, 0, 0, 0, 0, 0]);
}
