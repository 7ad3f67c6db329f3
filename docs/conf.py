"""How Sphinx builds these pages: ``make docs``, or python -m sphinx -W --keep-going docs build/docs."""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING

from docutils import nodes
from docutils.parsers.rst import Directive

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "cpunorm"
author = "The cpunorm developers"
copyright = author
release = version = metadata.version("cpunorm")

extensions = ["sphinx.ext.autodoc", "sphinx.ext.mathjax", "numpydoc", "myst_parser"]
nitpicky = True
# Single backticks in docstrings name objects, which are linked, and arguments, which are not: a word that is no object of ours.
default_role = "py:obj"
nitpick_ignore_regex = [("py:obj", r"[a-z]\w*")]
# Pages of optional parts are in the contents by a pattern, which may match nothing.
suppress_warnings = ["toc.empty_glob"]

myst_enable_extensions = ["attrs_inline", "colon_fence", "dollarmath"]
myst_heading_anchors = 3

autodoc_typehints = "none"  # docstrings say shapes and dtypes, which is more than Any says
autodoc_member_order = "bysource"
numpydoc_show_class_members = False

html_theme = "furo"
html_title = f"cpunorm {version}"
html_static_path = ["static"]
html_css_files = ["pages.css"]
html_copy_source = False


class CommandHelp(Directive):
    """``.. command-help:: compare`` is what ``cpunorm compare --help`` prints."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """One literal block."""
        from cpunorm import cli

        commands = next(action.choices for action in cli._parser()._actions if isinstance(action.choices, dict))
        text = commands[self.arguments[0]].format_help()
        return [nodes.literal_block(text, text, language="text")]


def setup(app: Sphinx) -> None:
    """The directive above."""
    app.add_directive("command-help", CommandHelp)
