//! Challenges: what is tested of hosts, what they answer and when, and what comes of it.

use std::collections::BTreeMap;

use nave_crash_point::crash_point;
use nave_domain::{
    ChallengeId, HostId, Millis, Timestamp,
    host::{self, HostEvent, HostState, Inventory, Proven},
};
use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    Result, Store, StoreError,
    error::{self, readable},
    host as hosts,
    notify::{Changes, announce},
};

/// A host that claims more than it has proven.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DueHost {
    /// Its id.
    pub host: HostId,
    /// What it claims.
    pub claims: Inventory,
    /// The last challenge it was given since it joined.
    pub last: Option<Decided>,
}

/// A challenge with its verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decided {
    /// What the host was asked to do.
    pub body: Value,
    /// What it had to prove.
    pub claims: Inventory,
    /// What came of it.
    pub verdict: Value,
}

/// A moment on both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// On the database's clock.
    pub at: Timestamp,
    /// On the control clock, which stands still while hosts cannot reach the control plane.
    pub up: Millis,
}

/// One exchange of a challenge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepRow {
    /// The nonce it sends, hexadecimal; none for the first step, which sends the challenge.
    pub reveal: Option<String>,
    /// The control clock when it was drawn.
    pub drawn_up: Millis,
    /// When it was first handed to the host.
    pub sent: Option<Moment>,
    /// What the host answered, and when that was complete.
    pub answer: Option<(Value, Moment)>,
}

/// A challenge without a verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenChallenge {
    /// Its id.
    pub challenge: ChallengeId,
    /// Who is tested.
    pub host: HostId,
    /// Where the host stands.
    pub host_state: HostState,
    /// What the host is asked to do.
    pub body: Value,
    /// What it must prove.
    pub claims: Inventory,
    /// When it was drawn, on the database's clock.
    pub drawn_at: Timestamp,
    /// When its host joined; what was drawn before that is not for the machine it is now.
    pub joined_at: Timestamp,
    /// Its exchanges so far.
    pub steps: Vec<StepRow>,
    /// Failed proofs of this host in a row.
    pub refusals: u32,
    /// Now, on both clocks.
    pub now: Moment,
}

/// A challenge as its host gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SentChallenge {
    /// Its id.
    pub challenge: ChallengeId,
    /// What the host is asked to do.
    pub body: Value,
    /// The nonces that were revealed so far, hexadecimal.
    pub reveals: Vec<String>,
}

/// What a verdict means for its host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// The claims are proven.
    Proven,
    /// They are not.
    Refused {
        /// Why, for programs.
        code: String,
        /// Why, for people.
        message: String,
        /// Pause before the next try, on the control clock.
        pause: Millis,
    },
    /// Nothing yet: a part of the claims is proven, or the fault was not the host's.
    Stays,
}

/// Longest time since a refused host was heard, on the control clock, for it to be tested again.
const HEARD_MS_MAX: i64 = 10_000;

