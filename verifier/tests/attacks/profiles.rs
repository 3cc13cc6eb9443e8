//! Devices that are not what they are claimed to be: whole tests of simulated ones, judged by what they did.
//!
//! The classes here are made up, since nobody has measured real ones yet; what is done with them
//! is what is done with any.

use std::time::Duration;

use nave_domain::{Bytes, ChallengeId, HostId, Millis, Timestamp, host::Device};
use nave_proof::{
    Answer, Challenge, Evidence, Failure, Nonce, Proven, Prover, Reason, Resources, Span, Verdict, judge,
    software::{Dishonesty, SoftwareDevice, SoftwareModel, Turns, VirtualClock},
};
use nave_rules::{
    catalogue::{Band, Catalogue, Class, Measure},
    class::{Rating, classify},
    size::{Purpose, size},
};
use uuid::Uuid;

use crate::paced::millis;

const RAM: Bytes = Bytes(8 * Bytes::MIB);
const KIB: i64 = 1 << 10;

/// A device of the lower class, or of the higher one, which does twice as much of everything.
fn model(times: u64) -> SoftwareModel {
    SoftwareModel {
        model: String::new(),
        vram: Bytes(256 * KIB * times.cast_signed()),
        ops_per_s: times << 26,
        bytes_per_s: times << 19,
        reads_per_s: times << 17,
        hashes_per_s: times << 17,
        return_bytes_per_s: times << 18,
        dishonesty: Vec::new(),
    }
}

fn lower() -> SoftwareModel {
    model(1)
}

fn higher() -> SoftwareModel {
    model(2)
}

fn that(model: SoftwareModel, way: Dishonesty) -> SoftwareModel {
    SoftwareModel { dishonesty: vec![way], ..model }
}

/// What is claimed: a name and a memory.
fn called(model: &str, vram_kib: i64) -> Device {
    let (uuid, driver) = (String::new(), "1".to_owned());
    let (model, vram) = (model.to_owned(), Bytes(vram_kib * KIB));
    Device {
        uuid,
        model,
        vram,
        driver,
        simulated: true,
        division: nave_domain::fraction::Division::default(),
    }
}

/// Two classes, each with bands around what its devices do.
fn catalogue() -> Catalogue {
    let mut catalogue = Catalogue::embedded().expect("the catalogue").clone();
    let simulated = catalogue.named("simulated").expect("a class").clone();
    let class = |name: &str, times: u64, return_bytes_per_s: u64| {
        let model = model(times);
        let did = |measure: Measure| match measure {
            Measure::OpsPerS => model.ops_per_s,
            Measure::BytesPerS => model.bytes_per_s,
            Measure::ReadsPerS => model.reads_per_s,
            Measure::ReturnBytesPerS => return_bytes_per_s,
            Measure::HashesPerS => model.hashes_per_s,
            Measure::Vram => model.vram.0.cast_unsigned() / 2,
        };
        let mut class = Class { name: name.to_lowercase(), title: name.into(), ..simulated.clone() };
        class.models = vec![name.into()];
        class.test.fill_max = None;
        for (measure, band) in &mut class.bands {
            let least = if *measure == Measure::ReturnBytesPerS { 75 } else { 85 };
            let (low, high) = (did(*measure) * least / 100, did(*measure) * 115 / 100);
            *band = Band { low, high: Some(high), median: None, spread: Vec::new(), ..band.clone() };
        }
        class
    };
    // A copy as large as the fill comes back, then come the reads.
    catalogue.classes = vec![class("Lower", 1, 52_428), class("Higher", 2, 174_762)];
    catalogue
}

