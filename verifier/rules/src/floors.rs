//! What the software of a host must at least be, and how fast its disk. Pure.
//!
//! What is known is data, checked in as `verifier/rules/floors.toml`. What is compared with it is what hosts say of
//! themselves: it refuses hosts that would harm themselves or their customers without knowing, and is no proof of
//! anything.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::OnceLock,
};

use nave_domain::Bytes;
use nave_proof::{
    Failure, Findings, Proven, Reason,
    findings::{Trial, clip},
};
use serde::Deserialize;

/// The floors as they are checked in.
pub(crate) const TEXT: &str = include_str!("../floors.toml");
/// Longest sentence about a host, in bytes.
const MESSAGE_MAX: usize = 240;

/// All floors.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Floors {
    /// Versions with known flaws.
    #[serde(rename = "version")]
    versions: Vec<VersionFloor>,
    /// What must not be there, or must work.
    #[serde(rename = "check")]
    checks: BTreeMap<Check, Rule>,
    /// How fast a disk must be.
    disk: DiskFloor,
    /// How fast transfers with other hosts must be.
    transfer: TransferFloor,
}

/// A flaw, and the versions that have it no more.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct VersionFloor {
    name: String,
    /// For people.
    what: String,
    /// What findings call it.
    components: BTreeSet<String>,
    /// How many numbers make a branch.
    branch: usize,
    fixed: Vec<String>,
    /// Whether distributors fix it in versions of their own.
    #[serde(default)]
    backports: bool,
    flaws: Vec<String>,
    source: String,
    #[serde(default)]
    shadow: bool,
}

/// What is looked at besides versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// Libraries that are loaded into every program.
    Preloads,
    /// Variables that have a program load libraries.
    Variables,
    /// Mounts over the driver.
    Mounts,
    /// Libraries that are not what they were when they were loaded.
    Replaced,
    /// Libraries in a prover that nobody knows.
    Libraries,
    /// Others who hold memory of GPUs.
    Holders,
    /// That a container runs.
    Container,
    /// That a container sees the GPUs.
    Gpus,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    #[serde(default)]
    shadow: bool,
    /// What is no fault.
    #[serde(default)]
    allowed: Vec<String>,
    memory_max: Option<i64>,
    source: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct DiskFloor {
    reads_per_s: u64,
    shadow: bool,
    source: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct TransferFloor {
    bytes_per_s: u64,
    source: String,
}

/// What the floors say about a host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Judged {
    /// Why it is refused.
    pub refused: Option<Failure>,
    /// What would have refused it, had its checks been more than recorded; with the check's name.
    pub shadows: Vec<(String, Failure)>,
}

impl Judged {
    fn add(&mut self, check: &str, shadow: bool, failure: Failure) {
        match shadow {
            true => self.shadows.push((check.to_owned(), failure)),
            false => drop(self.refused.get_or_insert(failure)),
        }
    }
}

/// Why a host is refused for what was found of it, beside what the proof itself says.
///
/// # Errors
/// The reason. Floors that cannot be read refuse nobody.
pub fn judge(findings: &Findings) -> Result<(), Failure> {
    let judged = Floors::embedded().map(|floors| floors.judge(findings));
    judged.ok().and_then(|judged| judged.refused).map_or(Ok(()), Err)
}

/// What the floors say about what was shown; nothing where they say nothing about its kind.
#[must_use]
pub fn weigh(proven: &Proven) -> Judged {
    let Ok(floors) = Floors::embedded() else { return Judged::default() };
    match proven {
        Proven::Software(findings) => floors.judge(findings),
        Proven::Storage { reads_per_s, .. } => floors.judge_disk(*reads_per_s),
        Proven::Cpu { .. } | Proven::Memory { .. } | Proven::Devices(_) | Proven::Transfer { .. } => {
            Judged::default()
        }
    }
}

/// Each check that is only recorded and had something to look at, and whether it would have refused.
#[must_use]
pub fn recorded(proven: &Proven) -> BTreeMap<String, bool> {
    let Ok(floors) = Floors::embedded() else { return BTreeMap::new() };
    let looked: Vec<&str> = match proven {
        Proven::Software(found) => floors.recorded_of(found).collect(),
        Proven::Storage { .. } => floors.disk.shadow.then_some("disk").into_iter().collect(),
        Proven::Cpu { .. } | Proven::Memory { .. } | Proven::Devices(_) | Proven::Transfer { .. } => {
            Vec::new()
        }
    };
    let failed = weigh(proven).shadows.into_iter().map(|(check, _)| (check, true));
    looked.into_iter().map(|check| (check.to_owned(), false)).chain(failed).collect()
}

