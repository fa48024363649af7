/* The shared table of the simulated GPU: mapping, liveness, allocation, control. See table.h. */
#define _GNU_SOURCE
#include "table.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ULL + (uint64_t)t.tv_nsec;
}

gsim_table *gsim_map(const char *path, int create) {
    int fd = open(path, O_RDWR | O_CLOEXEC | (create ? O_CREAT | O_TRUNC : 0), 0666);
    if (fd < 0) return NULL;
    struct stat info;
    if (create && ftruncate(fd, sizeof(gsim_table)) != 0) goto bad;
    if (create) fchmod(fd, 0666); /* engines may run as another user */
    if (fstat(fd, &info) != 0 || info.st_size != (off_t)sizeof(gsim_table)) goto bad;
    gsim_table *t = mmap(NULL, sizeof *t, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (t == MAP_FAILED) goto bad;
    close(fd);
    if (create) {
        pthread_mutexattr_t attr;
        pthread_mutexattr_init(&attr);
        pthread_mutexattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
        pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST);
        pthread_mutex_init(&t->lock, &attr);
        t->layout = GSIM_LAYOUT;
        t->size = sizeof *t;
        t->next_id = 1;
        t->magic = GSIM_MAGIC; /* last: who attaches before sees no table */
    }
    if (t->magic != GSIM_MAGIC || t->layout != GSIM_LAYOUT || t->size != sizeof *t) {
        munmap(t, sizeof *t);
        return NULL;
    }
    return t;
bad:
    close(fd);
    return NULL;
}

void gsim_unmap(gsim_table *t) { munmap(t, sizeof *t); }

/* A slot becomes valid by its last store, so whatever a killed writer left behind is usable. */
void gsim_enter(gsim_table *t) {
    if (pthread_mutex_lock(&t->lock) == EOWNERDEAD) pthread_mutex_consistent(&t->lock);
}

void gsim_leave(gsim_table *t) { pthread_mutex_unlock(&t->lock); }

uint64_t gsim_start_of(int pid) {
    char path[32], text[1024];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    if (n <= 0) return 0;
    text[n] = 0;
    char *at = strrchr(text, ')');
    if (!at || at[2] == 'Z' || at[2] == 'X' || at[2] == 'x') return 0;
    at += 2;
    for (int field = 3; field < 22; field++) {
        at = strchr(at, ' ');
        if (!at) return 0;
        at++;
    }
    return strtoull(at, NULL, 10);
}

/* Whether a slot counts now; stamps the first sight of its owner's death. Lock held. */
static int counts(gsim_table *t, gsim_slot *s, int *lives) {
    *lives = (s->flags & FLAG_PIN) || (!s->died_ns && gsim_start_of(s->pid) == s->start);
    if (*lives) return 1;
    uint64_t now = now_ns();
    if (!s->died_ns) s->died_ns = now;
    if (now - s->died_ns < t->lag_ns) return 1;
    s->valid = 0;
    return 0;
}

static uint64_t used(gsim_table *t, int dev, int mig) {
    uint64_t sum = 0;
    int lives;
    for (int i = 0; i < GSIM_SLOTS; i++) {
        gsim_slot *s = &t->slot[i];
        if (s->valid && s->dev == dev && (mig < 0 || s->mig == mig) && counts(t, s, &lives)) sum += s->bytes;
    }
    return sum;
}

static void memory_locked(gsim_table *t, int dev, int mig, uint64_t out[4]) {
    gsim_device *d = &t->device[dev];
    out[0] = mig < 0 ? d->total : d->slice[mig].size;
    out[1] = mig < 0 ? d->reserved : 0;
    out[2] = used(t, dev, mig);
    out[3] = out[0] - out[1] - out[2];
}

int gsim_memory(gsim_table *t, int dev, int mig, uint64_t out[4]) {
    if (dev < 0 || dev >= (int)t->devices) return GSIM_BAD;
    gsim_enter(t);
    int ok = mig < (int)t->device[dev].mig_count;
    if (ok) memory_locked(t, dev, mig, out);
    gsim_leave(t);
    return ok ? GSIM_OK : GSIM_BAD;
}

int gsim_reading(gsim_table *t, int dev, int mig, uint64_t out[4]) {
    int rc = gsim_memory(t, dev, mig, out);
    if (rc != GSIM_OK || mig >= 0) return rc;
    gsim_enter(t);
    gsim_device *d = &t->device[dev];
    if (d->odd_count) memcpy(out, d->odd, sizeof d->odd);
    if (d->odd_count > 0) d->odd_count--;
    gsim_leave(t);
    return rc;
}

