//! `nave params`, `nave epoch evidence`, `nave miner earnings` and `nave miner collateral`.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io,
    path::PathBuf,
};

use nave_domain::MicroUsd;
use nave_sdk::{
    client::{Client, MinerClient},
    earnings::{NONE_YET, explained},
    wire::settlement::{Collateral, Earnings, Holds, LeaseEarnings, Parameters},
};
use serde_json::{Value, json};

use super::{
    Context,
    args::EpochEvidence,
    failure::Failure,
    lists::answer,
    miner::{
        args::{CollateralArgs, EarningsArgs},
        when,
    },
    output,
    show::word,
    table::{clean, table},
};

/// `nave params`.
pub async fn params(cx: &Context) -> Result<(), Failure> {
    let params = cx.client()?.params().await.map_err(Failure::when("show the parameters"))?;
    answer(cx, &params, parameters)
}

/// What holds now, what is announced, and what held before.
#[must_use]
pub fn parameters(params: &Parameters) -> String {
    let rows: Vec<Vec<String>> = params
        .versions
        .iter()
        .map(|version| {
            let from = version.effective_epoch.to_string();
            vec![version.version.to_string(), word(&version.holds), from, version.announced_at.to_string()]
        })
        .collect();
    let mut text = format!("epoch {} is open\n\n", params.epoch);
    text += &table(&["VERSION>", "HOLDS", "FROM EPOCH>", "ANNOUNCED"], &rows);
    let now =
        params.versions.iter().find(|version| version.holds == Holds::Now).map(|version| &version.document);
    for version in &params.versions {
        let changes = match version.holds {
            Holds::Now => fields(&version.document, None),
            Holds::Announced => fields(&version.document, now),
            Holds::Past => continue,
        };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "\nversion {}, {}", version.version, word(&version.holds));
        text += &changes;
    }
    text
}

/// The fields of a document, a line each; of one that changes another only those that differ.
fn fields(document: &Value, beside: Option<&Value>) -> String {
    let about = ["version", "effective_epoch", "announced_ms"];
    let Some(all) = document.as_object() else { return String::new() };
    let shown = all.iter().filter(|(name, _)| !about.contains(&name.as_str()));
    let mut lines: Vec<String> = shown
        .filter(|(name, value)| beside.is_none_or(|other| other.get(name.as_str()) != Some(value)))
        .map(|(name, value)| format!("  {:<22} {}\n", clean(name), clean(&value.to_string())))
        .collect();
    lines.sort_unstable();
    lines.concat()
}

/// `nave epoch evidence`.
pub async fn evidence(cx: &Context, args: EpochEvidence) -> Result<(), Failure> {
    let client = cx.client()?;
    let out = args.out.unwrap_or_else(|| PathBuf::from(format!("epoch-{}.jsonl.gz", args.epoch)));
    let attempted = format!("fetch the evidence of epoch {}", args.epoch);
    if out.as_os_str() == "-" {
        return download(&client, args.epoch, &mut io::stdout().lock(), &attempted).await;
    }
    let local = |error: &io::Error| {
        Failure::local(
            &format!("write {}", out.display()),
            &error.to_string(),
            "choose another place with -o",
        )
    };
    let mut file = File::create_new(&out).map_err(|error| local(&error))?;
    if let Err(failure) = download(&client, args.epoch, &mut file, &attempted).await {
        // Half a bundle is of no use to anybody.
        let _ = fs::remove_file(&out);
        return Err(failure);
    }
    file.sync_all().map_err(|error| local(&error))?;
    if cx.global.json {
        return output::print_json(&json!({ "epoch": args.epoch, "file": out }));
    }
    output::print(&format!("{}\n", out.display()))?;
    output::say(&format!("nave audit {} computes pay and weights again", out.display()));
    Ok(())
}

async fn download(
    client: &Client,
    epoch: i64,
    out: &mut impl io::Write,
    attempted: &str,
) -> Result<(), Failure> {
    let mut coming = client.evidence(epoch).await.map_err(Failure::when(attempted))?;
    while let Some(piece) = coming.chunk().await.map_err(Failure::when(attempted))? {
        out.write_all(&piece)
            .map_err(|error| Failure::local(attempted, &error.to_string(), "choose another place with -o"))?;
    }
    Ok(())
}

