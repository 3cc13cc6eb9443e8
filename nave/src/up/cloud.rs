//! The local cloud: hosts of this machine that are made and ended as machines are rented and given back.
//!
//! What should be is in a directory, and so is what was said about it; this only brings the machine in
//! line with it, look by look. Killed at any line, the next supervisor goes on from the same directory.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::Context as _;
use nave_clouds::adapters::local::{Does, Estate, Offered, Rented, Told};
use nave_domain::{Bytes, MicroUsd, Millis, Timestamp};
use nave_sdk::wire::sign::PublicKey;
use serde::Serialize;
use tokio::{
    sync::watch,
    task::{JoinHandle, spawn_blocking},
    time::timeout,
};

use super::{
    SimulatedDevices, agent_program, clean,
    clean::ENGINE_SECONDS,
    engine::{self, Engine},
    host::{LocalHost, Share},
    inside::{self, What},
    keep,
    layout::{Layout, numbered, write_whole},
    network::{Network, RENTED},
    part::{Kept, Make},
    progress, reached, relay_command,
};
use crate::cli::{RentedArgs, UpArgs};

/// Time between two looks at the directory.
const LOOK: Duration = Duration::from_millis(200);
/// Where its machines are said to be.
const REGION: &str = "local";

/// The local cloud, and what it makes machines of.
pub struct Cloud {
    layout: Layout,
    network: Network,
    engine: Engine,
    /// What each machine is of this one.
    share: Share,
    devices: Option<SimulatedDevices>,
    args: RentedArgs,
    /// This program, which may be replaced while it runs.
    naved: PathBuf,
    relayed: Vec<String>,
    estate: Estate,
    /// What runs of each machine, in the order in which it was started.
    running: BTreeMap<String, (LocalHost, Vec<Kept>)>,
}

/// What the scheduler is told, as `nave_scheduler::cloud::config` reads it.
#[derive(Serialize)]
struct Clouds {
    market: MarketTable,
    limits: LimitsTable,
    local: LocalTable,
}

#[derive(Serialize)]
struct MarketTable {
    url: String,
    market_key: String,
    hotkey: PathBuf,
    release_key: Option<String>,
}

#[derive(Serialize)]
struct LimitsTable {
    machines: u8,
    hourly: String,
    patience: String,
    idle: String,
    share_percent: u8,
    loss: String,
    unused: u32,
    rests: bool,
}

#[derive(Serialize)]
struct LocalTable {
    dir: PathBuf,
}

/// A cloud that is kept in line with its directory.
pub struct Keeping {
    stop: watch::Sender<bool>,
    task: JoinHandle<Cloud>,
}

/// What a machine needs now.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// A part of this machine.
    Number,
    /// To be started.
    Start(u8),
    /// To be ended.
    End,
    Nothing,
}

impl Cloud {
    /// The cloud of this market, and what can be rented of it.
    ///
    /// # Errors
    /// When its directory cannot be written.
    pub fn open(
        args: &UpArgs,
        layout: &Layout,
        network: Network,
        engine: &Engine,
        share: Share,
    ) -> anyhow::Result<Self> {
        let cloud = Self {
            layout: layout.clone(),
            network,
            engine: engine.clone(),
            share,
            devices: args.simulated_devices.clone(),
            args: args.rented.clone(),
            naved: env::current_exe()?,
            relayed: Vec::new(),
            estate: Estate::new(layout.cloud()),
            running: BTreeMap::new(),
        };
        cloud.estate.prepare().context("prepare the local cloud")?;
        cloud.estate.offer(&[cloud.offered()]).context("say what the local cloud offers")?;
        Ok(cloud)
    }

    fn offered(&self) -> Offered {
        let devices = self.devices.as_ref().map(SimulatedDevices::described);
        let (devices, model, vram_each) = devices.unwrap_or_default();
        Offered {
            id: "part".to_owned(),
            region: REGION.to_owned(),
            count: u32::from(self.args.cloud_hosts),
            price: self.args.cloud_price,
            cpu: self.share.cpu,
            memory: sold_memory(self.share.memory),
            disk: sold_disk(self.share.disk),
            devices,
            model,
            vram_each,
        }
    }

