// Written by scripts/kernels.

/// Kernels as a driver loads them.
pub struct Artefact {
    /// Its file.
    pub name: &'static str,
    /// The lowest compute capability that it is for.
    pub lowest: (u32, u32),
    /// The highest one.
    pub highest: (u32, u32),
    /// Threads of a block of `gemm`.
    pub gemm_threads: u32,
    /// Bytes of dynamic shared memory of a block of `gemm`.
    pub gemm_shared: u32,
    /// SHA-256 of the image.
    pub sha256: &'static str,
    /// A cubin, or PTX.
    pub image: &'static [u8],
}

/// SHA-256 over the sources that the artefacts were made of.
pub const SOURCES_SHA256: &str = "d1795e86abc5f517da5ded2cd86490d91294a0387b4cee27ada6934ab26e2ff9";

/// All there are: the first that fits a device is the best one for it.
pub const ARTEFACTS: [Artefact; 7] = [
    Artefact {
        name: "sm_90a.cubin",
        lowest: (9, 0),
        highest: (9, 0),
        gemm_threads: 288,
        gemm_shared: 197696,
        sha256: "86d72700ac3ffecc7b7703bab0a5b3cc61a17fe5013f6351e92006300f5192e4",
        image: include_bytes!("sm_90a.cubin"),
    },
    Artefact {
        name: "sm_90a.ptx",
        lowest: (9, 0),
        highest: (9, 0),
        gemm_threads: 288,
        gemm_shared: 197696,
        sha256: "b9e1d4784c46eed2a6b35253ca54a75e6f6852e4c88bab2f35dccddffc288115",
        image: include_bytes!("sm_90a.ptx"),
    },
    Artefact {
        name: "sm_80.cubin",
        lowest: (8, 0),
        highest: (8, 5),
        gemm_threads: 256,
        gemm_shared: 98304,
        sha256: "559a172ce7ff058caa4ad1160d04f7c76e5c6963ef921ecbc97ba110c9644b0b",
        image: include_bytes!("sm_80.cubin"),
    },
    Artefact {
        name: "sm_86.cubin",
        lowest: (8, 6),
        highest: (8, 9),
        gemm_threads: 256,
        gemm_shared: 98304,
        sha256: "91401b162eaa574db46c953f374c3407a036ffcd9f031b7b74e4986f10c727c2",
        image: include_bytes!("sm_86.cubin"),
    },
    Artefact {
        name: "sm_100.cubin",
        lowest: (10, 0),
        highest: (10, 9),
        gemm_threads: 256,
        gemm_shared: 98304,
        sha256: "b3e79e080ec893fc861ef841556f8c3467acc5addcab9762bc7a6b056c86c082",
        image: include_bytes!("sm_100.cubin"),
    },
    Artefact {
        name: "sm_120.cubin",
        lowest: (12, 0),
        highest: (12, 9),
        gemm_threads: 256,
        gemm_shared: 98304,
        sha256: "1a802709c1a409d2e69d181ddf230ecab122cc9fb10c9262ee85cc323f638409",
        image: include_bytes!("sm_120.cubin"),
    },
    Artefact {
        name: "portable.ptx",
        lowest: (8, 0),
        highest: (99, 9),
        gemm_threads: 256,
        gemm_shared: 98304,
        sha256: "a6105177cf1b47dbfe73ef2d8ee8156b05674cff4c660f2875799d05a736116f",
        image: include_bytes!("portable.ptx"),
    },
];
