"""How long rows are, column by column: no list of all rows is ever built."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import datasets

Lengths = npt.NDArray[np.int64]

_BATCH = 10_000  # rows whose columns are in memory at a time


def row_lengths(rows: datasets.Dataset) -> Lengths:
    """Tokens of each row, in order."""
    import pyarrow.compute as pc

    parts = [pc.list_value_length(column).to_numpy() for column in list_column(rows, "input_ids")]
    return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, np.int64)


def list_column(rows: datasets.Dataset, name: str) -> Iterator[Any]:
    """A list column, one Arrow array for every few thousand rows."""
    for batch in rows.select_columns([name]).with_format("arrow").iter(_BATCH):
        yield batch[name].combine_chunks()
