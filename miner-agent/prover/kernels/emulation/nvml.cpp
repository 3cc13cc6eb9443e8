// The part of libnvidia-ml.so.1 that listing devices needs, for tests where there is no GPU; beside driver.cpp, whose devices it has.
//
//   EMULATED_DEVICES   how many devices there are (1)
//   EMULATED_OLD       the number of a device that is of compute capability 7.5 (none)
//   EMULATED_LOST      the number of a device that is not answered for, and EMULATED_CODE the error (15: it is lost)
#include <cstdio>
#include <cstdlib>
#include <cstring>

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

int lost(int device)
{
    return device == setting("EMULATED_LOST", -1) ? setting("EMULATED_CODE", 15) : 0;
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
    return 0;
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
}
