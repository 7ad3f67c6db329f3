"""Preprocessing without a resize (see test_resize.py) against the slow composition, whatever the layouts, dtypes, strides and options."""

import pickle
import tracemalloc

import numpy as np
import pytest
from helpers import assert_same_bits, present
from hypothesis import given
from hypothesis import strategies as st

import cpunorm as cn
from cpunorm import backends, pictures, plan, program
from cpunorm.jit import pictures as kernels
from cpunorm.machine import Caches

SCALES = {"uint8": 1 / 255, "uint16": 1 / 65535, "float16": 1.0, "float32": 1.0}
KINDS = tuple(SCALES)


def numbers(channels, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(rng.uniform(0.1, 0.9, channels)), tuple(rng.uniform(0.05, 0.5, channels))


def values(shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    if dtype.startswith("u"):
        return rng.integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)
    return rng.normal(0.5, 0.3, shape).astype(dtype)


def slow(x, mean, std, *, swap_rb=False, crop=None, mirror=False, pad_channels=None, input_layout="NHWC", output_layout="NCHW"):
    """The composition in float64, an array a step."""
    x = np.asarray(x)
    y = (x if input_layout == "NHWC" else np.moveaxis(x, 1, -1)).astype(np.float64) * SCALES[x.dtype.name]
    if swap_rb:
        y = y[..., [2, 1, 0, 3][: y.shape[-1]]]
    if crop:
        y = y[:, crop[0] : crop[0] + crop[2], crop[1] : crop[1] + crop[3]]
    y = np.where(np.reshape(mirror, (-1, 1, 1, 1)), y[:, :, ::-1], y)
    y = (y - np.array(mean)) / np.array(std)
    y = np.pad(y, [(0, 0)] * 3 + [(0, (pad_channels or y.shape[-1]) - y.shape[-1])])
    return y if output_layout == "NHWC" else np.moveaxis(y, -1, 1)


def assert_right(y, wanted, mean, std):
    """The bar for float32; one rounding for 16 bits."""
    assert y.shape == wanted.shape
    bound = np.maximum(np.max(np.abs(np.array(mean) / np.array(std))), np.maximum(1, np.abs(wanted)))
    allowed = {"float32": 1e-6, "float16": 2.0**-10, "bfloat16": 2.0**-7}[y.dtype.name] * bound
    assert (np.abs(y.astype(np.float64) - wanted) <= allowed).all()


@st.composite
def calls(draw):
    """(images, the same as one batch, options): an array or a list, of any strides."""
    dtype = draw(st.sampled_from(KINDS))
    count, channels = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 3, 3, 3, 4, 5, 13]))
    height, width = draw(st.sampled_from([1, 2, 7, 33])), draw(st.sampled_from([1, 3, 31, 32, 97, 300]))
    layout = draw(st.sampled_from(["NHWC", "NCHW"]))
    order = draw(st.permutations(range(4))) if draw(st.booleans()) else (0, 1, 2, 3)
    steps = draw(st.lists(st.sampled_from([1, 1, 1, 2, -1, -2]), min_size=4, max_size=4))
    shape = (count, height, width, channels) if layout == "NHWC" else (count, channels, height, width)
    space = np.zeros([shape[axis] * abs(steps[axis]) for axis in order], dtype).transpose(np.argsort(order))
    x = space[tuple(slice(None, None, step) for step in steps)]
    x[...] = values(shape, dtype, draw(st.integers(0, 99)))
    options = {"input_layout": layout, "output_layout": draw(st.sampled_from(["NHWC", "NCHW"]))}
    if draw(st.booleans()):
        top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
        options["crop"] = (top, left, draw(st.integers(1, height - top)), draw(st.integers(1, width - left)))
    if channels in (3, 4):
        options["swap_rb"] = draw(st.booleans())
    options["mirror"] = draw(st.one_of(st.booleans(), st.lists(st.booleans(), min_size=count, max_size=count)))
    options["pad_channels"] = draw(st.sampled_from([None, channels, channels + 1, 16]))
    form = draw(st.sampled_from(["batch", "list", "copies"]))
    images = x if form == "batch" else [np.array(picture, order="K") if form == "copies" else picture for picture in x]
    return images, x, options


