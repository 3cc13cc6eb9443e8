//! The operator's clouds: what the scheduler needs to rent machines, and what was rented.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use anyhow::Context as _;
use nave_clouds::{Cloud, Owner, Row, machine::Stage, provider::MachineId};
use nave_domain::{MicroUsd, Millis, Timestamp, host::Term};
use nave_rules::catalogue::Catalogue;
use nave_scheduler::cloud::{
    Market, TicketTerms,
    config::{Clouds, MarketTerms},
    ledger, rent,
};
use nave_sdk::wire::enrol::{PublicKey, TicketId, TicketPayload, check_url};
use nave_store::{CloudRow, MachineAttempt, MachineDemand, MachineRow, Store};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::keys;

/// How many machines an operator is shown: those that are open, and of the others the newest.
const MACHINES_MAX: i64 = 200;
/// How many attempts.
const ATTEMPTS_MAX: i64 = 50;
/// How long ago a cloud's machines were looked after at the least, if nobody does it any more.
const FORGOTTEN: Millis = Millis(300_000);

/// What is in the operator's file, with the market that machines join; without a file nothing is rented.
///
/// # Errors
/// What is wrong with it.
pub fn load(file: Option<&Path>) -> anyhow::Result<(Clouds, Option<Market>)> {
    let Some(file) = file else { return Ok((Clouds::default(), None)) };
    let mut clouds = Clouds::read(file, &|name| std::env::var(name).ok())?;
    let catalogue = Catalogue::embedded().map_err(anyhow::Error::msg)?;
    clouds.models =
        catalogue.classes.iter().map(|class| (class.name.clone(), class.models.clone())).collect();
    let market = clouds.market.as_ref().map(market).transpose();
    let market = market.with_context(|| format!("understand [market] in {}", file.display()))?;
    Ok((clouds, market))
}

fn market(terms: &MarketTerms) -> anyhow::Result<Market> {
    check_url(&terms.url).map_err(anyhow::Error::msg)?;
    let market_key: PublicKey = terms.market_key.parse().context("market_key")?;
    let release_key: Option<PublicKey> =
        terms.release_key.as_deref().map(str::parse).transpose().context("release_key")?;
    let hotkey = keys::hotkey(&terms.hotkey)?;
    let (url, platform) = (terms.url.clone(), hotkey.hotkey().to_string());
    let payload = {
        let hotkey = platform.clone();
        move |terms: &TicketTerms| TicketPayload {
            url: url.clone(),
            market_key,
            release_key,
            hotkey: hotkey.clone(),
            ticket: TicketId(terms.machine.into_bytes()),
            expires_at: terms.expires_at,
            name: Some(terms.name.clone()),
            rate: terms.rate,
            term: Term::OnDemand,
            region: terms.region.clone(),
            agent_key: None,
            replaces: None,
        }
    };
    let sign = move |terms: &TicketTerms| Ok(hotkey.ticket(payload(terms))?.to_string());
    Ok(Market { owner: owner(market_key)?, hotkey: platform, sign: Arc::new(sign) })
}

/// What the machines of a market are called after: two markets at one account have two names.
fn owner(market_key: PublicKey) -> anyhow::Result<Owner> {
    let name: String = market_key.to_string().chars().take(12).collect();
    Owner::new(&name).context("make a name of the market's key")
}

/// Prints what was rented, and what clouds said to it.
///
/// # Errors
/// When the database does not answer.
pub async fn print(store: &Store, as_json: bool) -> anyhow::Result<()> {
    let now = store.now().await?;
    let rows = store.machine_list(MACHINES_MAX).await.context("list the machines")?;
    let attempts = store.machine_attempts(None, ATTEMPTS_MAX).await.context("list the attempts")?;
    let read = |row: &MachineRow| ledger::read(row).map_err(|error| anyhow::anyhow!("{error}"));
    let known: Vec<Row> = rows.iter().map(read).collect::<anyhow::Result<_>>()?;
    let sums = sums(store, now).await.context("sum up what machines cost and brought in")?;
    let clouds = store.cloud_list().await.context("list the clouds")?;
    let paid = store.clouds_paid().await.context("look up what clouds were paid")?;
    let ids: Vec<Uuid> = rows.iter().map(|row| row.machine).collect();
    let charged = store.machines_charged(&ids).await.context("sum up what jobs on machines were charged")?;
    let shown = |row: &MachineRow, known: &Row| Money::of(row, known, &charged, now);
    let machines = || rows.iter().zip(&known);
    if as_json {
        let machines: Vec<Value> =
            machines().map(|(row, known)| machine_json(row, known, shown(row, known))).collect();
        let clouds: Vec<Value> = clouds.iter().map(|row| cloud_json(row, now)).collect();
        let attempts: Vec<Value> = attempts.iter().map(attempt_json).collect();
        let day = json!({ "cost": sums.0, "charged": sums.1 });
        println!(
            "{:#}",
            json!({ "clouds": clouds, "paid": paid, "day": day, "machines": machines, "attempts": attempts })
        );
        return Ok(());
    }
    if rows.is_empty() && attempts.is_empty() {
        println!("no cloud was asked for anything yet");
    } else {
        clouds.iter().for_each(|row| println!("{}", cloud_line(row, now)));
        println!("in the ledger: {paid} to clouds since there is this market");
        println!("machines of the last day: {} cost, {} paid for by jobs", sums.0, sums.1);
    }
    machines().for_each(|(row, known)| println!("{}", machine_line(row, known, shown(row, known))));
    attempts.iter().for_each(|attempt| println!("{}", attempt_line(attempt)));
    Ok(())
}

