"""Layouts and views, from shapes and strides alone: no arrays."""

import pytest

from cpunorm.layout import Axes, View, batch_norm_roles, find_view, group_norm_roles, is_layout, memory_order, parse_layout, row_roles


@pytest.mark.parametrize(
    ("layout", "rank", "axes"),
    [
        ("NCHW", 4, (0, 1)),
        ("NHWC", 4, (0, 3)),
        ("NC", 2, (0, 1)),
        ("CN", 2, (1, 0)),
        ("HWNC", 4, (2, 3)),
        ("NZCY", 4, (0, 2)),
        ("channels_first", 2, (0, 1)),
        ("channels_first", 6, (0, 1)),
        ("channels_last", 2, (0, 1)),
        ("channels_last", 5, (0, 4)),
        ("channels_first", 1, None),
        ("channels_last", 0, None),
        ("NCHW", 3, None),
        ("NC", 4, None),
        ("NDHW", 4, None),
        ("nchw", 4, None),
        ("NCHH", 4, None),
        ("", 0, None),
    ],
)
def test_parse_layout(layout, rank, axes):
    assert parse_layout(layout, rank) == (None if axes is None else Axes(*axes, rank))


@pytest.mark.parametrize("layout", [None, 4, ("N", "C"), b"NCHW", "N C", "NC1", "N", "C"])
def test_what_is_no_layout(layout):
    assert not is_layout(layout)


def test_roles():
    assert batch_norm_roles(Axes(0, 1, 4)) == "rcrr"
    assert batch_norm_roles(Axes(0, 3, 4)) == "rrrc"
    assert group_norm_roles(Axes(0, 1, 4)) == "kcrr"
    assert group_norm_roles(Axes(1, 3, 4)) == "rkrc"
    assert row_roles(4, 1) == "krrr"
    assert row_roles(1, 0) == "r"


def test_memory_order_skips_axes_of_one_and_keeps_ties():
    assert memory_order((2, 1, 3, 4), (12, 99, 1, -3)) == [0, 3, 2]
    assert memory_order((2, 3, 4), (1, 1, 1)) == [0, 1, 2]


def runs(outer, middle, last, *strides, kept=False):
    return View("runs", outer, middle, last, strides, kept)


def columns(outer, middle, last, *strides, kept=False):
    return View("columns", outer, middle, last, strides, kept)


