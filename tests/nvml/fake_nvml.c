/* A libnvidia-ml.so.1 without a driver: what it answers comes from a text file that a test writes.
 *
 * The file is named by fakeNvmlUse() or, before the first call, by the environment variable QUARTERDECK_FAKE_NVML. It is
 * read again whenever it was replaced. Its lines are `key value`; `gpu UUID` begins a GPU and `mig UUID` a MIG instance
 * of the GPU before it, and the keys after it are that device's. A number that is not there is a figure that the device
 * does not tell: the function gives "Not Supported". With `busy 1` the figures that follow the load are other ones every
 * second. Layouts and meanings are those of nvml.h as pynvml declares them.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum {
    SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9, TIMEOUT = 10, FUNCTION_NOT_FOUND = 13, GPU_IS_LOST = 15, LIB_RM_VERSION_MISMATCH = 18,
    ARGUMENT_VERSION_MISMATCH = 25
};

typedef int Return;
typedef unsigned int uint;
typedef unsigned long long ulong64;
typedef struct slot *Handle;
typedef struct event_set *EventSet;

#define ABSENT LLONG_MIN
#define NO_INSTANCE 0xFFFFFFFFu
#define EXPORT __attribute__((visibility("default")))

/* --- what the file says ------------------------------------------------------------------------------------------ */

#define NUMBERS(X) \
    X(minor) X(memory_total) X(memory_reserved) X(memory_used) X(bar1_total) X(bar1_used) \
    X(utilisation_gpu) X(utilisation_memory) X(utilisation_encoder) X(utilisation_decoder) \
    X(temperature) X(temperature_memory) X(temperature_shutdown) X(temperature_slowdown) X(temperature_memory_max) \
    X(power) X(power_limit) X(power_limit_default) X(power_limit_min) X(power_limit_max) X(energy) \
    X(clock_graphics) X(clock_sm) X(clock_memory) X(clock_video) \
    X(clock_graphics_max) X(clock_sm_max) X(clock_memory_max) X(clock_video_max) \
    X(throttle) X(fan) X(fans) X(pstate) X(pcie_generation) X(pcie_generation_max) X(pcie_generation_device) \
    X(pcie_width) X(pcie_width_max) X(pcie_sent) X(pcie_received) X(pcie_replays) \
    X(ecc) X(ecc_pending) X(ecc_corrected) X(ecc_uncorrected) X(ecc_corrected_ever) X(ecc_uncorrected_ever) \
    X(retired_corrected) X(retired_uncorrected) X(retired_pending) \
    X(remapped_corrected) X(remapped_uncorrected) X(remap_pending) X(remap_failed) \
    X(compute_mode) X(persistence) X(display_mode) X(display_active) X(mig_mode) X(mig_pending) X(mig_max) \
    X(capability_major) X(capability_minor) X(architecture) X(brand) X(cores) X(event_types) X(pci_device) \
    X(gpu_instance) X(compute_instance) X(multiprocessors) X(gpu_slices) X(compute_slices)

#define TEXTS(X) X(name) X(bus) X(serial) X(part) X(vbios)

struct nvlink { int present; uint active, version, type; char bus[32]; };

struct device {
    char uuid[96];
    int parent; /* the place of its GPU for a MIG instance, -1 for a GPU */
    int index;  /* among the GPUs, or among the MIG instances of its GPU */
    struct nvlink links[18];
#define X(key) char key[96];
    TEXTS(X)
#undef X
#define X(key) long long key;
    NUMBERS(X)
#undef X
};

struct process { int device; char kind; uint pid; long long memory; uint sm, mem, enc, dec; };
struct event { ulong64 serial, type, data; int device; uint gpu_instance, compute_instance; };
struct fault { char function[80]; int device, code; double seconds; };

#define MOST_DEVICES 320
#define MOST_PROCESSES 4096
#define MOST_EVENTS 256
#define MOST_FAULTS 64

struct machine {
    char driver[80], nvml[80], loaded[16];
    int cuda, busy, devices, processes, events, faults;
    long long generation;
    struct device device[MOST_DEVICES];
    struct process process[MOST_PROCESSES];
    struct event event[MOST_EVENTS];
    struct fault fault[MOST_FAULTS]; /* an error where seconds is 0, a hang otherwise; device -1 is all */
};

static const struct number { const char *key; size_t offset; } numbers[] = {
#define X(key) {#key, offsetof(struct device, key)},
    NUMBERS(X)
#undef X
};
static const struct text { const char *key; size_t offset; } texts[] = {
#define X(key) {#key, offsetof(struct device, key)},
    TEXTS(X)
#undef X
};

/* --- what this process knows --------------------------------------------------------------------------------------- */

struct slot { char uuid[96]; int place; ulong64 read; }; /* a handle outlives every reading of the file */
struct event_set { ulong64 types[MOST_DEVICES]; char uuid[MOST_DEVICES][96]; int registered; ulong64 delivered; };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char path[4096];
static struct machine *machine;
static struct stat last;
static ulong64 readings;
static struct slot slots[4 * MOST_DEVICES];
static int slots_used;
static int initialised;
static long long initialised_generation;
static char visible[MOST_DEVICES][96]; /* the GPUs that were there at nvmlInit: others appear with the next one */
static int visible_count;

static void copied(char *to, size_t size, const char *from) { snprintf(to, size, "%s", from); }

static struct device *added(struct machine *m, const char *uuid, int parent)
{
    if (m->devices == MOST_DEVICES)
        return NULL;
    struct device *d = &m->device[m->devices];
    memset(d, 0, sizeof *d);
    copied(d->uuid, sizeof d->uuid, uuid);
    d->parent = parent;
    for (int i = 0; i < m->devices; i++)
        d->index += m->device[i].parent == parent;
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        *(long long *)((char *)d + numbers[i].offset) = ABSENT;
    m->devices++;
    return d;
}

