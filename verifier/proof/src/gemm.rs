//! Products of matrices of signed bytes, whose sums every device computes alike.
//!
//! The matrices are streams of ChaCha8, so that no shortcut fits them: every byte takes every
//! value. A sum of at most 131 071 products fits 32 bits, so there is no rounding and no order
//! that matters. Entries of the product are committed to 256 at a time; the verifier derives the row and
//! the column of one entry again and adds up their products.

use std::collections::BTreeMap;

use crate::{
    Digest, Gemm,
    chacha::KeyStream,
    device::{GemmOpening, TILE, TILE_BYTES, Tile, next_round},
    merkle::{self, Tree},
    sha::GEMM,
    transcript::draw,
};

/// Where the streams of the columns begin; below are those of the rows.
const COLUMNS: u64 = 1 << 32;
/// Sums that are added up side by side.
const ABREAST: usize = 32;
/// Bytes of a row and a column that are there at the same time, so that they stay close to the core.
const PIECE: usize = 1 << 10;

/// An entry of one of the products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Which product, from 0.
    pub round: u32,
    /// Row of the first matrix.
    pub row: u32,
    /// Column of the second matrix.
    pub column: u32,
}

/// The entries that `seed` chooses, ascending.
#[must_use]
pub fn chosen(gemm: &Gemm, seed: &Digest) -> Vec<Entry> {
    let (columns, entries) = (u64::from(gemm.n), u64::from(gemm.m) * u64::from(gemm.n));
    let drawn = draw(seed, gemm.samples, u64::from(gemm.rounds) * entries);
    let entry = |number: u64| Entry {
        round: (number / entries) as u32,
        row: (number % entries / columns) as u32,
        column: (number % columns) as u32,
    };
    drawn.into_iter().map(entry).collect()
}

/// Leaves of one product.
#[must_use]
pub fn leaves(gemm: &Gemm) -> u64 {
    u64::from(gemm.m) * tiles_of_row(gemm)
}

fn tiles_of_row(gemm: &Gemm) -> u64 {
    u64::from(gemm.n) / TILE as u64
}

impl Entry {
    fn tile(&self, gemm: &Gemm) -> Tile {
        let leaf = u64::from(self.row) * tiles_of_row(gemm) + u64::from(self.column) / TILE as u64;
        Tile { round: self.round, leaf }
    }
}

/// The leaves that hold `entries`, ascending and none twice.
#[must_use]
pub fn tiles(gemm: &Gemm, entries: &[Entry]) -> Vec<Tile> {
    let mut tiles: Vec<Tile> = entries.iter().map(|entry| entry.tile(gemm)).collect();
    tiles.sort_unstable();
    tiles.dedup();
    tiles
}

/// The leaves of each product that has any among `tiles`, ascending.
#[must_use]
pub fn by_round(tiles: &[Tile]) -> BTreeMap<u32, Vec<u64>> {
    let mut rounds: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
    for tile in tiles {
        rounds.entry(tile.round).or_default().push(tile.leaf);
    }
    rounds
}

/// The seed of each product, from the first one's and the roots of all.
fn seeds(seed: &Digest, roots: &[Digest]) -> Vec<Digest> {
    let mut seeds = vec![*seed];
    for root in roots {
        seeds.push(next_round(&seeds[seeds.len() - 1], root));
    }
    seeds
}

fn row(seed: &Digest, row: u32) -> KeyStream {
    KeyStream::new(seed, u64::from(row))
}

fn column(seed: &Digest, column: u32) -> KeyStream {
    KeyStream::new(seed, COLUMNS + u64::from(column))
}

/// The sum of the products of two streams of signed bytes.
fn dot(row: &[u8], column: &[u8]) -> i32 {
    let (rows, row_rest) = row.as_chunks::<ABREAST>();
    let (columns, column_rest) = column.as_chunks::<ABREAST>();
    // As many sums side by side as vector units like; a product fits 16 bits.
    let mut sums = [0_i32; ABREAST];
    for (row, column) in rows.iter().zip(columns) {
        for at in 0..ABREAST {
            sums[at] += i32::from(i16::from(row[at] as i8) * i16::from(column[at] as i8));
        }
    }
    let rest = row_rest.iter().zip(column_rest).map(|(a, b)| i32::from(*a as i8) * i32::from(*b as i8));
    sums.into_iter().chain(rest).sum()
}

/// A product with all that was committed to.
#[cfg(feature = "prover")]
pub(crate) struct Product {
    tiles: Vec<[u8; TILE_BYTES]>,
    tree: Tree,
}

