"""How Sphinx builds these pages: ``make docs``, or python -m sphinx -W --keep-going docs build/docs."""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.writers.html5 import HTML5Translator

project = "cpunorm"
author = "The cpunorm developers"
copyright = author
release = version = metadata.version("cpunorm")

extensions = ["sphinx.ext.autodoc", "numpydoc", "myst_parser"]
nitpicky = True
# Single backticks in docstrings name objects, which are linked, and arguments, which are not: a word that is no object of ours.
default_role = "py:obj"
# Objects of PyTorch and Dask have pages elsewhere; in `cpunorm.dask`, ours are named without the package.
nitpick_ignore_regex = [("py:obj", r"[a-z]\w*|(dask|torch)\.[\w.]+|ChannelStats|Whitening|Moments\.merge")]
# Pages of optional parts are in the contents by a pattern, which may match nothing.
suppress_warnings = ["toc.empty_glob"]

myst_enable_extensions = ["attrs_inline", "colon_fence", "dollarmath"]
myst_heading_anchors = 3

autodoc_typehints = "none"  # docstrings say shapes and dtypes, which is more than Any says
autodoc_member_order = "bysource"
numpydoc_show_class_members = False

html_math_renderer = "mathml"
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


def formula(self: HTML5Translator, node: nodes.Element) -> None:
    """LaTeX as MathML, which browsers draw: no script, nothing to be loaded from elsewhere."""
    block = isinstance(node, nodes.math_block)
    try:
        drawn = tex2mathml(node.astext(), as_block=block)
    except MathError as problem:
        logging.getLogger(__name__).warning("%s in %s", problem, node.astext(), location=node)
        drawn = ""
    self.body.append(f'<div class="math">{drawn}</div>' if block else drawn)
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """What is defined above."""
    app.add_directive("command-help", CommandHelp)
    app.add_html_math_renderer("mathml", (formula, None), (formula, None))
