"""Draws the cubes and the layouts of these pages: SVG, a light and a dark one each. The same bytes on every machine.

python docs/draw.py          writes docs/drawings/*.svg; a test compares what is committed with what this would write
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent / "drawings"
FONT = 'font-family="system-ui, sans-serif"'


class Theme(NamedTuple):
    """Colours: text, edges, the faces of what is not averaged, and hues for what is."""

    text: str
    edge: str
    face: str
    hues: tuple[str, ...]


THEMES = {
    "light": Theme("#1f2328", "#6e7781", "#eef1f4", ("#0a7ea4", "#d9822b", "#7a4fb5")),
    "dark": Theme("#e6edf3", "#8b949e", "#2b3138", ("#39b1dd", "#f0a04b", "#b48cf2")),
}


class Drawing:
    """Shapes and words, gathered; `svg` is the file."""

    def __init__(self, width: float, height: float, title: str, theme: Theme) -> None:
        self.size, self.title, self.theme = (width, height), title, theme
        self.parts: list[str] = []

    def polygon(self, points: list[tuple[float, float]], fill: str, shade: float = 1.0) -> None:
        """A face; `shade` below 1 lets the page's ground through: darker in the dark theme, lighter in the other."""
        where = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(
            f'<polygon points="{where}" fill="{fill}" fill-opacity="{shade:g}" stroke="{self.theme.edge}" stroke-width="0.8"/>'
        )

    def text(self, x: float, y: float, words: str, *, size: float = 13, anchor: str = "middle", weight: int = 400) -> None:
        """Words on a base line."""
        style = f'{FONT} font-size="{size:g}" font-weight="{weight}" text-anchor="{anchor}" fill="{self.theme.text}"'
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" {style}>{words}</text>')

    def arrow(self, x: float, y: float, to_x: float, to_y: float) -> None:
        """A line with a head at its end."""
        length = ((to_x - x) ** 2 + (to_y - y) ** 2) ** 0.5
        dx, dy = (to_x - x) / length, (to_y - y) / length
        back, side = (to_x - 7 * dx, to_y - 7 * dy), 3
        head = [(to_x, to_y), (back[0] - side * dy, back[1] + side * dx), (back[0] + side * dy, back[1] - side * dx)]
        where = " ".join(f"{px:.1f},{py:.1f}" for px, py in head)
        colour = self.theme.text
        self.parts.append(f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{back[0]:.1f}" y2="{back[1]:.1f}" stroke="{colour}" stroke-width="1.2"/>')
        self.parts.append(f'<polygon points="{where}" fill="{colour}"/>')

    def svg(self) -> str:
        """The file's content."""
        width, height = self.size
        start = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" role="img">'
        )
        return "\n".join([start, f"<title>{self.title}</title>", *self.parts, "</svg>", ""])


# ---------------------------------------------------------------- the cubes

N, C, S = 3, 6, 4  # samples, channels, spatial positions: of every cube
UNIT, DEPTH = 20.0, (9.0, -7.0)  # a cell, and what a step along N shifts it by

Hue = Callable[[int, int, int], int | None]  # of (n, c, s): which hue, or none

