// The double of ptx.cuh that runs on a CPU, and the multiprocessor around it.
//
// Every CUDA thread is a fiber. The warps of a block, or of a cluster's blocks, take turns by chance, and now and then one
// falls far behind the others. What is asynchronous on a device happens as early or as late as it may, by chance, so that a copy into what is still
// being read, or a read of what has not come yet, gives a wrong result here. What instructions do is written down from the PTX
// ISA: "Matrix Fragments for mma.m16n8k32", "ldmatrix", "mbarrier", and for wgmma "Register Fragments", "Matrix
// Descriptor Format" and "Canonical Layouts".
#pragma once

#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

using i8 = signed char;
using u8 = unsigned char;
using i32 = int;
using u32 = unsigned int;
using u64 = unsigned long long;

struct uint4
{
    u32 x, y, z, w;
};

struct int2
{
    i32 x, y;
};

#define __global__
#define __launch_bounds__(...)
#define __maxnreg__(...)
#define __cluster_dims__(...)
// Only one block, or one cluster, runs at a time; kernels with clusters have no static shared memory.
#define __shared__ static
#define __noinline__ __attribute__((noinline))

namespace emulation
{

[[noreturn]] inline void fail(const std::string &what)
{
    std::fprintf(stderr, "emulation: %s\n", what.c_str());
    std::exit(1);
}

inline void require(bool holds, const char *what)
{
    if (!holds) {
        fail(what);
    }
}

// Chance that is the same in every run with the same seed.
struct Dice
{
    u64 state = 1;

    u32 below(u32 bound)
    {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        return (u32)((state >> 32) % bound);
    }
};

inline Dice dice;

// Counts how often all of a set of threads have met.
struct Meeting
{
    u32 present = 0;
    u64 held = 0;
};

struct Barrier
{
    u32 arrivals = 0, awaited = 0, phase = 0;
    i32 bytes = 0;

    void settle()
    {
        if (awaited == 0 && bytes == 0) {
            phase ^= 1;
            awaited = arrivals;
        }
    }

    void arrive()
    {
        require(awaited > 0, "more arrivals at a barrier than it waits for");
        awaited--;
        settle();
    }
};

// What a lane shows the others of its warp while they execute one instruction together.
struct Shown
{
    u64 value[2];
    u32 words[6];
};

struct Warp
{
    Meeting meeting;
    u64 executed = 0;
    // Two sets, as some lanes may be one instruction ahead.
    Shown shown[2][32];
};

// Shared memory begins where a device has its system's part, and not at a multiple of the swizzle's pattern.
constexpr u32 SHARED_START = 1024 + 16;

struct Block
{
    u32 index = 0, rank = 0, threads = 0;
    std::vector<u8> shared;
    std::vector<Warp> warps;
    std::map<u32, Barrier> barriers;
    Meeting meeting;

    u8 *at(u32 address, u32 bytes)
    {
        require(address >= SHARED_START && address - SHARED_START + bytes <= shared.size(), "outside of shared memory");
        return shared.data() + (address - SHARED_START);
    }

    Barrier &barrier(u32 address)
    {
        require(address % 8 == 0, "a barrier is not aligned");
        const auto found = barriers.find(address);
        require(found != barriers.end(), "a barrier is used before it is initialised");
        return found->second;
    }
};

using Deed = std::function<void()>;

// Deeds of which each is done at once or when its group is waited for. The order does not matter: copies are to different
// places, products are sums.
struct Groups
{
    std::deque<std::vector<Deed>> closed;
    std::vector<Deed> open;

    void add(Deed deed)
    {
        if (dice.below(2) == 0) {
            deed();
        } else {
            open.push_back(std::move(deed));
        }
    }

    bool idle() const
    {
        bool idle = open.empty();
        for (const std::vector<Deed> &group : closed) {
            idle &= group.empty();
        }
        return idle;
    }

    void close()
    {
        closed.push_back(std::move(open));
        open.clear();
    }