int gsim_processes(gsim_table *t, int dev, int mig, uint32_t flags, gsim_process *out, int max) {
    int n = 0, lives;
    gsim_enter(t);
    for (int i = 0; i < GSIM_SLOTS && n < max; i++) {
        gsim_slot *s = &t->slot[i];
        if (!s->valid || s->dev != dev || (mig >= 0 && s->mig != mig)) continue;
        if (!(s->flags & flags) || (s->flags & FLAG_HIDDEN)) continue;
        if (!counts(t, s, &lives) || !lives) continue;
        uint64_t bytes = (s->flags & FLAG_MEM_NA) ? UINT64_MAX : s->bytes;
        int k = 0;
        while (k < n && out[k].pid != s->pid) k++;
        if (k < n) {
            if (out[k].bytes != UINT64_MAX) out[k].bytes = bytes == UINT64_MAX ? bytes : out[k].bytes + bytes;
            continue;
        }
        gsim_slice *slice = s->mig >= 0 ? &t->device[dev].slice[s->mig] : NULL;
        out[n++] = (gsim_process){s->pid, slice ? slice->gi : UINT32_MAX, slice ? slice->ci : UINT32_MAX, 0, bytes};
    }
    gsim_leave(t);
    return n;
}

/* -- control ------------------------------------------------------------------------------- */

int gsim_add_device(gsim_table *t, const char *name, const char *uuid, const char *pci, uint64_t total,
                    uint64_t reserved, int mig_capable) {
    if (t->devices >= GSIM_DEVICES) return GSIM_FULL;
    gsim_enter(t);
    gsim_device *d = &t->device[t->devices];
    snprintf(d->name, sizeof d->name, "%s", name);
    snprintf(d->uuid, sizeof d->uuid, "%s", uuid);
    snprintf(d->pci, sizeof d->pci, "%s", pci);
    d->total = total;
    d->reserved = reserved;
    d->mig_capable = (uint32_t)mig_capable;
    t->devices++;
    gsim_leave(t);
    return GSIM_OK;
}

static int room(gsim_table *t, int dev, int mig, uint64_t more) {
    uint64_t m[4];
    gsim_device *d = &t->device[dev];
    if (d->lost_rc) return GSIM_LOST;
    if (mig < 0 && d->mig_on) return GSIM_NEEDS_SLICE;
    if (mig >= (int)d->mig_count) return GSIM_BAD;
    memory_locked(t, dev, mig, m);
    return more > m[3] ? GSIM_OOM : GSIM_OK;
}

/* The id of the new slot (> 0), or an error. Checking for room and taking it is one step. */
int64_t gsim_alloc(gsim_table *t, int dev, int mig, int pid, uint64_t bytes, uint32_t flags) {
    if (dev < 0 || dev >= (int)t->devices) return GSIM_BAD;
    uint64_t start = gsim_start_of(pid);
    if (!start && !(flags & FLAG_PIN)) return GSIM_BAD;
    int64_t answer = GSIM_FULL;
    gsim_enter(t);
    int rc = room(t, dev, mig, bytes);
    for (int i = 0; rc == GSIM_OK && i < GSIM_SLOTS; i++) {
        gsim_slot *s = &t->slot[i];
        if (s->valid) continue;
        *s = (gsim_slot){.id = t->next_id++, .start = start, .bytes = bytes, .dev = dev, .mig = mig, .pid = pid, .flags = flags};
        answer = (int64_t)s->id;
        __atomic_store_n(&s->valid, 1, __ATOMIC_RELEASE);
        break;
    }
    gsim_leave(t);
    return rc == GSIM_OK ? answer : rc;
}

static gsim_slot *find(gsim_table *t, int64_t id) {
    for (int i = 0; i < GSIM_SLOTS; i++)
        if (t->slot[i].valid && t->slot[i].id == (uint64_t)id) return &t->slot[i];
    return NULL;
}

int gsim_resize(gsim_table *t, int64_t id, uint64_t bytes) {
    gsim_enter(t);
    gsim_slot *s = find(t, id);
    int rc = GSIM_BAD;
    if (s) rc = bytes > s->bytes ? room(t, s->dev, s->mig, bytes - s->bytes) : GSIM_OK;
    if (rc == GSIM_OK) s->bytes = bytes;
    gsim_leave(t);
    return rc;
}

