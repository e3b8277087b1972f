"""One self-contained HTML page per evaluation: opens anywhere, loads nothing from elsewhere."""

import base64
import io
import json
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from robopolicy.evaluation.result import CurvePoint, Episode, EvalInfo, EvalResult
from robopolicy.evaluation.statistics import Interval

MAX_ROWS = 500
"""Episodes listed in the table; eval_info.json has all of them."""
THEMES = {
    "light": {"ink": "#1c2733", "faint": "#c9d2dc", "score": "#1f6fb2", "success": "#c2571a"},
    "dark": {"ink": "#dfe6ee", "faint": "#3b4653", "score": "#62aef0", "success": "#f0965a"},
}
STYLE = """
:root { color-scheme: light dark; --paper: #f6f7f9; --card: #fff; --ink: #1c2733; --soft: #5d6b7a; --line: #dde3ea;
  --good: #14743c; --bad: #b02a2a; --note: #fff4d6; --note-ink: #6b4a00; }
@media (prefers-color-scheme: dark) { :root { --paper: #12171d; --card: #1a212a; --ink: #dfe6ee; --soft: #95a3b3;
  --line: #2c3642; --good: #5ccb8a; --bad: #f08080; --note: #3a2f12; --note-ink: #f3d58a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 28px 16px 56px; }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 0 0 12px; }
.sub, .hint { color: var(--soft); margin: 2px 0 0; font-size: .92rem; overflow-wrap: anywhere; }
.hint { margin: 0 0 12px; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 18px;
  margin-top: 16px; }
.tiles, .charts { display: grid; gap: 16px; margin-top: 16px; }
.tiles { grid-template-columns: repeat(auto-fit, minmax(250px, 1fr)); }
.charts { grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); }
.tiles section, .charts section { margin: 0; }
.tile-name { color: var(--soft); font-size: .88rem; }
.big { font-size: 2.1rem; font-weight: 650; line-height: 1.25; font-variant-numeric: tabular-nums; }
.note { background: var(--note); color: var(--note-ink); border-color: transparent; padding: 10px 18px; }
.note p { margin: 4px 0; }
img.chart { width: 100%; max-width: 640px; height: auto; display: block; }
.scroll { overflow-x: auto; }
.tall { max-height: 460px; overflow: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 5px 14px 5px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
.tall table { width: auto; }
.tall th, .tall td { padding-right: 28px; }
.tall th { position: sticky; top: 0; background: var(--card); }
td.number, th.number { text-align: right; }
.plain td:first-child { color: var(--soft); white-space: nowrap; width: 1%; }
.plain td { overflow-wrap: anywhere; }
.yes { color: var(--good); } .no { color: var(--bad); }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(190px, 1fr)); gap: 14px; }
figure { margin: 0; }
figure .pair { display: grid; grid-template-columns: 1fr 1fr; gap: 3px; }
figure img { width: 100%; height: auto; display: block; border-radius: 5px; }
figcaption { font-size: .82rem; color: var(--soft); margin-top: 3px; font-variant-numeric: tabular-nums; }
.videos { display: grid; grid-template-columns: repeat(auto-fit, minmax(240px, 1fr)); gap: 16px; }
video { width: 100%; max-width: 420px; border-radius: 7px; display: block; background: #000; }
"""


def build_report(result: EvalResult, curve: Sequence[CurvePoint] = ()) -> str:
    """The whole page as text. `curve` holds evaluations of the same run at other training steps."""
    info = result.info
    sections = [
        _notes(info),
        f'<div class="charts">{_curve(curve, info.score_name)}{_histogram(info)}</div>',
        _videos(result),
        _pictures(result),
        _episodes(info),
        _provenance(info),
    ]
    return page(f"{info.task} evaluation", f"{_headline(info)}\n{chr(10).join(s for s in sections if s)}")


