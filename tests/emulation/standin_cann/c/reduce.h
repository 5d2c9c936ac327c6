/* The arithmetic of reductions, and which of it Atlas A2 offers. */
#ifndef STANDIN_REDUCE_H
#define STANDIN_REDUCE_H

#include <stddef.h>

#include "hccl_api.h"

/* HCCL_SUCCESS if the chip can reduce this type by this operation, otherwise an error with its reason. */
HcclResult check_reducible(const char *name, HcclDataType type, HcclReduceOp op);

/* sum[i] = sum[i] op values[i], in a type that check_reducible let through. */
void reduce_into(void *sum, const void *values, size_t count, HcclDataType type, HcclReduceOp op);

#endif
