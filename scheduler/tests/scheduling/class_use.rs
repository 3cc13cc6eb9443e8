//! How much of each class is leased.

use nave_domain::{
    MilliGpu,
    fraction::{Fraction, Shared},
    host::Trust,
    class_use::ClassUse,
};
use nave_scheduler::class_use;

use crate::supply::{customer_id, gpu_host, snapshot};

#[test]
fn devices_are_counted_by_class_as_far_as_they_are_leased_and_rented_machines_are_not() {
    let classed = |sizes: &[i64]| {
        let mut host = gpu_host(sizes);
        let uuids = host.inventory.devices.iter().map(|device| (device.uuid.clone(), "h100-sxm".to_owned()));
        host.classes = uuids.collect();
        host
    };
    let mut busy = classed(&[80, 80, 80]);
    busy.devices_used.push("GPU-0".into());
    let fraction = Fraction { milli: MilliGpu(250), vram: nave_domain::Bytes::ZERO };
    busy.shared.insert("GPU-1".into(), Shared { tenant: customer_id(1), fraction, count: 3 });
    let mut rented = classed(&[80]);
    rented.terms.trust = Trust::Cloud;
    let seen = class_use(&snapshot(Vec::new(), vec![busy, rented, gpu_host(&[80])]));
    assert_eq!(seen, [("h100-sxm".to_owned(), ClassUse { devices: 3, leased_milli: 1_750 })].into());
}
