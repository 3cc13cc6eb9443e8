//! What devices are, from what they did; and how large their tests are.

use std::collections::BTreeMap;

use nave_domain::{
    Bytes, MilliCpu, MilliGpu, Millis,
    fraction::{Division, Slice},
    host::{Device, Inventory, Runtime},
};
use nave_proof::{DeviceProven, DeviceTask, DevicesTask, Failure, Phase, Reason, Task};
use nave_rules::{
    catalogue::{Band, Catalogue, Class, Measure},
    class::{Judged, Rating, SHARED, amount, classify, detectable_permille},
    shadow::{Count, false_reject_rate, of_bands},
    size::{
        self, Purpose, calculated_memory_ms, calculated_ms, calculated_suite_ms, fills_beside_memory, size,
    },
};
use proptest::prelude::*;

const TOPS: u64 = 1_000_000_000_000;
const RAM: Bytes = Bytes(2 << 40);
const ONBOARDING: Purpose = Purpose::Full { onboarding: true };
const AGAIN: Purpose = Purpose::Full { onboarding: false };
/// Nothing was tested whole.
static NOTHING: BTreeMap<String, u64> = BTreeMap::new();

const fn small(slack: i64) -> Purpose<'static> {
    Purpose::Small { slack: Bytes(slack), shown: &NOTHING }
}

/// As beside jobs: this much of a device's memory is not a customer's.
const SMALL: Purpose = small(384 << 20);

/// The catalogue as it is.
fn catalogue() -> Catalogue {
    Catalogue::embedded().expect("the catalogue").clone()
}

/// The catalogue as if devices of these classes, or of all where there are none, had been measured.
fn measured(names: &[&str]) -> Catalogue {
    let mut catalogue = catalogue();
    let all = catalogue.classes.iter_mut();
    for class in all.filter(|class| names.is_empty() || names.contains(&class.name.as_str())) {
        class.bands.values_mut().for_each(|band| band.samples = 100);
    }
    catalogue
}

fn device(slot: usize, model: &str, mib: i64) -> Device {
    Device {
        uuid: format!("GPU-{slot}"),
        model: model.into(),
        vram: Bytes(mib * Bytes::MIB),
        driver: "570.1".into(),
        simulated: false,
        division: nave_domain::fraction::Division::default(),
    }
}

fn simulated(slot: usize) -> Device {
    let uuid = format!("{}{slot}", Device::SIMULATED);
    Device { uuid, simulated: true, ..device(slot, "Nave Simulated", 1) }
}

/// A device that is what it is called.
fn honest(class: &Class, slot: usize) -> Device {
    let vram = class.datasheet.as_ref().map_or(1, |datasheet| i64::from(datasheet.vram_mib));
    match class.simulated {
        true => simulated(slot),
        false => device(slot, &class.models[0], vram),
    }
}

fn named<'a>(catalogue: &'a Catalogue, name: &str) -> &'a Class {
    catalogue.named(name).expect("a class")
}

fn sizes(devices: &[Device], memory: Bytes, purpose: Purpose) -> DevicesTask {
    match size(&catalogue(), devices, memory, purpose) {
        Ok(Task::Devices(task)) => task,
        Ok(other) => panic!("{other:?}"),
        Err(why) => panic!("{devices:?}: {why}"),
    }
}

fn task(device: &Device) -> DeviceTask {
    sizes(std::slice::from_ref(device), RAM, AGAIN).devices.remove(0)
}

/// What a device shows that is in the middle of every band of a class.
fn middle(class: &Class) -> DeviceProven {
    let of = |measure: Measure| {
        let band = class.bands.get(&measure)?;
        Some(band.high.map_or(band.low * 2, |high| band.low.midpoint(high)))
    };
    DeviceProven {
        uuid: "GPU-1".into(),
        ops_per_s: of(Measure::OpsPerS),
        vram: of(Measure::Vram).map(|bytes| Bytes(bytes.cast_signed())),
        hashes_per_s: of(Measure::HashesPerS),
        reads_per_s: of(Measure::ReadsPerS),
        bytes_per_s: of(Measure::BytesPerS),
        return_bytes_per_s: of(Measure::ReturnBytesPerS),
    }
}

fn judged(catalogue: &Catalogue, claim: &Device, proven: &DeviceProven) -> Judged {
    classify(catalogue, claim, &task(claim), proven)
}

fn class_of(judged: &Judged) -> Option<&str> {
    match &judged.rating {
        Rating::Rated { class } => Some(class),
        Rating::Unrated { .. } | Rating::Refused(_) => None,
    }
}

fn refusal(judged: &Judged) -> &Failure {
    match &judged.rating {
        Rating::Refused(failure) => failure,
        Rating::Rated { .. } | Rating::Unrated { .. } => panic!("{judged:?}"),
    }
}

fn why_unrated(judged: &Judged) -> &str {
    match &judged.rating {
        Rating::Unrated { why } => why,
        Rating::Rated { .. } | Rating::Refused(_) => panic!("{judged:?}"),
    }
}