/// What the machines of the last day have cost, and what jobs on them were charged.
async fn sums(store: &Store, now: Timestamp) -> anyhow::Result<(MicroUsd, MicroUsd)> {
    let mut sums = (MicroUsd::ZERO, MicroUsd::ZERO);
    for account in store.machine_accounts(rent::DAY).await? {
        let (cost, charged) = rent::paid(&account, now).map_err(|error| anyhow::anyhow!("{error}"))?;
        sums = (sums.0.plus(cost)?, sums.1.plus(charged)?);
    }
    Ok(sums)
}

/// Where a machine stands, in a word.
fn standing(row: &MachineRow, known: &Row) -> &'static str {
    match (known.ending, known.stage) {
        (Some(_), _) if row.is_closed => "closed",
        (Some(_), _) => "going",
        (None, Stage::Intended) => "wanted",
        (None, Stage::Asked) => "asked",
        (None, Stage::Held | Stage::Missed) => match (row.host, row.demand) {
            (None, _) => "boots",
            (Some(_), MachineDemand::Wanted) => "works",
            (Some(_), MachineDemand::Idle(_) | MachineDemand::Released) => "idle",
        },
    }
}

/// What a machine has cost and brought in.
#[derive(Clone, Copy)]
struct Money {
    /// Until now, at the most.
    cost: MicroUsd,
    /// Of the cost, what is in the ledger: the rest follows when its keeper writes it down, at its end at the latest.
    posted: MicroUsd,
    /// To customers, for jobs on it.
    charged: MicroUsd,
}

impl Money {
    fn of(row: &MachineRow, known: &Row, charged: &BTreeMap<Uuid, MicroUsd>, now: Timestamp) -> Self {
        let charged = charged.get(&row.machine).copied().unwrap_or_default();
        Self { cost: known.cost(known.cloud.terms().billing, now), posted: row.cost, charged }
    }
}

/// Rents again from a cloud, whatever came of its machines until now.
///
/// # Errors
/// When there is no such cloud, or the database does not answer.
pub async fn resume(store: &Store, cloud: &str) -> anyhow::Result<()> {
    let cloud = Cloud::named(cloud).with_context(|| {
        format!("there is no cloud {cloud}; there are {}, local", Cloud::ALL.map(Cloud::name).join(", "))
    })?;
    store.cloud_resume(cloud.name()).await?;
    println!("machines that came to nothing until now keep nobody from renting of {cloud}");
    Ok(())
}

/// Whether machines of a cloud are open that nobody looks after.
fn is_forgotten(row: &CloudRow, now: Timestamp) -> bool {
    row.open > 0 && row.looked_at.is_none_or(|at| now.since(at) > FORGOTTEN)
}

fn cloud_json(row: &CloudRow, now: Timestamp) -> Value {
    json!({
        "cloud": row.cloud,
        "open": row.open,
        "looked_at": row.looked_at,
        "is_forgotten": is_forgotten(row, now),
        "stop": row.stop,
    })
}

fn cloud_line(row: &CloudRow, now: Timestamp) -> String {
    let CloudRow { cloud, open, .. } = row;
    let looked = row.looked_at.map_or("never".to_owned(), |at| at.to_string());
    if is_forgotten(row, now) {
        return format!(
            "{cloud}: {open} machines OPEN AND NOBODY LOOKS AFTER THEM (last: {looked}). Is the scheduler up, and is \
             [{cloud}] in its file of clouds? Put it back with `drain = true` until none is open"
        );
    }
    let stop = row.stop.as_ref().map(|why| format!("; nothing is rented there: {why}")).unwrap_or_default();
    format!("{cloud}: {open} machines open, looked after at {looked}{stop}")
}