static void parse_device(struct machine *m, struct device *d, const char *key, const char *value)
{
    int at = (int)(d - m->device);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (!strcmp(key, numbers[i].key))
            *(long long *)((char *)d + numbers[i].offset) = atoll(value);
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        if (!strcmp(key, texts[i].key))
            copied((char *)d + texts[i].offset, 96, value);
    if (!strcmp(key, "process") && m->processes < MOST_PROCESSES) {
        struct process *p = &m->process[m->processes++];
        p->device = at;
        sscanf(value, "%c %u %lld %u %u %u %u", &p->kind, &p->pid, &p->memory, &p->sm, &p->mem, &p->enc, &p->dec);
    } else if (!strcmp(key, "nvlink")) {
        struct nvlink link = {.present = 1};
        uint number = 18;
        sscanf(value, "%u %u %u %u %31s", &number, &link.active, &link.version, &link.type, link.bus);
        if (number < 18)
            d->links[number] = link;
    } else if (!strcmp(key, "event") && m->events < MOST_EVENTS) {
        struct event *e = &m->event[m->events++];
        e->device = at;
        sscanf(value, "%llu %llu %llu %u %u", &e->serial, &e->type, &e->data, &e->gpu_instance, &e->compute_instance);
    }
}

static void parse_line(struct machine *m, char *line)
{
    char *value = strchr(line, ' ');
    if (!value)
        return;
    *value++ = 0;
    int gpu = -1;
    for (int i = 0; i < m->devices; i++)
        if (m->device[i].parent < 0)
            gpu = i;
    if (!strcmp(line, "gpu"))
        added(m, value, -1);
    else if (!strcmp(line, "mig"))
        added(m, value, gpu);
    else if (!strcmp(line, "driver"))
        copied(m->driver, sizeof m->driver, value);
    else if (!strcmp(line, "nvml"))
        copied(m->nvml, sizeof m->nvml, value);
    else if (!strcmp(line, "loaded"))
        copied(m->loaded, sizeof m->loaded, value);
    else if (!strcmp(line, "cuda"))
        m->cuda = atoi(value);
    else if (!strcmp(line, "busy"))
        m->busy = atoi(value);
    else if (!strcmp(line, "generation"))
        m->generation = atoll(value);
    else if (!strcmp(line, "fault") && m->faults < MOST_FAULTS) {
        struct fault *f = &m->fault[m->faults++];
        sscanf(value, "%79s %d %d %lf", f->function, &f->device, &f->code, &f->seconds);
    } else if (m->devices)
        parse_device(m, &m->device[m->devices - 1], line, value);
}

/* Read the file if it is another one than the last time; with the lock held. */
static void refresh(void)
{
    if (!path[0]) {
        const char *named = getenv("QUARTERDECK_FAKE_NVML");
        if (named)
            copied(path, sizeof path, named);
    }
    struct stat now;
    if (!path[0] || stat(path, &now))
        return;
    if (machine && now.st_ino == last.st_ino && now.st_dev == last.st_dev && now.st_size == last.st_size &&
        now.st_mtim.tv_sec == last.st_mtim.tv_sec && now.st_mtim.tv_nsec == last.st_mtim.tv_nsec)
        return;
    FILE *file = fopen(path, "r");
    struct machine *fresh = file ? calloc(1, sizeof *fresh) : NULL;
    if (fresh) {
        char line[1024];
        copied(fresh->loaded, sizeof fresh->loaded, "yes");
        while (fgets(line, sizeof line, file)) {
            line[strcspn(line, "\n")] = 0;
            parse_line(fresh, line);
        }
        free(machine);
        machine = fresh;
        last = now;
        readings++;
    }
    if (file)
        fclose(file);
}

EXPORT void fakeNvmlUse(const char *file)
{
    pthread_mutex_lock(&lock);
    copied(path, sizeof path, file);
    free(machine);
    machine = NULL;
    initialised = visible_count = 0;
    readings++;
    pthread_mutex_unlock(&lock);
}

/* --- how every function begins and ends ---------------------------------------------------------------------------- */

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void doze(double seconds)
{
    struct timespec t = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
    while (nanosleep(&t, &t) && errno == EINTR)
        ;
}

static int place_of(struct slot *slot)
{
    if (slot->read != readings || slot->place < 0) {
        slot->read = readings;
        slot->place = -1;
        for (int i = 0; machine && i < machine->devices; i++)
            if (!strcmp(machine->device[i].uuid, slot->uuid))
                slot->place = i;
    }
    return slot->place;
}

static Handle handle_of(const char *uuid)
{
    for (int i = 0; i < slots_used; i++)
        if (!strcmp(slots[i].uuid, uuid))
            return &slots[i];
    if (slots_used == 4 * MOST_DEVICES)
        return NULL;
    copied(slots[slots_used].uuid, sizeof slots[0].uuid, uuid);
    slots[slots_used].place = -1;
    return &slots[slots_used++];
}

/* The fault told for a function; with `own`, only one that is told for this device and not for all. */
static const struct fault *fault_of(const char *function, int device, int hang, int own)
{
    for (int i = 0; machine && i < machine->faults; i++) {
        const struct fault *f = &machine->fault[i];
        int same = !strcmp(f->function, function) || (!strcmp(f->function, "*") && strcmp(function, "nvmlErrorString"));
        int parent = device >= 0 ? machine->device[device].parent : -1;
        int of_device = f->device < 0 || (device >= 0 && f->device == machine->device[parent < 0 ? device : parent].index);
        if (same && of_device && !(own && f->device < 0) && (f->seconds > 0) == hang)
            return f;
    }
    return NULL;
}

/* Sleep as long as the file says that this function hangs; ends early when the file no longer says so. */
static void hang(const char *function, Handle handle, int own)
{
    double began = now();
    const struct fault *f;
    while ((f = fault_of(function, handle ? place_of(handle) : -1, 1, own)) && now() - began < f->seconds) {
        pthread_mutex_unlock(&lock);
        doze(0.01);
        pthread_mutex_lock(&lock);
        refresh();
    }
}

