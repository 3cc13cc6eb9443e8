//! `nave doctor`: what is wrong and how to fix it.

use nave_domain::host::HostState;
use nave_sdk::client::{Client, Patience};
use serde::Serialize;

use super::{
    args::Global,
    config::{self, Settings},
    failure::{Failure, exit},
    output,
    table::clean,
};

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Check {
    name: &'static str,
    ok: bool,
    /// Whether nothing works without it.
    essential: bool,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

#[derive(Debug, Serialize)]
struct Report {
    ok: bool,
    checks: Vec<Check>,
}

impl Check {
    fn good(name: &'static str, detail: &str) -> Self {
        Self { name, ok: true, essential: true, detail: detail.to_owned(), fix: None }
    }

    fn bad(name: &'static str, detail: &str, fix: &str) -> Self {
        Self { name, ok: false, essential: true, detail: detail.to_owned(), fix: Some(fix.to_owned()) }
    }

    fn minor(self) -> Self {
        Self { essential: false, ..self }
    }

    fn of(name: &'static str, failure: &Failure) -> Self {
        let check = Self::bad(name, &failure.problem.detail, &failure.problem.suggestion);
        // A key may be made for less than this check asks.
        if failure.problem.status == 403 { check.minor() } else { check }
    }
}

/// Makes every check and returns 0 when all essential ones pass.
pub async fn doctor(global: &Global) -> Result<u8, Failure> {
    let checks = checks(global).await;
    let ok = checks.iter().all(|check| check.ok || !check.essential);
    let report = Report { ok, checks };
    if global.json {
        output::print_json(&report)?;
    } else {
        output::print(&text(&report))?;
    }
    Ok(if ok { 0 } else { exit::ERROR })
}

async fn checks(global: &Global) -> Vec<Check> {
    let settings = match config::settings(global) {
        Ok(settings) => settings,
        Err(failure) => return vec![Check::of("configuration", &failure)],
    };
    let mut checks = vec![configuration(&settings)];
    checks.extend(privacy(&settings));
    match settings.client() {
        Ok(client) => {
            let client =
                client.patience(Patience { total: std::time::Duration::ZERO, ..Patience::default() });
            checks.extend(online(&client).await);
        }
        Err(failure) => checks.push(Check::of("API", &failure)),
    }
    checks
}

fn configuration(settings: &Settings) -> Check {
    let path = settings
        .path
        .as_ref()
        .map_or_else(|| "no home directory".to_owned(), |path| path.display().to_string());
    if settings.found {
        return Check::good("configuration", &path);
    }
    let fix = "`nave up` writes it on a machine that runs a market; elsewhere set NAVE_URL and NAVE_TOKEN";
    Check::bad("configuration", &format!("{path} does not exist"), fix).minor()
}

/// Who else can read the token: other users of this machine, or the network.
fn privacy(settings: &Settings) -> Vec<Check> {
    let mut checks = Vec::new();
    if let Some(path) = settings.path.as_ref().filter(|_| settings.found)
        && is_shared(path)
    {
        let detail = format!("{} can be read by other users", path.display());
        checks.push(Check::bad("file mode", &detail, &format!("chmod 600 {}", path.display())).minor());
    }
    if let Some(url) = settings.url.as_ref().filter(|url| settings.token.is_some() && is_open(url)) {
        let detail = format!("{url} carries the token unencrypted");
        checks.push(Check::bad("encryption", &detail, "use an https URL or a tunnel").minor());
    }
    checks
}

#[cfg(unix)]
fn is_shared(path: &std::path::Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(path).is_ok_and(|file| file.permissions().mode() & 0o077 != 0)
}

#[cfg(not(unix))]
fn is_shared(_path: &std::path::Path) -> bool {
    false
}

/// Whether a URL leaves this machine without TLS.
fn is_open(url: &str) -> bool {
    let Some(rest) = url.strip_prefix("http://") else { return false };
    let host = rest.split('/').next().unwrap_or_default();
    let local =
        |name: &str| host == name || host.strip_prefix(name).is_some_and(|port| port.starts_with(':'));
    !["127.0.0.1", "localhost", "[::1]"].into_iter().any(local)
}

async fn online(client: &Client) -> Vec<Check> {
    let health = match client.health().await.map_err(Failure::when("ask")) {
        Ok(health) => health,
        Err(failure) => return vec![Check::of("API", &failure)],
    };
    let mut checks = vec![Check::good("API", &format!("version {}", health.version))];
    if health.status != "ok" {
        let detail = format!("{}: {}", health.status, health.problems.join("; "));
        checks.push(Check::bad("control plane", &detail, "see the logs of naved").minor());
    }
    checks.push(match &health.default_image {
        Some(image) => Check::good("default image", image).minor(),
        None => Check::bad("default image", "none", "name an image with every job (--image)").minor(),
    });
    checks.push(token(client).await);
    checks.push(hosts(client).await);
    checks
}

async fn token(client: &Client) -> Check {
    match client.balance().await.map_err(Failure::when("ask")) {
        Ok(balance) => Check::good("token", &format!("{} can be spent", balance.available)),
        Err(failure) => Check::of("token", &failure),
    }
}

async fn hosts(client: &Client) -> Check {
    let hosts = match client.hosts().await.map_err(Failure::when("ask")) {
        Ok(hosts) => hosts,
        Err(failure) => return Check::of("hosts", &failure),
    };
    let ready = hosts.iter().filter(|host| host.state == HostState::Ready).count();
    let detail = format!("{ready} of {} ready", hosts.len());
    if ready > 0 {
        return Check::good("hosts", &detail);
    }
    let fix = if hosts.is_empty() {
        "`nave miner ticket` lets a host join; `nave up` makes this machine one"
    } else {
        "wait a few seconds, then look at `nave hosts` and the logs of the agents"
    };
    Check::bad("hosts", &detail, fix)
}

fn text(report: &Report) -> String {
    let line = |check: &Check| {
        let mark = match (check.ok, check.essential) {
            (true, _) => "ok",
            (false, true) => "FAIL",
            (false, false) => "note",
        };
        let fix = check.fix.as_ref().map(|fix| format!("\n{:22}try: {}", "", clean(fix))).unwrap_or_default();
        format!("{mark:<6}{:<16}{}{fix}\n", check.name, clean(&check.detail))
    };
    report.checks.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failed_check_says_what_to_do() {
        let checks = vec![
            Check::good("configuration", "/home/a/.config/nave/config.toml"),
            Check::bad("API", "cannot connect to http://127.0.0.1:1/v1/health", "nave up"),
            Check::bad("default image", "none", "name one").minor(),
        ];
        super::super::golden::check("doctor.txt", &text(&Report { ok: false, checks }));
    }

    #[test]
    fn only_a_url_that_leaves_the_machine_in_the_clear_is_open() {
        let open = |url| is_open(url);
        assert!(
            open("http://example.org") && open("http://127.0.0.1.evil.org") && open("http://localhosts:1")
        );
        assert!(!open("https://example.org") && !open("http://127.0.0.1:8080/x") && !open("http://[::1]:1"));
    }
}
