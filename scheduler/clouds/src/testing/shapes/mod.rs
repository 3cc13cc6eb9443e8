//! What each cloud's calls and answers look like, from the cloud's side.

mod hyperstack;
mod lambda;
mod massed;
mod runpod;
mod shadeform;
mod vast;
mod verda;

use nave_domain::{MicroUsd, Timestamp};
use serde_json::{Value, json};

use super::{
    KEY,
    site::{Fault, Real, Shown, Site},
};
use crate::{http::Reply, provider::Cloud, secret::Secret};

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// A session.
    Session,
    /// What is offered; some clouds tell it in parts.
    Offers(&'static str),
    /// A launch.
    Launch {
        /// Under which name.
        name: String,
        /// What boots.
        script: String,
        /// When the cloud is to delete it.
        dead_man: Option<Timestamp>,
    },
    /// One machine.
    Get(Option<u64>),
    /// All machines, or a page of them.
    List(String),
    /// To delete a machine.
    Delete(Option<u64>),
    /// Something that has no effect here.
    Other,
}

impl Asked {
    /// The points around it, for whoever asks.
    #[must_use]
    pub fn around(&self) -> [&'static str; 2] {
        match self {
            Self::Session => ["before a session", "after a session"],
            Self::Offers(_) => ["before offers", "after offers"],
            Self::Launch { .. } => ["before a launch", "after a launch"],
            Self::Get(_) => ["before a look", "after a look"],
            Self::List(_) => ["before a list", "after a list"],
            Self::Delete(_) => ["before a return", "after a return"],
            Self::Other => ["before a script", "after a script"],
        }
    }
}

/// A cloud's shapes.
pub trait Shape: Send {
    /// What a request asks for.
    fn read(&self, method: &str, path: &str, body: &Value) -> Option<Asked>;

    /// Whether a request is from somebody it knows.
    fn knows(&self, auth: Option<&(&'static str, Secret)>, site: &mut Site) -> bool;

    /// What is offered.
    fn offers(&self, site: &Site, part: &str) -> Reply;

    /// That it was launched.
    fn launched(&self, real: &Real) -> Reply;

    /// One machine, or none.
    fn one(&self, shown: Option<(&Real, Shown)>) -> Reply;

    /// All machines, or the page that was asked for.
    fn list(&self, shown: &[(&Real, Shown)], page: &str) -> Reply;

    /// That it will be deleted.
    fn deleted(&self) -> Reply;

    /// That it cannot be.
    fn fault(&self, fault: Fault) -> Reply;

    /// A session.
    fn session(&self) -> Reply {
        super::wire::reply(200, "{}")
    }

    /// What else it is asked.
    fn other(&self) -> Reply {
        super::wire::reply(200, "{}")
    }
}

/// The shapes of a cloud.
pub fn shape_of(cloud: Cloud) -> Box<dyn Shape> {
    match cloud {
        Cloud::Shadeform => Box::new(shadeform::Shadeform),
        Cloud::Massed => Box::new(massed::Massed),
        Cloud::Hyperstack => Box::new(hyperstack::Hyperstack),
        Cloud::Lambda => Box::new(lambda::Lambda),
        Cloud::Runpod => Box::new(runpod::Runpod),
        Cloud::Vast => Box::new(vast::Vast),
        Cloud::Verda => Box::new(verda::Verda),
        Cloud::Local => unreachable!("the local cloud is a directory, and nobody answers for it"),
    }
}

/// Whether a header carries the key, after a prefix.
fn carries(auth: Option<&(&'static str, Secret)>, header: &str, prefix: &str) -> bool {
    auth.is_some_and(|(name, value)| *name == header && value.reveal().strip_prefix(prefix) == Some(KEY))
}

/// A text of a request.
fn text(body: &Value, pointer: &str) -> String {
    body.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// The number in an id such as `m-7`.
fn number(id: &str, prefix: &str) -> Option<u64> {
    id.strip_prefix(prefix)?.parse().ok()
}

/// Micro-USD as cents.
fn cents(price: MicroUsd) -> i64 {
    price.0 / 10_000
}

/// Micro-USD as a decimal text.
fn decimal(price: MicroUsd) -> String {
    format!("{}.{:06}", price.0 / 1_000_000, price.0 % 1_000_000)
}

/// Micro-USD as a JSON number with a fraction.
fn float(price: MicroUsd) -> Value {
    serde_json::from_str(&decimal(price)).unwrap_or(json!(0))
}
