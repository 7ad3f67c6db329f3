/* The few entry points of libgomp that csrc/driver.c is compiled to, by POSIX threads, which ThreadSanitizer understands.
 *
 * libgomp itself is not instrumented: to ThreadSanitizer its barriers and futexes are nothing, and all that one thread leaves to another
 * (the blocks of one phase to the next) is a race. With this file instead of it there is no such false alarm and nothing to suppress:
 * what the compiler makes of `#pragma omp parallel for` is called as it is; threads start at its beginning and are joined at its end.
 *
 * Blocks are dealt out in turn, so that neighbours, which share cache lines and tables, are on different threads however short they are
 * (whoever asks first would get them all). That needs no atomic operation, which could pass for order between two blocks. */

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>

typedef struct team {
    void (*function)(void *);
    void *data;
    long threads;
} team;

typedef struct member {
    team *team;
    long number;
    long next, end, step, chunk; /* of the loop that it is in */
} member;

static _Thread_local member *self;

bool GOMP_loop_nonmonotonic_dynamic_next(long *start, long *end)
{
    if (self->step > 0 ? self->next >= self->end : self->next <= self->end)
        return false;
    const long stop = self->next + self->step * self->chunk;
    *start = self->next;
    *end = (self->step > 0) == (stop < self->end) ? stop : self->end;
    self->next += self->step * self->chunk * self->team->threads;
    return true;
}

bool GOMP_loop_nonmonotonic_dynamic_start(long first, long last, long step, long chunk, long *start, long *end)
{
    self->next = first + step * chunk * self->number;
    self->end = last;
    self->step = step;
    self->chunk = chunk;
    return GOMP_loop_nonmonotonic_dynamic_next(start, end);
}

void GOMP_loop_end_nowait(void)
{
}

static void *work(void *argument)
{
    self = argument;
    self->team->function(self->team->data);
    self = 0;
    return 0;
}

void GOMP_parallel(void (*function)(void *), void *data, unsigned threads, unsigned flags)
{
    (void)flags;
    team ours = {function, data, threads};
    member *members = calloc(threads, sizeof *members);
    pthread_t *handles = calloc(threads, sizeof *handles);
    for (unsigned i = 0; i < threads; i++) {
        members[i] = (member){.team = &ours, .number = i};
        if (i && pthread_create(handles + i, 0, work, members + i))
            abort();
    }
    work(members);
    for (unsigned i = 1; i < threads; i++)
        pthread_join(handles[i], 0);
    free(handles);
    free(members);
}

int omp_get_num_procs(void)
{
    return 4;
}

int omp_get_max_threads(void)
{
    return 4;
}