#[test]
fn every_class_has_a_test_that_eight_of_its_devices_can_be_given() {
    let catalogue = catalogue();
    for class in &catalogue.classes {
        let devices: Vec<Device> = (0..8).map(|slot| honest(class, slot)).collect();
        for purpose in [ONBOARDING, AGAIN] {
            let task = sizes(&devices, RAM, purpose);
            assert_eq!(task.phases(), Phase::ALL, "{}", class.name);
            for device in &task.devices {
                let samples = if purpose == ONBOARDING { 1_024 } else { 256 };
                assert!(device.gemm.is_none_or(|gemm| gemm.samples == samples), "{}: {device:?}", class.name);
            }
        }
    }
}

#[test]
fn nearly_all_of_a_device_is_filled_beside_the_matrices() {
    let share = |model, mib| {
        let fill = task(&device(0, model, mib)).fill.expect("a fill").bytes;
        fill * 1_000 / (mib as u64 * (1 << 20))
    };
    assert_eq!(share("NVIDIA H200", 143_771), 969, "97 % in whole chunks");
    assert!(share("NVIDIA H100 80GB HBM3", 81_559) >= 950);
    assert!(share("NVIDIA GeForce RTX 4090", 24_564) >= 920);
    assert!(share("a card that nobody knows", 8_192) >= 860);
    let none = task(&device(0, "a card without memory", 0));
    assert_eq!(none.fill.expect("a fill").bytes, 64 << 10);
}

#[test]
fn a_small_card_gets_smaller_matrices_more_often() {
    let gemm = |mib| task(&device(0, "a card that nobody knows", mib)).gemm.expect("products");
    let (large, small) = (gemm(81_920), gemm(8_192));
    assert_eq!((large.m, small.m), (16_384, 4_096));
    assert_eq!(u64::from(small.rounds), 16 * u64::from(large.rounds));
    let bytes = (u64::from(small.m) + u64::from(small.n)) * u64::from(small.k);
    assert!(bytes <= 1 << 30, "{bytes}");
}

#[test]
fn the_opening_of_many_devices_together_stays_within_its_bound() {
    let devices: Vec<Device> = (0..64).map(|slot| device(slot, "NVIDIA H200", 143_771)).collect();
    for count in [1, 8, 10, 16, 32, 64] {
        let task = sizes(&devices[..count], RAM, ONBOARDING);
        let samples = task.devices[0].gemm.expect("products").samples;
        let most = 1_024 * 8 / count.max(8);
        assert!(samples >= 64 && samples as usize <= most.next_power_of_two(), "{count}: {samples}");
    }
}

#[test]
fn what_is_spilled_is_bounded_by_the_memory_that_the_host_claims() {
    let devices: Vec<Device> = (0..8).map(|slot| device(slot, "NVIDIA L4", 23_034)).collect();
    let spilled = |gib: i64| {
        let task = sizes(&devices, Bytes(gib << 30), AGAIN);
        task.devices.iter().map(|device| device.spill.map_or(0, |spill| spill.bytes)).sum::<u64>()
    };
    assert!((38 << 30..(64 << 30) / 10 * 6).contains(&spilled(64)));
    assert_eq!(spilled(2_048), 8 * (8 << 30));
    assert_eq!(spilled(0), 0, "a host without memory has no phases for it");
}

#[test]
fn blocks_are_slower_to_compute_where_a_copy_goes_to_the_host() {
    let h200 = device(0, "NVIDIA H200", 143_771);
    let depth =
        |memory| sizes(std::slice::from_ref(&h200), memory, AGAIN).devices[0].fill.expect("a fill").depth;
    assert_eq!((depth(RAM), depth(Bytes(0))), (64, 32));
}

/// Eight new devices of a class, with memory enough at the host.
fn eight(class: &Class) -> DeviceTask {
    let devices: Vec<Device> = (0..8).map(|slot| honest(class, slot)).collect();
    sizes(&devices, RAM, ONBOARDING).devices.remove(0)
}

/// A device in slices of a seventh.
fn cut(model: &str, slices: usize) -> Device {
    let slice = |number: usize| Slice {
        uuid: format!("MIG-{number}"),
        profile: "1g.10gb".into(),
        milli: MilliGpu(142),
        vram: Bytes(9_856 * Bytes::MIB),
    };
    let division = Division::Slices((0..slices).map(slice).collect());
    Device { division, ..device(0, model, 81_559) }
}

#[test]
fn slices_are_tested_at_the_same_time_each_as_large_as_it_is() {
    let devices = [cut("NVIDIA H100 80GB HBM3", 7), device(1, "NVIDIA H100 80GB HBM3", 81_559)];
    for purpose in [ONBOARDING, AGAIN] {
        let task = sizes(&devices, RAM, purpose);
        let uuids: Vec<&str> = task.devices.iter().map(|device| device.uuid.as_str()).collect();
        let all = ["MIG-0", "MIG-1", "MIG-2", "MIG-3", "MIG-4", "MIG-5", "MIG-6", "GPU-1"];
        assert_eq!((uuids.as_slice(), task.phases()), (&all[..], Phase::ALL.to_vec()));
        for slice in &task.devices[..7] {
            let (fill, gemm) = (slice.fill.expect("a fill"), slice.gemm.expect("products"));
            let bytes = fill.bytes + (u64::from(gemm.m) + u64::from(gemm.n)) * u64::from(gemm.k);
            assert!(fill.bytes > 8_500 << 20 && bytes < 9_856 << 20, "{fill:?} {gemm:?}");
        }
    }
}

