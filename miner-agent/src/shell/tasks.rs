//! Carries out one action for one lease.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use nave_crash_point::crash_point;
use nave_domain::LeaseId;
use nave_sdk::wire::host::{Exit, Order, ResultRef, Stream};

use super::forward;
use crate::{
    archive::Archive,
    backoff::Backoff,
    core::{self, Action, Ending, Finished},
    endpoint::{CallError, ControlPlane},
    runtime::{Runtime, StartError},
};

/// Pause after a failure before the core may decide the same again.
const PAUSE: Duration = Duration::from_secs(1);
/// How often reading the result files is tried, and how often a result that is
/// refused is sent: it may have been damaged on its way.
const TRIES: usize = 3;

/// What came of an action.
#[derive(Debug)]
pub(super) enum Outcome {
    Started,
    Finished(Finished),
    Stopped,
    Removed,
    /// It did not work; the core decides anew.
    Failed,
}

/// One lease and what acts on it.
pub(super) struct Work {
    pub(super) lease: LeaseId,
    pub(super) runtime: Arc<Runtime>,
    pub(super) plane: Arc<ControlPlane>,
}

impl Work {
    pub(super) async fn run(&self, action: Action) -> Outcome {
        match action {
            Action::Start(order) => self.start(&order).await,
            Action::Stop(why) => self.stop(why).await,
            Action::Drain(exit) => self.drain(exit).await,
            Action::Remove => self.settle(self.runtime.remove(self.lease).await, Outcome::Removed).await,
        }
    }

    async fn start(&self, order: &Order) -> Outcome {
        tracing::info!(job.id = %order.job, attempt = order.attempt, "starting");
        let exit = match self.runtime.start(self.lease, order).await {
            Ok(()) => {
                crash_point!("agent.start.before_note");
                return Outcome::Started;
            }
            Err(StartError::Host(detail)) => {
                tracing::info!(job.id = %order.job, detail, "could not start");
                core::start_failed(&detail)
            }
            Err(StartError::Command { code, said }) => {
                self.explain(&said).await;
                Exit::Code { code }
            }
        };
        Outcome::Finished(Finished { exit, result: None })
    }

    /// Tells the customer why the command could not be executed, where the
    /// command itself would have written.
    async fn explain(&self, said: &str) {
        let line = Bytes::from(format!("nave: {said}\n"));
        let mut backoff = Backoff::default();
        while let Err(CallError::Away(_)) = self.plane.log(self.lease, Stream::Stderr, 0, line.clone()).await
        {
            backoff.wait().await;
        }
    }

    async fn stop(&self, why: Ending) -> Outcome {
        tracing::info!(reason = why.word(), "stopping");
        self.settle(self.runtime.stop(self.lease, why.grace()).await, Outcome::Stopped).await
    }

    async fn drain(&self, exit: Exit) -> Outcome {
        forward::finish(&self.plane, &self.runtime, self.lease).await;
        let result = match self.collect().await {
            Some(archive) => self.upload(&archive).await,
            None => None,
        };
        Outcome::Finished(Finished { exit, result })
    }

    async fn collect(&self) -> Option<Archive> {
        for _ in 0..TRIES {
            match self.runtime.collect(self.lease).await {
                Ok(archive) => return archive,
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), "the result files cannot be read");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        None
    }

    async fn upload(&self, archive: &Archive) -> Option<ResultRef> {
        crash_point!("agent.result.before_upload");
        let mut backoff = Backoff::default();
        let mut refusals = 0;
        while refusals < TRIES {
            match self.plane.blob(&archive.path, &archive.result).await {
                Ok(()) => {
                    crash_point!("agent.result.after_upload");
                    return Some(archive.result.clone());
                }
                Err(CallError::Away(reason)) => {
                    tracing::info!(reason = format!("{reason:#}"), "the result waits");
                }
                Err(error @ (CallError::Refused { .. } | CallError::Unknown)) => {
                    tracing::warn!(%error, "the result is not taken");
                    refusals += 1;
                }
            }
            backoff.wait().await;
        }
        None
    }

    async fn settle(&self, done: anyhow::Result<()>, outcome: Outcome) -> Outcome {
        match done {
            Ok(()) => outcome,
            Err(error) => {
                tracing::info!(reason = format!("{error:#}"), "did not work; looking again");
                tokio::time::sleep(PAUSE).await;
                Outcome::Failed
            }
        }
    }
}
