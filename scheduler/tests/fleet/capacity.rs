//! Nothing is sold twice, and nobody is refused who fits, whatever happens in which order.

use std::collections::BTreeMap;

use nave_scheduler::fleet::{DEVICE_MILLI, Fleet, Gpus, Guest, Handle, Host, Request};
use proptest::prelude::*;

use super::{GIB, GPU_HOUR, demand, host};

#[derive(Debug, Clone)]
enum Event {
    /// Of somebody, or of nobody in particular.
    Come(Request, Option<u32>),
    End(usize),
    Join(Host),
    Lose(usize),
    Drain(usize, bool),
    Learn,
}

fn requests() -> impl Strategy<Value = Request> {
    let gpus = prop_oneof![
        2 => Just(Gpus::None),
        4 => (1_u16..10, 0_u32..12)
            .prop_map(|(tenths, gib)| Gpus::Share { milli: 100 * tenths, vram_mib: gib * GIB }),
        4 => (1_u8..5, 0_u32..2).prop_map(|(count, large)| Gpus::Whole { count, vram_mib: large * 20 * GIB }),
    ];
    (1_u32..12, 1_u32..40, gpus, 1_u64..4).prop_map(|(cores, gib, gpus, classes)| Request {
        classes,
        ..Request::new(cores * 1_000, gib * GIB, gpus)
    })
}

fn hosts() -> impl Strategy<Value = Host> {
    (0_usize..5, 0_u8..2, 1_u32..3, 0_i64..3).prop_map(|(devices, class, size, price)| Host {
        class,
        vram_mib: vec![12 * GIB * size; devices],
        rate: nave_scheduler::fleet::Rate { gpu_hour: GPU_HOUR + price * 50_000, ..host(0).rate },
        ..host(devices)
    })
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        8 => (requests(), prop::option::of(0_u32..3)).prop_map(|(request, owner)| Event::Come(request, owner)),
        4 => any::<usize>().prop_map(Event::End),
        2 => hosts().prop_map(Event::Join),
        1 => any::<usize>().prop_map(Event::Lose),
        1 => (any::<usize>(), any::<bool>()).prop_map(|(at, open)| Event::Drain(at, open)),
        1 => Just(Event::Learn),
    ];
    prop::collection::vec(event, 1..80)
}

/// What is left of a host, counted here and by nobody else.
#[derive(Clone)]
struct Left {
    host: Host,
    open: bool,
    milli_cpu: u32,
    memory_mib: u32,
    devices: Vec<(u16, u32)>,
    /// Whose each device is that guests share, and the size of its shares.
    shared: Vec<Option<(u32, u16, u32)>>,
}

impl Left {
    fn of(host: Host) -> Self {
        let devices: Vec<_> = host.vram_mib.iter().map(|vram| (DEVICE_MILLI, *vram)).collect();
        let shared = vec![None; devices.len()];
        Self { open: true, milli_cpu: host.milli_cpu, memory_mib: host.memory_mib, devices, shared, host }
    }

    fn part(&self, request: &Request, device: usize) -> (u16, u32) {
        match request.gpus {
            Gpus::None => (0, 0),
            Gpus::Share { milli, vram_mib } => (milli, vram_mib),
            Gpus::Whole { .. } => (DEVICE_MILLI, self.host.vram_mib[device]),
        }
    }

    fn is_untouched(&self, device: usize) -> bool {
        self.devices[device] == (DEVICE_MILLI, self.host.vram_mib[device])
    }

    fn has_share(&self, device: usize, milli: u16, vram_mib: u32, owner: Option<u32>) -> bool {
        let (time, vram) = self.devices[device];
        let is_own = match owner {
            None => self.shared[device].is_none(),
            Some(owner) => self.shared[device] == Some((owner, milli, vram_mib)) || self.is_untouched(device),
        };
        is_own && time >= milli && vram >= vram_mib
    }

    fn fits(&self, request: &Request, owner: Option<u32>) -> bool {
        self.open
            && request.classes >> self.host.class & 1 == 1
            && self.milli_cpu >= request.milli_cpu
            && self.memory_mib >= request.memory_mib
            && match request.gpus {
                Gpus::None => true,
                Gpus::Share { milli, vram_mib } => {
                    (0..self.devices.len()).any(|device| self.has_share(device, milli, vram_mib, owner))
                }
                Gpus::Whole { count, vram_mib } => {
                    let devices = 0..self.devices.len();
                    let large = devices
                        .filter(|device| self.is_untouched(*device) && self.devices[*device].1 >= vram_mib);
                    large.count() >= usize::from(count)
                }
            }
    }

    fn take(&mut self, request: &Request, devices: &[u8], owner: Option<u32>) {
        self.milli_cpu = self.milli_cpu.checked_sub(request.milli_cpu).expect("CPU is sold once");
        self.memory_mib = self.memory_mib.checked_sub(request.memory_mib).expect("memory is sold once");
        for device in devices.iter().map(|device| usize::from(*device)) {
            let (milli, vram) = self.part(request, device);
            if let (Gpus::Share { .. }, Some(owner)) = (request.gpus, owner) {
                assert!(
                    self.has_share(device, milli, vram, Some(owner)),
                    "strangers or two sizes on a device"
                );
                self.shared[device] = Some((owner, milli, vram));
            }
            let left = &mut self.devices[device];
            left.0 = left.0.checked_sub(milli).expect("time of a device is sold once");
            left.1 = left.1.checked_sub(vram).expect("memory of a device is sold once");
        }
    }

