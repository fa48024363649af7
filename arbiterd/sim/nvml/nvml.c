/* The NVML face of the simulated GPU: the C symbols that pynvml, nvitop and gpustat call.
 *
 * The state file is named by GPU_SIM_STATE. Struct layouts are those of NVML's C interface on
 * x86-64; a test compares them with pynvml's. What a function cannot tell it calls NOT_SUPPORTED.
 */
#define _GNU_SOURCE
#include "face.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define MEMORY_V2 0x02000028u

typedef struct { uint64_t total, free, used; } memory_v1;
typedef struct { uint32_t version, pad; uint64_t total, reserved, free, used; } memory_v2;
typedef struct { uint32_t pid, pad; uint64_t used; uint32_t gi, ci; } process_v3;
typedef struct { char legacy[16]; uint32_t domain, bus, device, pci_id, subsystem; char bus_id[32]; } pci_v3;
typedef struct { uint32_t gpu, memory; } utilization;
typedef struct { uint64_t total, free, used; } bar1;
typedef struct { uint32_t sm, ce, dec, enc, jpg, ofa, gi, ci; uint64_t memory_mb; } attributes;

uint32_t gsim_sizeof(int what) {
    switch (what) {
    case 0: return sizeof(memory_v1);
    case 1: return sizeof(memory_v2);
    case 2: return sizeof(process_v3);
    case 3: return sizeof(pci_v3);
    case 4: return sizeof(utilization);
    case 5: return sizeof(bar1);
    case 6: return sizeof(attributes);
    default: return gsim_event_sizeof(what);
    }
}

gsim_table *table;
handle whole[GSIM_DEVICES];
static int users;
static handle part[GSIM_DEVICES][GSIM_SLICES];
/* The devices this session has counted at its start: a GPU that fell off before is not among them. */
static int order[GSIM_DEVICES], counted;

/* Faults of this function and device: wait, then the code to answer with (OK: none). */
rc_t faults(const char *function, int dev) {
    for (int i = 0; i < GSIM_FAULTS; i++) {
        gsim_fault *f = &table->fault[i];
        if (!f->valid || (f->dev >= 0 && dev >= 0 && f->dev != dev) || (f->dev >= 0 && dev < 0)) continue;
        if (strcmp(f->function, "*") != 0 && strncmp(function, f->function, strlen(f->function)) != 0) continue;
        if (f->count == 0) continue;
        if (f->count > 0) f->count--;
        uint32_t serial = table->fault_serial, waited = 0;
        struct timespec step = {0, 5 * 1000000};
        while (waited < f->hang_ms && serial == table->fault_serial) {
            nanosleep(&step, NULL); /* a signal does not end it: like a call stuck in the driver */
            waited += 5;
        }
        if (serial != table->fault_serial) return OK;
        if (f->rc) return (rc_t)f->rc;
    }
    return OK;
}

rc_t enter(const char *function, device_t h) {
    if (!table) return UNINITIALIZED;
    if (!h) { /* the real library may crash here: make it loud */
        fprintf(stderr, "libnvidia-ml (simulated): NULL handle given to %s\n", function);
        abort();
    }
    rc_t rc = faults(function, h->dev);
    return rc ? rc : table->device[h->dev].lost_rc;
}

static rc_t text(char *out, uint32_t length, const char *value) {
    if (strlen(value) + 1 > length) return INSUFFICIENT_SIZE;
    strcpy(out, value);
    return OK;
}

/* -- start and end ------------------------------------------------------------------------- */
rc_t nvmlInitWithFlags(uint32_t flags) {
    (void)flags;
    if (!table) {
        const char *path = getenv("GPU_SIM_STATE");
        gsim_table *t = path ? gsim_map(path, 0) : NULL;
        if (!t) return DRIVER_NOT_LOADED;
        if (t->init_rc) {
            rc_t rc = t->init_rc;
            gsim_unmap(t);
            return rc;
        }
        counted = 0;
        for (int i = 0; i < GSIM_DEVICES; i++) {
            if (i < (int)t->devices && !t->device[i].gone) order[counted++] = i;
            whole[i] = (handle){i, -1};
            for (int k = 0; k < GSIM_SLICES; k++) part[i][k] = (handle){i, k};
        }
        table = t;
        rc_t rc = faults(__func__, -1);
        if (rc) {
            gsim_unmap(t);
            table = NULL;
            return rc;
        }
    }
    users++;
    return OK;
}
rc_t nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
rc_t nvmlInit(void) { return nvmlInitWithFlags(0); }
rc_t nvmlShutdown(void) {
    if (!table) return UNINITIALIZED;
    if (--users == 0) {
        gsim_unmap(table);
        table = NULL;
    }
    return OK;
}
const char *nvmlErrorString(rc_t rc) {
    switch (rc) {
    case OK: return "Success";
    case UNINITIALIZED: return "Uninitialized";
    case INVALID_ARGUMENT: return "Invalid Argument";
    case NOT_SUPPORTED: return "Not Supported";
    case NO_PERMISSION: return "Insufficient Permissions";
    case NOT_FOUND: return "Not Found";
    case INSUFFICIENT_SIZE: return "Insufficient Size";
    case DRIVER_NOT_LOADED: return "Driver Not Loaded";
    case TIMEOUT: return "Timeout";
    case 12: return "NVML Shared Library Not Found";
    case 15: return "GPU is lost";
    case 16: return "GPU requires reset";
    case 18: return "RM has detected an NVML/RM version mismatch.";
    default: return "Unknown Error";
    }
}

