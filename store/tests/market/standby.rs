//! Which devices count as idle, and which hosts keep their obligations.

use nave_domain::{
    Bytes, HostId, MicroUsd, MilliCpu, Millis,
    event::{Blame, ConfirmedBy},
    host::{Inventory, Proven, ProvenDevice},
    job::Egress,
    rate::Rate,
};
use nave_store::HostPatch;
use serde_json::json;

use crate::{
    market::{Market, RATE, device, inventory, open, request},
    settle::{begin, close, decide_all},
};

/// A host that has proven two GPUs.
pub async fn gpus(market: &Market, name: &str) -> HostId {
    let mut claims = inventory();
    claims.devices = vec![device("GPU-1"), device("GPU-2")];
    let host = market.host_with(name, RATE, &claims).await;
    let mut proven = Proven::of(&claims);
    let shown =
        claims.devices.iter().map(|one| (one.uuid.clone(), ProvenDevice::of(one, Some("h100".into()))));
    proven.devices = Some(shown.collect());
    sqlx::query("update hosts set proven = $1, state = 'ready' where host_id = $2")
        .bind(serde_json::to_value(&proven).expect("serialise"))
        .bind(host.0)
        .execute(&market.sql)
        .await
        .expect("prove");
    host
}

/// How much idle time there is.
async fn idle(market: &Market) -> i64 {
    let sum = sqlx::query_scalar("select coalesce(sum(device_ms), 0)::bigint from idle_times");
    sum.fetch_one(&market.sql).await.expect("idle")
}

/// Looks as if the last look had been so long ago, and says how much idle time there is by now.
async fn look(market: &Market, ago: i64) -> i64 {
    sqlx::query("update idle_look set at_ms = now_ms() - $1")
        .bind(ago)
        .execute(&market.sql)
        .await
        .expect("ago");
    market.store.idle_look(Millis(10_000)).await.expect("look");
    idle(market).await
}

#[tokio::test]
async fn devices_that_take_jobs_and_have_none_are_idle_and_an_outage_adds_nothing() {
    open(async |market| {
        begin(market, json!({})).await;
        let host = gpus(market, "alpha").await;
        let first = look(market, 5_000).await;
        assert!((10_000..16_000).contains(&first), "{first}");
        let second = look(market, 86_400_000).await - first;
        assert_eq!(second, 20_000, "two devices, 10 s each");
        let before = first + second;
        let pause = |paused| HostPatch { paused: Some(paused), ..HostPatch::default() };
        market.store.host_patch("hotkey of alpha", host, pause(true)).await.expect("paused");
        assert_eq!(look(market, 5_000).await, before, "it takes no jobs");
        let mut settlement = close(market).await;
        let idle = settlement.idle(None).await.expect("idle").remove(0);
        assert_eq!((idle.class.as_str(), idle.device.0), ("h100", before));
        assert!(idle.obliged_since >= settlement.frame.closed_at, "whoever pauses keeps no obligations");
    })
    .await;
}

#[tokio::test]
async fn what_a_quote_holds_stands_by_all_the_same() {
    open(async |market| {
        begin(market, json!({})).await;
        let customer = market.customer("ada").await;
        let host = gpus(market, "alpha").await;
        crate::quote::held(market, customer, host).await;
        sqlx::query("update quotes set answer = jsonb_set(answer, '{answer,place,devices}', '[\"GPU-1\"]')")
            .execute(&market.sql)
            .await
            .expect("it holds a GPU");
        assert_eq!(look(market, 86_400_000).await, 20_000, "its miner could not refuse");
    })
    .await;
}

#[tokio::test]
async fn cores_and_memory_that_are_dear_make_idle_devices_dear() {
    open(async |market| {
        begin(market, json!({})).await;
        let host = gpus(market, "alpha").await;
        let rate = Rate { gpu_hour: MicroUsd(1_000_000), vcpu_hour: MicroUsd(1_000), gib_hour: MicroUsd(3) };
        sqlx::query(
            "update hosts set inventory = jsonb_set(inventory, '{memory}', to_jsonb(33::bigint << 30))",
        )
        .execute(&market.sql)
        .await
        .expect("33 GiB");
        let patch = HostPatch { rate: Some(rate), ..HostPatch::default() };
        market.store.host_patch("hotkey of alpha", host, patch).await.expect("the host");
        look(market, 5_000).await;
        let shown =
            sqlx::query_scalar::<_, i64>("select gpu_hour from idle_times").fetch_one(&market.sql).await;
        assert_eq!(
            shown.expect("idle"),
            1_000_000 + 4 * 1_000 + 50,
            "half of 8 cores and of 33 GiB, rounded up"
        );
    })
    .await;
}