static Return done(Return code)
{
    pthread_mutex_unlock(&lock);
    return code;
}

/* Takes the lock, and keeps it where the answer is SUCCESS: the function then ends with done(). */
static Return begin(const char *function, int needs_handle, Handle handle, struct device **device)
{
    pthread_mutex_lock(&lock);
    refresh();
    if (handle && (handle < slots || handle >= slots + slots_used))
        return done(INVALID_ARGUMENT);
    hang(function, handle, 0);
    int at = handle ? place_of(handle) : -1;
    const struct fault *f = fault_of(function, at, 0, 0);
    if (f)
        return done(f->code);
    if (!machine || !strcmp(machine->loaded, "absent"))
        return done(DRIVER_NOT_LOADED);
    if (!strcmp(machine->loaded, "mismatch"))
        return done(LIB_RM_VERSION_MISMATCH);
    if (!initialised || initialised_generation != machine->generation)
        return done(UNINITIALIZED);
    if (!needs_handle)
        return SUCCESS;
    if (!handle)
        return done(INVALID_ARGUMENT);
    if (at < 0)
        return done(GPU_IS_LOST);
    *device = &machine->device[at];
    return SUCCESS;
}

#define SYSTEM                                              \
    do {                                                    \
        Return code_ = begin(__func__, 0, NULL, NULL);      \
        if (code_)                                          \
            return code_;                                   \
    } while (0)

#define DEVICE(handle)                                      \
    struct device *d = NULL;                                \
    do {                                                    \
        Return code_ = begin(__func__, 1, (handle), &d);    \
        if (code_)                                          \
            return code_;                                   \
    } while (0)

/* A value that follows the load: up to `by` more, another one every second, where the machine is said to be busy. */
static long long moved(const struct device *d, long long value, int by)
{
    if (!machine->busy || value == ABSENT)
        return value;
    unsigned long long mixed = ((ulong64)time(NULL) * 64 + (ulong64)(d - machine->device)) * 0x9E3779B97F4A7C15ull;
    return value + (long long)(mixed >> 33) % by;
}

#define NEEDS(field)                                        \
    do {                                                    \
        if ((field) == ABSENT)                              \
            return done(NOT_SUPPORTED);                     \
    } while (0)

static Return text_of(const char *text, char *to, uint size)
{
    if (!text[0])
        return done(NOT_SUPPORTED);
    if (strlen(text) >= size)
        return done(INSUFFICIENT_SIZE);
    copied(to, size, text);
    return done(SUCCESS);
}

/* --- the library itself ---------------------------------------------------------------------------------------------- */

static Return init(const char *function)
{
    pthread_mutex_lock(&lock);
    refresh();
    hang(function, NULL, 0);
    const struct fault *f = fault_of(function, -1, 0, 0);
    if (f)
        return done(f->code);
    if (!machine || !strcmp(machine->loaded, "absent"))
        return done(DRIVER_NOT_LOADED);
    if (!strcmp(machine->loaded, "mismatch"))
        return done(LIB_RM_VERSION_MISMATCH);
    initialised++;
    initialised_generation = machine->generation;
    visible_count = 0;
    for (int i = 0; i < machine->devices; i++)
        if (machine->device[i].parent < 0)
            copied(visible[visible_count++], sizeof visible[0], machine->device[i].uuid);
    return done(SUCCESS);
}

EXPORT Return nvmlInitWithFlags(uint flags) { (void)flags; return init(__func__); }
EXPORT Return nvmlInit_v2(void) { return init(__func__); }
EXPORT Return nvmlInit(void) { return init(__func__); }

EXPORT Return nvmlShutdown(void)
{
    SYSTEM;
    initialised--;
    return done(SUCCESS);
}

EXPORT const char *nvmlErrorString(Return code)
{
    static const char *const words[] = {
        "Success", "Uninitialized", "Invalid Argument", "Not Supported", "Insufficient Permissions",
        "Already Initialized", "Not Found", "Insufficient Size", "Insufficient External Power", "Driver Not Loaded",
        "Timeout", "Interrupt Request Issue", "NVML Shared Library Not Found", "Function Not Found",
        "Corrupted infoROM", "GPU is lost", "GPU requires reset", "The operating system has blocked the request",
        "Driver/library version mismatch", "In use by another client", "Insufficient Memory", "No data",
    };
    return code >= 0 && (size_t)code < sizeof words / sizeof *words ? words[code] : "Unknown Error";
}

EXPORT Return nvmlSystemGetDriverVersion(char *to, uint size) { SYSTEM; return text_of(machine->driver, to, size); }
EXPORT Return nvmlSystemGetNVMLVersion(char *to, uint size) { SYSTEM; return text_of(machine->nvml, to, size); }

EXPORT Return nvmlSystemGetCudaDriverVersion(int *to)
{
    SYSTEM;
    *to = machine->cuda;
    return done(SUCCESS);
}

EXPORT Return nvmlSystemGetCudaDriverVersion_v2(int *to)
{
    SYSTEM;
    *to = machine->cuda;
    return done(SUCCESS);
}

EXPORT Return nvmlSystemGetProcessName(uint pid, char *to, uint size)
{
    SYSTEM;
    char name[64], line[256] = "";
    snprintf(name, sizeof name, "/proc/%u/comm", pid);
    FILE *file = fopen(name, "r");
    if (!file)
        return done(NOT_FOUND);
    if (!fgets(line, sizeof line, file))
        line[0] = 0;
    fclose(file);
    line[strcspn(line, "\n")] = 0;
    return text_of(line, to, size);
}

/* --- which devices there are ----------------------------------------------------------------------------------------- */

EXPORT Return nvmlDeviceGetCount_v2(uint *to)
{
    SYSTEM;
    *to = (uint)visible_count;
    return done(SUCCESS);
}

