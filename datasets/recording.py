"""One episode as a recording (.rrd) for the rerun viewer; needs the extra `viz`."""

import uuid
from pathlib import Path

import numpy as np

from robopolicy.datasets.source import Source
from robopolicy.datasets.view import collect
from robopolicy.datasets.writer import sync_directory
from robopolicy.errors import DataError, RobopolicyError
from robopolicy.progress import progress_bar

JPEG_QUALITY = 92


def write_recording(source: Source, episode: int, path: Path, progress: bool = True) -> None:
    """Every frame and number of one episode over the timelines `step` and, where the rate is known, `time`.

    Errors: rerun-sdk is not installed, `path` exists, an episode that does not exist or is damaged.
    """
    try:
        import rerun as rr
    except ImportError as error:
        raise RobopolicyError(f"{path}: needs rerun-sdk: pip install 'robopolicy[viz]'") from error
    if path.exists():
        raise DataError(f"{path}: already exists; choose another name or remove it first")
    view = collect(source, episode, frames=1)
    steps = np.arange(view.steps)
    indexes = [rr.TimeColumn("step", sequence=steps)]
    if view.rate_hz:
        indexes.append(rr.TimeColumn("time", duration=steps / view.rate_hz))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:12]}.tmp"
    stream = rr.RecordingStream("robopolicy", recording_id=f"{view.name} episode {episode}")
    try:
        stream.save(temporary)
        for signal in view.signals:
            place = rr.new_entity_path([*signal.key.split("."), *([signal.unit] if signal.unit else [])])
            stream.log(place, rr.SeriesLines(names=list(signal.labels)), static=True)
            lengths = np.full(view.steps, signal.values.shape[1])
            columns = rr.Scalars.columns(scalars=signal.values.ravel()).partition(lengths)
            stream.send_columns(place, indexes, columns)
        for step, text in view.instructions:
            stream.set_time("step", sequence=step)
            stream.log("task", rr.TextDocument(text))
        for key in view.cameras:
            frames = source.read(episode, [key])[key]
            place = rr.new_entity_path(key.split("."))
            for step in progress_bar(
                iterable=steps, desc=f"recording {key}", unit="frame", delay=1, disable=not progress
            ):
                stream.set_time("step", sequence=int(step))
                if view.rate_hz:
                    stream.set_time("time", duration=float(step / view.rate_hz))
                stream.log(place, rr.Image(np.ascontiguousarray(frames[step])).compress(JPEG_QUALITY))
        stream.disconnect()
        temporary.rename(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)
