//! What a decision to rent rests on: who waits, what machines are paid, and what was rented in vain.

use nave_domain::{
    CustomerId, HostId, JobId, MicroUsd, Millis,
    job::JobRequest,
    lease::Outcome,
    rate::{Size, charge},
};
use nave_store::{MachineDemand, NewMachine, RentedMachine, WaitingJob};
use serde_json::json;
use uuid::Uuid;

use crate::{
    cloud::{IDLE, costs},
    market::{EXITED, Market, RATE, open, request},
    quote::held,
};

const DAY: Millis = Millis(86_400_000);

impl Market {
    /// A machine that was rented for a job, and what it has cost.
    async fn rent(&self, job: JobId, cost: i64) -> Uuid {
        let (machine, seen) = (Uuid::now_v7(), self.rents().await.2);
        let (known, shape) = (json!({}), json!({}));
        let new = NewMachine { machine, cloud: "lambda", known, shape, hotkey: "platform", job };
        self.store.machines_want(seen, &[new]).await.expect("wanted");
        if cost > 0 {
            assert!(costs(self, machine, None, cost).await);
        }
        machine
    }

    async fn set(&self, machine: Uuid, what: &str) {
        let sql = format!("update machines set {what} where machine_id = $1");
        sqlx::query(sqlx::AssertSqlSafe(sql)).bind(machine).execute(&self.sql).await.expect("written");
    }

    /// A machine that is a host and takes jobs.
    async fn rented_host(&self, customer: CustomerId) -> (Uuid, HostId) {
        let job = self.submit(customer, &request()).await;
        let (machine, host) = (self.rent(job, 5).await, self.host("rented").await);
        self.store.job_cancel(customer, job).await.expect("cancelled");
        self.set(machine, &format!("host_id = '{}', enrolled_at_ms = now_ms()", host.0)).await;
        (machine, host)
    }

    async fn rents(&self) -> (Vec<WaitingJob>, Vec<RentedMachine>, i64) {
        let snapshot = self.store.rent_snapshot(DAY).await.expect("a snapshot");
        (snapshot.jobs, snapshot.machines, snapshot.seen)
    }

    async fn machine(&self) -> RentedMachine {
        self.rents().await.1.pop().expect("a machine")
    }

    /// A job that waits, and that somebody has looked at.
    async fn waits(&self, customer: CustomerId, request: &JobRequest) -> JobId {
        let job = self.submit(customer, request).await;
        self.store.jobs_wait([(job, "no_host_fits", "no host fits")].into_iter()).await.expect("noted");
        job
    }
}

#[tokio::test]
async fn machines_for_jobs_that_ended_before_they_ran_count_against_their_customer_for_a_day() {
    open(async |market| {
        let [ada, bob] = [market.customer("ada").await, market.customer("bob").await];
        let (theirs, others) = (market.waits(ada, &request()).await, market.waits(bob, &request()).await);
        let in_vain = async || {
            let jobs = market.rents().await.0;
            [theirs, others].map(|id| jobs.iter().find(|job| job.job == id).expect("it waits").in_vain)
        };
        market.rent(theirs, 5).await;
        assert_eq!(in_vain().await, [0, 0], "it may still run");
        let cancelled = market.submit(ada, &request()).await;
        market.rent(cancelled, 0).await;
        let paid = market.rent(cancelled, 5).await;
        market.store.job_cancel(ada, cancelled).await.expect("cancelled");
        assert_eq!(in_vain().await, [1, 0], "and not the one that was never launched");
        let (ran, lease) = market.run(ada, market.host("alpha").await, &request()).await;
        market.rent(ran, 5).await;
        market.store.job_cancel(ada, ran).await.expect("cancelled");
        assert_eq!((in_vain().await, lease.0.is_nil()), ([1, 0], false));
        market.set(paid, &format!("made_at_ms = made_at_ms - {}", DAY.0)).await;
        assert_eq!(in_vain().await, [0, 0]);
    })
    .await;
}

#[tokio::test]
async fn a_job_is_told_why_no_machine_is_rented_for_it_while_it_waits() {
    open(async |market| {
        let ada = market.customer("ada").await;
        let [first, second] = [market.waits(ada, &request()).await, market.waits(ada, &request()).await];
        let message = async |job| market.job(ada, job).await.reason.expect("a reason").1;
        market.store.jobs_not_rented(&[(first, "nothing is rented".into())]).await.expect("told");
        assert_eq!(message(first).await, "no host fits; nothing is rented");
        assert_eq!(message(second).await, "no host fits");
        let told: Vec<_> = market.rents().await.0.into_iter().map(|job| job.not_rented).collect();
        assert_eq!(told, [Some("nothing is rented".to_owned()), None]);
        market.store.jobs_not_rented(&[]).await.expect("told");
        assert_eq!(message(first).await, "no host fits");
        market.store.jobs_not_rented(&[(first, "nothing is rented".into())]).await.expect("told");
        market.store.job_cancel(ada, first).await.expect("cancelled");
        let reason = market.job(ada, first).await.reason;
        assert!(reason.is_none_or(|(_, message)| !message.contains("rented")), "it waits no more");
    })
    .await;
}

