//! What a customer wishes of the place where a job runs, and what meets it.

use std::{collections::BTreeSet, fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{
    host::{Device, Proven, Term, Trust},
    job::{BadRequest, JobRequest},
    rate::{Rate, hourly},
    units::{Bytes, MicroUsd},
};

/// A wish for GPUs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct GpuRequest {
    /// Number of devices.
    pub count: u8,
    /// Memory that each of them has at least, in bytes.
    pub vram: Bytes,
    /// Memory that each of them has at most, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vram_max: Option<Bytes>,
    /// Models or classes in order of preference: the first one that is free is taken, such as
    /// `["H100", "A100"]`. Left out, any will do.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<String>,
    /// Thousandths of a device's computing that suffice, with `vram` of its memory. Where a host leases
    /// fractions of devices, the job gets one, which it pays for; else a whole device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share: Option<u16>,
}

impl Default for GpuRequest {
    fn default() -> Self {
        Self { count: 1, vram: Bytes::ZERO, vram_max: None, models: Vec::new(), share: None }
    }
}

/// Most models in one wish.
pub const MODELS_MAX: usize = 16;
/// Longest name of a model in a wish, in bytes.
pub const MODEL_BYTES_MAX: usize = 64;
/// Largest memory of a device, in bytes.
const VRAM_MAX: i64 = 1 << 42;

impl GpuRequest {
    /// Refuses what no host could have.
    ///
    /// # Errors
    /// [`BadRequest`] naming the field.
    pub fn check(&self) -> Result<(), BadRequest> {
        within("resources.gpu.count", i64::from(self.count), 1, 64)?;
        within("resources.gpu.vram", self.vram.0, 0, VRAM_MAX)?;
        if let Some(most) = self.vram_max {
            within("resources.gpu.vram_max", most.0, self.vram.0.max(1), VRAM_MAX)?;
        }
        if let Some(share) = self.share {
            within("resources.gpu.share", i64::from(share), 1, 1_000)?;
            if self.vram.0 % Bytes::MIB != 0 {
                let problem =
                    format!("the memory of a share is a whole number of MiB, not {} bytes", self.vram.0);
                return Err(BadRequest { field: "resources.gpu.vram", problem });
            }
        }
        let is_odd = |model: &String| {
            model.len() > MODEL_BYTES_MAX
                || model.chars().any(char::is_control)
                || words(model).next().is_none()
        };
        if self.models.len() > MODELS_MAX || self.models.iter().any(is_odd) {
            let problem = format!(
                "at most {MODELS_MAX} names such as \"H100\" of at most {MODEL_BYTES_MAX} bytes each"
            );
            return Err(BadRequest { field: "resources.gpu.models", problem });
        }
        Ok(())
    }

    /// Whether a device has as much memory as is asked for.
    #[must_use]
    pub fn fits(&self, vram: Bytes) -> bool {
        vram >= self.vram && self.vram_max.is_none_or(|most| vram <= most)
    }

    /// The models to try, one after the other; none stands for any.
    pub fn choices(&self) -> impl Iterator<Item = Option<&str>> {
        let any = self.models.is_empty().then_some(None);
        self.models.iter().map(|model| Some(model.as_str())).chain(any)
    }
}

/// The words that a device is known by.
///
/// One with a class is known by the name of the class and those of its models: that is what it was measured
/// to be. What a device calls itself counts only where nobody has measured it.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Known(BTreeSet<String>);

impl Known {
    /// What a device is known by that calls itself `model`, or is of a class with that name and these models.
    #[must_use]
    pub fn of(model: &str, class: Option<(&str, &[String])>) -> Self {
        let Some((name, models)) = class else { return Self(words(model).collect()) };
        Self(words(name).chain(models.iter().flat_map(|model| words(model))).collect())
    }

