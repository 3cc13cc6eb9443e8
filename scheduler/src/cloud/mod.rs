//! The role that rents machines from clouds for jobs that no host takes, and says what devices cost there.
//!
//! Each cloud has a task of its own, so that one that is slow or broken delays neither the others nor
//! anything else. What they have in common is rows: machines, and what becomes of them.

pub mod boot;
pub mod config;
pub mod ledger;
pub mod prices;
pub mod rent;
mod stops;

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicBool},
    time::Duration,
};

use anyhow::Context as _;
use nave_clouds::{
    Cloud, CloudOffer, Keeper, Owner, Provider, Row, Rules, Secret,
    adapters::open,
    http::Network,
    keeper::Boot,
    ledger::{Attempt, Broken, Call, Kept},
    provider::MachineId,
};
use nave_domain::{Timestamp, rate::Rate, wish::Region};
use nave_store::{MachineDemand, Store};
use tokio::{
    sync::Notify,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use uuid::Uuid;

use self::{
    boot::Programs,
    config::Clouds,
    ledger::{Clock, Rows, tried},
};
use crate::demand::{Limits, Models, Shape};

/// Time between two looks at a cloud's machines where some are open.
const LOOK: Duration = Duration::from_secs(10);
/// And where none are: something may turn up.
const QUIET: Duration = Duration::from_secs(60);
/// Time between two looks at what a cloud offers.
const OFFERS: Duration = Duration::from_secs(120);
/// Time between two looks at what waits and what is rented.
const MARKET: Duration = Duration::from_secs(2);
/// Time until what has failed begins again.
const AGAIN: Duration = Duration::from_secs(10);
/// Time between two looks at what devices cost.
const PRICES: Duration = Duration::from_secs(60);

/// What a ticket for a machine says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TicketTerms {
    /// The machine, whose id is the ticket's.
    pub machine: Uuid,
    /// What its host is called.
    pub name: String,
    /// Until when it can be used.
    pub expires_at: Timestamp,
    /// What its host costs.
    pub rate: Rate,
    /// Where it is.
    pub region: Option<Region>,
}

/// What signs tickets with the platform's hotkey.
pub type Sign = Arc<dyn Fn(&TicketTerms) -> anyhow::Result<String> + Send + Sync>;

/// The market that machines join.
#[derive(Clone)]
pub struct Market {
    /// What all its machines are called after.
    pub owner: Owner,
    /// The platform's miner key: its machines are this one's hosts.
    pub hotkey: String,
    /// What signs with it.
    pub sign: Sign,
}

/// Rents machines, where there is a market for them to join, and says what devices cost, until `shutdown`.
///
/// # Errors
/// When nothing can be reached over HTTP on this machine, for want of certificates.
pub async fn run(
    clouds: Clouds,
    market: Option<Market>,
    store: Store,
    shutdown: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let role = Arc::new(Role::new(clouds.limits, clouds.models, clouds.programs, market, store));
    let mut tasks = JoinSet::new();
    if !clouds.accounts.is_empty() {
        let network = Arc::new(Network::new().context("prepare to reach clouds")?);
        for (cloud, settings) in clouds.accounts {
            let provider = open(cloud, settings, network.clone());
            let is_drained = clouds.drained.contains(&cloud);
            let site = Arc::new(Site { provider, is_drained, wake: Notify::new() });
            role.sites.lock().unwrap_or_else(PoisonError::into_inner).insert(cloud, site.clone());
            let (watching, watched) = (role.clone(), site.clone());
            let watch = move || watch_offers(watching.clone(), watched.clone());
            tasks.spawn(again("watches what a cloud offers".to_owned(), watch));
            if role.market.is_some() {
                let keeping = role.clone();
                tasks.spawn(again("keeps the machines of a cloud".to_owned(), move || {
                    keep(keeping.clone(), site.clone())
                }));
            }
        }
        tasks.spawn(repeat("rent machines", MARKET, role.clone(), |role| Box::pin(rent::look(role))));
    }
    tasks.spawn(repeat("find machines that nobody looks after", PRICES, role.clone(), |role| {
        Box::pin(stops::tell_abandoned(role))
    }));
    tasks.spawn(repeat("say what devices cost", PRICES, role, |role| Box::pin(prices::look(role))));
    shutdown.await;
    Ok(())
}

