//! Whether a job fits a host, and what keeps it off.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use nave_domain::{
    Bytes, MicroUsd, MilliCpu, MilliGpu,
    fraction::{Division, Fraction, Shared, Slice},
    host::{Device, Trust},
    job::{Egress, GpuRequest, Isolation, JobRequest},
    rate::{Rate, Size, gpu_hourly, hourly},
    wish::{Known, Unmet, unmet, words},
};
use nave_store::{Baselines, ORDERS_BYTES_MAX, QueuedJob, SupplyHost};

/// What keeps a job off a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Lack {
    Cpu,
    Memory,
    Disk,
    Spec,
    Egress,
    Group,
    Alone,
    Apart,
    Time,
    Wish(Unmet),
    Gpus,
}

impl Lack {
    /// For programs.
    pub(crate) fn code(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Disk => "disk",
            Self::Spec => "spec",
            Self::Egress => "egress",
            Self::Group => "group",
            Self::Alone => "not_alone",
            Self::Apart => "not_apart",
            Self::Time => "time",
            Self::Wish(Unmet::MaxPrice) => "max_price",
            Self::Wish(Unmet::Region) => "region",
            Self::Wish(Unmet::Term) => "term",
            Self::Wish(Unmet::Trust) => "trust",
            Self::Gpus => "gpus",
        }
    }

    /// What the host does not have, in words.
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::Cpu => "enough CPU",
            Self::Memory => "enough memory",
            Self::Disk => "enough disk",
            Self::Spec => "room for its order among those that it has",
            Self::Egress => "a way to enforce its egress policy",
            Self::Group => "a way to keep it to its group",
            Self::Alone => "nobody else's jobs",
            Self::Apart => "an owner who has none of the jobs that it is kept apart from",
            Self::Time => "enough time until it ends",
            Self::Wish(Unmet::MaxPrice) => "a price that it pays",
            Self::Wish(Unmet::Region) => "its place in that region",
            Self::Wish(Unmet::Term) => "that term",
            Self::Wish(Unmet::Trust) => "that trust",
            Self::Gpus => "enough GPUs with that much memory",
        }
    }
}

/// What the name of a model means: the numbers of what devices are known by.
pub(crate) type Meant = Arc<BTreeSet<usize>>;

/// All that devices are known by, each once, so that a name is compared with it once and not for every device.
#[derive(Debug, Clone, Default)]
pub(crate) struct Names {
    known: BTreeMap<Known, usize>,
    /// How many devices each number is of.
    of: BTreeMap<usize, (Known, usize)>,
    next: usize,
    by_word: BTreeMap<String, BTreeSet<usize>>,
    /// The choices of lists of models that were asked for.
    choices: RefCell<BTreeMap<Vec<String>, Choices>>,
}

/// The models of GPUs to try, one after the other and at least one; none stands for any.
pub(crate) type Choices = Arc<[Option<Meant>]>;

impl Names {
    /// The number of what a device is known by, which counts as one more.
    fn number(&mut self, known: Known) -> usize {
        if let Some(number) = self.known.get(&known) {
            self.of.entry(*number).and_modify(|(_, devices)| *devices += 1);
            return *number;
        }
        let number = self.next;
        self.next += 1;
        for word in known.words() {
            self.by_word.entry(word.to_owned()).or_default().insert(number);
        }
        self.of.insert(number, (known.clone(), 1));
        self.known.insert(known, number);
        self.choices.borrow_mut().clear();
        number
    }

    /// Counts the devices of a host out, so that nothing is known by what there is no more.
    pub(crate) fn forget(&mut self, supply: &Supply) {
        let slices = supply.slices.iter().map(|(_, of)| of);
        for number in supply.devices.iter().chain(slices).map(|offered| offered.known) {
            let Some((_, devices)) = self.of.get_mut(&number) else { continue };
            *devices -= 1;
            if *devices > 0 {
                continue;
            }
            let Some((known, _)) = self.of.remove(&number) else { continue };
            for word in known.words() {
                if let Some(numbers) = self.by_word.get_mut(word) {
                    numbers.remove(&number);
                }
            }
            self.by_word.retain(|_, numbers| !numbers.is_empty());
            self.known.remove(&known);
            self.choices.borrow_mut().clear();
        }
    }

