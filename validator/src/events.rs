//! Decides events, and signs what was decided.

use std::{future::Future, time::Duration};

use anyhow::Context as _;
use nave_crash_point::crash_point;
use nave_domain::{
    Millis,
    event::{ConfirmedBy, EventRules, EventRuling, decide},
};
use nave_settlement::{evidence, params::Params};
use nave_store::{EventRow, PendingEvent, Store, StoreError};

use crate::key::MarketKey;

/// Most events that are looked at in one go.
const PAGE: i64 = 500;
const TICK: Duration = Duration::from_secs(1);
/// Ticks after which what explained old events is forgotten.
const FORGET: u32 = 600;

/// What of the parameters events are decided by.
#[must_use]
pub fn rules(params: &Params) -> EventRules {
    EventRules {
        start_promise: Millis(params.start_promise_ms),
        gap: Millis(params.gap_ms),
        confirm: Millis(params.confirm_ms),
        outage_ppm: params.outage_ppm,
        outage_hosts: params.outage_hosts,
    }
}

/// Decides events until `shutdown`.
///
/// # Errors
/// None so far: what fails is logged and tried again.
pub async fn run(key: MarketKey, store: Store, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    tokio::pin!(shutdown);
    let mut ticks = 0_u32;
    loop {
        if let Err(error) = step_by_params(&store, &key).await {
            tracing::warn!(error = format!("{error:#}"), "events could not be decided; trying again");
        }
        if ticks.is_multiple_of(FORGET)
            && let Err(error) = store.outages_forget().await
        {
            tracing::warn!(%error, "could not forget old outages; trying again");
        }
        ticks = ticks.wrapping_add(1);
        tokio::select! {
            () = &mut shutdown => return Ok(()),
            () = tokio::time::sleep(TICK) => {}
        }
    }
}

/// Decides as the parameters say that hold now; before there are any, nothing.
async fn step_by_params(store: &Store, key: &MarketKey) -> anyhow::Result<()> {
    let params = match store.params_of(None).await {
        Err(StoreError::NotFound(_)) => return Ok(()),
        params => params.context("look at the parameters")?,
    };
    let params: Params = serde_json::from_value(params).context("read the parameters")?;
    step(store, &rules(&params), key).await
}

/// Decides every event that can be decided.
///
/// # Errors
/// When the database does not answer; what was decided stands.
pub async fn step(store: &Store, rules: &EventRules, key: &MarketKey) -> anyhow::Result<()> {
    let mut after = None;
    loop {
        let pending = store.events_pending(after, PAGE).await.context("look at events")?;
        let Some(first) = pending.iter().map(|event| event.since).min() else { return Ok(()) };
        after = pending.last().map(|event| (event.row.at, event.row.event));
        let outages = store.outages(first, rules.gap).await.context("look at what explains events")?;
        for event in &pending {
            if let Some(ruling) = decide(&outages.case(event, rules), rules) {
                write(store, event, &ruling, key).await?;
            }
        }
        if pending.len() < usize::try_from(PAGE)? {
            return Ok(());
        }
    }
}

async fn write(
    store: &Store,
    event: &PendingEvent,
    ruling: &EventRuling,
    key: &MarketKey,
) -> anyhow::Result<()> {
    let detail = format!("{}: {}", event.row.detail, ruling.why);
    let bytes = evidence(&event.row, ruling, &detail).signed_bytes();
    crash_point!("validator.events.before_decide");
    let row = &event.row;
    match store.event_decide(row.event, ruling, &detail, &key.sign(&bytes)).await {
        // Another validator was quicker.
        Err(StoreError::Stale(_)) => return Ok(()),
        decided => decided.with_context(|| format!("decide {}", row.event))?,
    }
    tracing::info!(event.id = %row.event, event.kind = row.kind.as_str(), host.id = %row.host, blame = ruling.blame.as_str(),
        confirmed_by = ruling.confirmed_by.map(ConfirmedBy::as_str), detail, "an event was decided");
    Ok(())
}

/// An event as it stands in the bundle of its epoch, without its signature.
#[must_use]
pub fn evidence(row: &EventRow, ruling: &EventRuling, detail: &str) -> evidence::Event {
    evidence::Event {
        at_ms: row.at.0,
        blame: ruling.blame,
        confirmed_by: ruling.confirmed_by,
        detail: detail.to_owned(),
        event: row.event.to_string(),
        from_ms: ruling.lost.from.0,
        host: row.host.to_string(),
        hotkey: row.hotkey.clone(),
        kind: row.kind,
        lease: row.lease.map(|lease| lease.to_string()),
        signature: String::new(),
        until_ms: ruling.lost.until.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_noted_by_the_rules_that_they_are_decided_by() {
        assert_eq!(rules(&Params::default()), EventRules::default());
    }
}
