//! What `naved` refuses to begin, and how it says why.

use std::{
    net::TcpListener,
    path::Path,
    process::{Command, Stdio},
};

/// Runs `naved` on the market in `data`, which must fail, and returns what it said.
fn refusal(data: &Path, arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_naved"))
        .args(arguments)
        .env("NAVE_DATA", data)
        .env_remove("NAVE_DATABASE")
        .stdin(Stdio::null())
        .output()
        .expect("naved runs");
    assert!(!output.status.success(), "{arguments:?} succeeded");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_taken_address_is_named_at_once_with_and_without_a_terminal() {
    let data = tempfile::tempdir().expect("a directory");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let api = taken.local_addr().expect("its address").to_string();
    for arguments in [&["up", "--api", &api][..], &["up", "--detach", "--api", &api]] {
        let said = refusal(data.path(), arguments);
        assert!(said.contains(&api) && said.contains("choose another address with --api"), "{said}");
    }
    assert!(!data.path().join("postgres").exists(), "nothing was started");
}

#[test]
fn who_names_an_engine_gets_no_simulated_one_instead() {
    let data = tempfile::tempdir().expect("a directory");
    let said = refusal(data.path(), &["up", "--docker", "/nonexistent.sock", "--api", "127.0.0.1:0"]);
    assert!(said.contains("cannot run jobs in Docker"), "{said}");
}

#[test]
fn an_operator_without_a_market_is_told_so_and_none_is_made() {
    let data = tempfile::tempdir().expect("a directory");
    let said = refusal(data.path(), &["admin", "audit"]);
    assert!(said.contains("there is no database in"), "{said}");
    assert_eq!(std::fs::read_dir(data.path()).expect("the directory").count(), 0);
}
