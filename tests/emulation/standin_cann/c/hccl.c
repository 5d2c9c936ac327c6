/* Stand-in for libhccl.so: the collectives that ProcessGroupHCCL calls, between processes of one machine.
 *
 * A reduction adds the ranks' values in the order of the ranks and rounds after every addition, in the type of the
 * data: every rank gets the same bits, run after run. Types and operations that CANN's documentation does not list
 * for Atlas A2 are refused. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "errors.h"
#include "reduce.h"
#include "transport.h"

static size_t type_size(HcclDataType type)
{
    switch (type) {
    case HCCL_DATA_TYPE_INT8:
    case HCCL_DATA_TYPE_UINT8:
    case HCCL_DATA_TYPE_HIF8:
    case HCCL_DATA_TYPE_FP8E4M3:
    case HCCL_DATA_TYPE_FP8E5M2:
    case HCCL_DATA_TYPE_FP8E8M0: return 1;
    case HCCL_DATA_TYPE_INT16:
    case HCCL_DATA_TYPE_UINT16:
    case HCCL_DATA_TYPE_FP16:
    case HCCL_DATA_TYPE_BFP16: return 2;
    case HCCL_DATA_TYPE_INT32:
    case HCCL_DATA_TYPE_UINT32:
    case HCCL_DATA_TYPE_FP32: return 4;
    case HCCL_DATA_TYPE_INT64:
    case HCCL_DATA_TYPE_UINT64:
    case HCCL_DATA_TYPE_FP64: return 8;
    case HCCL_DATA_TYPE_INT128: return 16;
    default: return 0;
    }
}

/* Leave the function with the error if there is one. */
#define TRY(call)                          \
    do {                                   \
        HcclResult result_ = (call);       \
        if (result_ != HCCL_SUCCESS) {     \
            return result_;                \
        }                                  \
    } while (0)

static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

/* --- communicators ---------------------------------------------------------------------------------------------- */

HcclResult HcclGetRootInfo(HcclRootInfo *info) { return transport_offer(info); }

HcclResult HcclCommInitRootInfo(uint32_t ranks, const HcclRootInfo *info, uint32_t rank, HcclComm *comm)
{
    Communicator *joined;
    TRY(transport_join(info, ranks, rank, &joined));
    *comm = joined;
    return HCCL_SUCCESS;
}

HcclResult HcclCommInitRootInfoConfig(uint32_t ranks, const HcclRootInfo *info, uint32_t rank,
                                      const HcclCommConfigHead *config, HcclComm *comm)
{
    TRY(HcclCommInitRootInfo(ranks, info, rank, comm));
    if (config->hcclCommName[0] != '\0') {
        snprintf(((Communicator *)*comm)->name, COMM_NAME_MAX_LENGTH, "%s", config->hcclCommName);
    }
    return HCCL_SUCCESS;
}

HcclResult HcclCommDestroy(HcclComm comm)
{
    transport_leave(comm);
    return HCCL_SUCCESS;
}

HcclResult HcclGetCommName(HcclComm comm, char *name)
{
    snprintf(name, COMM_NAME_MAX_LENGTH, "%s", ((Communicator *)comm)->name);
    return HCCL_SUCCESS;
}

HcclResult HcclGetRankSize(HcclComm comm, uint32_t *ranks)
{
    *ranks = ((Communicator *)comm)->ranks;
    return HCCL_SUCCESS;
}

HcclResult HcclGetRankId(HcclComm comm, uint32_t *rank)
{
    *rank = ((Communicator *)comm)->rank;
    return HCCL_SUCCESS;
}

HcclResult HcclGetCommAsyncError(HcclComm comm, HcclResult *error)
{
    *error = HCCL_SUCCESS; /* errors are reported where they happen */
    return HCCL_SUCCESS;
}

const char *HcclGetErrorString(HcclResult code) { return "error of the stand-in for HCCL"; }

HcclResult HcclSetConfig(int config, int32_t value) { return HCCL_SUCCESS; }

uint32_t HcclGetCommConfigCapability(void) { return HCCL_COMM_CONFIG_RESERVED; }

HcclResult HcclBarrier(HcclComm comm, aclrtStream stream)
{
    return transport_meet(comm, (Call){.name = "HcclBarrier"});
}

