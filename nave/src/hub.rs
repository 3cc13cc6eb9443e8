//! The hub: the control plane's end of the mesh, kept in line with the rows of hosts.
//!
//! It decides nothing. Whoever is a member gets in with its present key, or its next one
//! where it has announced one; everybody else is removed. A hub that is killed is continued
//! by the next one from the same rows, and while the database is away everything stays.

use std::{
    collections::{BTreeMap, BTreeSet},
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
use nave_store::{Changes, HubRow, MeshPeer, MeshRoute, Store, TransferRoute};
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
    /// The guard as it was last loaded.
    pairs: Mutex<Vec<Pair>>,
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
            Ok(interface) => {
                return Hub { config, interface, wanted: Mutex::default(), pairs: Mutex::default() };
            }
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
    guard::hub(&config.name, &namespace, &[])?;
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

/// Whose packets pass from one host to another: leases of one customer's group, and two hosts of
/// which one fetches from the other, which needs both directions.
fn pairs(routes: &[MeshRoute], transfers: &[TransferRoute], prefix: Prefix) -> Vec<Pair> {
    let leases =
        routes.iter().map(|route| Pair { from: prefix.lease(route.from), to: prefix.lease(route.to) });
    let is_host = |address: &Ipv6Addr| prefix.is_host(*address);
    let transfers = transfers.iter().filter(|route| is_host(&route.source) && is_host(&route.host));
    let both = |route: &TransferRoute| {
        let TransferRoute { source, host } = *route;
        [Pair { from: host, to: source }, Pair { from: source, to: host }]
    };
    leases.chain(transfers.flat_map(both)).collect()
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
            Ok(
                Changes::Supply
                | Changes::Job(_)
                | Changes::Host(_)
                | Changes::Quote(_)
                | Changes::Challenges,
            ) => {}
            // Only polling is left.
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }
}

/// Lets in who the rows say, then says so in the rows.
async fn apply(hub: &Arc<Hub>, store: &Store) -> anyhow::Result<()> {
    let rows = store.mesh_peers().await.context("read who is in the mesh")?;
    let routes = store.mesh_routes().await.context("read whose jobs reach one another")?;
    let transfers = store.transfer_routes().await.context("read who fetches from whom")?;
    crash_point!("hub.peers.before_apply");
    let prefix = hub.config.prefix;
    let Wanted { peers, adopted } = wanted(&rows, &routes, hub.interface.public_key(), prefix);
    let keys = peers.iter().map(|peer| peer.key).collect();
    let inner = Arc::clone(hub);
    spawn_blocking(move || {
        inner.interface.set_peers(&peers)?;
        inner.open(pairs(&routes, &transfers, prefix))
    })
    .await??;
    *hub.wanted.lock().unwrap_or_else(PoisonError::into_inner) = Some(keys);
    for (host, key) in adopted {
        crash_point!("hub.key.before_adopt");
        store.mesh_key_adopt(host, &key.to_string()).await.context("adopt a host's next key")?;
    }
    Ok(())
}

/// Whom to let in, with which addresses, and whose next key is thereby in use.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    peers: Vec<Peer>,
    adopted: Vec<(HostId, MeshKey)>,
}

/// A host cannot keep others out: a row that names a key or an address that is not its own
/// to use is passed over. The database sees to it that two hosts never share either.
fn wanted(rows: &[MeshPeer], routes: &[MeshRoute], own: MeshKey, prefix: Prefix) -> Wanted {
    let mut leases: BTreeMap<HostId, BTreeSet<Ipv6Addr>> = BTreeMap::new();
    for route in routes {
        leases.entry(route.host).or_default().insert(prefix.lease(route.from));
    }
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
        let leases = leases.remove(&row.host).unwrap_or_default();
        let leases = leases.into_iter().filter(|lease| addresses.insert(*lease));
        let own: BTreeSet<Ipv6Addr> = leases.chain([address]).collect();
        wanted.peers.push(peer(key, own));
        wanted.adopted.extend(next.map(|next| (row.host, next)));
    }
    wanted
}

