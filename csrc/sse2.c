/* The kernels by SSE2; on a CPU that is no x86-64, its only ones. */

#define SETS 1
#include "kernels.c"
