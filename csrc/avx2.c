/* The kernels by AVX2. */

#if defined(__x86_64__)
#define SETS 2
#include "kernels.c"
#endif
