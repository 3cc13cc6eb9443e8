//! Bundles: evidence as lines that a chain of hashes and a signature hold together.

use std::io::{self, BufRead, Read as _, Write};

use ring::signature::{ED25519, UnparsedPublicKey};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use crate::{
    Error,
    evidence::{Event, Record, Seal},
};

/// The most bytes of a line, its line feed included.
pub const LINE_MAX: usize = 1 << 22;

/// What line 0 of a market's first bundle follows.
pub const NO_HEAD: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Where a bundle says something else than follows from what it holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("line {line}{}: {}", self.place(), self.reason())]
pub struct Difference {
    /// Which line, counted from 1.
    pub line: i64,
    /// Which record, as `pay` and its id; empty where the line cannot be read.
    pub record: String,
    /// Which field; empty where it is about the whole line.
    pub field: String,
    /// What the bundle says there.
    pub says: String,
    /// What follows from the evidence, or what is wrong with the line.
    pub follows: String,
}

impl Difference {
    /// Of a whole line.
    pub(crate) fn line(line: i64, record: String, what: impl Into<String>) -> Self {
        Self { line, record, field: String::new(), says: String::new(), follows: what.into() }
    }

    fn place(&self) -> String {
        if self.record.is_empty() { String::new() } else { format!(", {}", self.record) }
    }

    fn reason(&self) -> String {
        match self.field.is_empty() {
            true => self.follows.clone(),
            false => format!("{} is {}, and should be {}", self.field, self.says, self.follows),
        }
    }
}

