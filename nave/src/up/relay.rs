//! Lets hosts in namespaces reach the registry on this machine's loopback under the same
//! address: image references mean the same everywhere, however many local hosts there are.

use std::{future::Future, net::TcpListener, time::Duration};

use anyhow::Context as _;
use nave_mesh::Namespace;
use tokio::{io::copy_bidirectional, net::TcpStream, task::JoinSet};

use crate::cli::RelayArgs;

/// Hands connections from the loopback of each namespace to the same port of this one.
///
/// # Errors
/// When it cannot listen.
pub async fn run(args: RelayArgs, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    let mut relays = JoinSet::new();
    for name in &args.namespace {
        let listener = Namespace::named(name)?
            .enter(|| TcpListener::bind(args.address))?
            .with_context(|| format!("listen on {} in {name}", args.address))?;
        listener.set_nonblocking(true)?;
        relays.spawn(relay(tokio::net::TcpListener::from_std(listener)?, args.address));
    }
    shutdown.await;
    Ok(())
}

async fn relay(listener: tokio::net::TcpListener, to: std::net::SocketAddr) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((connection, _)) => { connections.spawn(join(connection, to)); }
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// An end on either side is seen by the other, which knows what to make of it.
async fn join(mut from: TcpStream, to: std::net::SocketAddr) {
    if let Ok(mut to) = TcpStream::connect(to).await {
        drop(copy_bidirectional(&mut from, &mut to).await);
    }
}