#[tokio::test]
async fn what_jobs_use_of_a_machine_is_what_it_is_paid_but_for_what_they_get_back() {
    open(async |market| {
        let ada = market.customer("ada").await;
        let (_, host) = market.rented_host(ada).await;
        let paid = |used| {
            let size: Size = request().resources.size();
            charge(size, Millis(used), RATE).expect("an amount")
        };
        assert_eq!((market.machine().await.paid, market.machine().await.has_worked), (MicroUsd::ZERO, false));
        for span in [7_000, 4_000] {
            let (_, lease) = market.run(ada, host, &request()).await;
            market.use_up(host, lease, span).await;
            market.finish(host, lease, EXITED).await;
        }
        let (_, lost) = market.run(ada, host, &request()).await;
        market.use_up(host, lost, 10_000).await;
        let found = market.machine().await;
        assert!(found.is_busy && found.has_worked && !found.is_held);
        assert!((paid(21_000)..paid(31_000)).contains(&found.paid), "{}", found.paid);
        market.finish(host, lost, Outcome::HostLost).await;
        let found = market.machine().await;
        assert!((paid(11_000)..paid(20_000)).contains(&found.paid), "{}", found.paid);
        let account = market.store.machine_accounts(DAY).await.expect("accounts").pop().expect("a machine");
        assert_eq!(account.row.cost, MicroUsd(5));
        assert!((paid(11_000)..paid(20_000)).contains(&account.charged), "{}", account.charged);
        sqlx::query("update leases set started_at_ms = started_at_ms - $1, ended_at_ms = ended_at_ms - $1, closed_at_ms = closed_at_ms - $1")
            .bind(RentedMachine::PAID_SPAN.0)
            .execute(&market.sql)
            .await
            .expect("long ago");
        assert_eq!(market.machine().await.paid, MicroUsd::ZERO);
        let account = market.store.machine_accounts(DAY).await.expect("accounts").pop().expect("a machine");
        assert!(account.charged > MicroUsd::ZERO, "losses are those of a day");
    })
    .await;
}

#[tokio::test]
async fn a_quote_holds_a_machine_that_is_idle_and_none_that_is_released() {
    open(async |market| {
        let ada = market.customer("ada").await;
        let (machine, host) = market.rented_host(ada).await;
        held(market, ada, host).await;
        let found = market.machine().await;
        assert_eq!((found.is_busy, found.is_held), (false, true));
        assert!(found.has.is_some_and(|(inventory, _)| !inventory.memory.0.is_negative()));
        let idle = MachineDemand::Idle(market.store.now().await.expect("the time"));
        assert!(market.store.machine_demand(machine, found.row.version, idle).await.expect("idle"));
        assert!(!costs(market, machine, Some(IDLE), 5).await);
        let found = market.machine().await.row;
        assert_eq!((found.demand, found.ending), (idle, None), "it has been idle since then");
        let released = MachineDemand::Released;
        assert!(market.store.machine_demand(machine, found.version, released).await.expect("released"));
        assert!(costs(market, machine, Some(IDLE), 5).await);
    })
    .await;
}

#[tokio::test]
async fn members_of_a_gang_are_known_as_such_until_they_have_run() {
    open(async |market| {
        let ada = market.customer("ada").await;
        let gang = JobRequest { group: Some("g".into()), gang: Some(2), ..request() };
        let [first, second] = [market.waits(ada, &gang).await, market.waits(ada, &gang).await];
        let single = market.waits(ada, &request()).await;
        let jobs = market.rents().await.0;
        let gangs: Vec<_> = jobs.iter().map(|job| (job.job, job.gang)).collect();
        assert_eq!(gangs, [(first, Some(first)), (second, Some(first)), (single, None)]);
    })
    .await;
}

#[tokio::test]
async fn the_jobs_of_one_customer_do_not_hide_those_of_another_for_whom_machines_may_be_rented() {
    open(async |market| {
        let [eve, ada] = [market.customer("eve").await, market.customer("ada").await];
        let first = market.waits(eve, &request()).await;
        let many = "insert into jobs (job_id, customer_id, idempotency_key, request_sha256, request, max_spend, queued_at_ms,
                        reason_code, reason_message)
                    select rpad(lpad(to_hex(n), 12, '0'), 32, '0')::uuid, customer_id, n::text, request_sha256, request, 1,
                        queued_at_ms, reason_code, reason_message from jobs, generate_series(1, 1500) n where job_id = $1";
        sqlx::query(many).bind(first.0).execute(&market.sql).await.expect("many jobs");
        let last = market.waits(ada, &request()).await;
        let jobs = market.rents().await.0;
        assert_eq!((jobs.len(), jobs.last().map(|job| job.job)), (1_000, Some(last)));
        let none = "delete from jobs where idempotency_key = any(array(select n::text from generate_series(1, 1500) n))";
        sqlx::query(none).execute(&market.sql).await.expect("they were never submitted");
    })
    .await;
}
