//! What devices cost in clouds, epoch by epoch.

use nave_clouds::{
    baseline::{Baseline, CloudQuote, Past, Place, Source, baselines, price_list},
    ledger::Broken,
};
use nave_domain::Timestamp;
use nave_store::{BaselineRow, BaselineSource, Store};

use super::Role;

/// Writes what devices cost now, and brings along what follows that.
pub(super) async fn look(role: &Role) -> Result<(), Broken> {
    role.set_clock().await?;
    let quotes: Vec<CloudQuote> = role.offers().iter().filter_map(CloudQuote::of).collect();
    set(&role.store, &quotes, role.clock.now()).await
}

/// Writes what devices cost while clouds ask so much: at most one step from what they cost in the epoch before.
///
/// # Errors
/// When the database does not answer.
pub async fn set(store: &Store, quotes: &[CloudQuote], now: Timestamp) -> Result<(), Broken> {
    let epoch = store.epoch_list(1).await?.first().map_or(1, |newest| newest.epoch);
    let mut past = Past::default();
    past.before.extend(store.baselines_before(epoch).await?.iter().filter_map(read));
    let newest = store.baseline_list().await?;
    past.now.extend(newest.iter().filter(|row| row.epoch == epoch).filter_map(read));
    let found = baselines(&past, quotes, now).into_iter();
    let changed = found.filter(|(place, baseline)| past.now.get(place) != Some(baseline));
    let rows: Vec<BaselineRow> = changed.map(|(place, baseline)| written(place, &baseline, epoch)).collect();
    store.baselines_set(&rows).await?;
    store.prices_follow(None).await?;
    Ok(())
}

/// None for what rests on a list of earlier times, which that of now replaces.
fn read(row: &BaselineRow) -> Option<(Place, Baseline)> {
    let source = match &row.source {
        BaselineSource::Quotes(clouds) => Source::Quotes(clouds.split(", ").map(str::to_owned).collect()),
        BaselineSource::List(source) => {
            let listed = price_list().class.iter().find(|listed| listed.name == row.class);
            Source::List(&listed.filter(|listed| listed.source == *source)?.source)
        }
    };
    let baseline = Baseline { price: row.gpu_hour, fetched_at: row.fetched_at, source };
    Some(((row.class.clone(), row.area), baseline))
}

fn written((class, area): Place, baseline: &Baseline, epoch: i64) -> BaselineRow {
    let source = match &baseline.source {
        Source::Quotes(clouds) => BaselineSource::Quotes(clouds.join(", ")),
        Source::List(source) => BaselineSource::List((*source).to_owned()),
    };
    BaselineRow { class, area, epoch, gpu_hour: baseline.price, source, fetched_at: baseline.fetched_at }
}
