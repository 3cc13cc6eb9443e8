//! What miners earned, line by line.

use nave_domain::{HostId, LeaseId, MicroUsd, Millis, Timestamp, host::Term};
use serde_json::Value;

use crate::{Result, Store, error};

/// What came of a miner in an epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EarningsRow {
    /// The epoch.
    pub epoch: i64,
    /// When it closed.
    pub closed_at: Timestamp,
    /// The miner's line in the bundle.
    pub pay: Value,
}

/// What came of a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseEarned {
    /// Which.
    pub lease: LeaseId,
    /// On which host.
    pub host: HostId,
    /// How long it ran.
    pub used: Millis,
    /// What its customer has paid.
    pub charged: MicroUsd,
    /// How it ended.
    pub outcome: String,
    /// The part of what was promised that was kept, in millionths.
    pub adherence_ppm: i32,
    /// Breaches of its host.
    pub breaches: i32,
    /// What the miner earned by it in weights.
    pub earned: MicroUsd,
    /// What is paid for it beyond the baseline, in cash.
    pub bid: MicroUsd,
    /// What went back to its customer.
    pub credit: MicroUsd,
    /// What its breaches cost the miner.
    pub penalty: MicroUsd,
    /// Why it earned nothing whatever happened: customer and miner count as one.
    pub related: Option<String>,
    /// What went wrong, and whose fault it was.
    pub events: Vec<Value>,
}

/// As what a host is sold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfferRow {
    /// The host.
    pub host: HostId,
    /// As what its owner offers it.
    pub offered: Term,
    /// Why it is sold as spot all the same: `probation`, `demoted` or `collateral`; none where it is not.
    pub spot_because: Option<String>,
}

impl Store {
    /// What came of a miner, epoch by epoch, the newest first, below `before`; once the weights are revealed.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn earnings(&self, hotkey: &str, before: Option<i64>, limit: i64) -> Result<Vec<EarningsRow>> {
        let rows = sqlx::query!(
            r#"select epoch, closed_at_ms as "closed_at_ms!", pay from epoch_pay join epochs using (epoch)
               where hotkey = $1 and epoch < $2 and state = 'confirmed' order by epoch desc limit $3"#,
            hotkey,
            before.unwrap_or(i64::MAX),
            limit
        )
        .fetch_all(&self.pool)
        .await?;
        let rows = rows.into_iter().map(|row| EarningsRow {
            epoch: row.epoch,
            closed_at: Timestamp(row.closed_at_ms),
            pay: row.pay,
        });
        Ok(rows.collect())
    }

    /// What came of a miner's leases in an epoch whose weights are revealed, with what went wrong in each, after one of them.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn earnings_of_leases(
        &self,
        hotkey: &str,
        epoch: i64,
        after: Option<LeaseId>,
        limit: i64,
    ) -> Result<Vec<LeaseEarned>> {
        let rows = sqlx::query!(
            r#"select p.lease_id, l.host_id, l.used_ms, l.charged, l.outcome ->> 'kind' as "outcome!", adherence, breaches,
                used, bid, credit, penalty, e.related,
                array(select jsonb_build_object('event', event_id, 'kind', kind, 'blame', blame, 'confirmed_by', confirmed_by,
                        'from_ms', from_ms, 'until_ms', until_ms, 'detail', detail)
                      from events v where v.lease_id = p.lease_id and v.epoch = p.epoch order by from_ms, event_id) as "events!"
               from lease_pay p join leases l using (lease_id)
               join epoch_leases e on e.epoch = p.epoch and e.lease_id = p.lease_id
               join epochs on epochs.epoch = p.epoch and epochs.state = 'confirmed'
               where p.hotkey = $1 and p.epoch = $2 and ($3::uuid is null or p.lease_id > $3)
               order by p.lease_id limit $4"#,
            hotkey,
            epoch,
            after.map(|id| id.0),
            limit
        )
        .fetch_all(&self.pool)
        .await?;
        let rows = rows.into_iter().map(|row| LeaseEarned {
            lease: row.lease_id.into(),
            host: row.host_id.into(),
            used: Millis(row.used_ms),
            charged: MicroUsd(row.charged),
            outcome: row.outcome,
            adherence_ppm: row.adherence,
            breaches: row.breaches,
            earned: MicroUsd(row.used),
            bid: MicroUsd(row.bid),
            credit: MicroUsd(row.credit),
            penalty: MicroUsd(row.penalty),
            related: row.related,
            events: row.events,
        });
        Ok(rows.collect())
    }

    /// As what a miner's hosts are sold.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn offers(&self, hotkey: &str) -> Result<Vec<OfferRow>> {
        let rows = sqlx::query!(
            r#"select host_id as "host_id!", offered as "offered!", spot_because from offers where hotkey = $1 order by host_id"#,
            hotkey
        )
        .fetch_all(&self.pool)
        .await?;
        let rows = rows.into_iter().map(|row| {
            Ok(OfferRow {
                host: row.host_id.into(),
                offered: error::read_name("a term", row.offered)?,
                spot_because: row.spot_because,
            })
        });
        rows.collect()
    }
}
