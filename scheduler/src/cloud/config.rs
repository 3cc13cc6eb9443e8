//! The operator's file of clouds: which there are, what may be rented, and what machines join.
//!
//! ```toml
//! [market]                        # needed where machines are rented, not for prices alone
//! url = "https://market.example"  # of the API, as machines reach it
//! market_key = "64 hex digits"    # the public part; what our machines are called follows from it
//! hotkey = "cloud.hotkey"         # file with the platform's own miner key, made where there is none
//! release_key = "64 hex digits"   # signs upgrades of agents; may be left out
//!
//! [limits]                        # each may be left out
//! machines = 4                    # that are rented at once
//! hourly = "10.00"                # dollars that all of them cost in an hour
//! life = "24h"                    # after which a machine is given back, whatever it does
//! patience = "1m"                 # that a job waits for busy hosts before a machine is rented for it
//! idle = "2m"                     # that a machine has nothing to do until it goes back
//! margin_percent = 10             # on top of what a machine costs
//! share_percent = 50              # of its cost that jobs which wait are to pay, or it is not rented: of its price an
//!                                 # hour, and of what it costs to boot and be idle; where jobs have paid less of its
//!                                 # price for half an hour it takes no more; 0 rents for any job
//! loss = "25.00"                  # dollars that machines of a day may cost beyond what jobs paid on them
//! unused = 3                      # machines a day for jobs of one customer that end before they ran; then no more
//! rests = true                    # whether offers and clouds are left alone for a while after machines in vain
//!
//! [agent]                         # for images that do not have the program; the same for [prover]
//! url = "https://files.example/miner-agent"
//! sha256 = "64 hex digits"
//!
//! [lambda]                        # any cloud, by its name
//! key_file = "lambda.key"         # or in the environment: NAVE_CLOUD_LAMBDA_KEY
//! key_id = ""                     # Verda's client id
//! image = "ubuntu-24-04"          # the cloud's id or name of an image
//! ssh_key = "ops"                 # the cloud's id or name of the key that machines are given
//! base_url = "http://…"           # only where it is not the cloud's own
//! drain = true                    # rents nothing there, and gives back what is rented once its jobs are done: for a
//!                                 # cloud that is to be taken out of the file
//!
//! [local]                         # machines that are acted out on this one
//! dir = "/var/lib/nave/clouds"
//! ```
//!
//! Files are relative to this one. Keys are not in it, so that it may be shown to others.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    path::PathBuf,
    str::FromStr,
};

use anyhow::Context as _;
use nave_clouds::{Cloud, Secret, adapters::Settings};
use nave_domain::{MicroUsd, Millis};
use serde::{Deserialize, Deserializer, de};

use super::boot::{Program, Programs};
use crate::demand::{Limits, Models};

/// The largest part that may be put on top of what a machine costs: tenfold.
const MARGIN_PERCENT_MAX: i64 = 1_000;

/// What the operator has written.
#[derive(Debug, Default)]
pub struct Clouds {
    /// What machines join; without it only prices are asked for.
    pub market: Option<MarketTerms>,
    /// What may be rented.
    pub limits: Limits,
    /// What devices of each class call themselves; not in the file.
    pub models: Models,
    /// What machines fetch.
    pub programs: Programs,
    /// Clouds of which nothing is rented, and what is goes back.
    pub drained: BTreeSet<Cloud>,
    /// The accounts; that of the local cloud has its directory as the base URL.
    pub accounts: Vec<(Cloud, Settings)>,
}

/// What a ticket is made of, as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MarketTerms {
    /// Base URL of the market's API, as machines reach it.
    pub url: String,
    /// Public part of the key that identifies the market.
    pub market_key: String,
    /// File with the platform's own miner key.
    pub hotkey: PathBuf,
    /// Public part of the key that signs upgrades of agents.
    pub release_key: Option<String>,
}

