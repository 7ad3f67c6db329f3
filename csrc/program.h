/* Programs: what a plan hands to a backend. src/cpunorm/program.py makes these structs and says what their fields are.
 *
 * csrc/build.py reads this file too, so that Python can compare the two: one field a line, no conditions. */

#ifndef CPUNORM_PROGRAM_H
#define CPUNORM_PROGRAM_H

#include <stdint.h>

enum slot {
    X,
    SECOND,
    Y,
    SUM,
    WEIGHT,
    BIAS,
    RUNNING_MEAN,
    RUNNING_VAR,
    MEAN,
    RSTD,
    GRAD_WEIGHT,
    GRAD_BIAS,
    SCRATCH,
    SLOT_COUNT
};

typedef struct step {
    int64_t kernel;
    int64_t items;
    int64_t scale;
    /* view: [repeat, outer, middle, last], strides in elements */
    int64_t repeat;
    int64_t outer;
    int64_t middle;
    int64_t last;
    int64_t x_repeat;
    int64_t x_outer;
    int64_t x_middle;
    int64_t second_repeat;
    int64_t second_outer;
    int64_t second_middle;
    int64_t y_repeat;
    int64_t y_outer;
    int64_t y_middle;
    int64_t total;
    int64_t item_size;
    int64_t load;
    int64_t has_second;
    int64_t ahead;
    int64_t sparse;
    /* reductions */
    int64_t source;
    int64_t pieces;
    int64_t length;
    int64_t centred;
    /* affine */
    int64_t grain;
    int64_t packed;
    int64_t activation;
    int64_t store;
    int64_t streams;
    int64_t tiled;
    /* tables in scratch: [outer, entry, channel] */
    int64_t channels;
    int64_t groups;
    int64_t weighted;
    int64_t training;
    int64_t moments;
    int64_t entries;
    int64_t unit_entries;
    int64_t statistics;
    int64_t units;
    int64_t partials;
    int64_t coefficients;
    int64_t coefficient_count;
    int64_t coefficient_outer;
    int64_t period;
    int64_t width;
    /* window */
    int64_t before;
    int64_t after;
    /* pictures */
    int64_t out_size;
    int64_t padded;
    int64_t bytes_to_floats;
    int64_t swap;
    int64_t reach;
    int64_t ring;
    double eps;
    double momentum;
    double size;
    double alpha;
    double beta;
    double k;
    double floor;
    double ceiling;
} step;

typedef struct phase {
    int64_t items;
    int64_t block;
    int64_t part;
    int64_t first;
    int64_t count;
} phase;

typedef struct program {
    const phase *phases;
    int64_t phase_count;
    const step *steps;
} program;

typedef struct ready {
    int64_t program;
    int64_t threads;
    int64_t scratch;
    int64_t weight;
    int64_t bias;
    int64_t in_place;
    int64_t expected;
    int64_t options;
} ready;

/* Instead of a number of axes, in what a call expects of an array. */
enum axes {
    ABSENT = -1,
    OURS = -2
};

typedef struct picture {
    int64_t data;
    int64_t row;
    int64_t column;
    int64_t channel;
    int64_t mirror;
    int64_t width;
    int64_t across;
    int64_t across_taps;
    int64_t down;
    int64_t down_taps;
} picture;

#endif
