//! What came of the tests of hosts: open to everyone, with what it was reached from.

use std::{collections::BTreeMap, net::SocketAddr};

use axum::{
    Json,
    body::Body,
    extract::{ConnectInfo, FromRequestParts, State},
    http::{HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use nave_domain::{ChallengeId, HostId, host::Device, verdict::Kind};
use nave_sdk::wire::{
    proof::{Challenge, Digest, Nonce, Opening, Task},
    rest::Page,
    verdict::{Appeal, DeviceHolder, Exchange, HostVerdict, OpeningState, Ruling, VerdictBan, VerdictRecord},
};
use nave_store::{ExchangeRow, StoreError, VerdictRow};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::time::timeout;

use crate::{
    app::App,
    error::ApiError,
    extract::{Nothing, Path, Query},
    page::{Limit, cut, page},
    routes::jobs::{TURN_MAX, pieces},
    signed::Miner,
    throttle::{source, too_fast},
};

/// Most verdicts in one answer: whoever asks needs no key, and each is read from all its evidence.
const VERDICTS_MAX: u32 = 20;

/// Anyone, at the pace of one address.
pub(crate) struct Passer;

impl FromRequestParts<App> for Passer {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let from = parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(from)| *from);
        let from = from.ok_or_else(|| ApiError::internal("a listener does not tell where its peers are"))?;
        let standing = app.passers.take(source(from.ip()));
        if standing.allowed { Ok(Self) } else { Err(too_fast("address", standing.next_s)) }
    }
}

/// Which verdicts to list.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListQuery {
    /// Most verdicts in one answer; 20 if not given, and 20 wherever more are asked for.
    #[serde(default)]
    #[param(value_type = Option<u32>, minimum = 1, maximum = 200)]
    limit: Limit,
    /// `next` of the answer before.
    #[param(value_type = Option<String>)]
    before: Option<ChallengeId>,
}

/// What came of the tests of a host, newest first: a month of them, half a year of what failed, and the last 20 of each kind. Nobody needs a key: verification is open.
#[utoipa::path(get, path = "/v1/hosts/{host}/verdicts", tag = "market", operation_id = "verdicts_list",
    params(("host" = String, Path, description = "The host's id"), ListQuery),
    responses((status = 200, description = "A page of verdicts", body = Page<HostVerdict>)))]
pub(crate) async fn list(
    State(app): State<App>,
    _: Passer,
    Path(host): Path<HostId>,
    Query(query): Query<ListQuery>,
) -> Result<Json<Page<HostVerdict>>, ApiError> {
    // One that was never tested is not one that does not exist.
    app.store.host_generation(host).await?;
    let limit = query.limit.at_most(VERDICTS_MAX);
    let mut rows = app.store.verdict_list(host, query.before, limit.rows_and_one()).await?;
    let next = cut(&mut rows, limit, |row| row.challenge.to_string());
    Ok(Json(page(rows.iter().map(|row| verdict(host, row, Sight::Everyone)).collect(), next)))
}

/// One verdict with its evidence: the challenge with every nonce, what the host answered and when.
/// With its opening, anyone can judge it again.
#[utoipa::path(get, path = "/v1/hosts/{host}/verdicts/{challenge}", tag = "market", operation_id = "verdicts_show",
    params(("host" = String, Path, description = "The host's id"), ("challenge" = String, Path, description = "The challenge's id")),
    responses((status = 200, description = "The verdict and what it was reached from", body = VerdictRecord)))]
pub(crate) async fn show(
    State(app): State<App>,
    _: Passer,
    Path((host, challenge)): Path<(HostId, ChallengeId)>,
    Query(Nothing {}): Query<Nothing>,
) -> Result<Json<VerdictRecord>, ApiError> {
    let row = app.store.verdict_get(host, challenge).await?;
    let reached = row.verdict.as_ref().and_then(|(verdict, _)| read::<Reached>(verdict.clone()));
    let (rules, holders) = reached.map_or((None, Vec::new()), |reached| (reached.rules, reached.holders));
    let claimed = row.claimed.iter().map(|device| Device { driver: String::new(), ..device.clone() });
    Ok(Json(VerdictRecord {
        verdict: verdict(host, &row, Sight::Everyone),
        test: test(&row),
        claimed: claimed.collect(),
        exchanges: row.exchanges.iter().map(exchange).collect(),
        rules,
        holders,
        opening: None,
    }))
}