    /// Forgets what lists of models mean, which is found out again where it matters.
    pub(crate) fn forget_choices(&self) {
        self.choices.borrow_mut().clear();
    }

    /// What the models of a request mean.
    pub(crate) fn choices(&self, request: &JobRequest) -> Choices {
        let models = request.resources.gpu.as_ref().map_or(&[][..], |gpu| &gpu.models);
        if let Some(known) = self.choices.borrow().get(models) {
            return known.clone();
        }
        let mut choices: Vec<Option<Meant>> = Vec::new();
        for meant in models.iter().map(|model| self.meant(model)).filter(|meant| !meant.is_empty()) {
            // Names that mean the same or nothing make no choice.
            if choices.iter().flatten().all(|other| **other != meant) {
                choices.push(Some(Arc::new(meant)));
            }
        }
        if choices.is_empty() {
            choices.push((!models.is_empty()).then(Meant::default));
        }
        let choices = Choices::from(choices);
        self.choices.borrow_mut().insert(models.to_vec(), choices.clone());
        choices
    }

    /// What all words of a name are of.
    fn meant(&self, wanted: &str) -> BTreeSet<usize> {
        let of_words: Option<Vec<&BTreeSet<usize>>> =
            words(wanted).map(|word| self.by_word.get(&word)).collect();
        let of_words = of_words.unwrap_or_default();
        let Some(fewest) = of_words.iter().min_by_key(|numbers| numbers.len()) else {
            return BTreeSet::new();
        };
        let is_of_all = |number: &&usize| of_words.iter().all(|numbers| numbers.contains(number));
        fewest.iter().filter(is_of_all).copied().collect()
    }
}

/// A host with its devices in the order in which they are given.
#[derive(Debug, Clone)]
pub(crate) struct Supply {
    pub(crate) host: SupplyHost,
    /// Those that jobs can have whole, the smallest first.
    pub(crate) devices: Arc<[Offered]>,
    /// Slices of others, each with its device.
    pub(crate) slices: Arc<[(Slice, Offered)]>,
}

/// A device that jobs can have.
#[derive(Debug)]
pub(crate) struct Offered {
    pub(crate) device: Device,
    pub(crate) known: usize,
    /// What clouds ask for one: only jobs that say what they pay pay more. None where nobody knows, or where the
    /// market rents the host itself.
    pub(crate) clouds: Option<MicroUsd>,
}

impl Offered {
    /// Whether a job may have it at this price.
    fn is_within(&self, price: Option<MicroUsd>) -> bool {
        self.clouds.zip(price).is_none_or(|(clouds, price)| price <= clouds)
    }
}

impl Supply {
    pub(crate) fn new(host: &SupplyHost, names: &mut Names, baselines: &Baselines) -> Self {
        let mut offered = |device: &Device| {
            let models = host.models.get(&device.uuid).map(Vec::as_slice).unwrap_or_default();
            let class = host.classes.get(&device.uuid).map(|class| (class.as_str(), models));
            let known = names.number(Known::of(&device.model, class));
            let is_rented = host.terms.trust == Trust::Cloud;
            let clouds = baseline(baselines, host, &[device]).filter(|_| !is_rented);
            Offered { device: device.clone(), known, clouds }
        };
        let mut devices: Vec<Offered> = host.inventory.rentable_devices().map(&mut offered).collect();
        devices.sort_by(|a, b| (a.device.vram, &a.device.uuid).cmp(&(b.device.vram, &b.device.uuid)));
        let mut slices = Vec::new();
        for (device, slice) in host.inventory.rentable_slices() {
            slices.push((slice.clone(), offered(device)));
        }
        Self { host: host.clone(), devices: devices.into(), slices: slices.into() }
    }

    /// The same host, offered as it was and used otherwise.
    pub(crate) fn used_as(&self, host: &SupplyHost) -> Self {
        Self { host: host.clone(), devices: self.devices.clone(), slices: self.slices.clone() }
    }