/// A whole test of a host's devices, whose times are the verifier's: what each is rated.
fn exam(devices: &[(Device, SoftwareModel)]) -> Result<Vec<Rating>, Failure> {
    let catalogue = catalogue();
    let named = |slot: usize, device: &Device| Device { uuid: format!("SIM-{slot}"), ..device.clone() };
    let claims: Vec<Device> =
        devices.iter().enumerate().map(|(slot, (device, _))| named(slot, device)).collect();
    let purpose = Purpose::Full { onboarding: true };
    let mut challenge = Challenge::new(
        ChallengeId(Uuid::from_u128(1)),
        HostId(Uuid::from_u128(2)),
        size(&catalogue, &claims, RAM, purpose).expect("a test"),
        Nonce([3; 32]),
    );
    let clock = VirtualClock::default();
    let mut prover = Prover::new(&challenge, resources(devices, &clock))?;
    let (mut commitments, mut spans) = (Vec::new(), Vec::new());
    let opening = loop {
        let began = clock.pass(Duration::ZERO);
        let answer = prover.answer(&challenge)?;
        let took = millis(clock.now() - began);
        spans.push(Span { sent: Timestamp(0), received: Timestamp(took.0) });
        match answer {
            Answer::Commitment(commitment) => commitments.push(commitment),
            Answer::Opening(opening) => break opening,
        }
        challenge.reveals.push(Nonce([10 + challenge.step() as u8; 32]));
    };
    match judge(&challenge, &Evidence { commitments, opening }, &spans) {
        Verdict::Failed(failure) => Err(failure),
        Verdict::Passed(Proven::Devices(shown)) => {
            let nave_proof::Task::Devices(task) = &challenge.task else { panic!("another task") };
            let each = claims.iter().zip(&task.devices).zip(&shown);
            Ok(each.map(|((claim, task), shown)| classify(&catalogue, claim, task, shown).rating).collect())
        }
        Verdict::Passed(other) => panic!("{other:?}"),
    }
}

fn resources(devices: &[(Device, SoftwareModel)], clock: &VirtualClock) -> Resources {
    let models: Vec<SoftwareModel> = devices.iter().map(|(_, model)| model.clone()).collect();
    let (clock, turns) = (clock.clone(), Turns::default());
    Resources::new(1).with_devices(move |task| {
        let slot: usize = task.uuid["SIM-".len()..].parse().expect("a slot");
        let device = SoftwareDevice::new(&models[slot], clock.pace(), &turns);
        Ok(Box::new(device) as Box<dyn nave_proof::device::Device>)
    })
}

/// What becomes of a host with one device: its class, a dash where it has none, or why it is refused.
fn alone(claim: Device, model: SoftwareModel) -> String {
    fate(&[(claim, model)])
}

fn fate(devices: &[(Device, SoftwareModel)]) -> String {
    let ratings = match exam(devices) {
        Ok(ratings) => ratings,
        Err(failure) => return said(&failure),
    };
    let classes = ratings.into_iter().map(|rating| match rating {
        Rating::Rated { class } => class,
        Rating::Unrated { .. } => "-".into(),
        Rating::Refused(failure) => said(&failure),
    });
    classes.collect::<Vec<_>>().join(", ")
}

fn said(failure: &Failure) -> String {
    format!("{}: {}", failure.code.as_str(), failure.message)
}

fn assert_refused(fate: &str, code: Reason, words: &str) {
    assert!(fate.starts_with(&format!("{}: ", code.as_str())) && fate.contains(words), "{fate}");
}

#[test]
fn honest_devices_of_either_class_are_what_they_do_whatever_their_driver_says() {
    for (name, vram, model, class) in [
        ("Lower", 256, lower(), "lower"),
        ("Higher", 512, higher(), "higher"),
        // What a driver says that lies, or that is of somebody else.
        ("NVIDIA H200", 256, lower(), "lower"),
        ("", 512, higher(), "higher"),
    ] {
        assert_eq!(alone(called(name, vram), model), class, "{name}");
    }
}

#[test]
fn a_lower_device_that_is_claimed_as_a_higher_one_is_refused_by_each_band_alone() {
    let claim = || called("Higher", 512);
    let larger = SoftwareModel { vram: Bytes(512 * KIB), ..lower() };
    let fate = alone(claim(), larger);
    assert_refused(
        &fate,
        Reason::DeviceMismatch,
        "claims to be a Higher, which does 114 to 154 MOPS; it did 67",
    );
    let slow = SoftwareModel { bytes_per_s: 1 << 19, ..higher() };
    assert_refused(&alone(claim(), slow), Reason::DeviceMismatch, "reads its memory at");
    let slow = SoftwareModel { hashes_per_s: 1 << 17, ..higher() };
    assert_refused(&alone(claim(), slow), Reason::DeviceMismatch, "which computes");
    let smaller = |kib: i64| SoftwareModel { vram: Bytes(kib * KIB), ..higher() };
    assert_refused(&alone(claim(), smaller(200)), Reason::DeviceUnavailable, "a fill of 262144 bytes");
    assert_refused(&alone(called("Higher", 400), smaller(400)), Reason::VramMissing, "can be filled");
    assert_eq!(alone(claim(), higher()), "higher");
}