    void wait(size_t pending)
    {
        while (closed.size() > pending) {
            for (const Deed &deed : closed.front()) {
                deed();
            }
            closed.pop_front();
        }
    }
};

struct Thread
{
    u32 index = 0;
    Block *block = nullptr;
    ucontext_t context;
    bool ended = false;
    // Not run while the count is what it was.
    const u64 *watched = nullptr;
    u64 seen = 0;
    Groups copies, products;
    bool fenced = false;
};

struct Machine
{
    ucontext_t scheduler;
    std::vector<std::unique_ptr<Block>> blocks;
    std::vector<std::unique_ptr<Thread>> threads;
    std::vector<std::vector<u8>> stacks;
    std::vector<Deed> bulk;
    // For how many turns each warp does not run.
    std::vector<u32> asleep;
    Meeting meeting;
    Thread *current = nullptr;
    const Deed *kernel = nullptr;
    u64 progress = 0;
};

inline Machine machine;

inline Thread &me()
{
    return *machine.current;
}

inline void pause()
{
    Thread &thread = me();
    swapcontext(&thread.context, &machine.scheduler);
}

inline void meet(Meeting &meeting, u32 threads)
{
    machine.progress++;
    if (++meeting.present == threads) {
        meeting.present = 0;
        meeting.held++;
        return;
    }
    me().watched = &meeting.held;
    me().seen = meeting.held;
    pause();
}

// Shows what this lane has, and gives what all lanes of the warp have shown.
inline const Shown *show(const Shown &shown)
{
    Warp &warp = me().block->warps[me().index / 32];
    // All lanes have left the last meeting but one when the first comes to the next.
    const u64 set = (warp.meeting.held) % 2;
    warp.shown[set][me().index % 32] = shown;
    meet(warp.meeting, 32);
    return warp.shown[set];
}

inline void entry()
{
    (*machine.kernel)();
    me().ended = true;
    machine.progress++;
    pause();
}

inline void start_thread(Block &block, u32 index, std::vector<u8> &stack)
{
    auto thread = std::make_unique<Thread>();
    thread->index = index;
    thread->block = &block;
    getcontext(&thread->context);
    thread->context.uc_stack.ss_sp = stack.data();
    thread->context.uc_stack.ss_size = stack.size();
    thread->context.uc_link = nullptr;
    makecontext(&thread->context, entry, 0);
    machine.threads.push_back(std::move(thread));
}

inline bool run_warp(u32 warp)
{
    bool alive = false;
    for (u32 at = warp * 32; at < warp * 32 + 32 && at < machine.threads.size(); at++) {
        Thread &thread = *machine.threads[at];
        alive |= !thread.ended;
        if (thread.ended || (thread.watched && *thread.watched == thread.seen)) {
            continue;
        }
        thread.watched = nullptr;
        machine.current = &thread;
        swapcontext(&machine.scheduler, &thread.context);
    }
    return alive;
}

// Runs every warp once, but those that sleep, in an order by chance; whether any thread is left.
inline bool run_turn()
{
    const u32 warps = (u32)machine.asleep.size(), first = dice.below(warps);
    bool alive = false;
    for (u32 i = 0; i < warps; i++) {
        const u32 warp = (first + i) % warps;
        u32 &asleep = machine.asleep[warp];
        if (asleep > 0) {
            asleep--;
            machine.progress++;
            alive = true;
            continue;
        }
        alive |= run_warp(warp);
        asleep = dice.below(256) == 0 ? dice.below(256) : 0;
    }
    return alive;
}

// Completes some of the bulk copies, in any order.
inline void run_bulk()
{
    for (u32 left = dice.below(4); left > 0 && !machine.bulk.empty(); left--) {
        const u32 pick = dice.below((u32)machine.bulk.size());
        const Deed deed = machine.bulk[pick];
        machine.bulk.erase(machine.bulk.begin() + pick);
        deed();
        machine.progress++;
    }
}

inline void run_blocks(u32 first, u32 blocks, u32 threads, u32 shared, const Deed &kernel)
{
    machine.blocks.clear();
    machine.threads.clear();
    machine.bulk.clear();
    machine.meeting = {};
    machine.kernel = &kernel;
    machine.stacks.resize(blocks * threads, std::vector<u8>(128 * 1024));
    for (u32 rank = 0; rank < blocks; rank++) {
        auto block = std::make_unique<Block>();
        block->index = first + rank;
        block->rank = rank;
        block->threads = threads;
        block->shared.resize(shared, 0xa5);
        block->warps.resize((threads + 31) / 32);
        for (u32 index = 0; index < threads; index++) {
            start_thread(*block, index, machine.stacks[rank * threads + index]);
        }
        machine.blocks.push_back(std::move(block));
    }
    machine.asleep.assign((machine.threads.size() + 31) / 32, 0);
    u32 idle = 0;
    for (u64 before = 0; run_turn(); before = machine.progress) {
        run_bulk();
        idle = machine.progress == before && machine.bulk.empty() ? idle + 1 : 0;
        require(idle < 3, "all threads wait for each other");
    }
    require(machine.bulk.empty(), "a block ended before its copies");
    for (const auto &thread : machine.threads) {
        require(thread->copies.idle() && thread->products.idle(), "a thread ended before its asynchronous work");
    }
}

// Runs a kernel over a grid, `cluster` blocks at a time.
inline void launch(u32 grid, u32 threads, u32 shared, u32 cluster, const Deed &kernel)
{
    require(grid % cluster == 0, "the grid is not whole clusters");
    for (u32 first = 0; first < grid; first += cluster) {
        run_blocks(first, cluster, threads, shared, kernel);
    }
}

inline i8 byte_of(u32 word, u32 index)
{
    return (i8)(word >> 8 * index);
}

// What a matrix descriptor of wgmma says, of a matrix with k contiguous and 128 bytes swizzled.
struct Descriptor
{
    u32 start, eight_rows;

