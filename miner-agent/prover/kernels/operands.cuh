// Where the bytes of an operand of the GEMM are, and how they are made.
//
// An operand is cut into tiles of 256 rows (columns, of B) and each tile, along k, into slabs of DEPTH bytes, which
// lie one after the other. In a slab the row comes first, so that what a block of `gemm` wants for one step is contiguous.
// The pieces of 16 bytes of a row are exchanged as shared memory wants them: eight rows that are read at
// once, at the same k, then lie in different banks.
#pragma once

constexpr u32 TILE_ROWS = 256;

#ifdef WGMMA
// wgmma's "128-byte swizzle".
constexpr u32 DEPTH = 128;

constexpr u32 piece_at(u32 row, u32 piece)
{
    return piece ^ (row % 8);
}
#else
constexpr u32 DEPTH = 64;

constexpr u32 piece_at(u32 row, u32 piece)
{
    return piece ^ (row / 2 % 4);
}
#endif

constexpr u32 SLAB = TILE_ROWS * DEPTH;

// Steps of DEPTH that k takes: it is padded with zeros to a multiple of 128.
inline u32 steps(u32 k)
{
    return (k + 127) / 128 * (128 / DEPTH);
}

// The slab that holds `row` at the first step.
inline const i8 *slab_of(const i8 *operand, u32 row, u32 k)
{
    return operand + (u64)(row / TILE_ROWS) * steps(k) * SLAB;
}

// Which tile of C a block computes: 16 tiles of rows, then the next tile of columns, so that blocks that run
// at the same time share what they read. `rows` of a tile is 128.
struct Place
{
    u32 row, column;
};

inline Place place_of(u32 block, u32 rows, u32 n)
{
    const u32 high = rows / 128, wide = n / 256, group = block / (16 * wide), within = block % (16 * wide);
    const u32 left = high - 16 * group, height = left < 16 ? left : 16;
    return {(16 * group + within % height) * 128, within / height * 256};
}

// Each thread makes 64 bytes of a row: one block of the key stream.
extern "C" __global__ void __launch_bounds__(256)
    expand_operand(i8 *out, const u32 *seed, const u32 *which, u32 rows, u32 k, u64 stream)
{
    constexpr u32 PARTS = DEPTH / 64;
    const u64 index = (u64)blockIdx.x * 256 + threadIdx.x;
    const u32 part = (u32)(index % PARTS), row_in_tile = (u32)(index / PARTS % TILE_ROWS);
    const u32 slab = (u32)(index / PARTS / TILE_ROWS), step = slab % steps(k);
    const u32 row = slab / steps(k) * TILE_ROWS + row_in_tile, block = step * PARTS + part;
    if (row >= rows) {
        return;
    }
    u32 bytes[16] = {};
    if (block * 64 < k) {
        chacha8(bytes, seed, stream + (which ? which[row] : row), block);
    }
    uint4 *to = (uint4 *)(out + (u64)slab * SLAB + row_in_tile * DEPTH);
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        to[piece_at(row_in_tile, 4 * part + i)] = {bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]};
    }
}
