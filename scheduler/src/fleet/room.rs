//! A host, and what is free on it.

use super::request::{DEVICE_MILLI, Gpus, Request};

/// Most devices of a host.
pub const DEVICES_MAX: usize = 16;
/// Most device classes, and most zones, of a fleet.
pub const CLASSES_MAX: usize = 64;

/// What a host has that has devices which it leases in slices, which a fleet does not see.
pub const SLICES: u64 = 1 << 63;

/// A host as it is when empty, and what it costs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Thousandths of a core.
    pub milli_cpu: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Disk in MiB.
    pub disk_mib: u32,
    /// Memory of each of its devices in MiB, in the order of the indices of a choice.
    pub vram_mib: Vec<u32>,
    /// Class of its devices, below [`CLASSES_MAX`].
    pub class: u8,
    /// Where it is and on which terms, below 64.
    pub zone: u8,
    /// Whose it is; guests are kept apart by that.
    pub miner: u32,
    /// What it has beyond capacity, one bit for each; see [`Request::needs`].
    pub has: u64,
    /// Bytes that the orders of all guests there may take together.
    pub order_bytes: u32,
    /// What it charges.
    pub rate: Rate,
    /// The chance that it is lost, in millionths an hour.
    pub loss_ppm: u32,
    /// How long a start takes there, in seconds.
    pub start_s: u32,
}

/// Micro-USD an hour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// For a whole device.
    pub gpu_hour: i64,
    /// For a core.
    pub vcpu_hour: i64,
    /// For a GiB of memory.
    pub gib_hour: i64,
}

impl Host {
    /// What a request costs there, in micro-USD an hour, rounded up.
    #[must_use]
    pub fn hourly(&self, request: &Request) -> i64 {
        let gpu = self.rate.gpu_hour.saturating_mul(i64::from(self.priced_milli(request)));
        let cpu = self.rate.vcpu_hour.saturating_mul(i64::from(request.milli_cpu));
        let memory = self.rate.gib_hour.saturating_mul(i64::from(request.memory_mib));
        let ceil = |value: i64, by: i64| value.saturating_add(by - 1) / by;
        ceil(gpu.saturating_add(cpu), 1_000).saturating_add(ceil(memory, 1_024))
    }

    /// The device time that is paid for: of a share the larger of its time and its memory.
    fn priced_milli(&self, request: &Request) -> u32 {
        match request.gpus {
            Gpus::Share { milli, vram_mib } if vram_mib > 0 => {
                let largest = self.vram_mib.iter().copied().max().unwrap_or(0).max(1);
                thousandths(vram_mib.into(), largest.into(), Rounded::Up).max(milli).into()
            }
            Gpus::None | Gpus::Share { .. } | Gpus::Whole { .. } => request.gpu_milli(),
        }
    }

    /// What a request is expected to cost there, in micro-USD for an hour of work that
    /// lasts: its price, what is done again when the host is lost, and what starting takes.
    #[must_use]
    pub fn expected(&self, request: &Request) -> i64 {
        let hourly = self.hourly(request);
        let redo = i64::from(self.loss_ppm) * i64::from(request.redo_minutes) / 60;
        let start = i64::from(self.start_s) * 1_000_000 / (i64::from(request.run_minutes.max(1)) * 60);
        // Thousandths of a micro-USD are beyond what these chances mean.
        hourly.saturating_add((hourly / 1_000).saturating_mul(redo + start) / 1_000)
    }
}

/// What is in use on a host by placements that the fleet did not make.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Used {
    /// Thousandths of a core.
    pub milli_cpu: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Disk in MiB.
    pub disk_mib: u32,
    /// Bytes of orders.
    pub order_bytes: u32,
    /// Whole devices.
    pub devices: Vec<u8>,
    /// Devices of which guests have shares.
    pub shared: Vec<Shared>,
    /// Whose each placement is, and whether that one is to be alone there.
    pub tenants: Vec<(u32, bool)>,
}

/// Shares of one device, all of one owner and one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shared {
    /// Of which device.
    pub device: u8,
    /// Whose they are.
    pub owner: u32,
    /// Thousandths of its time, each.
    pub milli: u16,
    /// Memory in MiB, each.
    pub vram_mib: u32,
    /// How many.
    pub count: u16,
}

/// A share of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Share {
    /// Whose it is, where anybody is told apart: such a device is that one's alone, and all its shares of one size.
    pub owner: Option<u32>,
    pub milli: u16,
    pub vram_mib: u32,
}

