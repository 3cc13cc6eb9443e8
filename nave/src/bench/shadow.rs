//! What checks in shadow would have done, from the verdicts of a market.

use std::collections::BTreeMap;

use anyhow::Context as _;
use nave_domain::host::parts;
use nave_proof::{Challenge, Proven, Task};
use nave_rules::{
    catalogue::Catalogue,
    floors::recorded,
    shadow::{Decided, Sighting, false_reject_rate, of_bands, of_kinds, passes},
};
use nave_store::{HostRow, Store, VerdictRow};
use nave_verifier::decide::{Ruling, Written};
use serde_json::Value;

/// Verdicts of a host that are looked at, the newest.
const VERDICTS: u16 = 1_000;

/// Prints, for each check in shadow, how often it would have refused a host that otherwise passed.
pub async fn print(store: &Store) -> anyhow::Result<()> {
    let catalogue = Catalogue::embedded().map_err(anyhow::Error::msg)?;
    let mut sightings = Vec::new();
    for host in store.host_list().await.context("list the hosts")? {
        let rows = store.verdicts_of_host(host.host, None, VERDICTS).await;
        let rows = rows.with_context(|| format!("load the verdicts of {}", host.host))?;
        let decided: Vec<Decided> = rows.iter().filter_map(|row| decided(&host, row)).collect();
        sightings.extend(of_kinds(&decided));
        sightings.extend(rows.iter().flat_map(|row| bands(catalogue, &host, &decided, row)));
        sightings.extend(rows.iter().flat_map(|row| of_floors(&host, &decided, row)));
    }
    let counts: BTreeMap<_, _> = false_reject_rate(&sightings);
    if counts.is_empty() {
        println!("no check is in shadow, or none has been made yet");
    }
    counts.iter().for_each(|(check, count)| println!("{check}: {}", count.say()));
    Ok(())
}

fn decided(host: &HostRow, row: &VerdictRow) -> Option<Decided> {
    let ((_, at), code) = row.verdict.as_ref().zip(row.code.clone())?;
    Some(Decided { host: host.host, kind: row.kind, shadow: row.shadow, code, at: *at })
}

fn ruling(verdict: &Value) -> Option<Ruling> {
    serde_json::from_value::<Written>(verdict.clone()).ok().map(|written| written.ruling)
}

/// What floors in shadow found of software or a disk.
fn of_floors(host: &HostRow, decided: &[Decided], row: &VerdictRow) -> Vec<Sighting> {
    let Some((verdict, at)) = &row.verdict else { return Vec::new() };
    let Some(Ruling::Passed(proven)) = ruling(verdict) else { return Vec::new() };
    let otherwise_passed = passes(decided, host.host, *at);
    let sighting = |(check, failed)| Sighting { check, failed, otherwise_passed };
    recorded(&proven).into_iter().map(sighting).collect()
}

/// What bands in shadow found in a test of GPUs.
fn bands(catalogue: &Catalogue, host: &HostRow, decided: &[Decided], row: &VerdictRow) -> Vec<Sighting> {
    let Some((verdict, at)) = &row.verdict else { return Vec::new() };
    let task = serde_json::from_value::<Challenge>(row.body.clone()).map(|challenge| challenge.task);
    let (Ok(Task::Devices(task)), Some(Ruling::Passed(Proven::Devices(shown)))) = (task, ruling(verdict))
    else {
        return Vec::new();
    };
    let otherwise_passed = passes(decided, host.host, *at);
    let claimed = parts(&row.claimed);
    let of_one = shown.iter().filter_map(|shown| {
        let claim = claimed.iter().find(|claim| claim.uuid == shown.uuid)?;
        let task = task.devices.iter().find(|task| task.uuid == shown.uuid)?;
        Some(of_bands(catalogue, claim, (task, shown), otherwise_passed))
    });
    of_one.flatten().collect()
}
