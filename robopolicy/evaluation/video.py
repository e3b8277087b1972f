"""H.264 videos that play in every browser."""

import tempfile
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from robopolicy.errors import RobopolicyError


def encode_mp4(frames: Iterable[np.ndarray], rate_hz: float, quality: int = 23) -> bytes:
    """MP4 bytes (H.264, yuv420p, index first) of RGB frames [height, width, 3] uint8 of one size.

    `quality` is x264's constant rate factor, lower is better. Odd sizes, which yuv420p does not have, gain a
    repeated last row or column.
    """
    # A file, as moving the index to the front needs to read back what was written.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        _write(path, frames, rate_hz, quality)
        return path.read_bytes()


def _write(path: Path, frames: Iterable[np.ndarray], rate_hz: float, quality: int) -> None:
    size: tuple[int, ...] | None = None
    with av.open(path, mode="w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(rate_hz).limit_denominator(1000))
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": str(quality)}
        for frame in frames:
            if (
                frame.ndim != 3
                or frame.shape[2] != 3
                or frame.dtype != np.uint8
                or frame.shape != (size or frame.shape)
            ):
                raise RobopolicyError(
                    f"video frames must be [height, width, 3] uint8 of one size, got {frame.shape} {frame.dtype}"
                )
            if size is None:
                size = frame.shape
                stream.height, stream.width = size[0] + size[0] % 2, size[1] + size[1] % 2
            even = np.pad(frame, ((0, size[0] % 2), (0, size[1] % 2), (0, 0)), mode="edge")
            for packet in stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")):
                container.mux(packet)
        if size is None:
            raise RobopolicyError("a video needs at least one frame")
        for packet in stream.encode():
            container.mux(packet)
