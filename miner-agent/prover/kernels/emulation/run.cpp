// Launches the kernels as README.md says, on the CPU. Each line of the input is a request, and each line of the answer
// has a name and bytes, in hexadecimal:
//
//   gemm SEED m n k                                  a, b, c, leaves, level8, root; b and a as they were asked for
//   rows SEED n k ROW…                               c of these rows only
//   tree SEED count                                  level8 and root over leaves SHA-256(SEED, number)
//   fill SEED blocks depth                           fill
//   lanes FILL-SEED depth blocks SEED lanes reads    leaves, again, level8, root
//   stream FILL-SEED depth SEED first chunks         leaves, again, root, over chunks from `first` of a fill
#include "../kernels.cu"

#include <cstdio>
#include <iostream>
#include <iterator>
#include <numeric>
#include <sstream>

namespace
{

using emulation::launch;
using emulation::require;

using Bytes = std::vector<u8>;

// Memory of the device: aligned, and its end is checked.
struct Memory
{
    static constexpr size_t GUARD = 256;
    size_t bytes;
    u8 *data;

    explicit Memory(size_t wanted) : bytes(wanted), data((u8 *)std::aligned_alloc(256, (wanted + 2 * GUARD) / 256 * 256))
    {
        std::memset(data, 0xcd, (bytes + 2 * GUARD) / 256 * 256);
    }

    explicit Memory(const Bytes &from) : Memory(from.size())
    {
        std::memcpy(data, from.data(), bytes);
    }

    Memory(const Memory &) = delete;

    ~Memory()
    {
        for (size_t i = bytes; i < bytes + GUARD / 2; i++) {
            require(data[i] == 0xcd, "written behind the end of a buffer");
        }
        std::free(data);
    }

