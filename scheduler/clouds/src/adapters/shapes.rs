//! What the clouds' shapes have in common.

use nave_domain::{Bytes, MicroUsd, MilliCpu, Timestamp};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use crate::{
    classes::vram_of,
    error::CloudError,
    http::malformed,
    money::{thousandths, whole},
    provider::{Availability, CloudId, CloudOffer, Machine, MachineState},
};

/// The pieces of a list as the cloud wrote them.
pub type Pieces = Vec<Box<RawValue>>;

/// A number, or a number in a string, or nothing of use.
pub type Number = Option<Box<RawValue>>;

/// Reads those pieces that are what they should be: of offers, one that cannot be read is one less.
pub fn readable<T: DeserializeOwned>(pieces: &Pieces) -> impl Iterator<Item = (T, &str)> {
    pieces.iter().filter_map(|piece| Some((serde_json::from_str(piece.get()).ok()?, piece.get())))
}

/// Reads all pieces: a machine that cannot be read must not be taken for one that is gone.
///
/// # Errors
/// `Malformed` if there is one that cannot be read.
pub fn all<T: DeserializeOwned>(pieces: &Pieces) -> Result<Vec<T>, CloudError> {
    pieces.iter().map(|piece| serde_json::from_str(piece.get()).map_err(|_| malformed("a machine"))).collect()
}

/// An id that a cloud wrote as text or as a number.
///
/// # Errors
/// `Malformed` if it is neither, or holds what no id does.
pub fn id(raw: &RawValue) -> Result<CloudId, CloudError> {
    let text = raw.get();
    let text =
        if text.starts_with('"') { serde_json::from_str(text).unwrap_or_default() } else { text.to_owned() };
    if text == "null" {
        return Err(malformed("no id"));
    }
    CloudId::new(&text).ok_or_else(|| malformed("an id"))
}

/// A time in RFC 3339, with a zone or without.
pub fn time(text: Option<&str>) -> Option<Timestamp> {
    let text = text?;
    let read = |text: String| serde_json::from_value::<Timestamp>(text.into()).ok();
    read(text.to_owned()).or_else(|| read(format!("{}Z", text.replacen(' ', "T", 1))))
}

/// A count of things, zero where nothing is said.
pub fn count(number: &Number) -> u32 {
    number.as_deref().and_then(whole).and_then(|count| u32::try_from(count).ok()).unwrap_or(0)
}

/// Virtual CPUs, zero where nothing is said.
pub fn cpu(number: &Number) -> MilliCpu {
    MilliCpu(number.as_deref().and_then(thousandths).unwrap_or(0))
}

/// GiB, or what a cloud calls GB, as bytes; zero where nothing is said.
pub fn gib(number: &Number) -> Bytes {
    let thousandths = number.as_deref().and_then(thousandths).unwrap_or(0);
    Bytes(thousandths.checked_mul(Bytes::GIB).map_or(0, |bytes| bytes / 1_000))
}

/// The same, where a cloud does not always say it.
pub fn some_gib(number: &Number) -> Option<Bytes> {
    Some(gib(number)).filter(|bytes| *bytes > Bytes::ZERO)
}

/// Memory of each GPU where the cloud does not say it: what its name says, or else what all of its class have.
pub fn vram(model: &str, class: Option<&str>) -> Option<Bytes> {
    let all = CLASS_GIB.iter().find(|(name, _)| Some(*name) == class).map(|(_, gib)| Bytes(gib * Bytes::GIB));
    vram_of(model).or(all)
}

/// What each device of a class is called after, in GiB.
const CLASS_GIB: [(&str, i64); 17] = [
    ("a100-40", 40),
    ("a100-80", 80),
    ("h100-nvl", 94),
    ("h100-sxm", 80),
    ("h100-pcie", 80),
    ("h200", 141),
    ("b200", 180),
    ("b300", 268),
    ("l40s", 48),
    ("l4", 24),
    ("a10", 24),
    ("rtx-a6000", 48),
    ("rtx-3090", 24),
    ("rtx-4090", 24),
    ("rtx-5090", 32),
    ("v100-16", 16),
    ("v100-32", 32),
];

/// A price of several, unless that is more than fits.
pub fn times(price: MicroUsd, count: u32) -> Option<MicroUsd> {
    price.0.checked_mul(i64::from(count)).map(MicroUsd)
}

/// A machine, from what every cloud says in its own words.
pub fn machine(id: CloudId, name: Option<String>, state: MachineState) -> Machine {
    Machine { id, name: name.unwrap_or_default(), state, address: None, created_at: None, price: None }
}

/// A word that a cloud may leave out or null.
#[derive(Debug, Default, Deserialize)]
pub struct Named {
    /// Its name.
    #[serde(default)]
    pub name: Option<String>,
}

/// What is offered in each of the regions that have some left, or sold out where none has.
pub fn in_each(regions: &[Named], offer: CloudOffer) -> Vec<CloudOffer> {
    if regions.is_empty() {
        return vec![CloudOffer { availability: Availability::SoldOut, ..offer }];
    }
    let there =
        |region: &Named| CloudOffer { region: region.name.clone().unwrap_or_default(), ..offer.clone() };
    regions.iter().map(there).collect()
}

/// An address, unless it is a placeholder.
pub fn address(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty() && text.len() <= 255 && !text.chars().any(char::is_whitespace))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{baseline::price_list, classes::class_of};

    #[test]
    fn the_memory_of_a_gpu_is_what_its_name_says_or_what_its_class_has() {
        let gib = |model| vram(model, class_of(model, None)).map(|vram| vram.0 / Bytes::GIB);
        assert_eq!((gib("H100-80G-PCIe"), gib("A100 (40 GB SXM4)")), (Some(80), Some(40)));
        assert_eq!((gib("l40s"), gib("h100 nvl"), gib("L40")), (Some(48), Some(94), None));
    }

    #[test]
    fn every_class_that_clouds_are_known_to_have_has_a_memory() {
        for class in &price_list().class {
            let found = CLASS_GIB.iter().find(|(name, _)| *name == class.name).map(|(_, gib)| *gib);
            assert!(found.is_some() && class.vram_gib.is_none_or(|gib| Some(gib) == found), "{}", class.name);
        }
    }
}
