//! Quotes: placements that are held for a customer until they expire.
//!
//! A customer asks, the scheduler answers, a job takes the place. Between the answer and its expiry
//! the capacity counts as used; nothing needs to happen when it expires.

mod still;

use std::collections::BTreeMap;

use nave_crash_point::crash_point;
use nave_domain::{
    CustomerId, HostId, JobId, MicroUsd, Millis, QuoteId, Timestamp, job::JobRequest, lease::ChosenFor,
    ledger::Account, rate,
};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    Result, Store, StoreError,
    error::{self, readable},
    ledger,
    notify::{Changes, announce},
    place::{Grounds, Placement},
    schedule::Occupied,
};

/// A wish for a quote.
#[derive(Debug, Clone)]
pub struct Asking<'a> {
    /// Who asks.
    pub customer: CustomerId,
    /// Chosen by the customer.
    pub key: &'a str,
    /// SHA-256 of the call's body, so that a key is not used for another one.
    pub hash: [u8; 32],
    /// What a job would ask for, checked.
    pub request: &'a JobRequest,
    /// For how long it is held from its answer on; none where only the answer is wanted.
    pub hold: Option<Millis>,
}

/// A wish for a quote that nobody has answered yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AskedQuote {
    /// Its id; ids sort by age.
    pub quote: QuoteId,
    /// Who asks.
    pub customer: CustomerId,
    /// What a job would ask for, without the command and its variables.
    pub request: JobRequest,
    /// When it was asked for.
    pub asked_at: Timestamp,
    /// Whether the place is to be held, or only the answer is wanted.
    pub is_held: bool,
}

/// What the scheduler says to a wish for a quote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QuoteAnswer {
    /// A place. The job in the placement is the quote itself.
    Place(Box<Placement>),
    /// There is none now: a code for programs and a sentence for people.
    None(String, String),
}

/// A host that was considered for a quote and not chosen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Considered {
    /// Which.
    pub host: HostId,
    /// What an hour would cost there.
    pub hourly: MicroUsd,
    /// Why not, for programs.
    pub code: String,
}

/// What is written down as the answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Answered {
    answer: QuoteAnswer,
    considered: Vec<Considered>,
}

/// A quote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuoteRow {
    /// Its id.
    pub quote: QuoteId,
    /// What a job would ask for, without the command and its variables.
    pub request: JobRequest,
    /// When it was asked for.
    pub asked_at: Timestamp,
    /// What the scheduler said.
    pub answer: Option<QuoteAnswer>,
    /// Hosts that were not chosen, best first.
    pub considered: Vec<Considered>,
    /// Until when it is held.
    pub expires_at: Option<Timestamp>,
    /// Whether that is over.
    pub is_expired: bool,
    /// Whether nobody will answer it any more.
    pub is_lapsed: bool,
    /// The job that has used it.
    pub job: Option<JobId>,
}

/// Why a quote cannot be used or had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuoteFault {
    /// Its time is over.
    #[error("the quote has expired")]
    Expired,
    /// A job has used it.
    #[error("the quote was used by {0}")]
    Used(JobId),
    /// It holds nothing.
    #[error("the quote holds no place")]
    Empty,
    /// It is for another request.
    #[error("the quote is for another request: {0} differs")]
    Differs(String),
    /// Its host takes no jobs now.
    #[error("the host of the quote cannot take the job now")]
    Void,
    /// The customer has as many as they may have.
    #[error("there are {OPEN_MAX} open quotes, which is the most a customer can have")]
    TooMany,
    /// The customer has asked as often as they may.
    #[error("{RECENT_MAX} quotes were asked for within a minute, dry runs included, which is the most")]
    TooOften,
}

