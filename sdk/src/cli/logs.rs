//! `nave logs`.

use nave_sdk::{
    client::{Client, LogEvent, LogsQuery},
    wire::{
        host::Stream,
        rest::{LogLine, Logs},
    },
};

use super::{
    Context,
    args::LogsArgs,
    failure::{Failure, exit},
    output,
};

/// Prints what a job has written, and with `--follow` what it will write.
pub async fn logs(cx: &Context, args: LogsArgs) -> Result<(), Failure> {
    let since = args.since.map(|since| since.resolve(output::now()));
    let query = LogsQuery { after: None, tail: args.tail, since };
    let attempted = format!("read the log of {}", args.job);
    if args.follow {
        return follow(cx, args, query).await.map_err(|failure| Failure { attempted, ..failure });
    }
    let logs = collect(&cx.client()?, &args, query).await.map_err(Failure::when(&attempted))?;
    if cx.global.json {
        return output::print_json(&logs);
    }
    logs.lines.iter().try_for_each(write)
}

/// Every page of the log up to now, as one answer.
async fn collect(
    client: &Client,
    args: &LogsArgs,
    query: LogsQuery,
) -> Result<Logs, nave_sdk::client::Error> {
    let mut logs = client.logs(args.job, &query).await?;
    let mut last = !logs.lines.is_empty();
    while last && !logs.complete {
        let rest = LogsQuery { after: Some(logs.cursor.clone()), ..LogsQuery::default() };
        let page = client.logs(args.job, &rest).await?;
        last = !page.lines.is_empty();
        logs.lines.extend(page.lines);
        (logs.cursor, logs.complete) = (page.cursor, page.complete);
    }
    Ok(logs)
}

async fn follow(cx: &Context, args: LogsArgs, query: LogsQuery) -> Result<(), Failure> {
    let mut log = cx.patient_client()?.follow(args.job, query);
    while let Some(event) = log.next().await.map_err(|error| lost("", &error))? {
        match event {
            LogEvent::Line(line) if cx.global.json => output::print_json(&line)?,
            LogEvent::Line(line) => write(&line)?,
            LogEvent::End(_) => {}
        }
    }
    Ok(())
}

/// A followed log that could not be followed to its end: the job goes on.
#[must_use]
pub fn lost(attempted: &str, error: &nave_sdk::client::Error) -> Failure {
    let failure = Failure::api(attempted, error);
    let code = if failure.code == exit::ERROR && error.retryable() { exit::UNFINISHED } else { failure.code };
    failure.exiting(code)
}

fn write(line: &LogLine) -> Result<(), Failure> {
    match line.stream {
        Stream::Stdout => output::print(&line.text),
        Stream::Stderr => {
            output::write_err(&line.text);
            Ok(())
        }
    }
}
