/* The shared table behind the simulated GPU: layout and the functions that read and change it.
 *
 * One file, mapped by every process. Each access takes one robust, process-shared mutex, so a
 * reader always sees a whole state and a writer that is killed leaves a usable one (EOWNERDEAD).
 * No total is stored: used memory is the sum of the slots that count at this moment.
 */
#ifndef GPU_SIM_TABLE_H
#define GPU_SIM_TABLE_H

#include <pthread.h>
#include <stdint.h>

#define GSIM_MAGIC 0x4d49535550474eULL
#define GSIM_LAYOUT 4
#define GSIM_DEVICES 16
#define GSIM_SLICES 7
#define GSIM_SLOTS 1024
#define GSIM_FAULTS 32
#define GSIM_EVENTS 256
#define GSIM_BUSY 64

enum { FLAG_COMPUTE = 1, FLAG_GRAPHICS = 2, FLAG_MPS = 4, FLAG_MEM_NA = 8, FLAG_PIN = 16, FLAG_HIDDEN = 32 };
enum { GSIM_OK = 0, GSIM_BAD = -1, GSIM_OOM = -2, GSIM_LOST = -3, GSIM_NEEDS_SLICE = -4, GSIM_FULL = -5 };

typedef struct {
    char name[96], uuid[96];
    uint64_t size;
    uint32_t gi, ci;
} gsim_slice;

typedef struct {
    char name[96], uuid[96], pci[32];
    uint64_t total, reserved;
    uint32_t lost_rc, mig_capable, mig_on, mig_count, parent_denied;
    uint32_t gone;     /* a session opened from now on does not count it: later indices move up */
    uint32_t recovery; /* field 230, GPU_RECOVERY_ACTION */
    int32_t odd_count; /* so many readings tell odd[] instead of the truth; -1: for ever */
    uint64_t odd[4];   /* total, reserved, used, free */
    gsim_slice slice[GSIM_SLICES];
} gsim_device;

/* One allocation. Its owner is (pid, start time): a reused pid cannot revive it. */
typedef struct {
    uint64_t id, start, bytes, died_ns;
    int32_t valid, dev, mig, pid;
    uint32_t flags, pad;
} gsim_slot;

typedef struct {
    char function[64];
    int32_t valid, dev, rc, count;
    uint32_t hang_ms, serial;
} gsim_fault;

/* One event of the ring. seq counts from 1; gi and ci are UINT32_MAX when it is the whole GPU's. */
typedef struct {
    uint64_t seq, type, data;
    int32_t dev;
    uint32_t gi, ci, pad;
} gsim_event;

/* A process that keeps the SMs busy, percent. */
typedef struct {
    uint64_t start;
    int32_t valid, dev, pid;
    uint32_t sm;
} gsim_busy;

typedef struct {
    uint64_t magic;
    uint32_t layout, size;
    pthread_mutex_t lock;
    uint64_t next_id, lag_ns;
    uint32_t devices, init_rc, fault_serial;
    uint32_t event_word; /* futex: changes whenever a waiter has something to look at */
    uint64_t event_seq;  /* of the newest event, 0: none yet */
    gsim_device device[GSIM_DEVICES];
    gsim_slot slot[GSIM_SLOTS];
    gsim_fault fault[GSIM_FAULTS];
    gsim_event event[GSIM_EVENTS];
    gsim_busy busy[GSIM_BUSY];
} gsim_table;

typedef struct {
    int32_t pid;
    uint32_t gi, ci, pad;
    uint64_t bytes; /* UINT64_MAX: not available */
} gsim_process;

gsim_table *gsim_map(const char *path, int create);
void gsim_unmap(gsim_table *t);
void gsim_enter(gsim_table *t);
void gsim_leave(gsim_table *t);
/* total, reserved, used, free; mig -1: the whole device */
int gsim_memory(gsim_table *t, int dev, int mig, uint64_t out[4]);
int gsim_processes(gsim_table *t, int dev, int mig, uint32_t flags, gsim_process *out, int max);
/* Like gsim_memory, but with the odd readings a device has been told to give. */
int gsim_reading(gsim_table *t, int dev, int mig, uint64_t out[4]);
/* Start time (field 22) of a living process; 0 for none, a zombie or a dead one. */
uint64_t gsim_start_of(int pid);
/* Make every waiter look again. */
void gsim_stir(gsim_table *t);

#endif
