//! `nave result`: fetch a job's files.

use std::{
    fs::File,
    io::{self, Seek as _, SeekFrom, Write},
    path::{Path, PathBuf},
};

use nave_domain::JobId;
use nave_sdk::client::{Client, Error};

use super::{
    Context,
    args::ResultArgs,
    failure::{Failure, exit},
    output::{self, say},
    unpack::{Refused, unpack},
};

/// How often a download that breaks is begun again.
const DOWNLOADS_MAX: u32 = 5;

/// What is said of a result that is not all of it.
pub const TRUNCATED: &str = "some result files were left out: 32 MiB and 65536 files and directories come back at most; \
     let the job pack many files into one, and send what is larger elsewhere";

/// Fetches the result of a finished job.
pub async fn result(cx: &Context, args: ResultArgs) -> Result<(), Failure> {
    let client = cx.client()?;
    let attempted = attempted(args.job);
    let job = client.job(args.job).await.map_err(Failure::when(&attempted))?;
    if !job.has_result {
        let (detail, code) = match job.state.is_final() {
            true => ("the job left no result files", exit::ERROR),
            false => ("the job is not finished", exit::UNFINISHED),
        };
        return Err(Failure::local(&attempted, detail, &format!("nave logs {}", args.job)).exiting(code));
    }
    if job.result_truncated {
        say(TRUNCATED);
    }
    match args.out.unwrap_or_else(|| PathBuf::from(args.job.to_string())) {
        out if out.as_os_str() == "-" => to_stdout(&client, args.job).await,
        out if out.extension().is_some_and(|ext| ext == "tar") => to_file(cx, &client, args.job, &out).await,
        out => {
            let files = fetch_into(&client, args.job, &out).await?;
            list(cx, &out, &files)
        }
    }
}

fn attempted(job: JobId) -> String {
    format!("fetch the result of {job}")
}

fn list(cx: &Context, out: &Path, files: &[PathBuf]) -> Result<(), Failure> {
    if cx.global.json {
        return output::print_json(&serde_json::json!({ "directory": out, "files": files }));
    }
    files.iter().try_for_each(|file| output::print(&format!("{}\n", out.join(file).display())))
}

/// Fetches the result and unpacks it into `dir`; returns the files in it.
///
/// # Errors
/// [`Failure`] when it cannot be fetched or contains what must not be unpacked.
pub async fn fetch_into(client: &Client, job: JobId, dir: &Path) -> Result<Vec<PathBuf>, Failure> {
    let attempted = attempted(job);
    let mut archive = tempfile::tempfile().map_err(|error| local(&attempted, &error))?;
    download(client, job, &mut archive, &attempted).await?;
    archive.seek(SeekFrom::Start(0)).map_err(|error| local(&attempted, &error))?;
    unpack(&mut archive, dir).map_err(|refused| {
        let advice = match refused {
            Refused::Exists(_) => "give another directory with -o",
            Refused::Io(_) => "free some space, or look at the archive with -o FILE.tar",
            Refused::Outside(_) | Refused::Special(_) | Refused::Twice(_) | Refused::TooMany => {
                "nothing was unpacked; look at the archive with -o FILE.tar"
            }
        };
        Failure::local(&attempted, &refused.to_string(), advice)
    })
}

async fn to_file(cx: &Context, client: &Client, job: JobId, out: &Path) -> Result<(), Failure> {
    let attempted = format!("write {}", out.display());
    let mut file = File::create_new(out).map_err(|error| local(&attempted, &error))?;
    if let Err(failure) = download(client, job, &mut file, &attempted).await {
        // Half an archive is of no use to anybody.
        let _ = std::fs::remove_file(out);
        return Err(failure);
    }
    list(cx, Path::new(""), &[out.to_owned()])
}

async fn to_stdout(client: &Client, job: JobId) -> Result<(), Failure> {
    let attempted = attempted(job);
    let mut archive = tempfile::tempfile().map_err(|error| local(&attempted, &error))?;
    download(client, job, &mut archive, &attempted).await?;
    archive.seek(SeekFrom::Start(0)).map_err(|error| local(&attempted, &error))?;
    io::copy(&mut archive, &mut io::stdout().lock()).map_err(|error| local(&attempted, &error))?;
    Ok(())
}

fn local(attempted: &str, error: &io::Error) -> Failure {
    Failure::local(attempted, &error.to_string(), "choose another place with -o")
}

/// Fetches the archive of a result into `file`.
///
/// # Errors
/// [`Failure`] when it cannot be fetched or written.
pub async fn download(client: &Client, job: JobId, file: &mut File, attempted: &str) -> Result<(), Failure> {
    for _ in 1..DOWNLOADS_MAX {
        match download_once(client, job, file).await {
            Ok(written) => return written.map_err(|error| local(attempted, &error)),
            Err(error) if matches!(error, Error::Broken { .. }) => say(&format!("{error}; beginning again")),
            Err(error) => return Err(Failure::api(attempted, &error)),
        }
    }
    let written = download_once(client, job, file).await.map_err(Failure::when(attempted))?;
    written.map_err(|error| local(attempted, &error))
}

/// The outer error is the connection's, the inner one this machine's.
async fn download_once(client: &Client, job: JobId, file: &mut File) -> Result<io::Result<()>, Error> {
    let mut download = client.result(job).await?;
    if let Err(error) = file.set_len(0).and_then(|()| file.seek(SeekFrom::Start(0)).map(|_| ())) {
        return Ok(Err(error));
    }
    while let Some(piece) = download.chunk().await? {
        if let Err(error) = file.write_all(&piece) {
            return Ok(Err(error));
        }
    }
    Ok(Ok(()))
}
