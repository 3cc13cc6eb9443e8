#!/usr/bin/env python3
"""Runs the embedded kernels on the first GPU of this machine: compares them with vectors.json, and says how fast they are.

    ./measure.py                       compares and measures with the artefact that is best for the device
    ./measure.py --artefact NAME       with another one
    ./measure.py --check               compares only
    ./measure.py --library PATH        a driver of that name, such as the emulated one

Needs the driver and nothing else. Times are those of the device, between events, best of three.
"""

import argparse
import ctypes
import hashlib
import json
import pathlib
import struct

import compile as build

HERE = pathlib.Path(__file__).resolve().parent
MAJOR, MINOR, MULTIPROCESSORS, SHARED_MEMORY = 75, 76, 16, 8


def blocks(count, each):
    return (count + each - 1) // each


class Device:
    def __init__(self, library):
        self.cuda = ctypes.CDLL(library)
        self.call("cuInit", 0)
        handle = ctypes.c_int()
        self.call("cuDeviceGet", ctypes.byref(handle), 0)
        self.handle = handle.value
        context = ctypes.c_void_p()
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self.handle)
        self.call("cuCtxSetCurrent", context)
        name = ctypes.create_string_buffer(100)
        self.call("cuDeviceGetName", name, 100, self.handle)
        self.name = name.value.decode()
        self.capability = (self.attribute(MAJOR), self.attribute(MINOR))
        # What is hashed goes before what is multiplied.
        self.streams = [self.made("cuStreamCreateWithPriority", 1, priority) for priority in (0, -1)]
        self.events = [self.made("cuEventCreate", 0) for _ in range(2)]

    def call(self, name, *arguments):
        result = getattr(self.cuda, name)(*arguments)
        if result != 0:
            raise SystemExit(f"{name} failed with {result}")

    def made(self, name, *arguments):
        handle = ctypes.c_void_p()
        self.call(name, ctypes.byref(handle), *arguments)
        return handle

    def attribute(self, number):
        value = ctypes.c_int()
        self.call("cuDeviceGetAttribute", ctypes.byref(value), number, self.handle)
        return value.value

    def free(self):
        left, total = ctypes.c_size_t(), ctypes.c_size_t()
        self.call("cuMemGetInfo_v2", ctypes.byref(left), ctypes.byref(total))
        return left.value

    def load(self, name):
        low, high, source = next((a[3], a[4], a[1][0]) for a in build.ARTEFACTS if a[0] == name)
        if not low <= self.capability <= high:
            raise SystemExit(f"{name} is not for devices of compute capability {self.capability}")
        # PTX ends with a zero.
        self.module = self.made("cuModuleLoadData", (HERE / name).read_bytes() + b"\0")
        self.threads, self.shared = build.GEMM[source]
        self.call("cuFuncSetAttribute", self.function("gemm"), SHARED_MEMORY, self.shared)

    def function(self, name):
        return self.made("cuModuleGetFunction", self.module, name.encode())

    def allocate(self, size):
        at = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(at), ctypes.c_size_t(size))
        return Memory(self, at.value, size)

    def put(self, data):
        memory = self.allocate(len(data))
        self.call("cuMemcpyHtoD_v2", ctypes.c_uint64(memory.at), data, ctypes.c_size_t(len(data)))
        return memory

    def launch(self, name, grid, *arguments, stream=0):
        """Arguments are memory, or numbers with their sizes: ("u32", 5)."""
        threads = {"gemm": self.threads, "leaves": 128, "tree_256": 128}.get(name, 256)
        values = []
        for argument in arguments:
            kind, value = argument if isinstance(argument, tuple) else ("u64", argument.at)
            values.append({"u32": ctypes.c_uint32, "u64": ctypes.c_uint64}[kind](value))
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        shared = self.shared if name == "gemm" else 0
        self.call("cuLaunchKernel", self.function(name), grid, 1, 1, threads, 1, 1, shared, self.streams[stream], pointers, None)

    def order(self, event, first, then):
        """What is in one stream from now on comes after what is in another one until now."""
        self.call("cuEventRecord", event, self.streams[first])
        self.call("cuStreamWaitEvent", self.streams[then], event, 0)

    def seconds(self, work):
        times = []
        for _ in range(3):
            self.call("cuEventRecord", self.events[0], self.streams[0])
            work()
            self.call("cuEventRecord", self.events[1], self.streams[0])
            self.call("cuEventSynchronize", self.events[1])
            ms = ctypes.c_float()
            self.call("cuEventElapsedTime", ctypes.byref(ms), *self.events)
            times.append(ms.value / 1000)
        return min(times)