impl Floors {
    fn recorded_of<'a>(&'a self, found: &'a Findings) -> impl Iterator<Item = &'a str> {
        let here = |floor: &&VersionFloor| versions(found).any(|(name, _)| floor.components.contains(name));
        let versions = self.versions.iter().filter(|floor| floor.shadow).filter(here);
        let checks = self.checks.iter().filter(|(_, rule)| rule.shadow).map(|(check, _)| check.as_str());
        versions.map(|floor| floor.name.as_str()).chain(checks)
    }

    /// The floors as they are checked in.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn embedded() -> Result<&'static Self, &'static str> {
        static FLOORS: OnceLock<Result<Floors, String>> = OnceLock::new();
        FLOORS.get_or_init(|| Self::parse(TEXT)).as_ref().map_err(String::as_str)
    }

    /// Reads floors.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn parse(text: &str) -> Result<Self, String> {
        let floors: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        for floor in &floors.versions {
            let fixed: Option<Vec<Version>> = floor.fixed.iter().map(|text| Version::parse(text)).collect();
            let ascends = fixed.is_some_and(|fixed| {
                !fixed.is_empty() && fixed.windows(2).all(|pair| pair[0].numbers < pair[1].numbers)
            });
            if !ascends || floor.branch == 0 || floor.source.is_empty() {
                return Err(format!("{}: needs versions that ascend, a branch and a source", floor.name));
            }
        }
        let sources = floors
            .checks
            .values()
            .map(|rule| &rule.source)
            .chain([&floors.disk.source, &floors.transfer.source]);
        let all_have_one = !sources.into_iter().any(String::is_empty);
        if all_have_one { Ok(floors) } else { Err("every check needs a source".into()) }
    }

    /// Compares what was found with all floors.
    #[must_use]
    pub fn judge(&self, found: &Findings) -> Judged {
        let mut judged = Judged::default();
        for floor in &self.versions {
            floor.judge(found, &mut judged);
        }
        for (check, rule) in &self.checks {
            if let Some(failure) = check.look(rule, found) {
                judged.add(check.as_str(), rule.shadow, failure);
            }
        }
        judged
    }

    /// Bytes in a second that transfers with others must carry. Whether that refuses anybody is for the
    /// verifier's arguments to say.
    #[must_use]
    pub fn transfer_bytes_per_s(&self) -> u64 {
        self.transfer.bytes_per_s
    }

    /// Compares what a disk did with its floor.
    #[must_use]
    pub fn judge_disk(&self, reads_per_s: u64) -> Judged {
        let mut judged = Judged::default();
        let DiskFloor { reads_per_s: least, shadow, .. } = self.disk;
        if reads_per_s < least {
            let message =
                format!("its disk did {reads_per_s} dependent reads of 4 KiB in a second, at least {least}");
            judged.add("disk", shadow, Failure { code: Reason::DiskTooSlow, message });
        }
        judged
    }
}

impl VersionFloor {
    fn judge(&self, found: &Findings, judged: &mut Judged) {
        let here = versions(found).filter(|(name, _)| self.components.contains(*name));
        for (_, text) in here {
            let Some(version) = Version::parse(text) else {
                let message = format!("the version of {} cannot be read: {text}", self.what);
                judged.add(&self.name, true, outdated(&message));
                continue;
            };
            if self.is_fixed(&version) {
                continue;
            }
            let (what, fixed) = (&self.what, self.fixed.join(", "));
            let flaws = match self.flaws.as_slice() {
                [] => String::new(),
                flaws => format!(", without {}", flaws.join(", ")),
            };
            let message = format!("{what} of version {text} is too old; install {fixed} or newer{flaws}");
            let distributors = self.backports && version.has_more;
            judged.add(&self.name, self.shadow || distributors, outdated(&message));
        }
    }

    fn is_fixed(&self, version: &Version) -> bool {
        let fixed: Vec<Version> = self.fixed.iter().filter_map(|text| Version::parse(text)).collect();
        let newer_branch =
            fixed.last().is_some_and(|last| version.branch(self.branch) > last.branch(self.branch));
        let same_branch = |fixed: &&Version| version.branch(self.branch) == fixed.branch(self.branch);
        newer_branch || fixed.iter().find(same_branch).is_some_and(|fixed| version.numbers >= fixed.numbers)
    }
}

