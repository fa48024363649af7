/* Events (XIDs), field values and process utilisation of the simulated GPU, and their controls.
 *
 * A set sees what is posted after a device was registered with it. A wait sleeps on a futex in the
 * table until an event comes, a registered device is lost, or its time is up; it never ends early.
 */
#define _GNU_SOURCE
#include "face.h"

#include <errno.h>
#include <linux/futex.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define XID 0x8ull
#define RECOVERY_ACTION 230u
#define UNSIGNED_INT 1u

typedef struct { device_t device; uint64_t type, data; uint32_t gi, ci; } event_data;
typedef struct {
    uint32_t field, scope;
    int64_t timestamp, latency_us;
    uint32_t type, rc;
    union { double d; uint32_t u; uint64_t ull; } value;
} field_value;
typedef struct { uint32_t pid, pad; uint64_t stamp_us; uint32_t sm, memory, enc, dec; } utilization_sample;
typedef struct {
    uint64_t next;                /* sequence number to look at next */
    uint64_t mask[GSIM_DEVICES];  /* 0: not registered */
    uint64_t since[GSIM_DEVICES]; /* newest event at registration */
} event_set;

uint32_t gsim_event_sizeof(int what) {
    switch (what) {
    case 7: return sizeof(event_data);
    case 8: return sizeof(field_value);
    case 9: return sizeof(utilization_sample);
    default: return 0;
    }
}

