//! The ledger: postings with two entries each, and the balances they add up to.

use nave_domain::{
    CustomerId, JobId, MicroUsd, Timestamp,
    ledger::{Account, Posting, PostingKind},
};
use sqlx::PgConnection;

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
        "insert into ledger_postings (idempotency_key, kind, job_id, customer_id, machine_id) values ($1, $2, $3, $4, $5)
         on conflict on constraint ledger_postings_key do nothing returning posting_id",
        posting.key,
        posting.kind.as_str(),
        posting.job.map(|job| job.0),
        customer.map(|customer| customer.0),
        posting.machine
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

async fn enter(tx: &mut PgConnection, posting: i64, account: Account, amount: MicroUsd) -> Result<()> {
    let name = account.to_string();
    sqlx::query!(
        "insert into ledger_accounts (account, customer_id) values ($1, $2) on conflict do nothing",
        name,
        account.customer().map(|customer| customer.0)
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
                   join ledger_entries e on e.posting_id = p.posting_id and e.account = 'treasury' group by p.job_id
               ) l on l.job_id = j.job_id where j.charged <> coalesce(l.paid, 0)
               union all
               select 'machine ' || m.machine_id || ' has cost ' || m.cost || ', the ledger says ' || coalesce(l.paid, 0)
               from machines m left join (
                   select p.machine_id, sum(e.amount) as paid from ledger_postings p
                   join ledger_entries e on e.posting_id = p.posting_id and e.account = 'clouds' group by p.machine_id
               ) l on l.machine_id = m.machine_id where m.cost <> coalesce(l.paid, 0)"#
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(unbalanced)
    }
}