class Memory:
    def __init__(self, device, at, size):
        self.device, self.at, self.size = device, at, size

    def part(self, start):
        return Memory(None, self.at + start, self.size - start)

    def get(self):
        data = ctypes.create_string_buffer(self.size)
        self.device.call("cuCtxSynchronize")
        self.device.call("cuMemcpyDtoH_v2", data, ctypes.c_uint64(self.at), ctypes.c_size_t(self.size))
        return data.raw

    def __del__(self):
        if self.device:
            self.device.call("cuMemFree_v2", ctypes.c_uint64(self.at))


def u32(value):
    return ("u32", value)


def u64(value):
    return ("u64", value)


def padded(k):
    return blocks(k, 128) * 128


def expand(device, operand, seed, rows, k, stream, which=None):
    device.launch(
        "expand_operand", rows * padded(k) // 16384, operand, seed, which or u64(0), u32(rows), u32(k), u64(stream)
    )


def tree(device, below, count):
    """Level 8 and the root."""
    left = blocks(count, 256)
    level8 = device.allocate(left * 32)
    device.launch("tree_256", left, below, u64(count), level8)
    level, root = level8, level8
    while left > 1:
        root = device.allocate(blocks(left, 2) * 32)
        device.launch("tree_level", blocks(blocks(left, 2), 256), level, u64(left), root)
        level, left = root, blocks(left, 2)
    return level8, root


