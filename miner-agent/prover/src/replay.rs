//! A host that answers with an older proof: what simulated devices do whose file says so.

use std::{
    fs,
    path::{Path, PathBuf},
};

use nave_proof::Challenge;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What was answered to a challenge, step by step.
#[derive(Debug, Serialize, Deserialize)]
struct Answers {
    challenge: String,
    messages: Vec<Value>,
}

/// What was answered to the first challenge that was seen.
#[derive(Debug)]
pub struct Replay {
    file: PathBuf,
    answers: Answers,
}

impl Replay {
    /// The answers beside the file of the simulated devices.
    pub fn beside(devices: &Path, challenge: &Challenge) -> Self {
        let mut file = devices.as_os_str().to_owned();
        file.push(".answers");
        let file = PathBuf::from(file);
        let kept = fs::read(&file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let new = || Answers { challenge: challenge.challenge.to_string(), messages: Vec::new() };
        Self { answers: kept.unwrap_or_else(new), file }
    }

    /// The answer to this step, where an earlier challenge had one.
    pub fn answer(&self, challenge: &Challenge) -> Option<Value> {
        let is_later = self.answers.challenge != challenge.challenge.to_string();
        self.answers.messages.get(challenge.step()).filter(|_| is_later).cloned()
    }

    /// Keeps what is answered to a step, where this is the first challenge.
    pub fn keep(&mut self, challenge: &Challenge, message: &Value) {
        let is_first = self.answers.challenge == challenge.challenge.to_string();
        if !is_first || self.answers.messages.len() != challenge.step() {
            return;
        }
        self.answers.messages.push(message.clone());
        let written = serde_json::to_vec(&self.answers).map_err(std::io::Error::other);
        if let Err(error) = written.and_then(|bytes| fs::write(&self.file, bytes)) {
            eprintln!("write {}: {error}", self.file.display());
        }
    }
}
