"""What the pages about datasets share: one self-contained HTML file that loads nothing from elsewhere."""

import base64
import io
from collections.abc import Callable, Mapping
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

THEMES: Mapping[str, Mapping[str, str]] = {
    "light": {"ink": "#1c2733", "faint": "#c9d2dc"},
    "dark": {"ink": "#dfe6ee", "faint": "#3b4653"},
}
LINES = ("#2f7fc4", "#d9622b", "#2f9e60", "#9a5fc9", "#c04a6a", "#8a7a1f", "#2aa3a3", "#7f8896")
"""Colours of lines, readable on both themes."""
MARGINS = {"left": 0.06, "right": 0.8, "bottom": 0.19, "top": 0.95}
"""Of a chart, as shares of its size; names of lines stand on the right."""
_STYLE = """
:root { color-scheme: light dark; --paper: #f6f7f9; --card: #fff; --ink: #1c2733; --soft: #5d6b7a; --line: #dde3ea; }
@media (prefers-color-scheme: dark) { :root { --paper: #12171d; --card: #1a212a; --ink: #dfe6ee; --soft: #95a3b3;
  --line: #2c3642; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 16px 56px; }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 0 0 10px; overflow-wrap: anywhere; }
.sub { color: var(--soft); margin: 2px 0 0; font-size: .92rem; overflow-wrap: anywhere; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 18px;
  margin-top: 16px; }
img.chart { width: 100%; height: auto; display: block; }
.frames { display: grid; gap: 8px; grid-template-columns: repeat(auto-fill, minmax(118px, 1fr)); }
.frames.wide { grid-template-columns: repeat(auto-fill, minmax(235px, 1fr)); }
figure { margin: 0; }
figure img { width: 100%; height: auto; display: block; border-radius: 5px; }
figcaption { font-size: .8rem; color: var(--soft); margin-top: 2px; font-variant-numeric: tabular-nums; }
pre { overflow-x: auto; font-size: .85rem; }
table { border-collapse: collapse; font-size: .9rem; }
td { padding: 4px 20px 4px 0; vertical-align: top; overflow-wrap: anywhere; }
td:first-child { color: var(--soft); white-space: nowrap; }
"""


def page(title: str, body: str) -> str:
    """The whole page as text; `body` is HTML, `title` is not."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body><main>\n"
        f"<h1>{escape(title)}</h1>\n{body}\n</main></body></html>\n"
    )


def data_url(kind: str, data: bytes) -> str:
    """Bytes as the address of an inline picture; `kind` is its media type."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def image_tag(png: bytes, alt: str) -> str:
    """A PNG as an inline picture as wide as its surroundings."""
    return f'<img class="chart" alt="{escape(alt)}" src="{data_url("image/png", png)}">'


def chart(draw: Callable[["Axes", Mapping[str, str]], None], alt: str, size: tuple[float, float] = (10.0, 2.6)) -> str:
    """A figure in a light and in a dark variant, of which the browser shows the one that fits."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    urls = {}
    for theme, colours in THEMES.items():
        figure = Figure(figsize=size, dpi=130)
        FigureCanvasAgg(figure)
        # The same margins in every chart, so that their time axes stand below each other.
        axes = figure.subplots(gridspec_kw=MARGINS)
        axes.set_facecolor("none")
        draw(axes, colours)
        style_axes(axes, colours)
        buffer = io.BytesIO()
        # No Software tag: equal data give equal pages.
        figure.savefig(buffer, format="png", transparent=True, metadata={"Software": None})
        urls[theme] = data_url("image/png", buffer.getvalue())
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{urls["dark"]}">'
        f'<img class="chart" alt="{escape(alt)}" src="{urls["light"]}"></picture>'
    )


def style_axes(axes: "Axes", colours: Mapping[str, str]) -> None:
    """Quiet axes with a grid behind the data."""
    axes.tick_params(colors=colours["ink"], labelsize=8)
    axes.grid(True, color=colours["faint"], linewidth=0.6)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(colours["faint"])
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(colours["ink"])
        label.set_fontsize(9)
