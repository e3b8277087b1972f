"""The page of a locomotion evaluation: survival against force, terrains, the adversary, a video."""

import io
from collections.abc import Callable, Mapping
from dataclasses import asdict
from html import escape
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from robopolicy.evaluation.locomotion import Locomotion, Point
from robopolicy.evaluation.report import THEMES, _data_url, chart, page
from robopolicy.evaluation.statistics import Interval

WORDS = {
    "sudden": "Sudden: one push of 0.2 s, any horizontal direction",
    "continuous": "Continuous: from the first second on, a new direction every 0.4 s",
}
Draw = Callable[[Axes, Mapping[str, str]], None]


def as_json(found: Locomotion) -> dict[str, Any]:
    """Plain values: every interval as value, low, high; every point with its survival."""

    def plain(value: Any) -> Any:
        if isinstance(value, Interval):
            return asdict(value)
        if isinstance(value, Point):
            return {
                "name": value.name,
                "value": value.value,
                "survival": asdict(value.survival),
                "forward_error": asdict(value.forward_error),
                "survived": list(value.survived),
            }
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        return [plain(v) for v in value] if isinstance(value, list) else value

    areas = {kind: plain(found.area(getattr(found, kind))) for kind in WORDS}
    return {name: plain(getattr(found, name)) for name in vars(found)} | {"survival_auc": areas}


def survival_curves(curves: Mapping[str, list[Point]], unit: str = "push, N") -> Draw:
    """Draws survival with its intervals against strength, one line per name."""

    def draw(axes: Axes, colours: Mapping[str, str]) -> None:
        for (name, points), colour, style in zip(
            curves.items(), (colours["score"], colours["success"]), ("-", "--"), strict=False
        ):
            x, rates = [p.value for p in points], [p.survival for p in points]
            axes.fill_between(x, [r.low for r in rates], [r.high for r in rates], color=colour, alpha=0.18)
            axes.plot(x, [r.value for r in rates], style, color=colour, marker="o", markersize=3.5, label=name)
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel(unit)
        axes.set_ylabel("share that stays up")
        if len(curves) > 1:
            axes.legend(frameon=False, labelcolor=colours["ink"], fontsize=9)

    return draw


def error_curves(curves: Mapping[str, list[Point]]) -> Draw:
    """Draws the tracking error of those that walk against strength."""

    def draw(axes: Axes, colours: Mapping[str, str]) -> None:
        for (name, points), colour, style in zip(
            curves.items(), (colours["score"], colours["success"]), ("-", "--"), strict=False
        ):
            kept = [p for p in points if np.isfinite(p.forward_error.value)]
            x, errors = [p.value for p in kept], [p.forward_error for p in kept]
            axes.fill_between(x, [e.low for e in errors], [e.high for e in errors], color=colour, alpha=0.18)
            axes.plot(x, [e.value for e in errors], style, color=colour, marker="o", markersize=3.5, label=name)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("push, N")
        axes.set_ylabel("|forward velocity - command|, m/s")
        axes.legend(frameon=False, labelcolor=colours["ink"], fontsize=9)

    return draw


def terrain_bars(points: list[Point]) -> Draw:
    """Draws survival on every terrain and level."""

    def draw(axes: Axes, colours: Mapping[str, str]) -> None:
        rates = [p.survival for p in points]
        values = np.array([r.value for r in rates])
        spread = np.array([[r.value - r.low for r in rates], [r.high - r.value for r in rates]])
        axes.bar(range(len(points)), values, color=colours["score"], alpha=0.8)
        axes.errorbar(range(len(points)), values, yerr=spread.clip(0), fmt="none", ecolor=colours["ink"], capsize=3)
        labels = [f"{p.name}\n{p.value:.0f}" for p in points]
        axes.set_xticks(range(len(points)), labels, color=colours["ink"], fontsize=8)
        axes.set_ylim(0, 1.03)
        axes.set_ylabel("share that stays up")

    return draw