    template <typename T>
    T *as() const
    {
        return (T *)data;
    }
};

void say(const char *name, const u8 *data, size_t bytes)
{
    std::printf("%s ", name);
    for (size_t i = 0; i < bytes; i++) {
        std::printf("%02x", data[i]);
    }
    std::printf("\n");
}

void say(const char *name, const Memory &memory)
{
    say(name, memory.data, memory.bytes);
}

u32 blocks_for(u64 count, u32 each)
{
    return (u32)((count + each - 1) / each);
}

u64 padded(u64 k)
{
    return (k + 127) / 128 * 128;
}

void expand(const Memory &to, const Memory &seed, const u32 *which, u32 rows, u32 k, u64 stream)
{
    launch((u32)(rows * padded(k) / 16384), 256, 0, 1,
           [&] { expand_operand(to.as<i8>(), seed.as<u32>(), which, rows, k, stream); });
}

void multiply_operands(const i8 *a, const i8 *b, i32 *c, u32 rows, u32 n, u32 k)
{
#ifdef WGMMA
    constexpr u32 CLUSTER = BLOCKS;
#else
    constexpr u32 CLUSTER = 1;
#endif
    launch(rows / 128 * (n / 256), GEMM_THREADS, GEMM_SHARED, CLUSTER, [&] { gemm(a, b, c, rows, n, k); });
}

// Level 8 and the root over `count` leaves.
void say_tree(const Memory &below, u64 count)
{
    u32 left = blocks_for(count, 256);
    Memory level8(left * 32);
    launch(left, 128, 0, 1, [&] { tree_256(below.as<u32>(), count, level8.as<u32>()); });
    say("level8", level8);
    auto level = std::make_unique<Memory>(Bytes(level8.data, level8.data + level8.bytes));
    while (left > 1) {
        auto above = std::make_unique<Memory>((left + 1) / 2 * 32);
        launch(blocks_for((left + 1) / 2, 256), 256, 0, 1,
               [&] { tree_level(level->as<u32>(), left, above->as<u32>()); });
        level = std::move(above);
        left = (left + 1) / 2;
    }
    say("root", *level);
}

// Row `row` of an operand, taken out of its tiles.
Bytes row_of(const Memory &operand, u32 row, u32 k)
{
    Bytes bytes(k);
    for (u32 at = 0; at < k; at++) {
        const u32 piece = piece_at(row % TILE_ROWS, at % DEPTH / 16);
        bytes[at] = (u8)slab_of(operand.as<i8>(), row, k)[at / DEPTH * SLAB + row % TILE_ROWS * DEPTH + piece * 16 + at % 16];
    }
    return bytes;
}

void answer_gemm(const Memory &seed, u32 m, u32 n, u32 k)
{
    Memory a(m * padded(k)), b(n * padded(k)), c((u64)m * n * 4), hashes((u64)m * n / 256 * 32);
    expand(a, seed, nullptr, m, k, 0);
    expand(b, seed, nullptr, n, k, (u64)1 << 32);
    say("a", row_of(a, m - 1, k).data(), k);
    say("b", row_of(b, n - 2, k).data(), k);
    // Two bands, where there are as many rows.
    const u32 first = m > 256 ? 256 : m;
    multiply_operands(a.as<i8>(), b.as<i8>(), c.as<i32>(), first, n, k);
    if (first < m) {
        multiply_operands(a.as<i8>() + first * padded(k), b.as<i8>(), c.as<i32>() + (u64)first * n, m - first, n, k);
    }
    const u64 count = (u64)m * n / 256;
    launch(blocks_for(count, 128), 128, 0, 1, [&] { leaves(c.as<i32>(), count, hashes.as<u32>()); });
    say("c", c);
    say("leaves", hashes);
    say_tree(hashes, count);
}

void answer_rows(const Memory &seed, u32 n, u32 k, std::vector<u32> which)
{
    const size_t asked = which.size();
    which.resize((asked + 255) / 256 * 256, 0);
    const u32 rows = (u32)which.size();
    Memory a(rows * padded(k)), b(n * padded(k)), c((u64)rows * n * 4);
    expand(a, seed, which.data(), rows, k, 0);
    expand(b, seed, nullptr, n, k, (u64)1 << 32);
    multiply_operands(a.as<i8>(), b.as<i8>(), c.as<i32>(), rows, n, k);
    say("c", c.data, asked * n * 4);
}

void answer_tree(const Memory &seed, u64 count)
{
    Memory below(count * 32);
    launch(blocks_for(count, 256), 256, 0, 1, [&] { fill(below.as<u32>(), seed.as<u32>(), 0, count, 1); });
    say_tree(below, count);
}

void fill_all(const Memory &to, const Memory &seed, u64 blocks, u32 depth)
{
    // In two launches.
    const u64 first = blocks / 3;
    launch(blocks_for(first, 256), 256, 0, 1, [&] { fill(to.as<u32>(), seed.as<u32>(), 0, first, depth); });
    launch(blocks_for(blocks - first, 256), 256, 0, 1,
           [&] { fill(to.as<u32>(), seed.as<u32>(), first, blocks - first, depth); });
}

// All subtrees of 256, the last one first.
std::vector<u64> backwards(u64 count)
{
    std::vector<u64> which(blocks_for(count, 256));
    std::iota(which.rbegin(), which.rend(), 0);
    return which;
}

// Puts subtrees in their order again.
void say_again(const Memory &found, const std::vector<u64> &which, u64 count)
{
    Bytes all(which.size() * 256 * 32);
    for (size_t i = 0; i < which.size(); i++) {
        std::memcpy(all.data() + which[i] * 256 * 32, found.data + i * 256 * 32, 256 * 32);
    }
    say("again", all.data(), count * 32);
}

void answer_lanes(const Memory &fill_seed, u32 depth, u64 blocks, const Memory &seed, u64 count, u32 reads)
{
    Memory data(blocks * 32), hashes(count * 32);
    fill_all(data, fill_seed, blocks, depth);
    // In two batches.
    const u64 first = count > 256 ? 256 : count;
    launch(1, 256, 0, 1, [&] { lanes(data.data, blocks, seed.as<u32>(), 0, first, reads, hashes.as<u32>()); });
    launch(blocks_for(count - first, 256), 256, 0, 1, [&] {
        lanes(data.data, blocks, seed.as<u32>(), first, count - first, reads, hashes.as<u32>() + first * 8);
    });
    say("leaves", hashes);
    const std::vector<u64> which = backwards(count);
    Memory found(which.size() * 256 * 32);
    launch((u32)which.size(), 256, 0, 1, [&] {
        lanes_again(fill_seed.as<u32>(), depth, blocks, seed.as<u32>(), which.data(), (u32)which.size(), count, reads,
                    found.as<u32>());
    });
    say_again(found, which, count);
    say_tree(hashes, count);
}

void answer_stream(const Memory &fill_seed, u32 depth, const Memory &seed, u64 first, u64 count)
{
    Memory data((first + count) * 65536), hashes(count * 32);
    fill_all(data, fill_seed, (first + count) * 2048, depth);
    launch(blocks_for(count, 32), 256, 0, 1,
           [&] { stream(data.data + first * 65536, seed.as<u32>(), first, count, hashes.as<u32>()); });
    say("leaves", hashes);
    const u64 chunks = first + count;
    const std::vector<u64> which = backwards(chunks);
    Memory found(which.size() * 256 * 32);
    launch((u32)which.size() * 8, 256, 0, 1, [&] {
        stream_again(fill_seed.as<u32>(), depth, seed.as<u32>(), which.data(), (u32)which.size(), chunks,
                     found.as<u32>());
    });
    say_again(found, which, chunks);
    say_tree(hashes, count);
}

Bytes from_hex(const std::string &text)
{
    Bytes bytes;
    for (size_t i = 0; i + 1 < text.size(); i += 2) {
        bytes.push_back((u8)std::stoi(text.substr(i, 2), nullptr, 16));
    }
    return bytes;
}

struct Request
{
    std::istringstream words;

