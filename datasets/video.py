"""Video files as numbered frames: decoding with PyAV, exact to the frame and bounded, and encoding.

Frames are counted in the order of presentation. Packets are listed once without decoding them, so the number of a
frame follows from its rank among the time stamps and never from the frame rate.
"""

import contextlib
import errno
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from robopolicy.datasets.mp4 import check_mp4
from robopolicy.errors import DataError, one_line, unknown

BLOCK_BYTES = 2**24
"""Decoded bytes of one piece of work when a whole video is decoded."""
THREADED_PIXELS = 256 * 256
"""Frames of at least this size are decoded on several threads."""
FORMATS = {1: "gray", 3: "rgb24"}
"""Pixel format of what is delivered, by number of channels."""
TASKS = "/proc/self/task"
"""Where Linux lists the threads of this process."""


@dataclass(frozen=True)
class VideoIndex:
    """The frames of a file in presentation order."""

    stamps: np.ndarray
    """[F] int64, strictly increasing, in units of the stream's time base."""
    keyframes: np.ndarray
    """Numbers of the frames from which decoding can start, increasing; the first is 0."""


def _failures() -> tuple[type[Exception], ...]:
    import av

    return (av.FFmpegError, OSError, ValueError, TypeError, IndexError, OverflowError, MemoryError, EOFError)


def _open(file: Path, shape: tuple[int, ...], threaded: bool) -> tuple[Any, Any]:
    """(container, video stream) of an mp4 whose frames must be [height, width, channels]."""
    import av

    height, width, channels = shape
    if channels not in FORMATS:
        raise DataError(f"{file}: video of {channels} channels is not supported")
    av.logging.set_level(av.logging.PANIC)
    # Decoders work on whole blocks of up to 128 pixels.
    options = {"max_pixels": str((height + 128) * (width + 128))}
    # Both the format and the protocol are fixed, since a playlist may name any file or address.
    container = av.open(f"file:{file}", format="mp4", options=options)
    try:
        if not container.streams.video:
            raise DataError(f"{file}: holds no video")
        stream = container.streams.video[0]
        if (stream.height, stream.width) != (height, width):
            raise DataError(
                f"{file}: frames should be {height}x{width} pixels (height, width), "
                f"found {stream.height}x{stream.width}"
            )
        stream.codec_context.options = options | {"err_detect": "explode"}
        stream.thread_type = "AUTO" if threaded else "NONE"
    except BaseException:
        container.close()
        raise
    return container, stream


def index_video(file: Path, shape: tuple[int, ...]) -> VideoIndex:
    """Lists the frames of `file` [height, width, channels] without decoding them."""
    check_mp4(file)
    try:
        container, stream = _open(file, shape, threaded=False)
        with container:
            packets = [(p.pts, p.is_keyframe) for p in container.demux(stream) if p.size and not p.is_discard]
    except _failures() as error:
        raise DataError(f"{file}: truncated or not a video ({one_line(error)})") from error
    if not packets or any(stamp is None for stamp, _ in packets):
        raise DataError(f"{file}: holds no frames, or frames without time stamps")
    stamps = np.array([stamp for stamp, _ in packets], np.int64)
    order = np.argsort(stamps, kind="stable")
    stamps = stamps[order]
    if (np.diff(stamps) <= 0).any():
        raise DataError(f"{file}: two frames have the same time stamp")
    keyframes = np.flatnonzero(np.array([key for _, key in packets])[order])
    if len(keyframes) == 0 or keyframes[0] != 0:
        raise DataError(f"{file}: does not begin with a frame that can be decoded alone")
    return VideoIndex(stamps, keyframes)


