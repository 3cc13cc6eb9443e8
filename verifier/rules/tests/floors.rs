//! Which software refuses a host, which is only recorded, and which is none of anybody's business.

use nave_domain::{Bytes, ChallengeId, HostId, Millis, Timestamp};
use nave_proof::{
    Challenge, Digest, Evidence, Failure, Findings, Nonce, Proven, Reason, Span, Task, Verdict,
    findings::{Component, Driver, Engine, Holder, Mapped, Mount, Preloaded, Trial},
};
use nave_rules::floors::{Floors, judge, recorded as looked_at, weigh};
use proptest::prelude::*;
use uuid::Uuid;

fn component(name: &str, version: &str) -> Component {
    Component { name: name.into(), version: version.into() }
}

/// A host as it should be.
fn sound() -> Findings {
    Findings {
        nonce: Nonce([1; 32]),
        kernel: "6.8.0-51-generic".into(),
        architecture: "x86_64".into(),
        boot: Digest([2; 32]),
        driver: Some(Driver { module: Some("580.178.04".into()), library: Some("580.178.04".into()) }),
        engine: Some(Engine {
            version: "28.5.2".into(),
            api: "1.51".into(),
            components: vec![component("Engine", "28.5.2"), component("runc", "1.3.3")],
            runtimes: vec!["nvidia".into(), "runc".into()],
        }),
        toolkit: vec![component("nvidia-ctk", "1.19.1")],
        preloaded: Preloaded::default(),
        mounts: vec![],
        mapped: vec![
            Mapped { path: "/usr/lib/x86_64-linux-gnu/libc.so.6".into(), replaced: false },
            Mapped { path: "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.580.178.04".into(), replaced: false },
        ],
        holders: vec![],
        container: Trial::Works,
        gpus: Trial::Works,
    }
}

fn refused(change: impl Fn(&mut Findings)) -> Option<Failure> {
    let mut findings = sound();
    change(&mut findings);
    judge(&findings).err()
}

/// The checks that recorded something, of a host that they do not refuse.
fn recorded(change: impl Fn(&mut Findings)) -> Vec<String> {
    let mut findings = sound();
    change(&mut findings);
    let judged = Floors::embedded().expect("floors").judge(&findings);
    assert_eq!(judged.refused, None);
    judged.shadows.into_iter().map(|(check, _)| check).collect()
}

fn reason(change: impl Fn(&mut Findings)) -> Option<Reason> {
    refused(change).map(|failure| failure.code)
}

fn runc(version: &'static str) -> impl Fn(&mut Findings) {
    move |found| {
        found.engine.iter_mut().for_each(|engine| engine.components = vec![component("runc", version)])
    }
}

#[test]
fn a_host_as_it_should_be_is_neither_refused_nor_recorded() {
    assert_eq!(judge(&sound()), Ok(()));
    assert!(recorded(|_| ()).is_empty());
    let bare = |found: &mut Findings| {
        (found.driver, found.engine, found.toolkit) = (None, None, vec![]);
        (found.container, found.gpus) = (Trial::NotApplicable, Trial::NotApplicable);
    };
    assert!(recorded(bare).is_empty(), "a host with nothing but a processor");
}

#[test]
fn a_toolkit_that_lets_containers_escape_is_refused_and_the_message_says_what_to_install() {
    for version in ["1.16.1", "1.17.8", "1.19.0", "0.9"] {
        let failure = refused(|found| found.toolkit = vec![component("nvidia-ctk", version)]);
        let failure = failure.expect("an old toolkit");
        assert_eq!(failure.code, Reason::SoftwareOutdated);
        assert_eq!(
            failure.message,
            format!(
                "the NVIDIA Container Toolkit of version {version} is too old; install 1.19.1 or newer, without \
                 CVE-2024-0132, CVE-2025-23359, CVE-2025-23266, CVE-2025-23267, CVE-2026-24260"
            )
        );
    }
    for version in ["1.19.1", "1.19.10", "1.20.0", "2.0"] {
        assert_eq!(
            refused(|found| found.toolkit = vec![component("nvidia-ctk", version)]),
            None,
            "{version}"
        );
    }
}

#[test]
fn a_driver_is_compared_with_its_own_branch() {
    let with = |version: &'static str| {
        reason(move |found| found.driver = Some(Driver { module: Some(version.into()), library: None }))
    };
    for version in ["535.216.01", "535.274.02", "550.127.05", "565.57.01", "580.65.06"] {
        assert_eq!(with(version), None, "{version}");
    }
    for version in ["470.256.02", "535.183.06", "545.29.06", "550.90.07", "560.35.03"] {
        assert_eq!(with(version), Some(Reason::SoftwareOutdated), "{version}");
    }
}

