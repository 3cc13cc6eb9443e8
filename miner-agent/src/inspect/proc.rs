//! Reads texts of the kernel. Who runs jobs runs programs of strangers, whose names and paths are in
//! these texts: nothing in them is trusted, and what cannot be read is left out.

use std::path::{Path, PathBuf};

/// Most lines that are read of any text.
const LINES_MAX: usize = 65_536;

/// A file that a process runs code from, in `/proc/PID/maps`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mapping {
    /// Its place in the process's memory, as the kernel writes it.
    pub range: String,
    /// Its path when it was mapped.
    pub path: PathBuf,
    /// The path is not the file's any more.
    pub deleted: bool,
}

/// Files with executable pages, in the text of `/proc/PID/maps`.
pub fn mappings(maps: &str) -> impl Iterator<Item = Mapping> {
    maps.lines().take(LINES_MAX).filter_map(|line| {
        let (range, line) = line.split_once(' ')?;
        let (rights, mut line) = line.split_once(' ')?;
        let is_range = range.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
        if !is_range || rights.as_bytes().get(2) != Some(&b'x') {
            return None;
        }
        // Offset, device and inode.
        for _ in 0..3 {
            line = line.split_once(' ')?.1;
        }
        let path = line.trim_start();
        let (path, deleted) = path.strip_suffix(" (deleted)").map_or((path, false), |path| (path, true));
        path.starts_with('/').then(|| Mapping { range: range.into(), path: unescape(path), deleted })
    })
}

/// A mount, in `/proc/PID/mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    /// What of its file system is mounted.
    pub root: PathBuf,
    /// Where.
    pub point: PathBuf,
    /// The type of the file system.
    pub kind: String,
}

/// The mounts in the text of `/proc/PID/mountinfo`, in their order.
#[must_use]
pub fn mounts(mountinfo: &str) -> Vec<Mounted> {
    let mount = |line: &str| {
        let mut fields = line.split(' ');
        let (root, point) = (fields.nth(3)?, fields.next()?);
        // Optional fields end with a dash.
        let kind = fields.skip_while(|field| *field != "-").nth(1)?;
        let (root, point) = (unescape(root), unescape(point));
        point.is_absolute().then(|| Mounted { root, point, kind: kind.to_owned() })
    };
    mountinfo.lines().take(LINES_MAX).filter_map(mount).collect()
}

/// The mount that a path is in: of the deepest ones, the last.
#[must_use]
pub fn mount_of<'a>(mounts: &'a [Mounted], path: &Path) -> Option<&'a Mounted> {
    mounts
        .iter()
        .filter(|mount| path.starts_with(&mount.point))
        .max_by_key(|mount| mount.point.components().count())
}

/// Undoes the kernel's way of writing spaces and the like: `\040`.
fn unescape(text: &str) -> PathBuf {
    let mut path = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        path.push_str(before);
        let code = after.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code.filter(u8::is_ascii) {
            Some(code) => {
                path.push(char::from(code));
                rest = &after[3..];
            }
            None => {
                path.push('\\');
                rest = after;
            }
        }
    }
    path.push_str(rest);
    path.into()
}

/// The version of the GPU driver's kernel module, in the text of `/proc/driver/nvidia/version`.
#[must_use]
pub fn module_version(text: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with("NVRM version:"))?;
    line.split_whitespace().find(|word| is_version(word)).map(str::to_owned)
}

/// The version in what a program answers to `--version`: the first after the word.
#[must_use]
pub fn said_version(text: &str) -> Option<String> {
    let words: Vec<&str> = text.split_whitespace().take(64).collect();
    let pairs = words.windows(2);
    let after_word = pairs.filter(|pair| {
        let word = pair[0].trim_end_matches(':').to_ascii_lowercase();
        word == "version" || word.ends_with("-version")
    });
    let mut versions = after_word.map(|pair| pair[1].trim_start_matches('v').trim_end_matches(','));
    versions.find(|word| is_version(word)).map(str::to_owned)
}

/// `1.17.8`, `535.54.03`, `1.1.5+ds1`: two numbers with a dot between, then what may be.
fn is_version(word: &str) -> bool {
    let (Some((first, rest)), true) = (word.split_once('.'), word.len() <= 64) else { return false };
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let second = rest.bytes().take_while(u8::is_ascii_digit).count();
    is_number(first) && second > 0
}

/// The entries in the text of `/etc/ld.so.preload`.
pub fn preloads(text: &str) -> impl Iterator<Item = &str> {
    let lines = text.lines().take(LINES_MAX).map(|line| line.split('#').next().unwrap_or_default());
    lines.flat_map(|line| line.split([' ', '\t', ':'])).filter(|entry| !entry.is_empty())
}

/// The variables that change what the dynamic linker loads, in the bytes of `/proc/PID/environ`.
#[must_use]
pub fn linker_variables(environ: &[u8]) -> Vec<String> {
    let variables = environ.split(|byte| *byte == 0).take(LINES_MAX).map(String::from_utf8_lossy);
    let names = ["LD_PRELOAD=", "LD_AUDIT=", "LD_LIBRARY_PATH="];
    let ours = variables.filter(|variable| {
        names.iter().any(|name| variable.strip_prefix(name).is_some_and(|value| !value.is_empty()))
    });
    ours.map(std::borrow::Cow::into_owned).collect()
}

