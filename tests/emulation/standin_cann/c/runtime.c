/* Stand-in for libascendcl.so: the devices and the memory of an Atlas A2 server, on the host.
 *
 * torch_npu links the AscendCL C interface by name. With these functions in its place the unmodified wheel runs on
 * any machine with a C compiler. "Device" memory is host memory, kept apart by device so that running out of it can
 * be seen. Work is done when it is queued: a stream is never behind, so nothing here can show a race (torch_npu's own
 * TORCH_NPU_SANITIZER can) and no timing means anything.
 *
 * Every definition is compiled against the headers that the wheel ships, so that a wrong prototype does not build. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "acl/acl.h"
#include "acl/error_codes/rt_error_codes.h"
#include "errors.h"

enum {
    DEVICES = 8,         /* as many as a server has; processes share no device memory, so more cost nothing */
    ALIGNMENT = 512,     /* CANN's own: torch_npu relies on it for its blocks */
    VECTOR_CORES = 48,   /* of an Ascend 910B1 */
    CUBE_CORES = 24,
};
static const size_t DEVICE_BYTES = (size_t)4 << 30;
static const uint64_t BLOCK_MARK = 0x5354414e44494e21u;

static __thread int current_device = -1;
static __thread char error_text[4096];

/* --- errors ----------------------------------------------------------------------------------------------------- */

void standin_set_error(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error_text, sizeof error_text, format, arguments);
    va_end(arguments);
}

const char *aclGetRecentErrMsg(void) { return error_text; }

aclError aclrtPeekAtLastError(aclrtLastErrLevel level) { return ACL_SUCCESS; }

aclError aclrtGetLastError(aclrtLastErrLevel level) { return ACL_SUCCESS; }

/* --- the process and its devices -------------------------------------------------------------------------------- */

aclError aclInit(const char *config_path) { return ACL_SUCCESS; }

aclError aclFinalize(void) { return ACL_SUCCESS; }

const char *aclrtGetSocName(void) { return "Ascend910B1"; }

aclError aclsysGetVersionStr(char *package, char *version)
{
    strcpy(version, "9.1.0"); /* the CANN that torch_npu 2.13 is released with */
    return ACL_SUCCESS;
}

aclError aclrtGetDeviceCount(uint32_t *count)
{
    *count = DEVICES;
    return ACL_SUCCESS;
}

aclError aclrtSetDevice(int32_t device)
{
    if (device < 0 || device >= DEVICES) {
        standin_set_error("device %d does not exist: there are %d", device, DEVICES);
        return ACL_ERROR_RT_INVALID_DEVICEID;
    }
    current_device = device;
    return ACL_SUCCESS;
}

aclError aclrtGetDevice(int32_t *device)
{
    if (current_device < 0) {
        return ACL_ERROR_RT_CONTEXT_NULL;
    }
    *device = current_device;
    return ACL_SUCCESS;
}

aclError aclrtResetDevice(int32_t device) { return ACL_SUCCESS; }

aclError aclrtSynchronizeDevice(void) { return ACL_SUCCESS; }

aclError aclrtSynchronizeDeviceWithTimeout(int32_t timeout) { return ACL_SUCCESS; }

aclError aclrtGetPrimaryCtxState(int32_t device, uint32_t *flags, int32_t *active)
{
    *active = device == current_device;
    return ACL_SUCCESS;
}

/* A context is the address of its device's place in this array. */
static char contexts[DEVICES];

aclError aclrtGetCurrentContext(aclrtContext *context)
{
    if (current_device < 0) {
        return ACL_ERROR_RT_CONTEXT_NULL;
    }
    *context = &contexts[current_device];
    return ACL_SUCCESS;
}

aclError aclrtSetCurrentContext(aclrtContext context)
{
    current_device = (int)((char *)context - contexts);
    return ACL_SUCCESS;
}

aclError aclrtDeviceCanAccessPeer(int32_t *can, int32_t device, int32_t peer)
{
    *can = 1;
    return ACL_SUCCESS;
}

aclError aclrtDeviceEnablePeerAccess(int32_t peer, uint32_t flags) { return ACL_SUCCESS; }

aclError aclrtDeviceGetBareTgid(int32_t *pid)
{
    *pid = getpid();
    return ACL_SUCCESS;
}

aclError aclGetDeviceCapability(uint32_t device, aclDeviceInfo info, int64_t *value)
{
    *value = info == ACL_DEVICE_INFO_VECTOR_CORE_NUM ? VECTOR_CORES : CUBE_CORES;
    return ACL_SUCCESS;
}

