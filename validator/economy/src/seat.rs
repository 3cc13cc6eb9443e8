//! What the miner under study does.

use nave_domain::host::Term;
use nave_settlement::evidence::{Blame, Confirmation, Kind};

use crate::{
    scenario::{Hardware, Rules, Strategy},
    world::{Customer, DAY_MS, EPOCH_MS, HOSTS, HOUR_MS, Job, PPM, Ruin, STEP_MS, World, part},
};

/// Steps that it rents its own hosts for at a time, so that they are there for whoever comes.
const WASH_STEPS: i64 = 1;
/// Steps that it rents others' hosts for.
const TRICK_STEPS: i64 = 4;
/// What next to nothing is, for a GPU-hour.
const TOKEN_PRICE: i64 = 1_000;
/// How long it stays where it leaves early.
const STAY_MS: i64 = 10 * DAY_MS;
/// What clouds seem to ask at most where the baseline is pumped, as a part of what they do.
const PUMPED_PPM: i64 = 1_100_000;
/// How far a baseline moves in an epoch.
const BASELINE_STEP_PPM: i64 = 5_000;

impl World {
    /// Its hosts and hotkeys at the begin.
    pub fn seat_begins(&mut self) {
        let strategy = self.scenario.strategy;
        let mut miner = self.seat_joins(strategy.hardware());
        for number in 0..HOSTS {
            if strategy == Strategy::Sybil && number > 0 {
                miner = self.seat_joins(Hardware::Sound);
            }
            let host = self.add_host(miner, strategy.hardware());
            match strategy {
                Strategy::Duplicates => {
                    let twin = self.add_host(miner, strategy.hardware());
                    (self.hosts[host].twin, self.hosts[twin].twin) = (Some(twin), Some(host));
                }
                Strategy::WashForStandby if number < HOSTS / 2 => self.hosts[host].price = Some(TOKEN_PRICE),
                Strategy::Withholding if number < HOSTS / 2 => self.hosts[host].listed = false,
                Strategy::UnderbidThenFail => {
                    let half = self.classes[self.seat_class].honest_baseline / 2;
                    self.hosts[host].price = Some(half);
                }
                Strategy::Withholding
                | Strategy::WashForStandby
                | Strategy::Honest
                | Strategy::HonestSpot
                | Strategy::HonestFlaky
                | Strategy::PaddingFails
                | Strategy::PaddingRefuses
                | Strategy::WashDetected
                | Strategy::WashUndetected
                | Strategy::Sybil
                | Strategy::SpotAsOnDemand
                | Strategy::EarlyExit
                | Strategy::BaselinePumping
                | Strategy::Griefing
                | Strategy::HarvestingOwn
                | Strategy::HarvestingOthers => {}
            }
        }
        if matches!(strategy, Strategy::PaddingFails | Strategy::PaddingRefuses) {
            self.seat_pads();
        }
    }

    /// A hotkey of its own.
    fn seat_joins(&mut self, hardware: Hardware) -> usize {
        let strategy = self.scenario.strategy;
        let miner = self.join(self.seat_class, true, hardware);
        let found = &mut self.miners[miner];
        found.wants = if strategy.sells_spot() { Term::Spot } else { Term::OnDemand };
        found.backed = strategy != Strategy::UnderbidThenFail;
        found.markup_ppm = if strategy == Strategy::Withholding { 150_000 } else { 0 };
        miner
    }

    /// Fake hosts under a hotkey of their own.
    fn seat_pads(&mut self) {
        let miner = self.seat_joins(Hardware::Fake);
        self.miners[miner].backed = false;
        for _ in 0..HOSTS {
            let host = self.add_host(miner, Hardware::Fake);
            self.hosts[host].price = Some(part(self.classes[self.seat_class].honest_baseline, 1_350_000));
            self.hosts[host].listed = self.scenario.strategy == Strategy::PaddingFails;
        }
    }

    /// What it does before jobs are placed.
    pub fn seat_acts(&mut self) {
        let strategy = self.scenario.strategy;
        if strategy.changes_hotkeys() || matches!(strategy, Strategy::PaddingFails | Strategy::PaddingRefuses)
        {
            self.seat_changes_hotkeys();
        }
        match strategy {
            Strategy::EarlyExit if self.now_ms % STAY_MS == STAY_MS - EPOCH_MS / 2 => self.seat_exits(),
            Strategy::BaselinePumping if self.now_ms % EPOCH_MS == 0 => self.seat_pumps(),
            Strategy::WashForStandby => self.seat_washes(|price| price == Some(TOKEN_PRICE), Customer::Seat),
            Strategy::EarlyExit
            | Strategy::BaselinePumping
            | Strategy::Honest
            | Strategy::HonestSpot
            | Strategy::HonestFlaky
            | Strategy::PaddingFails
            | Strategy::PaddingRefuses
            | Strategy::Duplicates
            | Strategy::WashDetected
            | Strategy::WashUndetected
            | Strategy::Sybil
            | Strategy::SpotAsOnDemand
            | Strategy::UnderbidThenFail
            | Strategy::Withholding
            | Strategy::Griefing
            | Strategy::HarvestingOwn
            | Strategy::HarvestingOthers => {}
        }
    }

