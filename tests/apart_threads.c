/* The few entry points of libgomp that csrc/driver.c is compiled to, by POSIX threads, which ThreadSanitizer understands.
 *
 * libgomp itself is not instrumented: to ThreadSanitizer its barriers and futexes are nothing, and all that one thread leaves to another
 * (the blocks of one phase to the next) is a race. With this file instead of it there is no such false alarm and nothing to suppress:
 * what the compiler makes of `#pragma omp parallel for` is called as it is; threads start at its beginning and are joined at its end.
 *
 * A share of the blocks is run by whose it is, however short it is: who is through waits for the others before it helps them. (Whoever
 * starts first would run them all, and a race needs two.) csrc/driver.c asks for its number once a share; its counters are relaxed
 * atomics, which order nothing, to ThreadSanitizer neither. */

#include <pthread.h>
#include <stdlib.h>

typedef struct team {
    void (*function)(void *);
    void *data;
    pthread_barrier_t own; /* all own shares are done */
} team;

typedef struct member {
    team *team;
    int number;
    int shares; /* asked for so far */
} member;

static _Thread_local member *self;

int omp_get_thread_num(void)
{
    if (self->shares++ == 1)
        pthread_barrier_wait(&self->team->own);
    return self->number;
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
    team ours = {.function = function, .data = data};
    pthread_barrier_init(&ours.own, 0, threads);
    member *members = calloc(threads, sizeof *members);
    pthread_t *handles = calloc(threads, sizeof *handles);
    for (unsigned i = 0; i < threads; i++) {
        members[i] = (member){.team = &ours, .number = (int)i};
        if (i && pthread_create(handles + i, 0, work, members + i))
            abort();
    }
    work(members);
    for (unsigned i = 1; i < threads; i++)
        pthread_join(handles[i], 0);
    pthread_barrier_destroy(&ours.own);
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
