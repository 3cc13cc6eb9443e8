//! Reads hosts and pods of the trace, and writes what was placed.

use std::{collections::BTreeMap, fs, io::Write, path::Path};

use anyhow::{Context, Result, bail};

/// Most GPUs of a host.
pub const GPUS_MAX: usize = 8;
/// A whole GPU.
pub const GPU_MILLI: u16 = 1000;

/// A host as the trace lists it.
#[derive(Debug, Clone)]
pub struct Host {
    pub name: String,
    pub milli_cpu: u32,
    pub memory_mib: u32,
    pub gpus: u8,
    /// Index of its model in [`Trace::models`].
    pub model: u8,
    /// Ties between hosts are for the least.
    pub rank: u32,
}

/// What a pod asks for; equal pods are one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pod {
    pub milli_cpu: u32,
    pub memory_mib: u32,
    pub gpus: u8,
    /// Of each of its GPUs; below a whole one only where it asks for one.
    pub gpu_milli: u16,
    /// Models that will do, one bit for each.
    pub models: u64,
}

impl Pod {
    pub fn gpu_total(&self) -> u64 {
        u64::from(self.gpus) * u64::from(self.gpu_milli)
    }

    pub fn is_share(&self) -> bool {
        self.gpus == 1 && self.gpu_milli < GPU_MILLI
    }
}

/// Names of GPU models, so that a set of them is a mask.
#[derive(Debug, Clone, Default)]
pub struct Models(BTreeMap<String, u8>);

impl Models {
    fn index(&mut self, name: &str) -> Result<u8> {
        let next =
            u8::try_from(self.0.len()).ok().filter(|next| *next < 64).context("more than 64 models")?;
        Ok(*self.0.entry(name.to_owned()).or_insert(next))
    }

    fn mask(&mut self, spec: &str) -> Result<u64> {
        if spec.is_empty() {
            return Ok(u64::MAX);
        }
        spec.split('|').try_fold(0, |mask, name| Ok(mask | 1 << self.index(name)?))
    }
}

/// A table with a header.
struct Table {
    columns: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let mut lines = text.lines();
        let split = |line: &str| line.trim_end().split(',').map(str::to_owned).collect::<Vec<_>>();
        let columns = split(lines.next().context("a header")?);
        let rows: Vec<Vec<String>> = lines.filter(|line| !line.trim().is_empty()).map(split).collect();
        if let Some(at) = rows.iter().position(|row| row.len() != columns.len()) {
            bail!("{}: line {} has another number of fields than the header", path.display(), at + 2);
        }
        Ok(Self { columns, rows })
    }

    fn column(&self, name: &str) -> Result<usize> {
        self.columns.iter().position(|column| column == name).with_context(|| format!("column {name}"))
    }
}

fn number<T: std::str::FromStr<Err = std::num::ParseIntError>>(text: &str) -> Result<T> {
    text.parse().with_context(|| format!("read the number {text}"))
}

pub fn hosts(path: &Path, models: &mut Models) -> Result<Vec<Host>> {
    let table = Table::read(path)?;
    let [name, cpu, memory, gpu, model] = ["sn", "cpu_milli", "memory_mib", "gpu", "model"];
    let [name, cpu, memory, gpu, model] = [
        table.column(name)?,
        table.column(cpu)?,
        table.column(memory)?,
        table.column(gpu)?,
        table.column(model)?,
    ];
    let host = |(rank, row): (usize, &Vec<String>)| {
        let gpus = number(&row[gpu])?;
        if usize::from(gpus) > GPUS_MAX {
            bail!("{} has more than {GPUS_MAX} GPUs", row[name]);
        }
        Ok(Host {
            name: row[name].clone(),
            milli_cpu: number(&row[cpu])?,
            memory_mib: number(&row[memory])?,
            gpus,
            model: models.index(&row[model])?,
            rank: u32::try_from(rank)?,
        })
    };
    table.rows.iter().enumerate().map(host).collect()
}

pub fn pods(path: &Path, models: &mut Models) -> Result<Vec<Pod>> {
    let table = Table::read(path)?;
    let cpu = table.column("cpu_milli")?;
    let memory = table.column("memory_mib")?;
    let gpus = table.column("num_gpu")?;
    let milli = table.column("gpu_milli")?;
    // Variants without constraints may leave the column out.
    let spec = table.column("gpu_spec").ok();
    let pod = |row: &Vec<String>| {
        let gpus: u8 = number(&row[gpus])?;
        let gpu_milli = match gpus {
            0 => 0,
            1 => number(&row[milli])?,
            _ => GPU_MILLI,
        };
        let models = models.mask(spec.map_or("", |spec| row[spec].as_str()))?;
        Ok(Pod { milli_cpu: number(&row[cpu])?, memory_mib: number(&row[memory])?, gpus, gpu_milli, models })
    };
    table.rows.iter().map(pod).collect()
}

/// Replaces the ranks of hosts: `node_name,tie_rank`.
pub fn ranks(path: &Path, hosts: &mut [Host]) -> Result<()> {
    let table = Table::read(path)?;
    let (name, rank) = (table.column("node_name")?, table.column("tie_rank")?);
    let ranks: BTreeMap<&str, &str> =
        table.rows.iter().map(|row| (row[name].as_str(), row[rank].as_str())).collect();
    for host in hosts {
        host.rank = number(ranks.get(host.name.as_str()).with_context(|| format!("rank of {}", host.name))?)?;
    }
    Ok(())
}

/// Where a pod went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    pub pod: usize,
    pub host: usize,
    /// Indices of its GPUs, ascending.
    pub gpus: Vec<u8>,
}

/// One row for each placed pod: `pod_index,node_name,gpu_indices`.
pub fn write(path: &Path, hosts: &[Host], placed: &[Placed]) -> Result<()> {
    let mut text = Vec::from("pod_index,node_name,gpu_indices\n");
    for row in placed {
        let gpus: Vec<String> = row.gpus.iter().map(u8::to_string).collect();
        writeln!(text, "{},{},{}", row.pod, hosts[row.host].name, gpus.join("-"))?;
    }
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}
