import os
import struct
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from mixed import smooth_images

from robopolicy.datasets import video
from robopolicy.datasets.pictures import decode_picture, encode_png
from robopolicy.datasets.video import CODECS, VideoReader, VideoWriter, decode_runs, index_video
from robopolicy.errors import DataError, RobopolicyError

SHAPE = (32, 48, 3)


def numbered(n: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Frames whose number can be read from their brightness, a step of 3 per frame."""
    frames = np.zeros((n, *shape), np.uint8)
    frames += (3 * np.arange(n, dtype=np.uint8))[:, None, None, None]
    return frames


def numbers(frames: np.ndarray) -> list[int]:
    return np.rint(frames.mean(axis=(1, 2, 3)) / 3).astype(int).tolist()


def write(file: Path, frames: np.ndarray, codec: str = "h264") -> Path:
    writer = VideoWriter(file, frames.shape[1:], 10.0, codec)
    writer.add(frames)
    writer.close()
    return file


def write_foreign(file: Path, frames: np.ndarray, **options: str) -> Path:
    """As other programs do, with long groups of pictures and frames that depend on later ones."""
    with av.open(str(file), "w") as container:
        stream: Any = container.add_stream("libx264", rate=10, options=options)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode())
    return file


@pytest.mark.parametrize("options", [{"g": "12", "bf": "3"}, {"g": "2", "bf": "1"}, {"g": "250"}])
def test_any_frame_is_found_by_its_number(tmp_path: Path, options: dict[str, str]) -> None:
    file = write_foreign(tmp_path / "a.mp4", numbered(80), **options)
    index = index_video(file, SHAPE)
    assert len(index.stamps) == 80
    reader = VideoReader(file, SHAPE, index)
    assert numbers(reader.read(0, 80)) == list(range(80))
    for start in [70, 3, 4, 5, 40, 41, 79, 0, 12, 11, 60, 60]:
        count = min(3, 80 - start)
        assert numbers(reader.read(start, count)) == list(range(start, start + count))
    reader.close()


def test_runs_come_in_order_whatever_the_order_of_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "BLOCK_BYTES", 7 * int(np.prod(SHAPE)))
    files = [write(tmp_path / f"{n}.mp4", numbered(60)) for n in range(2)]
    runs = [(files[0], 5, 30), (files[1], 0, 60), (files[0], 40, 1)]
    blocks = list(decode_runs(runs, SHAPE, lambda file: index_video(file, SHAPE)))
    assert max(map(len, blocks)) == 7
    assert numbers(np.concatenate(blocks)) == [*range(5, 35), *range(60), 40]


@pytest.mark.parametrize("codec", sorted(CODECS))
def test_codecs_keep_images(tmp_path: Path, codec: str) -> None:
    frames = smooth_images(6, (64, 64, 3), 0.0)
    file = write(tmp_path / "a.mp4", frames, codec)
    found = VideoReader(file, (64, 64, 3), index_video(file, (64, 64, 3))).read(0, 6)
    assert 10 * np.log10(255**2 / np.mean((found.astype(float) - frames) ** 2)) > 35


def test_simulation_renders_keep_35_db_in_every_frame(tmp_path: Path) -> None:
    import gym_pusht  # noqa: F401  # registers the environment
    import gymnasium

    environment = gymnasium.make("gym_pusht/PushT-v0", obs_type="pixels", render_mode="rgb_array")
    environment.reset(seed=0)
    frames = np.stack([environment.step(np.float32([256 + 20 * k, 256]))[0] for k in range(8)])
    file = write(tmp_path / "a.mp4", frames)
    found = VideoReader(file, frames.shape[1:], index_video(file, frames.shape[1:])).read(0, 8)
    errors = np.mean((found.astype(float) - frames) ** 2, axis=(1, 2, 3))
    assert (10 * np.log10(255**2 / errors)).min() > 38


def test_equal_frames_give_equal_files(tmp_path: Path) -> None:
    frames = smooth_images(20, (64, 64, 3), 1.0)
    files = [write(tmp_path / f"{n}.mp4", frames) for n in range(3)]
    assert len({file.read_bytes() for file in files}) == 1


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are listed by Linux only")
def test_an_encoder_leaves_the_scheduling_as_it_is(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "video.mp4", (64, 64, 3), 10, "av1")
    writer.add(np.zeros((3, 64, 64, 3), np.uint8))
    threads = {int(t): os.sched_getscheduler(int(t)) for t in os.listdir("/proc/self/task")}
    writer.close()
    assert set(threads.values()) == {os.SCHED_OTHER}


def test_sizes_and_codecs_that_do_not_work(tmp_path: Path) -> None:
    write(tmp_path / "odd.mp4", numbered(2, (31, 47, 3)))
    with pytest.raises(DataError, match=r"needs even sizes, the images are 31x47; h264 does not"):
        VideoWriter(tmp_path / "a.mp4", (31, 47, 3), 10.0, "h264-yuv420p")
    with pytest.raises(DataError, match="three channels"):
        VideoWriter(tmp_path / "a.mp4", (32, 48, 4), 10.0, "h264")
    with pytest.raises(RobopolicyError, match=r"unknown codec 'h265'. Did you mean 'h264'"):
        VideoWriter(tmp_path / "a.mp4", SHAPE, 10.0, "h265")


@pytest.mark.parametrize("keep", [0, 10, 200, 0.3, 0.9, -1])
def test_truncated_video(tmp_path: Path, keep: float) -> None:
    file = write(tmp_path / "a.mp4", numbered(20))
    data = file.read_bytes()
    file.write_bytes(data[: int(keep * len(data)) if 0 < keep < 1 else int(keep)])
    with pytest.raises(DataError, match=r"a.mp4: (truncated|damaged)"):
        index_video(file, SHAPE)


def test_a_frame_that_is_damaged_is_not_skipped(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (20, *SHAPE), dtype=np.uint8)
    file = write(tmp_path / "a.mp4", frames)
    with av.open(str(file)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
        places = [(p.pos, p.size) for p in packets]
    index = index_video(file, SHAPE)
    data = bytearray(file.read_bytes())
    position, size = places[7]
    data[position + 20 : position + size // 2] = bytes(size // 2 - 20)
    file.write_bytes(bytes(data))
    reader = VideoReader(file, SHAPE, index)
    assert len(reader.read(0, 7)) == 7
    with pytest.raises(DataError, match=r"a.mp4: frame 7 does not decode"):
        reader.read(5, 5)
    assert len(reader.read(8, 12)) == 12


def patched(file: Path, box: bytes, offset: int, value: bytes) -> Path:
    data = bytearray(file.read_bytes())
    at = data.index(box) + len(box) + offset
    data[at : at + len(value)] = value
    file.write_bytes(bytes(data))
    return file


def test_headers_that_lie(tmp_path: Path) -> None:
    file = patched(write(tmp_path / "count.mp4", numbered(5)), b"stsz", 8, struct.pack(">I", 2**31))
    with pytest.raises(DataError, match="claims 2147483648 samples"):
        index_video(file, SHAPE)
    file = patched(write(tmp_path / "same.mp4", numbered(5)), b"stsz", 4, struct.pack(">II", 1, 2**31))
    with pytest.raises(DataError, match="claims 2147483648 samples"):
        index_video(file, SHAPE)
    file = patched(write(tmp_path / "box.mp4", numbered(5)), b"moov", -8, struct.pack(">I", 2**31))
    with pytest.raises(DataError, match="claims 2147483648 bytes"):
        index_video(file, SHAPE)


def test_frames_of_another_size_than_declared(tmp_path: Path) -> None:
    small, big = write(tmp_path / "small.mp4", numbered(4)), write(tmp_path / "big.mp4", numbered(4, (512, 640, 3)))
    with pytest.raises(DataError, match=r"should be 32x48 pixels \(height, width\), found 512x640"):
        index_video(big, SHAPE)
    with pytest.raises(DataError, match="should be 512x640"):
        index_video(small, (512, 640, 3))
    # The container says what is expected, the stream inside holds far larger pictures.
    data = bytearray(big.read_bytes())
    at = data.index(b"avc1", data.index(b"stsd")) + 4 + 24
    data[at : at + 4] = struct.pack(">HH", 48, 32)
    big.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"big.mp4"):
        VideoReader(big, SHAPE, index_video(big, SHAPE)).read(0, 1)


def test_a_playlist_is_not_followed(tmp_path: Path) -> None:
    other = write(tmp_path / "other.mp4", numbered(4))
    file = tmp_path / "a.mp4"
    file.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{other}\n#EXT-X-ENDLIST\n")
    with pytest.raises(DataError, match=r"a.mp4: truncated or damaged|not an mp4"):
        index_video(file, SHAPE)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pictures_are_exact(channels: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    np.testing.assert_array_equal(decode_picture(encode_png(image), image.shape, "a"), image)


def test_damaged_pictures() -> None:
    data = encode_png(np.zeros((8, 8, 3), np.uint8))
    # IHDR: width and height follow the eight bytes of the signature, a length and the name.
    bomb = data[:16] + struct.pack(">II", 60_000, 60_000) + data[24:]
    with pytest.raises(DataError, match=r"x: the image (should be 8x8 .*found 60000x60000|is damaged)"):
        decode_picture(bomb, (8, 8, 3), "x")
    for bad in (b"", b"GIF89a" + bytes(40), data[:40], data[:-30]):
        with pytest.raises(DataError, match="x: the image is damaged"):
            decode_picture(bad, (8, 8, 3), "x")
    with pytest.raises(DataError, match="should be L, found RGB"):
        decode_picture(data, (8, 8, 1), "x")
