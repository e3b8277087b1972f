"""Single images as PNG and JPEG."""

import io
from typing import Any

import numpy as np

from robopolicy.errors import DataError, one_line

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's mode of an image with that many channels."""


def decode_picture(data: bytes, shape: tuple[int, ...], where: str) -> np.ndarray:
    """uint8 [height, width, channels] from PNG or JPEG bytes that must have exactly this shape.

    The size in the header is compared before anything is decoded. Raises DataError, beginning with `where`.
    """
    from PIL import Image

    height, width, channels = shape
    try:
        picture: Any = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
        if picture.size != (width, height):
            raise DataError(
                f"{where}: the image should be {height}x{width} (height, width), "
                f"found {picture.size[1]}x{picture.size[0]}"
            )
        if picture.mode == "P":
            picture = picture.convert("RGB")
        if picture.mode != MODES[channels]:
            raise DataError(f"{where}: the image should be {MODES[channels]}, found {picture.mode}")
        return np.asarray(picture).reshape(shape)
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds of their own.
        raise DataError(f"{where}: the image is damaged ({one_line(error)})") from error


def encode_png(image: np.ndarray) -> bytes:
    """Lossless PNG of uint8 [height, width, channels] with 1, 3 or 4 channels."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
