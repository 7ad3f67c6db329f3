/* Calls that were made before: their arguments are compared with what the program was made for, and it runs.
 *
 * The comparison takes 0.1 us here and 3 us in Python, which a call of a few thousand values feels. Whatever does not match (another
 * stride or dtype, memory that `out` shares with an input) is left to Python, which plans anew or says what is wrong.
 *
 * Objects are read where Python and NumPy keep what is in them, without the GIL, as the caller holds them meanwhile. ready.py tries on an
 * example whether that is so. */

#include <stdlib.h>
#include <string.h>

#include "driver.h"
#include "native.h"
#include "program.h"

/* An ndarray and its dtype, each after its object header: PyArrayObject_fields, and of PyArray_Descr the fields that NumPy 1 and 2 share.
 * Compiled users of NumPy read them inline, so that they are part of its ABI. */
typedef struct ndarray {
    char *data;
    int dimensions;
    const intptr_t *shape, *strides;
    void *base;
    intptr_t dtype;
    int flags;
} ndarray;

typedef struct dtype {
    intptr_t type; /* id(dtype.type) */
    char kind, letter, order;
} dtype;

intptr_t cpunorm_array_type = 0; /* id(numpy.ndarray): no subclass, which may mean something else by its values */
intptr_t cpunorm_none = 0;       /* id(None) */
int cpunorm_items_field = 0;     /* where a tuple keeps its items: tuple.__basicsize__ */

/* The type of an object, with which its header ends, a free-threaded interpreter's too. */
static intptr_t type_of(intptr_t object)
{
    return *(intptr_t *)(object + cpunorm_data_field - sizeof(intptr_t));
}

static const intptr_t *items_of(intptr_t tuple)
{
    return (const intptr_t *)(tuple + cpunorm_items_field);
}

/* The first and the last byte of an array; none of what is not there, or not looked at. */
typedef struct extent {
    const char *first, *last;
} extent;

/* Whether an array is as `e` says: the number of its axes (ABSENT: there is none, OURS: not looked at), then the type of its elements, flags
 * that it has among others, and bytes of an element; then its shape, then its strides. `e` goes on to the next. (An array that was pickled
 * has a dtype of its own, so that the type is compared. Elements are native, as kernels read them.) */
static int matches(intptr_t object, const int64_t **e, extent *at)
{
    const int64_t axes = *(*e)++;
    *at = (extent){0};
    if (axes == OURS)
        return 1;
    if (axes == ABSENT)
        return object == cpunorm_none;
    if (type_of(object) != cpunorm_array_type)
        return 0;
    const ndarray *array = (const ndarray *)(object + cpunorm_data_field);
    const dtype *of = (const dtype *)(array->dtype + cpunorm_data_field);
    const int64_t type = (*e)[0], flags = (*e)[1], item_size = (*e)[2];
    const int64_t *shape = *e + 3, *strides = shape + axes;
    if (array->dimensions != axes || of->type != type || of->order != '=' || (array->flags & flags) != flags)
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

/* Arguments come as id(tuple), which the caller holds: the arrays of all slots but scratch, None for what is not there, then a tuple of
 * options, and the number of threads. The latter have the values that were prepared for; here their types are compared (True is 1 and 1.0
 * to Python's dictionaries). 1 if the program ran; 0, and nothing is written, if it is not for these arguments, or if there is no memory
 * for its tables. */
int cpunorm_run_ready(intptr_t prepared, intptr_t arguments)
{
    const ready *r = (const ready *)prepared;
    const intptr_t *arrays = items_of(arguments), *options = items_of(arrays[SCRATCH]);
    const int64_t *expected = (const int64_t *)r->expected;
    extent extents[SCRATCH];
    for (int slot = 0; slot < SCRATCH; slot++)
        if (!matches(arrays[slot], &expected, extents + slot))
            return 0;
    for (int64_t option = 0; option < r->options; option++)
        if (type_of(options[option]) != *expected++)
            return 0;
    if (type_of(arrays[SCRATCH + 1]) != *expected)
        return 0;
    int in_place = 0;
    for (int slot = 0; slot < SCRATCH; slot++) {
        const extent a = extents[slot], b = extents[Y];
        if (slot == Y || !a.first || a.last < b.first || b.last < a.first)
            continue;
        if (!(slot == X || slot == SECOND) || !same_place(arrays[slot], arrays[Y]))
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
        buffers[slot] = arrays[slot] == cpunorm_none ? 0 : cpunorm_data_of(arrays[slot]);
    if (!buffers[WEIGHT])
        buffers[WEIGHT] = (void *)r->weight;
    if (!buffers[BIAS])
        buffers[BIAS] = (void *)r->bias;
    buffers[SCRATCH] = tables;
    cpunorm_run_program((const program *)r->program, (int)r->threads, buffers);
    free(tables);
    return 1;
}
