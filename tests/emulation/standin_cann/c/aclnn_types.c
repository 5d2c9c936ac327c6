/* The part of libopapi.so that makes and destroys descriptions of arguments; the operators themselves are generated
 * from opapi_table.py. */
#include "aclnn_types.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "acl/acl.h"
#include "errors.h"

aclTensor *aclCreateTensor(const int64_t *sizes, uint64_t dims, aclDataType type, const int64_t *strides,
                           int64_t offset, aclFormat format, const int64_t *storage_sizes,
                           uint64_t storage_dims, void *data)
{
    if (dims > MAX_DIMS) {
        standin_set_error("a tensor of %lu dimensions; aclnn takes up to %d", dims, MAX_DIMS);
        return NULL;
    }
    aclTensor *tensor = calloc(1, sizeof *tensor);
    tensor->dims = (int64_t)dims;
    for (uint64_t i = 0; i < dims; i++) {
        tensor->sizes[i] = sizes[i];
        tensor->strides[i] = strides == NULL ? 0 : strides[i];
    }
    tensor->offset = offset;
    tensor->type = type;
    tensor->data = data;
    return tensor;
}

aclScalar *aclCreateScalar(void *value, aclDataType type)
{
    aclScalar *scalar = calloc(1, sizeof *scalar);
    scalar->type = type;
    memcpy(scalar->value, value, type == ACL_COMPLEX128 ? 16 : aclDataTypeSize(type));
    return scalar;
}

static aclList *make_list(const void *items, uint64_t count, size_t size)
{
    aclList *list = malloc(sizeof *list);
    list->count = (int64_t)count;
    list->items = malloc(count * size + 1);
    memcpy(list->items, items, count * size);
    return list;
}

aclList *aclCreateIntArray(const int64_t *items, uint64_t count) { return make_list(items, count, sizeof *items); }

aclList *aclCreateBoolArray(const bool *items, uint64_t count) { return make_list(items, count, sizeof *items); }

aclList *aclCreateFloatArray(const float *items, uint64_t count) { return make_list(items, count, sizeof *items); }

aclList *aclCreateTensorList(aclTensor *const *items, uint64_t count)
{
    return make_list(items, count, sizeof *items);
}

aclList *aclCreateScalarList(aclScalar *const *items, uint64_t count)
{
    return make_list(items, count, sizeof *items);
}

int aclDestroyTensor(aclTensor *tensor)
{
    free(tensor);
    return 0;
}

int aclDestroyScalar(aclScalar *scalar)
{
    free(scalar);
    return 0;
}

int aclDestroyIntArray(aclList *list)
{
    free(list->items);
    free(list);
    return 0;
}

int aclDestroyBoolArray(aclList *list) { return aclDestroyIntArray(list); }

int aclDestroyFloatArray(aclList *list) { return aclDestroyIntArray(list); }

/* A list owns its members. */
int aclDestroyTensorList(aclList *list)
{
    for (int64_t i = 0; i < list->count; i++) {
        free(((void **)list->items)[i]);
    }
    return aclDestroyIntArray(list);
}

int aclDestroyScalarList(aclList *list) { return aclDestroyTensorList(list); }
