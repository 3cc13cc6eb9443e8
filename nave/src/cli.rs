//! Arguments.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum, value_parser};
use nave_domain::{Bytes, HostId, MicroUsd, MilliCpu, Millis, rate::Rate, verdict::Kind};
use nave_mesh::Name;
use nave_sdk::wire::sign::{PublicKey, Signature};

use crate::{
    bench::BenchCommand,
    up::{HOSTS_MAX, RENTED_MAX, SimulatedDevices},
};

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
    Up(Box<UpArgs>),
    /// Stop the market on this machine; its state stays.
    Down(DownArgs),
    /// Serve customers and hosts.
    Gateway(GatewayArgs),
    /// Let hosts into the mesh.
    Hub(HubArgs),
    /// Place jobs and watch over leases.
    Scheduler(SchedulerArgs),
    /// Test what hosts claim.
    Verifier(VerifierArgs),
    /// Close epochs and set weights.
    Validator(ValidatorArgs),
    /// Charge for use.
    Treasury(TreasuryArgs),
    /// Bring the database's schema up to date.
    Migrate(DatabaseArgs),
    /// Change the market as its operator.
    Admin(AdminArgs),
    /// Measure what proofs cost this machine; it needs no market.
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Serve a WireGuard interface for whoever started this.
    #[command(hide = true)]
    Tunnel(TunnelArgs),
    /// Let local hosts in namespaces reach a port of this machine's loopback.
    #[command(hide = true)]
    Relay(RelayArgs),
}

/// Where a machine's market lives.
#[derive(Debug, Args)]
pub struct DataArgs {
    /// Directory of the market's state; by default /var/lib/nave for root, else ~/.local/share/nave.
    #[arg(long, env = "NAVE_DATA")]
    pub data: Option<PathBuf>,
}

/// `naved down`.
#[derive(Debug, Args)]
pub struct DownArgs {
    #[command(flatten)]
    pub data: DataArgs,
    /// Print what was done as one JSON document.
    #[arg(long)]
    pub json: bool,
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
    /// Hosts that this machine is divided into, each with a network and an engine of its own;
    /// a single one is the machine itself, and with 0 all are elsewhere or rented.
    #[arg(long, default_value_t = 1, value_parser = value_parser!(u8).range(0..=i64::from(HOSTS_MAX)))]
    pub hosts: u8,
    /// Cloud that machines are rented from when no host takes a job.
    #[arg(long, value_enum)]
    pub cloud: Option<CloudChoice>,
    #[command(flatten)]
    pub rented: RentedArgs,
    /// What runs the local hosts' jobs.
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
    /// Cores that the local hosts offer together; all of them by default.
    #[arg(long)]
    pub cpu: Option<MilliCpu>,
    /// Memory that the local hosts offer together; half of the machine's by default.
    #[arg(long)]
    pub memory: Option<Bytes>,
    /// Disk that the local hosts offer together; half of what is free by default.
    #[arg(long)]
    pub disk: Option<Bytes>,
    /// GPUs that each local host simulates, such as 2, or 2xMODEL for what they are called: for
    /// development. Everybody sees that they are simulated, and jobs that run in containers never get them.
    #[arg(long, value_name = "COUNT[xMODEL]")]
    pub simulated_devices: Option<SimulatedDevices>,
    /// Name or address under which hosts elsewhere reach this machine; may be repeated.
    #[arg(long, value_name = "HOST")]
    pub reachable_at: Vec<String>,
    /// Key that signs upgrades of agents; hosts that join from now on take them.
    #[arg(long, value_name = "KEY")]
    pub release_key: Option<PublicKey>,
    /// How long a core of the reference rate works to prove itself.
    #[arg(long, hide = true)]
    pub proof_effort: Option<Millis>,
    #[command(flatten)]
    pub tests: TestArgs,
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

/// A cloud.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CloudChoice {
    /// Acted out: parts of this machine are rented and given back, at prices that are made up.
    Local,
}

/// The local cloud.
#[derive(Debug, Clone, Args)]
pub struct RentedArgs {
    /// Machines that the local cloud has; this one is divided into these and its own hosts.
    #[arg(long, value_name = "COUNT", default_value_t = 1, requires = "cloud",
          value_parser = value_parser!(u8).range(1..=i64::from(RENTED_MAX)))]
    pub cloud_hosts: u8,
    /// Dollars that a machine of the local cloud is said to cost in an hour.
    #[arg(long, value_name = "DOLLARS", default_value = "0.50", requires = "cloud")]
    pub cloud_price: MicroUsd,
    /// Time until a machine of the local cloud has booted.
    #[arg(long, value_name = "SPAN", default_value = "5s", requires = "cloud")]
    pub cloud_boot: Millis,
    /// How long a job waits for hosts that are busy until a machine is rented for it.
    #[arg(long, value_name = "SPAN", default_value = "5s", requires = "cloud")]
    pub cloud_patience: Millis,
    /// How long a rented machine has nothing to do until it is given back.
    #[arg(long, value_name = "SPAN", default_value = "30s", requires = "cloud")]
    pub cloud_idle: Millis,
}

