"""Statistics and normalization of Dask arrays, lazily: on one machine or a cluster, of data larger than memory. docs/dask.md has more.

Functions take a `dask.array.Array` of any chunks and have the meaning, the checks and the errors of their namesakes in `cpunorm`; what
shapes and dtypes tell is checked at the call, before anything is computed. What they share:

* statistics are a tree: the moments of each block (a kernel), merged a few at a time (`Moments.merge`, Chan, Golub and LeVeque 1983;
  integers add up exactly). Chunks may cut any axis. The tree depends on the chunks alone: the same chunks give the same bits, however many
  workers there are and whichever of them is lost; other chunks give the same to rounding (1e-12 of it for float64);
* the rest is done block by block and keeps the chunks, but where a row or a picture has to be whole: there chunks are joined along it, and
  cut finer along the other axes, so that blocks do not grow;
* every task computes on one thread: the scheduler has its own;
* ``backend=None`` is the one configured where the call is made, or in the worker; where there is none, C in the workers that have it, else
  what `cpunorm` takes by itself.

>>> import dask.array as da
>>> import numpy as np
>>> from cpunorm import dask as cd
>>> x = da.from_array(np.arange(24.0).reshape(2, 3, 4), chunks=(1, 2, 3))
>>> stats = cd.channel_stats(x)
>>> y = cd.standardize(x, stats.mean, stats.std())
>>> stats.compute().mean.tolist()
[7.5, 11.5, 15.5]
>>> mean, var = cd.mean_var(y, (0, 2))
>>> bool(np.allclose(mean, 0)) and bool(np.allclose(var, 1))
True
"""

try:
    import dask.array  # noqa: F401
except ImportError as problem:
    raise ImportError(f"cpunorm.dask needs dask ({problem}); pip install 'cpunorm[dask]'", name=problem.name) from problem

from cpunorm.dask.norms import batch_norm, layer_norm, preprocess, standardize
from cpunorm.dask.statistics import channel_stats, fit_whitening, mean_var

__all__ = ["batch_norm", "channel_stats", "fit_whitening", "layer_norm", "mean_var", "preprocess", "standardize"]