CUBES: dict[str, tuple[str, str, Hue]] = {
    "batch": ("batch norm", "a channel of all samples", lambda n, c, s: c if c < 2 else None),
    "instance": ("instance norm", "a channel of one sample", lambda n, c, s: c if n == 0 and c < 2 else None),
    "group": ("group norm, G = 2", "C / G channels of one sample", lambda n, c, s: c // 3 if n == 0 else None),
    "layer": ("layer norm, (C, H, W)", "one sample", lambda n, c, s: 0 if n == 0 else None),
    "row": ("layer, RMS norm, (C,)", "one position (token) of one sample", lambda n, c, s: s if n == 0 and s < 2 else None),
    "window": ("local response, size 3", "a window of channels at one position", lambda n, c, s: 0 if n == s == 0 and c < 3 else None),
}


def cube(drawing: Drawing, left: float, top: float, hue: Hue) -> None:
    """N from front to back, C from left to right, spatial downwards; cells of one colour share their statistics."""
    theme = drawing.theme

    def fill(n: int, c: int, s: int) -> str:
        found = hue(n, c, s)
        return theme.face if found is None else theme.hues[found % len(theme.hues)]

    def corner(n: float, c: float, s: float) -> tuple[float, float]:
        return left + c * UNIT + n * DEPTH[0], top + N * -DEPTH[1] + s * UNIT + n * DEPTH[1]

    for n in range(N):  # the upper side
        for c in range(C):
            drawing.polygon([corner(n, c, 0), corner(n, c + 1, 0), corner(n + 1, c + 1, 0), corner(n + 1, c, 0)], fill(n, c, 0), 0.8)
    for n in range(N):  # the right side
        for s in range(S):
            face = [corner(n, C, s), corner(n + 1, C, s), corner(n + 1, C, s + 1), corner(n, C, s + 1)]
            drawing.polygon(face, fill(n, C - 1, s), 0.6)
    for c in range(C):  # the front
        for s in range(S):
            drawing.polygon([corner(0, c, s), corner(0, c + 1, s), corner(0, c + 1, s + 1), corner(0, c, s + 1)], fill(0, c, s))


def norm(name: str, theme: Theme) -> Drawing:
    """The cube of one normalization, with its axes."""
    title, over, hue = CUBES[name]
    drawing = Drawing(240, 196, f"{title}: the values that share statistics are {over}", theme)
    left, top = 68.0, 46.0
    front, bottom = top - N * DEPTH[1], top - N * DEPTH[1] + S * UNIT
    drawing.text(120, 18, title, size=15, weight=600)
    drawing.text(120, 36, over, size=12)
    cube(drawing, left, top + 8, hue)
    drawing.arrow(left, bottom + 20, left + C * UNIT, bottom + 20)
    drawing.text(left + C * UNIT / 2, bottom + 36, "C", size=12)
    drawing.arrow(left - 12, front + 8, left - 12, bottom + 8)
    drawing.text(left - 18, (front + bottom) / 2 + 12, "spatial", size=12, anchor="end")
    drawing.arrow(left - 9, front + 2, left - 9 + N * DEPTH[0], front + 2 + N * DEPTH[1])
    drawing.text(left - 8, front - 10, "N", size=12, anchor="end")
    return drawing


# ---------------------------------------------------------------- layouts


def layouts(theme: Theme) -> Drawing:
    """A sample of three channels and four pixels, as it lies in memory: a colour a channel."""
    cell = 27.0
    drawing = Drawing(360, 216, "How NCHW and NHWC lie in memory: runs of a channel, or the channels of a pixel side by side", theme)
    rows = {
        "NCHW": ("runs: a channel lies together", [(c, pixel) for c in range(3) for pixel in range(4)]),
        "NHWC": ("columns: a pixel lies together", [(c, pixel) for pixel in range(4) for c in range(3)]),
    }
    for row, (name, (words, order)) in enumerate(rows.items()):
        top = 32.0 + row * 84
        drawing.text(8, top - 9, name, size=15, anchor="start", weight=600)
        drawing.text(64, top - 9, words, size=13, anchor="start")
        for place, (c, pixel) in enumerate(order):
            left = 8 + place * cell
            drawing.polygon([(left, top), (left + cell, top), (left + cell, top + 30), (left, top + 30)], theme.hues[c], 0.8)
            drawing.text(left + cell / 2, top + 20, f"{pixel}", size=13)
        drawing.arrow(8, top + 42, 8 + 12 * cell, top + 42)
    for c in range(3):
        left = 8.0 + 112 * c
        drawing.polygon([(left, 190), (left + 16, 190), (left + 16, 206), (left, 206)], theme.hues[c], 0.8)
        drawing.text(left + 22, 203, f"channel {c}", size=13, anchor="start")
    return drawing


def files() -> Iterator[tuple[str, str]]:
    """Names and contents."""
    for ground, theme in THEMES.items():
        yield f"layouts-{ground}.svg", layouts(theme).svg()
        for name in CUBES:
            yield f"cube-{name}-{ground}.svg", norm(name, theme).svg()


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, content in files():
        (FOLDER / name).write_text(content)