/// The bytes of an opening, while they are kept.
#[utoipa::path(get, path = "/v1/hosts/{host}/verdicts/{challenge}/opening", tag = "market", operation_id = "verdicts_opening",
    params(("host" = String, Path, description = "The host's id"), ("challenge" = String, Path, description = "The challenge's id")),
    responses((status = 200, description = "The opening", body = Vec<u8>, content_type = "application/octet-stream")))]
pub(crate) async fn opening(
    State(app): State<App>,
    _: Passer,
    Path((host, challenge)): Path<(HostId, ChallengeId)>,
    Query(Nothing {}): Query<Nothing>,
) -> Result<Response, ApiError> {
    let row = app.store.verdict_get(host, challenge).await?;
    match opening_state(&row) {
        OpeningState::Kept => {}
        state @ (OpeningState::Forgotten | OpeningState::Withheld | OpeningState::Absent) => {
            return Err(no_opening(state));
        }
    }
    let kept = app.store.verdict_opening(host, challenge).await?.and_then(read::<Opening>);
    let turn = timeout(TURN_MAX, app.openings_out.clone().acquire_owned()).await;
    let Ok(Ok(turn)) = turn else {
        return Err(ApiError::unavailable("downloads_busy", "too many openings are being fetched right now"));
    };
    let bytes = match kept {
        Some(Opening::Inline(bytes)) => Some(bytes),
        Some(Opening::Blob { sha256, size: _ }) => app.store.blob_get(&sha256.0).await?,
        None => None,
    };
    let bytes = bytes.ok_or_else(|| no_opening(OpeningState::Forgotten))?;
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream")),
        (header::CONTENT_LENGTH, HeaderValue::from(bytes.len())),
    ];
    let body: Body = pieces(bytes.into(), turn);
    Ok((headers, body).into_response())
}

fn no_opening(state: OpeningState) -> ApiError {
    let (code, detail) = match state {
        OpeningState::Withheld => {
            ("opening_withheld", "what a host says of its software is for that host alone")
        }
        OpeningState::Kept | OpeningState::Forgotten => {
            ("opening_forgotten", "the opening is not kept any more")
        }
        OpeningState::Absent => ("opening_absent", "the host sent no opening"),
    };
    ApiError::new(StatusCode::NOT_FOUND, code, detail).suggest("look at the verdict's field `opening` first")
}

/// Has a verdict on an own host reached again by the present judge, once. Asking again shows what came of it.
#[utoipa::path(post, path = "/v1/miner/hosts/{host}/verdicts/{challenge}/appeal", tag = "miners", operation_id = "verdicts_appeal",
    params(("host" = String, Path, description = "The host's id"), ("challenge" = String, Path, description = "The challenge's id")),
    security(("hotkey" = [])), responses((status = 200, description = "The verdict with its appeal", body = HostVerdict)))]
pub(crate) async fn appeal(
    State(app): State<App>,
    Path((host, challenge)): Path<(HostId, ChallengeId)>,
    Query(Nothing {}): Query<Nothing>,
    miner: Miner,
) -> Result<Json<HostVerdict>, ApiError> {
    // Whoever owns another host asks for a verdict on that one, under its own path.
    app.store.verdict_get(host, challenge).await?;
    let refused = |code, detail: &'static str| ApiError::new(StatusCode::CONFLICT, code, detail);
    match app.store.verdict_appeal(&miner.hotkey, challenge).await? {
        nave_store::Appeal::Taken | nave_store::Appeal::Again => {}
        nave_store::Appeal::NotFailed => {
            return Err(refused("verdict_not_failed", "this verdict took nothing from the host")
                .suggest("appeal verdicts whose actions name it"));
        }
        nave_store::Appeal::Forgotten => {
            return Err(refused("opening_forgotten", "what it was reached from is not kept any more")
                .suggest("wait for the next test of the host"));
        }
    }
    let row = app.store.verdict_get(host, challenge).await?;
    Ok(Json(verdict(host, &row, Sight::Everyone)))
}

