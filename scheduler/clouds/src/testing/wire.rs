//! A double as a transport, and what every double does alike.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nave_domain::{Millis, Timestamp};
use serde_json::Value;

use super::{
    Fuse,
    shapes::{Asked, Shape, shape_of},
    site::{Fault, Site},
};
use crate::{
    http::{Broken, Reply, Request, Sent, Transport},
    provider::Owner,
};

/// The key that doubles know.
pub const KEY: &str = "key-0123456789";
/// How long a caller waits for an answer that does not come.
const PATIENCE: Millis = Millis(60_000);

/// A cloud with its shapes.
pub struct Double {
    /// The truth.
    pub site: Site,
    /// Whose machines may be deleted.
    pub owner: Owner,
    /// Requests that it has seen, as method and URL.
    pub seen: Vec<String>,
    shape: Box<dyn Shape>,
}

impl Double {
    /// The double of a site's cloud.
    #[must_use]
    pub fn new(site: Site, owner: Owner) -> Self {
        let shape = shape_of(site.cloud);
        Self { site, owner, seen: Vec::new(), shape }
    }

    /// What the cloud answers, and what it does.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn answer(&mut self, request: &Request) -> Result<Reply, Broken> {
        let asked = self.asked(request);
        self.answer_to(request, asked)
    }

    /// What a request asks for; none when it is no call of this cloud.
    fn asked(&self, request: &Request) -> Option<Asked> {
        let body = request.body.as_ref().and_then(|body| serde_json::from_str::<Value>(body.reveal()).ok());
        self.shape.read(request.method.as_str(), path_of(&request.url), &body.unwrap_or(Value::Null))
    }

    fn answer_to(&mut self, request: &Request, asked: Option<Asked>) -> Result<Reply, Broken> {
        let (until, since) = self.site.takes();
        self.site.pass(until);
        self.site.move_price();
        self.seen.push(format!("{} {}", request.method, request.url));
        let answer = self.deed(request, asked);
        self.site.pass(since);
        answer
    }

    fn deed(&mut self, request: &Request, asked: Option<Asked>) -> Result<Reply, Broken> {
        let Some(asked) = asked else {
            let what = format!("{} {} is no call of this cloud", request.method, path_of(&request.url));
            self.site.wrongs.push(what);
            return Ok(self.shape.fault(Fault::NotFound));
        };
        if asked != Asked::Session && !self.shape.knows(request.auth.as_ref(), &mut self.site) {
            self.site.give(Fault::Unauthorised.name());
            return Ok(self.shape.fault(Fault::Unauthorised));
        }
        let fault = self.site.draw(matches!(asked, Asked::Launch { .. }));
        match fault {
            None => Ok(self.act(asked)),
            Some((fault, has_effect)) => self.fail(asked, fault, has_effect),
        }
    }

    fn fail(&mut self, asked: Asked, fault: Fault, has_effect: bool) -> Result<Reply, Broken> {
        // Whatever the transport makes of it: an answer of a deed is not seen.
        let is_unseen = matches!(fault, Fault::Silent | Fault::Failed | Fault::Garbled);
        if is_unseen && has_effect {
            self.act(asked.clone());
            if matches!(asked, Asked::Launch { .. }) {
                self.site.give("made_unanswered");
            }
        }
        match fault {
            Fault::Silent => {
                self.site.pass(PATIENCE);
                Err(if has_effect || self.site.numbers().permille(700) {
                    Broken::Unknown
                } else {
                    Broken::NotSent
                })
            }
            Fault::Garbled => Ok(reply(200, "<html>{\"oops\":")),
            Fault::RateLimited => {
                let (least, most) = self.site.pause;
                let seconds = self.site.numbers().between(least, most);
                Ok(Reply { retry_after: Some(Millis(seconds * 1_000)), ..self.shape.fault(fault) })
            }
            Fault::Dearer => {
                self.site.price.0 *= 2;
                Ok(self.act(asked))
            }
            Fault::Failed
            | Fault::OutOfStock
            | Fault::Quota
            | Fault::NoBalance
            | Fault::Provisioning
            | Fault::NotFound
            | Fault::Unauthorised => Ok(self.shape.fault(fault)),
        }
    }

    fn act(&mut self, asked: Asked) -> Reply {
        let (site, shape) = (&mut self.site, &self.shape);
        match asked {
            Asked::Session => shape.session(),
            Asked::Other => shape.other(),
            Asked::Offers(part) => shape.offers(site, part),
            Asked::Launch { name, script, dead_man } => {
                *site.launches.entry(name.clone()).or_insert(0) += 1;
                if !script.contains("shutdown -P +") || !script.contains("join") {
                    site.wrongs.push(format!("{name} was launched without its script"));
                }
                let real = site.launch(&name, dead_man);
                shape.launched(&real)
            }
            Asked::Get(number) => {
                let real = number.and_then(|number| site.machines.get(&number));
                let shown = real.and_then(|real| Some((real, site.shown(real, false)?)));
                shape.one(shown)
            }
            Asked::List(page) => {
                let shown: Vec<_> =
                    site.machines.values().filter_map(|real| Some((real, site.shown(real, true)?))).collect();
                shape.list(&shown, &page)
            }
            Asked::Delete(number) => {
                let owner = self.owner.clone();
                let deleted = site.delete(number.unwrap_or(0), &|name| owner.reads(name).is_some());
                deleted.map_or_else(|fault| shape.fault(fault), |()| shape.deleted())
            }
        }
    }
}

/// The path and query of a URL.
fn path_of(url: &str) -> &str {
    let after = url.split_once("://").map_or(url, |(_, rest)| rest);
    after.find('/').map_or("/", |at| &after[at..])
}

/// An answer.
pub(super) fn reply(status: u16, body: impl ToString) -> Reply {
    Reply { status, retry_after: None, body: body.to_string().into_bytes() }
}

/// The way of one process to a double: it may be killed before the cloud hears of it, and after.
#[derive(Clone)]
pub struct Wire {
    /// The cloud.
    pub double: Arc<Mutex<Double>>,
    /// Where the process is killed.
    pub fuse: Arc<Fuse>,
}

impl Wire {
    /// The cloud.
    pub fn double(&self) -> MutexGuard<'_, Double> {
        self.double.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its time.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.double().site.now
    }
}

impl Transport for Wire {
    fn send(&self, request: Request) -> Sent<'_> {
        Box::pin(async move {
            let asked = self.double().asked(&request);
            let [before, after] = asked.as_ref().map_or(["before no call", "after no call"], Asked::around);
            self.fuse.point(before).await;
            let answer = self.double().answer_to(&request, asked);
            self.fuse.point(after).await;
            answer
        })
    }
}
