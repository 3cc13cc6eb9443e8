//! What a cloud is asked, and what it answers: five calls.
//!
//! Whether a machine is one of ours is never a cloud's word: it is ours when its name is a [`Tag`] of
//! this market. No call that launches takes an idempotency key, so the tag is also how a launch whose
//! outcome nobody knows is found again.

use std::{fmt, future::Future, pin::Pin};

use nave_domain::{Bytes, MicroUsd, MilliCpu, Millis, Timestamp};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{error::CloudError, secret::Secret};

/// What a call comes to.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, CloudError>> + Send + 'a>>;

/// A cloud that machines can be rented from.
pub trait Provider: Send + Sync {
    /// Which one.
    fn cloud(&self) -> Cloud;

    /// What can be rented on demand, with its price.
    fn list_offers(&self, now: Timestamp) -> Answer<'_, Vec<CloudOffer>>;

    /// Rents one machine, and answers with its id. `now` is when it is asked.
    fn launch<'a>(&'a self, launch: &'a Launch, now: Timestamp) -> Answer<'a, CloudId>;

    /// One machine; none when the cloud says that it has none by this id.
    fn get<'a>(&'a self, id: &'a CloudId) -> Answer<'a, Option<Machine>>;

    /// All machines of the account: those that are not ours, too, and never a part of them.
    fn list_ours(&self) -> Answer<'_, Vec<Machine>>;

    /// Gives a machine back. It is only gone once the cloud says so.
    fn delete<'a>(&'a self, id: &'a CloudId) -> Answer<'a, ()>;
}

/// The clouds there are adapters for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cloud {
    /// Shadeform, which resells many others.
    Shadeform,
    /// Massed Compute.
    Massed,
    /// Hyperstack.
    Hyperstack,
    /// Lambda.
    Lambda,
    /// RunPod.
    Runpod,
    /// Vast.
    Vast,
    /// Verda, formerly `DataCrunch`.
    Verda,
    /// Parts of one machine, which stand for a cloud: its prices are made up.
    Local,
}

impl Cloud {
    /// Those of others, in the order in which they are asked. What they ask for is a market price.
    pub const ALL: [Self; 7] = [
        Self::Shadeform,
        Self::Massed,
        Self::Hyperstack,
        Self::Lambda,
        Self::Runpod,
        Self::Vast,
        Self::Verda,
    ];

    /// Whether what it asks for is a price of its own or of another cloud: at Vast strangers ask what they like.
    #[must_use]
    pub fn sets_prices(self) -> bool {
        match self {
            Self::Shadeform | Self::Massed | Self::Hyperstack | Self::Lambda | Self::Runpod | Self::Verda => {
                true
            }
            Self::Vast | Self::Local => false,
        }
    }

    /// For programs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Shadeform => "shadeform",
            Self::Massed => "massed",
            Self::Hyperstack => "hyperstack",
            Self::Lambda => "lambda",
            Self::Runpod => "runpod",
            Self::Vast => "vast",
            Self::Verda => "verda",
            Self::Local => "local",
        }
    }

    /// The cloud of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().chain([Self::Local]).find(|cloud| cloud.name() == name)
    }

    /// How it must be dealt with.
    #[must_use]
    pub fn terms(self) -> Terms {
        let usual = Terms {
            pace: Millis(1_000),
            settling: Millis(300_000),
            billing: Billing { unit: Millis(60_000), least: Millis(60_000) },
            dead_man: DeadMan::Script,
            hosting: Hosting::Machine,
        };
        match self {
            Self::Shadeform => Terms { dead_man: DeadMan::Cloud, ..usual },
            Self::Massed | Self::Hyperstack => usual,
            Self::Lambda => Terms { pace: Millis(12_000), ..usual },
            Self::Runpod | Self::Vast => Terms {
                billing: Billing { unit: Millis(1_000), least: Millis(1_000) },
                hosting: Hosting::Container,
                ..usual
            },
            Self::Verda => {
                Terms { billing: Billing { unit: Millis(600_000), least: Millis(600_000) }, ..usual }
            }
            // What is in a directory is listed at once; the rest is for launches that stand still for a moment.
            Self::Local => Terms {
                pace: Millis(0),
                settling: Millis(10_000),
                billing: Billing { unit: Millis(1_000), least: Millis(1_000) },
                dead_man: DeadMan::Cloud,
                ..usual
            },
        }
    }
}

impl fmt::Display for Cloud {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How a cloud must be dealt with; `docs/clouds.md` says which of it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// The least time between two launches.
    pub pace: Millis,
    /// The time after which a listing shows what was launched, for sure.
    pub settling: Millis,
    /// What is paid for.
    pub billing: Billing,
    /// Who ends a machine that nobody gives back.
    pub dead_man: DeadMan,
    /// What is rented.
    pub hosting: Hosting,
}

/// What of a machine's time is paid for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Billing {
    /// Time is rounded up to whole units of this.
    pub unit: Millis,
    /// What is paid at the least.
    pub least: Millis,
}

/// Who ends a machine that nobody gives back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeadMan {
    /// The cloud deletes it.
    Cloud,
    /// The script it boots with turns it off, which ends its work and mostly not its bill.
    Script,
}

/// What is rented.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hosting {
    /// A machine that can run the agent and its Docker Engine.
    Machine,
    /// A container, which can not: good for quotes only, as long as the agent needs an engine of its own.
    Container,
}

/// The id that a cloud gave a machine: letters, digits and a few marks, so that it is safe in a path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct CloudId(String);

impl TryFrom<String> for CloudId {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::new(&text).ok_or("it is no id of a cloud")
    }
}

