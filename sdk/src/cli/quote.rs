//! `nave quote`, and what `nave run --dry-run` says.

use std::fmt::Write as _;

use nave_domain::{Millis, fraction::WHOLE, host::Device, job::JobRequest};
use nave_sdk::wire::quote::{HOLD_MS, Quote, QuoteRequest, QuoteState, QuotedPlace};
use uuid::Uuid;

use super::{
    Context,
    args::QuoteArgs,
    failure::{Failure, exit},
    lists::answer,
    receipt::than,
    run,
    show::{cores, word},
    table::{clean, table},
};

/// Has a place held, or gives one back.
pub async fn quote(cx: &Context, args: QuoteArgs) -> Result<u8, Failure> {
    if let Some(quote) = args.release {
        let quote =
            cx.client()?.release(quote).await.map_err(Failure::when(&format!("give {quote} back")))?;
        answer(cx, &quote, text)?;
        return Ok(0);
    }
    let argv = if args.argv.is_empty() { vec!["true".to_owned()] } else { args.argv };
    let request = run::request(&args.job, argv, |name| std::env::var(name).ok())?;
    let wish = QuoteRequest { request, hold_ms: args.hold, dry_run: false };
    ask(cx, &wish, args.idempotency_key).await
}

/// Says where a job would run.
pub async fn dry_run(cx: &Context, request: JobRequest, key: Option<String>) -> Result<u8, Failure> {
    ask(cx, &QuoteRequest { request, hold_ms: HOLD_MS, dry_run: true }, key).await
}

async fn ask(cx: &Context, wish: &QuoteRequest, key: Option<String>) -> Result<u8, Failure> {
    wish.check().map_err(|error| run::usage(&error))?;
    let key = key.unwrap_or_else(|| Uuid::now_v7().to_string());
    let quote = cx.patient_client()?.quote(wish, &key).await.map_err(Failure::when("get a quote"))?;
    answer(cx, &quote, text)?;
    Ok(if quote.place.is_some() { 0 } else { exit::ERROR })
}

/// A quote for people.
#[must_use]
pub fn text(quote: &Quote) -> String {
    let mut text = match (&quote.place, &quote.reason, quote.state) {
        (Some(place), _, QuoteState::DryRun) => {
            format!("it would run on {}; nothing is held\n{}", clean(&place.host_name), lines(place))
        }
        (Some(place), _, state) => {
            let until = quote.expires_at.map_or_else(|| "-".to_owned(), |at| at.to_string());
            format!("{} is {} until {until}\n{}", quote.quote, state.as_str(), lines(place))
        }
        (None, Some(reason), _) => {
            format!("there is no place now: {} ({})\n", clean(&reason.message), clean(&reason.code))
        }
        (None, None, state) => format!("{} is {}\n", quote.quote, state.as_str()),
    };
    if !quote.considered.is_empty() {
        let row = |other: &nave_sdk::wire::quote::ConsideredHost| {
            vec![other.host_name.clone(), other.hourly.to_string(), other.code.replace('_', " ")]
        };
        let rows: Vec<Vec<String>> = quote.considered.iter().map(row).collect();
        text += "\n";
        text += &table(&["NOT CHOSEN", "HOURLY>", "WHY"], &rows);
    }
    if quote.state == QuoteState::Held {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "\nto use it: nave run --quote {} -- CMD", quote.quote);
    }
    text
}

fn lines(place: &QuotedPlace) -> String {
    let region = place.region.as_ref().map_or_else(|| "region unknown".to_owned(), ToString::to_string);
    let host = format!(
        "{} ({region}, {}, {})",
        place.host_name,
        word(&place.term).replace('_', " "),
        word(&place.trust)
    );
    let devices: Vec<String> = place.devices.iter().map(|uuid| Device::label_of(uuid)).collect();
    let mut lines = vec![
        ("host", host),
        ("chosen", word(&place.reason).replace('_', " ")),
        ("devices", if devices.is_empty() { "none".to_owned() } else { devices.join(", ") }),
        ("part", part(place).unwrap_or_default()),
        ("price", format!("{} an hour", place.hourly)),
        ("longest", Millis(place.run_ms_max.0).to_string()),
    ];
    if let (Some(baseline), Some(saving)) = (place.baseline, place.saving) {
        let more = than(saving, "more", "less");
        lines.push(("clouds", format!("{baseline} a GPU-hour, {more} than here with cores and memory")));
    }
    let mut text = String::new();
    for (name, value) in lines.into_iter().filter(|(_, value)| !value.is_empty()) {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {name:<8} {}", clean(&value));
    }
    text
}

/// What it is of its one GPU, where that is not all of it.
fn part(place: &QuotedPlace) -> Option<String> {
    let paid = place.size.milli_gpu;
    let of = match place.share {
        Some(share) => {
            format!("a share of {} of its computing and {} of its memory", cores(share.milli.0), share.vram)
        }
        None => "a slice".to_owned(),
    };
    let is_part = !place.devices.is_empty() && paid < WHOLE;
    is_part.then(|| format!("{of}, paid for as {} of a GPU", cores(paid.0)))
}

#[cfg(test)]
mod tests {
    use nave_domain::{Bytes, MilliGpu, fraction::Fraction, rate::Size};

    use super::{super::golden, *};

    #[test]
    fn a_quote_says_where_for_how_much_until_when_and_what_else_there_was() {
        let held = golden::quote();
        golden::check("quote.txt", &text(&held));
        let mut dry = held.clone();
        (dry.state, dry.expires_at) = (QuoteState::DryRun, None);
        golden::check("quote-dry-run.txt", &text(&dry));
        let whole = held.place.clone().expect("a place");
        assert_eq!(part(&whole), None);
        let size = Size { milli_gpu: MilliGpu(333), ..whole.size };
        let slice = QuotedPlace { size, ..whole };
        assert_eq!(part(&slice).as_deref(), Some("a slice, paid for as 0.333 of a GPU"));
        let share = Some(Fraction { milli: MilliGpu(250), vram: Bytes(8 * Bytes::GIB) });
        let share = Quote { place: Some(QuotedPlace { share, ..slice }), ..held.clone() };
        golden::check("quote-share.txt", &text(&share));
        let reason =
            serde_json::json!({ "code": "no_host_in_region", "message": "no host has 2 x H100 in eu" });
        let reason = serde_json::from_value(reason).ok();
        let refused = Quote { state: QuoteState::Refused, place: None, expires_at: None, reason, ..held };
        golden::check("quote-refused.txt", &text(&refused));
    }
}
