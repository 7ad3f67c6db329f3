/* The C kernels: kernels.inc once for each instruction set and computing dtype, and the table of them. */

#include <stdint.h>
#include <string.h>

#include "native.h"
#include "program.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum {
    BLOCK = 4096, /* values read twice in a row by moments_runs: 16 KB of float, half of the smallest L1 */
    TILE = 256,   /* values between load and store of the affine: streaming wants them fine (2048: 85% of the limit, 8192: 77%) */
    STRIP = 512,  /* columns that moments_columns accumulates at once: 3 rows of double on the stack */
    ROWS = 32,    /* rows summed in T before they go to double */
    LINE = 64,    /* bytes */
};

#define INLINE static inline __attribute__((always_inline))
#define ON_A_LINE __attribute__((aligned(LINE)))

/* Before a loop whose iterations do not depend on one another: vectors without a check whether its arrays overlap (they do not), which
 * would take its time on every short row. SIMD_SUM_OF allows a sum in vector lanes besides, as -ffast-math would, but only there. */
#define SIMD _Pragma("omp simd")
#define PRAGMA(text) _Pragma(#text)
#define SIMD_SUM_OF(value) PRAGMA(omp simd reduction(+ : value))

/* Keeps a copying loop a loop: as a call of memcpy it would go past the caches where that thinks it better. */
#define STAY_A_LOOP __asm__ volatile("" ::: "memory")

INLINE int64_t min(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* Chan's mean: mu + (other - mu) * share, exact for equal means; an infinite one stays infinite instead of inf - inf. */
INLINE double merged(double mu, double other, double share)
{
    double d = other - mu;
    return __builtin_isfinite(d) ? mu + d * share : mu + other;
}

typedef void any_function(void);

struct entry {
    const char *name;
    any_function *function;
};

#define GLUE_EXPANDED(name, t, set) name##_##t##_##set
#define GLUE(name, t, set) GLUE_EXPANDED(name, t, set)
#define NAME(name) GLUE(name, T, SET)

/* Each set: WIDTH bytes of a vector; TARGET of its functions (no flag of the command line: one file has them all, and no instruction
 * runs before its set is chosen); STREAM, a store past the caches to an address aligned to WIDTH; FENCE, after which other threads see
 * what was streamed before what is stored later. */

#if defined(__x86_64__)

#define FENCE() _mm_sfence()

#define SET sse2
#define WIDTH 16
#define TARGET
#define STREAM(to, vector) _mm_stream_ps((float *)(to), (__m128)(vector))
#define T float
#include "kernels.inc"
#undef T
#define T double
#include "kernels.inc"
#undef T
#undef SET
#undef WIDTH
#undef TARGET
#undef STREAM

#define SET avx2
#define WIDTH 32
#define TARGET __attribute__((target("avx2,fma")))
#define STREAM(to, vector) _mm256_stream_ps((float *)(to), (__m256)(vector))
#define T float
#include "kernels.inc"
#undef T
#define T double
#include "kernels.inc"
#undef T
#undef SET
#undef WIDTH
#undef TARGET
#undef STREAM

#define SET avx512
#define WIDTH 64
#define TARGET __attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,avx2,fma")))
#define STREAM(to, vector) _mm512_stream_ps((float *)(to), (__m512)(vector))
#define T float
#include "kernels.inc"
#undef T
#define T double
#include "kernels.inc"
#undef T

#else

#define FENCE() __atomic_thread_fence(__ATOMIC_SEQ_CST)

#define SET plain
#define WIDTH 16
#define TARGET
#if defined(__clang__)
#define STREAM(to, vector) __builtin_nontemporal_store((vector), &(to)->v)
#else
#define STREAM(to, vector) ((to)->v = (vector))
#endif
#define T float
#include "kernels.inc"
#undef T
#define T double
#include "kernels.inc"
#undef T

#endif

static const struct {
    const char *name;
    const struct entry *of_float, *of_double;
} sets[] = {
#if defined(__x86_64__)
    {"sse2", kernels_float_sse2, kernels_double_sse2},
    {"avx2", kernels_float_avx2, kernels_double_avx2},
    {"avx512", kernels_float_avx512, kernels_double_avx512},
#else
    {"plain", kernels_float_plain, kernels_double_plain},
#endif
};

const char *cpunorm_set_name(int set)
{
    return set < (int)(sizeof sets / sizeof sets[0]) ? sets[set].name : 0;
}

int cpunorm_set_runs_here(int set)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    switch (set) {
    case 2:
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("fma");
    case 1:
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    }
#endif
    return set == 0;
}

intptr_t cpunorm_kernel(int set, const char *name, int itemsize)
{
    const struct entry *e = itemsize == 8 ? sets[set].of_double : sets[set].of_float;
    while (e->name && strcmp(e->name, name))
        e++;
    return (intptr_t)e->function;
}