    /// The same host without anybody on it.
    pub(crate) fn emptied(&self) -> Self {
        let host = SupplyHost {
            milli_cpu_used: MilliCpu::ZERO,
            memory_used: Bytes::ZERO,
            disk_used: Bytes::ZERO,
            order_bytes: 0,
            devices_used: Vec::new(),
            shared: BTreeMap::new(),
            tenants: Vec::new(),
            ..self.host.clone()
        };
        Self { host, devices: self.devices.clone(), slices: self.slices.clone() }
    }

    /// Devices that will do for a request, in use or not, of what is meant by its model; with their places.
    pub(crate) fn fitting(
        &self,
        request: &JobRequest,
        model: Option<&Meant>,
    ) -> impl Iterator<Item = (usize, &Device)> {
        let price = self.price(request);
        let fitting = self.at_any_price(request, model).filter(move |(_, offered)| offered.is_within(price));
        fitting.map(|(place, offered)| (place, &offered.device))
    }

    fn at_any_price(
        &self,
        request: &JobRequest,
        model: Option<&Meant>,
    ) -> impl Iterator<Item = (usize, &Offered)> {
        let gpu = request.resources.gpu.as_ref();
        let fitting = move |(_, offered): &(usize, &Offered)| {
            gpu.is_some_and(|gpu| gpu.fits(offered.device.vram))
                && model.is_none_or(|meant| meant.contains(&offered.known))
        };
        self.devices.iter().enumerate().filter(fitting)
    }

    /// What a GPU with its part of all that a job takes costs there; none where the job says what it pays.
    fn price(&self, request: &JobRequest) -> Option<MicroUsd> {
        if request.max_price.is_some() { None } else { gpu_hourly(request.resources.size(), self.host.rate) }
    }

    /// The same of a job with a fraction: what a whole GPU costs, or the job where that is more. Cores that a fraction
    /// comes with do not make it dear, as long as a whole GPU in a cloud is no cheaper.
    fn price_of_part(&self, request: &JobRequest, milli_gpu: MilliGpu) -> Option<MicroUsd> {
        let size = Size { milli_gpu, ..request.resources.size() };
        let whole = hourly(size, self.host.rate).unwrap_or(MicroUsd(i64::MAX));
        if request.max_price.is_some() { None } else { Some(whole.max(self.host.rate.gpu_hour)) }
    }

    fn free(&self, request: &JobRequest, model: Option<&Meant>) -> impl Iterator<Item = (usize, &Device)> {
        self.fitting(request, model).filter(|(_, device)| !self.is_in_use(&device.uuid))
    }

    /// Whether somebody has all of a device or of a slice, or a share of it.
    pub(crate) fn is_in_use(&self, uuid: &str) -> bool {
        self.host.devices_used.iter().any(|used| used == uuid) || self.host.shared.contains_key(uuid)
    }

    /// Devices that shares are leased of and that a share like this fits, in use or not; with their places and what the
    /// share is there.
    pub(crate) fn sharing(
        &self,
        request: &JobRequest,
        wanted: Fraction,
        model: Option<&Meant>,
    ) -> impl Iterator<Item = (usize, &Device, Fraction)> {
        let vram_max = request.resources.gpu.as_ref().and_then(|gpu| gpu.vram_max);
        self.devices.iter().enumerate().filter_map(move |(place, offered)| {
            let device = &offered.device;
            let fraction = wanted.on(device.vram);
            let fits = device.division == Division::Shares
                && self.is_meant(offered, request, fraction.priced(device.vram), model)
                && vram_max.is_none_or(|most| fraction.vram <= most)
                && Shared::with(None, device.vram, (), fraction).is_some();
            fits.then_some((place, device, fraction))
        })
    }

    /// Whether a job may have so much of a device.
    fn is_meant(
        &self,
        offered: &Offered,
        request: &JobRequest,
        milli: MilliGpu,
        model: Option<&Meant>,
    ) -> bool {
        model.is_none_or(|meant| meant.contains(&offered.known))
            && offered.is_within(self.price_of_part(request, milli))
    }
}

/// What a job gets of one device.
#[derive(Debug, Clone)]
pub(crate) struct Piece<'a> {
    /// The device, or the slice.
    pub(crate) uuid: &'a str,
    /// The device that it is of.
    pub(crate) device: &'a Device,
    /// Set where it is a share.
    pub(crate) share: Option<Fraction>,
    /// How much of a device is paid for.
    pub(crate) milli: MilliGpu,
    /// The device's place among those that jobs can have whole.
    pub(crate) place: Option<usize>,
}