#[tokio::test]
async fn devices_beside_which_no_job_fits_are_not_idle() {
    open(async |market| {
        begin(market, json!({})).await;
        let host = gpus(market, "alpha").await;
        let mut claims = inventory();
        claims.devices = vec![device("GPU-1"), device("GPU-2")];
        let tight = Inventory {
            milli_cpu: MilliCpu(2_000),
            memory: Bytes(Bytes::GIB),
            disk: Bytes(2 * Bytes::GIB),
            ..claims
        };
        let too_little = [
            Inventory { milli_cpu: MilliCpu(1_999), ..tight.clone() },
            Inventory { memory: Bytes(Bytes::GIB - 1), ..tight.clone() },
            Inventory { disk: Bytes(2 * Bytes::GIB - 1), ..tight.clone() },
            Inventory { egress: vec![Egress::None], ..tight.clone() },
        ];
        let mut sequence = 100;
        let mut says = async |claims: &Inventory| {
            sequence += 1;
            sqlx::query("update hosts set inventory_at_ms = 0")
                .execute(&market.sql)
                .await
                .expect("long since");
            market.store.host_hear(host, 1, sequence, 0, claims).await.expect("heard");
            look(market, 86_400_000).await
        };
        assert_eq!(says(&tight).await, 20_000, "a job that asks for nothing special fits beside each");
        for claims in &too_little {
            assert_eq!(says(claims).await, 20_000, "{claims:?}");
        }
        assert_eq!(says(&tight).await, 40_000, "it was ready all the time");
    })
    .await;
}

#[tokio::test]
async fn a_look_while_an_epoch_closes_loses_no_time() {
    open(async |market| {
        begin(market, json!({})).await;
        gpus(market, "alpha").await;
        let mut closing = market.sql.begin().await.expect("begin");
        let lock = sqlx::query("select from epochs where state = 'open' for no key update");
        lock.execute(&mut *closing).await.expect("the epoch");
        assert_eq!(look(market, 86_400_000).await, 0, "nobody waits");
        closing.commit().await.expect("commit");
        market.store.idle_look(Millis(10_000)).await.expect("look");
        assert_eq!(idle(market).await, 20_000);
    })
    .await;
}

#[tokio::test]
async fn a_host_that_is_unplugged_is_not_verified_and_keeps_no_obligations() {
    open(async |market| {
        begin(market, json!({"confirm_ms": 600_000})).await;
        gpus(market, "alpha").await;
        let beta = market.host("beta").await;
        look(market, 5_000).await;
        market.store.clock_advance(Millis(590_000)).await.expect("it is silent");
        market.store.hosts_suspect(Millis(10_000)).await.expect("suspect");
        let mut settlement = close(market).await;
        let verified = settlement.miners().await.expect("miners").iter().map(|row| row.verified_hosts).collect::<Vec<_>>();
        assert_eq!(verified, [1, 1], "they may come back in time");
        let idle = settlement.idle(None).await.expect("idle").remove(0);
        assert!(idle.obliged_since < settlement.frame.closed_at);
        drop(settlement);
        sqlx::query("update epochs set state = 'settled' where epoch = 1").execute(&market.sql).await.expect("settled");
        sqlx::query("insert into idle_times (epoch, host_id, class, device_ms, gpu_hour) select 2, host_id, class, device_ms, gpu_hour from idle_times")
            .execute(&market.sql)
            .await
            .expect("it was idle before");
        market.store.clock_advance(Millis(20_000)).await.expect("it is silent for too long");
        market.hear(beta).await;
        let mut settlement = close(market).await;
        let verified = settlement.miners().await.expect("miners").iter().map(|row| row.verified_hosts).collect::<Vec<_>>();
        assert_eq!(verified, [0, 1]);
        let idle = settlement.idle(None).await.expect("idle").remove(0);
        assert!(idle.obliged_since >= settlement.frame.closed_at, "it keeps none");
    })
    .await;
}

