//! Sends logs: each stream of each lease is a sequence of bytes, and the control
//! plane says how many of them it has. Whatever was lost on either side, sending
//! goes on from there.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::StreamExt as _;
use nave_crash_point::crash_point;
use nave_domain::LeaseId;
use nave_sdk::wire::host::{LOG_BYTES_MAX, LOG_CHUNK_BYTES_MAX, LogAck, Stream};
use tokio::time::Instant;

use crate::{
    backoff::Backoff,
    endpoint::{CallError, ControlPlane},
    runtime::{Logs, Runtime},
};

/// Output waits this long for more, so that many small writes are one call.
const GATHER: Duration = Duration::from_millis(40);
/// Pause before the output is read again from its beginning.
const AGAIN: Duration = Duration::from_secs(2);

/// How one pass over the output ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Pass {
    /// Everything there was has been acknowledged.
    Sent,
    /// Nothing more is wanted: it is kept in full or no longer taken.
    Enough,
    /// What is still wanted must be read again from its beginning.
    Again,
}

/// Sends the output of a running lease until nothing more of it is wanted.
/// The caller ends it when the lease ends.
pub(super) async fn follow(plane: Arc<ControlPlane>, runtime: Arc<Runtime>, lease: LeaseId) {
    while Forward::pass(&plane, &runtime, lease, true).await != Pass::Enough {
        tokio::time::sleep(AGAIN).await;
    }
}

/// Sends what is left of the output of an ended lease.
pub(super) async fn finish(plane: &ControlPlane, runtime: &Runtime, lease: LeaseId) {
    let mut backoff = Backoff::default();
    while Forward::pass(plane, runtime, lease, false).await == Pass::Again {
        backoff.wait().await;
    }
}

struct Forward<'a> {
    plane: &'a ControlPlane,
    lease: LeaseId,
    cursors: [Cursor; 2],
}

impl Forward<'_> {
    /// Reads the output from its beginning and sends what the control plane lacks.
    pub(super) async fn pass(plane: &ControlPlane, runtime: &Runtime, lease: LeaseId, follow: bool) -> Pass {
        let cursors = [Cursor::new(Stream::Stdout), Cursor::new(Stream::Stderr)];
        let mut forward = Forward { plane, lease, cursors };
        match forward.run(runtime, follow).await {
            Ok(()) => Pass::Sent,
            Err(pass) => pass,
        }
    }

    async fn run(&mut self, runtime: &Runtime, follow: bool) -> Result<(), Pass> {
        for index in 0..self.cursors.len() {
            // Without bytes, the answer is where to go on.
            self.send(index, true).await?;
        }
        let wanted = self.wanted();
        let mut logs = runtime.logs(self.lease, follow, &wanted);
        loop {
            self.enough()?;
            if self.wanted() != wanted {
                // The rest of a full stream is not even read: it may be a flood.
                return Err(Pass::Again);
            }
            let Some(piece) = self.gather(&mut logs).await? else {
                return self.flush().await;
            };
            let index = usize::from(piece.0 == Stream::Stderr);
            self.cursors[index].push(&piece.1);
            crash_point!("agent.log.before_send");
            if self.cursors[index].is_heavy() {
                self.send(index, false).await?;
            }
        }
    }

    /// The next piece of output; what has gathered is sent while none comes.
    async fn gather(&mut self, logs: &mut Logs) -> Result<Option<(Stream, Bytes)>, Pass> {
        let mut deadline = self.has_gathered().then(|| Instant::now() + GATHER);
        loop {
            let wait = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                piece = logs.next() => return match piece {
                    None => Ok(None),
                    Some(Ok(piece)) => Ok(Some(piece)),
                    Some(Err(error)) => {
                        tracing::info!(error = format!("{error:#}"), "the output cannot be read now");
                        Err(Pass::Again)
                    }
                },
                () = wait => {
                    self.flush().await?;
                    deadline = None;
                }
            }
        }
    }

    fn has_gathered(&self) -> bool {
        self.cursors.iter().any(|cursor| !cursor.gathered.is_empty())
    }

    fn wanted(&self) -> Vec<Stream> {
        self.cursors.iter().filter(|cursor| !cursor.full).map(|cursor| cursor.stream).collect()
    }

    fn enough(&self) -> Result<(), Pass> {
        if self.cursors.iter().all(|cursor| cursor.full) { Err(Pass::Enough) } else { Ok(()) }
    }

    async fn flush(&mut self) -> Result<(), Pass> {
        for index in 0..self.cursors.len() {
            self.send(index, false).await?;
        }
        Ok(())
    }

    /// Sends what has gathered of one stream until it is acknowledged.
    async fn send(&mut self, index: usize, ask: bool) -> Result<(), Pass> {
        let mut backoff = Backoff::default();
        let cursor = &mut self.cursors[index];
        let mut ask = ask;
        while ask || !cursor.gathered.is_empty() {
            let chunk = cursor.chunk();
            match self.plane.log(self.lease, cursor.stream, cursor.next, chunk).await {
                Ok(ack) if cursor.take(&ack)? || ask => ask = false,
                Ok(_) => backoff.wait().await,
                Err(CallError::Away(reason)) => {
                    tracing::debug!(%reason, "a piece of a log waits");
                    backoff.wait().await;
                }
                Err(error @ (CallError::Refused { .. } | CallError::Unknown)) => {
                    tracing::info!(%error, "no more of this log is taken");
                    return Err(Pass::Enough);
                }
            }
        }
        Ok(())
    }
}

