//! Groups: jobs of one customer reach one another while their leases are open, nobody else does.

use std::collections::BTreeMap;

use nave_domain::{
    CustomerId, HostId, JobId, LeaseId, MicroUsd, MilliCpu, Millis,
    job::{GROUP_LEASES_MAX, JobRequest},
};
use nave_store::{Departure, MeshRoute, StoreError};
use tokio::task::JoinSet;

use crate::market::{EXITED, Market, open, request};

fn of_group(name: &str) -> JobRequest {
    let mut request = request();
    request.group = Some(name.into());
    request.resources.milli_cpu = MilliCpu(10);
    request.max_spend = MicroUsd(1_000);
    request
}

impl Market {
    async fn join(&self, customer: CustomerId, group: &str, host: HostId) -> (JobId, LeaseId) {
        let job = self.submit(customer, &of_group(group)).await;
        (job, self.place(job, host).await)
    }

    async fn peers(&self, host: HostId, lease: LeaseId) -> BTreeMap<JobId, LeaseId> {
        self.store.host_spec(host).await.expect("spec").orders[&lease].peers.clone()
    }

    async fn generation(&self, host: HostId) -> u64 {
        self.store.host_generation(host).await.expect("a generation")
    }

    async fn routes(&self) -> Vec<MeshRoute> {
        self.store.mesh_routes().await.expect("routes")
    }
}

#[tokio::test]
async fn leases_of_a_group_know_one_another_on_any_host_while_they_are_open() {
    open(async |market| {
        let ada = market.customer("ada").await;
        let [alpha, beta] = [market.host("alpha").await, market.host("beta").await];
        let (first_job, first) = market.join(ada, "g", alpha).await;
        assert_eq!(market.peers(alpha, first).await, BTreeMap::new());
        let before = market.generation(alpha).await;
        let (second_job, second) = market.join(ada, "g", beta).await;
        assert!(market.generation(alpha).await > before, "the other's host is told");
        let (third_job, third) = market.join(ada, "g", beta).await;
        assert_eq!(
            market.peers(alpha, first).await,
            BTreeMap::from([(second_job, second), (third_job, third)])
        );
        assert_eq!(
            market.peers(beta, third).await,
            BTreeMap::from([(first_job, first), (second_job, second)])
        );

        let before = market.generation(alpha).await;
        market.finish(beta, second, EXITED).await;
        assert!(market.generation(alpha).await > before, "the other's host is told of the end");
        assert_eq!(market.peers(alpha, first).await, BTreeMap::from([(third_job, third)]));
        market.store.lease_lost(beta, third).await.expect("lost");
        assert_eq!(market.peers(alpha, first).await, BTreeMap::new());
    })
    .await;
}

#[tokio::test]
async fn a_group_of_the_same_name_is_another_one_with_another_customer() {
    open(async |market| {
        let [ada, eve] = [market.customer("ada").await, market.customer("eve").await];
        let [alpha, beta] = [market.host("alpha").await, market.host("beta").await];
        let (_, of_ada) = market.join(ada, "g", alpha).await;
        let before = market.generation(alpha).await;
        let (_, of_eve) = market.join(eve, "g", beta).await;
        let (_, other) = market.join(ada, "h", beta).await;
        let plain = market.submit(ada, &request()).await;
        let plain = market.place(plain, beta).await;
        assert_eq!(market.generation(alpha).await, before, "nothing of it concerns this host");
        for (host, lease) in [(alpha, of_ada), (beta, of_eve), (beta, other), (beta, plain)] {
            assert_eq!(market.peers(host, lease).await, BTreeMap::new());
        }
        assert_eq!(market.routes().await, []);
    })
    .await;
}

#[tokio::test]
async fn routes_lead_from_host_to_host_in_both_directions_and_end_with_a_lease() {
    open(async |market| {
        let ada = market.customer("ada").await;
        let [alpha, beta] = [market.host("alpha").await, market.host("beta").await];
        let (_, here) = market.join(ada, "g", alpha).await;
        let (_, beside) = market.join(ada, "g", alpha).await;
        assert_eq!(market.routes().await, [], "a host needs no hub for its own");
        let (_, there) = market.join(ada, "g", beta).await;
        let mut expected = [
            MeshRoute { host: alpha, from: here, to: there },
            MeshRoute { host: alpha, from: beside, to: there },
            MeshRoute { host: beta, from: there, to: here },
            MeshRoute { host: beta, from: there, to: beside },
        ];
        expected.sort_unstable();
        assert_eq!(market.routes().await, expected);
        market.finish(alpha, beside, EXITED).await;
        assert_eq!(
            market.routes().await,
            [
                MeshRoute { host: alpha, from: here, to: there },
                MeshRoute { host: beta, from: there, to: here }
            ]
        );
        market.store.host_depart(None, beta, Departure::Ban).await.expect("banned");
        assert_eq!(market.routes().await, [], "who is sent away is cut off before its leases are lost");
        market.store.lease_lost(beta, there).await.expect("lost");
        assert_eq!(market.peers(alpha, here).await, BTreeMap::new());
    })
    .await;
}

