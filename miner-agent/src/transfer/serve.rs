//! The side that sends.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::Context as _;
use nave_sdk::wire::{
    host::Serve,
    proof::{
        Nonce,
        transfer::{Content, PIECE},
    },
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::{sleep, timeout},
};

/// How long one connection may last, asked or not.
const CONNECTION: Duration = Duration::from_secs(180);
/// How often the bytes are sent: a host that was restarted asks again.
const TIMES_MAX: u32 = 4;
/// Pause before the address is tried again: the mesh interface may be made anew just now.
const AGAIN: Duration = Duration::from_millis(500);

/// A service under way; dropped, it is ended.
#[derive(Debug)]
pub struct Serving(JoinHandle<()>);

impl Serving {
    /// Serves at this host's own address in the mesh until it is dropped.
    #[must_use]
    pub fn begin(own: Ipv6Addr, wish: Serve) -> Self {
        Self(tokio::spawn(async move {
            let listener = loop {
                match TcpListener::bind((own, wish.port)).await {
                    Ok(listener) => break listener,
                    Err(error) => tracing::debug!(%error, port = wish.port, "the port cannot be used yet"),
                }
                sleep(AGAIN).await;
            };
            serve(&listener, &wish).await;
        }))
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Serves one connection after the other, and nobody but the one who is meant.
pub async fn serve(listener: &TcpListener, wish: &Serve) {
    let mut times = 0;
    while times < TIMES_MAX {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "a connection was not taken");
                sleep(AGAIN).await;
                continue;
            }
        };
        if !is_peer(from, wish.peer) {
            continue;
        }
        match timeout(CONNECTION, send(stream, wish)).await {
            Ok(Ok(())) => times += 1,
            Ok(Err(error)) => tracing::debug!(error = format!("{error:#}"), "a transfer broke off"),
            Err(_) => tracing::debug!("a transfer took too long"),
        }
    }
}

fn is_peer(from: SocketAddr, peer: Ipv6Addr) -> bool {
    from.ip() == IpAddr::V6(peer)
}

async fn send(mut stream: TcpStream, wish: &Serve) -> anyhow::Result<()> {
    let mut request = [0; 32];
    stream.read_exact(&mut request).await.context("wait for the request")?;
    let content = Content::of(&wish.key, &Nonce(request));
    let mut chunk = vec![0; PIECE];
    for number in 0..wish.bytes / PIECE as u64 {
        content.chunk(number, &mut chunk);
        stream.write_all(&chunk).await.context("send a chunk")?;
    }
    stream.shutdown().await.context("end the transfer")
}