@given(calls(), st.sampled_from([1, 2]), st.sampled_from(["float32", "float32", "float16"]))
def test_equals_the_slow_composition(backend, call, threads, dtype):
    images, x, options = call
    channels = x.shape[-1 if options["input_layout"] == "NHWC" else 1]
    mean, std = numbers(channels)
    y = cn.preprocess(images, mean, std, **options, dtype=dtype, backend=backend, threads=threads)
    assert_right(y, slow(x, mean, std, **options), mean, std)


@pytest.mark.parametrize("l3", [1 << 10, 1 << 40], ids=["streamed", "cached"])
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("shape", [(3, 224, 224, 3), (2, 131, 77, 3), (2, 97, 101, 1), (2, 65, 64, 4), (1, 40, 50, 13)], ids=str)
def test_large(shape, layout, l3, compiled, monkeypatch):
    """Many blocks, planes that begin anywhere in a line, with and without streaming stores; the same bits on 1, 2 and 5 threads."""
    monkeypatch.setattr("cpunorm.machine.caches", lambda: Caches(1 << 9, l3))
    monkeypatch.setattr("cpunorm.plan.SERIAL_BYTES", 1 << 15)
    x, (mean, std) = values(shape, "uint8"), numbers(shape[-1])
    results = []
    for threads in (1, 2, 5):
        out = np.full(shape if layout == "NHWC" else (shape[0], shape[3], *shape[1:3]), np.nan, np.float32)
        results.append(cn.Preprocessor(mean, std, output_layout=layout, backend=compiled, threads=threads)(x, out=out))
        assert results[-1] is out
    assert_right(results[0], slow(x, mean, std, output_layout=layout), mean, std)
    for other in results[1:]:
        assert_same_bits(other, results[0])


@pytest.mark.parametrize("l3", [1 << 10, 1 << 40], ids=["streamed", "cached"])
@pytest.mark.parametrize("mirror", [False, True])
def test_rows_of_any_length(mirror, l3, compiled, monkeypatch):
    """Three bytes a pixel to planes: ends of vectors and groups, rows longer than a tile, mirrored or not."""
    monkeypatch.setattr("cpunorm.machine.caches", lambda: Caches(1 << 9, l3))
    monkeypatch.setattr("cpunorm.plan.SERIAL_BYTES", 1 << 15)
    mean, std = numbers(3)
    for width in (*range(1, 42), 300, 707):
        x = values((2, 3, width, 3), "uint8")
        options = {"mirror": mirror, "swap_rb": width % 2 == 1}
        y = cn.preprocess(x, mean, std, **options, backend=compiled, threads=1)
        assert_right(y, slow(x, mean, std, **options), mean, std)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_dtype(kind, layout, dtype, backend):
    x, (mean, std) = values((2, 33, 65, 3), kind), numbers(3)
    y = cn.preprocess(x, mean, std, output_layout=layout, dtype=present(dtype), backend=backend)
    assert y.dtype.name == dtype
    assert_right(y, slow(x, mean, std, output_layout=layout), mean, std)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("zero", [0, 3, 100])
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_quantized(dtype, zero, layout, backend):
    """clip(rint(y / s) + z), one step off at ties alone; padding is z."""
    x, (mean, std) = values((2, 33, 65, 3), "uint8"), numbers(3)
    y = cn.preprocess(x, mean, std, output_layout=layout, dtype=dtype, quant=(0.01, zero), pad_channels=4, backend=backend)
    exact = slow(x, mean, std, output_layout=layout, pad_channels=4) / 0.01
    limits = np.iinfo(dtype)
    wanted = np.clip(np.rint(exact) + zero, limits.min, limits.max)
    tie = np.abs(exact - np.floor(exact) - 0.5) < 1e-4
    assert y.dtype == dtype
    assert (np.abs(y - wanted) <= tie).all()
    assert {limits.min, limits.max} <= set(np.unique(y))


def test_special_values_stay_where_they_are(backend):
    x = values((1, 5, 70, 3), "float32")
    x[0, 2, 3] = np.nan, np.inf, -np.inf
    for layout in ("NHWC", "NCHW"):
        y = cn.preprocess(x, 0.5, 0.5, output_layout=layout, pad_channels=4, backend=backend)
        y = y if layout == "NHWC" else np.moveaxis(y, 1, -1)
        np.testing.assert_array_equal(y[0, 2, 3], [np.nan, np.inf, -np.inf, 0])
        assert np.isfinite(y).sum() == y.size - 3
    q = cn.preprocess(x, 0.5, 0.5, dtype="int8", quant=(0.01, 5), backend=backend)
    assert q[0, :, 2, 3].tolist() == [-128, 127, -128]


