"""Pictures from files: what each kind becomes, ``cpunorm stats`` and ``cpunorm preprocess`` over folders."""

import json
import os
import re
import signal

import numpy as np
import pytest

import cpunorm as cn
from cpunorm import cli, dataset

Image = pytest.importorskip("PIL.Image", reason="the pictures need Pillow (extra cli)")
pytest.importorskip("rich", reason="the progress needs rich (extra cli)")

from cpunorm import loader  # noqa: E402  (needs Pillow)

SIZES = [(12, 16), (9, 7), (20, 11)]


def noise(height, width, seed, channels=3, dtype=np.uint8):
    shape = (height, width, channels) if channels else (height, width)
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """500 pictures of three sizes in three folders, two of them broken; and the pixels of the others."""
    root = tmp_path_factory.mktemp("pictures")
    pixels = []
    for number in range(500):
        place = root / ("", "one", "one/two")[number % 3]
        place.mkdir(exist_ok=True)
        x = noise(*SIZES[number % 3], number)
        file = place / f"{number:03}.{('png', 'bmp', 'PPM')[number % 3]}"
        Image.fromarray(x).save(file)
        if number == 123:  # cut short
            file.write_bytes(file.read_bytes()[:200])
        elif number == 321:
            file.write_text("no picture")
        else:
            pixels.append(x.reshape(-1, 3))
    (root / "notes.txt").write_text("not a picture, and not looked at")
    return root, np.concatenate(pixels).astype(np.float64)


def pasted(text):
    """What the NumPy lines of ``cpunorm stats`` say: mean and std from 0 to 1, and from 0 to 255."""
    return [np.array(json.loads(numbers)) for numbers in re.findall(r"^(?:mean|std) = np.array\((.*)\)$", text, re.MULTILINE)]


def close(text, pixels):
    mean, std, mean255, std255 = pasted(text)
    np.testing.assert_allclose(mean, (pixels / 255).mean(0), rtol=0, atol=1e-9)
    np.testing.assert_allclose(std, (pixels / 255).std(0), rtol=0, atol=1e-9)
    np.testing.assert_allclose(mean255, pixels.mean(0), rtol=1e-9)
    np.testing.assert_allclose(std255, pixels.std(0), rtol=1e-9)


# ---------------------------------------------------------------- stats


def test_stats_of_500_pictures(folder, capsys):
    root, pixels = folder
    assert cli.main(["stats", str(root)]) == cli.INCOMPLETE
    out, err = capsys.readouterr()
    close(out, pixels)
    named = [line for line in err.splitlines() if line.startswith("cpunorm stats:")]
    assert len(named) == 2
    assert "123.png" in named[0]
    assert "321.png" in named[1]
    assert f"{len(pixels)} pixels of 498 pictures" in out
    for text in ("transforms.Normalize(mean=[", "A.Normalize(mean=(", "cn.Preprocessor(mean=("):
        assert text in out


def interrupted(root, state, monkeypatch, after):
    """Run until Ctrl-C arrives after so many pictures."""
    merge = cn.ChannelStats.merge
    calls = iter(range(10**6))

    def merge_and_stop(self, other):
        merge(self, other)
        if next(calls) == after - 1:  # merged, and not yet in the list of files
            signal.raise_signal(signal.SIGINT)
        return self

    with monkeypatch.context() as patch:
        patch.setattr(cn.ChannelStats, "merge", merge_and_stop)
        return cli.main(["stats", str(root), "--state", str(state)])


def test_an_interrupted_run_goes_on_to_the_same_answer(folder, tmp_path, monkeypatch, capsys):
    root, _ = folder
    cli.main(["stats", str(root)])
    wanted = capsys.readouterr().out
    state = tmp_path / "state.json"
    for after in (200, 100):
        assert interrupted(root, state, monkeypatch, after) == cli.INCOMPLETE
        out, err = capsys.readouterr()
        assert out == ""
        assert "interrupted" in err
        assert str(state) in err
    assert len(json.loads(state.read_text())["files"]) == 300
    loads = []
    load = loader.load
    monkeypatch.setattr(loader, "load", lambda file: loads.append(file) or load(file))
    assert cli.main(["stats", str(root), "--state", str(state)]) == cli.INCOMPLETE
    assert capsys.readouterr().out == wanted
    assert len(loads) == 200  # with both broken ones, which may have been mended
    assert [file.name for file in tmp_path.iterdir()] == ["state.json"]
    assert cli.main(["stats", str(root), "--state", str(state)]) == cli.INCOMPLETE
    assert capsys.readouterr().out == wanted


