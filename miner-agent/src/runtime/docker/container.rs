//! The container of a job: what is asked of the engine, and whether it listened.

use std::{
    collections::{BTreeMap, HashMap},
    net::Ipv6Addr,
    path::Path,
};

use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, DeviceRequest, EndpointIpamConfig, EndpointSettings,
    HealthConfig, HostConfig, HostConfigLogConfig, NetworkingConfig, ResourcesUlimits, RestartPolicy,
    RestartPolicyNameEnum,
};
use nave_domain::{HostId, LeaseId, host::Device};
use nave_sdk::wire::host::Order;

use super::{LABEL_ATTEMPT, LABEL_HOST, LABEL_JOB, LABEL_LEASE};
use crate::share::{self, Place};

/// User and group of a job inside its container, whatever user the image names:
/// a job never runs as root, and its working directory is made for this one.
/// Nearly every image knows 65534 as `nobody`.
pub const JOB_UID: u32 = 65_534;
/// Most processes and threads of a job.
pub const PIDS_MAX: i64 = 512;
/// Size of each tmpfs; what is in it counts against the job's memory.
const TMPFS_OPTIONS: &str = "rw,exec,nosuid,nodev,size=64m,mode=1777";
/// Working directory inside a container.
pub const WORK: &str = "/work";
/// Where a job of a group finds the list of its peers.
const PEERS_DIR: &str = "/run/nave";
/// Name of the list.
pub const PEERS: &str = "peers";

/// Everything a container is made from.
#[derive(Debug, Clone, Copy)]
pub struct Plan<'a> {
    /// The host, for its label.
    pub host: HostId,
    /// The lease.
    pub lease: LeaseId,
    /// What was ordered.
    pub order: &'a Order,
    /// The engine's name of its network; `none` for none.
    pub network: &'a str,
    /// Its resolvers.
    pub dns: &'a [String],
    /// Its working directory on the host.
    pub work: &'a Path,
    /// Paths that the image declares as volumes.
    pub volumes: &'a [String],
    /// The directory on the host with the list of its peers, where it has a group.
    pub peers: Option<&'a Path>,
    /// The place of the daemon that gives it its share of a device, where it has one.
    pub share: Option<&'a Place>,
}

/// Name of the container of a lease.
#[must_use]
pub fn name(lease: LeaseId) -> String {
    format!("nave-{lease}")
}

/// What is asked of the engine.
#[must_use]
pub fn body(plan: &Plan<'_>) -> ContainerCreateBody {
    ContainerCreateBody {
        image: Some(plan.order.image.clone()),
        // One empty string clears the image's entry point, so the command is executed as given.
        entrypoint: Some(vec![String::new()]),
        cmd: Some(plan.order.argv.clone()),
        env: Some(environment(plan.order, plan.share)),
        labels: Some(labels(plan)),
        user: Some(format!("{JOB_UID}:{JOB_UID}")),
        working_dir: Some(WORK.into()),
        healthcheck: Some(HealthConfig { test: Some(vec!["NONE".into()]), ..HealthConfig::default() }),
        stop_signal: Some("SIGTERM".into()),
        host_config: Some(host_config(plan)),
        networking_config: plan.order.address.map(|address| NetworkingConfig {
            endpoints_config: Some(HashMap::from([(plan.network.to_owned(), endpoint(address))])),
        }),
        ..ContainerCreateBody::default()
    }
}

fn endpoint(address: Ipv6Addr) -> EndpointSettings {
    let fixed =
        EndpointIpamConfig { ipv6_address: Some(address.to_string()), ..EndpointIpamConfig::default() };
    EndpointSettings { ipam_config: Some(fixed), ..EndpointSettings::default() }
}

