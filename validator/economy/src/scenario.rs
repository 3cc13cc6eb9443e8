//! What a run is of: which market, which strategy, under which rules.

use nave_settlement::params::Params;
use serde::Serialize;

/// How much is asked for, and what customers would pay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Regime {
    /// Seven in ten devices are asked for.
    Normal,
    /// More is asked for than there is, also above the baseline.
    Crunch,
    /// As in a crunch, and the emission is worth more than miners are owed, so that there is standby.
    Boom,
    /// Three in ten devices are asked for.
    Glut,
}

/// A regime in numbers, in ppm.
#[derive(Debug, Clone, Copy)]
pub struct Demand {
    /// Device time that is asked for, as a part of all there is.
    pub asked_ppm: i64,
    /// What customers would pay at least for on-demand, as a part of the baseline.
    pub least_ppm: i64,
    /// What they would pay at most.
    pub most_ppm: i64,
    /// Emission of an epoch, as a part of what the baseline of all devices comes to.
    pub emission_ppm: i64,
}

impl Regime {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Normal, Self::Crunch, Self::Boom, Self::Glut];

    /// What it is called.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Crunch => "crunch",
            Self::Boom => "boom",
            Self::Glut => "glut",
        }
    }

    /// Its numbers.
    #[must_use]
    pub fn demand(self) -> Demand {
        let of = |asked_ppm, least_ppm, most_ppm, emission_ppm| Demand {
            asked_ppm,
            least_ppm,
            most_ppm,
            emission_ppm,
        };
        match self {
            Self::Normal => of(700_000, 800_000, 1_000_000, 800_000),
            Self::Crunch => of(1_300_000, 950_000, 1_500_000, 650_000),
            Self::Boom => of(1_300_000, 950_000, 1_500_000, 1_300_000),
            Self::Glut => of(300_000, 600_000, 1_000_000, 900_000),
        }
    }
}

/// What the miner under study does. Unless it says otherwise it has the hardware, prices and luck of everyone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// Nothing dishonest.
    Honest,
    /// Nothing dishonest, with hardware that is reclaimed now and then and sold as spot.
    HonestSpot,
    /// Nothing dishonest, with cheap hardware that fails often.
    HonestFlaky,
    /// As many fake hosts as real ones, dear enough that few rent them; jobs that come anyway fail.
    PaddingFails,
    /// The same, but they refuse jobs.
    PaddingRefuses,
    /// Every device is two hosts.
    Duplicates,
    /// Rents its idle hosts itself; the market knows.
    WashDetected,
    /// Rents its idle hosts itself; the market does not know.
    WashUndetected,
    /// Rents half of its hosts itself for next to nothing, so that standby rises for the other half.
    WashForStandby,
    /// One hotkey for each host, and a new one for each that is demoted or in debt.
    Sybil,
    /// Sells reclaimed hardware as on-demand, with a new hotkey after each demotion.
    SpotAsOnDemand,
    /// Half the price, cheap hardware, no collateral; a new hotkey after each demotion or debt.
    UnderbidThenFail,
    /// Every ten days leaves in the middle of its leases, and comes back under another hotkey.
    EarlyExit,
    /// Has the baseline of its class rise by a tenth.
    BaselinePumping,
    /// Half of its hosts refuse jobs, the others ask for a sixth more.
    Withholding,
    /// Rents competitors' hosts and makes their GPUs fail.
    Griefing,
    /// Rents its own idle hosts, which then fail for a day, for the credits.
    HarvestingOwn,
    /// Rents others' hosts, and makes them fail for the credits.
    HarvestingOthers,
}

impl Strategy {
    /// All of them, what they are compared with first.
    pub const ALL: [Self; 18] = [
        Self::Honest,
        Self::HonestSpot,
        Self::HonestFlaky,
        Self::PaddingFails,
        Self::PaddingRefuses,
        Self::Duplicates,
        Self::WashDetected,
        Self::WashUndetected,
        Self::WashForStandby,
        Self::Sybil,
        Self::SpotAsOnDemand,
        Self::UnderbidThenFail,
        Self::EarlyExit,
        Self::BaselinePumping,
        Self::Withholding,
        Self::Griefing,
        Self::HarvestingOwn,
        Self::HarvestingOthers,
    ];