#[test]
fn a_slice_has_the_class_of_measured_slices_or_none_whatever_whole_device_does_as_much() {
    let slice = cut("NVIDIA H100 80GB HBM3", 1).parts().remove(0);
    let mut catalogue = measured(&[]);
    let a100 = named(&catalogue, "a100-40").clone();
    let shown = middle(&a100);
    let whole = device(0, &slice.model.replace(" MIG ", " "), 40_960);
    assert_eq!(class_of(&judged(&catalogue, &whole, &shown)), Some("a100-40"));
    assert_eq!(
        why_unrated(&judged(&catalogue, &slice, &shown)),
        "nobody has measured slices that do what it does"
    );
    let of_slices = Class { name: "h100-1g".into(), models: vec![slice.model.clone()], ..a100 };
    catalogue.classes.push(of_slices);
    assert_eq!(class_of(&judged(&catalogue, &slice, &shown)), Some("h100-1g"));
    assert_eq!(
        class_of(&judged(&catalogue, &whole, &shown)),
        Some("a100-40"),
        "nor is it the other way round"
    );
    let challenge = sizes(&[cut("NVIDIA H100 80GB HBM3", 1)], RAM, AGAIN);
    let shown = DeviceProven { uuid: "MIG-0".into(), ..shown };
    let claims = [cut("NVIDIA H100 80GB HBM3", 1)];
    let judged = nave_rules::judge_devices(&claims, &Task::Devices(challenge), &[shown]);
    assert_eq!(judged.iter().map(|judged| judged.uuid.as_str()).collect::<Vec<_>>(), ["MIG-0"]);
}

/// A host of eight devices of a class that has as much memory for each core as hosts of eight have, and no more than
/// most: 12 GiB.
fn host_of_eight(class: &Class) -> Inventory {
    Inventory {
        milli_cpu: MilliCpu(170_000),
        memory: Bytes(2_040 * Bytes::GIB),
        disk: Bytes(1 << 40),
        devices: (0..8).map(|slot| honest(class, slot)).collect(),
        cpu_model: "of the reference rate".into(),
        os: "test".into(),
        kernel: "test".into(),
        runtime: Runtime::Docker { version: "28".into() },
        egress: Vec::new(),
        agent: "test".into(),
    }
}

// Cores come first and alone; then devices are filled while memory is tested, and go on once both are done.
#[test]
fn no_class_needs_more_than_a_minute_for_everything() {
    let catalogue = catalogue();
    for class in catalogue.classes.iter().filter(|class| class.unrated.is_none()) {
        let claims = host_of_eight(class);
        let phases_ms = calculated_ms(&catalogue, class, &eight(class), size::middle);
        let total_ms = calculated_suite_ms(&claims, Millis(5_000), &phases_ms);
        let memory_ms = calculated_memory_ms(claims.memory, claims.milli_cpu);
        assert!(total_ms > 5_000 + memory_ms && memory_ms > 25_000, "{memory_ms} ms");
        assert!(total_ms <= 60_000, "{}: {memory_ms} and {phases_ms:?} are {total_ms} ms", class.name);
    }
}

#[test]
fn what_is_not_tested_beside_memory_is_counted_after_it() {
    let catalogue = catalogue();
    let class = named(&catalogue, "h200");
    let claims = host_of_eight(class);
    let phases_ms = [20_000, 1, 1, 1, 1, 1];
    let memory_ms = calculated_memory_ms(claims.memory, claims.milli_cpu);
    let suite_ms = |claims: &Inventory| calculated_suite_ms(claims, Millis(5_000), &phases_ms);
    assert!(fills_beside_memory(&claims));
    assert_eq!(suite_ms(&claims), 5_000 + memory_ms.max(20_000) + 5);
    let simulated = host_of_eight(named(&catalogue, "simulated"));
    assert!(!fills_beside_memory(&simulated), "it computes on the host's cores");
    assert_eq!(suite_ms(&simulated), 5_000 + memory_ms + 20_000 + 5);
}

#[test]
fn a_copy_that_stays_in_a_device_would_be_seen_by_its_lanes() {
    let catalogue = catalogue();
    for class in catalogue.classes.iter().filter(|class| !class.simulated) {
        let task = eight(class);
        let (fill, spill) = (task.fill.expect("a fill"), task.spill.expect("a spill"));
        let vram = u64::try_from(honest(class, 0).vram.0).expect("memory");
        let missing = (spill.bytes.saturating_sub(vram - fill.bytes)) * 1_000 / fill.bytes;
        let slowest = class.bands[&Measure::ReadsPerS].low;
        let seen = detectable_permille(class.hashes_per_s_max(), fill.depth, slowest);
        assert!(missing > seen, "{}: {missing} ‰ would be missing, and {seen} ‰ are seen", class.name);
    }
}

#[test]
fn no_name_leaves_out_a_phase_for_a_device_or_for_those_beside_it() {
    let catalogue = catalogue();
    let h200 = device(0, "NVIDIA H200", 143_771);
    let alone = task(&h200).gemm;
    let without = catalogue.classes.iter().filter(|class| class.test.gemm.is_none());
    let names: Vec<&String> = without.flat_map(|class| &class.models).collect();
    assert!(names.iter().any(|name| *name == "NVIDIA B300"), "{names:?}");
    for name in names {
        let devices = [h200.clone(), device(1, name, 15_360)];
        for purpose in [ONBOARDING, AGAIN] {
            let task = sizes(&devices, RAM, purpose);
            assert_eq!(task.phases(), Phase::ALL, "{name}");
        }
        assert_eq!(sizes(&devices, RAM, AGAIN).devices[0].gemm, alone, "{name} changes nothing for another");
        let small = sizes(&devices, RAM, small(1 << 30));
        assert_eq!((small.phases(), small.devices.len()), (vec![Phase::Gemm], 2), "{name}");
    }
}

