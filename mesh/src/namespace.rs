use std::{fs::File, path::PathBuf, thread};

use nix::sched::{CloneFlags, setns};

use crate::{Error, program};

/// A named network namespace of this machine, as `ip netns` knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// The namespace of this name; it is made where there is none. Its loopback is up.
    ///
    /// # Errors
    /// When the name is none or the kernel refuses.
    pub fn ensure(name: &str) -> Result<Self, Error> {
        let namespace = Self::named(name)?;
        // A file without a namespace behind it is what a killed `ip netns add` leaves.
        if namespace.path().exists() && namespace.enter(|| ()).is_err() {
            namespace.delete()?;
        }
        if !namespace.path().exists() {
            program::run("ip", &["netns", "add", name])?;
        }
        program::run("ip", &["-n", name, "link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// The namespace of this name, whether it exists or not.
    ///
    /// # Errors
    /// When the name is none.
    pub fn named(name: &str) -> Result<Self, Error> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        let starts = name.starts_with(|c: char| c.is_ascii_alphanumeric());
        if name.len() > 64 || !starts || !name.chars().all(allowed) {
            return Err(Error::Name(name.to_owned()));
        }
        Ok(Self { name: name.to_owned() })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that holds it open.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// Calls a function on a thread of its own that is inside the namespace. Sockets
    /// made there stay there, wherever they are used afterwards.
    ///
    /// # Errors
    /// When there is no such namespace; the function is not called then.
    pub fn enter<T: Send>(&self, call: impl FnOnce() -> T + Send) -> Result<T, Error> {
        let file = File::open(self.path()).map_err(Error::file("open the namespace", &self.path()))?;
        thread::scope(|scope| {
            let inside = scope.spawn(move || {
                setns(&file, CloneFlags::CLONE_NEWNET)?;
                Ok(call())
            });
            match inside.join() {
                Ok(outcome) => outcome.map_err(|errno: nix::Error| Error::Io {
                    attempt: format!("enter the namespace {}", self.name),
                    source: errno.into(),
                }),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Takes the namespace away with all that is in it, where it exists. Sockets that
    /// are open in it keep the rest of it alive, without a name.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delete(&self) -> Result<(), Error> {
        if self.path().exists() {
            program::run("ip", &["netns", "delete", &self.name])?;
        }
        Ok(())
    }
}

/// Arguments of `ip` that choose where it acts.
pub(crate) fn chosen(namespace: Option<&Namespace>) -> Vec<&str> {
    namespace.map(|namespace| vec!["-n", namespace.name()]).unwrap_or_default()
}

/// Calls a function inside a namespace, or here where none is given.
pub(crate) fn within<T: Send>(
    namespace: Option<&Namespace>,
    call: impl FnOnce() -> T + Send,
) -> Result<T, Error> {
    match namespace {
        Some(namespace) => namespace.enter(call),
        None => Ok(call()),
    }
}
