"""The Numba kernels by name: serial loops over a range of items. csrc has the same ones, by the same names, in C.

A kernel is ``kernel(step, buffers, lo, hi)``, a stage ``stage(target, source, count)``; both trust what they are given: no checks, no
defaults, no allocation. E in their comments is the dtype of the elements, which the type of `buffers` carries, T the one that they are
computed in, float32 or float64. Kernels of elements are compiled for each E, all others for each T.

===================================  =====================================================================================
``moments_runs/columns``             forward: (count, mean, M2) of pieces
``sums_runs/columns/rows``           backward: sum(g), sum(g (x - mean)) of pieces
``counts_runs/columns``              exact sum(x), sum(x^2) of pieces, uint8 and uint16
``fold_...``                         tables to tables: pieces merged, statistics and sums to coefficients and results
``affine_runs/columns/rows``         y = act((x - m) s + t + (r - n) q)
``window[_gradient]_runs/columns``   local response norm
``planes``, ``pixels``               pictures to y = (x - m) s + t, channels first or last
``resize_rows``                      the same of resized pictures
stages                               activation of a tile; its load and store for local response norm and pictures
===================================  =====================================================================================
"""

from __future__ import annotations

from collections.abc import Callable

from cpunorm.jit import affine, affine_rows, counts, folds, moments, moments_columns, pictures, resize, stages, sums, windows
from cpunorm.jit.lowlevel import has_f16c

OF_ELEMENTS: dict[str, Callable[..., None]] = {
    kernel.__name__: kernel
    for kernel in (
        moments.moments_runs,
        moments_columns.moments_columns,
        sums.sums_runs,
        sums.sums_columns,
        sums.sums_rows,
        affine.affine_runs,
        affine.affine_columns,
        affine_rows.affine_rows,
    )
}
KERNELS: dict[str, Callable[..., None]] = OF_ELEMENTS | {
    kernel.__name__: kernel
    for kernel in (
        counts.counts_runs,
        counts.counts_columns,
        folds.fold_moments,
        folds.fold_sums,
        folds.fold_statistics,
        folds.fold_running,
        folds.fold_norms,
        folds.fold_norm_gradients,
        folds.fold_gradients,
        folds.fold_parameters,
        folds.fold_row_gradients,
        folds.fold_row_parameters,
        windows.window_runs,
        windows.window_columns,
        windows.window_gradient_runs,
        windows.window_gradient_columns,
        pictures.planes,
        pictures.pixels,
        resize.resize_rows,
    )
}
F16C = has_f16c()
STAGES: dict[str, Callable[..., None]] = {
    "load_float16": stages.load_float16_f16c if F16C else stages.load_float16_bits,
    "store_float16": stages.store_float16_f16c if F16C else stages.store_float16_bits,
} | {
    stage.__name__: stage
    for stage in (
        stages.load_bfloat16,
        stages.load_uint8,
        stages.load_uint16,
        stages.hardswish,
        stages.silu,
        stages.store_plain,
        stages.store_stream,
        stages.store_bfloat16,
        stages.store_int8,
        stages.store_uint8,
    )
}