/* --- memory ----------------------------------------------------------------------------------------------------- */

typedef struct {
    size_t size;
    int device;
    uint64_t mark;
} Block; /* stands ALIGNMENT bytes before the memory that is handed out */

static size_t used_bytes[DEVICES];
static pthread_mutex_t memory_lock = PTHREAD_MUTEX_INITIALIZER;

aclError aclrtMalloc(void **pointer, size_t size, aclrtMemMallocPolicy policy)
{
    if (current_device < 0) {
        return ACL_ERROR_RT_CONTEXT_NULL;
    }
    pthread_mutex_lock(&memory_lock);
    int fits = size <= DEVICE_BYTES - used_bytes[current_device];
    used_bytes[current_device] += fits ? size : 0;
    pthread_mutex_unlock(&memory_lock);
    Block *block = fits ? aligned_alloc(ALIGNMENT, (size + 2 * ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT) : NULL;
    if (block == NULL) {
        *pointer = NULL;
        standin_set_error("device %d has no %zu bytes left of its %zu", current_device, size, DEVICE_BYTES);
        return ACL_ERROR_RT_MEMORY_ALLOCATION;
    }
    *block = (Block){size, current_device, BLOCK_MARK};
    *pointer = (char *)block + ALIGNMENT;
    memset(*pointer, 0xff, size); /* NaN in every floating type: whoever reads what nobody wrote shall see it */
    return ACL_SUCCESS;
}

aclError aclrtMallocAlign32(void **pointer, size_t size, aclrtMemMallocPolicy policy)
{
    return aclrtMalloc(pointer, size, policy);
}

aclError aclrtFree(void *pointer)
{
    Block *block = (Block *)((char *)pointer - ALIGNMENT);
    if (pointer == NULL || block->mark != BLOCK_MARK) {
        standin_set_error("%p was not allocated on a device", pointer);
        return ACL_ERROR_RT_PARAM_INVALID;
    }
    pthread_mutex_lock(&memory_lock);
    used_bytes[block->device] -= block->size;
    pthread_mutex_unlock(&memory_lock);
    block->mark = 0;
    free(block);
    return ACL_SUCCESS;
}

aclError aclrtGetMemInfo(aclrtMemAttr attribute, size_t *unused, size_t *total)
{
    if (current_device < 0) {
        return ACL_ERROR_RT_CONTEXT_NULL;
    }
    *total = DEVICE_BYTES;
    *unused = DEVICE_BYTES - used_bytes[current_device];
    return ACL_SUCCESS;
}

aclError aclrtMallocHost(void **pointer, size_t size)
{
    return posix_memalign(pointer, ALIGNMENT, size) ? ACL_ERROR_RT_MEMORY_ALLOCATION : ACL_SUCCESS;
}

aclError aclrtFreeHost(void *pointer)
{
    free(pointer);
    return ACL_SUCCESS;
}

aclError aclrtMemcpy(void *to, size_t room, const void *from, size_t count, aclrtMemcpyKind kind)
{
    if (count > room) {
        standin_set_error("a copy of %zu bytes into %zu", count, room);
        return ACL_ERROR_RT_PARAM_INVALID;
    }
    memmove(to, from, count);
    return ACL_SUCCESS;
}

aclError aclrtMemcpyAsync(void *to, size_t room, const void *from, size_t count, aclrtMemcpyKind kind,
                          aclrtStream stream)
{
    return aclrtMemcpy(to, room, from, count, kind);
}

aclError aclrtMemset(void *pointer, size_t room, int32_t value, size_t count)
{
    if (count > room) {
        standin_set_error("%zu bytes set of %zu", count, room);
        return ACL_ERROR_RT_PARAM_INVALID;
    }
    memset(pointer, value, count);
    return ACL_SUCCESS;
}

aclError aclrtMemsetAsync(void *pointer, size_t room, int32_t value, size_t count, aclrtStream stream)
{
    return aclrtMemset(pointer, room, value, count);
}

size_t aclDataTypeSize(aclDataType type)
{
    switch (type) {
    case ACL_BOOL:
    case ACL_INT8:
    case ACL_UINT8: return 1;
    case ACL_INT16:
    case ACL_UINT16:
    case ACL_FLOAT16:
    case ACL_BF16: return 2;
    case ACL_INT64:
    case ACL_UINT64:
    case ACL_DOUBLE:
    case ACL_COMPLEX64: return 8;
    default: return 4;
    }
}
