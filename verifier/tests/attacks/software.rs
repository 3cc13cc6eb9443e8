//! Hosts whose software is not as it should be, and hosts that lie about it.

use std::collections::BTreeSet;

use nave_domain::{Millis, verdict::Kind};
use nave_proof::{
    findings::{Component, Mount},
    software::Dishonesty,
};
use nave_verifier::{Config, Means, Verifier};

use crate::{
    market::{Market, config, open},
    paced::{Paced, prove},
};

const NEVER: Millis = Millis(1 << 40);

fn verifier(market: &Market) -> Verifier {
    let means = Means { retest: NEVER, probe: NEVER, window: NEVER };
    let enforced = BTreeSet::from([Kind::Cpu, Kind::Memory, Kind::Devices, Kind::Software]);
    Verifier::new(Config { enforced, means, ..config() }, market.store.clone())
}

#[tokio::test]
async fn a_hook_over_the_driver_keeps_a_host_out_and_hiding_it_proves_nothing() {
    let market = open().await;
    let made_up = || vec![Dishonesty::Skip { per_mille: 500 }];
    let mut hooked = Paced::alone(&market, "hooked", "SIM-1", Vec::new()).await;
    let library = "/usr/lib64/libcuda.so.1";
    let hook = Mount {
        covers: library.into(),
        point: library.into(),
        kind: "ext4".into(),
        root: "/tmp/hook.so".into(),
    };
    hooked.findings.mounts = vec![hook];
    let mut preloading = Paced::alone(&market, "preloading", "SIM-2", Vec::new()).await;
    preloading.findings.preloaded.everywhere = vec!["/usr/lib/hook.so".into()];
    let mut hiding = Paced::alone(&market, "hiding", "SIM-3", made_up()).await;
    let mut honest = Paced::alone(&market, "honest", "SIM-4", Vec::new()).await;
    let hosts = &mut [&mut hooked, &mut preloading, &mut hiding, &mut honest];
    prove(&mut verifier(&market), hosts).await;
    let (code, message) = hooked.host.reason().await;
    assert_eq!(
        (code.as_str(), message.as_str()),
        ("driver_tampered", "/tmp/hook.so of ext4 is mounted over /usr/lib64/libcuda.so.1")
    );
    assert_eq!(preloading.fate().await, "driver_tampered");
    assert_eq!(hiding.fate().await, "evidence_wrong", "whatever its hook and its agent say");
    assert_eq!(honest.fate().await, "ready", "{:?}", honest.host.rulings().await);
}

#[tokio::test]
async fn a_toolkit_that_containers_escape_from_keeps_a_host_out_until_it_is_upgraded() {
    let market = open().await;
    let toolkit = |version: &str| vec![Component { name: "nvidia-ctk".into(), version: version.into() }];
    let mut old = Paced::alone(&market, "old", "SIM-1", Vec::new()).await;
    old.findings.toolkit = toolkit("1.16.1");
    let mut honest = Paced::alone(&market, "honest", "SIM-2", Vec::new()).await;
    prove(&mut verifier(&market), &mut [&mut old, &mut honest]).await;
    let (code, message) = old.host.reason().await;
    assert_eq!((code.as_str(), honest.fate().await.as_str()), ("software_outdated", "ready"));
    assert!(message.contains("CVE-2024-0132") && message.contains("install 1.19.1"), "{message}");
    old.findings.toolkit = toolkit("1.19.1");
    market.store.clock_advance(Millis(11_000)).await.expect("advance");
    old.host.report().await;
    let mut verifier = verifier(&market);
    for _ in 0..2 {
        crate::market::look(&mut verifier).await;
    }
    prove(&mut verifier, &mut [&mut old]).await;
    assert_eq!(old.fate().await, "ready", "{:?}", old.host.rulings().await);
}
