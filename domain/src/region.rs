//! Where regions lie: what owners and clouds call places, read as parts of the world.

use std::fmt;

use crate::wish::Region;

/// A part of the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Area {
    /// The United States, Canada and Mexico.
    NorthAmerica,
    /// Europe, with Iceland and the United Kingdom: not the European Union.
    Europe,
    /// Asia without the Middle East.
    Asia,
    /// The Middle East.
    MiddleEast,
    /// Australia and New Zealand.
    Oceania,
    /// South America.
    SouthAmerica,
    /// Africa.
    Africa,
}

/// An area, the words that mean all of it, and those that mean something in it. Its own name comes first.
type Words = (Area, &'static str, &'static str);

/// Codes are of countries, or of the places that clouds name so. What means two places is left out.
const WORDS: [Words; 7] = [
    (
        Area::NorthAmerica,
        "north-america northamerica na",
        "us usa ca canada mx mexico texas california virginia america",
    ),
    (
        Area::Europe,
        "europe eu eur",
        "at austria be belgium bg bulgaria ch switzerland cz czechia de germany dk denmark ee estonia es spain fi fin \
         finland fr france gb uk gr greece hr croatia hu hungary ice iceland ie ireland is it italy lt lithuania lv \
         latvia nl netherlands no norway pl poland pt portugal ro romania se sweden si slovenia sk slovakia ua ukraine",
    ),
    (
        Area::Asia,
        "asia",
        "ap cn china hk id in india indonesia japan jp korea kr malaysia my sg singapore taiwan th thailand tw vietnam vn",
    ),
    (Area::MiddleEast, "middle-east", "ae il israel qa qatar tr turkey"),
    (Area::Oceania, "oceania oc", "au australia new-zealand nz"),
    (Area::SouthAmerica, "south-america southamerica sam", "ar argentina br brazil chile cl co colombia"),
    (Area::Africa, "africa af", "eg egypt ke kenya ng nigeria za"),
];

/// Codes that are words, too: they mean a country only where they come last, as in `oslo-no`, not in `no-name`.
const ALSO_WORDS: &str = "at be co id in is it my no";
/// Codes that are states of the US, too: they mean a country only where they come first, as in `de-fra1`, not in `wilmington-de`.
const ALSO_STATES: &str = "ar co de id il in";

fn has(words: &str, word: &str) -> bool {
    words.split_ascii_whitespace().any(|known| known == word)
}

impl Area {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::NorthAmerica,
        Self::Europe,
        Self::Asia,
        Self::MiddleEast,
        Self::Oceania,
        Self::SouthAmerica,
        Self::Africa,
    ];

    /// The area that an owner's or a cloud's word for a place lies in; none where that is not certain.
    #[must_use]
    pub fn of(text: &str) -> Option<Self> {
        let split = text.split(|c: char| !c.is_ascii_alphanumeric());
        let words =
            split.map(|word| word.trim_end_matches(|c: char| c.is_ascii_digit()).to_ascii_lowercase());
        let words: Vec<String> = words.filter(|word| !word.is_empty()).collect();
        let at = |index: usize| {
            let word = words.get(index)?.as_str();
            let two = words.get(index + 1).map(|next| format!("{word}-{next}"));
            let is_last = index + 1 == words.len();
            two.as_deref()
                .and_then(Self::of_word)
                .or_else(|| Self::of_word(word).filter(|_| is_last || !has(ALSO_WORDS, word)))
                .filter(|_| index == 0 || !has(ALSO_STATES, word))
        };
        // `us-west-1` begins with the country; `Texas, US` ends with it.
        if text.contains(',') { (0..words.len()).rev().find_map(at) } else { (0..words.len()).find_map(at) }
    }

    fn of_word(word: &str) -> Option<Self> {
        let found = WORDS.iter().find(|(_, all, some)| has(all, word) || has(some, word));
        found.map(|(area, _, _)| *area)
    }

    /// The area that a word means all of, such as `eu` or `europe`.
    #[must_use]
    pub fn named(word: &str) -> Option<Self> {
        WORDS.iter().find(|(_, all, _)| has(all, word)).map(|(area, _, _)| *area)
    }

    /// For programs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NorthAmerica => "north-america",
            Self::Europe => "europe",
            Self::Asia => "asia",
            Self::MiddleEast => "middle-east",
            Self::Oceania => "oceania",
            Self::SouthAmerica => "south-america",
            Self::Africa => "africa",
        }
    }
}

