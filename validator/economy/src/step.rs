//! A quarter of an hour: jobs come, hosts get them, work, fail and are tested.

use nave_domain::host::Term;
use nave_settlement::evidence::{Blame, Confirmation, Kind};

use crate::{
    draw::Draws,
    scenario::Hardware,
    world::{Customer, DAY_MS, HOUR_MS, Job, Open, PPM, Ruin, STEP_MS, World, part},
};

/// Steps of an hour.
const STEPS_PER_HOUR: i64 = HOUR_MS / STEP_MS;
/// How long jobs run, in steps: half an hour to fifteen and a half.
const JOB_STEPS: std::ops::RangeInclusive<i64> = 2..=62;
/// The middle of it.
const JOB_STEPS_MEAN: i64 = 32;
/// Of all jobs, those that want on-demand.
const ON_DEMAND_PPM: i64 = 750_000;
/// So many steps customers wait before they go elsewhere.
const PATIENCE: i64 = 4;
/// What its owner wants at least for a GPU-hour, as a part of the baseline.
const FLOOR_PPM: i64 = 550_000;
/// Of true reports on a host, those that something confirms.
const CONFIRMED_PPM: i64 = 900_000;
/// Of what seems a host's failure, what was the market's.
const PLATFORM_PPM: i64 = 150_000;
/// How often what a test finds is what no honest host can have done.
const FORGED_PPM: i64 = 300_000;
/// Two jobs on one device are noticed in so many steps as often as a fake in a test.
const CROWDED_STEPS: i64 = 24;

impl World {
    /// Lets a quarter of an hour pass.
    pub fn step(&mut self) {
        self.seat_acts();
        self.test_hosts();
        self.ask();
        self.place_waiting();
        self.seat_rents();
        self.look();
        self.now_ms += STEP_MS;
        for host in 0..self.hosts.len() {
            if !self.hosts[host].gone {
                self.run(host);
            }
        }
        if self.now_ms % DAY_MS == 0 {
            self.change_prices();
        }
    }

    /// Tests what is not there or there twice; the others pass.
    fn test_hosts(&mut self) {
        for number in 0..self.hosts.len() {
            let host = &self.hosts[number];
            let suspicious = host.hardware == Hardware::Fake || host.twin.is_some();
            if !suspicious || !self.is_verified(number) || self.now_ms < host.tested_at_ms + DAY_MS {
                continue;
            }
            self.hosts[number].tested_at_ms = self.now_ms - self.tests.between(0..=DAY_MS / 4);
            if !self.tests.chance(self.scenario.found_ppm) {
                continue;
            }
            self.note(number, Kind::FailedRetest, 0, Blame::Host, Some(Confirmation::Retest));
            self.close(number, "failed_retest", true);
            self.hosts[number].verified_from_ms = self.now_ms + DAY_MS;
            self.hosts[number].obliged_since_ms = self.now_ms + DAY_MS;
            if self.tests.chance(FORGED_PPM) {
                let miner = self.hosts[number].miner;
                self.miners[miner].banned_until_ms = self.now_ms + 7 * DAY_MS;
            }
        }
    }

    /// Jobs of this step.
    fn ask(&mut self) {
        let demand = self.scenario.regime.demand();
        for class in 0..self.classes.len() {
            for _ in 0..self.classes[class].intended {
                if !self.demand.chance(demand.asked_ppm / JOB_STEPS_MEAN) {
                    continue;
                }
                let willing = self.demand.between(demand.least_ppm..=demand.most_ppm);
                let most = part(self.classes[class].honest_baseline, willing);
                let on_demand = self.demand.chance(ON_DEMAND_PPM);
                let (term, most) =
                    if on_demand { (Term::OnDemand, most) } else { (Term::Spot, Self::as_spot(most)) };
                let steps = self.demand.between(JOB_STEPS);
                let id = self.next_serial();
                self.waiting.push(Job {
                    id,
                    class,
                    term,
                    steps,
                    most,
                    customer: Customer::Public,
                    waited: 0,
                });
            }
        }
    }

