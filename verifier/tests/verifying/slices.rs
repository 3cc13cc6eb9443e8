//! Hosts with GPUs that are cut into slices.

use nave_domain::{
    Millis,
    host::{HostState, Trust},
    verdict::{Cause, Kind},
};
use nave_proof::{Task, software::Dishonesty};
use nave_verifier::Verifier;

use crate::{
    devices::{NO_SOONER, with_devices},
    market::{Host, Market, look, open},
};

fn verifier(market: &Market) -> Verifier {
    Verifier::new(with_devices(NO_SOONER), market.store.clone())
}

fn honest<'a>(slices: &[&'a str]) -> Vec<(&'a str, Vec<Dishonesty>)> {
    slices.iter().map(|uuid| (*uuid, Vec::new())).collect()
}

/// A host with one GPU in slices, which nobody has tested.
async fn cut(market: &Market, name: &str, device: &str, slices: &[&str]) -> Host {
    let mut host = market.host(name, 1_000).await;
    host.cut(device, &honest(slices)).await;
    host
}

/// What of its GPUs a host has proven.
async fn proven(host: &Host) -> Vec<String> {
    let devices = host.row().await.proven.expect("it has proven its claims").devices.expect("devices, too");
    devices.into_keys().collect()
}

/// The devices of the last test of them.
async fn tested(host: &Host) -> Vec<String> {
    let last = host.challenges().await.into_iter().rfind(|drawn| drawn.kind == Kind::Devices);
    let body: nave_proof::Challenge = serde_json::from_value(last.expect("a test").body).expect("readable");
    let Task::Devices(task) = body.task else { panic!("a test of devices") };
    task.devices.into_iter().map(|device| device.uuid).collect()
}

#[tokio::test]
async fn slices_are_tested_together_as_devices_of_their_own_and_nobody_sells_them_as_verified() {
    let market = open().await;
    let mut host = cut(&market, "alpha", "SIM-1", &["SIM-1-0", "SIM-1-1"]).await;
    host.prove_all(&mut verifier(&market)).await;
    assert_eq!(host.state().await, HostState::Ready, "{:?}", host.rulings().await);
    assert_eq!(tested(&host).await, ["SIM-1-0", "SIM-1-1"]);
    assert_eq!(proven(&host).await, ["SIM-1-0", "SIM-1-1"]);
    let row = host.row().await;
    let classes: Vec<_> = row.proven.iter().flat_map(nave_domain::host::Proven::classes).collect();
    assert_eq!(classes, [], "no whole device's class is a slice's");
    assert_eq!(Trust::of(Some(&host.inventory), row.proven.as_ref()), Trust::Unrated);
}

#[tokio::test]
async fn a_gpu_that_is_cut_after_it_was_proven_proves_its_slices_and_takes_no_jobs_until_then() {
    let market = open().await;
    let mut verifier = verifier(&market);
    let mut host = market.host_with_devices("alpha", &honest(&["SIM-1"])).await;
    host.prove_all(&mut verifier).await;
    assert_eq!(proven(&host).await, ["SIM-1"]);
    for slices in [&["SIM-1-0", "SIM-1-1"][..], &["SIM-1-2"]] {
        host.cut("SIM-1", &honest(slices)).await;
        assert_eq!(host.state().await, HostState::Verifying);
        host.prove_all(&mut verifier).await;
        assert_eq!(
            (host.state().await, proven(&host).await.as_slice()),
            (HostState::Ready, &own(slices)[..])
        );
        assert_eq!(host.challenges().await.pop().map(|drawn| drawn.cause), Some(Cause::Identity));
    }
    host.mend("SIM-1").await;
    assert_eq!(host.state().await, HostState::Verifying);
    host.prove_all(&mut verifier).await;
    assert_eq!(proven(&host).await, ["SIM-1"]);
}

fn own(names: &[&str]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

#[tokio::test]
async fn a_gpu_in_mig_mode_without_slices_is_no_reason_to_refuse_its_host() {
    let market = open().await;
    let mut host = cut(&market, "alpha", "SIM-1", &[]).await;
    host.prove_all(&mut verifier(&market)).await;
    assert_eq!((host.state().await, proven(&host).await), (HostState::Ready, vec![]));
    let kinds: Vec<Kind> = host.challenges().await.iter().map(|drawn| drawn.kind).collect();
    assert_eq!(kinds, [Kind::Cpu, Kind::Memory]);
}

#[tokio::test]
async fn a_slice_that_leaves_work_out_is_a_ban_for_its_gpu_however_that_is_cut_then() {
    let market = open().await;
    let mut verifier = verifier(&market);
    let mut host = cut(&market, "alpha", "SIM-1", &["SIM-1-0", "SIM-1-1"]).await;
    host.prove_all(&mut verifier).await;
    let lazy = vec![("SIM-1-0", vec![]), ("SIM-1-2", vec![Dishonesty::Skip { per_mille: 500 }])];
    host.cut("SIM-1", &lazy).await;
    host.prove_all(&mut verifier).await;
    assert_eq!((host.state().await, host.last_code().await), (HostState::Refused, "evidence_wrong"));
    // Another owner's host that says it has that GPU now shares its ban.
    let other = cut(&market, "beta", "SIM-1", &["SIM-1-7"]).await;
    look(&mut verifier).await;
    assert_eq!(other.state().await, HostState::Refused);
    assert!(other.reason().await.1.starts_with("a ban counts against it"), "{:?}", other.reason().await);
}

#[tokio::test]
async fn a_gpu_belongs_to_one_host_whether_it_is_cut_or_not() {
    let market = open().await;
    let mut verifier = verifier(&market);
    let mut whole = market.host_with_devices("first", &honest(&["SIM-1"])).await;
    let mut pieces = cut(&market, "second", "SIM-2", &["SIM-2-0"]).await;
    for host in [&mut whole, &mut pieces] {
        host.prove_all(&mut verifier).await;
        assert_eq!(host.state().await, HostState::Ready);
    }
    let mut third = cut(&market, "third", "SIM-1", &["SIM-1-0"]).await;
    let mut fourth = market.host_with_devices("fourth", &honest(&["SIM-2"])).await;
    for (host, held) in [(&mut third, "SIM-1"), (&mut fourth, "SIM-2")] {
        host.prove_all(&mut verifier).await;
        let (code, message) = host.reason().await;
        assert_eq!(code, "device_elsewhere");
        assert!(message.starts_with(&format!("{held} has belonged to ")), "{message}");
    }
}

#[tokio::test]
async fn slices_are_tested_beside_the_jobs_that_have_some_of_them() {
    let market = open().await;
    let means = nave_verifier::Means { probe: Millis::ZERO, ..NO_SOONER };
    let mut verifier = Verifier::new(with_devices(means), market.store.clone());
    let mut host = cut(&market, "alpha", "SIM-1", &["SIM-1-0", "SIM-1-1"]).await;
    host.prove_all(&mut verifier).await;
    let lease = host.lease("SIM-1-1").await;
    look(&mut verifier).await;
    let drawn = host.challenges().await.pop().expect("a test");
    assert_eq!((drawn.kind, drawn.cause), (Kind::Devices, Cause::LeaseStart), "{lease}");
    assert_eq!(tested(&host).await, ["SIM-1-0", "SIM-1-1"]);
}