impl UpArgs {
    /// How many machines may be rented.
    pub fn rented(&self) -> u8 {
        self.cloud.map_or(0, |_| self.rented.cloud_hosts)
    }
}

/// Price of the local hosts. What is not given stays as it is.
#[derive(Debug, Args)]
pub struct PriceArgs {
    /// Dollars per hour of one GPU; 1.50 at first.
    #[arg(long)]
    pub price_gpu: Option<MicroUsd>,
    /// Dollars per hour of one virtual CPU; 0.02 at first.
    #[arg(long)]
    pub price_cpu: Option<MicroUsd>,
    /// Dollars per hour of one GiB of memory; 0.003 at first.
    #[arg(long)]
    pub price_memory: Option<MicroUsd>,
}

impl PriceArgs {
    /// What a local host costs at first.
    pub const DEFAULT: Rate =
        Rate { gpu_hour: MicroUsd(1_500_000), vcpu_hour: MicroUsd(20_000), gib_hour: MicroUsd(3_000) };
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
    /// File with the key that identifies the market; `naved admin market-key` makes one.
    #[arg(long)]
    pub market_key: PathBuf,
    /// Key that signs upgrades of agents.
    #[arg(long, value_name = "KEY")]
    pub release_key: Option<PublicKey>,
    /// Network namespace of the hub's interface, where hosts are served.
    #[arg(long, value_name = "NAMESPACE")]
    pub host_namespace: String,
    /// Registry whose tags are resolved; may be repeated. Without it the well-known public ones.
    #[arg(long)]
    pub registry: Vec<String>,
    /// Registry reached without TLS, such as one on loopback; may be repeated.
    #[arg(long)]
    pub insecure_registry: Vec<String>,
}

/// `naved hub`. It needs root, and one of it runs for a market.
#[derive(Debug, Args)]
pub struct HubArgs {
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// File with the hub's WireGuard key, which is made if there is none.
    #[arg(long)]
    pub key: PathBuf,
    /// File with the key that identifies the market: addresses follow from it.
    #[arg(long)]
    pub market_key: PathBuf,
    /// Name of the WireGuard interface, unique on the machine.
    #[arg(long)]
    pub interface: Name,
    /// Network namespace to put it into; it holds nothing else.
    #[arg(long)]
    pub namespace: String,
    /// UDP port.
    #[arg(long, value_name = "PORT")]
    pub listen: u16,
    /// Where hosts find that port, as `address:port` or `name:port`; may be repeated, best first.
    #[arg(long, required = true, value_name = "HOST:PORT")]
    pub endpoint: Vec<String>,
}

/// `naved verifier`.
#[derive(Debug, Args)]
pub struct VerifierArgs {
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// How long a core of the reference rate works to prove itself. Reports travel for a
    /// second or so: much less than the default would test the network.
    #[arg(long, default_value = "5s")]
    pub proof_effort: Millis,
    #[command(flatten)]
    pub tests: TestArgs,
}

/// What is tested of hosts, and how often.
#[derive(Debug, Clone, Args)]
pub struct TestArgs {
    /// Kinds of tests that a host must pass before it takes jobs.
    #[arg(
        long,
        value_name = "KINDS",
        value_delimiter = ',',
        default_value = "cpu,memory,devices,storage,software"
    )]
    pub enforce: Vec<Kind>,
    /// Kinds of tests that are recorded and refuse nobody.
    #[arg(long, value_name = "KINDS", value_delimiter = ',', default_value = "transfer")]
    pub shadow: Vec<Kind>,
    /// Time between two tests of everything of a host that is free, on average: nobody can foresee them.
    #[arg(long, value_name = "SPAN", default_value = "6h")]
    pub retest_every: Millis,
    /// Time between two small tests of GPUs that are leased, on average.
    #[arg(long, value_name = "SPAN", default_value = "30m")]
    pub probe_every: Millis,
    /// Time between two tests of all GPUs of the market at the same moment, on average.
    #[arg(long, value_name = "SPAN", default_value = "8h")]
    pub window_every: Millis,
    /// Time between two transfers to a host from another, on average.
    #[arg(long, value_name = "SPAN", default_value = "2h")]
    pub transfer_every: Millis,
}

