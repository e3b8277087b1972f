"""Arrays of unknown length written to standard .npy files with bounded memory, and read back as memory maps."""

import contextlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from robopolicy.errors import DataError


class NpyStream:
    """Appends rows [n, *shape] to a .npy file whose final length is not known beforehand.

    numpy pads the header of a C-ordered array so that the first axis can grow to any length without moving the
    data; the header written first therefore has the size of the one that `close` puts in its place.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: str) -> None:
        self.path = path
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self.rows = 0
        self._file = path.open("wb")
        self._write_header()

    def _write_header(self) -> None:
        header: dict[str, Any] = {
            "descr": np.lib.format.dtype_to_descr(self.dtype),
            "fortran_order": False,
            "shape": (self.rows, *self.shape),
        }
        np.lib.format.write_array_header_1_0(self._file, header)

    def append(self, rows: np.ndarray) -> None:
        """Writes rows of exactly this stream's row shape and dtype. Raises OSError when the disk is full."""
        assert rows.shape[1:] == self.shape
        assert rows.dtype == self.dtype
        self._file.write(np.ascontiguousarray(rows).data)
        self.rows += len(rows)

    def close(self) -> None:
        """Completes the header and makes the file durable. Raises OSError when the disk is full."""
        self._file.flush()
        self._file.seek(0)
        self._write_header()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def abandon(self) -> None:
        """Closes the file without completing it; never raises, for use while another error is on its way."""
        # Closing flushes, which fails again on a full disk.
        with contextlib.suppress(OSError):
            self._file.close()


def map_npy(path: Path) -> np.ndarray:
    """The array in `path` as a read-only memory map; a missing, truncated or foreign file is a DataError."""
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError:
        raise DataError(f"{path}: missing; it should hold one array of the dataset") from None
    except (ValueError, OSError, EOFError, OverflowError) as error:
        raise DataError(f"{path}: truncated or not a .npy file ({error})") from error
