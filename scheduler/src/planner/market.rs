//! The supply while it is given away, exact to the byte: nothing is given that [`lack`] does not allow.

use std::{
    borrow::Cow,
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use nave_domain::{
    CustomerId, HostId, JobId, MicroUsd, MilliGpu, Millis, Timestamp,
    fraction::WHOLE,
    job::{GROUP_LEASES_MAX, Isolation},
    lease::ChosenFor,
    rate::{Size, hourly},
};
use nave_store::{
    Baselines, Considered, Grounds, ORDERS_BYTES_MAX, Occupied, Placement, QueuedJob, Snapshot,
};
use uuid::Uuid;

use crate::{
    fit::{
        Meant, Names, Offered, Piece, Supply, baseline, devices, fits, fraction, lack, lack_beside_gpus,
        may_have, piece, shares, slice,
    },
    fleet::{DEVICES_MAX, Gpus},
    planner::{
        Reason,
        answers::Answers,
        hosts::{Hosts, Supplies},
        like::{Differences, Like},
        money::{pays, run_max},
        rivals::{Orders, Rivals},
    },
};

/// Most hosts that a quote names beside the one it is for.
const CONSIDERED_MAX: usize = 8;

/// What becomes of a job that is not placed.
#[derive(Debug, Clone)]
pub(super) enum Refusal {
    /// It waits.
    Wait(Reason),
    /// It cannot be placed any more.
    Fail(Reason),
}

/// Hosts as they are once everything that was decided so far is carried out.
pub(super) struct Market<'a> {
    pub now: Timestamp,
    pub names: &'a Names,
    pub hosts: Supplies,
    empty: &'a Supplies,
    /// The miners who were given jobs that are kept apart, by their customer and number.
    pub given: BTreeMap<(CustomerId, Uuid), BTreeSet<String>>,
    baselines: &'a Baselines,
    /// Hosts that the fleet does not see all of: they lease slices, or have more devices than it can say.
    odd: Vec<HostId>,
    /// Hosts that are kept for somebody.
    pub kept: Vec<HostId>,
    yielding: &'a BTreeSet<HostId>,
    differences: Differences,
    answers: &'a Answers,
    orders: &'a Orders,
    /// Of jobs that are alike and the part of a device that they pay for at the least.
    rivals: RefCell<BTreeMap<(Like, MilliGpu), Rivals>>,
}

impl<'a> Market<'a> {
    pub fn new(snapshot: &'a Snapshot, hosts: &'a Hosts) -> Self {
        let Hosts { names, now, empty, yielding, orders, answers, dearest, .. } = hosts;
        let is_odd = |supply: &Supply| !supply.slices.is_empty() || supply.devices.len() > DEVICES_MAX;
        let all = || now.values().map(|supply| &supply.host);
        let differences = Differences {
            dearest: *dearest,
            any_alone: all().any(|host| host.tenants.iter().any(|(_, alone)| *alone)),
            order_bytes: ORDERS_BYTES_MAX - all().map(|host| host.order_bytes).max().unwrap_or(0),
        };
        Self {
            now: snapshot.now,
            odd: now.iter().filter(|(_, supply)| is_odd(supply)).map(|(id, _)| *id).collect(),
            kept: Vec::new(),
            yielding,
            differences,
            answers,
            orders,
            rivals: RefCell::default(),
            names,
            hosts: now.clone(),
            empty,
            given: BTreeMap::new(),
            baselines: &snapshot.baselines,
        }
    }

    /// The hosts that somebody yields on.
    pub fn yielding(&self) -> impl Iterator<Item = (HostId, &Supply)> {
        self.yielding.iter().filter_map(|id| Some((*id, self.hosts.get(id)?.as_ref())))
    }

    /// What becomes of a job that no host is looked for now.
    pub fn held_back(&self, job: &QueuedJob) -> Option<Refusal> {
        let limit = job.request.limits.queue_ms;
        if super::waited(job, self.now) > limit {
            let message = format!("no host was free within its queue limit of {limit}");
            return Some(Refusal::Fail(Reason::new("queue_timeout", message)));
        }
        if self.now < job.queued_at.after(super::pause(job.failed_on.len())) {
            return Some(wait("backing_off", "a host failed to run it; it is tried again shortly".into()));
        }
        if job.group_leases >= GROUP_LEASES_MAX {
            let message =
                format!("{GROUP_LEASES_MAX} jobs of its group run, which is the most that know one another");
            return Some(wait("group_full", message));
        }
        None
    }

    /// What a job is alike in to others.
    pub fn like(&self, job: &QueuedJob) -> Like {
        Like::new(&self.kept_apart(job), &self.differences)
    }

