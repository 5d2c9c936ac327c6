#include "reduce.h"

#include <stdint.h>
#include <string.h>

#include "errors.h"

HcclResult check_reducible(const char *name, HcclDataType type, HcclReduceOp op)
{
    switch (type) {
    case HCCL_DATA_TYPE_INT8:
    case HCCL_DATA_TYPE_INT32:
    case HCCL_DATA_TYPE_INT64:
    case HCCL_DATA_TYPE_FP16:
    case HCCL_DATA_TYPE_FP32: return HCCL_SUCCESS;
    case HCCL_DATA_TYPE_INT16:
    case HCCL_DATA_TYPE_BFP16:
        if (op != HCCL_REDUCE_PROD) {
            return HCCL_SUCCESS;
        }
        standin_set_error("%s: Atlas A2 has no product of HcclDataType %d", name, type);
        return HCCL_E_NOT_SUPPORT;
    default:
        standin_set_error("%s: Atlas A2 reduces int8, int16, int32, int64, fp16, fp32 and bfp16, not HcclDataType %d",
                          name, type);
        return HCCL_E_NOT_SUPPORT;
    }
}

static float float_of_bfloat16(uint16_t bits)
{
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

/* To the nearest, ties to even; NaN stays NaN. */
static uint16_t bfloat16_of_float(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if (value != value) {
        return (uint16_t)(bits >> 16 | 0x40);
    }
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

#define COMBINE(a, b)                                                       \
    (op == HCCL_REDUCE_SUM    ? (a) + (b)                                   \
     : op == HCCL_REDUCE_PROD ? (a) * (b)                                   \
     : op == HCCL_REDUCE_MAX  ? ((a) > (b) || (a) != (a) ? (a) : (b))       \
                              : ((a) < (b) || (a) != (a) ? (a) : (b)))

#define REDUCE(TYPE)                                        \
    for (size_t i = 0; i < count; i++) {                    \
        TYPE a = ((TYPE *)sum)[i];                          \
        TYPE b = ((const TYPE *)values)[i];                 \
        ((TYPE *)sum)[i] = (TYPE)COMBINE(a, b);             \
    }                                                       \
    break

void reduce_into(void *sum, const void *values, size_t count, HcclDataType type, HcclReduceOp op)
{
    switch (type) {
    case HCCL_DATA_TYPE_INT8: REDUCE(int8_t);
    case HCCL_DATA_TYPE_INT16: REDUCE(int16_t);
    case HCCL_DATA_TYPE_INT32: REDUCE(int32_t);
    case HCCL_DATA_TYPE_INT64: REDUCE(int64_t);
    case HCCL_DATA_TYPE_FP16: REDUCE(_Float16);
    case HCCL_DATA_TYPE_FP32: REDUCE(float);
    case HCCL_DATA_TYPE_BFP16:
        for (size_t i = 0; i < count; i++) {
            float a = float_of_bfloat16(((uint16_t *)sum)[i]);
            float b = float_of_bfloat16(((const uint16_t *)values)[i]);
            ((uint16_t *)sum)[i] = bfloat16_of_float(COMBINE(a, b));
        }
        break;
    default: break; /* refused by check_reducible */
    }
}
