/* Zeros are no yardstick: lines of zeros go past the caches faster than others. What csrc/limit.c writes is therefore not zeros.
 *
 *     gcc -O2 -mavx2 benchmarks/zeros.c -o zeros && ./zeros
 *
 * 77 MB written by streaming stores of a register, GB/s, one thread, best of 20. On an EPYC (Zen 3): zeros 48, ones 23, bytes of the clock 23. */

#include <immintrin.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { VECTORS = 2400000 };

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double rate(float *to, __m256 value)
{
    double best = 1e9;
    for (int round = 0; round < 20; round++) {
        double start = now();
        for (long i = 0; i < VECTORS; i++)
            _mm256_stream_ps(to + 8 * i, value);
        _mm_sfence();
        double taken = now() - start;
        best = taken < best ? taken : best;
    }
    return 32.0 * VECTORS / best / 1e9;
}

int main(void)
{
    float *to = aligned_alloc(64, 32L * VECTORS);
    memset(to, 1, 32L * VECTORS); /* pages that are there */
    printf("zeros %.0f GB/s, ", rate(to, _mm256_setzero_ps()));
    printf("ones %.0f GB/s, ", rate(to, _mm256_set1_ps(1)));
    printf("bytes of the clock %.0f GB/s\n", rate(to, _mm256_set1_ps((float)(now() * 1e3))));
    free(to);
}
