//! What an operator can do to a market.

use std::{fs, path::Path};

use anyhow::Context as _;
use nave_domain::HostId;
use nave_sdk::wire::{
    rest::SCOPES,
    sign::{PublicKey, Release, Signature, SignedRelease, sha256},
};
use nave_store::{Departure, NewRelease, Store, StoreError, embedded::Postgres};

use nave_validator::params;

use crate::{
    bench::shadow,
    cli::{AdminArgs, AdminCommand, ReleaseArgs, ReleaseCommand},
    clouds, keys,
    up::Layout,
};

pub async fn run(args: AdminArgs) -> anyhow::Result<()> {
    match &args.command {
        AdminCommand::MarketKey { file } => println!("{}", keys::load_or_make(file)?.public()),
        AdminCommand::Release(ReleaseCommand::Keygen { file }) => {
            anyhow::ensure!(!file.exists(), "{} is there already", file.display());
            println!("{}", keys::load_or_make(file)?.public());
        }
        AdminCommand::Release(ReleaseCommand::Sign { program, release, key }) => {
            println!("{}", keys::load(key)?.sign(&described(program, release)?.0.bytes()));
        }
        AdminCommand::DefaultImage { .. }
        | AdminCommand::Credit { .. }
        | AdminCommand::Key { .. }
        | AdminCommand::Audit
        | AdminCommand::Announce { .. }
        | AdminCommand::Collateral { .. }
        | AdminCommand::Relate { .. }
        | AdminCommand::EvidenceDays { .. }
        | AdminCommand::Shadow
        | AdminCommand::Machines { .. }
        | AdminCommand::Resume { .. }
        | AdminCommand::Test { .. }
        | AdminCommand::Ban { .. }
        | AdminCommand::Release(ReleaseCommand::Publish { .. }) => return change(args).await,
    }
    Ok(())
}

/// What concerns the market's database.
async fn change(args: AdminArgs) -> anyhow::Result<()> {
    let url = match args.database {
        Some(url) => url,
        None => {
            let layout = Layout::new(args.data.data);
            Postgres::find(&layout.postgres())
                .context("find the market; `naved up` makes one, --data or NAVE_DATA say where it is")?
                .url()
        }
    };
    let store = Store::connect(&url).await?;
    store.now().await.context("reach the market's database; is the market up?")?;
    match args.command {
        AdminCommand::DefaultImage { image } => store.default_image_set(&image).await?,
        AdminCommand::Credit { customer, amount, key } => {
            let customer = store.customer_ensure(&customer).await?;
            let fresh = store.credit(customer, &key, amount).await?;
            println!("{customer} {}", if fresh { "credited" } else { "had this credit already" });
        }
        AdminCommand::Key { customer, scope } => {
            let customer = store.customer_ensure(&customer).await?;
            println!("{}", store.key_create(customer, "made by the operator", &scopes(scope)?).await?.1);
        }
        AdminCommand::Audit => audit(&store).await?,
        AdminCommand::Announce { file, epoch } => announce(&store, &file, epoch).await?,
        AdminCommand::Collateral { hotkey, amount, key, from } => {
            let from = match from {
                Some(name) => Some(store.customer_ensure(&name).await?),
                None => None,
            };
            let fresh =
                store.collateral_post(&hotkey, from, amount, &key).await.context("add to the collateral")?;
            println!("{hotkey} {}", if fresh { "has it" } else { "had it already" });
        }
        AdminCommand::Relate { customer, hotkey, why, undo } => {
            let id = store.customer_ensure(&customer).await?;
            match why.filter(|_| !undo) {
                Some(why) => store.related_set(id, &hotkey, &why).await.context("relate them")?,
                None => store.related_remove(id, &hotkey).await.context("they count as two already")?,
            }
            println!("{customer} and {hotkey} count as {}", if undo { "two" } else { "one" });
        }
        AdminCommand::EvidenceDays { days } => {
            store.evidence_days_set(days).await?;
            println!("evidence is kept for {days} days");
        }
        AdminCommand::Shadow => shadow::print(&store).await?,
        AdminCommand::Machines { json } => clouds::print(&store, json).await?,
        AdminCommand::Resume { cloud } => clouds::resume(&store, &cloud).await?,
        AdminCommand::Test { host } => {
            store.host_retest(host).await.map_err(|error| of_host("test", host, error))?;
            println!("{host} takes no new jobs until it has proven again what it claims");
        }
        AdminCommand::Ban { host } => {
            store
                .host_depart(None, host, Departure::Ban)
                .await
                .map_err(|error| of_host("ban", host, error))?;
            println!("{host} banned");
        }
        AdminCommand::Release(ReleaseCommand::Publish { program, release, signature, release_key }) => {
            publish(&store, described(&program, &release)?, signature, &release_key).await?;
        }
        AdminCommand::MarketKey { .. }
        | AdminCommand::Release(ReleaseCommand::Keygen { .. } | ReleaseCommand::Sign { .. }) => {}
    }
    Ok(())
}

