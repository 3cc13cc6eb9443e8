//! The private Postgres of one machine: it survives kill -9, and making it is all or nothing.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::Child,
    time::{Duration, Instant},
};

use nave_domain::{CustomerId, MicroUsd};
use nave_store::{Store, embedded::Postgres};

/// A running server that ends with the test.
struct Server {
    postgres: Postgres,
    child: Child,
}

impl Drop for Server {
    fn drop(&mut self) {
        // Nothing can be done about a server that is gone already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Server {
    /// Starts the server as a supervisor does: again when it ends, until it answers. Right
    /// after a crash it refuses to start while a process of the last one is still ending.
    async fn start(dir: &Path) -> Self {
        let postgres = Postgres::prepare(dir).expect("prepare");
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let child = postgres.command().expect("command").spawn().expect("spawn");
            let mut server = Self { postgres: postgres.clone(), child };
            tokio::select! {
                ready = postgres.ready() => {
                    ready.expect("ready");
                    return server;
                }
                () = ended(&mut server.child) => {}
            }
            assert!(Instant::now() < deadline, "the server does not start: {}", log_of(dir));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn store(&self) -> impl Future<Output = Store> + use<> {
        let url = self.postgres.url();
        async move { Store::connect(&url).await.expect("connect") }
    }
}

async fn ended(child: &mut Child) {
    while child.try_wait().expect("wait").is_none() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn log_of(dir: &Path) -> String {
    fs::read_to_string(dir.join("postgres.log")).unwrap_or_default()
}

fn place() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("nave-pg-").tempdir().expect("a directory")
}

async fn customer_with_money(store: &Store) -> CustomerId {
    store.migrate().await.expect("migrate");
    let customer = store.customer_ensure("ada").await.expect("a customer");
    store.credit(customer, "first", MicroUsd(7)).await.expect("credit");
    customer
}

async fn assert_money(store: &Store, customer: CustomerId) {
    assert_eq!(store.balance(customer).await.expect("balance").available, MicroUsd(7));
    assert_eq!(store.ledger_audit().await.expect("audit"), Vec::<String>::new());
}

#[tokio::test]
async fn what_was_committed_survives_kill_9_of_the_server() {
    let dir = place();
    let mut server = Server::start(dir.path()).await;
    let store = server.store().await;
    let customer = customer_with_money(&store).await;
    for _ in 0..2 {
        server.child.kill().expect("kill -9");
        server.child.wait().expect("reap");
        server = Server::start(dir.path()).await;
        assert_money(&store, customer).await;
    }
}

#[tokio::test]
async fn preparing_again_leaves_a_running_server_and_its_data_alone() {
    let dir = place();
    let server = Server::start(dir.path()).await;
    let store = server.store().await;
    let customer = customer_with_money(&store).await;
    let again = Postgres::prepare(dir.path()).expect("prepare again");
    assert_eq!(again.url(), server.postgres.url());
    again.ready().await.expect("ready");
    store.migrate().await.expect("migrating again is a no-op");
    assert_money(&store, customer).await;
}

#[tokio::test]
async fn an_interrupted_initdb_is_begun_anew() {
    let dir = place();
    let half = dir.path().join("data.new");
    fs::create_dir_all(half.join("base")).expect("half a cluster");
    fs::write(half.join("PG_VERSION"), "15\n").expect("half a cluster");
    let server = Server::start(dir.path()).await;
    assert!(!half.exists());
    let customer = customer_with_money(&server.store().await).await;
    assert_money(&server.store().await, customer).await;
}

#[tokio::test]
async fn only_its_own_account_reaches_the_server() {
    let dir = place();
    let server = Server::start(dir.path()).await;
    for path in [dir.path().to_owned(), dir.path().join("run"), dir.path().join("data")] {
        let mode = fs::metadata(&path).expect("metadata").permissions().mode();
        assert_eq!(mode & 0o077, 0, "{} is open to others: {mode:o}", path.display());
    }
    assert!(server.postgres.url().starts_with("postgres://nave@localhost:5432/nave?host="));
    let pid_file = fs::read_to_string(dir.path().join("data/postmaster.pid")).expect("the pid file");
    assert_eq!(pid_file.lines().nth(5), Some(""), "it listens on no network address");
}

#[test]
fn a_directory_that_its_account_cannot_enter_is_refused_by_name() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let closed = tempfile::tempdir().expect("a directory");
    fs::set_permissions(closed.path(), fs::Permissions::from_mode(0o700)).expect("close it");
    let refused = Postgres::prepare(&closed.path().join("pg")).expect_err("it cannot be entered");
    assert!(refused.to_string().contains(&closed.path().display().to_string()), "{refused}");
}
