//! The shell around the rows: lists, writes, asks. It may be killed at any line, and run twice.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use nave_domain::{Millis, Timestamp};

use crate::{
    error::{CloudError, Kind},
    ledger::{Attempt, Broken, Call, Kept, Ledger},
    machine::{Listing, Row, Rules, Step},
    provider::{Availability, CloudId, CloudOffer, Launch, MachineId, Owner, Provider},
    secret::Secret,
};

/// Keeps the machines of one cloud: what is wanted is launched, what is ours and not wanted is given back.
pub struct Keeper<'a> {
    provider: &'a dyn Provider,
    ledger: &'a dyn Ledger,
    owner: Owner,
    rules: Rules,
    /// The time.
    now: &'a (dyn Fn() -> Timestamp + Sync),
    boot: &'a dyn Boot,
    /// Until when the cloud is asked for nothing.
    quiet_until: AtomicI64,
    /// Whether it said at last which machines there are.
    has_listed: AtomicBool,
    /// Until when it is asked for no machine.
    no_launch_until: AtomicI64,
}

/// For how long a cloud that wants to be left alone is asked for nothing at the most: what is rented there costs money
/// until it is given back.
const QUIET_MAX: Millis = Millis(60_000);

/// What writes the scripts that machines boot with.
pub trait Boot: Send + Sync {
    /// The script that a row's machine boots with.
    fn script<'a>(&'a self, row: &'a Row) -> Kept<'a, Secret>;
}

impl<F: Fn(&Row) -> Secret + Send + Sync> Boot for F {
    fn script<'a>(&'a self, row: &'a Row) -> Kept<'a, Secret> {
        Box::pin(async move { Ok(self(row)) })
    }
}

impl<'a> Keeper<'a> {
    /// A keeper of what is `owner`'s at a cloud.
    #[must_use]
    pub fn new(
        provider: &'a dyn Provider,
        ledger: &'a dyn Ledger,
        owner: Owner,
        now: &'a (dyn Fn() -> Timestamp + Sync),
        boot: &'a dyn Boot,
    ) -> Self {
        Self {
            provider,
            ledger,
            owner,
            rules: Rules::of(provider.cloud()),
            now,
            boot,
            quiet_until: AtomicI64::new(i64::MIN),
            has_listed: AtomicBool::new(false),
            no_launch_until: AtomicI64::new(i64::MIN),
        }
    }

    /// The same with other patience.
    #[must_use]
    pub fn patient(self, rules: Rules) -> Self {
        Self { rules, ..self }
    }

    /// Looks once at everything, and does what is to be done.
    ///
    /// # Errors
    /// When the ledger fails, or there is no script to boot with. What was begun is found again.
    pub async fn tick(&self) -> Result<(), Broken> {
        if (self.now)().0 < self.quiet_until.load(Ordering::Relaxed) {
            return Ok(());
        }
        let listing = self.list().await?;
        let mut rows = self.ledger.open(self.provider.cloud()).await?;
        if let Some(listing) = &listing {
            rows.extend(self.turned_up(listing, &rows).await?);
        }
        let mut done = Ok(());
        for row in rows {
            // Whatever is the matter with one, the others are looked after.
            done = done.and(self.keep(row, listing.as_ref()).await);
        }
        done
    }

    /// Whether the cloud said, when it was last asked, which machines there are.
    pub fn has_listed(&self) -> bool {
        self.has_listed.load(Ordering::Relaxed)
    }

    /// The machines of the account; none when the cloud does not say.
    async fn list(&self) -> Result<Option<Listing>, Broken> {
        let asked_at = (self.now)();
        match self.provider.list_ours().await {
            Ok(machines) => {
                self.has_listed.store(true, Ordering::Relaxed);
                Ok(Some(Listing { asked_at, machines }))
            }
            Err(error) => {
                self.has_listed.store(false, Ordering::Relaxed);
                self.failed(None, Call::List, asked_at, error).await?;
                Ok(None)
            }
        }
    }

    /// Rows that are closed, or were never there, of machines that bear our name.
    async fn turned_up(&self, listing: &Listing, open: &[Row]) -> Result<Vec<Row>, Broken> {
        let mut ids: Vec<MachineId> =
            listing.machines.iter().filter_map(|machine| self.owner.reads(&machine.name)).collect();
        ids.sort_unstable();
        ids.dedup();
        let mut rows = Vec::new();
        for id in ids.into_iter().filter(|id| open.iter().all(|row| row.id != *id)) {
            let found = self.ledger.find(id).await?;
            rows.push(found.unwrap_or_else(|| Row::stray(id, self.provider.cloud(), listing.asked_at)));
        }
        Ok(rows)
    }

