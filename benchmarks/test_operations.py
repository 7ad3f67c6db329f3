"""pytest-benchmark over the operation table: operation x shape x layout x dtype x threads x who, ours and the peers in one group.

How to run it, and what `extra_info` has: see conftest.py. `-k` takes any part of an identifier, such as
``batch_norm-training-MobileNetV2_block_2-NHWC-float32-2_threads-c``.
"""

import numpy as np
import pytest
from conftest import THREADS, loaded

from cpunorm import check, ops
from cpunorm.compare import contestants, measure, peers, pictures, shapes

LAYOUTS = ("NCHW", "NHWC")
PEERS = [contestants.NUMPY, contestants.TORCH, peers.TORCH_OUT, peers.ONNX, peers.OPENCV, peers.SKLEARN]
# Shapes that an operation is met with; the quick set has one in the caches and one beyond them.
UNET = ("Stable Diffusion", "odd", "YOLO neck")
OF = {"group_norm": UNET, "group_norm_backward": UNET, "local_response_norm": ("ResNet-50 stage 2", "MobileNetV2", "odd")}
QUICK_SHAPES = ("MobileNetV2 block 2, batch 8", "Stable Diffusion UNet 64x64, batch 2", "ViT-B, batch 32")
QUICK = ("batch_norm inference", "batch_norm training", "group_norm", "layer_norm", "rms_norm")
QUICK_WHO = ("numba", "c", contestants.NUMPY, contestants.TORCH, peers.TORCH_OUT, peers.ONNX, peers.SKLEARN)


def taken(operation):
    """The named shapes that go with an operation."""
    rows = not ops.OPERATIONS[operation].layouts and operation != "mean_var"
    for name, shape in (shapes.ROWS if rows else shapes.DEFAULT | shapes.IMAGES).items():
        if rows or operation not in OF or name.startswith(OF[operation]):
            yield name, shape


def everything():
    for operation, row in ops.OPERATIONS.items():
        layouts = LAYOUTS if row.layouts or operation == "mean_var" else LAYOUTS[:1]
        for name, shape in taken(operation):
            for layout in layouts:
                for dtype in row.dtypes:
                    for threads in THREADS:
                        for who in (*check.BACKENDS, *PEERS):
                            if threads > 1 and who in peers.SERIAL:
                                continue
                            quick = operation in QUICK and name in QUICK_SHAPES and dtype == "float32" and who in QUICK_WHO
                            quick = quick and (threads == THREADS[-1] or who in peers.SERIAL)
                            words = (operation, name.replace(", batch ", "x").replace(",", ""), layout, dtype)
                            label = "-".join([*words, f"{threads} threads", who]).replace(" ", "_")
                            marks = [pytest.mark.quick] if quick else []
                            yield pytest.param(operation, shape, layout, dtype, threads, who, id=label, marks=marks)


_works = {}


def work_of(operation, shape, layout, dtype):
    """The last one is kept: its benchmarks come one after another."""
    key = operation, shape, layout, dtype
    if key not in _works:
        _works.clear()
        row = ops.OPERATIONS[operation]
        photographs = pictures.load(None) if len(shape) == 4 and shape[1] == 3 else []
        _works[key] = measure.RowWork(row, measure.make_inputs(row, shape, layout, dtype, photographs))
    return _works[key]


@pytest.mark.parametrize(("operation", "shape", "layout", "dtype", "threads", "who"), [*everything()])
def test_operation(checked, benchmark, operation, shape, layout, dtype, threads, who):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    row = ops.OPERATIONS[operation]
    libraries = peers.installed()
    if who in check.BACKENDS:
        contestant = work_of(operation, shape, layout, dtype).ours(loaded(who), threads)
    else:
        work = work_of(operation, shape, layout, dtype)
        found = {one.name: one for one in work.peers(threads, libraries, serial=True)}
        if who not in found:
            pytest.skip(f"{who} is not installed, or has no {operation} of {dtype} in {layout}")
        contestant = found[who]
    benchmark.group = f"{operation}, {'x'.join(map(str, shape))}, {layout}, {dtype}"
    checked(contestant, work_of(operation, shape, layout, dtype), threads, libraries, (row.reads, row.writes))


def test_every_row_of_the_table_is_here():
    assert {param.values[0] for param in everything()} == set(ops.OPERATIONS)
    assert all(np.prod(shape) > 0 for operation in ops.OPERATIONS for _, shape in taken(operation))
