// A driver whose devices are emulated: the part of libcuda.so that running the kernels needs, so that the code which launches
// them can be tested where there is no GPU. Compiled as a shared library of that name; README.md says how.
//
//   EMULATED_DEVICES   how many devices there are (1)
//   EMULATED_MEMORY    bytes of memory of each (64 MiB)
//   EMULATED_DRIVER    the version that it says it has (12090)
//   EMULATED_OLD       the number of a device that is of compute capability 7.5 (none)
//   EMULATED_FAULT     CODE@call or CODE@call#device: from its first time on, this call ends with this code, and what follows a fault of
//                      a context does so, too, on that device; `hang` as its code never ends, `crash` ends the process
//
// With CUDA_VISIBLE_DEVICES=MIG-… there is one, called as the first.
//
// Devices are of compute capability 8.0, or 9.0 where WGMMA is defined. What is in a stream is done as late as it may:
// when somebody waits for it, streams in an order by chance. A missing event, or memory that is used again too early, gives
// wrong results here. Launches that do not fit a kernel are refused.
#include "../kernels.cu"

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <set>
#include <tuple>
#include <unistd.h>
#include <utility>

namespace
{

using emulation::Deed;

enum Result { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_BINARY = 209, NOT_FOUND = 500, NOT_READY = 600, HANGS = -1 };

#ifdef WGMMA
constexpr int CAPABILITY[2] = {9, 0};
constexpr u32 CLUSTER = BLOCKS;
#else
constexpr int CAPABILITY[2] = {8, 0};
constexpr u32 CLUSTER = 1;
#endif

struct Event
{
    u64 asked = 0, done = 0;
};

struct Step
{
    Deed deed;
    // What it waits for, if anything.
    const Event *event = nullptr;
    u64 asked = 0;
};

using Stream = std::deque<Step>;

// How a kernel is launched, and called with parameters as the driver gets them.
struct Kernel
{
    const char *name;
    u32 threads, shared, cluster;
    std::function<Deed(void **)> bind;
    u32 allowed_shared = 48 << 10;
};

struct Context
{
    int device = 0;
};

struct Driver
{
    std::recursive_mutex mutex;
    std::set<Stream *> streams;
    std::map<u64, std::pair<size_t, int>> memory, pinned;
    std::map<int, size_t> used;
    std::vector<Context> contexts;
    Stream default_stream;
};

Driver driver;
thread_local Context *current = nullptr;

using Guard = std::lock_guard<std::recursive_mutex>;

u64 setting(const char *name, u64 otherwise)
{
    const char *text = std::getenv(name);
    return text ? std::strtoull(text, nullptr, 10) : otherwise;
}

int devices()
{
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    return visible && strncmp(visible, "MIG-", 4) == 0 ? 1 : (int)setting("EMULATED_DEVICES", 1);
}

size_t memory_of_device()
{
    return setting("EMULATED_MEMORY", 64 << 20);
}

template <typename... Arguments, size_t... I>
std::tuple<Arguments...> taken(void **parameters, std::index_sequence<I...>)
{
    return {*(Arguments *)parameters[I]...};
}

template <typename... Arguments>
std::function<Deed(void **)> binder(void (*kernel)(Arguments...))
{
    return [kernel](void **parameters) -> Deed {
        const auto arguments = taken<Arguments...>(parameters, std::index_sequence_for<Arguments...>());
        return [=] { std::apply(kernel, arguments); };
    };
}

std::vector<Kernel> &kernels()
{
    static std::vector<Kernel> all = {
        {"expand_operand", 256, 0, 1, binder(expand_operand)},
        {"gemm", GEMM_THREADS, GEMM_SHARED, CLUSTER, binder(gemm)},
        {"leaves", 128, 0, 1, binder(leaves)},
        {"tree_256", 128, 0, 1, binder(tree_256)},
        {"tree_level", 256, 0, 1, binder(tree_level)},
        {"fill", 256, 0, 1, binder(fill)},
        {"lanes", 256, 0, 1, binder(lanes)},
        {"lanes_again", 256, 0, 1, binder(lanes_again)},
        {"stream", 256, 0, 1, binder(stream)},
        {"stream_again", 256, 0, 1, binder(stream_again)},
    };
    return all;
}

// What EMULATED_FAULT says.
struct Fault
{
    std::string code, call;
    int device = -1;