/// A free fraction of a device for a job that one suffices for: a share beside its customer's own, or else the smallest
/// slice, or else a share of a device that nobody has.
pub(crate) fn piece<'a>(supply: &'a Supply, job: &QueuedJob, model: Option<&Meant>) -> Option<Piece<'a>> {
    let is_beside = |piece: &Piece<'_>| supply.host.shared.contains_key(piece.uuid);
    let (beside, fresh): (Vec<_>, Vec<_>) = shares(supply, job, model).into_iter().partition(is_beside);
    let first = |shares: Vec<Piece<'a>>| shares.into_iter().next();
    first(beside).or_else(|| slice(supply, job, model)).or_else(|| first(fresh))
}

/// The shares of devices that a job can have, one of each device.
pub(crate) fn shares<'a>(supply: &'a Supply, job: &QueuedJob, model: Option<&Meant>) -> Vec<Piece<'a>> {
    let Some((_, wanted)) = fraction(&job.request) else { return Vec::new() };
    let share = |(place, device, fraction): (usize, &'a Device, Fraction)| {
        let taken = supply.host.shared.get(&device.uuid).copied();
        let is_free = !supply.host.devices_used.contains(&device.uuid)
            && Shared::with(taken, device.vram, job.customer, fraction).is_some();
        let (share, milli) = (Some(fraction), fraction.priced(device.vram));
        is_free.then_some(Piece { uuid: &device.uuid, device, share, milli, place: Some(place) })
    };
    supply.sharing(&job.request, wanted, model).filter_map(share).collect()
}

/// The smallest slice that a job can have.
pub(crate) fn slice<'a>(supply: &'a Supply, job: &QueuedJob, model: Option<&Meant>) -> Option<Piece<'a>> {
    let (gpu, wanted) = fraction(&job.request)?;
    let is_free = |(slice, of): &&(Slice, Offered)| {
        let milli = slice.fraction().priced(of.device.vram);
        supply.is_meant(of, &job.request, milli, model) && !supply.is_in_use(&slice.uuid)
    };
    let free = supply.slices.iter().filter(is_free);
    let slice = wanted.slice(free.map(|(slice, _)| slice), gpu.vram_max)?;
    let (_, of) = supply.slices.iter().find(|(other, _)| other.uuid == slice.uuid)?;
    let milli = slice.fraction().priced(of.device.vram);
    Some(Piece { uuid: &slice.uuid, device: &of.device, share: None, milli, place: None })
}

/// The fraction of a device that suffices for a request, if one does.
pub(crate) fn fraction(request: &JobRequest) -> Option<(&GpuRequest, Fraction)> {
    let gpu = request.resources.gpu.as_ref()?;
    Some((gpu, Fraction::wanted(gpu, request.isolation)?))
}

/// The first thing a host does not have enough of for a job, whose GPUs are what `model` means if that is named.
pub(crate) fn lack(supply: &Supply, job: &QueuedJob, model: Option<&Meant>) -> Option<Lack> {
    let count = job.request.resources.gpu.as_ref().map_or(0, |gpu| usize::from(gpu.count));
    let lack_of_gpus = || {
        let suit = supply.at_any_price(&job.request, model);
        let free = suit.filter(|(_, offered)| !supply.is_in_use(&offered.device.uuid)).count();
        let is_short = supply.free(&job.request, model).count() < count;
        is_short.then_some(if free < count { Lack::Gpus } else { Lack::Wish(Unmet::MaxPrice) })
    };
    lack_beside_gpus(supply, job, supply.host.rate).or_else(lack_of_gpus)
}

/// Whether a host has all that a job needs, with GPUs of one of these models.
pub(crate) fn fits(supply: &Supply, job: &QueuedJob, choices: &[Option<Meant>]) -> bool {
    let has_gpus = || match &job.request.resources.gpu {
        None => true,
        Some(gpu) => choices.iter().any(|model| {
            let last = usize::from(gpu.count).saturating_sub(1);
            supply.free(&job.request, model.as_ref()).nth(last).is_some()
        }),
    };
    lack_beside_gpus(supply, job, supply.host.rate).is_none() && has_gpus()
}

