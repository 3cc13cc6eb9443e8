//! What a device is, from what it did. Pure.
//!
//! The class follows from the measured profile alone: it is the one whose bands hold all of it, as
//! long as no other's could. What a device is called only says what its owner claims; a claim is refused
//! where measured devices of that class all do more. Where nobody has measured a class, nobody is
//! refused for missing its bands and nobody gets it: the device is unrated, which is no fault of its. A slice of a
//! device is of a class of slices or of none, whatever whole device does as much.

use nave_domain::host::Device;
use nave_proof::{DeviceProven, DeviceTask, Failure, Reason};

use crate::catalogue::{Band, Catalogue, Class, Measure};

/// A GPU that a job uses does at least this part of what it does when it is free: the driver gives each
/// program that computes its share of the time, and small products keep a GPU a little less busy.
pub const SHARED: u64 = 4;

/// What is made of a device's measurements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    /// The device, as the inventory names it.
    pub uuid: String,
    /// What it is.
    pub rating: Rating,
    /// What would have refused it, had its checks been more than recorded.
    pub shadows: Vec<Failure>,
    /// The least part of its memory, in thousandths, that cannot have been missing.
    pub missing_permille: Option<u64>,
}

/// What a device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rating {
    /// Of this class.
    Rated {
        /// The class's name in the catalogue.
        class: String,
    },
    /// Of none that is known.
    Unrated {
        /// Why, for people.
        why: String,
    },
    /// Not what it is claimed to be.
    Refused(Failure),
}

/// What a device is, from what it showed in its test.
#[must_use]
pub fn classify(catalogue: &Catalogue, claim: &Device, task: &DeviceTask, proven: &DeviceProven) -> Judged {
    let claimed = catalogue.called(&claim.model, claim.simulated);
    if task.fill.is_none() {
        return beside_a_job(catalogue, claim, claimed, proven);
    }
    let by_profile = rate(catalogue, claim, proven);
    let is_of = match &by_profile {
        Rating::Rated { class } => catalogue.named(class),
        Rating::Unrated { .. } | Rating::Refused(_) => None,
    };
    // What a class is not known by, such as its way to the host's memory, must hold for it all the same.
    let other = is_of.filter(|class| claimed.is_none_or(|claimed| claimed.name != class.name));
    let (mut refused, mut shadows) = (None, Vec::new());
    for class in [claimed, other].into_iter().flatten() {
        for (measure, band, amount) in short_of(catalogue, class, proven) {
            let failure = short(claim, class, measure, band, amount);
            if band.shadow {
                shadows.push(failure);
            } else {
                refused = refused.or(Some(failure));
            }
        }
    }
    let rating = refused.map_or(by_profile, Rating::Refused);
    let missing_permille = missing_permille(catalogue, &rating, claimed, task, proven);
    Judged { uuid: claim.uuid.clone(), rating, shadows, missing_permille }
}

/// What a small proof says: no class, since the customer uses the device at the same time, but whether enough
/// of it is there for them.
fn beside_a_job(
    catalogue: &Catalogue,
    claim: &Device,
    claimed: Option<&Class>,
    proven: &DeviceProven,
) -> Judged {
    let unrated = Rating::Unrated { why: "it was only looked at beside a job".into() };
    let mut judged =
        Judged { uuid: claim.uuid.clone(), rating: unrated, shadows: Vec::new(), missing_permille: None };
    let class = claimed.filter(|class| catalogue.is_calibrated(class));
    let band = class.and_then(|class| Some((class, class.bands.get(&Measure::OpsPerS)?)));
    let (Some((class, band)), Some(ops)) = (band, proven.ops_per_s) else { return judged };
    if ops < band.low / SHARED {
        let failure = throttled(claim, class, band, ops);
        if band.shadow {
            judged.shadows.push(failure);
        } else {
            judged.rating = Rating::Refused(failure);
        }
    }
    judged
}