/// `nave miner earnings`.
pub async fn earnings(cx: &Context, miner: &MinerClient, args: EarningsArgs) -> Result<(), Failure> {
    let Some(epoch) = args.epoch else {
        let page = miner.earnings(Some(args.limit), args.before).await.map_err(when("show your earnings"))?;
        answer(cx, &page, |page| by_epoch(&page.items, args.explain))?;
        if let Some(cursor) = page.next.filter(|_| output::is_watched()) {
            output::say(&format!("there are older ones: --before {cursor}, or a larger --limit"));
        }
        return Ok(());
    };
    let attempted = format!("show your earnings of epoch {epoch}");
    let page =
        miner.earnings_of(epoch, Some(args.limit), args.after.as_deref()).await.map_err(when(&attempted))?;
    answer(cx, &page, |page| by_lease(&page.items, args.explain))?;
    if let Some(cursor) = page.next.filter(|_| output::is_watched()) {
        output::say(&format!("there are more: --after {cursor}, or a larger --limit"));
    }
    Ok(())
}

/// Epochs, a line each; explained, with every sum and what it is for.
#[must_use]
pub fn by_epoch(epochs: &[Earnings], explain: bool) -> String {
    if epochs.is_empty() {
        return NONE_YET.to_owned();
    }
    if explain {
        return explained(epochs);
    }
    let row = |row: &Earnings| {
        let pay = &row.pay;
        let amounts = [pay.used, pay.granted, pay.cash, pay.penalty, pay.carry];
        let mut cells = vec![row.epoch.to_string(), pay.weight.to_string()];
        cells.extend(amounts.map(|amount| MicroUsd(amount).to_string()));
        cells.push(pay.breaches.to_string());
        cells
    };
    let head = ["EPOCH>", "WEIGHT>", "USED>", "STANDBY>", "CASH>", "PENALTY>", "CARRY>", "BREACHES>"];
    table(&head, &epochs.iter().map(row).collect::<Vec<_>>())
}

/// Leases of an epoch, a line each; below it what went wrong with them.
#[must_use]
pub fn by_lease(leases: &[LeaseEarnings], explain: bool) -> String {
    let row = |lease: &LeaseEarnings| {
        let kept = i64::from(lease.adherence_ppm) / 100;
        let mut cells = vec![
            lease.lease.to_string(),
            lease.used_ms.to_string(),
            format!("{}.{:02} %", kept / 100, kept % 100),
        ];
        cells.extend(
            [lease.charged, lease.earned, lease.bid, lease.credit, lease.penalty].map(|sum| sum.to_string()),
        );
        cells
    };
    let head = ["LEASE", "TIME>", "KEPT>", "CHARGED>", "EARNED>", "BID>", "CREDIT>", "PENALTY>"];
    let mut text = table(&head, &leases.iter().map(row).collect::<Vec<_>>());
    let notable = |lease: &&LeaseEarnings| !lease.events.is_empty() || lease.related.is_some();
    for lease in leases.iter().filter(notable).filter(|lease| explain || lease.breaches > 0) {
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "\n{} on {}, {}",
            lease.lease,
            lease.host,
            clean(&lease.outcome).replace('_', " ")
        );
        if let Some(why) = &lease.related {
            let _ = writeln!(text, "  earns nothing: {}", clean(why));
        }
        for event in &lease.events {
            let shown = event.confirmed_by.as_deref().map_or("nothing shows it", clean_word);
            let _ = writeln!(
                text,
                "  {} {}: {} (blamed on the {}, shown by {shown})",
                event.from_at,
                clean(&event.kind).replace('_', " "),
                clean(&event.detail),
                clean(&event.blame),
            );
        }
    }
    text
}

fn clean_word(confirmed_by: &str) -> &str {
    match confirmed_by {
        "report" => "its own report",
        "retest" => "a test",
        "absence" => "its absence",
        _ => "something else",
    }
}