/* The handle of a device, unless a fault is told for it and this function: a lost GPU gives none. */
static Return found(const char *function, const char *uuid, Handle *to)
{
    Handle handle = handle_of(uuid);
    int at = place_of(handle);
    if (at < 0)
        return done(GPU_IS_LOST);
    hang(function, handle, 1);
    const struct fault *f = fault_of(function, place_of(handle), 0, 1);
    if (f)
        return done(f->code);
    *to = handle;
    return done(SUCCESS);
}

EXPORT Return nvmlDeviceGetHandleByIndex_v2(uint index, Handle *to)
{
    SYSTEM;
    if (index >= (uint)visible_count)
        return done(INVALID_ARGUMENT);
    return found(__func__, visible[index], to);
}

static int is_visible(const struct device *d)
{
    const char *uuid = d->parent < 0 ? d->uuid : machine->device[d->parent].uuid;
    for (int i = 0; i < visible_count; i++)
        if (!strcmp(visible[i], uuid))
            return 1;
    return 0;
}

EXPORT Return nvmlDeviceGetHandleByUUID(const char *uuid, Handle *to)
{
    SYSTEM;
    for (int i = 0; i < machine->devices; i++)
        if (!strcmp(machine->device[i].uuid, uuid) && is_visible(&machine->device[i]))
            return found(__func__, uuid, to);
    return done(NOT_FOUND);
}

/* The driver writes domains with eight digits and takes them with four as well. */
static const char *short_bus(const char *bus)
{
    const char *colon = strchr(bus, ':');
    return colon && colon - bus == 8 ? bus + 4 : bus;
}

EXPORT Return nvmlDeviceGetHandleByPciBusId_v2(const char *bus, Handle *to)
{
    SYSTEM;
    for (int i = 0; i < machine->devices; i++) {
        struct device *d = &machine->device[i];
        if (d->parent < 0 && !strcasecmp(short_bus(d->bus), short_bus(bus)) && is_visible(d))
            return found(__func__, d->uuid, to);
    }
    return done(NOT_FOUND);
}

EXPORT Return nvmlDeviceGetIndex(Handle handle, uint *to)
{
    DEVICE(handle);
    for (int i = 0; i < visible_count && d->parent < 0; i++)
        if (!strcmp(visible[i], d->uuid))
            *to = (uint)i;
    if (d->parent >= 0)
        *to = (uint)d->index;
    return done(SUCCESS);
}

EXPORT Return nvmlDeviceGetName(Handle handle, char *to, uint size) { DEVICE(handle); return text_of(d->name, to, size); }
EXPORT Return nvmlDeviceGetUUID(Handle handle, char *to, uint size) { DEVICE(handle); return text_of(d->uuid, to, size); }
EXPORT Return nvmlDeviceGetSerial(Handle handle, char *to, uint size) { DEVICE(handle); return text_of(d->serial, to, size); }
EXPORT Return nvmlDeviceGetVbiosVersion(Handle handle, char *to, uint size)
{
    DEVICE(handle);
    return text_of(d->vbios, to, size);
}
EXPORT Return nvmlDeviceGetBoardPartNumber(Handle handle, char *to, uint size)
{
    DEVICE(handle);
    return text_of(d->part, to, size);
}

struct pci { char legacy[16]; uint domain, bus, device, id, subsystem; char bus_id[32]; };

static void pci_of(const char *bus, long long id, struct pci *to)
{
    memset(to, 0, sizeof *to);
    sscanf(bus, "%x:%x:%x", &to->domain, &to->bus, &to->device);
    copied(to->bus_id, sizeof to->bus_id, bus);
    copied(to->legacy, sizeof to->legacy, short_bus(bus));
    to->id = id == ABSENT ? 0 : (uint)id;
}

EXPORT Return nvmlDeviceGetPciInfo_v3(Handle handle, struct pci *to)
{
    DEVICE(handle);
    if (!d->bus[0])
        return done(NOT_SUPPORTED);
    pci_of(d->bus, d->pci_device, to);
    return done(SUCCESS);
}

/* --- memory ---------------------------------------------------------------------------------------------------------- */

struct memory { ulong64 total, free, used; };
struct memory_v2 { uint version; ulong64 total, reserved, free, used; };

static ulong64 reserved(const struct device *d) { return d->memory_reserved == ABSENT ? 0 : (ulong64)d->memory_reserved; }

/* In the first version `used` holds what the driver reserves, in the second one it does not. */
EXPORT Return nvmlDeviceGetMemoryInfo(Handle handle, struct memory *to)
{
    DEVICE(handle);
    NEEDS(d->memory_total);
    NEEDS(d->memory_used);
    to->total = (ulong64)d->memory_total;
    to->used = (ulong64)d->memory_used + reserved(d);
    to->free = to->total - to->used;
    return done(SUCCESS);
}

EXPORT Return nvmlDeviceGetMemoryInfo_v2(Handle handle, struct memory_v2 *to)
{
    DEVICE(handle);
    if (to->version != (sizeof *to | 2u << 24))
        return done(ARGUMENT_VERSION_MISMATCH);
    NEEDS(d->memory_total);
    NEEDS(d->memory_used);
    to->total = (ulong64)d->memory_total;
    to->reserved = reserved(d);
    to->used = (ulong64)d->memory_used;
    to->free = to->total - to->used - to->reserved;
    return done(SUCCESS);
}

EXPORT Return nvmlDeviceGetBAR1MemoryInfo(Handle handle, struct memory *to)
{
    DEVICE(handle);
    NEEDS(d->bar1_total);
    to->total = (ulong64)d->bar1_total;
    to->used = d->bar1_used == ABSENT ? 0 : (ulong64)d->bar1_used;
    to->free = to->total - to->used;
    return done(SUCCESS);
}

