//! Verdicts: what was tested of a host and what came of it, for whoever wants to know, and
//! judged again where its owner objects.

use std::{collections::BTreeMap, sync::Arc};

use nave_domain::{
    ChallengeId, HostId, LeaseId, Millis, Timestamp,
    host::{Device, ProvenDevice},
    verdict::{Cause, Kind},
};
use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    Result, Store, StoreError, ban, dispute, error, host as hosts,
    notify::{Changes, announce},
};

/// A challenge of a host with what came of it, if it is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerdictRow {
    /// Its id; ids sort by age.
    pub challenge: ChallengeId,
    /// What was tested.
    pub kind: Kind,
    /// Why.
    pub cause: Cause,
    /// Whether it meant nothing for the host.
    pub shadow: bool,
    /// The window in which it was drawn.
    pub window: Option<Uuid>,
    /// The lease beside which the host was tested.
    pub lease: Option<LeaseId>,
    /// What the host was asked to do.
    pub body: Value,
    /// The GPUs that the host claimed then.
    pub claimed: Vec<Device>,
    /// When it was drawn.
    pub drawn_at: Timestamp,
    /// What was sent and what came back, in order.
    pub exchanges: Vec<ExchangeRow>,
    /// What came of it, and when that was written down.
    pub verdict: Option<(Value, Timestamp)>,
    /// The same for programs: `passed`, `void`, or why it failed.
    pub code: Option<String>,
    /// When its openings were removed; until then it can be judged again.
    pub forgotten_at: Option<Timestamp>,
    /// When its owner objected, and what came of that.
    pub appeal: Option<(Timestamp, Option<Value>)>,
    /// The ban that followed from it.
    pub ban: Option<VerdictBan>,
    /// The host's GPUs, as they are proven by now.
    pub devices: Arc<BTreeMap<String, ProvenDevice>>,
}

/// A ban, as its verdict shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerdictBan {
    /// How long it is, on the control clock.
    pub span: Millis,
    /// Whether it is over or was taken back.
    pub is_over: bool,
    /// By whom it was taken back: `appeal` or `operator`.
    pub lifted_by: Option<String>,
}

/// One exchange of a challenge, without the bytes of openings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExchangeRow {
    /// The nonce that was sent, hexadecimal; none for the first, which sent the challenge.
    pub reveal: Option<String>,
    /// When it was first handed to the host.
    pub sent_at: Option<Timestamp>,
    /// When the answer was complete.
    pub answered_at: Option<Timestamp>,
    /// What the host committed to, hexadecimal, if that was its answer.
    pub commitment: Option<String>,
    /// The blob with its opening, hexadecimal, if that was its answer.
    pub blob: Option<String>,
    /// Whether its opening is part of the answer itself.
    pub is_inline: bool,
    /// Why the host gave up, if that was its answer.
    pub gave_up: Option<Value>,
}

/// Which challenges of a host are wanted, the newest first.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    host: HostId,
    before: Option<ChallengeId>,
    one: Option<ChallengeId>,
    decided: bool,
    limit: i64,
}

/// What came of a wish to have a verdict reached again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Appeal {
    /// It will be.
    Taken,
    /// The host did not fail, or not yet, or it meant nothing for it.
    NotFailed,
    /// It was, once.
    Again,
    /// What it was reached from is not kept any more.
    Forgotten,
}

