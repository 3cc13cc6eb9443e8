//! Listening, serving and stopping.

use std::{
    fs::{self, DirBuilder},
    future::Future,
    io,
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt},
    path::Path,
    time::Duration,
};

use anyhow::Context as _;
use axum::serve::ListenerExt;
use nave_store::Store;
use tokio::{
    net::{TcpListener, UnixListener, UnixStream},
    sync::watch,
    time::{MissedTickBehavior, interval, timeout},
};

use crate::{app::App, config::Config, host, routes};

/// Time between beats of the control clock; each may add one second at most.
const BEAT: Duration = Duration::from_millis(500);
/// Longest time that answers under way may take after the end was asked for.
const GRACE: Duration = Duration::from_secs(5);

/// A gateway that listens and does not answer yet.
pub struct Gateway {
    api: TcpListener,
    hosts: UnixListener,
    config: Config,
    store: Store,
}

impl Gateway {
    /// Listens on both places.
    ///
    /// # Errors
    /// When an address is taken, or the socket cannot be made.
    pub async fn bind(config: Config, store: Store) -> anyhow::Result<Self> {
        let api = TcpListener::bind(config.api)
            .await
            .with_context(|| format!("listen for customers on {}", config.api))?;
        let hosts = bind_private(&config.host_socket)
            .await
            .with_context(|| format!("listen for hosts on {}", config.host_socket.display()))?;
        Ok(Self { api, hosts, config, store })
    }

    /// Where customers connect.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn api(&self) -> io::Result<SocketAddr> {
        self.api.local_addr()
    }

    /// Serves until `shutdown`, then lets answers under way finish for a short time.
    ///
    /// # Errors
    /// When a listener fails.
    pub async fn serve(self, shutdown: impl Future<Output = ()> + Send) -> anyhow::Result<()> {
        let (stop, stopping) = watch::channel(false);
        let app = App::new(self.config, self.store, stopping.clone());
        let api = self.api.tap_io(|connection| {
            // Without it events wait for the acknowledgement of the ones before.
            let _ = connection.set_nodelay(true);
        });
        let customers =
            axum::serve(api, routes::router(&app)).with_graceful_shutdown(ended(stopping.clone()));
        let hosts = host::router(&app).into_make_service_with_connect_info::<host::Peer>();
        let hosts = axum::serve(self.hosts, hosts).with_graceful_shutdown(ended(stopping));
        let served = async { tokio::try_join!(customers.into_future(), hosts.into_future()) };
        tokio::pin!(served);
        tokio::select! {
            failed = &mut served => return failed.map(drop).context("serve"),
            () = beat(&app.store) => {}
            () = shutdown => {}
        }
        let _ = stop.send(true);
        match timeout(GRACE, served).await {
            Ok(done) => done.map(drop).context("finish answers"),
            Err(_) => Ok(()),
        }
    }
}

async fn ended(mut stopping: watch::Receiver<bool>) {
    // An error means that the sender is gone, which ends it as well.
    drop(stopping.wait_for(|stopping| *stopping).await);
}

/// Advances the control clock for as long as hosts can reach this gateway.
async fn beat(store: &Store) {
    let mut beats = interval(BEAT);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        beats.tick().await;
        if let Err(error) = store.clock_beat().await {
            tracing::debug!(%error, "the control clock stands still");
        }
    }
}

/// A unix socket that only this user may open, from its first moment on: it is made in a
/// private directory, closed to others, then moved over whatever an earlier gateway left.
async fn bind_private(path: &Path) -> anyhow::Result<UnixListener> {
    if let Ok(left) = fs::symlink_metadata(path) {
        anyhow::ensure!(left.file_type().is_socket(), "there is something else in this place");
        anyhow::ensure!(UnixStream::connect(path).await.is_err(), "another gateway listens there");
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent)?;
    let private = parent.join(format!(".{}", std::process::id()));
    DirBuilder::new().recursive(true).mode(0o700).create(&private)?;
    let made = move_into_place(&private.join("s"), path);
    // Left behind it does no harm; the next gateway of this process id uses it again.
    drop(fs::remove_dir_all(&private));
    made
}

fn move_into_place(fresh: &Path, path: &Path) -> anyhow::Result<UnixListener> {
    // There is one when an earlier process of this id was killed between the steps.
    drop(fs::remove_file(fresh));
    let listener = UnixListener::bind(fresh)?;
    fs::set_permissions(fresh, fs::Permissions::from_mode(0o600))?;
    fs::rename(fresh, path)?;
    Ok(listener)
}
