"""Resize: equal to Pillow's BILINEAR for bytes, and to its mode F to float32's rounding for all else; fused with crop, mirror and the rest.

Columns first: from version 13 on Pillow takes rows first in some cases. One axis a call is the same in all versions.
"""

import numpy as np
import pytest
from helpers import assert_same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from test_preprocess import SCALES, numbers, slow, values

import cpunorm as cn
from cpunorm import resize

Image = pytest.importorskip("PIL.Image", reason="Pillow says what a resize is")
BILINEAR = Image.Resampling.BILINEAR

# (height, width) before and after: up, down, both, odd, extreme
SIZES = [
    ((7, 9), (7, 9)),
    ((64, 48), (32, 24)),
    ((37, 53), (100, 81)),
    ((53, 37), (20, 90)),
    ((1, 1), (50, 50)),
    ((1, 300), (50, 3)),
    ((500, 3), (3, 500)),
    ((7, 1000), (1000, 7)),
    ((300, 301), (299, 300)),
    ((2, 2), (3, 1)),
    ((255, 257), (17, 33)),
]


def pillow(x, size):
    """A picture of axes height, width, channels, each band alone; in x's own units, float64."""
    bands = []
    for band in np.moveaxis(x, -1, 0):
        picture = Image.fromarray(band if x.dtype == np.uint8 else band.astype(np.float32))
        bands.append(np.asarray(picture.resize((size[1], picture.height), BILINEAR).resize(size[::-1], BILINEAR)))
    return np.stack(bands, -1).astype(np.float64)


def resized(x, size, **options):
    """Ours of one picture, in x's own units, axes height, width, channels."""
    return cn.preprocess(x, 0, 1, scale=1, size=size, output_layout="NHWC", **options)[0]


@pytest.mark.parametrize(("before", "after"), SIZES, ids=str)
@pytest.mark.parametrize("kind", SCALES)
def test_equals_pillow(before, after, kind, backend):
    for channels in (1, 3, 5):
        x = values((*before, channels), kind)
        y, wanted = resized(x, after, backend=backend), pillow(x, after)
        if kind == "uint8":
            assert_same_bits(y, wanted.astype(np.float32))
        else:
            assert np.abs(y - wanted).max() <= 1e-6 * np.abs(x.astype(np.float64)).max()


@pytest.mark.parametrize(("before", "after"), SIZES, ids=str)
def test_within_one_of_pillow_in_a_single_call(before, after, backend):
    x = values((*before, 3), "uint8")
    assert np.abs(resized(x, after, backend=backend) - np.asarray(Image.fromarray(x).resize(after[::-1], BILINEAR))).max() <= 1


@settings(max_examples=60)
@given(st.data())
def test_equals_pillow_then_the_slow_composition(backend, data):
    """Any sizes, crop, mirror, swap, padding, layouts, strides, threads; pictures of two sizes in one call."""
    kind = data.draw(st.sampled_from(list(SCALES)))
    side = st.integers(1, 60)
    channels = data.draw(st.sampled_from([1, 3, 4]))
    arrays = [values((data.draw(side), data.draw(side), channels), kind, seed) for seed in range(2)]
    arrays = [x[:, ::-1] if data.draw(st.booleans()) else x for x in arrays]
    size = (data.draw(side), data.draw(side))
    options = {"swap_rb": channels > 1 and data.draw(st.booleans()), "output_layout": data.draw(st.sampled_from(["NHWC", "NCHW"]))}
    options["mirror"] = data.draw(st.one_of(st.booleans(), st.lists(st.booleans(), min_size=2, max_size=2)))
    options["pad_channels"] = data.draw(st.sampled_from([None, channels + 2]))
    if data.draw(st.booleans()):
        top, left = data.draw(st.integers(0, size[0] - 1)), data.draw(st.integers(0, size[1] - 1))
        options["crop"] = (top, left, data.draw(st.integers(1, size[0] - top)), data.draw(st.integers(1, size[1] - left)))
    mean, std = numbers(channels)
    small = np.stack([pillow(x, size) for x in arrays])
    small = small.astype(kind if kind in ("uint8", "float32") else np.float32)
    if kind == "uint16":
        small = small / np.float32(65535)
    wanted = slow(small, mean, std, **options)
    images = arrays if data.draw(st.booleans()) else [np.moveaxis(x, -1, 0) for x in arrays]
    layout = "NHWC" if images is arrays else "NCHW"
    y = cn.preprocess(
        images, mean, std, size=size, input_layout=layout, **options, backend=backend, threads=data.draw(st.sampled_from([1, 3]))
    )
    bound = 4e-6 * max(1, np.abs(wanted).max(initial=0), np.max(np.array(mean) / std)) / min(std)
    assert y.shape == wanted.shape
    assert np.abs(y - wanted).max() <= bound


