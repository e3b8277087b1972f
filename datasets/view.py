"""One episode to look at: frames of every camera and curves of every number, as an HTML page or a PNG sheet."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from robopolicy.datasets.pages import LINES, MARGINS, THEMES, chart, data_url, page, style_axes
from robopolicy.datasets.source import Source
from robopolicy.errors import DataError
from robopolicy.features import TASK_INDEX, Feature

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_LINES = 24
"""Dimensions of one key that are drawn; wider ones are cut, and say so."""
MAX_POINTS = 4000
"""Steps drawn per line; longer episodes are thinned evenly."""
LABEL_LENGTH = 34
"""Characters of the names of lines that fit beside a chart."""
THUMBNAIL = 320
"""Longest side of a frame on the page, pixels; larger ones are reduced."""


@dataclass(frozen=True)
class Signal:
    """The numbers of one key, or those of one unit where a key has several."""

    key: str
    unit: str
    """Set where a key has several units."""
    values: np.ndarray
    """[T, D] float64."""
    labels: tuple[str, ...]
    """One per dimension, with its unit when there is one."""

    @property
    def title(self) -> str:
        """The key, with the unit where it has several."""
        return f"{self.key} [{self.unit}]" if self.unit else self.key


@dataclass(frozen=True)
class EpisodeView:
    """What is shown of one episode."""

    name: str
    """Of the dataset."""
    format: str
    episode: int
    n_episodes: int
    steps: int
    rate_hz: float | None
    instructions: tuple[tuple[int, str], ...]
    """Step from which each holds, and the text."""
    cameras: dict[str, list[tuple[int, np.ndarray]]]
    """Key to (step, frame [height, width, 3] uint8)."""
    signals: tuple[Signal, ...]
    facts: tuple[tuple[str, str], ...]
    """What else is known, for a table."""

    @property
    def headline(self) -> str:
        """Episode, length and rate in a line."""
        if self.rate_hz is None:
            length = f"{self.steps} steps, rate unknown"
        else:
            length = f"{self.steps} steps, {self.steps / self.rate_hz:.1f} s at {self.rate_hz:g} Hz"
        return f"Episode {self.episode} of 0 to {self.n_episodes - 1}: {length}"

    @property
    def time(self) -> tuple[np.ndarray, str]:
        """Horizontal positions [T] of the steps and what they are."""
        steps = np.arange(self.steps)
        return (steps, "step") if self.rate_hz is None else (steps / self.rate_hz, "time in s")

    def moment(self, step: int) -> str:
        """The caption of a frame."""
        return f"step {step}" if self.rate_hz is None else f"{step / self.rate_hz:.1f} s (step {step})"


def collect(source: Source, episode: int = 0, frames: int = 8) -> EpisodeView:
    """Reads what is shown of one episode, at most `frames` evenly spaced frames per camera.

    Cameras are read one after the other. Raises DataError for an episode that does not exist or is damaged.
    """
    if not 0 <= episode < source.n_episodes:
        raise DataError(f"{source.path}: has episodes 0..{source.n_episodes - 1}, asked for {episode}")
    if frames < 1:
        raise DataError(f"--frames {frames}: at least 1 is needed")
    numeric = [f for f in source.features if f.kind != "image" and f.dtype != "string"]
    arrays = source.read(episode, [f.key for f in numeric])
    steps = int(source.lengths[episode])
    rows = np.unique(np.rint(np.linspace(0, steps - 1, frames)).astype(int))
    cameras = {}
    for feature in source.features.of_kind("image"):
        pictures = source.read(episode, [feature.key])[feature.key]
        cameras[feature.key] = [(int(t), _rgb(pictures[t])) for t in rows]
    order = {"state": 0, "goal": 1, "action": 2}
    numeric.sort(key=lambda f: order.get(f.kind, 3))
    signals = [signal for f in numeric if f.key != TASK_INDEX for signal in _signals(f, arrays[f.key])]
    facts = [("format", source.format), ("simulator", ", ".join(f"{k} {v}" for k, v in source.fingerprint.items()))]
    facts += [(str(k), str(v)[:300]) for k, v in source.attributes(episode).items()]
    control = source.features.action.control if "action" in source.features else None
    if control is not None:
        facts.append(
            ("action", f"{control.mode} {control.target}, frame {control.frame}, rotation {control.rotation}")
        )
    return EpisodeView(
        source.path.name,
        source.format,
        episode,
        source.n_episodes,
        steps,
        source.features.rate_hz,
        _instructions(source, arrays),
        cameras,
        tuple(signals),
        tuple((k, v) for k, v in facts if v),
    )


def _rgb(frame: np.ndarray) -> np.ndarray:
    """[height, width, 3] of a frame with 1, 3 or 4 channels."""
    return np.repeat(frame, 3, axis=2) if frame.shape[2] == 1 else np.ascontiguousarray(frame[..., :3])


def _signals(feature: Feature, array: np.ndarray) -> list[Signal]:
    """One signal, or one per unit: metres and radians have no scale in common."""
    values = array.reshape(len(array), -1).astype(np.float64)
    names = feature.names or tuple(str(d) for d in range(values.shape[1]))
    units = feature.units or ("",) * len(names)
    labels = [f"{n} [{u}]" if u else n for n, u in zip(names, units, strict=True)]
    kinds = list(dict.fromkeys(units))
    found = []
    for unit in kinds:
        dims = [d for d, u in enumerate(units) if u == unit]
        shown = unit if len(kinds) > 1 else ""
        found.append(Signal(feature.key, shown, values[:, dims], tuple(labels[d] for d in dims)))
    return found


def _instructions(source: Source, arrays: Mapping[str, np.ndarray]) -> tuple[tuple[int, str], ...]:
    if TASK_INDEX not in arrays or not source.tasks:
        return ()
    index = arrays[TASK_INDEX].reshape(-1)
    changes = np.flatnonzero(np.diff(index, prepend=index[0] - 1))
    if index.min() < 0 or index.max() >= len(source.tasks):
        raise DataError(f"{source.path}: task_index {index.min()}..{index.max()} of {len(source.tasks)} instructions")
    return tuple((int(t), source.tasks[int(index[t])]) for t in changes)


def build_page(view: EpisodeView) -> str:
    """The episode as one HTML file."""
    parts = [f'<p class="sub">{escape(view.headline)}</p>']
    if view.instructions:
        lines = "".join(f"<tr><td>from step {t}</td><td>{escape(text)}</td></tr>" for t, text in view.instructions)
        parts.append(f"<section><h2>Instruction</h2><table>{lines}</table></section>")
    for key, frames in view.cameras.items():
        height, width = frames[0][1].shape[:2]
        figures = "".join(
            f'<figure><img alt="{escape(key)} at step {t}" src="{_picture_url(frame)}">'
            f"<figcaption>{view.moment(t)}</figcaption></figure>"
            for t, frame in frames
        )
        wide = " wide" if width > 128 else ""
        title = f'{escape(key)} <span class="sub">{width} x {height}</span>'
        parts.append(f'<section><h2>{title}</h2><div class="frames{wide}">{figures}</div></section>')
    for signal in view.signals:
        picture = chart(lambda axes, colours, s=signal: _draw(axes, colours, view, s), f"{signal.title} over time")  # type: ignore[misc]
        parts.append(f"<section><h2>{escape(signal.title)}</h2>{picture}</section>")
    if view.facts:
        rows = "".join(f"<tr><td>{escape(k)}</td><td>{escape(v)}</td></tr>" for k, v in view.facts)
        parts.append(f"<section><h2>About</h2><table>{rows}</table></section>")
    return page(view.name, "\n".join(parts))


def _reduced(frame: np.ndarray) -> np.ndarray:
    import cv2

    scale = THUMBNAIL / max(frame.shape[:2])
    return frame if scale >= 1 else cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def _picture_url(frame: np.ndarray) -> str:
    """Small frames without loss, larger ones as JPEG."""
    import cv2

    shown = cv2.cvtColor(_reduced(frame), cv2.COLOR_RGB2BGR)
    if max(shown.shape[:2]) <= 128:
        return data_url("image/png", cv2.imencode(".png", shown)[1].tobytes())
    return data_url("image/jpeg", cv2.imencode(".jpg", shown, [cv2.IMWRITE_JPEG_QUALITY, 88])[1].tobytes())


def _draw(axes: "Axes", colours: Mapping[str, str], view: EpisodeView, signal: Signal) -> None:
    time, label = view.time
    rows = np.unique(np.linspace(0, view.steps - 1, min(view.steps, MAX_POINTS)).astype(int))
    width = min(signal.values.shape[1], MAX_LINES)
    marker = "o" if view.steps == 1 else None
    for d in range(width):
        axes.plot(
            time[rows],
            signal.values[rows, d],
            color=LINES[d % len(LINES)],
            ls=("-", "--", ":")[d // len(LINES) % 3],
            lw=1.3,
            marker=marker,
            label=signal.labels[d],
        )
    axes.margins(x=0.01)
    axes.set_xlabel(label)
    cut = signal.values.shape[1] - width
    if width > 1 or signal.labels[0] != "0":
        columns = 1 + (width - 1) // 12
        legend = axes.legend(
            frameon=False,
            labelcolor=colours["ink"],
            fontsize=7.5,
            loc="upper left",
            bbox_to_anchor=(1.0, 1.04),
            ncols=columns,
            handlelength=1.4,
            columnspacing=1.0,
            labelspacing=0.3,
            title=f"and {cut} more" if cut else None,
            title_fontsize=7.5,
        )
        legend.get_title().set_color(colours["ink"])
        longest = LABEL_LENGTH // columns
        for text in legend.get_texts():
            text.set_parse_math(False)
            if len(text.get_text()) > longest:
                text.set_text(text.get_text()[: longest - 1] + "…")


def build_sheet(view: EpisodeView) -> bytes:
    """The episode as one PNG: a row of frames per camera, then a row per key."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = [f"{view.name}   {view.headline}"]
    lines += [f"from step {t}: {text[:120]}" for t, text in view.instructions[:4]]
    heights = [0.15 + 0.2 * len(lines)] + [_row_height(f) for f in view.cameras.values()] + [2.4] * len(view.signals)
    figure = Figure(figsize=(12, sum(heights)), dpi=110)
    FigureCanvasAgg(figure)
    title, *rows = np.atleast_1d(np.asarray(figure.subfigures(len(heights), 1, height_ratios=heights)))
    _write(title, lines, heights[0])
    for part, (key, frames), height in zip(rows, view.cameras.items(), heights[1:], strict=False):
        _write(part, [key], height)
        place = {"left": 0.01, "right": 0.99, "bottom": 0.03, "top": 1 - 0.5 / height, "wspace": 0.04}
        for axes, (t, frame) in zip(
            np.atleast_1d(part.subplots(1, len(frames), gridspec_kw=place)), frames, strict=True
        ):
            axes.imshow(_reduced(frame))
            axes.set_axis_off()
            axes.set_title(view.moment(t), fontsize=7.5, pad=3)
    for part, signal in zip(rows[len(view.cameras) :], view.signals, strict=True):
        _write(part, [signal.title], 2.4)
        axes = part.subplots(gridspec_kw=MARGINS | {"top": 0.86})
        _draw(axes, THEMES["light"], view, signal)
        style_axes(axes, THEMES["light"])
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _write(part: Any, lines: Sequence[str], height: float) -> None:
    """Lines of text at the top left of a part of the sheet that is `height` inches high."""
    part.text(0.01, 1 - 0.08 / height, "\n".join(lines), fontsize=9.5, va="top", parse_math=False)


def _row_height(frames: Sequence[tuple[int, np.ndarray]]) -> float:
    """Inches of a row of frames that fills 12 inches, with room for the captions."""
    height, width = frames[0][1].shape[:2]
    return min(11.5 / len(frames) * height / width, 2.2) + 0.6