def test_scale_and_one_number_for_all(backend):
    x = values((1, 6, 7, 3), "uint8")
    y = cn.preprocess(x, 127.5, 2.0, scale=1, backend=backend)
    np.testing.assert_allclose(y, np.moveaxis((x - 127.5) / 2, -1, 1), rtol=1e-6)


def test_crop_in_the_centre_rounds_down(backend):
    x = values((1, 8, 9, 3), "uint8")
    a = cn.preprocess(x, 0, 1, crop=("center", 3, 4), backend=backend)
    assert_same_bits(a, cn.preprocess(x, 0, 1, crop=(2, 2, 3, 4), backend=backend))


def test_no_pictures(backend):
    assert cn.preprocess(np.zeros((0, 5, 6, 3), np.uint8), 0, 1, backend=backend).shape == (0, 3, 5, 6)
    assert cn.preprocess(np.zeros((2, 0, 6, 3), np.uint8), 0, 1, output_layout="NHWC", backend=backend).shape == (2, 0, 6, 3)


def test_what_kernels_cannot_read_or_write_is_copied(backend):
    x, (mean, std) = values((2, 9, 70, 3), "uint16"), numbers(3)
    wanted = cn.preprocess(x, mean, std, backend=backend)
    assert_same_bits(cn.preprocess(x.astype(">u2"), mean, std, backend=backend), wanted)
    unaligned = np.ndarray(x.shape, x.dtype, np.zeros(x.nbytes + 1, np.uint8), 1)
    unaligned[...] = x
    assert_same_bits(cn.preprocess(unaligned, mean, std, backend=backend), wanted)
    turned = x.astype(">u2")[:, ::-1, ::2]  # whose copy has other strides
    for images in (turned, list(turned), turned[0]):
        plain = np.array(images, "u2").reshape(-1, *turned.shape[1:])
        assert_same_bits(cn.preprocess(images, mean, std, backend=backend), cn.preprocess(plain, mean, std, backend=backend))
    for space in (np.zeros((2, 6, 9, 70), np.float32)[:, ::2], np.zeros((2, 3, 9, 140), np.float32)[..., ::2], np.zeros((3, 2, 70, 9)).T):
        out = space if space.dtype == np.float32 else np.zeros((9, 70, 3, 2), np.float32).transpose(3, 2, 0, 1)
        assert cn.preprocess(x, mean, std, out=out, backend=backend) is out
        assert_same_bits(out, wanted)


def test_a_second_thread_pays_as_elsewhere(compiled, monkeypatch):
    """From where the backend says that waking one does."""
    plan = cn.Preprocessor(0, 1, backend=compiled, threads=2)
    for waking, threads in ((1, 2), (8, 1)):
        monkeypatch.setattr(backends.compiled(compiled), "waking", lambda waking=waking: waking)
        prepared = pictures.Prepared("preprocess", plan._options, [values((1, 224, 224, 3), "uint8")], True, None)
        assert prepared._run.plan.threads == threads


def test_a_plan_allocates_nothing_but_its_table(compiled):
    x, (mean, std) = values((4, 100, 120, 3), "uint8"), numbers(3)
    for images in (x, list(x), x[:, 10:90, ::-1], x.transpose(0, 2, 1, 3)):
        prepared = cn.Preprocessor(mean, std, crop=(3, 4, 70, 71), swap_rb=True, mirror=True, backend=compiled)
        out = prepared(images, out=prepared(images))  # the first call of its kind prepares
        tracemalloc.start()
        prepared(images, out=out)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4096  # out has 239 KB
    tracemalloc.start()
    prepared(x)
    assert tracemalloc.get_traced_memory()[1] > out.nbytes / 2  # the control: an allocation is seen
    tracemalloc.stop()


def test_pickles(backend):
    x, (mean, std) = values((2, 9, 11, 3), "uint8"), numbers(3)
    prepared = cn.Preprocessor(mean, std, size=("short", 8), crop=("center", 8, 8), mirror=[True, False], dtype=np.float16, backend=backend)
    wanted = prepared(x)
    assert_same_bits(pickle.loads(pickle.dumps(prepared))(x), wanted)
    assert "NHWC -> NCHW float16" in repr(prepared)


