"""Mean and standard deviation of a folder of pictures, counted in two halves (two machines, say) and merged: the bits of one run.

    pip install "cpunorm[cli]"
    python examples/dataset_statistics.py              # of pictures made for the purpose
    python examples/dataset_statistics.py FOLDER       # of yours

`cpunorm stats FOLDER` does this on all CPUs, with a progress bar and resumable.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import cpunorm as cn


def make_pictures(folder, count):
    """Gradients with noise, of several sizes."""
    rng = np.random.default_rng(0)
    for number in range(count):
        height, width = (int(size) for size in rng.integers(20, 60, 2))
        ramp = np.linspace(0, 200, width)[None, :, None] * rng.uniform(0.3, 1, 3)
        picture = np.clip(ramp + rng.normal(20, 9, (height, width, 3)), 0, 255)
        Image.fromarray(picture.astype(np.uint8)).save(folder / f"{number:03}.png")


def count(files):
    """The statistics of some files. A picture of twice the pixels weighs twice."""
    stats = cn.ChannelStats(3, layout="HWC")
    for file in files:
        with Image.open(file) as picture:
            stats.update(np.asarray(picture.convert("RGB")))
    return stats


def main():
    """Count in two halves that travel as JSON, and in one run; print, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--count", type=int, default=60, help="pictures to make where no folder is given")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = arguments.folder or Path(made)
        if arguments.folder is None:
            make_pictures(folder, arguments.count)
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() in (".jpg", ".jpeg", ".png"))
        if not files:
            raise SystemExit(f"there is no picture in {folder}")

        halves = [json.dumps(count(half).to_dict()) for half in (files[::2], files[1::2])]
        first, second = (cn.ChannelStats.from_dict(json.loads(half)) for half in halves)
        stats = first + second

        whole = count(files)
        if not (np.array_equal(stats.mean, whole.mean) and np.array_equal(stats.std(), whole.std())):
            raise SystemExit("the halves are not the whole")
    print(f"{len(files)} pictures, {stats.count} pixels")
    print(f"mean = {(stats.mean / 255).round(6).tolist()}")
    print(f"std = {(stats.std() / 255).round(6).tolist()}")


if __name__ == "__main__":
    main()
