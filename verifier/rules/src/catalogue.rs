//! The classes of devices: what each must do in a test, and how large its test is.
//!
//! What is known of them is data, checked in as `verifier/rules/catalogue.toml`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::OnceLock,
};

use nave_domain::host::is_slice;
use serde::Deserialize;

/// The catalogue as it is checked in.
pub(crate) const TEXT: &str = include_str!("../catalogue.toml");

/// All classes, and what counts as a measured one.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Catalogue {
    /// Measurements that a band needs before it gives a class or refuses anybody.
    pub samples_min: u32,
    /// Where figures come from, by the word that stands beside them.
    pub provenance: BTreeMap<String, String>,
    /// The test of a device whose model is in no class.
    pub unknown: Unknown,
    /// The classes.
    #[serde(rename = "class")]
    pub classes: Vec<Class>,
}

/// Devices that do the same.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Class {
    /// For programs: lower case, digits and hyphens.
    pub name: String,
    /// For people.
    pub title: String,
    /// What drivers call such devices: a hint for the size of the test, and what a claim is.
    pub models: Vec<String>,
    /// Which kernel its bands are for; another one does more or less.
    pub kernel: String,
    /// Whether it is the software device.
    #[serde(default)]
    pub simulated: bool,
    /// Why no test here can give it a class.
    pub unrated: Option<String>,
    /// What its maker says; a simulated device has no maker.
    pub datasheet: Option<Datasheet>,
    /// How large its test is.
    pub test: Test,
    /// What such devices do.
    pub bands: BTreeMap<Measure, Band>,
}

/// What a device's maker says of it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Datasheet {
    /// 10¹² dense operations on signed bytes in a second; none where it has no such units.
    pub int8_tops: Option<u32>,
    /// 10⁹ bytes of its memory in a second.
    pub gbyte_per_s: u32,
    /// Memory, in 2²⁰ bytes.
    pub vram_mib: u32,
    /// Where that is from.
    pub source: String,
}

/// Sizes of a test; what depends on the memory that is claimed follows from that.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Test {
    /// The products; those of unknown models where there are none, which its class is not known by.
    pub gemm: Option<Product>,
    /// Compressions for a block of the fill where nothing is spilled.
    pub depth: u32,
    /// Chains of dependent reads.
    pub lanes: u32,
    /// Reads in each.
    pub reads: u32,
    /// Passes over the whole fill.
    pub passes: u32,
    /// Most that is filled, in bytes.
    pub fill_max: Option<u64>,
    /// Most that is copied to the host's memory, in bytes.
    pub spill_max: Option<u64>,
    /// Most chunks of passes that are computed again, twice as many lanes, and half as many of a copy.
    pub chunk_samples_max: Option<u32>,
}

/// Sizes of products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Product {
    /// Rows.
    pub m: u32,
    /// Columns.
    pub n: u32,
    /// Length of the sums.
    pub k: u32,
    /// How many.
    pub rounds: u32,
}

/// The test of a device that nobody has heard of.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unknown {
    /// The products.
    pub gemm: Product,
    /// Compressions for a block of the fill.
    pub depth: u32,
    /// Chains of dependent reads.
    pub lanes: u32,
    /// Reads in each.
    pub reads: u32,
    /// Passes over the whole fill.
    pub passes: u32,
    /// The slowest that is waited for.
    pub slowest: BTreeMap<Measure, u64>,
}

/// What a test measures of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Operations on signed bytes in a second.
    OpsPerS,
    /// Bytes of its memory in a second.
    BytesPerS,
    /// Dependent reads of 32 bytes in a second.
    ReadsPerS,
    /// Bytes in a second from the host's memory.
    ReturnBytesPerS,
    /// Compressions of SHA-256 in a second.
    HashesPerS,
    /// Bytes of memory that were filled and stayed.
    Vram,
}

/// What devices of a class do, all but one in a thousand.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Band {
    /// The least.
    pub low: u64,
    /// The most, where more would be another class.
    pub high: Option<u64>,
    /// The middle of what was measured.
    pub median: Option<u64>,
    /// How many measurements that is from; none where it was calculated.
    pub samples: u32,
    /// Whether it is only recorded who misses it.
    #[serde(default)]
    pub shadow: bool,
    /// Where it is from: a word of the catalogue's provenance.
    pub provenance: String,
    /// What was measured, in thousandths of the median: the least, 19 steps of a twentieth of all, the most.
    #[serde(default)]
    pub spread: Vec<u32>,
}

