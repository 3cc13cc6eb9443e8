//! The market as it stands: classes, miners, hosts, jobs, and what has happened in the epoch that runs.

use nave_domain::host::Term;
use nave_settlement::{
    evidence::{Blame, Confirmation, Event, Kind, Lease, Miner as State},
    params::Params,
};

use crate::{
    draw::Draws,
    scenario::{Hardware, Rules, Scenario},
};

/// An hour in milliseconds.
pub const HOUR_MS: i64 = 3_600_000;
/// A day in milliseconds.
pub const DAY_MS: i64 = 24 * HOUR_MS;
/// The market moves in steps of a quarter of an hour.
pub const STEP_MS: i64 = HOUR_MS / 4;
/// An epoch has 24 of them: six hours, so that 200 epochs see all windows of days.
pub const EPOCH_MS: i64 = 6 * HOUR_MS;
/// Parts in a whole.
pub const PPM: i64 = 1_000_000;
/// Of whole devices.
const DEVICE: i64 = 1_000;
/// When the first epoch opens.
const BEGIN_MS: i64 = 20_000 * DAY_MS;
/// Hosts of each miner.
pub const HOSTS: usize = 8;
/// What spot costs, as a part of on-demand.
const SPOT_PPM: i64 = 650_000;

/// `value · ppm / 10⁶`, rounded down; amounts here are far from 64 bits.
#[must_use]
pub fn part(value: i64, ppm: i64) -> i64 {
    i64::try_from(i128::from(value) * i128::from(ppm) / i128::from(PPM)).unwrap_or(i64::MAX)
}

/// A class of devices.
#[derive(Debug, Clone)]
pub struct Class {
    pub name: &'static str,
    /// What clouds ask for it.
    pub honest_baseline: i64,
    /// What the market believes that clouds ask.
    pub baseline: i64,
    /// Devices seen in this epoch, once for each look.
    pub devices: i64,
    /// Thousandths of them that were leased.
    pub leased_milli: i64,
    /// Devices that demand was made for.
    pub intended: i64,
}

/// A hotkey with its hosts.
#[derive(Debug, Clone)]
pub struct Miner {
    pub class: usize,
    /// Whether it is one of the miner under study.
    pub seat: bool,
    /// What its hosts are, to compare like with like.
    pub hardware: Hardware,
    pub joined_ms: i64,
    pub wants: Term,
    /// Of one GPU-hour, on-demand.
    pub price: i64,
    /// What it adds to that.
    pub markup_ppm: i64,
    /// Whether it keeps collateral for on-demand.
    pub backed: bool,
    /// Out of the market, though its hotkey still has what it is owed.
    pub gone: bool,
    pub banned_until_ms: i64,
    /// Steps of its hosts since its last look at prices, and how many of them were leased.
    pub steps: i64,
    pub leased_steps: i64,
    /// What settlement knows of it.
    pub state: State,
}

/// Who wants a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Customer {
    /// Somebody with work.
    Public,
    /// The miner under study, for itself.
    Seat,
    /// The same, and the market knows.
    Related,
}

/// What a customer wants.
#[derive(Debug, Clone)]
pub struct Job {
    pub id: u64,
    pub class: usize,
    pub term: Term,
    pub steps: i64,
    pub most: i64,
    pub customer: Customer,
    pub waited: i64,
}

/// A lease that is open.
#[derive(Debug, Clone)]
pub struct Open {
    pub id: String,
    pub job: Job,
    pub gpu_hour: i64,
    pub baseline: i64,
    pub placed_ms: i64,
    pub used_ms: i64,
    /// Of it, what its customer means to ruin.
    pub ruin: Option<Ruin>,
}

/// What a customer does to the host that it rents, at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ruin {
    /// Makes the GPU fail; one time in 20 it is taken for the host's fault.
    Xid,
    /// Has the host seem unreachable; one time in 10 that is believed.
    Unreachable,
    /// Its own host is silent for a day.
    Silence,
}

/// One host of one device.
#[derive(Debug, Clone)]
pub struct Host {
    pub id: String,
    pub miner: usize,
    pub hardware: Hardware,
    /// Takes jobs.
    pub listed: bool,
    /// Has a price of its own.
    pub price: Option<i64>,
    pub verified_from_ms: i64,
    pub away_until_ms: i64,
    pub obliged_since_ms: i64,
    pub tested_at_ms: i64,
    pub idle_ms: i64,
    /// The other host on the same device.
    pub twin: Option<usize>,
    /// Left the market.
    pub gone: bool,
    pub open: Option<Open>,
}

