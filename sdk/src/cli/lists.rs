//! Commands that ask once and show the answer.

use std::io::{self, IsTerminal as _, Write as _};

use nave_domain::{JobId, KeyId};
use nave_sdk::{
    client::{Client, JobsQuery, OffersQuery},
    wire::rest::KeyRequest,
};
use serde::Serialize;

use super::{
    Context,
    args::{Epochs, KeyCreate, Keys, Ps},
    failure::{Failure, exit},
    output::{self, now},
    receipt, run, settlement, show, table,
    wishes::OffersArgs,
};

/// Prints `value` as JSON, or as `text` makes it readable.
///
/// # Errors
/// As [`output::print`].
pub fn answer<T: Serialize>(cx: &Context, value: &T, text: impl FnOnce(&T) -> String) -> Result<(), Failure> {
    if cx.global.json { output::print_json(value) } else { output::print(&text(value)) }
}

/// `nave ps`.
pub async fn ps(cx: &Context, ps: Ps) -> Result<(), Failure> {
    let query = JobsQuery { limit: Some(ps.limit), before: ps.before, state: ps.state };
    let page = cx.client()?.jobs(&query).await.map_err(Failure::when("list jobs"))?;
    answer(cx, &page, |page| show::jobs(&page.items, now()))?;
    if let Some(cursor) = page.next.filter(|_| output::is_watched()) {
        output::say(&format!("there are older ones: nave ps --before {cursor}, or a larger --limit"));
    }
    Ok(())
}

/// `nave hosts`.
pub async fn hosts(cx: &Context) -> Result<(), Failure> {
    let hosts = cx.client()?.hosts().await.map_err(Failure::when("list hosts"))?;
    answer(cx, &hosts, |hosts| show::hosts(hosts, now()))
}

/// `nave offers`.
pub async fn offers(cx: &Context, args: &OffersArgs) -> Result<(), Failure> {
    let query = args.query().map_err(|error| run::usage(&error))?;
    let offers = cx.client()?.offers(&query).await.map_err(Failure::when("list offers"))?;
    let is_filtered = query != OffersQuery::default();
    answer(cx, &offers, |offers| show::offers(offers, is_filtered))
}

/// `nave classes`.
pub async fn classes(cx: &Context) -> Result<(), Failure> {
    let classes = cx.client()?.classes().await.map_err(Failure::when("list classes"))?;
    answer(cx, &classes, |classes| show::classes(classes))
}

/// `nave balance`.
pub async fn balance(cx: &Context) -> Result<(), Failure> {
    let balance = cx.client()?.balance().await.map_err(Failure::when("show the balance"))?;
    answer(cx, &balance, show::balance)
}

/// `nave receipt`.
pub async fn receipt(cx: &Context, job: Option<JobId>) -> Result<(), Failure> {
    let client = cx.client()?;
    let job = match job {
        Some(job) => job,
        None => newest(&client).await?,
    };
    let attempted = format!("show the receipt of {job}");
    let receipt = client.receipt(job).await.map_err(Failure::when(&attempted))?;
    answer(cx, &receipt, receipt::receipt)
}

async fn newest(client: &Client) -> Result<JobId, Failure> {
    let attempted = "find the newest job";
    let query = JobsQuery { limit: Some(1), ..JobsQuery::default() };
    let page = client.jobs(&query).await.map_err(Failure::when(attempted))?;
    let none = || Failure::local(attempted, "there is no job yet", "nave run").exiting(exit::NOT_FOUND);
    page.items.first().map(|job| job.job).ok_or_else(none)
}

/// `nave epoch`.
pub async fn epoch(cx: &Context, command: Epochs) -> Result<(), Failure> {
    match command {
        Epochs::List(list) => {
            let epochs = cx.client()?.epochs(Some(list.limit)).await.map_err(Failure::when("list epochs"))?;
            answer(cx, &epochs, |epochs| show::epochs(epochs))
        }
        Epochs::Show(one) => epoch_show(cx, one.epoch).await,
        Epochs::Evidence(args) => settlement::evidence(cx, args).await,
    }
}

async fn epoch_show(cx: &Context, number: Option<i64>) -> Result<(), Failure> {
    let client = cx.client()?;
    let epoch = match number {
        Some(number) => client.epoch(number).await.map_err(Failure::when(&format!("show epoch {number}")))?,
        None => {
            let newest = client.epochs(Some(1)).await.map_err(Failure::when("show the newest epoch"))?;
            let none =
                || Failure::local("show the newest epoch", "there is no epoch yet", "wait for the first");
            newest.into_iter().next().ok_or_else(none)?
        }
    };
    answer(cx, &epoch, show::epoch)
}

/// `nave keys`.
pub async fn keys(cx: &Context, command: Keys) -> Result<(), Failure> {
    match command {
        Keys::List => {
            let keys = cx.client()?.keys().await.map_err(Failure::when("list API keys"))?;
            answer(cx, &keys, |keys| show::keys(keys, now()))
        }
        Keys::Create(wish) => key_create(cx, wish).await,
        Keys::Revoke(which) => key_revoke(cx, which.key).await,
    }
}

async fn key_create(cx: &Context, wish: KeyCreate) -> Result<(), Failure> {
    let request = KeyRequest { label: wish.label, scopes: wish.scopes };
    let made = cx.client()?.key_create(&request).await.map_err(Failure::when("make an API key"))?;
    answer(cx, &made, |made| format!("{}\n", made.token))?;
    if !cx.global.json {
        let scopes = table::clean(&made.key.scopes.join(" "));
        output::say(&format!("{} may {scopes}; its token is shown this once", made.key.key));
    }
    Ok(())
}

async fn key_revoke(cx: &Context, key: KeyId) -> Result<(), Failure> {
    let attempted = format!("revoke {key}");
    if !cx.global.yes {
        confirm(&attempted, "")?;
    }
    cx.client()?.key_revoke(key).await.map_err(Failure::when(&attempted))?;
    if cx.global.json {
        return output::print_json(&serde_json::json!({ "revoked": key }));
    }
    output::print(&format!("{key} is revoked\n"))
}

/// Asks a person; where there is none, nothing irreversible happens without `-y`.
pub fn confirm(attempted: &str, warning: &str) -> Result<(), Failure> {
    let refused = |detail: &str| Failure::local(attempted, detail, "give -y to do it without a question");
    if !io::stdin().is_terminal() {
        return Err(refused("it cannot be undone and nobody is there to ask").exiting(exit::USAGE));
    }
    let _ = write!(
        io::stderr(),
        "{warning}{}{attempted}? This cannot be undone. [y/N] ",
        if warning.is_empty() { "" } else { "\n" }
    );
    let mut line = String::new();
    io::stdin().read_line(&mut line).map_err(|error| refused(&error.to_string()))?;
    match line.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(refused("not confirmed")),
    }
}
