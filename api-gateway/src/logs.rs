//! Output as text: pieces joined where a character was cut in two.
//!
//! Hosts cut output anywhere, so a piece may end inside a UTF-8 sequence. Its last bytes,
//! at most three, are then held back and put before the next piece of the same attempt
//! and stream. A [`Cursor`] names a place in the output as it was sent: who reads on from
//! there holds back the same bytes, because they follow from the last three bytes of each
//! stream alone. Nothing is lost and nothing comes twice, wherever a reader breaks off.

use std::{collections::BTreeMap, fmt, str::FromStr};

use nave_domain::Timestamp;
use nave_sdk::wire::{host::Stream, rest::LogLine};
use nave_store::LogRow;

/// A place in a job's output: after a stored piece, and after so many of the bytes that
/// were held back there and that nothing completed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Cursor {
    pub(crate) chunk: i64,
    flushed: u8,
}

impl Cursor {
    pub(crate) fn after(chunk: i64) -> Self {
        Self { chunk, flushed: 0 }
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.flushed {
            0 => write!(f, "{}", self.chunk),
            flushed => write!(f, "{}.{flushed}", self.chunk),
        }
    }
}

impl FromStr for Cursor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let read = |text: &str| {
            let (chunk, flushed) = text.split_once('.').unwrap_or((text, "0"));
            let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
            if !digits(chunk) || !digits(flushed) {
                return None;
            }
            Some(Self { chunk: chunk.parse().ok()?, flushed: flushed.parse().ok()? })
        };
        read(text).ok_or_else(|| "it is not a cursor that this API gave out".to_owned())
    }
}

/// A piece of text and the place after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) cursor: Cursor,
    pub(crate) line: LogLine,
}

/// Bytes held back, and when they came.
#[derive(Debug)]
struct Tail {
    at: Timestamp,
    bytes: Vec<u8>,
}

/// Turns stored pieces into text.
#[derive(Debug, Default)]
pub(crate) struct Joiner {
    cursor: Cursor,
    attempt: u32,
    tails: BTreeMap<Stream, Tail>,
}

impl Joiner {
    /// A joiner that goes on at `cursor`, given the last pieces of every stream up to it.
    pub(crate) fn resume(cursor: Cursor, ends: Vec<LogRow>) -> Self {
        let mut joiner = Self::default();
        for row in ends {
            joiner.push(row);
        }
        for _ in 0..cursor.flushed {
            joiner.tails.pop_first();
        }
        joiner.cursor = cursor;
        joiner
    }

    /// The place after everything that was handed out or held back.
    pub(crate) fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// The text that a stored piece completes.
    pub(crate) fn push(&mut self, row: LogRow) -> Vec<Piece> {
        // Attempts never overlap: the output of an earlier one is complete.
        let mut pieces = if row.attempt == self.attempt { Vec::new() } else { self.flush() };
        self.attempt = row.attempt;
        self.cursor = Cursor::after(row.chunk);
        let stream = stream(&row.stream);
        let mut bytes = self.tails.remove(&stream).map(|tail| tail.bytes).unwrap_or_default();
        bytes.extend_from_slice(&row.bytes);
        let held = bytes.split_off(bytes.len() - unfinished(&bytes));
        if !held.is_empty() {
            self.tails.insert(stream, Tail { at: row.at, bytes: held });
        }
        if !bytes.is_empty() {
            pieces.push(self.piece(row.at, stream, &bytes));
        }
        pieces
    }

    /// What was held back and will never be completed.
    pub(crate) fn flush(&mut self) -> Vec<Piece> {
        let mut pieces = Vec::new();
        while let Some((stream, tail)) = self.tails.pop_first() {
            self.cursor.flushed = self.cursor.flushed.saturating_add(1);
            pieces.push(self.piece(tail.at, stream, &tail.bytes));
        }
        pieces
    }

    fn piece(&self, at: Timestamp, stream: Stream, bytes: &[u8]) -> Piece {
        let text = String::from_utf8_lossy(bytes).into_owned();
        Piece { cursor: self.cursor, line: LogLine { at, attempt: self.attempt, stream, text } }
    }
}

fn stream(name: &str) -> Stream {
    if name == Stream::Stderr.as_str() { Stream::Stderr } else { Stream::Stdout }
}