impl Store {
    /// The challenges of a host, the newest first: those drawn before `before`, `limit` at most.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn verdicts_of_host(
        &self,
        host: HostId,
        before: Option<ChallengeId>,
        limit: u16,
    ) -> Result<Vec<VerdictRow>> {
        self.verdict_select(Wanted { host, before, one: None, decided: false, limit: i64::from(limit) }).await
    }

    /// As [`Self::verdicts_of_host`], without challenges that have no verdict yet.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn verdict_list(
        &self,
        host: HostId,
        before: Option<ChallengeId>,
        limit: i64,
    ) -> Result<Vec<VerdictRow>> {
        self.verdict_select(Wanted { host, before, one: None, decided: true, limit }).await
    }

    /// A challenge of a host that has its verdict.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when there is none.
    pub async fn verdict_get(&self, host: HostId, challenge: ChallengeId) -> Result<VerdictRow> {
        let wanted = Wanted { host, before: None, one: Some(challenge), decided: true, limit: 1 };
        self.verdict_select(wanted).await?.pop().ok_or(StoreError::NotFound("verdict"))
    }

    /// The opening of a challenge of a host that has its verdict, as the host sent it, while it is kept.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn verdict_opening(&self, host: HostId, challenge: ChallengeId) -> Result<Option<Value>> {
        let opening = sqlx::query_scalar!(
            r#"select s.answer -> 'opening' as "opening!" from challenges c join challenge_steps s using (challenge_id)
               where c.challenge_id = $2 and c.host_id = $1 and c.verdict is not null and s.answer ? 'opening'
               order by s.step desc limit 1"#,
            host.0,
            challenge.0
        );
        Ok(opening.fetch_optional(&self.pool).await?)
    }

    async fn verdict_select(&self, wanted: Wanted) -> Result<Vec<VerdictRow>> {
        let rows = sqlx::query!(
            r#"select c.challenge_id, c.kind, c.cause, c.shadow, c.window_id as "window_id?", c.lease_id as "lease_id?",
                    c.challenge, c.claims -> 'devices' as "claimed!", c.drawn_at_ms, c.verdict, c.decided_at_ms, c.code,
                    c.forgotten_at_ms, c.appealed_at_ms, c.appeal, b.until_up_ms - b.since_up_ms as "ban_ms?",
                    b.until_up_ms <= control_ms() as "ban_over?", b.lifted_by as "lifted_by?"
               from challenges c left join bans b using (challenge_id)
               where c.host_id = $1 and ($2::uuid is null or c.challenge_id < $2)
                   and ($4::uuid is null or c.challenge_id = $4) and (c.verdict is not null or not $5::bool)
               order by c.challenge_id desc limit $3"#,
            wanted.host.0,
            wanted.before.map(|before| before.0),
            wanted.limit,
            wanted.one.map(|one| one.0),
            wanted.decided
        )
        .fetch_all(&self.pool)
        .await?;
        let ids: Vec<Uuid> = rows.iter().map(|row| row.challenge_id).collect();
        let mut exchanges = self.exchanges(&ids).await?;
        let devices = Arc::new(self.proven_devices(wanted.host).await?);
        let rows = rows.into_iter().map(|row| {
            let is_over = row.ban_over.unwrap_or_default() || row.lifted_by.is_some();
            let ban = row.ban_ms.map(|ms| VerdictBan { span: Millis(ms), is_over, lifted_by: row.lifted_by });
            Ok(VerdictRow {
                challenge: row.challenge_id.into(),
                kind: error::read_name("a kind of test", row.kind)?,
                cause: error::read_name("the cause of a test", row.cause)?,
                shadow: row.shadow,
                window: row.window_id,
                lease: row.lease_id.map(LeaseId),
                body: row.challenge,
                claimed: error::read_json("claimed devices", row.claimed)?,
                drawn_at: Timestamp(row.drawn_at_ms),
                exchanges: exchanges.remove(&row.challenge_id).unwrap_or_default(),
                verdict: row.verdict.zip(row.decided_at_ms.map(Timestamp)),
                code: row.code,
                forgotten_at: row.forgotten_at_ms.map(Timestamp),
                appeal: row.appealed_at_ms.map(|at| (Timestamp(at), row.appeal)),
                ban,
                devices: devices.clone(),
            })
        });
        rows.collect()
    }

    async fn proven_devices(&self, host: HostId) -> Result<BTreeMap<String, ProvenDevice>> {
        let devices = sqlx::query_scalar!(
            r#"select proven -> 'devices' as "devices!" from hosts where host_id = $1 and proven -> 'devices' <> 'null'"#,
            host.0
        );
        let devices = devices.fetch_optional(&self.pool).await?;
        let devices = devices.map(|devices| error::read_json("proven devices", devices)).transpose()?;
        Ok(devices.unwrap_or_default())
    }

    async fn exchanges(&self, challenges: &[Uuid]) -> Result<BTreeMap<Uuid, Vec<ExchangeRow>>> {
        let rows = sqlx::query!(
            r#"select challenge_id, reveal, sent_at_ms, answered_at_ms, answer ->> 'commitment' as commitment,
                    answer #>> '{opening,blob,sha256}' as blob, answer -> 'failed' as gave_up,
                    coalesce(answer -> 'opening' ? 'inline', false) as "is_inline!"
               from challenge_steps where challenge_id = any($1) order by step"#,
            challenges
        )
        .fetch_all(&self.pool)
        .await?;
        let mut exchanges: BTreeMap<Uuid, Vec<ExchangeRow>> = BTreeMap::new();
        for row in rows {
            exchanges.entry(row.challenge_id).or_default().push(ExchangeRow {
                reveal: row.reveal,
                sent_at: row.sent_at_ms.map(Timestamp),
                answered_at: row.answered_at_ms.map(Timestamp),
                commitment: row.commitment,
                blob: row.blob,
                is_inline: row.is_inline,
                gave_up: row.gave_up,
            });
        }
        Ok(exchanges)
    }

    /// Has a verdict on a host of a miner reached again by the present judge, once.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when no host of the miner was ever given this challenge.
    pub async fn verdict_appeal(&self, hotkey: &str, challenge: ChallengeId) -> Result<Appeal> {
        let mut tx = self.begin().await?;
        let row = sqlx::query!(
            "select c.code, c.shadow, c.forgotten_at_ms, c.appealed_at_ms
             from challenges c join hosts h using (host_id)
             where c.challenge_id = $1 and h.hotkey = $2 for update of c",
            challenge.0,
            hotkey
        )
        .fetch_optional(&mut *tx)
        .await?
        .ok_or(StoreError::NotFound("verdict"))?;
        if row.shadow || matches!(row.code.as_deref(), None | Some("passed" | "void")) {
            return Ok(Appeal::NotFailed);
        }
        if row.appealed_at_ms.is_some() {
            return Ok(Appeal::Again);
        }
        if row.forgotten_at_ms.is_some() {
            return Ok(Appeal::Forgotten);
        }
        sqlx::query!("update challenges set appealed_at_ms = now_ms() where challenge_id = $1", challenge.0)
            .execute(&mut *tx)
            .await?;
        announce(&mut tx, Changes::Challenges).await?;
        tx.commit().await?;
        Ok(Appeal::Taken)
    }

    /// Writes down what came of judging again. If the host has not failed after all, the ban
    /// is lifted and the host is tested without further pause.
    ///
    /// # Errors
    /// [`StoreError::Stale`] when that was written down already.
    pub async fn appeal_decide(&self, challenge: ChallengeId, verdict: &Value, is_right: bool) -> Result<()> {
        let mut tx = self.begin().await?;
        let row = sqlx::query!(
            "update challenges set appeal = $2, appeal_at_ms = now_ms()
             where challenge_id = $1 and appeal is null and appealed_at_ms is not null returning host_id",
            challenge.0,
            verdict
        )
        .fetch_optional(&mut *tx)
        .await?
        .ok_or(StoreError::Stale("challenge"))?;
        if is_right {
            ban::lift_of(&mut tx, challenge).await?;
            acquit(&mut tx, row.host_id.into(), challenge).await?;
            dispute::reopened(&mut tx, challenge).await?;
        }
        announce(&mut tx, Changes::Challenges).await?;
        tx.commit().await?;
        Ok(())
    }
}

/// Takes back what followed from a verdict for its host: the doubt, wherever the host is by now, and
/// the pause, where it is still refused because of it.
async fn acquit(tx: &mut PgConnection, host: HostId, challenge: ChallengeId) -> Result<()> {
    let done = sqlx::query!(
        "update hosts set retry_up_ms = control_ms(), refusals = greatest(0, refusals - 1), suite_cause = 'appeal'
         where host_id = $1 and state = 'refused' and refused_by = $2",
        host.0,
        challenge.0
    )
    .execute(&mut *tx)
    .await?;
    sqlx::query!(
        "update hosts set doubt = null, doubted_by = null where host_id = $1 and doubted_by = $2",
        host.0,
        challenge.0
    )
    .execute(&mut *tx)
    .await?;
    if done.rows_affected() == 1 { hosts::bump(tx, host).await } else { Ok(()) }
}