    static Fault read()
    {
        const char *text = std::getenv("EMULATED_FAULT");
        const std::string all = text ? text : "";
        const size_t at = all.find('@'), number = all.find('#');
        if (at == std::string::npos) {
            return {};
        }
        const int device = number == std::string::npos ? -1 : std::atoi(all.c_str() + number + 1);
        return {all.substr(0, at), all.substr(at + 1, number == std::string::npos ? number : number - at - 1), device};
    }
};

// Devices whose context is broken, with the code that its calls end with.
std::map<int, int> broken;

// Those after which a context is of no use any more.
bool breaks_context(int code)
{
    return code == 214 || code == 220 || code == 226 || (code >= 700 && code < 800) || code == 999;
}

// Whether a call of this name for this device has a fault. Names of calls end in their version here, and need not there.
Result faulty(const char *name, int device)
{
    static const Fault fault = Fault::read();
    static std::mutex mutex;
    const std::lock_guard<std::mutex> guard(mutex);
    const auto found = broken.find(device);
    if (found != broken.end()) {
        return (Result)found->second;
    }
    const std::string call = name;
    if (fault.call.empty() || (call != fault.call && call != fault.call + "_v2") ||
        (fault.device >= 0 && fault.device != device)) {
        return SUCCESS;
    }
    if (fault.code == "crash") {
        std::raise(SIGSEGV);
    }
    const int code = std::atoi(fault.code.c_str());
    if (device >= 0 && breaks_context(code)) {
        broken[device] = code;
    }
    return fault.code == "hang" ? HANGS : (Result)code;
}

Result maybe_hang(Result result)
{
    while (result == HANGS) {
        sleep(1000);
    }
    return result;
}

// Begins a call: ends it where it has a fault.
#define CALL_ON(device)                                                                                                     \
    if (const Result fault = maybe_hang(faulty(__func__, device))) {                                                        \
        return fault;                                                                                                       \
    }
#define CALL CALL_ON(current ? current->device : -1)

Stream *stream_of(void *handle)
{
    return handle ? (Stream *)handle : &driver.default_stream;
}

bool ready(const Stream &stream)
{
    return !stream.empty() && (!stream.front().event || stream.front().event->done >= stream.front().asked);
}

// Does what is next in some stream.
void advance()
{
    std::vector<Stream *> able;
    std::copy_if(driver.streams.begin(), driver.streams.end(), std::back_inserter(able),
                 [](Stream *stream) { return ready(*stream); });
    if (ready(driver.default_stream)) {
        able.push_back(&driver.default_stream);
    }
    emulation::require(!able.empty(), "streams wait for each other");
    Stream &stream = *able[emulation::dice.below((u32)able.size())];
    const Deed deed = stream.front().deed;
    stream.pop_front();
    if (deed) {
        deed();
    }
}

void finish_stream(Stream &stream)
{
    while (!stream.empty()) {
        advance();
    }
}

void finish_all()
{
    for (Stream *stream : driver.streams) {
        finish_stream(*stream);
    }
    finish_stream(driver.default_stream);
}

Result add(void *stream, Deed deed)
{
    stream_of(stream)->push_back({std::move(deed)});
    return SUCCESS;
}

// Whether all of these bytes are in one of these allocations.
bool lies_in(const std::map<u64, std::pair<size_t, int>> &allocations, u64 at, size_t bytes)
{
    auto after = allocations.upper_bound(at);
    if (after == allocations.begin()) {
        return false;
    }
    --after;
    return at + bytes <= after->first + after->second.first;
}

constexpr size_t GUARD = 256;

u64 allocate(size_t bytes)
{
    u8 *data = (u8 *)std::aligned_alloc(256, (bytes + GUARD + 255) / 256 * 256);
    // Nobody may count on zeros.
    std::memset(data, 0xcd, bytes + GUARD);
    return (u64)data;
}

void release(u64 at, size_t bytes)
{
    for (size_t i = bytes; i < bytes + GUARD; i++) {
        emulation::require(((u8 *)at)[i] == 0xcd, "written behind the end of an allocation");
    }
    std::free((void *)at);
}

} // namespace