    /// Each job goes to the cheapest host that may have it; a host that refuses it has broken its obligations.
    fn place_waiting(&mut self) {
        for mut job in std::mem::take(&mut self.waiting) {
            loop {
                let Some(host) = self.cheapest(&job, |_| true) else {
                    job.waited += 1;
                    if job.waited < PATIENCE {
                        self.waiting.push(job);
                    }
                    break;
                };
                if self.hosts[host].listed {
                    self.place(host, job, None);
                    break;
                }
                self.hosts[host].obliged_since_ms = self.now_ms;
                self.hosts[host].away_until_ms = self.now_ms + STEP_MS;
            }
        }
    }

    /// The cheapest free host for a job among those that `may` have it.
    #[must_use]
    pub fn cheapest(&self, job: &Job, may: impl Fn(usize) -> bool) -> Option<usize> {
        let free = (0..self.hosts.len()).filter(|host| {
            let miner = self.hosts[*host].miner;
            self.miners[miner].class == job.class
                && self.is_free(*host)
                && self.term(miner) == job.term
                && self.price(*host) <= job.most
                && may(*host)
        });
        // Of those that cost the same, chance picks one.
        let turn = job.id ^ self.scenario.seed.rotate_left(32);
        free.min_by_key(|host| {
            let number = u64::try_from(*host).unwrap_or(u64::MAX);
            (self.price(*host), Draws::of(turn, number).between(0..=i64::MAX), *host)
        })
    }

    /// Counts who is idle, how much of each class is leased, and what hosts cost.
    fn look(&mut self) {
        for number in 0..self.hosts.len() {
            let host = &self.hosts[number];
            if host.gone {
                continue;
            }
            let (leased, miner) = (host.open.is_some(), host.miner);
            let wanted = host.open.as_ref().is_some_and(|open| open.job.customer == Customer::Public);
            let class = self.miners[miner].class;
            let doubled = host.twin.is_some_and(|twin| twin < number);
            let have = if doubled { Hardware::Fake.cost_ppm() } else { host.hardware.cost_ppm() };
            let work = if leased && !doubled { host.hardware.work_ppm() } else { 0 };
            let step_cost = i128::from(self.classes[class].honest_baseline) * i128::from(have + work);
            self.costs[miner] += step_cost / i128::from(STEPS_PER_HOUR);
            self.miners[miner].steps += 1;
            self.miners[miner].leased_steps += i64::from(wanted);
            if self.is_verified(number) && self.hosts[number].away_until_ms <= self.now_ms + STEP_MS {
                self.classes[class].devices += 1;
                self.classes[class].leased_milli += if leased { 1_000 } else { 0 };
                if !leased {
                    self.hosts[number].idle_ms += STEP_MS;
                }
            }
        }
    }

    /// What happened on a host in the step that has just passed.
    fn run(&mut self, number: usize) {
        let hardware = self.hosts[number].hardware;
        if hardware == Hardware::Reclaimed && self.luck.chance(PPM / (30 * STEPS_PER_HOUR)) {
            self.reclaim(number);
            return;
        }
        let Some(open) = self.hosts[number].open.as_mut() else { return };
        open.job.steps -= 1;
        open.used_ms += STEP_MS;
        let (ended, ruin) = (open.job.steps <= 0, open.ruin);
        let real = open.job.customer == Customer::Public;
        if let Some(ruin) = ruin {
            self.ruin(number, ruin, ended);
        } else if hardware == Hardware::Fake && real {
            self.fails(number, Kind::BelowBand, STEP_MS, Confirmation::Retest);
            self.close(number, "failed", true);
        } else if self.is_crowded(number) && self.luck.chance(self.scenario.found_ppm / CROWDED_STEPS) {
            self.fails(number, Kind::BelowBand, STEP_MS / 2, Confirmation::Retest);
        } else if self.luck.chance(hardware.failures() / STEPS_PER_HOUR) {
            self.fault(number);
        }
        if ended {
            self.close(number, "exited", false);
        }
    }

