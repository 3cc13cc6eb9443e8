//! What can be typed after `nave miner`.

use std::path::PathBuf;

use clap::{
    ArgGroup, Args, Subcommand,
    builder::{PossibleValue, PossibleValuesParser, TypedValueParser, ValueParser},
    value_parser,
};
use nave_domain::{
    MicroUsd, Millis,
    host::Term,
    rate::{GpuPrice, Rate},
    wish::Region,
};
use nave_sdk::wire::enrol::{PublicKey, TICKET_LIFE_MAX, check_name};

use super::super::args::{ListVerdicts, ShowVerdict};

/// `nave miner`.
#[derive(Debug, Args)]
pub struct Miner {
    /// Who signs.
    #[command(flatten)]
    pub key: KeyArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Where the hotkey is and which market it signs for.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Hotkey and market")]
pub struct KeyArgs {
    /// Bittensor wallet; with --hotkey it names ~/.bittensor/wallets/WALLET/hotkeys/HOTKEY
    #[arg(long, global = true, value_name = "WALLET")]
    pub wallet: Option<String>,
    /// Hotkey of the wallet [default: default]
    #[arg(long, global = true, value_name = "HOTKEY")]
    pub hotkey: Option<String>,
    /// Hotkey file of a wallet, or a file with a mnemonic or secret URI
    #[arg(long, global = true, value_name = "PATH", conflicts_with_all = ["wallet", "hotkey"])]
    pub hotkey_file: Option<PathBuf>,
    /// Public development key, such as //Alice
    #[arg(long, global = true, value_name = "URI", conflicts_with_all = ["wallet", "hotkey", "hotkey_file"])]
    pub hotkey_uri: Option<String>,
    /// The market's key, as its operator says it; left out, the one seen first is remembered
    #[arg(long, global = true, value_name = "KEY")]
    pub market_key: Option<PublicKey>,
}

/// What a miner does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a ticket, with which one host joins the market
    #[command(after_help = TICKET_AFTER)]
    Ticket(Box<TicketArgs>),
    /// List your hosts, with their states and reasons
    Hosts,
    /// Show one host
    Show(OneHost),
    /// Change the price of a host; open leases keep theirs
    Price(Price),
    /// Change for how long a host is offered
    Term(TermArgs),
    /// Say where a host is
    Region(RegionArgs),
    /// Give a host no new jobs for now
    Pause(OneHost),
    /// Give a paused host jobs again
    Resume(OneHost),
    /// Take a host out once its jobs are done
    Drain(OneHost),
    /// Take a host out now; its jobs are placed anew on others
    Leave(OneHost),
    /// List what went wrong with a host and its leases, newest first, and whose fault it was
    Events(OneHost),
    /// List what came of the tests of a host, newest first, with reasons and remedies
    Verdicts(ListVerdicts),
    /// Have a verdict on a host reached again by the present judge, once
    Appeal(ShowVerdict),
    /// Show what you earn, epoch by epoch, or lease by lease of one epoch
    Earnings(EarningsArgs),
    /// Show your collateral and as what it lets your hosts sell, or call some of it back
    Collateral(CollateralArgs),
}

/// `nave miner earnings`.
#[derive(Debug, Args)]
pub struct EarningsArgs {
    /// The epoch whose leases to list; left out, epochs are
    #[arg(value_name = "EPOCH")]
    pub epoch: Option<i64>,
    /// Say what each sum is for, and all that went wrong
    #[arg(long)]
    pub explain: bool,
    /// Most epochs or leases to list
    #[arg(short = 'n', long, value_name = "N", default_value = "20")]
    pub limit: u32,
    /// Only epochs before this one
    #[arg(long, value_name = "EPOCH", conflicts_with = "epoch")]
    pub before: Option<i64>,
    /// Only leases after this one
    #[arg(long, value_name = "LEASE", requires = "epoch")]
    pub after: Option<String>,
}

/// `nave miner collateral`.
#[derive(Debug, Args)]
pub struct CollateralArgs {
    /// Calls so many USD back: they back no offer any more, and are paid after the cooldown
    #[arg(long, value_name = "USD")]
    pub call_back: Option<MicroUsd>,
}

pub const AFTER: &str = "\
Hotkeys: without an option, a mnemonic or secret URI in NAVE_HOTKEY_URI is used, else the hotkey
`default` of the wallet `default`. Secrets stay on this machine and are never printed.";

const TICKET_AFTER: &str = "\
The ticket alone goes to stdout. Whoever has it can let one host join under your hotkey until it
expires or was used: hand it over as you would a password, or bind it to an agent with --for.";

