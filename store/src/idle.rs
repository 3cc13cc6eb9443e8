//! How long verified devices take jobs and have none.

use nave_domain::Millis;

use crate::{Result, Store};

impl Store {
    /// Adds the time since the last look, `step` at most, to every device that takes jobs, has a class, and is neither leased
    /// nor held by a quote: an outage of the market adds nothing. Rented machines are not looked at. While an epoch closes,
    /// nothing is looked at; the next look counts that time.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn idle_look(&self, step: Millis) -> Result<()> {
        let mut tx = self.begin().await?;
        let before =
            sqlx::query_scalar!("select at_ms from idle_look for update").fetch_one(&mut *tx).await?;
        let open = sqlx::query_scalar!("select epoch from epochs where state = 'open' for share skip locked");
        let Some(epoch) = open.fetch_optional(&mut *tx).await? else { return Ok(()) };
        let now = sqlx::query_scalar!(r#"update idle_look set at_ms = now_ms() returning at_ms"#)
            .fetch_one(&mut *tx)
            .await?;
        sqlx::query!(
            "with taken as (
                select host_id, unnest(devices) as device from leases where state <> 'closed'
                union all select host_id, jsonb_array_elements_text(answer #> '{answer,place,devices}') from quotes
                where host_id is not null and job_id is null and expires_at_ms > now_ms()),
             idle as (
                select h.host_id, h.gpu_hour, d.value ->> 'class' as class, count(*) as devices
                from hosts h cross join jsonb_each(h.proven -> 'devices') d
                where h.state = 'ready' and not h.paused and d.value ->> 'class' is not null
                  and not exists (select from machines m where m.host_id = h.host_id)
                  and (h.host_id, d.key) not in (select host_id, device from taken)
                group by h.host_id, h.gpu_hour, d.value ->> 'class')
             insert into idle_times (epoch, host_id, class, device_ms, gpu_hour)
             -- Their hosts are locked in this order.
             select $1, host_id, class, devices * $2::bigint, gpu_hour from idle order by host_id, class
             on conflict on constraint idle_times_pkey do update
                set device_ms = idle_times.device_ms + excluded.device_ms,
                    gpu_hour = greatest(idle_times.gpu_hour, excluded.gpu_hour)",
            epoch,
            (now - before).clamp(0, step.0)
        )
        .execute(&mut *tx)
        .await?;
        Ok(tx.commit().await?)
    }
}
