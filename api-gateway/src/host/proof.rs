//! Answers of hosts to their challenges.

use nave_domain::HostId;
use nave_sdk::wire::proof::{EXPLANATION_MAX, Failure, Message, OPENING_MAX, Opening, ProofReport};

use super::effects::bounded;
use crate::{app::App, error::ApiError};

/// Takes an answer, if it is complete. A host repeats its answer until its spec shows what
/// follows, so one whose bytes are still to come counts when they are there.
pub(super) async fn take(app: &App, host: HostId, proof: ProofReport) -> Result<(), ApiError> {
    let ProofReport { challenge, step, message } = proof;
    if !is_complete(app, &message).await? {
        tracing::debug!(host.id = %host, challenge.id = %challenge, "the opening that an answer names is not there");
        return Ok(());
    }
    let answer = serde_json::to_value(fit(message)).map_err(|error| ApiError::internal(error.to_string()))?;
    app.store.challenge_answer(host, challenge, step, &answer).await?;
    Ok(())
}

async fn is_complete(app: &App, message: &Message) -> Result<bool, ApiError> {
    match message {
        Message::Opening(Opening::Blob { sha256, size }) => {
            let stored = app.store.blob_size(&sha256.0).await?;
            let is_sane = usize::try_from(*size).is_ok_and(|size| size <= OPENING_MAX);
            Ok(is_sane && stored == Some(*size))
        }
        Message::Opening(Opening::Inline(_)) | Message::Commitment(_) | Message::Failed(_) => Ok(true),
    }
}

/// An answer that is short enough to keep and that Postgres can store.
fn fit(message: Message) -> Message {
    match message {
        Message::Failed(Failure { code, message }) => {
            Message::Failed(Failure { code, message: bounded(&message, EXPLANATION_MAX) })
        }
        Message::Commitment(_) | Message::Opening(_) => message,
    }
}