/// `nave miner ticket`.
#[derive(Debug, Args)]
pub struct TicketArgs {
    /// What to call the host; left out, the market names it
    #[arg(long, value_name = "NAME", value_parser = name)]
    pub name: Option<String>,
    /// Price.
    #[command(flatten)]
    pub price: TicketPrice,
    /// For how long it is offered: until you drain it, or until you want it back at once
    /// [default: on-demand, or as it was]
    #[arg(long, value_parser = term())]
    pub term: Option<Term>,
    /// Where the host is, such as eu or us-east-1 [default: not said, or as it was]
    #[arg(long, value_name = "REGION")]
    pub region: Option<Region>,
    /// How long the ticket can be used; 7d at most
    #[arg(long, value_name = "SPAN", default_value = "1h", value_parser = life)]
    pub expires: Millis,
    /// The one agent that may use it; `miner-agent key` prints an agent's key
    #[arg(long = "for", value_name = "AGENT_KEY")]
    pub agent: Option<PublicKey>,
    /// Your host that joins again, on other hardware or without its keys
    #[arg(long, value_name = "HOST")]
    pub replaces: Option<String>,
    /// The key that signs upgrades of the agent, as the operator says it
    #[arg(long, value_name = "KEY")]
    pub release_key: Option<PublicKey>,
}

/// What a host costs unless its owner says otherwise; the same as with `naved up`.
pub const RATE: Rate =
    Rate { gpu_hour: MicroUsd(1_500_000), vcpu_hour: MicroUsd(20_000), gib_hour: MicroUsd(3_000) };

/// The price in a ticket.
#[derive(Debug, Args)]
pub struct TicketPrice {
    /// Dollars per hour of one GPU [default: 1.50, or as it was of a host that joins again]
    #[arg(long, value_name = "DOLLARS")]
    pub price_gpu: Option<MicroUsd>,
    /// Dollars per hour of one virtual CPU [default: 0.02, or as it was]
    #[arg(long, value_name = "DOLLARS")]
    pub price_cpu: Option<MicroUsd>,
    /// Dollars per hour of one GiB of memory [default: 0.003, or as it was]
    #[arg(long, value_name = "DOLLARS")]
    pub price_memory: Option<MicroUsd>,
}

impl TicketPrice {
    /// `usual` with what was given in it.
    #[must_use]
    pub fn over(&self, usual: Rate) -> Rate {
        Rate {
            gpu_hour: self.price_gpu.unwrap_or(usual.gpu_hour),
            vcpu_hour: self.price_cpu.unwrap_or(usual.vcpu_hour),
            gib_hour: self.price_memory.unwrap_or(usual.gib_hour),
        }
    }
}

/// A command on one host.
#[derive(Debug, Args)]
pub struct OneHost {
    /// Its name or id
    pub host: String,
}

/// `nave miner price`; what is not given stays.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("change").required(true).multiple(true)
    .args(["price_gpu", "below_baseline", "price_cpu", "price_memory"]))]
pub struct Price {
    /// Its name or id
    pub host: String,
    /// Dollars per hour of one GPU, from now on and until you change it
    #[arg(long, value_name = "DOLLARS")]
    pub price_gpu: Option<MicroUsd>,
    /// Let the price of GPUs follow what clouds ask for them, so many percent below it
    #[arg(long, value_name = "PERCENT", conflicts_with = "price_gpu", requires = "floor",
          value_parser = value_parser!(u8).range(0..=i64::from(GpuPrice::PERCENT_MAX)))]
    pub below_baseline: Option<u8>,
    /// Dollars per hour of one GPU that such a price never falls below
    #[arg(long, value_name = "DOLLARS", requires = "below_baseline")]
    pub floor: Option<MicroUsd>,
    /// Dollars per hour of one virtual CPU
    #[arg(long, value_name = "DOLLARS")]
    pub price_cpu: Option<MicroUsd>,
    /// Dollars per hour of one GiB of memory
    #[arg(long, value_name = "DOLLARS")]
    pub price_memory: Option<MicroUsd>,
}

impl Price {
    /// `old` with what was given in it.
    #[must_use]
    pub fn over(&self, old: Rate) -> Rate {
        let Self { price_gpu, price_cpu, price_memory, .. } = *self;
        TicketPrice { price_gpu, price_cpu, price_memory }.over(old)
    }

    /// How the price of GPUs is set from now on; none where that stays.
    #[must_use]
    pub fn gpu_price(&self) -> Option<GpuPrice> {
        let follows = self.below_baseline.zip(self.floor);
        let follows = follows.map(|(percent, floor)| GpuPrice::BelowBaseline { percent, floor });
        follows.or(self.price_gpu.map(|_| GpuPrice::Fixed))
    }
}

