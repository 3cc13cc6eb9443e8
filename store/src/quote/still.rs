//! Whether the place that a quote holds is still what it was when its job takes it.

use nave_domain::{
    CustomerId, Timestamp,
    fraction::{Division, Fraction, Shared},
    host::{Device, Inventory, Proven},
    job::{Isolation, JobRequest},
    wish::{self, Known, Terms},
};
use sqlx::PgConnection;

use super::LockedQuote;
use crate::{Result, cloud, error, place::Placement, schedule};

/// Whether a host, which is locked, is still what the quote was for, and nobody else has what it holds.
pub(super) async fn stands(
    tx: &mut PgConnection,
    quote: &LockedQuote,
    placement: &Placement,
) -> Result<bool> {
    match there(tx, placement, &quote.request).await? {
        Some(inventory) => is_alone(tx, quote, placement, &inventory).await,
        None => Ok(false),
    }
}

/// What a host, which is locked, has, if that is still what its leases need and a request asks for.
async fn there(
    tx: &mut PgConnection,
    placement: &Placement,
    request: &JobRequest,
) -> Result<Option<Inventory>> {
    let row = sqlx::query!(
        r#"select h.inventory as "inventory!", h.proven, h.term, h.region,
                exists (select from machines m where m.host_id = h.host_id) as "is_rented!",
                (select known -> 'dead_man' from machines m where m.host_id = h.host_id) as dead_man, now_ms() as "now!",
                sum(l.milli_cpu)::bigint as "milli_cpu!",
                sum(l.memory)::bigint as "memory!", sum(l.disk)::bigint as "disk!"
           from hosts h join leases l using (host_id) where h.host_id = $1 and l.state <> 'closed' group by h.host_id"#,
        placement.host.0
    )
    .fetch_one(tx)
    .await?;
    let inventory: Inventory = error::read_json("an inventory", row.inventory)?;
    let proven: Option<Proven> =
        row.proven.map(|value| error::read_json("what a host has proven", value)).transpose()?;
    let terms = Terms {
        term: error::read_name("a term", row.term)?,
        region: row.region.map(|name| error::read_name("a region", name)).transpose()?,
        trust: cloud::trust(row.is_rented, Some(&inventory), proven.as_ref()),
    };
    let lasts = cloud::lasts(row.dead_man, Timestamp(row.now))?;
    let at_any_price = JobRequest { max_price: None, ..request.clone() };
    let is_there = row.milli_cpu <= inventory.milli_cpu.0
        && row.memory <= inventory.memory.0
        && row.disk <= inventory.disk.0
        && lasts.is_none_or(|lasts| request.limits.longest() <= lasts)
        && has_devices(&inventory, proven.as_ref(), placement, request)
        && wish::unmet(&at_any_price, &terms, placement.rate).is_none();
    Ok(is_there.then_some(inventory))
}

/// Whether the devices of a placement are there, and all of one model that the request names.
fn has_devices(
    inventory: &Inventory,
    proven: Option<&Proven>,
    placement: &Placement,
    request: &JobRequest,
) -> bool {
    let of_model = |model: Option<&str>| {
        placement.devices.iter().all(|uuid| {
            let found = offered(inventory, uuid, placement.share, request);
            found.is_some_and(|device| model.is_none_or(|model| Known::device(device, proven).is(model)))
        })
    };
    request.resources.gpu.as_ref().map_or_else(|| of_model(None), |gpu| gpu.choices().any(of_model))
}

/// The device that has this identifier or of which the slice with it is, if it is leased like that and suffices.
fn offered<'a>(
    inventory: &'a Inventory,
    uuid: &str,
    share: Option<Fraction>,
    request: &JobRequest,
) -> Option<&'a Device> {
    let gpu = request.resources.gpu.clone().unwrap_or_default();
    let wanted = Fraction::wanted(&gpu, request.isolation);
    let slice = || {
        let (device, slice) = inventory.rentable_slices().find(|(_, slice)| slice.uuid == *uuid)?;
        wanted.is_some_and(|wanted| wanted.is_met_by(slice, gpu.vram_max)).then_some(device)
    };
    let Some(device) = inventory.rentable_devices().find(|device| device.uuid == *uuid) else {
        return slice();
    };
    let suffices = match share {
        None => gpu.fits(device.vram),
        Some(share) => {
            device.division == Division::Shares && wanted.map(|wanted| wanted.on(device.vram)) == Some(share)
        }
    };
    suffices.then_some(device)
}

/// Whether no other open lease of a host, which is locked, is in the way of a new one: none has one of its devices
/// or so much of it that it is oversold, and where one of two customers is to be alone, there is only one.
async fn is_alone(
    tx: &mut PgConnection,
    quote: &LockedQuote,
    placement: &Placement,
    inventory: &Inventory,
) -> Result<bool> {
    let others = sqlx::query!(
        r#"select j.customer_id, j.request ->> 'isolation' is not distinct from 'host' as "alone!",
                l.devices && $3::text[] as "is_on_them!", l.share_milli, l.share_vram
           from leases l join jobs j using (job_id)
           where l.host_id = $1 and l.job_id <> $2 and l.state <> 'closed'"#,
        placement.host.0,
        placement.job.0,
        &placement.devices
    )
    .fetch_all(tx)
    .await?;
    let wants_alone = quote.request.isolation == Isolation::Host;
    let is_other = |customer| CustomerId(customer) != quote.customer;
    if others.iter().any(|lease| is_other(lease.customer_id) && (wants_alone || lease.alone)) {
        return Ok(false);
    }
    let mut on_them = others
        .into_iter()
        .filter(|lease| lease.is_on_them)
        .map(|lease| Some((lease.customer_id.into(), schedule::share(lease.share_milli, lease.share_vram)?)));
    let Some(own) = placement.share else { return Ok(on_them.next().is_none()) };
    let device = inventory.rentable_devices().find(|device| placement.devices.contains(&device.uuid));
    let Some(total) = device.map(|device| device.vram) else { return Ok(false) };
    let mut all = on_them.chain([Some((quote.customer, own))]);
    Ok(all
        .try_fold(None, |taken, share| {
            let (tenant, fraction) = share?;
            Shared::with(taken, total, tenant, fraction).map(Some)
        })
        .is_some())
}
