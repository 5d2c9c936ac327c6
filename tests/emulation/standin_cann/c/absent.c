/* Parts of CANN that torch_npu links or looks up but that evocore never uses: profiling, dumps, virtual memory, graph
 * capture and the operators of the old "aclop" interface. Settings are accepted and ignored; whatever would have to
 * do something says so and fails. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "acl/acl.h"
#include "acl/acl_dump.h"
#include "acl/acl_op_compiler.h"
#include "acl/error_codes/rt_error_codes.h"
#include "errors.h"
#include "profiling/aprof_pub.h"

static aclError refuse(const char *what)
{
    standin_set_error("the stand-in for CANN has no %s", what);
    return ACL_ERROR_RT_FEATURE_NOT_SUPPORT;
}

/* --- settings --------------------------------------------------------------------------------------------------- */

size_t aclGetCompileoptSize(aclCompileOpt option) { return sizeof "disable"; }

aclError aclGetCompileopt(aclCompileOpt option, char *value, size_t length)
{
    snprintf(value, length, "disable"); /* operators are not compiled at run time: the default of this chip */
    return ACL_SUCCESS;
}

aclError aclSetCompileopt(aclCompileOpt option, const char *value) { return ACL_SUCCESS; }

aclError aclrtSetDeviceSatMode(aclrtFloatOverflowMode mode) { return ACL_SUCCESS; }

aclError aclrtSetOpExecuteTimeOut(uint32_t timeout) { return ACL_SUCCESS; }

aclError aclrtSetOpWaitTimeout(uint32_t timeout) { return ACL_SUCCESS; }

static int64_t parameters[16]; /* such as whether results must be the same bits; here they always are */

aclError aclrtSetSysParamOpt(aclSysParamOpt option, int64_t value)
{
    parameters[option % 16] = value;
    return ACL_SUCCESS;
}

aclError aclrtCtxSetSysParamOpt(aclSysParamOpt option, int64_t value) { return aclrtSetSysParamOpt(option, value); }

aclError aclrtGetSysParamOpt(aclSysParamOpt option, int64_t *value)
{
    *value = parameters[option % 16];
    return ACL_SUCCESS;
}

aclError aclrtSetStreamFailureMode(aclrtStream stream, uint64_t mode) { return ACL_SUCCESS; }

/* --- dumps and profiling ---------------------------------------------------------------------------------------- */

aclError aclmdlInitDump(void) { return ACL_SUCCESS; }

aclError aclmdlSetDump(const char *path) { return ACL_SUCCESS; }

aclError aclmdlFinalizeDump(void) { return ACL_SUCCESS; }

void aclAppLog(aclLogLevel level, const char *function, const char *file, uint32_t line, const char *format, ...) {}

uint64_t MsprofGetHashId(const char *text, size_t length) { return 0; }

int32_t MsprofRegisterCallback(uint32_t module, ProfCommandHandle handle) { return 0; }

int32_t MsprofReportAdditionalInfo(uint32_t flag, const VOID_PTR data, uint32_t length) { return 0; }

int32_t MsprofReportApi(uint32_t flag, const struct MsprofApi *api) { return 0; }

int32_t MsprofReportCompactInfo(uint32_t flag, const VOID_PTR data, uint32_t length) { return 0; }

uint64_t MsprofSysCycleTime(void) { return 0; }

/* --- graph capture: never under way ----------------------------------------------------------------------------- */

aclError aclmdlRICaptureGetInfo(aclrtStream stream, aclmdlRICaptureStatus *status, aclmdlRI *model)
{
    *status = ACL_MODEL_RI_CAPTURE_STATUS_NONE;
    return ACL_SUCCESS;
}

/* --- virtual and shared memory ---------------------------------------------------------------------------------- */

aclError aclrtReserveMemAddress(void **pointer, size_t size, size_t alignment, void *expected, uint64_t flags)
{
    return refuse("virtual memory");
}

aclError aclrtReleaseMemAddress(void *pointer) { return refuse("virtual memory"); }

aclError aclrtMallocPhysical(aclrtDrvMemHandle *handle, size_t size, const aclrtPhysicalMemProp *property,
                             uint64_t flags)
{
    return refuse("virtual memory");
}

aclError aclrtFreePhysical(aclrtDrvMemHandle handle) { return refuse("virtual memory"); }

aclError aclrtMapMem(void *pointer, size_t size, size_t offset, aclrtDrvMemHandle handle, uint64_t flags)
{
    return refuse("virtual memory");
}

aclError aclrtUnmapMem(void *pointer) { return refuse("virtual memory"); }

aclError aclrtMemExportToShareableHandle(aclrtDrvMemHandle handle, aclrtMemHandleType type, uint64_t flags,
                                         uint64_t *shared)
{
    return refuse("device memory shared by processes");
}

