"""Whitening of features: PCA and ZCA from a covariance that is computed in one pass and merges."""

from __future__ import annotations

from typing import Any, Self

import numpy as np

from cpunorm import check, stats
from cpunorm.reference import wide
from cpunorm.stats import Moments

Array = np.ndarray[Any, Any]

METHODS = ("pca", "zca")


class Whitening:
    """Linear map of (samples, features) after which the features have variance 1 and no correlation.

    With the covariance ``S = sum(outer(x - mean, x - mean)) / (samples - 1) = V.T @ diag(lambda) @ V``, V of unit rows:

    * ``"pca"``: ``y = (x - mean) @ V.T / sqrt(lambda + eps)``, scikit-learn's ``PCA(whiten=True)`` where eps is 0, up to the signs of
      components; here the largest entry (in magnitude) of each is positive;
    * ``"zca"``: ``y = (x - mean) @ V.T / sqrt(lambda + eps) @ V``, by a symmetric matrix: of all whitened data the nearest to x (Bell and
      Sejnowski 1997, "The independent components of natural scenes are edge filters").

    Parameters
    ----------
    method : str
        ``"pca"`` or ``"zca"``.
    n_components : int or None
        PCA: the components kept, those of largest variance, at most the number of samples and of features; None is as many. ZCA has all
        features: None or their number.
    eps : float
        Added to the eigenvalues; smooths directions of little variance. With 0 every kept component has to have some variance: what is
        below ``features * 2.2e-16`` of the largest is none, and `transform` refuses.

    Notes
    -----
    Data is float16, bfloat16, float32 or float64, of any strides; all is computed in float64, in blocks of rows. `transform` and
    `inverse_transform` return their input's dtype. Data with NaN or infinity is refused. Objects pickle.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(100, 3)) @ np.array([[2.0, 1, 0], [0, 1, 1], [0, 0, 3]])
    >>> y = Whitening(eps=0).fit(x).transform(x)
    >>> bool(np.allclose(np.cov(y, rowvar=False), np.eye(3)))
    True
    """

    def __init__(self, method: str = "pca", n_components: int | None = None, eps: float = 1e-5) -> None:
        if method not in METHODS:
            raise ValueError(f"Whitening: expected method to be 'pca' or 'zca', got {method!r}")
        self.method = method
        self.n_components = None if n_components is None else check.positive("Whitening", "n_components", n_components)
        self.eps = check.epsilon("Whitening", eps, training=False)
        self._moments: Moments | None = None
        self._axes: tuple[Array, Array] | None = None  # all eigenvalues, falling, and their vectors as rows

    def fit(self, x: Any) -> Self:
        """The statistics of x, and of nothing seen before."""
        return self._replace(self._of(x, "Whitening.fit"))

    def partial_fit(self, x: Any) -> Self:
        """Add the samples of x to those seen before."""
        call = "Whitening.partial_fit"
        return self._add(call, self._of(x, call))

    def merge(self, other: Whitening) -> Self:
        """Add what `other` has seen, which stays as it is."""
        call = "Whitening.merge"
        if not isinstance(other, Whitening):
            raise TypeError(f"{call}: expected a Whitening, got {type(other).__name__}")
        return self if other._moments is None else self._add(call, other._moments)

    def transform(self, x: Any) -> Array:
        """Whitened x: of shape (samples, components), or x's for ZCA, and of x's dtype."""
        call = "Whitening.transform"
        variances, components = self._kept(call)
        rank = int(np.sum(variances > components.shape[1] * np.finfo(np.float64).eps * variances[0]))
        if not self.eps and rank < len(variances):
            raise ValueError(
                f"{call}: expected components that have some variance, got {rank} of {len(variances)}; take eps > 0"
                + (f" or n_components <= {rank}" if self.method == "pca" and rank else "")
            )
        matrix = components / np.sqrt(variances + self.eps)[:, None]
        if self.method == "zca":
            matrix = components.T @ matrix
        return _by_blocks(_data(call, "x", x, components.shape[1]), -self.mean_, matrix.T, 0.0)

    def inverse_transform(self, y: Any) -> Array:
        """What `transform` made y of, of shape (samples, features) and y's dtype; without the components that were dropped."""
        call = "Whitening.inverse_transform"
        variances, components = self._kept(call)
        matrix = np.sqrt(variances + self.eps)[:, None] * components
        if self.method == "zca":
            matrix = components.T @ matrix
        return _by_blocks(_data(call, "y", y, len(matrix)), 0.0, matrix, self.mean_)

    @property
    def mean_(self) -> Array:
        """Mean of each feature, float64."""
        return self._seen("Whitening.mean_").mean.copy()

    @property
    def components_(self) -> Array:
        """Eigenvectors of the covariance, as unit rows by falling variance: (components, features), float64."""
        return self._kept("Whitening.components_")[1].copy()

    @property
    def explained_variance_(self) -> Array:
        """Variance (ddof 1) along each component, float64; eps is not in it."""
        return self._kept("Whitening.explained_variance_")[0].copy()

    @property
    def n_samples_seen_(self) -> int:
        """Samples fitted."""
        return 0 if self._moments is None else self._moments.count

    def _of(self, x: Any, call: str) -> Moments:
        found = _data(call, "x", x, None)
        features = found.shape[1]
        if self.n_components is not None and (self.n_components > features or (self.method == "zca" and self.n_components != features)):
            wanted = (
                "None or the number of features, which zca rotates back to" if self.method == "zca" else "at most the number of features"
            )
            raise ValueError(f"{call}: expected n_components to be {wanted}, got {self.n_components} for x of shape {found.shape}")
        moments = stats.of_rows(found)
        if not (np.isfinite(moments.mean).all() and np.isfinite(moments.m2).all()):
            raise ValueError(f"{call}: expected x to be finite, and its squares too, got NaN, infinity or an overflow")
        return moments

    def _add(self, call: str, moments: Moments) -> Self:
        before = self._moments
        if before is not None and before.mean.shape != moments.mean.shape:
            raise ValueError(f"{call}: expected {before.mean.size} features, as before, got {moments.mean.size}")
        return self._replace(moments if before is None else before.merge(moments))

    def _replace(self, moments: Moments) -> Self:
        self._moments, self._axes = moments, None
        return self

    def _seen(self, call: str) -> Moments:
        if self._moments is None or not self._moments.count:
            raise ValueError(f"{call}: expected samples by fit, partial_fit or merge before it, got none")
        return self._moments

    def _decomposed(self, call: str) -> tuple[Array, Array]:
        """All eigenvalues and eigenvectors, by LAPACK; computed once."""
        if self._axes is None:
            seen = self._seen(call)
            if seen.count < 2:
                raise ValueError(f"{call}: expected at least 2 samples to be fitted, got {seen.count}")
            values, vectors = np.linalg.eigh(seen.m2 / (seen.count - 1))
            values, rows = np.maximum(values[::-1], 0), vectors.T[::-1]
            largest = np.take_along_axis(rows, np.abs(rows).argmax(axis=1)[:, None], axis=1)
            self._axes = values, rows * np.where(largest < 0, -1.0, 1.0)
        return self._axes

    def _kept(self, call: str) -> tuple[Array, Array]:
        values, rows = self._decomposed(call)
        most = len(values) if self.method == "zca" else min(len(values), self._seen(call).count)
        kept = most if self.n_components is None else self.n_components
        if kept > most:
            raise ValueError(f"{call}: expected n_components to be at most the number of samples, {most}, got {kept}")
        return values[:kept], rows[:kept]


def _data(call: str, name: str, value: Any, columns: int | None) -> Array:
    """An array of (samples, columns)."""
    found = check.array(call, name, value)
    check.float_dtype(call, name, found.dtype)
    if found.ndim != 2 or found.shape[1] == 0 or (columns is not None and found.shape[1] != columns):
        raise ValueError(f"{call}: expected {name} of shape (samples, {'features' if columns is None else columns}), got {found.shape}")
    return found


def _by_blocks(x: Array, before: Array | float, matrix: Array, after: Array | float) -> Array:
    """(x + before) @ matrix + after in x's dtype, a block of rows at a time in float64."""
    result = np.empty((len(x), matrix.shape[1]), x.dtype.newbyteorder("="))
    rows = stats.block_rows(max(matrix.shape))
    with np.errstate(all="ignore"):
        for start in range(0, len(x), rows):
            result[start : start + rows] = (wide(x[start : start + rows]) + before) @ matrix + after
    return result