class Round:
    """A round of the GEMM as README.md has it: a band is hashed while the next one is multiplied."""

    def __init__(self, device, m, n, k, band):
        self.device, self.m, self.n, self.k, self.band = device, m, n, k, band
        self.a, self.b = device.allocate(m * padded(k)), device.allocate(n * padded(k))
        self.c = [device.allocate(band * n * 4) for _ in range(2)]
        self.hashes = [device.allocate(band * n // 8) for _ in range(2)]
        self.level8 = device.allocate(m * n // 256 // 256 * 32)
        self.levels = [device.allocate(m * n // 256 // 256 * 32) for _ in range(2)]
        self.multiplied = device.made("cuEventCreate", 0)
        self.hashed = [device.made("cuEventCreate", 0) for _ in range(2)]

    def run(self, seed):
        expand(self.device, self.a, seed, self.m, self.k, 0)
        expand(self.device, self.b, seed, self.n, self.k, 2**32)
        for number, row in enumerate(range(0, self.m, self.band)):
            self.run_band(number % 2, row, min(self.band, self.m - row))
        for event in self.hashed:
            self.device.call("cuStreamWaitEvent", self.device.streams[0], event, 0)
        level, left = self.level8, self.level8.size // 32
        while left > 1:
            above = self.levels[level is self.levels[0]]
            self.device.launch("tree_level", blocks(blocks(left, 2), 256), level, u64(left), above)
            level, left = above, blocks(left, 2)
        return level

    def run_band(self, which, row, rows):
        device, n, count = self.device, self.n, rows * self.n // 256
        c, hashes = self.c[which], self.hashes[which]
        # The last band that was here has been hashed.
        device.call("cuStreamWaitEvent", device.streams[0], self.hashed[which], 0)
        part = self.a.part(row * padded(self.k))
        device.launch("gemm", rows // 128 * (n // 256), part, self.b, c, u32(rows), u32(n), u32(self.k))
        device.order(self.multiplied, 0, 1)
        device.launch("leaves", blocks(count, 128), c, u64(count), hashes, stream=1)
        level8 = self.level8.part(row * n // 65536 * 32)
        device.launch("tree_256", count // 256, hashes, u64(count), level8, stream=1)
        device.call("cuEventRecord", self.hashed[which], device.streams[1])


def digest(data):
    return hashlib.sha256(data).hexdigest()


def check_gemm(device, case):
    m, n, k, picked = case["m"], case["n"], case["k"], case["picked_rows"]
    seed = device.put(bytes.fromhex(case["seed"]))
    a, b, c = device.allocate(m * padded(k)), device.allocate(n * padded(k)), device.allocate(m * n * 4)
    expand(device, a, seed, m, k, 0)
    expand(device, b, seed, n, k, 2**32)
    device.launch("gemm", m // 128 * (n // 256), a, b, c, u32(m), u32(n), u32(k))
    hashes = device.allocate(m * n // 8)
    device.launch("leaves", blocks(m * n // 256, 128), c, u64(m * n // 256), hashes)
    level8, root = tree(device, hashes, m * n // 256)
    yield "c", digest(c.get()) == case["c_sha256"]
    yield "leaves", digest(hashes.get()) == case["leaves_sha256"]
    yield "level 8", level8.get().hex() == "".join(case["level8"])
    yield "root", root.get().hex() == case["root"]
    which = device.put(struct.pack("<256I", *(picked + [0] * (256 - len(picked)))))
    few, there = device.allocate(256 * padded(k)), device.allocate(256 * n * 4)
    expand(device, few, seed, 256, k, 0, which)
    device.launch("gemm", 2 * (n // 256), few, b, there, u32(256), u32(n), u32(k))
    whole = Round(device, m, n, k, 256)
    yield "root in bands", whole.run(seed).get()[:32].hex() == case["root"]
    yield "picked rows", digest(there.get()[: len(picked) * n * 4]) == case["picked_c_sha256"]


def filled(device, seed, count, depth):
    data = device.allocate(count * 32)
    device.launch("fill", blocks(count, 256), data, seed, u64(0), u64(count), u32(depth))
    return data


def check_lanes(device, case):
    count, reads, total, depth = case["lanes"], case["reads"], case["blocks"], case["depth"]
    fill_seed, seed = device.put(bytes.fromhex(case["fill_seed"])), device.put(bytes.fromhex(case["seed"]))
    data, hashes = filled(device, fill_seed, total, depth), device.allocate(count * 32)
    device.launch("lanes", blocks(count, 256), data, u64(total), seed, u64(0), u64(count), u32(reads), hashes)
    yield "leaves", digest(hashes.get()) == case["leaves_sha256"]
    yield "root", tree(device, hashes, count)[1].get().hex() == case["root"]
    subtrees = blocks(count, 256)
    which, again = device.put(struct.pack(f"<{subtrees}Q", *range(subtrees))), device.allocate(subtrees * 8192)
    device.launch(
        "lanes_again", subtrees, fill_seed, u32(depth), u64(total), seed, which, u32(subtrees), u64(count), u32(reads), again
    )
    yield "leaves again", digest(again.get()[: count * 32]) == case["leaves_sha256"]


def check_stream(device, case):
    first, depth = case["first"], case["depth"]
    count = first + case["chunks"]
    fill_seed, seed = device.put(bytes.fromhex(case["fill_seed"])), device.put(bytes.fromhex(case["seed"]))
    data, hashes = filled(device, fill_seed, count * 2048, depth), device.allocate(count * 32)
    device.launch("stream", blocks(count, 32), data, seed, u64(0), u64(count), hashes)
    yield "leaves", digest(hashes.get()) == case["leaves_sha256"]
    yield "root", tree(device, hashes, count)[1].get().hex() == case["root"]
    which, again = device.put(struct.pack("<Q", 0)), device.allocate(8192)
    device.launch("stream_again", 8, fill_seed, u32(depth), seed, which, u32(1), u64(count), again)
    yield "leaves again", digest(again.get()[: count * 32]) == case["leaves_sha256"]


def check_fill(device, case):
    data = filled(device, device.put(bytes.fromhex(case["seed"])), case["blocks"], case["depth"])
    yield "fill", digest(data.get()) == case["fill_sha256"]


def check(device):
    vectors = json.loads((HERE / "vectors.json").read_text())
    wrong = 0
    for kind, checks in (("gemm", check_gemm), ("fill", check_fill), ("lanes", check_lanes), ("stream", check_stream)):
        for number, case in enumerate(vectors[kind]):
            for what, right in checks(device, case):
                wrong += not right
                if not right:
                    print(f"{kind} {number}: {what} is WRONG")
    print("all results are those of the reference" if wrong == 0 else f"{wrong} results are wrong")
    return wrong == 0


def measure(device):
    seed = device.put(bytes(range(32)))
    m = n = 16384
    k = 65536
    a, b, band = device.allocate(m * k), device.allocate(n * k), 2048
    c, hashes, count = device.allocate(band * n * 4), device.allocate(band * n // 8), band * n // 256
    gemm = lambda: device.launch("gemm", band // 128 * (n // 256), a, b, c, u32(band), u32(n), u32(k))
    device.seconds(lambda: expand(device, b, seed, n, k, 2**32))
    seconds = device.seconds(lambda: expand(device, a, seed, m, k, 0))
    print(f"operands: {m * k / seconds / 1e9:.0f} GB/s")
    alone = device.seconds(gemm)
    print(f"gemm: {2 * band * n * k / alone / 1e12:.1f} TOPS without hashing")
    hashing = device.seconds(lambda: device.launch("leaves", blocks(count, 128), c, u64(count), hashes))
    print(f"leaves: {count * 17 / hashing / 1e9:.2f} billion compressions/s, {100 * hashing / alone:.1f} % of gemm")
    del a, b, c, hashes
    for band in (1024, 2048, 4096, 8192):
        whole = Round(device, m, n, k, band)
        seconds = device.seconds(lambda: whole.run(seed))
        rate = 2 * m * n * k / seconds / 1e12
        print(f"round in bands of {band}: {rate:.1f} TOPS with operands and all hashing, {seconds * 1000:.1f} ms")
        del whole
    measure_memory(device, seed)


def measure_memory(device, seed):
    chunks = (device.free() - (2 << 30)) // 65536
    total, depth, lanes, reads = chunks * 2048, 8, 1 << 21, 256
    data = device.allocate(total * 32)
    seconds = device.seconds(
        lambda: device.launch("fill", blocks(total, 256), data, seed, u64(0), u64(total), u32(depth))
    )
    print(f"fill: {total * depth / seconds / 1e9:.2f} billion hashes/s over {total * 32 / 2**30:.1f} GiB")
    hashes = device.allocate(max(lanes, chunks) * 32)
    seconds = device.seconds(
        lambda: device.launch("lanes", blocks(lanes, 256), data, u64(total), seed, u64(0), u64(lanes), u32(reads), hashes)
    )
    print(f"lanes: {lanes * reads / seconds / 1e9:.2f} billion reads/s")
    seconds = device.seconds(lambda: device.launch("stream", blocks(chunks, 32), data, seed, u64(0), u64(chunks), hashes))
    print(f"stream: {total * 32 / seconds / 1e9:.0f} GB/s")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--artefact")
    parser.add_argument("--library", default="libcuda.so.1")
    parser.add_argument("--check", action="store_true")
    wanted = parser.parse_args()
    device = Device(wanted.library)
    fitting = [name for name, _, _, low, high in build.ARTEFACTS if low <= device.capability <= high]
    artefact = wanted.artefact or (fitting or [None])[0]
    if not artefact:
        raise SystemExit(f"nothing fits compute capability {device.capability}")
    device.load(artefact)
    multiprocessors = device.attribute(MULTIPROCESSORS)
    print(f"{device.name}, compute capability {device.capability}, {multiprocessors} multiprocessors, {artefact}")
    if not check(device):
        raise SystemExit(1)
    if not wanted.check:
        measure(device)


if __name__ == "__main__":
    main()