async fn announce(store: &Store, file: &Path, epoch: i64) -> anyhow::Result<()> {
    let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    let document = serde_json::from_str(&text).with_context(|| format!("{} is no JSON", file.display()))?;
    let row = params::announce(store, &document, epoch).await?;
    println!("version {} holds from epoch {}", row.version, row.effective_epoch);
    Ok(())
}

/// Why something could not be done to a host.
fn of_host(attempted: &str, host: HostId, error: StoreError) -> anyhow::Error {
    let could_not = format!("could not {attempted} {host}");
    if matches!(error, StoreError::Stale(_)) {
        return anyhow::anyhow!("{could_not}: it has left the market or is leaving it");
    }
    if matches!(error, StoreError::NotFound(_)) {
        return anyhow::anyhow!(
            "{could_not}: there is no such host; `nave hosts` lists those that are there"
        );
    }
    anyhow::Error::from(error).context(could_not)
}

/// What is signed of a program, and the program.
fn described(program: &Path, args: &ReleaseArgs) -> anyhow::Result<(Release, Vec<u8>)> {
    let bytes = fs::read(program).with_context(|| format!("read {}", program.display()))?;
    let release = Release {
        version: args.version.clone(),
        target: args.target.clone(),
        sha256: sha256(&bytes),
        size: u64::try_from(bytes.len())?,
    };
    release.check().map_err(anyhow::Error::msg)?;
    Ok((release, bytes))
}

/// Hosts refuse what is not signed by the key in their tickets, so it is checked here first.
async fn publish(
    store: &Store,
    (release, bytes): (Release, Vec<u8>),
    signature: Signature,
    key: &PublicKey,
) -> anyhow::Result<()> {
    let signed = SignedRelease { release, signature };
    signed.verify(key).context("check the signature; sign this very file, version and target")?;
    let SignedRelease { release, signature } = signed;
    let manifest = serde_json::to_value(&release)?;
    store
        .release_publish(&NewRelease {
            version: &release.version,
            target: &release.target,
            manifest: &manifest,
            signature: &signature.to_string(),
            bytes: &bytes,
        })
        .await
        .with_context(|| format!("publish {} for {}", release.version, release.target))?;
    println!("{} for {} published", release.version, release.target);
    Ok(())
}

fn scopes(asked: Vec<String>) -> anyhow::Result<Vec<String>> {
    if asked.is_empty() {
        return Ok(SCOPES.map(str::to_owned).to_vec());
    }
    match asked.iter().find(|scope| !SCOPES.contains(&scope.as_str())) {
        Some(unknown) => anyhow::bail!("there is no scope {unknown}; there are {}", SCOPES.join(", ")),
        None => Ok(asked),
    }
}

async fn audit(store: &Store) -> anyhow::Result<()> {
    let problems = store.ledger_audit().await?;
    anyhow::ensure!(problems.is_empty(), "the books do not balance: {}", problems.join("; "));
    println!("the books balance");
    Ok(())
}
