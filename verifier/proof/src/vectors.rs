//! The reference against another one, which is written in another language by the formats alone, and which
//! the kernels are compared with, too.

use serde::{Deserialize, de::DeserializeOwned};
use sha2::{Digest as _, Sha256};

use crate::{
    Digest, Fill, Gemm, Lanes, Stream, chacha,
    device::{CHUNK, Device, TILE, VRAM_BLOCK, next_pass, next_round},
    gemm::Product,
    merkle::Tree,
    sha,
    software::{SoftwareDevice, SoftwareModel, Turns, VirtualClock},
    transcript::hash,
    vram::{self, Contents},
};

/// All cases of a name.
fn cases<T: DeserializeOwned>(name: &str) -> Vec<T> {
    let all = include_str!("../../../miner-agent/prover/kernels/vectors.json");
    let mut all: serde_json::Value = serde_json::from_str(all).unwrap();
    serde_json::from_value(all[name].take()).unwrap()
}

/// SHA-256 of everything, one after the other.
fn joined<T: AsRef<[u8]>>(parts: impl IntoIterator<Item = T>) -> Digest {
    let mut hasher = Sha256::new();
    parts.into_iter().for_each(|part| hasher.update(part));
    Digest(hasher.finalize().into())
}

fn device() -> SoftwareDevice {
    let model = SoftwareModel {
        model: "Reference".into(),
        vram: nave_domain::Bytes(1 << 30),
        ops_per_s: 1,
        bytes_per_s: 1,
        reads_per_s: 1,
        hashes_per_s: 1,
        return_bytes_per_s: 1,
        dishonesty: Vec::new(),
    };
    SoftwareDevice::new(&model, VirtualClock::default().pace(), &Turns::default())
}

fn leaves(tree: &Tree) -> Vec<Digest> {
    (0..).map_while(|index| tree.at(0, index)).collect()
}

/// Level 8, or the root where there are fewer levels.
fn level8(tree: &Tree) -> Vec<Digest> {
    let level: Vec<Digest> = (0..).map_while(|index| tree.at(8, index)).collect();
    if level.is_empty() { tree.root().into_iter().collect() } else { level }
}

fn bytes(words: &sha::Words) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[derive(Deserialize)]
struct NamedHash {
    domain: String,
    parts: Vec<Digest>,
    digest: Digest,
}

#[derive(Deserialize)]
struct BlockHash {
    domain: String,
    data: String,
    digest: Digest,
}

#[test]
fn names_are_hashed_alike() {
    for case in cases::<NamedHash>("named_hash") {
        let parts: Vec<&[u8]> = case.parts.iter().map(|part| &part.0[..]).collect();
        assert_eq!(hash(&case.domain, &parts), case.digest);
    }
    for case in cases::<BlockHash>("block_hash") {
        assert_eq!(case.domain, "nave proof tree");
        assert_eq!(sha::TREE.hash(&hex::decode(case.data).unwrap()), case.digest);
    }
}

#[derive(Deserialize)]
struct Key {
    key: Digest,
    stream: u64,
    bytes: String,
}

#[test]
fn streams_are_alike() {
    for case in cases::<Key>("chacha8") {
        let expected = hex::decode(case.bytes).unwrap();
        let mut bytes = vec![0; expected.len()];
        chacha::fill(&case.key, case.stream, &mut bytes);
        assert_eq!(bytes, expected);
    }
}

#[derive(Deserialize)]
struct GemmCase {
    seed: Digest,
    m: u32,
    n: u32,
    k: u32,
    c_sha256: Digest,
    first_leaf: Digest,
    leaves_sha256: Digest,
    level8: Vec<Digest>,
    root: Digest,
    next_seed: Digest,
}

#[test]
fn products_are_alike() {
    for case in cases::<GemmCase>("gemm") {
        let gemm = Gemm { m: case.m, n: case.n, k: case.k, rounds: 1, samples: 1 };
        let product = Product::new(&gemm, &case.seed, |_| None);
        let leaves = leaves(product.tree());
        assert_eq!(leaves.len(), (case.m * case.n) as usize / TILE);
        assert_eq!(joined(product.tiles()), case.c_sha256);
        assert_eq!(
            (leaves[0], joined(leaves.iter().map(|leaf| leaf.0))),
            (case.first_leaf, case.leaves_sha256)
        );
        assert_eq!(level8(product.tree()), case.level8);
        assert_eq!(device().gemm(&gemm, &case.seed), Ok(vec![case.root]));
        assert_eq!(next_round(&case.seed, &case.root), case.next_seed);
    }
}

