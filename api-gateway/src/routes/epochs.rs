//! Epochs: what miners delivered, and the weights that follow.

use axum::{
    Json,
    body::Body,
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use nave_domain::epoch::EpochState;
use nave_sdk::wire::rest::{Delivered, Epoch, Evidence};
use nave_store::{BundleRow, EpochRow, Store, StoreError};
use serde::Deserialize;
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::timeout,
};

use crate::{
    app::App,
    caller::{Caller, JobsRead},
    error::ApiError,
    extract::{Nothing, Path, Query},
    page::Limit,
    routes::{
        jobs::{SEND_MAX, TURN_MAX, whole},
        verdicts::Passer,
    },
};

/// How many epochs to list.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListQuery {
    /// Most epochs; 50 if not given.
    #[serde(default)]
    #[param(value_type = Option<u32>, minimum = 1, maximum = 200)]
    limit: Limit,
}

/// The newest epochs, newest first.
#[utoipa::path(get, path = "/v1/epochs", tag = "market", operation_id = "epochs_list", params(ListQuery),
    security(("key" = ["jobs:read"])), responses((status = 200, description = "Epochs", body = Vec<Epoch>)))]
pub(crate) async fn list(
    State(app): State<App>,
    _: Caller<JobsRead>,
    Query(query): Query<ListQuery>,
) -> Result<Json<Vec<Epoch>>, ApiError> {
    let mut epochs = Vec::new();
    for row in app.store.epoch_list(query.limit.rows()).await? {
        epochs.push(load(&app, row).await?);
    }
    Ok(Json(epochs))
}

/// One epoch.
#[utoipa::path(get, path = "/v1/epochs/{epoch}", tag = "market", operation_id = "epochs_show",
    params(("epoch" = i64, Path, description = "Its number")), security(("key" = ["jobs:read"])),
    responses((status = 200, description = "The epoch", body = Epoch)))]
pub(crate) async fn show(
    State(app): State<App>,
    _: Caller<JobsRead>,
    Path(epoch): Path<i64>,
    Query(Nothing {}): Query<Nothing>,
) -> Result<Json<Epoch>, ApiError> {
    let row = app.store.epoch_get(epoch).await?;
    Ok(Json(load(&app, row).await?))
}

/// The evidence of an epoch, from which anyone can compute its weights again; open to everyone once the weights are
/// revealed, so that nobody copies them before.
#[utoipa::path(get, path = "/v1/epochs/{epoch}/evidence", tag = "market", operation_id = "epochs_evidence",
    params(("epoch" = i64, Path, description = "Its number")),
    responses((status = 200, description = "Its bundle: lines of JSON, packed", body = Vec<u8>, content_type = "application/gzip"),
        (status = 409, description = "Its weights are not revealed yet"),
        (status = 410, description = "It is too old to be kept")))]
pub(crate) async fn evidence(
    State(app): State<App>,
    _: Passer,
    Path(epoch): Path<i64>,
    Query(Nothing {}): Query<Nothing>,
) -> Result<Response, ApiError> {
    app.store.epoch_get(epoch).await?;
    let bundle = app.store.bundle_open(epoch).await.map_err(not_served)?;
    let turn = timeout(TURN_MAX, app.openings_out.clone().acquire_owned()).await;
    let Ok(Ok(turn)) = turn else {
        return Err(ApiError::unavailable("downloads_busy", "too many bundles are being fetched right now"));
    };
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/gzip")),
        (header::CONTENT_LENGTH, HeaderValue::from(bundle.bytes)),
    ];
    Ok((headers, pieces(app.store, &bundle, turn)).into_response())
}

/// The bundle is there, and not to be read.
fn not_served(error: StoreError) -> ApiError {
    let StoreError::NotFound(what) = error else { return error.into() };
    if what == "kept bundle" {
        return ApiError::new(
            StatusCode::GONE,
            "not_kept",
            "the evidence of this epoch is too old to be kept",
        )
        .suggest("ask an auditor who has it; its head says whether it is the same");
    }
    ApiError::new(
        StatusCode::CONFLICT,
        "not_revealed",
        "the weights of this epoch are not revealed yet, and its evidence would tell them",
    )
    .suggest("try again when `nave epoch show` says confirmed")
    .retry_in(60)
}

/// Hands a bundle out as the database gives it, never more than a piece at a time.
fn pieces(store: Store, bundle: &BundleRow, turn: OwnedSemaphorePermit) -> Body {
    let (sender, coming) = mpsc::channel(1);
    let (epoch, pieces) = (bundle.epoch, bundle.pieces);
    tokio::spawn(timeout(SEND_MAX, async move {
        let _turn = turn;
        for piece in 0..pieces {
            // Where one is missing the body ends early, which whoever reads it notices.
            let Ok(Some(bytes)) = store.bundle_piece(epoch, piece).await else { return };
            if sender.send(Bytes::from(bytes)).await.is_err() {
                return;
            }
        }
    }));
    whole(coming, usize::try_from(bundle.bytes).unwrap_or(usize::MAX))
}

async fn load(app: &App, row: EpochRow) -> Result<Epoch, ApiError> {
    // Before the chain shows them they would only help who copies weights.
    let is_revealed = row.state == EpochState::Confirmed;
    let delivered =
        if is_revealed { app.store.epoch_delivered(row.epoch).await? } else { Default::default() };
    let delivered = delivered
        .into_iter()
        .map(|(hotkey, sum)| (hotkey, Delivered { used_ms: sum.used, value: sum.value }));
    Ok(Epoch {
        epoch: row.epoch,
        state: row.state,
        opened_at: row.opened_at,
        closed_at: row.closed_at,
        delivered: delivered.collect(),
        weights: row.weights.filter(|_| is_revealed).unwrap_or_default(),
        chain: row.chain,
        evidence: row.settled.map(|settled| Evidence {
            head: settled.head,
            lines: settled.lines,
            bytes: settled.bundle_bytes,
            is_revealed,
        }),
    })
}