impl Store {
    /// Hosts to be tested: they claim more than they have proven, run nothing and are not
    /// being tested. Refused hosts whose pause has passed are among them again once they are heard.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn hosts_to_test(&self) -> Result<Vec<DueHost>> {
        // Tests of a host that is not there would only make its pause longer.
        sqlx::query!(
            "with due as (
                select host_id from hosts
                where state = 'refused' and retry_up_ms <= control_ms() and heard_up_ms > control_ms() - $1
                order by host_id for update)
             update hosts h set state = 'verifying', generation = generation + 1 from due where h.host_id = due.host_id",
            HEARD_MS_MAX
        )
        .execute(&self.pool)
        .await?;
        let rows = sqlx::query!(
            r#"select h.host_id, h.inventory as "inventory!", last.challenge as "body?", last.claims as "claims?",
                    last.verdict as "verdict?"
               from hosts h left join lateral (
                    select * from challenges c where c.host_id = h.host_id and c.drawn_at_ms >= h.enrolled_at_ms
                    order by challenge_id desc limit 1) last on true
               where state = 'verifying' and inventory is not null
                 and not exists (select from challenges c where c.host_id = h.host_id and c.verdict is null)
                 and not exists (select from leases l where l.host_id = h.host_id and l.state <> 'closed')
               order by h.host_id"#
        )
        .fetch_all(&self.pool)
        .await?;
        let rows = rows.into_iter().map(|row| {
            let last = match (row.body, row.claims, row.verdict) {
                (Some(body), Some(claims), Some(verdict)) => {
                    Some(Decided { body, claims: error::read_json("an inventory", claims)?, verdict })
                }
                _ => None,
            };
            let claims = error::read_json("an inventory", row.inventory)?;
            Ok(DueHost { host: row.host_id.into(), claims, last })
        });
        Ok(rows.filter_map(readable).collect())
    }

    /// Puts a challenge into the spec of its host.
    ///
    /// # Errors
    /// [`StoreError::Stale`] when the host is not to be tested any more or is being tested.
    pub async fn challenge_draw(
        &self,
        host: HostId,
        challenge: ChallengeId,
        body: &Value,
        claims: &Inventory,
    ) -> Result<()> {
        let mut tx = self.pool.begin().await?;
        let state = host_lock(&mut tx, host).await?;
        if state != HostState::Verifying {
            return Err(StoreError::Stale("host"));
        }
        let drawn = sqlx::query!(
            "insert into challenges (challenge_id, host_id, challenge, claims) values ($1, $2, $3, $4)
             on conflict do nothing",
            challenge.0,
            host.0,
            body,
            error::write_json(claims)?
        )
        .execute(&mut *tx)
        .await?;
        if drawn.rows_affected() == 0 {
            return Err(StoreError::Stale("host"));
        }
        step_insert(&mut tx, challenge, 0, None).await?;
        hosts::bump(&mut tx, host).await?;
        crash_point!("store.challenge_draw.before_commit");
        tx.commit().await?;
        Ok(())
    }

    /// The open challenge of a host, to be sent now: what of it was not sent before is
    /// stamped with this moment.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn challenge_send(&self, host: HostId) -> Result<Option<SentChallenge>> {
        let row = sqlx::query!(
            "select challenge_id, challenge from challenges where host_id = $1 and verdict is null",
            host.0
        )
        .fetch_optional(&self.pool)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let reveals = sqlx::query_scalar!(
            "select reveal from challenge_steps where challenge_id = $1 order by step",
            row.challenge_id
        )
        .fetch_all(&self.pool)
        .await?;
        sqlx::query!(
            "update challenge_steps set sent_at_ms = now_ms(), sent_up_ms = control_ms()
             where challenge_id = $1 and sent_at_ms is null and step < $2",
            row.challenge_id,
            i32::try_from(reveals.len()).unwrap_or(i32::MAX)
        )
        .execute(&self.pool)
        .await?;
        Ok(Some(SentChallenge {
            challenge: row.challenge_id.into(),
            body: row.challenge,
            reveals: reveals.into_iter().flatten().collect(),
        }))
    }

    /// Takes a host's answer to the newest step of its challenge, the first time it comes;
    /// says whether it was news.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn challenge_answer(
        &self,
        host: HostId,
        challenge: ChallengeId,
        step: u32,
        answer: &Value,
    ) -> Result<bool> {
        let mut tx = self.pool.begin().await?;
        let done = sqlx::query!(
            "update challenge_steps s set answer = $4, answered_at_ms = now_ms(), answered_up_ms = control_ms()
             from challenges c
             where c.challenge_id = $2 and c.host_id = $1 and c.verdict is null and s.challenge_id = c.challenge_id
               and s.step = $3 and s.answer is null and s.sent_at_ms is not null",
            host.0,
            challenge.0,
            step.cast_signed(),
            answer
        )
        .execute(&mut *tx)
        .await?;
        let news = done.rows_affected() == 1;
        if news {
            announce(&mut tx, Changes::Challenges).await?;
        }
        crash_point!("store.challenge_answer.before_commit");
        tx.commit().await?;
        Ok(news)
    }

    /// Every challenge without a verdict.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn challenges_open(&self) -> Result<Vec<OpenChallenge>> {
        let rows = sqlx::query!(
            r#"select c.challenge_id, c.host_id, c.challenge, c.claims, c.drawn_at_ms, h.state, h.refusals,
                    h.enrolled_at_ms, now_ms() as "now_ms!", control_ms() as "up_ms!"
               from challenges c join hosts h using (host_id) where c.verdict is null order by c.challenge_id"#
        )
        .fetch_all(&self.pool)
        .await?;
        let ids: Vec<Uuid> = rows.iter().map(|row| row.challenge_id).collect();
        let mut steps = self.steps(&ids).await?;
        let rows = rows.into_iter().map(|row| {
            Ok(OpenChallenge {
                challenge: row.challenge_id.into(),
                host: row.host_id.into(),
                host_state: error::read_name("a host's state", row.state)?,
                body: row.challenge,
                claims: error::read_json("an inventory", row.claims)?,
                drawn_at: Timestamp(row.drawn_at_ms),
                joined_at: Timestamp(row.enrolled_at_ms),
                steps: steps.remove(&row.challenge_id).unwrap_or_default(),
                refusals: row.refusals.unsigned_abs(),
                now: Moment { at: Timestamp(row.now_ms), up: Millis(row.up_ms) },
            })
        });
        Ok(rows.filter_map(readable).collect())
    }

    async fn steps(&self, challenges: &[Uuid]) -> Result<BTreeMap<Uuid, Vec<StepRow>>> {
        let rows = sqlx::query!(
            "select challenge_id, reveal, drawn_up_ms, sent_at_ms, sent_up_ms, answer, answered_at_ms, answered_up_ms
             from challenge_steps where challenge_id = any($1) order by step",
            challenges
        )
        .fetch_all(&self.pool)
        .await?;
        let moment = |at: Option<i64>, up: Option<i64>| {
            at.zip(up).map(|(at, up)| Moment { at: Timestamp(at), up: Millis(up) })
        };
        let mut steps: BTreeMap<Uuid, Vec<StepRow>> = BTreeMap::new();
        for row in rows {
            let answered = moment(row.answered_at_ms, row.answered_up_ms);
            steps.entry(row.challenge_id).or_default().push(StepRow {
                reveal: row.reveal,
                drawn_up: Millis(row.drawn_up_ms),
                sent: moment(row.sent_at_ms, row.sent_up_ms),
                answer: row.answer.zip(answered),
            });
        }
        Ok(steps)
    }

    /// Sends a further nonce to a host, once.
    ///
    /// # Errors
    /// [`StoreError::Stale`] when the challenge has a verdict or was revealed meanwhile.
    pub async fn challenge_reveal(&self, challenge: ChallengeId, step: u32, reveal: &str) -> Result<()> {
        let mut tx = self.pool.begin().await?;
        let host = challenge_lock(&mut tx, challenge).await?;
        if !step_insert(&mut tx, challenge, step, Some(reveal)).await? {
            return Err(StoreError::Stale("challenge"));
        }
        hosts::bump(&mut tx, host).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Writes a verdict down, and with it what it means for the host: nothing, where that has
    /// joined again since the challenge was drawn.
    ///
    /// # Errors
    /// [`StoreError::Stale`] when there is one already.
    pub async fn challenge_decide(
        &self,
        challenge: ChallengeId,
        verdict: &Value,
        decision: &Decision,
    ) -> Result<()> {
        let mut tx = self.pool.begin().await?;
        let host = challenge_lock(&mut tx, challenge).await?;
        let state = host_lock(&mut tx, host).await?;
        let of_this_machine = sqlx::query_scalar!(
            r#"update challenges c set verdict = $2, decided_at_ms = now_ms() from hosts h
               where c.challenge_id = $1 and h.host_id = c.host_id
               returning c.drawn_at_ms >= h.enrolled_at_ms as "is!""#,
            challenge.0,
            verdict
        )
        .fetch_one(&mut *tx)
        .await?;
        match decision {
            Decision::Proven | Decision::Refused { .. } if !of_this_machine => {}
            Decision::Proven => prove(&mut tx, host, state, challenge).await?,
            Decision::Refused { code, message, pause } => {
                refuse(&mut tx, host, state, (code, message), *pause).await?;
            }
            Decision::Stays => {}
        }
        hosts::bump(&mut tx, host).await?;
        announce(&mut tx, Changes::Supply).await?;
        announce(&mut tx, Changes::Challenges).await?;
        crash_point!("store.challenge_decide.before_commit");
        tx.commit().await?;
        Ok(())
    }

    /// Has a host prove again what it claims, without further pause; it takes no jobs until it has.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when there is no such host, [`StoreError::Stale`] when it is leaving.
    pub async fn host_retest(&self, host: HostId) -> Result<()> {
        let mut tx = self.pool.begin().await?;
        let from = host_lock(&mut tx, host).await?;
        let event = if from == HostState::Refused { HostEvent::Retry } else { HostEvent::Claimed };
        let to = host::next(from, event).filter(|to| *to == HostState::Verifying);
        let to = to.ok_or(StoreError::Stale("host"))?;
        sqlx::query!(
            "update hosts set state = $2, proven = null, refusals = 0, retry_up_ms = null where host_id = $1",
            host.0,
            to.as_str()
        )
        .execute(&mut *tx)
        .await?;
        hosts::bump(&mut tx, host).await?;
        announce(&mut tx, Changes::Challenges).await?;
        tx.commit().await?;
        Ok(())
    }
}

