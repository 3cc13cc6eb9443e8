//! A miner's hosts as text for people.

use std::fmt::Write as _;

use nave_domain::{
    Timestamp,
    host::Term,
    rate::{GpuPrice, Rate},
    wish::Region,
};
use nave_sdk::wire::enrol::{InventorySummary, MinerHost};

use super::super::{
    show::{age, cores, models, stands, word},
    table::{clean, table},
};

/// Hosts, one per line, and below them why those stand where they stand.
#[must_use]
pub fn hosts(hosts: &[MinerHost], now: Timestamp) -> String {
    let head =
        ["NAME", "STATE", "GPUS", "CPU>", "MEMORY>", "DISK>", "GPU/H>", "TERM", "LEASES>", "HEARD>", "HOST"];
    let mut text = table(&head, &hosts.iter().map(|host| row(host, now)).collect::<Vec<_>>());
    if hosts.is_empty() {
        text += "\nthis hotkey has no hosts; `nave miner ticket` lets one join\n";
    }
    let reasons: String = hosts.iter().filter_map(reason).map(|reason| format!("{reason}\n")).collect();
    if !reasons.is_empty() {
        text += "\n";
        text += &reasons;
    }
    text
}

fn row(host: &MinerHost, now: Timestamp) -> Vec<String> {
    let has =
        |part: fn(&InventorySummary) -> String| host.inventory.as_ref().map_or_else(|| "-".to_owned(), part);
    vec![
        host.name.clone(),
        stands(host.state, host.paused),
        has(gpus),
        has(|inventory| cores(inventory.capacity.milli_cpu)),
        has(|inventory| inventory.capacity.memory.to_string()),
        has(|inventory| inventory.capacity.disk.to_string()),
        host.rate.gpu_hour.to_string(),
        term(host.term).to_owned(),
        host.leases.to_string(),
        host.heard_at.map_or_else(|| "never".to_owned(), |at| age(now.since(at))),
        host.host.to_string(),
    ]
}

fn gpus(inventory: &InventorySummary) -> String {
    models(inventory.capacity.gpus.iter().map(|(model, n)| (model.as_str(), *n)))
}

fn reason(host: &MinerHost) -> Option<String> {
    let reason = host.reason.as_ref()?;
    let (name, state) = (clean(&host.name), host.state.as_str());
    let (message, code) = (clean(&reason.message), clean(&reason.code));
    Some(format!("{name} is {state} since {}: {message} ({code})", reason.since))
}

/// Everything about one host.
#[must_use]
pub fn host(host: &MinerHost, now: Timestamp) -> String {
    let mut lines = vec![
        ("host", host.host.to_string()),
        ("name", host.name.clone()),
        ("state", stands(host.state, host.paused)),
        ("price", price(&host.rate) + &following(host.gpu_price)),
        ("term", term(host.term).to_owned()),
        ("region", region(host.region.as_ref())),
        ("trust", word(&host.trust)),
        ("leases", host.leases.to_string()),
        (
            "heard",
            host.heard_at.map_or_else(|| "never".to_owned(), |at| format!("{} ago", age(now.since(at)))),
        ),
        ("enrolled", host.enrolled_at.map_or_else(|| "-".to_owned(), |at| at.to_string())),
        ("mesh", host.mesh_address.map_or_else(|| "-".to_owned(), |address| address.to_string())),
    ];
    if let Some(reason) = &host.reason {
        let why = format!("{} ({}, since {})", reason.message, reason.code, reason.since);
        lines.insert(3, ("reason", why));
    }
    if let Some(inventory) = &host.inventory {
        let capacity = &inventory.capacity;
        let claims = format!(
            "{} cores ({}), {} memory, {} disk, GPUs: {}",
            cores(capacity.milli_cpu),
            inventory.cpu_model,
            capacity.memory,
            capacity.disk,
            gpus(inventory)
        );
        lines.push(("claims", claims));
        lines.push(("system", format!("{}, {}", inventory.os, inventory.runtime)));
        lines.push(("agent", inventory.agent_version.clone()));
    }
    let proven = host.proven.as_ref().map_or_else(
        || "nothing yet".to_owned(),
        |proven| format!("{} cores, {} memory", cores(proven.milli_cpu.0), proven.memory),
    );
    lines.push(("proven", proven));
    lines.push(("actions", host.actions.join(", ")));
    let mut text = String::new();
    for (name, value) in lines {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name:<9} {}", clean(&value));
    }
    text
}

/// A price in words.
#[must_use]
pub fn price(rate: &Rate) -> String {
    let Rate { gpu_hour, vcpu_hour, gib_hour } = rate;
    format!("{gpu_hour} per GPU, {vcpu_hour} per CPU and {gib_hour} per GiB of memory an hour")
}

/// What a price of GPUs follows, after the price in words.
#[must_use]
pub fn following(how: GpuPrice) -> String {
    match how {
        GpuPrice::Fixed => String::new(),
        GpuPrice::BelowBaseline { percent, floor } => {
            format!("; that of GPUs follows clouds, {percent} % below them, not below {floor}")
        }
    }
}

/// A region, where it is known.
#[must_use]
pub fn region(region: Option<&Region>) -> String {
    region.map_or_else(|| "-".to_owned(), ToString::to_string)
}

/// A term as it is typed.
#[must_use]
pub fn term(term: Term) -> &'static str {
    match term {
        Term::OnDemand => "on-demand",
        Term::Spot => "spot",
    }
}

/// A number of jobs in words.
#[must_use]
pub fn jobs(leases: u32) -> String {
    format!("{leases} job{}", if leases == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::{super::super::golden, *};

    const NOW: Timestamp = Timestamp(1_790_000_000_000);

    #[test]
    fn hosts_are_listed_with_the_reasons_for_their_states() {
        golden::check("table-miner-hosts.txt", &hosts(&golden::miner_hosts(), NOW));
        golden::check("table-miner-no-hosts.txt", &hosts(&[], NOW));
    }

    #[test]
    fn one_host_is_shown_with_claims_and_proofs() {
        let shown: Vec<String> = golden::miner_hosts().iter().map(|one| host(one, NOW)).collect();
        golden::check("miner-host.txt", &shown.join("\n"));
    }
}