/* --- one number each --------------------------------------------------------------------------------------------------- */

#define ONE(function, type, field)                          \
    EXPORT Return function(Handle handle, type *to)         \
    {                                                       \
        DEVICE(handle);                                     \
        NEEDS(d->field);                                    \
        *to = (type)d->field;                               \
        return done(SUCCESS);                               \
    }

#define TWO(function, type, first_field, second_field)              \
    EXPORT Return function(Handle handle, type *first, type *second) \
    {                                                               \
        DEVICE(handle);                                             \
        NEEDS(d->first_field);                                      \
        NEEDS(d->second_field);                                     \
        *first = (type)d->first_field;                              \
        *second = (type)d->second_field;                            \
        return done(SUCCESS);                                       \
    }

ONE(nvmlDeviceGetMinorNumber, uint, minor)
ONE(nvmlDeviceGetEnforcedPowerLimit, uint, power_limit)
ONE(nvmlDeviceGetPowerManagementLimit, uint, power_limit)
ONE(nvmlDeviceGetPowerManagementDefaultLimit, uint, power_limit_default)
ONE(nvmlDeviceGetTotalEnergyConsumption, ulong64, energy)
ONE(nvmlDeviceGetFanSpeed, uint, fan)
ONE(nvmlDeviceGetNumFans, uint, fans)
ONE(nvmlDeviceGetPerformanceState, uint, pstate)
ONE(nvmlDeviceGetPowerState, uint, pstate)
ONE(nvmlDeviceGetCurrPcieLinkGeneration, uint, pcie_generation)
ONE(nvmlDeviceGetMaxPcieLinkGeneration, uint, pcie_generation_max)
ONE(nvmlDeviceGetGpuMaxPcieLinkGeneration, uint, pcie_generation_device)
ONE(nvmlDeviceGetCurrPcieLinkWidth, uint, pcie_width)
ONE(nvmlDeviceGetMaxPcieLinkWidth, uint, pcie_width_max)
ONE(nvmlDeviceGetPcieReplayCounter, uint, pcie_replays)
ONE(nvmlDeviceGetCurrentClocksEventReasons, ulong64, throttle)
ONE(nvmlDeviceGetCurrentClocksThrottleReasons, ulong64, throttle)
ONE(nvmlDeviceGetRetiredPagesPendingStatus, uint, retired_pending)
ONE(nvmlDeviceGetComputeMode, uint, compute_mode)
ONE(nvmlDeviceGetPersistenceMode, uint, persistence)
ONE(nvmlDeviceGetDisplayMode, uint, display_mode)
ONE(nvmlDeviceGetDisplayActive, uint, display_active)
ONE(nvmlDeviceGetArchitecture, uint, architecture)
ONE(nvmlDeviceGetBrand, uint, brand)
ONE(nvmlDeviceGetNumGpuCores, uint, cores)
ONE(nvmlDeviceGetSupportedEventTypes, ulong64, event_types)
ONE(nvmlDeviceGetMaxMigDeviceCount, uint, mig_max)
ONE(nvmlDeviceGetGpuInstanceId, uint, gpu_instance)
ONE(nvmlDeviceGetComputeInstanceId, uint, compute_instance)
TWO(nvmlDeviceGetPowerManagementLimitConstraints, uint, power_limit_min, power_limit_max)
TWO(nvmlDeviceGetEccMode, uint, ecc, ecc_pending)
TWO(nvmlDeviceGetMigMode, uint, mig_mode, mig_pending)
TWO(nvmlDeviceGetCudaComputeCapability, int, capability_major, capability_minor)

EXPORT Return nvmlDeviceGetPowerUsage(Handle handle, uint *to)
{
    DEVICE(handle);
    NEEDS(d->power);
    *to = (uint)moved(d, d->power, 50000);
    return done(SUCCESS);
}

EXPORT Return nvmlDeviceGetFanSpeed_v2(Handle handle, uint number, uint *to)
{
    DEVICE(handle);
    NEEDS(d->fan);
    if (d->fans != ABSENT && number >= (uint)d->fans)
        return done(INVALID_ARGUMENT);
    *to = (uint)d->fan;
    return done(SUCCESS);
}

struct rates { uint gpu, memory; };

EXPORT Return nvmlDeviceGetUtilizationRates(Handle handle, struct rates *to)
{
    DEVICE(handle);
    NEEDS(d->utilisation_gpu);
    to->gpu = (uint)moved(d, d->utilisation_gpu, 20);
    to->memory = d->utilisation_memory == ABSENT ? 0 : (uint)moved(d, d->utilisation_memory, 10);
    return done(SUCCESS);
}

#define CODEC(function, field)                                      \
    EXPORT Return function(Handle handle, uint *to, uint *period)   \
    {                                                               \
        DEVICE(handle);                                             \
        NEEDS(d->field);                                            \
        *to = (uint)d->field;                                       \
        *period = 167000;                                           \
        return done(SUCCESS);                                       \
    }

CODEC(nvmlDeviceGetEncoderUtilization, utilisation_encoder)
CODEC(nvmlDeviceGetDecoderUtilization, utilisation_decoder)

EXPORT Return nvmlDeviceGetTemperature(Handle handle, uint sensor, uint *to)
{
    DEVICE(handle);
    if (sensor != 0)
        return done(INVALID_ARGUMENT);
    NEEDS(d->temperature);
    *to = (uint)moved(d, d->temperature, 3);
    return done(SUCCESS);
}

struct temperature { uint version, sensor; int temperature; };

EXPORT Return nvmlDeviceGetTemperatureV(Handle handle, struct temperature *to)
{
    DEVICE(handle);
    if (to->version != (sizeof *to | 1u << 24))
        return done(ARGUMENT_VERSION_MISMATCH);
    if (to->sensor != 0)
        return done(INVALID_ARGUMENT);
    NEEDS(d->temperature);
    to->temperature = (int)moved(d, d->temperature, 3);
    return done(SUCCESS);
}