/// Locks an open challenge and returns its host.
async fn challenge_lock(tx: &mut PgConnection, challenge: ChallengeId) -> Result<HostId> {
    sqlx::query_scalar!(
        "select host_id from challenges where challenge_id = $1 and verdict is null for update",
        challenge.0
    )
    .fetch_optional(tx)
    .await?
    .map(HostId)
    .ok_or(StoreError::Stale("challenge"))
}

async fn host_lock(tx: &mut PgConnection, host: HostId) -> Result<HostState> {
    let state = sqlx::query_scalar!("select state from hosts where host_id = $1 for update", host.0)
        .fetch_optional(tx)
        .await?
        .ok_or(StoreError::NotFound("host"))?;
    error::read_name("a host's state", state)
}

async fn step_insert(
    tx: &mut PgConnection,
    challenge: ChallengeId,
    step: u32,
    reveal: Option<&str>,
) -> Result<bool> {
    let done = sqlx::query!(
        "insert into challenge_steps (challenge_id, step, reveal) values ($1, $2, $3) on conflict do nothing",
        challenge.0,
        step.cast_signed(),
        reveal
    )
    .execute(tx)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Proves the claims that were tested; those of the last report may be larger by now.
async fn prove(tx: &mut PgConnection, host: HostId, from: HostState, challenge: ChallengeId) -> Result<()> {
    let row = sqlx::query!(
        r#"select c.claims, h.inventory as "inventory!" from challenges c join hosts h using (host_id)
           where c.challenge_id = $1"#,
        challenge.0
    )
    .fetch_one(&mut *tx)
    .await?;
    let proven = Proven::of(&error::read_json("an inventory", row.claims)?);
    let covers = proven.covers(&error::read_json("an inventory", row.inventory)?);
    let to = if covers { host::next(from, HostEvent::Proved).unwrap_or(from) } else { from };
    sqlx::query!(
        "update hosts set state = $2, proven = $3, refusals = 0, retry_up_ms = null,
            reason_code = null, reason_message = null, reason_at_ms = null
         where host_id = $1",
        host.0,
        to.as_str(),
        error::write_json(&proven)?
    )
    .execute(tx)
    .await?;
    Ok(())
}

async fn refuse(
    tx: &mut PgConnection,
    host: HostId,
    from: HostState,
    (code, message): (&str, &str),
    pause: Millis,
) -> Result<()> {
    let Some(to) = host::next(from, HostEvent::Failed) else { return Ok(()) };
    sqlx::query!(
        "update hosts set state = $2, proven = null, refusals = refusals + 1, retry_up_ms = control_ms() + $5,
            reason_code = $3, reason_message = $4, reason_at_ms = now_ms()
         where host_id = $1",
        host.0,
        to.as_str(),
        code,
        message,
        pause.0
    )
    .execute(tx)
    .await?;
    Ok(())
}