/// Why a bundle could not be read, or is not believed.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Its bytes cannot be had.
    #[error("the bundle cannot be read")]
    Io(#[source] io::Error),
    /// It is not what it should be.
    #[error(transparent)]
    Difference(#[from] Difference),
}

/// Why a bundle could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// Its bytes have no place.
    #[error("the bundle cannot be written")]
    Io(#[source] io::Error),
    /// Not a record that can come next.
    #[error("{0} cannot come here")]
    Order(String),
    /// Not a record that a reader would take.
    #[error(transparent)]
    Unsound(#[from] Error),
    /// More than [`LINE_MAX`].
    #[error("{0} is too long for a line")]
    Length(String),
}

/// A line as it is read.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    #[serde(borrow)]
    body: &'a RawValue,
    kind: &'a str,
    prev: &'a str,
    seq: i64,
}

impl Record {
    /// The name of its kind.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Header(_) => "header",
            Self::Params(_) => "params",
            Self::Class(_) => "class",
            Self::Miner(_) => "miner",
            Self::Verdict(_) => "verdict",
            Self::Event(_) => "event",
            Self::Lease(_) => "lease",
            Self::Idle(_) => "idle",
            Self::Pay(_) => "pay",
            Self::Result(_) => "result",
            Self::Seal(_) => "seal",
        }
    }

    /// The place of its kind among all kinds, and its id, by which lines are in order.
    fn place(&self) -> (u8, &str, &str) {
        match self {
            Self::Header(_) => (0, "", ""),
            Self::Params(_) => (1, "", ""),
            Self::Class(class) => (2, &class.class, ""),
            Self::Miner(miner) => (3, &miner.hotkey, ""),
            Self::Verdict(verdict) => (4, &verdict.verdict, ""),
            Self::Event(event) => (5, &event.event, ""),
            Self::Lease(lease) => (6, &lease.lease, ""),
            Self::Idle(idle) => (7, &idle.host, &idle.class),
            Self::Pay(pay) => (8, &pay.hotkey, ""),
            Self::Result(_) => (9, "", ""),
            Self::Seal(_) => (10, "", ""),
        }
    }

    /// Its kind and its id, as people read it.
    #[must_use]
    pub fn name(&self) -> String {
        let (_, id, more) = self.place();
        [self.kind(), id, more].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
    }

    fn check(&self) -> Result<(), Error> {
        match self {
            Self::Header(header) => header.check(),
            Self::Params(params) => params.check(),
            Self::Class(class) => class.check(),
            Self::Miner(miner) => miner.check(),
            Self::Verdict(verdict) => verdict.check(),
            Self::Event(event) => event.check(),
            Self::Lease(lease) => lease.check(),
            Self::Idle(idle) => idle.check(),
            Self::Pay(pay) => pay.check(),
            Self::Result(totals) => totals.check(),
            Self::Seal(seal) => seal.check(),
        }
    }

    /// Puts the canonical form of its line in place of what is in `buffer`.
    fn write(&self, buffer: &mut Vec<u8>, prev: &str, seq: i64) -> io::Result<()> {
        buffer.clear();
        buffer.extend(b"{\"body\":");
        match self {
            Self::Header(body) => serde_json::to_writer(&mut *buffer, body)?,
            Self::Params(body) => serde_json::to_writer(&mut *buffer, body)?,
            Self::Class(body) => serde_json::to_writer(&mut *buffer, body)?,
            Self::Miner(body) => serde_json::to_writer(&mut *buffer, body)?,
            Self::Verdict(body) => serde_json::to_writer(&mut *buffer, body)?,
            Self::Event(body) => serde_json::to_writer(&mut *buffer, body)?,
            Self::Lease(body) => serde_json::to_writer(&mut *buffer, body)?,
            Self::Idle(body) => serde_json::to_writer(&mut *buffer, body)?,
            Self::Pay(body) => serde_json::to_writer(&mut *buffer, body)?,
            Self::Result(body) => serde_json::to_writer(&mut *buffer, body)?,
            Self::Seal(body) => serde_json::to_writer(&mut *buffer, body)?,
        }
        let kind = self.kind();
        write!(buffer, ",\"kind\":\"{kind}\",\"prev\":\"{prev}\",\"seq\":{seq}}}")
    }

    /// Reads the body of a line.
    fn read(kind: &str, body: &RawValue) -> Option<Self> {
        let body = body.get();
        match kind {
            "header" => serde_json::from_str(body).ok().map(Self::Header),
            "params" => serde_json::from_str(body).ok().map(Self::Params),
            "class" => serde_json::from_str(body).ok().map(Self::Class),
            "miner" => serde_json::from_str(body).ok().map(Self::Miner),
            "verdict" => serde_json::from_str(body).ok().map(Self::Verdict),
            "event" => serde_json::from_str(body).ok().map(Self::Event),
            "lease" => serde_json::from_str(body).ok().map(Self::Lease),
            "idle" => serde_json::from_str(body).ok().map(Self::Idle),
            "pay" => serde_json::from_str(body).ok().map(Self::Pay),
            "result" => serde_json::from_str(body).ok().map(Self::Result),
            "seal" => serde_json::from_str(body).ok().map(Self::Seal),
            _ => None,
        }
    }
}

/// Which line may follow the last one.
#[derive(Debug, Default)]
struct Order {
    last: Option<(u8, String, String)>,
}

impl Order {
    /// Whether `record` may come now; if so it is the last one from now on.
    fn take(&mut self, record: &Record) -> bool {
        let (kind, id, more) = record.place();
        let ok = match &self.last {
            None => kind == 0,
            Some((0, ..)) => kind == 1,
            Some((9, ..)) => kind == 10,
            Some((last, last_id, last_more)) => {
                kind < 10 && (kind, id, more) > (*last, last_id.as_str(), last_more.as_str())
            }
        };
        if ok {
            self.last = Some((kind, id.to_owned(), more.to_owned()));
        }
        ok
    }

    fn has_ended(&self) -> bool {
        matches!(self.last, Some((10, ..)))
    }
}

/// The links that hold lines together.
#[derive(Debug)]
struct Chain {
    prev: String,
    seq: i64,
}

impl Chain {
    fn after(head: &str) -> Self {
        Self { prev: head.to_owned(), seq: 0 }
    }

    /// Goes on after `line`, which has no line feed.
    fn extend(&mut self, line: &[u8]) {
        self.prev = hex::encode(Sha256::digest(line));
        self.seq += 1;
    }
}