    explicit Descriptor(u64 bits)
        : start((u32)(bits & 0x3fff) * 16), eight_rows((u32)(bits >> 32 & 0x3fff) * 16)
    {
        require(bits >> 62 == 1, "not the 128-byte swizzle");
        require((bits >> 49 & 7) == 0, "a base offset, though the pattern begins at a multiple of its size");
        require(start % 1024 < 128 && eight_rows % 1024 == 0, "rows of the pattern are not where the swizzle has them");
    }

    // The swizzle exchanges address bits: 4 to 6 with what 7 to 9 say.
    i8 entry(Block &block, u32 row, u32 k) const
    {
        const u32 plain = start + row / 8 * eight_rows + row % 8 * 128 + k;
        return (i8)*block.at(plain ^ (plain >> 3 & 0x70), 1);
    }
};

// One thread's part of a wgmma.
inline void multiply_part(Thread &thread, i32 *d, u64 a_bits, u64 b_bits)
{
    Block &block = *thread.block;
    const Descriptor a(a_bits), b(b_bits);
    const u32 lane = thread.index % 32, warp = thread.index / 32 % 4;
    i8 rows[2][32];
    for (u32 k = 0; k < 32; k++) {
        rows[0][k] = a.entry(block, 16 * warp + lane / 4, k);
        rows[1][k] = a.entry(block, 16 * warp + lane / 4 + 8, k);
    }
    for (u32 column = 0; column < 64; column++) {
        i32 sums[2] = {};
        for (u32 k = 0; k < 32; k++) {
            const i32 right = b.entry(block, column / 2 * 8 + lane % 4 * 2 + column % 2, k);
            sums[0] += rows[0][k] * right;
            sums[1] += rows[1][k] * right;
        }
        d[column / 2 * 4 + column % 2] += sums[0];
        d[column / 2 * 4 + column % 2 + 2] += sums[1];
    }
}

} // namespace emulation

#define threadIdx (emulation::Dimension{emulation::me().index})
#define blockIdx (emulation::Dimension{emulation::me().block->index})

namespace emulation
{

struct Dimension
{
    u32 x;
};

} // namespace emulation

inline void __syncthreads()
{
    emulation::meet(emulation::me().block->meeting, emulation::me().block->threads);
}

inline void __syncwarp()
{
    emulation::meet(emulation::me().block->warps[emulation::me().index / 32].meeting, 32);
}

inline u8 *dynamic_shared()
{
    return emulation::me().block->shared.data();
}

inline u32 shared_address(const void *pointer)
{
    return emulation::SHARED_START + (u32)((const u8 *)pointer - emulation::me().block->shared.data());
}

inline u32 byte_swap(u32 word)
{
    return __builtin_bswap32(word);
}

inline u64 multiply_high(u64 a, u64 b)
{
    return (u64)((unsigned __int128)a * b >> 64);
}

inline uint4 load_constant(const uint4 *from)
{
    emulation::require((uintptr_t)from % 16 == 0, "a load of 16 bytes is not aligned");
    return *from;
}

inline void copy_async(u32 to, const void *from)
{
    emulation::require(to % 16 == 0 && (uintptr_t)from % 16 == 0, "a copy of 16 bytes is not aligned");
    u8 *there = emulation::me().block->at(to, 16);
    emulation::me().copies.add([=] { std::memcpy(there, from, 16); });
}

inline void copy_async_commit()
{
    emulation::me().copies.close();
}

template <int PENDING>
inline void copy_async_wait()
{
    emulation::me().copies.wait(PENDING);
}