def test_the_state_is_saved_on_the_way(tmp_path, monkeypatch):
    for number in range(3):
        Image.fromarray(noise(4, 5, number)).save(tmp_path / f"{number}.png")
    written = []
    write = dataset.State.write
    monkeypatch.setattr(dataset, "SAVE_SECONDS", -1.0)
    monkeypatch.setattr(dataset.State, "write", lambda self, path: written.append(len(self.files)) or write(self, path))
    assert cli.main(["stats", str(tmp_path), "--state", str(tmp_path / "state")]) == cli.DONE
    assert written[0] == 1
    assert written[-1] == 3


def refused(arguments, capsys):
    try:
        code = cli.main([str(argument) for argument in arguments])
    except SystemExit as end:
        code = end.code
    out, err = capsys.readouterr()
    assert code == cli.REFUSED, err
    assert out == ""
    return [line for line in err.splitlines() if not re.match(r"\w+ \d+/\d+:", line)][-1]


def test_a_state_that_does_not_fit_is_refused(tmp_path, capsys):
    pictures, state = tmp_path / "pictures", tmp_path / "state.json"
    pictures.mkdir()
    for number in range(2):
        Image.fromarray(noise(4, 5, number)).save(pictures / f"{number}.png")
    assert cli.main(["stats", str(pictures), "--state", str(state)]) == cli.DONE
    capsys.readouterr()
    Image.fromarray(noise(6, 5, 1)).save(pictures / "1.png")
    assert "1.png has changed" in refused(["stats", pictures, "--state", state], capsys)
    (pictures / "1.png").unlink()
    assert "1.png is gone" in refused(["stats", pictures, "--state", state], capsys)
    for content in ("{", "[]", '{"version": 2}', '{"version": 1, "files": {}, "stats": {}}'):
        state.write_text(content)
        assert "no state" in refused(["stats", pictures, "--state", state], capsys)
        assert state.read_text() == content


def test_nothing_to_count_is_refused(tmp_path, capsys):
    assert "no picture" in refused(["stats", tmp_path], capsys)
    assert "not a folder" in refused(["stats", tmp_path / "nowhere"], capsys)
    (tmp_path / "a.png").write_text("no picture")
    assert "none of 1 pictures" in refused(["stats", tmp_path], capsys)
    assert "cannot be written" in refused(["stats", tmp_path, "--state", tmp_path], capsys)


def test_8_and_16_bits_meet_between_0_and_1(tmp_path, capsys):
    colour, grey = noise(6, 5, 0), noise(7, 8, 1, 0, np.uint16)
    Image.fromarray(colour).save(tmp_path / "colour.png")
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert cli.main(["stats", str(tmp_path)]) == cli.DONE
    pixels = np.concatenate([colour.reshape(-1, 3) / 255, np.repeat(grey.reshape(-1, 1) / 65535, 3, axis=1)])
    close(capsys.readouterr().out, pixels * 255)


# ---------------------------------------------------------------- the loader


def saved(tmp_path, picture, name, **options):
    picture.save(tmp_path / name, **options)
    return loader.load(tmp_path / name)


def test_grey_and_black_and_white_become_rgb(tmp_path):
    x = noise(5, 4, 0, 0)
    np.testing.assert_array_equal(saved(tmp_path, Image.fromarray(x), "x.png"), np.repeat(x[..., None], 3, axis=2))
    bits = Image.fromarray(x > 100)
    np.testing.assert_array_equal(saved(tmp_path, bits, "bits.png"), np.repeat(((x > 100) * 255).astype(np.uint8)[..., None], 3, axis=2))


def test_alpha_is_dropped(tmp_path):
    x = noise(5, 4, 0, 4)
    np.testing.assert_array_equal(saved(tmp_path, Image.fromarray(x), "x.png"), x[..., :3])
    np.testing.assert_array_equal(
        saved(tmp_path, Image.fromarray(x).convert("LA"), "la.png")[..., 0], np.asarray(Image.fromarray(x).convert("LA"))[..., 0]
    )


@pytest.mark.parametrize("transparency", [{}, {"transparency": 1}, {"transparency": bytes([0, 128, 255])}])
def test_palettes(tmp_path, transparency):
    colours, indices = noise(3, 1, 0).reshape(3, 3), np.random.default_rng(1).integers(0, 3, (6, 5)).astype(np.uint8)
    picture = Image.fromarray(indices)
    picture = Image.frombytes("P", picture.size, picture.tobytes())
    picture.putpalette(colours.tobytes())
    np.testing.assert_array_equal(saved(tmp_path, picture, "x.png", **transparency), colours[indices])


