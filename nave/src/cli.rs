//! Arguments.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use nave_domain::{Bytes, MicroUsd, MilliCpu, Millis};

/// The control plane of a Nave market.
#[derive(Debug, Parser)]
#[command(name = "naved", version, disable_help_subcommand = true)]
pub struct Cli {
    /// Write the log as JSON lines.
    #[arg(long, global = true)]
    pub log_json: bool,
    #[command(subcommand)]
    pub command: Command,
}

/// What to run.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a whole market on this machine.
    Up(UpArgs),
    /// Stop the market on this machine; its state stays.
    Down(DataArgs),
    /// Serve customers and hosts.
    Gateway(GatewayArgs),
    /// Place jobs and watch over leases.
    Scheduler(SchedulerArgs),
    /// Close epochs and set weights.
    Validator(ValidatorArgs),
    /// Charge for use.
    Treasury(TreasuryArgs),
    /// Bring the database's schema up to date.
    Migrate(DatabaseArgs),
    /// Change the market as its operator.
    Admin(AdminArgs),
}

/// Where a machine's market lives.
#[derive(Debug, Args)]
pub struct DataArgs {
    /// Directory of the market's state; by default /var/lib/nave for root, else ~/.local/share/nave.
    #[arg(long, env = "NAVE_DATA")]
    pub data: Option<PathBuf>,
}

/// What runs the local host's jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RuntimeChoice {
    /// Docker if this machine can, else simulated.
    Auto,
    /// Docker, or fail.
    Docker,
    /// Act jobs out without executing them.
    Simulated,
}

/// `naved up`.
#[derive(Debug, Args)]
pub struct UpArgs {
    #[command(flatten)]
    pub data: DataArgs,
    /// Print what is running as one JSON document.
    #[arg(long)]
    pub json: bool,
    /// Return as soon as the market is ready and leave it running.
    #[arg(long)]
    pub detach: bool,
    /// Address of the customers' API.
    #[arg(long, default_value = "127.0.0.1:7463")]
    pub api: SocketAddr,
    /// What runs the local host's jobs.
    #[arg(long, value_enum, default_value = "auto")]
    pub runtime: RuntimeChoice,
    /// Docker socket to use instead of an engine of its own.
    #[arg(long)]
    pub docker: Option<PathBuf>,
    /// Run an image registry on this machine's loopback, from now on whenever the market is up.
    #[arg(long)]
    pub local_registry: bool,
    /// Image of jobs that name none.
    #[arg(long)]
    pub default_image: Option<String>,
    /// Cores the local host offers; all of them by default.
    #[arg(long)]
    pub cpu: Option<MilliCpu>,
    /// Memory the local host offers; all but a reserve by default.
    #[arg(long)]
    pub memory: Option<Bytes>,
    /// Disk the local host offers; half of what is free by default.
    #[arg(long)]
    pub disk: Option<Bytes>,
    #[command(flatten)]
    pub price: PriceArgs,
    /// Test credit of the local customer, in dollars, given once.
    #[arg(long, default_value = "100")]
    pub credit: MicroUsd,
    /// Length of an epoch.
    #[arg(long, default_value = "60s")]
    pub epoch: Millis,
    /// Time after which a host that hears nothing ends its jobs.
    #[arg(long, default_value = "45s")]
    pub fence: Millis,
    /// Longest time between two reports of a host.
    #[arg(long, default_value = "5s")]
    pub report: Millis,
}

/// Price of the local host.
#[derive(Debug, Args)]
pub struct PriceArgs {
    /// Dollars per hour of one GPU.
    #[arg(long, default_value = "1.50")]
    pub price_gpu: MicroUsd,
    /// Dollars per hour of one virtual CPU.
    #[arg(long, default_value = "0.02")]
    pub price_cpu: MicroUsd,
    /// Dollars per hour of one GiB of memory.
    #[arg(long, default_value = "0.003")]
    pub price_memory: MicroUsd,
}

/// Which database.
#[derive(Debug, Args)]
pub struct DatabaseArgs {
    /// Postgres connection string.
    #[arg(long, env = "NAVE_DATABASE", hide_env_values = true)]
    pub database: String,
}

/// Times of the host protocol, the same for gateway and scheduler.
#[derive(Debug, Clone, Copy, Args)]
pub struct ProtocolArgs {
    /// Time after which a host that hears nothing ends its jobs.
    #[arg(long, default_value = "45s")]
    pub fence: Millis,
    /// Longest time between two reports of a host.
    #[arg(long, default_value = "5s")]
    pub report: Millis,
}

/// `naved gateway`.
#[derive(Debug, Args)]
pub struct GatewayArgs {
    #[command(flatten)]
    pub database: DatabaseArgs,
    #[command(flatten)]
    pub protocol: ProtocolArgs,
    /// Address of the customers' API.
    #[arg(long, default_value = "127.0.0.1:7463")]
    pub api: SocketAddr,
    /// Unix socket for hosts on this machine; who may open it is trusted to be one.
    #[arg(long)]
    pub host_socket: PathBuf,
    /// Registry whose tags are resolved; may be repeated. Without it the well-known public ones.
    #[arg(long)]
    pub registry: Vec<String>,
    /// Registry reached without TLS, such as one on loopback; may be repeated.
    #[arg(long)]
    pub insecure_registry: Vec<String>,
}

/// `naved scheduler`.
#[derive(Debug, Args)]
pub struct SchedulerArgs {
    #[command(flatten)]
    pub database: DatabaseArgs,
    #[command(flatten)]
    pub protocol: ProtocolArgs,
}

/// `naved validator`.
#[derive(Debug, Args)]
pub struct ValidatorArgs {
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// Length of an epoch; the default is a tempo of 360 blocks of 12 s.
    #[arg(long, default_value = "72m")]
    pub epoch: Millis,
    /// Hotkey that gets the weight nobody earned.
    #[arg(long, default_value = "sink")]
    pub sink: String,
    /// Directory of the local chain, which stands for a chain on this machine.
    #[arg(long)]
    pub local_chain: PathBuf,
}

/// `naved treasury`.
#[derive(Debug, Args)]
pub struct TreasuryArgs {
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// Time between two charges of a running job.
    #[arg(long, default_value = "5s")]
    pub every: Millis,
}

/// `naved admin`.
#[derive(Debug, Args)]
pub struct AdminArgs {
    #[command(flatten)]
    pub data: DataArgs,
    /// Postgres connection string; by default that of the market in the data directory.
    #[arg(long, env = "NAVE_DATABASE", hide_env_values = true)]
    pub database: Option<String>,
    #[command(subcommand)]
    pub command: AdminCommand,
}

/// What an operator can do.
#[derive(Debug, Subcommand)]
pub enum AdminCommand {
    /// Set the image of jobs that name none.
    DefaultImage {
        /// Image reference, with or without a digest.
        image: String,
    },
    /// Give a customer credit; the same key gives it once.
    Credit {
        /// Name of the customer, who is made if there is none.
        customer: String,
        /// Dollars.
        amount: MicroUsd,
        /// Reason that makes it happen once.
        #[arg(long)]
        key: String,
    },
    /// Make an API key for a customer and print its token.
    Key {
        /// Name of the customer, who is made if there is none.
        customer: String,
        /// Scope; may be repeated. Without it all of them.
        #[arg(long)]
        scope: Vec<String>,
    },
    /// Check that the books balance.
    Audit,
}
