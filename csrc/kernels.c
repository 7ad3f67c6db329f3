/* The C kernels: kernels.inc once for each instruction set of SETS and computing dtype, and the tables of them.
 *
 * A set takes the compiler half a minute, so that each is a file of its own that includes this one: sse2.c, avx2.c, avx512.c. */

#include <stdint.h>
#include <string.h>

#include "native.h"
#include "program.h"
#include "sets.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum {
    BLOCK = 4096,      /* values read twice in a row by moments_runs: 16 KB of float, half of the smallest L1 */
    BRIEF = 1024,      /* values of a unit that is summed with others, a lane each: totals and divisions take as long as 30 vectors */
    CHUNK = BLOCK / 4, /* values of g and of x between two additions of sums_runs in double */
    TILE = 256,        /* values between load and store of the affine: streaming wants them fine (benchmarks/tile.py) */
    STRIP = 512,       /* columns that a reduction of columns accumulates at once, on the stack */
    ROWS = 32,         /* rows summed in T before they go to double */
    FEW = 3072,        /* values of rows that stay in L1 while they are summed group by group: 12 KB of float */
    LONG = 1024,       /* integers in a run that are worth adding up as columns */
    RING = 16384,      /* values: the reach of a window (before + after + TILE) or its channels times a strip must fit */
    LINE = 64,         /* bytes */
    GROUP = 4,         /* vectors on their way at once, loaded before any is stored: 63 GB/s streamed, one by one 57 */
    PICKED = 4,        /* channels of pictures that are picked together */
    REACH = TILE + LINE, /* pixels of a raw tile: each plane takes those that end on a line of its own */
    WEIGHT_BITS = 22,  /* of the fraction of a resize's weight of bytes, as Pillow has them */
    WEIGHT_HALF = 1 << (WEIGHT_BITS - 1),
    DOT_LANES = 8,     /* products that a resize adds up at once */
    PIXELS = 16,       /* pixels of three bytes that `split` takes apart at once */
    EIGHT = 8,         /* of these that `spread` has in a register */
    CYCLE = 3,         /* vectors after which the coefficients of 1, 2, 3, 4, ... channels repeat */
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

