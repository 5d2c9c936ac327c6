#define _GNU_SOURCE
#include "transport.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "errors.h"

typedef struct {
    atomic_uint_least64_t written, read; /* bytes since the start; their difference is what the ring holds */
} Ring;

struct Shared {
    atomic_uint joined;
    atomic_uint arrived, generation; /* of the barrier */
    atomic_uint bell[MAX_RANKS];     /* changes whenever something may have changed for that rank */
    struct {
        char name[32];
        uint64_t count;
        uint32_t type, op, root;
    } calls[MAX_RANKS];
    Ring rings[MAX_RANKS][MAX_RANKS]; /* by sender, then receiver */
};

static size_t head_bytes(void) { return (sizeof(Shared) + 4095) / 4096 * 4096; }

static size_t file_bytes(int ranks)
{
    return head_bytes() + (size_t)ranks * SLOT_BYTES + (size_t)ranks * ranks * RING_BYTES;
}

char *transport_slot(Communicator *c, int rank)
{
    return (char *)c->shared + head_bytes() + (size_t)rank * SLOT_BYTES;
}

static char *ring_data(Communicator *c, int sender, int receiver)
{
    return transport_slot(c, c->ranks) + ((size_t)sender * c->ranks + receiver) * RING_BYTES;
}

/* --- waiting ---------------------------------------------------------------------------------------------------- */

static int is_alive(Communicator *c, int rank)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = rank, .l_len = 1};
    return rank == c->rank || fcntl(c->file, F_GETLK, &lock) != 0 || lock.l_type != F_UNLCK;
}

static HcclResult check_alive(Communicator *c)
{
    for (int rank = 0; rank < c->ranks; rank++) {
        if (!is_alive(c, rank)) {
            standin_set_error("HCCL: rank %d waits for rank %d, which is gone (communicator %s)", c->rank, rank,
                              c->name);
            return HCCL_E_REMOTE;
        }
    }
    return HCCL_SUCCESS;
}

/* Sleep until ``word`` is no longer ``seen``, or for a tenth of a second. */
static void sleep_on(atomic_uint *word, unsigned seen)
{
    struct timespec limit = {.tv_nsec = 100000000};
    syscall(SYS_futex, word, FUTEX_WAIT, seen, &limit, NULL, 0);
}

static void wake(atomic_uint *word)
{
    atomic_fetch_add(word, 1);
    syscall(SYS_futex, word, FUTEX_WAKE, MAX_RANKS, NULL, NULL, 0);
}

HcclResult transport_barrier(Communicator *c)
{
    unsigned generation = atomic_load(&c->shared->generation);
    if (atomic_fetch_add(&c->shared->arrived, 1) == (unsigned)c->ranks - 1) {
        atomic_store(&c->shared->arrived, 0);
        wake(&c->shared->generation);
        return HCCL_SUCCESS;
    }
    while (atomic_load(&c->shared->generation) == generation) {
        sleep_on(&c->shared->generation, generation);
        if (atomic_load(&c->shared->generation) != generation) {
            break; /* everybody came; that somebody has gone since is not our concern */
        }
        HcclResult result = check_alive(c);
        if (result != HCCL_SUCCESS) {
            return result;
        }
    }
    return HCCL_SUCCESS;
}

/* --- joining and leaving ---------------------------------------------------------------------------------------- */

HcclResult transport_offer(HcclRootInfo *info)
{
    int file = memfd_create("standin-hccl", MFD_CLOEXEC);
    if (file < 0) {
        standin_set_error("HCCL: no shared memory: %s", strerror(errno));
        return HCCL_E_SYSCALL;
    }
    memset(info, 0, sizeof *info);
    snprintf(info->internal, sizeof info->internal, "/proc/%d/fd/%d", getpid(), file);
    return HCCL_SUCCESS;
}

HcclResult transport_join(const HcclRootInfo *info, uint32_t ranks, uint32_t rank, Communicator **joined)
{
    if (ranks == 0 || ranks > MAX_RANKS || rank >= ranks) {
        standin_set_error("HCCL: rank %u of %u; the stand-in takes up to %d ranks", rank, ranks, MAX_RANKS);
        return HCCL_E_PARA;
    }
    Communicator *c = calloc(1, sizeof *c);
    c->ranks = (int)ranks;
    c->rank = (int)rank;
    snprintf(c->name, sizeof c->name, "%.*s", COMM_NAME_MAX_LENGTH - 1, info->internal);
    int owner = 0, file = -1;
    sscanf(info->internal, "/proc/%d/fd/%d", &owner, &file);
    c->file = owner == getpid() ? file : open(info->internal, O_RDWR | O_CLOEXEC);
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = rank, .l_len = 1};
    if (c->file < 0 || ftruncate(c->file, (off_t)file_bytes(c->ranks)) != 0 || fcntl(c->file, F_SETLK, &lock) != 0) {
        standin_set_error("HCCL: rank %u cannot join %s: %s", rank, info->internal, strerror(errno));
        free(c);
        return HCCL_E_SYSCALL;
    }
    c->shared = mmap(NULL, file_bytes(c->ranks), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, c->file, 0);
    if (c->shared == MAP_FAILED) {
        standin_set_error("HCCL: rank %u cannot map %zu bytes: %s", rank, file_bytes(c->ranks), strerror(errno));
        free(c);
        return HCCL_E_MEMORY;
    }
    wake(&c->shared->joined);
    for (unsigned seen; (seen = atomic_load(&c->shared->joined)) < ranks;) {
        sleep_on(&c->shared->joined, seen); /* a rank that never comes is for the time-out of the process group */
    }
    *joined = c;
    return HCCL_SUCCESS;
}

