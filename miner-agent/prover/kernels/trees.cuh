// Leaves of the GEMM and the hash trees over all leaves.
#pragma once

// Hashes each 1024 bytes of C.
extern "C" __global__ void __launch_bounds__(128) leaves(const i32 *c, u64 count, u32 *out)
{
    constexpr Hash start = after("nave proof gemm");
    const u64 index = (u64)blockIdx.x * 128 + threadIdx.x;
    if (index >= count) {
        return;
    }
    const uint4 *leaf = (const uint4 *)c + index * 64;
    store_hash(out + index * 8, hash_kibibyte(start, [&](u32 piece) { return leaf[piece]; }));
}

// Eight levels: each block hashes up to 256 digests down to one.
extern "C" __global__ void __launch_bounds__(128) tree_256(const u32 *below, u64 count, u32 *out)
{
    __shared__ u32 words[8][256];
    const u64 first = (u64)blockIdx.x * 256;
    u32 left = count - first < 256 ? (u32)(count - first) : 256;
    for (u32 i = threadIdx.x; i < left * 8; i += 128) {
        words[i % 8][i / 8] = byte_swap(below[first * 8 + i]);
    }
    Hash mine = {};
#pragma unroll 1
    for (u32 level = 0; level < 8; level++) {
        const u32 pairs = (left + 1) / 2, index = threadIdx.x;
        __syncthreads();
        if (index < pairs) {
            Hash right;
#pragma unroll
            for (int i = 0; i < 8; i++) {
                mine.word[i] = words[i][2 * index];
                right.word[i] = words[i][(2 * index + 1) % 256];
            }
            // A digest without a partner goes up as it is.
            if (2 * index + 1 < left) {
                mine = hash_pair(mine, right);
            }
        }
        __syncthreads();
        if (index < pairs) {
#pragma unroll
            for (int i = 0; i < 8; i++) {
                words[i][index] = mine.word[i];
            }
        }
        left = pairs;
    }
    if (threadIdx.x == 0) {
        store_hash(out + (u64)blockIdx.x * 8, mine);
    }
}

extern "C" __global__ void __launch_bounds__(256) tree_level(const u32 *below, u64 count, u32 *out)
{
    const u64 index = (u64)blockIdx.x * 256 + threadIdx.x;
    if (2 * index >= count) {
        return;
    }
    Hash mine = load_hash(below + index * 16);
    if (2 * index + 1 < count) {
        mine = hash_pair(mine, load_hash(below + index * 16 + 8));
    }
    store_hash(out + index * 8, mine);
}