INLINE int64_t max(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* The bits of a float, and the float of these bits. */
INLINE uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

INLINE float float_of(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Chan's mean: mu + (other - mu) * share, exact for equal means; an infinite one stays infinite instead of inf - inf. */
INLINE double merged(double mu, double other, double share)
{
    double d = other - mu;
    return __builtin_isfinite(d) ? mu + d * share : mu + other;
}

/* A stage (stages.inc): `count` values, of T on one side and of T or the elements' type on the other. */
typedef void stage(void *to, const void *from, int64_t count);
#define STAGE(address) ((stage *)(intptr_t)(address))

/* Elements of an array, whatever their type: strides in bytes. */
typedef struct operand {
    char *data;
    int64_t item;
    int64_t repeat;
    int64_t outer;
    int64_t middle;
} operand;

#define OPERAND(name, slot) \
    {buffers[slot], s->item_size, s->name##_repeat * s->item_size, s->name##_outer * s->item_size, s->name##_middle * s->item_size}

INLINE char *at(const operand array, int64_t outer, int64_t middle, int64_t last)
{
    return array.data + (outer * array.outer + middle * array.middle + last * array.item);
}

/* How many values the tile at y has, so that it ends on a cache line; all others then start on one. */
INLINE int64_t to_line(const void *y, int64_t item)
{
    return TILE - (int64_t)((uintptr_t)y % LINE) / item;
}

/* How many rows of `n` columns are summed together: a power of two, so that they make up ROWS. */
INLINE int64_t rows_in_l1(int64_t n)
{
    int64_t rows = ROWS;
    while (rows > 1 && rows * n > FEW)
        rows /= 2;
    return rows;
}

/* Whether no sum of squares in float was lost: to infinity or NaN, or below the normal numbers, where a square loses up to 2^-150. Of 4096
 * squares that is no more than 1e-7 of TINY. */
#define TINY 1e-34
#define INFINITE __builtin_inf()
INLINE int in_range(double squares)
{
    return squares >= TINY && squares < INFINITE;
}

typedef uint16_t half;  /* the bits of a float16 */
typedef uint16_t brain; /* of a bfloat16 */

#define GLUE_EXPANDED(name, t, set) name##_##t##_##set
#define GLUE(name, t, set) GLUE_EXPANDED(name, t, set)
#define NAME(name) GLUE(name, T, SET)
#define GLUE_OF_EXPANDED(name, e, set) name##_of_##e##_##set
#define GLUE_OF(name, e, set) GLUE_OF_EXPANDED(name, e, set)
#define ENAME(name) GLUE_OF(name, E, SET)

/* For #if, which cannot compare types. */
#define IS_float 1
#define IS_double 0
#define IS_EXPANDED(t) IS_##t
#define IS(t) IS_EXPANDED(t)
#define IS_FLOAT IS(T)
#define IS_half 2
#define IS_brain 3
#define NARROW_EXPANDED(e) (IS_##e > 1)
#define NARROW(e) NARROW_EXPANDED(e)
#define IS_E_BRAIN (IS(E) == 3)

/* Each set: WIDTH bytes of a vector; TARGET of its functions (no flag of the command line: no instruction runs before its set is
 * chosen); STREAM, a store past the caches to an address aligned to WIDTH; WIDEN, a vector of
 * float from as many bytes; FENCE, after which other threads see
 * what was streamed before what is stored later; HAS_F16C, instructions that convert float16; HAS_SHUFFLE, one that shuffles bytes. */

#if defined(__x86_64__)

#define FENCE() _mm_sfence()

/* Which byte of each of three vectors of pixels goes where in a plane: [backwards][channel][vector]; none where the high bit is set. */
#define SPLIT_BYTE(q, c, v) ((3 * (q) + (c)) / 16 == (v) ? (3 * (q) + (c)) % 16 : 128)
#define SPLIT_FORWARDS(c, v)                                                                                                           \
    {SPLIT_BYTE(0, c, v),  SPLIT_BYTE(1, c, v),  SPLIT_BYTE(2, c, v),  SPLIT_BYTE(3, c, v),  SPLIT_BYTE(4, c, v),  SPLIT_BYTE(5, c, v), \
     SPLIT_BYTE(6, c, v),  SPLIT_BYTE(7, c, v),  SPLIT_BYTE(8, c, v),  SPLIT_BYTE(9, c, v),  SPLIT_BYTE(10, c, v), SPLIT_BYTE(11, c, v), \
     SPLIT_BYTE(12, c, v), SPLIT_BYTE(13, c, v), SPLIT_BYTE(14, c, v), SPLIT_BYTE(15, c, v)}
#define SPLIT_BACKWARDS(c, v)                                                                                                             \
    {SPLIT_BYTE(15, c, v), SPLIT_BYTE(14, c, v), SPLIT_BYTE(13, c, v), SPLIT_BYTE(12, c, v), SPLIT_BYTE(11, c, v), SPLIT_BYTE(10, c, v), \
     SPLIT_BYTE(9, c, v),  SPLIT_BYTE(8, c, v),  SPLIT_BYTE(7, c, v),  SPLIT_BYTE(6, c, v),  SPLIT_BYTE(5, c, v),  SPLIT_BYTE(4, c, v),   \
     SPLIT_BYTE(3, c, v),  SPLIT_BYTE(2, c, v),  SPLIT_BYTE(1, c, v),  SPLIT_BYTE(0, c, v)}
#define SPLIT_CHANNEL(lanes, c) {lanes(c, 0), lanes(c, 1), lanes(c, 2)}
#if SETS & 6
static const uint8_t split_lanes[2][3][3][16] ON_A_LINE = {
    {SPLIT_CHANNEL(SPLIT_FORWARDS, 0), SPLIT_CHANNEL(SPLIT_FORWARDS, 1), SPLIT_CHANNEL(SPLIT_FORWARDS, 2)},
    {SPLIT_CHANNEL(SPLIT_BACKWARDS, 0), SPLIT_CHANNEL(SPLIT_BACKWARDS, 1), SPLIT_CHANNEL(SPLIT_BACKWARDS, 2)},
};
#endif

/* Which byte of a register's half goes to the lane of its float, where zeros fill up: [backwards][channel, or one alone]. */
#define SPREAD_HALF(first, apart)                                                                                       \
    (first), 128, 128, 128, (first) + (apart), 128, 128, 128, (first) + 2 * (apart), 128, 128, 128, (first) + 3 * (apart), 128, 128, 128
#define SPREAD_FORWARDS(first, second) {SPREAD_HALF(first, 3), SPREAD_HALF(second, 3)}
#define SPREAD_BACKWARDS(first, second) {SPREAD_HALF(first, -3), SPREAD_HALF(second, -3)}
static const uint8_t spread_lanes[2][4][32] ON_A_LINE = {
    {SPREAD_FORWARDS(0, 4), SPREAD_FORWARDS(1, 5), SPREAD_FORWARDS(2, 6), SPREAD_FORWARDS(0, 6)},
    {SPREAD_BACKWARDS(13, 9), SPREAD_BACKWARDS(14, 10), SPREAD_BACKWARDS(15, 11), SPREAD_BACKWARDS(15, 9)},
};

static inline __m128 widen_sse2(const uint8_t *bytes)
{
    int32_t four;
    memcpy(&four, bytes, sizeof four);
    __m128i wide = _mm_unpacklo_epi8(_mm_cvtsi32_si128(four), _mm_setzero_si128());
    return _mm_cvtepi32_ps(_mm_unpacklo_epi16(wide, _mm_setzero_si128()));
}

#if SETS & 1
#define SET sse2
#define HAS_F16C 0
#define HAS_SHUFFLE 0
#define WIDTH 16
#define VECTOR_OF(operation) _mm_##operation
#define TARGET
#define STREAM(to, vector) _mm_stream_ps((float *)(to), (__m128)(vector))
#define STREAM_SHORTS(to, shorts) _mm_stream_si64((long long *)(to), (long long)(shorts))
#define WIDEN(bytes) widen_sse2(bytes)
#include "types.inc"
#undef SET
#undef WIDTH
#undef VECTOR_OF
#undef MASKED_LOAD
#undef TARGET
#undef STREAM
#undef STREAM_SHORTS
#undef WIDEN
#undef HAS_F16C
#undef HAS_SHUFFLE
#endif

#if SETS & 2
#define SET avx2
#define HAS_F16C 1
#define HAS_SHUFFLE 1
#define WIDTH 32
#define VECTOR_OF(operation) _mm256_##operation
#define MASKED_LOAD(type) _mm256_maskload_##type
#define TARGET __attribute__((target("avx2,fma,f16c")))
#define STREAM(to, vector) _mm256_stream_ps((float *)(to), (__m256)(vector))
#define STREAM_SHORTS(to, shorts) _mm_stream_si128((__m128i *)(to), (__m128i)(shorts))
#define WIDEN(bytes) _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(bytes))))
#include "types.inc"
#undef SET
#undef WIDTH
#undef VECTOR_OF
#undef MASKED_LOAD
#undef TARGET
#undef STREAM
#undef STREAM_SHORTS
#undef WIDEN
#undef HAS_F16C
#undef HAS_SHUFFLE
#endif

#if SETS & 4
#define SET avx512
#define HAS_F16C 1
#define HAS_SHUFFLE 1
#define WIDTH 64
#define VECTOR_OF(operation) _mm512_##operation
#define TARGET __attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,avx2,fma,f16c")))
#define STREAM(to, vector) _mm512_stream_ps((float *)(to), (__m512)(vector))
#define STREAM_SHORTS(to, shorts) _mm256_stream_si256((__m256i *)(to), (__m256i)(shorts))
#define WIDEN(bytes) _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(bytes))))
#include "types.inc"
#endif

#else

#define FENCE() __atomic_thread_fence(__ATOMIC_SEQ_CST)

#define SET plain
#define HAS_F16C 0
#define HAS_SHUFFLE 0
#define WIDTH 16
#define VECTOR_OF(operation) _mm_##operation
#define TARGET
#define WIDEN(bytes) ((NAME(vector)){(bytes)[0], (bytes)[1], (bytes)[2], (bytes)[3]})
#if defined(__clang__)
#define STREAM(to, vector) __builtin_nontemporal_store((vector), &(to)->v)
#else
#define STREAM(to, vector) ((to)->v = (vector))
#endif
#define STREAM_SHORTS(to, shorts) (((ENAME(aligned) *)(to))->v = (shorts))
#include "types.inc"

#endif

#define TABLES(set)                                                                                                              \
    const struct instruction_set cpunorm_##set = {                                                                                           \
        #set, {{kernels_float_##set, elements_of_float_##set}, {kernels_double_##set, elements_of_double_##set},                       \
            {kernels_float_##set, elements_of_half_##set}, {kernels_float_##set, elements_of_brain_##set}}                            \
    }
#if defined(__x86_64__)
#if SETS & 1
TABLES(sse2);
#endif
#if SETS & 2
TABLES(avx2);
#endif
#if SETS & 4
TABLES(avx512);
#endif
#else
TABLES(plain);
#endif
