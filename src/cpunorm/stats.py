"""Statistics that merge: count, mean and summed squared differences, of parts of the data, into those of the whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from cpunorm import check, moments
from cpunorm.integers import Sums
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
            apart = self.mean * (1 - share) + other.mean * share  # an infinite mean stays infinite: no inf - inf
            mean = np.where(np.isfinite(delta), self.mean + delta * share, apart)
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


class ChannelStats:
    """Mean and variance a channel of data that comes in blocks: pictures of any size, batches, parts of a data set on several machines.

    Every value counts once: a picture of twice the pixels weighs twice. Blocks in any order and any split give the same answer, integers
    (bool and all integer dtypes) to the last bit, since their sums and sums of squares are kept as Python's integers; floats to rounding,
    by blocks merged in float64 (``Moments.merge``). Both may be mixed: they are kept apart, and merged when asked for. Values are taken as
    they are: of uint8 and floats from 0 to 1 make two objects, or scale one of them.

    Parameters
    ----------
    num_channels : int or None
        None is the number of the first block.
    layout : str
        ``"channels_first"`` (channels on axis 1), ``"channels_last"`` (on the last one, of a picture HWC or a batch NHWC), or one letter an
        axis, C among them: ``"NCHW"``, ``"CHW"``, ``"HWC"``. With an N, a block may come without that axis: one picture.

    Notes
    -----
    NaN or infinity make the statistics of their channel NaN (of infinities of one sign the mean is infinite), and stay. A block without
    values changes nothing. Objects pickle; `to_dict` and `from_dict` go through JSON without loss.

    >>> import numpy as np
    >>> pictures = [np.full((2, 3, 3), 10, np.uint8), np.full((4, 3, 3), 40, np.uint8)]
    >>> stats = ChannelStats(layout="HWC")
    >>> for picture in pictures:
    ...     _ = stats.update(picture)
    >>> stats.count, stats.mean, stats.std()
    (18, array([30., 30., 30.]), array([14.14213562, 14.14213562, 14.14213562]))
    """

    def __init__(self, num_channels: int | None = None, *, layout: str = "channels_first") -> None:
        call = "ChannelStats"
        self.layout = check.channel_layout(call, layout)
        channels = None if num_channels is None else check.positive(call, "num_channels", num_channels)
        self._sums, self._floats = Sums.empty((channels or 0,)), Moments.empty((channels or 0,))

    @classmethod
    def of(cls, parts: Sequence[Sums] | Sequence[Moments], *, layout: str) -> Self:
        """Of what was reduced elsewhere: the channels of each part, one part after another; all of as many values."""
        rows = zip(*((part.total, part.squares) if isinstance(part, Sums) else (part.mean, part.m2) for part in parts), strict=True)
        first, second = (np.concatenate([piece.ravel() for piece in row]) for row in rows)
        made = cls(layout=layout)
        made._sums, made._floats = Sums.empty(first.shape), Moments.empty(first.shape)
        if isinstance(parts[0], Sums):
            made._sums = Sums(parts[0].count, first, second)
        else:
            made._floats = Moments(parts[0].count, first, second)
        return made

    def update(self, x: Any) -> Self:
        """Add a block of any real dtype and any strides; returns the object itself.

        Raises ValueError for a block of another rank than the layout's or of another number of channels, TypeError for a complex or object
        array. The object is unchanged then.
        """
        call = "ChannelStats.update"
        x = check.array(call, "x", x)
        check.statistics_dtype(call, x.dtype)
        channel = check.channel_axis(call, self.layout, x.shape)
        self._expect(call, x.shape[channel], f"on axis {channel} of x of shape {x.shape}")
        if x.size == 0:
            return self
        axes = tuple(axis for axis in range(x.ndim) if axis != channel)
        if x.dtype.kind in "biu":
            sums = moments.of_integers(x, axes, None, None)
            self._sums = self._sums.merge(Sums(sums.count, sums.total.ravel(), sums.squares.ravel()))
        else:
            mean, m2 = moments.of_floats(x, axes, None, None)
            self._floats = self._floats.merge(Moments(moments.count_of(x.shape, axes), mean.ravel(), m2.ravel()))
        return self

    def merge(self, other: ChannelStats) -> Self:
        """Add what `other` has seen, which stays as it is; returns the object itself. ``a + b`` makes a new one, ``a += b`` is this."""
        call = "ChannelStats.merge"
        if not isinstance(other, ChannelStats):
            raise TypeError(f"{call}: expected a ChannelStats, got {type(other).__name__}")
        if other.num_channels is not None:
            self._expect(call, other.num_channels, "in what is merged")
            self._sums, self._floats = self._sums.merge(other._sums), self._floats.merge(other._floats)
        return self

    def __add__(self, other: ChannelStats) -> ChannelStats:
        if not isinstance(other, ChannelStats):
            return NotImplemented
        made = ChannelStats(self.num_channels, layout=self.layout)
        return made.merge(self).merge(other)

    def __iadd__(self, other: ChannelStats) -> Self:
        return self.merge(other) if isinstance(other, ChannelStats) else NotImplemented

    @property
    def num_channels(self) -> int | None:
        """Channels; None before the first block where it was not given."""
        return len(self._sums.total) or None

    @property
    def count(self) -> int:
        """Values a channel: pixels."""
        return self._sums.count + self._floats.count

    @property
    def moments(self) -> Moments:
        """Count, mean and summed squared differences of all seen."""
        if not self._sums.count:
            return self._floats
        return Moments(self._sums.count, self._sums.mean(), self._sums.m2()).merge(self._floats)

    @property
    def mean(self) -> Array:
        """Mean of each channel, float64; NaN before the first value."""
        return self.moments.mean.copy() if self.count else self._nothing("mean")

    def variance(self, ddof: float = 0) -> Array:
        """``sum((x - mean)**2) / (count - ddof)`` of each channel, float64: 0 gives the population's, 1 the unbiased one; NaN or infinite
        where nothing remains. Of integers it is rounded once where ddof is a whole number.
        """
        ddof = check.number("ChannelStats.variance", "ddof", ddof)
        if not self.count:
            return self._nothing("variance")
        if not self._floats.count:
            return self._sums.variance(ddof)
        with np.errstate(all="ignore"):
            return np.asarray(self.moments.m2 / np.float64(max(self.count - ddof, 0)))

    def std(self, ddof: float = 0) -> Array:
        """The square root of `variance`, in the units of the data."""
        return np.sqrt(self.variance(ddof))

    def to_dict(self) -> dict[str, Any]:
        """All of it in what JSON has: integers of any size, floats by their shortest digits (NaN and infinity as strings)."""
        sums, floats = self._sums, self._floats
        return {
            "layout": self.layout,
            "num_channels": self.num_channels,
            "integers": {"count": sums.count, "sum": _integers(sums.total), "sum_of_squares": _integers(sums.squares)},
            "floats": {"count": floats.count, "mean": _floats(floats.mean), "m2": _floats(floats.m2)},
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Self:
        """What `to_dict` made, through JSON or not; ValueError for anything else."""
        try:
            made = cls(content["num_channels"], layout=content["layout"])
            integers, floats = content["integers"], content["floats"]
            total, squares = (np.array([int(v) for v in integers[name]], object) for name in ("sum", "sum_of_squares"))
            mean, m2 = (np.array([float(v) for v in floats[name]], np.float64) for name in ("mean", "m2"))
            made._sums, made._floats = Sums(int(integers["count"]), total, squares), Moments(int(floats["count"]), mean, m2)
        except (KeyError, TypeError, ValueError) as problem:
            raise ValueError(f"ChannelStats.from_dict: expected what to_dict makes ({type(problem).__name__}: {problem})") from problem
        lengths = [len(row) for row in (total, squares, mean, m2)]
        if set(lengths) != {content["num_channels"] or 0}:
            raise ValueError(f"ChannelStats.from_dict: expected rows of {content['num_channels']} channels, got {lengths}")
        return made

    def __repr__(self) -> str:
        seen = f"count={self.count}"
        if self.count:
            seen += f", mean={_floats(self.mean.round(6))}, std={_floats(self.std().round(6))}"
        return f"ChannelStats({self.num_channels}, layout={self.layout!r}, {seen})"

    def _expect(self, call: str, channels: int, where: str) -> None:
        """The channels of the first block are those of all."""
        if self.num_channels is None:
            self._sums, self._floats = Sums.empty((channels,)), Moments.empty((channels,))
        elif channels != self.num_channels:
            raise ValueError(f"{call}: expected {self.num_channels} channels, got {channels} {where}")

    def _nothing(self, name: str) -> Array:
        if self.num_channels is None:
            raise ValueError(f"ChannelStats.{name}: expected a block by update or merge before it, or num_channels; got none")
        return np.full(self.num_channels, np.nan)


def _integers(row: Array) -> list[int]:
    return [int(value) for value in row]


def _floats(row: Array) -> list[float | str]:
    return [float(value) if np.isfinite(value) else str(value) for value in row]