/// Most open quotes of one customer.
pub const OPEN_MAX: i64 = 4;
/// Most quotes that one customer asks for in a minute, dry runs included: what is kept of each is small
/// but stays for [`KEPT_MS`].
pub const RECENT_MAX: i64 = 30;
/// How long a wish waits for an answer before it is given up.
const ASKED_MS_MAX: i64 = 30_000;
/// Longest time for which a place is held, as the table has it.
const HOLD_MS_MAX: i64 = 300_000;
/// How long a quote is kept.
const KEPT_MS: i64 = 86_400_000;
/// Most quotes that are forgotten at once; more than one, so that they grow fewer.
const FORGOTTEN_MAX: i64 = 100;

/// Wishes that wait for an answer, oldest first.
pub(crate) async fn asked(tx: &mut PgConnection) -> Result<Vec<AskedQuote>> {
    let rows = sqlx::query!(
        r#"select quote_id, customer_id, request, asked_at_ms, hold_ms
           from quotes where answer is null and asked_at_ms > now_ms() - $1 order by quote_id"#,
        ASKED_MS_MAX
    )
    .fetch_all(tx)
    .await?;
    let rows = rows.into_iter().map(|row| {
        Ok(AskedQuote {
            quote: row.quote_id.into(),
            customer: row.customer_id.into(),
            request: error::read_json("a quote's request", row.request)?,
            asked_at: Timestamp(row.asked_at_ms),
            is_held: row.hold_ms > 0,
        })
    });
    Ok(rows.filter_map(readable).collect())
}

/// What quotes hold, by host.
pub(crate) async fn held(tx: &mut PgConnection) -> Result<Vec<(HostId, Occupied)>> {
    let rows = sqlx::query!(
        r#"select customer_id, host_id as "host_id!", answer as "answer!",
                request ->> 'isolation' is not distinct from 'host' as "alone!"
           from quotes where host_id is not null and job_id is null and expires_at_ms > now_ms() order by quote_id"#
    )
    .fetch_all(tx)
    .await?;
    let rows = rows.into_iter().map(|row| {
        let placement = read_place(row.answer)?;
        let part = Occupied {
            customer: row.customer_id.into(),
            alone: row.alone,
            size: placement.size,
            disk: placement.disk,
            devices: placement.devices,
            share: placement.share,
            order_bytes: 0,
        };
        Ok((row.host_id.into(), part))
    });
    Ok(rows.filter_map(readable).collect())
}

fn read_place(answer: serde_json::Value) -> Result<Placement> {
    let answered: Answered = error::read_json("the answer to a quote", answer)?;
    match answered.answer {
        QuoteAnswer::Place(placement) => Ok(*placement),
        QuoteAnswer::None(..) => Err(QuoteFault::Empty.into()),
    }
}

/// A quote that a job is about to use, locked; the first lock of its transaction.
pub(crate) struct LockedQuote {
    quote: QuoteId,
    customer: CustomerId,
    request: JobRequest,
    placement: Option<Placement>,
    is_expired: bool,
    used_by: Option<JobId>,
}

/// Locks a quote.
///
/// # Errors
/// [`StoreError::NotFound`] when the customer has no such quote.
pub(crate) async fn lock(tx: &mut PgConnection, customer: CustomerId, quote: QuoteId) -> Result<LockedQuote> {
    let row = sqlx::query!(
        r#"select request, answer, host_id, coalesce(expires_at_ms, 0) <= now_ms() as "is_expired!", job_id
           from quotes where quote_id = $1 and customer_id = $2 for update"#,
        quote.0,
        customer.0
    )
    .fetch_optional(tx)
    .await?
    .ok_or(StoreError::NotFound("quote"))?;
    let placement = row.answer.filter(|_| row.host_id.is_some()).map(read_place).transpose()?;
    Ok(LockedQuote {
        quote,
        customer,
        request: error::read_json("a quote's request", row.request)?,
        placement,
        is_expired: row.is_expired,
        used_by: row.job_id.map(JobId),
    })
}

