/* The C kernels in a process of their own, which tests/apart.py drives over its standard input and output: under a sanitizer, or for
 * another processor under an emulator, where Python itself cannot run. Numbers are of 8 bytes, little-endian.
 *
 * Every array of a call arrives as a region: its bytes, placed as in the caller's cache line between margins that nobody may touch. Under
 * AddressSanitizer they are poisoned; elsewhere they are compared afterwards, which finds stray writes. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "native.h"
#include "program.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(from, size) ((void)(from), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(from, size) ((void)(from), (void)(size))
#endif

enum { LINE = 64, MARGIN = 16 * LINE, GUARD = 0xA5 };

typedef struct region {
    unsigned char *block; /* MARGIN, `place` bytes, the data, MARGIN */
    int64_t place;
    int64_t size;
} region;

static void get(void *to, int64_t size)
{
    if (size && fread(to, (size_t)size, 1, stdin) != 1)
        exit(0); /* the caller has ended */
}

static void put(const void *from, int64_t size)
{
    if (size && fwrite(from, (size_t)size, 1, stdout) != 1)
        exit(3);
}

static int64_t number(void)
{
    int64_t value;
    get(&value, sizeof value);
    return value;
}

static void answer(int64_t value)
{
    put(&value, sizeof value);
}

static void text(char *to, int64_t room)
{
    int64_t size = number();
    if (size >= room)
        exit(3);
    get(to, size);
    to[size] = 0;
}

static unsigned char *data_of(const region *r)
{
    return r->block + MARGIN + r->place;
}

/* Both margins, as (start, size). */
static void margins(const region *r, unsigned char *start[2], int64_t size[2])
{
    start[0] = r->block;
    size[0] = MARGIN + r->place;
    start[1] = data_of(r) + r->size;
    size[1] = MARGIN;
}

static void receive(region *r)
{
    unsigned char *start[2];
    int64_t size[2];
    r->place = number();
    r->size = number();
    r->block = aligned_alloc(LINE, (size_t)((2 * MARGIN + r->place + r->size + LINE - 1) / LINE * LINE));
    if (!r->block)
        exit(3);
    get(data_of(r), r->size);
    margins(r, start, size);
    for (int i = 0; i < 2; i++) {
        memset(start[i], GUARD, (size_t)size[i]);
        ASAN_POISON_MEMORY_REGION(start[i], (size_t)size[i]);
    }
}

/* Whether its margins are as they were. */
static int intact(const region *r)
{
    unsigned char *start[2];
    int64_t size[2];
    int whole = 1;
    margins(r, start, size);
    for (int i = 0; i < 2; i++) {
        ASAN_UNPOISON_MEMORY_REGION(start[i], (size_t)size[i]);
        for (int64_t k = 0; k < size[i]; k++)
            whole &= start[i][k] == GUARD;
    }
    return whole;
}

/* cpunorm_run of the program in region 0, on the addresses in region 1. Addresses within regions are told apart: (region, offset) holds
 * that of (region, offset). Answers the number of the region with a damaged margin, or -1, and then all regions. */
static void run(void)
{
    int threads = (int)number();
    int64_t count = number(), addresses = number();
    region *regions = calloc((size_t)count, sizeof *regions);
    if (!regions)
        exit(3);
    for (int64_t i = 0; i < count; i++)
        receive(regions + i);
    for (int64_t i = 0; i < addresses; i++) {
        int64_t at[4];
        get(at, sizeof at);
        void *address = data_of(regions + at[2]) + at[3];
        memcpy(data_of(regions + at[0]) + at[1], &address, sizeof address);
    }
    /* Each slot is read as an array's data would be: cpunorm_data_field is 0 here. */
    void **slot = (void **)data_of(regions + 1);
    intptr_t s[SLOT_COUNT];
    for (int i = 0; i < SLOT_COUNT; i++)
        s[i] = slot[i] ? (intptr_t)&slot[i] : 0;
    cpunorm_run((intptr_t)data_of(regions), threads, s[X], s[SECOND], s[Y], s[SUM], s[WEIGHT], s[BIAS], s[RUNNING_MEAN], s[RUNNING_VAR],
                s[MEAN], s[RSTD], s[GRAD_WEIGHT], s[GRAD_BIAS], s[SCRATCH]);
    int64_t damaged = -1;
    for (int64_t i = 0; i < count; i++)
        if (!intact(regions + i))
            damaged = i;
    answer(damaged);
    for (int64_t i = 0; i < count; i++) {
        put(data_of(regions + i), regions[i].size);
        free(regions[i].block);
    }
    free(regions);
}

/* ---------------------------------------------------------------- what a sanitizer has to find: see .ci/sanitize */

static void sum_of_all(const step *s, void *const *buffers, int64_t lo, int64_t hi)
{
    for (int64_t i = lo; i < hi; i++)
        ((double *)buffers[SUM])[0] += ((const double *)buffers[X])[i * s->scale];
}

static void one_past_the_end(const step *s, void *const *buffers, int64_t lo, int64_t hi)
{
    (void)lo;
    ((double *)buffers[SUM])[hi == s->items ? s->items : 0] = 1;
}

static void not_aligned(const step *s, void *const *buffers, int64_t lo, int64_t hi)
{
    (void)s, (void)lo, (void)hi;
    *(double *)((char *)buffers[SUM] + 1) = 1;
}

static int plant(const char *name)
{
    static const struct {
        const char *name;
        void (*kernel)(const step *, void *const *, int64_t, int64_t);
    } planted[] = {{"race", sum_of_all}, {"overflow", one_past_the_end}, {"alignment", not_aligned}};
    enum { COUNT = 64 };
    void *x = calloc(COUNT, sizeof(double)), *sum = calloc(COUNT, sizeof(double));
    for (size_t i = 0; i < sizeof planted / sizeof planted[0]; i++)
        if (!strcmp(planted[i].name, name)) {
            const step s = {.kernel = (int64_t)(intptr_t)planted[i].kernel, .items = COUNT, .scale = 1};
            const phase p = {.items = COUNT, .block = 1, .part = 1, .count = 1};
            const program head = {&p, 1, &s};
            cpunorm_run((intptr_t)&head, 2, (intptr_t)&x, 0, 0, (intptr_t)&sum, 0, 0, 0, 0, 0, 0, 0, 0, 0);
            free(x);
            free(sum);
            return 0;
        }
    return 3;
}

int main(int argc, char **argv)
{
    if (argc == 3 && !strcmp(argv[1], "plant"))
        return plant(argv[2]);
    char name[100];
    for (;;) {
        switch (number()) {
        case 0: { /* the name of a set, empty past the last one, and whether it runs here */
            int set = (int)number();
            const char *found = cpunorm_set_name(set);
            int64_t size = found ? (int64_t)strlen(found) : 0;
            answer(size);
            put(found, size);
            answer(found && cpunorm_set_runs_here(set));
            break;
        }
        case 1: { /* a kernel */
            int set = (int)number(), dtype = (int)number();
            text(name, sizeof name);
            answer(cpunorm_kernel(set, name, dtype));
            break;
        }
        case 2: /* sizes of the structs */
            answer(sizeof(step));
            answer(sizeof(phase));
            answer(sizeof(program));
            answer(sizeof(picture));
            break;
        case 3:
            run();
            break;
        default:
            return 3;
        }
        fflush(stdout);
    }
}
