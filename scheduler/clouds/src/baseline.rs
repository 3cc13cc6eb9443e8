//! What a device costs on demand in the clouds: what miners must beat. Pure.
//!
//! Per class and region it is the median of the three cheapest fresh quotes. It moves at most half a
//! percent in an epoch, so that no cloud's mistake and no one's trick moves the market. Where no cloud
//! can be asked it rests on a checked-in list of prices, and says so.

use std::{collections::BTreeMap, sync::OnceLock};

use nave_domain::{MicroUsd, Millis, Timestamp};
use serde::Deserialize;

use crate::{
    classes::Region,
    provider::{Availability, Cloud, CloudOffer},
};

/// The list as it is checked in.
const LIST: &str = include_str!("../prices.toml");
/// How many of the cheapest quotes count.
const CHEAPEST: usize = 3;
/// The most that a baseline moves in an epoch, in ten-thousandths.
const STEP_MAX: i64 = 50;
/// How old a quote may be to count.
pub const FRESH_MAX: Millis = Millis(3_600_000);

/// What a device costs somewhere, as one cloud says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloudQuote {
    /// The class of the device.
    pub class: String,
    /// Where; none where the cloud's word for it says nothing.
    pub region: Option<Region>,
    /// Who says so.
    pub cloud: Cloud,
    /// For one device and one hour.
    pub price: MicroUsd,
    /// When it was asked.
    pub fetched_at: Timestamp,
}

impl CloudQuote {
    /// What an offer says about prices: nothing when it has no class, no device, or cannot be had.
    #[must_use]
    pub fn of(offer: &CloudOffer) -> Option<Self> {
        let can_be_had = matches!(offer.availability, Availability::Available(_));
        Some(Self {
            class: offer.class.filter(|_| can_be_had)?.to_owned(),
            region: Region::of(&offer.region),
            cloud: offer.cloud,
            price: offer.price_each().filter(|price| *price > MicroUsd::ZERO)?,
            fetched_at: offer.fetched_at,
        })
    }
}

/// What a device of a class costs in a region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Baseline {
    /// For one device and one hour.
    pub price: MicroUsd,
    /// When the newest of what it rests on was asked.
    pub fetched_at: Timestamp,
    /// What it rests on.
    pub source: Source,
}

/// What a baseline rests on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Fresh quotes, of these clouds.
    Quotes(Vec<Cloud>),
    /// What it was before: there is no fresh quote.
    Before,
    /// The checked-in list of prices, which nobody has verified.
    List(&'static str),
}

/// Where a baseline is for: a region, or with none the world.
pub type Place = (String, Option<Region>);

/// The baselines of all classes and regions of `quotes`, `before` and the list, one epoch after `before`.
#[must_use]
pub fn baselines(
    before: &BTreeMap<Place, Baseline>,
    quotes: &[CloudQuote],
    now: Timestamp,
) -> BTreeMap<Place, Baseline> {
    let fresh = |quote: &&CloudQuote| quote.fetched_at <= now && now.since(quote.fetched_at) <= FRESH_MAX;
    let mut places: BTreeMap<Place, Vec<&CloudQuote>> = BTreeMap::new();
    for quote in quotes.iter().filter(fresh) {
        places.entry((quote.class.clone(), None)).or_default().push(quote);
        if quote.region.is_some() {
            places.entry((quote.class.clone(), quote.region)).or_default().push(quote);
        }
    }
    let mut found: BTreeMap<Place, Baseline> = BTreeMap::new();
    for (place, quotes) in places {
        let baseline = of_quotes(before.get(&place), &quotes, now);
        found.insert(place, baseline);
    }
    for (place, last) in before {
        let stale = || Baseline { source: kept(&last.source), ..last.clone() };
        found.entry(place.clone()).or_insert_with(stale);
    }
    for class in &price_list().class {
        let listed = || Baseline {
            price: class.price(),
            fetched_at: class.read_at(),
            source: Source::List(&class.source),
        };
        found.entry((class.name.clone(), None)).or_insert_with(listed);
    }
    found
}

