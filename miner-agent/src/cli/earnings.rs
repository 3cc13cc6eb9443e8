//! `earnings`: what this host's miner is paid, and why.

use std::process::ExitCode;

use clap::Args;
use nave_domain::MicroUsd;
use nave_miner_agent::{membership::Membership, verdicts};
use nave_sdk::{
    earnings::{NONE_YET, explained},
    wire::settlement::Earnings,
};

use super::args::DataArg;

#[derive(Debug, Args)]
pub struct EarningsArgs {
    #[command(flatten)]
    data: DataArg,
    /// Says what each sum is for. `nave miner earnings EPOCH`, where the hotkey is, shows every lease.
    #[arg(long)]
    explain: bool,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
    /// What stands in for the control plane behind the mesh in tests of the agent.
    #[arg(long, hide = true, value_name = "URL")]
    without_mesh: Option<String>,
}

pub async fn earnings(args: EarningsArgs) -> anyhow::Result<ExitCode> {
    let data = args.data.absolute()?;
    let member = Membership::load(&data)?;
    let epochs = verdicts::earnings(&data, &member, args.without_mesh.as_deref()).await?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&epochs)?);
    } else if args.explain {
        print!("{}", explained(&epochs));
    } else {
        print!("{}", in_short(&epochs));
    }
    Ok(ExitCode::SUCCESS)
}

fn in_short(epochs: &[Earnings]) -> String {
    if epochs.is_empty() {
        return NONE_YET.to_owned();
    }
    let line = |row: &Earnings| {
        let pay = &row.pay;
        let breaches = if pay.breaches > 0 { format!(", {} breaches", pay.breaches) } else { String::new() };
        format!(
            "epoch {}  weight {}, used {}, carry {}{breaches}\n",
            row.epoch,
            pay.weight,
            MicroUsd(pay.used),
            MicroUsd(pay.carry)
        )
    };
    let lines: String = epochs.iter().map(line).collect();
    format!("{lines}--explain says what each sum is for\n")
}
