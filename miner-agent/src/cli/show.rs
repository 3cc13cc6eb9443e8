//! `inventory`, `doctor` and `status`.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;
use nave_domain::host::{Inventory, Runtime};
use nave_miner_agent::{
    doctor, inventory, share,
    status::{Doing, Status},
    upgrade::Standing,
};
use nave_sdk::wire::{
    enrol::StateReason,
    host::{Exit, LeaseReport, ResultRef},
};

use super::args::{DataArg, DockerArgs, OfferArgs};

#[derive(Debug, Args)]
pub struct InventoryArgs {
    /// Prints JSON.
    #[arg(long)]
    json: bool,
    /// The data directory, whose disk counts.
    #[arg(long, env = "NAVE_AGENT_DATA", default_value = ".")]
    data: PathBuf,
    #[command(flatten)]
    docker: DockerArgs,
    #[command(flatten)]
    offer: OfferArgs,
}

#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Prints JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    docker: DockerArgs,
    #[command(flatten)]
    offer: OfferArgs,
}

pub async fn inventory(args: InventoryArgs) -> anyhow::Result<ExitCode> {
    let (offer, prover) = (args.offer.offer(), args.offer.prover()?);
    let mut taken = inventory::take(offer, &args.data, &prover, Runtime::Simulated, Vec::new()).await;
    let means = args.docker.config().shares;
    taken.devices = share::offered(taken.devices, means.are_offered());
    if args.json {
        println!("{}", serde_json::to_string_pretty(&taken)?);
    } else {
        print_inventory(&taken);
    }
    Ok(ExitCode::SUCCESS)
}

fn print_inventory(taken: &Inventory) {
    println!("cores    {}.{:03}", taken.milli_cpu.0 / 1_000, taken.milli_cpu.0 % 1_000);
    println!("memory   {}", taken.memory);
    println!("disk     {}", taken.disk);
    println!("cpu      {}", taken.cpu_model);
    println!("system   {}, kernel {}", taken.os, taken.kernel);
    for device in &taken.devices {
        let division = device.division.words().unwrap_or_else(|| "whole".to_owned());
        let (uuid, label, vram, driver) = (&device.uuid, device.label(), device.vram, &device.driver);
        println!("gpu      {uuid} {label}, {vram}, driver {driver}, {division}");
    }
    if taken.devices.is_empty() {
        println!("gpu      none");
    }
}