#[derive(Deserialize)]
struct TreeCase {
    seed: Digest,
    count: u64,
    level8: Vec<Digest>,
    root: Digest,
}

#[test]
fn trees_are_alike() {
    for case in cases::<TreeCase>("tree") {
        let leaf = |index: u64| joined([&case.seed.0[..], &index.to_le_bytes()]);
        let tree = Tree::over((0..case.count).map(leaf).collect());
        assert_eq!((level8(&tree), tree.root()), (case.level8, Some(case.root)), "{} leaves", case.count);
    }
}

#[derive(Deserialize)]
struct FillCase {
    seed: Digest,
    blocks: u64,
    depth: u32,
    last_block: Digest,
    fill_sha256: Digest,
}

#[test]
fn fills_are_alike() {
    for FillCase { seed, blocks, depth, last_block, fill_sha256 } in cases("fill") {
        let fill = Fill { bytes: blocks * VRAM_BLOCK, depth };
        let all = vram::derive(&fill, &seed, blocks);
        assert_eq!(all.last(), Some(&sha::words(&last_block.0)));
        assert_eq!(joined(all.iter().map(bytes)), fill_sha256);
    }
}

#[derive(Deserialize)]
struct LanesCase {
    fill_seed: Digest,
    depth: u32,
    blocks: u64,
    seed: Digest,
    lanes: u32,
    reads: u32,
    leaves_sha256: Digest,
    root: Digest,
}

#[test]
fn lanes_are_alike() {
    for case in cases::<LanesCase>("lanes") {
        let fill = Fill { bytes: case.blocks * VRAM_BLOCK, depth: case.depth };
        let lanes = Lanes { lanes: case.lanes, reads: case.reads, samples: case.lanes };
        let mut device = device();
        device.fill(&fill, &case.fill_seed).unwrap();
        assert_eq!(device.lanes(&lanes, &case.seed), Ok(case.root));
        let all: Vec<u64> = (0..u64::from(case.lanes)).collect();
        let memory = Contents::new(&fill, &case.fill_seed);
        let leaf =
            |number| vram::lane((&lanes, &case.seed, case.blocks), number, |block| memory.block(block)).0;
        assert_eq!(joined(all.iter().copied().map(leaf)), case.leaves_sha256);
        let checked = vram::check_lanes(&memory, (&lanes, &case.seed), &case.root, &all, &[]);
        assert_eq!(checked, Ok(()));
    }
}

#[derive(Deserialize)]
struct StreamCase {
    fill_seed: Digest,
    depth: u32,
    seed: Digest,
    first: u64,
    chunks: u64,
    first_leaf: Digest,
    leaves_sha256: Digest,
    root: Digest,
    next_seed: Digest,
}

#[test]
fn passes_are_alike() {
    for case in cases::<StreamCase>("stream") {
        let chunks = case.first + case.chunks;
        let fill = Fill { bytes: chunks * CHUNK, depth: case.depth };
        let filled = vram::derive(&fill, &case.fill_seed, vram::blocks(&fill));
        let leaf = |number| vram::chunk(&case.seed, number, |block| filled[block as usize]);
        assert_eq!(leaf(0), case.first_leaf);
        assert_eq!(joined((0..chunks).map(|number| leaf(number).0)), case.leaves_sha256);
        let mut device = device();
        device.fill(&fill, &case.fill_seed).unwrap();
        let roots = device.stream(&Stream { passes: 2, samples: 1 }, &case.seed).unwrap();
        assert_eq!((roots[0], next_pass(&case.seed, &roots[0])), (case.root, case.next_seed));
        let all: Vec<u64> = (0..chunks).collect();
        let pass = (fill.bytes, &case.seed);
        let checked = vram::check_chunks((&fill, &case.fill_seed), pass, &case.root, &all, &[]);
        assert_eq!(checked, Ok(()));
    }
}
