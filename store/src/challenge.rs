//! Challenges: what is tested of hosts, what they answer and when, and what comes of it.

use std::collections::BTreeMap;

use nave_crash_point::crash_point;
use nave_domain::{
    ChallengeId, HostId, LeaseId, Millis, Timestamp,
    host::{self, HostEvent, HostState, Inventory},
    verdict::{Cause, Kind},
};
use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    Result, Store, StoreError, ban, device, dispute,
    error::{self, readable},
    event, evidence, host as hosts, look,
    notify::{Changes, announce},
    suite, transfer,
};

/// For how long a doubt counts that nothing makes up for, on the control clock. Openings of what was failed are kept as
/// long, so whoever is in doubt can still object.
const DOUBT_MS: i64 = 30 * 86_400_000;

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

/// A challenge as its verdict is reached from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenChallenge {
    /// Its id.
    pub challenge: ChallengeId,
    /// Who is tested.
    pub host: HostId,
    /// Who owns it.
    pub hotkey: String,
    /// What is tested.
    pub kind: Kind,
    /// Why.
    pub cause: Cause,
    /// Whether its verdict means nothing for the host.
    pub shadow: bool,
    /// The lease beside which the host is tested.
    pub lease: Option<LeaseId>,
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
    /// Whether the host was in doubt when the challenge was drawn, or another one that counts against it: what
    /// that failed last, but for trouble, was doubt, and has not been proven since.
    pub was_in_doubt: bool,
    /// Whether it is a test of GPUs and the host's memory is tested, too.
    pub beside_memory: bool,
    /// Now, on both clocks, or when its verdict was written down.
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
    /// Nothing yet: a part of the claims is proven, or the fault was not the host's.
    Stays,
    /// These GPUs are proven, and belong to it from now on.
    Holds {
        /// Their identifiers.
        devices: Vec<String>,
    },
    /// Its GPUs are there beside its jobs.
    Shown,
    /// It could not show its GPUs beside its jobs, which may be those jobs' doing: it is to prove everything once it is
    /// free, and takes no further jobs before where that is not the first time.
    Strained,
    /// It takes no further jobs before it has proven everything again.
    Doubted,
    /// The claims are not proven.
    Refused {
        /// Why, for programs.
        code: String,
        /// Why, for people.
        message: String,
        /// Pause before the next try, on the control clock.
        pause: Millis,
    },
    /// The same, and a second time in a row is a ban.
    Mistrusted {
        /// Why, for programs.
        code: String,
        /// Why, for people.
        message: String,
        /// Pause before the next try, on the control clock.
        pause: Millis,
    },
    /// It was found to cheat.
    Banned {
        /// Why, for programs.
        code: String,
        /// Why, for people.
        message: String,
        /// For how long, on the control clock: after no earlier ban, after one, and so on.
        spans: Vec<Millis>,
    },
}

