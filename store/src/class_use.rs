//! How much of each class of devices is leased, epoch by epoch.

use std::collections::BTreeMap;

use nave_domain::class_use::ClassUse;

use crate::{Result, Store};

impl Store {
    /// What there is now of each class on miners' hosts that take jobs, and how much of it is leased. What quotes or tests hold is
    /// not: nobody pays for it.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn class_use_now(&self) -> Result<BTreeMap<String, ClassUse>> {
        let rows = sqlx::query!(
            r#"with leased as (
                select host_id, device, least(sum(coalesce(share_milli, 1000)), 1000)::bigint as milli
                from leases cross join unnest(devices) device where state <> 'closed' group by host_id, device)
               select d.value ->> 'class' as "class!", count(*) as "devices!", coalesce(sum(milli), 0)::bigint as "leased_milli!"
               from hosts h cross join jsonb_each(h.proven -> 'devices') d
                    left join leased on leased.host_id = h.host_id and leased.device = d.key
               where h.state = 'ready' and not h.paused and d.value ->> 'class' is not null
                 and not exists (select from machines m where m.host_id = h.host_id)
               group by d.value ->> 'class'"#
        )
        .fetch_all(&self.pool)
        .await?;
        let used = |devices, leased_milli| ClassUse { devices, leased_milli };
        Ok(rows.into_iter().map(|row| (row.class, used(row.devices, row.leased_milli))).collect())
    }

    /// Adds what a look has seen of each class to the open epoch; nothing where there is none.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn class_use_add(&self, seen: &BTreeMap<String, ClassUse>) -> Result<()> {
        let classes: Vec<String> = seen.keys().cloned().collect();
        let devices: Vec<i64> = seen.values().map(|one| one.devices).collect();
        let leased: Vec<i64> = seen.values().map(|one| one.leased_milli).collect();
        sqlx::query!(
            "insert into class_use (class, epoch, devices, leased_milli)
             select seen.class, epochs.epoch, seen.devices, seen.leased_milli
             from unnest($1::text[], $2::bigint[], $3::bigint[]) as seen (class, devices, leased_milli),
                -- What is closed stands still, and whoever looks does not wait for a close.
                (select epoch from epochs where state = 'open' for share skip locked) epochs
             on conflict on constraint class_use_one do update
                set devices = class_use.devices + excluded.devices,
                    leased_milli = class_use.leased_milli + excluded.leased_milli",
            &classes,
            &devices,
            &leased
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// What was seen of each class in the newest epoch that has ended, or else in the open one.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn class_use(&self) -> Result<BTreeMap<String, ClassUse>> {
        let rows = sqlx::query!(
            "select distinct on (class) class, devices, leased_milli from class_use join epochs using (epoch)
             order by class, state = 'open', epoch desc"
        )
        .fetch_all(&self.pool)
        .await?;
        let seen = |devices, leased_milli| ClassUse { devices, leased_milli };
        Ok(rows.into_iter().map(|row| (row.class, seen(row.devices, row.leased_milli))).collect())
    }
}
