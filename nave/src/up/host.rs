//! Local hosts: what each offers of this machine, and how it joins the market.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::Context as _;
use nave_domain::{Bytes, HostId, MilliCpu, Millis, rate::Rate};
use nave_sdk::wire::enrol::{TicketId, TicketPayload, check_name};
use nave_sdk::wire::sign::random;
use nave_store::{HostPatch, HostRow, Store};
use nix::sys::statvfs::statvfs;
use serde_json::Value;
use tokio::task::spawn_blocking;

use super::{
    layout::{Layout, numbered},
    market::Keys,
    network::Network,
    program,
    status::HostStatus,
};
use crate::cli::{PriceArgs, UpArgs};

/// What one host offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    pub cpu: MilliCpu,
    pub memory: Bytes,
    pub disk: Bytes,
}

/// What a machine has.
#[derive(Debug, Clone, Copy)]
struct Whole {
    cpu: MilliCpu,
    memory: Bytes,
    /// What is free of it.
    disk: Bytes,
}

/// Memory that is left to the control plane, whatever is offered.
const RESERVE: i64 = 2 * Bytes::GIB;
/// How long a ticket that this machine gives itself can be used.
const TICKET_LIFE: Millis = Millis(10 * 60_000);
/// Longest wait for the market to take a local host.
const JOIN: Duration = Duration::from_secs(60);

impl Share {
    /// An equal part for each of `hosts`: of what is asked for, else of all cores, half of
    /// the memory and half of the free disk. Hosts prove their memory by filling it.
    ///
    /// # Errors
    /// When more is asked for than the machine has.
    pub fn of_machine(args: &UpArgs, layout: &Layout, hosts: u8) -> anyhow::Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let stat = statvfs(layout.root()).context("see how much disk is free")?;
        let free = stat.blocks_available().saturating_mul(stat.fragment_size());
        let whole = Whole {
            cpu: MilliCpu(i64::try_from(cores)?.saturating_mul(1_000)),
            memory: memory_total()?,
            disk: Bytes(i64::try_from(free)?),
        };
        divide(whole, (args.cpu, args.memory, args.disk), hosts)
    }

    /// As options of the agent.
    fn arguments(&self) -> Vec<String> {
        let cpu = format!("{}.{:03}", self.cpu.0 / 1_000, self.cpu.0 % 1_000);
        let options =
            [("--cpu", cpu), ("--memory", self.memory.0.to_string()), ("--disk", self.disk.0.to_string())];
        options.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect()
    }
}

fn divide(
    whole: Whole,
    asked: (Option<MilliCpu>, Option<Bytes>, Option<Bytes>),
    hosts: u8,
) -> anyhow::Result<Share> {
    let (cpu, memory, disk) = asked;
    let memory_default = Bytes((whole.memory.0 / 2).min(whole.memory.0 - RESERVE).max(whole.memory.0 / 4));
    let (cpu, memory, disk) =
        (cpu.unwrap_or(whole.cpu), memory.unwrap_or(memory_default), disk.unwrap_or(Bytes(whole.disk.0 / 2)));
    anyhow::ensure!(cpu <= whole.cpu, "--cpu is more than this machine has, {} cores", whole.cpu.0 / 1_000);
    anyhow::ensure!(memory <= whole.memory, "--memory is more than this machine has, {}", whole.memory);
    anyhow::ensure!(disk <= whole.disk, "--disk is more than what is free, {}", whole.disk);
    let part = |total: i64, unit: i64| total / i64::from(hosts) / unit * unit;
    let share = Share {
        cpu: MilliCpu(part(cpu.0, 1)),
        memory: Bytes(part(memory.0, Bytes::MIB)),
        disk: Bytes(part(disk.0, Bytes::MIB)),
    };
    anyhow::ensure!(
        share.cpu.0 > 0 && share.memory.0 > 0 && share.disk.0 > 0,
        "{hosts} hosts are more than this machine can be divided into"
    );
    Ok(share)
}

fn memory_total() -> anyhow::Result<Bytes> {
    let text = fs::read_to_string("/proc/meminfo").context("see how much memory there is")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:")).unwrap_or_default();
    let kib: i64 = line.trim().trim_end_matches("kB").trim().parse().context("read /proc/meminfo")?;
    Ok(Bytes(kib.saturating_mul(Bytes::KIB)))
}

/// A host that this machine is or holds.
#[derive(Debug, Clone)]
pub struct LocalHost {
    /// Counted from 1.
    pub number: u8,
    pub name: String,
    pub namespace: Option<String>,
    pub data: PathBuf,
    pub interface: String,
    pub socket: Option<PathBuf>,
    /// How its agent reaches its engine and what of the machine's network is its.
    engine: Vec<String>,
    offer: Vec<String>,
    runtime: &'static str,
}

impl LocalHost {
    /// The host of this number. `socket` is that of its engine, where it has one.
    pub fn new(
        network: Network,
        number: u8,
        layout: &Layout,
        share: Option<Share>,
        socket: Option<PathBuf>,
    ) -> Self {
        Self {
            number,
            name: name(number),
            namespace: network.host_namespace(number),
            data: layout.agent(number),
            interface: network.host_interface(number),
            engine: socket.as_ref().map(|socket| engine_arguments(network, socket)).unwrap_or_default(),
            runtime: if socket.is_some() { "docker" } else { "simulated" },
            socket,
            offer: share.map(|share| share.arguments()).unwrap_or_default(),
        }
    }

