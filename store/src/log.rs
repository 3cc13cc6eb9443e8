//! Output of jobs.

use nave_crash_point::crash_point;
use nave_domain::{HostId, JobId, LeaseId, Timestamp};

use crate::{
    Result, Store, StoreError,
    notify::{Changes, announce},
};

/// What became of an appended piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// Bytes of the stream stored so far.
    pub next_offset: u64,
    /// Whether nothing more of it is kept.
    pub full: bool,
}

/// A piece of output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRow {
    /// Cursor.
    pub chunk: i64,
    /// When it came.
    pub at: Timestamp,
    /// Which attempt wrote it.
    pub attempt: u32,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// The bytes.
    pub bytes: Vec<u8>,
}

impl Store {
    /// Appends to a stream from `offset`. What overlaps is dropped; where a piece is
    /// missing nothing is stored, and the answer says from where to send again.
    ///
    /// The lease row is locked, so chunk ids within a lease follow the order of commits
    /// and a reader's cursor never skips one.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when the host holds no such lease, or not any more.
    pub async fn log_append(
        &self,
        host: HostId,
        lease: LeaseId,
        stream: &str,
        offset: u64,
        bytes: &[u8],
        bytes_max: u64,
    ) -> Result<Appended> {
        let mut tx = self.begin().await?;
        let job = sqlx::query_scalar!(
            "select job_id from leases where lease_id = $1 and host_id = $2 and state <> 'closed' for update",
            lease.0,
            host.0
        )
        .fetch_optional(&mut *tx)
        .await?
        .ok_or(StoreError::NotFound("lease"))?;
        let stored = sqlx::query_scalar!(
            r#"select byte_offset + length(bytes) as "stored!" from log_chunks
               where lease_id = $1 and stream = $2 order by byte_offset desc limit 1"#,
            lease.0,
            stream
        )
        .fetch_optional(&mut *tx)
        .await?
        .map_or(0, i64::cast_unsigned);
        let Some(fresh) = fresh(stored, offset, bytes, bytes_max) else {
            return Ok(Appended { next_offset: stored, full: stored >= bytes_max });
        };
        sqlx::query!(
            "insert into log_chunks (lease_id, stream, byte_offset, bytes) values ($1, $2, $3, $4)",
            lease.0,
            stream,
            stored.cast_signed(),
            fresh
        )
        .execute(&mut *tx)
        .await?;
        announce(&mut tx, Changes::Job(job.into())).await?;
        crash_point!("store.log_append.before_commit");
        tx.commit().await?;
        crash_point!("store.log_append.after_commit");
        let next_offset = stored.saturating_add(u64::try_from(fresh.len()).unwrap_or(u64::MAX));
        Ok(Appended { next_offset, full: next_offset >= bytes_max })
    }

    /// A job's output after a cursor, in order of arrival: at most `limit` pieces, and
    /// no more after the one that reaches 1 MiB.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn log_read(&self, job: JobId, after: i64, limit: i64) -> Result<Vec<LogRow>> {
        let rows = sqlx::query_as!(
            RawLog,
            "select c.chunk_id, c.at_ms, l.attempt, c.stream, c.bytes
             from (select c.chunk_id, sum(length(c.bytes)) over (order by c.chunk_id) - length(c.bytes) as ahead
                   from log_chunks c join leases l using (lease_id)
                   where l.job_id = $1 and c.chunk_id > $2 order by c.chunk_id limit $3) p
             join log_chunks c using (chunk_id) join leases l using (lease_id)
             where p.ahead < $4 order by c.chunk_id",
            job.0,
            after,
            limit,
            READ_BYTES_MAX
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(rows.into_iter().map(RawLog::read).collect())
    }

    /// The last bytes, at most three, of the last pieces, at most three, of each of a job's
    /// streams up to a cursor: what a reader that goes on from there needs to join a
    /// character that was cut in two.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn log_tails(&self, job: JobId, cursor: i64) -> Result<Vec<LogRow>> {
        let rows = sqlx::query_as!(
            RawLog,
            r#"select c.chunk_id, c.at_ms, l.attempt, c.stream,
                    substring(c.bytes from greatest(1, length(c.bytes) - 2)) as "bytes!"
               from leases l cross join unnest(array['stdout', 'stderr']) as s (stream)
               cross join lateral (
                   select * from log_chunks c
                   where c.lease_id = l.lease_id and c.stream = s.stream and c.chunk_id <= $2
                   order by c.byte_offset desc limit 3
               ) c
               where l.job_id = $1 order by c.chunk_id"#,
            job.0,
            cursor
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(rows.into_iter().map(RawLog::read).collect())
    }

    /// The cursor after which a job's output came at `since` or later.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn log_since(&self, job: JobId, since: Timestamp) -> Result<i64> {
        Ok(sqlx::query_scalar!(
            r#"select coalesce(max(c.chunk_id), 0) as "cursor!"
               from log_chunks c join leases l using (lease_id) where l.job_id = $1 and c.at_ms < $2"#,
            job.0,
            since.0
        )
        .fetch_one(&self.pool)
        .await?)
    }

    /// The cursor after which the newest `pieces` of a job's output follow.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn log_tail(&self, job: JobId, pieces: u32) -> Result<i64> {
        let cursor = sqlx::query_scalar!(
            "select c.chunk_id from log_chunks c join leases l using (lease_id)
             where l.job_id = $1 order by c.chunk_id desc offset $2 limit 1",
            job.0,
            i64::from(pieces)
        )
        .fetch_optional(&self.pool)
        .await?;
        Ok(cursor.unwrap_or(0))
    }
}

/// Most bytes that one read returns, but for the last piece.
const READ_BYTES_MAX: i64 = 1 << 20;

struct RawLog {
    chunk_id: i64,
    at_ms: i64,
    attempt: i32,
    stream: String,
    bytes: Vec<u8>,
}

impl RawLog {
    fn read(self) -> LogRow {
        LogRow {
            chunk: self.chunk_id,
            at: Timestamp(self.at_ms),
            attempt: self.attempt.unsigned_abs(),
            stream: self.stream,
            bytes: self.bytes,
        }
    }
}

/// The part of a piece that is new and within the bound; `None` when there is none.
fn fresh(stored: u64, offset: u64, bytes: &[u8], bytes_max: u64) -> Option<&[u8]> {
    let skip = usize::try_from(stored.checked_sub(offset)?).ok()?;
    let room = usize::try_from(bytes_max.saturating_sub(stored)).unwrap_or(usize::MAX);
    let rest = bytes.get(skip..)?;
    let kept = &rest[..rest.len().min(room)];
    (!kept.is_empty()).then_some(kept)
}

#[cfg(test)]
mod tests {
    use super::fresh;

    #[test]
    fn only_what_is_new_and_fits_is_kept() {
        assert_eq!(fresh(0, 0, b"abc", 10), Some(&b"abc"[..]));
        assert_eq!(fresh(2, 0, b"abc", 10), Some(&b"c"[..]), "an overlap is dropped");
        assert_eq!(fresh(0, 5, b"abc", 10), None, "a gap is refused");
        assert_eq!(fresh(3, 0, b"abc", 10), None, "a repetition is dropped");
        assert_eq!(fresh(9, 9, b"abc", 10), Some(&b"a"[..]), "the bound holds");
    }
}