def test_cmyk_and_jpeg(tmp_path):
    picture = Image.fromarray(noise(16, 16, 0)).convert("CMYK")
    assert saved(tmp_path, picture, "x.jpg").shape == (16, 16, 3)
    np.testing.assert_array_equal(saved(tmp_path, picture, "x.tif"), np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize(("name", "kind"), [("x.png", "<u2"), ("x.tif", "<u2"), ("big.tif", ">u2"), ("x.pgm", "<u2")])
def test_16_bits_stay(tmp_path, name, kind):
    x = noise(5, 4, 0, 0, np.uint16)
    picture = Image.fromarray(x) if kind == "<u2" else Image.frombytes("I;16B", (4, 5), x.astype(">u2").tobytes())
    found = saved(tmp_path, picture, name)
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, np.repeat(x[..., None], 3, axis=2))


@pytest.mark.parametrize("x", [np.array([[0, 70000]], np.int32), np.array([[-1, 5]], np.int32), np.array([[0.5, 1]], np.float32)])
def test_what_has_no_white_is_refused(tmp_path, x):
    with pytest.raises(loader.PictureError, match=r"x\.tif.*white"):
        saved(tmp_path, Image.fromarray(x), "x.tif")


def test_32_bits_in_the_range_of_16(tmp_path):
    assert saved(tmp_path, Image.fromarray(np.array([[0, 65535]], np.int32)), "x.tif")[0, :, 2].tolist() == [0, 65535]


@pytest.mark.parametrize(
    ("orientation", "turn"), [(1, lambda x: x), (3, lambda x: x[::-1, ::-1]), (6, lambda x: np.rot90(x, -1)), (2, lambda x: x[:, ::-1])]
)
def test_exif_orientation_is_applied(tmp_path, orientation, turn):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for x in (noise(5, 4, 0), noise(5, 4, 0, 0, np.uint16)):
        wanted = turn(x) if x.ndim == 3 else np.repeat(turn(x)[..., None], 3, axis=2)
        np.testing.assert_array_equal(saved(tmp_path, Image.fromarray(x), "x.png", exif=exif), wanted)


def test_the_first_picture_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (4, 3), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    found = saved(tmp_path, frames[0], "x.gif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(found, np.broadcast_to(np.uint8([255, 0, 0]), (3, 4, 3)))


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch, capsys):
    Image.new("RGB", (300, 300)).save(tmp_path / "bomb.png")
    Image.fromarray(noise(5, 4, 0)).save(tmp_path / "good.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40_000)
    with pytest.raises(loader.PictureError, match=r"bomb\.png.*decompression bomb"):
        loader.load(tmp_path / "bomb.png")
    assert cli.main(["stats", str(tmp_path)]) == cli.INCOMPLETE
    assert "bomb.png" in capsys.readouterr().err


def test_postscript_is_not_run(tmp_path):
    (tmp_path / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 5\n%%EOF\n")
    with pytest.raises(loader.PictureError, match="no picture"):
        loader.load(tmp_path / "x.png")


def test_other_errors_are_not_swallowed(tmp_path):
    def work(file):
        raise ZeroDivisionError(file)

    with pytest.raises(ZeroDivisionError):
        list(loader.in_parallel([tmp_path] * 9, work, 2))


# ---------------------------------------------------------------- preprocess


def test_preprocess_writes_what_the_function_gives(folder, tmp_path, capsys):
    root, _ = folder
    target, names = tmp_path / "batch.npy", tmp_path / "names.txt"
    arguments = ["preprocess", str(root), "-o", str(target), "--size", "short:9", "--crop", "center:8,6", "--names", str(names)]
    assert cli.main(arguments) == cli.INCOMPLETE
    err = capsys.readouterr().err
    assert "123.png" in err
    assert "321.png" in err
    batch = np.load(target, mmap_mode="r")
    assert batch.shape == (498, 3, 8, 6)
    assert batch.dtype == np.float32
    rows = names.read_text().splitlines()
    assert len(rows) == 498
    assert target.stat().st_size == 128 + batch.nbytes
    for row in (0, 150, 497):
        wanted = cn.preprocess(loader.load(rows[row]), cn.IMAGENET_MEAN, cn.IMAGENET_STD, size=("short", 9), crop=("center", 8, 6))
        np.testing.assert_array_equal(batch[row], wanted[0])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["batch.npy", "names.txt"]


def test_preprocess_options(tmp_path):
    for number in range(2):
        Image.fromarray(noise(9, 7, number)).save(tmp_path / f"{number}.png")
    target = tmp_path / "batch.npy"
    files = [str(tmp_path / f"{number}.png") for number in (1, 0, 1)]
    common = ["preprocess", *files, "-o", str(target), "--layout", "NHWC"]
    assert cli.main([*common, "--mean", "0.5,0.4,0.3", "--std", "0.2", "--dtype", "float16", "--crop", "1,2,5,4"]) == cli.DONE
    pictures = [loader.load(file) for file in files]
    shared = {"output_layout": "NHWC", "dtype": np.float16, "crop": (1, 2, 5, 4)}
    np.testing.assert_array_equal(np.load(target), cn.preprocess(pictures, (0.5, 0.4, 0.3), 0.2, **shared))
    assert cli.main([*common, "--mean", "clip", "--dtype", "int8", "--quant", "0.02,-3", "--size", "4,5"]) == cli.DONE
    shared = {"output_layout": "NHWC", "dtype": np.int8, "quant": (0.02, -3), "size": (4, 5)}
    np.testing.assert_array_equal(np.load(target), cn.preprocess(pictures, cn.CLIP_MEAN, cn.CLIP_STD, **shared))


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ([], "0.png becomes (3, 9, 7), those before it (3, 12, 16); give --size"),
        (["--crop", "center:10,5"], "crop"),
        (["--size", "10"], "--size short:N or N,N"),
        (["--size", "short:3,4"], "--size"),
        (["--size", "0,4"], "size"),
        (["--crop", "center:a,5"], "--crop center:N,N or N,N,N,N"),
        (["--mean", "imagenot"], "imagenet"),
        (["--mean", "0.5"], "--std"),
        (["--mean", "0.5,0.5", "--std", "1"], "0.png"),
        (["--std", "0"], "std"),
        (["--dtype", "int8"], "quant"),
        (["--dtype", "int8", "--quant", "0.1"], "--quant"),
        (["--dtype", "bool"], "float16"),
        (["nowhere.png"], "nowhere.png"),
        (["--names", "/nowhere/names"], "/nowhere/names"),
    ],
)
def test_preprocess_refuses_and_leaves_what_was_there(tmp_path, capsys, arguments, fragment):
    target = tmp_path / "batch.npy"
    target.write_text("before")
    for name, size in (("0", (12, 16)), ("10", (9, 7))):
        Image.fromarray(noise(*size, 0)).save(tmp_path / f"{name}.png")
    line = refused(["preprocess", tmp_path / "0.png", tmp_path / "10.png", *arguments, "-o", target], capsys)
    assert fragment in line
    assert target.read_text() == "before"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["0.png", "10.png", "batch.npy"]