/// Everything.
pub struct World {
    pub scenario: Scenario,
    pub params: Params,
    pub now_ms: i64,
    pub opened_ms: i64,
    pub classes: Vec<Class>,
    pub miners: Vec<Miner>,
    pub hosts: Vec<Host>,
    pub waiting: Vec<Job>,
    pub leases: Vec<Lease>,
    pub events: Vec<Event>,
    /// Costs of hosts in millionths of a micro-USD, by miner, since the begin.
    pub costs: Vec<i128>,
    /// What the miner under study paid as a customer.
    pub seat_paid: i64,
    /// What it asks for next.
    pub seat_class: usize,
    pub serial: u64,
    pub demand: Draws,
    pub luck: Draws,
    pub tests: Draws,
    pub tricks: Draws,
}

impl World {
    /// Two classes, in each four honest miners with sound hosts and one whose hosts are reclaimed now and then; in one
    /// of them the miner under study. All have eight hosts.
    #[must_use]
    pub fn new(scenario: Scenario) -> Self {
        let class = |name, baseline| Class {
            name,
            honest_baseline: baseline,
            baseline,
            devices: 0,
            leased_milli: 0,
            intended: 0,
        };
        let seed = scenario.seed;
        let mut world = Self {
            params: params(&scenario),
            scenario,
            now_ms: BEGIN_MS,
            opened_ms: BEGIN_MS,
            classes: vec![class("h100", 2_500_000), class("rtx4090", 400_000)],
            miners: Vec::new(),
            hosts: Vec::new(),
            waiting: Vec::new(),
            leases: Vec::new(),
            events: Vec::new(),
            costs: Vec::new(),
            seat_paid: 0,
            seat_class: usize::from(seed % 2 == 1),
            serial: 0,
            demand: Draws::of(seed, 1),
            luck: Draws::of(seed, 2),
            tests: Draws::of(seed, 3),
            tricks: Draws::of(seed, 4),
        };
        for class in 0..world.classes.len() {
            for number in 0..5 {
                let hardware = if number < 4 { Hardware::Sound } else { Hardware::Reclaimed };
                let miner = world.join(class, false, hardware);
                for _ in 0..HOSTS {
                    world.add_host(miner, hardware);
                }
            }
            let miners = if class == world.seat_class { 6 } else { 5 };
            world.classes[class].intended = i64::try_from(miners * HOSTS).unwrap_or(i64::MAX);
        }
        world.seat_begins();
        for miner in &mut world.miners {
            // The market has been there for a while: probation and obligations are behind everyone.
            miner.joined_ms = BEGIN_MS - 30 * DAY_MS;
        }
        for host in &mut world.hosts {
            host.obliged_since_ms = BEGIN_MS - 30 * DAY_MS;
        }
        world
    }

    /// A new hotkey.
    pub fn join(&mut self, class: usize, seat: bool, hardware: Hardware) -> usize {
        let baseline = self.classes[class].baseline;
        let price = part(baseline, self.luck.between(895_000..=905_000));
        let number = self.miners.len();
        let hotkey = format!("{}-{number:03}", if seat { "seat" } else { "honest" });
        self.miners.push(Miner {
            class,
            seat,
            hardware,
            joined_ms: self.now_ms,
            wants: if hardware == Hardware::Reclaimed { Term::Spot } else { Term::OnDemand },
            price,
            markup_ppm: 0,
            backed: true,
            gone: false,
            banned_until_ms: 0,
            steps: 0,
            leased_steps: 0,
            state: State { hotkey, ..State::default() },
        });
        self.costs.push(0);
        number
    }

    /// A new host, which is verified at once.
    pub fn add_host(&mut self, miner: usize, hardware: Hardware) -> usize {
        let number = self.hosts.len();
        self.hosts.push(Host {
            id: format!("host-{number:05}"),
            miner,
            hardware,
            listed: true,
            price: None,
            verified_from_ms: self.now_ms,
            away_until_ms: 0,
            obliged_since_ms: self.now_ms,
            tested_at_ms: self.now_ms,
            idle_ms: 0,
            twin: None,
            gone: false,
            open: None,
        });
        number
    }

    /// A number that was not there before.
    pub fn next_serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    /// Whether a host is in the market and has passed its last test.
    #[must_use]
    pub fn is_verified(&self, host: usize) -> bool {
        let host = &self.hosts[host];
        let miner = &self.miners[host.miner];
        !host.gone && host.verified_from_ms <= self.now_ms && miner.banned_until_ms <= self.now_ms
    }

    /// Whether it could begin a job now.
    #[must_use]
    pub fn is_free(&self, host: usize) -> bool {
        let found = &self.hosts[host];
        self.is_verified(host) && found.away_until_ms <= self.now_ms && found.open.is_none()
    }