    /// What a device of a host is known by that has proven so much.
    #[must_use]
    pub fn device(device: &Device, proven: Option<&Proven>) -> Self {
        let shown = proven.and_then(|proven| proven.device(&device.uuid));
        Self::of(&device.model, shown.and_then(|shown| Some((shown.class.as_deref()?, &*shown.models))))
    }

    /// Each of them.
    pub fn words(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// Whether a wish means such a device: every word of it is one that the device is known by.
    #[must_use]
    pub fn is(&self, wanted: &str) -> bool {
        let mut words = words(wanted).peekable();
        words.peek().is_some() && words.all(|word| self.0.contains(&word))
    }
}

/// The words of a model's name in lower case, the vendor's left out, which some drivers do not say.
pub fn words(name: &str) -> impl Iterator<Item = String> {
    let words = name.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_lowercase).filter(|word| word != "nvidia")
}

macro_rules! named {
    ($(#[$doc:meta])* $name:ident: $($(#[$each:meta])* $value:ident = $text:literal,)*) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $($(#[$each])* $value,)* }

        impl $name {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$value),*];

            /// The name in JSON and SQL.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$value => $text,)* }
            }

            /// Whether it is what counts where nothing is said.
            #[must_use]
            pub fn is_default(&self) -> bool {
                *self == Self::default()
            }
        }
    };
}

named! {
    /// What of a host a job has for itself.
    Isolation:
    /// A slice that the hardware separates, or a share beside the customer's own jobs, suffices.
    #[default]
    Any = "any",
    /// Whole devices.
    Device = "device",
    /// The host: nobody else's jobs are on it meanwhile.
    Host = "host",
}

named! {
    /// Which terms of hosts a job takes.
    TermWish:
    /// Every one.
    #[default]
    Any = "any",
    /// Hosts that are offered until their owners drain them.
    OnDemand = "on_demand",
    /// Hosts that their owners may take back at any time.
    Spot = "spot",
}

impl TermWish {
    /// Whether a host on this term will do.
    #[must_use]
    pub fn takes(self, term: Term) -> bool {
        match self {
            Self::Any => true,
            Self::OnDemand => term == Term::OnDemand,
            Self::Spot => term == Term::Spot,
        }
    }
}

/// The trust classes that hosts may have for a job unless it says otherwise.
#[must_use]
pub fn usual_trust() -> BTreeSet<Trust> {
    [Trust::Verified, Trust::Attested, Trust::Cloud].into()
}

/// Whether a set of trust classes is [`usual_trust`].
#[must_use]
pub fn is_usual_trust(trust: &BTreeSet<Trust>) -> bool {
    *trust == usual_trust()
}

/// Where a host is, as its owner says it, such as `eu` or `us-east-1`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(value_type = String))]
pub struct Region(String);

/// Text that is not the name of a region.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a region: 1 to 32 characters of a-z 0-9 -")]
pub struct BadRegion(String);

impl Region {
    /// Its name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Region {
    type Err = BadRegion;

