//! What miners leave as collateral: it backs offers on demand, and pays for breaches that pay does not cover.

use nave_domain::{
    CustomerId, MicroUsd, Timestamp,
    ledger::{Account, Posting},
};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{Result, Store, StoreError, ledger, related};

/// How often a miner may have called collateral back without having been paid.
const CALLS_MAX: i64 = 8;

/// A miner's collateral.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CollateralRow {
    /// What is there, less what penalties took.
    pub balance: MicroUsd,
    /// Calls for it that are not paid, the oldest first.
    pub called: Vec<CallRow>,
}

/// Collateral that a miner wants back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallRow {
    /// Which call.
    pub call: Uuid,
    /// How much.
    pub amount: MicroUsd,
    /// Before then it is not paid.
    pub due_at: Timestamp,
}

/// The epoch that is open; it does not close before the transaction ends.
async fn open_epoch(tx: &mut PgConnection) -> Result<i64> {
    let epoch = sqlx::query_scalar!("select epoch from epochs where state = 'open' for share");
    epoch.fetch_optional(tx).await?.ok_or(StoreError::NotFound("epoch"))
}

/// Notes a movement; `false` where it was noted before.
async fn note(tx: &mut PgConnection, hotkey: &str, epoch: i64, amount: MicroUsd, key: &str) -> Result<bool> {
    let noted = sqlx::query!(
        "insert into collateral_moves (hotkey, epoch, amount, key) values ($1, $2, $3, $4)
         on conflict on constraint collateral_moves_key do nothing",
        hotkey,
        epoch,
        amount.0,
        key
    )
    .execute(tx)
    .await?;
    Ok(noted.rows_affected() == 1)
}

impl Store {
    /// Adds to a miner's collateral, once per `key`: what came from outside, or of a customer's balance, who then counts
    /// as one with that miner. Says whether it was added now.
    ///
    /// # Errors
    /// [`StoreError::BalanceTooLow`] where the customer has less, [`StoreError::NotFound`] while no epoch is open.
    pub async fn collateral_post(
        &self,
        hotkey: &str,
        from: Option<CustomerId>,
        amount: MicroUsd,
        key: &str,
    ) -> Result<bool> {
        let mut tx = self.begin().await?;
        let epoch = open_epoch(&mut tx).await?;
        let posting = Posting::collateral(key, from, hotkey, amount);
        if let Some(customer) = from {
            ledger::lock(&mut tx, customer).await?;
            related::set(&mut tx, customer, hotkey, "its collateral is from the customer").await?;
        }
        let fresh = amount > MicroUsd::ZERO && note(&mut tx, hotkey, epoch, amount, &posting.key).await?;
        if fresh {
            ledger::post(&mut tx, &posting).await?;
        }
        tx.commit().await?;
        Ok(fresh)
    }

    /// Calls collateral back. It backs no offer from now on, and is paid when the time has passed that the parameters say.
    ///
    /// # Errors
    /// [`StoreError::BalanceTooLow`] where there is not so much that was not called back before, [`StoreError::TooMany`] where
    /// eight calls wait to be paid.
    pub async fn collateral_call(&self, hotkey: &str, amount: MicroUsd) -> Result<CallRow> {
        let mut tx = self.begin().await?;
        // What its hosts are sold as may be another then.
        renew_offers(&mut tx, &[hotkey.to_owned()]).await?;
        let account = format!("collateral:{hotkey}");
        let left = sqlx::query_scalar!(
            r#"select balance - coalesce((
                   select sum(amount) from collateral_calls where hotkey = $2 and paid is null), 0)::bigint as "left!"
               from ledger_accounts where account = $1 for update"#,
            account,
            hotkey
        )
        .fetch_optional(&mut *tx)
        .await?;
        if amount <= MicroUsd::ZERO || left.unwrap_or(0) < amount.0 {
            return Err(StoreError::BalanceTooLow);
        }
        let open = sqlx::query_scalar!(
            r#"select count(*) as "count!" from collateral_calls where hotkey = $1 and paid is null"#,
            hotkey
        );
        if open.fetch_one(&mut *tx).await? >= CALLS_MAX {
            return Err(StoreError::TooMany("calls"));
        }
        let call = Uuid::now_v7();
        let due = sqlx::query_scalar!(
            "insert into collateral_calls (call_id, hotkey, amount, due_at_ms)
             select $1, $2, $3, now_ms() + coalesce((parameters_of(max(epoch)) ->> 'cooldown_ms')::bigint, 0) from epochs
             returning due_at_ms",
            call,
            hotkey,
            amount.0
        )
        .fetch_one(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(CallRow { call, amount, due_at: Timestamp(due) })
    }

    /// A miner's collateral.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn collateral(&self, hotkey: &str) -> Result<CollateralRow> {
        let account = format!("collateral:{hotkey}");
        let balance = sqlx::query_scalar!("select balance from ledger_accounts where account = $1", account)
            .fetch_optional(&self.pool)
            .await?;
        let called = sqlx::query!(
            "select call_id, amount, due_at_ms from collateral_calls where hotkey = $1 and paid is null order by call_id",
            hotkey
        )
        .fetch_all(&self.pool)
        .await?;
        let called = called.into_iter().map(|row| CallRow {
            call: row.call_id,
            amount: MicroUsd(row.amount),
            due_at: Timestamp(row.due_at_ms),
        });
        Ok(CollateralRow { balance: MicroUsd(balance.unwrap_or(0)), called: called.collect() })
    }

    /// Pays the collateral that was called back and whose time has come, as far as it exceeds what the miner owes; returns
    /// how many calls were paid. A miner waits while an epoch is not settled, or an event of theirs stands
    /// in none, and a call waits while what it wants backs leases. Each miner has a transaction, of eight calls at most.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn collateral_pay(&self) -> Result<usize> {
        let due = sqlx::query!(
            "select distinct hotkey from collateral_calls where paid is null and due_at_ms <= now_ms() order by hotkey"
        )
        .fetch_all(&self.pool)
        .await?;
        let mut paid = 0;
        for row in due {
            paid += self.collateral_pay_to(&row.hotkey).await?;
        }
        Ok(paid)
    }

    async fn collateral_pay_to(&self, hotkey: &str) -> Result<usize> {
        let mut tx = self.begin().await?;
        let epoch = open_epoch(&mut tx).await?;
        let Some(balance) = lock(&mut tx, hotkey).await? else { return Ok(0) };
        if is_undecided(&mut tx, hotkey).await? {
            return Ok(0);
        }
        let mut left = balance.saturating_sub(owes(&mut tx, hotkey).await?).max(0);
        let backs = backs(&mut tx, hotkey).await?;
        let calls = sqlx::query!(
            "select call_id, amount from collateral_calls
             where hotkey = $1 and paid is null and due_at_ms <= now_ms() order by call_id for update",
            hotkey
        )
        .fetch_all(&mut *tx)
        .await?;
        let mut paid = 0;
        for call in calls {
            let amount = MicroUsd(call.amount.min(left));
            left -= amount.0;
            if left < backs {
                break;
            }
            paid += 1;
            let posting = Posting::collateral_back(call.call_id, hotkey, amount);
            if amount > MicroUsd::ZERO {
                note(&mut tx, hotkey, epoch, MicroUsd::ZERO.minus(amount)?, &posting.key).await?;
                ledger::post(&mut tx, &posting).await?;
            }
            sqlx::query!(
                "update collateral_calls set paid = $2, paid_at_ms = now_ms() where call_id = $1",
                call.call_id,
                amount.0
            )
            .execute(&mut *tx)
            .await?;
        }
        tx.commit().await?;
        Ok(paid)
    }
}

