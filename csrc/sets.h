/* Instruction sets: which are compiled (SETS, a bit each), and the tables of their kernels. */

#ifndef CPUNORM_SETS_H
#define CPUNORM_SETS_H

/* All of them, but for sanitizers, which take a minute for one (.ci/sanitize), and for the files that have one each. */
#ifndef SETS
#define SETS 7
#endif

enum { DTYPES = 4 }; /* float, double, half, brain: as cpunorm_kernel numbers them */

typedef void any_function(void);

struct entry {
    const char *name;
    any_function *function;
};

struct instruction_set {
    const char *name;
    const struct entry *of[DTYPES][2]; /* tables of a dtype: of what it is computed in, and of its elements */
};

extern const struct instruction_set cpunorm_sse2, cpunorm_avx2, cpunorm_avx512, cpunorm_plain;

#endif