    fn from_str(text: &str) -> Result<Self, BadRegion> {
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if (1..=32).contains(&text.len()) && text.bytes().all(fits) {
            return Ok(Self(text.to_owned()));
        }
        Err(BadRegion(text.chars().take(40).collect()))
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for Region {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Region {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// On which terms a host is there, beside its price.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// For how long it is offered.
    pub term: Term,
    /// Where its owner says it is.
    pub region: Option<Region>,
    /// What is known of it.
    pub trust: Trust,
}

/// A wish that a host does not meet, whatever is free on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unmet {
    /// It is dearer.
    MaxPrice,
    /// It is elsewhere, or does not say where.
    Region,
    /// It is offered on another term.
    Term,
    /// Less is known of it.
    Trust,
}

impl Unmet {
    /// All of them, in the order in which customers can do without.
    pub const ALL: [Self; 4] = [Self::MaxPrice, Self::Region, Self::Term, Self::Trust];
}

/// The first wish that a host on these terms and at this price does not meet.
///
/// Prices are of the whole job, cores and memory included: for each GPU that it has, or without GPUs for all of it.
#[must_use]
pub fn unmet(request: &JobRequest, terms: &Terms, rate: Rate) -> Option<Unmet> {
    let resources = &request.resources;
    let whole = hourly(resources.size(), rate).map_or(i64::MAX, |price| price.0);
    let (price, trust) = match &resources.gpu {
        Some(gpu) => {
            let count = i64::from(gpu.count.max(1));
            (whole.saturating_add(count - 1) / count, terms.trust)
        }
        // Without GPUs there is nothing that a host which takes jobs has not proven.
        None => (whole, terms.trust.without_gpus()),
    };
    let price = MicroUsd(price);
    let is_unmet = |wish: &Unmet| match wish {
        Unmet::MaxPrice => request.max_price.is_some_and(|most| price > most),
        Unmet::Region => request
            .region
            .as_ref()
            .is_some_and(|wanted| terms.region.as_ref().is_none_or(|at| !at.is_in(wanted))),
        Unmet::Term => !request.term.takes(terms.term),
        Unmet::Trust => !request.trust.contains(&trust),
    };
    Unmet::ALL.into_iter().find(is_unmet)
}

fn within(field: &'static str, value: i64, min: i64, max: i64) -> Result<(), BadRequest> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(BadRequest { field, problem: format!("{value} is not between {min} and {max}") })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn is_model(wanted: &str, model: &str, class: Option<&str>) -> bool {
        Known::of(model, class.map(|name| (name, [].as_slice()))).is(wanted)
    }

    #[test]
    fn a_model_is_named_by_some_of_its_words() {
        let named = |wanted, model| is_model(wanted, model, None);
        assert!(named("H100", "NVIDIA H100 80GB HBM3"));
        assert!(named("nvidia h100", "H100 PCIe"));
        assert!(named("a100-80gb", "NVIDIA A100-SXM4-80GB"));
        assert!(named("RTX 4090", "NVIDIA GeForce RTX 4090"));
        assert!(!named("RTX 4090", "NVIDIA GeForce RTX 3090"));
        assert!(!named("L4", "NVIDIA L40S"), "a part of a word is another model");
        assert!(!named("H100", "NVIDIA H1000"));
        assert!(!named("nvidia", "NVIDIA H100"), "a vendor is no model");
        assert!(!named("", "NVIDIA H100"));
    }

    #[test]
    fn a_class_is_named_by_words_of_its_name() {
        assert!(
            is_model("H100-SXM", "whatever", Some("h100-sxm"))
                && is_model("h100", "whatever", Some("h100-sxm"))
        );
        assert!(!is_model("h100", "whatever", None));
    }

    #[test]
    fn what_a_device_was_measured_to_be_counts_and_not_what_it_calls_itself() {
        assert!(!is_model("H100", "NVIDIA H100 80GB HBM3", Some("l40s")));
        assert!(is_model("L40S", "NVIDIA H100 80GB HBM3", Some("l40s")));
        let models = ["NVIDIA GeForce RTX 4090".to_owned()];
        let known = Known::of("NVIDIA H100", Some(("rtx-4090", &models)));
        assert!(known.is("GeForce RTX 4090") && known.is("rtx-4090") && !known.is("H100"));
    }

    #[test]
    fn the_memory_of_a_share_is_whole_mebibytes() {
        let check = |vram, share| GpuRequest { vram: Bytes(vram), share, ..GpuRequest::default() }.check();
        for vram in [1, Bytes::MIB - 1, Bytes::MIB + 1] {
            assert_eq!(check(vram, Some(250)).map_err(|error| error.field), Err("resources.gpu.vram"));
            assert_eq!(check(vram, None), Ok(()), "a whole device has more");
        }
        for vram in [0, Bytes::MIB, 7 * Bytes::MIB] {
            assert_eq!(check(vram, Some(250)), Ok(()));
        }
    }

    #[test]
    fn a_region_is_a_short_plain_name() {
        for (text, fine) in [("eu", true), ("us-east-1", true), ("", false), ("EU", false), ("a b", false)] {
            assert_eq!(text.parse::<Region>().is_ok(), fine, "{text}");
        }
        assert!("x".repeat(32).parse::<Region>().is_ok() && "x".repeat(33).parse::<Region>().is_err());
    }

    #[test]
    fn a_host_meets_a_request_or_fails_it_by_one_wish() {
        let terms = Terms { term: Term::Spot, region: "eu".parse().ok(), trust: Trust::Unrated };
        let rate = Rate { gpu_hour: MicroUsd(2_000_000), vcpu_hour: MicroUsd(20_000), gib_hour: MicroUsd(0) };
        let mut request = JobRequest::of(vec!["true".into()]);
        assert_eq!(unmet(&request, &terms, rate), None, "its GPUs do not matter to a job without any");
        request.max_price = Some(MicroUsd(19_999));
        assert_eq!(unmet(&request, &terms, rate), Some(Unmet::MaxPrice), "an hour of the job is dearer");
        request.resources.gpu = Some(GpuRequest::default());
        assert_eq!(unmet(&request, &terms, rate), Some(Unmet::MaxPrice));
        // Cores and memory count, so that their price is no way around the wish.
        request.max_price = Some(MicroUsd(2_020_000));
        assert_eq!(unmet(&request, &terms, rate), Some(Unmet::Trust));
        request.trust.insert(Trust::Unrated);
        assert_eq!(unmet(&request, &terms, rate), None);
        request.term = TermWish::OnDemand;
        assert_eq!(unmet(&request, &terms, rate), Some(Unmet::Term));
        request.region = "us".parse().ok();
        assert_eq!(unmet(&request, &terms, rate), Some(Unmet::Region));
        request.term = TermWish::Spot;
        for within in ["eu", "europe"] {
            request.region = within.parse().ok();
            assert_eq!(unmet(&request, &terms, rate), None);
        }
        let unknown = Terms { region: None, ..terms };
        assert_eq!(unmet(&request, &unknown, rate), Some(Unmet::Region));
    }

    #[test]
    fn models_are_tried_in_their_order_and_none_is_any() {
        let models = |models: &[&str]| GpuRequest {
            models: models.iter().map(|model| (*model).to_owned()).collect(),
            ..GpuRequest::default()
        };
        assert_eq!(models(&[]).choices().collect::<Vec<_>>(), [None]);
        assert_eq!(models(&["b", "a"]).choices().collect::<Vec<_>>(), [Some("b"), Some("a")]);
    }

    proptest! {
        #[test]
        fn case_order_and_what_stands_between_words_do_not_matter(
            words in proptest::collection::vec("[a-z0-9]{1,6}", 1..5), separator in "[ -_/]{1,2}", keep in 1..5_usize,
        ) {
            prop_assume!(words.iter().any(|word| word != "nvidia") && !separator.contains(char::is_alphanumeric));
            let model = words.join("-").to_uppercase();
            prop_assert!(is_model(&words.join(&separator), &model, None), "a model is its own name");
            let mut some: Vec<_> = words.iter().take(keep).cloned().collect();
            some.reverse();
            prop_assume!(some.iter().any(|word| word != "nvidia"));
            prop_assert!(is_model(&some.join(&separator), &model, None));
            some.push("anotherword".into());
            prop_assert!(!is_model(&some.join(&separator), &model, None), "one word too many");
        }

        #[test]
        fn more_words_never_match_more_devices(wanted in "\\PC{0,12}", more in "\\PC{0,12}", model in "\\PC{0,24}") {
            let longer = format!("{wanted} {more}");
            if is_model(&longer, &model, None) && words(&wanted).next().is_some() {
                prop_assert!(is_model(&wanted, &model, None));
            }
        }
    }
}