#[test]
fn a_model_without_products_of_its_own_multiplies_as_one_that_nobody_knows() {
    let gemm = |model| task(&device(0, model, 275_040)).gemm;
    assert_eq!(gemm("NVIDIA B300"), gemm("a card that nobody knows"));
}

#[test]
fn every_step_waits_some_times_as_long_as_the_slowest_honest_device_needs() {
    let catalogue = catalogue();
    for class in catalogue.classes.iter().filter(|class| class.unrated.is_none()) {
        let task = sizes(&[honest(class, 0)], RAM, AGAIN);
        let (device, low) = (&task.devices[0], |measure| u128::from(class.bands[&measure].low));
        let gemm = device.gemm.expect("products");
        let ops = [2, gemm.rounds, gemm.m, gemm.n, gemm.k].into_iter().map(u128::from).product::<u128>();
        let needed_ms = ops * 1_000 / low(Measure::OpsPerS);
        let patience_ms = task.patience_ms[1].0.unsigned_abs();
        assert!(u128::from(patience_ms) >= 2 * needed_ms, "{}: {patience_ms} for {needed_ms}", class.name);
        assert!(task.patience_ms.iter().all(|most| *most <= Millis(600_000)), "{:?}", task.patience_ms);
    }
}

#[test]
fn a_slow_device_makes_its_whole_host_be_waited_for() {
    let fast = device(0, "NVIDIA H200", 143_771);
    let slow = device(1, "NVIDIA L4", 23_034);
    let alone = sizes(std::slice::from_ref(&slow), RAM, AGAIN).patience_ms;
    let both = sizes(&[fast, slow], RAM, AGAIN).patience_ms;
    assert!(alone.iter().zip(&both).all(|(alone, both)| both >= alone));
}

#[test]
fn a_small_proof_fits_into_what_customers_do_not_get() {
    for (mib, slack) in [(143_771, 2 << 30), (24_564, 1 << 30), (8_192, 256 << 20), (8_192, 64 << 20)] {
        let device = device(0, "NVIDIA H200", mib);
        let task = sizes(&[device], RAM, small(slack));
        assert_eq!(task.phases(), [Phase::Gemm]);
        let gemm = task.devices[0].gemm.expect("products");
        let bytes = (u64::from(gemm.m) + u64::from(gemm.n)) * u64::from(gemm.k);
        assert!(bytes <= slack.unsigned_abs() && gemm.samples == 256, "{slack}: {gemm:?}");
    }
    let none = small(1);
    assert!(size(&catalogue(), &[device(0, "NVIDIA H200", 143_771)], RAM, none).is_err());
}

#[test]
fn beside_a_job_a_device_that_nobody_has_measured_has_time_for_a_fourth_of_what_it_did_itself() {
    let shown = [("GPU-0".to_owned(), 500 * TOPS), ("GPU-1".to_owned(), 40 * TOPS)].into();
    let sized = |catalogue: &Catalogue, devices: &[Device]| {
        let purpose = Purpose::Small { slack: Bytes(384 << 20), shown: &shown };
        let Ok(Task::Devices(task)) = size(catalogue, devices, RAM, purpose) else { panic!("a test") };
        task
    };
    let ops = |task: &DevicesTask, slot: usize| {
        let gemm = task.devices[slot].gemm.expect("products");
        [2, gemm.rounds, gemm.m, gemm.n, gemm.k].into_iter().map(u64::from).product::<u64>()
    };
    let unknown = [device(0, "a card that nobody knows", 81_920), device(1, "another", 24_564)];
    let task = sized(&catalogue(), &unknown);
    for (slot, per_s) in [(0, 500 * TOPS), (1, 40 * TOPS)] {
        let ms = ops(&task, slot) / (per_s / 1_000);
        assert!((4_000..4_100).contains(&ms), "{ms} ms when it is free");
    }
    let most = task.patience_ms[0].0;
    assert!((20_000..20_500).contains(&most), "{most} ms beside a job");
    let strangers = [device(2, "a card that nobody knows", 81_920)];
    assert_eq!(sized(&catalogue(), &strangers), sizes(&strangers, RAM, SMALL), "it was never tested whole");
    let calculated = [device(0, "NVIDIA H100 PCIe", 81_559)];
    assert!(
        sized(&catalogue(), &calculated) != sizes(&calculated, RAM, SMALL),
        "nobody has measured one yet"
    );
    let class = measured(&[]);
    let known = |purpose| size(&class, &calculated, RAM, purpose);
    assert_eq!(
        known(Purpose::Small { slack: Bytes(384 << 20), shown: &shown }),
        known(SMALL),
        "it has a band"
    );
}

