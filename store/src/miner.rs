//! What the owner of a host, or the operator, decides about it.

use nave_domain::{
    HostId,
    host::{self, HostEvent, HostState, Term},
    rate::{GpuPrice, Rate},
    wish::Region,
};

use sqlx::PgConnection;

use crate::{
    Result, Store, StoreError, error, event, host as hosts, look,
    notify::{Changes, announce},
};

/// What an owner changes; what is none stays.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostPatch {
    /// Its price.
    pub rate: Option<Rate>,
    /// How the price of its GPUs is set from now on.
    pub gpu_price: Option<GpuPrice>,
    /// For how long its capacity is offered.
    pub term: Option<Term>,
    /// Where it is.
    pub region: Option<Region>,
    /// Whether it takes no new jobs for now.
    pub paused: Option<bool>,
}

/// Who takes a host out, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Departure {
    /// Its owner, once its jobs are done.
    Drain,
    /// Its owner, at once: its jobs run again elsewhere.
    Leave,
    /// The operator, at once and for good.
    Ban,
    /// The market, whose machine it is: it takes no more jobs, and goes back after those it has.
    End,
    /// The market, whose machine it is: that goes back to its cloud.
    Return,
}

impl Departure {
    fn event(self) -> HostEvent {
        match self {
            Self::Drain | Self::End => HostEvent::Drain,
            Self::Leave | Self::Return => HostEvent::Leave,
            Self::Ban => HostEvent::Ban,
        }
    }

    fn reason(self) -> (&'static str, &'static str) {
        match self {
            Self::Drain => ("drained", "its owner has drained it"),
            Self::Leave => ("left", "its owner has taken it out"),
            Self::Ban => ("banned", "the operator has sent it away"),
            Self::End => ("rental_ends", "it is rented, and its rental ends: it takes no more jobs"),
            Self::Return => ("returned", "its machine goes back to the cloud"),
        }
    }
}

impl Store {
    /// Whose host it is.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when it does not exist.
    pub async fn host_hotkey(&self, host: HostId) -> Result<String> {
        let hotkey = sqlx::query_scalar!("select hotkey from hosts where host_id = $1", host.0);
        hotkey.fetch_optional(&self.pool).await?.ok_or(StoreError::NotFound("host"))
    }

    /// Changes what an owner decides about a host. Placements planned before become stale.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when the miner has no such host, [`StoreError::Stale`] when it has left.
    pub async fn host_patch(&self, hotkey: &str, host: HostId, patch: HostPatch) -> Result<()> {
        let mut tx = self.begin().await?;
        let state = sqlx::query_scalar!(
            "select state from hosts where host_id = $1 and hotkey = $2 for update",
            host.0,
            hotkey
        )
        .fetch_optional(&mut *tx)
        .await?
        .ok_or(StoreError::NotFound("host"))?;
        let state: HostState = error::read_name("a host's state", state)?;
        if !state.is_member() {
            return Err(StoreError::Stale("host"));
        }
        let following = match patch.gpu_price {
            Some(GpuPrice::BelowBaseline { percent, floor }) => Some((percent, floor)),
            Some(GpuPrice::Fixed) | None => None,
        };
        sqlx::query!(
            "update hosts set gpu_hour = coalesce($2, gpu_hour), vcpu_hour = coalesce($3, vcpu_hour),
                gib_hour = coalesce($4, gib_hour), term = coalesce($5, term), paused = coalesce($6, paused),
                region = coalesce($7, region), below_percent = case when $8 then $9 else below_percent end,
                price_floor = case when $8 then $10 else price_floor end
             where host_id = $1",
            host.0,
            patch.rate.map(|rate| rate.gpu_hour.0),
            patch.rate.map(|rate| rate.vcpu_hour.0),
            patch.rate.map(|rate| rate.gib_hour.0),
            patch.term.map(Term::as_str),
            patch.paused,
            patch.region.as_ref().map(Region::as_str),
            patch.gpu_price.is_some(),
            following.map(|(percent, _)| i16::from(percent)),
            following.map(|(_, floor)| floor.0)
        )
        .execute(&mut *tx)
        .await?;
        hosts::bump(&mut tx, host).await?;
        announce(&mut tx, Changes::Supply).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Takes a host out. One that leaves at once is cut off from the mesh; its leases are lost
    /// when its fence has passed, since only then nothing runs there any more.
    /// Without `hotkey` the operator decides.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when the miner has no such host, [`StoreError::Stale`] when it has left.
    pub async fn host_depart(
        &self,
        hotkey: Option<&str>,
        host: HostId,
        departure: Departure,
    ) -> Result<HostState> {
        let mut tx = self.begin().await?;
        let state = depart(&mut tx, hotkey, host, departure).await?;
        tx.commit().await?;
        Ok(state)
    }
}

/// Takes a host out, as [`Store::host_depart`] says.
pub(crate) async fn depart(
    tx: &mut PgConnection,
    hotkey: Option<&str>,
    host: HostId,
    departure: Departure,
) -> Result<HostState> {
    let state = sqlx::query_scalar!(
        "select state from hosts where host_id = $1 and ($2::text is null or hotkey = $2) for update",
        host.0,
        hotkey
    )
    .fetch_optional(&mut *tx)
    .await?
    .ok_or(StoreError::NotFound("host"))?;
    let from: HostState = error::read_name("a host's state", state)?;
    // Only after the lock, so that the end of its last lease is either seen here or sees this.
    let busy = sqlx::query_scalar!(
        r#"select exists (select from leases where host_id = $1 and state <> 'closed') as "busy!""#,
        host.0
    )
    .fetch_one(&mut *tx)
    .await?;
    let mut to = host::next(from, departure.event()).ok_or(StoreError::Stale("host"))?;
    if to == HostState::Draining && !busy {
        to = host::next(to, HostEvent::Emptied).ok_or(StoreError::Stale("host"))?;
    }
    let (code, message) = departure.reason();
    sqlx::query!(
        "update hosts set state = $2, reason_code = $3, reason_message = $4, reason_at_ms = now_ms()
             where host_id = $1",
        host.0,
        to.as_str(),
        code,
        message
    )
    .execute(&mut *tx)
    .await?;
    if departure == Departure::Leave && hotkey.is_some() {
        event::reclaimed(tx, host).await?;
    }
    hosts::bump(tx, host).await?;
    look::host_changed(tx, host).await?;
    announce(tx, Changes::Supply).await?;
    announce(tx, Changes::Mesh).await?;
    Ok(to)
}
