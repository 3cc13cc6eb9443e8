//! What a host has of GPUs that are alike: whole ones, slices, and shares of the size that is asked for.

use std::collections::{BTreeMap, BTreeSet};

use nave_domain::{
    Bytes, CustomerId, MilliGpu,
    fraction::{Division, Fraction, Shared},
    host::{Device, Inventory, Proven},
    job::JobRequest,
    wish::{Isolation, Known},
};
use nave_sdk::wire::rest::DeviceGroup;
use nave_store::Occupied;

/// GPUs of a host that are alike, or alike fractions of them.
pub(super) struct Group {
    /// What they are known by.
    pub known: Known,
    /// What they are.
    pub devices: DeviceGroup,
    /// What is offered of each, where that is not all of it.
    pub part: Option<Part>,
}

/// Alike fractions of GPUs.
pub(super) struct Part {
    /// How its vendor calls a slice; none of a share.
    pub profile: Option<String>,
    /// The size of each.
    pub fraction: Fraction,
    /// How much of a GPU is paid for each.
    pub paid: MilliGpu,
    /// How many of them the customer can have.
    pub free: u32,
    /// How many there are.
    pub total: u32,
}

/// A host's GPUs and those who are on it.
pub(super) struct Gpus<'a> {
    pub inventory: &'a Inventory,
    pub proven: Option<&'a Proven>,
    pub parts: &'a [Occupied],
}

/// What GPUs, or fractions of them, have in common.
type Kind<'a> = (String, Bytes, Option<String>, Known, Option<(Option<&'a str>, Fraction)>);

/// One fraction, or several of one device.
struct Piece<'a> {
    device: &'a Device,
    profile: Option<&'a str>,
    fraction: Fraction,
    free: u32,
    total: u32,
}

impl<'a> Gpus<'a> {
    /// Those that are leased whole.
    pub fn whole(&self) -> Vec<Group> {
        let mut groups: BTreeMap<Kind<'_>, DeviceGroup> = BTreeMap::new();
        for device in self.inventory.rentable_devices() {
            let kind = self.kind(device, None);
            let group = groups.entry(kind).or_insert_with_key(group_of);
            group.total += 1;
            group.free += u32::from(self.is_free(&device.uuid));
        }
        let group = |(kind, devices): (Kind<'_>, _)| Group { known: kind.3, devices, part: None };
        groups.into_iter().map(group).collect()
    }

    /// Fractions that a customer's job can have: all slices, or those that suffice with shares of the size that is
    /// asked for; none where it wants whole devices.
    pub fn fractions(&self, request: &JobRequest, customer: CustomerId) -> Vec<Group> {
        let gpu = request.resources.gpu.as_ref();
        let wanted = gpu.and_then(|gpu| Fraction::wanted(gpu, request.isolation));
        let wants_whole = request.isolation != Isolation::Any || gpu.is_some() && wanted.is_none();
        if wants_whole {
            return Vec::new();
        }
        let most = gpu.and_then(|gpu| gpu.vram_max);
        let shares = wanted.map(|wanted| self.shares(wanted, most, customer)).unwrap_or_default();
        let mut groups: BTreeMap<Kind<'_>, (DeviceGroup, Part, BTreeSet<&str>)> = BTreeMap::new();
        for piece in self.slices(wanted, most).chain(shares) {
            let Piece { device, profile, fraction, free, total } = piece;
            let kind = self.kind(device, Some((profile, fraction)));
            let (group, part, seen) = groups.entry(kind).or_insert_with_key(|kind| {
                let (profile, paid) = (profile.map(str::to_owned), fraction.priced(device.vram));
                let part = Part { profile, fraction, paid, free: 0, total: 0 };
                (group_of(kind), part, BTreeSet::new())
            });
            (part.free, part.total) = (part.free + free, part.total + total);
            if seen.insert(&device.uuid) {
                group.total += 1;
                group.free += u32::from(profile.is_none() && self.is_free(&device.uuid));
            }
        }
        let group =
            |(kind, (devices, part, _)): (Kind<'_>, _)| Group { known: kind.3, devices, part: Some(part) };
        groups.into_iter().map(group).collect()
    }

    fn slices(&self, wanted: Option<Fraction>, most: Option<Bytes>) -> impl Iterator<Item = Piece<'a>> {
        let pieces = self.inventory.rentable_slices().map(|(device, slice)| {
            let free = u32::from(self.is_free(&slice.uuid));
            (
                slice,
                Piece { device, profile: Some(&slice.profile), fraction: slice.fraction(), free, total: 1 },
            )
        });
        let suffices = move |slice| wanted.is_none_or(|wanted: Fraction| wanted.is_met_by(slice, most));
        pieces.filter_map(move |(slice, piece)| suffices(slice).then_some(piece))
    }

    fn shares(&self, wanted: Fraction, most: Option<Bytes>, customer: CustomerId) -> Vec<Piece<'a>> {
        let shared = |device: &&Device| device.division == Division::Shares;
        let share = |device: &'a Device| {
            let fraction = wanted.on(device.vram);
            let room = |taken: Option<&_>| u32::from(Shared::room(taken, device.vram, &customer, fraction));
            let free = match self.taken(device) {
                Taken::Whole => 0,
                Taken::Shares(taken) => room(taken.as_ref()),
            };
            let piece = Piece { device, profile: None, fraction, free, total: room(None) };
            (piece.total > 0 && most.is_none_or(|most| fraction.vram <= most)).then_some(piece)
        };
        self.inventory.rentable_devices().filter(shared).filter_map(share).collect()
    }

    /// What others have of a device.
    fn taken(&self, device: &Device) -> Taken {
        let mut taken = None;
        for part in self.parts.iter().filter(|part| part.devices.contains(&device.uuid)) {
            let Some(fraction) = part.share else { return Taken::Whole };
            Shared::add(&mut taken, part.customer, fraction);
        }
        Taken::Shares(taken)
    }

    fn is_free(&self, uuid: &String) -> bool {
        self.parts.iter().all(|part| !part.devices.contains(uuid))
    }

    fn kind(&self, device: &Device, part: Option<(Option<&'a str>, Fraction)>) -> Kind<'a> {
        let shown = self.proven.and_then(|proven| proven.device(&device.uuid));
        let class = shown.and_then(|shown| shown.class.clone());
        (device.label(), device.vram, class, Known::device(device, self.proven), part)
    }
}

enum Taken {
    Whole,
    Shares(Option<Shared<CustomerId>>),
}

fn group_of((model, vram, class, ..): &Kind<'_>) -> DeviceGroup {
    DeviceGroup { model: model.clone(), class: class.clone(), vram: *vram, free: 0, total: 0 }
}
