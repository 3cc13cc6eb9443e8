//! Runs the few system programs the agent needs: by argument vector, with a
//! time limit, bounded output and a cleared environment.

use std::{
    ffi::{OsStr, OsString},
    process::Stdio,
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    process::{Child, Command},
};

/// Where system programs are; the agent's own PATH does not count.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Longest a program may take.
const LIMIT: Duration = Duration::from_secs(30);
/// Most that is read of either output, in bytes.
const OUTPUT_BYTES_MAX: u64 = 4 << 20;

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// It could not be run, usually because it is not installed.
    #[error("run {program}")]
    Run {
        /// Its name.
        program: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// It took too long and was ended.
    #[error("{program} took longer than {} s", LIMIT.as_secs())]
    Late {
        /// Its name.
        program: String,
    },
    /// It said that it failed.
    #[error("{program} failed: {said}")]
    Said {
        /// Its name.
        program: String,
        /// The first line of its standard error.
        said: String,
    },
}

/// Runs `program` and answers its standard output.
///
/// # Errors
/// [`Failed`] when it cannot run, takes too long or does not exit with 0.
pub async fn run<A: AsRef<OsStr>>(program: &str, args: &[A]) -> Result<Vec<u8>, Failed> {
    run_with(program, args, b"").await
}

/// Runs `program` with `input` on its standard input and answers its standard output.
///
/// # Errors
/// As [`run`].
pub async fn run_with<A: AsRef<OsStr>>(program: &str, args: &[A], input: &[u8]) -> Result<Vec<u8>, Failed> {
    run_in(program, args, input, &[]).await
}

/// The same with variables in its environment.
///
/// # Errors
/// As [`run`].
pub async fn run_in<A: AsRef<OsStr>>(
    program: &str,
    args: &[A],
    input: &[u8],
    variables: &[(&str, OsString)],
) -> Result<Vec<u8>, Failed> {
    let failed = |source| Failed::Run { program: program.to_owned(), source };
    let mut command = Command::new(program);
    command.args(args).env_clear().env("PATH", PATH).env("LC_ALL", "C").kill_on_drop(true);
    command.envs(variables.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().map_err(failed)?;
    let Ok(ended) = tokio::time::timeout(LIMIT, talk(child, input)).await else {
        return Err(Failed::Late { program: program.to_owned() });
    };
    let (status, stdout, stderr) = ended.map_err(failed)?;
    if status.success() {
        return Ok(stdout);
    }
    let text = String::from_utf8_lossy(&stderr);
    let said = text.lines().find(|line| !line.trim().is_empty()).unwrap_or("no reason given");
    Err(Failed::Said { program: program.to_owned(), said: said.chars().take(300).collect() })
}

type Ended = (std::process::ExitStatus, Vec<u8>, Vec<u8>);

async fn talk(mut child: Child, input: &[u8]) -> std::io::Result<Ended> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let write = async {
        if let Some(mut stdin) = stdin {
            // A program that does not read its input says why by its exit code.
            let _ = stdin.write_all(input).await;
        }
    };
    let ((), stdout, stderr) = tokio::join!(write, bounded(stdout), bounded(stderr));
    Ok((child.wait().await?, stdout?, stderr?))
}

async fn bounded(pipe: Option<impl AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    let mut read = Vec::new();
    if let Some(pipe) = pipe {
        pipe.take(OUTPUT_BYTES_MAX).read_to_end(&mut read).await?;
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn input_and_output_pass_through_without_a_shell() {
        let echoed = run_with("cat", &["-"], b"$(id) `id`").await.expect("cat runs");
        assert_eq!(echoed, b"$(id) `id`");
    }

    #[tokio::test]
    async fn a_failure_says_which_program_and_why() {
        let failed = run("cat", &["/does/not/exist"]).await.expect_err("there is no such file");
        assert!(failed.to_string().contains("cat failed: cat: /does/not/exist"), "{failed}");
        let absent = run("nave-no-such-program", &["x"]).await.expect_err("there is no such program");
        assert!(matches!(absent, Failed::Run { .. }));
    }
}
