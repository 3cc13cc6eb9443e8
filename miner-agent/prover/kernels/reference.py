#!/usr/bin/env python3
"""What the proofs compute, written down as plainly as can be: it shares nothing with the kernels or with nave-proof.

Writes vectors.json, which the tests of both compare with:  ./reference.py > vectors.json
Long values are given as their SHA-256 (names that end in `sha256`).
"""

import hashlib
import json
import struct
from operator import mul


def sha(data):
    return hashlib.sha256(data).digest()


def named(domain, *parts):
    """H: a name, with its length before it, and parts."""
    return sha(bytes([len(domain)]) + domain.encode() + b"".join(parts))


def block_hash(domain, data):
    """BH: a name in 64 bytes, and data."""
    return sha(domain.encode().ljust(64, b"\0") + data)


def rotate(word, by):
    return (word << by | word >> (32 - by)) & 0xFFFFFFFF


def quarter(s, a, b, c, d):
    s[a] = (s[a] + s[b]) & 0xFFFFFFFF
    s[d] = rotate(s[d] ^ s[a], 16)
    s[c] = (s[c] + s[d]) & 0xFFFFFFFF
    s[b] = rotate(s[b] ^ s[c], 12)
    s[a] = (s[a] + s[b]) & 0xFFFFFFFF
    s[d] = rotate(s[d] ^ s[a], 8)
    s[c] = (s[c] + s[d]) & 0xFFFFFFFF
    s[b] = rotate(s[b] ^ s[c], 7)