def test_every_instruction_set(native):
    from cpunorm import call

    for layout, options in (("NHWC", {}), ("NCHW", {}), ("NCHW", {"mirror": True}), ("NCHW", {"dtype": "int8", "quant": (0.1, 0)})):
        x, (mean, std) = values((2, 33, 67, 3), "uint8"), numbers(3)
        wanted = cn.preprocess(x, mean, std, output_layout=layout, backend="numpy", **options)
        for name in native.instruction_sets():
            call._PREPARED.clear()
            with native.forced(name):
                y = cn.preprocess(x, mean, std, output_layout=layout, backend="c", **options)
            assert np.abs(y.astype(np.float64) - wanted).max() <= (1 if options.get("dtype") else 1e-5)
    call._PREPARED.clear()


def test_constants_of_the_kernels():
    assert (kernels.TILE, kernels.REACH) == (plan.TILE, pictures.REACH)
    assert program.PICTURE.itemsize == 8 * len(program.PICTURE_INTEGERS)


# ---------------------------------------------------------------- errors

X = np.zeros((2, 8, 9, 3), np.uint8)
MEAN, STD = cn.IMAGENET_MEAN, cn.IMAGENET_STD
V, T = ValueError, TypeError
REFUSED = {
    "rank 2": ({"images": X[0, 0]}, V, "HWC or NHWC"),
    "rank 5": ({"images": X[None]}, V, "HWC or NHWC"),
    "list of batches": ({"images": [X]}, V, "HWC"),
    "empty list": ({"images": []}, V, "at least one"),
    "int32": ({"images": X.astype(np.int32)}, T, "int32"),
    "float64": ({"images": X.astype(np.float64)}, T, "float64"),
    "a file name": ({"images": "cat.jpg"}, T, "str"),
    "dtypes": ({"images": [X[0], X[0].astype(np.float32)]}, T, "one dtype"),
    "channels": ({"images": [X[0], X[0, :, :, :1]]}, V, "channels"),
    "sizes": ({"images": [X[0], X[0, 1:]]}, V, "expected size"),
    "sizes, crop": ({"images": [X[0], X[0, 1:]], "crop": (0, 0, 2, 2)}, V, "expected size"),
    "sizes left by size": ({"images": [X[0], X[0, 1:]], "size": ("short", 5)}, V, "expected crop"),
    "mean of 2": ({"mean": (0.5, 0.5)}, V, "mean of 3"),
    "mean of 4": ({"mean": (0.5,) * 4}, V, "mean of 3"),
    "std of 2": ({"std": (0.5, 0.5)}, V, "std of 3"),
    "std 0": ({"std": (0.5, 0.0, 0.5)}, V, "positive"),
    "std negative": ({"std": -1}, V, "positive"),
    "std nan": ({"std": (0.5, np.nan, 0.5)}, V, "finite"),
    "mean inf": ({"mean": np.inf}, V, "finite"),
    "mean text": ({"mean": "imagenet"}, T, "number a channel"),
    "mean 2-D": ({"mean": np.zeros((1, 3))}, V, "shape"),
    "std tiny": ({"std": 1e-60}, V, "float32"),
    "scale 0": ({"scale": 0}, V, "scale"),
    "scale text": ({"scale": "1"}, T, "scale"),
    "layout": ({"input_layout": "HWC"}, V, "input_layout"),
    "out layout": ({"output_layout": "CHWN"}, V, "output_layout"),
    "dtype": ({"dtype": np.float64}, T, "float64"),
    "dtype unknown": ({"dtype": "float12"}, T, "float12"),
    "dtype None": ({"dtype": None}, T, "None"),
    "quant missing": ({"dtype": np.int8}, V, "quant"),
    "quant for floats": ({"quant": (1.0, 0)}, V, "quant only"),
    "quant s": ({"dtype": np.int8, "quant": (0, 0)}, V, "positive"),
    "quant z": ({"dtype": np.int8, "quant": (1, 128)}, V, "128"),
    "quant z a float": ({"dtype": np.uint8, "quant": (1, 1.5)}, T, "whole"),
    "swap_rb 1": ({"swap_rb": 1}, T, "swap_rb"),
    "swap_rb of 2 channels": ({"images": X[..., :2], "mean": 0, "std": 1, "swap_rb": True}, V, "3 or 4"),
    "size": ({"size": 224}, V, "size"),
    "size 0": ({"size": (0, 3)}, V, "at least 1"),
    "size of short": ({"size": ("long", 3)}, V, "short"),
    "size floats": ({"size": (2.0, 3)}, T, "whole"),
    "size of nothing": ({"images": X[:, :0], "size": (4, 4)}, V, "rows and columns"),
    "crop outside": ({"crop": (0, 0, 9, 9)}, V, "inside"),
    "crop outside, right": ({"crop": (0, 5, 8, 5)}, V, "inside"),
    "crop outside, centre": ({"crop": ("center", 8, 10)}, V, "inside"),
    "crop outside, resized": ({"size": (4, 4), "crop": (0, 0, 5, 4)}, V, "inside"),
    "crop negative": ({"crop": (-1, 0, 2, 2)}, V, "negative"),
    "crop of 0": ({"crop": (0, 0, 0, 2)}, V, "at least 1"),
    "crop of 2": ({"crop": (2, 2)}, V, "crop"),
    "mirror 1": ({"mirror": 1}, T, "mirror"),
    "mirror of 3": ({"mirror": [True] * 3}, V, "one an image of 2"),
    "pad": ({"pad_channels": 2}, V, "at least the 3"),
    "pad text": ({"pad_channels": "4"}, T, "whole"),
    "backend": ({"backend": "cuda"}, V, "cuda"),
    "threads": ({"threads": 0}, V, "threads"),
    "out shape": ({"out": np.full((2, 8, 9, 3), 7, np.float32)}, V, "shape"),
    "out dtype": ({"out": np.full((2, 3, 8, 9), 7.0)}, T, "dtype"),
    "out in one place": ({"out": np.broadcast_to(np.float32(7), (2, 3, 8, 9))}, V, "own place"),
}