    /// Writes what the scheduler may rent, and what machines join.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, args: &UpArgs, market: &PublicKey) -> anyhow::Result<()> {
        // A price may rise a little after it was quoted.
        let hourly = self.args.cloud_price.0.saturating_mul(2 * i64::from(self.args.cloud_hosts));
        let clouds = Clouds {
            market: MarketTable {
                url: format!("http://{}", reached(args.api)),
                market_key: market.to_string(),
                hotkey: self.layout.cloud_hotkey(),
                release_key: args.release_key.map(|key| key.to_string()),
            },
            limits: LimitsTable {
                machines: self.args.cloud_hosts,
                hourly: MicroUsd(hourly).to_string(),
                patience: format!("{}ms", self.args.cloud_patience.0),
                idle: format!("{}ms", self.args.cloud_idle.0),
                // Its machines cost nothing, whatever is said of their prices.
                share_percent: 0,
                loss: MicroUsd(1_000_000_000_000).to_string(),
                unused: u32::MAX,
                rests: false,
            },
            local: LocalTable { dir: self.layout.cloud() },
        };
        write_whole(&self.layout.clouds(), toml::to_string(&clouds)?.as_bytes())
            .context("write what may be rented")
    }

    /// The numbers of the machines that there should be.
    ///
    /// # Errors
    /// When its directory cannot be read.
    pub fn numbers(&self) -> anyhow::Result<Vec<u8>> {
        let machines = self.estate.machines().context("read what is rented of the local cloud")?;
        Ok(machines.iter().filter_map(|rented| rented.told.as_ref()).map(|told| told.number).collect())
    }

    /// Keeps this machine in line with the directory. Machines reach `relayed` on their loopback, since it is
    /// on this machine's.
    pub fn keep(mut self, relayed: Vec<String>) -> Keeping {
        self.relayed = relayed;
        let (stop, mut stopped) = watch::channel(false);
        let task = tokio::spawn(async move {
            while !*stopped.borrow() {
                self.look(&stopped).await;
                drop(timeout(LOOK, stopped.changed()).await);
            }
            self
        });
        Keeping { stop, task }
    }

    async fn look(&mut self, stopped: &watch::Receiver<bool>) {
        let machines = match self.estate.machines() {
            Ok(machines) => machines,
            Err(error) => return tracing::warn!(%error, "the local cloud's directory cannot be read"),
        };
        for rented in &machines {
            if *stopped.borrow() {
                return;
            }
            let is_running = self.running.contains_key(&rented.name);
            let done = match step(rented, is_running, now(), self.args.cloud_boot) {
                Step::Number => self.number(&rented.name),
                Step::Start(number) => self.start(&rented.name, number).await,
                Step::End => self.end(&rented.name, rented.told.as_ref().map(|told| told.number)).await,
                Step::Nothing => Ok(()),
            };
            warn(&rented.name, done);
        }
        let is_there = |name: &str| machines.iter().any(|rented| rented.name == name);
        let running = self.running.iter().map(|(name, (host, _))| (name.clone(), host.number));
        let vanished: Vec<_> = running.filter(|(name, _)| !is_there(name)).collect();
        for (name, number) in vanished {
            let done = self.end(&name, Some(number)).await;
            warn(&name, done);
        }
    }

    /// Gives a machine the first part of this one that is free.
    fn number(&self, name: &str) -> anyhow::Result<()> {
        let taken = self.numbers()?;
        let mut numbers = RENTED.take(usize::from(self.args.cloud_hosts));
        let (does, number) = match numbers.find(|number| !taken.contains(number)) {
            Some(number) => (Does::Boots, number),
            None => (Does::Failed, 0),
        };
        say(name, "boots");
        Ok(self.estate.tell(name, &Told { does, number, address: None })?)
    }

    async fn start(&mut self, name: &str, number: u8) -> anyhow::Result<()> {
        let host = self.host(number);
        self.layout.make_host(number)?;
        if let Some(devices) = &self.devices {
            devices.ensure(&self.layout.simulated_devices(number))?;
        }
        let network = self.network;
        spawn_blocking(move || network.ensure_host(number)).await??;
        // An earlier supervisor's script may have left its agent behind.
        inside::end(host.namespace.as_deref(), What::Agents).await?;
        let parts = self.parts(&host, name).await?;
        self.running.insert(name.to_owned(), (host, parts));
        let address = Some(self.network.address(number).to_string());
        self.estate.tell(name, &Told { does: Does::Runs, number, address })?;
        say(name, "has booted");
        Ok(())
    }

    /// What runs of a machine: its engine, its ways out, and the script it boots with, which runs the agent.
    async fn parts(&self, host: &LocalHost, name: &str) -> anyhow::Result<Vec<Kept>> {
        let (number, agent) = (host.number, agent_program()?);
        let namespace = host.namespace.clone().context("a rented machine has a namespace of its own")?;
        let part =
            |part: &str, seconds, make: Make| keep(&self.layout, numbered(part, number), seconds, make);
        let mut parts = Vec::new();
        if let Engine::Private { dockerd } = self.engine.clone() {
            let (layout, namespace) = (self.layout.clone(), namespace.clone());
            let make = move || engine::dockerd(&dockerd, &layout, number, Some(&namespace));
            parts.push(part("dockerd", ENGINE_SECONDS, Box::new(make)));
            engine::answers(&self.layout, number).await;
        }
        for (count, address) in self.relayed.iter().enumerate() {
            let (naved, address, namespace) = (self.naved.clone(), address.clone(), namespace.clone());
            let make = move || Ok(relay_command(&naved, &address, [namespace.clone()]));
            parts.push(part(&format!("relay-{}", count + 1), 5, Box::new(make)));
        }
        let (host, script) = (host.clone(), self.estate.boot(name));
        let make = move || boot_command(&host, &agent, script.clone());
        parts.push(part("machine", 5, Box::new(make)));
        Ok(parts)
    }

    async fn end(&mut self, name: &str, number: Option<u8>) -> anyhow::Result<()> {
        if let Some((host, parts)) = self.running.remove(name) {
            stop_parts(&host, parts).await?;
        }
        if let Some(number) = number.filter(|number| RENTED.contains(number)) {
            clean::remove_rented(&self.layout, self.network.slot, number).await?;
            let dirs = [self.layout.agent(number), self.layout.docker(number)];
            for dir in dirs.iter().filter(|dir| dir.exists()) {
                fs::remove_dir_all(dir).with_context(|| format!("remove {}", dir.display()))?;
            }
        }
        self.estate.forget(name)?;
        say(name, "is gone");
        Ok(())
    }

    fn host(&self, number: u8) -> LocalHost {
        let socket = self.engine.socket(&self.layout, number);
        let host = LocalHost::new(self.network, number, &self.layout, Some(self.share), socket);
        match self.devices {
            Some(_) => host.simulating(&self.layout.simulated_devices(number)),
            None => host,
        }
    }
}

