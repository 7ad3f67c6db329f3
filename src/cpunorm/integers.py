"""Integers added up without rounding, and their mean and variance, rounded once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

Array = np.ndarray[Any, Any]

WHOLE = 2**53  # whole numbers up to here are exact in float64


@dataclass(frozen=True)
class Sums:
    """Sum and sum of squares of `count` integers each.

    Attributes
    ----------
    count : int
        Values that every sum is of.
    total, squares : arrays of one shape, of an integer dtype or of Python's integers (dtype object)
        Exact: whoever makes them in 64 bits has seen to it that they fit.
    """

    count: int
    total: Array
    squares: Array

    @classmethod
    def empty(cls, shape: tuple[int, ...]) -> Self:
        """Of nothing."""
        return cls(0, np.zeros(shape, object), np.zeros(shape, object))

    def merge(self, other: Sums) -> Sums:
        """Of both together, in Python's integers: of any size."""
        totals, squares = ([part.astype(object) for part in pair] for pair in ((self.total, other.total), (self.squares, other.squares)))
        return Sums(self.count + other.count, totals[0] + totals[1], squares[0] + squares[1])

    def mean(self) -> Array:
        """``total / count``, float64."""
        total, _ = self._exact()
        return _divided(total, self.count)

    def m2(self) -> Array:
        """``squares - total**2 / count``: the summed squared differences from the mean, float64."""
        return _divided(self._spread(), self.count)

    def variance(self, ddof: float) -> Array:
        """``m2 / (count - ddof)``, rounded once where ddof is a whole number; NaN or infinite where nothing remains."""
        left = self.count - ddof
        if left <= 0 or left != int(left):
            with np.errstate(all="ignore"):
                return self.m2() / np.float64(max(left, 0))
        return _divided(self._spread(), self.count * int(left))

    def _spread(self) -> Array:
        """``count * squares - total**2``, exact: a small difference of large numbers, which is why these are integers."""
        total, squares = self._exact()
        return np.asarray(squares * self.count - total * total)

    def _exact(self) -> tuple[Array, Array]:
        """The sums in a dtype that computes the above without rounding: float64 where all stays below 2**53, else Python's integers.

        ``total**2 <= count * squares`` (Cauchy and Schwarz), so that the latter is the largest. Many units of few values each, of which
        there may be millions, are in float64.
        """
        largest = self.count * max(self.count, int(self.squares.max(initial=0)))
        dtype = np.float64 if largest < WHOLE else object
        return self.total.astype(dtype), self.squares.astype(dtype)


def _divided(numerator: Array, denominator: int) -> Array:
    """Rounded once: both are exact, and so is the rounding of Python's ``int / int``."""
    return np.asarray(numerator / denominator, np.float64)