def chacha8(key, stream, length):
    out = b""
    for block in range((length + 63) // 64):
        start = struct.unpack("<16I", b"expand 32-byte k" + key + struct.pack("<QQ", block, stream))
        s = list(start)
        for _ in range(4):
            quarter(s, 0, 4, 8, 12)
            quarter(s, 1, 5, 9, 13)
            quarter(s, 2, 6, 10, 14)
            quarter(s, 3, 7, 11, 15)
            quarter(s, 0, 5, 10, 15)
            quarter(s, 1, 6, 11, 12)
            quarter(s, 2, 7, 8, 13)
            quarter(s, 3, 4, 9, 14)
        out += struct.pack("<16I", *((x + y) & 0xFFFFFFFF for x, y in zip(s, start)))
    return out[:length]


def tree(leaves):
    """All levels, leaves first."""
    levels = [leaves]
    while len(levels[-1]) > 1:
        below = levels[-1]
        above = [block_hash("nave proof tree", a + b) for a, b in zip(below[0::2], below[1::2])]
        levels.append(above + below[len(above) * 2 :])
    return levels


def level8(levels):
    """Eight levels up, or the root where there are fewer."""
    return levels[min(8, len(levels) - 1)]


def int8(data):
    return struct.unpack(f"<{len(data)}b", data)


def round_of_gemm(seed, m, n, k):
    a = [chacha8(seed, i, k) for i in range(m)]
    b = [chacha8(seed, 2**32 + j, k) for j in range(n)]
    rows, columns = [int8(row) for row in a], [int8(column) for column in b]
    c = [[sum(map(mul, row, column)) for column in columns] for row in rows]
    leaves = []
    for row in c:
        for group in range(n // 256):
            leaves.append(block_hash("nave proof gemm", struct.pack("<256i", *row[256 * group : 256 * group + 256])))
    return a, b, c, leaves


def fill(seed, blocks, depth):
    out = []
    for i in range(blocks):
        block = sha(seed + struct.pack("<Q", i))
        for _ in range(depth - 1):
            block = sha(block)
        out.append(block)
    return out


def absorb(w, block):
    for i, word in enumerate(struct.unpack("<8I", block)):
        w[i] ^= word
    quarter(w, 0, 1, 2, 3)
    quarter(w, 4, 5, 6, 7)
    quarter(w, 0, 5, 2, 7)
    quarter(w, 4, 1, 6, 3)


def start(seed, number):
    return list(struct.unpack("<8I", sha(seed + struct.pack("<Q", number))))


def lane(data, seed, number, reads):
    w = start(seed, number)
    for _ in range(reads):
        absorb(w, data[(w[0] | w[1] << 32) * len(data) >> 64])
    return block_hash("nave proof lane", struct.pack("<8I", *w))


def chunk(data, first, seed, number):
    """Digest of chunk `number`, where `data` begins with chunk `first`."""
    end = b""
    for l in range(32):
        w = start(seed, 32 * number + l)
        for s in range(64):
            absorb(w, data[(number - first) * 2048 + 32 * s + l])
        end += struct.pack("<8I", *w)
    return block_hash("nave proof stream", end)


def joined(digests):
    return sha(b"".join(digests)).hex()


def gemm_case(seed, m, n, k, picked):
    a, b, c, leaves = round_of_gemm(seed, m, n, k)
    levels = tree(leaves)
    root = levels[-1][0]
    rows = struct.pack(f"<{len(picked) * n}i", *(word for row in picked for word in c[row]))
    return {
        "seed": seed.hex(), "m": m, "n": n, "k": k,
        "last_row_of_a": a[m - 1].hex(), "last_but_one_column_of_b": b[n - 2].hex(),
        "c_sha256": joined(struct.pack(f"<{n}i", *row) for row in c),
        "picked_rows": picked, "picked_c_sha256": sha(rows).hex(),
        "first_leaf": leaves[0].hex(), "leaves_sha256": joined(leaves),
        "level8": [digest.hex() for digest in level8(levels)], "root": root.hex(),
        "next_seed": named("nave proof round", seed, root).hex(),
        "phase_digest_of_this_round_twice": named("nave proof rounds", root, root).hex(),
    }


def tree_case(seed, count):
    levels = tree([sha(seed + struct.pack("<Q", i)) for i in range(count)])
    return {
        "seed": seed.hex(), "count": count,
        "level8": [digest.hex() for digest in level8(levels)], "root": levels[-1][0].hex(),
    }


def fill_case(seed, blocks, depth):
    data = fill(seed, blocks, depth)
    return {
        "seed": seed.hex(), "blocks": blocks, "depth": depth,
        "last_block": data[-1].hex(), "fill_sha256": joined(data), "phase_digest": named("nave proof filled", seed).hex(),
    }


def lanes_case(fill_seed, depth, blocks, seed, lanes, reads):
    data = fill(fill_seed, blocks, depth)
    leaves = [lane(data, seed, number, reads) for number in range(lanes)]
    levels = tree(leaves)
    return {
        "fill_seed": fill_seed.hex(), "depth": depth, "blocks": blocks,
        "seed": seed.hex(), "lanes": lanes, "reads": reads,
        "first_leaf": leaves[0].hex(), "leaves_sha256": joined(leaves),
        "level8": [digest.hex() for digest in level8(levels)], "root": levels[-1][0].hex(),
    }


def stream_case(fill_seed, depth, seed, first, chunks):
    data = fill(fill_seed, (first + chunks) * 2048, depth)
    every = [chunk(data, 0, seed, number) for number in range(first + chunks)]
    root, all_root = tree(every[first:])[-1][0], tree(every)[-1][0]
    return {
        "fill_seed": fill_seed.hex(), "depth": depth, "seed": seed.hex(), "first": first, "chunks": chunks,
        "first_leaf": every[0].hex(), "leaves_from_first_sha256": joined(every[first:]), "root_from_first": root.hex(),
        "leaves_sha256": joined(every), "root": all_root.hex(),
        "next_seed": named("nave proof pass", seed, all_root).hex(),
        "phase_digest_of_this_pass": named("nave proof passes", all_root).hex(),
    }


def seed_of(number):
    return sha(b"seed of test vectors" + bytes([number]))


def main():
    digest = seed_of(0)
    vectors = {
        "named_hash": [
            {"domain": "nave proof devices", "parts": [digest.hex(), seed_of(1).hex()],
             "digest": named("nave proof devices", digest, seed_of(1)).hex()},
        ],
        "block_hash": [
            {"domain": "nave proof tree", "data": (digest + seed_of(1)).hex(),
             "digest": block_hash("nave proof tree", digest + seed_of(1)).hex()},
        ],
        "chacha8": [
            {"key": digest.hex(), "stream": 2**32 + 77, "bytes": chacha8(digest, 2**32 + 77, 200).hex()},
        ],
        "gemm": [
            gemm_case(seed_of(2), 256, 256, 64, [0, 255, 7]),
            gemm_case(seed_of(3), 512, 768, 192, [300, 2, 3, 4, 5, 511]),
            gemm_case(seed_of(4), 256, 512, 1088, [0]),
        ],
        "tree": [tree_case(seed_of(5), count) for count in (1, 2, 3, 255, 256, 257, 769, 2305)],
        "fill": [fill_case(seed_of(6), 1000, depth) for depth in (1, 2, 32)],
        "lanes": [
            lanes_case(seed_of(7), 3, 5003, seed_of(8), 300, 21),
            lanes_case(seed_of(7), 1, 4096, seed_of(9), 64, 1),
        ],
        "stream": [stream_case(seed_of(10), 2, seed_of(11), 3, 34)],
    }
    print(json.dumps(vectors, indent=1))


if __name__ == "__main__":
    main()
