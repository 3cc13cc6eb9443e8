//! The market's parameters: what is announced is checked here, before the store takes it.

use anyhow::Context as _;
pub use nave_settlement::params::Params;
use nave_store::{ParamsRow, Store};
use serde_json::Value;

const MINUTE: i64 = 60_000;

/// Parameters of a market on one machine: nobody waits for anything, and nothing is held back; the emission is made up, and
/// about what a few cores earn in an epoch.
#[must_use]
pub fn local() -> Params {
    Params {
        collateral_ms: 0,
        confirm_ms: MINUTE,
        cooldown_ms: MINUTE,
        local_emission: 1_000,
        obliged_ms: 5 * MINUTE,
        probation_ms: 0,
        vest_ms: 5 * MINUTE,
        ..Params::default()
    }
}

/// Reads a document of parameters as an operator writes it: all of the fields, and no others, but for those that say which
/// document it is.
///
/// # Errors
/// Names the field that is not there, unknown, or out of its range.
pub fn read(document: &Value) -> anyhow::Result<Params> {
    let mut document = document.clone();
    let fields = document.as_object_mut().context("parameters are a JSON object")?;
    for field in ["version", "effective_epoch", "announced_ms"] {
        fields.insert(field.into(), 0.into());
    }
    let params: Params = serde_json::from_value(document.clone()).context("read the parameters")?;
    params.check().context("check the parameters")?;
    bounded(&document).map_err(anyhow::Error::msg).context("check the parameters")?;
    Ok(params)
}

/// Whether every number is one with which no epoch's sums can overflow: what was announced cannot be corrected.
fn bounded(document: &Value) -> Result<(), String> {
    for (field, value) in document.as_object().into_iter().flatten() {
        let most = match field {
            field if field.ends_with("_ms") => 10 * 365 * 24 * 60 * MINUTE,
            field if field.ends_with("_hour") || field == "local_emission" => 1_000_000_000_000,
            field if field.ends_with("_ppm") => 1_000_000,
            _ => 10_000,
        };
        if value.as_i64().is_some_and(|value| value > most) {
            return Err(format!("{field} is above {most}"));
        }
        let targets = value.as_array().into_iter().flatten();
        if targets.filter_map(|target| target[1].as_i64()).any(|devices| devices > 1_000_000) {
            return Err(format!("{field} has a number above 1000000"));
        }
    }
    Ok(())
}

/// Announces parameters that hold from an epoch on.
///
/// # Errors
/// As [`read`]; and when that epoch is sooner than the parameters that hold now allow, or the database does not answer.
pub async fn announce(store: &Store, document: &Value, effective_epoch: i64) -> anyhow::Result<ParamsRow> {
    let body = serde_json::to_value(read(document)?)?;
    store
        .params_announce(&body, effective_epoch)
        .await
        .with_context(|| format!("announce parameters for epoch {effective_epoch}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_operator_writes_is_taken_whole_or_not_at_all() {
        let whole = || serde_json::to_value(local()).expect("a document");
        assert!(read(&whole()).is_ok());
        let with = |field: &str, value: Value| {
            let mut document = whole();
            document[field] = value;
            format!("{:#}", read(&document).expect_err("refused"))
        };
        assert!(with("margin", 1.into()).contains("margin"));
        assert!(with("margin_ppm", 2_000_000.into()).contains("margin_ppm"));
        assert!(with("window_days", "30".into()).contains("read the parameters"));
        assert!(with("vest_ms", i64::MAX.into()).contains("vest_ms is above"));
        assert!(with("standby_targets", serde_json::json!([["h100", i64::MAX]])).contains("standby_targets"));
        let mut less = whole();
        less.as_object_mut().expect("fields").remove("vest_ms");
        assert!(format!("{:#}", read(&less).expect_err("refused")).contains("vest_ms"));
    }
}
