//! The schema and the programs that know it: one that is older than the schema writes nothing.

use sqlx::{Connection as _, PgConnection, migrate::Migrator};

use crate::Result;

pub(crate) static MIGRATIONS: Migrator = sqlx::migrate!("../migrations");

/// The newest migration of a database; none where there was none yet.
async fn newest(connection: &mut PgConnection) -> sqlx::Result<Option<i64>> {
    const UNDEFINED_TABLE: &str = "42P01";
    // The table is sqlx's, and not of the schema that queries are checked against.
    let newest = sqlx::query_scalar("select max(version) from _sqlx_migrations");
    match newest.fetch_one(connection).await {
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some(UNDEFINED_TABLE) => Ok(None),
        read => read,
    }
}

/// Refuses a connection to a database that is newer than this program.
pub(crate) async fn check(connection: &mut PgConnection) -> sqlx::Result<()> {
    let known = MIGRATIONS.iter().map(|migration| migration.version).max();
    let newest = newest(connection).await?;
    if newest <= known {
        return Ok(());
    }
    Err(sqlx::Error::Configuration(
        "the database is newer than this program: start the one that migrated it".into(),
    ))
}

/// Brings the schema up to date, and ends all other sessions where that changed it.
pub(crate) async fn migrate(connection: &mut PgConnection) -> Result<()> {
    let before = newest(connection).await?;
    MIGRATIONS.run(&mut *connection).await?;
    if newest(connection).await? != before {
        sqlx::query!(
            r#"select pg_terminate_backend(pid) as "ended!" from pg_stat_activity
               where datname = current_database() and usename = current_user and pid <> pg_backend_pid()"#
        )
        .fetch_all(&mut *connection)
        .await?;
    }
    Ok(connection.ping().await?)
}