/// Of the same list it still rests on the list, and on nothing fresh otherwise.
fn kept(source: &Source) -> Source {
    match source {
        Source::List(text) => Source::List(text),
        Source::Quotes(_) | Source::Before => Source::Before,
    }
}

/// The median of the three cheapest, as near as one epoch may bring it; `quotes` is not empty.
fn of_quotes(before: Option<&Baseline>, quotes: &[&CloudQuote], now: Timestamp) -> Baseline {
    let mut cheapest = quotes.to_vec();
    cheapest.sort_by_key(|quote| (quote.price, quote.cloud, quote.fetched_at));
    cheapest.truncate(CHEAPEST);
    // Of two it is the cheaper one, so that a single dear quote raises nothing.
    let median =
        cheapest.get((cheapest.len().saturating_sub(1)) / 2).map_or(MicroUsd::ZERO, |quote| quote.price);
    let price = match before {
        // A list price is no market price: the first quote replaces it.
        Some(Baseline { price, source: Source::Quotes(_) | Source::Before, .. }) => step(*price, median),
        Some(Baseline { source: Source::List(_), .. }) | None => median,
    };
    let mut clouds: Vec<Cloud> = cheapest.iter().map(|quote| quote.cloud).collect();
    clouds.sort_unstable();
    clouds.dedup();
    let fetched_at = cheapest.iter().map(|quote| quote.fetched_at).max().unwrap_or(now);
    Baseline { price, fetched_at, source: Source::Quotes(clouds) }
}

/// From one price towards another, by at most one epoch's step; by a micro-USD where that is more.
fn step(from: MicroUsd, to: MicroUsd) -> MicroUsd {
    let most = (from.0.saturating_mul(STEP_MAX) / 10_000).max(1);
    MicroUsd(to.0.clamp(from.0.saturating_sub(most), from.0.saturating_add(most)))
}

/// The list of prices, and by what words clouds name each class.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PriceList {
    /// All classes, those first that are recognised by more.
    pub class: Vec<Listed>,
}

/// A class with its price.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listed {
    /// The class in the catalogue.
    pub name: String,
    /// One of these words is in a cloud's name for it.
    pub model: Vec<String>,
    /// And one of these.
    #[serde(default)]
    pub form: Vec<String>,
    /// And it has this memory, in GiB.
    pub vram_gib: Option<i64>,
    /// Price in dollars for one device and one hour.
    usd: String,
    /// The day on which it was read.
    date: String,
    /// Where.
    pub source: String,
}

impl Listed {
    /// Price for one device and one hour.
    #[must_use]
    pub fn price(&self) -> MicroUsd {
        self.usd.parse().unwrap_or(MicroUsd::ZERO)
    }

    /// The beginning of the day on which it was read.
    #[must_use]
    pub fn read_at(&self) -> Timestamp {
        let text = format!("{}T00:00:00Z", self.date);
        serde_json::from_value(text.into()).unwrap_or(Timestamp(0))
    }
}