impl Keeping {
    /// Stops all machines; they are there again when the cloud is kept again.
    ///
    /// # Errors
    /// When something of them stays.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.stop.send_replace(true);
        let cloud = self.task.await?;
        let mut done = Ok(());
        for (_, (host, parts)) in cloud.running {
            let stopped = stop_parts(&host, parts).await;
            let removed = clean::remove_rented(&cloud.layout, cloud.network.slot, host.number).await;
            done = done.and(stopped).and(removed);
        }
        done
    }
}

fn say(machine: &str, what: &str) {
    progress(&format!("of the local cloud, {machine} {what}"));
}

fn warn(machine: &str, done: anyhow::Result<()>) {
    if let Err(error) = done {
        let error = format!("{error:#}");
        tracing::warn!(machine, error, "a rented machine is not as it should be yet");
    }
}

/// The last first. The agent, which the script has started, ends before its engine does: one that is stopped
/// while it does something for an agent may never start again.
async fn stop_parts(host: &LocalHost, mut parts: Vec<Kept>) -> anyhow::Result<()> {
    if let Some(script) = parts.pop() {
        script.stop().await;
    }
    let ended = inside::end(host.namespace.as_deref(), What::Agents).await;
    for part in parts.into_iter().rev() {
        part.stop().await;
    }
    ended
}

fn step(rented: &Rented, is_running: bool, now: Timestamp, boot: Millis) -> Step {
    let wish = rented.wish.as_ref().filter(|wish| !rented.is_returned && now < wish.dead_man);
    let Some(wish) = wish else { return Step::End };
    match &rented.told {
        None => Step::Number,
        Some(Told { does: Does::Boots | Does::Runs, number, .. })
            if !is_running && now >= wish.asked_at.after(boot) =>
        {
            Step::Start(*number)
        }
        Some(Told { does: Does::Boots | Does::Runs | Does::Failed, .. }) => Step::Nothing,
    }
}

