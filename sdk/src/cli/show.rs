//! The API's answers as text for people.

use std::fmt::Write as _;

use nave_domain::{
    Bytes, Millis, Timestamp,
    epoch::WEIGHT_TOTAL,
    host::{HostState, Inventory, Runtime},
};
use nave_sdk::wire::rest::{Balance, Baseline, DeviceClass, DeviceGroup, Epoch, Host, Job, Key, Offer};

use super::table::{clean, command_line, cut, table};

/// The runtime of hosts that execute nothing.
pub const SIMULATED: &str = "simulated";

/// Widest command in a list.
const COMMAND_CHARS: usize = 48;

/// Jobs, one per line.
#[must_use]
pub fn jobs(jobs: &[Job], now: Timestamp) -> String {
    let rows: Vec<Vec<String>> = jobs.iter().map(|job| job_row(job, now)).collect();
    table(&["JOB", "STATE", "AGE>", "COST>", "HOST", "COMMAND"], &rows)
}

fn job_row(job: &Job, now: Timestamp) -> Vec<String> {
    let host = job.attempts.last().map_or("-", |attempt| attempt.host_name.as_str());
    vec![
        job.job.to_string(),
        job.state.as_str().to_owned(),
        age(now.since(job.created_at)),
        job.charged.to_string(),
        host.to_owned(),
        cut(&command_line(&job.request.argv), COMMAND_CHARS),
    ]
}

/// Hosts, one per line.
#[must_use]
pub fn hosts(hosts: &[Host], now: Timestamp) -> String {
    let head = [
        "NAME", "STATE", "RUNTIME", "GPUS", "CPU>", "MEMORY>", "DISK>", "LEASES>", "HEARD>", "TRUST", "HOST",
    ];
    let rows: Vec<Vec<String>> = hosts.iter().map(|host| host_row(host, now)).collect();
    let inventories = hosts.iter().filter_map(|host| host.inventory.as_ref());
    table(&head, &rows) + warning(inventories.map(|inventory| runtime(&inventory.runtime)))
}

fn host_row(host: &Host, now: Timestamp) -> Vec<String> {
    let inventory = host.inventory.as_ref();
    let has = |part: fn(&Inventory) -> String| inventory.map_or_else(|| "-".to_owned(), part);
    vec![
        host.name.clone(),
        stands(host.state, host.paused),
        has(|inventory| runtime(&inventory.runtime).to_owned()),
        has(devices),
        has(|inventory| cores(inventory.milli_cpu.0)),
        has(|inventory| inventory.memory.to_string()),
        has(|inventory| inventory.disk.to_string()),
        host.leases.to_string(),
        host.heard_at.map_or_else(|| "never".to_owned(), |at| age(now.since(at))),
        word(&host.trust),
        host.host.to_string(),
    ]
}

/// A host's state, and that its owner has paused it.
#[must_use]
pub fn stands(state: HostState, paused: bool) -> String {
    format!("{}{}", state.as_str(), if paused { ", paused" } else { "" })
}

/// What to know about a list in which some hosts are not real.
fn warning<'a>(mut runtimes: impl Iterator<Item = &'a str>) -> &'static str {
    if runtimes.any(|runtime| runtime == SIMULATED) {
        return "\nSIMULATED hosts act commands out and never execute them.\n";
    }
    ""
}

fn runtime(runtime: &Runtime) -> &'static str {
    match runtime {
        Runtime::Docker { .. } => "docker",
        Runtime::Simulated => SIMULATED,
    }
}

fn devices(inventory: &Inventory) -> String {
    let mut counts = std::collections::BTreeMap::<String, u32>::new();
    for device in &inventory.devices {
        let division = device.division.words().map(|words| format!(" ({words})")).unwrap_or_default();
        *counts.entry(device.label() + &division).or_default() += 1;
    }
    models(counts.iter().map(|(model, n)| (model.as_str(), *n)))
}

/// GPUs by model, in words.
#[must_use]
pub fn models<'a>(counts: impl Iterator<Item = (&'a str, u32)>) -> String {
    let parts: Vec<String> =
        counts.filter(|(_, n)| *n > 0).map(|(model, n)| format!("{n} x {model}")).collect();
    if parts.is_empty() { "-".to_owned() } else { parts.join(", ") }
}

/// Classes of devices, one line for each part of the world with a baseline of its own.
#[must_use]
pub fn classes(classes: &[DeviceClass]) -> String {
    let head = ["CLASS", "REGION", "CLOUDS/H>", "FROM", "AS OF", "LEASED>"];
    let rows: Vec<Vec<String>> = classes.iter().flat_map(class_rows).collect();
    let is_listed = classes.iter().flat_map(|class| &class.baselines).any(|baseline| baseline.listed);
    let warning =
        "\nA LIST PRICE was read by somebody on that day. No cloud was asked: it is no market price.\n";
    table(&head, &rows) + if is_listed { warning } else { "" }
}