#[test]
fn a_card_that_was_modded_or_re_marked_is_what_it_does_or_nothing_that_is_known() {
    let modded = SoftwareModel { vram: Bytes(512 * KIB), ..lower() };
    assert_eq!(
        alone(called("Lower", 512), modded.clone()),
        "-",
        "no class has so much memory and does so little"
    );
    assert_eq!(alone(called("Something New", 512), modded), "-");
    assert_eq!(alone(called("Something New", 256), lower()), "lower");
    assert_eq!(alone(called("Lower", 512), higher()), "higher");
    assert_refused(&alone(called("Higher", 256), lower()), Reason::DeviceMismatch, "claims to be a Higher");
    assert_eq!(alone(called("Lower", 256), lower()), "lower");
}

#[test]
fn one_device_that_poses_as_two_is_refused_however_it_is_divided_and_two_are_not() {
    let two = |model: SoftwareModel| {
        let claim = || called("Lower", 256);
        fate(&[(claim(), model.clone()), (claim(), model)])
    };
    // One after the other; by turns; and each with a slice of what there is.
    let serialised = that(lower(), Dishonesty::Shared { with: "one".into() });
    let sliced_time = that(lower(), Dishonesty::Lent { per_mille: 500, vram: Bytes(0) });
    let sliced = SoftwareModel {
        vram: Bytes(128 * KIB),
        ops_per_s: 1 << 25,
        bytes_per_s: 1 << 18,
        reads_per_s: 1 << 16,
        hashes_per_s: 1 << 16,
        ..lower()
    };
    for model in [serialised, sliced_time, sliced] {
        assert_refused(&two(model), Reason::DeviceMismatch, "it did 33.5 MOPS");
    }
    assert_eq!(two(lower()), "lower, lower");
}

#[test]
fn memory_that_is_the_hosts_or_is_not_there_is_missing() {
    let claim = || called("Lower", 256);
    let elsewhere = Dishonesty::HostVram { per_mille: 100, reads_per_s: 5_000, bytes_per_s: 1 << 19 };
    let computed = Dishonesty::KeepVram { per_mille: 980 };
    for way in [elsewhere, computed] {
        let fate = alone(claim(), that(lower(), way));
        assert_refused(&fate, Reason::VramMissing, "part of the memory was elsewhere");
    }
    let forgotten = alone(claim(), that(lower(), Dishonesty::ForgetCopy));
    assert_refused(&forgotten, Reason::ReturnTooSlow, "its host's memory gives back");
    assert_eq!(alone(claim(), lower()), "lower");
}

#[test]
fn a_test_that_is_relayed_over_a_distance_is_refused_and_one_within_a_rack_is_not() {
    let relayed = |delay: i64, bytes_per_s: u64| {
        let way = Dishonesty::Away { delay_ms: Millis(delay), bytes_per_s };
        (
            alone(called("Higher", 512), that(higher(), way.clone())),
            alone(called("Any", 512), that(higher(), way)),
        )
    };
    let (claimed, unheard_of) = relayed(30, 1 << 15);
    assert_refused(&claimed, Reason::ReturnTooSlow, "claims to be a Higher");
    assert_refused(&unheard_of, Reason::ReturnTooSlow, "computes like a Higher");
    let (late, _) = relayed(60_000, 1 << 19);
    assert_refused(&late, Reason::TooLate, "");
    // What remains: a whole host at the other end of a short cable.
    assert_eq!(relayed(1, 1 << 19), ("higher".into(), "higher".into()));
    assert_eq!(alone(called("Higher", 512), higher()), "higher");
}
