"""Compiles the kernels; scripts/kernels calls it with the paths of libnvrtc, ptxas, and the oldest ptxas.

C++ becomes PTX, once for all devices and once for sm_90a, and PTX becomes a cubin for each architecture that
is listed here. Ends with an error when registers are spilled, or when wgmmas would be kept apart.
"""

import ctypes
import hashlib
import pathlib
import re
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent

# The version of PTX that drivers from 525 on (CUDA 12.0) know. NVRTC writes its own, later one, whatever the
# source needs; nothing here needs more than 8.0, which the oldest ptxas confirms.
PTX_VERSION = "8.0"

OPTIONS = ["--device-as-default-execution-space", "--std=c++17"]

# PTX: name, architecture, more options.
PORTABLE = ("portable", "compute_80", [])
HOPPER = ("sm_90a", "compute_90a", ["-DWGMMA"])

# What is embedded: name, PTX it is made of, architecture (None: the PTX itself), and the lowest and highest compute capability that
# it is for. The first that fits a device is the best one.
ARTEFACTS = [
    ("sm_90a.cubin", HOPPER, "sm_90a", (9, 0), (9, 0)),
    ("sm_90a.ptx", HOPPER, None, (9, 0), (9, 0)),
    ("sm_80.cubin", PORTABLE, "sm_80", (8, 0), (8, 5)),
    ("sm_86.cubin", PORTABLE, "sm_86", (8, 6), (8, 9)),
    ("sm_100.cubin", PORTABLE, "sm_100", (10, 0), (10, 9)),
    ("sm_120.cubin", PORTABLE, "sm_120", (12, 0), (12, 9)),
    ("portable.ptx", PORTABLE, None, (8, 0), (99, 9)),
]

# Threads of a block of `gemm`, and its dynamic shared memory.
GEMM = {PORTABLE[0]: (256, 98304), HOPPER[0]: (288, 197696)}


def sources():
    return sorted([HERE / "kernels.cu", HERE / "compile.py", *HERE.glob("*.cuh")], key=lambda path: path.name)


def sources_sha256():
    """Over each file's name and bytes, with their lengths before them."""
    digest = hashlib.sha256()
    for path in sources():
        for part in (path.name.encode(), path.read_bytes()):
            digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


class Compiler:
    def __init__(self, library):
        self.nvrtc = ctypes.CDLL(library)

    def must(self, result, what):
        if result != 0:
            sys.exit(f"nvrtc: {what} failed with {result}")

    def text(self, program, name):
        size = ctypes.c_size_t()
        self.must(getattr(self.nvrtc, f"nvrtcGet{name}Size")(program, ctypes.byref(size)), name)
        text = ctypes.create_string_buffer(size.value)
        self.must(getattr(self.nvrtc, f"nvrtcGet{name}")(program, text), name)
        return text.value.decode()

    def ptx(self, architecture, options):
        headers = sorted(HERE.glob("*.cuh"))
        strings = lambda values: (ctypes.c_char_p * len(values))(*values)
        program = ctypes.c_void_p()
        result = self.nvrtc.nvrtcCreateProgram(
            ctypes.byref(program), (HERE / "kernels.cu").read_bytes(), b"kernels.cu", len(headers),
            strings([path.read_bytes() for path in headers]), strings([path.name.encode() for path in headers]),
        )
        self.must(result, "nvrtcCreateProgram")
        arguments = [option.encode() for option in [*OPTIONS, f"--gpu-architecture={architecture}", *options]]
        result = self.nvrtc.nvrtcCompileProgram(program, len(arguments), strings(arguments))
        log = self.text(program, "ProgramLog").strip("\0\n ")
        if log:
            print(log, file=sys.stderr)
        self.must(result, "nvrtcCompileProgram")
        return self.text(program, "PTX")


def plain(ptx):
    """PTX without comments, for every driver from 525 on."""
    ptx = re.sub(r"^\.version .*$", f".version {PTX_VERSION}", ptx, count=1, flags=re.MULTILINE)
    lines = (re.sub(r"\s*//.*$", "", line).strip() for line in ptx.splitlines())
    return "\n".join(line for line in lines if line) + "\n"