def page(title: str, body: str) -> str:
    """A whole page in the house style around the HTML `body`."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body><main>\n"
        f"{body}\n</main></body></html>\n"
    )


def _percent(interval: Interval) -> tuple[str, str]:
    return f"{100 * interval.value:.1f} %", f"{100 * interval.low:.1f} to {100 * interval.high:.1f} %"


def _range(interval: Interval) -> str:
    if not np.isfinite(interval.low):
        return "one episode gives no interval"
    return f"{interval.low:.3f} to {interval.high:.3f}"


def _headline(info: EvalInfo) -> str:
    n, level = len(info.episodes), f"{100 * info.confidence:g} %"
    score, success = info.score, info.success
    limits = _range(score)
    rate, rate_limits = _percent(success)
    purpose = {
        "test": "test seeds: for reporting, not for choosing",
        "validation": "validation seeds: for choosing checkpoints, optimistic as a result",
        "training": "training seeds: initial states of demonstrations",
        "mixed": "seeds of several ranges",
    }.get(info.purpose, info.purpose)
    tiles = [
        ("Mean score", f"{score.value:.3f}", f"{level} interval {limits}"),
        ("Success rate", rate, f"{level} interval {rate_limits}"),
        *((f"Mean {name}", f"{m.value:.3f}", f"{level} interval {_range(m)}") for name, m in info.metrics.items()),
        ("Episodes", str(n), f"seeds {min(info.seeds)} to {max(info.seeds)}; {purpose}"),
    ]
    cards = "".join(
        f'<section><div class="tile-name">{escape(a)}</div><div class="big">{escape(b)}</div>'
        f'<p class="sub">{escape(c)}</p></section>'
        for a, b, c in tiles
    )
    return (
        f'<h1>{escape(info.task)}</h1><p class="sub">{escape(info.checkpoint or "unnamed policy")}</p>'
        f'<p class="sub">Score: {escape(info.score_name)}</p><div class="tiles">{cards}</div>'
    )


def _notes(info: EvalInfo) -> str:
    if not info.notes:
        return ""
    return '<section class="note">' + "".join(f"<p>{escape(n)}</p>" for n in info.notes) + "</section>"


def _data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def chart(draw: Callable[[Axes, Mapping[str, str]], None], alt: str) -> str:
    """The same figure in a light and in a dark variant; the browser shows the one that fits."""
    urls = {}
    for theme, colours in THEMES.items():
        figure = Figure(figsize=(6.0, 3.4), dpi=160)
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        axes.set_facecolor("none")
        axes.tick_params(colors=colours["ink"], labelsize=9)
        axes.grid(True, color=colours["faint"], linewidth=0.6)
        axes.set_axisbelow(True)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(colours["faint"])
        draw(axes, colours)
        for label in (axes.xaxis.label, axes.yaxis.label):
            label.set_color(colours["ink"])
        figure.tight_layout()
        buffer = io.BytesIO()
        # No Software tag: equal results give equal pages.
        figure.savefig(buffer, format="png", transparent=True, metadata={"Software": None})
        urls[theme] = _data_url("image/png", buffer.getvalue())
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{urls["dark"]}">'
        f'<img class="chart" alt="{escape(alt)}" src="{urls["light"]}"></picture>'
    )


def _curve(curve: Sequence[CurvePoint], score_name: str) -> str:
    if not curve:
        return ""
    points = sorted(curve, key=lambda p: p.step)
    steps = [p.step for p in points]

    def draw(axes: Axes, colours: Mapping[str, str]) -> None:
        axes.fill_between(steps, [p.low for p in points], [p.high for p in points], color=colours["score"], alpha=0.2)
        axes.plot(steps, [p.score for p in points], color=colours["score"], marker="o", markersize=3.5, label="score")
        axes.plot(
            steps, [p.success for p in points], color=colours["success"], marker="s", markersize=3, ls="--",
            label="success rate",
        )  # fmt: skip
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel("training step")
        axes.legend(frameon=False, labelcolor=colours["ink"], fontsize=9)

    return (
        f'<section><h2>Over training</h2><p class="hint">Mean score ({escape(score_name)}) with its interval, and '
        f"success rate.</p>{chart(draw, 'score and success rate over training steps')}</section>"
    )


def _histogram(info: EvalInfo) -> str:
    scores = np.array([e.score for e in info.episodes])
    succeeded = np.array([e.success for e in info.episodes])

    def draw(axes: Axes, colours: Mapping[str, str]) -> None:
        low, high = min(0.0, float(scores.min())), max(1.0, float(scores.max()))
        axes.hist(
            [scores[succeeded], scores[~succeeded]],
            bins=list(np.linspace(low, high, 21)),
            stacked=True,
            color=[colours["score"], colours["success"]],
            label=["success", "no success"],
            rwidth=0.9,
        )
        axes.axvline(float(scores.mean()), color=colours["ink"], linewidth=1.2, ls=":", label="mean")
        axes.set_xlabel("episode score")
        axes.set_ylabel("episodes")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False, labelcolor=colours["ink"], fontsize=9)

    return f"<section><h2>Episode scores</h2>{chart(draw, 'histogram of episode scores')}</section>"


def _caption(episode: Episode) -> str:
    word = '<span class="yes">success</span>' if episode.success else '<span class="no">no success</span>'
    return f"seed {episode.seed}: {episode.score:.3f}, {word}, {episode.steps} steps"


def _videos(result: EvalResult) -> str:
    if not result.videos:
        return ""
    info = result.info
    episodes = {e.seed: e for e in info.episodes}
    cards = []
    for seed, data in result.videos.items():
        place = {info.worst.seed: "Worst: ", info.best.seed: "Best: "}.get(seed, "")
        cards.append(
            f'<figure><video controls muted loop playsinline preload="metadata" src="{_data_url("video/mp4", data)}">'
            f"</video><figcaption>{place}{_caption(episodes[seed])}</figcaption></figure>"
        )
    return f'<section><h2>Videos</h2><div class="videos">{"".join(cards)}</div></section>'


def _pictures(result: EvalResult) -> str:
    if not result.pictures:
        return ""
    episodes = {e.seed: e for e in result.info.episodes}
    cards = [
        f'<figure><div class="pair"><img alt="start of seed {seed}" src="{_data_url("image/png", first)}">'
        f'<img alt="end of seed {seed}" src="{_data_url("image/png", last)}"></div>'
        f"<figcaption>{_caption(episodes[seed])}</figcaption></figure>"
        for seed, (first, last) in result.pictures.items()
    ]
    return (
        '<section><h2>First and last state</h2><p class="hint">Left the start, right the end of the episode.</p>'
        f'<div class="grid">{"".join(cards)}</div></section>'
    )


def _episodes(info: EvalInfo) -> str:
    rows = "".join(
        f'<tr><td class="number">{e.seed}</td><td class="number">{e.score:.3f}</td>'
        f'<td class="{"yes" if e.success else "no"}">{"yes" if e.success else "no"}</td>'
        f'<td class="number">{e.steps}</td><td class="number">{sum(e.rewards):.3f}</td></tr>'
        for e in info.episodes[:MAX_ROWS]
    )
    more = len(info.episodes) - MAX_ROWS
    hint = f'<p class="hint">The first {MAX_ROWS}; {more} more are in eval_info.json.</p>' if more > 0 else ""
    return (
        f'<section><h2>All episodes</h2>{hint}<div class="scroll tall"><table><thead><tr><th class="number">seed</th>'
        '<th class="number">score</th><th>success</th><th class="number">steps</th>'
        f'<th class="number">sum of rewards</th></tr></thead><tbody>{rows}</tbody></table></div></section>'
    )


def _flat(prefix: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, Mapping):
        return [row for k, v in value.items() for row in _flat(f"{prefix}.{k}" if prefix else str(k), v)]
    return [(prefix, value if isinstance(value, str) else json.dumps(value))]


def _provenance(info: EvalInfo) -> str:
    groups = {
        "provenance": info.provenance,
        "runner": info.runner,
        "simulator": info.fingerprint,
        "timing": info.timing,
    }
    rows = "".join(
        f"<tr><td>{escape(k)}</td><td>{escape(v)}</td></tr>" for name, g in groups.items() for k, v in _flat(name, g)
    )
    return f'<section><h2>Provenance</h2><table class="plain"><tbody>{rows}</tbody></table></section>'
