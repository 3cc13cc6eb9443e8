//! Unpacks an archive from a stranger's machine.
//!
//! Only files and directories below the target are accepted. Everything is checked
//! before anything is written, and nothing that exists is overwritten.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom},
    path::{Component, Path, PathBuf},
};

use tar::{Archive, Entry, EntryType};

/// Most entries in one archive.
const ENTRIES_MAX: usize = 100_000;

/// Why an archive is not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The archive is damaged, or a file cannot be written.
    #[error("{0}")]
    Io(#[source] io::Error),
    /// An entry would land outside the target directory.
    #[error("{0:?} leads out of the target directory")]
    Outside(PathBuf),
    /// An entry is neither a file nor a directory.
    #[error("{0:?} is a link or a special file")]
    Special(PathBuf),
    /// A path occurs twice.
    #[error("{0:?} is in it twice")]
    Twice(PathBuf),
    /// Something is there already.
    #[error("{0:?} exists already")]
    Exists(PathBuf),
    /// It has too many entries.
    #[error("it has more than {ENTRIES_MAX} entries")]
    TooMany,
}

/// Unpacks `archive` into `target`, which is made when it does not exist.
/// Returns the files written, relative to it.
///
/// # Errors
/// [`Refused`]; where it is not [`Refused::Io`], nothing was written.
pub fn unpack(archive: &mut (impl Read + Seek), target: &Path) -> Result<Vec<PathBuf>, Refused> {
    check(archive, target)?;
    archive.seek(SeekFrom::Start(0)).map_err(Refused::Io)?;
    fs::create_dir_all(target).map_err(Refused::Io)?;
    let mut files = Vec::new();
    for entry in Archive::new(archive).entries().map_err(Refused::Io)? {
        let mut entry = entry.map_err(Refused::Io)?;
        let Some(path) = accept(&entry)? else { continue };
        if entry.header().entry_type().is_dir() {
            make_dirs(target, &path)?;
        } else {
            write(&mut entry, target, &path)?;
            files.push(path);
        }
    }
    Ok(files)
}

fn check(archive: &mut impl Read, target: &Path) -> Result<(), Refused> {
    let mut files = BTreeSet::new();
    for (count, entry) in Archive::new(archive).entries().map_err(Refused::Io)?.enumerate() {
        if count >= ENTRIES_MAX {
            return Err(Refused::TooMany);
        }
        let entry = entry.map_err(Refused::Io)?;
        let Some(path) = accept(&entry)? else { continue };
        check_target(target, &path, entry.header().entry_type().is_dir())?;
        if !entry.header().entry_type().is_dir() && !files.insert(path.clone()) {
            return Err(Refused::Twice(path));
        }
    }
    Ok(())
}

/// The path of an entry below the target; `None` for one that says nothing.
fn accept(entry: &Entry<'_, impl Read>) -> Result<Option<PathBuf>, Refused> {
    let named = entry.path().map_err(Refused::Io)?;
    let kind = entry.header().entry_type();
    if kind.is_file() || kind.is_dir() {
        return below(&named);
    }
    if kind == EntryType::XGlobalHeader {
        return Ok(None);
    }
    Err(Refused::Special(named.into_owned()))
}

fn below(named: &Path) -> Result<Option<PathBuf>, Refused> {
    let mut path = PathBuf::new();
    for component in named.components() {
        match component {
            Component::Normal(part) => path.push(part),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                return Err(Refused::Outside(named.to_owned()));
            }
        }
    }
    Ok(Some(path).filter(|path| !path.as_os_str().is_empty()))
}

/// Refuses what exists: a file in the way, or a link in place of a directory.
fn check_target(target: &Path, path: &Path, is_dir: bool) -> Result<(), Refused> {
    for part in path.ancestors().filter(|part| !part.as_os_str().is_empty()) {
        let passes_as_dir = is_dir || part != path;
        match fs::symlink_metadata(target.join(part)) {
            Ok(there) if there.is_dir() && passes_as_dir => {}
            Ok(_) => return Err(Refused::Exists(part.to_owned())),
            Err(_) => {}
        }
    }
    Ok(())
}

