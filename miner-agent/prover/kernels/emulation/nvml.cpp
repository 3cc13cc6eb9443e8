// The part of libnvidia-ml.so.1 that listing devices and listening to them needs, for tests where there is no GPU; beside driver.cpp,
// whose devices it has.
//
//   EMULATED_DEVICES   how many devices there are (1)
//   EMULATED_OLD       the number of a device that is of compute capability 7.5 (none)
//   EMULATED_LOST      the number of a device that is not answered for, and EMULATED_CODE the error (15: it is lost)
//   EMULATED_XIDS      errors that the driver reports, in their order, as CODE#DEVICE,CODE#DEVICE: each once all before it were heard.
//                      After 79 a device is lost
//   EMULATED_BACK      how often a device that was lost so is asked for until it is back (it never is)
//
// Who asks for lost devices a hundred times does nothing else, and is ended.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <set>
#include <unistd.h>

namespace
{

int setting(const char *name, int otherwise)
{
    const char *text = std::getenv(name);
    return text ? std::atoi(text) : otherwise;
}

// Handles are numbers from 1 on.
int number(void *device)
{
    return (int)(size_t)device - 1;
}

std::mutex mutex;
int asked_for_lost = 0;
// The device that was lost by an error of its own, and how often it was asked for since.
int fallen = -1, asked = 0;

int lost(int device)
{
    const std::lock_guard<std::mutex> guard(mutex);
    if (device == fallen && asked++ == setting("EMULATED_BACK", -1)) {
        fallen = -1;
    }
    const bool is_lost = device == fallen || device == setting("EMULATED_LOST", -1);
    if (is_lost && ++asked_for_lost > 100) {
        std::fprintf(stderr, "emulated NVML: lost devices are asked for again and again\n");
        std::abort();
    }
    return !is_lost ? 0 : device == fallen ? 15 : setting("EMULATED_CODE", 15);
}

// Devices that are listened to.
using Set = std::set<int>;

// What is left of EMULATED_XIDS.
const char *xids = std::getenv("EMULATED_XIDS");

// The next error, where it is of a device of this set; 0 where it is not.
unsigned long long next_xid(const Set &set, int &device)
{
    const std::lock_guard<std::mutex> guard(mutex);
    unsigned code = 0;
    int taken = 0;
    if (!xids || std::sscanf(xids, "%u#%d%n", &code, &device, &taken) != 2 || !set.count(device)) {
        return 0;
    }
    xids += taken + (xids[taken] == ',');
    if (code == 79) {
        fallen = device;
        asked = 0;
    }
    return code;
}

} // namespace

extern "C" {

int nvmlInit_v2()
{
    return 0;
}

int nvmlShutdown()
{
    return 0;
}

int nvmlSystemGetDriverVersion(char *version, unsigned length)
{
    std::snprintf(version, length, "570.195.03");
    return 0;
}

int nvmlDeviceGetCount_v2(unsigned *count)
{
    *count = (unsigned)setting("EMULATED_DEVICES", 1);
    return 0;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device)
{
    *device = (void *)(size_t)(index + 1);
    return lost((int)index);
}

struct Memory
{
    unsigned version;
    unsigned long long total, reserved, free, used;
};

int nvmlDeviceGetMemoryInfo_v2(void *device, Memory *memory)
{
    memory->total = memory->free = 64 << 20;
    memory->reserved = memory->used = 0;
    return lost(number(device));
}

int nvmlDeviceGetUUID(void *device, char *uuid, unsigned length)
{
    std::snprintf(uuid, length, "GPU-e0e0e0e0-e0e0-e0e0-e0e0-e0e0e0e0e0%02x", number(device));
    return lost(number(device));
}

int nvmlDeviceGetName(void *device, char *name, unsigned length)
{
    std::snprintf(name, length, number(device) == setting("EMULATED_OLD", -1) ? "Tesla T4" : "Emulated device");
    return lost(number(device));
}

int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor)
{
    const bool old = number(device) == setting("EMULATED_OLD", -1);
    *major = old ? 7 : 8;
    *minor = old ? 5 : 0;
    return lost(number(device));
}

// 3: it knows no MIG.
int nvmlDeviceGetMigMode(void *, unsigned *, unsigned *)
{
    return 3;
}

int nvmlEventSetCreate(Set **set)
{
    *set = new Set;
    return 0;
}

int nvmlEventSetFree(Set *set)
{
    delete set;
    return 0;
}

int nvmlDeviceRegisterEvents(void *device, unsigned long long, Set *set)
{
    set->insert(number(device));
    return lost(number(device));
}

struct EventData
{
    void *device;
    unsigned long long type, data;
    unsigned gpu_instance, compute_instance;
};

// 8 is an Xid; 10: nothing was reported in time.
int nvmlEventSetWait_v2(const Set *set, EventData *event, unsigned timeout_ms)
{
    for (unsigned waited_ms = 0; waited_ms < timeout_ms; waited_ms += 10) {
        for (const int device : *set) {
            if (const int error = lost(device)) {
                return error;
            }
        }
        int device = 0;
        if (const unsigned long long code = next_xid(*set, device)) {
            *event = {(void *)(size_t)(device + 1), 8, code, 0, 0};
            return 0;
        }
        usleep(10'000);
    }
    return 10;
}
}
