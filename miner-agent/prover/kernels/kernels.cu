// The kernels of the proofs. README.md says what each one does and how it is launched.
//
// Nothing here includes a header of CUDA's, and every instruction that C++ has no word for is a function of
// ptx.cuh, of which emulation/ptx.hpp is the double that runs on a CPU. WGMMA chooses the module for sm_90a.

#ifdef EMULATED
#include "emulation/ptx.hpp"
#else
#include "ptx.cuh"
#endif

#include "sha256.cuh"

#include "chacha.cuh"

#include "operands.cuh"

#ifdef WGMMA
#include "gemm_wgmma.cuh"
#else
#include "gemm_mma.cuh"
#endif

#include "trees.cuh"

#include "memory.cuh"
