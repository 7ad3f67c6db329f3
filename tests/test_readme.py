"""The README's example runs as it stands there."""

from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def test_the_example_runs():
    _, *blocks = README.read_text().split("```python\n")
    assert blocks
    for block in blocks:
        exec(compile(block.split("```")[0], "README.md", "exec"), {})
