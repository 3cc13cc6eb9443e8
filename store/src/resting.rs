//! What speaks against renting: machines that came to nothing, clouds that nobody looks after, and a banned platform.

use std::collections::{BTreeMap, BTreeSet};

use nave_domain::{MicroUsd, Millis, Timestamp};
use uuid::Uuid;

use crate::{Result, Store, ban::BanRow};

/// The end of a machine that was wanted: one that worked, or that came to nothing for a reason that lies with its cloud.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineEnd {
    /// Where it was.
    pub cloud: String,
    /// The cloud's id of what it was.
    pub offer: String,
    /// Where, in the cloud's words.
    pub region: String,
    /// When it was decided that it goes back, or never was.
    pub at: Timestamp,
    /// What it has cost so far at the most.
    pub cost: MicroUsd,
    /// Whether it ever had a lease.
    pub has_worked: bool,
}

/// A cloud that machines are rented from, or were.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloudRow {
    /// Its name.
    pub cloud: String,
    /// When its machines were last looked after.
    pub looked_at: Option<Timestamp>,
    /// When an operator said that it may be rented from again.
    pub resumed_at: Option<Timestamp>,
    /// Why no machine is rented there now, in a sentence.
    pub stop: Option<String>,
    /// How many of its machines are not closed.
    pub open: u64,
    /// Whether some scheduler has it in its file and looks after its machines.
    pub is_kept: bool,
}

/// How long ago a scheduler may have begun its last look at a cloud that it keeps: one that is slow is still there.
const KEPT_MS: i64 = 600_000;

impl Store {
    /// Machines that ended within `lately`, the latest first: those that had leases, and those that came to nothing. What
    /// was let go before it cost anything, or because its job was over or found another place, is neither.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn machine_ends(&self, lately: Millis) -> Result<Vec<MachineEnd>> {
        let rows = sqlx::query!(
            r#"select * from (
                   select m.cloud, coalesce(m.known #>> '{offer,0}', '') as "offer!",
                       coalesce(m.known #>> '{offer,1}', '') as "region!",
                       m.ended_at_ms as "ended_at_ms!", m.cost, m.machine_id,
                       exists (select from leases l where l.host_id = m.host_id) as "has_worked!",
                       m.ending not in ('released', 'idle') or m.cost > 0 and (
                           exists (select from hosts h where h.host_id = m.host_id and h.refusals > 0)
                           or coalesce(j.finished_at_ms > m.ended_at_ms, true) and not exists (
                               select from leases l where l.job_id = m.job_id
                                   and l.placed_at_ms between m.made_at_ms and m.ended_at_ms)
                       ) as is_failure
                   from machines m join jobs j using (job_id) where m.ended_at_ms > now_ms() - $1::bigint) ends
               where "has_worked!" or is_failure order by "ended_at_ms!" desc, machine_id desc"#,
            lately.0
        );
        let ends = rows.fetch_all(&self.pool).await?.into_iter().map(|row| MachineEnd {
            cloud: row.cloud,
            offer: row.offer,
            region: row.region,
            at: Timestamp(row.ended_at_ms),
            cost: MicroUsd(row.cost),
            has_worked: row.has_worked,
        });
        Ok(ends.collect())
    }