    fn give(&mut self, request: &Request, devices: &[u8]) {
        self.milli_cpu += request.milli_cpu;
        self.memory_mib += request.memory_mib;
        for device in devices.iter().map(|device| usize::from(*device)) {
            let (milli, vram) = self.part(request, device);
            self.devices[device].0 += milli;
            self.devices[device].1 += vram;
            self.shared[device] = self.shared[device].filter(|_| !self.is_untouched(device));
        }
    }
}

#[derive(Default)]
struct World {
    fleet: Fleet,
    left: BTreeMap<Handle, Left>,
    placed: Vec<(Handle, Request, Vec<u8>)>,
    came: Vec<Request>,
}

impl World {
    fn come(&mut self, request: Request, owner: Option<u32>) {
        self.came.push(request);
        let guest = owner.map_or(0, |owner| self.fleet.invite(Guest { owner, ..Guest::default() }));
        let request = Request { guest, ..request };
        let choice = self.fleet.decide(&request);
        // What it remembers is what it would find out anew.
        let mut anew = self.fleet.clone();
        anew.set_worth(0, GPU_HOUR);
        assert_eq!(choice, anew.decide(&request));
        let Some(choice) = choice else {
            let fits = |left: &Left| left.fits(&request, owner);
            assert!(!self.left.values().any(fits), "{request:?} of {owner:?} fits and was refused");
            return;
        };
        let left = self.left.get_mut(&choice.host).expect("a host that is there");
        assert!(left.fits(&request, owner));
        left.take(&request, &choice.devices, owner);
        assert!(self.fleet.place(choice.host, &request, &choice.devices));
        self.placed.push((choice.host, request, choice.devices));
    }

    fn handle(&self, at: usize) -> Option<Handle> {
        self.left.keys().nth(at % self.left.len().max(1)).copied()
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::Come(request, owner) => self.come(request, owner),
            Event::End(at) if !self.placed.is_empty() => {
                let (host, request, devices) = self.placed.swap_remove(at % self.placed.len());
                self.fleet.release(host, &request, &devices);
                self.left.get_mut(&host).expect("a host that is there").give(&request, &devices);
            }
            Event::End(_) => {}
            Event::Join(host) => {
                let handle = self.fleet.insert(host.clone()).expect("a host of usual size");
                self.left.insert(handle, Left::of(host));
            }
            Event::Lose(at) => {
                if let Some(handle) = self.handle(at) {
                    assert!(self.fleet.remove(handle).is_some());
                    self.left.remove(&handle);
                    self.placed.retain(|(host, _, _)| *host != handle);
                }
            }
            Event::Drain(at, open) => {
                if let Some(handle) = self.handle(at) {
                    self.fleet.set_open(handle, open);
                    self.left.get_mut(&handle).expect("a host that is there").open = open;
                }
            }
            Event::Learn => self.fleet.learn(&demand(&self.came)),
        }
    }
}

proptest! {
    #[test]
    fn nothing_is_sold_twice_and_nobody_is_refused_who_fits(
        start in prop::collection::vec(hosts(), 1..5),
        events in events(),
    ) {
        let mut world = World::default();
        world.fleet.set_worth(0, GPU_HOUR);
        world.fleet.set_worth(1, GPU_HOUR);
        start.into_iter().for_each(|host| world.apply(Event::Join(host)));
        events.into_iter().for_each(|event| world.apply(event));
    }
}

#[test]
fn what_is_not_free_is_not_occupied() {
    let (mut fleet, handles) = super::fleet([host(2)]);
    let request = super::whole(1);
    assert!(!fleet.place(handles[0], &request, &[2]), "no such device");
    assert!(!fleet.place(handles[0], &request, &[]), "too few devices");
    assert!(!fleet.place(handles[0], &super::whole(2), &[0, 0]), "a device twice");
    assert!(fleet.place(handles[0], &request, &[0]));
    assert!(!fleet.place(handles[0], &request, &[0]), "a device that is taken");
}

#[test]
fn decisions_stay_right_when_kinds_are_forgotten_and_changes_are_too_many_to_follow() {
    let (mut fleet, _) = super::fleet((0..20).map(|_| host(4)));
    let kind = |at: u32| super::share(u16::try_from(100 + at % 700).expect("small"));
    let mut placed = Vec::new();
    for at in 0..20_000 {
        let request = kind(at * 7);
        match fleet.decide(&request) {
            Some(choice) => {
                assert!(fleet.place(choice.host, &request, &choice.devices));
                placed.push((choice, request));
            }
            None => {
                for (choice, request) in placed.drain(..) {
                    fleet.release(choice.host, &request, &choice.devices);
                }
            }
        }
    }
    let mut anew = fleet.clone();
    anew.set_worth(0, GPU_HOUR);
    assert_eq!(fleet.decide(&kind(0)), anew.decide(&kind(0)));
}
