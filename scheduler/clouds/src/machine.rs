//! What becomes of a machine that we want from a cloud. Pure.
//!
//! A [`Row`] is written before any cloud is asked, and its id is the machine's name. From then on three
//! rules keep machines from being leaked or doubled, whatever a cloud does and wherever we are killed:
//!
//! - **One row makes one launch.** It is asked for again only where the cloud did nothing for sure. A launch
//!   whose outcome is not known is looked for in the cloud's list until that must show it, and never
//!   repeated: whoever still needs a machine then makes another row.
//! - **Everything that bears a row's name belongs to the row,** also a second machine that the cloud made
//!   by mistake, and one that turns up after the row was closed. What the row does not keep is given back.
//! - **A machine is gone when the cloud says so twice:** it is missing in the list for a while, and asked
//!   for by its id it is not there. Should it turn up again, it is given back again.

use std::collections::BTreeMap;

use nave_domain::{MicroUsd, Millis, Timestamp};
use serde::{Deserialize, Serialize};

use crate::{
    error::{CloudError, Kind},
    provider::{Billing, Cloud, CloudId, Machine, MachineId, MachineState, Terms},
};

/// How patient we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// How long a row may wait for its launch.
    pub launch_max: Millis,
    /// How long a machine may take from its launch until its agent has enrolled.
    pub boot_max: Millis,
    /// How long a machine must be idle to be given back.
    pub idle_min: Millis,
    /// How long before a unit of paid time ends an idle machine is given back.
    pub lead: Millis,
    /// How long before its dead-man switch a machine is given back.
    pub margin: Millis,
    /// How long a machine that was given back must be missing to be gone.
    pub confirm: Millis,
    /// How long until a cloud is asked again for what it refused or did not do; after the second time twice as long.
    pub again: Millis,
}

impl Rules {
    /// What is used.
    pub const USUAL: Self = Self {
        launch_max: Millis(600_000),
        boot_max: Millis(1_200_000),
        idle_min: Millis(120_000),
        lead: Millis(60_000),
        margin: Millis(300_000),
        confirm: Millis(60_000),
        again: Millis(30_000),
    };

    /// Those of a cloud.
    #[must_use]
    pub fn of(cloud: Cloud) -> Self {
        match cloud {
            Cloud::Shadeform
            | Cloud::Massed
            | Cloud::Hyperstack
            | Cloud::Lambda
            | Cloud::Runpod
            | Cloud::Vast
            | Cloud::Verda => Self::USUAL,
            // It costs nothing to ask, and somebody looks on.
            Cloud::Local => Self { boot_max: Millis(300_000), confirm: Millis(5_000), ..Self::USUAL },
        }
    }
}

/// The longest that it takes until a cloud is asked again, as a power of two of the first time: what it does not take
/// back is paid for.
const DOUBLINGS_MAX: u32 = 1;

/// A machine that we want from a cloud, and all that is known of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// Our id of it, and its name in the cloud.
    pub id: MachineId,
    /// How often the row was written: who writes it must have read it last.
    pub version: u64,
    /// Where.
    pub cloud: Cloud,
    /// What of: id and region of the offer.
    pub offer: (String, String),
    /// What that cost when it was chosen.
    pub price: MicroUsd,
    /// The most that it may cost in an hour.
    pub price_max: MicroUsd,
    /// When the machine ends even if nobody gives it back.
    pub dead_man: Timestamp,
    /// When the row was made.
    pub made_at: Timestamp,
    /// Whether it is still needed: others write this.
    pub demand: Demand,
    /// When its agent enrolled: others write this.
    pub enrolled_at: Option<Timestamp>,
    /// How far its launch is.
    pub stage: Stage,
    /// When the launch was asked for.
    pub asked_at: Option<Timestamp>,
    /// When the cloud may be asked for it again.
    pub not_before: Timestamp,
    /// The machine that is used.
    pub kept: Option<CloudId>,
    /// All machines that bear its name.
    pub held: BTreeMap<CloudId, Held>,
    /// Why everything goes back; none while it does not.
    pub ending: Option<Ending>,
}

/// Whether a machine is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Demand {
    /// It is waited for, or works.
    Wanted,
    /// It has nothing to do.
    Idle {
        /// Since when.
        since: Timestamp,
    },
    /// It is to go now.
    Released,
}

/// How far a launch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Nothing was asked of the cloud.
    Intended,
    /// The cloud was asked, or was about to be: there may be a machine.
    Asked,
    /// There is one, or there was.
    Held,
    /// There is none, and none was made.
    Missed,
}

