//! Hosts that say that a trusted execution environment vouches for them. None does so far.

use std::{collections::BTreeSet, fs, path::Path};

use nave_domain::{Millis, host::Trust, verdict::Kind};
use nave_verifier::{Config, Means, Verifier};

use crate::{
    market::{config, open},
    paced::{Paced, prove},
};

const NEVER: Millis = Millis(1 << 40);

/// Files of ours under this directory that make something of the trust class, but for tests.
fn naming(root: &Path, directory: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
        match path.is_dir() {
            true if name == "tests" || name == "target" || name.starts_with('.') => {}
            true => naming(root, &path, found),
            false if name.ends_with(".rs") => {
                let text = fs::read_to_string(&path).expect("a source");
                if text.contains("Attested") || text.contains("'attested'") {
                    let path = path.strip_prefix(root).expect("a file of ours");
                    found.insert(path.to_string_lossy().into_owned());
                }
            }
            false => {}
        }
    }
}

#[test]
fn nothing_makes_a_host_attested() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository");
    let mut found = BTreeSet::new();
    naming(root, root, &mut found);
    // Its name, and what customers take: whoever makes a host attested has verified evidence first, and a test of that.
    assert_eq!(found.iter().collect::<Vec<_>>(), ["domain/src/host.rs", "domain/src/wish.rs"]);
}

#[tokio::test]
async fn a_host_that_says_it_is_attested_is_what_it_has_proven_and_no_more() {
    let market = open().await;
    let mut boasting = Paced::alone(&market, "boasting", "SIM-1", Vec::new()).await;
    boasting
        .says(|inventory| {
            inventory.cpu_model = "AMD EPYC with SEV-SNP, attested".into();
            inventory.os = "attested".into();
            inventory.agent = "attested".into();
        })
        .await;
    let mut honest = Paced::alone(&market, "honest", "SIM-2", Vec::new()).await;
    let mut idle = Paced::alone(&market, "idle", "SIM-3", Vec::new()).await;
    idle.says(|inventory| inventory.agent = "attested".into()).await;
    let enforced = BTreeSet::from([Kind::Cpu, Kind::Memory, Kind::Devices]);
    let means = Means { retest: NEVER, probe: NEVER, window: NEVER };
    let mut verifier = Verifier::new(Config { enforced, means, ..config() }, market.store.clone());
    prove(&mut verifier, &mut [&mut boasting, &mut honest]).await;
    let snapshot = market.store.snapshot().await.expect("a snapshot");
    let trust = |host: &Paced| snapshot.hosts.get(&host.host.id).map(|offered| offered.terms.trust);
    assert_eq!((trust(&boasting), trust(&honest)), (Some(Trust::Verified), Some(Trust::Verified)));
    assert_eq!(trust(&idle), None, "it has proven nothing, and gets no jobs");
    let row = idle.host.row().await;
    assert_eq!(Trust::of(row.inventory.as_ref(), row.proven.as_ref()), Trust::Unrated);
}
