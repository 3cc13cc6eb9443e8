//! Agents that hosts may upgrade to.

use nave_domain::{HostId, host::Inventory};
use nave_store::{NewRelease, StoreError};
use serde_json::json;

use crate::market::{Market, RATE, inventory, open, request};

async fn publish(market: &Market, version: &str, bytes: &[u8]) -> Result<(), StoreError> {
    let manifest = json!({"version": version, "bytes": bytes});
    let new = NewRelease { version, target: "x86_64-linux", manifest: &manifest, signature: "00", bytes };
    market.store.release_publish(&new).await
}

async fn offered(market: &Market, host: HostId) -> Option<String> {
    let row = market.store.release_for(host).await.expect("a release");
    row.map(|row| row.manifest["version"].as_str().expect("a version").to_owned())
}

#[tokio::test]
async fn the_newest_version_by_number_is_offered_to_hosts_with_an_older_agent() {
    open(async |market| {
        let with = |agent: &str| Inventory { agent: agent.into(), ..inventory() };
        let old = market.host_with("old", RATE, &with("0.9.9")).await;
        let new = market.host_with("new", RATE, &with("0.10.0")).await;
        let arm = market.host_with("arm", RATE, &with("0.9.9 aarch64-linux")).await;
        let odd = market.host("odd").await;
        let before = market.store.host_generation(old).await.expect("generation");
        for version in ["0.10.0", "0.9.10"] {
            publish(market, version, b"agent").await.expect("publish");
        }
        assert!(market.store.host_generation(old).await.expect("generation") > before);
        assert_eq!(offered(market, old).await.as_deref(), Some("0.10.0"));
        for host in [new, arm, odd] {
            assert_eq!(offered(market, host).await, None);
        }
    })
    .await;
}

#[tokio::test]
async fn a_version_is_one_program_for_ever() {
    open(async |market| {
        for _ in 0..2 {
            publish(market, "0.2.0", b"agent").await.expect("publish");
        }
        let other = publish(market, "0.2.0", b"another").await;
        assert!(
            matches!(&other, Err(StoreError::Constraint(name)) if name == "releases_version"),
            "{other:?}"
        );
        let odd = publish(market, "0.2", b"agent").await;
        assert!(
            matches!(&odd, Err(StoreError::Constraint(name)) if name == "releases_three_numbers"),
            "{odd:?}"
        );
        assert_eq!(market.store.release_bytes("0.2.0", "x86_64-linux").await.expect("bytes"), b"agent");
        let unknown = market.store.release_bytes("0.3.0", "x86_64-linux").await;
        assert!(matches!(unknown, Err(StoreError::NotFound("release"))));
    })
    .await;
}

#[tokio::test]
async fn a_suspect_host_with_jobs_keeps_its_agent_until_it_is_ready_again() {
    open(async |market| {
        let agent = Inventory { agent: "0.1.0".into(), ..inventory() };
        let host = market.host_with("a", RATE, &agent).await;
        publish(market, "0.2.0", b"agent").await.expect("publish");
        let customer = market.customer("alice").await;
        market.run(customer, host, &request()).await;
        assert!(offered(market, host).await.is_some());
        market.store.hosts_suspect(nave_domain::Millis(-1)).await.expect("suspect");
        assert_eq!(offered(market, host).await, None);
    })
    .await;
}
