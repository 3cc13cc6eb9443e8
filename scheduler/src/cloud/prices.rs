//! What devices cost in clouds, epoch by epoch.

use std::collections::BTreeMap;

use nave_clouds::{
    baseline::{Baseline, CloudQuote, Place, Source, baselines, price_list},
    classes::Region,
    ledger::Broken,
};
use nave_store::BaselineRow;

use super::Role;

/// What the source of a list price begins with.
const LISTED: &str = "list: ";
/// What stands for a price that no fresh quote is behind.
const BEFORE: &str = "earlier quotes";

/// Writes what devices cost now: one step from what they cost in the epoch before.
pub async fn look(role: &Role) -> Result<(), Broken> {
    role.set_clock().await?;
    let epoch = role.store.epoch_list(1).await?.first().map_or(1, |newest| newest.epoch);
    let stored = role.store.baselines_before(epoch).await?;
    let before: BTreeMap<Place, Baseline> = stored.iter().filter_map(read).collect();
    let quotes: Vec<CloudQuote> = role.offers().iter().filter_map(CloudQuote::of).collect();
    let now = baselines(&before, &quotes, role.clock.now());
    let changed = now.into_iter().filter(|(place, baseline)| before.get(place) != Some(baseline));
    let rows: Vec<BaselineRow> = changed.map(|(place, baseline)| written(place, &baseline, epoch)).collect();
    role.store.baselines_set(&rows).await?;
    role.store.prices_follow(None).await?;
    Ok(())
}

/// None for a region that clouds are not known to have.
fn read(row: &BaselineRow) -> Option<(Place, Baseline)> {
    let region = match &row.region {
        Some(region) => Some(Region::ALL.into_iter().find(|known| known.name() == region.as_str())?),
        None => None,
    };
    let listed = price_list().class.iter().find(|listed| listed.name == row.class);
    let source = match (row.source.strip_prefix(LISTED), listed) {
        (Some(text), Some(listed)) if text == listed.source => Source::List(&listed.source),
        // A list of earlier times is replaced by that of now.
        (Some(_), _) => return None,
        (None, _) => Source::Before,
    };
    let baseline = Baseline { price: row.gpu_hour, fetched_at: row.fetched_at, source };
    Some(((row.class.clone(), region), baseline))
}

fn written((class, region): Place, baseline: &Baseline, epoch: i64) -> BaselineRow {
    let source = match &baseline.source {
        Source::Quotes(clouds) => clouds.iter().map(|cloud| cloud.name()).collect::<Vec<_>>().join(", "),
        Source::Before => BEFORE.to_owned(),
        Source::List(source) => format!("{LISTED}{source}"),
    };
    BaselineRow {
        class,
        region: region.and_then(|region| region.name().parse().ok()),
        epoch,
        gpu_hour: baseline.price,
        source,
        fetched_at: baseline.fetched_at,
    }
}