/// What the seal signs.
fn seal_bytes(seal: &Seal, prev: &str) -> Vec<u8> {
    format!("nave evidence 1\n{}\n{}\n{}\n{prev}", seal.market, seal.epoch, seal.lines).into_bytes()
}

/// Writes a bundle, line by line.
#[derive(Debug)]
pub struct Writer<W> {
    output: W,
    buffer: Vec<u8>,
    order: Order,
    chain: Chain,
    /// The market and the epoch, from the header.
    of: (String, i64),
}

impl<W: Write> Writer<W> {
    /// A bundle whose line 0 follows `head`, that of the epoch before, or [`NO_HEAD`].
    pub fn new(output: W, head: &str) -> Self {
        Self {
            output,
            buffer: Vec::new(),
            order: Order::default(),
            chain: Chain::after(head),
            of: (String::new(), 0),
        }
    }

    /// Writes a line.
    ///
    /// # Errors
    /// Where a reader would refuse it, or it could not be written: the bundle is void then.
    pub fn push(&mut self, record: &Record) -> Result<(), WriteError> {
        record.check()?;
        if !self.order.take(record) {
            return Err(WriteError::Order(record.name()));
        }
        if let Record::Header(header) = record {
            self.of = (header.market.clone(), header.epoch);
        }
        let written = record.write(&mut self.buffer, &self.chain.prev, self.chain.seq);
        written.map_err(WriteError::Io)?;
        self.chain.extend(&self.buffer);
        self.buffer.push(b'\n');
        if self.buffer.len() > LINE_MAX {
            return Err(WriteError::Length(record.name()));
        }
        self.output.write_all(&self.buffer).map_err(WriteError::Io)
    }

    /// Signs and writes the last line with the market key; gives the output back, and the head.
    ///
    /// # Errors
    /// As for [`Self::push`].
    pub fn seal(mut self, key: impl FnOnce(&[u8]) -> [u8; 64]) -> Result<(W, String), WriteError> {
        let (market, epoch) = self.of.clone();
        let mut seal = Seal { market, epoch, lines: self.chain.seq, signature: String::new() };
        seal.signature = hex::encode(key(&seal_bytes(&seal, &self.chain.prev)));
        self.push(&Record::Seal(seal))?;
        self.output.flush().map_err(WriteError::Io)?;
        Ok((self.output, self.chain.prev))
    }
}

/// Reads a bundle, line by line, and believes nothing that was not written as it should be.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    line: Vec<u8>,
    again: Vec<u8>,
    order: Order,
    chain: Chain,
    /// Whether line 0 has to follow a head that is known.
    is_tied: bool,
    /// The market and the epoch, from the header.
    of: (String, i64),
}

impl<R: BufRead> Reader<R> {
    /// A bundle whose line 0 follows `head`, if that is known.
    pub fn new(input: R, head: Option<&str>) -> Self {
        Self {
            input,
            line: Vec::new(),
            again: Vec::new(),
            order: Order::default(),
            chain: Chain::after(head.unwrap_or(NO_HEAD)),
            is_tied: head.is_some(),
            of: (String::new(), 0),
        }
    }

    /// The lines that were read.
    #[must_use]
    pub fn lines(&self) -> i64 {
        self.chain.seq
    }

    /// The SHA-256 of the last line that was read: the head, once that was the seal.
    #[must_use]
    pub fn head(&self) -> &str {
        &self.chain.prev
    }

