//! For how long what hosts have shown is kept, and the challenges themselves.
//!
//! Each challenge has a moment when it is seen next whether something of it can go, so a sweep
//! reads what is due and nothing else. What decisions count, such as failures in a row and bans, is not
//! counted from challenges.

use sqlx::PgConnection;
use uuid::Uuid;

use crate::{Result, Store, ban};

/// For how long every opening is kept.
pub(crate) const KEPT_MS: i64 = 3_600_000;
/// How many openings of each kind are kept of a host that is there, whatever came of them.
const KEPT_OF_KIND: i64 = 2;
/// How many openings are kept of what a host failed, over all kinds.
const KEPT_FAILED: i64 = 16;
/// For how long openings are kept of what was failed.
const FAILED_MS: i64 = 30 * 86_400_000;
/// How many challenges of each kind are kept of a host that is there, however old.
const LISTED_OF_KIND: i64 = 20;
/// For how long challenges are kept that were passed, or void.
const LISTED_MS: i64 = 30 * 86_400_000;
/// For how long challenges are kept that were failed.
const LISTED_FAILED_MS: i64 = 180 * 86_400_000;
/// Longest time until an opening that is kept is looked at again.
const AGAIN_MS: i64 = 86_400_000;

/// What a sweep has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// How many challenges it has looked at.
    pub seen: usize,
    /// Of how many of them the openings went.
    pub forgotten: usize,
    /// How many went as a whole.
    pub deleted: usize,
}

impl Store {
    /// Removes openings and challenges that nobody needs any more; looks at `limit` challenges at most.
    ///
    /// Openings are kept for an hour; of a host that is there, the last two of each kind; and for 30
    /// days what was failed, the newest 16 of a host. Challenges with their exchanges are kept for 30 days, and for 180
    /// those that were failed; of a host that is there, the last 20 of each kind, and the last one that its GPUs passed when they
    /// were free; and as long as an appeal is open or something rests on them: a ban that counts, a refusal, a doubt, an open lease.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn evidence_sweep(&self, limit: i64) -> Result<Swept> {
        let mut tx = self.begin().await?;
        let rows = sqlx::query!(
            r#"with due as (
                select c.challenge_id, c.host_id, c.kind, c.lease_id, c.forgotten_at_ms, h.state in ('gone', 'banned') as away,
                    c.code not in ('passed', 'void') as failed, now_ms() - c.decided_at_ms as age_ms,
                    c.appealed_at_ms is not null and c.appeal is null as appealed
                from challenges c join hosts h using (host_id)
                where c.sweep_at_ms <= now_ms() order by c.sweep_at_ms limit $1 for update of c skip locked)
               select d.challenge_id, d.forgotten_at_ms is not null as "forgotten!",
                    not d.appealed and d.age_ms >= $2
                    and (d.away or (select count(*) from (
                        select from challenges n where n.host_id = d.host_id and n.kind = d.kind
                            and n.challenge_id > d.challenge_id and n.verdict is not null limit $3) n) >= $3)
                    and (not d.failed or d.age_ms >= $4 or (select count(*) from (
                        select from challenges n where n.host_id = d.host_id and n.code not in ('passed', 'void')
                            and n.challenge_id > d.challenge_id limit $5) n) >= $5) as "shown!",
                    not d.appealed and d.age_ms >= case when d.failed then $6::bigint else $7::bigint end
                    and (d.away or (select count(*) from (
                        select from challenges n where n.host_id = d.host_id and n.kind = d.kind
                            and n.challenge_id > d.challenge_id and n.verdict is not null limit $8) n) >= $8)
                    and (d.away or d.failed or d.kind <> 'devices' or d.lease_id is not null or exists (
                        select from challenges n where n.host_id = d.host_id and n.kind = d.kind and n.lease_id is null
                            and n.challenge_id > d.challenge_id and n.code = 'passed'))
                    and not exists (select from leases l where l.lease_id = d.lease_id and l.state <> 'closed')
                    and not exists (select from hosts h where h.doubted_by = d.challenge_id and h.doubt is not null)
                    and not exists (select from hosts h where h.refused_by = d.challenge_id and h.state = 'refused')
                    and not exists (select from bans b where b.challenge_id = d.challenge_id and b.lifted_at_ms is null
                        and greatest(b.until_up_ms, b.since_up_ms + $9) > control_ms()) as "listed!"
               from due d"#,
            limit,
            KEPT_MS,
            KEPT_OF_KIND,
            FAILED_MS,
            KEPT_FAILED,
            LISTED_FAILED_MS,
            LISTED_MS,
            LISTED_OF_KIND,
            ban::REMEMBERED_MS
        )
        .fetch_all(&mut *tx)
        .await?;
        let ids: Vec<Uuid> = rows.iter().map(|row| row.challenge_id).collect();
        let gone: Vec<Uuid> = rows.iter().filter(|row| row.listed).map(|row| row.challenge_id).collect();
        let shown: Vec<Uuid> = rows
            .iter()
            .filter(|row| row.shown && !row.forgotten && !row.listed)
            .map(|row| row.challenge_id)
            .collect();
        forget(&mut tx, &shown).await?;
        delete(&mut tx, &gone).await?;
        keep(&mut tx, &ids).await?;
        tx.commit().await?;
        Ok(Swept { seen: ids.len(), forgotten: shown.len(), deleted: gone.len() })
    }
}

/// Removes openings; verdicts, times and commitments stay.
async fn forget(tx: &mut PgConnection, challenges: &[Uuid]) -> Result<()> {
    sqlx::query!(
        "update challenge_steps set answer = jsonb_build_object('forgotten', true)
         where challenge_id = any($1) and answer ? 'opening'",
        challenges
    )
    .execute(&mut *tx)
    .await?;
    sqlx::query!("update challenges set forgotten_at_ms = now_ms() where challenge_id = any($1)", challenges)
        .execute(tx)
        .await?;
    Ok(())
}

async fn delete(tx: &mut PgConnection, challenges: &[Uuid]) -> Result<()> {
    sqlx::query!("delete from challenge_looks where challenge_id = any($1)", challenges)
        .execute(&mut *tx)
        .await?;
    sqlx::query!("delete from challenge_steps where challenge_id = any($1)", challenges)
        .execute(&mut *tx)
        .await?;
    sqlx::query!("delete from transfers where challenge_id = any($1)", challenges).execute(&mut *tx).await?;
    sqlx::query!("delete from bans where challenge_id = any($1)", challenges).execute(&mut *tx).await?;
    sqlx::query!("delete from challenges where challenge_id = any($1)", challenges).execute(tx).await?;
    Ok(())
}

/// Sets when those that are still there are looked at again: with an opening, the later the older it is;
/// without, when its time is over, and then the later the older it is.
async fn keep(tx: &mut PgConnection, challenges: &[Uuid]) -> Result<()> {
    sqlx::query!(
        "update challenges c set sweep_at_ms = case
                when forgotten_at_ms is null then now_ms() + least($2::bigint, greatest($3::bigint, age.ms / 2))
                else greatest(decided_at_ms + age.least_ms, now_ms() + age.ms / 2) end
         from (select challenge_id, now_ms() - decided_at_ms as ms,
                case when code in ('passed', 'void') then $4::bigint else $5::bigint end as least_ms
               from challenges where challenge_id = any($1)) age
         where c.challenge_id = age.challenge_id",
        challenges,
        AGAIN_MS,
        KEPT_MS,
        LISTED_MS,
        LISTED_FAILED_MS
    )
    .execute(tx)
    .await?;
    Ok(())
}
