//! How long verified devices take jobs and have none.

use nave_domain::{Millis, job::Resources};

use crate::{Result, Store};

impl Store {
    /// Adds the time since the last look, `step` at most, to every device that takes jobs, has a class, and is not leased:
    /// an outage of the market adds nothing. Rented machines are not looked at, nor are hosts that claim too little for a
    /// job beside each device. While an epoch closes, nothing is looked at; the next look counts that time.
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
        let beside = Resources::default();
        sqlx::query!(
            "with idle as (
                select h.host_id, ceil(host_hourly(h) / jsonb_array_length(h.inventory -> 'devices'))::bigint as gpu_hour,
                    d.value ->> 'class' as class, count(*) as devices
                from hosts h cross join jsonb_each(h.proven -> 'devices') d
                    cross join lateral (select count(*) as count from jsonb_object_keys(h.proven -> 'devices')) proven
                where h.state = 'ready' and not h.paused and d.value ->> 'class' is not null
                  -- Whoever claims less once it is proven, or from the beginning, could not take jobs.
                  and (h.inventory ->> 'milli_cpu')::bigint >= proven.count * $3
                  and (h.inventory ->> 'memory')::bigint >= proven.count * $4
                  and (h.inventory ->> 'disk')::bigint >= proven.count * $5
                  and h.inventory -> 'egress' @> '[\"public\"]'
                  and not exists (select from machines m where m.host_id = h.host_id)
                  and not exists (
                    select from leases l where l.host_id = h.host_id and l.state <> 'closed' and d.key = any(l.devices))
                group by h.host_id, d.value ->> 'class')
             insert into idle_times (epoch, host_id, class, device_ms, gpu_hour)
             -- Their hosts are locked in this order.
             select $1, host_id, class, devices * $2::bigint, gpu_hour from idle order by host_id, class
             on conflict on constraint idle_times_pkey do update
                set device_ms = idle_times.device_ms + excluded.device_ms,
                    gpu_hour = greatest(idle_times.gpu_hour, excluded.gpu_hour)",
            epoch,
            (now - before).clamp(0, step.0),
            beside.milli_cpu.0,
            beside.memory.0,
            beside.disk.0
        )
        .execute(&mut *tx)
        .await?;
        Ok(tx.commit().await?)
    }
}