/// The script of a machine, as if it were the machine's own: it knows nothing of this one.
fn boot_command(host: &LocalHost, agent: &Path, script: PathBuf) -> anyhow::Result<Command> {
    anyhow::ensure!(
        host.socket.as_ref().is_none_or(|socket| socket.exists()),
        "its engine does not listen yet"
    );
    let mut command = super::program::inside(host.namespace.as_deref(), PathBuf::from("/bin/sh"))?;
    command.arg(script).env_clear().envs(host.variables());
    let programs = agent.parent().map(PathBuf::from).into_iter();
    let path = env::var_os("PATH").unwrap_or_default();
    command.env("PATH", env::join_paths(programs.chain(env::split_paths(&path)))?);
    for name in ["NAVE_LOG", "NAVE_CRASH_POINTS"] {
        command.envs(env::var_os(name).map(|value| (name, value)));
    }
    Ok(command)
}

/// What is sold, as clouds count it, when an agent offers so much of it: a kernel keeps a sixteenth, and
/// agents of what is left a gibibyte, or half where that is less.
fn sold_memory(share: Bytes) -> Bytes {
    let seen = (share.0.saturating_add(Bytes::GIB)).min(share.0.saturating_mul(2));
    Bytes(seen / 15 * 16)
}

/// The same for disk: agents offer half of what a system leaves free.
fn sold_disk(share: Bytes) -> Bytes {
    Bytes(share.0.saturating_mul(2).saturating_add(10 * Bytes::GIB) / 15 * 16)
}

fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use nave_clouds::adapters::local::Wish;

    use super::*;

    const NOW: Timestamp = Timestamp(1_795_000_000_000);
    const BOOT: Millis = Millis(5_000);

    fn rented(asked: i64, told: Option<(Does, u8)>) -> Rented {
        let wish = Wish {
            offer: "part".to_owned(),
            region: REGION.to_owned(),
            price: MicroUsd(1),
            asked_at: Timestamp(NOW.0 - asked),
            dead_man: NOW.after(Millis(60_000)),
        };
        let told = told.map(|(does, number)| Told { does, number, address: None });
        Rented { name: "nave-a-1".to_owned(), wish: Some(wish), is_returned: false, told }
    }

    #[test]
    fn a_machine_is_started_once_it_has_booted_and_again_by_the_next_supervisor() {
        assert_eq!(step(&rented(0, None), false, NOW, BOOT), Step::Number);
        assert_eq!(step(&rented(4_999, Some((Does::Boots, 33))), false, NOW, BOOT), Step::Nothing);
        assert_eq!(step(&rented(5_000, Some((Does::Boots, 33))), false, NOW, BOOT), Step::Start(33));
        assert_eq!(step(&rented(9_000, Some((Does::Runs, 33))), true, NOW, BOOT), Step::Nothing);
        assert_eq!(step(&rented(9_000, Some((Does::Runs, 33))), false, NOW, BOOT), Step::Start(33));
        assert_eq!(step(&rented(9_000, Some((Does::Failed, 0))), false, NOW, BOOT), Step::Nothing);
    }

    #[test]
    fn what_is_given_back_or_forgotten_or_cannot_be_read_is_ended() {
        let running = rented(9_000, Some((Does::Runs, 33)));
        let returned = Rented { is_returned: true, ..running.clone() };
        let unread = Rented { wish: None, ..running.clone() };
        for machine in [&returned, &unread] {
            assert_eq!(step(machine, true, NOW, BOOT), Step::End);
        }
        assert_eq!(step(&running, true, NOW.after(Millis(60_000)), BOOT), Step::End, "its dead man's switch");
        assert_eq!(step(&Rented { told: None, ..returned }, false, NOW, BOOT), Step::End);
    }

    #[test]
    fn what_is_sold_is_what_an_agent_makes_its_share_of() {
        for mib in [1, 341, 1_023, 1_024, 1_025, 8_192, 500_000] {
            let share = Bytes(mib * Bytes::MIB);
            let seen = sold_memory(share).0 / 16 * 15;
            let offered = (seen - Bytes::GIB).max(seen / 2);
            assert!(offered <= share.0 && offered + 16 > share.0, "{mib} MiB: {offered}");
            let seen = sold_disk(share).0 / 16 * 15;
            let offered = (seen - 10 * Bytes::GIB) / 2;
            assert!(offered <= share.0 && offered + 16 > share.0, "{mib} MiB of disk: {offered}");
        }
    }
}
