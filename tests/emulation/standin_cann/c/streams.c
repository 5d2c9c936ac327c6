/* Streams and events of the stand-in for libascendcl.so: always up to date, since work is done when it is queued. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "acl/acl.h"

typedef struct {
    int32_t id;
} Stream;

typedef struct {
    double milliseconds;
} Event;

aclError aclrtCreateStreamWithConfig(aclrtStream *stream, uint32_t priority, uint32_t flag)
{
    static int32_t streams;
    Stream *made = malloc(sizeof *made);
    made->id = __atomic_add_fetch(&streams, 1, __ATOMIC_RELAXED);
    *stream = made;
    return ACL_SUCCESS;
}

aclError aclrtCreateStream(aclrtStream *stream) { return aclrtCreateStreamWithConfig(stream, 0, 0); }

aclError aclrtDestroyStream(aclrtStream stream)
{
    free(stream);
    return ACL_SUCCESS;
}

aclError aclrtDestroyStreamForce(aclrtStream stream) { return aclrtDestroyStream(stream); }

aclError aclrtSynchronizeStream(aclrtStream stream) { return ACL_SUCCESS; }

aclError aclrtSynchronizeStreamWithTimeout(aclrtStream stream, int32_t timeout) { return ACL_SUCCESS; }

aclError aclrtStreamQuery(aclrtStream stream, aclrtStreamStatus *status)
{
    *status = ACL_STREAM_STATUS_COMPLETE;
    return ACL_SUCCESS;
}

aclError aclrtStreamGetId(aclrtStream stream, int32_t *id)
{
    *id = stream == NULL ? 0 : ((Stream *)stream)->id;
    return ACL_SUCCESS;
}

aclError aclrtStreamWaitEvent(aclrtStream stream, aclrtEvent event) { return ACL_SUCCESS; }

aclError aclrtCreateEventExWithFlag(aclrtEvent *event, uint32_t flag)
{
    *event = calloc(1, sizeof(Event));
    return ACL_SUCCESS;
}

aclError aclrtCreateEventWithFlag(aclrtEvent *event, uint32_t flag)
{
    return aclrtCreateEventExWithFlag(event, flag);
}

aclError aclrtDestroyEvent(aclrtEvent event)
{
    free(event);
    return ACL_SUCCESS;
}

aclError aclrtRecordEvent(aclrtEvent event, aclrtStream stream)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    ((Event *)event)->milliseconds = (double)now.tv_sec * 1e3 + (double)now.tv_nsec * 1e-6;
    return ACL_SUCCESS;
}

aclError aclrtResetEvent(aclrtEvent event, aclrtStream stream) { return ACL_SUCCESS; }

aclError aclrtSynchronizeEvent(aclrtEvent event) { return ACL_SUCCESS; }

aclError aclrtQueryEventStatus(aclrtEvent event, aclrtEventRecordedStatus *status)
{
    *status = ACL_EVENT_RECORDED_STATUS_COMPLETE;
    return ACL_SUCCESS;
}

aclError aclrtQueryEventWaitStatus(aclrtEvent event, aclrtEventWaitStatus *status)
{
    *status = ACL_EVENT_WAIT_STATUS_COMPLETE;
    return ACL_SUCCESS;
}

aclError aclrtEventElapsedTime(float *milliseconds, aclrtEvent start, aclrtEvent end)
{
    *milliseconds = (float)(((Event *)end)->milliseconds - ((Event *)start)->milliseconds);
    return ACL_SUCCESS;
}

aclError aclrtProcessReport(int32_t timeout)
{
    usleep(1000);
    return ACL_SUCCESS;
}