    /// The term that a miner's hosts sell as now.
    #[must_use]
    pub fn term(&self, miner: usize) -> Term {
        let found = &self.miners[miner];
        let forgets = self.scenario.rules == Rules::DemotionPerOffer;
        let new = self.now_ms < found.joined_ms + self.params.probation_ms;
        let demoted = self.now_ms < found.state.demoted_until_ms && !forgets;
        if found.wants == Term::Spot || !found.backed || new || demoted { Term::Spot } else { Term::OnDemand }
    }

    /// Of one GPU-hour on-demand.
    #[must_use]
    pub fn list_price(&self, host: usize) -> i64 {
        let found = &self.hosts[host];
        let miner = &self.miners[found.miner];
        found.price.unwrap_or_else(|| part(miner.price, PPM + miner.markup_ppm))
    }

    /// Of one GPU-hour in the term that it sells as.
    #[must_use]
    pub fn price(&self, host: usize) -> i64 {
        let price = self.list_price(host);
        match self.term(self.hosts[host].miner) {
            Term::OnDemand => price,
            Term::Spot => part(price, SPOT_PPM),
        }
    }

    /// What customers pay at most for spot who would pay so much for on-demand.
    #[must_use]
    pub fn as_spot(most: i64) -> i64 {
        part(most, SPOT_PPM)
    }

    /// Opens a lease of `job` on `host`.
    pub fn place(&mut self, host: usize, job: Job, ruin: Option<Ruin>) {
        let gpu_hour = self.price(host);
        let baseline = self.classes[job.class].baseline;
        let id = format!("lease-{:08}", self.next_serial());
        let placed_ms = self.now_ms;
        self.hosts[host].open = Some(Open { id, job, gpu_hour, baseline, placed_ms, used_ms: 0, ruin });
    }

    /// Closes the lease of `host`, and queues what is left of its job where it is `again`.
    pub fn close(&mut self, host: usize, outcome: &str, again: bool) {
        let Some(open) = self.hosts[host].open.take() else { return };
        let miner = &self.miners[self.hosts[host].miner];
        let price = i128::from(open.gpu_hour) * i128::from(open.used_ms);
        let charged = i64::try_from(price / i128::from(HOUR_MS)).unwrap_or(i64::MAX);
        let (customer, related) = match open.job.customer {
            Customer::Public => ("public", None),
            Customer::Seat => ("stranger", None),
            Customer::Related => ("seat", Some("same funding".to_owned())),
        };
        if open.job.customer != Customer::Public {
            self.seat_paid += charged;
        }
        self.leases.push(Lease {
            baseline: Some(open.baseline),
            charged,
            class: Some(self.classes[open.job.class].name.to_owned()),
            closed_ms: self.now_ms,
            customer: customer.to_owned(),
            gib_hour: 0,
            gpu_hour: open.gpu_hour,
            host: self.hosts[host].id.clone(),
            hotkey: miner.state.hotkey.clone(),
            job: format!("job-{:08}", open.job.id),
            lease: open.id,
            memory: 0,
            milli_cpu: 0,
            milli_gpu: DEVICE,
            outcome: outcome.to_owned(),
            placed_ms: open.placed_ms,
            related,
            term: open.job.term,
            used_ms: open.used_ms,
            vcpu_hour: 0,
        });
        if again && open.job.steps > 0 && open.job.customer == Customer::Public {
            self.waiting.push(Job { waited: 0, ..open.job });
        }
    }

    /// Notes what happened to the lease of `host` just before now.
    pub fn note(
        &mut self,
        host: usize,
        kind: Kind,
        lost_ms: i64,
        blame: Blame,
        confirmed: Option<Confirmation>,
    ) {
        let number = self.next_serial();
        let lease = self.hosts[host].open.as_ref().map(|open| open.id.clone());
        let event = Event {
            at_ms: self.now_ms,
            blame,
            confirmed_by: confirmed,
            detail: String::new(),
            event: format!("event-{number:08}"),
            from_ms: self.now_ms - lost_ms,
            host: self.hosts[host].id.clone(),
            hotkey: self.miners[self.hosts[host].miner].state.hotkey.clone(),
            kind,
            lease,
            signature: "0".repeat(128),
            until_ms: self.now_ms,
        };
        if event.counts() {
            self.hosts[host].obliged_since_ms = self.now_ms;
        }
        self.events.push(event);
    }
}

/// The defaults, with standby for as many devices as there are, and what a broken rule changes.
fn params(scenario: &Scenario) -> Params {
    let targets = vec![("h100".to_owned(), 32), ("rtx4090".to_owned(), 32)];
    let params = Params { standby_targets: targets, ..scenario.params.clone() };
    match scenario.rules {
        Rules::StandbyForAnyone => Params { obliged_ms: 0, vest_ms: 1, ..params },
        Rules::AsTheyAre
        | Rules::BoundedSink
        | Rules::CreditAbovePayment
        | Rules::DemotionPerOffer
        | Rules::DevicesRemember => params,
    }
}
