import io

import av
import numpy as np
import pytest

from robopolicy.errors import RobopolicyError
from robopolicy.evaluation.video import encode_mp4


def frames(n=7, height=33, width=47):
    for i in range(n):
        frame = np.zeros((height, width, 3), np.uint8)
        frame[:, :, 0] = 30 * i
        yield frame


def test_the_video_plays_in_browsers_and_shows_the_frames():
    data = encode_mp4(frames(), 10.0)
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.pix_fmt == "yuv420p"
        assert stream.average_rate == 10
        decoded = [f.to_ndarray(format="rgb24") for f in container.decode(stream)]
    assert len(decoded) == 7
    # Odd sizes are padded, not stretched.
    assert decoded[0].shape == (34, 48, 3)
    red = [d[..., 0].mean() for d in decoded]
    np.testing.assert_allclose(red, [30 * i for i in range(7)], atol=8)
    # The index precedes the frames, so a browser can start at once.
    assert data.index(b"moov") < data.index(b"mdat")


def test_bad_frames_are_refused():
    with pytest.raises(RobopolicyError, match="at least one frame"):
        encode_mp4([], 10)
    with pytest.raises(RobopolicyError, match=r"uint8 of one size, got \(4, 4, 3\) float64"):
        encode_mp4([np.zeros((4, 4, 3))], 10)
    with pytest.raises(RobopolicyError, match="one size"):
        encode_mp4([np.zeros((4, 4, 3), np.uint8), np.zeros((4, 6, 3), np.uint8)], 10)
