"""The examples of the README and of the pages run as they stand there."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def blocks(page, torch=False):
    """The page's Python, with PyTorch or without."""
    _, *found = (ROOT / page).read_text().split("```python\n")
    return [block.split("```")[0] for block in found if ("import torch" in block) == torch]


@pytest.mark.parametrize("page", ["README.md", "docs/preprocessing.md", "docs/statistics.md"])
def test_the_example_runs(page):
    assert blocks(page)
    for block in blocks(page):
        exec(compile(block, page, "exec"), {})


@pytest.mark.peer
@pytest.mark.parametrize("page", ["README.md", "docs/pytorch.md"])
def test_the_example_in_pytorch_runs(page):
    pytest.importorskip("torch")
    assert blocks(page, torch=True)
    for block in blocks(page, torch=True):
        exec(compile(block, page, "exec"), {})
