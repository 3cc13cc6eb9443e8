// The kernels as a library for this machine: a test of what launches them calls them by name, with arguments as words of 64 bits.
#include "../kernels.cu"

#include <string>

using emulation::launch;

extern "C" void launch_by_name(const char *name, u32 grid, const u64 *args)
{
#ifdef WGMMA
    constexpr u32 CLUSTER = BLOCKS;
#else
    constexpr u32 CLUSTER = 1;
#endif
    const std::string kernel(name);
    const auto bytes = [&](u32 i) { return (u8 *)args[i]; };
    const auto words = [&](u32 i) { return (u32 *)args[i]; };
    if (kernel == "expand_operand") {
        launch(grid, 256, 0, 1, [&] {
            expand_operand((i8 *)args[0], words(1), words(2), (u32)args[3], (u32)args[4], args[5]);
        });
    } else if (kernel == "gemm") {
        launch(grid, GEMM_THREADS, GEMM_SHARED, CLUSTER, [&] {
            gemm((const i8 *)args[0], (const i8 *)args[1], (i32 *)args[2], (u32)args[3], (u32)args[4], (u32)args[5]);
        });
    } else if (kernel == "leaves") {
        launch(grid, 128, 0, 1, [&] { leaves((const i32 *)args[0], args[1], words(2)); });
    } else if (kernel == "tree_256") {
        launch(grid, 128, 0, 1, [&] { tree_256(words(0), args[1], words(2)); });
    } else if (kernel == "tree_level") {
        launch(grid, 256, 0, 1, [&] { tree_level(words(0), args[1], words(2)); });
    } else if (kernel == "fill") {
        launch(grid, 256, 0, 1, [&] { fill(words(0), words(1), args[2], args[3], (u32)args[4]); });
    } else if (kernel == "lanes") {
        launch(grid, 256, 0, 1, [&] {
            lanes(bytes(0), args[1], words(2), args[3], args[4], (u32)args[5], words(6));
        });
    } else if (kernel == "lanes_again") {
        launch(grid, 256, 0, 1, [&] {
            lanes_again(words(0), (u32)args[1], args[2], words(3), (const u64 *)args[4], (u32)args[5], args[6],
                        (u32)args[7], words(8));
        });
    } else if (kernel == "stream") {
        launch(grid, 256, 0, 1, [&] { stream(bytes(0), words(1), args[2], args[3], words(4)); });
    } else if (kernel == "stream_again") {
        launch(grid, 256, 0, 1, [&] {
            stream_again(words(0), (u32)args[1], words(2), (const u64 *)args[3], (u32)args[4], args[5], words(6));
        });
    } else {
        emulation::fail("unknown kernel: " + kernel);
    }
}
