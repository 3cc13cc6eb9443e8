//! `nave dispute`: say that a result is wrong, and see what came of it.

use nave_domain::{JobId, dispute::DisputeState};
use nave_sdk::wire::rest::{Dispute, DisputeRequest};

use super::{Context, args::DisputeArgs, failure::Failure, lists::answer, table::clean};

/// `nave dispute`.
pub async fn dispute(cx: &Context, args: DisputeArgs) -> Result<(), Failure> {
    let client = cx.client()?;
    let Some(reason) = args.reason else {
        let attempted = format!("show the disputes of {}", args.job);
        let job = client.job(args.job).await.map_err(Failure::when(&attempted))?;
        return answer(cx, &job.disputes, |disputes| all(args.job, disputes));
    };
    let request = DisputeRequest { reason, attempt: args.attempt };
    let attempted = format!("dispute the result of {}", args.job);
    let dispute = client.dispute(args.job, &request).await.map_err(Failure::when(&attempted))?;
    answer(cx, &dispute, one)
}

fn all(job: JobId, disputes: &[Dispute]) -> String {
    match disputes {
        [] => format!("no result of {job} is disputed; --reason says that one is wrong\n"),
        _ => disputes.iter().map(one).collect(),
    }
}

/// Where a dispute stands, in words.
fn one(dispute: &Dispute) -> String {
    let Dispute { attempt, host, reason, state, verdict, .. } = dispute;
    let stands = match state {
        DisputeState::Open => "its host is tested as soon as it is free, at most once in six hours",
        DisputeState::Testing => "its host is being tested",
        DisputeState::Passed => {
            "its host has proven again all that it claims; that does not make the result right: compare with --replicas"
        }
        DisputeState::Failed => "its host failed a test",
        DisputeState::Untested => {
            "its host always had other jobs and was not tested; compare with --replicas"
        }
        DisputeState::Left => "its host left, or joined anew, before it had shown anything",
    };
    let mut text = format!("attempt {attempt}  {}: {stands}\n  on       {host}\n", state.as_str());
    text += &format!("  reason   {}\n", clean(reason));
    if let Some(verdict) = verdict {
        text += &format!("  verdict  nave hosts verdict {host} {verdict}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::golden, *};

    #[test]
    fn disputes_are_told_with_what_came_of_them_and_where_to_read_more() {
        let host = format!("host_{:032}", 1);
        let verdict = format!("challenge_{:032}", 4);
        let sample = |state: &str, verdict: serde_json::Value| -> Dispute {
            let dispute = json!({
                "attempt": 1, "host": host, "reason": "42 is not 41\u{1b}[2J", "opened_at": "2026-09-21T15:00:00Z",
                "state": state, "decided_at": null, "verdict": verdict
            });
            serde_json::from_value(dispute).expect("a dispute as the API would send it")
        };
        let disputes = [
            sample("open", json!(null)),
            sample("testing", json!(null)),
            sample("passed", json!(verdict)),
            sample("failed", json!(verdict)),
            sample("left", json!(null)),
        ];
        let job: JobId = format!("job_{:032}", 1).parse().expect("an id");
        golden::check("disputes.txt", &(all(job, &[]) + &all(job, &disputes)));
    }
}
