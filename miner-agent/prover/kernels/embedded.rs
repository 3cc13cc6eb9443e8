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
pub const SOURCES_SHA256: &str = "5fe50b8a9c85cd57abf1f07874adb84804631036377429f182ac6a0e645f8e6f";

/// All there are: the first that fits a device is the best one for it.
pub const ARTEFACTS: [Artefact; 7] = [
    Artefact {
        name: "sm_90a.cubin",
        lowest: (9, 0),
        highest: (9, 0),
        gemm_threads: 288,
        gemm_shared: 197696,
        sha256: "063bcd31d1a25f756d8bf9a6e939e6ca6f18a81bfce650ef2523ed0bd4c0c6b2",
        image: include_bytes!("sm_90a.cubin"),
    },
    Artefact {
        name: "sm_90a.ptx",
        lowest: (9, 0),
        highest: (9, 0),
        gemm_threads: 288,
        gemm_shared: 197696,
        sha256: "77bf54fa0fa492863c7025d62ba265c0663ed41147a3a549b1980a6b82fdfa58",
        image: include_bytes!("sm_90a.ptx"),
    },
    Artefact {
        name: "sm_80.cubin",
        lowest: (8, 0),
        highest: (8, 5),
        gemm_threads: 256,
        gemm_shared: 98304,
        sha256: "11a8a4a5f98b3640c8e8c2d4b3ce68a80fc7a73df5fdc93d21b2e9a23ba6472b",
        image: include_bytes!("sm_80.cubin"),
    },
    Artefact {
        name: "sm_86.cubin",
        lowest: (8, 6),
        highest: (8, 9),
        gemm_threads: 256,
        gemm_shared: 98304,
        sha256: "b64ac9a9018b58f0dd6e16ef3fb226794845d3ab6530f3a423962016e5a12ffe",
        image: include_bytes!("sm_86.cubin"),
    },
    Artefact {
        name: "sm_100.cubin",
        lowest: (10, 0),
        highest: (10, 9),
        gemm_threads: 256,
        gemm_shared: 98304,
        sha256: "74eb13d4f25abfefc3f46a1f5b466e27d10289d7ed5d237872352c20aecbdabb",
        image: include_bytes!("sm_100.cubin"),
    },
    Artefact {
        name: "sm_120.cubin",
        lowest: (12, 0),
        highest: (12, 9),
        gemm_threads: 256,
        gemm_shared: 98304,
        sha256: "34c7ce34d784aca33a21e78a6a42419032fd5fd39866ff8b624a452d131ab6ab",
        image: include_bytes!("sm_120.cubin"),
    },
    Artefact {
        name: "portable.ptx",
        lowest: (8, 0),
        highest: (99, 9),
        gemm_threads: 256,
        gemm_shared: 98304,
        sha256: "0d43bae3b2f72fdd4dfffe5e1f626f9285822967e71e7ee7af60cc93c0d15e47",
        image: include_bytes!("portable.ptx"),
    },
];