EXPORT Return nvmlDeviceGetTemperatureThreshold(Handle handle, uint which, uint *to)
{
    DEVICE(handle);
    long long value = which == 0   ? d->temperature_shutdown
                      : which == 1 ? d->temperature_slowdown
                      : which == 2 ? d->temperature_memory_max
                                   : ABSENT;
    NEEDS(value);
    *to = (uint)value;
    return done(SUCCESS);
}

static Return clock_of(uint type, const long long of[4], uint *to)
{
    if (type > 3)
        return done(INVALID_ARGUMENT);
    NEEDS(of[type]);
    *to = (uint)of[type];
    return done(SUCCESS);
}

EXPORT Return nvmlDeviceGetClockInfo(Handle handle, uint type, uint *to)
{
    DEVICE(handle);
    return clock_of(type, (long long[]){moved(d, d->clock_graphics, 60), d->clock_sm, d->clock_memory, d->clock_video}, to);
}

EXPORT Return nvmlDeviceGetMaxClockInfo(Handle handle, uint type, uint *to)
{
    DEVICE(handle);
    long long most[] = {d->clock_graphics_max, d->clock_sm_max, d->clock_memory_max, d->clock_video_max};
    return clock_of(type, most, to);
}

/* Every reason that there is a bit for. */
EXPORT Return nvmlDeviceGetSupportedClocksEventReasons(Handle handle, ulong64 *to)
{
    DEVICE(handle);
    NEEDS(d->throttle);
    *to = 0x1ff;
    return done(SUCCESS);
}

EXPORT Return nvmlDeviceGetSupportedClocksThrottleReasons(Handle handle, ulong64 *to)
{
    DEVICE(handle);
    NEEDS(d->throttle);
    *to = 0x1ff;
    return done(SUCCESS);
}

/* Kilobytes a second, as the driver counts. */
EXPORT Return nvmlDeviceGetPcieThroughput(Handle handle, uint counter, uint *to)
{
    DEVICE(handle);
    if (counter > 1)
        return done(INVALID_ARGUMENT);
    long long value = counter == 0 ? d->pcie_sent : d->pcie_received;
    NEEDS(value);
    *to = (uint)value;
    return done(SUCCESS);
}

/* --- NVLink ------------------------------------------------------------------------------------------------------------ */

#define LINK(handle, number)                        \
    DEVICE(handle);                                 \
    do {                                            \
        if ((number) >= 18)                         \
            return done(INVALID_ARGUMENT);          \
        if (!d->links[number].present)              \
            return done(NOT_SUPPORTED);             \
    } while (0)

EXPORT Return nvmlDeviceGetNvLinkState(Handle handle, uint link, uint *to)
{
    LINK(handle, link);
    *to = d->links[link].active;
    return done(SUCCESS);
}

EXPORT Return nvmlDeviceGetNvLinkVersion(Handle handle, uint link, uint *to)
{
    LINK(handle, link);
    *to = d->links[link].version;
    return done(SUCCESS);
}

EXPORT Return nvmlDeviceGetNvLinkRemotePciInfo_v2(Handle handle, uint link, struct pci *to)
{
    LINK(handle, link);
    if (!d->links[link].active || !d->links[link].bus[0])
        return done(NOT_SUPPORTED);
    pci_of(d->links[link].bus, ABSENT, to);
    return done(SUCCESS);
}

EXPORT Return nvmlDeviceGetNvLinkRemoteDeviceType(Handle handle, uint link, uint *to)
{
    LINK(handle, link);
    *to = d->links[link].type;
    return done(SUCCESS);
}

/* --- errors of the memory ------------------------------------------------------------------------------------------------ */

static long long errors_of(const struct device *d, uint type, uint counter)
{
    if (type == 0)
        return counter == 0 ? d->ecc_corrected : d->ecc_corrected_ever;
    return counter == 0 ? d->ecc_uncorrected : d->ecc_uncorrected_ever;
}

EXPORT Return nvmlDeviceGetTotalEccErrors(Handle handle, uint type, uint counter, ulong64 *to)
{
    DEVICE(handle);
    if (type > 1 || counter > 1)
        return done(INVALID_ARGUMENT);
    NEEDS(errors_of(d, type, counter));
    *to = (ulong64)errors_of(d, type, counter);
    return done(SUCCESS);
}

/* All of them are in the device memory (location 2). */
EXPORT Return nvmlDeviceGetMemoryErrorCounter(Handle handle, uint type, uint counter, uint location, ulong64 *to)
{
    DEVICE(handle);
    if (type > 1 || counter > 1 || location > 7)
        return done(INVALID_ARGUMENT);
    NEEDS(errors_of(d, type, counter));
    *to = location == 2 ? (ulong64)errors_of(d, type, counter) : 0;
    return done(SUCCESS);
}

static Return pages_of(const struct device *d, uint cause, uint *count, ulong64 *pages, ulong64 *times)
{
    long long value = cause == 0 ? d->retired_corrected : cause == 1 ? d->retired_uncorrected : ABSENT;
    NEEDS(value);
    uint room = *count;
    *count = (uint)value;
    if (room < (uint)value)
        return done(INSUFFICIENT_SIZE);
    for (uint i = 0; i < (uint)value; i++) {
        pages[i] = 0x10000ull * (i + 1);
        if (times)
            times[i] = 1700000000ull + i;
    }
    return done(SUCCESS);
}

EXPORT Return nvmlDeviceGetRetiredPages(Handle handle, uint cause, uint *count, ulong64 *pages)
{
    DEVICE(handle);
    return pages_of(d, cause, count, pages, NULL);
}

EXPORT Return nvmlDeviceGetRetiredPages_v2(Handle handle, uint cause, uint *count, ulong64 *pages, ulong64 *times)
{
    DEVICE(handle);
    return pages_of(d, cause, count, pages, times);
}

