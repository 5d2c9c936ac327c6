/* What torch_npu describes arguments of aclnn functions with. The layout is ours: CANN keeps its own hidden,
 * torch_npu only holds pointers, and opapi.py reads these structures with ctypes. */
#ifndef STANDIN_ACLNN_TYPES_H
#define STANDIN_ACLNN_TYPES_H

#include <stdint.h>

enum { MAX_DIMS = 8 };

typedef struct {
    int64_t dims, sizes[MAX_DIMS], strides[MAX_DIMS], offset; /* offset and strides in elements */
    int32_t type;                                             /* aclDataType */
    void *data;
} aclTensor;

typedef struct {
    int64_t count;
    void *items; /* aclTensor*, aclScalar*, int64_t, bool or float, as the list's kind says */
} aclList;

typedef struct {
    int32_t type;
    char value[16];
} aclScalar;

#endif
