/* The driver, for who calls it from C. */

#ifndef CPUNORM_DRIVER_H
#define CPUNORM_DRIVER_H

#include "program.h"

/* Where the ndarray with this id keeps its values; NULL for 0. */
void *cpunorm_data_of(intptr_t array);
void cpunorm_run_program(const program *head, int threads, void *const *buffers);

#endif