void transport_leave(Communicator *c)
{
    munmap(c->shared, file_bytes(c->ranks));
    close(c->file);
    free(c);
}

/* --- agreement -------------------------------------------------------------------------------------------------- */

HcclResult transport_meet(Communicator *c, Call call)
{
    Shared *shared = c->shared;
    snprintf(shared->calls[c->rank].name, sizeof shared->calls[c->rank].name, "%s", call.name);
    shared->calls[c->rank].count = call.count;
    shared->calls[c->rank].type = call.type;
    shared->calls[c->rank].op = call.op;
    shared->calls[c->rank].root = call.root;
    HcclResult result = transport_barrier(c);
    for (int rank = 0; rank < c->ranks && result == HCCL_SUCCESS; rank++) {
        if (strcmp(shared->calls[rank].name, call.name) != 0 || shared->calls[rank].count != call.count ||
            shared->calls[rank].type != call.type || shared->calls[rank].op != call.op ||
            shared->calls[rank].root != call.root) {
            standin_set_error("HCCL: rank %d calls %s (count %lu, type %u, op %u, root %u), but rank %d calls %s "
                              "(count %lu, type %u, op %u, root %u)",
                              c->rank, call.name, call.count, call.type, call.op, call.root, rank,
                              shared->calls[rank].name, shared->calls[rank].count,
                              shared->calls[rank].type, shared->calls[rank].op,
                              shared->calls[rank].root);
            result = HCCL_E_PARA;
        }
    }
    /* once more, so that nobody writes a new call while another still reads this one */
    return result == HCCL_SUCCESS ? transport_barrier(c) : result;
}

/* --- messages --------------------------------------------------------------------------------------------------- */

/* Copy between a ring, from byte ``at`` of its stream, and ``data``. */
static void copy_ring(char *ring, uint64_t at, char *data, size_t bytes, HcclSendRecvType direction)
{
    size_t place = at % RING_BYTES;
    size_t first = bytes < RING_BYTES - place ? bytes : RING_BYTES - place;
    if (direction == HCCL_SEND) {
        memcpy(ring + place, data, first);
        memcpy(ring, data + first, bytes - first);
    } else {
        memcpy(data, ring + place, first);
        memcpy(data + first, ring, bytes - first);
    }
}

enum { LENGTH_BYTES = sizeof(uint64_t) }; /* every message is preceded by its length */

/* As much of one transfer as can be done now. ``done`` counts its bytes, those of the length included. */
static HcclResult progress(Communicator *c, const Transfer *t, uint64_t *done, int *moved)
{
    int send = t->direction == HCCL_SEND;
    int sender = send ? c->rank : (int)t->peer, receiver = send ? (int)t->peer : c->rank;
    Ring *ring = &c->shared->rings[sender][receiver];
    char *data = ring_data(c, sender, receiver);
    uint64_t written = atomic_load(&ring->written), read = atomic_load(&ring->read);
    uint64_t room = send ? RING_BYTES - (written - read) : written - read;
    uint64_t at = send ? written : read;
    uint64_t start = *done;
    if (*done == 0 && room >= LENGTH_BYTES) {
        uint64_t bytes = t->bytes;
        copy_ring(data, at, (char *)&bytes, LENGTH_BYTES, t->direction);
        if (bytes != t->bytes) {
            standin_set_error("HCCL: rank %d receives %lu bytes, but rank %d sent %lu", receiver, t->bytes, sender,
                              bytes);
            return HCCL_E_PARA;
        }
        *done = LENGTH_BYTES;
        room -= LENGTH_BYTES;
    }
    if (*done >= LENGTH_BYTES) {
        uint64_t left = t->bytes + LENGTH_BYTES - *done;
        uint64_t now = left < room ? left : room;
        copy_ring(data, at + (*done - start), t->data + (*done - LENGTH_BYTES), now, t->direction);
        *done += now;
    }
    if (*done != start) {
        atomic_fetch_add(send ? &ring->written : &ring->read, *done - start);
        wake(&c->shared->bell[t->peer]);
        *moved = 1;
    }
    return HCCL_SUCCESS;
}

/* Whether an earlier transfer in the same direction with the same rank is unfinished: messages do not overtake. */
static int must_wait(const Transfer *transfers, const uint64_t *done, size_t index)
{
    for (size_t i = 0; i < index; i++) {
        if (transfers[i].direction == transfers[index].direction && transfers[i].peer == transfers[index].peer &&
            done[i] < transfers[i].bytes + LENGTH_BYTES) {
            return 1;
        }
    }
    return 0;
}

HcclResult transport_exchange(Communicator *c, const Transfer *transfers, size_t count)
{
    uint64_t *done = calloc(count, sizeof *done);
    HcclResult result = HCCL_SUCCESS;
    for (size_t left = count; left > 0 && result == HCCL_SUCCESS;) {
        unsigned seen = atomic_load(&c->shared->bell[c->rank]);
        int moved = 0;
        left = 0;
        for (size_t i = 0; i < count && result == HCCL_SUCCESS; i++) {
            if (done[i] < transfers[i].bytes + LENGTH_BYTES && !must_wait(transfers, done, i)) {
                result = progress(c, &transfers[i], &done[i], &moved);
            }
            left += done[i] < transfers[i].bytes + LENGTH_BYTES;
        }
        if (left > 0 && !moved && result == HCCL_SUCCESS) {
            sleep_on(&c->shared->bell[c->rank], seen);
            if (atomic_load(&c->shared->bell[c->rank]) == seen) {
                result = check_alive(c);
            }
        }
    }
    free(done);
    return result;
}
