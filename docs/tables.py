"""Writes the measured tables of README.md and docs/ anew, each by the command that its comment names.

python docs/tables.py README.md docs/guide/numerics.md      these pages; on an idle machine

A table stands between ``<!-- table: COMMAND -->`` and ``<!-- /table -->``, and is what COMMAND prints. tests/test_docs.py checks that each
still has the form that its command gives.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
TABLE = re.compile(r"(<!-- table: (?P<command>[^>]+) -->\n\n)(?P<content>.*?)(\n\n<!-- /table -->)", re.DOTALL)


def tables(page: str) -> list[tuple[str, str]]:
    """(command, content) of each table of a page's text."""
    return [(found["command"], found["content"]) for found in TABLE.finditer(page)]


def renewed(page: str) -> str:
    """The text with each table as its command prints it now."""

    def run(found: re.Match[str]) -> str:
        print(found["command"], file=sys.stderr, flush=True)
        done = subprocess.run(found["command"], shell=True, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        return found[1] + done.stdout.strip() + found[4]

    return TABLE.sub(run, page)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        Path(name).write_text(renewed(Path(name).read_text()))
