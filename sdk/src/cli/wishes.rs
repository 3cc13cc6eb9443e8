//! Options that say where a job may run; `nave run`, `nave quote` and `nave offers` share them.

use std::str::FromStr;

use clap::{
    Args,
    builder::{PossibleValue, PossibleValuesParser, TypedValueParser, ValueParser},
};
use nave_domain::{
    Bytes, MicroUsd, MilliCpu,
    host::Trust,
    job::{GpuRequest, Isolation, TermWish},
    wish::Region,
};
use nave_sdk::client::OffersQuery;

use super::show::cores;

/// Where a job may run.
#[derive(Debug, Clone, Default, Args)]
pub struct Wishes {
    /// Memory of each GPU: 8GiB for at least so much, 8GiB..24GiB for at most 24 GiB
    #[arg(long, value_name = "SIZE[..SIZE]")]
    pub vram: Option<VramWish>,
    /// Model or class of GPUs, and how many: H100 or H100:2; given several times, the first that is free
    #[arg(long, value_name = "MODEL[:N]")]
    pub gpu: Vec<ModelWish>,
    /// Number of GPUs [default: 1 with --vram or --gpu, else none]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    pub gpus: Option<u8>,
    /// Part of one GPU's computing that suffices, such as 0.25, with --vram of its memory or as much of that as of
    /// its computing. It is what is paid for; where no host has such a part free, all of a GPU is
    #[arg(long, value_name = "PART")]
    pub share: Option<ShareWish>,
    /// Only hosts that are there, as their owners say
    #[arg(long, value_name = "REGION")]
    pub region: Option<Region>,
    /// Only hosts on this term: offered until drained, or until their owners want them back
    #[arg(long, value_parser = term())]
    pub term: Option<TermWish>,
    /// Which hosts may be trusted, separated by commas; GPUs of kinds that nobody has measured enough of
    /// are `unrated` [default for jobs: verified,attested,cloud]
    #[arg(long, value_name = "CLASS", value_delimiter = ',', value_parser = trust())]
    pub trust: Vec<Trust>,
    /// What it has for itself: a part suffices, whole devices, or a host without anybody else
    #[arg(long, value_parser = isolation())]
    pub isolation: Option<Isolation>,
    /// Most dollars that an hour may cost for each GPU, with its cores and memory, or without GPUs for the job
    #[arg(long, value_name = "DOLLARS")]
    pub max_price: Option<MicroUsd>,
}

/// `nave offers`.
#[derive(Debug, Default, Args)]
pub struct OffersArgs {
    /// Where a job may run.
    #[command(flatten)]
    pub wishes: Wishes,
    /// Only where so many virtual CPUs are free
    #[arg(long, value_name = "CORES")]
    pub cpu: Option<MilliCpu>,
    /// Only where so much memory is free
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<Bytes>,
    /// Only where so much disk is free
    #[arg(long, value_name = "SIZE")]
    pub disk: Option<Bytes>,
}

impl Wishes {
    /// The GPUs that are asked for, if any.
    ///
    /// # Errors
    /// A sentence when they contradict each other.
    pub fn gpu_request(&self) -> Result<Option<GpuRequest>, String> {
        if self.vram.is_none() && self.gpus.is_none() && self.gpu.is_empty() && self.share.is_none() {
            return Ok(None);
        }
        let gpu = self.gpus_asked()?;
        if let (Some(share), Some(isolation)) = (gpu.share, self.isolation)
            && isolation != Isolation::Any
        {
            let isolation = isolation.as_str();
            return Err(format!(
                "--isolation {isolation} wants all of a GPU, and --share {} a part of one; leave one of them out",
                cores(share.into())
            ));
        }
        if gpu.share.is_some() && gpu.count > 1 {
            return Err(format!(
                "--share is a part of one GPU, and {} are asked for; leave it out, or ask for one",
                gpu.count
            ));
        }
        Ok(Some(gpu))
    }