/// Devices of a host, one bit for each; also of hosts without any, where some bit means that they will do.
pub type Mask = u32;
/// Every device.
pub const ANY: Mask = Mask::MAX;

fn is_in(mask: Mask, device: usize) -> bool {
    mask >> device & 1 == 1
}

/// Somebody who has placements on a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tenant {
    pub owner: u32,
    placements: u32,
    /// How many of them are to be alone there.
    pub alone: u32,
}

/// What is free on a host.
#[derive(Debug, Clone)]
pub(super) struct Room {
    pub host: Host,
    /// Whether it takes new placements.
    pub open: bool,
    /// For whom it is kept free, if for somebody.
    pub kept_for: Option<u64>,
    /// Whose placements are on it, where anybody is told apart.
    pub tenants: Vec<Tenant>,
    pub milli_cpu: u32,
    pub memory_mib: u32,
    pub disk_mib: u32,
    /// Bytes that further orders may take.
    pub order_bytes: u32,
    milli: [u16; DEVICES_MAX],
    vram_mib: [u32; DEVICES_MAX],
    /// Memory of each device when it is untouched.
    total_mib: [u32; DEVICES_MAX],
    devices: u8,
    /// The devices that guests share, with what each share there is.
    shared: Vec<(usize, Share)>,
    /// Thousandths of each device that time and memory both allow, for whoever comes.
    usable: [u16; DEVICES_MAX],
    /// Sum of `usable`.
    pub usable_milli: u32,
    /// Thousandths of devices that are left for those alone who share them.
    pub rest_milli: u32,
    /// Untouched devices.
    pub whole: u8,
}

impl Room {
    pub fn new(host: Host) -> Self {
        let mut room = Self {
            open: true,
            kept_for: None,
            tenants: Vec::new(),
            milli_cpu: host.milli_cpu,
            memory_mib: host.memory_mib,
            disk_mib: host.disk_mib,
            order_bytes: host.order_bytes,
            milli: [0; DEVICES_MAX],
            vram_mib: [0; DEVICES_MAX],
            total_mib: [0; DEVICES_MAX],
            devices: u8::try_from(host.vram_mib.len()).unwrap_or(0),
            shared: Vec::new(),
            usable: [0; DEVICES_MAX],
            usable_milli: 0,
            rest_milli: 0,
            whole: 0,
            host,
        };
        for device in 0..room.devices() {
            room.milli[device] = DEVICE_MILLI;
            room.total_mib[device] = room.host.vram_mib[device];
            room.vram_mib[device] = room.total_mib[device];
        }
        room.sum();
        room
    }

    /// How many devices it has.
    pub fn devices(&self) -> usize {
        self.devices.into()
    }

    pub fn usable(&self) -> &[u16] {
        &self.usable[..self.devices()]
    }

    fn is_whole(&self, device: usize) -> bool {
        self.milli[device] == DEVICE_MILLI && self.vram_mib[device] == self.total_mib[device]
    }

    fn sum(&mut self) {
        self.whole = 0;
        self.usable_milli = 0;
        self.rest_milli = 0;
        for device in 0..self.devices() {
            let left = usable(self.milli[device], self.vram_mib[device], self.total_mib[device]);
            let is_shared = self.share_on(device).is_some();
            self.usable[device] = if is_shared { 0 } else { left };
            self.rest_milli += u32::from(left - self.usable[device]);
            self.usable_milli += u32::from(self.usable[device]);
            self.whole += u8::from(self.is_whole(device));
        }
    }

    /// How much is taken: thousandths of devices, or of cores where it has none.
    pub fn occupied(&self) -> u32 {
        match self.devices {
            0 => self.host.milli_cpu - self.milli_cpu,
            devices => u32::from(devices) * u32::from(DEVICE_MILLI) - self.usable_milli,
        }
    }

    /// Whether everything but devices suffices.
    pub fn admits(&self, request: &Request) -> bool {
        self.milli_cpu >= request.milli_cpu
            && self.memory_mib >= request.memory_mib
            && self.disk_mib >= request.disk_mib
            && self.open
            && request.classes >> self.host.class & 1 == 1
            && request.zones >> self.host.zone & 1 == 1
            && request.needs & !self.host.has == 0
    }

    /// What each share of a device is that guests share.
    pub fn share_on(&self, device: usize) -> Option<Share> {
        self.shared.iter().find(|(of, _)| *of == device).map(|(_, share)| *share)
    }

    /// Whether a share fits on a device, exactly.
    pub fn has_share(&self, device: usize, share: Share) -> bool {
        self.milli[device] >= share.milli
            && self.vram_mib[device] >= share.vram_mib
            && match self.share_on(device) {
                Some(taken) => taken == share,
                None => share.owner.is_none() || self.is_whole(device),
            }
    }

