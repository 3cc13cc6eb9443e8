//! What an operator can do to a market.

use anyhow::Context as _;
use nave_sdk::wire::rest::SCOPES;
use nave_store::{Store, embedded::Postgres};

use crate::{
    cli::{AdminArgs, AdminCommand},
    up::Layout,
};

pub async fn run(args: AdminArgs) -> anyhow::Result<()> {
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
    }
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
