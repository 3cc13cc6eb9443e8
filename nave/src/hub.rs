//! The hub: the control plane's end of the mesh, kept in line with the rows of hosts.
//!
//! It decides nothing. Whoever is a member gets in with its present key, or its next one
//! where it has announced one; everybody else is removed. A hub that is killed is continued
//! by the next one from the same rows, and while the database is away everything stays.

use std::{
    collections::BTreeSet,
    future::Future,
    net::Ipv6Addr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use nave_crash_point::crash_point;
use nave_domain::{
    HostId,
    mesh::{MTU_MAX, MeshKey, Prefix},
};
use nave_mesh::{
    Backend, Interface, Name, Namespace, Options, Peer, PrivateKey, Program, guard, guard::Pair,
};
use nave_store::{Changes, HubRow, MeshPeer, Store};
use tokio::{sync::broadcast, task::spawn_blocking, time::sleep};

/// TCP port of the host protocol at the hub's address.
pub const HOST_PORT: u16 = 7461;
/// Time between two looks at the rows, should nothing be announced.
const LOOK: Duration = Duration::from_secs(1);
/// Time between two beats; the control clock stands still soon after the last one.
const BEAT: Duration = Duration::from_millis(500);
/// Pause before an interface that did not come up is tried again.
const PAUSE: Duration = Duration::from_secs(1);

/// What a hub is told.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its WireGuard key.
    pub key: PrivateKey,
    /// Its interface.
    pub name: Name,
    /// Where the interface is; the UDP socket stays where this process is.
    pub namespace: Namespace,
    /// The market's addresses.
    pub prefix: Prefix,
    /// UDP port.
    pub port: u16,
    /// Where hosts find the UDP port, best first.
    pub endpoints: Vec<String>,
}

/// An interface that is up, and who it should let in.
struct Hub {
    config: Config,
    interface: Interface,
    /// The peers that were last asked for; none before the rows were read.
    wanted: Mutex<Option<BTreeSet<MeshKey>>>,
}

/// Keeps the hub's interface in line with the rows until `shutdown`.
///
/// # Errors
/// Never by itself: what does not work is tried again.
pub async fn run(config: Config, store: Store, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    let mut changes = store.listen().subscribe();
    let serve = async {
        let hub = Arc::new(bring_up(config).await);
        crash_point!("hub.start.before_announce");
        tokio::join!(reconcile(&hub, &store, &mut changes), beat(&hub, &store));
    };
    tokio::select! {
        () = serve => {}
        () = shutdown => {}
    }
    Ok(())
}

async fn bring_up(config: Config) -> Hub {
    loop {
        let wish = config.clone();
        let up = spawn_blocking(move || interface(&wish)).await.map_err(anyhow::Error::from).flatten();
        match up {
            Ok(interface) => return Hub { config, interface, wanted: Mutex::new(None) },
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "the hub's interface does not come up")
            }
        }
        sleep(PAUSE).await;
    }
}

/// Guarded before it is there: nothing ever passes from host to host unasked.
fn interface(config: &Config) -> anyhow::Result<Interface> {
    let namespace = Namespace::ensure(config.namespace.name())?;
    guard::hub(&config.name, &namespace, &pairs())?;
    Ok(Interface::up(Options {
        name: config.name.clone(),
        namespace: Some(namespace),
        address: config.prefix.hub(),
        prefix: config.prefix,
        mtu: MTU_MAX,
        port: config.port,
        private_key: config.key.clone(),
        backend: Backend::Any,
        program: Program::this(),
    })?)
}

/// Whose packets pass from one host to another: leases of one customer's group. Jobs have
/// no groups yet, so nobody's do.
fn pairs() -> Vec<Pair> {
    Vec::new()
}

async fn reconcile(hub: &Arc<Hub>, store: &Store, changes: &mut broadcast::Receiver<Changes>) {
    let mut announced = false;
    loop {
        let done = async {
            apply(hub, store).await?;
            if !announced {
                store.hub_set(&hub.row()).await.context("say where the hub is")?;
                announced = true;
            }
            anyhow::Ok(())
        };
        if let Err(error) = done.await {
            tracing::warn!(error = format!("{error:#}"), "the mesh stays as it is for now");
        }
        tokio::select! {
            () = sleep(LOOK) => {}
            () = changed(changes) => {}
        }
    }
}

/// Resolves when something was announced that may concern the mesh.
async fn changed(changes: &mut broadcast::Receiver<Changes>) {
    loop {
        match changes.recv().await {
            Ok(Changes::Mesh | Changes::Unknown) | Err(broadcast::error::RecvError::Lagged(_)) => return,
            Ok(Changes::Supply | Changes::Job(_) | Changes::Host(_) | Changes::Challenges) => {}
            // Only polling is left.
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }
}

/// Lets in who the rows say, then says so in the rows.
async fn apply(hub: &Arc<Hub>, store: &Store) -> anyhow::Result<()> {
    let rows = store.mesh_peers().await.context("read who is in the mesh")?;
    crash_point!("hub.peers.before_apply");
    let Wanted { peers, adopted } = wanted(&rows, hub.interface.public_key(), hub.config.prefix);
    let keys = peers.iter().map(|peer| peer.key).collect();
    let inner = Arc::clone(hub);
    spawn_blocking(move || inner.interface.set_peers(&peers)).await??;
    *hub.wanted.lock().unwrap_or_else(PoisonError::into_inner) = Some(keys);
    for (host, key) in adopted {
        crash_point!("hub.key.before_adopt");
        store.mesh_key_adopt(host, &key.to_string()).await.context("adopt a host's next key")?;
    }
    Ok(())
}

/// Whom to let in, and whose next key is thereby in use.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    peers: Vec<Peer>,
    adopted: Vec<(HostId, MeshKey)>,
}

