//! Where the API is and who is calling: flags over environment over file.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

use nave_sdk::client::Client;
use serde::Deserialize;

use super::{args::Global, failure::Failure};

/// The configuration file, as `naved up` writes it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// URL of the API.
    pub url: Option<String>,
    /// API token, sent to that URL only.
    pub token: Option<String>,
}

/// What applies after all sources were read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// URL of the API.
    pub url: Option<String>,
    /// API token.
    pub token: Option<String>,
    /// Where the file is or would be.
    pub path: Option<PathBuf>,
    /// Whether it exists.
    pub found: bool,
}

/// Joins flags, environment (which the parser has put into the flags) and file.
///
/// # Errors
/// [`Failure`] when the file exists and cannot be used.
pub fn settings(global: &Global) -> Result<Settings, Failure> {
    let path = config_path(env::var_os("XDG_CONFIG_HOME").map(PathBuf::from), env::home_dir());
    let file = match &path {
        Some(path) => read(path)?,
        None => None,
    };
    Ok(join(global, file, path))
}

fn join(global: &Global, file: Option<File>, path: Option<PathBuf>) -> Settings {
    let found = file.is_some();
    let file = file.unwrap_or_default();
    let url = global.url.clone().filter(|url| !url.is_empty());
    // The file's token belongs to the file's URL: another server must not be handed it.
    let same_server = url.is_none() || url == file.url;
    let token = global.token.clone().or(file.token.filter(|_| same_server));
    Settings { url: url.or(file.url), token, path, found }
}

fn config_path(xdg: Option<PathBuf>, home: Option<PathBuf>) -> Option<PathBuf> {
    let base = xdg.filter(|dir| dir.is_absolute()).or_else(|| home.map(|home| home.join(".config")))?;
    Some(base.join("nave").join("config.toml"))
}

fn read(path: &Path) -> Result<Option<File>, Failure> {
    let attempted = || format!("read the configuration file {}", path.display());
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(Failure::local(&attempted(), &error.to_string(), "correct its permissions"));
        }
    };
    // The parser's own message quotes the line, which may hold the token.
    let parsed = toml::from_str(&text);
    parsed.map(Some).map_err(|error: toml::de::Error| {
        Failure::local(&attempted(), error.message(), "its keys are url and token; `nave up` writes it anew")
    })
}

impl Settings {
    /// A client for these settings.
    ///
    /// # Errors
    /// [`Failure`] when no URL is known or a setting cannot be used.
    pub fn client(&self) -> Result<Client, Failure> {
        let Some(url) = &self.url else {
            let advice = "start a market on this machine with `nave up`, or set NAVE_URL and NAVE_TOKEN";
            return Err(Failure::local("find the API", "no URL is configured", advice));
        };
        Client::new(url, self.token.as_deref()).map_err(Failure::when("prepare a connection"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn global(url: Option<&str>, token: Option<&str>) -> Global {
        Global { url: url.map(str::to_owned), token: token.map(str::to_owned), ..Global::default() }
    }

    fn file() -> Option<File> {
        Some(File { url: Some("http://file".into()), token: Some("file-token".into()) })
    }

    fn joined(global: &Global, file: Option<File>) -> (Option<String>, Option<String>) {
        let settings = join(global, file, None);
        (settings.url, settings.token)
    }

    #[test]
    fn flags_win_over_the_file() {
        let expected = (Some("http://flag".to_owned()), Some("flag".to_owned()));
        assert_eq!(joined(&global(Some("http://flag"), Some("flag")), file()), expected);
    }

    #[test]
    fn the_files_token_is_not_sent_to_another_server() {
        assert_eq!(joined(&global(Some("http://evil"), None), file()), (Some("http://evil".into()), None));
        let same = joined(&global(Some("http://file"), None), file());
        assert_eq!(same.1.as_deref(), Some("file-token"));
    }

    #[test]
    fn the_file_lies_where_the_system_keeps_configuration() {
        let home = Some(PathBuf::from("/home/a"));
        assert_eq!(config_path(None, home.clone()), Some("/home/a/.config/nave/config.toml".into()));
        assert_eq!(config_path(Some("/x".into()), home.clone()), Some("/x/nave/config.toml".into()));
        assert_eq!(
            config_path(Some("relative".into()), home),
            Some("/home/a/.config/nave/config.toml".into())
        );
        assert_eq!(config_path(None, None), None);
    }

    #[test]
    fn a_message_about_a_broken_file_never_quotes_its_token() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("config.toml");
        fs::write(&path, "token = nave_secret").expect("written");
        let failure = read(&path).expect_err("not TOML");
        assert!(!failure.to_string().contains("nave_secret"), "{failure}");
    }
}