    /// What it rents once others have got what they asked for.
    pub fn seat_rents(&mut self) {
        match self.scenario.strategy {
            Strategy::WashDetected => self.seat_washes(|_| true, Customer::Related),
            Strategy::WashUndetected => self.seat_washes(|_| true, Customer::Seat),
            Strategy::Griefing => self.seat_rents_from_others(4, TRICK_STEPS, Ruin::Xid),
            Strategy::HarvestingOwn => self.seat_harvests(),
            Strategy::HarvestingOthers => {
                self.seat_rents_from_others(4, 2 * TRICK_STEPS, Ruin::Unreachable);
            }
            Strategy::Honest
            | Strategy::HonestSpot
            | Strategy::HonestFlaky
            | Strategy::PaddingFails
            | Strategy::PaddingRefuses
            | Strategy::Duplicates
            | Strategy::WashForStandby
            | Strategy::Sybil
            | Strategy::SpotAsOnDemand
            | Strategy::UnderbidThenFail
            | Strategy::EarlyExit
            | Strategy::BaselinePumping
            | Strategy::Withholding => {}
        }
    }

    fn seat_hosts(&self) -> Vec<usize> {
        let of_seat = |host: &usize| self.miners[self.hosts[*host].miner].seat && !self.hosts[*host].gone;
        (0..self.hosts.len()).filter(of_seat).collect()
    }

    /// A job of its own that fits `host`.
    fn seat_job(&mut self, host: usize, steps: i64, customer: Customer) -> Job {
        let miner = self.hosts[host].miner;
        let (class, term) = (self.miners[miner].class, self.term(miner));
        Job { id: self.next_serial(), class, term, steps, most: i64::MAX, customer, waited: 0 }
    }

    /// Rents its own free hosts with such a price.
    fn seat_washes(&mut self, chosen: impl Fn(Option<i64>) -> bool, customer: Customer) {
        for host in self.seat_hosts() {
            if self.is_free(host) && chosen(self.hosts[host].price) {
                let job = self.seat_job(host, WASH_STEPS, customer);
                self.place(host, job, None);
            }
        }
    }

    /// Its idle hosts work for an hour and are then silent for a day, which it reports.
    fn seat_harvests(&mut self) {
        for host in self.seat_hosts() {
            if self.is_free(host) {
                let job = self.seat_job(host, 25 * (HOUR_MS / STEP_MS), Customer::Seat);
                self.place(host, job, Some(Ruin::Silence));
            }
        }
    }

    /// Rents the cheapest on-demand hosts of others in its class, so many at once.
    fn seat_rents_from_others(&mut self, most: usize, steps: i64, ruin: Ruin) {
        let rented = self.hosts.iter().filter(|host| {
            !self.miners[host.miner].seat && host.open.as_ref().is_some_and(|open| open.ruin.is_some())
        });
        for _ in rented.count()..most {
            let (id, class) = (self.next_serial(), self.seat_class);
            let term = Term::OnDemand;
            let job = Job { id, class, term, steps, most: i64::MAX, customer: Customer::Seat, waited: 0 };
            let Some(host) = self.cheapest(&job, |host| !self.miners[self.hosts[host].miner].seat) else {
                break;
            };
            self.place(host, job, Some(ruin));
        }
    }

    /// Hosts of hotkeys that are demoted, banned or in debt come back under new ones, once they are free.
    fn seat_changes_hotkeys(&mut self) {
        for miner in 0..self.miners.len() {
            let found = &self.miners[miner];
            let banned = found.banned_until_ms > self.now_ms;
            let spoilt = self.now_ms < found.state.demoted_until_ms
                || found.state.carry < -part(found.price, PPM)
                || banned;
            if !found.seat || found.gone || !spoilt {
                continue;
            }
            let hosts: Vec<usize> =
                self.seat_hosts().into_iter().filter(|host| self.hosts[*host].miner == miner).collect();
            if !banned && hosts.iter().any(|host| self.hosts[*host].open.is_some()) {
                continue;
            }
            self.miners[miner].gone = true;
            let heir = self.seat_joins(self.miners[miner].hardware);
            self.miners[heir].backed = self.miners[miner].backed;
            if self.scenario.rules == Rules::DevicesRemember {
                self.miners[heir].state.demoted_until_ms = self.miners[miner].state.demoted_until_ms;
            }
            self.seat_moves(&hosts, heir);
        }
    }

    /// The same hosts under another hotkey; to the market they are new.
    fn seat_moves(&mut self, hosts: &[usize], heir: usize) {
        for old in hosts {
            self.close(*old, "host_lost", true);
            self.hosts[*old].gone = true;
            let new = self.add_host(heir, self.hosts[*old].hardware);
            self.hosts[new].price = self.hosts[*old].price;
            self.hosts[new].listed = self.hosts[*old].listed;
        }
    }

    /// Leaves in the middle of everything, and comes back as somebody else.
    fn seat_exits(&mut self) {
        let hosts = self.seat_hosts();
        for host in &hosts {
            if self.hosts[*host].open.is_some() {
                self.note(*host, Kind::HostLost, HOUR_MS, Blame::Host, Some(Confirmation::Absence));
                self.close(*host, "host_lost", true);
            }
            let miner = self.hosts[*host].miner;
            self.miners[miner].gone = true;
        }
        let heir = self.seat_joins(self.scenario.strategy.hardware());
        self.seat_moves(&hosts, heir);
    }

    /// The baseline follows forged quotes as fast as it may.
    fn seat_pumps(&mut self) {
        let class = &mut self.classes[self.seat_class];
        let next = part(class.baseline, PPM + BASELINE_STEP_PPM);
        class.baseline = next.min(part(class.honest_baseline, PUMPED_PPM));
    }
}