    fn gpus_asked(&self) -> Result<GpuRequest, String> {
        let mut counts: Vec<u8> = self.gpu.iter().filter_map(|wish| wish.count).chain(self.gpus).collect();
        counts.sort_unstable();
        counts.dedup();
        // A bare model among others has the number that they have.
        let [count] = counts.as_slice() else {
            if counts.is_empty() {
                return Ok(self.gpus_of(1));
            }
            return Err("--gpu and --gpus ask for different numbers of GPUs; a job has one number".into());
        };
        Ok(self.gpus_of(*count))
    }

    fn gpus_of(&self, count: u8) -> GpuRequest {
        GpuRequest {
            count,
            vram: self.vram.map_or(Bytes::ZERO, |vram| vram.least),
            vram_max: self.vram.and_then(|vram| vram.most),
            models: self.gpu.iter().map(|wish| wish.model.clone()).collect(),
            share: self.share.map(|ShareWish(milli)| milli),
        }
    }
}

impl OffersArgs {
    /// What the API is asked.
    ///
    /// # Errors
    /// As [`Wishes::gpu_request`].
    pub fn query(&self) -> Result<OffersQuery, String> {
        let gpu = self.wishes.gpu_request()?;
        Ok(OffersQuery {
            gpu,
            milli_cpu: self.cpu,
            memory: self.memory,
            disk: self.disk,
            region: self.wishes.region.clone(),
            term: self.wishes.term,
            trust: self.wishes.trust.iter().copied().collect(),
            isolation: self.wishes.isolation,
            max_price: self.wishes.max_price,
        })
    }
}

/// Memory of a GPU, at least and at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VramWish {
    /// At least so much.
    pub least: Bytes,
    /// At most so much.
    pub most: Option<Bytes>,
}

impl FromStr for VramWish {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let size = |text: &str| text.parse::<Bytes>().map_err(|error| error.to_string());
        match text.split_once("..") {
            None => Ok(Self { least: size(text)?, most: None }),
            Some((least, most)) => Ok(Self { least: size(least)?, most: Some(size(most)?) }),
        }
    }
}

/// Thousandths of a GPU's computing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShareWish(pub u16);

impl FromStr for ShareWish {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // As cores are written.
        let milli = text.parse::<MilliCpu>().ok().and_then(|part| u16::try_from(part.0).ok());
        let part = milli.filter(|milli| (1..=1_000).contains(milli));
        part.map(Self).ok_or_else(|| "it is a part of one GPU from 0.001 to 1, such as 0.25".to_owned())
    }
}

/// A model of GPU, and how many of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelWish {
    /// Its name, or that of its class.
    pub model: String,
    /// How many.
    pub count: Option<u8>,
}

impl FromStr for ModelWish {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((model, count)) = text.rsplit_once(':') else {
            return Ok(Self { model: text.to_owned(), count: None });
        };
        let count = count.parse().ok().filter(|count| (1..=64).contains(count));
        let count = count.ok_or_else(|| "after the colon stands a number from 1 to 64".to_owned())?;
        Ok(Self { model: model.to_owned(), count: Some(count) })
    }
}

fn term() -> ValueParser {
    let values = [
        PossibleValue::new("any"),
        PossibleValue::new("on-demand").alias("on_demand"),
        PossibleValue::new("spot"),
    ];
    ValueParser::new(PossibleValuesParser::new(values).map(|text| match text.as_str() {
        "on-demand" | "on_demand" => TermWish::OnDemand,
        "spot" => TermWish::Spot,
        _ => TermWish::Any,
    }))
}

fn isolation() -> ValueParser {
    let names = Isolation::ALL.iter().map(|isolation| isolation.as_str());
    ValueParser::new(PossibleValuesParser::new(names).try_map(|text| {
        Isolation::ALL.iter().copied().find(|isolation| isolation.as_str() == text).ok_or("not a way")
    }))
}