    /// The job with the miners that this plan has given others of it.
    fn kept_apart<'j>(&self, job: &'j QueuedJob) -> Cow<'j, QueuedJob> {
        match job.request.apart.and_then(|apart| self.given.get(&(job.customer, apart))) {
            Some(miners) => {
                let apart_from = job.apart_from.union(miners).cloned().collect();
                Cow::Owned(QueuedJob { apart_from, ..job.clone() })
            }
            None => Cow::Borrowed(job),
        }
    }

    /// A placement on just these devices of a host, by their places, or on a share of one; `None` where the job may not
    /// have that.
    pub fn placement(&self, job: &QueuedJob, id: HostId, gpus: Gpus, places: &[u8]) -> Option<Placement> {
        match gpus {
            Gpus::Share { .. } => self.share(job, id, places),
            Gpus::None | Gpus::Whole { .. } => self.whole(job, id, places),
        }
    }

    fn whole(&self, job: &QueuedJob, id: HostId, places: &[u8]) -> Option<Placement> {
        let supply = self.hosts.get(&id)?;
        let host = &supply.host;
        if !may_have(supply, self.names, &self.kept_apart(job), places) {
            return None;
        }
        let run_max = run_max(job, host.rate)?;
        let devices: Vec<_> = places
            .iter()
            .filter_map(|place| Some(&supply.devices.get(usize::from(*place))?.device))
            .collect();
        let trust = if devices.is_empty() { host.terms.trust.without_gpus() } else { host.terms.trust };
        let baseline = baseline(self.baselines, host, &devices);
        Some(Placement {
            job: job.job,
            host: id,
            generation: host.generation,
            size: job.request.resources.size(),
            disk: job.request.resources.disk,
            devices: devices.iter().map(|device| device.uuid.clone()).collect(),
            share: None,
            rate: host.rate,
            run_max,
            capped_by_spend: run_max < job.request.limits.run_ms,
            grounds: Grounds {
                reason: self.chosen_for_whole(job, id),
                trust,
                baseline,
                term: host.terms.term,
            },
            gang: None,
        })
    }

    fn share(&self, job: &QueuedJob, id: HostId, places: &[u8]) -> Option<Placement> {
        let [place] = places else { return None };
        let supply = self.hosts.get(&id)?;
        let kept_apart = self.kept_apart(job);
        let of_model = |model: &Option<Meant>| {
            let mut shares = shares(supply, &kept_apart, model.as_ref()).into_iter();
            shares.find(|piece| piece.place == Some(usize::from(*place)))
        };
        let found = self.names.choices(&job.request).iter().find_map(of_model)?;
        let run_max = pays_for(supply, &kept_apart, &found)?;
        Some(self.on_piece(job, id, &found, run_max))
    }

    fn chosen_for_whole(&self, job: &QueuedJob, chosen: HostId) -> ChosenFor {
        let size = job.request.resources.size();
        let choices = self.names.choices(&job.request);
        let price = |supply: &Supply| hourly(size, supply.host.rate).ok();
        let own = self.hosts.get(&chosen).and_then(|supply| price(supply));
        let at = |supply: &Supply, job: &QueuedJob| {
            if would_do(supply, job, &choices) { price(supply) } else { None }
        };
        self.chosen_for(job, chosen, own, size, at)
    }

    /// Why a host is chosen at its own price, of all that would do at theirs; `least` is the least that could be paid for.
    fn chosen_for(
        &self,
        job: &QueuedJob,
        chosen: HostId,
        own: Option<MicroUsd>,
        least: Size,
        at: impl Fn(&Supply, &QueuedJob) -> Option<MicroUsd>,
    ) -> ChosenFor {
        let job = &*self.kept_apart(job);
        let price = |id: &HostId| self.hosts.get(id).and_then(|supply| at(supply, job));
        let mut rivals = self.rivals.borrow_mut();
        let key = (Like::new(job, &self.differences), least.milli_gpu);
        let rivals = rivals.entry(key).or_insert_with(|| Rivals::new(self.orders, least, &self.hosts));
        let (mut is_only, mut cheaper) = (true, None);
        rivals.look(|least, id| {
            if cheaper.is_some() || !is_only && Some(least) >= own {
                return (true, true);
            }
            let price = if id == chosen { own } else { price(&id) };
            if id != chosen && price.is_some() {
                is_only = false;
                cheaper = Some(id).filter(|_| price < own);
            }
            (price.is_some(), false)
        });
        let Some(cheaper) = cheaper.and_then(|id| self.hosts.get(&id)) else {
            return if is_only { ChosenFor::OnlyFit } else { ChosenFor::Cheapest };
        };
        let failures = |host: &HostId| job.failed_on.iter().filter(|failed| *failed == host).count();
        let failed_more = |id: &HostId| {
            failures(id) > failures(&chosen) && price(id).is_some_and(|price| Some(price) < own)
        };
        let has_gpus = |supply: &Supply| !supply.devices.is_empty() || !supply.slices.is_empty();
        let wastes = |supply: &Supply| job.request.resources.gpu.is_none() && has_gpus(supply);
        if job.failed_on.iter().any(failed_more) {
            ChosenFor::FailedElsewhere
        } else if wastes(cheaper) && self.hosts.get(&chosen).is_some_and(|chosen| !wastes(chosen)) {
            ChosenFor::KeepsGpusFree
        } else {
            ChosenFor::LeastCost
        }
    }

    /// The cheapest host that would do and its devices, looked for without the fleet, which counts memory in MiB and
    /// knows no hosts with very many devices.
    /// `all` says to look at hosts that the fleet sees, too.
    pub fn by_hand(
        &self,
        job: &QueuedJob,
        all: bool,
        is_kept: impl Fn(HostId) -> bool,
    ) -> Option<(HostId, Vec<u8>)> {
        let job = &*self.kept_apart(job);
        let failures = |host: &HostId| job.failed_on.iter().filter(|failed| *failed == host).count();
        let choices = self.names.choices(&job.request);
        let would_do = |supply: &Supply| would_do(supply, job, &choices);
        let all = self.hosts.iter().filter(|_| all);
        let hosts = all.chain(self.odd.iter().filter_map(|id| self.hosts.get_key_value(id)));
        let fits = hosts.filter(|(id, supply)| would_do(supply) && !is_kept(**id));
        let size = job.request.resources.size();
        let (id, supply) =
            fits.min_by_key(|(id, supply)| (failures(id), hourly(size, supply.host.rate).ok(), **id))?;
        if job.request.resources.gpu.is_none() {
            return Some((*id, Vec::new()));
        }
        let model = choices.iter().find(|model| lack(supply, job, model.as_ref()).is_none())?;
        let places = devices(supply, &job.request, model.as_ref()).into_iter();
        Some((*id, places.map(|(place, _)| u8::try_from(place).ok()).collect::<Option<_>>()?))
    }

    /// Whether there are hosts with more devices than the fleet can say.
    pub fn has_too_large(&self) -> bool {
        let is_too_large = |id| self.hosts.get(id).is_some_and(|supply| supply.devices.len() > DEVICES_MAX);
        self.odd.iter().any(is_too_large)
    }

    /// Whether a slice suffices for a job, and there are any.
    pub fn takes_slice(&self, job: &QueuedJob) -> bool {
        !self.odd.is_empty() && fraction(&job.request).is_some()
    }

    /// Where a placement is in the order of what a job wishes: fractions before whole devices, each in the order of models.
    pub fn turn(&self, job: &QueuedJob, placement: &Placement) -> (bool, usize) {
        let is_whole = placement.size.milli_gpu == WHOLE && placement.share.is_none();
        let offered = self.hosts.get(&placement.host).and_then(|supply| {
            let uuid = placement.devices.first()?;
            let device = supply.devices.iter().find(|offered| offered.device.uuid == *uuid);
            let slice = supply.slices.iter().find(|(slice, _)| slice.uuid == *uuid);
            device.or(slice.map(|(_, of)| of))
        });
        let means = |meant: &Option<Meant>| {
            let is_of = |offered: &Offered| meant.as_ref().is_none_or(|meant| meant.contains(&offered.known));
            offered.is_some_and(is_of)
        };
        let turn = self.names.choices(&job.request).iter().position(means);
        (is_whole && !self.is_slice(placement), turn.unwrap_or(usize::MAX))
    }

    fn is_slice(&self, placement: &Placement) -> bool {
        let slices = self.hosts.get(&placement.host).map(|supply| &supply.slices);
        slices.is_some_and(|slices| slices.iter().any(|(slice, _)| placement.devices.contains(&slice.uuid)))
    }

    /// A placement on a slice, for a job that one suffices for, on the host where that costs least.
    pub fn slice(&self, job: &QueuedJob, is_kept: impl Fn(HostId) -> bool) -> Option<Placement> {
        Some(self.cheapest(job, is_kept, slice)?.0)
    }

    /// A placement on any fraction, as [`slice`](Self::slice), for what the fleet does not see; with the place of the device
    /// that it is a share of.
    pub fn fraction(
        &self,
        job: &QueuedJob,
        is_kept: impl Fn(HostId) -> bool,
    ) -> Option<(Placement, Vec<u8>)> {
        self.cheapest(job, is_kept, piece)
    }

    fn cheapest(
        &self,
        job: &QueuedJob,
        is_kept: impl Fn(HostId) -> bool,
        find: Find,
    ) -> Option<(Placement, Vec<u8>)> {
        let job = &*self.kept_apart(job);
        let failures = |host: &HostId| job.failed_on.iter().filter(|failed| *failed == host).count();
        let of_model = |model: &Option<Meant>| {
            let odd = self.odd.iter().filter_map(|id| self.hosts.get_key_value(id));
            let found = odd.filter(|(id, _)| !is_kept(**id)).filter_map(|(id, supply)| {
                let (piece, run_max) = piece_of(supply, job, model.as_ref(), find)?;
                Some(((failures(id), price_of(supply, job, &piece)?, *id), piece, run_max))
            });
            found.min_by_key(|(rank, ..)| *rank)
        };
        let ((_, _, id), piece, run_max) = self.names.choices(&job.request).iter().find_map(of_model)?;
        let place = piece.place.and_then(|place| u8::try_from(place).ok());
        Some((self.on_piece(job, id, &piece, run_max), place.into_iter().collect()))
    }

    /// A placement on a fraction of a device.
    fn on_piece(&self, job: &QueuedJob, id: HostId, found: &Piece<'_>, run_max: Millis) -> Placement {
        let host = &self.hosts[&id].host;
        let choices = self.names.choices(&job.request);
        let at = |supply: &Supply, job: &QueuedJob| {
            let of_model = |model: &Option<Meant>| piece_of(supply, job, model.as_ref(), piece);
            price_of(supply, job, &choices.iter().find_map(of_model)?.0)
        };
        let own = self.hosts.get(&id).and_then(|supply| price_of(supply, job, found));
        let milli_gpu = fraction(&job.request).map_or(found.milli, |(_, wanted)| wanted.milli);
        let least = Size { milli_gpu, ..job.request.resources.size() };
        let reason = self.chosen_for(job, id, own, least, at);
        Placement {
            job: job.job,
            host: id,
            generation: host.generation,
            size: Size { milli_gpu: found.milli, ..job.request.resources.size() },
            disk: job.request.resources.disk,
            devices: vec![found.uuid.to_owned()],
            share: found.share,
            rate: host.rate,
            run_max,
            capped_by_spend: run_max < job.request.limits.run_ms,
            grounds: Grounds {
                reason,
                trust: host.terms.trust,
                baseline: baseline(self.baselines, host, &[found.device]),
                term: host.terms.term,
            },
            gang: None,
        }
    }

    pub fn occupy(&mut self, job: &QueuedJob, placement: &Placement) {
        let Some(supply) = self.hosts.get_mut(&placement.host) else { return };
        let supply = Arc::make_mut(supply);
        supply.host.generation += 1;
        supply.host.occupy(Occupied {
            customer: job.customer,
            alone: job.request.isolation == Isolation::Host,
            size: placement.size,
            disk: placement.disk,
            devices: placement.devices.clone(),
            share: placement.share,
            order_bytes: job.order_bytes,
        });
        self.differences.any_alone |= job.request.isolation == Isolation::Host;
        self.differences.order_bytes =
            self.differences.order_bytes.min(ORDERS_BYTES_MAX - supply.host.order_bytes);
        if let Some(apart) = job.request.apart {
            let miners = self.given.entry((job.customer, apart)).or_default();
            miners.insert(supply.host.hotkey.clone());
        }
    }

    /// Takes back what was occupied of these hosts.
    pub fn restore(
        &mut self,
        hosts: Supplies,
        given: Option<BTreeMap<(CustomerId, Uuid), BTreeSet<String>>>,
    ) {
        self.hosts.extend(hosts);
        self.given = given.unwrap_or_else(|| std::mem::take(&mut self.given));
        self.rivals = RefCell::default();
    }

    /// Tells a wait for capacity from a wish that no host could meet even when empty, and
    /// from one that no host meets for what is left of its spend cap.
    pub fn without_host(&self, job: &QueuedJob) -> Refusal {
        if self.empty.is_empty() {
            return wait("no_hosts", "no host is ready; see `nave hosts`".into());
        }
        let job = &*self.kept_apart(job);
        let like = Like::new(job, &self.differences).on_empty();
        if let Some(refusal) = self.answers.why(like, job, self.names, self.empty) {
            return refusal;
        }
        let choices = self.names.choices(&job.request);
        let kept = self.kept.iter().filter_map(|id| self.hosts.get(id));
        if kept.into_iter().any(|supply| would_do(supply, job, &choices)) {
            return wait("kept_for_others", "what is free is kept for jobs that wait for longer".into());
        }
        wait("waiting_for_capacity", "every host that fits is busy".into())
    }

    /// The hosts that were not chosen: those that fit, cheapest first, then the others.
    pub fn considered(&self, job: &QueuedJob, chosen: Option<HostId>) -> Vec<Considered> {
        let model = self.names.choices(&job.request).first().cloned().flatten();
        let others = self.hosts.iter().filter(|(id, _)| Some(**id) != chosen);
        let rival = |(id, supply): (_, &Arc<Supply>)| self.rival(id, supply, job, model.as_ref());
        let mut considered: Vec<(bool, Considered)> = others.filter_map(rival).collect();
        considered.sort_by_key(|(lacks, other)| (*lacks, other.hourly, other.host));
        considered.into_iter().map(|(_, other)| other).take(CONSIDERED_MAX).collect()
    }

    /// A host that was not chosen, for a fraction where it could have one, now or once it is empty; and whether it
    /// lacks anything.
    fn rival(
        &self,
        id: &HostId,
        supply: &Supply,
        job: &QueuedJob,
        model: Option<&Meant>,
    ) -> Option<(bool, Considered)> {
        let part = |supply: &Supply| piece_of(supply, job, model, piece).map(|(piece, _)| piece.milli);
        let empty = self.empty.get(id);
        let (now, once) = (part(supply), empty.and_then(|empty| part(empty)));
        let size = job.request.resources.size();
        let milli_gpu = now.or(once).unwrap_or(size.milli_gpu);
        let hourly = hourly(Size { milli_gpu, ..size }, supply.host.rate).ok()?;
        let lacks = lack(supply, job, model).filter(|_| now.is_none());
        let is_fit_when_empty =
            || once.is_some() || empty.is_some_and(|empty| lack(empty, job, model).is_none());
        let code = match lacks {
            None => "not_better",
            Some(_) if is_fit_when_empty() => "busy",
            Some(lack) => lack.code(),
        };
        Some((lacks.is_some(), Considered { host: *id, hourly, code: code.to_owned() }))
    }
}