    /// Clouds that are looked after or have machines that are not closed.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn cloud_list(&self) -> Result<Vec<CloudRow>> {
        let rows = sqlx::query!(
            r#"select cloud as "cloud!", c.looked_at_ms as "looked_at_ms?", c.resumed_at_ms as "resumed_at_ms?", c.stop as "stop?",
                    coalesce(m.open, 0) as "open!",
                    exists (select from cloud_keepers k
                            where k.cloud = coalesce(c.cloud, m.cloud) and k.kept_at_ms > now_ms() - $1::bigint) as "is_kept!"
               from clouds c full join (
                   select cloud, count(*) as open from machines where not is_closed group by cloud) m using (cloud)
               order by cloud"#,
            KEPT_MS
        );
        let clouds = rows.fetch_all(&self.pool).await?.into_iter().map(|row| CloudRow {
            cloud: row.cloud,
            looked_at: row.looked_at_ms.map(Timestamp),
            resumed_at: row.resumed_at_ms.map(Timestamp),
            stop: row.stop,
            open: row.open.cast_unsigned(),
            is_kept: row.is_kept,
        });
        Ok(clouds.collect())
    }

    /// Notes that the scheduler of a platform's hotkey keeps a cloud.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn cloud_kept(&self, cloud: &str, hotkey: &str) -> Result<()> {
        sqlx::query!(
            "insert into cloud_keepers (cloud, hotkey, kept_at_ms) values ($1, $2, now_ms())
             on conflict (cloud, hotkey) do update set kept_at_ms = excluded.kept_at_ms",
            cloud,
            hotkey
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Machines of a cloud that another hotkey than this one wants, that were not asked for yet, and whose own keeper is there.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn machines_of_others(&self, cloud: &str, hotkey: &str) -> Result<BTreeSet<Uuid>> {
        let others = sqlx::query_scalar!(
            "select machine_id from machines join cloud_keepers using (cloud, hotkey)
             where cloud = $1 and hotkey <> $2 and not is_closed and asked_at_ms is null
               and kept_at_ms > now_ms() - $3::bigint",
            cloud,
            hotkey,
            KEPT_MS
        );
        Ok(others.fetch_all(&self.pool).await?.into_iter().collect())
    }

    /// Notes that a cloud's machines were looked after.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn cloud_looked(&self, cloud: &str) -> Result<()> {
        sqlx::query!(
            "insert into clouds (cloud, looked_at_ms) values ($1, now_ms())
             on conflict (cloud) do update set looked_at_ms = excluded.looked_at_ms",
            cloud
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Notes why no machine is rented of a cloud now; false where that was written already.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn cloud_stop(&self, cloud: &str, stop: Option<&str>) -> Result<bool> {
        let done = sqlx::query!(
            "insert into clouds (cloud, stop) values ($1, $2)
             on conflict (cloud) do update set stop = excluded.stop where clouds.stop is distinct from excluded.stop",
            cloud,
            stop
        );
        Ok(done.execute(&self.pool).await?.rows_affected() > 0)
    }

    /// An operator's word that a cloud may be rented from again, whatever came of its machines until now.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn cloud_resume(&self, cloud: &str) -> Result<()> {
        sqlx::query!(
            "insert into clouds (cloud, resumed_at_ms) values ($1, now_ms())
             on conflict (cloud) do update set resumed_at_ms = excluded.resumed_at_ms",
            cloud
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// The ban that keeps a miner from renting: the longest that came from a host of theirs which is no rented machine.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn ban_of_miner(&self, hotkey: &str) -> Result<Option<BanRow>> {
        let row = sqlx::query!(
            r#"select challenge_id, host_id, code, message, since_ms, until_up_ms - control_ms() as "left_ms!" from bans b
               where hotkey = $1 and lifted_at_ms is null and until_up_ms > control_ms()
                   and not exists (select from machines m where m.host_id = b.host_id)
               order by until_up_ms desc limit 1"#,
            hotkey
        );
        Ok(row.fetch_optional(&self.pool).await?.map(|row| BanRow {
            challenge: row.challenge_id.into(),
            host: row.host_id.into(),
            code: row.code,
            message: row.message,
            since: Timestamp(row.since_ms),
            left: Some(Millis(row.left_ms)),
        }))
    }

    /// What jobs on these machines were charged, refunds left out; those without charges are missing.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn machines_charged(&self, machines: &[Uuid]) -> Result<BTreeMap<Uuid, MicroUsd>> {
        let rows = sqlx::query!(
            r#"select m.machine_id, sum(l.charged)::bigint as "charged!" from machines m join leases l using (host_id)
               where m.machine_id = any($1) group by m.machine_id having sum(l.charged) > 0"#,
            machines
        );
        let rows = rows.fetch_all(&self.pool).await?.into_iter();
        Ok(rows.map(|row| (row.machine_id, MicroUsd(row.charged))).collect())
    }

    /// Whose ticket a machine boots with; none where it only turned up.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn machine_signer(&self, machine: Uuid) -> Result<Option<String>> {
        let hotkey = sqlx::query_scalar!("select hotkey from machines where machine_id = $1", machine);
        Ok(hotkey.fetch_optional(&self.pool).await?.flatten())
    }
}