fn make_dirs(target: &Path, path: &Path) -> Result<(), Refused> {
    check_target(target, path, true)?;
    fs::create_dir_all(target.join(path)).map_err(Refused::Io)
}

fn write(entry: &mut Entry<'_, impl Read>, target: &Path, path: &Path) -> Result<(), Refused> {
    if let Some(parent) = path.parent() {
        make_dirs(target, parent)?;
    }
    let executable = entry.header().mode().is_ok_and(|mode| mode & 0o100 != 0);
    // A new file only: an existing name, also that of a link, is an error.
    let mut file = create(&target.join(path), executable).map_err(Refused::Io)?;
    io::copy(entry, &mut file).map_err(Refused::Io)?;
    Ok(())
}

fn create(path: &Path, executable: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, if executable { 0o755 } else { 0o644 });
    #[cfg(not(unix))]
    let _ = executable;
    options.open(path)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;
    use tar::Header;

    use super::*;

    /// A header that says what we like, which the library's own writer refuses to do.
    fn entry(name: &str, kind: EntryType, data: &[u8]) -> Vec<u8> {
        let mut header = Header::new_ustar();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(kind);
        header.set_size(data.len() as u64);
        header.set_mode(0o4755);
        if kind.is_symlink() || kind.is_hard_link() {
            header.set_link_name("/etc/passwd").expect("a link name");
        }
        header.set_cksum();
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend_from_slice(data);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    }

    fn archive(entries: &[Vec<u8>]) -> Cursor<Vec<u8>> {
        let mut bytes = entries.concat();
        bytes.resize(bytes.len() + 1024, 0);
        Cursor::new(bytes)
    }

    /// Unpacks into `out` inside a fresh directory; returns everything in that directory.
    fn unpack_fresh(mut archive: Cursor<Vec<u8>>) -> (Result<Vec<PathBuf>, Refused>, BTreeSet<PathBuf>) {
        let dir = tempfile::tempdir().expect("a directory");
        let result = unpack(&mut archive, &dir.path().join("out"));
        (result, listing(dir.path(), dir.path()))
    }

    fn listing(root: &Path, dir: &Path) -> BTreeSet<PathBuf> {
        let mut found = BTreeSet::new();
        for item in fs::read_dir(dir).expect("readable") {
            let path = item.expect("an item").path();
            let kind = fs::symlink_metadata(&path).expect("metadata");
            assert!(kind.is_dir() || kind.is_file(), "{path:?} is special");
            found.insert(path.strip_prefix(root).expect("below").to_owned());
            if kind.is_dir() {
                found.extend(listing(root, &path));
            }
        }
        found
    }

    #[test]
    fn files_and_directories_arrive() {
        let entries = [
            entry("./", EntryType::Directory, b""),
            entry("./a/b.txt", EntryType::Regular, b"hello"),
            entry("c", EntryType::Regular, b""),
        ];
        let (result, found) = unpack_fresh(archive(&entries));
        assert_eq!(result.expect("unpacked"), [PathBuf::from("a/b.txt"), "c".into()]);
        assert_eq!(found, ["out", "out/a", "out/a/b.txt", "out/c"].map(PathBuf::from).into());
    }

    #[test]
    fn a_path_that_leads_out_is_refused_and_nothing_is_written() {
        for name in ["../evil", "a/../../evil", "/tmp/nave-evil", "..", "a/.."] {
            let entries = [entry("first", EntryType::Regular, b"x"), entry(name, EntryType::Regular, b"x")];
            let (result, found) = unpack_fresh(archive(&entries));
            assert!(matches!(result, Err(Refused::Outside(_))), "{name}");
            assert_eq!(found, BTreeSet::new(), "{name}");
        }
    }

    #[test]
    fn links_devices_and_pipes_are_refused() {
        let kinds = [EntryType::Symlink, EntryType::Link, EntryType::Char, EntryType::Block, EntryType::Fifo];
        for kind in kinds.into_iter().chain([EntryType::GNUSparse, EntryType::Continuous]) {
            let (result, found) = unpack_fresh(archive(&[entry("x", kind, b"")]));
            assert!(result.is_err(), "{kind:?}");
            assert_eq!(found, BTreeSet::new(), "{kind:?}");
        }
    }

    #[test]
    fn nothing_that_exists_is_overwritten() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("a"), "mine").expect("written");
        let refused = unpack(&mut archive(&[entry("a", EntryType::Regular, b"theirs")]), dir.path());
        assert!(matches!(refused, Err(Refused::Exists(_))));
        assert_eq!(fs::read_to_string(dir.path().join("a")).expect("readable"), "mine");
    }

    #[cfg(unix)]
    #[test]
    fn a_link_that_lies_in_the_target_is_not_followed() {
        let (dir, other) = (tempfile::tempdir().expect("one"), tempfile::tempdir().expect("two"));
        std::os::unix::fs::symlink(other.path(), dir.path().join("a")).expect("a link");
        let refused = unpack(&mut archive(&[entry("a/b", EntryType::Regular, b"x")]), dir.path());
        assert!(matches!(refused, Err(Refused::Exists(_))));
        assert_eq!(listing(other.path(), other.path()), BTreeSet::new());
    }

    #[cfg(unix)]
    #[test]
    fn only_the_right_to_execute_is_taken_over() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().expect("a directory");
        unpack(&mut archive(&[entry("a", EntryType::Regular, b"x")]), dir.path()).expect("unpacked");
        let mode = fs::metadata(dir.path().join("a")).expect("metadata").permissions().mode();
        assert_eq!((mode & 0o7000, mode & 0o100), (0, 0o100));
    }

    #[test]
    fn one_path_twice_is_refused() {
        let twice = [entry("a", EntryType::Regular, b"1"), entry("./a", EntryType::Regular, b"2")];
        assert!(matches!(unpack_fresh(archive(&twice)).0, Err(Refused::Twice(_))));
    }

    #[test]
    fn a_long_name_in_an_extension_is_judged_like_a_short_one() {
        let record = "21 path=../evil/path\n";
        let pax = [entry("p", EntryType::XHeader, record.as_bytes()), entry("ok", EntryType::Regular, b"x")];
        let gnu = [entry("l", EntryType::GNULongName, b"../evil\0"), entry("ok", EntryType::Regular, b"x")];
        for entries in [pax, gnu] {
            let (result, found) = unpack_fresh(archive(&entries));
            assert!(matches!(result, Err(Refused::Outside(_))), "{result:?}");
            assert_eq!(found, BTreeSet::new());
        }
    }

    proptest! {
        #[test]
        fn no_valid_archive_leaves_the_target(
            items in proptest::collection::vec(("[./a]{1,8}", proptest::sample::select(b"0125LKxgS67".to_vec())), 1..5),
        ) {
            let entries: Vec<_> =
                items.iter().map(|(name, kind)| entry(name, EntryType::new(*kind), b"../../evil")).collect();
            let (_, found) = unpack_fresh(archive(&entries));
            prop_assert!(found.iter().all(|path| path.starts_with("out")));
        }

        #[test]
        fn foreign_bytes_never_leave_the_target(
            flips in proptest::collection::vec((0..2_048_usize, any::<u8>()), 0..12), cut in 0..4_096_usize,
        ) {
            let mut bytes = [entry("a", EntryType::Regular, b"data"), entry("b/c", EntryType::Regular, b"data")].concat();
            bytes.truncate(cut.max(600));
            for (at, value) in flips {
                let len = bytes.len();
                bytes[at % len] = value;
            }
            let (_, found) = unpack_fresh(Cursor::new(bytes));
            prop_assert!(found.iter().all(|path| path.starts_with("out")));
        }
    }
}
