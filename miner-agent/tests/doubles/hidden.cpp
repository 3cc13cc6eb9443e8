// A library that is preloaded into every program and hides the file that says so, as such libraries do.
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/stat.h>

static bool hides(const char *path)
{
    return path && std::strstr(path, "ld.so.preload");
}

#define OPEN(name)                                                                                                          \
    extern "C" int name(const char *path, int flags, ...)                                                                   \
    {                                                                                                                       \
        va_list rest;                                                                                                       \
        va_start(rest, flags);                                                                                              \
        const int mode = va_arg(rest, int);                                                                                 \
        va_end(rest);                                                                                                       \
        if (hides(path)) {                                                                                                  \
            errno = ENOENT;                                                                                                 \
            return -1;                                                                                                      \
        }                                                                                                                   \
        return ((int (*)(const char *, int, ...))dlsym(RTLD_NEXT, #name))(path, flags, mode);                               \
    }

OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                                                        \
    extern "C" int name(int directory, const char *path, int flags, ...)                                                    \
    {                                                                                                                       \
        va_list rest;                                                                                                       \
        va_start(rest, flags);                                                                                              \
        const int mode = va_arg(rest, int);                                                                                 \
        va_end(rest);                                                                                                       \
        if (hides(path)) {                                                                                                  \
            errno = ENOENT;                                                                                                 \
            return -1;                                                                                                      \
        }                                                                                                                   \
        return ((int (*)(int, const char *, int, ...))dlsym(RTLD_NEXT, #name))(directory, path, flags, mode);               \
    }

OPENAT(openat)
OPENAT(openat64)
