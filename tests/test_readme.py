"""The examples of the README and of the pages run as they stand there."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "docs/dask.md", "docs/preprocessing.md", "docs/pytorch.md", "docs/statistics.md")
EXTRAS = ("dask", "torch")  # what an example that imports cpunorm.dask, or cpunorm.torch, needs


def examples() -> Iterator[Any]:
    for page in PAGES:
        _, *blocks = (ROOT / page).read_text().split("```python\n")
        assert blocks, page
        for number, block in enumerate(blocks, 1):
            needed = [extra for extra in EXTRAS if f"cpunorm.{extra}" in block]
            yield pytest.param(page, block.split("```")[0], needed, id=f"{page} {number}", marks=[pytest.mark.peer] * bool(needed))


@pytest.mark.parametrize(("page", "code", "needed"), list(examples()))
def test_the_example_runs(page: str, code: str, needed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for module in needed:
        pytest.importorskip(module, reason=f"the example needs {module}")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, page, "exec"), {})