inline void load_matrices(u32 (&to)[4], u32 row)
{
    emulation::require(row % 16 == 0, "a row of a matrix is not aligned");
    const emulation::Shown *all = emulation::show({{row, 0}, {}});
    const u32 lane = emulation::me().index % 32;
    for (u32 matrix = 0; matrix < 4; matrix++) {
        u32 banks = 0;
        for (u32 i = 0; i < 8; i++) {
            banks |= 1u << (all[8 * matrix + i].value[0] / 16 % 8);
        }
        emulation::require(banks == 0xff, "rows of a matrix are in the same banks");
        const u32 address = (u32)all[8 * matrix + lane / 4].value[0] + lane % 4 * 4;
        std::memcpy(&to[matrix], emulation::me().block->at(address, 4), 4);
    }
}

inline void multiply_add(i32 (&c)[4], const u32 (&a)[4], u32 b0, u32 b1)
{
    const emulation::Shown *all = emulation::show({{}, {a[0], a[1], a[2], a[3], b0, b1}});
    const u32 lane = emulation::me().index % 32;
    for (u32 i = 0; i < 4; i++) {
        const u32 row = lane / 4, lower = i / 2, column = lane % 4 * 2 + i % 2;
        for (u32 k = 0; k < 32; k++) {
            const u32 left = all[row * 4 + k % 16 / 4].words[lower + k / 16 * 2];
            const u32 right = all[column * 4 + k % 16 / 4].words[4 + k / 16];
            c[i] += emulation::byte_of(left, k % 4) * emulation::byte_of(right, k % 4);
        }
    }
}

#ifdef WGMMA

inline u32 cluster_rank()
{
    return emulation::me().block->rank;
}

inline void cluster_sync()
{
    emulation::meet(emulation::machine.meeting, (u32)emulation::machine.threads.size());
}

inline void barrier_init(u32 barrier, u32 arrivals)
{
    emulation::Block &block = *emulation::me().block;
    block.at(barrier, 8);
    block.barriers[barrier] = {arrivals, arrivals, 0, 0};
    block.barrier(barrier);
}

inline void barrier_init_fence()
{
}

inline void barrier_expect(u32 barrier, u32 bytes)
{
    emulation::Barrier &mine = emulation::me().block->barrier(barrier);
    mine.bytes += (i32)bytes;
    mine.arrive();
    emulation::machine.progress++;
}

inline void barrier_arrive_in(u32 barrier, u32 rank)
{
    emulation::machine.blocks[rank]->barrier(barrier).arrive();
    emulation::machine.progress++;
}

inline bool barrier_complete(u32 barrier, u32 parity)
{
    const bool complete = emulation::me().block->barrier(barrier).phase != parity;
    if (!complete) {
        emulation::pause();
    }
    return complete;
}

inline void copy_bulk_to(u32 to, const void *from, u32 bytes, u32 barrier, unsigned short blocks)
{
    emulation::require(to % 16 == 0 && (uintptr_t)from % 16 == 0 && bytes % 16 == 0, "a bulk copy is not aligned");
    for (const auto &block : emulation::machine.blocks) {
        if (blocks >> block->rank & 1) {
            emulation::Block *there = block.get();
            emulation::machine.bulk.push_back([=] {
                std::memcpy(there->at(to, bytes), from, bytes);
                there->barrier(barrier).bytes -= (i32)bytes;
                there->barrier(barrier).settle();
            });
        }
    }
}

inline void copy_bulk(u32 to, const void *from, u32 bytes, u32 barrier)
{
    copy_bulk_to(to, from, bytes, barrier, (unsigned short)(1u << cluster_rank()));
}

inline void wgmma_fence()
{
    emulation::me().fenced = true;
}

inline void wgmma(i32 (&d)[128], u64 a, u64 b)
{
    emulation::Thread &thread = emulation::me();
    emulation::require(thread.fenced, "a wgmma without a fence before it");
    const emulation::Shown *all = emulation::show({{a, b}, {}});
    for (u32 lane = 0; lane < 32; lane++) {
        emulation::require(all[lane].value[0] == a && all[lane].value[1] == b, "descriptors of a warp differ");
    }
    thread.products.add([&thread, &d, a, b] { emulation::multiply_part(thread, d, a, b); });
}

inline void wgmma_commit()
{
    emulation::me().fenced = false;
    emulation::me().products.close();
}

template <int PENDING>
inline void wgmma_wait()
{
    emulation::me().products.wait(PENDING);
}

#endif