/// `naved tunnel`.
#[derive(Debug, Args)]
pub struct TunnelArgs {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub namespace: Option<String>,
}

/// `naved relay`.
#[derive(Debug, Args)]
pub struct RelayArgs {
    /// The port, on loopback here and there.
    pub address: SocketAddr,
    /// Where the hosts are.
    #[arg(required = true)]
    pub namespace: Vec<String>,
}

/// `naved scheduler`.
#[derive(Debug, Args)]
pub struct SchedulerArgs {
    #[command(flatten)]
    pub database: DatabaseArgs,
    #[command(flatten)]
    pub protocol: ProtocolArgs,
    /// File that says which clouds machines are rented from; see docs/clouds.md. Keys may be in the
    /// environment instead, as NAVE_CLOUD_LAMBDA_KEY.
    #[arg(long, env = "NAVE_CLOUDS", value_name = "FILE")]
    pub clouds: Option<PathBuf>,
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
    /// File with the market's key, which signs events and the evidence of epochs.
    #[arg(long)]
    pub market_key: PathBuf,
    /// Begin a new market with the parameters of one on a single machine: nobody waits for anything, and the emission is made up.
    #[arg(long)]
    pub local_params: bool,
    /// Directory that the evidence of epochs is also written to, once it may be read.
    #[arg(long, value_name = "DIR")]
    pub evidence_dir: Option<PathBuf>,
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
    /// Announce parameters that hold from an epoch on; `nave params` shows what there is.
    Announce {
        /// JSON of the whole document, as `nave params --json` prints it under `document`.
        file: PathBuf,
        /// The epoch; not sooner than the parameters that hold now allow.
        #[arg(long)]
        epoch: i64,
    },
    /// Add to a miner's collateral; the same key adds it once.
    Collateral {
        /// The miner's hotkey.
        hotkey: String,
        /// Dollars.
        amount: MicroUsd,
        /// Reason that makes it happen once.
        #[arg(long)]
        key: String,
        /// Name of the customer whose balance it is taken from, who then counts as one with the miner.
        #[arg(long)]
        from: Option<String>,
    },
    /// Have a customer and a miner count as one: leases between them earn nothing.
    Relate {
        /// Name of the customer.
        customer: String,
        /// The miner's hotkey.
        hotkey: String,
        /// How that is known; it stands in the evidence.
        #[arg(long, required_unless_present = "undo")]
        why: Option<String>,
        /// They count as two again.
        #[arg(long)]
        undo: bool,
    },
    /// Keep the evidence of epochs for so many days.
    EvidenceDays {
        /// Days after the weights were revealed.
        days: u32,
    },
    /// Print how often tests that refuse nobody yet would have refused a host that otherwise passed.
    Shadow,
    /// Print the machines that were rented from clouds, what they cost, and what clouds said.
    Machines {
        /// Print it as one JSON document.
        #[arg(long)]
        json: bool,
    },
    /// Rent again from a cloud that rests since its machines were paid for in vain.
    Resume {
        /// Its name, such as lambda.
        cloud: String,
    },
    /// Have a host prove again what it claims; it takes no new jobs until it has.
    Test {
        /// Its id.
        host: HostId,
    },
    /// Send a host away for good: it is cut off at once, and what it ran runs again elsewhere.
    Ban {
        /// Its id.
        host: HostId,
    },
    /// Print the public part of the market key in a file, which is made if there is none.
    MarketKey {
        /// The file.
        file: PathBuf,
    },
    /// Sign and publish upgrades of agents.
    #[command(subcommand)]
    Release(ReleaseCommand),
}

/// Upgrades of agents. Only publishing needs the market; the key stays elsewhere.
#[derive(Debug, Subcommand)]
pub enum ReleaseCommand {
    /// Make a release key and print its public part.
    Keygen {
        /// File for the secret part.
        file: PathBuf,
    },
    /// Print the signature of a program.
    Sign {
        /// The program.
        program: PathBuf,
        #[command(flatten)]
        release: ReleaseArgs,
        /// File with the secret release key.
        #[arg(long)]
        key: PathBuf,
    },
    /// Offer a signed program to hosts.
    Publish {
        /// The program.
        program: PathBuf,
        #[command(flatten)]
        release: ReleaseArgs,
        /// What `sign` has printed.
        #[arg(long)]
        signature: Signature,
        /// Public part of the release key, as hosts know it.
        #[arg(long, value_name = "KEY")]
        release_key: PublicKey,
    },
}

/// Which release.
#[derive(Debug, Args)]
pub struct ReleaseArgs {
    /// Version, such as 0.2.0.
    #[arg(long)]
    pub version: String,
    /// Platform.
    #[arg(long, default_value = "x86_64-linux")]
    pub target: String,
}
