//! Baselines: what clouds ask for devices on demand, which miners must beat.

use std::collections::BTreeMap;

use nave_domain::{HostId, MicroUsd, Timestamp, host::Proven, rate::GpuPrice, region::Area, wish::Region};
use sqlx::PgConnection;

use crate::{
    Result, Store, StoreError, error, host,
    notify::{Changes, announce},
};

/// The baseline of one class in one part of the world.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaselineRow {
    /// The class.
    pub class: String,
    /// Where; none for anywhere else.
    pub area: Option<Area>,
    /// The epoch from which on it counts.
    pub epoch: i64,
    /// Price of one device for an hour.
    pub gpu_hour: MicroUsd,
    /// What it rests on.
    pub source: BaselineSource,
    /// When the newest of that was fetched, or read by somebody.
    pub fetched_at: Timestamp,
}

/// What a baseline rests on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BaselineSource {
    /// What these clouds ask for, separated by commas.
    Quotes(String),
    /// A list of prices, which is no market's: where somebody read it.
    List(String),
}

/// What a source begins with that is a list.
const LISTED: &str = "list: ";

impl BaselineSource {
    fn read(text: String) -> Self {
        match text.strip_prefix(LISTED) {
            Some(list) => Self::List(list.to_owned()),
            None => Self::Quotes(text),
        }
    }

    fn write(&self) -> String {
        match self {
            Self::Quotes(clouds) => clouds.clone(),
            Self::List(list) => format!("{LISTED}{list}"),
        }
    }
}

/// The baselines that count now, by class and area.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Baselines(BTreeMap<String, BTreeMap<Option<Area>, MicroUsd>>);

impl Baselines {
    /// The baseline of a class in the area of a region, or else anywhere.
    #[must_use]
    pub fn of(&self, class: &str, region: Option<&Region>) -> Option<MicroUsd> {
        let prices = self.0.get(class)?;
        let area = region.and_then(Region::area);
        area.and_then(|area| prices.get(&Some(area))).or_else(|| prices.get(&None)).copied()
    }
}

impl FromIterator<((String, Option<Area>), MicroUsd)> for Baselines {
    fn from_iter<I: IntoIterator<Item = ((String, Option<Area>), MicroUsd)>>(rows: I) -> Self {
        let mut all = Self::default();
        for ((class, area), price) in rows {
            all.0.entry(class).or_default().insert(area, price);
        }
        all
    }
}

/// How the table writes that a baseline is for any area without one of its own.
const ANYWHERE: &str = "*";

fn read_area(name: &str) -> Result<Option<Area>> {
    if name == ANYWHERE {
        return Ok(None);
    }
    let found = Area::ALL.into_iter().find(|area| area.name() == name);
    found.map(Some).ok_or_else(|| StoreError::Corrupt(format!("{name:?} is no part of the world")))
}

struct RawBaseline {
    class: String,
    region: String,
    epoch: i64,
    gpu_hour: i64,
    source: String,
    fetched_at_ms: i64,
}

impl RawBaseline {
    fn read(self) -> Result<BaselineRow> {
        Ok(BaselineRow {
            class: self.class,
            area: read_area(&self.region)?,
            epoch: self.epoch,
            gpu_hour: MicroUsd(self.gpu_hour),
            source: BaselineSource::read(self.source),
            fetched_at: Timestamp(self.fetched_at_ms),
        })
    }
}

/// The newest baseline of every class and area.
pub(crate) async fn current(tx: &mut PgConnection) -> Result<Baselines> {
    let rows = sqlx::query!(
        "select distinct on (class, region) class, region, gpu_hour from baselines order by class, region, epoch desc"
    )
    .fetch_all(tx)
    .await?;
    let rows = rows.into_iter().map(|row| Ok(((row.class, read_area(&row.region)?), MicroUsd(row.gpu_hour))));
    rows.collect()
}

/// How the price of a host's GPUs is set, as its row says.
pub(crate) fn gpu_price(below_percent: Option<i16>, floor: Option<i64>) -> GpuPrice {
    let percent = below_percent.and_then(|percent| u8::try_from(percent).ok());
    match percent.zip(floor) {
        Some((percent, floor)) => GpuPrice::BelowBaseline { percent, floor: MicroUsd(floor) },
        None => GpuPrice::Fixed,
    }
}

