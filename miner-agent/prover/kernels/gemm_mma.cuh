// The GEMM for every device from sm_80 on: mma.sync, fed by a ring of stages that cp.async fills.
//
// A block computes 128 by 256 entries of C, each of its eight warps 64 by 64. While a warp multiplies what it holds in
// registers, it loads the next 32 of k from shared memory, and three stages of 64 are on their way there.
#pragma once

constexpr u32 STAGES = 4;
constexpr u32 A_BYTES = 128 * DEPTH;
constexpr u32 B_BYTES = 256 * DEPTH;
constexpr u32 STAGE_BYTES = A_BYTES + B_BYTES;
constexpr u32 GEMM_THREADS = 256;
constexpr u32 GEMM_SHARED = STAGES * STAGE_BYTES;

// What a warp multiplies at once: its 64 rows and columns, 32 of k.
struct Fragments
{
    u32 a[4][4];
    u32 b[4][4];
};

// Where this lane's rows of a stage are, for `load_matrices`.
struct Rows
{
    u32 a, b, swizzle_a, swizzle_b;
};

inline Rows rows_of_lane(u32 base, u32 warp, u32 lane)
{
    // Matrices of A: rows 0-7 and 8-15 at the first 16 of k, then at the next. Of B: eight columns at both, then the next eight.
    const u32 row_a = warp / 4 * 64 + lane % 16, row_b = warp % 4 * 64 + lane % 8 + lane / 16 * 8;
    return {base + row_a * DEPTH, base + A_BYTES + row_b * DEPTH, lane / 16 ^ row_a / 2 % 4, lane / 8 % 2 ^ row_b / 2 % 4};
}

inline void load_fragments(Fragments &to, const Rows &rows, u32 stage, u32 half)
{
    const u32 a = rows.a + stage * STAGE_BYTES + (rows.swizzle_a ^ 2 * half) * 16;
    const u32 b = rows.b + stage * STAGE_BYTES + (rows.swizzle_b ^ 2 * half) * 16;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        load_matrices(to.a[i], a + i * 16 * DEPTH);
        load_matrices(to.b[i], b + i * 16 * DEPTH);
    }
}

inline void multiply(i32 (&sums)[4][8][4], const Fragments &by)
{
#pragma unroll
    for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int j = 0; j < 8; j++) {
            multiply_add(sums[i][j], by.a[i], by.b[j / 2][j % 2 * 2], by.b[j / 2][j % 2 * 2 + 1]);
        }
    }
}

// Begins to copy one step of both operands, which lie in memory as they shall lie in the stage.
inline void load_stage(u32 to, const i8 *a, const i8 *b)
{
    const u32 mine = threadIdx.x * 16;
#pragma unroll
    for (u32 at = 0; at < A_BYTES; at += GEMM_THREADS * 16) {
        copy_async(to + at + mine, a + at + mine);
    }
#pragma unroll
    for (u32 at = 0; at < B_BYTES; at += GEMM_THREADS * 16) {
        copy_async(to + A_BYTES + at + mine, b + at + mine);
    }
}

inline void store_sums(const i32 (&sums)[4][8][4], i32 *c, u32 n, u32 lane)
{
    i32 *to = c + (u64)(lane / 4) * n + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int j = 0; j < 8; j++) {
            *(int2 *)(to + (u64)(i * 16) * n + j * 8) = {sums[i][j][0], sums[i][j][1]};
            *(int2 *)(to + (u64)(i * 16 + 8) * n + j * 8) = {sums[i][j][2], sums[i][j][3]};
        }
    }
}

extern "C" __global__ void __maxnreg__(224)
    gemm(const i8 *a, const i8 *b, i32 *c, u32 rows, u32 n, u32 k)
{
    const u32 base = shared_address(dynamic_shared()), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const u32 count = steps(k);
    const Place place = place_of(blockIdx.x, rows, n);
    const i8 *next_a = slab_of(a, place.row, k) + place.row % TILE_ROWS * DEPTH, *next_b = slab_of(b, place.column, k);
    const Rows mine = rows_of_lane(base, warp, lane);

    u32 loaded = 0;
    const auto load_next = [&] {
        if (loaded < count) {
            load_stage(base + loaded % STAGES * STAGE_BYTES, next_a, next_b);
            next_a += SLAB;
            next_b += SLAB;
        }
        loaded += 1;
        copy_async_commit();
    };
    for (u32 stage = 0; stage < STAGES - 1; stage++) {
        load_next();
    }
    copy_async_wait<STAGES - 2>();
    __syncthreads();

    i32 sums[4][8][4] = {};
    Fragments first, second;
    load_fragments(first, mine, 0, 0);
#pragma unroll 1
    for (u32 step = 0; step < count; step++) {
        load_fragments(second, mine, step % STAGES, 1);
        multiply(sums, first);
        // Into the stage that all warps were done with before they last met.
        load_next();
        copy_async_wait<STAGES - 2>();
        __syncthreads();
        load_fragments(first, mine, (step + 1) % STAGES, 0);
        multiply(sums, second);
    }
    store_sums(sums, c + (u64)(place.row + warp / 4 * 64) * n + place.column + warp % 4 * 64, n, lane);
}
