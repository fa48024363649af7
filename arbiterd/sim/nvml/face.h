/* What the files of the NVML face share: handles, return codes, and the way into every function. */
#ifndef GPU_SIM_FACE_H
#define GPU_SIM_FACE_H

#include "table.h"

#define HIDDEN_SYMBOL __attribute__((visibility("hidden")))

typedef uint32_t rc_t;
enum {
    OK = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7, DRIVER_NOT_LOADED = 9, TIMEOUT = 10, VERSION_MISMATCH = 25, UNKNOWN = 999
};

typedef struct { int dev, mig; } handle;
typedef handle *device_t;

/* The table of this session, NULL before nvmlInit. */
extern HIDDEN_SYMBOL gsim_table *table;
extern HIDDEN_SYMBOL handle whole[GSIM_DEVICES];

/* Faults of this function and device: wait, then the code to answer with (OK: none). */
HIDDEN_SYMBOL rc_t faults(const char *function, int dev);
HIDDEN_SYMBOL rc_t enter(const char *function, device_t h);
HIDDEN_SYMBOL uint32_t gsim_event_sizeof(int what);

#define ENTER(h) do { rc_t rc_ = enter(__func__, h); if (rc_) return rc_; } while (0)
#define SYSTEM() do { if (!table) return UNINITIALIZED; rc_t rc_ = faults(__func__, -1); if (rc_) return rc_; } while (0)
#define DEV(h) (&table->device[(h)->dev])
#define SLICE(h) (&DEV(h)->slice[(h)->mig])

#endif