impl LockedQuote {
    /// The place that it holds, for a job that asks for the same.
    ///
    /// # Errors
    /// [`StoreError::Quote`] when it cannot be used for that.
    pub(crate) fn place(&self, job: JobId, request: &JobRequest) -> Result<Placement> {
        if let Some(job) = self.used_by {
            return Err(QuoteFault::Used(job).into());
        }
        let Some(placement) = &self.placement else { return Err(QuoteFault::Empty.into()) };
        if self.is_expired {
            return Err(QuoteFault::Expired.into());
        }
        if let Some(field) = differs(&self.request.placing(), &request.placing())? {
            return Err(QuoteFault::Differs(field).into());
        }
        let grounds = Grounds { reason: ChosenFor::Quoted, ..placement.grounds.clone() };
        Ok(Placement { job, grounds, gang: None, ..placement.clone() })
    }

    /// Notes which job has used it, once that has its lease and thereby the lock of the host: a plan that
    /// sees the quote expire from now on is stale.
    ///
    /// # Errors
    /// [`StoreError::Quote`] when it expired meanwhile, or its host is no longer what it was but for its price.
    pub(crate) async fn used(&self, tx: &mut PgConnection, placement: &Placement) -> Result<()> {
        let used = sqlx::query!(
            "update quotes set job_id = $2 where quote_id = $1 and expires_at_ms > now_ms()",
            self.quote.0,
            placement.job.0
        )
        .execute(&mut *tx)
        .await?;
        if used.rows_affected() == 0 {
            return Err(QuoteFault::Expired.into());
        }
        if still::stands(tx, self, placement).await? { Ok(()) } else { Err(QuoteFault::Void.into()) }
    }
}

/// The first field in which two requests differ.
fn differs(quoted: &JobRequest, asked: &JobRequest) -> Result<Option<String>> {
    let (quoted, asked) = (error::write_json(quoted)?, error::write_json(asked)?);
    let fields = |value: &serde_json::Value| value.as_object().cloned().unwrap_or_default();
    let (quoted, asked) = (fields(&quoted), fields(&asked));
    let names = quoted.keys().chain(asked.keys());
    Ok(names.into_iter().find(|name| quoted.get(*name) != asked.get(*name)).cloned())
}

async fn find_by_key(tx: &mut PgConnection, asking: &Asking<'_>) -> Result<Option<QuoteId>> {
    let row = sqlx::query!(
        "select quote_id, request_sha256 from quotes where customer_id = $1 and idempotency_key = $2",
        asking.customer.0,
        asking.key
    )
    .fetch_optional(tx)
    .await?;
    match row {
        None => Ok(None),
        Some(row) if row.request_sha256 == asking.hash => Ok(Some(row.quote_id.into())),
        Some(_) => Err(StoreError::KeyReused),
    }
}

/// Refuses what the customer could not pay for beside their other quotes, or has too many of. Their
/// money is locked.
async fn admit(tx: &mut PgConnection, asking: &Asking<'_>) -> Result<()> {
    let row = sqlx::query!(
        r#"select count(*) filter (where is_open) as "open!", count(*) filter (where is_recent) as "recent!",
                coalesce(sum(max_spend) filter (where is_open and hold_ms > 0), 0)::bigint as "promised!",
                coalesce((select balance from ledger_accounts where account = $3), 0)::bigint as "available!"
           from (select hold_ms, (request ->> 'max_spend')::bigint as max_spend, asked_at_ms > now_ms() - 60000 as is_recent,
                        job_id is null and (answer is null and asked_at_ms > now_ms() - $2
                                            or host_id is not null and expires_at_ms > now_ms()) as is_open
                 from quotes where customer_id = $1 and asked_at_ms > now_ms() - $4) of_customer"#,
        asking.customer.0,
        ASKED_MS_MAX,
        Account::Available(asking.customer).to_string(),
        ASKED_MS_MAX + HOLD_MS_MAX
    )
    .fetch_one(tx)
    .await?;
    if row.open >= OPEN_MAX {
        return Err(QuoteFault::TooMany.into());
    }
    if row.recent >= RECENT_MAX {
        return Err(QuoteFault::TooOften.into());
    }
    let promised = MicroUsd(row.promised).plus(asking.request.max_spend)?;
    let is_covered = asking.hold.is_none() || row.available >= promised.0;
    if is_covered { Ok(()) } else { Err(StoreError::BalanceTooLow) }
}