/* --- reductions ------------------------------------------------------------------------------------------------- */

/* Reduce ``count`` elements of every rank into ``into``, which may be NULL for a rank that gets nothing. */
static HcclResult reduce_slots(Communicator *c, const char *from, char *into, uint64_t count, HcclDataType type,
                               HcclReduceOp op)
{
    size_t size = type_size(type), bytes = count * size, piece = SLOT_BYTES / size * size;
    for (size_t start = 0; start < bytes; start += piece) {
        size_t now = smaller(bytes - start, piece);
        memcpy(transport_slot(c, c->rank), from + start, now);
        TRY(transport_barrier(c));
        if (into != NULL) {
            memcpy(into + start, transport_slot(c, 0), now);
            for (int rank = 1; rank < c->ranks; rank++) {
                reduce_into(into + start, transport_slot(c, rank), now / size, type, op);
            }
        }
        TRY(transport_barrier(c));
    }
    return HCCL_SUCCESS;
}

HcclResult HcclAllReduce(void *from, void *into, uint64_t count, HcclDataType type, HcclReduceOp op, HcclComm comm,
                         aclrtStream stream)
{
    TRY(check_reducible("HcclAllReduce", type, op));
    TRY(transport_meet(comm, (Call){"HcclAllReduce", count, type, op, 0}));
    return reduce_slots(comm, from, into, count, type, op);
}

HcclResult HcclReduce(void *from, void *into, uint64_t count, HcclDataType type, HcclReduceOp op, uint32_t root,
                      HcclComm comm, aclrtStream stream)
{
    Communicator *c = comm;
    TRY(check_reducible("HcclReduce", type, op));
    TRY(transport_meet(c, (Call){"HcclReduce", count, type, op, root}));
    return reduce_slots(c, from, (uint32_t)c->rank == root ? into : NULL, count, type, op);
}

HcclResult HcclReduceScatter(void *from, void *into, uint64_t count, HcclDataType type, HcclReduceOp op,
                             HcclComm comm, aclrtStream stream)
{
    Communicator *c = comm;
    size_t bytes = count * type_size(type);
    TRY(check_reducible("HcclReduceScatter", type, op));
    TRY(transport_meet(c, (Call){"HcclReduceScatter", count, type, op, 0}));
    char *reduced = malloc(bytes + 1); /* ``into`` may lie in ``from`` */
    HcclResult result = HCCL_SUCCESS;
    for (int rank = 0; rank < c->ranks && result == HCCL_SUCCESS; rank++) {
        result = reduce_slots(c, (char *)from + rank * bytes, rank == c->rank ? reduced : NULL, count, type, op);
    }
    memcpy(into, reduced, result == HCCL_SUCCESS ? bytes : 0);
    free(reduced);
    return result;
}

/* --- copies ----------------------------------------------------------------------------------------------------- */

HcclResult HcclBroadcast(void *data, uint64_t count, HcclDataType type, uint32_t root, HcclComm comm,
                         aclrtStream stream)
{
    Communicator *c = comm;
    size_t bytes = count * type_size(type);
    TRY(transport_meet(c, (Call){"HcclBroadcast", count, type, 0, root}));
    for (size_t start = 0; start < bytes; start += SLOT_BYTES) {
        size_t now = smaller(bytes - start, SLOT_BYTES);
        if ((uint32_t)c->rank == root) {
            memcpy(transport_slot(c, c->rank), (char *)data + start, now);
        }
        TRY(transport_barrier(c));
        if ((uint32_t)c->rank != root) {
            memcpy((char *)data + start, transport_slot(c, (int)root), now);
        }
        TRY(transport_barrier(c));
    }
    return HCCL_SUCCESS;
}

HcclResult HcclAllGather(void *from, void *into, uint64_t count, HcclDataType type, HcclComm comm, aclrtStream stream)
{
    Communicator *c = comm;
    size_t bytes = count * type_size(type);
    TRY(transport_meet(c, (Call){"HcclAllGather", count, type, 0, 0}));
    memmove((char *)into + c->rank * bytes, from, bytes); /* first: ``from`` may lie elsewhere in ``into`` */
    for (size_t start = 0; start < bytes; start += SLOT_BYTES) {
        size_t now = smaller(bytes - start, SLOT_BYTES);
        memcpy(transport_slot(c, c->rank), (char *)into + c->rank * bytes + start, now);
        TRY(transport_barrier(c));
        for (int rank = 0; rank < c->ranks; rank++) {
            if (rank != c->rank) {
                memcpy((char *)into + rank * bytes + start, transport_slot(c, rank), now);
            }
        }
        TRY(transport_barrier(c));
    }
    return HCCL_SUCCESS;
}