    Bytes seed()
    {
        std::string text;
        words >> text;
        require(text.size() == 64, "a seed has 32 bytes");
        return from_hex(text);
    }

    u64 number()
    {
        u64 value = 0;
        require(!!(words >> value), "a number is missing");
        return value;
    }
};

void answer(const std::string &line)
{
    Request request{std::istringstream(line)};
    std::string what;
    request.words >> what;
    const Memory seed(request.seed());
    if (what == "gemm") {
        const u32 m = (u32)request.number(), n = (u32)request.number();
        answer_gemm(seed, m, n, (u32)request.number());
    } else if (what == "rows") {
        const u32 n = (u32)request.number(), k = (u32)request.number();
        answer_rows(seed, n, k, {std::istream_iterator<u32>(request.words), {}});
    } else if (what == "tree") {
        answer_tree(seed, request.number());
    } else if (what == "fill") {
        const u64 blocks = request.number();
        Memory data(blocks * 32);
        fill_all(data, seed, blocks, (u32)request.number());
        say("fill", data);
    } else if (what == "lanes") {
        const u32 depth = (u32)request.number();
        const u64 blocks = request.number();
        const Memory second(request.seed());
        const u64 count = request.number();
        answer_lanes(seed, depth, blocks, second, count, (u32)request.number());
    } else if (what == "stream") {
        const u32 depth = (u32)request.number();
        const Memory second(request.seed());
        const u64 first = request.number();
        answer_stream(seed, depth, second, first, request.number());
    } else {
        emulation::fail("unknown request: " + what);
    }
}

} // namespace

int main(int count, char **arguments)
{
    if (count > 1) {
        emulation::dice.state = std::stoull(arguments[1]);
    }
    for (std::string line; std::getline(std::cin, line);) {
        answer(line);
    }
}