def picture(draw: Draw, title: str) -> bytes:
    """The PNG of one chart on white."""
    figure = Figure(figsize=(6.0, 3.6), dpi=140)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.grid(True, color="#dde3ea", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_title(title, fontsize=10)
    draw(axes, THEMES["light"])
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def charts(found: Locomotion) -> dict[str, tuple[str, str, Draw]]:
    """File name -> heading, explanation, drawing of every chart that `found` has data for."""
    pushes = {kind: getattr(found, kind) for kind in WORDS if getattr(found, kind)}
    result: dict[str, tuple[str, str, Draw]] = {}
    if pushes:
        hint = f"{'. '.join(WORDS[k] for k in pushes)}. Bands: 95 % Wilson intervals."
        result["survival.png"] = ("Survival against force", hint, survival_curves(pushes))
        hint = "Of the robots that walk on, until they fall; with 95 % intervals."
        result["tracking.png"] = ("Tracking error against force", hint, error_curves(pushes))
    if found.terrain:
        hint = "Below each name the level, 0 to 9; no pushes."
        result["terrain.png"] = ("Survival on terrains", hint, terrain_bars(found.terrain))
    if found.bullet:
        hint = "The nominal robot under equal sudden pushes. Bands: 95 % Wilson intervals."
        result["simulators.png"] = ("MuJoCo and PyBullet", hint, survival_curves(found.bullet))
    return result


def build_page(found: Locomotion, name: str, video: bytes | None, provenance: Mapping[str, str]) -> str:
    """The whole page as text."""
    cards = "".join(
        f'<section><div class="tile-name">{escape(a)}</div><div class="big">{escape(b)}</div>'
        f'<p class="sub">{escape(c)}</p></section>'
        for a, b, c in _tiles(found)
    )
    body = [
        f'<h1>{escape(found.robot)}, {found.speed:g} m/s</h1><p class="sub">{escape(name)}</p>'
        f'<p class="sub">{found.episodes} robots in every trial, the same in all; test seeds</p>'
        f'<div class="tiles">{cards}</div>'
    ]
    if found.failed_physics:
        note = f"Physics failed {found.failed_physics} times: counted as falls."
        body.append(f'<section class="note"><p>{note}</p></section>')
    body.append('<div class="charts">')
    for heading, hint, draw in charts(found).values():
        drawn = chart(draw, heading)
        body.append(f'<section><h2>{heading}</h2><p class="hint">{escape(hint)}</p>{drawn}</section>')
    body.append("</div>")
    if video is not None:
        hint = "The nominal robot; one sudden push of a third of its weight from the side."
        player = f'<video controls muted loop playsinline src="{_data_url("video/mp4", video)}"></video>'
        body.append(f'<section><h2>Video</h2><p class="hint">{hint}</p>{player}</section>')
    rows = "".join(f"<tr><td>{escape(k)}</td><td>{escape(v)}</td></tr>" for k, v in provenance.items())
    body.append(f'<section><h2>Provenance</h2><table class="plain"><tbody>{rows}</tbody></table></section>')
    return page(f"{found.robot} locomotion", "\n".join(body))


def _tiles(found: Locomotion) -> list[tuple[str, str, str]]:
    def limits(interval: Interval) -> str:
        return f"95 % interval {interval.low:.3f} to {interval.high:.3f}"

    def percent(interval: Interval) -> tuple[str, str]:
        return (
            f"{100 * interval.value:.0f} %",
            f"95 % interval {100 * interval.low:.0f} to {100 * interval.high:.0f} %",
        )

    tiles = [
        ("Forward tracking error", f"{found.forward_error.value:.3f} m/s", limits(found.forward_error)),
        ("Task reward earned", *percent(found.task_reward)),
        ("Survival without pushes", *percent(found.survival)),
        ("Cost of transport", f"{found.cost_of_transport.value:.2f}", limits(found.cost_of_transport)),
    ]
    for kind in WORDS:
        area = found.area(getattr(found, kind))
        if area is not None:
            tiles.append((f"Mean survival, {kind} pushes", f"{area.value:.3f}", limits(area)))
    if found.adversary is not None:
        survival, per_newton = found.adversary["survival"], found.adversary["cost_per_newton"]
        assert isinstance(survival, Interval)
        assert isinstance(per_newton, Interval)
        tiles.append((f"Survival under an adversary of {found.adversary['max_force']:.0f} N", *percent(survival)))
        eta = found.adversary.get("eta")
        against = "" if eta is None else f"; eta {eta:g}"
        tiles.append(("Cost per newton, adversary", f"{per_newton.value:.4f} 1/N", limits(per_newton) + against))
    return tiles