/// Does what never ends, and begins it again where it does: a fault that shows with one machine leaves no other one
/// without a keeper for long.
async fn again<F: Future<Output = ()> + Send + 'static>(what: String, begin: impl Fn() -> F) {
    loop {
        let mut task = JoinSet::new();
        task.spawn(begin());
        if let Some(Err(error)) = task.join_next().await {
            tracing::error!(%error, "what {what} has failed, and begins again");
        }
        sleep(AGAIN).await;
    }
}

/// A cloud with which there is an account.
struct Site {
    provider: Box<dyn Provider>,
    /// Whether nothing is rented there, and what is goes back when its jobs are done.
    is_drained: bool,
    /// Told when a machine is wanted.
    wake: Notify,
}

/// What all tasks share.
struct Role {
    limits: Limits,
    models: Models,
    programs: Programs,
    market: Option<Market>,
    store: Store,
    clock: Arc<Clock>,
    sites: Mutex<BTreeMap<Cloud, Arc<Site>>>,
    /// What each cloud has offered last.
    offers: Mutex<BTreeMap<Cloud, Vec<CloudOffer>>>,
    /// Whether machines had lost what they may when one was wanted last.
    has_lost: AtomicBool,
    /// Machines of which it was said that their rows cannot be read.
    unreadable: Mutex<BTreeSet<Uuid>>,
}

impl Role {
    fn new(limits: Limits, models: Models, programs: Programs, market: Option<Market>, store: Store) -> Self {
        let clock = Arc::new(Clock::at(Timestamp(0)));
        let (sites, offers) = (Mutex::default(), Mutex::default());
        let (has_lost, unreadable) = (AtomicBool::new(false), Mutex::default());
        Self { limits, models, programs, market, store, clock, sites, offers, has_lost, unreadable }
    }

    /// Sets the clock; whatever is told a time afterwards is told the database's.
    async fn set_clock(&self) -> Result<(), Broken> {
        self.clock.set(self.store.now().await?);
        Ok(())
    }

    fn offers(&self) -> Vec<CloudOffer> {
        let offers = self.offers.lock().unwrap_or_else(PoisonError::into_inner);
        offers.values().flatten().cloned().collect()
    }

    fn wake(&self, cloud: Cloud) {
        if let Some(site) = self.sites.lock().unwrap_or_else(PoisonError::into_inner).get(&cloud) {
            site.wake.notify_one();
        }
    }

    /// Clouds in the operator's file, and whether each is drained.
    fn kept(&self) -> BTreeMap<Cloud, bool> {
        let sites = self.sites.lock().unwrap_or_else(PoisonError::into_inner);
        sites.iter().map(|(cloud, site)| (*cloud, site.is_drained)).collect()
    }

    /// What was read of the row of a machine; none where that could not be, which is said once.
    fn readable<T>(&self, machine: Uuid, read: Result<T, Broken>) -> Option<T> {
        let mut unreadable = self.unreadable.lock().unwrap_or_else(PoisonError::into_inner);
        let error = match read {
            Ok(read) => return Some(read),
            Err(error) => error,
        };
        if unreadable.insert(machine) {
            tracing::error!(machine.id = %MachineId(machine), %error,
                "a machine's row cannot be read: what is rented next is chosen as if it had no room");
        }
        None
    }

    /// Whether what is rented of a cloud goes back when its jobs are done.
    fn is_drained(&self, cloud: Cloud) -> bool {
        self.kept().get(&cloud).copied().unwrap_or(false)
    }
}

/// What is done again and again, and may fail.
type Look = fn(&Role) -> Kept<'_, ()>;

async fn repeat(what: &'static str, every: Duration, role: Arc<Role>, look: Look) {
    let for_ever = move || {
        let role = role.clone();
        async move {
            loop {
                if let Err(error) = look(&role).await {
                    tracing::warn!(%error, "could not {what}; trying again");
                }
                sleep(every).await;
            }
        }
    };
    again(format!("is to {what}"), for_ever).await;
}

async fn watch_offers(role: Arc<Role>, site: Arc<Site>) {
    let cloud = site.provider.cloud();
    loop {
        if let Err(error) = fetch(&role, &site).await {
            // What it offered last is kept and grows old.
            tracing::warn!(cloud.name = cloud.name(), %error, "could not see what a cloud offers");
        }
        // It costs nothing to ask on the same machine, and somebody looks on.
        sleep(if cloud == Cloud::Local { LOOK } else { OFFERS }).await;
    }
}