/// Number of bytes at the end that begin a UTF-8 sequence and do not complete it; 0 to 3.
fn unfinished(bytes: &[u8]) -> usize {
    let last = &bytes[bytes.len().saturating_sub(3)..];
    let begins = |from: &usize| {
        std::str::from_utf8(&last[*from..])
            .is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
    };
    (0..last.len()).find(begins).map_or(0, |from| last.len() - from)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn row(chunk: i64, attempt: u32, stream: &str, bytes: &[u8]) -> LogRow {
        LogRow { chunk, at: Timestamp(chunk), attempt, stream: stream.to_owned(), bytes: bytes.to_vec() }
    }

    /// What the store returns for a reader that goes on from `cursor`.
    fn ends(rows: &[LogRow], cursor: i64) -> Vec<LogRow> {
        let mut kept: BTreeMap<(u32, String), Vec<LogRow>> = BTreeMap::new();
        for row in rows.iter().filter(|row| row.chunk <= cursor) {
            let of_stream = kept.entry((row.attempt, row.stream.clone())).or_default();
            let bytes = row.bytes[row.bytes.len().saturating_sub(3)..].to_vec();
            of_stream.push(LogRow { bytes, ..row.clone() });
            if of_stream.len() > 3 {
                of_stream.remove(0);
            }
        }
        let mut ends: Vec<LogRow> = kept.into_values().flatten().collect();
        ends.sort_by_key(|row| row.chunk);
        ends
    }

    fn read(rows: &[LogRow], from: Cursor) -> Vec<Piece> {
        let mut joiner = Joiner::resume(from, ends(rows, from.chunk));
        let rest = rows.iter().filter(|row| row.chunk > from.chunk).cloned();
        let mut pieces: Vec<Piece> = rest.flat_map(|row| joiner.push(row)).collect();
        pieces.extend(joiner.flush());
        pieces
    }

    fn texts(pieces: &[Piece]) -> Vec<(&str, &str)> {
        pieces.iter().map(|piece| (piece.line.stream.as_str(), piece.line.text.as_str())).collect()
    }

    #[test]
    fn a_character_cut_in_two_is_joined_within_its_stream() {
        let euro = "€".as_bytes();
        let rows =
            [row(1, 1, "stdout", &euro[..2]), row(2, 1, "stderr", b"!"), row(3, 1, "stdout", &euro[2..])];
        assert_eq!(texts(&read(&rows, Cursor::default())), [("stderr", "!"), ("stdout", "€")]);
    }

    #[test]
    fn bytes_that_no_piece_completes_come_at_the_end_of_their_attempt() {
        let rows = [row(1, 1, "stdout", b"a\xe2\x82"), row(2, 2, "stdout", b"b\xf0")];
        let pieces = read(&rows, Cursor::default());
        assert_eq!(
            texts(&pieces),
            [("stdout", "a"), ("stdout", "\u{fffd}"), ("stdout", "b"), ("stdout", "\u{fffd}")]
        );
        let cursors: Vec<String> = pieces.iter().map(|piece| piece.cursor.to_string()).collect();
        assert_eq!(cursors, ["1", "1.1", "2", "2.1"]);
    }

    #[test]
    fn bytes_that_are_no_text_are_replaced_at_once() {
        let rows = [row(1, 1, "stdout", b"\xff\x80\x80\x80\x80")];
        assert_eq!(unfinished(b"\xff\x80"), 0);
        assert_eq!(read(&rows, Cursor::default()).len(), 1);
    }

    fn some_rows() -> impl Strategy<Value = Vec<LogRow>> {
        let bytes = proptest::collection::vec(
            proptest::sample::select("a€😀\u{301}".bytes().chain([0xff, 0xc3, 0xf0]).collect::<Vec<u8>>()),
            1..6,
        );
        let piece = (bytes, any::<bool>(), 0..10_u8);
        proptest::collection::vec(piece, 0..20).prop_map(|pieces| {
            let mut attempt = 1;
            let rows = pieces.into_iter().zip(1..).map(|((bytes, errors, luck), chunk)| {
                attempt += u32::from(luck == 0);
                row(chunk, attempt, if errors { "stderr" } else { "stdout" }, &bytes)
            });
            rows.collect()
        })
    }

    proptest! {
        #[test]
        fn joined_text_is_the_text_of_the_joined_bytes(rows in some_rows()) {
            let mut whole: BTreeMap<(u32, Stream), Vec<u8>> = BTreeMap::new();
            for row in &rows {
                whole.entry((row.attempt, stream(&row.stream))).or_default().extend(&row.bytes);
            }
            let mut joined: BTreeMap<(u32, Stream), String> = BTreeMap::new();
            for piece in read(&rows, Cursor::default()) {
                joined.entry((piece.line.attempt, piece.line.stream)).or_default().push_str(&piece.line.text);
            }
            for (key, bytes) in whole {
                prop_assert_eq!(joined.remove(&key).unwrap_or_default(), String::from_utf8_lossy(&bytes));
            }
        }

        #[test]
        fn a_reader_that_breaks_off_anywhere_goes_on_without_loss_or_repetition(rows in some_rows()) {
            let whole = read(&rows, Cursor::default());
            for (read_so_far, piece) in whole.iter().enumerate() {
                let rest = read(&rows, piece.cursor);
                prop_assert_eq!(&rest, &whole[read_so_far + 1..], "resumed at {}", piece.cursor);
            }
        }

        #[test]
        fn foreign_cursors_never_panic_and_real_ones_survive_their_text(
            text in "\\PC{0,24}", chunk in 0..i64::MAX, flushed in any::<u8>(),
        ) {
            let _ = text.parse::<Cursor>();
            let cursor = Cursor { chunk, flushed };
            prop_assert_eq!(cursor.to_string().parse(), Ok(cursor));
        }
    }
}
