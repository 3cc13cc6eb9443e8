//! The process that serves a userspace device: its whole life is [`run`].

use std::{
    io::{self, Read as _, Write as _},
    process, thread,
    time::Duration,
};

use gotatun::{
    device::{self, uapi::UapiServer},
    tun::tun_async_device::TunDevice,
};
use nix::{
    net::if_::if_nametoindex,
    sys::{prctl, signal::Signal, stat},
    unistd::getpid,
};

use crate::{Error, Name, Namespace, namespace::within};

/// What the process writes when it can be configured.
pub(crate) const READY: &str = "ready";

/// How often it looks whether its link is still there.
const LINK_LOOK: Duration = Duration::from_millis(500);

/// Serves the userspace device `name` until its link is taken away or whoever
/// started it ends.
///
/// The link is made in the named namespace and the sockets in the one this is called
/// in: a TUN device cannot be moved without losing sight of its MTU, and sockets
/// must stay where the hosts find them.
///
/// Standard input stays open for as long as the process shall live, and standard output
/// says when the device can be configured; so a log goes to standard error. gotatun says
/// much at the level of information, such as every time it is asked how it is.
///
/// # Errors
/// When the device cannot be made, or no longer works.
pub fn run(name: &str, namespace: Option<&str>) -> Result<(), Error> {
    die_with_parent()?;
    stat::umask(stat::Mode::from_bits_truncate(0o077));
    let name: Name = name.parse()?;
    let namespace = namespace.map(Namespace::named).transpose()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(Error::io("start the tunnel's threads"))?;
    let failed = |reason: String| Error::Tunnel { name: name.to_string(), reason };
    let link = within(namespace.as_ref(), || {
        let _context = runtime.enter();
        TunDevice::from_name(name.as_str())
    })?;
    let link = link.map_err(|error| failed(error.to_string()))?;
    end_with_link(&name, namespace)?;
    runtime.block_on(async {
        let commands = UapiServer::default_unix_socket(name.as_str(), None, None)
            .map_err(|error| failed(error.to_string()))?;
        let mut device = device::build()
            .with_default_udp()
            .with_ip(link)
            .with_uapi(commands)
            .build()
            .await
            .map_err(|error| failed(error.to_string()))?;
        let mut stdout = io::stdout();
        write!(stdout, "\n{READY}\n")
            .and_then(|()| stdout.flush())
            .map_err(Error::io("say that it is up"))?;
        device.wait().await;
        Err(failed("its link or its socket no longer works".to_owned()))
    })
}

/// Ends this process when its link is gone: gotatun learns of that only from the next
/// packet it wants to deliver, and without the link none may ever come.
fn end_with_link(name: &Name, namespace: Option<Namespace>) -> Result<(), Error> {
    let thread = thread::Builder::new().name("link".to_owned());
    let name = name.to_string();
    let watch = move || {
        let watched = within(namespace.as_ref(), || {
            let index = if_nametoindex(name.as_str());
            while index.is_ok() && if_nametoindex(name.as_str()) == index {
                thread::sleep(LINK_LOOK);
            }
        });
        tracing::warn!(interface = %name, ?watched, "the link is gone");
        process::exit(1);
    };
    thread.spawn(watch).map_err(Error::io("watch the link"))?;
    Ok(())
}

/// Ends this process when the one that started it ends: the kernel sees to that, and
/// the end of standard input shows it where the parent was gone before.
fn die_with_parent() -> Result<(), Error> {
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(Error::io("follow the parent"))?;
    let watch = || {
        let _ = io::stdin().read_to_end(&mut Vec::new());
        tracing::debug!(process = %getpid(), "nobody needs this tunnel any more");
        process::exit(0);
    };
    thread::Builder::new().name("parent".to_owned()).spawn(watch).map_err(Error::io("watch the parent"))?;
    Ok(())
}