#[tokio::test]
async fn hosts_that_fell_silent_at_once_are_verified_and_keep_their_obligations() {
    for (hosts, verified) in [(5, 1), (4, 0)] {
        open(async |market| {
            begin(market, json!({"confirm_ms": 600_000})).await;
            for n in 0..hosts {
                gpus(market, &format!("silent {n}")).await;
            }
            look(market, 5_000).await;
            sqlx::query(
                "update hosts set enrolled_at_ms = 0, heard_at_ms = heard_at_ms - 700000, heard_up_ms = heard_up_ms - 700000",
            )
            .execute(&market.sql)
            .await
            .expect("silent");
            let mut settlement = close(market).await;
            let miners = settlement.miners().await.expect("miners");
            let counted: Vec<i64> = miners.iter().map(|miner| miner.verified_hosts).collect();
            assert_eq!(counted, vec![verified; hosts]);
            let closed = settlement.frame.closed_at;
            let idle = settlement.idle(None).await.expect("idle");
            assert!(idle.iter().all(|line| (line.obliged_since < closed) == (verified == 1)), "{idle:?}");
        })
        .await;
    }
}

/// What may be a breach of a lease that goes on, on a host that stands by, and is not decided.
async fn happened(market: &Market) -> i64 {
    let customer = market.customer("ada").await;
    let host = gpus(market, "alpha").await;
    let (_, lease) = market.run(customer, host, &request()).await;
    look(market, 5_000).await;
    sqlx::query_scalar(
        "insert into events (kind, host_id, hotkey, lease_id, xid, key, since_ms, from_ms, until_ms, detail)
         values ('xid', $1, 'hotkey of alpha', $2, 79, 'one', 0, 0, 0, 'fell off') returning at_ms",
    )
    .bind(host.0)
    .bind(lease.0)
    .fetch_one(&market.sql)
    .await
    .expect("an event")
}

#[tokio::test]
async fn a_breach_in_a_lease_that_goes_on_ends_obligations_at_once() {
    open(async |market| {
        begin(market, json!({})).await;
        let at = happened(market).await;
        decide_all(market, Blame::Host, Some(ConfirmedBy::Report)).await;
        let mut settlement = close(market).await;
        assert_eq!(settlement.leases(None).await.expect("leases"), [], "it goes on");
        assert_eq!(settlement.events(None).await.expect("events"), [], "they come with their lease");
        assert_eq!(settlement.idle(None).await.expect("idle")[0].obliged_since.0, at);
    })
    .await;
}

#[tokio::test]
async fn a_breach_that_may_still_be_confirmed_costs_the_epoch_and_no_more() {
    open(async |market| {
        begin(market, json!({})).await;
        let at = happened(market).await;
        let mut settlement = close(market).await;
        let line = settlement.idle(None).await.expect("idle").remove(0);
        assert!(line.obliged_since >= settlement.frame.closed_at);
        let since = sqlx::query_scalar("select obliged_since_ms from hosts").fetch_one(&market.sql);
        assert!(since.await.map(|since: i64| since).expect("obliged") <= at, "it keeps them");
    })
    .await;
}

#[tokio::test]
async fn a_look_takes_hosts_in_the_order_of_their_ids() {
    open(async |market| {
        begin(market, json!({})).await;
        for name in ["alpha", "beta", "gamma", "delta", "epsilon", "zeta"] {
            gpus(market, name).await;
        }
        let mut other = market.sql.begin().await.expect("begin");
        let lock =
            "select from hosts where host_id = (select min(host_id::text)::uuid from hosts) for update";
        sqlx::query(lock).execute(&mut *other).await.expect("the first host");
        let store = market.store.clone();
        let looking = tokio::spawn(async move { store.idle_look(Millis(10_000)).await });
        market.blocked().await;
        let lock = "select from hosts order by host_id for update";
        sqlx::query(lock).execute(&mut *other).await.expect("who waits for the first has none of the others");
        other.commit().await.expect("commit");
        looking.await.expect("it ends").expect("looked");
    })
    .await;
}