#[test]
fn a_driver_with_flaws_of_this_year_is_recorded_only() {
    let with = |version: &'static str| {
        recorded(move |found| found.driver = Some(Driver { module: Some(version.into()), library: None }))
    };
    assert_eq!(with("570.195.03"), ["driver-2026-05", "driver-2026-09"]);
    assert_eq!(with("580.159.03"), ["driver-2026-09"]);
    assert_eq!(with("535.309.01"), ["driver-2026-09"]);
    assert!(["580.178.04", "610.57.04", "620.1"].into_iter().all(|version| with(version).is_empty()));
}

#[test]
fn flaws_that_distributors_fix_under_old_numbers_are_recorded_only() {
    assert_eq!(reason(runc("1.1.11")), Some(Reason::SoftwareOutdated));
    assert_eq!(recorded(runc("1.1.5+ds1-1+deb12u1")), ["runc-fd", "runc-mounts"]);
    assert_eq!(recorded(runc("1.3.0")), ["runc-mounts"]);
    assert_eq!(recorded(runc("no version")), ["runc-fd", "runc-mounts"]);
    assert!(recorded(runc("1.2.9")).is_empty());
}

#[test]
fn a_kernel_that_nobody_maintains_is_refused() {
    let with = |version: &'static str| reason(move |found| found.kernel = version.into());
    assert_eq!(with("3.10.0-1160.el7.x86_64"), Some(Reason::SoftwareOutdated));
    assert_eq!([with("4.18.0-553.el8_10.x86_64"), with("5.4.0-1"), with("6.18")], [None, None, None]);
}

#[test]
fn what_stands_between_a_prover_and_its_driver_is_refused() {
    let preload = |entry: &'static str| {
        refused(move |found| found.preloaded.everywhere = vec![entry.into()]).map(|failure| failure.message)
    };
    assert_eq!(
        preload("/usr/lib/hook.so").as_deref(),
        Some("/etc/ld.so.preload loads /usr/lib/hook.so into every program")
    );
    assert_eq!(preload("libarmmem-${PLATFORM}.so"), None);
    let text = |text: &str| text.to_owned();
    let mount = Mount {
        covers: text("/usr/lib64/libcuda.so.1"),
        point: text("/usr/lib64/libcuda.so.1"),
        kind: text("ext4"),
        root: text("/tmp/hook.so"),
    };
    let failure = refused(|found| found.mounts = vec![mount.clone()]).expect("a mount over the driver");
    assert_eq!(failure.code, Reason::DriverTampered);
    assert_eq!(failure.message, "/tmp/hook.so of ext4 is mounted over /usr/lib64/libcuda.so.1");
}

#[test]
fn what_may_be_honest_is_recorded_only() {
    let library = |path: &str, replaced| Mapped { path: path.into(), replaced };
    assert_eq!(recorded(|found| found.mapped.push(library("/tmp/hook.so", false))), ["libraries"]);
    assert_eq!(recorded(|found| found.mapped.push(library("/usr/lib/libcuda.so.1", true))), ["replaced"]);
    let preload = "LD_PRELOAD=/usr/lib/libjemalloc.so".to_owned();
    assert_eq!(recorded(|found| found.preloaded.environment = vec![preload.clone()]), ["variables"]);
}

#[test]
fn what_is_recorded_is_counted_whether_it_fails_or_not() {
    let mut found = sound();
    let of = |found: &Findings| looked_at(&Proven::Software(Box::new(found.clone())));
    let all = ["driver-2026-05", "driver-2026-09", "libraries", "replaced", "runc-mounts", "variables"];
    assert_eq!(of(&found), all.map(|check| (check.to_owned(), false)).into());
    runc("1.1.5+ds1")(&mut found);
    let failed: Vec<String> =
        of(&found).into_iter().filter_map(|(check, failed)| failed.then_some(check)).collect();
    assert_eq!(failed, ["runc-fd", "runc-mounts"]);
    found.engine = None;
    assert!(!of(&found).contains_key("runc-mounts"), "there is nothing to look at");
}