/// The job's variables over our defaults; what says where and what it is, is always ours.
fn environment(order: &Order, share: Option<&Place>) -> Vec<String> {
    let ours = [("NAVE_OUT", "/work/out".to_owned())]
        .into_iter()
        .chain([("NAVE_JOB", order.job.to_string()), ("NAVE_ATTEMPT", order.attempt.to_string())]);
    let group = order.address.into_iter().flat_map(|address| {
        [("NAVE_ADDRESS", address.to_string()), ("NAVE_PEERS", format!("{PEERS_DIR}/{PEERS}"))]
    });
    let defaults = [("HOME", WORK), ("TMPDIR", "/work/tmp")];
    let mut all: BTreeMap<&str, &str> = defaults.into();
    all.extend(order.env.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    let share = share.into_iter().map(|_| ("CUDA_MPS_PIPE_DIRECTORY", share::PIPES.to_owned()));
    let ours: Vec<_> = ours.chain(group).chain(share).collect();
    all.extend(ours.iter().map(|(name, value)| (*name, value.as_str())));
    all.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

fn labels(plan: &Plan<'_>) -> HashMap<String, String> {
    let labels = [
        (LABEL_HOST, plan.host.to_string()),
        (LABEL_LEASE, plan.lease.to_string()),
        (LABEL_JOB, plan.order.job.to_string()),
        (LABEL_ATTEMPT, plan.order.attempt.to_string()),
    ];
    labels.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn host_config(plan: &Plan<'_>) -> HostConfig {
    let connected = plan.network != "none";
    HostConfig {
        memory: Some(plan.order.memory.0),
        // Equal to the memory limit: no swap.
        memory_swap: Some(plan.order.memory.0),
        nano_cpus: Some(plan.order.milli_cpu.0.saturating_mul(1_000_000)),
        pids_limit: Some(PIDS_MAX),
        // Its pages count against the memory limit, so a small default only breaks programs.
        shm_size: Some(plan.order.memory.0),
        // When the machine itself runs out of memory, jobs go before the host's own services.
        oom_score_adj: Some(500),
        ulimits: Some(vec![ResourcesUlimits { name: Some("core".into()), soft: Some(0), hard: Some(0) }]),
        cap_drop: Some(vec!["ALL".into()]),
        security_opt: Some(vec!["no-new-privileges".into()]),
        privileged: Some(false),
        readonly_rootfs: Some(true),
        init: Some(false),
        network_mode: Some(plan.network.to_owned()),
        // Left to itself, an engine asks the host's own resolvers for a job.
        dns: connected.then(|| plan.dns.to_vec()),
        binds: Some(binds(plan)),
        tmpfs: Some(tmpfs(plan.volumes)),
        log_config: Some(log_config()),
        restart_policy: Some(RestartPolicy {
            name: Some(RestartPolicyNameEnum::NO),
            maximum_retry_count: None,
        }),
        device_requests: gpus(&plan.order.devices),
        ..HostConfig::default()
    }
}

fn binds(plan: &Plan<'_>) -> Vec<String> {
    let work = format!("{}:{WORK}:rw", plan.work.display());
    // The directory, so that the job sees a file that took the place of another.
    let peers = plan.peers.map(|peers| format!("{}:{PEERS_DIR}:ro", peers.display()));
    [work].into_iter().chain(peers).chain(plan.share.map(Place::bind)).collect()
}

/// `/tmp`, and a tmpfs over every volume that the image declares: an anonymous
/// volume would have no size limit.
fn tmpfs(volumes: &[String]) -> HashMap<String, String> {
    let paths = volumes.iter().map(String::as_str).filter(|path| *path != WORK).chain(["/tmp"]);
    paths.map(|path| (path.to_owned(), TMPFS_OPTIONS.to_owned())).collect()
}

/// The engine's own binary format keeps every byte as it was written, where the
/// JSON format replaces what is not UTF-8. Its files bound the host's disk at
/// 256 MiB for each lease; what rotates away is far beyond what the control plane
/// keeps.
pub(super) fn log_config() -> HostConfigLogConfig {
    let options = [("max-size", "32m"), ("max-file", "8"), ("compress", "false")];
    let config = options.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    HostConfigLogConfig { typ: Some("local".into()), config: Some(config) }
}

/// GPUs, or slices of them, by UUID through the engine's NVIDIA driver. Not tried on a machine with
/// a GPU and the NVIDIA container toolkit yet. Of one that is simulated an engine has nothing to give.
pub(super) fn gpus(uuids: &[String]) -> Option<Vec<DeviceRequest>> {
    let real = uuids.iter().filter(|uuid| !uuid.starts_with(Device::SIMULATED)).cloned();
    let uuids: Vec<String> = real.collect();
    if uuids.is_empty() {
        return None;
    }
    Some(vec![DeviceRequest {
        driver: Some("nvidia".into()),
        device_ids: Some(uuids),
        capabilities: Some(vec![vec!["gpu".into()]]),
        ..DeviceRequest::default()
    }])
}

/// Names every setting that the engine did not take as asked. Some engines
/// accept what they do not understand and ignore it silently.
#[must_use]
pub fn differences(wanted: &ContainerCreateBody, got: &ContainerInspectResponse) -> Vec<&'static str> {
    let asked = wanted.networking_config.as_ref().and_then(|config| config.endpoints_config.as_ref());
    let given = got.network_settings.as_ref().and_then(|settings| settings.networks.as_ref());
    let has_address = |(network, asked): (&String, &EndpointSettings)| {
        let given = given.and_then(|networks| networks.get(network)?.ipam_config.as_ref());
        given.and_then(|config| config.ipv6_address.as_ref())
            == asked.ipam_config.as_ref().and_then(|config| config.ipv6_address.as_ref())
    };
    let addressed = asked.into_iter().flatten().all(has_address);
    let wanted = wanted.host_config.clone().unwrap_or_default();
    let config = got.config.clone().unwrap_or_default();
    let has = got.host_config.clone().unwrap_or_default();
    let lacks = |list: &Option<Vec<String>>, text: &str| {
        !list.iter().flatten().any(|item| item.eq_ignore_ascii_case(text) || item == &format!("{text}:true"))
    };
    let volumes = got.mounts.iter().flatten().any(|mount| mount.typ.as_deref() == Some("volume"));
    let checks = [
        ("the memory limit", has.memory != wanted.memory),
        ("the swap limit", has.memory_swap != wanted.memory_swap),
        ("the CPU limit", has.nano_cpus != wanted.nano_cpus),
        ("the process limit", has.pids_limit != wanted.pids_limit),
        ("the read-only root", has.readonly_rootfs != Some(true)),
        ("the dropped capabilities", lacks(&has.cap_drop, "ALL")),
        ("added capabilities", has.cap_add.iter().flatten().next().is_some()),
        ("no-new-privileges", lacks(&has.security_opt, "no-new-privileges")),
        ("privileged=false", has.privileged == Some(true)),
        ("the network", has.network_mode != wanted.network_mode),
        ("the address in the mesh", !addressed),
        ("the user", config.user != Some(format!("{JOB_UID}:{JOB_UID}"))),
        (
            "the GPUs",
            has.device_requests.unwrap_or_default() != wanted.device_requests.clone().unwrap_or_default(),
        ),
        ("the ban on volumes", volumes),
    ];
    checks.into_iter().filter_map(|(name, differs)| differs.then_some(name)).collect()
}

#[cfg(test)]
mod tests {
    use bollard::models::{ContainerConfig, MountPoint, NetworkSettings};
    use nave_domain::{Bytes, MilliCpu, job::Egress};

    use super::*;

    fn order() -> Order {
        Order {
            job: format!("job_{:032x}", 1).parse().expect("an id"),
            attempt: 2,
            stop: None,
            image: "example.org/a@sha256:00".into(),
            argv: vec!["echo".into(), "$(id)".into()],
            env: BTreeMap::from([("NAVE_OUT".into(), "/etc".into()), ("HOME".into(), "/here".into())]),
            milli_cpu: MilliCpu(1_500),
            memory: Bytes(64 << 20),
            disk: Bytes(16 << 20),
            devices: vec![],
            share: None,
            egress: Egress::Public,
            address: None,
            peers: BTreeMap::new(),
        }
    }

    fn plan(order: &Order) -> Plan<'_> {
        Plan {
            host: format!("host_{:032x}", 1).parse().expect("an id"),
            lease: format!("lease_{:032x}", 1).parse().expect("an id"),
            order,
            network: "nvj1",
            dns: &[],
            work: Path::new("/data/work"),
            volumes: &[],
            peers: None,
            share: None,
        }
    }

    fn taken(body: &ContainerCreateBody) -> ContainerInspectResponse {
        ContainerInspectResponse {
            host_config: body.host_config.clone(),
            config: Some(ContainerConfig { user: body.user.clone(), ..ContainerConfig::default() }),
            ..ContainerInspectResponse::default()
        }
    }

    #[test]
    fn a_command_is_passed_as_it_is_and_the_entry_point_of_the_image_does_not_count() {
        let order = order();
        let body = body(&plan(&order));
        assert_eq!(body.cmd, Some(order.argv.clone()));
        assert_eq!(body.entrypoint, Some(vec![String::new()]));
    }

    #[test]
    fn a_job_may_choose_its_home_and_not_where_its_results_are_read() {
        let env = environment(&order(), None);
        let job = format!("NAVE_JOB=job_{:032x}", 1);
        assert_eq!(env, ["HOME=/here", "NAVE_ATTEMPT=2", &job, "NAVE_OUT=/work/out", "TMPDIR=/work/tmp"]);
    }

    #[test]
    fn a_job_of_a_group_learns_its_address_and_gets_it() {
        let mut order = order();
        order.address = Some("fd00:0:0:2::7".parse().expect("an address"));
        order.env.insert("NAVE_ADDRESS".into(), "::1".into());
        let env = environment(&order, None);
        assert!(env.contains(&"NAVE_ADDRESS=fd00:0:0:2::7".into()), "{env:?}");
        assert!(env.contains(&"NAVE_PEERS=/run/nave/peers".into()), "{env:?}");
        let body = body(&Plan { peers: Some(Path::new("/data/nave")), ..plan(&order) });
        let binds = body.host_config.clone().expect("set").binds.expect("set");
        assert!(binds.contains(&"/data/nave:/run/nave:ro".into()), "{binds:?}");
        assert_eq!(differences(&body, &taken(&body)), ["the address in the mesh"]);
        let settings = NetworkSettings {
            networks: body.networking_config.clone().and_then(|config| config.endpoints_config),
            ..NetworkSettings::default()
        };
        let given = ContainerInspectResponse { network_settings: Some(settings), ..taken(&body) };
        assert!(differences(&body, &given).is_empty());
    }

    #[test]
    fn a_job_with_a_share_reaches_its_customers_daemon_and_no_other() {
        let mut order = order();
        order.env.insert("CUDA_MPS_PIPE_DIRECTORY".into(), "/elsewhere".into());
        let place = Place("/data/mps/x".into());
        let body = body(&Plan { share: Some(&place), ..plan(&order) });
        let binds = body.host_config.clone().expect("set").binds.expect("set");
        assert_eq!(binds, ["/data/work:/work:rw", "/data/mps/x/shm:/dev/shm:rw"]);
        assert!(body.env.expect("set").contains(&"CUDA_MPS_PIPE_DIRECTORY=/dev/shm/nave-mps".into()));
    }

    #[test]
    fn a_slice_is_given_by_its_own_name_as_a_device_is() {
        let mut order = order();
        order.devices = vec!["MIG-6a0f".into()];
        let asked = body(&plan(&order)).host_config.expect("set").device_requests.expect("set");
        assert_eq!(asked[0].device_ids, Some(vec!["MIG-6a0f".to_owned()]));
    }

    #[test]
    fn an_engine_that_took_everything_is_accepted() {
        let order = order();
        let body = body(&plan(&order));
        assert!(differences(&body, &taken(&body)).is_empty());
    }

    #[test]
    fn an_engine_that_ignored_a_limit_is_refused_by_name() {
        let order = order();
        let body = body(&plan(&order));
        let nothing = ContainerInspectResponse::default();
        assert!(differences(&body, &nothing).len() >= 8);
        let mut volume = taken(&body);
        volume.mounts = Some(vec![MountPoint { typ: Some("volume".into()), ..MountPoint::default() }]);
        assert_eq!(differences(&body, &volume), ["the ban on volumes"]);
    }

    #[test]
    fn volumes_of_an_image_become_bounded_memory() {
        let mounts = tmpfs(&["/var/lib/data".into(), WORK.into()]);
        let mut paths: Vec<_> = mounts.keys().map(String::as_str).collect();
        paths.sort_unstable();
        assert_eq!(paths, ["/tmp", "/var/lib/data"]);
    }
}