#[tokio::test]
async fn a_job_that_runs_again_is_known_by_its_new_lease() {
    open(async |market| {
        let ada = market.customer("ada").await;
        let [alpha, beta] = [market.host("alpha").await, market.host("beta").await];
        let (_, stays) = market.join(ada, "g", alpha).await;
        let (job, first) = market.join(ada, "g", beta).await;
        market.store.lease_lost(beta, first).await.expect("lost");
        let second = market.place(job, beta).await;
        assert_ne!(first, second);
        assert_eq!(market.peers(alpha, stays).await, BTreeMap::from([(job, second)]));
    })
    .await;
}

#[tokio::test]
async fn a_full_group_takes_no_more_until_one_leaves() {
    open(async |market| {
        let ada = market.customer("ada").await;
        let host = market.host("alpha").await;
        let mut leases = Vec::new();
        for _ in 0..GROUP_LEASES_MAX {
            leases.push(market.join(ada, "g", host).await.1);
        }
        let job = market.submit(ada, &of_group("g")).await;
        let queued = market.store.snapshot().await.expect("snapshot").jobs.remove(0);
        assert_eq!((queued.job, queued.group_leases), (job, GROUP_LEASES_MAX));
        let refused = market.store.job_place(&market.placement(job, host).await).await;
        assert!(matches!(refused, Err(StoreError::Stale("group"))), "{refused:?}");
        market.finish(host, leases[0], EXITED).await;
        market.place(job, host).await;
    })
    .await;
}

/// Each would miss the other if both looked before either was there.
#[tokio::test(flavor = "multi_thread")]
async fn leases_that_open_at_the_same_moment_know_one_another() {
    open(async |market| {
        let ada = market.customer("ada").await;
        for round in 0..12 {
            let mut tasks = JoinSet::new();
            let mut hosts = Vec::new();
            for number in 0..4 {
                let host = market.host(&format!("h{round}-{number}")).await;
                let job = market.submit(ada, &of_group(&format!("g{round}"))).await;
                let placement = market.placement(job, host).await;
                let store = market.store.clone();
                hosts.push(host);
                tasks.spawn(async move { store.job_place(&placement).await.map(|lease| (host, lease)) });
            }
            // One that finds its host's spec changed by another would be planned anew.
            let placed: Vec<_> = tasks.join_all().await.into_iter().filter_map(Result::ok).collect();
            assert_eq!(placed.len(), 4, "each host had no lease of the group before");
            for (host, lease) in placed {
                assert_eq!(market.peers(host, lease).await.len(), 3);
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_lease_that_is_given_up_takes_the_hosts_of_its_group_in_order() {
    open(async |market| {
        let ada = market.customer("ada").await;
        let mut hosts = [market.host("alpha").await, market.host("beta").await];
        hosts.sort();
        let [first, second] = hosts;
        market.join(ada, "g", first).await;
        let (_, lease) = market.join(ada, "g", second).await;
        sqlx::query("update hosts set heard_up_ms = heard_up_ms - 60000")
            .execute(&market.sql)
            .await
            .expect("silent");
        let mut another = market.sql.begin().await.expect("begin");
        let lock = sqlx::query("select from hosts where host_id = $1 for update");
        lock.bind(first.0).execute(&mut *another).await.expect("the first");
        let store = market.store.clone();
        let losing =
            tokio::spawn(async move { store.lease_lost_silent(second, lease, Millis(10_000)).await });
        market.blocked().await;
        let lock = sqlx::query("select from hosts where host_id = $1 for update nowait");
        lock.bind(second.0).execute(&mut *another).await.expect("who waits for the first has not the second");
        another.commit().await.expect("commit");
        losing.await.expect("it ends").expect("lost");
    })
    .await;
}
