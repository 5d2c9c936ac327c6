/* How the ranks of one communicator exchange bytes: an anonymous memory file that all of them map.
 *
 * The file has no name, so nothing is left behind however the processes end. Rank 0 makes it; the others open it
 * through /proc with what HcclGetRootInfo said. Every rank holds a record lock on it, which the kernel drops when
 * the process dies: a rank that waits for a dead one finds out and fails instead of waiting for ever. */
#ifndef STANDIN_TRANSPORT_H
#define STANDIN_TRANSPORT_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "hccl_api.h"

enum { MAX_RANKS = 16 };

enum {
    SLOT_BYTES = 1 << 20,  /* of a rank, for one piece of a collective */
    RING_BYTES = 64 << 20, /* of a pair: what may be sent and not yet received; unused pages cost nothing */
};

typedef struct {
    const char *name;
    uint64_t count;
    uint32_t type, op, root;
} Call; /* what a rank was asked for: all ranks must be asked for the same */

typedef struct Shared Shared;

typedef struct {
    Shared *shared;
    int file;
    int ranks, rank;
    char name[COMM_NAME_MAX_LENGTH];
} Communicator;

typedef struct {
    HcclSendRecvType direction;
    uint32_t peer;
    char *data;
    uint64_t bytes;
} Transfer;

/* Make the file and describe it. */
HcclResult transport_offer(HcclRootInfo *info);

/* Join as one rank of ``ranks``; returns when all have joined. */
HcclResult transport_join(const HcclRootInfo *info, uint32_t ranks, uint32_t rank, Communicator **joined);

void transport_leave(Communicator *communicator);

/* Wait until every rank has come here. */
HcclResult transport_barrier(Communicator *communicator);

/* A barrier at which the ranks compare what they were asked for. */
HcclResult transport_meet(Communicator *communicator, Call call);

/* SLOT_BYTES that every rank can read and this rank writes. */
char *transport_slot(Communicator *communicator, int rank);

/* Send and receive, all at once; between two ranks data arrives in the order in which it was sent. */
HcclResult transport_exchange(Communicator *communicator, const Transfer *transfers, size_t count);

#endif