/// The parent of a process, in the text of `/proc/PID/stat`.
#[must_use]
pub fn parent(stat: &str) -> Option<u32> {
    // The name in parentheses may contain anything, so fields count from its end.
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// When a process began, in ticks since the machine started, in the text of `/proc/PID/stat`; none of one that has
/// ended and waits to be reaped.
#[must_use]
pub fn began(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    fields.next().filter(|state| !matches!(*state, "Z" | "X"))?;
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn files_with_code_are_found_among_all_that_is_mapped() {
        let maps = "\
55d0-55d1 r--p 00000000 fe:01 11 /usr/bin/nave-prover
7f01-7f02 r-xp 00026000 fe:01 12                         /usr/lib/x86_64-linux-gnu/libc.so.6
7f03-7f04 r-xp 00000000 fe:01 13    /tmp/a b\\012c.so (deleted)
7f05-7f06 rwxp 00000000 00:00 0
7ffc-7ffd r-xp 00000000 00:00 0                          [vdso]
nonsense";
        let found: Vec<_> = mappings(maps).map(|mapping| (mapping.path, mapping.deleted)).collect();
        let expected = [("/usr/lib/x86_64-linux-gnu/libc.so.6", false), ("/tmp/a b\nc.so", true)];
        assert_eq!(found, expected.map(|(path, deleted)| (PathBuf::from(path), deleted)));
    }

    #[test]
    fn a_path_is_in_the_deepest_mount_and_of_several_there_in_the_last() {
        let mounts = mounts(
            "22 1 8:1 / / rw - ext4 /dev/sda1 rw
             23 22 8:1 / /proc rw - proc proc rw\n\
             24 22 0:5 / /usr/lib\\040x rw,nosuid shared:1 master:2 - overlay none rw\n\
             25 22 0:6 /hook.so /usr/lib\\040x/libcuda.so.1 rw - ext4 /dev/sda1 rw\n\
             26 22 0:7 /other.so /usr/lib\\040x/libcuda.so.1 rw - tmpfs none rw\n"
                .replace("             ", "")
                .as_str(),
        );
        let of = |path: &str| mount_of(&mounts, Path::new(path)).map(|mount| mount.kind.as_str());
        assert_eq!(of("/usr/lib x/libcuda.so.1"), Some("tmpfs"));
        assert_eq!(of("/usr/lib x/libcuda.so.10"), Some("overlay"));
        assert_eq!(of("/usr/lib xy"), Some("ext4"));
        assert_eq!(mounts[4].root, Path::new("/other.so"));
    }

    #[test]
    fn versions_of_drivers_are_read_as_their_modules_write_them() {
        let closed = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.54.03  Tue Jun  6 22:20:39 UTC 2023\n\
                      GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n";
        assert_eq!(module_version(closed).as_deref(), Some("535.54.03"));
        let open = "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  580.65.06  Release Build  (x@y)  Sun\n";
        assert_eq!(module_version(open).as_deref(), Some("580.65.06"));
        assert_eq!(module_version("GCC version: 12.2.0"), None);
    }

    #[test]
    fn versions_are_read_as_programs_say_them() {
        let said = |text: &str| said_version(text);
        assert_eq!(
            said("NVIDIA Container Toolkit CLI version 1.17.8\ncommit: f202b80").as_deref(),
            Some("1.17.8")
        );
        assert_eq!(
            said("cli-version: 1.16.1\nlib-version: 1.16.2\nbuild date: x").as_deref(),
            Some("1.16.1")
        );
        assert_eq!(said("runc version 1.1.5+ds1\ncommit: 1").as_deref(), Some("1.1.5+ds1"));
        assert_eq!([said("no version"), said("version unknown"), said("")], [None, None, None]);
    }

    #[test]
    fn what_is_preloaded_is_read_as_the_linker_does() {
        let text = "# a comment\n/usr/lib/a.so /usr/lib/b.so:/usr/lib/c.so # and\n\n";
        assert_eq!(preloads(text).collect::<Vec<_>>(), ["/usr/lib/a.so", "/usr/lib/b.so", "/usr/lib/c.so"]);
        let environ = b"PATH=/bin\0LD_PRELOAD=/tmp/hook.so\0LD_LIBRARY_PATH=\0XLD_AUDIT=1\0";
        assert_eq!(linker_variables(environ), ["LD_PRELOAD=/tmp/hook.so"]);
    }

    #[test]
    fn a_process_has_a_beginning_until_it_has_ended() {
        let stat =
            |state| format!("7 (a) Z (b) {state} 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20");
        assert_eq!(began(&stat("S")), Some(4_242));
        assert_eq!((began(&stat("Z")), began("7 (a) S 1"), began("")), (None, None, None));
    }

    #[test]
    fn a_parent_is_read_whatever_the_process_is_called() {
        assert_eq!(parent("12 (a) S 1 (b) R 7 12 12 0"), Some(7));
        assert_eq!(parent("12 (a) S"), None);
    }

    proptest! {
        #[test]
        fn no_text_breaks_what_reads_it(text: String, bytes: Vec<u8>) {
            for text in [&text, &text.repeat(3).replace(' ', "\\0 - /")] {
                let mounts = mounts(text);
                for mapping in mappings(text) {
                    prop_assert!(mapping.path.is_absolute());
                    let _ = mount_of(&mounts, &mapping.path);
                }
                let _ = (module_version(text), said_version(text), parent(text), preloads(text).count());
            }
            prop_assert!(linker_variables(&bytes).len() <= bytes.len());
        }

        #[test]
        fn no_line_of_a_text_is_longer_than_what_comes_of_it(path in "[ -~]{1,40}") {
            let line = format!("1-2 r-xp 0 0:0 1 /{path}");
            for mapping in mappings(&line) {
                prop_assert!(mapping.path.as_os_str().len() <= line.len());
            }
            let line = format!("1 1 0:1 / /{} rw - tmpfs x rw", path.replace(' ', "\\040"));
            let mounted = mounts(&line);
            prop_assert_eq!(mounted.len(), 1);
        }
    }
}
