/* The driver: the phases of a program one after another, the blocks of each on several threads. Its twin is jit/drivers.py. */

#include <stdlib.h>

#include "driver.h"
#include "native.h"

typedef void kernel(const step *, void *const *buffers, int64_t lo, int64_t hi);

#ifdef _OPENMP
#include <omp.h>
const int cpunorm_has_openmp = 1;
#else
const int cpunorm_has_openmp = 0;
static int omp_get_num_procs(void) { return 1; }
static int omp_get_max_threads(void) { return 1; }
static int omp_get_thread_num(void) { return 0; }
#endif

int cpunorm_usual_threads = 1;

int cpunorm_processors(void)
{
    return omp_get_num_procs();
}

/* A limit that somebody has set in this Python thread since OpenMP started (omp_set_num_threads: threadpoolctl does it) counts.
 * What OpenMP started with does not: there, settings.py has decided. */
static int limited(int threads)
{
    int most = omp_get_max_threads();
    return most < cpunorm_usual_threads && most < threads ? most : threads;
}

/* Where an ndarray keeps the address of its data: right after the object header, whose size Python sets here
 * (object.__basicsize__: it is larger in a free-threaded or a tracing interpreter). PyArray_DATA reads this field in every compiled
 * user of NumPy, so that it cannot move without a new NumPy ABI. Reading it here takes no time; array.ctypes.data takes a microsecond or two. */
int cpunorm_data_field = 0;

void *cpunorm_data_of(intptr_t array)
{
    return array ? *(void **)(array + cpunorm_data_field) : 0;
}

static inline int64_t min(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* All steps of a phase over its block k, a part at a time. */
static void run_block(const phase *p, const step *steps, int64_t k, void *const *buffers)
{
    int64_t lo = k * p->block;
    const int64_t end = min(p->items, lo + p->block);
    for (; lo < end; lo += p->part) {
        int64_t hi = min(end, lo + p->part);
        for (const step *s = steps + p->first; s < steps + p->first + p->count; s++)
            ((kernel *)(intptr_t)s->kernel)(s, buffers, lo * s->scale, min(hi * s->scale, s->items));
    }
}

enum { MOST_THREADS = 1024 };

/* The blocks of a phase on several threads. Each has a contiguous share of them, as the yardstick's threads have: dealt out in turns they
 * took up to 1.3 times as long. From its share it takes one at a time, and who is through helps the others, so that a busy core costs
 * little (benchmarks/shares.c). */
static void share_out(const phase *p, const step *steps, int64_t blocks, int threads, void *const *buffers)
{
    struct {
        int64_t next;
        int64_t apart[7]; /* a cache line each */
    } shares[threads]; /* on the stack of who calls, which may be a small one */
    for (int i = 0; i < threads; i++)
        shares[i].next = blocks * i / threads;
    #pragma omp parallel num_threads(threads)
    for (int i = 0; i < threads; i++) {
        int whose = (omp_get_thread_num() + i) % threads;
        const int64_t end = blocks * (whose + 1) / threads;
        for (;;) {
            int64_t k;
            #pragma omp atomic capture
            k = shares[whose].next++;
            if (k >= end)
                break;
            run_block(p, steps, k, buffers);
        }
    }
}

/* num_threads is said each time: omp_set_num_threads would change the default of everybody else in this Python thread. One block or one
 * thread does not enter OpenMP, which would wake or make its threads. */
void cpunorm_run_program(const program *head, int threads, void *const *buffers)
{
    threads = min(limited(threads), MOST_THREADS);
    const step *steps = head->steps;
    for (const phase *p = head->phases; p < head->phases + head->phase_count; p++) {
        int64_t blocks = (p->items + p->block - 1) / p->block;
        if (threads == 1 || blocks == 1) {
            for (int64_t k = 0; k < blocks; k++)
                run_block(p, steps, k, buffers);
        } else {
            share_out(p, steps, blocks, threads, buffers);
        }
    }
}

/* Arrays come as id(array), 0 for none; the caller holds a reference to each of them. */
void cpunorm_run(intptr_t program_address, int threads, intptr_t x, intptr_t second, intptr_t y, intptr_t sum, intptr_t weight,
                 intptr_t bias, intptr_t running_mean, intptr_t running_var, intptr_t mean, intptr_t rstd, intptr_t grad_weight,
                 intptr_t grad_bias, intptr_t scratch)
{
    void *const buffers[SLOT_COUNT] = {
        [X] = cpunorm_data_of(x),
        [SECOND] = cpunorm_data_of(second),
        [Y] = cpunorm_data_of(y),
        [SUM] = cpunorm_data_of(sum),
        [WEIGHT] = cpunorm_data_of(weight),
        [BIAS] = cpunorm_data_of(bias),
        [RUNNING_MEAN] = cpunorm_data_of(running_mean),
        [RUNNING_VAR] = cpunorm_data_of(running_var),
        [MEAN] = cpunorm_data_of(mean),
        [RSTD] = cpunorm_data_of(rstd),
        [GRAD_WEIGHT] = cpunorm_data_of(grad_weight),
        [GRAD_BIAS] = cpunorm_data_of(grad_bias),
        [SCRATCH] = cpunorm_data_of(scratch),
    };
    cpunorm_run_program((const program *)program_address, threads, buffers);
}

/* The same where the caller has no arrays but addresses of data (PyTorch's tensors), and no use for the scratch array, which is of
 * `scratch` values: it lives on here. 0 if there is no memory for it. */
int cpunorm_run_at(intptr_t program_address, int threads, int64_t scratch, intptr_t x, intptr_t second, intptr_t y, intptr_t sum,
                   intptr_t weight, intptr_t bias, intptr_t running_mean, intptr_t running_var, intptr_t mean, intptr_t rstd,
                   intptr_t grad_weight, intptr_t grad_bias)
{
    double *tables = malloc((size_t)scratch * sizeof(double));
    if (!tables && scratch)
        return 0;
    void *const buffers[SLOT_COUNT] = {
        [X] = (void *)x,
        [SECOND] = (void *)second,
        [Y] = (void *)y,
        [SUM] = (void *)sum,
        [WEIGHT] = (void *)weight,
        [BIAS] = (void *)bias,
        [RUNNING_MEAN] = (void *)running_mean,
        [RUNNING_VAR] = (void *)running_var,
        [MEAN] = (void *)mean,
        [RSTD] = (void *)rstd,
        [GRAD_WEIGHT] = (void *)grad_weight,
        [GRAD_BIAS] = (void *)grad_bias,
        [SCRATCH] = tables,
    };
    cpunorm_run_program((const program *)program_address, threads, buffers);
    free(tables);
    return 1;
}
