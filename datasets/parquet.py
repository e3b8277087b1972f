"""Numbers out of parquet files that nobody vouches for: bounded before they are read, checked afterwards."""

from pathlib import Path
from typing import Any

import numpy as np

from robopolicy.datasets.episodes import locate
from robopolicy.errors import DataError, one_line
from robopolicy.features import Feature

MAX_ROWS_PER_BYTE = 1000
"""A file that claims more rows for its size is not believed; real steps hold counters that compress far less."""
MAX_STEP_VALUES = 1_000_000
"""Most numbers that one step of one key may have."""


def open_parquet(file: Path, columns: list[str]) -> Any:
    """A `pyarrow.parquet.ParquetFile` that has `columns`; the caller closes it."""
    import pyarrow
    import pyarrow.parquet

    try:
        opened = pyarrow.parquet.ParquetFile(file, page_checksum_verification=True)
        schema = opened.schema_arrow
    except FileNotFoundError:
        raise DataError(f"{file}: missing") from None
    except (pyarrow.ArrowException, OSError, ValueError, MemoryError) as error:
        raise DataError(f"{file}: truncated or not a parquet file ({one_line(error)})") from error
    try:
        for column in columns:
            found = schema.names.count(column)
            if found != 1:
                raise DataError(
                    f"{file}: no column {column!r}, found {schema.names}"
                    if not found
                    else f"{file}: {found} columns {column!r}"
                )
        rows, size = opened.metadata.num_rows, file.stat().st_size
        if not 0 <= rows <= MAX_ROWS_PER_BYTE * size:
            raise DataError(f"{file}: claims {rows} rows in {size} bytes")
    except BaseException:
        opened.close()
        raise
    return opened


def read_parquet(file: Path, columns: list[str], groups: list[int] | None = None) -> Any:
    """The columns of a file, or of some of its row groups, as a `pyarrow.Table` without schema metadata."""
    import pyarrow

    with open_parquet(file, columns) as opened:
        try:
            table = opened.read(columns) if groups is None else opened.read_row_groups(groups, columns)
            rows = sum(opened.metadata.row_group(g).num_rows for g in groups or range(opened.num_row_groups))
        except (pyarrow.ArrowException, OSError, ValueError, MemoryError) as error:
            raise DataError(f"{file}: truncated or not a parquet file ({one_line(error)})") from error
    if table.num_rows != rows:
        raise DataError(f"{file}: claims {rows} rows, holds {table.num_rows}")
    return table.select(columns).replace_schema_metadata(None)


def join_tables(tables: list[Any], where: Path) -> Any:
    """Tables of the same columns, one after the other."""
    import pyarrow

    try:
        return pyarrow.concat_tables(tables)
    except (pyarrow.ArrowException, ValueError) as error:
        raise DataError(f"{where}: files differ in their columns ({one_line(error)})") from error


def strings(table: Any, name: str, where: Path) -> list[str]:
    """A column of text."""
    values = table[name].to_pylist()
    for row, value in enumerate(values):
        if not isinstance(value, str):
            raise DataError(f"{where}: column {name!r} should hold text, found {value!r} in row {row}")
    return values


def numbers(table: Any, name: str, where: Path, dtype: str = "int64") -> np.ndarray:
    """A column with one number per row, [N]."""
    return to_numpy(table, where, Feature(name, (), dtype), None)


def to_numpy(table: Any, path: Path, feature: Feature, ends: np.ndarray | None) -> np.ndarray:
    """Column `feature.key` as [N, *shape] of the feature's dtype; `ends` of the episodes are for the messages.

    Raises DataError for missing and ragged values, for anything but numbers, and when the dtype cannot hold them.
    """
    import pyarrow

    try:
        return _to_numpy(table, path, feature, ends)
    except (pyarrow.ArrowException, ValueError, TypeError, OverflowError, MemoryError) as error:
        raise DataError(f"{path}: key {feature.key!r} is damaged ({one_line(error)})") from error


def _to_numpy(table: Any, path: Path, feature: Feature, ends: np.ndarray | None) -> np.ndarray:
    import pyarrow
    import pyarrow.compute

    n_rows = table.num_rows
    column = table[feature.key].combine_chunks()
    if isinstance(column, pyarrow.ChunkedArray):
        column = pyarrow.concat_arrays(column.chunks) if column.num_chunks else pyarrow.array([], column.type)
    per_row = 1
    while True:
        if isinstance(column, pyarrow.ExtensionArray):
            column = column.storage
        if pyarrow.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if column.null_count:
            row = int(np.argmax(column.is_null().to_numpy(zero_copy_only=False))) // per_row
            where = f"{locate(ends, row)} (row {row})" if ends is not None else f"row {row}"
            raise DataError(f"{path}: key {feature.key!r} has no value at {where}")
        if not pyarrow.types.is_nested(column.type):
            break
        lengths = pyarrow.compute.list_value_length(column).to_numpy(zero_copy_only=False)
        if len(lengths) and lengths.min() != lengths.max():
            raise DataError(f"{path}: key {feature.key!r} has between {lengths.min()} and {lengths.max()} values")
        per_row *= int(lengths[0]) if len(lengths) else 1
        column = column.flatten()
    values = column.to_numpy(zero_copy_only=False)
    if len(values) != n_rows * int(np.prod(feature.shape)):
        raise DataError(
            f"{path}: key {feature.key!r} should be {list(feature.shape)} per step, "
            f"found {len(values) // max(n_rows, 1)} values"
        )
    wanted = np.dtype(feature.dtype)
    if values.dtype.kind not in "biuf" or (values.dtype.kind == "f" and wanted.kind != "f"):
        raise DataError(f"{path}: key {feature.key!r} should be {wanted}, found {column.type}")
    # A copy, because arrow's buffers are read-only.
    with np.errstate(over="ignore"):
        array = np.array(values.reshape(n_rows, *feature.shape), dtype=wanted)
    if wanted.kind != "f" and not np.array_equal(array, values.reshape(array.shape)):
        raise DataError(f"{path}: key {feature.key!r} should be {wanted}, found larger numbers ({column.type})")
    return array