async fn fetch(role: &Role, site: &Site) -> Result<(), Broken> {
    role.set_clock().await?;
    let (cloud, at) = (site.provider.cloud(), role.clock.now());
    let offers = match site.provider.list_offers(at).await {
        Ok(offers) => offers,
        Err(error) => {
            let attempt =
                Attempt { row: None, cloud, at, call: Call::Quote, quoted: None, error: Some(error.clone()) };
            role.store.machine_note(&tried(&attempt)).await?;
            return Err(error.into());
        }
    };
    role.offers.lock().unwrap_or_else(PoisonError::into_inner).insert(cloud, offers);
    Ok(())
}

/// Keeps the machines of one cloud.
async fn keep(role: Arc<Role>, site: Arc<Site>) {
    let Some(market) = role.market.clone() else { return };
    let cloud = site.provider.cloud();
    let clock = role.clock.clone();
    let now = move || clock.now();
    let hotkey = market.hotkey.clone();
    let rows = Rows { store: role.store.clone(), hotkey, now: Arc::new(now.clone()) };
    let boots = Boots { role: &role, market: &market };
    let rules = Rules { idle_min: role.limits.idle, ..Rules::of(cloud) };
    let keeper =
        Keeper::new(site.provider.as_ref(), &rows, market.owner.clone(), &now, &boots).patient(rules);
    let mut looked = Instant::now();
    loop {
        let ticked = async {
            role.set_clock().await?;
            role.store.cloud_kept(cloud.name(), &market.hotkey).await?;
            let ticked = keeper.tick().await;
            // What is the matter with one machine says nothing of the others; a cloud that does not answer does.
            if keeper.has_listed() {
                role.store.cloud_looked(cloud.name()).await?;
            }
            ticked?;
            Ok::<_, Broken>(role.store.machines_open(cloud.name()).await?.len())
        };
        let open = ticked.await.inspect_err(|error| {
            tracing::warn!(cloud.name = cloud.name(), %error, "could not look after machines; trying again");
        });
        let wait = if open.is_ok_and(|open| open == 0) { QUIET } else { LOOK };
        // However often machines are wanted, a cloud is asked once a second at most.
        sleep(Duration::from_secs(1).saturating_sub(looked.elapsed())).await;
        looked = Instant::now();
        drop(timeout(wait, site.wake.notified()).await);
    }
}

/// Writes the scripts that machines boot with.
struct Boots<'a> {
    role: &'a Role,
    market: &'a Market,
}

impl Boots<'_> {
    async fn write(&self, row: &Row) -> Result<Secret, Broken> {
        let machine = row.id.0;
        let store = &self.role.store;
        if store.machine_signer(machine).await?.as_deref() != Some(&*self.market.hotkey) {
            // With a ticket of another hotkey it would be a host of that one's, and no machine any more.
            store.machine_demand(machine, row.version, MachineDemand::Released).await?;
            return Err("it was wanted by another hotkey than the platform's, and is let go".into());
        }
        let found = store.machine_find(machine).await?;
        let shape = found.and_then(|row| row.shape).ok_or("nobody wanted this machine")?;
        let shape: Shape = serde_json::from_value(shape)?;
        let terms = TicketTerms {
            machine,
            // The end of an id, which is random, unlike its beginning.
            name: format!("{}-{:08x}", row.cloud, machine.as_u128() & 0xffff_ffff),
            expires_at: self.role.clock.now().after(Rules::of(row.cloud).boot_max),
            rate: shape.rate,
            region: shape.region,
        };
        Ok(boot::script(&(self.market.sign)(&terms)?, &self.role.programs)?)
    }
}

impl Boot for Boots<'_> {
    fn script<'a>(&'a self, row: &'a Row) -> Kept<'a, Secret> {
        Box::pin(self.write(row))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn a_keeper_that_panics_begins_again() {
        let (begun, (said, heard)) = (Arc::new(AtomicU32::new(0)), oneshot::channel());
        let said = Arc::new(Mutex::new(Some(said)));
        let keep = move || {
            let (begun, said) = (begun.clone(), said.clone());
            async move {
                assert!(begun.fetch_add(1, Ordering::Relaxed) > 0, "the first one fails");
                let said = said.lock().expect("a lock").take();
                said.expect("once").send(()).expect("somebody waits");
                std::future::pending::<()>().await;
            }
        };
        let kept = tokio::spawn(again("keeps a cloud".to_owned(), keep));
        heard.await.expect("the second goes on");
        kept.abort();
    }
}