def test_preprocess_of_nothing_readable_or_interrupted(tmp_path, capsys, monkeypatch):
    (tmp_path / "a.png").write_text("no picture")
    target = tmp_path / "batch.npy"
    assert "none of 1 files" in refused(["preprocess", tmp_path, "-o", target], capsys)
    Image.fromarray(noise(5, 4, 0)).save(tmp_path / "b.png")
    monkeypatch.setattr(loader, "load", lambda file: signal.raise_signal(signal.SIGINT) or noise(5, 4, 0))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background may ignore it
    try:
        assert "interrupted" in refused(["preprocess", tmp_path, "-o", target], capsys)
    finally:
        signal.signal(signal.SIGINT, before)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.png", "b.png"]


PEAK = """
import resource
from pathlib import Path
from PIL import Image
from cpunorm import batches

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

folder = Path(FOLDER)
Image.fromarray(np.full((8, 8, 3), 7, np.uint8)).save(folder / "a.png")
(folder / "broken.png").write_text("no picture")
plan = cn.Preprocessor(0.0, 1.0, size=(1024, 1024), threads=1)
batches.write([folder / "a.png"] * 4, folder / "small.npy", plan, str)
before = peak()
result = batches.write([folder / "broken.png"] + [folder / "a.png"] * 20, folder / "large.npy", plan, str)
print(peak() - before, np.load(folder / "large.npy", mmap_mode="r").nbytes // 1024)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="counts the peak of memory in kilobytes, as Linux does")
def test_a_batch_may_be_larger_than_memory(tmp_path, run):
    """240 MB are mapped 16 MB at a time: the process grows by some of these and by rows that wait to be written."""
    grown, size = map(int, run(f"FOLDER = {str(tmp_path)!r}\n" + PEAK).split())
    assert size == 20 * 12 * 1024
    assert grown < size // 4


def test_a_full_disk_is_an_error(tmp_path, capsys, monkeypatch):
    """Asked for all its bytes before anything is mapped."""

    def full(descriptor, start, size):
        assert size == 128 + 2 * 3 * 5 * 4 * 4
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    for name in "ab":
        Image.fromarray(noise(5, 4, 0)).save(tmp_path / f"{name}.png")
    assert "No space left" in refused(["preprocess", tmp_path, "-o", tmp_path / "batch.npy"], capsys)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.png", "b.png"]