impl Catalogue {
    /// The catalogue of this program.
    ///
    /// # Errors
    /// What is wrong with it; a test reads it.
    pub fn embedded() -> Result<&'static Self, &'static str> {
        static CATALOGUE: OnceLock<Result<Catalogue, String>> = OnceLock::new();
        CATALOGUE.get_or_init(|| Self::parse(TEXT)).as_ref().map_err(String::as_str)
    }

    /// Reads a catalogue.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let catalogue: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        catalogue.check()?;
        Ok(catalogue)
    }

    fn check(&self) -> Result<(), String> {
        let (mut names, mut models) = (BTreeSet::new(), BTreeSet::new());
        for class in &self.classes {
            let of = |why: String| format!("{}: {why}", class.name);
            if !names.insert(&class.name) {
                return Err(of("stands twice".into()));
            }
            if let Some(model) = class.models.iter().find(|model| !models.insert(*model)) {
                return Err(of(format!("{model} is the model of another class, too")));
            }
            class.check().map_err(of)?;
            let sources = class.bands.values().map(|band| &band.provenance);
            let mut sources = sources.chain(class.datasheet.iter().map(|datasheet| &datasheet.source));
            if let Some(source) = sources.find(|source| !self.provenance.contains_key(*source)) {
                return Err(of(format!("the provenance {source} says nothing")));
            }
        }
        Ok(())
    }

    /// The class whose devices are called `model`.
    #[must_use]
    pub fn called(&self, model: &str, simulated: bool) -> Option<&Class> {
        let mut classes = self.classes.iter().filter(|class| class.simulated == simulated);
        classes.find(|class| class.models.iter().any(|known| known == model))
    }

    /// The class of that name.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<&Class> {
        self.classes.iter().find(|class| class.name == name)
    }

    /// Whether enough devices were measured for a band to count.
    #[must_use]
    pub fn is_measured(&self, band: &Band) -> bool {
        band.samples >= self.samples_min.max(1)
    }

    /// Whether all that a class is known by was measured.
    #[must_use]
    pub fn is_calibrated(&self, class: &Class) -> bool {
        class.unrated.is_none() && class.bands.values().all(|band| self.is_measured(band))
    }

    /// Where a figure is from, for people.
    #[must_use]
    pub fn source(&self, band: &Band) -> &str {
        self.provenance.get(&band.provenance).map_or("", String::as_str)
    }

    /// The most compressions that any device does in a second.
    #[must_use]
    pub fn hashes_per_s_max(&self) -> u64 {
        self.classes.iter().map(Class::hashes_per_s_max).max().unwrap_or(0)
    }
}

impl Class {
    /// Whether its devices are slices of others.
    #[must_use]
    pub fn is_of_slices(&self) -> bool {
        self.models.iter().any(|model| is_slice(model))
    }

    fn check(&self) -> Result<(), String> {
        if self.models.is_empty() || self.title.is_empty() {
            return Err("nobody can claim it".into());
        }
        if self.datasheet.is_none() != self.simulated {
            return Err("a device has a datasheet unless it is simulated".into());
        }
        for measure in Measure::ALL {
            let needed = measure != Measure::OpsPerS || self.test.gemm.is_some();
            let Some(band) = self.bands.get(&measure) else {
                if needed {
                    return Err(format!("there is no band for {measure}"));
                }
                continue;
            };
            band.check().map_err(|why| format!("{measure}: {why}"))?;
        }
        if self.unrated.is_none() == self.test.gemm.is_none() {
            return Err("what does not multiply has no class, and only that".into());
        }
        Ok(())
    }

    /// The most compressions that such a device does in a second.
    #[must_use]
    pub fn hashes_per_s_max(&self) -> u64 {
        self.bands.get(&Measure::HashesPerS).map_or(0, |band| band.high.unwrap_or(band.low))
    }
}

impl Band {
    fn check(&self) -> Result<(), &'static str> {
        let ascends = self.spread.windows(2).all(|pair| pair[0] <= pair[1]);
        let rules = [
            (self.low > 0, "it starts at nothing"),
            (self.high.is_none_or(|high| high >= self.low), "it ends before it starts"),
            (self.spread.is_empty() || self.spread.len() == SPREAD, "its spread has another length"),
            (ascends, "its spread does not ascend"),
            (self.samples > 0 || self.spread.is_empty(), "nothing was measured that could spread"),
            (self.median.is_some() != self.spread.is_empty(), "a spread is of a median"),
        ];
        rules.iter().find(|(holds, _)| !holds).map_or(Ok(()), |(_, why)| Err(*why))
    }

    /// Whether something lies in it.
    #[must_use]
    pub fn holds(&self, amount: u64) -> bool {
        amount >= self.low && self.high.is_none_or(|high| amount <= high)
    }
}

