//! A log followed across disconnects.

use std::{collections::VecDeque, time::Duration};

use nave_domain::JobId;
use reqwest::Response;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::{
    Client, LogsQuery,
    call::Call,
    chunk,
    error::{self, Error, Repeat},
    retry::Tries,
    sse,
};
use crate::wire::rest::{Job, LogLine};

/// A connection that lasted this long counts as one that worked.
const LASTING: Duration = Duration::from_secs(5);

/// What a followed log tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogEvent {
    /// The job wrote something.
    Line(LogLine),
    /// The job is final; nothing follows.
    End(Box<Job>),
}

/// A log as it is written. Reconnects by itself and continues after the last
/// event it has handed out.
#[derive(Debug)]
pub struct Follow {
    client: Client,
    job: JobId,
    query: LogsQuery,
    last_id: Option<String>,
    connection: Option<Connection>,
    parsed: VecDeque<sse::Event>,
    tries: Tries,
    ended: bool,
}

#[derive(Debug)]
struct Connection {
    response: Response,
    parser: sse::Parser,
    since: Instant,
}

impl Follow {
    pub(super) fn new(client: Client, job: JobId, query: LogsQuery) -> Self {
        let tries = Tries::new(client.patience);
        Self {
            client,
            job,
            query,
            last_id: None,
            connection: None,
            parsed: VecDeque::new(),
            tries,
            ended: false,
        }
    }

    /// The next event; `None` after [`LogEvent::End`].
    ///
    /// # Errors
    /// [`Error`], when the API refuses or stays away for longer than the client's patience.
    pub async fn next(&mut self) -> Result<Option<LogEvent>, Error> {
        while !self.ended {
            if let Some(event) = self.parsed.pop_front() {
                if let Some(event) = self.understand(event)? {
                    return Ok(Some(event));
                }
                continue;
            }
            if let Err(error) = self.read().await {
                self.connection = None;
                self.client.pause(&mut self.tries, error, Repeat::Safe).await?;
            }
        }
        Ok(None)
    }

    fn understand(&mut self, event: sse::Event) -> Result<Option<LogEvent>, Error> {
        let understood = match event.event.as_str() {
            "log" => Some(LogEvent::Line(self.decode(&event.data)?)),
            "end" => {
                self.ended = true;
                Some(LogEvent::End(self.decode(&event.data)?))
            }
            _ => None,
        };
        if event.id.is_some() {
            self.last_id = event.id;
        }
        Ok(understood)
    }

    fn decode<T: DeserializeOwned>(&self, data: &str) -> Result<T, Error> {
        serde_json::from_str(data).map_err(|error| self.malformed(error.to_string()))
    }

    fn malformed(&self, detail: String) -> Error {
        Error::Malformed { url: format!("the log of {}", self.job), detail }
    }

    /// Reads one piece of the stream, connecting first where necessary.
    async fn read(&mut self) -> Result<(), Error> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        let url = connection.response.url().clone();
        let piece = chunk(&mut connection.response).await;
        if matches!(piece, Ok(Some(_))) || connection.since.elapsed() > LASTING {
            self.tries = Tries::new(self.client.patience);
        }
        let Some(bytes) = piece? else {
            return Err(Error::Broken { url: error::place(&url), source: None });
        };
        let events = connection.parser.push(&bytes).map_err(|error| self.malformed(error.to_string()))?;
        self.parsed.extend(events);
        self.connection = Some(connection);
        Ok(())
    }

    async fn connect(&self) -> Result<Connection, Error> {
        let mut call = Call::get(&[&"jobs", &self.job, &"logs"]).query("follow", Some(true)).streamed();
        call = match &self.last_id {
            // The id says where to go on; what was asked at first has been delivered.
            Some(id) => call.header("last-event-id", id),
            None => self.query.apply(call),
        };
        let response = self.client.open_once(&call.header("accept", "text/event-stream")).await?;
        Ok(Connection { response, parser: sse::Parser::default(), since: Instant::now() })
    }
}
