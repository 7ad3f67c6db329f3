"""The examples of the README and of the pages run as they stand there; its table has the form that its command prints."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("page", ["README.md", "docs/preprocessing.md", "docs/statistics.md"])
def test_the_example_runs(page):
    _, *blocks = (ROOT / page).read_text().split("```python\n")
    assert blocks
    for block in blocks:
        exec(compile(block.split("```")[0], page, "exec"), {})


def table():
    """The command beside the README's table, and the lines of it."""
    text = (ROOT / "README.md").read_text()
    found = re.search(r"<!-- table: (.*?) -->\n(.*?)<!-- /table -->", text, re.DOTALL)
    assert found
    return shlex.split(found[1]), found[2].strip().splitlines()


def form(lines):
    """What is left of lines of text and tables without their figures."""
    return [re.sub(r"[\d.]+", "0", line) for line in lines]


def test_the_table_has_the_form_that_its_command_prints(monkeypatch, capsys, tmp_path):
    """Heads, rows in their order, and the text around them; every case is measured as one made-up result."""
    from cpunorm import cli
    from cpunorm.compare import contestants, figure, measure, peers, show
    from cpunorm.compare.results import Result, Row, Timing

    def run(request, progress):
        rows = []
        for name, operation, layout in measure.cases(request):
            row = measure.ops.OPERATIONS[operation]
            names = [*request.backends, *([contestants.NUMPY] if row.function.__name__ in contestants.IDIOMS else [])]
            names.append(contestants.TORCH)
            for threads in request.threads:
                for one in names:
                    timing = Timing(((1e-3,), (1e-3,)))
                    case = (operation, name, request.shapes[name], layout, one, 1 if one in peers.SERIAL else threads)
                    rows.append(Row(*case, timing, 10**6, 0.0, threads, {contestants.NUMPY: timing}, 1e-3))
        return Result(rows)

    monkeypatch.setattr(measure, "run", run)
    monkeypatch.setattr(figure, "draw", lambda *_: None)
    monkeypatch.setattr(peers, "installed", lambda: tuple(peers.LIBRARIES))
    monkeypatch.setattr(cli.compare, "available", lambda backend: None)
    monkeypatch.setattr(cli.compare, "_threads", lambda asked, quick: tuple(map(int, asked)))
    (program, *arguments), lines = table()
    assert program == "cpunorm"
    files = ["--save", str(tmp_path / "x.json"), "--picture", str(tmp_path / "x.png")]
    assert cli.main([*arguments, *files]) == cli.DONE
    printed = capsys.readouterr().out.strip().splitlines()
    assert [re.sub(r" \|.*", "", line) for line in form(lines) if line.startswith("| batch")] == [
        re.sub(r" \|.*", "", line) for line in form(printed) if line.startswith("| batch")
    ]
    heads = [[line for line in text if line.startswith(("| operation", "|---"))] for text in (lines, printed)]
    assert heads[0] == heads[1]
    assert lines[-1] == printed[-1]  # what the limit is
    assert lines[0].startswith("Fastest here over these 6 cases (geometric mean): ")
    assert printed[0].startswith("Fastest here over these 6 cases (geometric mean): ")
    assert show.LIMIT_TEXT in lines[-1]
