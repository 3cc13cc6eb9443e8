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

/// The usual [`Bounds::head`].
pub(crate) const HEAD_MAX: Duration = Duration::from_secs(30);
/// Largest head of a request, in bytes.
const HEAD_BYTES_MAX: usize = 32 << 10;
/// Failures to accept in a row after which the listener is given up.
const FAILURES_MAX: u32 = 10;
/// Pause after a failure to accept.
const PAUSE: Duration = Duration::from_millis(200);

/// What connections may cost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Longest time from the end of one request to the end of the head of the next: a
    /// connection that only waits, or writes its head a byte at a time, ends then.
    pub(crate) head: Duration,
    /// How many may be open at a time; more wait to be accepted.
    pub(crate) all: u32,
    /// How many of them may come from one address; more are closed at once.
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
        let head = self.bounds.head;
        // Without it events wait for the acknowledgement of the ones before.
        let _ = stream.set_nodelay(true);
        tokio::spawn(async move {
            let _held = (room, place);
            speak(stream, from, head, service, stopping).await;
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
    head: Duration,
    service: TowerToHyperService<Router>,
    mut stopping: watch::Receiver<bool>,
) {
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(from));
        service.call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head)
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

#[cfg(test)]
mod tests {
    use axum::routing::{get, post};
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpSocket,
        task::JoinHandle,
        time::timeout,
    };

    use super::*;

    const BOUNDS: Bounds = Bounds { head: Duration::from_millis(500), all: 3, per_address: 2 };
    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: nave\r\n\r\n";
    /// More than any of these waits takes on a busy machine.
    const LONG: Duration = Duration::from_secs(20);

    struct Served {
        address: SocketAddr,
        connections: Connections,
        stop: watch::Sender<bool>,
        task: JoinHandle<()>,
    }

    impl Drop for Served {
        fn drop(&mut self) {
            self.task.abort();
        }
    }

    async fn serve(bounds: Bounds) -> Served {
        let slow = async || {
            sleep(Duration::from_millis(400)).await;
            "done"
        };
        let router = Router::new().route("/", get(async || "here")).route("/slow", post(slow));
        let (stop, stopping) = watch::channel(false);
        let connections = Connections::new(router, bounds, stopping);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let accepting = connections.clone();
        let task = tokio::spawn(async move { drop(accepting.accept(&listener).await) });
        Served { address, connections, stop, task }
    }

    async fn connect(served: &Served, from: &str) -> TcpStream {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(format!("{from}:0").parse().expect("an address")).expect("bind");
        socket.connect(served.address).await.expect("connect")
    }

    /// What comes until the peer closes or there is an answer; nothing when it closes at once.
    async fn answer(stream: &mut TcpStream) -> String {
        let mut bytes = [0; 1024];
        let count = timeout(LONG, stream.read(&mut bytes)).await.expect("in time").unwrap_or(0);
        String::from_utf8_lossy(&bytes[..count]).into_owned()
    }

    async fn asked(stream: &mut TcpStream) -> String {
        // The peer may have closed already.
        let _ = stream.write_all(REQUEST).await;
        answer(stream).await
    }

    #[tokio::test]
    async fn a_head_that_comes_a_byte_at_a_time_ends_its_connection() {
        let served = serve(BOUNDS).await;
        let mut slow = connect(&served, "127.0.0.1").await;
        let (mut reader, mut writer) = slow.split();
        let drip = async {
            for byte in REQUEST.iter().cycle().filter(|byte| **byte != b'\n') {
                if writer.write_all(&[*byte]).await.is_err() {
                    break;
                }
                sleep(Duration::from_millis(50)).await;
            }
        };
        let mut bytes = Vec::new();
        tokio::select! {
            () = drip => {}
            closed = timeout(LONG, reader.read_to_end(&mut bytes)) => drop(closed.expect("it is closed")),
        }
        assert!(!String::from_utf8_lossy(&bytes).contains("200 OK"));
    }

    #[tokio::test]
    async fn a_connection_that_only_waits_ends() {
        let served = serve(BOUNDS).await;
        let mut idle = connect(&served, "127.0.0.1").await;
        assert!(asked(&mut idle).await.contains("200 OK"));
        assert_eq!(answer(&mut idle).await, "");
        let mut silent = connect(&served, "127.0.0.1").await;
        let said = answer(&mut silent).await;
        assert!(said.is_empty() || said.contains("408"), "{said}");
    }

    #[tokio::test]
    async fn one_address_leaves_room_for_others() {
        let served = serve(Bounds { head: LONG, ..BOUNDS }).await;
        let mut greedy = Vec::new();
        for _ in 0..2 {
            let mut stream = connect(&served, "127.0.0.2").await;
            assert!(asked(&mut stream).await.contains("200 OK"));
            greedy.push(stream);
        }
        assert_eq!(asked(&mut connect(&served, "127.0.0.2").await).await, "", "closed at once");
        assert!(asked(&mut connect(&served, "127.0.0.3").await).await.contains("200 OK"));
        greedy.pop();
        let mut again = String::new();
        // The end of the other connection takes a moment to be noticed.
        while again.is_empty() {
            again = asked(&mut connect(&served, "127.0.0.2").await).await;
        }
        assert!(again.contains("200 OK"));
    }

    #[tokio::test]
    async fn more_connections_than_there_is_room_for_wait_their_turn() {
        let served = serve(BOUNDS).await;
        let mut held = Vec::new();
        for n in 1..=3 {
            let mut stream = connect(&served, &format!("127.0.0.{n}")).await;
            assert!(asked(&mut stream).await.contains("200 OK"));
            held.push(stream);
        }
        let mut waiting = connect(&served, "127.0.0.4").await;
        waiting.write_all(REQUEST).await.expect("write");
        let mut byte = [0];
        assert!(timeout(Duration::from_millis(100), waiting.peek(&mut byte)).await.is_err(), "not yet");
        drop(held);
        assert!(answer(&mut waiting).await.contains("200 OK"));
    }

    #[tokio::test]
    async fn answers_under_way_are_finished_when_the_gateway_stops() {
        let served = serve(Bounds { head: LONG, ..BOUNDS }).await;
        let mut busy = connect(&served, "127.0.0.1").await;
        busy.write_all(b"POST /slow HTTP/1.1\r\nhost: nave\r\ncontent-length: 0\r\n\r\n")
            .await
            .expect("write");
        let idle = connect(&served, "127.0.0.1").await;
        sleep(Duration::from_millis(100)).await;
        served.stop.send(true).expect("stop");
        assert!(answer(&mut busy).await.contains("200 OK"));
        served.task.abort();
        timeout(LONG, served.connections.ended()).await.expect("all have ended");
        drop(idle);
    }

    #[tokio::test]
    async fn a_huge_head_is_refused() {
        let served = serve(BOUNDS).await;
        let mut stream = connect(&served, "127.0.0.1").await;
        let head = format!("GET / HTTP/1.1\r\nx: {}", "y".repeat(HEAD_BYTES_MAX));
        let _ = stream.write_all(head.as_bytes()).await;
        let said = answer(&mut stream).await;
        assert!(said.is_empty() || said.contains("431"), "{said}");
    }
}