/// How a fraction is looked for on a host.
type Find = for<'s> fn(&'s Supply, &QueuedJob, Option<&Meant>) -> Option<Piece<'s>>;

/// A fraction of a host's devices that suffices for a job, with the longest run that it pays for.
fn piece_of<'s>(
    supply: &'s Supply,
    job: &QueuedJob,
    model: Option<&Meant>,
    find: Find,
) -> Option<(Piece<'s>, Millis)> {
    let piece = find(supply, job, model)?;
    let run_max = pays_for(supply, job, &piece)?;
    Some((piece, run_max))
}

/// The longest run that a job pays for on a piece of a host that has everything else for it.
fn pays_for(supply: &Supply, job: &QueuedJob, piece: &Piece<'_>) -> Option<Millis> {
    let rate = supply.host.rate.for_part(piece.milli);
    lack_beside_gpus(supply, job, rate).map_or_else(|| run_max(job, rate), |_| None)
}

/// What an hour of a piece costs.
fn price_of(supply: &Supply, job: &QueuedJob, piece: &Piece<'_>) -> Option<MicroUsd> {
    let size = Size { milli_gpu: piece.milli, ..job.request.resources.size() };
    hourly(size, supply.host.rate).ok()
}

/// Whether a job could be on a host now, and pay for it.
fn would_do(supply: &Supply, job: &QueuedJob, choices: &[Option<Meant>]) -> bool {
    pays(job, supply.host.rate) && fits(supply, job, choices)
}

pub(super) fn wait(code: &'static str, message: String) -> Refusal {
    Refusal::Wait(Reason::new(code, message))
}

/// All members of a gang wait, but for one that cannot be placed any more. So many of them would fit now.
pub(super) fn of_gang(
    members: &[&QueuedJob],
    fit: usize,
    stuck: JobId,
    refusal: &Refusal,
) -> Vec<(JobId, Refusal)> {
    let (Refusal::Wait(why) | Refusal::Fail(why)) = refusal;
    let message =
        format!("{fit} of the {} jobs of its gang would fit now; the next: {}", members.len(), why.message);
    let of = |member: &&QueuedJob| match refusal {
        Refusal::Fail(_) if member.job == stuck => (member.job, refusal.clone()),
        Refusal::Fail(_) | Refusal::Wait(_) => (member.job, wait("gang_waits", message.clone())),
    };
    members.iter().map(of).collect()
}
