//! `nave miner`: what the owner of hosts does, signed by a hotkey.

pub mod args;
mod key;
mod market;
mod show;
mod ticket;

use std::sync::Arc;

use nave_domain::HostId;
use nave_sdk::{
    client::{Client, Error, MinerClient},
    explain,
    hotkey::HotkeySecret,
    wire::enrol::{HostPatch, Market, MinerHost},
};

use self::{
    args::{Command, KeyArgs, Miner, Price, RegionArgs, TermArgs},
    market::Given,
};
use super::{
    Context,
    args::ShowVerdict,
    failure::{Failure, exit},
    lists::{answer, confirm},
    output::now,
    receipt, settlement,
    table::clean,
    verdicts,
};

/// A hotkey and the market it speaks to.
struct Caller {
    url: String,
    client: Client,
    market: Market,
    secret: Arc<HotkeySecret>,
}

impl Caller {
    /// Reads the hotkey and makes sure of the market's key.
    async fn new(cx: &Context, key: &KeyArgs, given: Given) -> Result<Self, Failure> {
        let secret = Arc::new(key::load(key)?);
        let client = cx.client()?;
        let url = cx.settings.url.clone().unwrap_or_default();
        let market =
            client.market().await.map_err(when(&format!("learn the keys of the market at {url}")))?;
        market::recognise(cx.settings.path.as_deref(), &url, given, &market)?;
        Ok(Self { url, client, market, secret })
    }

    fn miner(&self) -> MinerClient {
        self.client.clone().miner(self.market.market_key, Arc::clone(&self.secret))
    }

    /// The host with this name or id.
    async fn host(&self, text: &str) -> Result<MinerHost, Failure> {
        let attempted = format!("find the host {}", clean(text));
        if let Ok(host) = text.parse::<HostId>() {
            return self.miner().host(host).await.map_err(when(&attempted));
        }
        let mut hosts = self.miner().hosts().await.map_err(when(&attempted))?;
        // A host that has left may have had the same name.
        let found =
            |left: bool| hosts.iter().position(|host| host.name == text && (left || host.state.is_member()));
        match found(false).or_else(|| found(true)) {
            Some(at) => Ok(hosts.swap_remove(at)),
            None => Err(unknown(&attempted, &hosts)),
        }
    }
}

/// An API error of a signed call; unlike other calls it needs no token.
pub fn when(attempted: &str) -> impl FnOnce(Error) -> Failure {
    move |error| {
        let mut failure = Failure::api(attempted, &error);
        error.suggestion().clone_into(&mut failure.problem.suggestion);
        failure
    }
}

fn unknown(attempted: &str, hosts: &[MinerHost]) -> Failure {
    let names: Vec<String> = hosts.iter().map(|host| clean(&host.name)).collect();
    let advice = if names.is_empty() {
        "this hotkey has no hosts: `nave miner ticket` lets one join".to_owned()
    } else {
        format!("this hotkey has {}", names.join(", "))
    };
    Failure::local(attempted, "there is no such host", &advice).named("not_found").exiting(exit::NOT_FOUND)
}

/// Does what was asked.
pub async fn miner(cx: &Context, miner: Miner) -> Result<(), Failure> {
    let (release_key, for_ticket) = match &miner.command {
        Command::Ticket(ticket) => (ticket.release_key, true),
        Command::Hosts
        | Command::Show(_)
        | Command::Price(_)
        | Command::Term(_)
        | Command::Region(_)
        | Command::Pause(_)
        | Command::Resume(_)
        | Command::Drain(_)
        | Command::Leave(_)
        | Command::Events(_)
        | Command::Verdicts(_)
        | Command::Appeal(_)
        | Command::Earnings(_)
        | Command::Collateral(_) => (None, false),
    };
    let given = Given { market_key: miner.key.market_key, release_key, for_ticket };
    let caller = Caller::new(cx, &miner.key, given).await?;
    match miner.command {
        Command::Ticket(ticket) => ticket::ticket(cx, &caller, *ticket).await,
        Command::Hosts => {
            let hosts = caller.miner().hosts().await.map_err(when("list your hosts"))?;
            answer(cx, &hosts, |hosts| show::hosts(hosts, now()))
        }
        Command::Show(one) => answer(cx, &caller.host(&one.host).await?, |host| show::host(host, now())),
        Command::Price(price) => change_price(cx, &caller, price).await,
        Command::Term(term) => change_term(cx, &caller, term).await,
        Command::Region(region) => change_region(cx, &caller, region).await,
        Command::Pause(one) => pause(cx, &caller, &one.host, true).await,
        Command::Resume(one) => pause(cx, &caller, &one.host, false).await,
        Command::Drain(one) => drain(cx, &caller, &one.host).await,
        Command::Leave(one) => leave(cx, &caller, &one.host).await,
        Command::Events(one) => events(cx, &caller, &one.host).await,
        Command::Verdicts(wanted) => {
            let host = caller.host(&wanted.host).await?;
            let attempted = format!("list verdicts on {}", clean(&host.name));
            verdicts::list(cx, &caller.client, host.host, &wanted, when(&attempted)).await
        }
        Command::Appeal(one) => appeal(cx, &caller, &one).await,
        Command::Earnings(args) => settlement::earnings(cx, &caller.miner(), args).await,
        Command::Collateral(args) => settlement::collateral(cx, &caller.miner(), args).await,
    }
}

