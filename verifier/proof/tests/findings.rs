//! What hosts may say of their software, and what of it is taken for findings.

#![allow(clippy::unwrap_used, reason = "a test that panics at the unexpected says where")]

mod common;

use common::{Case, fresh, span};
use nave_domain::Bytes;
use nave_proof::{
    Digest, Evidence, Findings, Nonce, Proven, Reason, Task, Verdict,
    findings::{
        Component, Driver, Engine, FINDINGS_MAX, FOUND_MAX, FOUND_TEXT_MAX, Holder, Mapped, Mount, Preloaded,
        Trial, clip,
    },
};
use proptest::prelude::*;

fn findings() -> Findings {
    let component = |name: &str, version: &str| Component { name: name.into(), version: version.into() };
    Findings {
        nonce: Nonce([3; 32]),
        kernel: "6.8.0-51-generic".into(),
        architecture: "x86_64".into(),
        boot: Digest([9; 32]),
        driver: Some(Driver { module: Some("570.195.03".into()), library: Some("570.195.03".into()) }),
        engine: Some(Engine {
            version: "28.5.2".into(),
            api: "1.51".into(),
            components: vec![component("runc", "1.3.3")],
            runtimes: vec!["nvidia".into(), "runc".into()],
        }),
        toolkit: vec![component("nvidia-ctk", "1.17.8")],
        preloaded: Preloaded::default(),
        mounts: vec![Mount {
            covers: "/dev/nvidia0".into(),
            point: "/dev/nvidia0".into(),
            kind: "tmpfs".into(),
            root: "/x".into(),
        }],
        mapped: vec![Mapped { path: "/usr/lib/libc.so.6".into(), replaced: true }],
        holders: vec![Holder { device: "GPU-1".into(), pid: 7, memory: Bytes(1 << 30) }],
        container: Trial::Works,
        gpus: Trial::Fails("no /dev/nvidia0".into()),
    }
}

fn case(opening: Vec<u8>) -> Case {
    let evidence = Evidence { commitments: Vec::new(), opening };
    Case { challenge: fresh(Task::software()), evidence, spans: vec![span(1_000)] }
}

fn of(findings: &Findings) -> Case {
    case(serde_json::to_vec(findings).unwrap())
}

fn refused(change: impl Fn(&mut Findings)) -> Option<Reason> {
    let mut findings = findings();
    change(&mut findings);
    of(&findings).reason()
}

#[test]
fn findings_are_kept_as_they_are() {
    assert_eq!(of(&findings()).verdict(), Verdict::Passed(Proven::Software(Box::new(findings()))));
}

#[test]
fn findings_for_another_challenge_are_refused() {
    assert_eq!(refused(|found| found.nonce.0[0] ^= 1), Some(Reason::BindingWrong));
}

#[test]
fn findings_that_come_late_are_refused() {
    let mut late = of(&findings());
    late.spans = vec![span(120_000 + 15_001)];
    assert_eq!(late.reason(), Some(Reason::TooLate));
}

#[test]
fn findings_have_a_size() {
    let malformed = Some(Reason::EvidenceMalformed);
    assert_eq!(refused(|found| found.kernel = "x".repeat(FOUND_TEXT_MAX)), None);
    assert_eq!(refused(|found| found.kernel = "x".repeat(FOUND_TEXT_MAX + 1)), malformed);
    assert_eq!(refused(|found| found.gpus = Trial::Fails("a\u{1b}[2Jb".into())), malformed);
    assert_eq!(refused(|found| found.mapped = vec![found.mapped[0].clone(); FOUND_MAX + 1]), malformed);
    let many = vec![Mapped { path: "é".repeat(FOUND_TEXT_MAX / 2), replaced: false }; FOUND_MAX];
    assert_eq!(refused(|found| found.mapped.clone_from(&many)), None);
    assert_eq!(case(vec![b' '; FINDINGS_MAX + 1]).reason(), malformed);
}

#[test]
fn what_is_no_findings_is_refused_in_a_short_sentence() {
    let mut unknown = serde_json::to_value(findings()).unwrap();
    unknown["x".repeat(10_000)] = 1.into();
    let case = case(serde_json::to_vec(&unknown).unwrap());
    assert_eq!(case.reason(), Some(Reason::EvidenceMalformed));
    assert!(case.message().len() <= FOUND_TEXT_MAX, "{}", case.message().len());
}

proptest! {
    #[test]
    fn no_bytes_break_the_judge(bytes: Vec<u8>, flip in 0_usize..900, to: u8) {
        prop_assert!(case(bytes).reason().is_some());
        let mut changed = serde_json::to_vec(&findings()).unwrap();
        let at = flip % changed.len();
        changed[at] = to;
        let _ = case(changed).verdict();
    }

    #[test]
    fn a_clipped_text_fits_into_findings(text: String, repeat in 1_usize..40) {
        let mut findings = findings();
        findings.kernel = clip(&text.repeat(repeat));
        prop_assert_eq!(findings.excess(), None);
    }
}