fn class_rows(class: &DeviceClass) -> Vec<Vec<String>> {
    let utilisation = class.utilisation.map(|milli| format!("{}.{} %", milli / 10, milli % 10));
    let leased = utilisation.unwrap_or_else(|| "-".to_owned());
    let cost = |baseline: &Baseline| {
        [
            baseline.region.clone().unwrap_or_else(|| "anywhere".to_owned()),
            baseline.gpu_hour.to_string(),
            if baseline.listed { "LIST PRICE".to_owned() } else { baseline.source.clone() },
            baseline.fetched_at.to_string(),
        ]
    };
    let mut costs: Vec<[String; 4]> = class.baselines.iter().map(cost).collect();
    if costs.is_empty() {
        costs.push(["-"; 4].map(str::to_owned));
    }
    let row = |cost: [String; 4]| [&[class.class.clone()][..], &cost[..], &[leased.clone()][..]].concat();
    costs.into_iter().map(row).collect()
}

/// Offers, one per line, what is free beside what there is.
#[must_use]
pub fn offers(offers: &[Offer], is_filtered: bool) -> String {
    let head = [
        "HOST",
        "GPUS FREE",
        "VRAM>",
        "CPU>",
        "MEMORY>",
        "DISK>",
        "GPU/H>",
        "SAVING>",
        "VCPU/H>",
        "GIB/H>",
        "TERM",
        "REGION",
        "TRUST",
    ];
    let rows: Vec<Vec<String>> = offers.iter().map(offer_row).collect();
    if offers.is_empty() {
        let why = if is_filtered {
            "nothing of that kind can be rented now; `nave run --dry-run` says what comes near"
        } else {
            "nothing can be rented now; `nave hosts` says where the hosts stand"
        };
        return table(&head, &rows) + &format!("\n{why}\n");
    }
    table(&head, &rows) + warning(offers.iter().map(|offer| offer.runtime.as_str()))
}

fn offer_row(offer: &Offer) -> Vec<String> {
    let of = |free: String, total: String| format!("{free} of {total}");
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let (devices, part) = (offer.devices.as_ref(), offer.fraction.as_ref());
    let gpus = |group: &DeviceGroup| match part {
        None => format!("{} of {} x {}", group.free, group.total, group.model),
        Some(part) => {
            let each = part.profile.clone().unwrap_or_else(|| cores(part.share.0));
            format!("{} of {} x {each} {}", part.free, part.total, group.model)
        }
    };
    let price = part.map_or(offer.rate.gpu_hour, |part| part.gpu_hour);
    let saving = part.map_or(offer.saving, |part| part.saving);
    vec![
        if offer.runtime == SIMULATED {
            format!("{} ({SIMULATED})", offer.host_name)
        } else {
            offer.host_name.clone()
        },
        or_dash(devices.map(gpus)),
        or_dash(devices.map(|group| size(part.map_or(group.vram, |part| part.vram)))),
        of(cores(offer.free.milli_cpu), cores(offer.total.milli_cpu)),
        of(size(offer.free.memory), size(offer.total.memory)),
        of(size(offer.free.disk), size(offer.total.disk)),
        or_dash(devices.map(|_| price.to_string())),
        or_dash(saving.map(|saving| saving.to_string())),
        offer.rate.vcpu_hour.to_string(),
        offer.rate.gib_hour.to_string(),
        word(&offer.term).replace('_', "-"),
        or_dash(offer.region.as_ref().map(ToString::to_string)),
        word(&offer.trust),
    ]
}

fn size(bytes: Bytes) -> String {
    bytes.to_string()
}

/// What can be spent.
#[must_use]
pub fn balance(balance: &Balance) -> String {
    format!("available  {}\nheld       {}\n", balance.available, balance.held)
}

/// API keys, one per line.
#[must_use]
pub fn keys(keys: &[Key], now: Timestamp) -> String {
    let row = |key: &Key| {
        vec![key.key.to_string(), key.label.clone(), age(now.since(key.created_at)), key.scopes.join(" ")]
    };
    table(&["KEY", "LABEL", "AGE>", "SCOPES"], &keys.iter().map(row).collect::<Vec<_>>())
}

/// Epochs, one per line.
#[must_use]
pub fn epochs(epochs: &[Epoch]) -> String {
    let row = |epoch: &Epoch| {
        vec![
            epoch.epoch.to_string(),
            epoch.state.as_str().to_owned(),
            epoch.opened_at.to_string(),
            epoch.closed_at.map_or_else(|| "-".to_owned(), |at| at.to_string()),
            epoch.delivered.len().to_string(),
            epoch.chain.clone(),
        ]
    };
    let head = ["EPOCH>", "STATE", "OPENED", "CLOSED", "MINERS>", "CHAIN"];
    table(&head, &epochs.iter().map(row).collect::<Vec<_>>())
}