/// How far one stream has been read and sent.
struct Cursor {
    stream: Stream,
    /// Bytes that the control plane has: where `gathered` begins.
    next: u64,
    /// Bytes read in this pass.
    read: u64,
    /// Bytes read and not yet acknowledged.
    gathered: Vec<u8>,
    /// Nothing more is kept of this stream.
    full: bool,
}

impl Cursor {
    fn new(stream: Stream) -> Self {
        Self { stream, next: 0, read: 0, gathered: Vec::new(), full: false }
    }

    /// Takes in the next bytes that were read; those the control plane has are dropped.
    fn push(&mut self, bytes: &[u8]) {
        let wanted = self.next + self.gathered.len() as u64;
        let skip = usize::try_from(wanted.saturating_sub(self.read)).unwrap_or(usize::MAX);
        self.read += bytes.len() as u64;
        if let (false, Some(new)) = (self.full, bytes.get(skip..)) {
            self.gathered.extend_from_slice(new);
        }
    }

    fn is_heavy(&self) -> bool {
        self.gathered.len() >= LOG_CHUNK_BYTES_MAX
    }

    fn chunk(&self) -> Bytes {
        Bytes::copy_from_slice(&self.gathered[..self.gathered.len().min(LOG_CHUNK_BYTES_MAX)])
    }

    /// Takes in what the control plane has now. Answers whether that is progress.
    fn take(&mut self, ack: &LogAck) -> Result<bool, Pass> {
        if ack.next_offset < self.next {
            // It has lost bytes that are no longer at hand.
            return Err(Pass::Again);
        }
        let gained = ack.next_offset - self.next;
        let kept = usize::try_from(gained).unwrap_or(usize::MAX).min(self.gathered.len());
        self.gathered.drain(..kept);
        self.next = ack.next_offset;
        // What is kept in full may only be said so when more is offered; the bound is known.
        let full = ack.full || ack.next_offset >= LOG_BYTES_MAX;
        if full {
            self.full = true;
            self.gathered = Vec::new();
        }
        Ok(gained > 0 || full)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ack(next_offset: u64) -> LogAck {
        LogAck { next_offset, full: false }
    }

    #[test]
    fn after_a_restart_only_what_is_missing_is_sent() {
        let mut cursor = Cursor::new(Stream::Stdout);
        cursor.take(&ack(5)).expect("in order");
        cursor.push(b"abc");
        cursor.push(b"defgh");
        assert_eq!((cursor.next, cursor.chunk().as_ref()), (5, &b"fgh"[..]));
    }

    #[test]
    fn a_piece_that_was_kept_in_part_is_continued() {
        let mut cursor = Cursor::new(Stream::Stdout);
        cursor.push(b"abcdef");
        assert_eq!(cursor.take(&ack(2)), Ok(true));
        assert_eq!(cursor.chunk().as_ref(), b"cdef");
        assert_eq!(cursor.take(&ack(2)), Ok(false));
        assert_eq!(cursor.take(&ack(9)), Ok(true));
        cursor.push(b"ghijk");
        assert_eq!(cursor.chunk().as_ref(), b"jk");
    }

    #[test]
    fn a_control_plane_that_lost_bytes_is_served_from_the_beginning() {
        let mut cursor = Cursor::new(Stream::Stderr);
        cursor.take(&ack(5)).expect("in order");
        assert_eq!(cursor.take(&ack(3)), Err(Pass::Again));
    }

    #[test]
    fn a_full_log_takes_no_more_memory() {
        let mut cursor = Cursor::new(Stream::Stdout);
        cursor.push(b"abc");
        cursor.take(&LogAck { next_offset: 1, full: true }).expect("in order");
        cursor.push(b"more");
        assert!(cursor.gathered.is_empty());
    }

    #[test]
    fn a_log_that_has_reached_its_bound_is_full_without_being_told() {
        let mut cursor = Cursor::new(Stream::Stdout);
        cursor.take(&ack(LOG_BYTES_MAX - 1)).expect("in order");
        assert!(!cursor.full);
        assert_eq!(cursor.take(&ack(LOG_BYTES_MAX)), Ok(true));
        assert!(cursor.full);
    }
}
