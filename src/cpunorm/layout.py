"""Layouts: from strings, shapes and strides to a `View`. No arrays, no dtypes, no arithmetic on data.

Every normalization sees an array as three nested axes in memory order, ``[outer, middle, last]``, whose last axis has unit stride.
Two forms are enough for all layouts:

* **runs**: the channel is the middle axis, so that coefficients are constant along contiguous data
  (``NCHW``, ``NCL``, ``NCDHW``: ``[N, C, spatial]``);
* **columns**: the channel is the last axis, so that one row of coefficients serves all rows of data
  (``NHWC``, ``NLC``, ``NC``: ``[1, N * spatial, C]``).

`find_view` gets there by dropping axes of size 1, sorting the others by stride and merging neighbours; it never copies.
What it decides from is only the strides, so a channels-first *shape* with channels-last *strides* is columns, and a slice along an
outer axis stays what it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

CHANNELS_FIRST = "channels_first"
CHANNELS_LAST = "channels_last"

# What an axis is to an operation. Neighbours merge only if they are the same to it.
REDUCED = "r"  # statistics are taken over it
KEPT = "k"  # statistics are taken for each of its indices
CHANNEL = "c"  # kept, and it indexes weight and bias


class Axes(NamedTuple):
    """Where the batch and the channel axis of a layout are."""

    batch: int
    channel: int
    rank: int


@dataclass(frozen=True)
class View:
    """Arrays of one shape as ``[outer, middle, last]`` in memory order; strides in elements, the last one is 1.

    ``strides`` has one ``(outer, middle)`` pair an array. ``kept_outer`` tells whether statistics are per outer index.
    """

    form: str
    outer: int
    middle: int
    last: int
    strides: tuple[tuple[int, int], ...]
    kept_outer: bool = False

    @property
    def size(self) -> int:
        """Elements."""
        return self.outer * self.middle * self.last

    @property
    def channels(self) -> int:
        """Length of the axis that coefficients lie along."""
        return self.middle if self.form == "runs" else self.last

    def packed(self, array: int) -> bool:
        """Whether the array's elements lie one after another, without gaps, in the order of the view."""
        outer, middle = self.strides[array]
        return (self.middle == 1 or middle == self.last) and (self.outer == 1 or outer == self.middle * self.last)

    def rows_packed(self, array: int) -> bool:
        """Whether this holds at least within one outer index."""
        return self.middle == 1 or self.strides[array][1] == self.last


def parse_layout(layout: str, rank: int) -> Axes | None:
    """The batch and channel axes of `layout` for arrays of `rank` axes; None where they do not fit together.

    A layout is one letter an axis, N and C among them and none twice, or ``"channels_first"`` / ``"channels_last"`` for any rank >= 2.
    """
    if layout == CHANNELS_FIRST:
        return Axes(0, 1, rank) if rank >= 2 else None
    if layout == CHANNELS_LAST:
        return Axes(0, rank - 1, rank) if rank >= 2 else None
    if not is_layout(layout) or len(layout) != rank:
        return None
    return Axes(layout.index("N"), layout.index("C"), rank)


def is_layout(layout: object) -> bool:
    """Whether `layout` is a layout for some rank."""
    if not isinstance(layout, str):
        return False
    if layout in (CHANNELS_FIRST, CHANNELS_LAST):
        return True
    return layout.isalpha() and layout.isupper() and len(set(layout)) == len(layout) and {"N", "C"} <= set(layout)


def batch_norm_roles(axes: Axes) -> str:
    """One role an axis: batch norm pools everything but the channel."""
    return "".join(CHANNEL if axis == axes.channel else REDUCED for axis in range(axes.rank))


def group_norm_roles(axes: Axes) -> str:
    """Group norm, instance norm and local response norm keep the samples apart, and the channels among them."""
    return "".join(CHANNEL if a == axes.channel else KEPT if a == axes.batch else REDUCED for a in range(axes.rank))


def row_roles(rank: int, leading: int) -> str:
    """Layer and RMS norm reduce all axes from `leading` on."""
    return KEPT * leading + REDUCED * (rank - leading)


def memory_order(shape: tuple[int, ...], strides: tuple[int, ...]) -> list[int]:
    """Axes longer than 1 by falling stride: the order in which one walks through memory. Ties keep the axes' own order."""
    return sorted((axis for axis, size in enumerate(shape) if size != 1), key=lambda axis: -abs(strides[axis]))


def find_view(shape: tuple[int, ...], strides: tuple[tuple[int, ...], ...], roles: str) -> View | None:
    """The view that all arrays of `shape` with these `strides` (in elements, one tuple an array) share, or None if a copy is needed.

    `roles` has one letter an axis (`REDUCED`, `KEPT`, `CHANNEL`). The first array decides the order.
    """
    groups = _coalesce(shape, strides, roles)
    unit = (1,) * len(strides)
    if groups and groups[-1][2] != unit:
        return None
    sizes = [size for _, size, _ in groups]
    steps = [step for _, _, step in groups]
    pattern = "".join(role for role, _, _ in groups)
    place = _PLACES.get(pattern) or (None if CHANNEL in roles else _PLACES_WITHOUT_CHANNEL.get(pattern))
    if place is None:
        return None
    form, outer, middle, last = place
    o, m, n = (1 if axis is None else sizes[axis] for axis in (outer, middle, last))
    none = (0,) * len(strides)
    outer_steps, middle_steps = (none if axis is None else steps[axis] for axis in (outer, middle))
    return View(form, o, m, n, tuple(zip(outer_steps, middle_steps, strict=True)), outer is not None and pattern[outer] != REDUCED)


# Roles of the merged axes in memory order -> form, and which of them are outer, middle and last.
_Place = tuple[str, int | None, int | None, int | None]
_PLACES: dict[str, _Place] = {
    "": ("runs", None, None, None),
    "r": ("runs", None, None, 0),
    "rr": ("runs", 0, None, 1),
    "k": ("runs", 0, None, None),
    "kr": ("runs", 0, None, 1),
    "cr": ("runs", None, 0, 1),
    "rcr": ("runs", 0, 1, 2),
    "kcr": ("runs", 0, 1, 2),
    "c": ("columns", None, None, 0),
    "rc": ("columns", None, 0, 1),
    "kc": ("columns", 0, None, 1),
    "rrc": ("columns", 0, 1, 2),
    "krc": ("columns", 0, 1, 2),
}
_PLACES_WITHOUT_CHANNEL: dict[str, _Place] = {
    "rk": ("columns", None, 0, 1),
    "rrk": ("columns", 0, 1, 2),
    "krk": ("columns", 0, 1, 2),
    "rkr": ("runs", 0, 1, 2),
    "kkr": ("runs", 0, 1, 2),
}


def _coalesce(shape: tuple[int, ...], strides: tuple[tuple[int, ...], ...], roles: str) -> list[tuple[str, int, tuple[int, ...]]]:
    """(role, size, stride an array) of the axes in memory order, neighbours of one role merged where every array allows it."""
    groups: list[tuple[str, int, tuple[int, ...]]] = []
    for axis in memory_order(shape, strides[0]):
        size, step = shape[axis], tuple(s[axis] for s in strides)
        if groups:
            role, before, wide = groups[-1]
            if role == roles[axis] and all(w == s * size for w, s in zip(wide, step, strict=True)):
                groups[-1] = (role, before * size, step)
                continue
        groups.append((roles[axis], size, step))
    return groups
