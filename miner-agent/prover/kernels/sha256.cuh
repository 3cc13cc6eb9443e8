// SHA-256, and the "block hash" of the proofs: BH(domain, data) is SHA-256 of the domain, padded with zeros to
// 64 bytes, and the data. What the domain does to the state is computed at compile time.
//
// Words of a message are big-endian; words of the proofs' data, as they are in memory, are little-endian.
#pragma once

constexpr u32 ROUND[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

// The state between compressions, which is also a digest.
struct Hash
{
    u32 word[8];
};

// What is compressed at once. Schedule words replace those that no later one needs.
struct Message
{
    u32 word[16];
};

constexpr Hash INITIAL = {
    {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19}};

constexpr u32 rotate_right(u32 word, int by)
{
    return word >> by | word << (32 - by);
}

// The compression function, of whose four times sixteen rounds UNROLL times are unrolled.
template <int UNROLL>
constexpr Hash compress_by(const Hash &before, Message message)
{
    Hash s = before;
#pragma unroll UNROLL
    for (int done = 0; done < 64; done += 16) {
#pragma unroll
        for (int i = 0; i < 16; i++) {
            u32 &w = message.word[i];
            if (done > 0) {
                const u32 far = message.word[(i + 1) % 16], near = message.word[(i + 14) % 16];
                w += (rotate_right(far, 7) ^ rotate_right(far, 18) ^ far >> 3) + message.word[(i + 9) % 16] +
                     (rotate_right(near, 17) ^ rotate_right(near, 19) ^ near >> 10);
            }
            const u32 a = s.word[0], b = s.word[1], c = s.word[2], e = s.word[4], f = s.word[5], g = s.word[6];
            const u32 up = s.word[7] + (rotate_right(e, 6) ^ rotate_right(e, 11) ^ rotate_right(e, 25)) +
                           ((e & f) ^ (~e & g)) + ROUND[done + i] + w;
            const u32 down =
                (rotate_right(a, 2) ^ rotate_right(a, 13) ^ rotate_right(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
            s = {{up + down, a, b, c, s.word[3] + up, e, f, g}};
        }
    }
#pragma unroll
    for (int i = 0; i < 8; i++) {
        s.word[i] += before.word[i];
    }
    return s;
}

// For innermost loops: constants in the message become constants in the code.
constexpr Hash compress(const Hash &before, const Message &message)
{
    return compress_by<4>(before, message);
}

// For all others: small, and nearly as fast.
__noinline__ Hash compress_called(const Hash before, const Message message)
{
    return compress_by<1>(before, message);
}

// The state after a domain.
constexpr Hash after(const char *domain)
{
    Message message = {};
    for (int i = 0; domain[i] != 0; i++) {
        message.word[i / 4] |= (u32)domain[i] << (24 - 8 * (i % 4));
    }
    return compress(INITIAL, message);
}

// The end of `message`, of which `words` are data, in a hash over `bytes` in all.
constexpr void finish(Message &message, int words, u32 bytes)
{
#pragma unroll
    for (int i = 0; i < 16; i++) {
        if (i >= words) {
            message.word[i] = i == words ? 0x80000000u : i == 15 ? bytes * 8 : 0;
        }
    }
}

// What SHA-256 of a digest compresses.
inline Message message_of(const Hash &hash)
{
    Message message = {};
#pragma unroll
    for (int i = 0; i < 8; i++) {
        message.word[i] = hash.word[i];
    }
    finish(message, 8, 32);
    return message;
}

// SHA-256 of a seed and a number.
inline Hash hash_numbered(const Hash &seed, u64 number)
{
    Message message = {};
#pragma unroll
    for (int i = 0; i < 8; i++) {
        message.word[i] = seed.word[i];
    }
    message.word[8] = byte_swap((u32)number);
    message.word[9] = byte_swap((u32)(number >> 32));
    finish(message, 10, 40);
    return compress_called(INITIAL, message);
}

// BH of two digests: what is above them in a tree.
inline Hash hash_pair(const Hash &left, const Hash &right)
{
    constexpr Hash start = after("nave proof tree");
    Message message = {}, end = {};
#pragma unroll
    for (int i = 0; i < 8; i++) {
        message.word[i] = left.word[i];
        message.word[8 + i] = right.word[i];
    }
    finish(end, 0, 128);
    return compress_called(compress_called(start, message), end);
}

// BH of 1024 bytes, which `load` gives in 64 pieces of 16.
template <typename Load>
inline Hash hash_kibibyte(const Hash &start, const Load &load)
{
    Hash hash = start;
#pragma unroll 1
    for (u32 block = 0; block <= 16; block++) {
        Message message = {};
        if (block == 16) {
            finish(message, 0, 1088);
        } else {
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                const uint4 piece = load(4 * block + i);
                message.word[4 * i] = byte_swap(piece.x);
                message.word[4 * i + 1] = byte_swap(piece.y);
                message.word[4 * i + 2] = byte_swap(piece.z);
                message.word[4 * i + 3] = byte_swap(piece.w);
            }
        }
        hash = compress(hash, message);
    }
    return hash;
}

inline Hash load_hash(const u32 *from)
{
    Hash hash;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        hash.word[i] = byte_swap(from[i]);
    }
    return hash;
}

inline void store_hash(u32 *to, const Hash &hash)
{
    uint4 *pieces = (uint4 *)to;
    pieces[0] = {byte_swap(hash.word[0]), byte_swap(hash.word[1]), byte_swap(hash.word[2]), byte_swap(hash.word[3])};
    pieces[1] = {byte_swap(hash.word[4]), byte_swap(hash.word[5]), byte_swap(hash.word[6]), byte_swap(hash.word[7])};
}