impl Store {
    /// The open challenges of a host, to be sent now: what of them was not sent before is
    /// stamped with this moment.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn challenge_send(&self, host: HostId) -> Result<Vec<SentChallenge>> {
        let rows = sqlx::query!(
            r#"select c.challenge_id, c.challenge,
                    array(select coalesce(reveal, '') from challenge_steps s
                          where s.challenge_id = c.challenge_id order by step) as "reveals!"
               from challenges c where host_id = $1 and verdict is null order by c.challenge_id"#,
            host.0
        )
        .fetch_all(&self.pool)
        .await?;
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let ids: Vec<Uuid> = rows.iter().map(|row| row.challenge_id).collect();
        let steps: Vec<i32> =
            rows.iter().map(|row| i32::try_from(row.reveals.len()).unwrap_or(i32::MAX)).collect();
        sqlx::query!(
            "with sent as (
                update challenge_steps s set sent_at_ms = now_ms(), sent_up_ms = control_ms()
                from unnest($1::uuid[], $2::int[]) as read (challenge_id, steps)
                where s.challenge_id = read.challenge_id and s.sent_at_ms is null and s.step < read.steps
                returning s.challenge_id),
             news as (
                select challenge_id from challenge_looks where challenge_id in (select challenge_id from sent)
                order by challenge_id for update)
             update challenge_looks l set look_up_ms = control_ms(), news = l.news + 1
             from news where l.challenge_id = news.challenge_id",
            &ids,
            &steps
        )
        .execute(&self.pool)
        .await?;
        let sent = rows.into_iter().map(|row| SentChallenge {
            challenge: row.challenge_id.into(),
            body: row.challenge,
            // The first step sends the challenge itself.
            reveals: row.reveals.into_iter().skip(1).collect(),
        });
        Ok(sent.collect())
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
        let mut tx = self.begin().await?;
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
            look::came(&mut tx, challenge).await?;
            announce(&mut tx, Changes::Challenges).await?;
        }
        crash_point!("store.challenge_answer.before_commit");
        tx.commit().await?;
        Ok(news)
    }

    /// Those of these challenges that have no verdict.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn challenges_undecided(&self, challenges: &[ChallengeId]) -> Result<Vec<OpenChallenge>> {
        let ids: Vec<Uuid> = challenges.iter().map(|challenge| challenge.0).collect();
        let ids = sqlx::query_scalar!(
            "select challenge_id from challenges where challenge_id = any($1) and verdict is null",
            &ids
        );
        self.challenges(&ids.fetch_all(&self.pool).await?).await
    }

    /// Verdicts that are to be reached again because their hosts' owners have asked for it, as
    /// their challenges were before: `limit` at most, of which each miner has as many as the others, the oldest first.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn challenges_appealed(&self, limit: i64) -> Result<Vec<OpenChallenge>> {
        let ids = sqlx::query_scalar!(
            r#"select challenge_id as "challenge_id!" from (
                select challenge_id, appealed_at_ms,
                    row_number() over (partition by hotkey order by appealed_at_ms, challenge_id) as turn
                from challenges join hosts using (host_id) where appealed_at_ms is not null and appeal is null) asked
               order by turn, appealed_at_ms limit $1"#,
            limit
        );
        self.challenges(&ids.fetch_all(&self.pool).await?).await
    }

    /// A challenge with all that is kept of it, whether it has a verdict or not: what anyone
    /// needs to judge it again.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when there is none.
    pub async fn challenge_get(&self, challenge: ChallengeId) -> Result<OpenChallenge> {
        self.challenges(&[challenge.0]).await?.pop().ok_or(StoreError::NotFound("challenge"))
    }

    pub(crate) async fn challenges(&self, ids: &[Uuid]) -> Result<Vec<OpenChallenge>> {
        let rows = sqlx::query!(
            r#"with asked as materialized (
                select c.challenge_id, c.host_id, h.hotkey, h.inventory,
                    exists (select from machines m where m.host_id = c.host_id) as is_rented
                from challenges c join hosts h using (host_id) where c.challenge_id = any($1)),
               -- Hosts that have proven GPUs which one that is asked about claims, and nobody has proven since.
               holders as (
                select distinct a.host_id, d.host_id as holder
                from asked a cross join jsonb_array_elements(a.inventory -> 'devices') claimed
                    join device_claims d on d.device = claimed ->> 'uuid'),
               -- Since when each doubt counts that may: it is read once for all.
               doubts as materialized (
                select g.host_id, g.hotkey, coalesce(d.decided_at_ms, 0) as since_ms
                from hosts g left join challenges d on d.challenge_id = g.doubted_by
                where g.doubt is not null and coalesce(d.decided_up_ms > control_ms() - $2, true)
                  and (g.hotkey in (select hotkey from asked) or g.host_id in (select holder from holders))),
               of_miners as (select hotkey, min(since_ms) as since_ms from doubts group by hotkey),
               of_holders as (
                select o.host_id, min(d.since_ms) as since_ms from holders o join doubts d on d.host_id = o.holder
                group by o.host_id)
               select c.challenge_id, c.host_id, h.hotkey, c.kind, c.cause, c.shadow, c.lease_id as "lease_id?", c.challenge,
                    c.claims, c.drawn_at_ms, h.state, h.refusals, h.enrolled_at_ms,
                    -- A rented machine is no other machine's doubt.
                    coalesce(least(case when a.is_rented then own.since_ms else miners.since_ms end, theirs.since_ms)
                        <= c.drawn_at_ms, false) as "in_doubt!",
                    c.kind = 'devices' and exists (
                        select from challenges m where m.host_id = c.host_id and m.kind = 'memory' and m.verdict is null
                    ) as "beside_memory!",
                    case when c.decided_up_ms is null then now_ms() else c.decided_at_ms end as "now_ms!",
                    coalesce(c.decided_up_ms, control_ms()) as "up_ms!"
               from challenges c join hosts h using (host_id) join asked a using (challenge_id)
                    left join doubts own on own.host_id = c.host_id
                    left join of_miners miners on miners.hotkey = h.hotkey
                    left join of_holders theirs on theirs.host_id = c.host_id
               order by c.challenge_id"#,
            ids,
            DOUBT_MS
        )
        .fetch_all(&self.pool)
        .await?;
        let mut steps = self.steps(ids).await?;
        let rows = rows.into_iter().map(|row| {
            Ok(OpenChallenge {
                challenge: row.challenge_id.into(),
                host: row.host_id.into(),
                hotkey: row.hotkey,
                kind: error::read_name("a kind of test", row.kind)?,
                cause: error::read_name("the cause of a test", row.cause)?,
                shadow: row.shadow,
                lease: row.lease_id.map(LeaseId),
                host_state: error::read_name("a host's state", row.state)?,
                body: row.challenge,
                claims: error::read_json("an inventory", row.claims)?,
                drawn_at: Timestamp(row.drawn_at_ms),
                joined_at: Timestamp(row.enrolled_at_ms),
                steps: steps.remove(&row.challenge_id).unwrap_or_default(),
                refusals: row.refusals.unsigned_abs(),
                was_in_doubt: row.in_doubt,
                beside_memory: row.beside_memory,
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
        let mut tx = self.begin().await?;
        let host = challenge_lock(&mut tx, challenge).await?;
        if !step_insert(&mut tx, challenge, step, Some(reveal)).await? {
            return Err(StoreError::Stale("challenge"));
        }
        hosts::bump(&mut tx, host).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Writes a verdict down, and with it what it means for the host: where that has joined
    /// again since the challenge was drawn, only that it is banned or mistrusted.
    ///
    /// # Errors
    /// [`StoreError::Stale`] when there is one already, or when another host holds a GPU
    /// that this one was to hold.
    pub async fn challenge_decide(
        &self,
        challenge: ChallengeId,
        verdict: &Value,
        decision: &Decision,
    ) -> Result<()> {
        let mut tx = self.begin().await?;
        let host = challenge_lock(&mut tx, challenge).await?;
        let source = transfer::lock(&mut tx, challenge).await?;
        let from = host_lock(&mut tx, host).await?;
        let of_this_machine = sqlx::query_scalar!(
            r#"update challenges c set verdict = $2, decided_at_ms = now_ms(), decided_up_ms = control_ms(),
                    sweep_at_ms = now_ms() + $3
               from hosts h where c.challenge_id = $1 and h.host_id = c.host_id
               returning c.drawn_at_ms >= h.enrolled_at_ms as "is!""#,
            challenge.0,
            verdict,
            evidence::KEPT_MS
        )
        .fetch_one(&mut *tx)
        .await?;
        mistrust(&mut tx, challenge, decision).await?;
        carry_out(&mut tx, host, Some(from).filter(|_| of_this_machine), challenge, decision).await?;
        dispute::judged(&mut tx, challenge).await?;
        event::judged(&mut tx, challenge, from, decision).await?;
        hosts::bump(&mut tx, host).await?;
        if let Some(source) = source {
            transfer::ended(&mut tx, source).await?;
        }
        look::end(&mut tx, challenge).await?;
        announce(&mut tx, Changes::Supply).await?;
        announce(&mut tx, Changes::Challenges).await?;
        crash_point!("store.challenge_decide.before_commit");
        tx.commit().await?;
        Ok(())
    }
}

/// Remembers failures that are more than trouble, whoever the host is by now.
async fn mistrust(tx: &mut PgConnection, challenge: ChallengeId, decision: &Decision) -> Result<()> {
    match decision {
        Decision::Stays
        | Decision::Holds { .. }
        | Decision::Shown
        | Decision::Strained
        | Decision::Doubted
        | Decision::Refused { .. } => Ok(()),
        Decision::Mistrusted { .. } | Decision::Banned { .. } => {
            sqlx::query!(
                "update hosts h set doubt = case when h.doubt = 'window' or c.cause = 'window' then 'window' else 'test' end,
                    doubted_by = c.challenge_id
                 from challenges c where c.challenge_id = $1 and h.host_id = c.host_id",
                challenge.0
            )
            .execute(tx)
            .await?;
            Ok(())
        }
    }
}

/// What a decision means for the host, which is `from` here, if it is the one that was tested.
async fn carry_out(
    tx: &mut PgConnection,
    host: HostId,
    from: Option<HostState>,
    challenge: ChallengeId,
    decision: &Decision,
) -> Result<()> {
    let stays = from.filter(|from| {
        *from == HostState::Refused || host::next(*from, HostEvent::Failed) == Some(HostState::Refused)
    });
    match (decision, stays) {
        (Decision::Banned { code, message, spans }, _) => {
            // Who has left or joined again is banned all the same.
            let span = ban::begin(tx, challenge, (code, message), spans).await?;
            let told = format!("{message}; it is banned for {span}");
            if stays.is_some() { refuse(tx, host, challenge, (code, &told), span).await } else { Ok(()) }
        }
        (_, None) | (Decision::Stays, _) => Ok(()),
        (Decision::Holds { devices }, _) => device::hold(tx, host, devices).await,
        (Decision::Shown, _) => {
            device::shown(tx, challenge).await?;
            suite::relieve(tx, host).await
        }
        (Decision::Strained, Some(from)) => suite::strain(tx, host, from).await,
        (Decision::Doubted, Some(from)) => suite::doubt(tx, host, from).await,
        (
            Decision::Refused { code, message, pause } | Decision::Mistrusted { code, message, pause },
            Some(from),
        ) => match from == HostState::Refused {
            true => Ok(()),
            false => refuse(tx, host, challenge, (code, message), *pause).await,
        },
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

pub(crate) async fn host_lock(tx: &mut PgConnection, host: HostId) -> Result<HostState> {
    let state = sqlx::query_scalar!("select state from hosts where host_id = $1 for update", host.0)
        .fetch_optional(tx)
        .await?
        .ok_or(StoreError::NotFound("host"))?;
    error::read_name("a host's state", state)
}

pub(crate) async fn step_insert(
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

/// Has a host wait before it is tested again: for all, since who evades a window is not asked
/// for less than the others afterwards.
async fn refuse(
    tx: &mut PgConnection,
    host: HostId,
    challenge: ChallengeId,
    (code, message): (&str, &str),
    pause: Millis,
) -> Result<()> {
    sqlx::query!(
        "update hosts set state = 'refused', proven = null, refusals = refusals + 1, retry_up_ms = control_ms() + $5,
            suite_cause = nullif(suite_cause, 'window'), refused_by = $2,
            reason_code = $3, reason_message = $4, reason_at_ms = now_ms()
         where host_id = $1",
        host.0,
        challenge.0,
        code,
        message,
        pause.0
    )
    .execute(tx)
    .await?;
    Ok(())
}
