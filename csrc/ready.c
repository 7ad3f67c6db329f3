/* Calls that were made before: their arrays are compared with what the program was made for, and it runs.
 *
 * The comparison takes 0.1 us here and 3 us in Python, which a call of a few thousand values feels. Whatever does not match (another
 * stride or dtype, memory that `out` shares with an input) is left to Python, which plans anew or says what is wrong. */

#include <stdlib.h>
#include <string.h>

#include "driver.h"
#include "native.h"
#include "program.h"

/* An ndarray after its object header: PyArrayObject_fields, which compiled users of NumPy read inline, so that it is part of its ABI. */
typedef struct ndarray {
    char *data;
    int dimensions;
    const intptr_t *shape, *strides;
    void *base;
    intptr_t dtype;
    int flags;
} ndarray;

intptr_t cpunorm_array_type = 0; /* id(numpy.ndarray): no subclass, which may mean something else by its values */

/* The first and the last byte of an array; none of what is not there, or not looked at. */
typedef struct extent {
    const char *first, *last;
} extent;

/* Whether an array is as `e` says: the number of its axes (ABSENT: there is none, OURS: not looked at), then its dtype, flags that it has
 * among others, and bytes of an element; then its shape, then its strides. `e` goes on to the next. */
static int matches(intptr_t object, const int64_t **e, extent *at)
{
    const int64_t axes = *(*e)++;
    *at = (extent){0};
    if (axes == OURS)
        return 1;
    if (axes == ABSENT || !object)
        return axes == ABSENT && !object;
    /* The header ends with the type, of a free-threaded interpreter's objects too. */
    if (*(intptr_t *)(object + cpunorm_data_field - sizeof(intptr_t)) != cpunorm_array_type)
        return 0;
    const ndarray *array = (const ndarray *)(object + cpunorm_data_field);
    const int64_t dtype = (*e)[0], flags = (*e)[1], item_size = (*e)[2];
    const int64_t *shape = *e + 3, *strides = shape + axes;
    if (array->dimensions != axes || array->dtype != dtype || (array->flags & flags) != flags)
        return 0;
    at->first = at->last = array->data;
    at->last += item_size - 1;
    for (int64_t axis = 0; axis < axes; axis++) {
        if (array->shape[axis] != shape[axis] || array->strides[axis] != strides[axis])
            return 0;
        const int64_t reach = (shape[axis] - 1) * strides[axis];
        if (reach < 0)
            at->first += reach;
        else
            at->last += reach;
    }
    *e = strides + axes;
    return 1;
}

/* Of two arrays of one shape and dtype: the same elements at the same addresses. */
static int same_place(intptr_t one, intptr_t other)
{
    const ndarray *a = (const ndarray *)(one + cpunorm_data_field), *b = (const ndarray *)(other + cpunorm_data_field);
    return a->data == b->data && !memcmp(a->strides, b->strides, a->dimensions * sizeof(intptr_t));
}

/* Arrays come as id(array), 0 for none; the caller holds a reference to each of them. 1 if the program ran; 0, and nothing is written, if
 * it is not for these arrays, or if there is no memory for its tables. */
int cpunorm_run_ready(intptr_t prepared, intptr_t x, intptr_t second, intptr_t y, intptr_t sum, intptr_t weight, intptr_t bias,
                      intptr_t running_mean, intptr_t running_var, intptr_t mean, intptr_t rstd, intptr_t grad_weight,
                      intptr_t grad_bias)
{
    const ready *r = (const ready *)prepared;
    const intptr_t arrays[SCRATCH] = {x, second, y, sum, weight, bias, running_mean, running_var, mean, rstd, grad_weight, grad_bias};
    const int64_t *expected = (const int64_t *)r->expected;
    extent extents[SCRATCH];
    for (int slot = 0; slot < SCRATCH; slot++)
        if (!matches(arrays[slot], &expected, extents + slot))
            return 0;
    int in_place = 0;
    for (int slot = 0; slot < SCRATCH; slot++) {
        const extent a = extents[slot], b = extents[Y];
        if (slot == Y || !a.first || a.last < b.first || b.last < a.first)
            continue;
        if (!(slot == X || slot == SECOND) || !same_place(arrays[slot], y))
            return 0;
        in_place = 1;
    }
    if (in_place != r->in_place)
        return 0;
    double *tables = malloc((size_t)r->scratch * sizeof(double) + 1);
    if (!tables)
        return 0;
    void *buffers[SLOT_COUNT];
    for (int slot = 0; slot < SCRATCH; slot++)
        buffers[slot] = cpunorm_data_of(arrays[slot]);
    if (!weight)
        buffers[WEIGHT] = (void *)r->weight;
    if (!bias)
        buffers[BIAS] = (void *)r->bias;
    buffers[SCRATCH] = tables;
    cpunorm_run_program((const program *)r->program, (int)r->threads, buffers);
    free(tables);
    return 1;
}
