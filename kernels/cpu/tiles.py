"""How matrices and vectors are cut into tiles, for Adafactor on any device.

A *tile* is a block of rows of one matrix (of one batch, where there are more than two axes), and of its columns where
rows are long; or several whole matrices, where they are small; or a chunk of a vector.
"""

from typing import NamedTuple

import numpy as np

from ..compile._jit import callee
from ..layout import CHUNK
from .engines import contiguous_chunks


class Tile(NamedTuple):
    """A row of the tile table, int64. The first four are the common columns of a chunk table.

    The tiles of a matrix follow each other, those of the same columns side by side.
    """

    segment: int
    offset: int  # of its first element
    length: int
    group: int
    first_tile: int  # of the segment
    end_tile: int
    size: int  # elements of the segment
    rows: int = 0  # 0: a chunk of a vector
    columns: int = 0
    height: int = 0  # rows of the whole matrix
    width: int = 0  # columns of the whole matrix
    matrices: int = 0  # in this tile
    matrix: int = 0  # number of the first one, over all segments
    first_row: int = 0  # in the segment's row slot
    first_column: int = 0  # in its column slot
    blocks: int = 1  # tiles of the matrix that have the same columns
    strips: int = 1  # tiles of the matrix that have the same rows
    position: int = 0  # among the tiles of the matrix
    row_sums: int = 0  # first element of its own scratch
    column_sums: int = 0
    tickets: int = 0  # first of the matrix


LEAST_ROWS = 64
"""Rows of a tile, where the matrix has as many: column sums then add at most 1/64 of the parameter's size."""

MOST_COLUMNS = CHUNK
"""Columns of a tile."""

BAND = 32
"""Tiles whose column sums are added up first, then those of the bands: two short chains instead of one long one."""

SMALL = CHUNK // 8
"""Elements of the largest matrix that shares a tile with others."""


@callee
def bands_of(blocks):
    """Count the bands that so many blocks make."""
    return -(-blocks // BAND)


def slots_in_memory_order(plan):
    """Row, column and velocity arrays; "row" belongs to the slower of a matrix's two axes in memory.

    Requires that these are the two fastest axes of the parameter.
    """
    triples = []
    for parameter, row, column, velocity in zip(
        plan.parameters, *(plan.slots[name] for name in ("row", "column", "velocity")), strict=True
    ):
        axes = parameter.axes
        swapped = len(axes) >= 2 and axes[-1] < axes[-2]
        triples.append((column, row, velocity) if swapped else (row, column, velocity))
    return zip(*triples, strict=True)


class Tiles:
    """The tile table of a plan.

    Attributes
    ----------
    table : int64 array [tiles, fields of Tile]
    scratch : list of int
        Elements of column sums, row sums, row sizes and roots.
    tickets : int
        Counters that a device needs which works out what several tiles share as soon as the last of them is done.
    """

    def __init__(self, plan):
        self._column_sums = self._row_sums = self._matrices = 0
        self.tickets = len(plan.parameters)
        tables = [np.zeros((0, len(Tile._fields)), np.int64)]
        first = 0
        for segment, parameter in enumerate(plan.parameters):
            shape, size = parameter.array.shape, parameter.array.size
            if size == 0:
                continue
            if len(shape) < 2:
                tiles = _vector_tiles(size)
            else:
                height, width = (shape[axis] for axis in parameter.axes[-2:])
                tiles = self._matrix_tiles(size // (height * width), height, width)
            end = first + np.broadcast(*tiles.values()).size
            tiles |= {"segment": segment, "group": plan.rows[segment], "size": size}
            tables.append(_stacked(Tile(**tiles, first_tile=first, end_tile=end)))
            first = end
        self.table = np.concatenate(tables)
        self.scratch = [self._column_sums, self._row_sums, self._row_sums, self._matrices]

    def _matrix_tiles(self, matrices, height, width):
        """Fields of the tiles of so many matrices, arrays ``[tiles of a batch, tiles of a matrix]``."""
        block = max(LEAST_ROWS, MOST_COLUMNS // width)
        together = CHUNK // (height * width) if height * width <= SMALL else 1
        blocks, strips = -(-height // block), -(-width // MOST_COLUMNS)
        batch = np.arange(0, matrices, together)[:, None]
        position = np.arange(blocks * strips)
        strip, down = np.divmod(position, blocks)
        first_row, first_column = down * block, strip * MOST_COLUMNS
        rows, columns = np.minimum(block, height - first_row), np.minimum(MOST_COLUMNS, width - first_column)
        count = np.minimum(together, matrices - batch)
        fields = {
            "offset": (batch * height + first_row) * width + first_column,
            "length": count * rows * columns,
            "rows": rows,
            "columns": columns,
            "height": height,
            "width": width,
            "matrices": count,
            "matrix": self._matrices + batch,
            "first_row": batch * height + first_row,
            "first_column": batch * width + first_column,
            "blocks": blocks,
            "strips": strips,
            "position": position,
            "row_sums": self._row_sums + (batch * strips + strip) * height + first_row,
            "column_sums": self._column_sums + (batch * width + first_column) * blocks + down * columns,
        }
        if blocks * strips > 1:
            tickets = blocks + strips * (bands_of(blocks) + 1) + 1
            fields["tickets"] = self.tickets + batch * tickets
            self.tickets += matrices * tickets
        self._row_sums += matrices * strips * height
        self._column_sums += matrices * width * blocks
        self._matrices += matrices
        return fields


def _vector_tiles(size):
    """Fields of the tiles of a vector."""
    _, offset, length, _ = contiguous_chunks([size], [0], CHUNK).T
    return {"offset": offset, "length": length}


def _stacked(tiles):
    """A table of the tiles whose fields are arrays."""
    return np.stack(np.broadcast_arrays(*tiles), axis=-1).reshape(-1, len(Tile._fields))