/// One epoch: every miner with what it delivered and its weight.
#[must_use]
pub fn epoch(epoch: &Epoch) -> String {
    let until = epoch.closed_at.map_or_else(|| "now".to_owned(), |at| at.to_string());
    let mut text = format!(
        "epoch {} is {} on chain {}\nfrom {} to {until}\n\n",
        epoch.epoch,
        epoch.state.as_str(),
        clean(&epoch.chain),
        epoch.opened_at
    );
    let mut miners: Vec<&String> = epoch.delivered.keys().chain(epoch.weights.keys()).collect();
    miners.sort_unstable();
    miners.dedup();
    let rows: Vec<Vec<String>> = miners.into_iter().map(|miner| miner_row(epoch, miner)).collect();
    text += &table(&["MINER", "TIME>", "VALUE>", "WEIGHT>", "SHARE>"], &rows);
    if epoch.weights.is_empty() {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "\nweights are shown when the epoch is confirmed");
    }
    if let Some(evidence) = &epoch.evidence {
        let fetch = match evidence.is_revealed {
            true => format!("; nave epoch evidence {} fetches it", epoch.epoch),
            false => String::new(),
        };
        let _ = writeln!(
            text,
            "\nevidence  {} lines, {} bytes packed{fetch}\nhead      {}",
            evidence.lines,
            evidence.bytes,
            clean(&evidence.head)
        );
    }
    text
}

fn miner_row(epoch: &Epoch, miner: &str) -> Vec<String> {
    let (delivered, weight) = (epoch.delivered.get(miner), epoch.weights.get(miner));
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    vec![
        miner.to_owned(),
        or_dash(delivered.map(|delivered| delivered.used_ms.to_string())),
        or_dash(delivered.map(|delivered| delivered.value.to_string())),
        or_dash(weight.map(u16::to_string)),
        or_dash(weight.map(|weight| percent(*weight))),
    ]
}

/// A weight as a share of the whole, rounded down to hundredths of a percent.
fn percent(weight: u16) -> String {
    let hundredths = u32::from(weight) * 10_000 / u32::from(WEIGHT_TOTAL);
    format!("{}.{:02} %", hundredths / 100, hundredths % 100)
}

/// A span in one unit, the largest that fits.
#[must_use]
pub fn age(span: Millis) -> String {
    let seconds = span.0 / 1_000;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m", seconds / 60),
        3_600..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Thousandths of a core as cores.
#[must_use]
pub fn cores(milli: i64) -> String {
    let text = format!("{}.{:03}", milli / 1_000, milli % 1_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A value's name in JSON.
#[must_use]
pub fn word(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => text,
        Ok(other) => other.to_string(),
        Err(_) => "?".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::golden, *};

    const NOW: Timestamp = Timestamp(1_790_000_000_000);

    #[test]
    fn jobs_are_listed_with_state_age_cost_host_and_command() {
        golden::check("table-jobs.txt", &jobs(&golden::jobs(), NOW));
    }

    #[test]
    fn hosts_are_listed_and_a_simulated_one_stands_out() {
        golden::check("table-hosts.txt", &hosts(&golden::hosts(), NOW));
    }

    #[test]
    fn offers_show_what_is_free_beside_what_there_is() {
        golden::check("table-offers.txt", &offers(&golden::offers(), false));
        golden::check("table-no-offers.txt", &offers(&[], false));
        golden::check("table-no-such-offers.txt", &offers(&[], true));
    }

    #[test]
    fn classes_say_who_asks_so_much_since_when_and_what_is_only_a_list_price() {
        let classes = golden::classes();
        golden::check("table-classes.txt", &self::classes(&classes));
        assert!(!self::classes(&classes[1..]).contains("LIST"), "nothing is from the list");
    }

    #[test]
    fn an_epoch_shows_every_miner_with_its_weight() {
        golden::check("epoch.txt", &epoch(&golden::epoch()));
        golden::check("table-epochs.txt", &epochs(&[golden::epoch()]));
    }

    #[test]
    fn ages_cores_and_shares_are_short() {
        let ages = [5_000, 61_000, 7_200_000, 300_000_000].map(|ms| age(Millis(ms)));
        assert_eq!(ages, ["5s", "1m", "2h", "3d"]);
        assert_eq!([500, 2_000, 1_250].map(cores), ["0.5", "2", "1.25"]);
        assert_eq!([0, 32_768, u16::MAX].map(percent), ["0.00 %", "50.00 %", "100.00 %"]);
    }
}
