/* How the blocks of a phase are shared out between two threads: by OpenMP in equal shares (static) or in turns (dynamic), or as
 * csrc/driver.c (included below) does: each has a share, takes from it one at a time and helps the other when it is through. With both
 * CPUs free and with one busy.
 *
 *     gcc -O3 -mavx2 -fopenmp benchmarks/shares.c -o shares && ./shares */

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../csrc/driver.c"

enum { THREADS = 2, BLOCK = 32 << 10, TURNS = 60, LARGEST = 32 << 20 }; /* blocks of 32 Ki floats, 256 KB read and written */

static void kernel_of_floats(const step *s, void *const *buffers, int64_t lo, int64_t hi)
{
    const float *x = buffers[X];
    float *y = buffers[Y];
    for (int64_t q = lo; q < hi; q++)
        y[q] = x[q] * 2 + 1;
}

typedef void way(const phase *p, const step *steps, int64_t blocks, int threads, void *const *buffers);

static void equal(const phase *p, const step *steps, int64_t blocks, int threads, void *const *buffers)
{
    #pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t k = 0; k < blocks; k++)
        run_block(p, steps, k, buffers);
}

static void turns(const phase *p, const step *steps, int64_t blocks, int threads, void *const *buffers)
{
    #pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int64_t k = 0; k < blocks; k++)
        run_block(p, steps, k, buffers);
}

static int ascending(const void *a, const void *b)
{
    return (*(const double *)a > *(const double *)b) - (*(const double *)a < *(const double *)b);
}

int main(void)
{
    static way *const ways[] = {equal, turns, share_out};
    void *buffers[SLOT_COUNT] = {0};
    for (int i = 0; i < 2; i++)
        buffers[i ? Y : X] = memset(aligned_alloc(4096, LARGEST * sizeof(float)), 1, LARGEST * sizeof(float));
    printf("%30s%16s%16s%16s   (us, medians of calls in turns)\n", "", "equal shares", "in turns", "shares, help");
    for (int busy = 0; busy < 2; busy++) {
        pid_t child = busy ? fork() : 0;
        if (busy && !child)
            for (;;)
                ;
        for (int64_t blocks = 8; blocks * BLOCK <= LARGEST; blocks *= 4) {
            static double times[3][TURNS];
            const step s = {.kernel = (intptr_t)kernel_of_floats, .items = blocks * BLOCK, .scale = 1};
            const phase p = {.items = blocks * BLOCK, .block = BLOCK, .part = BLOCK, .count = 1};
            for (int turn = -3; turn < TURNS; turn++)
                for (int w = 0; w < 3; w++) {
                    usleep(4000); /* OpenMP's threads spin for a while after their work */
                    for (int again = 0; again < 2; again++) { /* the second call finds the threads awake, and what the first left in their caches */
                        double start = omp_get_wtime();
                        ways[w](&p, &s, blocks, THREADS, buffers);
                        if (turn >= 0)
                            times[w][turn] = 1e6 * (omp_get_wtime() - start);
                    }
                }
            printf("%8.1f MB, %16s", 8.0 * blocks * BLOCK / (1 << 20), busy ? "one CPU busy" : "none busy");
            for (int w = 0; w < 3; w++) {
                qsort(times[w], TURNS, sizeof(double), ascending);
                printf("%16.0f", times[w][TURNS / 2]);
            }
            putchar('\n');
        }
        if (busy) {
            kill(child, SIGKILL);
            waitpid(child, 0, 0);
        }
    }
}