int gsim_free(gsim_table *t, int64_t id) {
    gsim_enter(t);
    gsim_slot *s = find(t, id);
    if (s) s->valid = 0;
    gsim_leave(t);
    return s ? GSIM_OK : GSIM_BAD;
}

/* A lost device answers every call with rc; what was allocated there is gone. 0 brings it back.
 * gone: sessions opened later do not list it at all. */
int gsim_lose(gsim_table *t, int dev, uint32_t rc, uint32_t gone) {
    if (dev < 0 || dev >= (int)t->devices) return GSIM_BAD;
    gsim_enter(t);
    t->device[dev].lost_rc = rc;
    t->device[dev].gone = gone;
    for (int i = 0; rc && i < GSIM_SLOTS; i++)
        if (t->slot[i].dev == dev) t->slot[i].valid = 0;
    gsim_leave(t);
    gsim_stir(t);
    return GSIM_OK;
}

int gsim_add_fault(gsim_table *t, const char *function, int dev, int rc, uint32_t hang_ms, int count) {
    int answer = GSIM_FULL;
    gsim_enter(t);
    for (int i = 0; i < GSIM_FAULTS; i++) {
        gsim_fault *f = &t->fault[i];
        if (f->valid) continue;
        *f = (gsim_fault){.dev = dev, .rc = rc, .count = count, .hang_ms = hang_ms, .serial = ++t->fault_serial};
        snprintf(f->function, sizeof f->function, "%s", function);
        f->valid = 1;
        answer = GSIM_OK;
        break;
    }
    gsim_leave(t);
    return answer;
}

void gsim_clear_faults(gsim_table *t) {
    gsim_enter(t);
    memset(t->fault, 0, sizeof t->fault);
    t->fault_serial++;
    gsim_leave(t);
}

/* The next count readings of the device's memory (-1: all) tell these numbers. */
int gsim_set_odd(gsim_table *t, int dev, int count, uint64_t total, uint64_t reserved, uint64_t used, uint64_t free) {
    if (dev < 0 || dev >= (int)t->devices) return GSIM_BAD;
    gsim_enter(t);
    gsim_device *d = &t->device[dev];
    d->odd_count = count;
    d->odd[0] = total;
    d->odd[1] = reserved;
    d->odd[2] = used;
    d->odd[3] = free;
    gsim_leave(t);
    return GSIM_OK;
}

void gsim_set_init_rc(gsim_table *t, uint32_t rc) { t->init_rc = rc; }
void gsim_set_lag_ms(gsim_table *t, uint64_t ms) { t->lag_ns = ms * 1000000ULL; }
void gsim_deny_parent(gsim_table *t, int dev, uint32_t on) { t->device[dev].parent_denied = on; }

int gsim_set_slices(gsim_table *t, int dev, int count, const char **names, const char **uuids, const uint64_t *sizes) {
    gsim_device *d = &t->device[dev];
    if (!d->mig_capable || count > GSIM_SLICES) return GSIM_BAD;
    gsim_enter(t);
    d->mig_on = count > 0;
    d->mig_count = (uint32_t)count;
    for (int i = 0; i < count; i++) {
        gsim_slice *s = &d->slice[i];
        snprintf(s->name, sizeof s->name, "%s MIG %s", d->name, names[i]);
        snprintf(s->uuid, sizeof s->uuid, "%s", uuids[i]);
        s->size = sizes[i];
        s->gi = (uint32_t)i + 7;
        s->ci = 0;
    }
    for (int i = 0; i < GSIM_SLOTS; i++)
        if (t->slot[i].valid && t->slot[i].dev == dev) t->slot[i].valid = 0;
    gsim_leave(t);
    return GSIM_OK;
}

int gsim_device_count(gsim_table *t) { return (int)t->devices; }
int gsim_slice_count(gsim_table *t, int dev) { return (int)t->device[dev].mig_count; }
const char *gsim_uuid(gsim_table *t, int dev, int mig) {
    return mig < 0 ? t->device[dev].uuid : t->device[dev].slice[mig].uuid;
}
const char *gsim_name(gsim_table *t, int dev) { return t->device[dev].name; }
uint32_t gsim_gone(gsim_table *t, int dev) { return t->device[dev].gone; }
const char *gsim_pci(gsim_table *t, int dev) { return t->device[dev].pci; }
uint32_t gsim_lost_rc(gsim_table *t, int dev) { return t->device[dev].lost_rc; }
