//! What a device costs on demand in the clouds: what miners must beat. Pure.
//!
//! Per class and area it is the median of what the three cheapest clouds ask, each with its cheapest fresh
//! quote. It moves at most half a percent in an epoch, from the first one on, so that no cloud's mistake and no
//! one's trick moves the market. Who resells counts as the cloud whose machine it is, and what strangers ask
//! counts nowhere: a miner would set the price that its own is compared with. Where no cloud can be asked it
//! rests on a checked-in list of prices, and says so.

use std::{collections::BTreeMap, sync::OnceLock};

use nave_domain::{MicroUsd, Millis, Timestamp, region::Area};
use serde::Deserialize;

use crate::provider::{Availability, Cloud, CloudOffer};

/// The list as it is checked in.
const LIST: &str = include_str!("../prices.toml");
/// How many of the cheapest clouds count.
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
    pub area: Option<Area>,
    /// Whose machine it is, whoever sells it.
    pub cloud: String,
    /// For one device and one hour.
    pub price: MicroUsd,
    /// When it was asked.
    pub fetched_at: Timestamp,
}

impl CloudQuote {
    /// What an offer says about prices: nothing when it has no class, no device, cannot be had, or is a stranger's.
    #[must_use]
    pub fn of(offer: &CloudOffer) -> Option<Self> {
        let can_be_had = matches!(offer.availability, Availability::Available(_));
        Some(Self {
            class: offer.class.filter(|_| can_be_had)?.to_owned(),
            area: Area::of(&offer.region),
            cloud: whose(offer)?,
            price: offer.price_each().filter(|price| *price > MicroUsd::ZERO)?,
            fetched_at: offer.fetched_at,
        })
    }
}

/// Whose machine is offered; none of a stranger's.
fn whose(offer: &CloudOffer) -> Option<String> {
    let resold = if offer.cloud == Cloud::Shadeform { offer.id.split_once('/') } else { None };
    let Some((name, _)) = resold else {
        return offer.cloud.sets_prices().then(|| offer.cloud.name().to_owned());
    };
    let name: String =
        name.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase();
    let cloud = match name.as_str() {
        "lambdalabs" => Cloud::Lambda,
        "massedcompute" => Cloud::Massed,
        "datacrunch" => Cloud::Verda,
        "vastai" => Cloud::Vast,
        known => match Cloud::named(known) {
            Some(cloud) => cloud,
            None => return Some(name).filter(|name| !name.is_empty()),
        },
    };
    cloud.sets_prices().then(|| cloud.name().to_owned())
}

/// What a device of a class costs in an area.
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
    /// Quotes of these clouds; they were fresh when it was made.
    Quotes(Vec<String>),
    /// The checked-in list of prices, which nobody has verified.
    List(&'static str),
}

/// Where a baseline is for: an area, or with none the world.
pub type Place = (String, Option<Area>);

/// What baselines were.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Past {
    /// The newest from before this epoch.
    pub before: BTreeMap<Place, Baseline>,
    /// What was said in this epoch already.
    pub now: BTreeMap<Place, Baseline>,
}

impl Past {
    fn is_known(&self, place: &Place) -> bool {
        self.now.contains_key(place) || self.before.contains_key(place)
    }

    /// Where a baseline comes from in this epoch: what it was before, for an area that is new what it was in the
    /// world, and at the very first the list price.
    fn origin(&self, place: &Place) -> Option<MicroUsd> {
        let quoted = |place: &Place| match self.before.get(place)? {
            Baseline { price, source: Source::Quotes(_), .. } => Some(*price),
            Baseline { source: Source::List(_), .. } => None,
        };
        let listed = || price_list().class.iter().find(|listed| listed.name == place.0).map(Listed::price);
        quoted(place).or_else(|| quoted(&(place.0.clone(), None))).or_else(listed)
    }
}

/// The baselines that are new: of all that is freshly quoted, and those of the list where nothing is known.
#[must_use]
pub fn baselines(past: &Past, quotes: &[CloudQuote], now: Timestamp) -> BTreeMap<Place, Baseline> {
    let fresh = |quote: &&CloudQuote| quote.fetched_at <= now && now.since(quote.fetched_at) <= FRESH_MAX;
    let mut places: BTreeMap<Place, Vec<&CloudQuote>> = BTreeMap::new();
    for quote in quotes.iter().filter(fresh) {
        places.entry((quote.class.clone(), None)).or_default().push(quote);
        if quote.area.is_some() {
            places.entry((quote.class.clone(), quote.area)).or_default().push(quote);
        }
    }
    let mut found = BTreeMap::new();
    for (place, quotes) in places {
        if let (Some(origin), Some(quoted)) = (past.origin(&place), of_quotes(&quotes)) {
            found.insert(place, Baseline { price: step(origin, quoted.price), ..quoted });
        }
    }
    for class in &price_list().class {
        let world = (class.name.clone(), None);
        if !past.is_known(&world) {
            found.entry(world).or_insert_with(|| Baseline {
                price: class.price(),
                fetched_at: class.read_at(),
                source: Source::List(&class.source),
            });
        }
    }
    found
}

