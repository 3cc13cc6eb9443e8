//! Output of jobs: a page of it, or all of it as it comes.

use std::{collections::VecDeque, convert::Infallible, time::Duration};

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures_util::stream;
use nave_domain::{CustomerId, JobId, Timestamp};
use nave_sdk::wire::rest::{Job, Logs};
use nave_store::Changes;
use serde::Deserialize;

use crate::{
    app::App,
    caller::{Caller, JobsRead},
    error::ApiError,
    extract::{Path, Query},
    logs::{Cursor, Joiner, Piece},
    routes::jobs::LOOK_AGAIN,
    turns::Turn,
    view,
};

/// Most pieces read from the database at once.
const READ_PIECES: i64 = 500;
/// A page ends with the piece that reaches this many bytes of text.
const PAGE_BYTES: usize = 1 << 20;
/// A page ends with the piece that reaches this number.
const PAGE_PIECES: usize = 2_000;
/// Time between comments on a quiet stream, so that nobody in between takes it for dead.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Which part of a log to read.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct LogsQuery {
    /// `cursor` of the answer before.
    after: Option<String>,
    /// Only the newest so many pieces.
    tail: Option<u32>,
    /// Only what came from then on, as RFC 3339 writes it.
    #[param(value_type = Option<String>, format = DateTime)]
    since: Option<Timestamp>,
    /// Stay and send what comes as server-sent events.
    #[serde(default)]
    #[param(value_type = Option<bool>)]
    follow: bool,
}

/// The log of a job: what there is, or with `follow=true` as it comes.
///
/// A followed log is a stream of `event: log`, each with a `LogLine` as data and a cursor as id
/// for `Last-Event-ID`, and ends with `event: end` and the `Job`.
#[utoipa::path(get, path = "/v1/jobs/{job}/logs", tag = "jobs", operation_id = "jobs_logs",
    params(("job" = String, Path, description = "The job's id"), LogsQuery,
        ("Last-Event-ID" = Option<String>, Header, description = "Where a broken stream goes on; replaces after, tail and since")),
    security(("key" = ["jobs:read"])),
    responses((status = 200, description = "Pieces of output, in the order they came",
        content((Logs = "application/json"), (String = "text/event-stream")))))]
pub(crate) async fn read(
    State(app): State<App>,
    caller: Caller<JobsRead>,
    Path(job): Path<JobId>,
    Query(query): Query<LogsQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    // Whose job it is comes first; only then its output is touched.
    app.store.job_get(caller.customer, job).await?;
    let cursor = match headers.get("last-event-id").filter(|_| query.follow) {
        Some(id) => parse("Last-Event-ID", id.to_str().unwrap_or_default())?,
        None => begin(&app, job, &query).await?,
    };
    let joiner = Joiner::resume(cursor, app.store.log_tails(job, cursor.chunk).await?);
    let reader = Reader { app, customer: caller.customer, job, joiner };
    if !query.follow {
        return Ok(Json(reader.page().await?).into_response());
    }
    let turn = reader.app.turns.take(caller.customer)?;
    Ok(follow(reader, turn))
}

fn parse(what: &str, text: &str) -> Result<Cursor, ApiError> {
    text.parse().map_err(|problem| {
        ApiError::new(StatusCode::BAD_REQUEST, "cursor_invalid", format!("{what}: {problem}"))
            .suggest("pass a cursor as it was given out, or none to begin at the start")
    })
}

/// The latest of the places that the query names.
async fn begin(app: &App, job: JobId, query: &LogsQuery) -> Result<Cursor, ApiError> {
    let mut cursor = match &query.after {
        Some(after) => parse("after", after)?,
        None => Cursor::default(),
    };
    if let Some(since) = query.since {
        cursor = later(cursor, app.store.log_since(job, since).await?);
    }
    if let Some(tail) = query.tail {
        cursor = later(cursor, app.store.log_tail(job, tail).await?);
    }
    Ok(cursor)
}

fn later(cursor: Cursor, chunk: i64) -> Cursor {
    if chunk > cursor.chunk { Cursor::after(chunk) } else { cursor }
}

/// Reads one job's output on from where it stands.
struct Reader {
    app: App,
    customer: CustomerId,
    job: JobId,
    joiner: Joiner,
}

/// What one look at the log found.
enum Found {
    /// More output, though perhaps no whole character of it.
    Output(Vec<Piece>),
    /// None yet.
    Nothing,
    /// No more will come; the last of it, and the final job.
    End(Vec<Piece>, Box<Job>),
}

impl Reader {
    /// Looks once. The job's state is read first: when it was final then, what follows in
    /// the log is all there will ever be.
    async fn look(&mut self) -> Result<Found, ApiError> {
        let row = self.app.store.job_get(self.customer, self.job).await?;
        let chunks = self.app.store.log_read(self.job, self.joiner.cursor().chunk, READ_PIECES).await?;
        if !chunks.is_empty() {
            return Ok(Found::Output(chunks.into_iter().flat_map(|chunk| self.joiner.push(chunk)).collect()));
        }
        if !row.state.is_final() {
            return Ok(Found::Nothing);
        }
        let job = view::load_job(&self.app, row).await?;
        Ok(Found::End(self.joiner.flush(), Box::new(job)))
    }

    /// As much as one answer may hold.
    async fn page(mut self) -> Result<Logs, ApiError> {
        let (mut lines, mut bytes, mut complete) = (Vec::new(), 0, false);
        while bytes < PAGE_BYTES && lines.len() < PAGE_PIECES && !complete {
            let found = match self.look().await? {
                Found::Output(found) => found,
                Found::Nothing => break,
                Found::End(found, _) => {
                    complete = true;
                    found
                }
            };
            bytes += found.iter().map(|piece| piece.line.text.len()).sum::<usize>();
            lines.extend(found.into_iter().map(|piece| piece.line));
        }
        Ok(Logs { lines, cursor: self.joiner.cursor().to_string(), complete })
    }
}

/// A log that is followed.
struct Follow {
    reader: Reader,
    ready: VecDeque<Event>,
    ended: bool,
    _turn: Turn,
}

fn follow(reader: Reader, turn: Turn) -> Response {
    let follow = Follow { reader, _turn: turn, ready: VecDeque::new(), ended: false };
    let events = stream::unfold(follow, |mut follow| async move {
        let event = follow.next().await?;
        Some((Ok::<_, Infallible>(event), follow))
    });
    // Proxies that collect an answer before they pass it on would defeat the purpose.
    let headers = [("x-accel-buffering", "no")];
    (headers, Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE))).into_response()
}

impl Follow {
    /// The next event. `None` after the end, and when the stream must break off, which its
    /// reader notices by the missing `end` and goes on elsewhere.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.ended || self.reader.app.is_stopping() {
                return None;
            }
            let watch = self.reader.app.watch();
            match self.reader.look().await.inspect_err(ApiError::log).ok()? {
                Found::Output(pieces) => self.ready.extend(pieces.iter().map(line)),
                Found::Nothing => watch.changed(Changes::Job(self.reader.job), LOOK_AGAIN).await,
                Found::End(pieces, job) => {
                    self.ready.extend(pieces.iter().map(line));
                    self.ready.push_back(Event::default().event("end").data(json(&*job)));
                    self.ended = true;
                }
            }
        }
    }
}

fn line(piece: &Piece) -> Event {
    Event::default().event("log").id(piece.cursor.to_string()).data(json(&piece.line))
}

fn json(value: &impl serde::Serialize) -> String {
    // Wire types have text keys only, so they can always be written.
    serde_json::to_string(value).unwrap_or_default()
}
