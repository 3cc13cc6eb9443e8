//! What keeps machines from being rented, whoever waits for them: it is noted for each cloud, and logged when it changes.

use std::collections::{BTreeMap, BTreeSet};

use nave_clouds::{Cloud, CloudOffer, ledger::Broken, provider::MachineId};
use nave_domain::Timestamp;
use nave_store::CloudRow;

use super::Role;
use crate::{
    demand::Refused,
    resting::{LATELY, Resting, STOPS_AFTER, resting},
};

/// Those of `offers` that are not to be rented now, and others that rest.
pub(super) async fn refused(
    role: &Role,
    hotkey: &str,
    offers: &[CloudOffer],
    now: Timestamp,
) -> Result<BTreeSet<Refused>, Broken> {
    let clouds = role.store.cloud_list().await?;
    let resumed =
        clouds.iter().filter_map(|row| Some((Cloud::named(&row.cloud)?, row.resumed_at?))).collect();
    let resting = if role.limits.rests {
        resting(&role.store.machine_ends(LATELY).await?, &resumed, now)
    } else {
        Resting::default()
    };
    let everywhere = everywhere(role, hotkey, &clouds).await?;
    let stops: BTreeMap<Cloud, String> = role
        .kept()
        .into_iter()
        .filter_map(|(cloud, is_drained)| {
            let stop = everywhere.clone().or_else(|| stop(cloud, is_drained, &resting));
            Some((cloud, stop?))
        })
        .collect();
    note(role, &clouds, &stops).await?;
    let stopped = offers.iter().filter(|offer| stops.contains_key(&offer.cloud));
    let stopped = stopped.map(|offer| (offer.cloud, offer.id.clone(), offer.region.clone()));
    Ok(resting.offers.into_keys().chain(stopped).collect())
}

/// Why nothing is rented anywhere.
async fn everywhere(role: &Role, hotkey: &str, clouds: &[CloudRow]) -> Result<Option<String>, Broken> {
    let abandoned: Vec<_> = abandoned(role, clouds).map(|row| row.cloud.as_str()).collect();
    if !abandoned.is_empty() {
        return Ok(Some(format!(
            "machines of {} are rented that nobody gives back, since it is not in the file of clouds: put it back with \
             `drain = true`",
            abandoned.join(", ")
        )));
    }
    let ban = role.store.ban_of_miner(hotkey).await?;
    Ok(ban.map(|ban| {
        format!(
            "the platform's hotkey is banned since {} for what {} did: {}",
            ban.since, ban.host, ban.message
        )
    }))
}

/// Why nothing is rented of one cloud.
fn stop(cloud: Cloud, is_drained: bool, resting: &Resting) -> Option<String> {
    if is_drained {
        return Some("it is drained, as the file of clouds says".to_owned());
    }
    resting.clouds.get(&cloud).map(|until| {
        format!(
            "{STOPS_AFTER} machines in a row were paid for and took no job: it rests until {until}, or until \
             `naved admin resume {cloud}`"
        )
    })
}

/// Writes down why nothing is rented of each cloud, where that has changed, and says so.
async fn note(role: &Role, clouds: &[CloudRow], stops: &BTreeMap<Cloud, String>) -> Result<(), Broken> {
    for (cloud, _) in role.kept() {
        let before = clouds.iter().find(|row| row.cloud == cloud.name()).and_then(|row| row.stop.as_deref());
        let stop = stops.get(&cloud).map(String::as_str);
        if before == stop || !role.store.cloud_stop(cloud.name(), stop).await? {
            continue;
        }
        match stop {
            Some(why) => tracing::warn!(cloud.name = cloud.name(), why, "no machine is rented of a cloud"),
            None => tracing::info!(cloud.name = cloud.name(), "machines are rented of a cloud again"),
        }
    }
    Ok(())
}

/// Clouds that are in the file of no scheduler that runs: nobody looks after their machines.
fn without_keeper<'a>(role: &Role, clouds: &'a [CloudRow]) -> impl Iterator<Item = &'a CloudRow> {
    let kept: BTreeSet<_> = match role.market {
        Some(_) => role.kept().into_keys().map(Cloud::name).collect(),
        None => BTreeSet::new(),
    };
    clouds.iter().filter(move |row| !row.is_kept && !kept.contains(row.cloud.as_str()))
}

/// Those of them of which machines are open.
fn abandoned<'a>(role: &Role, clouds: &'a [CloudRow]) -> impl Iterator<Item = &'a CloudRow> {
    without_keeper(role, clouds).filter(|row| row.open > 0)
}

/// Says which machines nobody looks after any more, and what to do about it; of clouds that nobody has in their file it
/// forgets why nothing was rented there.
pub(super) async fn tell_abandoned(role: &Role) -> Result<(), Broken> {
    let clouds = role.store.cloud_list().await?;
    for row in without_keeper(role, &clouds).filter(|row| row.stop.is_some()) {
        role.store.cloud_stop(&row.cloud, None).await?;
    }
    for row in abandoned(role, &clouds) {
        let open = role.store.machines_open(&row.cloud).await?;
        let machines: Vec<_> = open.iter().map(|row| MachineId(row.machine).to_string()).collect();
        tracing::error!(
            cloud.name = row.cloud,
            machines = machines.join(", "),
            "machines are rented and cost money, and their cloud or [market] is not in the file of clouds, so that \
             nobody gives them back; put it back with `drain = true` until `naved admin machines` shows none of it \
             open. Until then nothing is rented anywhere"
        );
    }
    Ok(())
}