@pytest.mark.parametrize(("change", "error", "says"), REFUSED.values(), ids=REFUSED)
def test_refused(change, error, says, backend):
    given = {"images": X, "mean": MEAN, "std": STD, "out": np.full((2, 3, 8, 9), 7, np.float32), "backend": backend, **change}
    out = given["out"]
    with pytest.raises(error, match=r"preprocess: .*" + says):
        cn.preprocess(**given)
    assert (out == 7).all()


def test_out_read_only_or_overlapping(backend):
    out = np.full((2, 3, 8, 9), 7, np.float32)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        cn.preprocess(X, MEAN, STD, out=out, backend=backend)
    space = np.full(2 * 3 * 8 * 9 + 5, 7, np.float32)
    x, out = space[:-5].reshape(2, 8, 9, 3), space[5:].reshape(2, 3, 8, 9)
    for images in (x, list(x), out.transpose(0, 2, 3, 1)):
        with pytest.raises(ValueError, match="overlaps images"):
            cn.preprocess(images, 0, 1, out=out, backend=backend)
    assert (space == 7).all()


# ---------------------------------------------------------------- peers


@pytest.mark.peer
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_pytorch(layout, backend):
    torch = pytest.importorskip("torch")
    x = values((2, 65, 77, 3), "uint8")
    wanted = (torch.from_numpy(x).double() / 255 - torch.tensor(MEAN, dtype=torch.float64)) / torch.tensor(STD, dtype=torch.float64)
    wanted = (wanted.permute(0, 3, 1, 2) if layout == "NCHW" else wanted).numpy()
    assert np.abs(cn.preprocess(torch.from_numpy(x), MEAN, STD, output_layout=layout, backend=backend) - wanted).max() < 2e-6


@pytest.mark.peer
@pytest.mark.parametrize("swap_rb", [False, True])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_opencv(layout, swap_rb, backend):
    cv2 = pytest.importorskip("cv2")
    x = values((2, 65, 77, 3), "uint8")
    settings = cv2.dnn.Image2BlobParams()
    settings.scalefactor = (*(1 / (255 * np.array(STD))), 1.0)
    settings.mean = (*(255 * np.array(MEAN)), 0.0)
    settings.swapRB, settings.ddepth = swap_rb, cv2.CV_32F
    settings.datalayout = cv2.DATA_LAYOUT_NCHW if layout == "NCHW" else cv2.DATA_LAYOUT_NHWC
    wanted = cv2.dnn.blobFromImagesWithParams(list(x), settings)
    assert np.abs(cn.preprocess(x, MEAN, STD, swap_rb=swap_rb, output_layout=layout, backend=backend) - wanted).max() < 2e-6
