"""Statistics that merge: count, mean and summed squared differences, of parts of the data, into those of the whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from cpunorm.reference import wide

Array = np.ndarray[Any, Any]

_BLOCK = 2**17  # values of 8 bytes: 1 MB


@dataclass(frozen=True)
class Moments:
    """Mean and second moment about it of `count` values each; float64. No values have mean 0 and m2 0.

    Attributes
    ----------
    count : int
        Values (samples) that every mean is of.
    mean : array of any shape
    m2 : array of mean's shape, ``sum((x - mean)**2)``; or of mean's shape twice, ``sum(outer(x - mean, x - mean))``
        The former gives variances, the latter, of features, their covariance.
    """

    count: int
    mean: Array
    m2: Array

    @classmethod
    def empty(cls, shape: tuple[int, ...], *, joint: bool = False) -> Self:
        """Of nothing; `joint` for covariances."""
        return cls(0, np.zeros(shape), np.zeros(shape * 2 if joint else shape))

    @property
    def joint(self) -> bool:
        """Whether m2 is of pairs."""
        return self.m2.ndim != self.mean.ndim

    def merge(self, other: Moments) -> Moments:
        """Of both together; the operands stay as they are.

        With ``d = other.mean - self.mean`` and ``n = a + b`` the mean is ``self.mean + d * b / n`` and m2 ``self.m2 + other.m2 +
        d * d * a * b / n``. Source: Chan, Golub and LeVeque 1983, "Algorithms for computing the sample variance", equations 2.1.
        """
        if self.mean.shape != other.mean.shape or self.m2.shape != other.m2.shape:
            raise ValueError(
                f"merge: expected moments of shape {self.mean.shape} and {self.m2.shape}, got {other.mean.shape}, {other.m2.shape}"
            )
        if not (self.count and other.count):
            return self if self.count else other
        count = self.count + other.count
        share = other.count / count
        with np.errstate(all="ignore"):
            delta = other.mean - self.mean
            mean = np.where(np.isnan(delta), self.mean * (1 - share) + other.mean * share, self.mean + delta * share)  # inf - inf
            m2 = np.multiply.outer(delta, delta) if self.joint else delta * delta
            m2 *= self.count * share
            m2 += self.m2
            m2 += other.m2
        return Moments(count, mean, m2)


def of_rows(x: Array) -> Moments:
    """Joint moments of the columns of x, of shape (samples, features) and any float dtype.

    In blocks of rows, the differences first and BLAS for the products; what is made in float64 on the way is no larger than 1 MB, or
    than the matrix of the result.
    """
    samples, features = x.shape
    total = Moments.empty((features,), joint=True)
    rows = block_rows(features)
    for start in range(0, samples, rows):
        with np.errstate(all="ignore"):
            block = wide(x[start : start + rows])
            first = block[0].copy()
            block -= first  # the mean of equal values is that value
            shift = block.mean(axis=0)
            block -= shift
            part = Moments(len(block), first + shift, block.T @ block)
        total = total.merge(part)
    return total


def block_rows(features: int) -> int:
    """Rows of float64 a block: 1 MB, or half of the covariance matrix where that is more: merging costs little beside the product."""
    return max(_BLOCK // features, features // 2, 1)
