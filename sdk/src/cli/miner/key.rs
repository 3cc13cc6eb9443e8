//! Where the hotkey comes from: a wallet, a file, the environment, or a development key.

use std::{
    env,
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use nave_sdk::hotkey::{
    HotkeySecret,
    keyfile::KEYFILE_BYTES_MAX,
    uri::{BadUri, is_public},
};
use zeroize::Zeroizing;

use super::{
    super::{
        failure::{Failure, exit},
        output,
    },
    args::KeyArgs,
};

/// Where a mnemonic or secret URI may be given: other users do not see the environment.
const VARIABLE: &str = "NAVE_HOTKEY_URI";
const ATTEMPTED: &str = "read the hotkey";
/// What a wallet and a hotkey are called when nobody says.
const DEFAULT: &str = "default";

/// Where to read.
#[derive(Debug, PartialEq, Eq)]
enum Source {
    /// A development key, which is no secret.
    Development(String),
    /// [`VARIABLE`].
    Environment,
    /// A file that was named.
    File(PathBuf),
    /// A hotkey of a wallet.
    Wallet(PathBuf),
}

/// The hotkey these arguments name.
///
/// # Errors
/// [`Failure`] that says what to do; it never quotes a secret.
pub fn load(args: &KeyArgs) -> Result<HotkeySecret, Failure> {
    let in_environment = env::var_os(VARIABLE).is_some_and(|value| !value.is_empty());
    match source(args, in_environment, env::home_dir())? {
        Source::Development(uri) => {
            HotkeySecret::from_uri(&uri).map_err(|error| bad_uri("--hotkey-uri", error))
        }
        Source::Environment => {
            let uri = Zeroizing::new(env::var(VARIABLE).unwrap_or_default());
            HotkeySecret::from_uri(uri.trim()).map_err(|error| bad_uri(VARIABLE, error))
        }
        Source::File(path) => of_file(&path, &|| "check the path given with --hotkey-file".to_owned()),
        Source::Wallet(path) => of_file(&path, &|| others(&path)),
    }
}

fn source(args: &KeyArgs, in_environment: bool, home: Option<PathBuf>) -> Result<Source, Failure> {
    if let Some(uri) = &args.hotkey_uri {
        if !is_public(uri) {
            let detail =
                "--hotkey-uri takes development keys such as //Alice only: other users see arguments";
            let advice = format!("put the secret into {VARIABLE}, or into a file for --hotkey-file");
            return Err(Failure::local(ATTEMPTED, detail, &advice).exiting(exit::USAGE));
        }
        return Ok(Source::Development(uri.clone()));
    }
    if let Some(path) = &args.hotkey_file {
        return Ok(Source::File(path.clone()));
    }
    if args.wallet.is_none() && args.hotkey.is_none() && in_environment {
        return Ok(Source::Environment);
    }
    let name = |given: &Option<String>| given.clone().unwrap_or_else(|| DEFAULT.to_owned());
    let (wallet, hotkey) = (name(&args.wallet), name(&args.hotkey));
    for name in [&wallet, &hotkey] {
        if name.is_empty() || name.starts_with('.') || name.contains('/') {
            let detail = format!("{name:?} is not the name of a wallet or hotkey");
            return Err(
                Failure::local(ATTEMPTED, &detail, "name a file with --hotkey-file").exiting(exit::USAGE)
            );
        }
    }
    let home = home.ok_or_else(|| {
        Failure::local(ATTEMPTED, "this user has no home directory", "name a file with --hotkey-file")
    })?;
    Ok(Source::Wallet(home.join(".bittensor/wallets").join(wallet).join("hotkeys").join(hotkey)))
}

fn of_file(path: &Path, missing: &dyn Fn() -> String) -> Result<HotkeySecret, Failure> {
    let attempted = format!("{ATTEMPTED} {}", path.display());
    let bytes = read(path).map_err(|error| {
        let advice = if error.kind() == io::ErrorKind::NotFound {
            missing()
        } else {
            "run this as the user who owns the wallet".to_owned()
        };
        Failure::local(&attempted, &error.to_string(), &advice)
    })?;
    let secret = HotkeySecret::from_keyfile(&bytes)
        .map_err(|error| Failure::local(&attempted, &error.to_string(), error.suggestion()))?;
    if is_open(path) {
        let path = path.display();
        output::say(&format!("other users of this machine can read {path}: chmod 600 {path}"));
    }
    Ok(secret)
}

fn read(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::new());
    let limit = u64::try_from(KEYFILE_BYTES_MAX.0).unwrap_or(0);
    File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(unix)]