/// Locks what collateral is paid back from and to, in the order of postings, and says how much is there; none where there
/// never was any.
async fn lock(tx: &mut PgConnection, hotkey: &str) -> Result<Option<i64>> {
    let mut balance = None;
    for account in [Account::Funding, Account::Collateral(hotkey.to_owned())] {
        let locked = sqlx::query_scalar!(
            "select balance from ledger_accounts where account = $1 for no key update",
            account.to_string()
        );
        balance = locked.fetch_optional(&mut *tx).await?;
    }
    Ok(balance)
}

/// Whether something may yet have to be paid by a miner's collateral.
async fn is_undecided(tx: &mut PgConnection, hotkey: &str) -> Result<bool> {
    Ok(sqlx::query_scalar!(
        r#"select exists (select from epochs where state = 'closed')
            or exists (select from events e join hosts h using (host_id)
                       where h.hotkey = $1 and e.epoch is null
                         and not exists (select from lease_pay p where p.lease_id = e.lease_id)) as "undecided!""#,
        hotkey
    )
    .fetch_one(tx)
    .await?)
}

/// What a miner owes, after the last epoch that was settled.
async fn owes(tx: &mut PgConnection, hotkey: &str) -> Result<i64> {
    let carry = sqlx::query_scalar!(
        "select carry from epoch_pay where hotkey = $1 order by epoch desc limit 1",
        hotkey
    )
    .fetch_optional(tx)
    .await?;
    Ok(carry.map_or(0, |carry| carry.min(0).saturating_neg()))
}

/// What a miner's open leases on demand must be backed by, whatever is offered now: the price of the time that the parameters
/// say of each.
async fn backs(tx: &mut PgConnection, hotkey: &str) -> Result<i64> {
    let needed = sqlx::query_scalar!(
        r#"with terms as (
                select coalesce((parameters_of(max(epoch)) ->> 'collateral_ms')::bigint, 0) as collateral_ms from epochs)
           select coalesce(ceil(sum(l.gpu_hour::numeric * l.milli_gpu / 1000 + l.vcpu_hour::numeric * l.milli_cpu / 1000
                + l.gib_hour::numeric * l.memory / 1073741824) * max(collateral_ms) / 3600000), 0)::bigint as "needed!"
           from leases l join hosts h using (host_id) cross join terms
           where h.hotkey = $1 and l.state <> 'closed' and l.term = 'on_demand'
             and not exists (select from machines m where m.host_id = l.host_id)"#,
        hotkey
    );
    Ok(needed.fetch_one(tx).await?)
}

/// Has what was planned with the hosts of these miners planned again.
pub(crate) async fn renew_offers(tx: &mut PgConnection, hotkeys: &[String]) -> Result<()> {
    sqlx::query!(
        "with of as (
            select host_id from hosts where hotkey = any($1) and state in ('ready', 'suspect', 'verifying')
            order by host_id for update)
         update hosts h set generation = generation + 1 from of where h.host_id = of.host_id",
        hotkeys
    )
    .execute(tx)
    .await?;
    Ok(())
}
