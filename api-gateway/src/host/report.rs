//! Reports of a host: what it has, and how its leases are.

use std::collections::BTreeMap;

use axum::{
    Json,
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use nave_crash_point::crash_point;
use nave_domain::{HostId, LeaseId};
use nave_sdk::wire::host::{HostReport, PROTOCOL, ReportAck};
use nave_store::{Heard, StoreError};
use serde::Deserialize;

use super::{
    effects::{self, Effect},
    peer::{PeerHost, host_unknown},
    proof,
};
use crate::{
    app::App,
    error::ApiError,
    extract::{self, Nothing, Query, Raw},
};

/// Takes a report. A late one, overtaken by a newer one of the same agent process, changes nothing.
pub(super) async fn take(
    State(app): State<App>,
    host: PeerHost,
    Query(Nothing {}): Query<Nothing>,
    Raw(body): Raw,
) -> Result<Response, ApiError> {
    if !speaks_ours(&body)? {
        return Ok(other_protocol());
    }
    let report: HostReport = extract::parse(&body)?;
    check(&report)?;
    // What is known is read before the report is registered: whatever a later report
    // changes is then not taken for old by this one.
    let current = app.store.host_generation(host.id).await?;
    let held = app.store.leases_of_host(host.id).await?;
    let HostReport {
        generation,
        sequence,
        session,
        inventory,
        mesh_key_next,
        proofs,
        boot,
        xids,
        leases,
        ..
    } = report;
    let boot = boot.map(|boot| boot.to_string());
    let heard = Heard { session, sequence, seen_generation: generation, boot: boot.as_deref() };
    let heard = app.store.host_report(host.id, heard, &inventory).await;
    let (newest, fresh) = heard.map_err(not_heard)?;
    if !fresh {
        return Ok(Json(ReportAck { generation: newest }).into_response());
    }
    // First of all, since their time counts: that of the rest of the report does not.
    for proof in proofs.into_values() {
        proof::take(&app, host.id, proof).await?;
    }
    crash_point!("gateway.report.before_effects");
    // Before leases end because of them.
    if !xids.is_empty() {
        app.store.xids_take(host.id, &effects::of_xids(&xids, &inventory.devices)).await?;
    }
    let gone = effects::gone(&leases, &held);
    if !gone.is_empty() {
        app.store.leases_gone(host.id, &gone).await?;
    }
    let lost = if generation >= current { effects::of_silence(&leases, &held) } else { Vec::new() };
    write_down(&app, host.id, effects::of_report(leases, &held).into_iter().chain(lost).collect()).await?;
    if let Some(key) = mesh_key_next {
        app.store.mesh_key_announce(host.id, &key.to_string()).await.map_err(not_announced)?;
    }
    crash_point!("gateway.report.before_answer");
    let generation = app.store.host_generation(host.id).await?;
    Ok(Json(ReportAck { generation }).into_response())
}

fn check(report: &HostReport) -> Result<(), ApiError> {
    report.check().map_err(|problem| {
        let code = match problem.split(['.', ':']).next() {
            Some("inventory") => "inventory_invalid",
            Some("xids") => "xids_invalid",
            Some(_) | None => "proofs_invalid",
        };
        ApiError::refused(code, problem).suggest("correct the agent")
    })
}

/// A host that was sent away while its report was on its way is told so.
fn not_heard(error: StoreError) -> ApiError {
    if matches!(error, StoreError::Stale("host")) { host_unknown() } else { error.into() }
}

fn not_announced(error: StoreError) -> ApiError {
    if !matches!(&error, StoreError::Constraint(name) if name == "mesh_keys_pkey") {
        return error.into();
    }
    let detail = "this mesh key is or was another host's; the rest of the report was taken";
    ApiError::new(StatusCode::CONFLICT, "mesh_key_taken", detail).suggest("make a new mesh key")
}

/// Looks at the version before anything else, which other versions may write otherwise.
fn speaks_ours(body: &[u8]) -> Result<bool, ApiError> {
    #[derive(Deserialize)]
    struct Version {
        protocol: u16,
    }
    Ok(extract::parse::<Version>(body)?.protocol == PROTOCOL)
}

fn other_protocol() -> Response {
    let detail = format!("this control plane speaks version {PROTOCOL} of the host protocol only");
    let error = ApiError::new(StatusCode::UPGRADE_REQUIRED, "protocol_unsupported", detail)
        .suggest("install the agent that belongs to this control plane");
    let upgrade = HeaderValue::from(PROTOCOL);
    let name = HeaderValue::from_str(&format!("nave-host/{PROTOCOL}")).unwrap_or(upgrade);
    ([(header::UPGRADE, name)], error).into_response()
}

/// Writes effects down: the common one in bulk, then the others one by one. What cannot
/// apply to one lease does not keep the others from theirs; hosts repeat themselves.
async fn write_down(app: &App, host: HostId, effects: Vec<(LeaseId, Effect)>) -> Result<(), ApiError> {
    let (heard, news): (Vec<_>, Vec<_>) =
        effects.into_iter().partition(|(_, effect)| *effect == Effect::Heard);
    let heard: Vec<LeaseId> = heard.into_iter().map(|(lease, _)| lease).collect();
    if !heard.is_empty() {
        app.store.leases_heard(host, &heard).await?;
    }
    let mut refused = BTreeMap::new();
    for (lease, effect) in news {
        if let Err(error) = write_one(app, host, lease, effect).await {
            if matches!(error, StoreError::Database(_)) {
                return Err(error.into());
            }
            refused.insert(lease, error);
        }
    }
    for (lease, error) in refused {
        tracing::warn!(host.id = %host, lease.id = %lease, %error, "a report could not be applied to a lease");
    }
    Ok(())
}

async fn write_one(app: &App, host: HostId, lease: LeaseId, effect: Effect) -> Result<(), StoreError> {
    match effect {
        Effect::Heard => app.store.leases_heard(host, &[lease]).await,
        Effect::Started => app.store.lease_started(host, lease).await,
        Effect::Lost => app.store.lease_lost_told(host, lease).await,
        Effect::Exited => app.store.lease_exited(host, lease).await,
        Effect::Finished { outcome, result } => app.store.lease_finished(host, lease, outcome, result).await,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const REPORT: &str = r#"{"protocol":3,"generation":3,"sequence":9,"session":18446744073709551615,
        "inventory":{"milli_cpu":4000,"memory":8589934592,"disk":8589934592,"devices":[],"cpu_model":"","os":"",
        "kernel":"","runtime":{"kind":"simulated"},"egress":["public"],"agent":""},
        "boot":"abababababababababababababababababababababababababababababababab","xids":[{"code":79,"device":"GPU-1"}],
        "leases":{"lease_00000000000000000000000000000001":{"phase":"exited","exit":{"kind":"code","code":-1}}}}"#;

    #[test]
    fn the_documented_report_is_read() {
        let report: HostReport = extract::parse(REPORT.as_bytes()).expect("a report");
        assert_eq!((report.sequence, report.leases.len()), (9, 1));
    }

    proptest! {
        #[test]
        fn foreign_reports_never_panic(
            at in 0..REPORT.len(), bytes in proptest::collection::vec(any::<u8>(), 0..30), cut in any::<bool>(),
        ) {
            let mut foreign = REPORT.as_bytes().to_vec();
            if cut {
                foreign.truncate(at);
            }
            let end = foreign.len().min(at + bytes.len());
            foreign.splice(at.min(end)..end, bytes);
            let _ = speaks_ours(&foreign);
            if let Ok(report) = extract::parse::<HostReport>(&foreign) {
                let _ = report.check();
                let _ = effects::of_xids(&report.xids, &report.inventory.devices);
                let _ = effects::gone(&report.leases, &BTreeMap::new());
                let _ = effects::of_report(report.leases, &BTreeMap::new());
            }
        }
    }
}
