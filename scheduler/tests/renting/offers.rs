//! What is offered where machines can be rented, as a job that waits sees it.

use std::collections::BTreeMap;

use nave_clouds::{
    Cloud,
    provider::{Availability, Hosting},
    testing::Faults,
};
use nave_domain::{Bytes, MilliCpu};
use nave_scheduler::demand::shape;

use crate::rows::Market;

#[tokio::test]
async fn each_cloud_that_rents_machines_offers_one_on_which_a_job_with_a_gpu_its_memory_and_a_disk_has_room()
{
    for cloud in Cloud::ALL.into_iter().filter(|cloud| cloud.terms().hosting == Hosting::Machine) {
        let market = Market::new(cloud, 1, Faults::default()).await;
        let offers = market.offers().await;
        let shapes: Vec<_> = offers
            .iter()
            .filter(|offer| offer.devices > 0 && matches!(offer.availability, Availability::Available(_)))
            .map(|offer| (offer, shape(offer, &BTreeMap::new(), 10)))
            .collect();
        assert!(!shapes.is_empty(), "{cloud}");
        for (offer, shape) in shapes {
            let shape = shape.unwrap_or_else(|| panic!("{cloud}: too little is said: {offer:?}"));
            let has_room = shape.vram >= Bytes(40 * Bytes::GIB)
                && shape.disk >= Bytes(32 * Bytes::GIB)
                && shape.cpu >= MilliCpu(8_000)
                && shape.memory >= Bytes(32 * Bytes::GIB);
            assert!(has_room, "{cloud}: {shape:?}");
        }
    }
}