/// `nave miner collateral`.
pub async fn collateral(cx: &Context, miner: &MinerClient, args: CollateralArgs) -> Result<(), Failure> {
    let Some(amount) = args.call_back else {
        let collateral = miner.collateral().await.map_err(when("show your collateral"))?;
        return answer(cx, &collateral, in_words);
    };
    let attempted = format!("call back {amount} of collateral");
    let call = miner.collateral_call(amount).await.map_err(when(&attempted))?;
    answer(cx, &call, |call| {
        format!("{} will be paid after {}, less what is owed then\n", call.amount, call.due_at)
    })
}

/// Collateral, and as what hosts are sold.
#[must_use]
pub fn in_words(collateral: &Collateral) -> String {
    let mut text = format!("collateral  {}\n", collateral.balance);
    for call in &collateral.called {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "called back {} due {}", call.amount, call.due_at);
    }
    let because = |why: &str| match why {
        "probation" => "the hotkey is new",
        "demoted" => "of its breaches",
        "collateral" => "collateral does not cover it",
        _ => "the market says so",
    };
    for host in &collateral.offers {
        let _ = match &host.spot_because {
            Some(why) => writeln!(text, "{}  sold as spot, since {}", host.host, because(why)),
            None => writeln!(text, "{}  sold as {}", host.host, word(&host.offered).replace('_', "-")),
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use serde::de::DeserializeOwned;

    use super::{super::golden, *};

    fn read<T: DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).expect("a sample")
    }

    #[test]
    fn parameters_show_what_holds_and_what_an_announcement_changes() {
        let document = |margin: u32| json!({ "version": 1, "margin_ppm": margin, "smoothing": 5, "standby_targets": [] });
        let version = |version: i64, from: i64, holds: &str, margin| {
            json!({ "version": version, "effective_epoch": from, "announced_at": "2026-09-21T14:00:00Z", "holds": holds,
                "document": document(margin) })
        };
        let versions = [
            version(3, 9, "announced", 90_000),
            version(2, 5, "now", 100_000),
            version(1, 0, "past", 120_000),
        ];
        let params: Parameters = read(json!({ "epoch": 7, "versions": versions }));
        golden::check("params.txt", &parameters(&params));
    }

    #[test]
    fn earnings_are_shown_by_epoch_and_by_lease_with_what_went_wrong() {
        let mut pay = nave_settlement::evidence::Pay { hotkey: "5Miner".to_owned(), ..Default::default() };
        (pay.used, pay.carry, pay.weight, pay.breaches, pay.penalty) = (900_000, 780_000, 25_558, 1, 120_000);
        let epoch: Earnings = read(json!({ "epoch": 7, "closed_at": "2026-09-21T15:12:00Z", "pay": pay }));
        golden::check("earnings.txt", &by_epoch(std::slice::from_ref(&epoch), false));
        golden::check("earnings-explained.txt", &by_epoch(&[epoch], true));
        assert_eq!(by_epoch(&[], true), NONE_YET);
        let (host, lease) = (golden::id("host", 1), golden::id("lease", 1));
        let event = json!({ "event": golden::id("event", 1), "kind": "host_lost", "blame": "host",
            "confirmed_by": "absence", "from_at": "2026-09-21T15:00:00Z", "until_at": "2026-09-21T15:02:00Z",
            "detail": "the host fell silent and did not come back" });
        let lease: LeaseEarnings =
            read(json!({ "lease": lease, "host": host, "used_ms": 61_000, "charged": 40_000,
            "outcome": "host_lost", "adherence_ppm": 237_040, "breaches": 1, "earned": 8_000, "bid": 0,
            "credit": 30_519, "penalty": 120_000, "events": [event] }));
        golden::check("earnings-leases.txt", &by_lease(&[lease], false));
    }

    #[test]
    fn collateral_says_as_what_hosts_are_sold() {
        let (one, two) = (golden::id("host", 1), golden::id("host", 2));
        let call = json!({ "call": "0190b6c0-0000-7000-8000-000000000001", "amount": 5_000_000,
            "due_at": "2026-10-05T15:00:00Z" });
        let offers = json!([{ "host": one, "offered": "on_demand", "spot_because": "probation" },
            { "host": two, "offered": "on_demand" }]);
        let collateral: Collateral =
            read(json!({ "balance": 70_000_000, "called": [call], "offers": offers }));
        golden::check("collateral.txt", &in_words(&collateral));
    }
}