    /// Whether both hosts of one device work.
    fn is_crowded(&self, number: usize) -> bool {
        self.hosts[number].twin.is_some_and(|twin| self.hosts[twin].open.is_some())
    }

    /// Its owner takes a host back for some hours: a breach where it was sold as on-demand.
    fn reclaim(&mut self, number: usize) {
        let term = self.hosts[number].open.as_ref().map(|open| open.job.term);
        if term == Some(Term::OnDemand) {
            let confirmed = self.luck.chance(CONFIRMED_PPM).then_some(Confirmation::Report);
            self.note(number, Kind::EarlyReclaim, STEP_MS / 3, Blame::Host, confirmed);
        }
        self.close(number, "reclaimed", true);
        self.hosts[number].away_until_ms = self.now_ms + self.luck.between(2..=6) * HOUR_MS;
        self.hosts[number].obliged_since_ms = self.hosts[number].away_until_ms;
    }

    /// An honest failure, such as they come.
    fn fault(&mut self, number: usize) {
        match self.luck.between(0..=99) {
            0..35 => {
                self.fails(number, Kind::HostLost, STEP_MS / 3, Confirmation::Absence);
                self.close(number, "host_lost", true);
                self.hosts[number].away_until_ms = self.now_ms + HOUR_MS;
            }
            35..55 => {
                self.fails(number, Kind::Xid, STEP_MS / 6, Confirmation::Report);
                self.close(number, "failed", true);
            }
            55..75 => self.fails(number, Kind::Unreachable, STEP_MS, Confirmation::Retest),
            _ => self.fails(number, Kind::HeartbeatGap, STEP_MS / 15, Confirmation::Report),
        }
    }

    /// Time is lost on a host; mostly that is confirmed, and sometimes it was the market.
    fn fails(&mut self, number: usize, kind: Kind, lost_ms: i64, confirmation: Confirmation) {
        let blame = if self.luck.chance(PLATFORM_PPM) { Blame::Platform } else { Blame::Host };
        let confirmed = self.luck.chance(CONFIRMED_PPM).then_some(confirmation);
        if let Some(open) = self.hosts[number].open.as_mut() {
            open.used_ms -= lost_ms.min(open.used_ms);
        }
        self.note(number, kind, lost_ms, blame, confirmed);
    }

    /// What a customer does to the host that it rents.
    fn ruin(&mut self, number: usize, ruin: Ruin, ended: bool) {
        if ruin == Ruin::Silence
            && let Some(Open { used_ms, .. }) = &mut self.hosts[number].open
        {
            *used_ms = (*used_ms).min(HOUR_MS);
        }
        if !ended {
            return;
        }
        match ruin {
            Ruin::Xid => {
                let mistaken = self.tricks.chance(50_000);
                let blame = if mistaken { Blame::Host } else { Blame::Customer };
                self.note(number, Kind::Xid, STEP_MS, blame, Some(Confirmation::Report));
            }
            Ruin::Unreachable => {
                let confirmed = self.tricks.chance(100_000).then_some(Confirmation::Retest);
                self.note(number, Kind::Unreachable, 2 * STEP_MS, Blame::Host, confirmed);
            }
            Ruin::Silence => {
                self.note(number, Kind::Unreachable, 24 * HOUR_MS, Blame::Host, Some(Confirmation::Report));
            }
        }
    }

    /// Once a day owners look at how much of what they have is leased.
    fn change_prices(&mut self) {
        let most_ppm = self.scenario.regime.demand().most_ppm;
        for miner in &mut self.miners {
            let baseline = self.classes[miner.class].honest_baseline;
            let leased_ppm = miner.leased_steps * PPM / miner.steps.max(1);
            let changed = if leased_ppm > 850_000 {
                part(miner.price, 1_020_000)
            } else if leased_ppm < 600_000 {
                part(miner.price, 970_000)
            } else {
                miner.price
            };
            miner.price = changed.clamp(part(baseline, FLOOR_PPM), part(baseline, most_ppm));
            (miner.steps, miner.leased_steps) = (0, 0);
        }
    }
}
