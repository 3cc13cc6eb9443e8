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
pub const SOURCES_SHA256: &str = "49ba3dc6774ccf21118ee83bd884eb4ae77b78c852736dab7a7092183f0c862d";

/// All there are: the first that fits a device is the best one for it.
pub const ARTEFACTS: [Artefact; 7] = [
    Artefact {
        name: "sm_90a.cubin",
        lowest: (9, 0),
        highest: (9, 0),
        gemm_threads: 288,
        gemm_shared: 197696,
        sha256: "e841f93e1892a1592972d80c292f72e11a5531c69816d6966d3f0f5900fbf057",
        image: include_bytes!("sm_90a.cubin"),
    },
    Artefact {
        name: "sm_90a.ptx",
        lowest: (9, 0),
        highest: (9, 0),
        gemm_threads: 288,
        gemm_shared: 197696,
        sha256: "7a04fd9c69d656f0551ed1076d80af1d47343377f3ce171a9da9b481afa09462",
        image: include_bytes!("sm_90a.ptx"),
    },
    Artefact {
        name: "sm_80.cubin",
        lowest: (8, 0),
        highest: (8, 5),
        gemm_threads: 256,
        gemm_shared: 98304,
        sha256: "56957e846139bc756973ddcdcc4bd148cbef096a8e769aacf3ef04324fccd748",
        image: include_bytes!("sm_80.cubin"),
    },
    Artefact {
        name: "sm_86.cubin",
        lowest: (8, 6),
        highest: (8, 9),
        gemm_threads: 256,
        gemm_shared: 98304,
        sha256: "b6c01fcfd03aa9cd2b5b9be80c06f8cccd4548706e8ee18f7756d42235e0c650",
        image: include_bytes!("sm_86.cubin"),
    },
    Artefact {
        name: "sm_100.cubin",
        lowest: (10, 0),
        highest: (10, 9),
        gemm_threads: 256,
        gemm_shared: 98304,
        sha256: "a67fbdece9e9a9afa167c9551a2fef0ab23e988fb5f995a148e84c706a27e3e2",
        image: include_bytes!("sm_100.cubin"),
    },
    Artefact {
        name: "sm_120.cubin",
        lowest: (12, 0),
        highest: (12, 9),
        gemm_threads: 256,
        gemm_shared: 98304,
        sha256: "58f743b934094c940ac7c1b4f7c535947ebe9c3fb738f9a7111de3969149bb3d",
        image: include_bytes!("sm_120.cubin"),
    },
    Artefact {
        name: "portable.ptx",
        lowest: (8, 0),
        highest: (99, 9),
        gemm_threads: 256,
        gemm_shared: 98304,
        sha256: "97ed31948ddedf67e2802c7888a581ba5f6141767c56117f75420af57ceda316",
        image: include_bytes!("portable.ptx"),
    },
];
