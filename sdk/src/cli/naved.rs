//! `nave up` and `nave down`: another program does them.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use super::failure::Failure;

/// Hands the whole command line on when it begins with `up` or `down`, before any
/// option in it could be taken for one of ours. Returns only where it did not work.
pub fn intercept() -> Option<ExitCode> {
    let mut args = env::args_os().skip(1);
    let first = args.next()?;
    let verb = ["up", "down"].into_iter().find(|verb| first == *verb)?;
    let rest: Vec<OsString> = args.collect();
    let json = rest.iter().any(|arg| arg == "--json");
    let code = exec(verb, &rest, false).unwrap_or_else(|failure| super::report(&failure, json));
    Some(ExitCode::from(code))
}

/// Becomes `naved VERB ARGS…`.
///
/// # Errors
/// [`Failure`] when there is no such program or it cannot be started.
pub fn exec(verb: &str, args: &[OsString], json: bool) -> Result<u8, Failure> {
    let program = find(env::current_exe().ok().as_deref(), env::var_os("PATH").as_deref());
    let Some(program) = program else {
        let advice =
            "build it (cargo build -p nave) or put it on PATH; customers of another market need no `nave up`";
        return Err(Failure::local(
            &format!("run naved {verb}"),
            "there is no naved beside nave or on PATH",
            advice,
        ));
    };
    let mut command = Command::new(&program);
    command.arg(verb).args(args);
    if json {
        command.arg("--json");
    }
    become_program(command).map_err(|error| {
        Failure::local(
            &format!("run {}", program.display()),
            &error.to_string(),
            "check that it can be executed",
        )
    })
}

#[cfg(unix)]
fn become_program(mut command: Command) -> std::io::Result<u8> {
    use std::os::unix::process::CommandExt as _;
    Err(command.exec())
}

#[cfg(not(unix))]
fn become_program(mut command: Command) -> std::io::Result<u8> {
    let status = command.status()?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(super::failure::exit::ERROR))
}

fn find(this: Option<&Path>, path: Option<&std::ffi::OsStr>) -> Option<PathBuf> {
    let name = format!("naved{}", env::consts::EXE_SUFFIX);
    let beside = this.and_then(Path::parent).map(|dir| dir.join(&name));
    let on_path = path.into_iter().flat_map(env::split_paths).map(|dir| dir.join(&name));
    beside.into_iter().chain(on_path).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn naved_beside_nave_comes_before_the_one_on_path() {
        let (here, there) = (tempfile::tempdir().expect("one"), tempfile::tempdir().expect("two"));
        let path = env::join_paths([there.path()]).expect("a path");
        let this = here.path().join("nave");
        assert_eq!(find(Some(&this), Some(&path)), None);
        fs::write(there.path().join("naved"), "").expect("written");
        assert_eq!(find(Some(&this), Some(&path)), Some(there.path().join("naved")));
        fs::write(here.path().join("naved"), "").expect("written");
        assert_eq!(find(Some(&this), Some(&path)), Some(here.path().join("naved")));
    }
}
