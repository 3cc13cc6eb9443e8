//! Programs and schemas of different ages.

use nave_store::{Store, testing};
use sqlx::PgPool;

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
