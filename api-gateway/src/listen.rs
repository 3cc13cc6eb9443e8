//! Accepting connections and speaking HTTP on them, within bounds: how many there are, how
//! many come from one address, and how long the head of a request may take.

use std::{
    collections::HashMap,
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{Router, extract::ConnectInfo};
use hyper::{
    body::Incoming,
    server::conn::http1,
    service::{Service as _, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::sleep,
};

/// Longest time from the end of one request to the end of the head of the next: a
/// connection that only waits, or writes its head a byte at a time, ends then.
const HEAD_MAX: Duration = Duration::from_secs(30);
/// Largest head of a request, in bytes.
const HEAD_BYTES_MAX: usize = 32 << 10;
/// Failures to accept in a row after which the listener is given up.
const FAILURES_MAX: u32 = 10;
/// Pause after a failure to accept.
const PAUSE: Duration = Duration::from_millis(200);

/// How many connections may be open at a time; more wait to be accepted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// All together.
    pub(crate) all: u32,
    /// From one address; more are closed at once.
    pub(crate) per_address: u32,
}

/// Open connections to one service.
#[derive(Clone)]
pub(crate) struct Connections {
    router: Router,
    bounds: Bounds,
    room: Arc<Semaphore>,
    open: Arc<Mutex<HashMap<IpAddr, u32>>>,
    stopping: watch::Receiver<bool>,
}

impl Connections {
    pub(crate) fn new(router: Router, bounds: Bounds, stopping: watch::Receiver<bool>) -> Self {
        let room = Arc::new(Semaphore::new(bounds.all as usize));
        Self { router, bounds, room, open: Arc::default(), stopping }
    }

    /// Accepts connections and serves them.
    ///
    /// # Errors
    /// When the listener fails again and again; connections that are open live on.
    pub(crate) async fn accept(&self, listener: &TcpListener) -> io::Result<Infallible> {
        let mut failures = 0;
        loop {
            // Never closed, so there is always a permit in the end.
            let Ok(room) = self.room.clone().acquire_owned().await else { continue };
            match listener.accept().await {
                Ok((stream, from)) => {
                    failures = 0;
                    self.open(stream, from, room);
                }
                Err(error) if is_the_peers(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    failures += 1;
                    if failures >= FAILURES_MAX {
                        return Err(error);
                    }
                    sleep(PAUSE).await;
                }
            }
        }
    }

    /// Serves one connection; `room` is given back at its end.
    fn open(&self, stream: TcpStream, from: SocketAddr, room: OwnedSemaphorePermit) {
        let Some(place) = self.place(from.ip().to_canonical()) else {
            tracing::debug!(%from, "too many connections from one address; this one is closed");
            return;
        };
        let (service, stopping) = (TowerToHyperService::new(self.router.clone()), self.stopping.clone());
        // Without it events wait for the acknowledgement of the ones before.
        let _ = stream.set_nodelay(true);
        tokio::spawn(async move {
            let _held = (room, place);
            speak(stream, from, service, stopping).await;
        });
    }

    fn place(&self, address: IpAddr) -> Option<Place> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(address).or_default();
        if *count >= self.bounds.per_address {
            return None;
        }
        *count += 1;
        Some(Place { open: self.open.clone(), address })
    }

    /// Returns when every connection has ended.
    pub(crate) async fn ended(&self) {
        drop(self.room.acquire_many(self.bounds.all).await);
    }
}

/// A connection's place among those of its address; free again when dropped.
struct Place {
    open: Arc<Mutex<HashMap<IpAddr, u32>>>,
    address: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.address);
            }
        }
    }
}

/// Answers requests until the peer leaves, or until the gateway stops and the present one is answered.
async fn speak(
    stream: TcpStream,
    from: SocketAddr,
    service: TowerToHyperService<Router>,
    mut stopping: watch::Receiver<bool>,
) {
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(from));
        service.call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = async { drop(stopping.wait_for(|stopping| *stopping).await) } => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::trace!(%from, %error, "a connection broke off");
    }
}

/// Whether a failure to accept is about the one connection and says nothing about the listener.
fn is_the_peers(error: &io::Error) -> bool {
    use io::ErrorKind as E;
    matches!(error.kind(), E::ConnectionRefused | E::ConnectionAborted | E::ConnectionReset)
}