impl fmt::Display for Area {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Region {
    /// The part of the world that it lies in, where its name says so.
    #[must_use]
    pub fn area(&self) -> Option<Area> {
        Area::of(self.as_str())
    }

    /// Whether it is what a wish names or lies in that: `us` and `us-east` have `us-east-1`, and `eu` has all of
    /// Europe.
    #[must_use]
    pub fn is_in(&self, wanted: &Self) -> bool {
        let rest = self.as_str().strip_prefix(wanted.as_str());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
            || Area::named(wanted.as_str()).is_some_and(|area| self.area() == Some(area))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_found_in_the_words_of_clouds_and_owners() {
        let cases = [
            (
                Area::NorthAmerica,
                &["us-west-1", "us-east1", "US-TX-3", "CANADA-1", "Texas, US", "Quebec, CA", "us-central-3"]
                    [..],
            ),
            (
                Area::Europe,
                &[
                    "FIN-01",
                    "ICE-01",
                    "NORWAY-1",
                    "EU-RO-1",
                    "eu",
                    "eu1",
                    "europe-west4",
                    "Paris, FR",
                    "Oslo, NO",
                    "oslo-no",
                    "de-fra1",
                ],
            ),
            (Area::Asia, &["asia-northeast-1", "Tokyo, JP", "AP-JP-1", "tokyo-jp", "Mumbai, India"]),
            (Area::Oceania, &["australia-east-1", "OC-AU-1", "Auckland, New Zealand"]),
            (Area::SouthAmerica, &["south-america", "southamerica-east1", "brazil-south"]),
            (Area::MiddleEast, &["middle-east-1", "il-central-1"]),
            (Area::Africa, &["af-south-1", "Cape Town, South Africa"]),
        ];
        for (area, texts) in cases {
            for text in texts {
                assert_eq!(Area::of(text), Some(area), "{text}");
            }
        }
    }

    #[test]
    fn what_is_not_certain_lies_nowhere() {
        for text in [
            "any",
            "",
            "local",
            "here",
            "my-basement",
            "in-house",
            "no-name",
            "sa-east-1",
            "42",
            "west",
            "wilmington-de",
            "denver-co",
        ] {
            assert_eq!(Area::of(text), None, "{text}");
        }
    }

    #[test]
    fn every_area_is_found_by_its_own_name() {
        for area in Area::ALL {
            assert_eq!((Area::of(area.name()), Area::named(area.name())), (Some(area), Some(area)));
        }
    }

    #[test]
    fn a_wish_for_a_region_is_met_by_what_lies_in_it() {
        let cases = [
            ("eu", "fin-01", true),
            ("europe", "eu", true),
            ("eu", "europe-west4", true),
            ("north-america", "us-east-1", true),
            ("us", "us-east-1", true),
            ("us-east", "us-east-1", true),
            ("here", "here", true),
            ("fin-01", "eu", false),
            ("fin-01", "fin-02", false),
            ("fin", "de-01", false),
            ("us", "ca-central-1", false),
            ("us-east-1", "us-east-10", false),
            ("eu", "us-east-1", false),
            ("eu", "here", false),
        ];
        for (wanted, region, is_met) in cases {
            let [wanted, region] = [wanted, region].map(|text| text.parse::<Region>().expect("a region"));
            assert_eq!(region.is_in(&wanted), is_met, "{region} for {wanted}");
        }
    }
}