#[derive(Deserialize)]
struct File {
    market: Option<MarketTerms>,
    #[serde(default)]
    limits: LimitsTable,
    #[serde(default)]
    agent: ProgramTable,
    #[serde(default)]
    prover: ProgramTable,
    local: Option<LocalTable>,
    /// The clouds by their names.
    #[serde(flatten)]
    clouds: BTreeMap<String, AccountTable>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct LimitsTable {
    machines: Option<u32>,
    #[serde(deserialize_with = "written")]
    hourly: Option<MicroUsd>,
    #[serde(deserialize_with = "written")]
    life: Option<Millis>,
    #[serde(deserialize_with = "written")]
    patience: Option<Millis>,
    #[serde(deserialize_with = "written")]
    idle: Option<Millis>,
    margin_percent: Option<i64>,
    share_percent: Option<i64>,
    #[serde(deserialize_with = "written")]
    loss: Option<MicroUsd>,
    unused: Option<u32>,
    rests: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ProgramTable {
    url: String,
    sha256: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LocalTable {
    dir: PathBuf,
    #[serde(default)]
    drain: bool,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct AccountTable {
    key_file: Option<PathBuf>,
    key_id: String,
    image: String,
    ssh_key: String,
    base_url: Option<String>,
    drain: bool,
}

/// An amount, as people write it.
fn written<'de, D: Deserializer<'de>, T: FromStr>(deserializer: D) -> Result<Option<T>, D::Error>
where
    T::Err: std::fmt::Display,
{
    String::deserialize(deserializer)?.parse().map(Some).map_err(de::Error::custom)
}

impl Clouds {
    /// Reads the file. `variable` reads the environment.
    ///
    /// # Errors
    /// What is wrong with it, or with a file that it names.
    pub fn read(path: &Path, variable: &dyn Fn(&str) -> Option<String>) -> anyhow::Result<Self> {
        let shown = path.display();
        let text = fs::read_to_string(path).with_context(|| format!("read the clouds in {shown}"))?;
        Self::parse(&text, path.parent().unwrap_or(Path::new("")), variable)
            .with_context(|| format!("understand the clouds in {shown}"))
    }

    /// Reads its text; files are relative to `dir`.
    ///
    /// # Errors
    /// As [`Clouds::read`].
    pub fn parse(text: &str, dir: &Path, variable: &dyn Fn(&str) -> Option<String>) -> anyhow::Result<Self> {
        // Without the line at fault, which may hold a key that does not belong there.
        let file: File = toml::from_str(text).map_err(|error| anyhow::anyhow!("{}", error.message()))?;
        let (mut accounts, mut drained) = (Vec::new(), BTreeSet::new());
        if let Some(local) = file.local {
            drained.extend(local.drain.then_some(Cloud::Local));
            accounts.push((Cloud::Local, local.settings(dir)));
        }
        for (name, table) in file.clouds {
            let names = Cloud::ALL.map(Cloud::name).join(", ");
            let cloud = Cloud::ALL
                .into_iter()
                .find(|cloud| cloud.name() == name)
                .with_context(|| format!("[{name}]: there is no such cloud; there are {names}"))?;
            let key = key(cloud, &table, dir, variable)?;
            drained.extend(table.drain.then_some(cloud));
            let AccountTable { key_id, image, ssh_key, base_url, .. } = table;
            accounts.push((cloud, Settings { base_url, key_id, key, image, ssh_key }));
        }
        let market = file.market.map(|market| MarketTerms { hotkey: dir.join(&market.hotkey), ..market });
        let programs = Programs { agent: file.agent.into(), prover: file.prover.into() };
        for (name, program) in [("agent", &programs.agent), ("prover", &programs.prover)] {
            program.check().map_err(|problem| anyhow::anyhow!("[{name}]: {problem}"))?;
        }
        Ok(Self { market, limits: file.limits.limits()?, models: Models::new(), programs, drained, accounts })
    }
}

/// The key of an account: from its file, or else from the environment.
fn key(
    cloud: Cloud,
    table: &AccountTable,
    dir: &Path,
    variable: &dyn Fn(&str) -> Option<String>,
) -> anyhow::Result<Secret> {
    let name = format!("NAVE_CLOUD_{}_KEY", cloud.name().to_uppercase());
    let key = match &table.key_file {
        Some(file) => {
            let file = dir.join(file);
            fs::read_to_string(&file).with_context(|| format!("read the key in {}", file.display()))?
        }
        None => variable(&name).with_context(|| format!("[{cloud}]: give key_file or set {name}"))?,
    };
    anyhow::ensure!(!key.trim().is_empty(), "[{cloud}]: its key is empty");
    Ok(Secret::new(key.trim()))
}

impl LocalTable {
    fn settings(self, dir: &Path) -> Settings {
        let nothing = String::new;
        Settings {
            base_url: Some(dir.join(self.dir).to_string_lossy().into_owned()),
            key_id: nothing(),
            key: Secret::new(""),
            image: nothing(),
            ssh_key: nothing(),
        }
    }
}

impl From<ProgramTable> for Program {
    fn from(table: ProgramTable) -> Self {
        Self { url: table.url, sha256: table.sha256 }
    }
}

impl LimitsTable {
    fn limits(self) -> anyhow::Result<Limits> {
        let usual = Limits::default();
        let margin_percent = self.margin_percent.unwrap_or(usual.margin_percent);
        anyhow::ensure!(
            (0..=MARGIN_PERCENT_MAX).contains(&margin_percent),
            "[limits]: margin_percent is not between 0 and {MARGIN_PERCENT_MAX}"
        );
        let share_percent = self.share_percent.unwrap_or(usual.share_percent);
        anyhow::ensure!(
            (0..=100).contains(&share_percent),
            "[limits]: share_percent is not between 0 and 100"
        );
        let life = self.life.unwrap_or(usual.life);
        anyhow::ensure!(life.0 >= Limits::LIFE_MIN.0, "[limits]: life is less than {}", Limits::LIFE_MIN);
        Ok(Limits {
            machines: self.machines.unwrap_or(usual.machines),
            hourly: self.hourly.unwrap_or(usual.hourly),
            life,
            patience: self.patience.unwrap_or(usual.patience),
            idle: self.idle.unwrap_or(usual.idle),
            margin_percent,
            share_percent,
            loss: self.loss.unwrap_or(usual.loss),
            unused: self.unused.unwrap_or(usual.unused),
            rests: self.rests.unwrap_or(usual.rests),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> anyhow::Result<Clouds> {
        let variable = |name: &str| (name == "NAVE_CLOUD_LAMBDA_KEY").then(|| "sk-in-environment".to_owned());
        Clouds::parse(text, Path::new("/etc/nave"), &variable)
    }

    #[test]
    fn it_says_what_to_rent_where_and_on_which_terms() {
        let text = r#"
            [market]
            url = "https://market.example"
            market_key = "ab"
            hotkey = "cloud.hotkey"
            [limits]
            machines = 2
            hourly = "12.50"
            life = "6h"
            loss = "7.50"
            unused = 1
            [lambda]
            ssh_key = "ops"
            [local]
            dir = "clouds"
        "#;
        let clouds = parse(text).expect("fine");
        let market = clouds.market.expect("a market");
        assert_eq!(market.hotkey, Path::new("/etc/nave/cloud.hotkey"));
        assert_eq!((clouds.limits.machines, clouds.limits.hourly), (2, MicroUsd(12_500_000)));
        assert_eq!((clouds.limits.life, clouds.limits.patience), (Millis(21_600_000), Millis(60_000)));
        assert_eq!((clouds.limits.loss, clouds.limits.unused), (MicroUsd(7_500_000), 1));
        let [(Cloud::Local, local), (Cloud::Lambda, lambda)] = &clouds.accounts[..] else {
            panic!("two accounts");
        };
        assert_eq!(local.base_url.as_deref(), Some("/etc/nave/clouds"));
        assert_eq!(lambda.key.reveal(), "sk-in-environment");
        assert!(clouds.drained.is_empty());
    }

    #[test]
    fn a_cloud_that_is_to_be_taken_out_is_drained_first() {
        let clouds =
            parse("[lambda]\nssh_key = \"ops\"\ndrain = true\n[local]\ndir = \"clouds\"").expect("fine");
        assert_eq!(clouds.drained, BTreeSet::from([Cloud::Lambda]));
        let clouds = parse("[local]\ndir = \"clouds\"\ndrain = true").expect("fine");
        assert_eq!((clouds.drained, clouds.accounts.len()), (BTreeSet::from([Cloud::Local]), 1));
    }

    #[test]
    fn nothing_written_rents_nothing() {
        let clouds = parse("").expect("fine");
        assert!(clouds.market.is_none() && clouds.accounts.is_empty());
    }

    #[test]
    fn a_key_is_not_printed_even_where_it_does_not_belong() {
        let clouds = parse("[lambda]").expect("fine");
        assert!(!format!("{clouds:?}").contains("sk-in-environment"));
        let error = parse("[lambda]\nkey = \"sk-in-file\"").expect_err("an unknown field");
        assert!(!format!("{error:#} {error:?}").contains("sk-in-file"), "{error:?}");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cases = [
            ("[moon]", "no such cloud"),
            ("[verda]", "NAVE_CLOUD_VERDA_KEY"),
            ("[lambda]\nkey = \"x\"", "key"),
            ("[limits]\nlife = \"1m\"", "life"),
            ("[limits]\nhourly = \"much\"", "dollars"),
            ("[limits]\nloss = \"-1\"", "dollars"),
            ("[limits]\nmargin_percent = -1", "margin_percent"),
            ("[limits]\nshare_percent = 101", "share_percent"),
            ("[agent]\nurl = \"https://x\"", "sha256"),
        ];
        for (text, words) in cases {
            let error = parse(text).expect_err(text);
            assert!(format!("{error:#}").contains(words), "{text}: {error:#}");
        }
    }
}
