//! The ledger: postings with two entries each, and the balances they add up to.

use nave_domain::{
    CustomerId, JobId, MicroUsd, Timestamp,
    ledger::{Account, Posting, PostingKind},
};
use serde::Serialize;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{Result, Store, error};

/// A customer's money.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BalanceRow {
    /// What can be spent.
    pub available: MicroUsd,
    /// What is set aside for open jobs.
    pub held: MicroUsd,
}

/// One posting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerRow {
    /// Order.
    pub posting: i64,
    /// When.
    pub at: Timestamp,
    /// What for.
    pub kind: PostingKind,
    /// The job, if for one.
    pub job: Option<JobId>,
    /// Account the money left.
    pub from: String,
    /// Account it arrived at.
    pub to: String,
    /// How much.
    pub amount: MicroUsd,
}

/// Serialises the money of one customer, so that postings never wait for each other in a circle.
pub(crate) async fn lock(tx: &mut PgConnection, customer: CustomerId) -> Result<()> {
    sqlx::query!("select 1 as one from customers where customer_id = $1 for no key update", customer.0)
        .fetch_one(tx)
        .await?;
    Ok(())
}

/// Posts once: `false` when this key was posted before. Amounts of zero leave no trace.
///
/// Call [`lock`] first. Balances change in the same transaction.
pub(crate) async fn post(tx: &mut PgConnection, posting: &Posting) -> Result<bool> {
    if posting.amount == MicroUsd::ZERO {
        return Ok(false);
    }
    let customer = posting.from.customer().or(posting.to.customer());
    let id = sqlx::query_scalar!(
        "insert into ledger_postings (idempotency_key, kind, job_id, customer_id, machine_id, hotkey)
         values ($1, $2, $3, $4, $5, $6)
         on conflict on constraint ledger_postings_key do nothing returning posting_id",
        posting.key,
        posting.kind.as_str(),
        posting.job.map(|job| job.0),
        customer.map(|customer| customer.0),
        posting.machine,
        posting.from.hotkey().or(posting.to.hotkey())
    )
    .fetch_optional(&mut *tx)
    .await?;
    let Some(id) = id else { return Ok(false) };
    let mut entries = posting.entries()?;
    entries.sort_unstable();
    for (account, amount) in entries {
        enter(tx, id, account, amount).await?;
    }
    Ok(true)
}

/// Posts many at once, as [`post`] would one after the other, for customers that are locked. Those that were posted before
/// are left out.
pub(crate) async fn post_all(tx: &mut PgConnection, postings: &[Posting]) -> Result<()> {
    for some in postings.chunks(POSTINGS_AT_ONCE) {
        let fresh = some.iter().filter(|posting| posting.amount > MicroUsd::ZERO);
        let fresh = error::write_json(&fresh.map(NewPosting::of).collect::<Vec<_>>())?;
        sqlx::query!(
            "insert into ledger_accounts (account, customer_id, hotkey)
             select distinct side.account, side.customer, side.hotkey
             from jsonb_to_recordset($1) fresh (source jsonb, target jsonb)
             cross join lateral (values (source), (target)) sides (side)
             cross join lateral jsonb_to_record(sides.side) side (account text, customer uuid, hotkey text)
             order by side.account on conflict do nothing",
            fresh
        )
        .execute(&mut *tx)
        .await?;
        sqlx::query!(
            "with fresh as (
                select * from jsonb_to_recordset($1) fresh (
                    key text, kind text, job uuid, customer uuid, hotkey text, source jsonb, target jsonb, amount bigint)),
             posted as (
                insert into ledger_postings (idempotency_key, kind, job_id, customer_id, hotkey)
                select key, kind, job, customer, hotkey from fresh
                on conflict on constraint ledger_postings_key do nothing returning posting_id, idempotency_key),
             sides as materialized (
                select posting_id, side.account, side.amount from posted join fresh on key = idempotency_key
                cross join lateral (values (source ->> 'account', -amount), (target ->> 'account', amount))
                    side (account, amount)),
             summed as (
                update ledger_accounts a set balance = balance + s.amount
                from (select account, sum(amount)::bigint as amount from sides group by account) s
                where a.account = s.account)
             insert into ledger_entries (posting_id, account, amount) select posting_id, account, amount from sides",
            fresh
        )
        .execute(&mut *tx)
        .await?;
    }
    Ok(())
}

/// Postings in one statement.
const POSTINGS_AT_ONCE: usize = 5_000;

