//! Programs and schemas of different ages.

use nave_domain::{HostId, LeaseId};
use nave_store::{Settlement, Store, testing};
use sqlx::PgPool;
use uuid::Uuid;

use crate::{market::EXITED, settle::result};

#[tokio::test]
async fn a_program_writes_nothing_to_a_database_that_is_newer() {
    let (url, _) = testing::database().await;
    let old = Store::connect(&url).await.expect("connect");
    old.migrate().await.expect("migrated");
    old.customer_ensure("ada").await.expect("it is as new as this program");
    let sql = PgPool::connect(&url).await.expect("connect");
    let newer = "insert into _sqlx_migrations (version, description, success, checksum, execution_time)
                 values (999999, 'from the future', true, '', 0)";
    sqlx::query(newer).execute(&sql).await.expect("a newer program migrated");
    let later = Store::connect(&url).await.expect("lazily");
    assert!(later.customer_ensure("eve").await.is_err(), "an older program is refused");
    assert!(later.migrate().await.is_err(), "and takes nothing back");
    let customers = sqlx::query_scalar::<_, i64>("select count(*) from customers");
    assert_eq!(customers.fetch_one(&sql).await.expect("a count"), 1);
}

#[tokio::test]
async fn a_migration_ends_the_sessions_of_programs_that_may_be_older() {
    let (url, _) = testing::database().await;
    let sql = PgPool::connect(&url).await.expect("connect");
    let mut older = sql.acquire().await.expect("a session");
    sqlx::query("select 1").execute(&mut *older).await.expect("it lives");
    let store = Store::connect(&url).await.expect("connect");
    store.migrate().await.expect("migrated");
    assert!(sqlx::query("select 1").execute(&mut *older).await.is_err(), "it has ended");
    store.customer_ensure("ada").await.expect("whoever is new enough goes on");
    store.migrate().await.expect("nothing to do");
    store.customer_ensure("ada").await.expect("and nothing ends");
}

/// Number, use and cost of each lease that is settled.
async fn leases(settlement: &mut Settlement) -> Vec<(u128, i64, i64)> {
    let leases = settlement.leases(None).await.expect("leases");
    leases.iter().map(|lease| (lease.lease.0.as_u128(), lease.used.0, lease.charged.0)).collect()
}

#[tokio::test]
async fn what_epochs_had_counted_before_they_were_settled_is_settled_once_and_the_rest_too() {
    let store = testing::market_upgraded().await;
    store.params_first(&serde_json::json!({})).await.expect("parameters");
    let mut closed = store.settlement_begin(2).await.expect("it had closed");
    assert_eq!(leases(&mut closed).await, [(2, 5_000, 4_000)]);
    assert_eq!(closed.verdicts(None).await.expect("verdicts").len(), 1, "its own");
    assert_eq!(closed.miners().await.expect("miners")[0].verified_hosts, 1);
    closed.finish(&result()).await.expect("settled");
    store.epoch_close(3, "local").await.expect("close");
    let mut open = store.settlement_begin(3).await.expect("begin");
    assert_eq!(leases(&mut open).await, [(3, 3_000, 3_000), (4, 5_000, 5_000), (6, 5_000, 5_000)]);
    assert_eq!(open.verdicts(None).await.expect("verdicts"), []);
    open.finish(&result()).await.expect("settled");
    let (host, lease) = (HostId(Uuid::from_u128(0xaa)), LeaseId(Uuid::from_u128(5)));
    store.lease_finished(host, lease, Some(EXITED), None).await.expect("finished");
    store.epoch_close(4, "local").await.expect("close");
    let mut next = store.settlement_begin(4).await.expect("begin");
    assert_eq!(leases(&mut next).await, [(5, 3_000, 3_000)]);
}

#[tokio::test]
async fn epochs_during_which_the_clock_was_set_back_follow_one_another() {
    let (mut old, url) = testing::database_at(22).await;
    let epochs = "insert into epochs (epoch, state, chain, opened_at_ms, closed_at_ms) values
        (1, 'confirmed', 'local', 100, 200), (2, 'closed', 'local', 200, 150), (3, 'closed', 'local', 150, 180),
        (4, 'closed', 'local', 180, 300), (5, 'open', 'local', 250, null)";
    sqlx::query(epochs).execute(&mut old).await.expect("an old market");
    let store = Store::connect(&url).await.expect("connect");
    store.migrate().await.expect("migrated");
    let times = sqlx::query_as("select opened_at_ms, closed_at_ms from epochs order by epoch");
    // The session of an older program has ended.
    let sql = PgPool::connect(&url).await.expect("connect");
    let times: Vec<(i64, Option<i64>)> = times.fetch_all(&sql).await.expect("epochs");
    let closed = [(100, Some(200)), (200, Some(200)), (200, Some(200)), (200, Some(300))];
    assert_eq!(times, [&closed[..], &[(300, None)]].concat());
}
