//! Settling an epoch: what stands still of it is read, and what comes of it is written, in one transaction.

use std::collections::BTreeMap;

use nave_crash_point::crash_point;
use nave_domain::{
    ChallengeId, CustomerId, EventId, HostId, JobId, LeaseId, MicroUsd, Millis, Timestamp, epoch::EpochState,
    ledger::Posting,
};
use serde_json::Value;
use sqlx::{Postgres, Transaction};
use uuid::Uuid;

use crate::{Result, Store, StoreError, collateral, error, ledger, params};

/// An epoch that is closed and is being settled. Nothing of it shows before [`Settlement::finish`].
#[derive(Debug)]
pub struct Settlement {
    tx: Transaction<'static, Postgres>,
    /// The epoch.
    pub frame: EpochFrame,
    pieces: i32,
    bytes: i64,
}

/// What an epoch is settled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochFrame {
    /// Counted from 1.
    pub epoch: i64,
    /// Where the weights go.
    pub chain: String,
    /// When it began.
    pub opened_at: Timestamp,
    /// When it closed.
    pub closed_at: Timestamp,
    /// The parameters that hold in it.
    pub params: Value,
    /// Head of the epoch before; none for the first.
    pub head_before: Option<String>,
    /// What the emissions were worth of the epoch before, and of those that stand in its bundle; the oldest first.
    pub emissions: Vec<MicroUsd>,
}

/// A class of devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassEvidence {
    /// Its name.
    pub class: String,
    /// Price of one device for an hour, in micro-USD.
    pub baseline: Option<i64>,
    /// Whose that is.
    pub source: Option<String>,
    /// When it was fetched.
    pub fetched_at_ms: Option<i64>,
    /// Devices that were seen, once for each look.
    pub devices: i64,
    /// Thousandths of them that were leased then.
    pub leased_milli: i64,
}

/// A miner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MinerEvidence {
    /// Who.
    pub hotkey: String,
    /// What the epoch before left: its line in that bundle.
    pub before: Option<Value>,
    /// What was left as collateral since, less what was paid back.
    pub moved: MicroUsd,
    /// Hosts that had proven what they claim.
    pub verified_hosts: i64,
    /// Whether one was found to cheat or sent away.
    pub banned: bool,
}

/// A verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerdictEvidence {
    /// Which.
    pub challenge: ChallengeId,
    /// Of which host.
    pub host: HostId,
    /// Whose that is.
    pub hotkey: String,
    /// When.
    pub at: Timestamp,
    /// What was tested.
    pub task: String,
    /// `passed`, or why not.
    pub code: String,
}

/// An event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventEvidence {
    /// Which.
    pub event: EventId,
    /// When it was written down.
    pub at: Timestamp,
    /// What happened.
    pub kind: String,
    /// Of which host.
    pub host: HostId,
    /// Whose that was.
    pub hotkey: String,
    /// The lease that suffered.
    pub lease: Option<LeaseId>,
    /// Whose fault it was.
    pub blame: String,
    /// From when time was lost.
    pub from: Timestamp,
    /// Until when.
    pub until: Timestamp,
    /// What shows it.
    pub confirmed_by: Option<String>,
    /// What was seen.
    pub detail: String,
    /// The market key's, hexadecimal.
    pub signature: String,
}

/// A lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseEvidence {
    /// Which.
    pub lease: LeaseId,
    /// Of which job.
    pub job: JobId,
    /// Whose job.
    pub customer: CustomerId,
    /// On which host.
    pub host: HostId,
    /// Whose that is.
    pub hotkey: String,
    /// Class of its devices.
    pub class: Option<String>,
    /// For how long it was sold.
    pub term: String,
    /// Thousandths of a GPU.
    pub milli_gpu: i64,
    /// Thousandths of a virtual CPU.
    pub milli_cpu: i64,
    /// Bytes of memory.
    pub memory: i64,
    /// Price of a GPU for an hour, in micro-USD, as all prices.
    pub gpu_hour: i64,
    /// Price of a virtual CPU.
    pub vcpu_hour: i64,
    /// Price of a GiB.
    pub gib_hour: i64,
    /// What clouds asked for a GPU when it was placed.
    pub baseline: Option<i64>,
    /// How long it ran.
    pub used: Millis,
    /// What its customer has paid.
    pub charged: MicroUsd,
    /// When it was placed.
    pub placed_at: Timestamp,
    /// When it closed.
    pub closed_at: Timestamp,
    /// How it ended.
    pub outcome: String,
    /// Why customer and miner count as one.
    pub related: Option<String>,
}

