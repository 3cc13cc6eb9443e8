//! Writing to stdout and stderr.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::{SystemTime, UNIX_EPOCH},
};

use nave_domain::Timestamp;
use serde::Serialize;

use super::failure::Failure;

/// What a shell reports for a program ended by SIGPIPE.
const BROKEN_PIPE: i32 = 141;

/// Writes `text` to stdout. Ends the program where nobody reads any more.
///
/// # Errors
/// [`Failure`] when it cannot be written.
pub fn print(text: &str) -> Result<(), Failure> {
    match write_out(text) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(BROKEN_PIPE),
        written => written.map_err(|error| Failure::local("write to stdout", &error.to_string(), "")),
    }
}

/// Writes `text` to stdout and flushes it.
///
/// # Errors
/// Those of the file behind stdout.
pub fn write_out(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Writes `value` as one line of JSON to stdout.
///
/// # Errors
/// As [`print`].
pub fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value)
        .map_err(|error| Failure::local("write an answer as JSON", &error.to_string(), ""))?;
    print(&format!("{text}\n"))
}

/// Tells a person something on stderr. There is nothing to do when that fails.
pub fn say(text: &str) {
    let _ = writeln!(io::stderr().lock(), "nave: {text}");
}

/// Writes `text` to stderr as it is.
pub fn write_err(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// Whether a person watches stderr.
#[must_use]
pub fn is_watched() -> bool {
    io::stderr().is_terminal()
}

/// The present, to show ages.
#[must_use]
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