    /// The next line; none after the seal.
    ///
    /// # Errors
    /// At the first line that is not as it should be; what comes then means nothing.
    pub fn read(&mut self) -> Result<Option<Record>, ReadError> {
        let has_line = self.read_line()?;
        if self.order.has_ended() {
            return if has_line { Err(self.wrong("", "comes after the seal").into()) } else { Ok(None) };
        }
        if !has_line {
            return Err(self.wrong("", "the bundle ends without a seal").into());
        }
        let Some((record, prev, seq)) = self.parse() else {
            return Err(self.wrong("", "is not the canonical form of a record").into());
        };
        let name = record.name();
        if seq != self.chain.seq {
            return Err(self.differs(&name, "seq", seq.to_string(), self.chain.seq.to_string()).into());
        }
        if self.chain.seq == 0 && !self.is_tied {
            self.chain.prev.clone_from(&prev);
        }
        if prev != self.chain.prev {
            return Err(self.differs(&name, "prev", prev, self.chain.prev.clone()).into());
        }
        if !self.order.take(&record) {
            return Err(self.wrong(&name, "cannot come here").into());
        }
        self.verify(&record, &name)?;
        self.chain.extend(&self.line);
        Ok(Some(record))
    }

    /// Reads a line without its line feed; whether there was one.
    fn read_line(&mut self) -> Result<bool, ReadError> {
        self.line.clear();
        let mut bounded = self.input.by_ref().take(LINE_MAX as u64);
        bounded.read_until(b'\n', &mut self.line).map_err(ReadError::Io)?;
        if self.line.is_empty() {
            return Ok(false);
        }
        match self.line.pop() {
            Some(b'\n') => Ok(true),
            _ => Err(self.wrong("", "has no end").into()),
        }
    }

    /// A record, its `prev` and its `seq`, where the line is their canonical form.
    fn parse(&mut self) -> Option<(Record, String, i64)> {
        let Line { body, kind, prev, seq } = serde_json::from_slice(&self.line).ok()?;
        let record = Record::read(kind, body).filter(|record| record.check().is_ok())?;
        record.write(&mut self.again, prev, seq).ok()?;
        (self.again == self.line).then(|| (record, prev.to_owned(), seq))
    }

    /// Checks signatures, and that the seal is this bundle's.
    fn verify(&mut self, record: &Record, name: &str) -> Result<(), Difference> {
        match record {
            Record::Header(header) => self.of = (header.market.clone(), header.epoch),
            Record::Event(event) => self.signed(name, &event.signature, &Event::signed_bytes(event))?,
            Record::Seal(seal) => {
                let (market, epoch) = &self.of;
                if seal.epoch != *epoch {
                    return Err(self.differs(name, "epoch", seal.epoch.to_string(), epoch.to_string()));
                }
                if seal.lines != self.chain.seq {
                    let (says, follows) = (seal.lines.to_string(), self.chain.seq.to_string());
                    return Err(self.differs(name, "lines", says, follows));
                }
                if seal.market != *market {
                    return Err(self.differs(name, "market", seal.market.clone(), market.clone()));
                }
                self.signed(name, &seal.signature, &seal_bytes(seal, &self.chain.prev))?;
            }
            Record::Params(_)
            | Record::Class(_)
            | Record::Miner(_)
            | Record::Verdict(_)
            | Record::Lease(_)
            | Record::Idle(_)
            | Record::Pay(_)
            | Record::Result(_) => {}
        }
        Ok(())
    }

    fn signed(&self, name: &str, signature: &str, message: &[u8]) -> Result<(), Difference> {
        let key = digits::<32>(&self.of.0).map(|key| UnparsedPublicKey::new(&ED25519, key));
        let signature = digits::<64>(signature);
        let fits = key.zip(signature).is_some_and(|(key, signature)| key.verify(message, &signature).is_ok());
        if fits { Ok(()) } else { Err(self.wrong(name, "is not signed by the market")) }
    }

    fn wrong(&self, name: &str, what: &str) -> Difference {
        Difference::line(self.chain.seq + 1, name.to_owned(), what)
    }

    fn differs(&self, name: &str, field: &str, says: String, follows: String) -> Difference {
        let (line, record) = (self.chain.seq + 1, name.to_owned());
        Difference { line, record, field: field.to_owned(), says, follows }
    }
}

/// Bytes that are written in hexadecimal, in small letters.
fn digits<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let is_small = !text.contains(|c: char| c.is_ascii_uppercase());
    (is_small && hex::decode_to_slice(text, &mut bytes).is_ok()).then_some(bytes)
}