/// Idle devices of one class on one host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdleEvidence {
    /// Which host.
    pub host: HostId,
    /// Whose that is.
    pub hotkey: String,
    /// Which class.
    pub class: String,
    /// Time, added up over devices.
    pub device: Millis,
    /// Price of one for an hour.
    pub gpu_hour: MicroUsd,
    /// Since when the host kept its obligations.
    pub obliged_since: Timestamp,
}

/// What came of a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseResult {
    /// Which.
    pub lease: LeaseId,
    /// Whose host it was on.
    pub hotkey: String,
    /// Breaches of its host.
    pub breaches: i32,
    /// The part of what was promised that was kept, in millionths.
    pub adherence_ppm: i32,
    /// What the miner earned by it in weights.
    pub used: MicroUsd,
    /// What is paid for it beyond the baseline, in cash.
    pub bid: MicroUsd,
    /// What goes back to its customer.
    pub credit: MicroUsd,
    /// What its breaches cost the miner.
    pub penalty: MicroUsd,
}

/// What goes back to a customer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseCredit {
    /// For which lease.
    pub lease: LeaseId,
    /// Of which job.
    pub job: JobId,
    /// To whom.
    pub customer: CustomerId,
    /// How much.
    pub amount: MicroUsd,
}

/// What came of a miner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MinerResult {
    /// Who.
    pub hotkey: String,
    /// The miner's line in the bundle.
    pub pay: Value,
    /// What is paid in cash.
    pub cash: MicroUsd,
    /// What penalties take from the collateral.
    pub penalty_collateral: MicroUsd,
    /// Whether the miner's hosts sell as spot from now on, and did not before.
    pub is_demoted: bool,
}

/// What came of an epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochResult {
    /// What the emission was worth.
    pub emission: MicroUsd,
    /// Who says so.
    pub emission_source: String,
    /// What emissions before were worth, as in the bundle.
    pub emissions: Vec<i64>,
    /// SHA-256 of the last line of the bundle, hexadecimal.
    pub head: String,
    /// Lines of the bundle.
    pub lines: i64,
    /// Sums over all miners, as in the bundle.
    pub result: Value,
    /// Weight by hotkey.
    pub weights: BTreeMap<String, u16>,
    /// What came of each miner.
    pub miners: Vec<MinerResult>,
    /// What goes back to customers.
    pub credits: Vec<LeaseCredit>,
}

impl Store {
    /// Begins to settle an epoch that is closed; whoever began before is waited for.
    ///
    /// # Errors
    /// [`StoreError::Stale`] when it is not closed, or the one before is not settled.
    pub async fn settlement_begin(&self, epoch: i64) -> Result<Settlement> {
        let mut tx = self.begin().await?;
        sqlx::query!("set local statement_timeout = '10min'").execute(&mut *tx).await?;
        let row = sqlx::query!(
            r#"select e.chain, e.opened_at_ms, e.closed_at_ms as "closed_at_ms!", before.head as "head_before?",
                case when before.head is null then '{}' else before.emissions || before.emission end as "emissions!",
                exists (select from epochs b where b.epoch < e.epoch and b.state = 'closed') as "is_early!"
               from epochs e left join lateral (
                    select head, emissions, emission from epochs b where b.epoch < e.epoch and head is not null
                    order by b.epoch desc limit 1) before on true
               where e.epoch = $1 and e.state = 'closed' for no key update of e"#,
            epoch
        )
        .fetch_optional(&mut *tx)
        .await?
        .filter(|row| !row.is_early)
        .ok_or(StoreError::Stale("epoch"))?;
        let frame = EpochFrame {
            epoch,
            chain: row.chain,
            opened_at: Timestamp(row.opened_at_ms),
            closed_at: Timestamp(row.closed_at_ms),
            params: params::of(&mut tx, Some(epoch)).await?,
            head_before: row.head_before,
            emissions: row.emissions.into_iter().map(MicroUsd).collect(),
        };
        Ok(Settlement { tx, frame, pieces: 0, bytes: 0 })
    }
}