static int64_t now_us(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

void gsim_stir(gsim_table *t) {
    __atomic_add_fetch(&t->event_word, 1, __ATOMIC_SEQ_CST);
    syscall(SYS_futex, &t->event_word, FUTEX_WAKE, 1 << 30, NULL, NULL, 0);
}

/* -- control ------------------------------------------------------------------------------- */

/* Post an XID of the device, or of a slice (mig >= 0). */
int gsim_xid(gsim_table *t, int dev, int mig, uint64_t code) {
    if (dev < 0 || dev >= (int)t->devices || mig >= (int)t->device[dev].mig_count) return GSIM_BAD;
    gsim_enter(t);
    uint64_t seq = t->event_seq + 1;
    gsim_slice *slice = mig >= 0 ? &t->device[dev].slice[mig] : NULL;
    t->event[seq % GSIM_EVENTS] = (gsim_event){.seq = seq, .type = XID, .data = code, .dev = dev,
                                               .gi = slice ? slice->gi : UINT32_MAX, .ci = slice ? slice->ci : UINT32_MAX};
    t->event_seq = seq;
    gsim_leave(t);
    gsim_stir(t);
    return GSIM_OK;
}

void gsim_set_recovery(gsim_table *t, int dev, uint32_t action) { t->device[dev].recovery = action; }

/* From now on pid keeps the SMs of the device busy by so many percent (0: idle). */
int gsim_set_busy(gsim_table *t, int dev, int pid, uint32_t sm) {
    uint64_t start = gsim_start_of(pid);
    int answer = GSIM_FULL;
    gsim_enter(t);
    gsim_busy *free_one = NULL, *mine = NULL;
    for (int i = 0; i < GSIM_BUSY; i++) {
        gsim_busy *b = &t->busy[i];
        if (!b->valid) free_one = free_one ? free_one : b;
        else if (b->dev == dev && b->pid == pid) mine = b;
    }
    gsim_busy *b = mine ? mine : free_one;
    if (b) {
        *b = (gsim_busy){.start = start, .dev = dev, .pid = pid, .sm = sm};
        b->valid = start != 0 && sm > 0;
        answer = GSIM_OK;
    }
    gsim_leave(t);
    return answer;
}

/* -- events -------------------------------------------------------------------------------- */
rc_t nvmlEventSetCreate(event_set **out) {
    SYSTEM();
    event_set *set = calloc(1, sizeof *set);
    if (!set) return UNKNOWN;
    gsim_enter(table);
    set->next = table->event_seq + 1;
    gsim_leave(table);
    *out = set;
    return OK;
}
rc_t nvmlEventSetFree(event_set *set) {
    SYSTEM();
    free(set);
    return OK;
}
rc_t nvmlDeviceGetSupportedEventTypes(device_t h, uint64_t *out) {
    ENTER(h);
    if (h->mig >= 0) return NOT_SUPPORTED;
    *out = XID;
    return OK;
}
rc_t nvmlDeviceRegisterEvents(device_t h, uint64_t mask, event_set *set) {
    ENTER(h);
    if (h->mig >= 0) return NOT_SUPPORTED; /* a slice's events come with its parent's */
    if (mask & ~XID) return NOT_SUPPORTED;
    gsim_enter(table);
    if (!set->mask[h->dev]) set->since[h->dev] = table->event_seq;
    set->mask[h->dev] |= mask;
    gsim_leave(table);
    return OK;
}

/* The next event for this set into out; 0: none. */
static int take(event_set *set, event_data *out) {
    int found = 0;
    gsim_enter(table);
    uint64_t newest = table->event_seq;
    if (newest >= GSIM_EVENTS && set->next + GSIM_EVENTS <= newest) set->next = newest - GSIM_EVENTS + 1; /* overrun: oldest are gone */
    for (; !found && set->next <= newest; set->next++) {
        gsim_event *e = &table->event[set->next % GSIM_EVENTS];
        if (!(set->mask[e->dev] & e->type) || e->seq <= set->since[e->dev]) continue;
        *out = (event_data){&whole[e->dev], e->type, e->data, e->gi, e->ci};
        found = 1;
    }
    gsim_leave(table);
    return found;
}

rc_t nvmlEventSetWait_v2(event_set *set, event_data *data, uint32_t ms) {
    SYSTEM();
    if (!set) return INVALID_ARGUMENT;
    int64_t end = now_us(CLOCK_MONOTONIC) + (int64_t)ms * 1000;
    for (;;) {
        uint32_t word = __atomic_load_n(&table->event_word, __ATOMIC_SEQ_CST);
        if (take(set, data)) return OK;
        for (uint32_t i = 0; i < table->devices; i++)
            if (set->mask[i] && table->device[i].lost_rc) return table->device[i].lost_rc;
        int64_t left = end - now_us(CLOCK_MONOTONIC);
        if (left <= 0) return TIMEOUT;
        struct timespec t = {left / 1000000, (left % 1000000) * 1000};
        syscall(SYS_futex, &table->event_word, FUTEX_WAIT, word, &t, NULL, 0);
    }
}

/* -- field values and utilisation ---------------------------------------------------------- */
rc_t nvmlDeviceGetFieldValues(device_t h, int count, field_value *values) {
    ENTER(h);
    for (int i = 0; i < count; i++) {
        field_value *v = &values[i];
        v->timestamp = now_us(CLOCK_REALTIME);
        v->latency_us = 0;
        v->rc = v->field == RECOVERY_ACTION && h->mig < 0 ? OK : NOT_SUPPORTED;
        v->type = UNSIGNED_INT;
        v->value.ull = 0;
        if (v->rc == OK) v->value.u = DEV(h)->recovery;
    }
    return OK;
}

/* A sample per busy process. None newer than since: NOT_FOUND, as the real one says of an idle card. */
rc_t nvmlDeviceGetProcessUtilization(device_t h, utilization_sample *samples, uint32_t *count, uint64_t since) {
    ENTER(h);
    if (DEV(h)->mig_on) return NOT_SUPPORTED;
    uint64_t now = (uint64_t)now_us(CLOCK_REALTIME);
    utilization_sample found[GSIM_BUSY];
    uint32_t n = 0;
    gsim_enter(table);
    for (int i = 0; i < GSIM_BUSY; i++) {
        gsim_busy *b = &table->busy[i];
        if (!b->valid || b->dev != h->dev || now <= since) continue;
        if (gsim_start_of(b->pid) != b->start) b->valid = 0;
        else found[n++] = (utilization_sample){.pid = (uint32_t)b->pid, .stamp_us = now, .sm = b->sm};
    }
    gsim_leave(table);
    if (n == 0) { *count = 0; return NOT_FOUND; }
    if (!samples || *count < n) { *count = n; return INSUFFICIENT_SIZE; }
    memcpy(samples, found, n * sizeof *found);
    *count = n;
    return OK;
}
