/* What Python sees of the C side, as cpunorm._native.lib. csrc/build.py reads this file too: declarations only. */

#ifndef CPUNORM_NATIVE_H
#define CPUNORM_NATIVE_H

#include <stdint.h>

/* sets.c: the instruction sets compiled in, the narrowest first; NULL past the last one. */
const char *cpunorm_set_name(int set);
int cpunorm_set_runs_here(int set);
/* The address of a kernel or stage of an instruction set for elements of float (0), double (1), float16 (2) or bfloat16 (3); 0 if there is
 * none of this name. */
intptr_t cpunorm_kernel(int set, const char *name, int dtype);

/* driver.c */
extern int cpunorm_data_field;
extern const int cpunorm_has_openmp;
extern int cpunorm_usual_threads; /* omp_get_max_threads() where nobody has set another limit */
int cpunorm_processors(void);
void cpunorm_run(intptr_t program, int threads, intptr_t x, intptr_t second, intptr_t y, intptr_t sum, intptr_t weight, intptr_t bias,
                 intptr_t running_mean, intptr_t running_var, intptr_t mean, intptr_t rstd, intptr_t grad_weight, intptr_t grad_bias,
                 intptr_t scratch);
int cpunorm_run_at(intptr_t program, int threads, int64_t scratch, intptr_t x, intptr_t second, intptr_t y, intptr_t sum,
                   intptr_t weight, intptr_t bias, intptr_t running_mean, intptr_t running_var, intptr_t mean, intptr_t rstd,
                   intptr_t grad_weight, intptr_t grad_bias);

/* ready.c; `prepared` is the address of a struct ready, `arguments` id(tuple) */
extern intptr_t cpunorm_array_type;
extern intptr_t cpunorm_none;
extern int cpunorm_items_field;
int cpunorm_run_ready(intptr_t prepared, intptr_t arguments);

/* limit.c */
void cpunorm_copy(intptr_t stage, float *to, const float *from, int64_t count, int64_t repeat, int threads);
float cpunorm_expand(intptr_t read, intptr_t write, float *to, int64_t to_count, const float *from, int64_t from_count, int threads);
float cpunorm_read(intptr_t stage, const float *from, int64_t count, int threads);

#endif