extern "C" {

Result cuInit(u32)
{
    CALL_ON(-1)
    return SUCCESS;
}

Result cuDriverGetVersion(int *version)
{
    CALL_ON(-1)
    *version = (int)setting("EMULATED_DRIVER", 12090);
    return SUCCESS;
}

Result cuGetErrorName(int error, const char **name)
{
    *name = error == SUCCESS ? "CUDA_SUCCESS" : "CUDA_ERROR_OF_EMULATED_DRIVER";
    return SUCCESS;
}

Result cuGetErrorString(int error, const char **text)
{
    *text = error == SUCCESS         ? "no error"
            : error == OUT_OF_MEMORY ? "out of memory"
            : error == NO_BINARY     ? "the image is for other devices"
                                     : "refused by the emulated driver";
    return SUCCESS;
}

Result cuDeviceGetCount(int *count)
{
    CALL_ON(-1)
    *count = devices();
    return SUCCESS;
}

Result cuDeviceGet(int *device, int ordinal)
{
    CALL_ON(ordinal)
    *device = ordinal;
    return ordinal >= 0 && ordinal < devices() ? SUCCESS : INVALID_VALUE;
}

Result cuDeviceGetName(char *name, int length, int)
{
    std::snprintf(name, (size_t)length, "Emulated device");
    return SUCCESS;
}

Result cuDeviceGetUuid_v2(u8 *uuid, int device)
{
    CALL_ON(device)
    std::memset(uuid, 0xe0, 16);
    uuid[15] = (u8)device;
    return SUCCESS;
}

Result cuDeviceGetUuid(u8 *uuid, int device)
{
    return cuDeviceGetUuid_v2(uuid, device);
}

Result cuDeviceTotalMem_v2(size_t *bytes, int)
{
    *bytes = memory_of_device();
    return SUCCESS;
}

Result cuDeviceGetAttribute(int *value, int attribute, int device)
{
    CALL_ON(device)
    if (device == (int)setting("EMULATED_OLD", -1) && (attribute == 75 || attribute == 76)) {
        *value = attribute == 75 ? 7 : 5;
        return SUCCESS;
    }
    const std::map<int, int> known = {{1, 1024}, {10, 32}, {16, 4}, {75, CAPABILITY[0]}, {76, CAPABILITY[1]}, {97, 232448}};
    const auto found = known.find(attribute);
    *value = found == known.end() ? 0 : found->second;
    return SUCCESS;
}

Result cuDevicePrimaryCtxRetain(void **context, int device)
{
    CALL_ON(device)
    const Guard guard(driver.mutex);
    if (driver.contexts.empty()) {
        driver.contexts.resize((size_t)devices());
        for (size_t i = 0; i < driver.contexts.size(); i++) {
            driver.contexts[i].device = (int)i;
        }
    }
    if (device < 0 || device >= devices()) {
        return INVALID_VALUE;
    }
    *context = &driver.contexts[(size_t)device];
    return SUCCESS;
}

Result cuDevicePrimaryCtxRelease_v2(int)
{
    return SUCCESS;
}

Result cuCtxSetCurrent(void *context)
{
    CALL_ON(context ? ((Context *)context)->device : -1)
    current = (Context *)context;
    return SUCCESS;
}

Result cuCtxGetCurrent(void **context)
{
    CALL
    *context = current;
    return SUCCESS;
}

Result cuCtxGetDevice(int *device)
{
    CALL
    *device = current ? current->device : 0;
    return current ? SUCCESS : INVALID_VALUE;
}

Result cuCtxSetFlags(u32)
{
    CALL
    return SUCCESS;
}

Result cuCtxSetLimit(int, size_t)
{
    CALL
    return SUCCESS;
}

Result cuCtxGetStreamPriorityRange(int *least, int *greatest)
{
    CALL
    *least = 0;
    *greatest = -5;
    return SUCCESS;
}

Result cuCtxSynchronize()
{
    CALL
    const Guard guard(driver.mutex);
    finish_all();
    return SUCCESS;
}

Result cuStreamCreate(void **stream, u32)
{
    CALL
    const Guard guard(driver.mutex);
    Stream *made = new Stream;
    driver.streams.insert(made);
    *stream = made;
    return SUCCESS;
}

Result cuStreamCreateWithPriority(void **stream, u32 flags, int)
{
    CALL
    return cuStreamCreate(stream, flags);
}

Result cuStreamSynchronize(void *stream)
{
    CALL
    const Guard guard(driver.mutex);
    finish_stream(*stream_of(stream));
    return SUCCESS;
}

Result cuStreamQuery(void *stream)
{
    CALL
    const Guard guard(driver.mutex);
    return stream_of(stream)->empty() ? SUCCESS : NOT_READY;
}

Result cuStreamDestroy_v2(void *stream)
{
    CALL
    const Guard guard(driver.mutex);
    finish_stream(*stream_of(stream));
    driver.streams.erase((Stream *)stream);
    delete (Stream *)stream;
    return SUCCESS;
}

Result cuEventCreate(void **event, u32)
{
    CALL
    *event = new Event;
    return SUCCESS;
}

Result cuEventDestroy_v2(void *event)
{
    CALL
    const Guard guard(driver.mutex);
    finish_all();
    delete (Event *)event;
    return SUCCESS;
}

Result cuEventRecord(void *handle, void *stream)
{
    CALL
    const Guard guard(driver.mutex);
    Event *event = (Event *)handle;
    const u64 asked = ++event->asked;
    return add(stream, [=] { event->done = std::max(event->done, asked); });
}

Result cuStreamWaitEvent(void *stream, void *handle, u32)
{
    CALL
    const Guard guard(driver.mutex);
    const Event *event = (Event *)handle;
    stream_of(stream)->push_back({nullptr, event, event->asked});
    return SUCCESS;
}

Result cuEventQuery(void *handle)
{
    CALL
    const Guard guard(driver.mutex);
    const Event *event = (Event *)handle;
    return event->done == event->asked ? SUCCESS : NOT_READY;
}

Result cuEventSynchronize(void *handle)
{
    CALL
    const Guard guard(driver.mutex);
    const Event *event = (Event *)handle;
    for (const u64 asked = event->asked; event->done < asked;) {
        advance();
    }
    return SUCCESS;
}

Result cuEventElapsedTime(float *ms, void *, void *)
{
    CALL
    *ms = 1;
    return SUCCESS;
}

Result cuEventElapsedTime_v2(float *ms, void *, void *)
{
    CALL
    *ms = 1;
    return SUCCESS;
}

Result cuMemGetInfo_v2(size_t *left, size_t *total)
{
    CALL
    const Guard guard(driver.mutex);
    *total = memory_of_device();
    *left = *total - driver.used[current ? current->device : 0];
    return SUCCESS;
}

Result cuMemAlloc_v2(u64 *at, size_t bytes)
{
    CALL
    const Guard guard(driver.mutex);
    const int device = current ? current->device : 0;
    if (bytes == 0 || !current) {
        return INVALID_VALUE;
    }
    if (driver.used[device] + bytes > memory_of_device()) {
        return OUT_OF_MEMORY;
    }
    driver.used[device] += bytes;
    *at = allocate(bytes);
    driver.memory[*at] = {bytes, device};
    return SUCCESS;
}

Result cuMemFree_v2(u64 at)
{
    CALL
    const Guard guard(driver.mutex);
    const auto found = driver.memory.find(at);
    if (found == driver.memory.end()) {
        return INVALID_VALUE;
    }
    finish_all();
    driver.used[found->second.second] -= found->second.first;
    release(at, found->second.first);
    driver.memory.erase(found);
    return SUCCESS;
}

Result cuMemHostAlloc(void **at, size_t bytes, u32)
{
    CALL
    const Guard guard(driver.mutex);
    *at = (void *)allocate(bytes);
    driver.pinned[(u64)*at] = {bytes, 0};
    return SUCCESS;
}

Result cuMemAllocHost_v2(void **at, size_t bytes)
{
    CALL
    return cuMemHostAlloc(at, bytes, 0);
}

Result cuMemFreeHost(void *at)
{
    CALL
    const Guard guard(driver.mutex);
    const auto found = driver.pinned.find((u64)at);
    if (found == driver.pinned.end()) {
        return INVALID_VALUE;
    }
    finish_all();
    release((u64)at, found->second.first);
    driver.pinned.erase(found);
    return SUCCESS;
}

Result cuMemcpyHtoDAsync_v2(u64 to, const void *from, size_t bytes, void *stream)
{
    CALL
    const Guard guard(driver.mutex);
    if (!lies_in(driver.memory, to, bytes)) {
        return INVALID_VALUE;
    }
    if (lies_in(driver.pinned, (u64)from, bytes)) {
        return add(stream, [=] { std::memcpy((void *)to, from, bytes); });
    }
    // What is not pinned has been read when the call returns.
    const std::vector<u8> copy((const u8 *)from, (const u8 *)from + bytes);
    return add(stream, [=] { std::memcpy((void *)to, copy.data(), bytes); });
}

Result cuMemcpyHtoD_v2(u64 to, const void *from, size_t bytes)
{
    CALL
    const Guard guard(driver.mutex);
    const Result result = cuMemcpyHtoDAsync_v2(to, from, bytes, nullptr);
    finish_stream(driver.default_stream);
    return result;
}

Result cuMemcpyDtoHAsync_v2(void *to, u64 from, size_t bytes, void *stream)
{
    CALL
    const Guard guard(driver.mutex);
    if (!lies_in(driver.memory, from, bytes)) {
        return INVALID_VALUE;
    }
    add(stream, [=] { std::memcpy(to, (const void *)from, bytes); });
    // What is not pinned has been written when the call returns.
    if (!lies_in(driver.pinned, (u64)to, bytes)) {
        finish_stream(*stream_of(stream));
    }
    return SUCCESS;
}

Result cuMemcpyDtoH_v2(void *to, u64 from, size_t bytes)
{
    CALL
    const Guard guard(driver.mutex);
    const Result result = cuMemcpyDtoHAsync_v2(to, from, bytes, nullptr);
    finish_stream(driver.default_stream);
    return result;
}

Result cuMemcpyDtoDAsync_v2(u64 to, u64 from, size_t bytes, void *stream)
{
    CALL
    const Guard guard(driver.mutex);
    if (!lies_in(driver.memory, to, bytes) || !lies_in(driver.memory, from, bytes)) {
        return INVALID_VALUE;
    }
    return add(stream, [=] { std::memmove((void *)to, (const void *)from, bytes); });
}

Result cuMemcpyDtoD_v2(u64 to, u64 from, size_t bytes)
{
    CALL
    const Guard guard(driver.mutex);
    const Result result = cuMemcpyDtoDAsync_v2(to, from, bytes, nullptr);
    finish_stream(driver.default_stream);
    return result;
}

Result cuMemsetD8Async(u64 to, u8 value, size_t bytes, void *stream)
{
    CALL
    const Guard guard(driver.mutex);
    if (!lies_in(driver.memory, to, bytes)) {
        return INVALID_VALUE;
    }
    return add(stream, [=] { std::memset((void *)to, value, bytes); });
}

Result cuMemsetD8_v2(u64 to, u8 value, size_t bytes)
{
    CALL
    const Guard guard(driver.mutex);
    const Result result = cuMemsetD8Async(to, value, bytes, nullptr);
    finish_stream(driver.default_stream);
    return result;
}

// A cubin says its architecture in its ELF header, PTX in a directive at its beginning.
Result cuModuleLoadData(void **module, const void *image)
{
    CALL
    const u8 *bytes = (const u8 *)image;
    bool fits = false;
    if (std::memcmp(bytes, "\x7f"
                           "ELF",
                    4) == 0) {
        fits = bytes[0x30] == CAPABILITY[0] * 10 + CAPABILITY[1];
    } else {
        const std::string start((const char *)image, strnlen((const char *)image, 200));
        fits = start.find(CAPABILITY[0] == 9 ? ".target sm_90a" : ".target sm_80") != std::string::npos;
    }
    *module = &driver;
    return fits ? SUCCESS : NO_BINARY;
}

Result cuModuleLoadDataEx(void **module, const void *image, u32, void *, void **)
{
    CALL
    return cuModuleLoadData(module, image);
}

Result cuModuleUnload(void *)
{
    CALL
    return SUCCESS;
}

Result cuModuleGetFunction(void **function, void *, const char *name)
{
    CALL
    for (Kernel &kernel : kernels()) {
        if (std::strcmp(kernel.name, name) == 0) {
            *function = &kernel;
            return SUCCESS;
        }
    }
    return NOT_FOUND;
}

// Attribute 8 is the largest dynamic shared memory.
Result cuFuncSetAttribute(void *function, int attribute, int value)
{
    CALL
    if (attribute == 8) {
        ((Kernel *)function)->allowed_shared = (u32)value;
    }
    return SUCCESS;
}

Result cuFuncGetAttribute(int *value, int, void *)
{
    CALL
    *value = 0;
    return SUCCESS;
}

Result cuLaunchKernel(void *function, u32 grid, u32 grid_y, u32 grid_z, u32 threads, u32 threads_y, u32 threads_z,
                      u32 shared, void *stream, void **parameters, void **extra)
{
    CALL
    const Guard guard(driver.mutex);
    const Kernel &kernel = *(Kernel *)function;
    const bool plain = grid_y == 1 && grid_z == 1 && threads_y == 1 && threads_z == 1 && !extra;
    if (!plain || grid == 0 || grid % kernel.cluster != 0 || threads != kernel.threads || shared != kernel.shared ||
        shared > kernel.allowed_shared) {
        std::fprintf(stderr, "emulated driver: %s cannot be launched with %u blocks of %u threads and %u bytes\n",
                     kernel.name, grid, threads, shared);
        return INVALID_VALUE;
    }
    const Deed body = kernel.bind(parameters);
    return add(stream, [=] { emulation::launch(grid, threads, shared, kernel.cluster, body); });
}
}
