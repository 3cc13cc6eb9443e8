//! `key`, `enrol` and `rotate`.

use std::{io::Read as _, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context as _;
use clap::Args;
use nave_domain::host::{self, Inventory};
use nave_miner_agent::{
    config::RuntimeChoice,
    enrol::{self, EnrolError},
    inventory, link,
    membership::{self, Membership},
    runtime::docker,
};
use serde_json::json;

use super::args::{DataArg, DockerArgs, OfferArgs};

/// Largest text that is read as a ticket, in bytes.
const TICKET_READ_MAX: u64 = 64 << 10;

#[derive(Debug, Args)]
pub struct EnrolArgs {
    /// The ticket that `nave miner ticket` printed; `-` reads it from standard input.
    ticket: String,
    #[command(flatten)]
    data: DataArg,
    /// What runs jobs: docker, simulated, or auto (docker where it can be used).
    #[arg(long, env = "NAVE_AGENT_RUNTIME", default_value = "auto")]
    runtime: RuntimeChoice,
    #[command(flatten)]
    docker: DockerArgs,
    #[command(flatten)]
    offer: OfferArgs,
    /// Seconds to wait for a market that does not answer.
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    wait: u64,
    /// Gives up the host that this machine is already.
    #[arg(long)]
    replace: bool,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

pub async fn enrol(args: EnrolArgs) -> anyhow::Result<ExitCode> {
    let ticket = read_ticket(&args.ticket)?;
    let (data, json) = (args.data.absolute()?, args.json);
    let wish = enrol::Wish {
        data: &data,
        ticket: &ticket,
        wait: Duration::from_secs(args.wait),
        replace: args.replace,
    };
    let joined = enrol::enrol(&wish, async || look(&args).await).await;
    Ok(match joined {
        Ok(member) => {
            show(&member, json, &data);
            ExitCode::SUCCESS
        }
        Err(error) => {
            show_failure(&error, json);
            ExitCode::FAILURE
        }
    })
}

fn read_ticket(given: &str) -> anyhow::Result<String> {
    if given != "-" {
        return Ok(given.to_owned());
    }
    let mut text = String::new();
    let read = std::io::stdin().take(TICKET_READ_MAX).read_to_string(&mut text);
    read.context("read the ticket from standard input")?;
    Ok(text)
}

/// What the machine has, without changing anything on it.
async fn look(args: &EnrolArgs) -> Inventory {
    let engine = async {
        let client = docker::connect(&args.docker.docker).await.ok()?;
        let version = client.version().await.ok()?.version?;
        Some(host::Runtime::Docker { version })
    };
    let runtime = match args.runtime {
        RuntimeChoice::Simulated => None,
        RuntimeChoice::Docker | RuntimeChoice::Auto => engine.await,
    };
    let prover = args.offer.prover().unwrap_or_default();
    let data = args.data.absolute().unwrap_or_default();
    let runtime = runtime.unwrap_or(host::Runtime::Simulated);
    inventory::take(args.offer.offer(), &data, &prover, runtime, Vec::new()).await
}

fn show(member: &Membership, json: bool, data: &std::path::Path) {
    let place = &member.place;
    if json {
        let shown = json!({
            "host": place.host,
            "name": place.name,
            "market": member.url,
            "market_key": member.market_key,
            "hotkey": member.hotkey,
            "mesh_address": place.mesh.address,
        });
        println!("{shown:#}");
        return;
    }
    println!("host     {} ({})", place.host, place.name);
    println!("market   {}", member.url);
    println!("miner    {}", member.hotkey);
    println!("address  {}", place.mesh.address);
    println!("next     miner-agent run --data {}", data.display());
}

fn show_failure(error: &EnrolError, json: bool) {
    let problem = error.problem();
    if json {
        println!("{:#}", json!({ "error": problem }));
        return;
    }
    eprintln!("could not join: {} ({})", problem.detail, problem.code);
    if !problem.suggestion.is_empty() {
        eprintln!("try: {}", problem.suggestion);
    }
}

#[derive(Debug, Args)]
pub struct KeyArgs {
    #[command(flatten)]
    data: DataArg,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

pub fn key(args: &KeyArgs) -> anyhow::Result<ExitCode> {
    let key = membership::agent_key(&args.data.absolute()?)?.public();
    if args.json {
        println!("{:#}", json!({ "agent_key": key }));
    } else {
        println!("{key}");
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Debug, Args)]
pub struct RotateArgs {
    #[command(flatten)]
    data: DataArg,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

pub fn rotate(args: &RotateArgs) -> anyhow::Result<ExitCode> {
    let data: PathBuf = args.data.absolute()?;
    let member = Membership::load(&data)?;
    link::keys::ask_for_new(&data)?;
    let host = member.place.host;
    if args.json {
        println!("{:#}", json!({ "host": host, "asked": true }));
    } else {
        println!("{host} gets a new mesh key: within seconds where its agent runs, else when it starts");
    }
    Ok(ExitCode::SUCCESS)
}
