// The tests of memory: the fill, dependent reads all over it, and passes over all of it.
#pragma once

extern "C" __global__ void __launch_bounds__(256) fill(u32 *out, const u32 *seed, u64 first, u64 count, u32 depth)
{
    const u64 index = (u64)blockIdx.x * 256 + threadIdx.x;
    if (index < count) {
        Hash hash = hash_numbered(load_hash(seed), first + index);
#pragma unroll 1
        for (u32 i = 1; i < depth; i++) {
            hash = compress(INITIAL, message_of(hash));
        }
        store_hash(out + (first + index) * 8, hash);
    }
}

// Eight words, little-endian as they are in memory.
struct Words
{
    u32 word[8];
};

inline Words words_of(const Hash &hash)
{
    Words words;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        words.word[i] = byte_swap(hash.word[i]);
    }
    return words;
}

// A fill that is there. BATCH is how many blocks are read at once where the order is known before.
struct Stored
{
    static constexpr u32 BATCH = 2;
    const u8 *data;

    Words block(u64 index) const
    {
        const uint4 *from = (const uint4 *)(data + index * 32);
        const uint4 low = load_constant(from), high = load_constant(from + 1);
        return {{low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}};
    }
};

// A fill that is computed as it is asked for.
struct Derived
{
    static constexpr u32 BATCH = 1;
    Hash seed;
    u32 depth;

    Words block(u64 index) const
    {
        Hash hash = hash_numbered(seed, index);
#pragma unroll 1
        for (u32 i = 1; i < depth; i++) {
            hash = compress_called(INITIAL, message_of(hash));
        }
        return words_of(hash);
    }
};

inline void absorb(Words &state, const Words &block)
{
    u32(&w)[8] = state.word;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        w[i] ^= block.word[i];
    }
    quarter_round(w[0], w[1], w[2], w[3]);
    quarter_round(w[4], w[5], w[6], w[7]);
    quarter_round(w[0], w[5], w[2], w[7]);
    quarter_round(w[4], w[1], w[6], w[3]);
}

// Runs one lane and hashes where it ends.
template <typename Fill>
inline Hash lane(const Fill &fill, u64 blocks, const Hash &seed, u64 number, u32 reads)
{
    constexpr Hash start = after("nave proof lane");
    Words state = words_of(hash_numbered(seed, number));
#pragma unroll 1
    for (u32 i = 0; i < reads; i++) {
        absorb(state, fill.block(multiply_high((u64)state.word[1] << 32 | state.word[0], blocks)));
    }
    Message message = {};
#pragma unroll
    for (int i = 0; i < 8; i++) {
        message.word[i] = byte_swap(state.word[i]);
    }
    finish(message, 8, 96);
    return compress_called(start, message);
}

extern "C" __global__ void __launch_bounds__(256)
    lanes(const u8 *fill, u64 blocks, const u32 *seed, u64 first, u64 count, u32 reads, u32 *out)
{
    const u64 index = (u64)blockIdx.x * 256 + threadIdx.x;
    if (index < count) {
        store_hash(out + index * 8, lane(Stored{fill}, blocks, load_hash(seed), first + index, reads));
    }
}

extern "C" __global__ void __launch_bounds__(256)
    lanes_again(const u32 *fill_seed, u32 depth, u64 blocks, const u32 *seed, const u64 *which, u32 count, u64 lanes,
                u32 reads, u32 *out)
{
    const u64 index = (u64)blockIdx.x * 256 + threadIdx.x;
    const u64 number = which[blockIdx.x] * 256 + threadIdx.x;
    if (blockIdx.x < count && number < lanes) {
        const Derived fill = {load_hash(fill_seed), depth};
        store_hash(out + index * 8, lane(fill, blocks, load_hash(seed), number, reads));
    }
}

constexpr u32 CHUNK_STEPS = 64;
constexpr u32 CHUNK_BLOCKS = 32 * CHUNK_STEPS;

// What a warp makes of a chunk, which begins at block `first` of `fill`: one accumulator for each lane. The next blocks are on
// their way while the last ones are absorbed.
template <typename Fill>
inline Words accumulate(const Fill &fill, u64 first, const Hash &seed, u64 chunk)
{
    const u32 lane = threadIdx.x % 32;
    Words read[Fill::BATCH];
    const auto load = [&](u32 step) {
#pragma unroll
        for (u32 i = 0; i < Fill::BATCH; i++) {
            read[i] = fill.block(first + (step + i) * 32 + lane);
        }
    };
    load(0);
    Words state = words_of(hash_numbered(seed, chunk * 32 + lane));
#pragma unroll Fill::BATCH
    for (u32 step = Fill::BATCH; step <= CHUNK_STEPS; step += Fill::BATCH) {
        Words now[Fill::BATCH];
#pragma unroll
        for (u32 i = 0; i < Fill::BATCH; i++) {
            now[i] = read[i];
        }
        if (step < CHUNK_STEPS) {
            load(step);
        }
#pragma unroll
        for (u32 i = 0; i < Fill::BATCH; i++) {
            absorb(state, now[i]);
        }
    }
    return state;
}

// A block of eight warps takes up to 32 chunks: `count` from `chunk`, the first of which begins at block `first` of `fill`.
// Each warp accumulates four of them; then one warp hashes all, a chunk for each lane.
template <typename Fill>
inline void stream_chunks(const Fill &fill, u64 first, const Hash &seed, u64 chunk, u32 count, u32 *out)
{
    constexpr Hash start = after("nave proof stream");
    // One piece more than a chunk's 64, so that lanes read from different banks.
    __shared__ uint4 ends[32][65];
    const u32 lane = threadIdx.x % 32;
#pragma unroll 1
    for (u32 i = threadIdx.x / 32; i < count; i += 8) {
        const Words end = accumulate(fill, first + (u64)i * CHUNK_BLOCKS, seed, chunk + i);
        ends[i][2 * lane] = {end.word[0], end.word[1], end.word[2], end.word[3]};
        ends[i][2 * lane + 1] = {end.word[4], end.word[5], end.word[6], end.word[7]};
    }
    __syncthreads();
    if (threadIdx.x < count) {
        store_hash(out + lane * 8, hash_kibibyte(start, [&](u32 piece) { return ends[lane][piece]; }));
    }
}

inline u32 at_most_32(u64 count)
{
    return count < 32 ? (u32)count : 32;
}

extern "C" __global__ void __launch_bounds__(256)
    stream(const u8 *data, const u32 *seed, u64 first, u64 count, u32 *out)
{
    const u64 index = (u64)blockIdx.x * 32;
    stream_chunks(Stored{data}, index * CHUNK_BLOCKS, load_hash(seed), first + index, at_most_32(count - index),
                  out + index * 8);
}

extern "C" __global__ void __launch_bounds__(256)
    stream_again(const u32 *fill_seed, u32 depth, const u32 *seed, const u64 *which, u32 count, u64 chunks, u32 *out)
{
    const u32 subtree = blockIdx.x / 8;
    const u64 chunk = which[subtree] * 256 + blockIdx.x % 8 * 32;
    if (subtree < count && chunk < chunks) {
        const Derived fill = {load_hash(fill_seed), depth};
        stream_chunks(fill, chunk * CHUNK_BLOCKS, load_hash(seed), chunk, at_most_32(chunks - chunk),
                      out + (u64)blockIdx.x * 256);
    }
}