fn is_open(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o077 != 0)
}

#[cfg(not(unix))]
fn is_open(_: &Path) -> bool {
    false
}

/// What to do where a wallet has no such hotkey: the ones it has, if any.
fn others(path: &Path) -> String {
    let beside = path.parent().map(fs::read_dir);
    let mut names: Vec<String> = beside
        .into_iter()
        .flatten()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| !name.starts_with('.') && !name.ends_with("pub.txt"))
        .collect();
    names.sort_unstable();
    if names.is_empty() {
        return format!(
            "say which with --wallet and --hotkey, --hotkey-file or {VARIABLE}; `btcli wallet new-hotkey` makes one"
        );
    }
    format!("this wallet has {}: say which with --hotkey", names.join(", "))
}

fn bad_uri(place: &str, error: BadUri) -> Failure {
    let detail = format!("{place} is no secret URI: {error}");
    Failure::local(ATTEMPTED, &detail, "write it as MNEMONIC, MNEMONIC//path, 0xSEED or //Alice")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(wallet: Option<&str>, hotkey: Option<&str>) -> KeyArgs {
        KeyArgs { wallet: wallet.map(Into::into), hotkey: hotkey.map(Into::into), ..KeyArgs::default() }
    }

    fn path(args: &KeyArgs) -> PathBuf {
        match source(args, false, Some("/home/a".into())).expect("a source") {
            Source::Wallet(path) => path,
            other @ (Source::Development(_) | Source::Environment | Source::File(_)) => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_wallet_and_a_hotkey_name_a_file_as_bittensor_does() {
        let base = Path::new("/home/a/.bittensor/wallets");
        assert_eq!(path(&named(Some("w"), Some("h"))), base.join("w/hotkeys/h"));
        assert_eq!(path(&named(None, None)), base.join("default/hotkeys/default"));
    }

    #[test]
    fn the_environment_serves_where_no_wallet_is_named() {
        assert_eq!(source(&named(None, None), true, None), Ok(Source::Environment));
        assert!(matches!(source(&named(Some("w"), None), true, Some("/".into())), Ok(Source::Wallet(_))));
    }

    #[test]
    fn a_secret_on_the_command_line_is_refused_without_being_repeated() {
        let args = KeyArgs { hotkey_uri: Some("bottom drive obey".into()), ..KeyArgs::default() };
        let failure = source(&args, false, None).expect_err("a secret");
        assert_eq!(failure.code, exit::USAGE);
        assert!(!failure.to_string().contains("bottom") && failure.to_string().contains(VARIABLE));
    }

    #[test]
    fn a_name_cannot_leave_the_wallets_directory() {
        for name in ["", "..", "../x", "a/b", "/etc"] {
            assert!(source(&named(Some(name), None), false, Some("/home/a".into())).is_err(), "{name}");
        }
    }

    #[test]
    fn a_missing_hotkey_names_those_that_are_there() {
        let dir = tempfile::tempdir().expect("a directory");
        for name in ["b", "a", "apub.txt"] {
            fs::write(dir.path().join(name), "//Alice").expect("written");
        }
        let missing = dir.path().join("c");
        let failure = of_file(&missing, &|| others(&missing)).expect_err("no such file");
        assert!(failure.to_string().ends_with("this wallet has a, b: say which with --hotkey"), "{failure}");
        assert!(of_file(&dir.path().join("a"), &String::new).is_ok());
    }
}