/// What was measured of devices of a class, and this one missed.
fn short_of<'a>(
    catalogue: &Catalogue,
    class: &'a Class,
    proven: &DeviceProven,
) -> impl Iterator<Item = (Measure, &'a Band, u64)> {
    let bands = class.bands.iter().filter(|_| catalogue.is_calibrated(class));
    bands.filter_map(|(measure, band)| {
        let amount = amount(proven, *measure)?;
        (amount < band.low).then_some((*measure, band, amount))
    })
}

/// The class that holds all that was measured, unless another could, too.
fn rate(catalogue: &Catalogue, claim: &Device, proven: &DeviceProven) -> Rating {
    let unrated = |why: String| Rating::Unrated { why };
    let claimed = catalogue.called(&claim.model, claim.simulated);
    let is_of_its_kind =
        |class: &&Class| class.simulated == claim.simulated && class.is_of_slices() == claim.is_slice();
    let of_its_kind = catalogue.classes.iter().filter(is_of_its_kind);
    let fitting: Vec<&Class> = of_its_kind.filter(|class| fits(class, proven)).collect();
    let missing =
        Measure::ALL.into_iter().find(|measure| identifies(*measure) && amount(proven, *measure).is_none());
    match (missing, fitting.as_slice()) {
        (None, [class]) if catalogue.is_calibrated(class) => Rating::Rated { class: class.name.clone() },
        (None, [class]) => unrated(format!(
            "it does what {} is expected to do, but nobody has measured one yet",
            article(&class.title)
        )),
        (None, several @ [_, _, ..]) => {
            unrated(format!("what it does cannot be told apart: {}", titles(several)))
        }
        (Some(_), _) | (None, []) if let Some(why) = claimed.and_then(|class| class.unrated.clone()) => {
            unrated(why)
        }
        (None, []) if claim.is_slice() => unrated("nobody has measured slices that do what it does".into()),
        (Some(measure), _) => unrated(format!("its {} was not measured", said(measure))),
        (None, []) => unrated("what it does fits no class of the catalogue".into()),
    }
}

/// Whether a class is known by it. The way to the host's memory is the host's, and not the device's.
fn identifies(measure: Measure) -> bool {
    measure != Measure::ReturnBytesPerS
}

/// Whether a class's bands hold all that was measured. What no test can rate is nobody's rival.
fn fits(class: &Class, proven: &DeviceProven) -> bool {
    let mut bands = class.bands.iter().filter(|(measure, band)| identifies(**measure) && !band.shadow);
    class.unrated.is_none()
        && bands.all(|(measure, band)| amount(proven, *measure).is_none_or(|amount| band.holds(amount)))
}

fn titles(classes: &[&Class]) -> String {
    let titles: Vec<String> = classes.iter().map(|class| article(&class.title)).collect();
    format!("it may be {}", titles.join(" or "))
}

/// Why a claim does not hold, in words of its owner.
fn short(claim: &Device, class: &Class, measure: Measure, band: &Band, amount: u64) -> Failure {
    let (does, did) = (measure.say_band(band), measure.say(amount, band.low));
    let is_claimed = class.models.contains(&claim.model);
    let says = if is_claimed { "claims to be" } else { "computes like" };
    let who = format!("{} {says} {}", claim.uuid, article(&class.title));
    let (code, message) = match measure {
        Measure::OpsPerS => (Reason::DeviceMismatch, format!("{who}, which does {does}; it did {did}")),
        Measure::BytesPerS => {
            (Reason::DeviceMismatch, format!("{who}, which reads its memory at {does}; it did so at {did}"))
        }
        Measure::HashesPerS => {
            (Reason::DeviceMismatch, format!("{who}, which computes {does}; it computed {did}"))
        }
        Measure::ReadsPerS => (
            Reason::VramMissing,
            format!(
                "{who}, which does {does} all over its memory; it did {did}: part of the memory was elsewhere"
            ),
        ),
        Measure::Vram => (Reason::VramMissing, format!("{who}, of which {does} can be filled; {did} were")),
        Measure::ReturnBytesPerS => (
            Reason::ReturnTooSlow,
            format!("{who}, to which its host's memory gives back {does}; it gave back {did}"),
        ),
    };
    Failure { code, message }
}