    /// The shares of guests of which one more fits beside them.
    pub fn with_room(&self) -> impl Iterator<Item = Share> {
        let with_room = self.shared.iter().filter(|(device, share)| self.has_share(*device, *share));
        with_room.map(|(_, share)| *share)
    }

    /// Whether two devices are the same to any share.
    pub fn alike(&self, one: usize, other: usize) -> bool {
        (self.milli[one], self.vram_mib[one], self.total_mib[one], self.share_on(one))
            == (self.milli[other], self.vram_mib[other], self.total_mib[other], self.share_on(other))
    }

    /// What is left of a device after a share is taken from it.
    pub fn left_after(&self, device: usize, share: Share) -> u16 {
        let (milli, vram_mib) = (self.milli[device] - share.milli, self.vram_mib[device] - share.vram_mib);
        usable(milli, vram_mib, self.total_mib[device])
    }

    /// The devices among `mask` that a request may have, where it fits: for a share each that has it, for
    /// whole devices the smallest that suffice. `share` is what it asks for where that is one.
    pub fn places(&self, request: &Request, share: Option<Share>, mask: Mask) -> Vec<Vec<u8>> {
        let number = |device: usize| u8::try_from(device).unwrap_or(u8::MAX);
        match request.gpus {
            Gpus::None => vec![Vec::new()],
            Gpus::Share { .. } => {
                let has_share = |device: &usize| share.is_some_and(|share| self.has_share(*device, share));
                let fit = (0..self.devices()).filter(|device| is_in(mask, *device) && has_share(device));
                fit.map(|device| vec![number(device)]).collect()
            }
            Gpus::Whole { count, vram_mib } => {
                let mut devices: Vec<usize> = self.large(vram_mib, mask).collect();
                devices.sort_by_key(|device| (self.total_mib[*device], *device));
                devices.truncate(usize::from(count));
                devices.sort_unstable();
                if devices.len() < usize::from(count) {
                    return Vec::new();
                }
                vec![devices.into_iter().map(number).collect()]
            }
        }
    }

    /// Whether that many untouched devices with that much memory are there among `mask`.
    pub fn has_whole(&self, count: u8, vram_mib: u32, mask: Mask) -> bool {
        self.whole >= count
            && (vram_mib == 0 && mask == ANY || self.large(vram_mib, mask).count() >= usize::from(count))
    }

    /// Untouched devices among `mask` with that much memory.
    fn large(&self, vram_mib: u32, mask: Mask) -> impl Iterator<Item = usize> {
        (0..self.devices()).filter(move |device| {
            is_in(mask, *device) && self.is_whole(*device) && self.total_mib[*device] >= vram_mib
        })
    }

    /// Occupies what is in use, as much of it as there is.
    pub fn occupy(&mut self, used: &Used) {
        self.milli_cpu = self.milli_cpu.saturating_sub(used.milli_cpu);
        self.memory_mib = self.memory_mib.saturating_sub(used.memory_mib);
        self.disk_mib = self.disk_mib.saturating_sub(used.disk_mib);
        self.order_bytes = self.order_bytes.saturating_sub(used.order_bytes);
        let devices = self.devices();
        for device in used.devices.iter().map(|device| usize::from(*device)).filter(|at| *at < devices) {
            (self.milli[device], self.vram_mib[device]) = (0, 0);
        }
        for shared in used.shared.iter().filter(|shared| usize::from(shared.device) < devices) {
            let device = usize::from(shared.device);
            let milli = shared.milli.saturating_mul(shared.count);
            let vram_mib = shared.vram_mib.saturating_mul(shared.count.into());
            self.milli[device] = self.milli[device].saturating_sub(milli);
            self.vram_mib[device] = self.vram_mib[device].saturating_sub(vram_mib);
            let share = Share { owner: Some(shared.owner), milli: shared.milli, vram_mib: shared.vram_mib };
            self.shared.push((device, share));
        }
        used.tenants.iter().for_each(|(owner, alone)| self.enter(*owner, *alone));
        self.sum();
    }

    /// Somebody's placement begins.
    pub fn enter(&mut self, owner: u32, alone: bool) {
        let known = self.tenants.iter().position(|tenant| tenant.owner == owner);
        let at = known.unwrap_or(self.tenants.len());
        if known.is_none() {
            self.tenants.push(Tenant { owner, placements: 0, alone: 0 });
        }
        self.tenants[at].placements += 1;
        self.tenants[at].alone += u32::from(alone);
    }