#[test]
fn two_dozen_simulated_devices_cost_their_processor_seconds() {
    let devices: Vec<Device> = (0..8).map(simulated).collect();
    let task = sizes(&devices, Bytes(8 << 30), ONBOARDING);
    let (mut compressions, mut products) = (0, 0);
    for device in &task.devices {
        let (fill, gemm) = (device.fill.expect("a fill"), device.gemm.expect("products"));
        compressions += 2 * (fill.bytes / 32) * u64::from(fill.depth);
        products += [gemm.rounds, gemm.m, gemm.n, gemm.k].into_iter().map(u64::from).product::<u64>();
    }
    // A core does about 10 million compressions and 500 million products in a second, or more.
    assert!(3 * (compressions / 10_000_000 + products / 500_000_000) <= 10, "{compressions}, {products}");
}

#[test]
fn what_nobody_has_measured_is_unrated_and_never_refused() {
    let catalogue = catalogue();
    for class in catalogue.classes.iter().filter(|class| !catalogue.is_calibrated(class)) {
        let claim = honest(class, 1);
        assert!(!why_unrated(&judged(&catalogue, &claim, &middle(class))).is_empty(), "{}", class.name);
        let slow = DeviceProven {
            ops_per_s: Some(1),
            bytes_per_s: Some(1),
            reads_per_s: Some(1),
            return_bytes_per_s: Some(1),
            hashes_per_s: Some(1),
            ..middle(class)
        };
        assert!(!why_unrated(&judged(&catalogue, &claim, &slow)).is_empty(), "{}", class.name);
    }
    let h100 = named(&catalogue, "h100-sxm");
    let judged = judged(&catalogue, &honest(h100, 1), &middle(h100));
    assert_eq!(
        judged.detail(),
        "GPU-1 is unrated: it does what an NVIDIA H100 SXM is expected to do, but nobody has measured one yet; \
         at most 1.4 % of its memory can have been missing"
    );
}

#[test]
fn no_class_of_real_devices_has_been_measured() {
    let catalogue = catalogue();
    for class in catalogue.classes.iter().filter(|class| !class.simulated) {
        assert!(
            class.bands.values().all(|band| band.samples == 0 && band.spread.is_empty()),
            "{}",
            class.name
        );
    }
}

#[test]
fn a_band_of_too_few_measurements_gives_no_class() {
    let mut catalogue = measured(&["l4"]);
    let l4 = named(&catalogue, "l4").clone();
    let claim = honest(&l4, 1);
    assert_eq!(class_of(&judged(&catalogue, &claim, &middle(&l4))), Some("l4"));
    let few = catalogue.samples_min - 1;
    let class = catalogue.classes.iter_mut().find(|class| class.name == "l4").expect("a class");
    class.bands.values_mut().for_each(|band| band.samples = few);
    assert_eq!(class_of(&judged(&catalogue, &claim, &middle(&l4))), None);
}

#[test]
fn every_measured_class_is_what_its_devices_get() {
    let catalogue = measured(&[]);
    for class in catalogue.classes.iter().filter(|class| class.unrated.is_none()) {
        let judged = judged(&catalogue, &honest(class, 1), &middle(class));
        assert_eq!(class_of(&judged), Some(class.name.as_str()), "{judged:?}");
    }
}

#[test]
fn a_lower_model_claimed_as_a_higher_one_is_refused_with_both_numbers() {
    let catalogue = measured(&[]);
    let claim = device(1, "NVIDIA H100 80GB HBM3", 81_559);
    let proven = DeviceProven { ops_per_s: Some(240 * TOPS), ..middle(named(&catalogue, "h100-sxm")) };
    let judged = judged(&catalogue, &claim, &proven);
    let refusal = refusal(&judged);
    assert_eq!(refusal.code, Reason::DeviceMismatch);
    assert_eq!(
        refusal.message,
        "GPU-1 claims to be an NVIDIA H100 SXM, which does 890 to 1390 TOPS; it did 240 TOPS"
    );
}

#[test]
fn every_lower_class_is_refused_as_a_higher_one() {
    let catalogue = measured(&[]);
    let classes: Vec<&Class> =
        catalogue.classes.iter().filter(|class| class.unrated.is_none() && !class.simulated).collect();
    for (lower, higher) in classes.iter().flat_map(|lower| classes.iter().map(move |higher| (lower, higher)))
    {
        let (did, most) = (middle(lower).ops_per_s, higher.bands[&Measure::OpsPerS].low);
        if did.is_some_and(|did| did < most) {
            let judged = judged(&catalogue, &honest(higher, 1), &middle(lower));
            assert!(matches!(judged.rating, Rating::Refused(_)), "{} as {}", lower.name, higher.name);
        }
    }
}

#[test]
fn memory_that_answers_too_slowly_is_missing() {
    let catalogue = measured(&["l40s"]);
    let l40s = named(&catalogue, "l40s");
    let claim = honest(l40s, 1);
    let slow = |proven: DeviceProven| judged(&catalogue, &claim, &proven);
    let reads = slow(DeviceProven { reads_per_s: Some(80_000_000), ..middle(l40s) });
    assert_eq!(refusal(&reads).code, Reason::VramMissing);
    assert_eq!(
        refusal(&reads).message,
        "GPU-1 claims to be an NVIDIA L40S, which does 1.4 to 16 billion reads/s all over its memory; it did \
         80 million reads/s: part of the memory was elsewhere"
    );
    let back = slow(DeviceProven { return_bytes_per_s: Some(400_000_000), ..middle(l40s) });
    assert_eq!(refusal(&back).code, Reason::ReturnTooSlow);
    assert_eq!(
        refusal(&back).message,
        "GPU-1 claims to be an NVIDIA L40S, to which its host's memory gives back at least 3 GB/s; it gave back \
         0.4 GB/s"
    );
}

