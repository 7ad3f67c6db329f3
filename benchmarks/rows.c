/* Sums of columns by rows of 192 floats, beyond the caches: a row at a time, and four rows at once, which needs fewer loads and stores.
 *
 * gcc -O3 -funroll-loops -ffp-contract=fast -fno-math-errno -fno-trapping-math -fopenmp-simd -o rows benchmarks/rows.c && ./rows */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { N = 192, ROWS = 130000, CHUNK = 32 };
#define SIMD _Pragma("omp simd")
#define KERNEL static __attribute__((noinline, target("avx2,fma"))) void

KERNEL one(const float *x, int64_t rows, const float *shift, float *sums, float *squares)
{
    for (int64_t r = 0; r < rows; r++, x += N)
        SIMD
        for (int64_t q = 0; q < N; q++) {
            float d = x[q] - shift[q];
            sums[q] += d;
            squares[q] += d * d;
        }
}

KERNEL four(const float *x, int64_t rows, const float *shift, float *sums, float *squares)
{
    for (int64_t r = 0; r + 4 <= rows; r += 4, x += 4 * N)
        SIMD
        for (int64_t q = 0; q < N; q++) {
            float d0 = x[q] - shift[q], d1 = x[N + q] - shift[q], d2 = x[2 * N + q] - shift[q], d3 = x[3 * N + q] - shift[q];
            sums[q] += (d0 + d1) + (d2 + d3);
            squares[q] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3);
        }
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

int main(void)
{
    float *x = malloc(sizeof(float) * N * ROWS), shift[N] = {0}, sums[N] = {0}, squares[N] = {0};
    for (int64_t i = 0; i < (int64_t)N * ROWS; i++)
        x[i] = i % 7;
    for (int kernel = 0; kernel < 2; kernel++) {
        double best = 1e9;
        for (int round = 0; round < 10; round++) {
            double start = now();
            for (int64_t r = 0; r < ROWS; r += CHUNK)
                (kernel ? four : one)(x + r * N, ROWS - r < CHUNK ? ROWS - r : CHUNK, shift, sums, squares);
            double taken = now() - start;
            best = taken < best ? taken : best;
        }
        printf("%s at a time: %.1f GB/s\n", kernel ? "four rows" : "a row", sizeof(float) * N * ROWS / best / 1e9);
    }
    return sums[0] + squares[0] < 0;
}
