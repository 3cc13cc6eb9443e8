//! How much of each class of miners' devices is leased. Pure.

use std::collections::BTreeMap;

use nave_domain::{host::Trust, class_use::ClassUse};
use nave_store::{Snapshot, SupplyHost};

/// What a look sees of each class: of the hosts that take jobs, without rented machines.
#[must_use]
pub fn class_use(snapshot: &Snapshot) -> BTreeMap<String, ClassUse> {
    let mut seen: BTreeMap<String, ClassUse> = BTreeMap::new();
    for host in snapshot.hosts.values().filter(|host| host.terms.trust != Trust::Cloud) {
        for (device, class) in &host.classes {
            let of_class = seen.entry(class.clone()).or_default();
            of_class.devices += 1;
            of_class.leased_milli += leased_milli(host, device);
        }
    }
    seen
}

/// Thousandths of a device that are leased or held.
fn leased_milli(host: &SupplyHost, device: &str) -> i64 {
    let is_leased = |uuid: &str| host.devices_used.iter().any(|used| used == uuid);
    if is_leased(device) {
        return 1_000;
    }
    let of_slices = host
        .inventory
        .rentable_slices()
        .filter(|(whole, slice)| whole.uuid == device && is_leased(&slice.uuid));
    let slices: i64 = of_slices.map(|(_, slice)| slice.milli.0).sum();
    let shares =
        host.shared.get(device).map_or(0, |shared| i64::from(shared.count) * shared.fraction.milli.0);
    (slices + shares).min(1_000)
}