EXPORT Return nvmlDeviceGetRemappedRows(Handle handle, uint *corrected, uint *uncorrected, uint *pending, uint *failed)
{
    DEVICE(handle);
    NEEDS(d->remapped_corrected);
    *corrected = (uint)d->remapped_corrected;
    *uncorrected = d->remapped_uncorrected == ABSENT ? 0 : (uint)d->remapped_uncorrected;
    *pending = d->remap_pending == 1;
    *failed = d->remap_failed == 1;
    return done(SUCCESS);
}

/* --- MIG ----------------------------------------------------------------------------------------------------------------- */

EXPORT Return nvmlDeviceIsMigDeviceHandle(Handle handle, uint *to)
{
    DEVICE(handle);
    *to = d->parent >= 0;
    return done(SUCCESS);
}

EXPORT Return nvmlDeviceGetMigDeviceHandleByIndex(Handle handle, uint index, Handle *to)
{
    DEVICE(handle);
    int parent = (int)(d - machine->device);
    if (d->mig_mode == ABSENT)
        return done(NOT_SUPPORTED);
    if (d->mig_max == ABSENT || index >= (uint)d->mig_max)
        return done(INVALID_ARGUMENT);
    for (int i = 0; i < machine->devices; i++)
        if (machine->device[i].parent == parent && machine->device[i].index == (int)index)
            return found(__func__, machine->device[i].uuid, to);
    return done(NOT_FOUND);
}

EXPORT Return nvmlDeviceGetDeviceHandleFromMigDeviceHandle(Handle handle, Handle *to)
{
    DEVICE(handle);
    if (d->parent < 0)
        return done(INVALID_ARGUMENT);
    return found(__func__, machine->device[d->parent].uuid, to);
}

struct attributes {
    uint multiprocessors, copy_engines, decoders, encoders, jpeg, ofa, gpu_slices, compute_slices;
    ulong64 memory;
};

EXPORT Return nvmlDeviceGetAttributes_v2(Handle handle, struct attributes *to)
{
    DEVICE(handle);
    NEEDS(d->multiprocessors);
    memset(to, 0, sizeof *to);
    to->multiprocessors = (uint)d->multiprocessors;
    to->copy_engines = 1;
    to->gpu_slices = d->gpu_slices == ABSENT ? 0 : (uint)d->gpu_slices;
    to->compute_slices = d->compute_slices == ABSENT ? 0 : (uint)d->compute_slices;
    to->memory = (ulong64)d->memory_total >> 20;
    return done(SUCCESS);
}

/* --- processes ------------------------------------------------------------------------------------------------------------- */

struct process_v1 { uint pid; ulong64 memory; };
struct process_v2 { uint pid; ulong64 memory; uint gpu_instance, compute_instance; };

static ulong64 memory_of(const struct process *p) { return p->memory < 0 ? ~0ull : (ulong64)p->memory; }

/* A GPU lists the processes of its MIG instances too; a MIG instance its own only. */
static Return processes_of(const struct device *d, char kind, int version, uint *count, void *to)
{
    int self = (int)(d - machine->device);
    uint room = *count, there = 0;
    for (int i = 0; i < machine->processes; i++) {
        const struct process *p = &machine->process[i];
        const struct device *at = &machine->device[p->device];
        if (p->kind != kind || (p->device != self && at->parent != self))
            continue;
        if (to && there < room && version == 1)
            ((struct process_v1 *)to)[there] = (struct process_v1){p->pid, memory_of(p)};
        else if (to && there < room)
            ((struct process_v2 *)to)[there] = (struct process_v2){
                p->pid, memory_of(p), at->gpu_instance == ABSENT ? NO_INSTANCE : (uint)at->gpu_instance,
                at->compute_instance == ABSENT ? NO_INSTANCE : (uint)at->compute_instance};
        there++;
    }
    *count = there;
    return done(there > room ? INSUFFICIENT_SIZE : SUCCESS);
}

#define PROCESSES(function, kind, version)                              \
    EXPORT Return function(Handle handle, uint *count, void *to)        \
    {                                                                   \
        DEVICE(handle);                                                 \
        return processes_of(d, kind, version, count, to);               \
    }

PROCESSES(nvmlDeviceGetComputeRunningProcesses, 'c', 1)
PROCESSES(nvmlDeviceGetComputeRunningProcesses_v2, 'c', 2)
PROCESSES(nvmlDeviceGetComputeRunningProcesses_v3, 'c', 3)
PROCESSES(nvmlDeviceGetGraphicsRunningProcesses, 'g', 1)
PROCESSES(nvmlDeviceGetGraphicsRunningProcesses_v2, 'g', 2)
PROCESSES(nvmlDeviceGetGraphicsRunningProcesses_v3, 'g', 3)
PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses, 'm', 1)
PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses_v2, 'm', 2)
PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses_v3, 'm', 3)

struct sample { uint pid; ulong64 time; uint sm, memory, encoder, decoder; };

/* One sample of each process every sixth of a second, as the driver takes them; none for a GPU that is cut by MIG. */
EXPORT Return nvmlDeviceGetProcessUtilization(Handle handle, struct sample *to, uint *count, ulong64 since)
{
    DEVICE(handle);
    if (d->parent >= 0 || d->mig_mode == 1)
        return done(NOT_SUPPORTED);
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    ulong64 time = (ulong64)t.tv_sec * 1000000ull + (ulong64)t.tv_nsec / 1000ull;
    time -= time % 166667;
    int self = (int)(d - machine->device);
    uint room = *count, there = 0;
    for (int i = 0; i < machine->processes && time > since; i++) {
        const struct process *p = &machine->process[i];
        if (p->device != self)
            continue;
        if (to && there < room)
            to[there] = (struct sample){p->pid, time, (uint)moved(d, p->sm, 20), p->mem, p->enc, p->dec};
        there++;
    }
    *count = there;
    return done(there == 0 ? NOT_FOUND : there > room || !to ? INSUFFICIENT_SIZE : SUCCESS);
}