/// `nave miner term`.
#[derive(Debug, Args)]
pub struct TermArgs {
    /// Its name or id
    pub host: String,
    /// For how long it is offered
    #[arg(value_parser = term())]
    pub term: Term,
}

/// `nave miner region`.
#[derive(Debug, Args)]
pub struct RegionArgs {
    /// Its name or id
    pub host: String,
    /// Where it is, such as eu or us-east-1
    pub region: Region,
}

fn term() -> ValueParser {
    let values = [PossibleValue::new("on-demand").alias("on_demand"), PossibleValue::new("spot")];
    ValueParser::new(PossibleValuesParser::new(values).map(|text| match text.as_str() {
        "spot" => Term::Spot,
        _ => Term::OnDemand,
    }))
}

fn life(text: &str) -> Result<Millis, String> {
    let span: Millis = text.parse().map_err(|error: nave_domain::units::BadAmount| error.to_string())?;
    if span <= Millis::ZERO || span > TICKET_LIFE_MAX {
        return Err("a ticket lives for more than nothing and for 7d at most".to_owned());
    }
    Ok(span)
}

fn name(text: &str) -> Result<String, String> {
    check_name(text).map_err(|error| error.trim_start_matches("name: ").to_owned())?;
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::{
        super::super::args::{Cli, Command as Any},
        *,
    };

    fn parse(line: &str) -> Result<Miner, clap::Error> {
        let cli = Cli::try_parse_from(line.split_whitespace())?;
        let Any::Miner(miner) = cli.command else { panic!("another command") };
        Ok(*miner)
    }

    #[test]
    fn a_ticket_has_the_prices_of_a_local_host_unless_told_otherwise() {
        let Command::Ticket(ticket) = parse("nave miner ticket --term spot").expect("valid").command else {
            panic!("another command");
        };
        let rate = ticket.price.over(RATE);
        assert_eq!(
            (rate.gpu_hour, rate.vcpu_hour, rate.gib_hour),
            (MicroUsd(1_500_000), MicroUsd(20_000), MicroUsd(3_000))
        );
        assert_eq!((ticket.term, ticket.expires), (Some(Term::Spot), Millis(3_600_000)));
    }

    #[test]
    fn a_ticket_never_lives_longer_than_a_week() {
        for span in ["8d", "0s", "169h", "soon"] {
            assert!(parse(&format!("nave miner ticket --expires {span}")).is_err(), "{span}");
        }
        assert!(parse("nave miner ticket --expires 7d").is_ok());
    }

    #[test]
    fn a_hotkey_comes_from_one_place_only() {
        assert!(parse("nave miner --wallet a --hotkey b hosts").is_ok());
        assert!(parse("nave miner hosts --hotkey-uri //Alice").is_ok());
        assert!(parse("nave miner hosts --hotkey-uri //Alice --wallet a").is_err());
        assert!(parse("nave miner hosts --hotkey-file x --hotkey b").is_err());
    }

    #[test]
    fn a_price_is_set_by_its_owner_or_follows_clouds_down_to_a_floor() {
        let price = |options: &str| {
            let command = parse(&format!("nave miner price gpu-1 {options}")).ok()?.command;
            if let Command::Price(price) = command { price.gpu_price() } else { None }
        };
        assert_eq!(price("--price-gpu 1"), Some(GpuPrice::Fixed));
        let follows = GpuPrice::BelowBaseline { percent: 10, floor: MicroUsd(800_000) };
        assert_eq!(price("--below-baseline 10 --floor 0.80"), Some(follows));
        for refused in [
            "--below-baseline 10",
            "--floor 1",
            "--below-baseline 100 --floor 1",
            "--price-gpu 1 --below-baseline 1 --floor 1",
        ] {
            assert_eq!(price(refused), None, "{refused}");
        }
    }

    #[test]
    fn a_price_that_changes_nothing_is_refused_and_the_other_parts_stay() {
        assert!(parse("nave miner price gpu-1").is_err());
        let Command::Price(price) = parse("nave miner price gpu-1 --price-cpu 0.05").expect("valid").command
        else {
            panic!("another command");
        };
        let old = Rate { gpu_hour: MicroUsd(1), vcpu_hour: MicroUsd(2), gib_hour: MicroUsd(3) };
        assert_eq!(price.over(old), Rate { vcpu_hour: MicroUsd(50_000), ..old });
        assert_eq!(price.gpu_price(), None);
    }
}