    /// One row: what was seen is written, then what follows is done.
    async fn keep(&self, mut row: Row, listing: Option<&Listing>) -> Result<(), Broken> {
        let terms = self.provider.cloud().terms();
        let before = row.clone();
        if let Some(listing) = listing {
            let is_mine = |name: &str| self.owner.reads(name) == Some(row.id);
            let mine: Vec<_> = listing.machines.iter().filter(|machine| is_mine(&machine.name)).collect();
            row.listed(&mine, listing.asked_at, &terms);
        }
        row.decide((self.now)(), &terms, &self.rules);
        if row != before && !self.write(&mut row, None).await? {
            // Somebody else is at it.
            return Ok(());
        }
        for step in row.steps((self.now)(), &self.rules) {
            let goes_on = match step {
                Step::Launch => self.launch(&mut row).await?,
                Step::Return(id) => self.give_back(&mut row, &id).await?,
                Step::Look(id) => self.look(&mut row, &id).await?,
            };
            if !goes_on {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Quotes again, writes that the cloud is asked, and asks: in this order.
    async fn launch(&self, row: &mut Row) -> Result<bool, Broken> {
        let terms = self.provider.cloud().terms();
        let last = self.ledger.last_asked(row.cloud).await?;
        let is_early = last.is_some_and(|last| (self.now)().since(last) < terms.pace);
        if is_early || (self.now)().0 < self.no_launch_until.load(Ordering::Relaxed) {
            return Ok(true);
        }
        let asked_at = (self.now)();
        let offer = match self.quote(row).await {
            Ok(offer) => offer,
            Err(error) => {
                row.refused(&error, (self.now)(), &self.rules);
                self.hush(&error, asked_at);
                return self.write_with(row, Call::Quote, asked_at, None, Some(error)).await;
            }
        };
        // Whatever fails here has asked for nothing.
        let boot = self.boot.script(row).await?;
        row.launching(offer.price, (self.now)());
        if !self.write(row, None).await? {
            return Ok(false);
        }
        let asked_at = (self.now)();
        let launch = Launch {
            tag: self.owner.tag(row.id),
            offer,
            boot,
            dead_man: row.dead_man,
            price_max: row.price_max,
        };
        let answer = self.provider.launch(&launch, asked_at).await;
        row.launched(&answer, (self.now)(), &self.rules);
        if let Err(error) = &answer {
            self.hush(error, asked_at);
        }
        self.write_with(row, Call::Launch, asked_at, Some(launch.offer), answer.err()).await
    }

    /// The row's offer at its present price, if that is still within bounds.
    async fn quote(&self, row: &Row) -> Result<CloudOffer, CloudError> {
        let offers = self.provider.list_offers((self.now)()).await?;
        let is_it = |offer: &&CloudOffer| (&offer.id, &offer.region) == (&row.offer.0, &row.offer.1);
        let refused = |kind, words: &str| Err(CloudError::new(kind, "quote", words));
        match offers.iter().find(is_it) {
            None => refused(Kind::OutOfStock, "it is not offered any more"),
            Some(offer) if offer.availability == Availability::SoldOut => {
                refused(Kind::OutOfStock, "it is sold out")
            }
            Some(offer) if offer.price > row.price_max => {
                refused(Kind::PriceRise, "it costs more than it may")
            }
            Some(offer) => Ok(offer.clone()),
        }
    }

    async fn give_back(&self, row: &mut Row, id: &CloudId) -> Result<bool, Broken> {
        row.returning(id, (self.now)());
        if !self.write(row, None).await? {
            return Ok(false);
        }
        let asked_at = (self.now)();
        match self.provider.delete(id).await {
            // Whether it has nothing by this id is for the list to say.
            Ok(()) => self.note(Some(row.id), Call::Return, asked_at, None).await?,
            Err(error) => self.failed(Some(row.id), Call::Return, asked_at, error).await?,
        }
        Ok(true)
    }

    async fn look(&self, row: &mut Row, id: &CloudId) -> Result<bool, Broken> {
        let asked_at = (self.now)();
        match self.provider.get(id).await {
            Ok(found) => {
                let before = row.clone();
                row.looked(id, found.as_ref(), asked_at, &self.provider.cloud().terms(), &self.rules);
                Ok(*row == before || self.write(row, None).await?)
            }
            Err(error) => {
                self.failed(Some(row.id), Call::Look, asked_at, error).await?;
                Ok(true)
            }
        }
    }

    /// Writes a row, whose version then is that of what was written; false if somebody else wrote it.
    async fn write(&self, row: &mut Row, attempt: Option<&Attempt>) -> Result<bool, Broken> {
        let written = self.ledger.write(row, attempt).await?;
        row.version += u64::from(written);
        Ok(written)
    }

    async fn write_with(
        &self,
        row: &mut Row,
        call: Call,
        at: Timestamp,
        quoted: Option<CloudOffer>,
        error: Option<CloudError>,
    ) -> Result<bool, Broken> {
        let attempt = Attempt { row: Some(row.id), cloud: row.cloud, at, call, quoted, error };
        self.write(row, Some(&attempt)).await
    }

    async fn failed(
        &self,
        row: Option<MachineId>,
        call: Call,
        at: Timestamp,
        error: CloudError,
    ) -> Result<(), Broken> {
        self.hush(&error, at);
        self.note(row, call, at, Some(error)).await
    }

    async fn note(
        &self,
        row: Option<MachineId>,
        call: Call,
        at: Timestamp,
        error: Option<CloudError>,
    ) -> Result<(), Broken> {
        let cloud = self.provider.cloud();
        self.ledger.note(&Attempt { row, cloud, at, call, quoted: None, error }).await
    }

    /// A cloud that asks for it is left alone: with launches for as long as it wants, with the rest for a while.
    fn hush(&self, error: &CloudError, at: Timestamp) {
        if let Kind::RateLimited { after } = error.kind {
            self.no_launch_until.fetch_max(at.after(after).0, Ordering::Relaxed);
            self.quiet_until.fetch_max(at.after(after.min(QUIET_MAX)).0, Ordering::Relaxed);
        }
    }
}
