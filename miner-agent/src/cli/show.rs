//! `inventory`, `doctor` and `status`.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;
use nave_domain::host::{Inventory, Runtime};
use nave_miner_agent::{
    doctor, inventory,
    status::{Doing, Status},
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
    let taken = inventory::take(offer, &args.data, &prover, Runtime::Simulated, Vec::new()).await;
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
        println!("gpu      {} {}, {}, driver {}", device.uuid, device.model, device.vram, device.driver);
    }
    if taken.devices.is_empty() {
        println!("gpu      none");
    }
}

pub async fn doctor(args: DoctorArgs) -> anyhow::Result<ExitCode> {
    let findings = doctor::examine(&args.docker.docker, &args.offer.prover()?).await;
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
        println!("upgrade  {} ({:?})", fetched.version, fetched.standing);
    }
    match agent.state {
        _ if agent.dismissed => {
            println!("state    not in the market any more: enrol with a new ticket to join again");
        }
        Some(state) => println!("state    {}", state.as_str()),
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
    for (lease, report) in &agent.leases {
        println!("lease    {lease} {report:?}");
    }
    if let Some(proof) = &agent.proof {
        let answered = if proof.answered { "answered" } else { "under way" };
        println!("proof    {} step {} {answered}", proof.challenge, proof.step);
    }
}

fn age(at_s: u64) -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    now.as_secs().saturating_sub(at_s)
}