# shape, strides of each array, roles, view
CASES = {
    "NCHW": ((2, 3, 4, 5), [(60, 20, 5, 1)], "rcrr", runs(2, 3, 20, (60, 20))),
    "NHWC": ((2, 4, 5, 3), [(60, 15, 3, 1)], "rrrc", columns(1, 40, 3, (0, 3))),
    "channels last under a channels-first shape": ((2, 3, 4, 5), [(60, 1, 15, 3)], "rcrr", columns(1, 40, 3, (0, 3))),
    "channels first under a channels-last shape": ((2, 4, 5, 3), [(60, 5, 1, 20)], "rrrc", runs(2, 3, 20, (60, 20))),
    "NC": ((6, 5), [(5, 1)], "rc", columns(1, 6, 5, (0, 5))),
    "CN": ((5, 6), [(6, 1)], "cr", runs(1, 5, 6, (0, 6))),
    "CHWN": ((3, 4, 5, 2), [(40, 10, 2, 1)], "crrr", runs(1, 3, 40, (0, 40))),
    "HNCW": ((4, 2, 3, 5), [(30, 15, 5, 1)], "rrcr", runs(8, 3, 5, (15, 5))),
    "one sample": ((1, 3, 4, 4), [(999, 16, 4, 1)], "rcrr", runs(1, 3, 16, (0, 16))),
    "one pixel": ((2, 3, 1, 1), [(3, 1, 77, -5)], "rcrr", columns(1, 2, 3, (0, 3))),
    "one channel": ((2, 1, 4, 4), [(16, 16, 4, 1)], "rcrr", runs(1, 1, 32, (0, 0))),
    "one channel, gaps between samples": ((2, 1, 4, 4), [(32, 16, 4, 1)], "rcrr", runs(2, 1, 16, (32, 0))),
    "one value": ((1, 1), [(1, 1)], "rc", runs(1, 1, 1, (0, 0))),
    "one sample of one pixel": ((1, 3, 1), [(3, 1, 1)], "rcr", columns(1, 1, 3, (0, 0))),
    "outer slice": ((2, 3, 4, 5), [(120, 20, 5, 1)], "rcrr", runs(2, 3, 20, (120, 20))),
    "channel slice": ((2, 3, 4, 5), [(200, 40, 5, 1)], "rcrr", runs(2, 3, 20, (200, 40))),
    "outer slice of columns": ((2, 4, 5, 3), [(120, 15, 3, 1)], "rrrc", columns(2, 20, 3, (120, 3))),
    "channel slice of columns": ((2, 4, 5, 3), [(160, 40, 8, 1)], "rrrc", columns(1, 40, 3, (0, 8))),
    "row slice of columns": ((6, 5), [(10, 1)], "rc", columns(1, 6, 5, (0, 10))),
    "inner slice": ((2, 3, 4, 5), [(96, 32, 8, 1)], "rcrr", None),
    "inner step": ((2, 3, 4, 5), [(120, 40, 10, 2)], "rcrr", None),
    "channel step of columns": ((6, 5), [(10, 2)], "rc", None),
    "negative outer": ((2, 3, 4, 5), [(-60, 20, 5, 1)], "rcrr", runs(2, 3, 20, (-60, 20))),
    "negative channel": ((2, 3, 4, 5), [(60, -20, 5, 1)], "rcrr", runs(2, 3, 20, (60, -20))),
    "negative rows of columns": ((6, 5), [(-5, 1)], "rc", columns(1, 6, 5, (0, -5))),
    "negative inner": ((2, 3, 4, 5), [(60, 20, 5, -1)], "rcrr", None),
    "all negative": ((2, 3, 4, 5), [(-60, -20, -5, -1)], "rcrr", None),
    "negative inside a pixel plane": ((2, 3, 4, 5), [(60, 20, -5, 1)], "rcrr", None),
    "broadcast batch": ((2, 3, 4, 5), [(0, 20, 5, 1)], "rcrr", None),
    "broadcast inner": ((2, 3, 4, 5), [(12, 4, 1, 0)], "rcrr", None),
    "channel between two spatial axes": ((2, 4, 3, 5), [(60, 15, 5, 1)], "rrcr", runs(8, 3, 5, (15, 5))),
    "four groups": ((2, 3, 4, 5), [(60, 20, 5, 1)], "krkr", None),
    "two arrays alike": ((2, 3, 4, 5), [(60, 20, 5, 1), (120, 30, 5, 1)], "rcrr", runs(2, 3, 20, (60, 20), (120, 30))),
    "two arrays of other orders": ((2, 3, 4, 5), [(60, 20, 5, 1), (60, 1, 15, 3)], "rcrr", None),
    "two arrays, one with gaps inside": ((2, 3, 4, 5), [(60, 20, 5, 1), (96, 32, 8, 1)], "rcrr", None),
    "two arrays, one with gaps between samples": ((2, 1, 4, 4), [(16, 16, 4, 1), (32, 16, 4, 1)], "rcrr", runs(2, 1, 16, (16, 0), (32, 0))),
    "two columns, one with gaps": ((6, 5), [(5, 1), (8, 1)], "rc", columns(1, 6, 5, (0, 5), (0, 8))),
    "statistics a sample and channel": ((2, 5, 3), [(15, 3, 1)], "krk", columns(2, 5, 3, (15, 3), kept=True)),
    "statistics a sample and channel, runs": ((2, 3, 5), [(20, 5, 1)], "kkr", runs(2, 3, 5, (20, 5), kept=True)),
    "statistics a sample and channel, packed": ((2, 3, 5), [(15, 5, 1)], "kkr", runs(6, 1, 5, (5, 0), kept=True)),
    "statistics a row": ((6, 5), [(5, 1)], "kr", runs(6, 1, 5, (5, 0), kept=True)),
    "statistics of everything": ((6, 5), [(5, 1)], "rr", runs(1, 1, 30, (0, 0))),
    "statistics of everything, gaps": ((6, 5), [(8, 1)], "rr", runs(6, 1, 5, (8, 0))),
    "statistics of each value": ((6, 5), [(5, 1)], "kk", runs(30, 1, 1, (1, 0), kept=True)),
    "statistics of each value, gaps": ((6, 5), [(8, 1)], "kk", None),
}
CASES |= {
    "group norm": ((2, 3, 4, 5), [(60, 20, 5, 1)], "kcrr", runs(2, 3, 20, (60, 20), kept=True)),
    "group norm, channels last": ((2, 4, 5, 3), [(60, 15, 3, 1)], "krrc", columns(2, 20, 3, (60, 3), kept=True)),
    "group norm, channels last under a channels-first shape": (
        (2, 3, 4, 5),
        [(60, 1, 15, 3)],
        "kcrr",
        columns(2, 20, 3, (60, 3), kept=True),
    ),
    "group norm with gaps": ((2, 3, 5), [(20, 5, 1)], "kcr", runs(2, 3, 5, (20, 5), kept=True)),
    "group norm of NC": ((2, 3), [(3, 1)], "kc", columns(2, 1, 3, (3, 0), kept=True)),
    "group norm of one sample": ((1, 3, 5), [(15, 5, 1)], "kcr", runs(1, 3, 5, (0, 5))),
    "group norm of one channel": ((2, 1, 5), [(5, 5, 1)], "kcr", runs(2, 1, 5, (5, 0), kept=True)),
    "group norm of one pixel": ((2, 3, 1), [(3, 1, 1)], "kcr", columns(2, 1, 3, (3, 0), kept=True)),
    "group norm, samples last": ((3, 5, 2), [(10, 2, 1)], "crk", None),
    "rows of several axes": ((2, 3, 4, 5), [(60, 20, 5, 1)], "kkrr", runs(6, 1, 20, (20, 0), kept=True)),
    "norms of an inner axis": ((2, 3, 4), [(12, 4, 1)], "krk", columns(2, 3, 4, (12, 4), kept=True)),
    "norms of an outer axis": ((6, 5), [(5, 1)], "rk", columns(1, 6, 5, (0, 5))),
    "three arrays": ((2, 3, 5), [(15, 5, 1), (20, 5, 1), (30, 10, 1)], "kcr", runs(2, 3, 5, (15, 5), (20, 5), (30, 10), kept=True)),
}


@pytest.mark.parametrize(("shape", "strides", "roles", "view"), CASES.values(), ids=CASES)
def test_find_view(shape, strides, roles, view):
    assert find_view(shape, tuple(strides), roles) == view


@pytest.mark.parametrize(
    ("view", "packed", "rows_packed"),
    [
        (runs(2, 3, 20, (60, 20)), True, True),
        (runs(2, 3, 20, (120, 20)), False, True),
        (runs(2, 3, 20, (90, 30)), False, False),
        (runs(1, 3, 20, (0, 20)), True, True),
        (runs(1, 1, 20, (0, 0)), True, True),
        (columns(1, 40, 3, (0, 8)), False, False),
    ],
)
def test_packed(view, packed, rows_packed):
    assert (view.packed(0), view.rows_packed(0)) == (packed, rows_packed)
    assert view.size == view.outer * view.middle * view.last
    assert view.channels == (view.middle if view.form == "runs" else view.last)