class VideoReader:
    """One file kept open; reading forwards continues where the last call ended, other frames are sought."""

    def __init__(self, file: Path, shape: tuple[int, ...], index: VideoIndex, threaded: bool = True) -> None:
        from av.video.reformatter import VideoReformatter

        self.file = file
        self.shape = shape
        self.index = index
        try:
            self._container, self._stream = _open(file, shape, threaded and shape[0] * shape[1] >= THREADED_PIXELS)
        except _failures() as error:
            raise DataError(f"{file}: truncated or not a video ({one_line(error)})") from error
        # Kept, because building the tables of a conversion takes longer than converting a small frame; handing one
        # to other threads takes longer, too.
        self._reformatter = VideoReformatter()
        self._frames: Iterator[tuple[int, Any]] = self._decoded()
        self._next = 0
        """Number of the frame that comes out of the decoder next."""

    def read(self, start: int, count: int) -> np.ndarray:
        """Frames `start` to `start + count` as uint8 [count, height, width, channels]."""
        if start < 0 or start + count > len(self.index.stamps):
            raise DataError(
                f"{self.file}: has {len(self.index.stamps)} frames, asked for {start} to {start + count - 1}"
            )
        at = self._next
        self._next = len(self.index.stamps) + 1  # After an error, whatever comes next is sought.
        number = start - 1
        try:
            out = np.empty((count, *self.shape), np.uint8)
            number, frame = self._advance(start, at)
            for k in range(count):
                if k:
                    number, frame = next(self._frames, (-1, None))
                if number != start + k:
                    raise DataError(f"{self.file}: frame {start + k} does not decode")
                self._copy(frame, out[k])
        except _failures() as error:
            raise DataError(f"{self.file}: frame {number + 1} does not decode ({one_line(error)})") from error
        self._next = start + count
        return out

    def _advance(self, start: int, at: int) -> tuple[int, Any]:
        """(number, frame) of frame `start`, or of a later one when it does not decode, or (-1, None) at the end."""
        keyframes = self.index.keyframes
        back = int(np.searchsorted(keyframes, start, side="right")) - 1
        if not keyframes[back] <= at <= start:
            self._seek(back)
        step = 1
        while True:
            number, frame = next(self._frames, (-1, None))
            while 0 <= number < start:
                number, frame = next(self._frames, (-1, None))
            if number == start or back == 0:
                return number, frame
            # Seeking goes by the order of decoding and may land on a later keyframe than asked for.
            back = max(back - step, 0)
            step *= 2
            self._seek(back)

    def _seek(self, back: int) -> None:
        stamp = int(self.index.stamps[self.index.keyframes[back]])
        self._container.seek(stamp, stream=self._stream, backward=True)
        self._frames = self._decoded()

    def _decoded(self) -> Iterator[tuple[int, Any]]:
        """(number, frame) of everything the decoder gives from here on."""
        stamps = self.index.stamps
        for packet in self._container.demux(self._stream):
            for frame in packet.decode():
                if frame.pts is None or frame.is_corrupt:
                    raise DataError(f"{self.file}: a frame is corrupt")
                number = int(np.searchsorted(stamps, frame.pts))
                if number == len(stamps) or stamps[number] != frame.pts:
                    raise DataError(f"{self.file}: the decoder found a frame that the file does not list")
                yield number, frame

    def _copy(self, frame: Any, out: np.ndarray) -> None:
        height, width, channels = self.shape
        if (frame.height, frame.width) != (height, width):
            raise DataError(
                f"{self.file}: frames should be {height}x{width} pixels, one has {frame.height}x{frame.width}"
            )
        plane: Any = self._reformatter.reformat(frame, format=FORMATS[channels], threads=1).planes[0]
        rows = np.frombuffer(plane, np.uint8).reshape(height, plane.line_size)
        out[:] = rows[:, : width * channels].reshape(self.shape)

    def close(self) -> None:
        self._container.close()