    /// Somebody's placement ends.
    pub fn leave(&mut self, owner: u32, alone: bool) {
        for tenant in self.tenants.iter_mut().filter(|tenant| tenant.owner == owner) {
            tenant.placements = tenant.placements.saturating_sub(1);
            tenant.alone = tenant.alone.saturating_sub(alone.into());
        }
        self.tenants.retain(|tenant| tenant.placements > 0);
    }

    /// An order of so many bytes is no more.
    pub fn forget_order(&mut self, bytes: u32) {
        self.order_bytes = self.order_bytes.saturating_add(bytes).min(self.host.order_bytes);
    }

    /// Takes what a request takes, of one device that share where it asks for one; `false` and nothing changed where it
    /// does not fit.
    pub fn take(&mut self, request: &Request, share: Option<Share>, devices: &[u8]) -> bool {
        let distinct = devices.iter().enumerate().all(|(at, device)| !devices[..at].contains(device));
        let there = devices.iter().all(|device| usize::from(*device) < self.devices());
        let fits = self.milli_cpu >= request.milli_cpu
            && self.memory_mib >= request.memory_mib
            && self.disk_mib >= request.disk_mib;
        let fit = distinct
            && there
            && fits
            && match (request.gpus, devices) {
                (Gpus::None, []) => true,
                (Gpus::Share { .. }, [device]) => {
                    share.is_some_and(|share| self.has_share(usize::from(*device), share))
                }
                (Gpus::Whole { count, vram_mib }, devices) => {
                    devices.len() == usize::from(count)
                        && devices
                            .iter()
                            .map(|device| usize::from(*device))
                            .all(|device| self.is_whole(device) && self.total_mib[device] >= vram_mib)
                }
                (Gpus::None | Gpus::Share { .. }, _) => false,
            };
        if !fit {
            return false;
        }
        self.milli_cpu -= request.milli_cpu;
        self.memory_mib -= request.memory_mib;
        self.disk_mib -= request.disk_mib;
        for device in devices.iter().map(|device| usize::from(*device)) {
            let (milli, vram_mib) = self.part(request, device);
            self.milli[device] -= milli;
            self.vram_mib[device] -= vram_mib;
            let guests = share.filter(|share| share.owner.is_some() && self.share_on(device).is_none());
            self.shared.extend(guests.map(|share| (device, share)));
        }
        self.sum();
        true
    }

    /// Gives back what [`take`](Self::take) took.
    pub fn give(&mut self, request: &Request, devices: &[u8]) {
        self.milli_cpu = (self.milli_cpu + request.milli_cpu).min(self.host.milli_cpu);
        self.memory_mib = (self.memory_mib + request.memory_mib).min(self.host.memory_mib);
        self.disk_mib = (self.disk_mib + request.disk_mib).min(self.host.disk_mib);
        for device in devices.iter().map(|device| usize::from(*device)) {
            let (milli, vram_mib) = self.part(request, device);
            self.milli[device] = (self.milli[device] + milli).min(DEVICE_MILLI);
            self.vram_mib[device] = (self.vram_mib[device] + vram_mib).min(self.total_mib[device]);
            let is_whole = self.is_whole(device);
            self.shared.retain(|(of, _)| *of != device || !is_whole);
        }
        self.sum();
    }

    /// Time and memory of one device that a request takes.
    fn part(&self, request: &Request, device: usize) -> (u16, u32) {
        match request.gpus {
            Gpus::None => (0, 0),
            Gpus::Share { milli, vram_mib } => (milli, vram_mib),
            Gpus::Whole { .. } => (DEVICE_MILLI, self.total_mib[device]),
        }
    }
}

/// Thousandths of a device that time and memory both allow; without memory, time alone.
fn usable(milli: u16, vram_mib: u32, total_mib: u32) -> u16 {
    if vram_mib == total_mib {
        milli
    } else {
        milli.min(thousandths(vram_mib.into(), total_mib.into(), Rounded::Down))
    }
}

/// Which way a quotient is rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rounded {
    Down,
    Up,
}

/// A part as thousandths of a total above zero, at most all of them.
pub(super) fn thousandths(part: u64, total: u64, rounded: Rounded) -> u16 {
    let scaled = part * u64::from(DEVICE_MILLI);
    let quotient = match rounded {
        Rounded::Down => scaled / total,
        Rounded::Up => scaled.div_ceil(total),
    };
    u16::try_from(quotient.min(u64::from(DEVICE_MILLI))).unwrap_or(DEVICE_MILLI)
}