pub async fn doctor(args: DoctorArgs) -> anyhow::Result<ExitCode> {
    let docker = args.docker.config();
    let findings = doctor::examine(&docker.socket, &args.offer.prover()?, &docker.shares).await;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&findings)?);
    } else {
        for finding in &findings {
            let mark = match (finding.ok, finding.optional) {
                (true, _) => "ok  ",
                (false, true) => "none",
                (false, false) => "FAIL",
            };
            println!("{mark}  {:<11} {}: {}", finding.name, finding.found, finding.means);
            if let Some(fix) = finding.fix {
                println!("                  fix: {fix}");
            }
        }
    }
    let fine = doctor::can_host(&findings);
    Ok(if fine { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[derive(Debug, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    data: DataArg,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

pub fn status(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let data = args.data.absolute()?;
    let status = Status::read(&data)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&status)?);
    } else {
        print_status(&status, &data);
    }
    Ok(if status.running && status.host.is_some() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print_status(status: &Status, data: &Path) {
    let data = data.display();
    match &status.host {
        Some(place) => {
            println!("host     {} ({})", place.host, place.name);
            println!("market   {}", place.market);
            println!("address  {}", place.address);
        }
        None => println!("host     none: join a market with `miner-agent enrol TICKET --data {data}`"),
    }
    if let Some(link) = &status.interface {
        println!("mesh     {}, MTU {}, {} B in, {} B out", link.name, link.mtu, link.rx_bytes, link.tx_bytes);
    }
    match &status.agent {
        Some(agent) => print_doing(agent, status),
        None if status.running => println!("agent    runs and has said nothing yet"),
        None => println!("agent    does not run: start it with `miner-agent run --data {data}`"),
    }
}

fn print_doing(agent: &Doing, status: &Status) {
    println!("agent    {} runs as process {}", agent.version, agent.pid);
    if let Some(fetched) = &agent.upgrade {
        println!("upgrade  {} {}", fetched.version, standing_words(fetched.standing));
    }
    match agent.state {
        _ if agent.dismissed => {
            println!("state    not in the market any more: enrol with a new ticket to join again");
        }
        Some(state) => println!("state    {}{}", state.as_str(), reason_words(agent.reason.as_ref())),
        None => println!("state    not known yet"),
    }
    match status.heard_ms_ago {
        Some(ago) => println!("heard    {} s ago", ago.0 / 1_000),
        None => println!("heard    never"),
    }
    if let Some(mesh) = &agent.mesh {
        let hub = mesh.endpoint.map_or("nowhere".into(), |endpoint| endpoint.to_string());
        let handshake =
            mesh.handshake_s.map_or("no handshake yet".into(), |at| format!("handshake {} s ago", age(at)));
        println!("hub      {hub}, {handshake}");
        if let Some(problem) = &mesh.problem {
            println!("         {problem}");
        }
    }
    let answers = if agent.runtime_answers { "answers" } else { "does not answer" };
    let engine = match &agent.runtime {
        Runtime::Docker { version } => format!("Docker Engine {version}"),
        Runtime::Simulated => "simulated".to_owned(),
    };
    println!("engine   {engine}: {answers}");
    for (device, words) in &agent.divided {
        println!("gpu      {device} is {words}");
    }
    for (lease, report) in &agent.leases {
        println!("lease    {lease} {}", lease_words(report));
    }
    for proof in &agent.proofs {
        let answered = if proof.answered { "answered" } else { "under way" };
        println!("proof    {} {} step {} {answered}", proof.kind.as_str(), proof.challenge, proof.step);
    }
}

/// Why a host stands where it does, after its state; nothing where no reason is known.
fn reason_words(reason: Option<&StateReason>) -> String {
    // Part of it may come from programs of other people.
    let plain = |text: &str| text.replace(char::is_control, " ");
    reason
        .map_or_else(String::new, |reason| format!(": {} ({})", plain(&reason.message), plain(&reason.code)))
}

fn standing_words(standing: Standing) -> String {
    match standing {
        Standing::Trying { starts } => format!("is being tried (start {starts})"),
        Standing::Good => "has reached the market".to_owned(),
        Standing::Fallen => "has not reached the market: the program before it runs again".to_owned(),
        Standing::Bad => "has not reached the market and is not tried again".to_owned(),
    }
}

fn lease_words(report: &LeaseReport) -> String {
    match report {
        LeaseReport::Preparing => "is being prepared".to_owned(),
        LeaseReport::Running => "runs".to_owned(),
        LeaseReport::Unseen => "ran when the engine last answered".to_owned(),
        LeaseReport::Exited { exit } => {
            format!("has ended: {}; its logs and results are on their way", exit_words(exit))
        }
        LeaseReport::Finished { exit, result } => {
            format!("is finished: {}{}", exit_words(exit), result_words(result.as_ref()))
        }
    }
}

fn exit_words(exit: &Exit) -> String {
    match exit {
        Exit::Code { code } => format!("exit code {code}"),
        Exit::OutOfMemory => "it needed more memory than it has".to_owned(),
        Exit::OutOfGpuMemory { asked, used } => {
            format!("it used {used} of the memory of its GPU and had asked for {asked}")
        }
        Exit::Killed => "something on this machine killed it".to_owned(),
        Exit::Stopped => "the market had it stopped".to_owned(),
        Exit::Fenced => "the market was not heard in time".to_owned(),
        Exit::Lost => "what it ran in ended: this machine, the engine, or the daemon of MPS that gave it its share of a GPU"
            .to_owned(),
        Exit::StartFailed { detail } => format!("it did not start: {detail}"),
    }
}

fn result_words(result: Option<&ResultRef>) -> String {
    result.map_or_else(String::new, |result| {
        let whole = if result.truncated { ", without the files that were too much" } else { "" };
        format!("; {} B of result files{whole}", result.size)
    })
}

fn age(at_s: u64) -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    now.as_secs().saturating_sub(at_s)
}

#[cfg(test)]
mod tests {
    use nave_domain::Timestamp;

    use super::*;

    #[test]
    fn a_reason_stands_after_the_state_on_one_line() {
        let reason = |message: &str| StateReason {
            code: "cpu_overclaimed".into(),
            message: message.into(),
            since: Timestamp(0),
        };
        let said = reason_words(Some(&reason("claims 16 cores, proved 1.9 in 2.1 s")));
        assert_eq!(said, ": claims 16 cores, proved 1.9 in 2.1 s (cpu_overclaimed)");
        assert_eq!(reason_words(Some(&reason("two\n\u{1b}lines"))), ": two  lines (cpu_overclaimed)");
        assert_eq!(reason_words(None), "");
    }

    #[test]
    fn leases_are_told_in_words() {
        let result = |truncated| ResultRef { sha256: "0".repeat(64), size: 2_048, truncated };
        let finished = |exit, result| LeaseReport::Finished { exit, result };
        let failed = Exit::StartFailed { detail: "no such image".into() };
        for (report, words) in [
            (LeaseReport::Preparing, "is being prepared"),
            (LeaseReport::Running, "runs"),
            (LeaseReport::Unseen, "ran when the engine last answered"),
            (
                LeaseReport::Exited { exit: Exit::OutOfMemory },
                "has ended: it needed more memory than it has; its logs and results are on their way",
            ),
            (finished(Exit::Killed, None), "is finished: something on this machine killed it"),
            (finished(Exit::Stopped, None), "is finished: the market had it stopped"),
            (finished(Exit::Fenced, None), "is finished: the market was not heard in time"),
            (finished(failed, None), "is finished: it did not start: no such image"),
            (
                finished(Exit::Code { code: 0 }, Some(result(false))),
                "is finished: exit code 0; 2048 B of result files",
            ),
            (
                finished(Exit::Code { code: 3 }, Some(result(true))),
                "is finished: exit code 3; 2048 B of result files, without the files that were too much",
            ),
        ] {
            assert_eq!(lease_words(&report), words);
        }
    }
}
