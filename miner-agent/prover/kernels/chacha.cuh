// ChaCha8 with a 64-bit block counter and a 64-bit stream, and its quarter round, which the memory tests use too.
#pragma once

constexpr u32 rotate_left(u32 word, int by)
{
    return word << by | word >> (32 - by);
}

inline void quarter_round(u32 &a, u32 &b, u32 &c, u32 &d)
{
    a += b;
    d = rotate_left(d ^ a, 16);
    c += d;
    b = rotate_left(b ^ c, 12);
    a += b;
    d = rotate_left(d ^ a, 8);
    c += d;
    b = rotate_left(b ^ c, 7);
}

// 64 bytes of the key stream, as little-endian words.
inline void chacha8(u32 (&out)[16], const u32 *key, u64 stream, u64 block)
{
    u32 start[16] = {0x61707865, 0x3320646e, 0x79622d32, 0x6b206574};
#pragma unroll
    for (int i = 0; i < 8; i++) {
        start[4 + i] = key[i];
    }
    start[12] = (u32)block;
    start[13] = (u32)(block >> 32);
    start[14] = (u32)stream;
    start[15] = (u32)(stream >> 32);
#pragma unroll
    for (int i = 0; i < 16; i++) {
        out[i] = start[i];
    }
#pragma unroll
    for (int twice = 0; twice < 4; twice++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            quarter_round(out[i], out[4 + i], out[8 + i], out[12 + i]);
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            quarter_round(out[i], out[4 + (i + 1) % 4], out[8 + (i + 2) % 4], out[12 + (i + 3) % 4]);
        }
    }
#pragma unroll
    for (int i = 0; i < 16; i++) {
        out[i] += start[i];
    }
}
