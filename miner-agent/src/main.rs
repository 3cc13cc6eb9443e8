//! The agent: offers one machine to a Nave market.

use std::{io::IsTerminal as _, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use nave_domain::{Bytes, MilliCpu, host::Inventory};
use nave_mesh::Name;
use nave_miner_agent::{
    VERSION,
    config::{BridgePrefix, Config, DockerConfig, Offer, Pools, Reach, RuntimeChoice},
    doctor, inventory,
    membership::Membership,
    purge, shell,
};
use tokio::signal::unix::{SignalKind, signal};
use tracing::Instrument as _;

/// Offers one machine to a Nave market and runs the jobs it is given.
#[derive(Debug, Parser)]
#[command(name = "miner-agent", version = VERSION)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs jobs until SIGTERM or SIGINT; running jobs go on and the next agent adopts them.
    Run(Box<RunArgs>),
    /// Shows what this machine would offer.
    Inventory(InventoryArgs),
    /// Says what this machine can do and what would fix the rest.
    Doctor(DoctorArgs),
    /// Kills and removes everything that the agent has made on this machine.
    RemoveAll(RemoveArgs),
}

#[derive(Debug, Args)]
struct RunArgs {
    /// Directory for the agent's state and for working directories.
    #[arg(long, env = "NAVE_AGENT_DATA")]
    data: PathBuf,
    /// What runs jobs: docker, simulated, or auto (docker where it can be used).
    #[arg(long, env = "NAVE_AGENT_RUNTIME", default_value = "auto")]
    runtime: RuntimeChoice,
    #[command(flatten)]
    docker: DockerArgs,
    #[command(flatten)]
    offer: OfferArgs,
    /// Removes all jobs when it stops, instead of leaving them to the next agent.
    #[arg(long)]
    purge: bool,
    /// Name of the mesh interface; agents on one machine need different ones.
    #[arg(long, env = "NAVE_AGENT_MESH_INTERFACE", default_value = "nave0")]
    mesh_interface: Name,
    /// Seconds for which a mesh key is used; 0 for ever.
    #[arg(long, env = "NAVE_AGENT_ROTATE_EVERY", default_value_t = 86_400, value_name = "SECONDS")]
    rotate_every: u64,
    /// What stands in for the control plane behind the mesh in tests of the agent.
    #[arg(long, hide = true, value_name = "URL")]
    without_mesh: Option<String>,
}

#[derive(Debug, Args)]
struct DockerArgs {
    /// Unix socket of the Docker Engine.
    #[arg(long, env = "NAVE_AGENT_DOCKER", default_value = "/var/run/docker.sock")]
    docker: PathBuf,
    /// First letters of bridge names; agents on one machine need different ones.
    #[arg(long, env = "NAVE_AGENT_BRIDGE_PREFIX", default_value = "nvj")]
    bridge_prefix: BridgePrefix,
    /// Networks of jobs come from 10.N.0.0/16 and fd6e:6176:65NN::/48, NN in hexadecimal.
    #[arg(long, env = "NAVE_AGENT_POOL", default_value_t = 213, value_name = "N")]
    pool: u8,
    /// Public resolvers for jobs, instead of well-known ones.
    #[arg(long, env = "NAVE_AGENT_DNS", value_delimiter = ',')]
    dns: Vec<String>,
}

impl DockerArgs {
    fn config(self) -> DockerConfig {
        let default = DockerConfig::new(self.docker);
        let dns = if self.dns.is_empty() { default.dns } else { self.dns };
        DockerConfig { prefix: self.bridge_prefix, pools: Pools::numbered(self.pool), dns, ..default }
    }
}

#[derive(Debug, Args)]
struct OfferArgs {
    /// Cores to offer, such as 2 or 0.5; all by default.
    #[arg(long, env = "NAVE_AGENT_CPU")]
    cpu: Option<MilliCpu>,
    /// Memory to offer, such as 8GiB; by default all but 1 GiB, and at least half.
    #[arg(long, env = "NAVE_AGENT_MEMORY")]
    memory: Option<Bytes>,
    /// Disk space to offer, such as 20GiB; half of what is free by default.
    #[arg(long, env = "NAVE_AGENT_DISK")]
    disk: Option<Bytes>,
    /// The program that speaks to the GPU driver; by default nave-prover beside this one.
    #[arg(long, env = "NAVE_AGENT_PROVER")]
    prover: Option<PathBuf>,
}

impl OfferArgs {
    fn offer(&self) -> Offer {
        Offer { cpu: self.cpu, memory: self.memory, disk: self.disk }
    }

    fn prover(&self) -> anyhow::Result<PathBuf> {
        let beside = || -> anyhow::Result<PathBuf> {
            let this = std::env::current_exe().context("find this program's own path")?;
            Ok(this.with_file_name("nave-prover"))
        };
        self.prover.clone().map_or_else(beside, Ok)
    }
}

#[derive(Debug, Args)]
struct InventoryArgs {
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
struct DoctorArgs {
    /// Prints JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    docker: DockerArgs,
    #[command(flatten)]
    offer: OfferArgs,
}

#[derive(Debug, Args)]
struct RemoveArgs {
    /// The data directory of the agent.
    #[arg(long, env = "NAVE_AGENT_DATA")]
    data: PathBuf,
    #[command(flatten)]
    docker: DockerArgs,
}

/// One thread: the agent waits far more than it works, and each further thread
/// costs memory on every host.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    init_log();
    // Both ring and another provider may be linked in; the choice must be explicit.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match dispatch(cli.command).await {
        Ok(code) => code,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn init_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("NAVE_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_target(false);
    log.with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal()).init();
}

async fn dispatch(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run(args) => run(*args).await,
        Command::Inventory(args) => show_inventory(args).await,
        Command::Doctor(args) => examine(args).await,
        Command::RemoveAll(args) => {
            let count = purge::remove_all(&args.data, &args.docker.config()).await?;
            eprintln!("removed {count} jobs and everything around them");
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    let data = std::path::absolute(&args.data).context("make the data directory's path absolute")?;
    let membership = Membership::load(&data)?;
    let rotate = Duration::from_secs(args.rotate_every);
    let config = Config {
        member: membership,
        reach: match args.without_mesh {
            Some(url) => Reach::WithoutMesh(url),
            None => Reach::Mesh { interface: args.mesh_interface, rotate },
        },
        data,
        runtime: args.runtime,
        docker: args.docker.config(),
        prover: args.offer.prover()?,
        offer: args.offer.offer(),
    };
    let (data, docker, host) = (config.data.clone(), config.docker.clone(), config.host());
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let shutdown = async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    };
    shell::run(config, shutdown).instrument(tracing::info_span!("host", host.id = %host)).await?;
    if args.purge {
        purge::remove_all(&data, &docker).await?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn show_inventory(args: InventoryArgs) -> anyhow::Result<ExitCode> {
    let (offer, prover) = (args.offer.offer(), args.offer.prover()?);
    let runtime = nave_domain::host::Runtime::Simulated;
    let taken = inventory::take(offer, &args.data, &prover, runtime, Vec::new()).await;
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

async fn examine(args: DoctorArgs) -> anyhow::Result<ExitCode> {
    let findings = doctor::examine(&args.docker.docker, &args.offer.prover()?).await;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&findings)?);
    } else {
        for finding in &findings {
            let mark = if finding.ok { "ok  " } else { "FAIL" };
            println!("{mark}  {:<11} {}: {}", finding.name, finding.found, finding.means);
            if let Some(fix) = finding.fix {
                println!("                  fix: {fix}");
            }
        }
    }
    let fine = doctor::can_run_docker(&findings);
    Ok(if fine { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