#[test]
fn a_card_with_other_memory_than_its_model_has_is_no_such_model() {
    let catalogue = measured(&[]);
    let modded = DeviceProven { vram: Some(Bytes(46 << 30)), ..middle(named(&catalogue, "rtx-4090")) };
    let claim = device(1, "NVIDIA GeForce RTX 4090", 49_140);
    assert_eq!(class_of(&judged(&catalogue, &claim, &modded)), None);
}

#[test]
fn a_re_marked_card_is_what_it_does() {
    let catalogue = measured(&[]);
    let real = middle(named(&catalogue, "rtx-3090"));
    let unheard_of = device(1, "NVIDIA GeForce RTX 3099 Ti", 24_576);
    assert_eq!(class_of(&judged(&catalogue, &unheard_of, &real)), Some("rtx-3090"));
    let faster = middle(named(&catalogue, "rtx-4090"));
    let lower = device(1, "NVIDIA A10", 24_564);
    assert_eq!(class_of(&judged(&catalogue, &lower, &faster)), Some("rtx-4090"), "whatever is printed on it");
    let higher = device(1, "NVIDIA GeForce RTX 4090", 24_564);
    assert_eq!(refusal(&judged(&catalogue, &higher, &real)).code, Reason::DeviceMismatch);
}

// The bands of the portable kernel touch: an A100 under full load does up to 560 TOPS, an H100 PCIe
// whose power is capped as little as 545, and memory and bandwidth are the same. What both could have done
// has no class. A kernel for wgmma would move the H100 up and leave the A100, which has none, where it is.
#[test]
fn an_a100_and_an_h100_pcie_are_told_apart_only_where_their_bands_do_not_touch() {
    let catalogue = measured(&[]);
    let (a100, h100) = (named(&catalogue, "a100-80"), named(&catalogue, "h100-pcie"));
    let both =
        DeviceProven { ops_per_s: Some(550 * TOPS), bytes_per_s: Some(1_800_000_000_000), ..middle(a100) };
    for claim in [honest(a100, 1), honest(h100, 1), device(1, "any", 81_920)] {
        let judged = judged(&catalogue, &claim, &both);
        let why = why_unrated(&judged);
        assert!(why.contains("an NVIDIA A100 80 GB or an NVIDIA H100 PCIe"), "{why}");
    }
    for (tops, class) in [(450, "a100-80"), (800, "h100-pcie")] {
        let proven = DeviceProven { ops_per_s: Some(tops * TOPS), ..both.clone() };
        assert_eq!(class_of(&judged(&catalogue, &device(1, "any", 81_920), &proven)), Some(class));
    }
}

#[test]
fn a_rival_that_nobody_has_measured_keeps_a_class_from_being_given() {
    let catalogue = measured(&["a100-80"]);
    let a100 = named(&catalogue, "a100-80");
    let both =
        DeviceProven { ops_per_s: Some(550 * TOPS), bytes_per_s: Some(1_800_000_000_000), ..middle(a100) };
    assert_eq!(class_of(&judged(&catalogue, &honest(a100, 1), &both)), None);
    assert_eq!(class_of(&judged(&catalogue, &honest(a100, 1), &middle(a100))), Some("a100-80"));
}

#[test]
fn what_no_test_can_rate_says_why() {
    let catalogue = measured(&[]);
    for (name, mib) in [("v100-32", 32_768), ("b300", 275_040), ("t4", 15_360)] {
        let class = named(&catalogue, name);
        let judged = judged(&catalogue, &device(1, &class.models[0], mib), &middle(class));
        let why = why_unrated(&judged);
        assert!(why.contains("tensor cores"), "{name}: {why}");
    }
}

#[test]
fn a_band_in_shadow_is_recorded_and_refuses_nobody() {
    let mut catalogue = measured(&["l4"]);
    let l4 = named(&catalogue, "l4").clone();
    let class = catalogue.classes.iter_mut().find(|class| class.name == "l4").expect("a class");
    class.bands.get_mut(&Measure::ReturnBytesPerS).expect("a band").shadow = true;
    let slow = DeviceProven { return_bytes_per_s: Some(1), ..middle(&l4) };
    let claim = honest(&l4, 1);
    let judged = judged(&catalogue, &claim, &slow);
    assert_eq!(class_of(&judged), Some("l4"));
    let seen =
        [&slow, &middle(&l4)].map(|proven| of_bands(&catalogue, &claim, (&task(&claim), proven), true));
    let counts = false_reject_rate(&seen.concat());
    assert_eq!(counts["return_bytes_per_s of l4"], Count { passed: 2, falsely: 1, rightly: 0 });
    assert_eq!(
        judged.shadows.iter().map(|failure| failure.code).collect::<Vec<_>>(),
        [Reason::ReturnTooSlow]
    );
}

#[test]
fn a_name_that_nobody_knows_does_not_spare_a_host_the_way_to_its_memory() {
    let catalogue = measured(&["l4"]);
    let l4 = named(&catalogue, "l4");
    let relayed = DeviceProven { return_bytes_per_s: Some(100_000_000), ..middle(l4) };
    let judged = judged(&catalogue, &device(1, "a card that nobody knows", 23_034), &relayed);
    assert_eq!(refusal(&judged).code, Reason::ReturnTooSlow);
    assert!(refusal(&judged).message.starts_with("GPU-1 computes like an NVIDIA L4, "), "{judged:?}");
}