/// Everything with a version, by the name that floors use.
fn versions(found: &Findings) -> impl Iterator<Item = (&str, &str)> {
    let driver = found.driver.iter().flat_map(|driver| [&driver.module, &driver.library]);
    let driver = driver.flatten().map(|version| ("driver", version.as_str()));
    let engine = found.engine.iter().flat_map(|engine| &engine.components);
    let components = engine.chain(&found.toolkit).map(|of| (of.name.as_str(), of.version.as_str()));
    driver.chain(components).chain([("kernel", found.kernel.as_str())])
}

fn outdated(message: &str) -> Failure {
    failure(Reason::SoftwareOutdated, message)
}

fn failure(code: Reason, message: &str) -> Failure {
    let mut end = message.len().min(MESSAGE_MAX);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    Failure { code, message: clip(&message[..end]) }
}

/// A version's numbers, in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Version {
    numbers: Vec<u64>,
    /// Something follows the numbers.
    has_more: bool,
}

impl Version {
    /// Reads the numbers that a version begins with.
    fn parse(text: &str) -> Option<Self> {
        let text = text.trim_start_matches('v');
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let numbers: Result<Vec<u64>, _> =
            text[..end].split('.').take_while(|part| !part.is_empty()).take(8).map(str::parse).collect();
        let numbers = numbers.ok().filter(|numbers| !numbers.is_empty())?;
        Some(Self { numbers, has_more: end < text.len() })
    }

    fn branch(&self, numbers: usize) -> &[u64] {
        &self.numbers[..numbers.min(self.numbers.len())]
    }
}

impl Check {
    /// The name in the file.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Preloads => "preloads",
            Self::Variables => "variables",
            Self::Mounts => "mounts",
            Self::Replaced => "replaced",
            Self::Libraries => "libraries",
            Self::Holders => "holders",
            Self::Container => "container",
            Self::Gpus => "gpus",
        }
    }

    /// What is wrong, if something is.
    fn look(self, rule: &Rule, found: &Findings) -> Option<Failure> {
        let tampered = |message: String| failure(Reason::DriverTampered, &message);
        let unknown = |text: &&String| !rule.allowed.contains(text);
        let strange = |text: &&str| !rule.allowed.iter().any(|allowed| text.starts_with(allowed.as_str()));
        match self {
            Self::Preloads => {
                let preload = found.preloaded.everywhere.iter().find(unknown)?;
                Some(tampered(format!("/etc/ld.so.preload loads {preload} into every program")))
            }
            Self::Variables => {
                let variables = found.preloaded.environment.iter().map(String::as_str);
                let variable = variables.into_iter().find(strange)?;
                Some(tampered(format!("the agent or its prover runs with {variable}")))
            }
            Self::Mounts => {
                let mount = found.mounts.first()?;
                let message = format!("{} of {} is mounted over {}", mount.root, mount.kind, mount.covers);
                Some(tampered(message))
            }
            Self::Replaced => {
                let replaced = found.mapped.iter().find(|mapped| mapped.replaced)?;
                Some(tampered(format!(
                    "a prover runs code of {}, where there is another file now",
                    replaced.path
                )))
            }
            Self::Libraries => {
                let names =
                    found.mapped.iter().map(|mapped| mapped.path.rsplit('/').next().unwrap_or_default());
                let library = names.into_iter().find(strange)?;
                Some(tampered(format!(
                    "a prover runs code of {library}, which is no part of it or the driver"
                )))
            }
            Self::Holders => busy(rule.memory_max?, found),
            Self::Container => broken("a container does not run", &found.container),
            Self::Gpus => broken("a container does not see the GPUs", &found.gpus),
        }
    }
}

/// The device of which others hold more than a little.
fn busy(memory_max: i64, found: &Findings) -> Option<Failure> {
    let mut held: BTreeMap<&str, i64> = BTreeMap::new();
    for holder in &found.holders {
        let sum = held.entry(&holder.device).or_default();
        *sum = sum.saturating_add(holder.memory.0);
    }
    let (device, memory) = held.into_iter().find(|(_, memory)| *memory > memory_max)?;
    let pid = found.holders.iter().find(|holder| holder.device == device).map_or(0, |holder| holder.pid);
    let message = format!(
        "programs of others, such as process {pid}, hold {} of {device}; end them, or do not offer it",
        Bytes(memory)
    );
    Some(failure(Reason::DeviceBusy, &message))
}

fn broken(what: &str, trial: &Trial) -> Option<Failure> {
    match trial {
        Trial::Fails(why) => Some(failure(Reason::RuntimeBroken, &format!("{what}: {why}"))),
        Trial::NotApplicable | Trial::Works => None,
    }
}