/// A posting, as the database reads it.
#[derive(Serialize)]
struct NewPosting<'a> {
    key: &'a str,
    kind: &'static str,
    job: Option<Uuid>,
    customer: Option<Uuid>,
    hotkey: Option<&'a str>,
    source: Side<'a>,
    target: Side<'a>,
    amount: i64,
}

/// An account, as the database reads it.
#[derive(Serialize)]
struct Side<'a> {
    account: String,
    customer: Option<Uuid>,
    hotkey: Option<&'a str>,
}

impl<'a> Side<'a> {
    fn of(account: &'a Account) -> Self {
        let customer = account.customer().map(|customer| customer.0);
        Self { account: account.to_string(), customer, hotkey: account.hotkey() }
    }
}

impl<'a> NewPosting<'a> {
    fn of(posting: &'a Posting) -> Self {
        let (source, target) = (Side::of(&posting.from), Side::of(&posting.to));
        Self {
            key: &posting.key,
            kind: posting.kind.as_str(),
            job: posting.job.map(|job| job.0),
            customer: source.customer.or(target.customer),
            hotkey: source.hotkey.or(target.hotkey),
            source,
            target,
            amount: posting.amount.0,
        }
    }
}

async fn enter(tx: &mut PgConnection, posting: i64, account: Account, amount: MicroUsd) -> Result<()> {
    let name = account.to_string();
    sqlx::query!(
        "insert into ledger_accounts (account, customer_id, hotkey) values ($1, $2, $3) on conflict do nothing",
        name,
        account.customer().map(|customer| customer.0),
        account.hotkey()
    )
    .execute(&mut *tx)
    .await?;
    sqlx::query!("update ledger_accounts set balance = balance + $2 where account = $1", name, amount.0)
        .execute(&mut *tx)
        .await?;
    sqlx::query!(
        "insert into ledger_entries (posting_id, account, amount) values ($1, $2, $3)",
        posting,
        name,
        amount.0
    )
    .execute(tx)
    .await?;
    Ok(())
}

macro_rules! ledger_row {
    ($row:expr) => {{
        let row = $row;
        Ok(LedgerRow {
            posting: row.posting_id,
            at: Timestamp(row.at_ms),
            kind: error::read_name("a posting's kind", row.kind)?,
            job: row.job_id.map(JobId),
            from: row.from_account,
            to: row.to_account,
            amount: MicroUsd(row.amount),
        })
    }};
}