aclError aclrtMemImportFromShareableHandle(uint64_t shared, int32_t device, aclrtDrvMemHandle *handle)
{
    return refuse("device memory shared by processes");
}

aclError aclrtMemSetPidToShareableHandle(uint64_t shared, int32_t *pids, size_t count)
{
    return refuse("device memory shared by processes");
}

/* --- operators that are launched by name or as a binary --------------------------------------------------------- */

aclError aclrtBinaryLoadFromData(const void *data, size_t length, const aclrtBinaryLoadOptions *options,
                                 aclrtBinHandle *handle)
{
    return refuse("operator binaries");
}

aclError aclrtBinaryGetFunction(const aclrtBinHandle handle, const char *name, aclrtFuncHandle *function)
{
    return refuse("operator binaries");
}

aclError aclrtGetFunctionAddr(aclrtFuncHandle function, void **cube, void **vector)
{
    return refuse("operator binaries");
}

/* These four are of the driver and have no public header; torch_npu takes their addresses for compiled graphs. */
int rtDevBinaryRegister(void) { return refuse("operator binaries"); }

int rtFunctionRegister(void) { return refuse("operator binaries"); }

int rtKernelLaunch(void) { return refuse("operator binaries"); }

int rtGetC2cCtrlAddr(void) { return refuse("operator binaries"); }

aclError aclopCompileAndExecute(const char *name, int inputs, const aclTensorDesc *const input_types[],
                                const aclDataBuffer *const input_data[], int outputs,
                                const aclTensorDesc *const output_types[], aclDataBuffer *const output_data[],
                                const aclopAttr *attributes, aclopEngineType engine, aclopCompileType compile,
                                const char *path, aclrtStream stream)
{
    standin_set_error("the stand-in for CANN has no aclop kernel %s: the operator has no aclnn form in torch_npu",
                      name);
    return ACL_ERROR_RT_FEATURE_NOT_SUPPORT;
}

/* What describes the arguments of the above; torch_npu fills it before it asks for the execution that fails. */
static char description[64];

aclTensorDesc *aclCreateTensorDesc(aclDataType type, int count, const int64_t *sizes, aclFormat format)
{
    return (aclTensorDesc *)description;
}

void aclDestroyTensorDesc(const aclTensorDesc *desc) {}

aclDataBuffer *aclCreateDataBuffer(void *data, size_t size) { return (aclDataBuffer *)description; }

aclError aclDestroyDataBuffer(const aclDataBuffer *buffer) { return ACL_SUCCESS; }

aclDataType aclGetTensorDescType(const aclTensorDesc *desc) { return ACL_FLOAT; }

aclFormat aclGetTensorDescFormat(const aclTensorDesc *desc) { return ACL_FORMAT_ND; }

size_t aclGetTensorDescNumDims(const aclTensorDesc *desc) { return 0; }

aclError aclGetTensorDescDimV2(const aclTensorDesc *desc, size_t index, int64_t *size)
{
    return refuse("aclop shapes");
}

aclError aclSetTensorFormat(aclTensorDesc *desc, aclFormat format) { return ACL_SUCCESS; }

aclError aclSetTensorPlaceMent(aclTensorDesc *desc, aclMemType type) { return ACL_SUCCESS; }

aclError aclSetTensorShape(aclTensorDesc *desc, int count, const int64_t *sizes) { return ACL_SUCCESS; }

void aclSetTensorDescName(aclTensorDesc *desc, const char *name) {}

aclopAttr *aclopCreateAttr(void) { return (aclopAttr *)description; }

void aclopDestroyAttr(const aclopAttr *attribute) {}

aclError aclopSetAttrBool(aclopAttr *attribute, const char *name, uint8_t value) { return ACL_SUCCESS; }

aclError aclopSetAttrDataType(aclopAttr *attribute, const char *name, aclDataType value) { return ACL_SUCCESS; }

aclError aclopSetAttrFloat(aclopAttr *attribute, const char *name, float value) { return ACL_SUCCESS; }

aclError aclopSetAttrInt(aclopAttr *attribute, const char *name, int64_t value) { return ACL_SUCCESS; }

aclError aclopSetAttrString(aclopAttr *attribute, const char *name, const char *value) { return ACL_SUCCESS; }

aclError aclopSetAttrListBool(aclopAttr *attribute, const char *name, int count, const uint8_t *values)
{
    return ACL_SUCCESS;
}

aclError aclopSetAttrListFloat(aclopAttr *attribute, const char *name, int count, const float *values)
{
    return ACL_SUCCESS;
}

aclError aclopSetAttrListInt(aclopAttr *attribute, const char *name, int count, const int64_t *values)
{
    return ACL_SUCCESS;
}

aclError aclopSetAttrListListInt(aclopAttr *attribute, const char *name, int count, const int *lengths,
                                 const int64_t *const values[])
{
    return ACL_SUCCESS;
}
