//! The control clock: time during which hosts could reach a gateway, through the hub.

use nave_domain::{Millis, Timestamp};

use crate::{Moment, Result, Store};

/// Longest stretch one beat adds; a gateway beats twice as often.
const BEAT_MS_MAX: i64 = 1_000;
/// Shortest time for which it stood still that is written down.
const PAUSE_MS_MIN: i64 = 1_500;
/// Longest time since the hub's last beat while it counts as there.
const HUB_MS_MAX: i64 = 1_500;

impl Store {
    /// Advances the clock by the time since the last beat, at most one second: what is
    /// longer was downtime. Several gateways may beat; together they add real time once.
    /// Where there is a hub and it does not beat, the clock stands still. That it did is written down.
    /// Where Postgres's clock is set back, one beat adds nothing and the next ones go on.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn clock_beat(&self) -> Result<()> {
        sqlx::query!(
            "with stood as (
                insert into pauses (from_ms, until_ms)
                select beat_at_ms + $1, now_ms() from control_clock
                where now_ms() - beat_at_ms > $1::bigint + $3 and (hub_at_ms is null or now_ms() - hub_at_ms < $2)
                on conflict do nothing)
             update control_clock set
                up_ms = up_ms + greatest(0, least(now_ms() - beat_at_ms, $1)),
                beat_at_ms = now_ms()
             where hub_at_ms is null or now_ms() - hub_at_ms < $2",
            BEAT_MS_MAX,
            HUB_MS_MAX,
            PAUSE_MS_MIN
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// The hub is there and lets hosts in.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn hub_beat(&self) -> Result<()> {
        sqlx::query!("update control_clock set hub_at_ms = now_ms()").execute(&self.pool).await?;
        Ok(())
    }

    /// Now, on both clocks.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn clock_now(&self) -> Result<Moment> {
        let now = sqlx::query!(r#"select now_ms() as "at!", control_ms() as "up!""#);
        let now = now.fetch_one(&self.pool).await?;
        Ok(Moment { at: Timestamp(now.at), up: Millis(now.up) })
    }

    /// Total uptime, for comparing with an earlier reading.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn clock_up(&self) -> Result<Millis> {
        Ok(Millis(sqlx::query_scalar!("select up_ms from control_clock").fetch_one(&self.pool).await?))
    }
}