/// A host cannot keep others out: a row that names a key or an address that is not its own
/// to use is passed over. The database sees to it that two hosts never share either.
fn wanted(rows: &[MeshPeer], own: MeshKey, prefix: Prefix) -> Wanted {
    let mut keys = BTreeSet::from([own]);
    let mut addresses = BTreeSet::from([prefix.hub()]);
    let mut wanted = Wanted::default();
    for row in rows {
        let mut usable = |text: &str| text.parse().ok().filter(|key: &MeshKey| keys.insert(*key));
        let next = row.next.as_deref().and_then(&mut usable);
        let key = next.or_else(|| usable(&row.key));
        let address =
            Some(row.address).filter(|address| prefix.contains(*address) && addresses.insert(*address));
        let Some((key, address)) = key.zip(address) else {
            tracing::warn!(host.id = %row.host, "the host's key or address cannot be used; it stays out");
            continue;
        };
        wanted.peers.push(peer(key, address));
        wanted.adopted.extend(next.map(|next| (row.host, next)));
    }
    wanted
}

fn peer(key: MeshKey, address: Ipv6Addr) -> Peer {
    // Hosts find the hub and keep the way open.
    Peer { key, addresses: BTreeSet::from([address]), endpoint: None, keepalive_s: None }
}

impl Hub {
    fn row(&self) -> HubRow {
        HubRow {
            key: self.interface.public_key().to_string(),
            endpoints: self.config.endpoints.clone(),
            address: self.config.prefix.hub(),
            port: HOST_PORT,
        }
    }

    /// Whether it lets in who was last asked for.
    fn serves(&self) -> bool {
        let wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some((wanted, seen)) = wanted.zip(self.interface.peers().ok()) else { return false };
        let seen: BTreeSet<MeshKey> = seen.iter().map(|peer| peer.key).collect();
        wanted.is_subset(&seen)
    }
}

/// Keeps the control clock going for as long as hosts are let in.
async fn beat(hub: &Arc<Hub>, store: &Store) {
    loop {
        let inner = Arc::clone(hub);
        if spawn_blocking(move || inner.serves()).await.unwrap_or(false)
            && let Err(error) = store.hub_beat().await
        {
            tracing::debug!(%error, "the control clock stands still");
        }
        sleep(BEAT).await;
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn key(byte: u8) -> MeshKey {
        MeshKey::new([byte; 32]).expect("a key")
    }

    fn prefix() -> Prefix {
        Prefix::of_market(&[1; 32])
    }

    fn row(number: u8, key: MeshKey, next: Option<MeshKey>) -> MeshPeer {
        let host = HostId::from(Uuid::from_u128(number.into()));
        MeshPeer {
            host,
            address: prefix().host(host),
            key: key.to_string(),
            next: next.map(|key| key.to_string()),
        }
    }

    fn keys(wanted: &Wanted) -> Vec<MeshKey> {
        wanted.peers.iter().map(|peer| peer.key).collect()
    }

    #[test]
    fn a_member_is_let_in_with_its_own_address_only() {
        let wanted = wanted(&[row(1, key(1), None)], key(99), prefix());
        assert_eq!(wanted.peers, [peer(key(1), prefix().host(Uuid::from_u128(1).into()))]);
        assert_eq!(wanted.adopted, []);
    }

    #[test]
    fn a_next_key_takes_the_place_of_the_present_one() {
        let wanted = wanted(&[row(1, key(1), Some(key(2)))], key(99), prefix());
        assert_eq!(keys(&wanted), [key(2)]);
        assert_eq!(wanted.adopted, [(Uuid::from_u128(1).into(), key(2))]);
    }

    #[test]
    fn a_host_that_announces_the_hubs_key_keeps_its_own_and_nobody_else_out() {
        let rows = [row(1, key(1), Some(key(99))), row(2, key(2), None), row(3, key(99), None)];
        let wanted = wanted(&rows, key(99), prefix());
        assert_eq!((keys(&wanted), wanted.adopted), (vec![key(1), key(2)], vec![]));
    }

    #[test]
    fn a_key_or_an_address_is_used_once_and_an_address_of_nobody_never() {
        let stranger = MeshPeer { address: Ipv6Addr::LOCALHOST, ..row(4, key(4), None) };
        let shared = MeshPeer { address: prefix().hub(), ..row(5, key(5), None) };
        let unreadable = MeshPeer { key: "?".into(), ..row(6, key(6), None) };
        let rows = [row(1, key(1), None), row(2, key(1), None), stranger, shared, unreadable];
        assert_eq!(keys(&wanted(&rows, key(99), prefix())), [key(1)]);
    }
}