/// Why a row ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// The reason.
    pub why: Why,
    /// Since when.
    pub at: Timestamp,
}

/// The reason why a row ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// It is not needed any more.
    Released,
    /// It had nothing to do until the end of a unit of paid time.
    Idle,
    /// Its agent never enrolled.
    NotEnrolled,
    /// Its dead-man switch is near.
    DeadMan,
    /// It costs more than it may.
    TooDear,
    /// It broke or was turned off.
    Broke,
    /// The cloud took it away.
    Lost,
    /// The cloud refused to launch it.
    Refused(Kind),
    /// It could not be launched in time, or the launch came to nothing.
    NeverLaunched,
    /// Nobody knows why it is there.
    Stray,
}

impl Why {
    /// For programs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Released => "released",
            Self::Idle => "idle",
            Self::NotEnrolled => "not_enrolled",
            Self::DeadMan => "dead_man",
            Self::TooDear => "too_dear",
            Self::Broke => "broke",
            Self::Lost => "lost",
            Self::Refused(kind) => kind.name(),
            Self::NeverLaunched => "never_launched",
            Self::Stray => "stray",
        }
    }

    /// Whether only a machine that has nothing to do goes back for it.
    #[must_use]
    pub fn is_for_want_of_work(self) -> bool {
        match self {
            Self::Released | Self::Idle => true,
            Self::NotEnrolled
            | Self::DeadMan
            | Self::TooDear
            | Self::Broke
            | Self::Lost
            | Self::Refused(_)
            | Self::NeverLaunched
            | Self::Stray => false,
        }
    }
}

/// One machine that bears a row's name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Since when it may be paid for.
    pub since: Timestamp,
    /// When we learnt of it.
    pub known_at: Timestamp,
    /// The most that it has cost in an hour.
    pub price: MicroUsd,
    /// What the cloud said last that it does.
    pub state: MachineState,
    /// Where it can be reached.
    pub address: Option<String>,
    /// When it was given back last, and how often.
    pub returned: Option<(Timestamp, u32)>,
    /// Since when the cloud's list does not have it.
    pub absent_since: Option<Timestamp>,
    /// When it was sure that it is gone.
    pub gone_at: Option<Timestamp>,
}

/// All machines of an account at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// When they were asked for: what happened later may be missing.
    pub asked_at: Timestamp,
    /// The machines, of everybody.
    pub machines: Vec<Machine>,
}

/// What is to be done for a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Quote again and launch.
    Launch,
    /// Give this machine back.
    Return(CloudId),
    /// Ask for this machine by its id.
    Look(CloudId),
}

impl Row {
    /// The wish for a machine; it must be written before anything is done for it.
    #[must_use]
    pub fn intend(
        id: MachineId,
        cloud: Cloud,
        offer: (String, String),
        price: MicroUsd,
        price_max: MicroUsd,
        now: Timestamp,
        dead_man: Timestamp,
    ) -> Self {
        Self {
            id,
            version: 0,
            cloud,
            offer,
            price,
            price_max,
            dead_man,
            made_at: now,
            demand: Demand::Wanted,
            enrolled_at: None,
            stage: Stage::Intended,
            asked_at: None,
            not_before: now,
            kept: None,
            held: BTreeMap::new(),
            ending: None,
        }
    }

    /// The row of machines that bear our name and that no row is there for.
    #[must_use]
    pub fn stray(id: MachineId, cloud: Cloud, now: Timestamp) -> Self {
        let nothing = (String::new(), String::new());
        let row = Self::intend(id, cloud, nothing, MicroUsd::ZERO, MicroUsd::ZERO, now, now);
        Self { stage: Stage::Held, ending: Some(Ending { why: Why::Stray, at: now }), ..row }
    }