fn peer(key: MeshKey, addresses: BTreeSet<Ipv6Addr>) -> Peer {
    // Hosts find the hub and keep the way open.
    Peer { key, addresses, endpoint: None, keepalive_s: None }
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

    /// Lets packets pass between these and nobody else.
    fn open(&self, mut pairs: Vec<Pair>) -> Result<(), nave_mesh::Error> {
        pairs.sort_unstable();
        let mut loaded = self.pairs.lock().unwrap_or_else(PoisonError::into_inner);
        if *loaded != pairs {
            guard::hub(&self.config.name, &self.config.namespace, &pairs)?;
            *loaded = pairs;
        }
        Ok(())
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
    use nave_domain::LeaseId;
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
        let wanted = wanted(&[row(1, key(1), None)], &[], key(99), prefix());
        assert_eq!(wanted.peers, [peer(key(1), BTreeSet::from([prefix().host(Uuid::from_u128(1).into())]))]);
        assert_eq!(wanted.adopted, []);
    }

    #[test]
    fn a_next_key_takes_the_place_of_the_present_one() {
        let wanted = wanted(&[row(1, key(1), Some(key(2)))], &[], key(99), prefix());
        assert_eq!(keys(&wanted), [key(2)]);
        assert_eq!(wanted.adopted, [(Uuid::from_u128(1).into(), key(2))]);
    }

    #[test]
    fn a_host_that_announces_the_hubs_key_keeps_its_own_and_nobody_else_out() {
        let rows = [row(1, key(1), Some(key(99))), row(2, key(2), None), row(3, key(99), None)];
        let wanted = wanted(&rows, &[], key(99), prefix());
        assert_eq!((keys(&wanted), wanted.adopted), (vec![key(1), key(2)], vec![]));
    }

    #[test]
    fn a_key_or_an_address_is_used_once_and_an_address_of_nobody_never() {
        let stranger = MeshPeer { address: Ipv6Addr::LOCALHOST, ..row(4, key(4), None) };
        let shared = MeshPeer { address: prefix().hub(), ..row(5, key(5), None) };
        let unreadable = MeshPeer { key: "?".into(), ..row(6, key(6), None) };
        let rows = [row(1, key(1), None), row(2, key(1), None), stranger, shared, unreadable];
        assert_eq!(keys(&wanted(&rows, &[], key(99), prefix())), [key(1)]);
    }

    #[test]
    fn leases_of_a_group_speak_from_their_own_host_and_to_one_another() {
        let (one, two) = (LeaseId::from(Uuid::from_u128(11)), LeaseId::from(Uuid::from_u128(12)));
        let host = |number: u8| HostId::from(Uuid::from_u128(number.into()));
        let routes = [
            MeshRoute { host: host(1), from: one, to: two },
            MeshRoute { host: host(2), from: two, to: one },
        ];
        let rows = [row(1, key(1), None), row(2, key(2), None), row(3, key(3), None)];
        let wanted = wanted(&rows, &routes, key(99), prefix());
        let addresses: Vec<_> = wanted.peers.iter().map(|peer| peer.addresses.clone()).collect();
        let expected = [
            BTreeSet::from([prefix().host(host(1)), prefix().lease(one)]),
            BTreeSet::from([prefix().host(host(2)), prefix().lease(two)]),
            BTreeSet::from([prefix().host(host(3))]),
        ];
        assert_eq!(addresses, expected);
        let (one, two) = (prefix().lease(one), prefix().lease(two));
        assert_eq!(pairs(&routes, &[], prefix()), [Pair { from: one, to: two }, Pair { from: two, to: one }]);
    }

    #[test]
    fn two_hosts_of_a_transfer_reach_one_another_and_none_reaches_the_hub_that_way() {
        let [one, two] = [1, 2].map(|number| prefix().host(HostId::from(Uuid::from_u128(number))));
        let routes = [
            TransferRoute { source: one, host: two },
            TransferRoute { source: prefix().hub(), host: two },
            TransferRoute { source: one, host: Ipv6Addr::LOCALHOST },
        ];
        let expected = [Pair { from: two, to: one }, Pair { from: one, to: two }];
        assert_eq!(pairs(&[], &routes, prefix()), expected);
    }
}
