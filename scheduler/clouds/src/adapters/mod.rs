//! One adapter for each cloud: its paths, its shapes and its words. What is known of them, and from
//! where, is in `docs/clouds.md`.

mod hyperstack;
mod lambda;
pub mod local;
mod massed;
mod runpod;
mod shadeform;
mod shapes;
mod vast;
mod verda;

use std::sync::Arc;

use nave_domain::{Millis, Timestamp};

use crate::{
    http::{Api, Transport},
    provider::{Cloud, Provider},
    secret::Secret,
};

/// What an account at a cloud needs to be used.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where the API is, if it is not where the cloud has it; of the local cloud its directory.
    pub base_url: Option<String>,
    /// The name that belongs to the key, where there is one: Verda's client id.
    pub key_id: String,
    /// The key.
    pub key: Secret,
    /// What machines boot: the cloud's id or name of an image.
    pub image: String,
    /// The cloud's id or name of the SSH key that machines are given; empty for none.
    pub ssh_key: String,
}

/// The adapter of a cloud.
#[must_use]
pub fn open(cloud: Cloud, settings: Settings, transport: Arc<dyn Transport>) -> Box<dyn Provider> {
    let base = settings.base_url.clone().unwrap_or_else(|| base_url(cloud).to_owned());
    let key = settings.key.clone();
    let bearer = || Some(("authorization", Secret::new(format!("Bearer {}", key.reveal()))));
    let auth = match cloud {
        Cloud::Shadeform => Some(("x-api-key", key.clone())),
        Cloud::Hyperstack => Some(("api_key", key.clone())),
        Cloud::Massed | Cloud::Lambda | Cloud::Runpod | Cloud::Vast => bearer(),
        // Verda's key is for a token, which each call needs.
        Cloud::Verda | Cloud::Local => None,
    };
    let api = Api::new(&base, auth, &key, transport);
    match cloud {
        Cloud::Shadeform => Box::new(shadeform::Shadeform { api, settings }),
        Cloud::Massed => Box::new(massed::Massed { api, settings }),
        Cloud::Hyperstack => Box::new(hyperstack::Hyperstack { api, settings }),
        Cloud::Lambda => Box::new(lambda::Lambda { api, settings }),
        Cloud::Runpod => Box::new(runpod::Runpod { api, settings }),
        Cloud::Vast => Box::new(vast::Vast { api, settings }),
        Cloud::Verda => Box::new(verda::Verda::new(api, settings)),
        Cloud::Local => Box::new(local::Local::new(base)),
    }
}

/// Where a cloud has its API.
#[must_use]
pub fn base_url(cloud: Cloud) -> &'static str {
    match cloud {
        Cloud::Shadeform => "https://api.shadeform.ai/v1",
        Cloud::Massed => "https://vm.massedcompute.com/api/v1",
        Cloud::Hyperstack => "https://infrahub-api.nexgencloud.com/v1",
        Cloud::Lambda => "https://cloud.lambda.ai/api/v1",
        Cloud::Runpod => "https://api.runpod.io/v2",
        Cloud::Vast => "https://console.vast.ai/api",
        Cloud::Verda => "https://api.datacrunch.io/v1",
        Cloud::Local => "/var/lib/nave/cloud",
    }
}

/// The shell script of a machine that turns itself off at `dead_man`, however its work goes.
///
/// Where the cloud deletes the machine itself this is not needed, and does no harm. The timer is the
/// machine's own: it does not survive a reboot, and a machine that is off is mostly still paid for, so
/// it bounds what a forgotten machine does and not what it costs.
#[must_use]
pub fn with_dead_man(script: &Secret, now: Timestamp, dead_man: Timestamp) -> Secret {
    let Millis(left) = dead_man.since(now);
    let minutes = (left / 60_000).max(1);
    let (first, rest) = match script.reveal().split_once('\n') {
        Some((first, rest)) if first.starts_with("#!") => (first, rest),
        Some(_) | None => ("#!/bin/sh", script.reveal()),
    };
    let timer = format!("shutdown -P +{minutes} || (sleep $(({minutes} * 60)); kill -TERM 1) &");
    Secret::new(format!("{first}\n{timer}\n{rest}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_ends_its_machine_before_anything_else_can_fail() {
        let script = Secret::new("#!/bin/bash\njoin");
        let (now, dead_man) = (Timestamp(1_000_000), Timestamp(1_000_000 + 90 * 60_000));
        let timed = with_dead_man(&script, now, dead_man);
        let lines: Vec<&str> = timed.reveal().lines().collect();
        assert_eq!(lines[0], "#!/bin/bash");
        assert!(lines[1].starts_with("shutdown -P +90 "));
        assert_eq!(lines[2], "join");
        assert!(
            with_dead_man(&script, dead_man, now).reveal().contains("-P +1 "),
            "one that is over ends at once"
        );
    }
}
