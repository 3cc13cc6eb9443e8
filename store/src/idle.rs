//! How long verified devices take jobs and have none.

use nave_domain::Millis;

use crate::{Result, Store};

impl Store {
    /// Adds the time since the last look, `step` at most, to every device that takes jobs, has a class and is not leased:
    /// an outage of the market adds nothing. Rented machines are not looked at.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn idle_look(&self, step: Millis) -> Result<()> {
        let mut tx = self.begin().await?;
        let before =
            sqlx::query_scalar!("select at_ms from idle_look for update").fetch_one(&mut *tx).await?;
        let now = sqlx::query_scalar!(r#"update idle_look set at_ms = now_ms() returning at_ms"#)
            .fetch_one(&mut *tx)
            .await?;
        sqlx::query!(
            "with open as (select epoch from epochs where state = 'open' for share skip locked),
             leased as (select host_id, unnest(devices) as device from leases where state <> 'closed'),
             idle as (
                select h.host_id, h.gpu_hour, d.value ->> 'class' as class, count(*) as devices
                from hosts h cross join jsonb_each(h.proven -> 'devices') d
                where h.state = 'ready' and not h.paused and d.value ->> 'class' is not null
                  and not exists (select from machines m where m.host_id = h.host_id)
                  and (h.host_id, d.key) not in (select host_id, device from leased)
                group by h.host_id, h.gpu_hour, d.value ->> 'class')
             insert into idle_times (epoch, host_id, class, device_ms, gpu_hour)
             select open.epoch, idle.host_id, idle.class, idle.devices * $1::bigint, idle.gpu_hour
             from idle cross join open
             on conflict on constraint idle_times_pkey do update
                set device_ms = idle_times.device_ms + excluded.device_ms,
                    gpu_hour = greatest(idle_times.gpu_hour, excluded.gpu_hour)",
            (now - before).clamp(0, step.0)
        )
        .execute(&mut *tx)
        .await?;
        Ok(tx.commit().await?)
    }
}
