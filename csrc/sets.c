/* Which instruction sets there are, which of them this CPU runs, and where their kernels are. */

#include "sets.h"

#include <string.h>

#include "native.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

static const struct instruction_set *const sets[] = {
#if defined(__x86_64__)
#if SETS & 1
    &cpunorm_sse2,
#endif
#if SETS & 2
    &cpunorm_avx2,
#endif
#if SETS & 4
    &cpunorm_avx512,
#endif
#else
    &cpunorm_plain,
#endif
};

const char *cpunorm_set_name(int set)
{
    return set < (int)(sizeof sets / sizeof sets[0]) ? sets[set]->name : 0;
}

#if defined(__x86_64__)
/* CPUID leaf 1, ECX bit 29: not every compiler's __builtin_cpu_supports knows f16c. */
static int has_f16c(void)
{
    unsigned a, b, c = 0, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c >> 29 & 1);
}
#endif

int cpunorm_set_runs_here(int set)
{
#if defined(__x86_64__)
    const char *name = sets[set]->name;
    __builtin_cpu_init();
    if (!strcmp(name, "avx512"))
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("fma") && has_f16c();
    if (!strcmp(name, "avx2"))
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
#endif
    return set < (int)(sizeof sets / sizeof sets[0]);
}

intptr_t cpunorm_kernel(int set, const char *name, int dtype)
{
    for (int table = 0; table < 2; table++)
        for (const struct entry *e = sets[set]->of[dtype][table]; e->name; e++)
            if (!strcmp(e->name, name))
                return (intptr_t)e->function;
    return 0;
}
