/* The yardstick: what this machine's memory gives to a copy and to a read. Nothing that a kernel does can be faster.
 *
 * A stage (csrc/stages.inc) does the work, so that it has the widest vectors of the chosen instruction set. Each thread has one
 * contiguous share: there is nothing to balance. */

#include "native.h"

typedef void stage(void *to, const void *from, int64_t count);

enum {
    GRAIN = 1024, /* floats: shares are whole pages */
    TILE = 256,
};

static int64_t bound(int64_t count, int threads, int i)
{
    return i == threads ? count : count / GRAIN * i / threads * GRAIN;
}

/* to[:] = from[:], by store_plain or store_stream; `repeat` times over, so that what takes less than starting threads can be timed. */
void cpunorm_copy(intptr_t stage_address, float *to, const float *from, int64_t count, int64_t repeat, int threads)
{
    stage *copy = (stage *)stage_address;
    #pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int i = 0; i < threads; i++) {
        int64_t lo = bound(count, threads, i);
        for (int64_t r = 0; r < repeat; r++)
            copy(to + lo, from + lo, bound(count, threads, i + 1) - lo);
    }
}

/* Read from[:], by load_sum, and write to[:], by store_plain or store_stream, of other sizes: what preprocessing cannot but do. A tile of
 * either at a time, as a kernel would. Returns the sum.
 *
 * What is written are numbers, not zeros: lines of zeros went past the caches of a Zen 3 twice as fast as any other, at 48 GB/s a core
 * instead of 23, and no picture is one colour. */
float cpunorm_expand(intptr_t read_address, intptr_t write_address, float *to, int64_t to_count, const float *from, int64_t from_count,
                     int threads)
{
    float values[TILE];
    for (int i = 0; i < TILE; i++)
        values[i] = 0.37f * (float)(i + 1);
    stage *sum = (stage *)read_address, *write = (stage *)write_address;
    const int64_t tiles = (to_count + TILE - 1) / TILE;
    float total = 0;
    #pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1) reduction(+ : total)
    for (int64_t i = 0; i < tiles; i++) {
        float part;
        int64_t lo = from_count * i / tiles, hi = from_count * (i + 1) / tiles;
        int64_t end = (i + 1) * TILE < to_count ? (i + 1) * TILE : to_count;
        sum(&part, from + lo, hi - lo);
        write(to + i * TILE, values, end - i * TILE);
        total += part;
    }
    return total;
}

/* The sum of from[:], by load_sum: a result, so that the reading cannot be left out. */
float cpunorm_read(intptr_t stage_address, const float *from, int64_t count, int threads)
{
    stage *sum = (stage *)stage_address;
    float total = 0;
    #pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1) reduction(+ : total)
    for (int i = 0; i < threads; i++) {
        int64_t lo = bound(count, threads, i);
        float part;
        sum(&part, from + lo, bound(count, threads, i + 1) - lo);
        total += part;
    }
    return total;
}