impl Settlement {
    /// Classes, in the order of the bundle.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn classes(&mut self) -> Result<Vec<ClassEvidence>> {
        let rows = sqlx::query_as!(
            ClassEvidence,
            r#"select class, baseline, source, fetched_at_ms, devices, leased_milli
               from epoch_classes where epoch = $1 order by class collate "C""#,
            self.frame.epoch
        );
        Ok(rows.fetch_all(&mut *self.tx).await?)
    }

    /// Miners of whom anything is known, in the order of the bundle: those of this epoch, and those of whom the one before
    /// left more than zeros.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn miners(&mut self) -> Result<Vec<MinerEvidence>> {
        let rows = sqlx::query!(
            r#"with before as (
                select hotkey, pay, carry <> 0 or collateral <> 0 or demoted_until_ms <> 0 or pay ->> 'weight' <> '0'
                    or pay -> 'vesting' <> '[]' or pay -> 'days' <> '[]' as is_left
                from epoch_pay where epoch = (select max(epoch) from epochs where epoch < $1 and head is not null)),
               now as (select * from epoch_miners where epoch = $1)
               select hotkey collate "C" as "hotkey!", pay as "pay?", coalesce(moved, 0) as "moved!",
                coalesce(verified_hosts, 0) as "verified_hosts!", coalesce(banned, false) as "banned!"
               from before full join now using (hotkey) where now.epoch is not null or is_left order by 1"#,
            self.frame.epoch
        )
        .fetch_all(&mut *self.tx)
        .await?;
        let rows = rows.into_iter().map(|row| MinerEvidence {
            hotkey: row.hotkey,
            before: row.pay,
            moved: MicroUsd(row.moved),
            verified_hosts: row.verified_hosts,
            banned: row.banned,
        });
        Ok(rows.collect())
    }

    /// The next verdicts, in the order of the bundle.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn verdicts(&mut self, after: Option<ChallengeId>) -> Result<Vec<VerdictEvidence>> {
        let rows = sqlx::query!(
            r#"select challenge_id, c.host_id, hotkey, decided_at_ms as "decided_at_ms!", kind, code as "code!"
               from challenges c join hosts using (host_id)
               where epoch = $1 and ($2::uuid is null or challenge_id > $2) order by challenge_id limit $3"#,
            self.frame.epoch,
            after.map(|id| id.0),
            PAGE
        )
        .fetch_all(&mut *self.tx)
        .await?;
        let rows = rows.into_iter().map(|row| VerdictEvidence {
            challenge: row.challenge_id.into(),
            host: row.host_id.into(),
            hotkey: row.hotkey,
            at: Timestamp(row.decided_at_ms),
            task: row.kind,
            code: row.code,
        });
        Ok(rows.collect())
    }

    /// The next events, in the order of the bundle.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn events(&mut self, after: Option<EventId>) -> Result<Vec<EventEvidence>> {
        let rows = sqlx::query!(
            r#"select event_id, at_ms, kind, host_id, hotkey, lease_id, blame as "blame!", from_ms, until_ms, confirmed_by,
                detail, encode(signature, 'hex') as "signature!"
               from events where epoch = $1 and ($2::uuid is null or event_id > $2) order by event_id limit $3"#,
            self.frame.epoch,
            after.map(|id| id.0),
            PAGE
        )
        .fetch_all(&mut *self.tx)
        .await?;
        let rows = rows.into_iter().map(|row| EventEvidence {
            event: row.event_id.into(),
            at: Timestamp(row.at_ms),
            kind: row.kind,
            host: row.host_id.into(),
            hotkey: row.hotkey,
            lease: row.lease_id.map(LeaseId),
            blame: row.blame,
            from: Timestamp(row.from_ms),
            until: Timestamp(row.until_ms),
            confirmed_by: row.confirmed_by,
            detail: row.detail,
            signature: row.signature,
        });
        Ok(rows.collect())
    }

    /// The next leases, in the order of the bundle.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn leases(&mut self, after: Option<LeaseId>) -> Result<Vec<LeaseEvidence>> {
        let rows = sqlx::query!(
            r#"select lease_id, l.job_id, j.customer_id, l.host_id, e.hotkey, l.class, l.term, l.milli_gpu, l.milli_cpu,
                l.memory, l.gpu_hour, l.vcpu_hour, l.gib_hour, l.baseline_gpu_hour, e.used_ms, e.charged, l.placed_at_ms,
                l.closed_at_ms as "closed_at_ms!", l.outcome ->> 'kind' as "outcome!", e.related
               from (select * from epoch_leases where epoch = $1 and ($2::uuid is null or lease_id > $2)
                     order by lease_id limit $3) e
               join leases l using (lease_id) join jobs j using (job_id) order by lease_id"#,
            self.frame.epoch,
            after.map(|id| id.0),
            PAGE
        )
        .fetch_all(&mut *self.tx)
        .await?;
        let rows = rows.into_iter().map(|row| LeaseEvidence {
            lease: row.lease_id.into(),
            job: row.job_id.into(),
            customer: row.customer_id.into(),
            host: row.host_id.into(),
            hotkey: row.hotkey,
            class: row.class,
            term: row.term,
            milli_gpu: row.milli_gpu,
            milli_cpu: row.milli_cpu,
            memory: row.memory,
            gpu_hour: row.gpu_hour,
            vcpu_hour: row.vcpu_hour,
            gib_hour: row.gib_hour,
            baseline: row.baseline_gpu_hour,
            used: Millis(row.used_ms),
            charged: MicroUsd(row.charged),
            placed_at: Timestamp(row.placed_at_ms),
            closed_at: Timestamp(row.closed_at_ms),
            outcome: row.outcome,
            related: row.related,
        });
        Ok(rows.collect())
    }

    /// The next idle devices, in the order of the bundle.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn idle(&mut self, after: Option<(HostId, &str)>) -> Result<Vec<IdleEvidence>> {
        let rows = sqlx::query!(
            r#"select i.host_id, hotkey, class, device_ms, i.gpu_hour, i.obliged_since_ms as "obliged_since_ms!"
               from idle_times i join hosts using (host_id)
               where epoch = $1 and device_ms > 0
                 and ($2::uuid is null or (i.host_id, class collate "C") > ($2, $3::text collate "C"))
               order by i.host_id, class collate "C" limit $4"#,
            self.frame.epoch,
            after.map(|(host, _)| host.0),
            after.map(|(_, class)| class),
            PAGE
        )
        .fetch_all(&mut *self.tx)
        .await?;
        let rows = rows.into_iter().map(|row| IdleEvidence {
            host: row.host_id.into(),
            hotkey: row.hotkey,
            class: row.class,
            device: Millis(row.device_ms),
            gpu_hour: MicroUsd(row.gpu_hour),
            obliged_since: Timestamp(row.obliged_since_ms),
        });
        Ok(rows.collect())
    }

    /// Adds a piece to the bundle, of 1 MiB at most.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn bundle_write(&mut self, piece: &[u8]) -> Result<()> {
        sqlx::query!(
            "insert into bundle_pieces (epoch, piece, bytes) values ($1, $2, $3)",
            self.frame.epoch,
            self.pieces,
            piece
        )
        .execute(&mut *self.tx)
        .await?;
        self.pieces += 1;
        self.bytes = self.bytes.saturating_add_unsigned(piece.len() as u64);
        Ok(())
    }

    /// Notes what came of leases.
    ///
    /// # Errors
    /// When the database refuses, also where one of them was settled before.
    pub async fn leases_paid(&mut self, paid: &[LeaseResult]) -> Result<()> {
        let of = |amount: fn(&LeaseResult) -> i64| paid.iter().map(amount).collect::<Vec<i64>>();
        let leases: Vec<Uuid> = paid.iter().map(|one| one.lease.0).collect();
        let hotkeys: Vec<String> = paid.iter().map(|one| one.hotkey.clone()).collect();
        let breaches: Vec<i32> = paid.iter().map(|one| one.breaches).collect();
        let adherence: Vec<i32> = paid.iter().map(|one| one.adherence_ppm).collect();
        sqlx::query!(
            "insert into lease_pay (lease_id, epoch, hotkey, breaches, adherence, used, bid, credit, penalty)
             select lease_id, $1, hotkey, breaches, adherence, used, bid, credit, penalty
             from unnest($2::uuid[], $3::text[], $4::int[], $5::int[], $6::bigint[], $7::bigint[], $8::bigint[], $9::bigint[])
                paid (lease_id, hotkey, breaches, adherence, used, bid, credit, penalty)",
            self.frame.epoch,
            &leases,
            &hotkeys,
            &breaches,
            &adherence,
            &of(|one| one.used.0),
            &of(|one| one.bid.0),
            &of(|one| one.credit.0),
            &of(|one| one.penalty.0)
        )
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// Pays everybody, and the epoch is settled.
    ///
    /// # Errors
    /// When the database refuses; nothing has happened then.
    pub async fn finish(mut self, result: &EpochResult) -> Result<()> {
        let (settled, epoch) = (EpochState::Settled.as_str(), self.frame.epoch);
        self.lock_jobs(&result.credits).await?;
        self.pay_miners(&result.miners).await?;
        sqlx::query!(
            "update epochs set state = $2, weights = $3, emission = $4, emission_source = $5, head = $6, lines = $7,
                bundle_bytes = $8, result = $9, emissions = $10, settled_at_ms = now_ms()
             where epoch = $1 and state = 'closed'",
            epoch,
            settled,
            error::write_json(&result.weights)?,
            result.emission.0,
            result.emission_source,
            result.head,
            result.lines,
            self.bytes,
            result.result,
            &result.emissions
        )
        .execute(&mut *self.tx)
        .await?;
        self.post(result).await?;
        crash_point!("store.epoch_settle.before_commit");
        self.tx.commit().await?;
        crash_point!("store.epoch_settle.after_commit");
        Ok(())
    }

    /// Postings of credits name jobs, which are locked before hosts and customers: whoever charges has the job first, too.
    async fn lock_jobs(&mut self, credits: &[LeaseCredit]) -> Result<()> {
        let jobs: Vec<Uuid> = credits.iter().map(|credit| credit.job.0).collect();
        sqlx::query!("select from jobs where job_id = any($1) order by job_id for key share", &jobs)
            .execute(&mut *self.tx)
            .await?;
        Ok(())
    }

    async fn pay_miners(&mut self, miners: &[MinerResult]) -> Result<()> {
        let hotkeys: Vec<String> = miners.iter().map(|miner| miner.hotkey.clone()).collect();
        let pays: Vec<Value> = miners.iter().map(|miner| miner.pay.clone()).collect();
        sqlx::query!(
            "insert into epoch_pay (epoch, hotkey, pay)
             select $1, hotkey, pay from unnest($2::text[], $3::jsonb[]) paid (hotkey, pay)",
            self.frame.epoch,
            &hotkeys,
            &pays
        )
        .execute(&mut *self.tx)
        .await?;
        // What is sold as something else from now on is planned with again. Hosts are locked before money.
        let changed =
            miners.iter().filter(|miner| miner.is_demoted || miner.penalty_collateral > MicroUsd::ZERO);
        let changed: Vec<String> = changed.map(|miner| miner.hotkey.clone()).collect();
        collateral::renew_offers(&mut self.tx, &changed).await
    }

    /// Posts last, since others wait for the same accounts.
    async fn post(&mut self, result: &EpochResult) -> Result<()> {
        let mut customers: Vec<Uuid> = result.credits.iter().map(|credit| credit.customer.0).collect();
        customers.sort_unstable();
        customers.dedup();
        sqlx::query!(
            "select 1 as one from customers where customer_id = any($1) order by customer_id for no key update",
            &customers
        )
        .fetch_all(&mut *self.tx)
        .await?;
        let credits = result.credits.iter().map(|credit| {
            Posting::credit_for_breach(credit.job, credit.customer, credit.lease, credit.amount)
        });
        let miners = result.miners.iter().flat_map(|miner| {
            let hotkey = &miner.hotkey;
            let cash = Posting::cash(self.frame.epoch, hotkey, miner.cash);
            [cash, Posting::penalty(self.frame.epoch, hotkey, miner.penalty_collateral)]
        });
        let postings: Vec<Posting> = credits.chain(miners).collect();
        ledger::post_all(&mut self.tx, &postings).await
    }
}

/// Rows that are read at once.
const PAGE: i64 = 50_000;