impl Store {
    /// Brings prices that follow baselines up to date, of one host or of all; returns how many have changed. A
    /// host without a device that has a baseline keeps its price.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn prices_follow(&self, host: Option<HostId>) -> Result<usize> {
        let baselines = self.baselines().await?;
        let rows = sqlx::query!(
            r#"select host_id, gpu_hour, below_percent, price_floor, region, proven as "proven!" from hosts
               where below_percent is not null and proven is not null and state not in ('gone', 'banned')
                 and ($1::uuid is null or host_id = $1) order by host_id"#,
            host.map(|host| host.0)
        )
        .fetch_all(&self.pool)
        .await?;
        let mut changed = 0;
        for row in rows {
            let proven: Proven = error::read_json("what a host has proven", row.proven)?;
            let region = row.region.map(|name| error::read_name("a region", name)).transpose()?;
            let asked = proven.classes().filter_map(|(_, class)| baselines.of(&class, region.as_ref())).min();
            let how = gpu_price(row.below_percent, row.price_floor);
            let Some(price) = asked.and_then(|baseline| how.following(baseline)) else { continue };
            if price.0 == row.gpu_hour {
                continue;
            }
            let mut tx = self.begin().await?;
            let updated = sqlx::query!(
                "update hosts set gpu_hour = $2
                 where host_id = $1 and gpu_hour = $3 and below_percent = $4 and price_floor = $5",
                row.host_id,
                price.0,
                row.gpu_hour,
                row.below_percent,
                row.price_floor
            )
            .execute(&mut *tx)
            .await?;
            if updated.rows_affected() == 1 {
                host::bump(&mut tx, row.host_id.into()).await?;
                announce(&mut tx, Changes::Supply).await?;
                tx.commit().await?;
                changed += 1;
            }
        }
        Ok(changed)
    }

    /// The baselines that count now.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn baselines(&self) -> Result<Baselines> {
        current(&mut *self.pool.acquire().await?).await
    }

    /// The newest baseline of every class and area, with what it rests on.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn baseline_list(&self) -> Result<Vec<BaselineRow>> {
        self.baselines_before(i64::MAX).await
    }

    /// The newest baseline of every class and area from before an epoch.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn baselines_before(&self, epoch: i64) -> Result<Vec<BaselineRow>> {
        let rows = sqlx::query_as!(
            RawBaseline,
            "select distinct on (class, region) class, region, gpu_hour, source, fetched_at_ms, epoch
             from baselines where epoch < $1 order by class, region, epoch desc",
            epoch
        );
        rows.fetch_all(&self.pool).await?.into_iter().map(RawBaseline::read).collect()
    }

    /// Writes baselines down; of a class and area in one epoch the last one counts.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn baselines_set(&self, rows: &[BaselineRow]) -> Result<()> {
        let mut tx = self.begin().await?;
        for row in rows {
            sqlx::query!(
                "insert into baselines (class, region, epoch, gpu_hour, source, fetched_at_ms)
                 values ($1, $2, $3, $4, $5, $6)
                 on conflict on constraint baselines_one do update
                    set gpu_hour = excluded.gpu_hour, source = excluded.source, fetched_at_ms = excluded.fetched_at_ms",
                row.class,
                row.area.map_or(ANYWHERE, Area::name),
                row.epoch,
                row.gpu_hour.0,
                row.source.write(),
                row.fetched_at.0
            )
            .execute(&mut *tx)
            .await?;
        }
        Ok(tx.commit().await?)
    }

    /// Every baseline that was ever written down of a class, oldest first.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn baseline_history(&self, class: &str) -> Result<Vec<BaselineRow>> {
        let rows = sqlx::query_as!(
            RawBaseline,
            "select class, region, epoch, gpu_hour, source, fetched_at_ms from baselines
             where class = $1 order by epoch, region",
            class
        );
        rows.fetch_all(&self.pool).await?.into_iter().map(RawBaseline::read).collect()
    }
}