#[test]
fn memory_that_others_hold_is_no_fault_until_it_is_much() {
    let held = |each: i64| {
        refused(move |found| {
            let holder = |pid| Holder { device: "GPU-1".into(), pid, memory: Bytes(each) };
            found.holders = vec![holder(7), holder(8)];
        })
    };
    assert_eq!(held(512 << 20), None);
    let failure = held(1 << 30).expect("much is held");
    assert_eq!(failure.code, Reason::DeviceBusy);
    assert_eq!(
        failure.message,
        "programs of others, such as process 7, hold 2 GiB of GPU-1; end them, or do not offer it"
    );
    assert!(held(i64::MAX).is_some(), "sums do not overflow");
}

#[test]
fn an_engine_that_runs_no_containers_is_refused() {
    let failure = refused(|found| found.container = Trial::Fails("no space left".into())).expect("broken");
    assert_eq!(
        (failure.code, failure.message.as_str()),
        (Reason::RuntimeBroken, "a container does not run: no space left")
    );
    let gpus = reason(|found| found.gpus = Trial::Fails("a container sees 0 of 1 GPUs".into()));
    assert_eq!(gpus, Some(Reason::RuntimeBroken));
}

/// What becomes of a challenge that a host answers with these findings.
fn verdict(found: &Findings) -> Verdict {
    let challenge = Challenge::new(
        ChallengeId(Uuid::from_u128(1)),
        HostId(Uuid::from_u128(2)),
        Task::software(),
        found.nonce,
    );
    let evidence = Evidence { commitments: vec![], opening: serde_json::to_vec(found).expect("JSON") };
    let span = Span { sent: Timestamp(0), received: Timestamp(900) };
    nave_rules::judge(&challenge, &[], &evidence, &[span])
}

#[test]
fn a_host_passes_or_fails_its_test_by_the_floors_and_its_findings_are_kept() {
    assert_eq!(verdict(&sound()), Verdict::Passed(Proven::Software(Box::new(sound()))));
    let mut old = sound();
    old.toolkit = vec![component("nvidia-ctk", "1.16.1")];
    let Verdict::Failed(failure) = verdict(&old) else { panic!("it passed") };
    assert_eq!(failure.code, Reason::SoftwareOutdated);
}

#[test]
fn a_slow_disk_is_recorded() {
    let disk = |reads_per_s| {
        let (written, write_ms, reads_ms) = (Bytes(1 << 30), Millis(1), Millis(1));
        weigh(&Proven::Storage { written, write_ms, reads_ms, reads_per_s })
    };
    assert_eq!((disk(99).refused, disk(99).shadows.len()), (None, 1));
    assert_eq!(disk(99).shadows[0].1.code, Reason::DiskTooSlow);
    assert!(disk(100).shadows.is_empty());
}

#[test]
fn every_flaw_is_named_as_others_name_it() {
    let text = include_str!("../floors.toml");
    let flaws = text.split('"').filter(|word| word.starts_with("CVE-"));
    let is_name =
        |word: &str| word.split('-').skip(1).all(|part| part.bytes().all(|byte| byte.is_ascii_digit()));
    assert!(flaws.clone().count() >= 9 && flaws.into_iter().all(is_name));
}

#[test]
fn floors_that_say_nothing_or_something_unknown_are_refused() {
    let text = include_str!("../floors.toml");
    let with = |from: &str, to: &str| Floors::parse(&text.replacen(from, to, 1));
    assert!(Floors::parse(text).is_ok());
    assert!(with("fixed = [\"1.19.1\"]", "fixed = []").is_err());
    assert!(with("fixed = [\"1.19.1\"]", "fixed = [\"newest\"]").is_err());
    assert!(with("\"550.127.05\"", "\"500.1\"").is_err());
    assert!(with("[check.mounts]", "[check.amounts]").is_err());
    assert!(with("\nbackports", "\ndownports").is_err());
    assert!(with("source = \"no job runs either\"", "source = \"\"").is_err());
}

proptest! {
    #[test]
    fn whatever_a_host_says_it_gets_a_short_plain_answer(text in "\\PC{0,60}", more: String, memory: i64, pid: u32) {
        let mut found = sound();
        found.kernel = text.clone();
        found.driver = Some(Driver { module: Some(text.clone()), library: Some(more.clone()) });
        found.toolkit = vec![component("nvidia-ctk", &text)];
        found.preloaded.everywhere = vec![more.repeat(40)];
        found.holders = vec![Holder { device: more.clone(), pid, memory: Bytes(memory) }; 3];
        found.gpus = Trial::Fails(more);
        let judged = Floors::embedded().expect("floors").judge(&found);
        for failure in judged.refused.iter().chain(judged.shadows.iter().map(|(_, failure)| failure)) {
            prop_assert!(failure.message.len() <= 256);
            prop_assert!(!failure.message.chars().any(char::is_control));
        }
    }
}