/* -- the system ---------------------------------------------------------------------------- */
rc_t nvmlSystemGetDriverVersion(char *out, uint32_t n) { SYSTEM(); return text(out, n, "580.105.08"); }
rc_t nvmlSystemGetNVMLVersion(char *out, uint32_t n) { SYSTEM(); return text(out, n, "13.580.105.08"); }
rc_t nvmlSystemGetCudaDriverVersion(int *out) { SYSTEM(); *out = 13000; return OK; }
rc_t nvmlSystemGetCudaDriverVersion_v2(int *out) { SYSTEM(); *out = 13000; return OK; }
rc_t nvmlSystemGetProcessName(uint32_t pid, char *out, uint32_t n) {
    SYSTEM();
    char path[32];
    snprintf(path, sizeof path, "/proc/%u/comm", pid);
    FILE *file = fopen(path, "re");
    if (!file) return NOT_FOUND;
    if (!fgets(out, (int)n, file)) out[0] = 0;
    fclose(file);
    out[strcspn(out, "\n")] = 0;
    return OK;
}
rc_t nvmlDeviceGetCount_v2(uint32_t *out) { SYSTEM(); *out = (uint32_t)counted; return OK; }
rc_t nvmlDeviceGetCount(uint32_t *out) { return nvmlDeviceGetCount_v2(out); }

/* -- handles ------------------------------------------------------------------------------- */
rc_t nvmlDeviceGetHandleByIndex_v2(uint32_t index, device_t *out) {
    SYSTEM();
    if (index >= (uint32_t)counted) return INVALID_ARGUMENT;
    int dev = order[index];
    rc_t rc = faults(__func__, dev);
    if (rc || table->device[dev].lost_rc) return rc ? rc : table->device[dev].lost_rc;
    *out = &whole[dev];
    return OK;
}
rc_t nvmlDeviceGetHandleByIndex(uint32_t index, device_t *out) { return nvmlDeviceGetHandleByIndex_v2(index, out); }
rc_t nvmlDeviceGetHandleByUUID(const char *uuid, device_t *out) {
    SYSTEM();
    for (uint32_t i = 0; i < table->devices; i++) {
        gsim_device *d = &table->device[i];
        if (!strcmp(d->uuid, uuid)) { *out = &whole[i]; return d->lost_rc; }
        for (uint32_t k = 0; k < d->mig_count; k++)
            if (!strcmp(d->slice[k].uuid, uuid)) { *out = &part[i][k]; return d->lost_rc; }
    }
    return NOT_FOUND;
}
rc_t nvmlDeviceGetHandleByPciBusId_v2(const char *pci, device_t *out) {
    SYSTEM();
    for (uint32_t i = 0; i < table->devices; i++)
        if (!strcasecmp(table->device[i].pci, pci)) { *out = &whole[i]; return table->device[i].lost_rc; }
    return NOT_FOUND;
}