    /// What it is called.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Honest => "honest",
            Self::HonestSpot => "honest spot",
            Self::HonestFlaky => "honest flaky",
            Self::PaddingFails => "padding fails",
            Self::PaddingRefuses => "padding refuses",
            Self::Duplicates => "duplicates",
            Self::WashDetected => "wash detected",
            Self::WashUndetected => "wash undetected",
            Self::WashForStandby => "wash for standby",
            Self::Sybil => "sybil",
            Self::SpotAsOnDemand => "spot as on-demand",
            Self::UnderbidThenFail => "underbid then fail",
            Self::EarlyExit => "early exit",
            Self::BaselinePumping => "baseline pumping",
            Self::Withholding => "withholding",
            Self::Griefing => "griefing",
            Self::HarvestingOwn => "harvesting own",
            Self::HarvestingOthers => "harvesting others",
        }
    }

    /// The same hardware in honest hands.
    #[must_use]
    pub fn control(self) -> Self {
        match self.hardware() {
            Hardware::Reclaimed => Self::HonestSpot,
            Hardware::Flaky => Self::HonestFlaky,
            Hardware::Sound | Hardware::Fake => Self::Honest,
        }
    }

    /// Whether it is one to compare with, not one to be kept down.
    #[must_use]
    pub fn is_honest(self) -> bool {
        self == self.control()
    }

    /// What its real hosts are.
    #[must_use]
    pub fn hardware(self) -> Hardware {
        match self {
            Self::HonestSpot | Self::SpotAsOnDemand => Hardware::Reclaimed,
            Self::HonestFlaky | Self::UnderbidThenFail => Hardware::Flaky,
            Self::Honest
            | Self::PaddingFails
            | Self::PaddingRefuses
            | Self::Duplicates
            | Self::WashDetected
            | Self::WashUndetected
            | Self::WashForStandby
            | Self::Sybil
            | Self::EarlyExit
            | Self::BaselinePumping
            | Self::Withholding
            | Self::Griefing
            | Self::HarvestingOwn
            | Self::HarvestingOthers => Hardware::Sound,
        }
    }

    /// Whether it gives up hotkeys that are demoted or in debt.
    #[must_use]
    pub fn changes_hotkeys(self) -> bool {
        matches!(self, Self::Sybil | Self::SpotAsOnDemand | Self::UnderbidThenFail)
    }

    /// Whether it sells as spot from the start.
    #[must_use]
    pub fn sells_spot(self) -> bool {
        matches!(self, Self::HonestSpot | Self::UnderbidThenFail)
    }
}

/// What a host is, as its owner knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Hardware {
    /// As promised.
    Sound,
    /// Cheaper, and taken back every 30 hours.
    Reclaimed,
    /// Cheaper, and fails once in 40 hours of work.
    Flaky,
    /// Not there at all.
    Fake,
}

impl Hardware {
    /// What it costs to have for an hour, as a part of the baseline.
    #[must_use]
    pub fn cost_ppm(self) -> i64 {
        match self {
            Self::Sound => 350_000,
            Self::Reclaimed => 200_000,
            Self::Flaky => 280_000,
            Self::Fake => 20_000,
        }
    }

    /// What an hour of work costs beyond that.
    #[must_use]
    pub fn work_ppm(self) -> i64 {
        if self == Self::Fake { 0 } else { 100_000 }
    }

    /// Failures in a million hours of work.
    #[must_use]
    pub fn failures(self) -> i64 {
        match self {
            Self::Sound | Self::Reclaimed => 700,
            Self::Flaky => 25_000,
            Self::Fake => 0,
        }
    }
}

/// The rules as they are, or without one of them: a simulation that sees no attack under a rule that is known to be
/// broken would show nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Rules {
    /// As they are.
    AsTheyAre,
    /// The sink gets a tenth of the emission at most; miners share the rest, whatever they are owed.
    BoundedSink,
    /// Standby is for every idle device, at once, whatever it refused.
    StandbyForAnyone,
    /// A customer gets back what the lost time would have cost, whatever the lease paid.
    CreditAbovePayment,
    /// A demotion is forgotten with the offer that it is of.
    DemotionPerOffer,
    /// As they are, and a demotion is also of the devices that its hotkey had.
    DevicesRemember,
}

impl Rules {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::AsTheyAre,
        Self::BoundedSink,
        Self::StandbyForAnyone,
        Self::CreditAbovePayment,
        Self::DemotionPerOffer,
        Self::DevicesRemember,
    ];

    /// What they are called.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::AsTheyAre => "as-they-are",
            Self::BoundedSink => "bounded-sink",
            Self::StandbyForAnyone => "standby-for-anyone",
            Self::CreditAbovePayment => "credit-above-payment",
            Self::DemotionPerOffer => "demotion-per-offer",
            Self::DevicesRemember => "devices-remember",
        }
    }
}

/// One run.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// What chance follows from.
    pub seed: u64,
    /// The market.
    pub regime: Regime,
    /// What the miner under study does.
    pub strategy: Strategy,
    /// The rules.
    pub rules: Rules,
    /// How often a day's test finds a fake or doubled host, in ppm.
    pub found_ppm: i64,
    /// How long.
    pub epochs: i64,
    /// What is settled by, but for what broken rules change.
    pub params: Params,
}
