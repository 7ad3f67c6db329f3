"""The examples of the README and of the pages run as they stand there."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("page", ["README.md", "docs/preprocessing.md", "docs/statistics.md"])
def test_the_example_runs(page):
    _, *blocks = (ROOT / page).read_text().split("```python\n")
    assert blocks
    for block in blocks:
        exec(compile(block.split("```")[0], page, "exec"), {})
