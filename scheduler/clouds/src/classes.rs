//! Which class of the catalogue a cloud means. Pure.
//!
//! Every cloud has its own names for the same GPU. What is not known for certain is of no class.

use nave_domain::Bytes;

use crate::baseline::{Listed, price_list};

/// Words that make another device of whatever they stand beside.
const OTHERS: [&str; 8] = ["ti", "super", "d", "laptop", "mobile", "mig", "vgpu", "gh200"];

/// The words of a name, in lower case.
fn words(name: &str) -> Vec<String> {
    let split = name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    split.map(str::to_ascii_lowercase).collect()
}

/// The class that a cloud's name for a GPU stands for.
#[must_use]
pub fn class_of(model: &str, vram_each: Option<Bytes>) -> Option<&'static str> {
    let words = words(model);
    if words.iter().any(|word| OTHERS.contains(&word.as_str())) {
        return None;
    }
    let vram_gib = vram_each.map(|vram| (vram.0 + Bytes::GIB / 2) / Bytes::GIB).or_else(|| vram_in(&words));
    price_list().class.iter().find(|class| is(class, &words, vram_gib)).map(|class| class.name.as_str())
}

/// The memory of a GPU, where its name says it.
#[must_use]
pub fn vram_of(model: &str) -> Option<Bytes> {
    vram_in(&words(model)).and_then(|gib| gib.checked_mul(Bytes::GIB)).map(Bytes)
}

fn is(class: &Listed, words: &[String], vram_gib: Option<i64>) -> bool {
    let any = |wanted: &[String]| wanted.iter().any(|wanted| words.contains(wanted));
    let vram = class
        .vram_gib
        .is_none_or(|wanted| vram_gib.is_some_and(|found| (found - wanted).abs() * 10 <= wanted));
    any(&class.model) && (class.form.is_empty() || any(&class.form)) && vram
}

/// Memory that stands in a name, such as `80GB`, `80G` or `80 GB`.
fn vram_in(words: &[String]) -> Option<i64> {
    let with_unit = words.iter().find_map(|word| word.trim_end_matches('b').strip_suffix('g')?.parse().ok());
    let apart = words.windows(2).find_map(|pair| if pair[1] == "gb" { pair[0].parse().ok() } else { None });
    with_unit.or(apart)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gib(count: i64) -> Option<Bytes> {
        Some(Bytes(count * Bytes::GIB))
    }

    #[test]
    fn memory_is_read_from_a_name_that_says_it() {
        assert_eq!(vram_of("A100 (40 GB SXM4)"), gib(40));
        assert_eq!(vram_of("H100-80G-PCIe"), gib(80));
        assert_eq!(vram_of("L40S"), None);
    }

    #[test]
    fn each_clouds_name_is_of_the_same_class() {
        let cases = [
            (
                "h100-sxm",
                None,
                &[
                    "H100 sxm5",
                    "H100-80G-SXM5",
                    "H100 (80 GB SXM5)",
                    "NVIDIA H100 80GB HBM3",
                    "H100 SXM",
                    "H100 SXM5 80GB",
                ][..],
            ),
            (
                "h100-pcie",
                None,
                &["H100_pcie", "H100-80G-PCIe", "H100-80G-PCIe-NVLink", "H100 PCIE", "NVIDIA H100 PCIe"],
            ),
            ("h100-nvl", None, &["H100 NVL", "NVIDIA H100 NVL"]),
            (
                "a100-80",
                None,
                &["A100_80G pcie", "A100 (80 GB SXM4)", "NVIDIA A100-SXM4-80GB", "A100 SXM4 80GB"],
            ),
            ("a100-40", None, &["A100 (40 GB SXM4)", "A100 SXM4 40GB"]),
            ("a100-80", gib(80), &["A100 SXM4", "A100"]),
            ("l40s", None, &["L40S", "NVIDIA L40S"]),
            ("rtx-a6000", None, &["RTX A6000 48GB", "A6000", "RTX-A6000", "NVIDIA RTX A6000"]),
            ("rtx-4090", None, &["NVIDIA GeForce RTX 4090", "RTX 4090"]),
            ("v100-16", None, &["Tesla V100 16GB"]),
            ("b200", None, &["B200 (180 GB SXM6)", "NVIDIA B200"]),
        ];
        for (class, vram, models) in cases {
            for model in models {
                assert_eq!(class_of(model, vram), Some(class), "{model}");
            }
        }
    }

    #[test]
    fn what_is_not_certain_is_of_no_class() {
        for model in [
            "H100",
            "A100",
            "RTX 4090 D",
            "RTX 3090 Ti",
            "A1000",
            "GH200 (96 GB)",
            "L40",
            "",
            "A100 MIG 40GB",
        ] {
            assert_eq!(class_of(model, None), None, "{model}");
        }
        assert_eq!(class_of("A100", gib(24)), None);
    }
}