#[cfg(feature = "prover")]
impl Product {
    /// Computes a product; where `made_up` says so, a tile holds what it gives instead.
    pub(crate) fn new(gemm: &Gemm, seed: &Digest, made_up: impl Fn(u64) -> Option<[u8; TILE_BYTES]>) -> Self {
        let k = gemm.k as usize;
        let mut columns = vec![0; gemm.n as usize * k];
        let numbered = columns.chunks_exact_mut(k).zip(0..);
        numbered.for_each(|(bytes, number)| column(seed, number).fill(bytes));
        let (mut tiles, mut row_bytes) = (Vec::new(), vec![0; k]);
        for row_number in 0..gemm.m {
            row(seed, row_number).fill(&mut row_bytes);
            for columns in columns.chunks_exact(TILE * k) {
                let tile = made_up(tiles.len() as u64).unwrap_or_else(|| tile(&row_bytes, columns));
                tiles.push(tile);
            }
        }
        let tree = Tree::over(tiles.iter().map(|tile| GEMM.hash(tile)).collect());
        Self { tiles, tree }
    }

    pub(crate) fn root(&self) -> Option<Digest> {
        self.tree.root()
    }

    #[cfg(test)]
    pub(crate) fn tiles(&self) -> &[[u8; TILE_BYTES]] {
        &self.tiles
    }

    #[cfg(test)]
    pub(crate) fn tree(&self) -> &Tree {
        &self.tree
    }
}

/// What one row and 256 columns give.
#[cfg(feature = "prover")]
fn tile(row: &[u8], columns: &[u8]) -> [u8; TILE_BYTES] {
    let mut tile = [0; TILE_BYTES];
    let sums = columns.chunks_exact(row.len()).map(|column| dot(row, column));
    tile.as_chunks_mut().0.iter_mut().zip(sums).for_each(|(bytes, sum)| *bytes = sum.to_le_bytes());
    tile
}

/// The opening of `wanted`, ascending and none twice; `None` where there is no such tile.
#[cfg(feature = "prover")]
pub(crate) fn open(products: &[Product], wanted: &[Tile]) -> Option<GemmOpening> {
    let tile = |tile: &Tile| products.get(tile.round as usize)?.tiles.get(tile.leaf as usize).copied();
    let proof = |(round, leaves): (u32, Vec<u64>)| Some(products.get(round as usize)?.tree.proof(leaves));
    Some(GemmOpening {
        tiles: wanted.iter().map(tile).collect::<Option<_>>()?,
        proofs: by_round(wanted).into_iter().map(proof).collect::<Option<_>>()?,
    })
}

/// Whether an opening shows the chosen `entries` of products that were committed to, and whether those
/// are right.
///
/// # Errors
/// A sentence that says which of it is not so.
#[cfg(feature = "judge")]
pub fn check(
    gemm: &Gemm,
    seed: &Digest,
    roots: &[Digest],
    entries: &[Entry],
    opening: &GemmOpening,
) -> Result<(), String> {
    let tiles = tiles(gemm, entries);
    let rounds = by_round(&tiles);
    let is_complete = roots.len() == gemm.rounds as usize
        && opening.tiles.len() == tiles.len()
        && opening.proofs.len() == rounds.len();
    if !is_complete {
        return Err("the products are not all shown".into());
    }
    let mut digests = opening.tiles.iter().map(|tile| GEMM.hash(tile));
    for ((round, leaves), proof) in rounds.into_iter().zip(&opening.proofs) {
        let known: BTreeMap<u64, Digest> = leaves.into_iter().zip(digests.by_ref()).collect();
        let root = merkle::root(known, self::leaves(gemm), proof);
        if root.is_none() || root.as_ref() != roots.get(round as usize) {
            return Err(format!("chosen entries of product {round} are not what was committed to"));
        }
    }
    let seeds = seeds(seed, roots);
    for entry in entries {
        let shown = tiles.binary_search(&entry.tile(gemm)).ok().map(|at| sum(&opening.tiles[at], entry));
        if shown != Some(self::entry(gemm, &seeds[entry.round as usize], entry)) {
            let Entry { round, row, column } = entry;
            return Err(format!("row {row}, column {column} of product {round} is wrong"));
        }
    }
    Ok(())
}

/// An entry as a tile shows it.
#[cfg(feature = "judge")]
fn sum(tile: &[u8; TILE_BYTES], entry: &Entry) -> i32 {
    i32::from_le_bytes(tile.as_chunks().0[entry.column as usize % TILE])
}

