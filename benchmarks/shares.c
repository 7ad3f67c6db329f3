/* How the blocks of a phase are shared out between two threads: by OpenMP in equal shares (static) or in turns (dynamic), or as
 * csrc/driver.c does: each has a share, takes from it one at a time and helps the other when it is through. With both CPUs free and with one busy.
 *
 *     gcc -O3 -mavx2 -fopenmp benchmarks/shares.c -o shares && ./shares */

#include <omp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { THREADS = 2, BLOCK = 32 << 10, TURNS = 60, LARGEST = 32 << 20 }; /* blocks of 32 Ki floats, 256 KB read and written */

static float *x, *y;

static void run_block(int64_t k)
{
    const float *from = x + k * BLOCK;
    float *to = y + k * BLOCK;
    for (int64_t q = 0; q < BLOCK; q++)
        to[q] = from[q] * 2 + 1;
}

static void equal(int64_t blocks)
{
    #pragma omp parallel for schedule(static) num_threads(THREADS)
    for (int64_t k = 0; k < blocks; k++)
        run_block(k);
}

static void turns(int64_t blocks)
{
    #pragma omp parallel for schedule(dynamic, 1) num_threads(THREADS)
    for (int64_t k = 0; k < blocks; k++)
        run_block(k);
}

static void shares(int64_t blocks)
{
    struct {
        int64_t next, apart[7];
    } shares[THREADS];
    for (int i = 0; i < THREADS; i++)
        shares[i].next = blocks * i / THREADS;
    #pragma omp parallel num_threads(THREADS)
    for (int i = 0; i < THREADS; i++) {
        int whose = (omp_get_thread_num() + i) % THREADS;
        for (;;) {
            int64_t k;
            #pragma omp atomic capture
            k = shares[whose].next++;
            if (k >= blocks * (whose + 1) / THREADS)
                break;
            run_block(k);
        }
    }
}

static int ascending(const void *a, const void *b)
{
    return (*(const double *)a > *(const double *)b) - (*(const double *)a < *(const double *)b);
}

int main(void)
{
    static void (*const ways[])(int64_t) = {equal, turns, shares};
    x = aligned_alloc(4096, LARGEST * sizeof *x), y = aligned_alloc(4096, LARGEST * sizeof *y);
    memset(x, 1, LARGEST * sizeof *x), memset(y, 1, LARGEST * sizeof *y);
    printf("%30s%16s%16s%16s   (us, medians of calls in turns)\n", "", "equal shares", "in turns", "shares, help");
    for (int busy = 0; busy < 2; busy++) {
        pid_t child = busy ? fork() : 0;
        if (busy && !child)
            for (;;)
                ;
        for (int64_t blocks = 8; blocks * BLOCK <= LARGEST; blocks *= 4) {
            static double times[3][TURNS];
            for (int turn = -3; turn < TURNS; turn++)
                for (int way = 0; way < 3; way++) {
                    usleep(4000); /* OpenMP's threads spin for a while after their work */
                    for (int again = 0; again < 2; again++) { /* the second call finds the threads awake, and what the first left in their caches */
                        double start = omp_get_wtime();
                        ways[way](blocks);
                        if (turn >= 0)
                            times[way][turn] = 1e6 * (omp_get_wtime() - start);
                    }
                }
            printf("%8.1f MB, %16s", 8.0 * blocks * BLOCK / (1 << 20), busy ? "one CPU busy" : "none busy");
            for (int way = 0; way < 3; way++) {
                qsort(times[way], TURNS, sizeof(double), ascending);
                printf("%16.0f", times[way][TURNS / 2]);
            }
            putchar('\n');
        }
        if (busy) {
            kill(child, SIGKILL);
            waitpid(child, 0, 0);
        }
    }
}