fn machine_json(row: &MachineRow, known: &Row, money: Money) -> Value {
    json!({
        "machine": MachineId(row.machine).to_string(),
        "cloud": row.cloud,
        "offer": known.offer.0,
        "region": known.offer.1,
        "state": standing(row, known),
        "ending": row.ending,
        "hourly": known.price,
        "cost": money.cost,
        "posted": money.posted,
        "charged": money.charged,
        "job": row.job,
        "host": row.host,
        "made_at": row.made_at,
        "enrolled_at": row.enrolled_at,
        "dead_man": known.dead_man,
    })
}

fn machine_line(row: &MachineRow, known: &Row, money: Money) -> String {
    let why = row.ending.as_ref().map(|ending| format!(" ({ending})")).unwrap_or_default();
    let host = row.host.map(|host| format!("  {host}")).unwrap_or_default();
    format!(
        "{}  {:<10}  {:<6}{why}  {} {}  {} an hour, {} so far, {} charged to jobs{host}",
        MachineId(row.machine),
        row.cloud,
        standing(row, known),
        known.offer.0,
        known.offer.1,
        known.price,
        money.cost,
        money.charged,
    )
}

fn attempt_json(attempt: &MachineAttempt) -> Value {
    let fault = attempt.fault.as_ref();
    json!({
        "machine": attempt.machine.map(|id| MachineId(id).to_string()),
        "cloud": attempt.cloud,
        "call": attempt.call,
        "at": attempt.at,
        "times": attempt.times,
        "hourly": attempt.hourly,
        "reason": fault.map(|fault| &fault.reason),
        "code": fault.map(|fault| &fault.code),
        "message": fault.map(|fault| &fault.message),
    })
}

fn attempt_line(attempt: &MachineAttempt) -> String {
    let came = attempt
        .fault
        .as_ref()
        .map_or("done".to_owned(), |fault| format!("{} ({}): {}", fault.reason, fault.code, fault.message));
    let of = attempt.machine.map(|id| format!(" {}", MachineId(id))).unwrap_or_default();
    format!("{}  {} {}{of}, {} times: {came}", attempt.at, attempt.cloud, attempt.call, attempt.times)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_ticket_of_a_machine_is_the_platforms_and_bears_the_machines_id() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("clouds.toml");
        let text = format!(
            "[market]\nurl = \"https://market.example\"\nmarket_key = \"{}\"\nhotkey = \"cloud.hotkey\"\n",
            "ab".repeat(32)
        );
        fs::write(&file, text).expect("written");
        let (_, market) = load(Some(&file)).expect("fine");
        let market = market.expect("a market");
        let terms = TicketTerms {
            machine: uuid::Uuid::from_u128(7),
            name: "lambda-00000007".into(),
            expires_at: Timestamp(1_000),
            rate: nave_domain::rate::Rate::default(),
            region: None,
        };
        let ticket: nave_sdk::wire::enrol::Ticket =
            (market.sign)(&terms).expect("signed").parse().expect("a ticket");
        assert_eq!(ticket.verify().expect("genuine").to_string(), market.hotkey);
        assert_eq!(ticket.payload().ticket.to_string(), terms.machine.simple().to_string());
        let again = load(Some(&file)).expect("fine").1.expect("a market");
        assert_eq!(
            (market.owner, market.hotkey),
            (again.owner, again.hotkey),
            "whoever starts again is the same"
        );
    }

    #[test]
    fn a_cloud_with_machines_that_nobody_looks_after_is_shouted_about() {
        let at = |seconds: i64| Timestamp(1_795_000_000_000 + seconds * 1_000);
        let row = CloudRow {
            cloud: "lambda".into(),
            looked_at: Some(at(0)),
            resumed_at: None,
            stop: Some("it rests".into()),
            open: 2,
            is_kept: true,
        };
        let calm = cloud_line(&row, at(60));
        assert!(calm.contains("2 machines open") && calm.ends_with("it rests"), "{calm}");
        let never = CloudRow { looked_at: None, ..row.clone() };
        for (row, now) in [(&row, at(301)), (&never, at(0))] {
            let line = cloud_line(row, now);
            assert!(line.contains("NOBODY LOOKS AFTER THEM") && line.contains("[lambda]"), "{line}");
            assert_eq!(cloud_json(row, now)["is_forgotten"], true);
        }
        let closed = CloudRow { open: 0, ..never };
        assert_eq!(cloud_json(&closed, at(0))["is_forgotten"], false);
    }

    #[test]
    fn what_is_wrong_with_the_market_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("clouds.toml");
        for (url, key, word) in
            [("market.example", "ab", "url"), ("https://market.example", "ab", "market_key")]
        {
            let text = format!("[market]\nurl = \"{url}\"\nmarket_key = \"{key}\"\nhotkey = \"h\"\n");
            fs::write(&file, text).expect("written");
            let error = load(Some(&file)).err().expect("refused");
            assert!(format!("{error:#}").contains(word), "{error:#}");
        }
        assert!(load(None).expect("nothing is rented").1.is_none());
    }
}