    /// Whether nothing is left to be done.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        let is_known = match self.stage {
            Stage::Asked => false,
            Stage::Intended | Stage::Held | Stage::Missed => true,
        };
        is_known && self.ending.is_some() && self.held.values().all(|held| held.gone_at.is_some())
    }

    /// What its machines have cost, at most: from when each was asked for until it was sure to be gone.
    #[must_use]
    pub fn cost(&self, billing: Billing, now: Timestamp) -> MicroUsd {
        let sum = self
            .held
            .values()
            .map(|held| cost(held.price, held.gone_at.unwrap_or(now).since(held.since), billing).0);
        MicroUsd(sum.fold(0, i64::saturating_add))
    }

    fn end(&mut self, why: Why, at: Timestamp) {
        self.ending.get_or_insert(Ending { why, at });
    }

    /// The row after the cloud has listed its machines; `mine` are those that bear its name.
    pub fn listed(&mut self, mine: &[&Machine], asked_at: Timestamp, terms: &Terms) {
        for machine in mine {
            self.seen(machine, asked_at, asked_at);
            let held = self.held.get_mut(&machine.id).filter(|_| machine.state == MachineState::Gone);
            if let Some(held) = held {
                held.absent_since.get_or_insert(asked_at);
            }
        }
        let is_listed = |id: &CloudId| mine.iter().any(|machine| machine.id == *id);
        for (id, held) in &mut self.held {
            if !is_listed(id) && held.known_at < asked_at {
                held.absent_since.get_or_insert(asked_at);
            }
        }
        let settled = self.asked_at.is_none_or(|at| asked_at >= at.after(terms.settling));
        if self.stage == Stage::Asked && settled {
            self.stage = Stage::Missed;
            self.end(Why::NeverLaunched, asked_at);
        }
    }

    /// What the cloud says of a machine of this row.
    fn seen(&mut self, machine: &Machine, asked_at: Timestamp, now: Timestamp) {
        let since = self.asked_at.or(machine.created_at).map_or(now, |since| since.min(now));
        let held = self.held.entry(machine.id.clone()).or_insert_with(|| Held::new(since, now, self.price));
        held.price = held.price.max(machine.price.unwrap_or_default());
        if machine.state != MachineState::Gone {
            held.state = machine.state;
            held.address = machine.address.clone().or(held.address.take());
            held.absent_since = None;
            // It turned up again: it was not gone, and has been paid for all the time.
            held.gone_at = held.gone_at.filter(|gone_at| *gone_at > asked_at);
        }
        self.stage = Stage::Held;
        self.kept.get_or_insert_with(|| machine.id.clone());
    }

    /// Whether the row has to end, and why.
    pub fn decide(&mut self, now: Timestamp, terms: &Terms, rules: &Rules) {
        if self.ending.is_none()
            && let Some(why) = self.reason(now, terms, rules)
        {
            self.end(why, now);
        }
    }

    fn reason(&self, now: Timestamp, terms: &Terms, rules: &Rules) -> Option<Why> {
        if self.demand == Demand::Released {
            return Some(Why::Released);
        }
        if now.after(rules.margin) >= self.dead_man {
            return Some(Why::DeadMan);
        }
        match self.stage {
            Stage::Intended => (now.since(self.made_at) >= rules.launch_max).then_some(Why::NeverLaunched),
            Stage::Asked => None,
            Stage::Missed => Some(Why::NeverLaunched),
            Stage::Held => {
                self.held.get(self.kept.as_ref()?).and_then(|kept| self.reason_of(kept, now, terms, rules))
            }
        }
    }

    fn reason_of(&self, kept: &Held, now: Timestamp, terms: &Terms, rules: &Rules) -> Option<Why> {
        if kept.gone_at.is_some() {
            return Some(Why::Lost);
        }
        if kept.price > self.price_max {
            return Some(Why::TooDear);
        }
        if matches!(kept.state, MachineState::Failed | MachineState::Stopped | MachineState::Deleting) {
            return Some(Why::Broke);
        }
        if self.enrolled_at.is_none() && now.since(kept.since) >= rules.boot_max {
            return Some(Why::NotEnrolled);
        }
        match self.demand {
            Demand::Idle { since } if now.since(since) >= rules.idle_min => {
                is_at_boundary(kept.since, now, terms.billing, rules.lead).then_some(Why::Idle)
            }
            Demand::Idle { .. } | Demand::Wanted | Demand::Released => None,
        }
    }

    /// What is to be done now.
    #[must_use]
    pub fn steps(&self, now: Timestamp, rules: &Rules) -> Vec<Step> {
        let mut steps = Vec::new();
        if self.stage == Stage::Intended && self.ending.is_none() && now >= self.not_before {
            steps.push(Step::Launch);
        }
        for (id, held) in self.held.iter().filter(|(_, held)| held.gone_at.is_none()) {
            let goes = self.ending.is_some() || self.kept.as_ref() != Some(id);
            if goes && held.may_be_returned(now, rules) {
                steps.push(Step::Return(id.clone()));
            }
            if held.absent_since.is_some() {
                steps.push(Step::Look(id.clone()));
            }
        }
        steps
    }

    /// The cloud is about to be asked to launch: from here on there may be a machine.
    pub fn launching(&mut self, quoted: MicroUsd, now: Timestamp) {
        self.stage = Stage::Asked;
        self.asked_at = Some(now);
        self.price = quoted;
    }

    /// The cloud has answered, or has not.
    pub fn launched(&mut self, answer: &Result<CloudId, CloudError>, now: Timestamp, rules: &Rules) {
        match answer {
            Ok(id) => {
                let since = self.asked_at.unwrap_or(now);
                self.held.entry(id.clone()).or_insert_with(|| Held::new(since, now, self.price));
                self.kept.get_or_insert_with(|| id.clone());
                self.stage = Stage::Held;
            }
            Err(error) if error.kind.is_settled() => self.refused(error, now, rules),
            Err(_) => {}
        }
    }

    /// No machine was made, for sure.
    pub fn refused(&mut self, error: &CloudError, now: Timestamp, rules: &Rules) {
        match error.kind {
            Kind::RateLimited { after } => self.pause(now.after(after)),
            Kind::NotSent | Kind::Unavailable | Kind::TimedOut | Kind::Malformed => {
                self.pause(now.after(rules.again))
            }
            Kind::OutOfStock
            | Kind::Quota
            | Kind::NoBalance
            | Kind::PriceRise
            | Kind::Unauthorised
            | Kind::NotFound
            | Kind::Refused => {
                self.stage = Stage::Missed;
                self.end(Why::Refused(error.kind), now);
            }
        }
    }

    fn pause(&mut self, until: Timestamp) {
        self.stage = Stage::Intended;
        self.not_before = until;
    }

    /// A machine is about to be given back.
    pub fn returning(&mut self, id: &CloudId, now: Timestamp) {
        if let Some(held) = self.held.get_mut(id) {
            held.returned = Some((now, held.returned.map_or(1, |(_, times)| times.saturating_add(1))));
        }
    }

    /// What the cloud said when it was asked for a machine by its id.
    pub fn looked(
        &mut self,
        id: &CloudId,
        found: Option<&Machine>,
        asked_at: Timestamp,
        terms: &Terms,
        rules: &Rules,
    ) {
        if let Some(machine) =
            found.filter(|machine| machine.state != MachineState::Gone && machine.id == *id)
        {
            return self.seen(machine, asked_at, asked_at);
        }
        let Some(held) = self.held.get_mut(id) else { return };
        let patience = if held.returned.is_some() { rules.confirm } else { terms.settling };
        if held.absent_since.is_some_and(|since| asked_at >= since.after(patience)) {
            held.gone_at.get_or_insert(asked_at);
        }
    }
}

