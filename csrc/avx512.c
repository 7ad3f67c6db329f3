/* The kernels by AVX-512. */

#if defined(__x86_64__)
#define SETS 4
#include "kernels.c"
#endif