    /// The same with the simulated devices of a file.
    pub fn simulating(mut self, devices: &Path) -> Self {
        let option = ["--simulated-devices".to_owned(), devices.to_string_lossy().into_owned()];
        self.offer.extend(option);
        self
    }

    /// The same as it is found: where its namespace is not there none of its containers run, and its engine
    /// does as well anywhere.
    pub fn found(mut self) -> Self {
        self.namespace = self.namespace.filter(|name| Path::new("/run/netns").join(name).exists());
        self
    }

    pub fn status(&self, id: Option<HostId>) -> HostStatus {
        HostStatus {
            id,
            name: self.name.clone(),
            namespace: self.namespace.clone(),
            data: self.data.clone(),
            interface: self.interface.clone(),
            docker_host: self.socket.as_ref().map(|socket| format!("unix://{}", socket.display())),
        }
    }

    /// The command of its agent.
    pub fn command(&self, agent: PathBuf) -> anyhow::Result<Command> {
        let mut command = program::inside(self.namespace.as_deref(), agent)?;
        command.arg("run").arg("--data").arg(&self.data).args(["--mesh-interface", &self.interface]);
        command.args(["--runtime", self.runtime]).args(&self.engine).args(&self.offer);
        Ok(command)
    }

    /// The same for an agent that somebody else starts, as it finds it in its environment.
    pub fn variables(&self) -> Vec<(String, String)> {
        let own = [
            ("--data", self.data.to_string_lossy().into_owned()),
            ("--mesh-interface", self.interface.clone()),
            ("--runtime", self.runtime.to_owned()),
        ];
        let own = own.map(|(name, value)| (name.to_owned(), value));
        let pairs = self.engine.chunks_exact(2).chain(self.offer.chunks_exact(2));
        let pairs = pairs.map(|pair| (pair[0].clone(), pair[1].clone()));
        let variable = |name: &str| name.trim_start_matches('-').replace('-', "_").to_uppercase();
        own.into_iter()
            .chain(pairs)
            .map(|(name, value)| (format!("NAVE_AGENT_{}", variable(&name)), value))
            .collect()
    }

    /// Removes every container, network, mount and firewall table that its agent made. No
    /// agent may run.
    pub fn purge(&self, agent: PathBuf) -> anyhow::Result<()> {
        if self.engine.is_empty() {
            return Ok(());
        }
        let mut command = program::inside(self.namespace.as_deref(), agent)?;
        command.arg("remove-all").arg("--data").arg(&self.data).args(&self.engine);
        program::finish(command, "").map(drop).context("run miner-agent remove-all")
    }

    /// Makes it a host of the market, where it is none yet, and says which.
    ///
    /// # Errors
    /// When the market does not take it.
    pub async fn join(&self, market: &Joining<'_>) -> anyhow::Result<Joined> {
        let hotkey = market.keys.hotkey.hotkey().to_string();
        let rows = market.store.hosts_of_miner(&hotkey).await?;
        let enrolled = self.enrolled();
        let known = rows.iter().find(|row| Some(row.host) == enrolled);
        if let Some(row) = known.filter(|row| row.state == nave_domain::host::HostState::Banned) {
            return Ok(Joined::Banned(row.host));
        }
        if let Some(row) = known.filter(|row| row.state.is_member()) {
            self.reprice(market, &hotkey, row).await?;
            return Ok(Joined::Member(row.host));
        }
        // Its agent lost what it knew, or was killed before it wrote it down.
        let lost = rows.iter().find(|row| row.name == self.name && row.state.is_member());
        let ticket = self.ticket(market, lost.map(|row| row.host)).await?;
        let mut command = Command::new(market.agent.clone());
        command.args(["enrol", "-", "--data"]).arg(&self.data).args(["--runtime", self.runtime]);
        command.args(["--wait", &JOIN.as_secs().to_string()]).args(&self.engine).args(&self.offer);
        if enrolled.is_some() {
            // The host that it was has left.
            command.arg("--replace");
        }
        spawn_blocking(move || program::finish(command, &ticket))
            .await?
            .with_context(|| format!("make {} a host of this market", self.name))?;
        self.enrolled().map(Joined::Member).context("miner-agent enrol wrote no enrolment")
    }

    /// Which host its agent believes to be.
    fn enrolled(&self) -> Option<HostId> {
        let bytes = fs::read(self.data.join("agent/enrolment.json")).ok()?;
        let document: Value = serde_json::from_slice(&bytes).ok()?;
        document["place"]["host"].as_str()?.parse().ok()
    }

