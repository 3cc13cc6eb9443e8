//! What the clouds' shapes have in common.

use nave_domain::{Bytes, MicroUsd, MilliCpu, Timestamp};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use crate::{
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