/* -- identity ------------------------------------------------------------------------------ */
rc_t nvmlDeviceGetName(device_t h, char *out, uint32_t n) {
    ENTER(h);
    return text(out, n, h->mig < 0 ? DEV(h)->name : SLICE(h)->name);
}
rc_t nvmlDeviceGetUUID(device_t h, char *out, uint32_t n) {
    ENTER(h);
    return text(out, n, h->mig < 0 ? DEV(h)->uuid : SLICE(h)->uuid);
}
rc_t nvmlDeviceGetSerial(device_t h, char *out, uint32_t n) { ENTER(h); return text(out, n, "1320000000000"); }
rc_t nvmlDeviceGetIndex(device_t h, uint32_t *out) {
    ENTER(h);
    for (*out = 0; *out < (uint32_t)counted && order[*out] != h->dev;) ++*out;
    return OK;
}
rc_t nvmlDeviceGetMinorNumber(device_t h, uint32_t *out) { ENTER(h); *out = (uint32_t)h->dev; return OK; }
rc_t nvmlDeviceGetPciInfo_v3(device_t h, pci_v3 *out) {
    ENTER(h);
    memset(out, 0, sizeof *out);
    snprintf(out->bus_id, sizeof out->bus_id, "%s", DEV(h)->pci);
    snprintf(out->legacy, sizeof out->legacy, "%.12s", DEV(h)->pci + 4);
    sscanf(DEV(h)->pci, "%x:%x:%x", &out->domain, &out->bus, &out->device);
    return OK;
}

/* -- memory and processes ------------------------------------------------------------------ */
static int denied(device_t h) { return h->mig < 0 && DEV(h)->mig_on && DEV(h)->parent_denied; }

rc_t nvmlDeviceGetMemoryInfo(device_t h, memory_v1 *out) {
    ENTER(h);
    if (denied(h)) return NO_PERMISSION;
    uint64_t m[4];
    if (gsim_reading(table, h->dev, h->mig, m) != GSIM_OK) return NOT_FOUND;
    *out = (memory_v1){m[0], m[3], m[1] + m[2]}; /* v1: used includes reserved */
    return OK;
}
rc_t nvmlDeviceGetMemoryInfo_v2(device_t h, memory_v2 *out) {
    ENTER(h);
    if (out->version != MEMORY_V2) return VERSION_MISMATCH;
    if (denied(h)) return NO_PERMISSION;
    uint64_t m[4];
    if (gsim_reading(table, h->dev, h->mig, m) != GSIM_OK) return NOT_FOUND;
    *out = (memory_v2){MEMORY_V2, 0, m[0], m[1], m[3], m[2]};
    return OK;
}
static rc_t processes(device_t h, uint32_t flags, uint32_t *count, process_v3 *out) {
    if (denied(h)) return NO_PERMISSION;
    gsim_process found[GSIM_SLOTS];
    int n = gsim_processes(table, h->dev, h->mig, flags, found, GSIM_SLOTS);
    if (n == 0) { *count = 0; return OK; }
    if (!out || *count < (uint32_t)n) { *count = (uint32_t)n; return INSUFFICIENT_SIZE; }
    *count = (uint32_t)n;
    for (int i = 0; i < n; i++) out[i] = (process_v3){(uint32_t)found[i].pid, 0, found[i].bytes, found[i].gi, found[i].ci};
    return OK;
}
rc_t nvmlDeviceGetComputeRunningProcesses_v3(device_t h, uint32_t *n, process_v3 *out) { ENTER(h); return processes(h, FLAG_COMPUTE, n, out); }
rc_t nvmlDeviceGetGraphicsRunningProcesses_v3(device_t h, uint32_t *n, process_v3 *out) { ENTER(h); return processes(h, FLAG_GRAPHICS, n, out); }
rc_t nvmlDeviceGetMPSComputeRunningProcesses_v3(device_t h, uint32_t *n, process_v3 *out) { ENTER(h); return processes(h, FLAG_MPS, n, out); }
rc_t nvmlDeviceGetBAR1MemoryInfo(device_t h, bar1 *out) { ENTER(h); *out = (bar1){256u << 20, 250u << 20, 6u << 20}; return OK; }