/// Forgets the oldest quotes, whoever asked for them: what a job has used is in its lease. Ids sort by age:
/// only old rows are read.
async fn forget(tx: &mut PgConnection) -> Result<()> {
    sqlx::query!(
        "delete from quotes where quote_id in (
             select quote_id from quotes
             where quote_id < (select rpad(lpad(to_hex(now_ms() - $1), 12, '0'), 32, '0')::uuid)
               and asked_at_ms < now_ms() - $1
             order by quote_id limit $2 for update skip locked)",
        KEPT_MS,
        FORGOTTEN_MAX
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// The answer, unless holding a place costs more than the spend cap would pay for running there as long.
fn affordable(answer: &QuoteAnswer, hold: Millis, max_spend: MicroUsd) -> Result<QuoteAnswer> {
    if let QuoteAnswer::Place(placement) = answer
        && rate::charge(placement.size, hold, placement.rate)? > max_spend
    {
        let message = "max_spend does not pay for as long as the place is to be held";
        return Ok(QuoteAnswer::None("max_spend_too_low".into(), message.into()));
    }
    Ok(answer.clone())
}

impl Store {
    /// Asks for a quote. The same key and request again give the same one; it is forgotten a day later.
    ///
    /// # Errors
    /// [`StoreError::KeyReused`] for another request under the same key, [`StoreError::BalanceTooLow`] when
    /// the balance does not cover its spend cap and those of other open quotes, [`QuoteFault::TooMany`],
    /// [`QuoteFault::TooOften`].
    pub async fn quote_ask(&self, asking: &Asking<'_>) -> Result<QuoteId> {
        let mut tx = self.begin().await?;
        ledger::lock(&mut tx, asking.customer).await?;
        if let Some(quote) = find_by_key(&mut tx, asking).await? {
            return Ok(quote);
        }
        admit(&mut tx, asking).await?;
        forget(&mut tx).await?;
        // The command decides nothing, and may be long.
        let kept = JobRequest { argv: Vec::new(), env: BTreeMap::new(), ..asking.request.clone() };
        let quote = QuoteId(Uuid::now_v7());
        sqlx::query!(
            "insert into quotes (quote_id, customer_id, idempotency_key, request_sha256, request, hold_ms)
             values ($1, $2, $3, $4, $5, $6)",
            quote.0,
            asking.customer.0,
            asking.key,
            asking.hash.as_slice(),
            error::write_json(&kept)?,
            asking.hold.unwrap_or_default().0
        )
        .execute(&mut *tx)
        .await?;
        announce(&mut tx, Changes::Supply).await?;
        tx.commit().await?;
        Ok(quote)
    }

    /// Answers a wish for a quote, and holds the place from now on if it is to be held.
    ///
    /// # Errors
    /// [`StoreError::Stale`] when it was answered before or the host has changed since the snapshot.
    pub async fn quote_answer(
        &self,
        quote: QuoteId,
        answer: &QuoteAnswer,
        considered: &[Considered],
    ) -> Result<()> {
        let mut tx = self.begin().await?;
        let asked = sqlx::query!(
            r#"select hold_ms, (request ->> 'max_spend')::bigint as "max_spend!",
                    (request #>> '{limits,start_ms}')::bigint + (request #>> '{limits,run_ms}')::bigint as "longest!"
               from quotes where quote_id = $1 and answer is null for update"#,
            quote.0
        )
        .fetch_optional(&mut *tx)
        .await?
        .ok_or(StoreError::Stale("quote"))?;
        let answer = affordable(answer, Millis(asked.hold_ms), MicroUsd(asked.max_spend))?;
        let held = match &answer {
            QuoteAnswer::Place(placement) if asked.hold_ms > 0 => Some(placement),
            QuoteAnswer::Place(_) | QuoteAnswer::None(..) => None,
        };
        if let Some(placement) = held {
            crate::place::hold(&mut tx, placement, crate::place::Basis::Snapshot).await?;
            // Its job may come as late as the quote expires.
            let longest = Millis(asked.longest.saturating_add(asked.hold_ms));
            crate::held::admit(&mut tx, &[(placement, longest)]).await?;
        }
        let host = held.map(|placement| placement.host);
        sqlx::query!(
            "update quotes set answer = $2, answered_at_ms = now_ms(), host_id = $3,
                expires_at_ms = case when $3::uuid is not null then now_ms() + hold_ms end
             where quote_id = $1",
            quote.0,
            error::write_json(&Answered { answer, considered: considered.to_vec() })?,
            host.map(|host| host.0)
        )
        .execute(&mut *tx)
        .await?;
        announce(&mut tx, Changes::Quote(quote)).await?;
        crash_point!("store.quote_answer.before_commit");
        tx.commit().await?;
        crash_point!("store.quote_answer.after_commit");
        Ok(())
    }

    /// Ends a quote now, so that it holds nothing any more. Of one that holds nothing, nothing changes.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when the customer has no such quote, [`QuoteFault::Used`] when a job has used it.
    pub async fn quote_release(&self, customer: CustomerId, quote: QuoteId) -> Result<()> {
        let mut tx = self.begin().await?;
        if let Some(job) = lock(&mut tx, customer, quote).await?.used_by {
            return Err(QuoteFault::Used(job).into());
        }
        let answer = QuoteAnswer::None("released".into(), "it was released before it was answered".into());
        sqlx::query!(
            "update quotes set expires_at_ms = case when host_id is not null then least(expires_at_ms, now_ms()) end,
                answer = coalesce(answer, $2), answered_at_ms = coalesce(answered_at_ms, now_ms())
             where quote_id = $1",
            quote.0,
            error::write_json(&Answered { answer, considered: Vec::new() })?
        )
        .execute(&mut *tx)
        .await?;
        announce(&mut tx, Changes::Quote(quote)).await?;
        announce(&mut tx, Changes::Supply).await?;
        Ok(tx.commit().await?)
    }

    /// One of a customer's quotes.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when the customer has no such quote.
    pub async fn quote_get(&self, customer: CustomerId, quote: QuoteId) -> Result<QuoteRow> {
        let row = sqlx::query!(
            r#"select request, asked_at_ms, answer, expires_at_ms, job_id,
                    coalesce(expires_at_ms <= now_ms(), false) as "is_expired!",
                    answer is null and asked_at_ms <= now_ms() - $3 as "is_lapsed!"
               from quotes where quote_id = $1 and customer_id = $2"#,
            quote.0,
            customer.0,
            ASKED_MS_MAX
        )
        .fetch_optional(&self.pool)
        .await?
        .ok_or(StoreError::NotFound("quote"))?;
        let answered: Option<Answered> =
            row.answer.map(|value| error::read_json("the answer to a quote", value)).transpose()?;
        let (answer, considered) =
            answered.map_or((None, Vec::new()), |answered| (Some(answered.answer), answered.considered));
        Ok(QuoteRow {
            quote,
            request: error::read_json("a quote's request", row.request)?,
            asked_at: Timestamp(row.asked_at_ms),
            answer,
            considered,
            expires_at: row.expires_at_ms.map(Timestamp),
            is_expired: row.is_expired,
            is_lapsed: row.is_lapsed,
            job: row.job_id.map(JobId),
        })
    }
}