fn trust() -> ValueParser {
    let names = Trust::ALL.map(Trust::as_str);
    ValueParser::new(PossibleValuesParser::new(names).try_map(|text| {
        Trust::ALL.into_iter().find(|class| class.as_str() == text).ok_or("not a trust class")
    }))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        offers: OffersArgs,
    }

    fn wishes(line: &str) -> Result<Wishes, clap::Error> {
        let line = ["offers"].into_iter().chain(line.split_whitespace());
        Line::try_parse_from(line).map(|line| line.offers.wishes)
    }

    fn gpu(line: &str) -> Result<Option<GpuRequest>, String> {
        wishes(line).map_err(|error| error.to_string())?.gpu_request()
    }

    #[test]
    fn models_are_asked_for_in_their_order_with_one_number() {
        let two = |models: &[&str]| GpuRequest {
            count: 2,
            models: models.iter().map(|model| (*model).to_owned()).collect(),
            ..GpuRequest::default()
        };
        assert_eq!(gpu("--gpu H100:2 --gpu A100:2"), Ok(Some(two(&["H100", "A100"]))));
        assert_eq!(gpu("--gpu H100:2 --gpu A100"), Ok(Some(two(&["H100", "A100"]))));
        assert_eq!(gpu("--gpu H100 --gpus 2"), Ok(Some(two(&["H100"]))));
        assert_eq!(gpu("--gpu H100").map(|gpu| gpu.map(|gpu| gpu.count)), Ok(Some(1)));
        assert!(gpu("--gpu H100:2 --gpu A100:4").is_err() && gpu("--gpu H100:2 --gpus 1").is_err());
        assert!(gpu("--gpu H100:0").is_err() && gpu("--gpu H100:x").is_err());
        assert_eq!(gpu(""), Ok(None));
    }

    #[test]
    fn memory_is_asked_for_with_one_bound_or_two() {
        let gib = |n: i64| Bytes(n * Bytes::GIB);
        let asked = gpu("--vram 8GiB..24GiB").expect("valid").expect("a GPU");
        assert_eq!((asked.count, asked.vram, asked.vram_max), (1, gib(8), Some(gib(24))));
        let asked = gpu("--vram 8GiB").expect("valid").expect("a GPU");
        assert_eq!((asked.vram, asked.vram_max), (gib(8), None));
        assert!(gpu("--vram 8GiB..").is_err() && gpu("--vram ..8GiB").is_err());
    }

    #[test]
    fn a_share_is_a_part_of_one_gpu_that_nobody_wants_for_themselves() {
        let asked = gpu("--vram 8GiB --share 0.25").expect("valid").expect("a GPU");
        assert_eq!((asked.count, asked.vram, asked.share), (1, Bytes(8 * Bytes::GIB), Some(250)));
        assert_eq!(gpu("--share 1").map(|gpu| gpu.and_then(|gpu| gpu.share)), Ok(Some(1_000)));
        assert_eq!(gpu("--share 0.5 --isolation any").map(|gpu| gpu.is_some()), Ok(true));
        for odd in ["0", "1.001", "-1", "25%", "0.0001", "70000"] {
            let problem = gpu(&format!("--share={odd}")).expect_err(odd);
            assert!(problem.contains("a part of one GPU from 0.001 to 1, such as 0.25"), "{problem}");
        }
        let said = |line: &str| gpu(line).expect_err("a contradiction");
        assert_eq!(
            said("--share 0.25 --gpu H100:2"),
            "--share is a part of one GPU, and 2 are asked for; leave it out, or ask for one"
        );
        assert_eq!(
            said("--share 0.25 --isolation host"),
            "--isolation host wants all of a GPU, and --share 0.25 a part of one; leave one of them out"
        );
    }

    #[test]
    fn trust_is_a_list_and_what_is_not_known_is_refused() {
        let trust = wishes("--trust verified,unrated --trust cloud").expect("valid").trust;
        assert_eq!(trust, [Trust::Verified, Trust::Unrated, Trust::Cloud]);
        assert!(wishes("--trust anyone").is_err() && wishes("--region EU").is_err());
        assert_eq!(wishes("--term on-demand").expect("valid").term, Some(TermWish::OnDemand));
    }
}
