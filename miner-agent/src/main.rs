//! The agent: offers one machine to a Nave market.

mod cli;

use std::{io::IsTerminal as _, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use nave_domain::mesh::Prefix;
use nave_mesh::Name;
use nave_miner_agent::{
    VERSION,
    config::{Config, DockerConfig, MeshSide, Reach, RuntimeChoice},
    membership::Membership,
    purge,
    share::mps::{Means, become_daemon},
    shell::{self, Ended},
    upgrade::{self, Standing},
};
use tokio::signal::unix::{SignalKind, signal};
use tracing::Instrument as _;

use self::cli::{
    args::{DataArg, DockerArgs, OfferArgs},
    earnings::{self, EarningsArgs},
    explain::{self, VerifyArgs},
    join::{self, EnrolArgs, KeyArgs, RotateArgs},
    show::{self, DoctorArgs, InventoryArgs, StatusArgs},
};

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
    /// Joins the market that a ticket names. Asked again, it is still the same host.
    Enrol(Box<EnrolArgs>),
    /// Prints this agent's public key, for tickets that are meant for it alone.
    Key(KeyArgs),
    /// Says what the agent is doing.
    Status(StatusArgs),
    /// Says how this host stands in the market's tests: what is tested now, what came of the last ones.
    Verify(VerifyArgs),
    /// Says what this host's miner earns.
    Earnings(EarningsArgs),
    /// Asks for a new mesh key now; the running agent changes it without a gap.
    Rotate(RotateArgs),
    /// Shows what this machine would offer.
    Inventory(InventoryArgs),
    /// Says what this machine can do and what would fix the rest.
    Doctor(DoctorArgs),
    /// Kills and removes everything that the agent has made on this machine.
    RemoveAll(RemoveArgs),
    /// Serves a mesh interface for the agent that has started this.
    #[command(hide = true)]
    Tunnel(TunnelArgs),
    /// Becomes the daemon of MPS that shares a device for the agent that has started this.
    #[command(hide = true)]
    Mps(MpsArgs),
}

#[derive(Debug, Args)]
struct RunArgs {
    #[command(flatten)]
    data: DataArg,
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
struct RemoveArgs {
    #[command(flatten)]
    data: DataArg,
    #[command(flatten)]
    docker: DockerArgs,
    /// The program that speaks to the GPU driver; by default nave-prover beside this one.
    #[arg(long, env = "NAVE_AGENT_PROVER")]
    prover: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct TunnelArgs {
    /// Name of the interface.
    interface: String,
    /// The network namespace it is in.
    namespace: Option<String>,
}

#[derive(Debug, Args)]
struct MpsArgs {
    /// Where the memory is that it shares with those whom it serves.
    memory: PathBuf,
    /// The program that controls MPS.
    control: PathBuf,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let stays = matches!(cli.command, Command::Run(_) | Command::Tunnel(_) | Command::Mps(_));
    // What answers a person says in its answer what matters of its log.
    init_log(if stays { "info,gotatun=warn" } else { "warn" });
    // Both ring and another provider may be linked in; the choice must be explicit.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let done = match cli.command {
        // It brings threads of its own.
        Command::Tunnel(ref args) => tunnel(args),
        // It leaves the machine's mounts, which a program with threads does only in part.
        Command::Mps(ref args) => mps(args),
        Command::Run(_)
        | Command::Enrol(_)
        | Command::Key(_)
        | Command::Status(_)
        | Command::Verify(_)
        | Command::Earnings(_)
        | Command::Rotate(_)
        | Command::Inventory(_)
        | Command::Doctor(_)
        | Command::RemoveAll(_) => dispatch(cli.command),
    };
    match done {
        Ok(code) => code,
        Err(error) if stays => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("miner-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn tunnel(args: &TunnelArgs) -> anyhow::Result<ExitCode> {
    nave_mesh::tunnel::run(&args.interface, args.namespace.as_deref())?;
    Ok(ExitCode::SUCCESS)
}

fn mps(args: &MpsArgs) -> anyhow::Result<ExitCode> {
    become_daemon(&args.memory, args.control.as_os_str())?;
    Ok(ExitCode::FAILURE)
}

fn init_log(unless_told: &str) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("NAVE_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(unless_told));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_target(false);
    log.with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal()).init();
}

/// One thread: the agent waits far more than it works, and each further thread
/// costs memory on every host.
#[tokio::main(flavor = "current_thread")]
async fn dispatch(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run(args) => run(*args).await,
        Command::Enrol(args) => join::enrol(*args).await,
        Command::Key(args) => join::key(&args),
        Command::Status(args) => show::status(&args),
        Command::Verify(args) => explain::verify(args).await,
        Command::Earnings(args) => earnings::earnings(args).await,
        Command::Rotate(args) => join::rotate(&args),
        Command::Inventory(args) => show::inventory(args).await,
        Command::Doctor(args) => show::doctor(args).await,
        Command::RemoveAll(args) => {
            let mut docker = args.docker.config();
            docker.shares.prover = args.prover.unwrap_or(docker.shares.prover);
            let count = purge::remove_all(&args.data.absolute()?, &docker).await?;
            eprintln!("removed {count} jobs and everything around them");
            Ok(ExitCode::SUCCESS)
        }
        Command::Tunnel(args) => tunnel(&args),
        Command::Mps(args) => mps(&args),
    }
}

async fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    let data = args.data.absolute()?;
    let member = Membership::load(&data)?;
    let trial = upgrade::begin(&data, member.release_key.as_ref())?;
    let rotate = Duration::from_secs(args.rotate_every);
    let prefix = Prefix::of_market(&member.market_key.0);
    let mesh = MeshSide { prefix, interface: args.mesh_interface.clone() };
    let (docker, prover) = (args.docker.config(), args.offer.prover()?);
    let shares = Means { prover: prover.program.clone(), ..docker.shares.clone() };
    let config = Config {
        member,
        reach: match args.without_mesh {
            Some(url) => Reach::WithoutMesh(url),
            None => Reach::Mesh { interface: args.mesh_interface, rotate },
        },
        data: data.clone(),
        runtime: args.runtime,
        docker: DockerConfig { mesh: Some(mesh), shares, ..docker },
        prover,
        trial,
        offer: args.offer.offer(),
    };
    let (docker, host) = (config.docker.clone(), config.host());
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let shutdown = async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    };
    let span = tracing::info_span!("host", host.id = %host);
    let store = upgrade::Store::of(&data);
    match shell::run(config, shutdown).instrument(span).await? {
        Ended::Told if args.purge => {
            purge::remove_all(&data, &docker).await?;
        }
        Ended::Told => {}
        Ended::Succeeded(release) => {
            tracing::info!(version = release.release.version, "a newer program takes over; jobs go on");
            store.succeed(&release, Standing::Trying { starts: 1 })?;
        }
        Ended::FellBack(release) => {
            let version = &release.release.version;
            tracing::error!(
                version,
                "this program does not reach the control plane; the one before comes back"
            );
            store.fall_back(&release)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