def assemble(ptxas, architecture, ptx, out, may_spill=False):
    """Makes a cubin; gives registers by kernel."""
    done = subprocess.run(
        [ptxas, "--verbose", f"--gpu-name={architecture}", ptx, "--output-file", out], capture_output=True, text=True
    )
    log = done.stdout + done.stderr
    spills = [int(count) for count in re.findall(r"(\d+) bytes (?:stack frame|spill stores|spill loads)", log)]
    if done.returncode != 0 or (any(spills) and not may_spill) or "Potential Performance Loss" in log:
        sys.exit(f"{ptxas} for {architecture}:\n{log}")
    return dict(re.findall(r"Compiling entry function '(\w+)'.*?Used (\d+) registers", log, re.DOTALL))


def rust(artefacts):
    entries = []
    for name, (source, _, _), _, low, high in ARTEFACTS:
        threads, shared = GEMM[source]
        digest = hashlib.sha256(artefacts[name]).hexdigest()
        entries.append(
            f"    Artefact {{\n"
            f'        name: "{name}",\n'
            f"        lowest: {low},\n"
            f"        highest: {high},\n"
            f"        gemm_threads: {threads},\n"
            f"        gemm_shared: {shared},\n"
            f'        sha256: "{digest}",\n'
            f'        image: include_bytes!("{name}"),\n'
            f"    }},\n"
        )
    return (
        "// Written by scripts/kernels.\n\n"
        "/// Kernels as a driver loads them.\n"
        "pub struct Artefact {\n"
        "    /// Its file.\n    pub name: &'static str,\n"
        "    /// The lowest compute capability that it is for.\n    pub lowest: (u32, u32),\n"
        "    /// The highest one.\n    pub highest: (u32, u32),\n"
        "    /// Threads of a block of `gemm`.\n    pub gemm_threads: u32,\n"
        "    /// Bytes of dynamic shared memory of a block of `gemm`.\n    pub gemm_shared: u32,\n"
        "    /// SHA-256 of the image.\n    pub sha256: &'static str,\n"
        "    /// A cubin, or PTX.\n    pub image: &'static [u8],\n"
        "}\n\n"
        "/// SHA-256 over the sources that the artefacts were made of.\n"
        f'pub const SOURCES_SHA256: &str = "{sources_sha256()}";\n\n'
        "/// All there are: the first that fits a device is the best one for it.\n"
        f"pub const ARTEFACTS: [Artefact; {len(ARTEFACTS)}] = [\n{''.join(entries)}];\n"
    )


def main():
    library, ptxas, oldest = sys.argv[1:]
    compiler = Compiler(library)
    artefacts, table = {}, {}
    with tempfile.TemporaryDirectory() as directory:
        there = pathlib.Path(directory)
        for name, architecture, options in (PORTABLE, HOPPER):
            ptx = plain(compiler.ptx(architecture, options))
            (there / f"{name}.ptx").write_text(ptx)
            assemble(oldest, architecture.replace("compute", "sm"), there / f"{name}.ptx", there / "ignored", may_spill=True)
        for name, (source, _, _), architecture, _, _ in ARTEFACTS:
            if architecture:
                table[architecture] = assemble(ptxas, architecture, there / f"{source}.ptx", there / name)
            artefacts[name] = (there / name).read_bytes()
    for old in [*HERE.glob("*.cubin"), *HERE.glob("*.ptx")]:
        old.unlink()
    for name, image in artefacts.items():
        (HERE / name).write_bytes(image)
        print(f"{name}: {len(image)} bytes")
    (HERE / "embedded.rs").write_text(rust(artefacts))
    print("registers:")
    for kernel in sorted(next(iter(table.values()))):
        print(f"| `{kernel}` | " + " | ".join(registers[kernel] for registers in table.values()) + " |")
    print("columns:", *table)


if __name__ == "__main__":
    main()