/* --- events -------------------------------------------------------------------------------------------------------------------- */

struct event_data { Handle device; ulong64 type, data; uint gpu_instance, compute_instance; };

EXPORT Return nvmlEventSetCreate(EventSet *to)
{
    SYSTEM;
    *to = calloc(1, sizeof **to);
    return done(*to ? SUCCESS : 20);
}

EXPORT Return nvmlEventSetFree(EventSet set)
{
    SYSTEM;
    free(set);
    return done(SUCCESS);
}

EXPORT Return nvmlDeviceRegisterEvents(Handle handle, ulong64 types, EventSet set)
{
    DEVICE(handle);
    if (!set)
        return done(INVALID_ARGUMENT);
    if (d->parent >= 0 || d->event_types == ABSENT || (types & ~(ulong64)d->event_types))
        return done(NOT_SUPPORTED);
    if (set->registered == MOST_DEVICES)
        return done(INVALID_ARGUMENT);
    copied(set->uuid[set->registered], sizeof set->uuid[0], d->uuid);
    set->types[set->registered++] = types;
    return done(SUCCESS);
}

static int wants(const struct event_set *set, const struct event *e)
{
    const struct device *d = &machine->device[e->device];
    const char *uuid = d->parent < 0 ? d->uuid : machine->device[d->parent].uuid;
    for (int i = 0; i < set->registered; i++)
        if (!strcmp(set->uuid[i], uuid) && (set->types[i] & e->type))
            return e->serial > set->delivered;
    return 0;
}

/* The next event by serial number; a set gets each once, also those that were in the file before it was made. */
static const struct event *next_event(const struct event_set *set)
{
    const struct event *next = NULL;
    for (int i = 0; i < machine->events; i++)
        if (wants(set, &machine->event[i]) && (!next || machine->event[i].serial < next->serial))
            next = &machine->event[i];
    return next;
}

/* Something that can be waited for until the file is replaced; -1 where there is no such thing to be had. */
static int watch(void)
{
    char folder[sizeof path];
    pthread_mutex_lock(&lock);
    refresh();
    copied(folder, sizeof folder, path);
    pthread_mutex_unlock(&lock);
    char *slash = strrchr(folder, '/');
    if (!slash)
        return -1;
    *slash = 0;
    int fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
    if (fd >= 0 && inotify_add_watch(fd, folder, IN_MOVED_TO | IN_CLOSE_WRITE) < 0) {
        close(fd);
        return -1;
    }
    return fd;
}

/* Wait for a change of the file, at most so long; without inotify only for a moment. */
static void wait_for_change(int fd, double seconds)
{
    char events[4096];
    if (fd < 0) {
        doze(seconds < 0.01 ? seconds : 0.01);
        return;
    }
    struct pollfd one = {.fd = fd, .events = POLLIN};
    poll(&one, 1, seconds < 1 ? (int)(seconds * 1000) + 1 : 1000);
    while (read(fd, events, sizeof events) > 0)
        ;
}

static Return waited(EventSet set, struct event_data *to)
{
    Return code = begin("nvmlEventSetWait_v2", 0, NULL, NULL);
    if (code)
        return code;
    if (!set)
        return done(INVALID_ARGUMENT);
    const struct event *e = next_event(set);
    if (!e)
        return done(TIMEOUT);
    const struct device *d = &machine->device[e->device];
    const char *uuid = d->parent < 0 ? d->uuid : machine->device[d->parent].uuid;
    set->delivered = e->serial;
    *to = (struct event_data){handle_of(uuid), e->type, e->data, e->gpu_instance, e->compute_instance};
    return done(SUCCESS);
}

EXPORT Return nvmlEventSetWait_v2(EventSet set, struct event_data *to, uint milliseconds)
{
    double ends = now() + milliseconds / 1000.0;
    int fd = milliseconds ? watch() : -1;
    Return code = waited(set, to);
    while (code == TIMEOUT && now() < ends) {
        wait_for_change(fd, ends - now());
        code = waited(set, to);
    }
    if (fd >= 0)
        close(fd);
    return code;
}

/* --- fields -------------------------------------------------------------------------------------------------------------------- */

union value { double real; uint number; ulong64 large; };
struct field { uint id, scope; long long timestamp, latency; uint type; Return code; union value value; };

static long long field_of(const struct device *d, uint id)
{
    switch (id) {
    case 1: return d->ecc;
    case 2: return d->ecc_pending;
    case 3: return d->ecc_corrected;
    case 4: return d->ecc_uncorrected;
    case 5: return d->ecc_corrected_ever;
    case 6: return d->ecc_uncorrected_ever;
    case 29: return d->retired_corrected;
    case 30: return d->retired_uncorrected;
    case 31: return d->retired_pending;
    case 82: return d->temperature_memory;
    case 83: return d->energy;
    case 91: {
        int links = 0;
        for (int i = 0; i < 18; i++)
            links += d->links[i].present;
        return links;
    }
    case 94: return d->pcie_replays;
    case 142: return d->remapped_corrected;
    case 143: return d->remapped_uncorrected;
    case 144: return d->remap_pending;
    case 145: return d->remap_failed;
    case 185: case 186: return d->power;
    default: return ABSENT;
    }
}

EXPORT Return nvmlDeviceGetFieldValues(Handle handle, int count, struct field *fields)
{
    DEVICE(handle);
    for (int i = 0; i < count; i++) {
        long long value = field_of(d, fields[i].id);
        fields[i].code = value == ABSENT ? NOT_SUPPORTED : SUCCESS;
        fields[i].type = 3; /* unsigned long long, which the smaller kinds can be read from as well */
        fields[i].value.large = value == ABSENT ? 0 : (ulong64)value;
    }
    return done(SUCCESS);
}