/// An entry of the product of `seed`, computed alone.
#[cfg(feature = "judge")]
#[must_use]
pub fn entry(gemm: &Gemm, seed: &Digest, entry: &Entry) -> i32 {
    let (mut row, mut column) = (row(seed, entry.row), column(seed, entry.column));
    let (mut rows, mut columns) = ([0; PIECE], [0; PIECE]);
    let pieces = (0..gemm.k as usize).step_by(PIECE).map(|done| PIECE.min(gemm.k as usize - done));
    let sums = pieces.map(|len| {
        row.fill(&mut rows[..len]);
        column.fill(&mut columns[..len]);
        dot(&rows[..len], &columns[..len])
    });
    sums.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GEMM: Gemm = Gemm { m: 256, n: 512, k: 128, rounds: 3, samples: 24 };

    /// Three products, each from the root of the one before.
    fn products(gemm: &Gemm, first: &Digest) -> (Vec<Product>, Vec<Digest>) {
        let (mut seed, mut products, mut roots) = (*first, Vec::new(), Vec::new());
        for _ in 0..gemm.rounds {
            let product = Product::new(gemm, &seed, |_| None);
            let root = product.root().unwrap();
            products.push(product);
            seed = next_round(&seed, &root);
            roots.push(root);
        }
        (products, roots)
    }

    /// A product as it is defined, byte by byte.
    fn defined(seed: &Digest, k: usize, row: u32, column: u32) -> i32 {
        let stream = |stream: u64| {
            let mut bytes = vec![0; k];
            KeyStream::new(seed, stream).fill(&mut bytes);
            bytes.into_iter().map(|byte| byte as i8).collect::<Vec<_>>()
        };
        let (a, b) = (stream(u64::from(row)), stream((1 << 32) + u64::from(column)));
        a.iter().zip(&b).map(|(a, b)| i32::from(*a) * i32::from(*b)).sum()
    }

    #[test]
    fn every_entry_is_a_row_times_a_column() {
        let seed = Digest([5; 32]);
        let product = Product::new(&GEMM, &seed, |_| None);
        assert_eq!(product.tiles.len() as u64, leaves(&GEMM));
        for (row, column) in [(0, 0), (0, 255), (0, 256), (255, 511), (100, 300)] {
            let at = Entry { round: 0, row, column };
            let shown = sum(&product.tiles[at.tile(&GEMM).leaf as usize], &at);
            assert_eq!(shown, defined(&seed, 128, row, column), "row {row}, column {column}");
            assert_eq!(shown, entry(&GEMM, &seed, &at));
        }
    }

    #[test]
    fn long_sums_are_added_up_piece_by_piece() {
        let (seed, at) = (Digest([5; 32]), Entry { round: 0, row: 3, column: 7 });
        for k in [64, 960, 1024, 1088, 65_536, 131_008] {
            assert_eq!(entry(&Gemm { k, ..GEMM }, &seed, &at), defined(&seed, k as usize, 3, 7), "{k}");
        }
    }

    #[test]
    fn the_largest_sum_fits() {
        let extreme = vec![0x80; 131_071];
        assert_eq!(dot(&extreme, &extreme), 131_071 << 14);
        assert_eq!(dot(&extreme, &[0x7f; 131_071]), -128 * 127 * 131_071);
    }

    #[test]
    fn chosen_entries_of_honest_products_are_proven() {
        let seed = Digest([6; 32]);
        let (products, roots) = products(&GEMM, &seed);
        let entries = chosen(&GEMM, &Digest([7; 32]));
        assert_eq!(entries.len(), 24);
        assert!((0..3).all(|round| entries.iter().any(|entry| entry.round == round)));
        let opening = open(&products, &tiles(&GEMM, &entries)).unwrap();
        assert_eq!(check(&GEMM, &seed, &roots, &entries, &opening), Ok(()));
    }

    #[test]
    fn whatever_is_changed_in_an_opening_is_seen() {
        let seed = Digest([8; 32]);
        let (products, roots) = products(&GEMM, &seed);
        let entries = chosen(&GEMM, &Digest([9; 32]));
        let honest = open(&products, &tiles(&GEMM, &entries)).unwrap();
        let refused =
            |roots: &[Digest], opening: &GemmOpening| check(&GEMM, &seed, roots, &entries, opening).is_err();
        for tile in 0..honest.tiles.len() {
            let mut forged = honest.clone();
            forged.tiles[tile][1023] ^= 1;
            assert!(refused(&roots, &forged), "tile {tile}");
        }
        for round in 0..3 {
            let mut forged = honest.clone();
            forged.proofs[round][0].0[0] ^= 1;
            assert!(refused(&roots, &forged), "proof of round {round}");
            let mut others = roots.clone();
            others[round].0[0] ^= 1;
            assert!(refused(&others, &honest), "root of round {round}");
        }
        let mut short = honest.clone();
        short.tiles.pop();
        assert!(refused(&roots, &short) && refused(&roots[..2], &honest));
        assert!(check(&GEMM, &Digest([0; 32]), &roots, &entries, &honest).is_err());
    }

    #[test]
    fn a_product_that_starts_before_the_one_before_is_committed_to_is_refused() {
        let (seed, gemm) = (Digest([1; 32]), Gemm { rounds: 2, ..GEMM });
        let products = [seed, Digest([2; 32])].map(|seed| Product::new(&gemm, &seed, |_| None));
        let roots: Vec<Digest> = products.iter().filter_map(Product::root).collect();
        let entries = chosen(&gemm, &Digest([3; 32]));
        let opening = open(&products, &tiles(&gemm, &entries)).unwrap();
        let why = check(&gemm, &seed, &roots, &entries, &opening).unwrap_err();
        assert!(why.ends_with("of product 1 is wrong"), "{why}");
    }
}