    async fn ticket(&self, market: &Joining<'_>, replaces: Option<HostId>) -> anyhow::Result<String> {
        let payload = TicketPayload {
            url: market.url.clone(),
            market_key: market.keys.market.public(),
            release_key: market.args.release_key,
            hotkey: market.keys.hotkey.hotkey().to_string(),
            ticket: TicketId(random()?),
            expires_at: market.store.now().await?.after(TICKET_LIFE),
            name: Some(self.name.clone()),
            rate: rate(&market.args.price, None),
            term: nave_domain::host::Term::OnDemand,
            region: None,
            agent_key: None,
            replaces,
        };
        Ok(market.keys.hotkey.ticket(payload)?.to_string())
    }

    /// A price on the command line is its owner's word.
    async fn reprice(&self, market: &Joining<'_>, hotkey: &str, row: &HostRow) -> anyhow::Result<()> {
        let rate = rate(&market.args.price, Some(row.rate));
        if rate != row.rate {
            let patch = HostPatch { rate: Some(rate), ..HostPatch::default() };
            market.store.host_patch(hotkey, row.host, patch).await.context("change the price of a host")?;
        }
        Ok(())
    }
}

/// What local hosts join.
pub struct Joining<'a> {
    pub store: &'a Store,
    pub keys: &'a Keys,
    pub args: &'a UpArgs,
    /// Of the API, as this machine reaches it.
    pub url: String,
    pub agent: PathBuf,
}

/// What came of joining.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Joined {
    Member(HostId),
    /// The operator has sent it away; it is not let in through another door.
    Banned(HostId),
}

fn rate(price: &PriceArgs, now: Option<Rate>) -> Rate {
    let now = now.unwrap_or(PriceArgs::DEFAULT);
    Rate {
        gpu_hour: price.price_gpu.unwrap_or(now.gpu_hour),
        vcpu_hour: price.price_cpu.unwrap_or(now.vcpu_hour),
        gib_hour: price.price_memory.unwrap_or(now.gib_hour),
    }
}

fn engine_arguments(network: Network, socket: &Path) -> Vec<String> {
    let slot = network.slot;
    let arguments = [
        "--docker",
        &socket.to_string_lossy(),
        "--bridge-prefix",
        &slot.bridge_prefix(),
        "--pool",
        &slot.pool().to_string(),
    ];
    arguments.map(str::to_owned).to_vec()
}

/// The machine's name, where hosts may have it, and the number of the host.
fn name(number: u8) -> String {
    let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    let name = name.filter(|name| name.len() < 60 && check_name(name).is_ok());
    numbered(&name.unwrap_or_else(|| "localhost".into()), number)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WHOLE: Whole =
        Whole { cpu: MilliCpu(4_000), memory: Bytes(16 * Bytes::GIB), disk: Bytes(100 * Bytes::GIB) };

    #[test]
    fn a_machine_offers_its_cores_and_half_of_its_memory_and_free_disk() {
        let share = divide(WHOLE, (None, None, None), 1).expect("a share");
        let expected =
            Share { cpu: MilliCpu(4_000), memory: Bytes(8 * Bytes::GIB), disk: Bytes(50 * Bytes::GIB) };
        assert_eq!(share, expected);
    }

    #[test]
    fn more_than_the_machine_has_is_refused() {
        let refused = |asked| divide(WHOLE, asked, 1).expect_err("refused").to_string();
        assert!(refused((Some(MilliCpu(4_001)), None, None)).contains("--cpu"));
        assert!(refused((None, Some(Bytes(17 * Bytes::GIB)), None)).contains("--memory"));
        assert!(refused((None, None, Some(Bytes(101 * Bytes::GIB)))).contains("--disk"));
        let tiny = Whole { cpu: MilliCpu(10), ..WHOLE };
        assert!(divide(tiny, (None, None, None), 11).is_err());
    }

    proptest! {
        #[test]
        fn claims_of_all_hosts_never_exceed_the_whole(
            cpu in 1_000_i64..256_000, gib in 1_i64..4_096, disk in 1_i64..65_536, hosts in 1_u8..=32
        ) {
            let whole = Whole {
                cpu: MilliCpu(cpu), memory: Bytes(gib * Bytes::GIB), disk: Bytes(disk * Bytes::GIB)
            };
            let share = divide(whole, (None, None, None), hosts).expect("a share");
            let hosts = i64::from(hosts);
            prop_assert!(share.cpu.0 * hosts <= whole.cpu.0);
            prop_assert!(share.memory.0 * hosts <= whole.memory.0 / 2);
            prop_assert!(share.disk.0 * hosts <= whole.disk.0 / 2);
        }

        #[test]
        fn names_of_local_hosts_are_names_of_hosts(number in 1_u8..=32) {
            prop_assert_eq!(check_name(&name(number)), Ok(()));
        }
    }

    #[test]
    fn a_price_that_is_not_given_stays() {
        let price =
            PriceArgs { price_gpu: None, price_cpu: Some(nave_domain::MicroUsd(7)), price_memory: None };
        let now = Rate { gpu_hour: nave_domain::MicroUsd(1), ..Rate::default() };
        assert_eq!(rate(&price, Some(now)), Rate { vcpu_hour: nave_domain::MicroUsd(7), ..now });
        assert_eq!(rate(&price, None).gpu_hour, PriceArgs::DEFAULT.gpu_hour);
    }
}