impl Held {
    fn new(since: Timestamp, known_at: Timestamp, price: MicroUsd) -> Self {
        Self {
            since,
            known_at,
            price,
            state: MachineState::Unknown,
            address: None,
            returned: None,
            absent_since: None,
            gone_at: None,
        }
    }

    fn may_be_returned(&self, now: Timestamp, rules: &Rules) -> bool {
        self.returned.is_none_or(|(at, times)| {
            let wait = Millis(rules.again.0 << times.saturating_sub(1).min(DOUBLINGS_MAX));
            now >= at.after(wait)
        })
    }
}

/// What `span` of a machine costs, rounded up to whole units of paid time and to a micro-USD.
#[must_use]
pub fn cost(hourly: MicroUsd, span: Millis, billing: Billing) -> MicroUsd {
    let (unit, span) = (i128::from(billing.unit.0.max(1)), i128::from(span.0.max(billing.least.0)));
    let paid = (span + unit - 1) / unit * unit;
    let cost = (i128::from(hourly.0) * paid + 3_599_999) / 3_600_000;
    MicroUsd(i64::try_from(cost).unwrap_or(i64::MAX))
}

/// Whether a unit of paid time ends soon: giving back earlier would waste what is paid for already.
#[must_use]
pub fn is_at_boundary(since: Timestamp, now: Timestamp, billing: Billing, lead: Millis) -> bool {
    let unit = billing.unit.0.max(1);
    let used = now.since(since).0;
    // Until the least that is paid is over, that is the unit.
    let left = if used < billing.least.0 { billing.least.0 - used } else { unit - used % unit };
    left <= lead.0
}

#[cfg(test)]
mod tests;
