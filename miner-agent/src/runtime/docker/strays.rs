//! Processes that an engine forgot. One that is killed between making a container and starting it leaves
//! the container's first process waiting for ever, with the working directory mounted in its namespace.

use std::{fs, path::Path};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Ends the processes of containers that still have the file system in `image` mounted. The lease's container
/// must be gone, and our own mount.
pub fn end(image: &Path) {
    let devices: Vec<String> = loops_of(image);
    if devices.is_empty() {
        return;
    }
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok()) {
        // A process that has ended meanwhile has nothing to read, and nothing mounted.
        let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
        let mounts = read("mountinfo");
        // A device that nobody holds any more is soon another file's, and another lease's. It is still this
        // file's after the process was seen to hold it: then it was so all the time.
        let is_held = || mounts_one(&mounts, &devices) && mounts_one(&mounts, &loops_of(image));
        if is_held() && is_of_container(&read("cgroup")) {
            tracing::warn!(pid, image = %image.display(), "ending a process that the engine forgot");
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// The loop devices of a file, as `major:minor`.
fn loops_of(image: &Path) -> Vec<String> {
    let blocks = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let device = |block: fs::DirEntry| {
        let backing = fs::read_to_string(block.path().join("loop/backing_file")).ok()?;
        let number = fs::read_to_string(block.path().join("dev")).ok()?;
        (Path::new(backing.trim_end()) == image).then(|| number.trim_end().to_owned())
    };
    blocks.filter_map(device).collect()
}

/// Whether a list of mounts has one of the devices: the third field of a line, see `proc_pid_mountinfo(5)`.
fn mounts_one(mountinfo: &str, devices: &[String]) -> bool {
    let mut mounted = mountinfo.lines().filter_map(|line| line.split(' ').nth(2));
    mounted.any(|device| devices.iter().any(|one| one == device))
}

/// Whether a process is in a container: engines name a control group after the container's id, as
/// `<id>` or `docker-<id>.scope`. Services have namespaces of their own, too, and copies of our mounts in them.
fn is_of_container(cgroup: &str) -> bool {
    cgroup.lines().filter_map(|line| line.rsplit('/').next()).any(|group| {
        let id =
            group.strip_prefix("docker-").and_then(|group| group.strip_suffix(".scope")).unwrap_or(group);
        id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

#[cfg(test)]
mod tests {
    use std::{
        path::PathBuf,
        process::{Child, Command},
    };

    use nave_domain::{Bytes, LeaseId};

    use super::*;
    use crate::runtime::docker::workdir::WorkDirs;

    /// A process in a control group that is named as a container's, with a copy of all mounts.
    struct Stray {
        process: Child,
        group: PathBuf,
    }

    impl Stray {
        fn named(name: &str) -> Self {
            // Version 1 of control groups has a directory for each controller, version 2 one for all.
            let pids = Path::new("/sys/fs/cgroup/pids");
            let root = if pids.exists() { pids } else { Path::new("/sys/fs/cgroup") };
            let group = root.join(name);
            fs::create_dir(&group).expect("a control group");
            let unshared = ["--mount", "--propagation", "private", "sleep", "600"];
            let process = Command::new("unshare").args(unshared).spawn().expect("util-linux is there");
            let stray = Self { process, group };
            fs::write(stray.group.join("cgroup.procs"), stray.process.id().to_string()).expect("moved");
            stray
        }

        fn has_mounted(&self, point: &Path) -> bool {
            let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", self.process.id()));
            let is_away = fs::read_link(format!("/proc/{}/ns/mnt", self.process.id())).expect("a namespace")
                != fs::read_link("/proc/self/ns/mnt").expect("a namespace");
            is_away && mounts.expect("it runs").contains(&*point.to_string_lossy())
        }

        fn is_ended(&mut self) -> bool {
            self.process.try_wait().expect("ours").is_some()
        }
    }

    impl Drop for Stray {
        fn drop(&mut self) {
            drop(self.process.kill());
            drop(self.process.wait());
            drop(fs::remove_dir(&self.group));
        }
    }

    fn until(mut holds: impl FnMut() -> bool) {
        for _ in 0..1_000 {
            if holds() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        panic!("it never came");
    }

    /// Whether a loop device has the file, which may be deleted.
    fn is_held(image: &Path) -> bool {
        let mut blocks = fs::read_dir("/sys/block").expect("devices").flatten();
        blocks.any(|block| {
            let backing = fs::read_to_string(block.path().join("loop/backing_file"));
            backing.is_ok_and(|backing| backing.starts_with(&*image.to_string_lossy()))
        })
    }

    #[tokio::test]
    async fn a_process_that_the_engine_forgot_does_not_keep_a_removed_working_directory() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let data = tempfile::tempdir().expect("a directory");
        let dirs = WorkDirs::new(data.path(), 65_534);
        let lease = LeaseId(uuid::Uuid::now_v7());
        dirs.create(lease, Bytes(16 << 20)).await.expect("made and mounted");
        let image = dirs.dir(lease).join("work.img");
        let id = format!("{:064x}", lease.0.as_u128());
        let (mut stray, mut service) = (Stray::named(&id), Stray::named(&format!("nave-test-{id}")));
        let point = dirs.mount_point(lease);
        assert!(is_held(&image));
        until(|| stray.has_mounted(&point) && service.has_mounted(&point));

        dirs.remove(lease).await.expect("removed");
        until(|| stray.is_ended());
        assert!(!service.is_ended(), "a service only has a copy of our mounts");
        drop((stray, service));
        until(|| !is_held(&image));
    }

    #[test]
    fn only_processes_of_containers_that_have_it_mounted_are_meant() {
        let devices = ["7:5".to_owned()];
        assert!(mounts_one("466 432 7:5 / /work rw,nosuid - ext4 /dev/loop5 rw\n", &devices));
        assert!(!mounts_one("466 432 7:51 / /work rw,nosuid - ext4 /dev/loop51 rw\n", &devices));
        let id = "7ea90e0741757ddb13fe6e6382a7d95033edd4359f58704295f1f6a115a9a6ec";
        assert!(is_of_container(&format!("9:name=systemd:/docker/{id}\n8:pids:/docker/{id}\n")));
        assert!(is_of_container(&format!("0::/system.slice/docker-{id}.scope\n")));
        assert!(!is_of_container("0::/system.slice/systemd-resolved.service\n"));
    }
}