impl Store {
    /// Gives a customer credit, once per `key`.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn credit(&self, customer: CustomerId, key: &str, amount: MicroUsd) -> Result<bool> {
        let mut tx = self.begin().await?;
        let fresh = post(&mut tx, &Posting::credit(key, customer, amount)).await?;
        tx.commit().await?;
        Ok(fresh)
    }

    /// A customer's money.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn balance(&self, customer: CustomerId) -> Result<BalanceRow> {
        let row = sqlx::query!(
            r#"select
                coalesce(sum(balance) filter (where account = $1), 0)::bigint as "available!",
                coalesce(sum(balance) filter (where account = $2), 0)::bigint as "held!"
               from ledger_accounts where account in ($1, $2)"#,
            Account::Available(customer).to_string(),
            Account::Held(customer).to_string()
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(BalanceRow { available: MicroUsd(row.available), held: MicroUsd(row.held) })
    }

    /// What clouds got for machines, as far as it is posted.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn clouds_paid(&self) -> Result<MicroUsd> {
        let clouds = Account::Clouds.to_string();
        let balance = sqlx::query_scalar!("select balance from ledger_accounts where account = $1", clouds);
        Ok(MicroUsd(balance.fetch_optional(&self.pool).await?.unwrap_or(0)))
    }

    /// A customer's postings below `before`, newest first.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn ledger_list(
        &self,
        customer: CustomerId,
        before: Option<i64>,
        limit: i64,
    ) -> Result<Vec<LedgerRow>> {
        let rows = sqlx::query!(
            r#"select p.posting_id, p.at_ms, p.kind, p.job_id, f.account as from_account, t.account as to_account,
                      t.amount
               from ledger_postings p
               join ledger_entries f on f.posting_id = p.posting_id and f.amount < 0
               join ledger_entries t on t.posting_id = p.posting_id and t.amount > 0
               where p.customer_id = $1 and p.posting_id < $2
               order by p.posting_id desc limit $3"#,
            customer.0,
            before.unwrap_or(i64::MAX),
            limit
        )
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter().map(|row| ledger_row!(row)).collect()
    }

    /// A job's postings, oldest first.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn ledger_of_job(&self, job: JobId) -> Result<Vec<LedgerRow>> {
        let rows = sqlx::query!(
            r#"select p.posting_id, p.at_ms, p.kind, p.job_id, f.account as from_account, t.account as to_account,
                      t.amount
               from ledger_postings p
               join ledger_entries f on f.posting_id = p.posting_id and f.amount < 0
               join ledger_entries t on t.posting_id = p.posting_id and t.amount > 0
               where p.job_id = $1 order by p.posting_id"#,
            job.0
        )
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter().map(|row| ledger_row!(row)).collect()
    }

    /// Whether the books balance: every posting and all balances sum to zero, each
    /// balance is the sum of its entries, and jobs and machines say what the ledger says of them. Returns what does not, in sentences.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn ledger_audit(&self) -> Result<Vec<String>> {
        let unbalanced = sqlx::query_scalar!(
            r#"select 'posting ' || posting_id || ' sums to ' || sum(amount) as "problem!"
               from ledger_entries group by posting_id having sum(amount) <> 0 or count(*) <> 2
               union all
               select 'account ' || a.account || ' shows ' || a.balance || ', its entries sum to '
                      || coalesce(sum(e.amount), 0)
               from ledger_accounts a left join ledger_entries e on e.account = a.account
               group by a.account, a.balance having a.balance <> coalesce(sum(e.amount), 0)
               union all
               select 'job ' || j.job_id || ' was charged ' || j.charged || ', the ledger says ' || coalesce(l.paid, 0)
               from jobs j left join (
                   select p.job_id, sum(e.amount) as paid from ledger_postings p
                   join ledger_entries e on e.posting_id = p.posting_id and e.account = 'treasury'
                   -- What breaches give back is no part of what a job was charged.
                   where p.kind <> 'credit_for_breach' group by p.job_id
               ) l on l.job_id = j.job_id where j.charged <> coalesce(l.paid, 0)
               union all
               select 'machine ' || m.machine_id || ' has cost ' || m.cost || ', the ledger says ' || coalesce(l.paid, 0)
               from machines m left join (
                   select p.machine_id, sum(e.amount) as paid from ledger_postings p
                   join ledger_entries e on e.posting_id = p.posting_id and e.account = 'clouds' group by p.machine_id
               ) l on l.machine_id = m.machine_id where m.cost <> coalesce(l.paid, 0)
               union all
               select 'lease ' || p.lease_id || ' gives ' || p.credit || ' back of ' || l.charged
               from lease_pay p join leases l using (lease_id) where p.credit > l.charged or p.credit < 0
               union all
               select 'epoch ' || s.epoch || ' gives ' || s.credit || ' back, the ledger says ' || s.posted from (
                   select p.epoch, sum(p.credit) as credit, coalesce(sum(e.amount), 0) as posted
                   from lease_pay p
                   left join ledger_postings l on l.idempotency_key = 'credit_for_breach:lease_' || replace(p.lease_id::text, '-', '')
                   left join ledger_entries e on e.posting_id = l.posting_id and e.amount > 0
                   where p.credit <> 0 group by p.epoch) s where s.credit <> s.posted
               union all
               select 'miner ' || m.hotkey || ' is to get ' || m.cash || ', the ledger says ' || coalesce(l.paid, 0)
               from (select hotkey, sum((pay ->> 'cash')::bigint) as cash from epoch_pay group by hotkey) m
               left join (
                   select p.hotkey, sum(e.amount) as paid from ledger_postings p
                   join ledger_entries e on e.posting_id = p.posting_id and e.amount > 0
                   where p.kind = 'cash' group by p.hotkey
               ) l on l.hotkey = m.hotkey where m.cash <> coalesce(l.paid, 0)
               union all
               select 'miner ' || m.hotkey || ' has ' || m.collateral || ' as collateral, the ledger says '
                      || coalesce(a.balance, 0)
               from (select hotkey, sum(amount) as collateral from (
                         select hotkey, amount from collateral_moves
                         union all
                         select hotkey, -(pay ->> 'penalty_collateral')::bigint from epoch_pay) moved group by hotkey) m
               left join ledger_accounts a on a.account = 'collateral:' || m.hotkey
               where m.collateral <> coalesce(a.balance, 0)"#
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(unbalanced)
    }
}
