"""pytest-benchmark of preprocessing: camera frames and batches, uint8 NHWC to normalized float32, ours and the peers in one group."""

import pytest
from conftest import THREADS, loaded

from cpunorm import check
from cpunorm.compare import contestants, peers, pictures, preprocessing

SHAPES = {
    "camera frame 1080p": (1, 3, 1080, 1920),
    "camera frames VGA x8": (8, 3, 480, 640),
    "ImageNet x32": (32, 3, 224, 224),
    "ImageNet x1": (1, 3, 224, 224),
    "odd x4": (4, 3, 513, 511),
}
PEERS = (contestants.NUMPY, contestants.TORCH, preprocessing.OPENCV, preprocessing.ALBUCORE)


def everything():
    for name, shape in SHAPES.items():
        for layout in preprocessing.LAYOUTS:
            for threads in THREADS:
                for who in (*check.BACKENDS, *PEERS):
                    if threads == 1 or who not in peers.SERIAL:
                        quick = name in ("camera frame 1080p", "ImageNet x32") and who != "numpy"
                        quick = quick and (threads == THREADS[-1] or who in peers.SERIAL)
                        label = f"preprocess-{name}-{layout}-{threads} threads-{who}".replace(" ", "_")
                        yield pytest.param(shape, layout, threads, who, id=label, marks=[pytest.mark.quick] if quick else [])


@pytest.mark.parametrize(("shape", "layout", "threads", "who"), [*everything()])
def test_preprocess(checked, benchmark, shape, layout, threads, who):
    work = preprocessing.Work(pictures.raw(pictures.load(None), shape), layout)
    libraries = peers.installed()
    if who in check.BACKENDS:
        contestant = work.ours(loaded(who), threads)
    else:
        found = {one.name: one for one in work.peers(threads, libraries, serial=True)}
        if who not in found:
            pytest.skip(f"{who} is not installed, or has no preprocessing to {layout}")
        contestant = found[who]
    benchmark.group = f"preprocess, {'x'.join(map(str, shape))}, {layout}"
    checked(contestant, work, threads, libraries)