/// Why a device is not left to a job, in words of its owner.
fn throttled(claim: &Device, class: &Class, band: &Band, ops_per_s: u64) -> Failure {
    let measure = Measure::OpsPerS;
    let (does, did) = (measure.say_band(band), measure.say(ops_per_s, band.low));
    let message = format!(
        "{} claims to be {}, which does {does}; beside a job it did {did}, less than a fourth",
        claim.uuid,
        article(&class.title)
    );
    Failure { code: Reason::DeviceThrottled, message }
}

/// The least missing part of the memory that the reads would have shown, in thousandths, rounded up.
///
/// Who does not hold a block computes it again: `depth` compressions of the `h` in a second that such a
/// device does. While it reads `rho` times a second, it can do so for `h / (depth * rho)` of the reads;
/// half as much again is the margin for what it may do between them.
fn missing_permille(
    catalogue: &Catalogue,
    rating: &Rating,
    claimed: Option<&Class>,
    task: &DeviceTask,
    proven: &DeviceProven,
) -> Option<u64> {
    let (fill, reads_per_s) = (task.fill?, proven.reads_per_s?);
    let class = match rating {
        Rating::Rated { class } => catalogue.named(class),
        Rating::Unrated { .. } => claimed,
        Rating::Refused(_) => return None,
    };
    let hashes_per_s = class.map_or_else(|| catalogue.hashes_per_s_max(), Class::hashes_per_s_max);
    Some(detectable_permille(hashes_per_s, fill.depth, reads_per_s))
}

/// 1.5 · `hashes_per_s` / (`depth` · `reads_per_s`) in thousandths, rounded up, all of it at most.
#[must_use]
pub fn detectable_permille(hashes_per_s: u64, depth: u32, reads_per_s: u64) -> u64 {
    let reads = u128::from(depth) * u128::from(reads_per_s);
    let permille = (u128::from(hashes_per_s) * 1_500).div_ceil(reads.max(1));
    u64::try_from(permille).unwrap_or(u64::MAX).min(1_000)
}

impl Judged {
    /// What was found, for people.
    #[must_use]
    pub fn detail(&self) -> String {
        let rating = match &self.rating {
            Rating::Rated { class } => format!("{} is of class {class}", self.uuid),
            Rating::Unrated { why } => format!("{} is unrated: {why}", self.uuid),
            Rating::Refused(failure) => failure.message.clone(),
        };
        match self.missing_permille {
            Some(permille) if permille < 1_000 => {
                let (percent, tenth) = (permille / 10, permille % 10);
                format!("{rating}; at most {percent}.{tenth} % of its memory can have been missing")
            }
            Some(_) => format!("{rating}; its reads were too slow to show that its memory was there"),
            None => rating,
        }
    }
}

/// What was measured.
#[must_use]
pub fn amount(proven: &DeviceProven, measure: Measure) -> Option<u64> {
    match measure {
        Measure::OpsPerS => proven.ops_per_s,
        Measure::BytesPerS => proven.bytes_per_s,
        Measure::ReadsPerS => proven.reads_per_s,
        Measure::ReturnBytesPerS => proven.return_bytes_per_s,
        Measure::HashesPerS => proven.hashes_per_s,
        Measure::Vram => proven.vram.map(|vram| u64::try_from(vram.0).unwrap_or(0)),
    }
}

fn said(measure: Measure) -> &'static str {
    match measure {
        Measure::OpsPerS => "computing",
        Measure::BytesPerS => "bandwidth",
        Measure::ReadsPerS => "rate of reads",
        Measure::ReturnBytesPerS => "way to the host's memory",
        Measure::HashesPerS => "rate of hashes",
        Measure::Vram => "memory",
    }
}

/// `an NVIDIA H100`, `a simulated device`.
fn article(title: &str) -> String {
    let vowel = title.starts_with(['A', 'E', 'I', 'O', 'N', 'a', 'e', 'i', 'o']);
    format!("{} {title}", if vowel { "an" } else { "a" })
}