/// Who looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sight {
    /// The host that was tested.
    Itself,
    /// Anyone.
    Everyone,
}

/// The newest verdicts on a host, for itself.
pub(crate) async fn of_host(app: &App, host: HostId, limit: u32) -> Result<Vec<HostVerdict>, StoreError> {
    let rows = app.store.verdict_list(host, None, i64::from(limit)).await?;
    Ok(rows.iter().map(|row| verdict(host, row, Sight::Itself)).collect())
}

/// A verdict, as its verifier wrote it down.
#[derive(Deserialize)]
struct Reached {
    #[serde(flatten)]
    ruling: Ruling,
    rules: Option<Digest>,
    #[serde(default)]
    holders: Vec<DeviceHolder>,
}

fn verdict(host: HostId, row: &VerdictRow, sight: Sight) -> HostVerdict {
    let decided = row.verdict.as_ref();
    let code = row.code.clone().unwrap_or_default();
    let appeal = row.appeal.as_ref().map(|(at, came)| Appeal {
        at: *at,
        ruling: came.as_ref().and_then(|came| ruling(came, row.kind, sight)),
    });
    let mut verdict = HostVerdict {
        challenge: row.challenge,
        host,
        kind: row.kind,
        cause: row.cause,
        shadow: row.shadow,
        beside_job: row.lease.is_some(),
        drawn_at: row.drawn_at,
        decided_at: decided.map_or(row.drawn_at, |(_, at)| *at),
        code,
        ruling: decided.and_then(|(verdict, _)| ruling(verdict, row.kind, sight)),
        classes: classes(row),
        opening: opening_state(row),
        appeal,
        ban: row.ban.as_ref().map(|ban| VerdictBan {
            span_ms: ban.span,
            is_over: ban.is_over,
            lifted_by: ban.lifted_by.clone(),
        }),
        actions: Vec::new(),
    };
    let can_appeal =
        verdict.is_failure() && !row.shadow && row.appeal.is_none() && row.forgotten_at.is_none();
    verdict.actions.extend(can_appeal.then(|| "appeal".to_owned()));
    verdict
}

fn ruling(value: &Value, kind: Kind, sight: Sight) -> Option<Ruling> {
    match (read::<Reached>(value.clone())?.ruling, kind, sight) {
        (Ruling::Passed(_), Kind::Software, Sight::Everyone) => Some(Ruling::Passed(None)),
        (ruling, _, _) => Some(ruling),
    }
}

/// The classes of the GPUs that were tested, as they are known by now.
fn classes(row: &VerdictRow) -> BTreeMap<String, String> {
    let Some(Task::Devices(task)) = test(row).map(|test| test.task) else { return BTreeMap::new() };
    let classes = task.devices.into_iter().filter_map(|device| {
        let class = row.devices.get(&device.uuid)?.class.clone()?;
        Some((device.uuid, class))
    });
    classes.collect()
}

fn opening_state(row: &VerdictRow) -> OpeningState {
    let came = row.exchanges.iter().any(|exchange| exchange.is_inline || exchange.blob.is_some());
    match (came, row.forgotten_at) {
        (true, None) if row.kind == Kind::Software => OpeningState::Withheld,
        (true, None) => OpeningState::Kept,
        (_, Some(_)) => OpeningState::Forgotten,
        (false, None) => OpeningState::Absent,
    }
}

/// The challenge with the nonces that were revealed.
fn test(row: &VerdictRow) -> Option<Challenge> {
    let test: Challenge = read(row.body.clone())?;
    let reveals = row.exchanges.iter().skip(1).map(|exchange| exchange.reveal.as_ref()?.parse().ok());
    let reveals: Vec<Nonce> = reveals.collect::<Option<_>>()?;
    Some(Challenge { reveals, ..test })
}

fn exchange(row: &ExchangeRow) -> Exchange {
    Exchange {
        sent_at: row.sent_at,
        answered_at: row.answered_at,
        commitment: row.commitment.as_ref().and_then(|text| text.parse().ok()),
        gave_up: row.gave_up.clone().and_then(read),
    }
}

/// What another version has written may not be readable by this one.
fn read<T: DeserializeOwned>(value: Value) -> Option<T> {
    serde_json::from_value(value).ok()
}
