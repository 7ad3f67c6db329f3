"""The structs that plans are handed over in: what is linked into them, and that C and Numba see the same fields."""

import numpy as np
import pytest
from test_plan import CACHES, FORWARD, KEPT, ROWS, VIEWS

from cpunorm import program
from cpunorm.jit import drivers, tile
from cpunorm.plan import Data, Resources


def test_link():
    names = {"moments_runs": 11, "fold_moments": 12, "fold_statistics": 13, "affine_runs": 14}
    made = FORWARD["training"][1](VIEWS["NCHW"], Data("float32", activation="relu6"), Resources(2, CACHES))
    linked = made.link(names.__getitem__)
    assert linked.steps["kernel"].tolist() == [11, 12, 13, 14]
    assert linked.steps["streams"].tolist() == [0, 0, 0, 1]
    assert [linked.steps[name].tolist() for name in ("load", "activation", "store")] == [[0] * 4] * 3
    assert linked.steps["floor"].tolist() == [-np.inf, -np.inf, -np.inf, 0]
    assert linked.steps["ceiling"].tolist() == [np.inf, np.inf, np.inf, 6]
    assert linked.steps["momentum"][2] == 0.1
    (phase,) = made.phases
    assert linked.phases.tolist() == [(phase.items, phase.block, phase.part, 0, 4)]
    assert linked.head.tolist() == [(linked.phases.ctypes.data, 1, linked.steps.ctypes.data)]
    assert linked.address == linked.head.ctypes.data


def test_a_part_is_the_block_where_a_plan_names_none():
    made = FORWARD["inference"][1](VIEWS["NHWC"], Data("float32"), Resources(2, CACHES))
    linked = made.link(lambda name: 1)
    assert linked.phases["part"].tolist() == [phase.block for phase in made.phases]


def test_link_of_16_bits():
    names = ["moments_runs", "fold_statistics", "affine_rows", "silu"]
    made = FORWARD["layer_norm"][1](ROWS["rows"], Data("float16", activation="silu"), Resources(2, CACHES))
    linked = made.link(names.index)
    assert linked.steps["kernel"].tolist() == [0, 1, 2]
    assert linked.steps["activation"].tolist() == [0, 0, 3]
    assert (linked.steps["item_size"][[0, 2]] == 2).all()
    window = ["window_runs", "load_float16", "store_float16"]
    linked = FORWARD["local_response_norm"][1](KEPT["groups"], Data("float16"), Resources(2, CACHES)).link(window.index)
    assert [linked.steps[name].tolist() for name in ("kernel", "load", "store")] == [[0], [1], [2]]


def test_slots():
    assert len(program.SLOTS) == drivers.SLOT_COUNT
    for number, name in enumerate(program.SLOTS):
        assert getattr(tile, name.upper()) == number


@pytest.mark.parametrize("name", ["step", "phase", "program", "ready", "picture"])
def test_structs_are_those_of_c(name, native):
    fields, offsets, size = native.struct_fields(name)
    ours = getattr(program, name.upper())
    assert fields == list(ours.names)
    assert offsets == [ours.fields[field][1] for field in fields]
    assert size == ours.itemsize


@pytest.mark.parametrize(
    "struct", [program.STEP, program.PHASE, program.PROGRAM, program.READY, program.PICTURE], ids=lambda struct: struct.names[0]
)
def test_structs_have_no_gaps(struct):
    assert struct.itemsize == 8 * len(struct.names)
    assert all(struct[name] in (np.int64, np.float64) for name in struct.names)