/// What is made of a device that does so much beside a job.
fn beside_a_job(catalogue: &Catalogue, claim: &Device, ops_per_s: u64) -> Judged {
    let small = sizes(std::slice::from_ref(claim), RAM, SMALL);
    let proven = DeviceProven {
        uuid: claim.uuid.clone(),
        ops_per_s: Some(ops_per_s),
        vram: None,
        hashes_per_s: None,
        reads_per_s: None,
        bytes_per_s: None,
        return_bytes_per_s: None,
    };
    classify(catalogue, claim, &small.devices[0], &proven)
}

#[test]
fn beside_a_job_a_device_does_a_fourth_of_its_band_or_is_throttled() {
    let catalogue = measured(&["h200"]);
    let claim = honest(named(&catalogue, "h200"), 1);
    for enough in [890 * TOPS / SHARED, 890 * TOPS, 1_390 * TOPS] {
        let judged = beside_a_job(&catalogue, &claim, enough);
        assert_eq!(why_unrated(&judged), "it was only looked at beside a job");
    }
    let judged = beside_a_job(&catalogue, &claim, 890 * TOPS / SHARED - 1);
    assert_eq!(refusal(&judged).code, Reason::DeviceThrottled);
    assert_eq!(
        refusal(&judged).message,
        "GPU-1 claims to be an NVIDIA H200, which does 890 to 1390 TOPS; beside a job it did 222 TOPS, less than a \
         fourth"
    );
}

#[test]
fn beside_a_job_nobody_is_refused_for_what_was_not_measured_or_is_in_shadow() {
    let mut catalogue = catalogue();
    let claim = honest(named(&catalogue, "h200"), 1);
    assert!(!why_unrated(&beside_a_job(&catalogue, &claim, 1)).is_empty());
    let nameless = device(1, "a card that nobody knows", 143_771);
    assert!(!why_unrated(&beside_a_job(&measured(&[]), &nameless, 1)).is_empty());
    let simulated = simulated(1);
    assert_eq!(refusal(&beside_a_job(&catalogue, &simulated, 1)).code, Reason::DeviceThrottled);
    let class = catalogue.classes.iter_mut().find(|class| class.simulated).expect("a class");
    class.bands.get_mut(&Measure::OpsPerS).expect("a band").shadow = true;
    let judged = beside_a_job(&catalogue, &simulated, 1);
    let shadows: Vec<Reason> = judged.shadows.iter().map(|failure| failure.code).collect();
    assert_eq!((why_unrated(&judged).is_empty(), shadows), (false, vec![Reason::DeviceThrottled]));
}

#[test]
fn the_way_of_an_answer_is_a_small_part_of_a_small_proof() {
    const WAY_MS: u64 = 300;
    let catalogue = catalogue();
    for class in catalogue.classes.iter().filter(|class| class.unrated.is_none()) {
        let small = sizes(&[honest(class, 1)], RAM, SMALL);
        let at = |rate: fn(&Band) -> u64| {
            calculated_ms(&catalogue, class, &small.devices[0], rate).iter().sum::<u64>()
        };
        assert!(WAY_MS * 5 < at(|band| band.low), "{}: {} ms", class.name, at(|band| band.low));
        // The fastest of its class is so much faster that the way costs it nothing that counts.
        let (low, high) = (at(|band| band.low), at(|band| band.high.unwrap_or(band.low)));
        assert!(high + WAY_MS <= low * SHARED, "{}: {high} and {low} ms", class.name);
        let gemm = small.devices[0].gemm.expect("products");
        assert!(class.simulated || (gemm.m >= 4_096 && gemm.rounds < 4_096), "{}: {gemm:?}", class.name);
    }
}

#[test]
fn what_a_verdict_says_of_missing_memory_follows_from_the_rates() {
    // 12 billion compressions, 64 for a block, 5 billion reads: 1.5 * 12 / 320 = 5.625 %.
    assert_eq!(detectable_permille(12_000_000_000, 64, 5_000_000_000), 57);
    assert_eq!(detectable_permille(12_000_000_000, 128, 5_000_000_000), 29);
    assert_eq!(detectable_permille(u64::MAX, 1, 1), 1_000);
    assert_eq!(detectable_permille(1, 1, 0), 1_000);
}

/// Draws that follow one another from a fixed start: what is tested today is tested tomorrow.
struct Dice(u64);

impl Dice {
    /// SplitMix64.
    fn throw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, most: u64) -> u64 {
        self.throw() % most.max(1)
    }

    /// A measurement as they were spread. Beyond the least and the most that were seen, which as many
    /// measurements as there were leave to one in as many, each twentieth of all is half as likely again.
    fn measure(&mut self, band: &Band) -> u64 {
        let spread: Vec<u64> = band.spread.iter().copied().map(u64::from).collect();
        let last = spread.len() - 1;
        let beyond = u64::from(self.throw().trailing_zeros());
        let permille = match self.below(u64::from(band.samples) + 1) {
            0 if self.below(2) == 0 => spread[0].saturating_sub(beyond * (spread[1] - spread[0])),
            0 => spread[last] + beyond * (spread[last] - spread[last - 1]),
            _ => {
                let (step, part) = (self.below(last as u64) as usize, self.below(1_001));
                spread[step] + (spread[step + 1] - spread[step]) * part / 1_000
            }
        };
        band.median.expect("a median") / 1_000 * permille
    }
}

