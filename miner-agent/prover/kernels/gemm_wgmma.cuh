// The GEMM for sm_90a: wgmma, fed by a ring of stages that bulk copies fill.
//
// Two blocks on neighbouring multiprocessors compute 256 by 256 entries of C, each 128 rows of them, and share what they
// read of B: each copies one half of it to both. In a block one thread keeps the ring full, and two groups
// of four warps multiply 64 rows each. Every stage has two barriers: `full` is complete when its 48 KiB
// have come, `empty` when all warps of both blocks are done with it.
#pragma once

constexpr u32 STAGES = 4;
constexpr u32 A_BYTES = 128 * DEPTH;
constexpr u32 B_BYTES = 256 * DEPTH;
constexpr u32 STAGE_BYTES = A_BYTES + B_BYTES;
constexpr u32 BLOCKS = 2;
constexpr u32 MULTIPLYING_WARPS = 8;
constexpr u32 GEMM_THREADS = 32 * (MULTIPLYING_WARPS + 1);
// The pattern of the swizzle repeats every 1024 bytes of shared memory, and stages begin where it does.
constexpr u32 PATTERN = 1024;
constexpr u32 GEMM_SHARED = PATTERN + STAGES * (STAGE_BYTES + 16);

struct Ring
{
    u32 base;

    u32 stage(u32 step) const
    {
        return base + step % STAGES * STAGE_BYTES;
    }

    u32 full(u32 step) const
    {
        return base + STAGES * STAGE_BYTES + step % STAGES * 16;
    }

    u32 empty(u32 step) const
    {
        return full(step) + 8;
    }
};

// Which of a barrier's phases `step` is about: they alternate.
inline u32 parity(u32 step)
{
    return step / STAGES % 2;
}

inline void wait_for(u32 barrier, u32 parity)
{
    while (!barrier_complete(barrier, parity)) {
    }
}

inline void keep_full(const Ring &ring, const i8 *a, const i8 *b, u32 count)
{
    const u32 half = cluster_rank() * (B_BYTES / BLOCKS);
    for (u32 step = 0; step < count; step++) {
        if (step >= STAGES) {
            wait_for(ring.empty(step), parity(step - STAGES));
        }
        barrier_expect(ring.full(step), STAGE_BYTES);
        copy_bulk(ring.stage(step), a + (u64)step * SLAB, A_BYTES, ring.full(step));
        copy_bulk_to(ring.stage(step) + A_BYTES + half, b + (u64)step * SLAB + half, B_BYTES / BLOCKS, ring.full(step),
                     (1 << BLOCKS) - 1);
    }
}

// Says where wgmma finds a matrix of rows of 128 bytes of k: from `address`, eight rows every 1024 bytes, swizzled by
// 128 bytes. The field for the other stride is not used with this swizzle. See "Matrix Descriptor Format" in the PTX ISA.
inline u64 descriptor(u32 address)
{
    constexpr u64 EIGHT_ROWS = 8 * DEPTH / 16, OTHER = 1, SWIZZLE_128 = 1;
    return SWIZZLE_128 << 62 | EIGHT_ROWS << 32 | OTHER << 16 | (address & 0x3ffff) / 16;
}

inline void multiply_all(i32 (&sums)[128], const Ring &ring, u32 first_row, u32 count, u32 lane)
{
    const auto release = [&](u32 step) {
        if (lane < BLOCKS) {
            barrier_arrive_in(ring.empty(step), lane);
        }
    };
#pragma unroll 1
    for (u32 step = 0; step < count; step++) {
        wait_for(ring.full(step), parity(step));
        const u64 a = descriptor(ring.stage(step) + first_row * DEPTH), b = descriptor(ring.stage(step) + A_BYTES);
        wgmma_fence();
#pragma unroll
        for (u32 part = 0; part < DEPTH / 32; part++) {
            // 32 bytes further along k, in units of 16.
            wgmma(sums, a + 2 * part, b + 2 * part);
        }
        wgmma_commit();
        if (step > 0) {
            wgmma_wait<1>();
            release(step - 1);
        }
    }
    wgmma_wait<0>();
}

inline void store_sums(const i32 (&sums)[128], i32 *c, u32 n, u32 lane)
{
    i32 *to = c + (u64)(lane / 4) * n + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < 32; i++) {
        *(int2 *)(to + i * 8) = {sums[4 * i], sums[4 * i + 1]};
        *(int2 *)(to + (u64)8 * n + i * 8) = {sums[4 * i + 2], sums[4 * i + 3]};
    }
}

extern "C" __global__ void __cluster_dims__(BLOCKS, 1, 1) __launch_bounds__(GEMM_THREADS)
    gemm(const i8 *a, const i8 *b, i32 *c, u32 rows, u32 n, u32 k)
{
    const Ring ring = {(shared_address(dynamic_shared()) + PATTERN - 1) / PATTERN * PATTERN};
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, count = steps(k);
    const Place place = place_of(blockIdx.x, rows, n);
    if (threadIdx.x == 0) {
        for (u32 stage = 0; stage < STAGES; stage++) {
            barrier_init(ring.full(stage), 1);
            barrier_init(ring.empty(stage), MULTIPLYING_WARPS * BLOCKS);
        }
        barrier_init_fence();
    }
    cluster_sync();

    if (warp == MULTIPLYING_WARPS) {
        if (lane == 0) {
            keep_full(ring, slab_of(a, place.row, k) + place.row % TILE_ROWS * DEPTH, slab_of(b, place.column, k), count);
        }
        __syncwarp();
    } else {
        // Not left to the first wgmma: compilers keep wgmmas apart when they do not see where registers come from.
        i32 sums[128] = {};
        multiply_all(sums, ring, warp / 4 * 64, count, lane);
        store_sums(sums, c + (u64)(place.row + warp * 16) * n + place.column, n, lane);
    }
    // The other block may still arrive at barriers of this one.
    cluster_sync();
}
