//! The spec of a host: what it should do.

use std::{collections::BTreeMap, time::Duration};

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use nave_crash_point::crash_point;
use nave_domain::{
    ChallengeId, HostId, LeaseId, Millis,
    mesh::{BadMeshKey, Prefix},
};
use nave_sdk::wire::host::{DOCUMENT_BYTES_MAX, HostSpec, MeshSpec, Order, PROTOCOL, Serve};
use nave_sdk::wire::proof::{Challenge, Nonce, Task};
use nave_store::{Changes, OrderRow, SentChallenge, ServeRow};
use serde::Deserialize;
use tokio::time::Instant;

use super::{peer::PeerHost, releases};
use crate::{app::App, config::Config, error::ApiError, extract::Query, routes, view};

/// Longest time without looking again, should an announcement be missed.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Room in a document beside its orders, in bytes: challenges name every device.
const ENVELOPE_BYTES: usize = 128 << 10;
/// Room beside each order for its id and for a stop that may come later, in bytes.
const ORDER_ENVELOPE_BYTES: usize = 128;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SpecQuery {
    #[serde(default)]
    after: u64,
    wait_ms: Option<Millis>,
}

/// Answers as soon as the spec's generation exceeds `after`; 204 when `wait_ms` passes first.
/// A host that is sent away while it waits is told so.
pub(super) async fn show(
    State(app): State<App>,
    host: PeerHost,
    Query(query): Query<SpecQuery>,
) -> Result<Response, ApiError> {
    let end = Instant::now() + routes::wait(query.wait_ms)?;
    loop {
        let watch = app.watch();
        host.check(&app).await?;
        if app.store.host_generation(host.id).await? > query.after {
            return Ok(Json(load(&app, host.id).await?).into_response());
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() || app.is_stopping() {
            return Ok(StatusCode::NO_CONTENT.into_response());
        }
        watch.changed(Changes::Host(host.id), left.min(LOOK_AGAIN)).await;
    }
}

async fn load(app: &App, host: HostId) -> Result<HostSpec, ApiError> {
    // The generation first: what is read later is then at least as new as it says.
    let row = app.store.host_spec(host).await?;
    let (mesh, release) = (mesh(app, host).await?, releases::offer(app, host).await?);
    let challenges = app.store.challenge_send(host).await?.into_iter().filter_map(challenge).collect();
    let serve = app.store.transfers_served(host).await?.into_iter().filter_map(serve).collect();
    crash_point!("gateway.spec.before_answer");
    let Config { fence_ms, report_ms, .. } = *app.config;
    let prefix = Prefix::of_market(&app.config.market_key.public().0);
    Ok(HostSpec {
        protocol: PROTOCOL,
        generation: row.generation,
        host,
        state: row.state,
        reason: row.reason.map(view::reason),
        fence_ms,
        report_ms,
        mesh,
        challenges,
        serve,
        release,
        leases: fitting(row.orders.into_iter().map(|(lease, row)| (lease, order(prefix, lease, row)))),
    })
}

async fn mesh(app: &App, host: HostId) -> Result<MeshSpec, ApiError> {
    let (key, hub) = (app.store.mesh_key(host).await?, app.store.hub().await?);
    let (Some(key), Some(hub)) = (key, hub) else {
        return Err(ApiError::unavailable("hub_unknown", "the hub of the mesh has not come up yet"));
    };
    let read = |key: &str| key.parse().map_err(|error: BadMeshKey| ApiError::internal(error.to_string()));
    Ok(MeshSpec { key: read(&key)?, hub_key: read(&hub.key)?, hub_endpoints: hub.endpoints })
}

/// A challenge with the nonces that were revealed so far. One that this version does not
/// understand is for the verifier to end; the host works on meanwhile.
fn challenge(sent: SentChallenge) -> Option<(ChallengeId, Challenge)> {
    let read = || -> Result<_, String> {
        let reveals =
            sent.reveals.iter().map(|nonce| nonce.parse::<Nonce>().map_err(|error| error.to_string()));
        let reveals = reveals.collect::<Result<Vec<_>, _>>()?;
        let body =
            serde_json::from_value::<Challenge>(sent.body.clone()).map_err(|error| error.to_string())?;
        Ok((sent.challenge, Challenge { reveals, ..body }))
    };
    let id = sent.challenge;
    read().inspect_err(|error| tracing::error!(challenge.id = %id, error, "a challenge cannot be sent")).ok()
}

/// What a host sends to another that is tested.
fn serve(row: ServeRow) -> Option<(ChallengeId, Serve)> {
    let challenge = serde_json::from_value::<Challenge>(row.body).ok()?;
    match challenge.task {
        Task::Transfer(task) => {
            let key = row.key.parse().ok()?;
            Some((row.challenge, Serve { key, bytes: task.bytes, port: task.port, peer: row.peer }))
        }
        Task::Cpu(_) | Task::Memory(_) | Task::Devices(_) | Task::Storage(_) | Task::Software(_) => None,
    }
}

/// The oldest orders that fit into one document: customers decide how long a command is,
/// and must not silence a host with it. All fit unless the store's own bound was changed.
fn fitting(orders: impl Iterator<Item = (LeaseId, Order)>) -> BTreeMap<LeaseId, Order> {
    let mut room = DOCUMENT_BYTES_MAX - ENVELOPE_BYTES;
    let fits = |(_, order): &(LeaseId, Order)| {
        let bytes =
            serde_json::to_vec(&Order { stop: None, ..order.clone() }).map_or(usize::MAX, |json| json.len());
        room = room.saturating_sub(bytes.saturating_add(ORDER_ENVELOPE_BYTES));
        room > 0
    };
    orders.take_while(fits).collect()
}

/// A lease with a group has an address in the mesh; everyone derives the same from its id.
fn order(prefix: Prefix, lease: LeaseId, row: OrderRow) -> Order {
    Order {
        address: row.request.group.as_ref().map(|_| prefix.lease(lease)),
        peers: row.peers.into_iter().map(|(job, lease)| (job, prefix.lease(lease))).collect(),
        job: row.job,
        attempt: row.attempt,
        stop: row.stop,
        image: row.request.image.unwrap_or_default(),
        argv: row.request.argv,
        env: row.request.env,
        milli_cpu: row.milli_cpu,
        memory: row.memory,
        disk: row.disk,
        devices: row.devices,
        share: row.share,
        egress: row.request.egress,
    }
}

#[cfg(test)]
mod tests {
    use nave_domain::{Bytes, JobId, MilliCpu, job::Egress, lease::StopReason};
    use nave_store::ORDERS_BYTES_MAX;
    use uuid::Uuid;

    use super::*;

    fn large(n: u128, stop: Option<StopReason>) -> (LeaseId, Order) {
        let order = Order {
            job: JobId(Uuid::from_u128(n)),
            attempt: 1,
            stop,
            image: "image".to_owned(),
            argv: vec!["x".repeat(250_000)],
            env: BTreeMap::new(),
            milli_cpu: MilliCpu(1),
            memory: Bytes(1),
            disk: Bytes(1),
            devices: Vec::new(),
            share: None,
            egress: Egress::None,
            address: None,
            peers: BTreeMap::new(),
        };
        (LeaseId(Uuid::from_u128(n)), order)
    }

    #[test]
    fn long_commands_never_make_a_spec_that_its_host_refuses() {
        let kept = fitting((1..40).map(|n| large(n, None)));
        assert!((10..20).contains(&kept.len()), "{}", kept.len());
        assert!(serde_json::to_vec(&kept).expect("JSON").len() < DOCUMENT_BYTES_MAX);
        let room = i64::try_from(DOCUMENT_BYTES_MAX - ENVELOPE_BYTES).expect("small");
        assert!(ORDERS_BYTES_MAX <= room, "the store lets no host have more than fits");
        let stopped = fitting((1..40).map(|n| large(n, Some(StopReason::StartTimeout))));
        assert_eq!(stopped.len(), kept.len(), "a stop pushes no other order out");
    }
}