/// Numbers in a band's spread.
pub const SPREAD: usize = 21;

impl Measure {
    /// All measures.
    pub const ALL: [Self; 6] = [
        Self::OpsPerS,
        Self::BytesPerS,
        Self::ReadsPerS,
        Self::ReturnBytesPerS,
        Self::HashesPerS,
        Self::Vram,
    ];

    /// The name in the catalogue.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OpsPerS => "ops_per_s",
            Self::BytesPerS => "bytes_per_s",
            Self::ReadsPerS => "reads_per_s",
            Self::ReturnBytesPerS => "return_bytes_per_s",
            Self::HashesPerS => "hashes_per_s",
            Self::Vram => "vram",
        }
    }

    /// The unit in which people read an amount, and how much that is.
    fn unit(self, amount: u64) -> (&'static str, u64) {
        let units: &[(&str, u64)] = match self {
            Self::OpsPerS => &[
                ("TOPS", 1_000_000_000_000),
                ("GOPS", 1_000_000_000),
                ("MOPS", 1_000_000),
                ("operations/s", 1),
            ],
            Self::BytesPerS | Self::ReturnBytesPerS => {
                &[("GB/s", 1_000_000_000), ("MB/s", 1_000_000), ("kB/s", 1_000), ("bytes/s", 1)]
            }
            Self::ReadsPerS => {
                &[("billion reads/s", 1_000_000_000), ("million reads/s", 1_000_000), ("reads/s", 1)]
            }
            Self::HashesPerS => {
                &[("billion hashes/s", 1_000_000_000), ("million hashes/s", 1_000_000), ("hashes/s", 1)]
            }
            Self::Vram => &[("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("bytes", 1)],
        };
        units.iter().copied().find(|(_, size)| amount >= *size).unwrap_or(units[units.len() - 1])
    }

    /// An amount for people, in the unit that suits `like` unless that is too large; a tenth is
    /// shown below 100.
    #[must_use]
    pub fn say(self, amount: u64, like: u64) -> String {
        let (_, size) = self.unit(like);
        let (unit, size) = self.unit(if amount < size / 10 { amount } else { like });
        format!("{} {unit}", tenths(amount, size))
    }

    /// A band for people.
    #[must_use]
    pub fn say_band(self, band: &Band) -> String {
        let (unit, size) = self.unit(band.low);
        let low = tenths(band.low, size);
        match band.high {
            Some(high) => format!("{low} to {} {unit}", tenths(high, size)),
            None => format!("at least {low} {unit}"),
        }
    }
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// `240`, `2.5`: rounded down.
fn tenths(amount: u64, size: u64) -> String {
    let tenths = u128::from(amount) * 10 / u128::from(size.max(1));
    match (tenths / 10, tenths % 10) {
        (whole, 0) => whole.to_string(),
        (whole, _) if whole >= 100 => whole.to_string(),
        (whole, tenth) => format!("{whole}.{tenth}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checked_in_catalogue_can_be_read() {
        assert_eq!(Catalogue::embedded().map(|catalogue| catalogue.classes.len()), Ok(19));
    }

    #[test]
    fn a_catalogue_with_a_word_that_nobody_knows_is_refused() {
        let with = |from: &str, to: &str| Catalogue::parse(&TEXT.replacen(from, to, 1));
        assert!(with("samples_min", "samples_most").is_err());
        assert!(with("kernel = ", "colour = \"green\"\nkernel = ").is_err());
        assert!(with("provenance = \"calculated_ops\"", "provenance = \"hearsay\"").is_err());
        assert!(with("name = \"a100-40\"", "name = \"a100-80\"").is_err());
        assert!(with("\"A100-SXM4-40GB\"", "\"NVIDIA H200\"").is_err());
        assert!(with("low = 350_000_000_000_000", "low = 950_000_000_000_000").is_err());
    }

    #[test]
    fn amounts_are_said_in_the_unit_of_the_band() {
        let band = |low, high| Band {
            low,
            high,
            median: None,
            samples: 1,
            shadow: false,
            provenance: String::new(),
            spread: Vec::new(),
        };
        let tops = 1_000_000_000_000;
        assert_eq!(Measure::OpsPerS.say_band(&band(890 * tops, Some(1390 * tops))), "890 to 1390 TOPS");
        assert_eq!(Measure::OpsPerS.say(tops / 4, 890 * tops), "0.2 TOPS");
        assert_eq!(Measure::ReadsPerS.say_band(&band(2_400_000_000, None)), "at least 2.4 billion reads/s");
        assert_eq!(Measure::Vram.say(0, 0), "0 bytes");
    }
}
