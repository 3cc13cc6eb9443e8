//! A receipt as text.

use std::fmt::Write as _;

use nave_domain::{
    MicroUsd,
    host::Device,
    rate::{Rate, Size},
};
use nave_sdk::wire::{
    event::ServiceEvent,
    rest::{Attempt, LedgerLine, Metered, Receipt},
};

use super::{
    show::{SIMULATED, cores, word},
    table::{clean, table},
};

/// The whole receipt, for a person.
#[must_use]
pub fn receipt(receipt: &Receipt) -> String {
    let mut text = format!(
        "Receipt for {}\n\nstate     {}\ncustomer  {}\nimage     {}\n",
        receipt.job,
        receipt.state.as_str(),
        receipt.customer,
        clean(&receipt.image)
    );
    for metered in &receipt.attempts {
        text += &attempt(metered);
    }
    text += "\nLedger\n";
    text += &ledger(&receipt.lines);
    // Writing to a string cannot fail.
    let _ = writeln!(text, "\ntotal       {}\nstill held  {}", receipt.total, receipt.held);
    if !receipt.attempts.is_empty() {
        let _ = writeln!(text, "\n{}", clean(&receipt.notice));
    }
    text
}

fn attempt(metered: &Metered) -> String {
    let attempt = &metered.attempt;
    let mut text =
        format!("\nAttempt {} on {} ({})\n", attempt.attempt, clean(&attempt.host_name), attempt.host);
    if metered.runtime == SIMULATED {
        text += "  SIMULATED: this host acts commands out and never ran this one\n";
    }
    let or_dash = |at: Option<nave_domain::Timestamp>| at.map_or_else(|| "-".to_owned(), |at| at.to_string());
    let lines = [
        ("runtime", format!("{}, trust {}", clean(&metered.runtime), word(&metered.trust))),
        ("miner", clean(&metered.hotkey)),
        ("devices", devices(&metered.devices)),
        ("leased", size(metered.size)),
        ("rate", rate(metered.rate)),
        ("from", or_dash(attempt.started_at)),
        ("to", or_dash(attempt.ended_at)),
        ("chosen", word(&attempt.reason).replace('_', " ")),
        ("metered", format!("{} at {} per hour", attempt.used_ms, attempt.hourly)),
        ("outcome", attempt.outcome.as_ref().map_or_else(|| "open".to_owned(), outcome)),
        ("cost", attempt.charged.to_string()),
    ];
    for (name, value) in lines.into_iter().chain(baseline(attempt)) {
        let _ = writeln!(text, "  {name:<8} {value}");
    }
    for event in &attempt.events {
        let _ = writeln!(text, "  {:<8} {}", "event", self::event(event));
    }
    text
}

/// What went wrong and whose fault it was, in one line.
pub fn event(event: &ServiceEvent) -> String {
    let decided = match &event.decision {
        None => "not decided yet".to_owned(),
        Some(decision) => {
            let shown = decision.confirmed_by.map(|by| format!(", confirmed by {}", word(&by)));
            format!("{}{}", word(&decision.blame), shown.unwrap_or_else(|| ", not confirmed".to_owned()))
        }
    };
    let kind = word(&event.kind).replace('_', " ");
    format!("{} {kind} ({decided}): {}", event.at, clean(&event.detail))
}

fn baseline(attempt: &Attempt) -> Option<(&'static str, String)> {
    let (baseline, saving) = attempt.baseline.zip(attempt.saving)?;
    Some(("clouds", format!("{baseline} per GPU-hour, {} than here", than(saving, "more", "less"))))
}

/// A difference in words.
pub fn than(difference: MicroUsd, more: &str, less: &str) -> String {
    format!("{} {}", MicroUsd(difference.0.saturating_abs()), if difference.0 < 0 { less } else { more })
}

fn devices(uuids: &[String]) -> String {
    let labels: Vec<String> = uuids.iter().map(|uuid| Device::label_of(uuid)).collect();
    if labels.is_empty() { "none".to_owned() } else { clean(&labels.join(", ")) }
}

fn size(size: Size) -> String {
    format!("{} GPU, {} vCPU, {}", cores(size.milli_gpu.0), cores(size.milli_cpu.0), size.memory)
}

fn rate(rate: Rate) -> String {
    format!(
        "{} per GPU, {} per vCPU, {} per GiB, each per hour",
        rate.gpu_hour, rate.vcpu_hour, rate.gib_hour
    )
}

/// How an attempt ended, in words.
#[must_use]
pub fn outcome(outcome: &nave_domain::lease::Outcome) -> String {
    use nave_domain::lease::Outcome as O;
    match outcome {
        O::Exited { code } => format!("exited with code {code}"),
        O::OutOfMemory => "ended for using more memory than its limit".to_owned(),
        O::OutOfGpuMemory { asked, used } => {
            format!("ended for using {used} of the memory of its GPU: it had asked for {asked}")
        }
        O::Killed => "killed, or exited with code 137".to_owned(),
        O::StartFailed { detail } => format!("could not be started: {}", clean(detail)),
        O::StartTimeout => "did not start within its start limit".to_owned(),
        O::RunTimeout => "ran into its run limit".to_owned(),
        O::Preempted => "yielded to another job".to_owned(),
        O::SpendCap => "used up what it may cost".to_owned(),
        O::Cancelled => "cancelled".to_owned(),
        O::HostLost => "host lost, not charged".to_owned(),
    }
}

fn ledger(lines: &[LedgerLine]) -> String {
    let row = |line: &LedgerLine| {
        let kind = line.kind.as_str().to_owned();
        vec![line.at.to_string(), kind, line.amount.to_string(), line.from.clone(), line.to.clone()]
    };
    table(&["AT", "KIND", "AMOUNT>", "FROM", "TO"], &lines.iter().map(row).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::{super::golden, *};

    #[test]
    fn a_receipt_names_every_attempt_every_posting_and_what_to_know_about_trust() {
        golden::check("receipt.txt", &receipt(&golden::receipt()));
    }

    #[test]
    fn an_attempt_that_cost_more_than_clouds_ask_says_so() {
        let mut dear = golden::receipt();
        dear.attempts[1].attempt.saving = Some(MicroUsd(-100_000));
        assert!(receipt(&dear).contains("$2.490000 per GPU-hour, $0.100000 less than here"));
    }

    #[test]
    fn a_simulated_host_is_said_loudly() {
        assert!(receipt(&golden::receipt()).contains("SIMULATED"));
    }
}