HcclResult HcclScatter(void *from, void *into, uint64_t count, HcclDataType type, uint32_t root, HcclComm comm,
                       aclrtStream stream)
{
    Communicator *c = comm;
    size_t bytes = count * type_size(type);
    TRY(transport_meet(c, (Call){"HcclScatter", count, type, 0, root}));
    Transfer transfers[MAX_RANKS + 1];
    size_t number = 0;
    for (int rank = 0; rank < c->ranks && (uint32_t)c->rank == root; rank++) {
        transfers[number++] = (Transfer){HCCL_SEND, (uint32_t)rank, (char *)from + rank * bytes, bytes};
    }
    transfers[number++] = (Transfer){HCCL_RECV, root, into, bytes};
    return transport_exchange(c, transfers, number);
}

/* --- messages --------------------------------------------------------------------------------------------------- */

HcclResult HcclSend(void *data, uint64_t count, HcclDataType type, uint32_t to, HcclComm comm, aclrtStream stream)
{
    return transport_exchange(comm, &(Transfer){HCCL_SEND, to, data, count * type_size(type)}, 1);
}

HcclResult HcclRecv(void *data, uint64_t count, HcclDataType type, uint32_t from, HcclComm comm, aclrtStream stream)
{
    return transport_exchange(comm, &(Transfer){HCCL_RECV, from, data, count * type_size(type)}, 1);
}

HcclResult HcclBatchSendRecv(HcclSendRecvItem *items, uint32_t count, HcclComm comm, aclrtStream stream)
{
    Transfer *transfers = calloc(count, sizeof *transfers);
    for (uint32_t i = 0; i < count; i++) {
        transfers[i] = (Transfer){items[i].sendRecvType, items[i].remoteRank, items[i].buf,
                                  items[i].count * type_size(items[i].dataType)};
    }
    HcclResult result = transport_exchange(comm, transfers, count);
    free(transfers);
    return result;
}

HcclResult HcclAlltoAllV(const void *from, const void *from_counts, const void *from_starts, HcclDataType from_type,
                         const void *into, const void *into_counts, const void *into_starts, HcclDataType into_type,
                         HcclComm comm, aclrtStream stream)
{
    Communicator *c = comm;
    const uint64_t *sends = from_counts, *send_starts = from_starts;
    const uint64_t *receives = into_counts, *receive_starts = into_starts;
    size_t from_size = type_size(from_type), into_size = type_size(into_type);
    TRY(transport_meet(c, (Call){"HcclAlltoAllV", 0, from_type, 0, 0}));
    Transfer transfers[2 * MAX_RANKS];
    for (int rank = 0; rank < c->ranks; rank++) {
        char *sent = (char *)from + send_starts[rank] * from_size;
        char *received = (char *)into + receive_starts[rank] * into_size;
        transfers[2 * rank] = (Transfer){HCCL_SEND, (uint32_t)rank, sent, sends[rank] * from_size};
        transfers[2 * rank + 1] = (Transfer){HCCL_RECV, (uint32_t)rank, received, receives[rank] * into_size};
    }
    return transport_exchange(c, transfers, 2 * (size_t)c->ranks);
}

HcclResult HcclAlltoAll(const void *from, uint64_t from_count, HcclDataType from_type, const void *into,
                        uint64_t into_count, HcclDataType into_type, HcclComm comm, aclrtStream stream)
{
    uint64_t sends[MAX_RANKS], send_starts[MAX_RANKS], receives[MAX_RANKS], receive_starts[MAX_RANKS];
    for (int rank = 0; rank < MAX_RANKS; rank++) {
        sends[rank] = from_count;
        send_starts[rank] = rank * from_count;
        receives[rank] = into_count;
        receive_starts[rank] = rank * into_count;
    }
    return HcclAlltoAllV(from, sends, send_starts, from_type, into, receives, receive_starts, into_type, comm,
                         stream);
}
