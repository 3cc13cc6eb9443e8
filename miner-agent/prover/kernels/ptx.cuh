// One small function for each instruction that C++ has no word for.
//
// Shared memory is spoken of by its address in the window of that state space, as PTX does.
#pragma once

using i8 = signed char;
using u8 = unsigned char;
using i32 = int;
using u32 = unsigned int;
using u64 = unsigned long long;

// Dynamic shared memory of the block. It is aligned to 16 bytes, and its address is the same in all blocks.
inline u8 *dynamic_shared()
{
    extern __shared__ __align__(16) u8 dynamic[];
    return dynamic;
}

inline u32 shared_address(const void *pointer)
{
    return (u32)__cvta_generic_to_shared(pointer);
}

inline u32 byte_swap(u32 word)
{
    return __byte_perm(word, 0, 0x0123);
}

inline u64 multiply_high(u64 a, u64 b)
{
    return __umul64hi(a, b);
}

// 16 bytes that nobody writes while the kernel runs. They stay in the first cache: the other half of what memory gives
// at once is read next.
inline uint4 load_constant(const uint4 *from)
{
    uint4 v;
    asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(from));
    return v;
}

// Begins to copy 16 bytes to shared memory.
inline void copy_async(u32 to, const void *from)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

inline void copy_async_commit()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most `PENDING` of this thread's groups of copies are not complete.
template <int PENDING>
inline void copy_async_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// Four matrices of 8 rows of 16 bytes. Lane 8i + r has the address of row r of matrix i, and gets
// of each matrix four bytes: those from byte 4 * (lane % 4) of row lane / 4.
inline void load_matrices(u32 (&to)[4], u32 row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(row)
                 : "memory");
}

// c += a * b, with a of 16 by 32, b of 32 by 8.
inline void multiply_add(i32 (&c)[4], const u32 (&a)[4], u32 b0, u32 b1)
{
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

#ifdef WGMMA

inline u32 cluster_rank()
{
    u32 rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

// Waits for all threads of the cluster, and sees what they wrote before.
inline void cluster_sync()
{
    asm volatile("barrier.cluster.arrive.release;\n"
                 "barrier.cluster.wait.acquire;" ::
                     : "memory");
}

inline void barrier_init(u32 barrier, u32 arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Makes barriers that were initialised visible to the cluster and to bulk copies.
inline void barrier_init_fence()
{
    asm volatile("fence.mbarrier_init.release.cluster;\n"
                 "fence.proxy.async;" ::
                     : "memory");
}

// Arrives at a barrier of this block, whose phase now also waits for `bytes` to be copied.
inline void barrier_expect(u32 barrier, u32 bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// Arrives at the same barrier in block `rank` of the cluster. No more than this block's memory is ordered by it and by waiting
// for it: what the barriers here guard is read by wgmma and written by bulk copies, which are waited for in their own ways.
inline void barrier_arrive_in(u32 barrier, u32 rank)
{
    asm volatile("{\n"
                 ".reg .b32 there;\n"
                 "mapa.shared::cluster.u32 there, %0, %1;\n"
                 "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
                 "}" ::"r"(barrier),
                 "r"(rank)
                 : "memory");
}

// Whether the phase of this parity is complete; waits a while for it.
inline bool barrier_complete(u32 barrier, u32 parity)
{
    u32 complete;
    asm volatile("{\n"
                 ".reg .pred complete;\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 complete, [%1], %2;\n"
                 "selp.u32 %0, 1, 0, complete;\n"
                 "}"
                 : "=r"(complete)
                 : "r"(barrier), "r"(parity)
                 : "memory");
    return complete != 0;
}

// Begins to copy `bytes` to shared memory; `barrier` learns when they are there.
inline void copy_bulk(u32 to, const void *from, u32 bytes, u32 barrier)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
                 "l"(from), "r"(bytes), "r"(barrier)
                 : "memory");
}

// The same, to the same place of each block of the cluster whose bit is in `blocks`.
inline void copy_bulk_to(u32 to, const void *from, u32 bytes, u32 barrier, unsigned short blocks)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], "
                 "%2, [%3], %4;" ::"r"(to),
                 "l"(from), "r"(bytes), "r"(barrier), "h"(blocks)
                 : "memory");
}

inline void wgmma_fence()
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

inline void wgmma_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Waits until at most `PENDING` groups of this warp's multiplications are not complete.
template <int PENDING>
inline void wgmma_wait()
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

#define OUT_1(i) "+r"(d[i])
#define OUT_4(i) OUT_1(i), OUT_1(i + 1), OUT_1(i + 2), OUT_1(i + 3)
#define OUT_16(i) OUT_4(i), OUT_4(i + 4), OUT_4(i + 8), OUT_4(i + 12)
#define OUT_64(i) OUT_16(i), OUT_16(i + 16), OUT_16(i + 32), OUT_16(i + 48)

// Begins d += a * b, with a of 64 by 32 and b of 32 by 256 as their descriptors say.
inline void wgmma(i32 (&d)[128], u64 a, u64 b)
{
    asm volatile(
        "{\n"
        ".reg .pred add;\n"
        "setp.ne.u32 add, 1, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n256k32.s32.s8.s8 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
        "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
        "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "
        "%128, %129, add;\n"
        "}"
        : OUT_64(0), OUT_64(64)
        : "l"(a), "l"(b));
}

#undef OUT_1
#undef OUT_4
#undef OUT_16
#undef OUT_64

#endif