impl CloudId {
    /// The id, unless it holds what no id does.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let fits = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
        let is_id = (1..=128).contains(&text.len()) && text.chars().all(fits) && !text.contains("..");
        is_id.then(|| Self(text.to_owned()))
    }

    /// As the cloud wrote it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CloudId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Our own id of one machine that we want: it is written down before any cloud is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MachineId(pub Uuid);

impl fmt::Display for MachineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "machine_{}", self.0.simple())
    }
}

/// Whose machines they are, where several markets share an account: up to 12 lower-case letters and digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner(String);

impl Owner {
    /// The owner of that name, unless it does not fit into every cloud's names.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        ((1..=12).contains(&text.len()) && text.chars().all(fits)).then(|| Self(text.to_owned()))
    }

    /// The tag of one machine.
    #[must_use]
    pub fn tag(&self, id: MachineId) -> Tag {
        Tag { owner: self.clone(), id }
    }

    /// The machine that a name stands for, if it is a tag of this owner.
    #[must_use]
    pub fn reads(&self, name: &str) -> Option<MachineId> {
        let hex = name.strip_prefix("nave-")?.strip_prefix(self.0.as_str())?.strip_prefix('-')?;
        let is_hex = hex.len() == 32 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        is_hex.then(|| Uuid::try_parse(hex).ok()).flatten().map(MachineId)
    }
}

/// The name of a machine of ours: at most 50 characters that every cloud takes, also for a host name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag {
    owner: Owner,
    /// Our own id of the machine.
    pub id: MachineId,
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nave-{}-{}", self.owner.0, self.id.0.simple())
    }
}

/// A kind of machine that a cloud offers in one place, on demand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloudOffer {
    /// Who offers it.
    pub cloud: Cloud,
    /// The cloud's id of what is offered; with the region it says what to launch.
    pub id: String,
    /// Where, in the cloud's words.
    pub region: String,
    /// The GPU, in the cloud's words.
    pub model: String,
    /// Its class in the catalogue, if it is known.
    pub class: Option<&'static str>,
    /// How many GPUs.
    pub devices: u32,
    /// Memory of each GPU, where the cloud says so.
    pub vram_each: Option<Bytes>,
    /// Virtual CPUs; zero where the cloud does not say.
    pub cpu: MilliCpu,
    /// Memory; zero where the cloud does not say.
    pub memory: Bytes,
    /// Disk; zero where the cloud does not say.
    pub disk: Bytes,
    /// Price of the whole machine for an hour.
    pub price: MicroUsd,
    /// What of its time is paid for.
    pub billing: Billing,
    /// Whether it can be had.
    pub availability: Availability,
    /// When this was asked.
    pub fetched_at: Timestamp,
    /// What the cloud said, without secrets.
    pub raw: String,
}

impl CloudOffer {
    /// Price of one GPU for an hour, rounded down; none where there is no GPU.
    #[must_use]
    pub fn price_each(&self) -> Option<MicroUsd> {
        self.price.0.checked_div(i64::from(self.devices)).map(MicroUsd)
    }
}

/// Whether something can be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Availability {
    /// Yes, and how many, where the cloud says so.
    Available(Option<u32>),
    /// No.
    SoldOut,
}

/// What is launched.
#[derive(Debug, Clone)]
pub struct Launch {
    /// Its name.
    pub tag: Tag,
    /// What, as it was just quoted.
    pub offer: CloudOffer,
    /// What it boots with: a script that joins the market, with a ticket in it.
    pub boot: Secret,
    /// When it ends even if nobody gives it back.
    pub dead_man: Timestamp,
    /// The most that it may cost in an hour.
    pub price_max: MicroUsd,
}

/// A machine as its cloud tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// The cloud's id.
    pub id: CloudId,
    /// Its name, which is a tag if it is ours.
    pub name: String,
    /// What it does.
    pub state: MachineState,
    /// Where it can be reached.
    pub address: Option<String>,
    /// Since when it has been there.
    pub created_at: Option<Timestamp>,
    /// Its price for an hour, where the cloud says so.
    pub price: Option<MicroUsd>,
}

/// What a machine does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MachineState {
    /// It is being made.
    Starting,
    /// It runs.
    Running,
    /// It is off, and mostly still paid for.
    Stopped,
    /// It broke, and may still be paid for.
    Failed,
    /// It is being given back.
    Deleting,
    /// It is no more.
    Gone,
    /// The cloud has a word for it that nobody here knows. It may be paid for.
    Unknown,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_read_by_its_owner_only() {
        let (ours, others) = (Owner::new("main1").expect("fits"), Owner::new("main").expect("fits"));
        let id = MachineId(Uuid::from_u128(7));
        let name = ours.tag(id).to_string();
        assert_eq!(ours.reads(&name), Some(id));
        assert_eq!(others.reads(&name), None);
        for name in
            ["", "nave-main1-", "someone-elses", "nave-main1-0000", &name.to_uppercase(), &format!("{name}0")]
        {
            assert_eq!(ours.reads(name), None, "{name}");
        }
    }

    #[test]
    fn the_longest_tag_fits_into_every_clouds_names() {
        let owner = Owner::new("abcdefghij12").expect("fits");
        let name = owner.tag(MachineId(Uuid::max())).to_string();
        assert_eq!(name.len(), 50);
        assert!(name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'));
        assert!(
            Owner::new("abcdefghij123").is_none() && Owner::new("a-b").is_none() && Owner::new("").is_none()
        );
    }

    #[test]
    fn no_id_leads_out_of_its_path() {
        for text in ["", "../x", "a/b", "a?b", "a b", "a%2f", "..", "x..y", "é", &"a".repeat(129)] {
            assert_eq!(CloudId::new(text), None, "{text}");
        }
        assert!(CloudId::new("d290f1ee-6c54-4b01-90e6-d701748f0851").is_some());
    }
}