/// The median of the three cheapest clouds; none where there is no quote.
fn of_quotes(quotes: &[&CloudQuote]) -> Option<Baseline> {
    let mut clouds: BTreeMap<&str, &CloudQuote> = BTreeMap::new();
    for quote in quotes {
        let cheapest = clouds.entry(&quote.cloud).or_insert(quote);
        if quote.price < cheapest.price {
            *cheapest = quote;
        }
    }
    let mut cheapest: Vec<&CloudQuote> = clouds.into_values().collect();
    cheapest.sort_by_key(|quote| (quote.price, &quote.cloud));
    cheapest.truncate(CHEAPEST);
    // Of two it is the cheaper one, so that a single dear quote raises nothing.
    let price = cheapest.get(cheapest.len().checked_sub(1)? / 2)?.price;
    let fetched_at = cheapest.iter().map(|quote| quote.fetched_at).max()?;
    let mut names: Vec<String> = cheapest.iter().map(|quote| quote.cloud.clone()).collect();
    names.sort_unstable();
    Some(Baseline { price, fetched_at, source: Source::Quotes(names) })
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
    const CLASS: &str = "h100-sxm";

    fn quote(cloud: Cloud, micro: i64, age: i64) -> CloudQuote {
        CloudQuote {
            class: CLASS.to_owned(),
            area: Some(Area::Europe),
            cloud: cloud.name().to_owned(),
            price: MicroUsd(micro),
            fetched_at: Timestamp(NOW.0 - age),
        }
    }

    fn place() -> Place {
        (CLASS.to_owned(), Some(Area::Europe))
    }

    fn world() -> Place {
        (CLASS.to_owned(), None)
    }

    fn at(price: i64) -> Baseline {
        let source = Source::Quotes(vec!["lambda".to_owned()]);
        Baseline { price: MicroUsd(price), fetched_at: NOW, source }
    }

    /// An epoch before which it was so much.
    fn after(price: i64) -> Past {
        Past { before: [(place(), at(price))].into(), now: BTreeMap::new() }
    }

    fn list_price() -> i64 {
        price_list().class.iter().find(|class| class.name == CLASS).expect("listed").price().0
    }

    /// The price that quotes bring it to after so many epochs.
    fn settled(quotes: &[CloudQuote], epochs: u32) -> MicroUsd {
        let mut past = Past::default();
        for _ in 0..epochs {
            past.before.extend(baselines(&past, quotes, NOW));
        }
        past.before[&place()].price
    }

    #[test]
    fn it_is_the_median_of_the_three_cheapest_clouds_with_fresh_quotes() {
        let quotes = [
            quote(Cloud::Verda, 9_000_000, 0),
            quote(Cloud::Lambda, 3_000_000, 60_000),
            quote(Cloud::Hyperstack, 2_000_000, 1_000),
            quote(Cloud::Runpod, 2_500_000, 2_000),
            quote(Cloud::Massed, 1, FRESH_MAX.0 + 1),
            quote(Cloud::Massed, 1, -1),
        ];
        let found = baselines(&after(2_500_000), &quotes, NOW).remove(&place()).expect("quoted");
        assert_eq!(found.price, MicroUsd(2_500_000));
        let clouds = ["hyperstack", "lambda", "runpod"].map(str::to_owned);
        assert_eq!(found.source, Source::Quotes(clouds.into()));
        assert_eq!(found.fetched_at, Timestamp(NOW.0 - 1_000));
    }

    #[test]
    fn a_cloud_counts_once_however_many_quotes_it_has() {
        let four = [1, 2, 4, 8].map(|_| quote(Cloud::Runpod, 1_000_000, 0));
        let others = [quote(Cloud::Lambda, 3_000_000, 0), quote(Cloud::Verda, 4_000_000, 0)];
        assert_eq!(settled(&[&four[..], &others].concat(), 1_000), MicroUsd(3_000_000));
    }

    #[test]
    fn a_reseller_counts_as_the_cloud_whose_machine_it_is_and_strangers_not_at_all() {
        let offer = |cloud, id: &str| CloudOffer {
            cloud,
            id: id.to_owned(),
            region: "FIN-01".to_owned(),
            model: String::new(),
            class: Some(CLASS),
            devices: 1,
            vram_each: None,
            cpu: nave_domain::MilliCpu(0),
            memory: nave_domain::Bytes(0),
            disk: nave_domain::Bytes(0),
            price: MicroUsd(1),
            billing: cloud.terms().billing,
            availability: Availability::Available(None),
            fetched_at: NOW,
            raw: String::new(),
        };
        let whose = |cloud, id| CloudQuote::of(&offer(cloud, id)).map(|quote| quote.cloud);
        for (id, cloud) in [
            ("lambdalabs/a", "lambda"),
            ("massedcompute/a", "massed"),
            ("datacrunch/a", "verda"),
            ("Nebius/a", "nebius"),
        ] {
            assert_eq!(whose(Cloud::Shadeform, id).as_deref(), Some(cloud), "{id}");
        }
        assert_eq!(whose(Cloud::Lambda, "gpu_1x").as_deref(), Some("lambda"));
        for stranger in
            [offer(Cloud::Vast, "1"), offer(Cloud::Shadeform, "vast/1"), offer(Cloud::Local, "small")]
        {
            assert_eq!(CloudQuote::of(&stranger), None, "{stranger:?}");
        }
    }

    #[test]
    fn it_moves_at_most_half_a_percent_in_an_epoch() {
        let up = baselines(&after(2_000_000), &[quote(Cloud::Lambda, 9_000_000, 0)], NOW);
        assert_eq!(up[&place()].price, MicroUsd(2_010_000));
        let down = baselines(&after(2_000_000), &[quote(Cloud::Lambda, 1, 0)], NOW);
        assert_eq!(down[&place()].price, MicroUsd(1_990_000));
        let near = baselines(&after(2_000_000), &[quote(Cloud::Lambda, 2_000_001, 0)], NOW);
        assert_eq!(near[&place()].price, MicroUsd(2_000_001));
    }

    #[test]
    fn the_first_quotes_move_it_a_step_from_the_list_however_often_they_come() {
        let mut past = Past::default();
        let listed = baselines(&past, &[], NOW);
        assert!(matches!(&listed[&world()].source, Source::List(text) if text.contains("unverified")));
        assert_eq!(listed[&world()].price, MicroUsd(list_price()));
        past.now = listed.clone();
        let step = MicroUsd(list_price() - list_price() * STEP_MAX / 10_000);
        for _ in 0..3 {
            let quoted = baselines(&past, &[quote(Cloud::Lambda, 1, 0)], NOW);
            assert_eq!((quoted[&world()].price, quoted[&place()].price), (step, step));
            past.now.extend(quoted);
        }
        // The next epoch begins with the list, too, where nobody was asked in the first.
        let past = Past { before: listed, now: BTreeMap::new() };
        assert_eq!(baselines(&past, &[quote(Cloud::Lambda, 1, 0)], NOW)[&world()].price, step);
    }

    #[test]
    fn an_area_that_is_new_is_a_step_from_the_world() {
        let past = Past { before: [(world(), at(1_000_000))].into(), now: BTreeMap::new() };
        let found = baselines(&past, &[quote(Cloud::Lambda, 9_000_000, 0)], NOW);
        assert_eq!(found[&place()].price, MicroUsd(1_005_000));
    }

    #[test]
    fn without_fresh_quotes_it_stays_as_it_is_in_every_epoch() {
        let stale = [quote(Cloud::Lambda, 1, FRESH_MAX.0 + 1)];
        let mut quoted = after(2_000_000);
        quoted.before.insert(world(), at(2_000_000));
        let mut first = Past::default();
        first.now.extend(quoted.before.clone());
        for past in [quoted, first] {
            for quotes in [&stale[..], &[]] {
                let found = baselines(&past, quotes, NOW);
                assert!(found.iter().all(|((class, _), _)| class != CLASS), "{found:?}");
            }
        }
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
            let clouds = Cloud::ALL.iter().cycle();
            let quotes: Vec<CloudQuote> = prices.iter().zip(clouds).map(|(price, cloud)| quote(*cloud, *price, 0)).collect();
            let moved = baselines(&after(from), &quotes, NOW)[&place()].price.0;
            prop_assert!((moved - from).abs() <= (from * 50 / 10_000).max(1));
            prop_assert!(moved >= from.min(*prices.iter().min().expect("some")));
        }
    }
}