// 0.999^n: how likely it is that n measurements show none of the slowest thousandth.
#[test]
fn no_class_counts_whose_bands_rest_on_too_few_measurements_to_know_one_in_a_thousand() {
    let catalogue = catalogue();
    for class in catalogue.classes.iter().filter(|class| catalogue.is_calibrated(class)) {
        for (measure, band) in &class.bands {
            let unseen = (0..band.samples).fold(1_000_000_000_u64, |unseen, _| unseen * 999 / 1_000);
            assert!(unseen <= 50_000_000, "{} {measure}: {} measurements", class.name, band.samples);
        }
    }
}

// A thousandth of the honest may miss a band: that is what a band is.
#[test]
fn honest_devices_of_every_calibrated_class_get_it_at_the_999th_thousandth_of_the_measured_noise() {
    const TRIALS: u32 = 100_000;
    let catalogue = catalogue();
    let calibrated: Vec<&Class> =
        catalogue.classes.iter().filter(|class| catalogue.is_calibrated(class)).collect();
    assert_eq!(calibrated.iter().map(|class| class.name.as_str()).collect::<Vec<_>>(), ["simulated"]);
    for class in calibrated {
        let (claim, mut dice, mut missed) = (honest(class, 1), Dice(4), 0);
        let task = task(&claim);
        for _ in 0..TRIALS {
            let mut of = |measure: Measure| dice.measure(&class.bands[&measure]);
            let proven = DeviceProven {
                uuid: claim.uuid.clone(),
                ops_per_s: Some(of(Measure::OpsPerS)),
                vram: Some(Bytes(task.fill.expect("a fill").bytes.cast_signed())),
                hashes_per_s: Some(of(Measure::HashesPerS)),
                reads_per_s: Some(of(Measure::ReadsPerS)),
                bytes_per_s: Some(of(Measure::BytesPerS)),
                return_bytes_per_s: Some(of(Measure::ReturnBytesPerS)),
            };
            let judged = classify(&catalogue, &claim, &task, &proven);
            missed += u32::from(class_of(&judged) != Some(&class.name));
        }
        assert!(missed <= TRIALS / 1_000, "{}: {missed} of {TRIALS}", class.name);
    }
}

// What the attack of a live market shows, too: eight devices that are one take eight times as long.
#[test]
fn a_simulated_device_that_is_shared_by_eight_is_refused() {
    let catalogue = catalogue();
    let class = named(&catalogue, "simulated");
    let eighth = |measure: Measure| class.bands[&measure].median.map(|median| median / 8);
    let proven = DeviceProven { ops_per_s: eighth(Measure::OpsPerS), ..middle(class) };
    let judged = judged(&catalogue, &simulated(1), &proven);
    assert_eq!(refusal(&judged).code, Reason::DeviceMismatch);
    assert!(refusal(&judged).message.starts_with("SIM-1 claims to be a simulated device, which does "));
}

/// Any measurements, those of honest devices among them.
fn any_proven() -> impl Strategy<Value = DeviceProven> {
    let classes = catalogue().classes;
    (0..classes.len(), prop::array::uniform6(500_u64..1_500)).prop_map(move |(class, share)| {
        let middle = middle(&classes[class]);
        let moved = |measure, share: u64| amount(&middle, measure).map(|amount| amount / 1_000 * share);
        DeviceProven {
            uuid: "GPU-1".into(),
            ops_per_s: moved(Measure::OpsPerS, share[0]),
            vram: moved(Measure::Vram, share[1]).map(|bytes| Bytes(bytes.cast_signed())),
            hashes_per_s: moved(Measure::HashesPerS, share[2]),
            reads_per_s: moved(Measure::ReadsPerS, share[3]),
            bytes_per_s: moved(Measure::BytesPerS, share[4]),
            return_bytes_per_s: moved(Measure::ReturnBytesPerS, share[5]),
        }
    })
}

fn any_model() -> impl Strategy<Value = String> {
    let known: Vec<String> = catalogue().classes.into_iter().flat_map(|class| class.models).collect();
    prop_oneof![prop::sample::select(known), ".{0,40}"]
}

proptest! {
    #[test]
    fn no_string_of_a_driver_changes_a_class(
        proven in any_proven(), models in prop::array::uniform2(any_model()), drivers in prop::array::uniform2(".{0,20}"),
    ) {
        let catalogue = measured(&[]);
        let task = task(&device(1, "any", 24_576));
        let judged = |model: &String, driver: &String| {
            let claim = Device { driver: driver.clone(), ..device(1, model, 24_576) };
            classify(&catalogue, &claim, &task, &proven)
        };
        let (one, other) = (judged(&models[0], &drivers[0]), judged(&models[1], &drivers[1]));
        // A claim can be refused; it never makes another class of the same measurements.
        let is_refused = |judged: &Judged| matches!(judged.rating, Rating::Refused(_));
        if !is_refused(&one) && !is_refused(&other) {
            prop_assert_eq!(class_of(&one), class_of(&other));
        }
    }
}