/* -- MIG ----------------------------------------------------------------------------------- */
rc_t nvmlDeviceGetMigMode(device_t h, uint32_t *now, uint32_t *pending) {
    ENTER(h);
    if (!DEV(h)->mig_capable) return NOT_SUPPORTED;
    *now = *pending = DEV(h)->mig_on;
    return OK;
}
rc_t nvmlDeviceGetMaxMigDeviceCount(device_t h, uint32_t *out) { ENTER(h); *out = DEV(h)->mig_capable ? GSIM_SLICES : 0; return OK; }
rc_t nvmlDeviceGetMigDeviceHandleByIndex(device_t h, uint32_t index, device_t *out) {
    ENTER(h);
    if (index >= GSIM_SLICES) return INVALID_ARGUMENT;
    if (index >= DEV(h)->mig_count) return NOT_FOUND;
    *out = &part[h->dev][index];
    return OK;
}
rc_t nvmlDeviceIsMigDeviceHandle(device_t h, uint32_t *out) { ENTER(h); *out = h->mig >= 0; return OK; }
rc_t nvmlDeviceGetDeviceHandleFromMigDeviceHandle(device_t h, device_t *out) { ENTER(h); *out = &whole[h->dev]; return OK; }
rc_t nvmlDeviceGetGpuInstanceId(device_t h, uint32_t *out) { ENTER(h); if (h->mig < 0) return NOT_SUPPORTED; *out = SLICE(h)->gi; return OK; }
rc_t nvmlDeviceGetComputeInstanceId(device_t h, uint32_t *out) { ENTER(h); if (h->mig < 0) return NOT_SUPPORTED; *out = SLICE(h)->ci; return OK; }
rc_t nvmlDeviceGetAttributes_v2(device_t h, attributes *out) {
    ENTER(h);
    if (h->mig < 0) return NOT_SUPPORTED;
    *out = (attributes){.sm = 14, .ce = 1, .gi = 1, .ci = 1, .memory_mb = SLICE(h)->size >> 20};
    return OK;
}

/* -- telemetry: plausible constants -------------------------------------------------------- */
rc_t nvmlDeviceGetUtilizationRates(device_t h, utilization *out) {
    ENTER(h);
    if (DEV(h)->mig_on) return NOT_SUPPORTED;
    *out = (utilization){7, 3};
    return OK;
}
rc_t nvmlDeviceGetEncoderUtilization(device_t h, uint32_t *a, uint32_t *b) { ENTER(h); *a = 0; *b = 100000; return OK; }
rc_t nvmlDeviceGetDecoderUtilization(device_t h, uint32_t *a, uint32_t *b) { ENTER(h); *a = 0; *b = 100000; return OK; }
rc_t nvmlDeviceGetTemperature(device_t h, uint32_t sensor, uint32_t *out) { (void)sensor; ENTER(h); *out = 41; return OK; }
rc_t nvmlDeviceGetTemperatureV(device_t h, uint32_t *out) { ENTER(h); out[2] = 41; return OK; }
rc_t nvmlDeviceGetFanSpeed(device_t h, uint32_t *out) { ENTER(h); if (DEV(h)->mig_capable) return NOT_SUPPORTED; *out = 30; return OK; }
rc_t nvmlDeviceGetPowerUsage(device_t h, uint32_t *out) { ENTER(h); *out = 62000; return OK; }
rc_t nvmlDeviceGetEnforcedPowerLimit(device_t h, uint32_t *out) { ENTER(h); *out = 450000; return OK; }
rc_t nvmlDeviceGetPowerManagementLimit(device_t h, uint32_t *out) { ENTER(h); *out = 450000; return OK; }
rc_t nvmlDeviceGetPerformanceState(device_t h, uint32_t *out) { ENTER(h); *out = 8; return OK; }
rc_t nvmlDeviceGetPersistenceMode(device_t h, uint32_t *out) { ENTER(h); *out = 1; return OK; }
rc_t nvmlDeviceGetComputeMode(device_t h, uint32_t *out) { ENTER(h); *out = 0; return OK; }
rc_t nvmlDeviceGetDisplayActive(device_t h, uint32_t *out) { ENTER(h); *out = 0; return OK; }
rc_t nvmlDeviceGetDisplayMode(device_t h, uint32_t *out) { ENTER(h); *out = 0; return OK; }
rc_t nvmlDeviceGetClockInfo(device_t h, uint32_t kind, uint32_t *out) { (void)kind; ENTER(h); *out = 345; return OK; }
rc_t nvmlDeviceGetMaxClockInfo(device_t h, uint32_t kind, uint32_t *out) { (void)kind; ENTER(h); *out = 2520; return OK; }
rc_t nvmlDeviceGetDriverModel_v2(device_t h, uint32_t *a, uint32_t *b) { (void)a; (void)b; ENTER(h); return NOT_SUPPORTED; }
rc_t nvmlDeviceGetTotalEccErrors(device_t h, uint32_t a, uint32_t b, uint64_t *out) {
    (void)a;
    (void)b;
    ENTER(h);
    if (!DEV(h)->mig_capable) return NOT_SUPPORTED;
    *out = 0;
    return OK;
}
rc_t nvmlDeviceGetEccMode(device_t h, uint32_t *a, uint32_t *b) { ENTER(h); if (!DEV(h)->mig_capable) return NOT_SUPPORTED; *a = *b = 1; return OK; }