/// The list of prices as it is checked in.
#[must_use]
pub fn price_list() -> &'static PriceList {
    static LISTED: OnceLock<PriceList> = OnceLock::new();
    LISTED.get_or_init(|| toml::from_str(LIST).unwrap_or(PriceList { class: Vec::new() }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Timestamp = Timestamp(1_795_000_000_000);

    fn quote(cloud: Cloud, micro: i64, age: i64) -> CloudQuote {
        CloudQuote {
            class: "h100-sxm".to_owned(),
            region: Some(Region::Europe),
            cloud,
            price: MicroUsd(micro),
            fetched_at: Timestamp(NOW.0 - age),
        }
    }

    fn place() -> Place {
        ("h100-sxm".to_owned(), Some(Region::Europe))
    }

    fn only(price: i64) -> BTreeMap<Place, Baseline> {
        let baseline = Baseline { price: MicroUsd(price), fetched_at: NOW, source: Source::Before };
        BTreeMap::from([(place(), baseline)])
    }

    #[test]
    fn it_is_the_median_of_the_three_cheapest_fresh_quotes() {
        let quotes = [
            quote(Cloud::Verda, 9_000_000, 0),
            quote(Cloud::Lambda, 3_000_000, 60_000),
            quote(Cloud::Vast, 2_000_000, 1_000),
            quote(Cloud::Runpod, 2_500_000, 2_000),
            quote(Cloud::Massed, 1, FRESH_MAX.0 + 1),
            quote(Cloud::Massed, 1, -1),
        ];
        let found = baselines(&BTreeMap::new(), &quotes, NOW).remove(&place()).expect("quoted");
        assert_eq!(found.price, MicroUsd(2_500_000));
        assert_eq!(found.source, Source::Quotes(vec![Cloud::Lambda, Cloud::Runpod, Cloud::Vast]));
        assert_eq!(found.fetched_at, Timestamp(NOW.0 - 1_000));
    }

    #[test]
    fn it_moves_at_most_half_a_percent_in_an_epoch() {
        let up = baselines(&only(2_000_000), &[quote(Cloud::Vast, 9_000_000, 0)], NOW);
        assert_eq!(up[&place()].price, MicroUsd(2_010_000));
        let down = baselines(&only(2_000_000), &[quote(Cloud::Vast, 1, 0)], NOW);
        assert_eq!(down[&place()].price, MicroUsd(1_990_000));
        let near = baselines(&only(2_000_000), &[quote(Cloud::Vast, 2_000_001, 0)], NOW);
        assert_eq!(near[&place()].price, MicroUsd(2_000_001));
    }

    #[test]
    fn without_fresh_quotes_it_stays_and_says_so() {
        let stale = baselines(&only(2_000_000), &[quote(Cloud::Vast, 1, FRESH_MAX.0 + 1)], NOW);
        assert_eq!(stale[&place()].price, MicroUsd(2_000_000));
        assert_eq!(stale[&place()].source, Source::Before);
    }

    #[test]
    fn where_no_cloud_can_be_asked_it_is_the_list_and_the_first_quote_replaces_that() {
        let world = ("h100-sxm".to_owned(), None);
        let listed = baselines(&BTreeMap::new(), &[], NOW);
        assert!(matches!(&listed[&world].source, Source::List(text) if text.contains("unverified")));
        let again = baselines(&listed, &[], NOW);
        assert_eq!(again[&world], listed[&world]);
        let quoted = baselines(&listed, &[quote(Cloud::Vast, 1_000_000, 0)], NOW);
        assert_eq!(quoted[&world].price, MicroUsd(1_000_000));
    }

    #[test]
    fn the_list_can_be_read_and_every_price_has_its_day_and_its_doubts() {
        let catalogue = include_str!("../../../verifier/rules/catalogue.toml");
        assert!(price_list().class.len() >= 16);
        for class in &price_list().class {
            assert!(
                class.price() > MicroUsd(100_000) && class.price() < MicroUsd(20_000_000),
                "{}",
                class.name
            );
            assert!(class.read_at() > Timestamp(1_767_225_600_000), "{}", class.name);
            assert!(class.source.contains("unverified"), "{}", class.name);
            assert!(catalogue.contains(&format!("name = \"{}\"", class.name)), "{}", class.name);
        }
    }

    proptest! {
        #[test]
        fn no_quotes_move_it_further_than_its_step(
            from in 1..20_000_000_i64, prices in prop::collection::vec(1..1_000_000_000_i64, 1..8),
        ) {
            let quotes: Vec<CloudQuote> = prices.iter().map(|price| quote(Cloud::Vast, *price, 0)).collect();
            let moved = baselines(&only(from), &quotes, NOW)[&place()].price.0;
            prop_assert!((moved - from).abs() <= (from * 50 / 10_000).max(1));
            prop_assert!(moved >= from.min(*prices.iter().min().expect("some")));
        }
    }
}