@pytest.mark.parametrize("shape", [(9, 15), (15, 9), (10, 10), (3, 1000), (1000, 3)])
def test_the_shorter_side(shape, backend):
    n = 6
    high, wide = resize.target(("short", n), *shape)
    assert min(high, wide) == n
    assert max(high, wide) == int(n * max(shape) / min(shape))
    x = values((*shape, 3), "uint8")
    assert_same_bits(resized(x, ("short", n), backend=backend), pillow(x, (high, wide)).astype(np.float32))


def test_what_torchvision_and_its_users_do(backend):
    """Shorter side 256, 224 x 224 in the centre, of pictures of three sizes; the same bits on 1, 2 and 5 threads."""
    arrays = [values((*shape, 3), "uint8") for shape in ((300, 400), (411, 277), (256, 256))]
    options = {"size": ("short", 32), "crop": ("center", 28, 28)}
    y = [cn.preprocess(arrays, cn.IMAGENET_MEAN, cn.IMAGENET_STD, **options, backend=backend, threads=n) for n in (1, 2, 5)]
    for i, x in enumerate(arrays):
        high, wide = resize.target(("short", 32), *x.shape[:2])
        top, left = (high - 28) // 2, (wide - 28) // 2
        small = pillow(x, (high, wide)).astype(np.uint8)[None, top : top + 28, left : left + 28]
        wanted = slow(small, cn.IMAGENET_MEAN, cn.IMAGENET_STD)[0]
        assert np.abs(y[0][i] - wanted).max() < 2e-6
    assert_same_bits(y[1], y[0])
    assert_same_bits(y[2], y[0])


def test_special_values_reach_no_further_than_their_weights(backend):
    x = np.zeros((40, 40, 1), np.float32)
    x[20, 20] = np.nan
    y = resized(x, (10, 10), backend=backend)[..., 0]
    assert np.isnan(y).sum() == 4
    assert np.isnan(y[4:6, 4:6]).all()


def test_quantized_and_narrow(backend):
    x = values((31, 47, 3), "uint8")
    wanted = pillow(x, (20, 20))[None] / 255
    half = cn.preprocess(x, 0, 1, size=(20, 20), dtype=np.float16, output_layout="NHWC", backend=backend)
    assert np.abs(half - wanted).max() < 2**-11
    quantized = cn.preprocess(x, 0, 1, size=(20, 20), dtype=np.uint8, quant=(1 / 255, 0), output_layout="NHWC", backend=backend)
    assert np.abs(quantized - 255 * wanted).max() < 1e-9


def test_every_instruction_set(native):
    from cpunorm import call

    x = values((61, 47, 3), "uint8")
    for kind in ("uint8", "float32"):
        for name in native.instruction_sets():
            call._PREPARED.clear()
            with native.forced(name):
                y = resized(x.astype(kind), (20, 70), backend="c")
            assert np.abs(y - pillow(x.astype(kind), (20, 70))).max() < 1e-3
    call._PREPARED.clear()


def test_weights():
    """Sums are 1, places are those of Pillow, and none is 0 at an end."""
    for before, after in ((7, 3), (3, 7), (1, 9), (500, 3), (64, 64)):
        found = resize.triangle(before, after)
        np.testing.assert_allclose(found.weights.sum(1), 1)
        assert (found.first >= 0).all()
        assert (found.first + found.counts <= before).all()
        for row, count in zip(found.weights, found.counts, strict=True):
            assert (row[:count] > 0).all()
            assert (row[count:] == 0).all()