/// Whether a job may have just these devices of a host, by their places, and everything else that it needs.
pub(crate) fn may_have(supply: &Supply, names: &Names, job: &QueuedJob, places: &[u8]) -> bool {
    let has_devices = match &job.request.resources.gpu {
        None => places.is_empty(),
        Some(gpu) => names.choices(&job.request).iter().any(|model| {
            let free = supply.free(&job.request, model.as_ref()).map(|(place, _)| place);
            let free: BTreeSet<usize> = free.collect();
            let distinct: BTreeSet<usize> = places.iter().map(|place| usize::from(*place)).collect();
            distinct.len() == usize::from(gpu.count)
                && places.len() == distinct.len()
                && distinct.is_subset(&free)
        }),
    };
    has_devices && lack_beside_gpus(supply, job, supply.host.rate).is_none()
}

/// What a host does not have for a job beside GPUs, at this rate.
pub(crate) fn lack_beside_gpus(supply: &Supply, job: &QueuedJob, rate: Rate) -> Option<Lack> {
    let host = &supply.host;
    let wanted = &job.request.resources;
    let has = &host.inventory;
    if wanted.milli_cpu.0 > has.milli_cpu.0 - host.milli_cpu_used.0 {
        return Some(Lack::Cpu);
    }
    if wanted.memory.0 > has.memory.0 - host.memory_used.0 {
        return Some(Lack::Memory);
    }
    if wanted.disk.0 > has.disk.0 - host.disk_used.0 {
        return Some(Lack::Disk);
    }
    if job.order_bytes > ORDERS_BYTES_MAX - host.order_bytes {
        return Some(Lack::Spec);
    }
    let for_ever = lack_for_ever(host, &job.request, rate);
    if let Some(Lack::Egress | Lack::Group) = for_ever {
        return for_ever;
    }
    if is_in_the_way(host, job) {
        return Some(Lack::Alone);
    }
    if job.apart_from.contains(&host.hotkey) {
        return Some(Lack::Apart);
    }
    for_ever
}

/// What a host does not have beside capacity, at this rate, whoever asks and whatever is on it.
pub(crate) fn lack_for_ever(host: &SupplyHost, request: &JobRequest, rate: Rate) -> Option<Lack> {
    let has = &host.inventory;
    if !has.egress.contains(&request.egress) {
        return Some(Lack::Egress);
    }
    // What keeps a job to public addresses keeps it to its group.
    if request.group.is_some() && !has.egress.contains(&Egress::Public) {
        return Some(Lack::Group);
    }
    if host.lasts.is_some_and(|lasts| request.limits.longest() > lasts) {
        return Some(Lack::Time);
    }
    unmet(request, &host.terms, rate).map(Lack::Wish)
}

/// Whether somebody has the host alone, or is on it where this job wants it alone.
fn is_in_the_way(host: &SupplyHost, job: &QueuedJob) -> bool {
    let wants_alone = job.request.isolation == Isolation::Host;
    host.tenants.iter().any(|(customer, alone)| *customer != job.customer && (wants_alone || *alone))
}

/// The devices for a request: the smallest that suffice, so that large ones stay free.
pub(crate) fn devices<'a>(
    supply: &'a Supply,
    request: &JobRequest,
    model: Option<&Meant>,
) -> Vec<(usize, &'a Device)> {
    let count = request.resources.gpu.as_ref().map_or(0, |gpu| usize::from(gpu.count));
    supply.free(request, model).take(count).collect()
}

/// What clouds ask for an hour of one of these devices, on average; none where nobody knows it of each.
pub(crate) fn baseline(baselines: &Baselines, host: &SupplyHost, devices: &[&Device]) -> Option<MicroUsd> {
    let of = |device: &&Device| baselines.of(host.classes.get(&device.uuid)?, host.terms.region.as_ref());
    let prices: Vec<i64> =
        devices.iter().map(|device| of(device).map(|price| price.0)).collect::<Option<_>>()?;
    let sum = prices.iter().try_fold(0_i64, |sum, price| sum.checked_add(*price))?;
    sum.checked_div(i64::try_from(prices.len()).ok()?).map(MicroUsd)
}