def decode_runs(
    runs: Iterable[tuple[Path, int, int]], shape: tuple[int, ...], index: Callable[[Path], VideoIndex]
) -> Iterator[np.ndarray]:
    """Frames of runs (file, first frame, number of frames), one after the other, in blocks of bounded size.

    Blocks are decoded on all cores, because the decoder does its work outside the interpreter lock, and are
    delivered in order.
    """
    size = max(1, BLOCK_BYTES // int(np.prod(shape)))
    work = (
        (f, n, min(size, first + count - n)) for f, first, count in runs for n in range(first, first + count, size)
    )
    workers = os.process_cpu_count() if hasattr(os, "process_cpu_count") else len(os.sched_getaffinity(0))
    workers = max(workers or 1, 1)
    readers: dict[int, VideoReader] = {}

    def decode(file: Path, listed: VideoIndex, first: int, count: int) -> np.ndarray:
        me = threading.get_ident()
        reader = readers.get(me)
        if reader is None or reader.file != file:
            if reader is not None:
                reader.close()
            readers[me] = reader = VideoReader(file, shape, listed, threaded=False)
        return reader.read(first, count)

    pending: deque[Future[np.ndarray]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for file, first, count in work:
            pending.append(pool.submit(decode, file, index(file), first, count))
            if len(pending) > workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        for reader in readers.values():
            reader.close()


@dataclass(frozen=True)
class Codec:
    """How frames are encoded."""

    name: str
    """Encoder of FFmpeg."""
    pixels: str
    options: dict[str, str]
    even: bool
    """Whether height and width must be even."""


# Every second frame can be decoded alone, as in LeRobot's own videos, for random access. x264's look-ahead and the
# decisions that build on it differ from run to run; zerolatency works without, so equal frames give equal files.
_X264 = {"crf": "18", "g": "2", "bf": "0", "preset": "veryfast", "tune": "zerolatency"}
CODECS = {
    "h264": Codec("libx264", "yuv444p", _X264, even=False),
    "h264-yuv420p": Codec("libx264", "yuv420p", _X264, even=True),
    "av1": Codec("libsvtav1", "yuv420p", {"crf": "12", "g": "2", "preset": "8", "svtav1-params": "lp=1"}, even=True),
}
"""h264 keeps full colour resolution, which drawings with thin coloured edges need; yuv420p plays everywhere."""


@contextlib.contextmanager
def _scheduling_kept() -> Iterator[None]:
    """SVT-AV1, when opened by root, gives this and its own threads real-time priority, which starves the others."""
    if not os.path.isdir(TASKS):
        yield
        return
    policy, parameters, before = os.sched_getscheduler(0), os.sched_getparam(0), set(os.listdir(TASKS))
    try:
        yield
    finally:
        for thread in (0, *(int(t) for t in os.listdir(TASKS) if t not in before)):
            with contextlib.suppress(ProcessLookupError):
                if os.sched_getscheduler(thread) != policy:
                    os.sched_setscheduler(thread, policy, parameters)


class VideoWriter:
    """Encodes frames [height, width, 3] at a constant rate into one mp4 file, on one thread."""

    def __init__(self, file: Path, shape: tuple[int, ...], fps: float, codec: str) -> None:
        import av
        from av.video.reformatter import VideoReformatter

        if codec not in CODECS:
            raise unknown("codec", codec, CODECS)
        self.file = file
        self.shape = shape
        self.codec = CODECS[codec]
        self.n_frames = 0
        height, width, channels = shape
        if channels != 3:
            raise DataError(f"{file}: video has three channels, these images {channels}")
        if self.codec.even and (height % 2 or width % 2):
            raise DataError(f"{file}: codec {codec} needs even sizes, the images are {height}x{width}; h264 does not")
        os.environ.setdefault("SVT_LOG", "0")
        av.logging.set_level(av.logging.PANIC)
        self._reformatter = VideoReformatter()
        try:
            self._container = av.open(str(file), "w", format="mp4")
            rate = Fraction(fps).limit_denominator(1001)
            stream: Any = self._container.add_stream(self.codec.name, rate=rate, options=dict(self.codec.options))
            stream.height, stream.width = height, width
            stream.pix_fmt = self.codec.pixels
            stream.codec_context.thread_count = 1
            with _scheduling_kept():
                stream.codec_context.open()
            self._stream = stream
        except av.FFmpegError as error:
            raise DataError(f"{file}: cannot encode {codec} ({one_line(error)})") from error

    @property
    def canonical_codec(self) -> str:
        """What info.json calls the codec: h264 or av1."""
        return str(self._stream.codec.canonical_name)

    def add(self, frames: np.ndarray) -> None:
        """uint8 [n, height, width, 3]. Raises OSError when the disk is full."""
        import av

        try:
            for image in frames:
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
                frame = self._reformatter.reformat(frame, format=self.codec.pixels, threads=1)
                frame.pts = self.n_frames
                frame.time_base = 1 / self._stream.codec_context.framerate
                self._container.mux(self._stream.encode(frame))
                self.n_frames += 1
        except av.FFmpegError as error:
            raise self._failure(error) from error

    def size(self) -> int:
        """Bytes on disk so far."""
        return self.file.stat().st_size

    def close(self) -> None:
        """Completes the file. Raises OSError when the disk is full."""
        import av

        try:
            self._container.mux(self._stream.encode(None))
            self._container.close()
        except av.FFmpegError as error:
            raise self._failure(error) from error

    def _failure(self, error: Any) -> Exception:
        if error.errno in errno.errorcode:
            return OSError(error.errno, error.strerror)
        return DataError(f"{self.file}: cannot be encoded ({one_line(error)})")

    def abandon(self) -> None:
        """Closes the file without completing it; never raises."""
        with contextlib.suppress(Exception):
            self._container.close()