async fn events(cx: &Context, caller: &Caller, host: &str) -> Result<(), Failure> {
    let host = caller.host(host).await?;
    let attempted = format!("list what went wrong with {}", clean(&host.name));
    let page = caller.miner().events(host.host).await.map_err(when(&attempted))?;
    answer(cx, &page, |page| page.items.iter().map(|event| receipt::event(event) + "\n").collect())
}

async fn change(caller: &Caller, host: &MinerHost, patch: HostPatch) -> Result<MinerHost, Failure> {
    let attempted = format!("change {}", clean(&host.name));
    patch.check().map_err(|error| Failure::local(&attempted, &error, "").exiting(exit::USAGE))?;
    caller.miner().change(host.host, &patch).await.map_err(when(&attempted))
}

async fn change_price(cx: &Context, caller: &Caller, price: Price) -> Result<(), Failure> {
    let host = caller.host(&price.host).await?;
    let rate = price.over(host.rate);
    let rate = (rate != host.rate).then_some(rate);
    let patch = HostPatch { rate, gpu_price: price.gpu_price(), ..HostPatch::default() };
    let changed = change(caller, &host, patch).await?;
    answer(cx, &changed, |host| {
        let price = show::price(&host.rate);
        let how = show::following(host.gpu_price);
        format!("{} costs {price}{how}; open leases keep their price\n", clean(&host.name))
    })
}

async fn change_term(cx: &Context, caller: &Caller, wish: TermArgs) -> Result<(), Failure> {
    let host = caller.host(&wish.host).await?;
    let patch = HostPatch { term: Some(wish.term), ..HostPatch::default() };
    let changed = change(caller, &host, patch).await?;
    answer(cx, &changed, |host| format!("{} is offered {}\n", clean(&host.name), show::term(host.term)))
}

async fn change_region(cx: &Context, caller: &Caller, wish: RegionArgs) -> Result<(), Failure> {
    let host = caller.host(&wish.host).await?;
    let patch = HostPatch { region: Some(wish.region), ..HostPatch::default() };
    let changed = change(caller, &host, patch).await?;
    answer(cx, &changed, |host| {
        format!("{} is in {}\n", clean(&host.name), show::region(host.region.as_ref()))
    })
}

async fn pause(cx: &Context, caller: &Caller, host: &str, paused: bool) -> Result<(), Failure> {
    let host = caller.host(host).await?;
    let changed = change(caller, &host, HostPatch { paused: Some(paused), ..HostPatch::default() }).await?;
    answer(cx, &changed, |host| match host.paused {
        true => format!("{} is paused: it gets no new jobs, those on it go on\n", clean(&host.name)),
        false => format!("{} is not paused any more; it is {}\n", clean(&host.name), host.state.as_str()),
    })
}

async fn drain(cx: &Context, caller: &Caller, host: &str) -> Result<(), Failure> {
    let host = caller.host(host).await?;
    let attempted = format!("drain {}", clean(&host.name));
    let drained = caller.miner().drain(host.host).await.map_err(when(&attempted))?;
    answer(cx, &drained, |host| {
        let rest = match host.leases {
            0 => String::new(),
            leases => format!(": it finishes {} and leaves", show::jobs(leases)),
        };
        format!("{} is {}{rest}\n", clean(&host.name), host.state.as_str())
    })
}

async fn appeal(cx: &Context, caller: &Caller, one: &ShowVerdict) -> Result<(), Failure> {
    let host = caller.host(&one.host).await?;
    let attempted = format!("appeal {} on {}", one.verdict, clean(&host.name));
    let appealed = caller.miner().appeal(host.host, one.verdict).await.map_err(when(&attempted))?;
    answer(cx, &appealed, |verdict| {
        let said = explain::consequences(verdict);
        format!("{}: {}\n", verdict.challenge, clean(&said.join("; ")))
    })
}

async fn leave(cx: &Context, caller: &Caller, host: &str) -> Result<(), Failure> {
    let host = caller.host(host).await?;
    let name = clean(&host.name);
    let attempted = format!("let {name} leave");
    if host.leases > 0 && !cx.global.yes {
        let jobs = show::jobs(host.leases);
        confirm(
            &attempted,
            &format!("{jobs} on it will be ended and placed anew; what it did is not paid."),
        )?;
    }
    let left = caller.miner().leave(host.host).await.map_err(when(&attempted))?;
    answer(cx, &left, |host| format!("{name} is {}\n", host.state.as_str()))
}
