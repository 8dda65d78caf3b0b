"""Find connected components of a graph given by pairs of numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

# Shapes: P pairs of numbers, F numbers that occur in any of them, N rows.


def components(pairs_P2: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Find the connected component of each number.

    Returns:
        (numbers that occur in the pairs, ascending [F]; smallest number in the component of each [F]).
    """
    number_F, at = np.unique(pairs_P2, return_inverse=True)
    one_P, other_P = at.reshape(-1, 2).T
    graph = coo_array((np.ones(len(one_P), dtype=bool), (one_P, other_P)), shape=(len(number_F), len(number_F)))
    label_F = connected_components(graph, directed=False)[1] if len(number_F) else np.zeros(0, np.int64)
    _, first, inverse = np.unique(label_F, return_index=True, return_inverse=True)
    return number_F, number_F[first[inverse]]


def joined(columns: Sequence[pa.Array]) -> npt.NDArray[np.int64]:
    """Join the groups of several columns: rows that share a value in any column belong together.

    Args:
        columns: Arrays of N values each. A null joins nothing.

    Returns:
        The smallest row number in the group of each row [N].
    """
    rows_N = np.arange(len(columns[0]), dtype=np.int64)
    pairs, first = [np.stack([rows_N, rows_N], axis=1)], len(rows_N)
    for column in columns:
        encoded = column.dictionary_encode()
        known_N = np.asarray(encoded.is_valid())
        value_P = encoded.indices.fill_null(0).to_numpy(zero_copy_only=False)[known_N].astype(np.int64)
        pairs.append(np.stack([rows_N[known_N], first + value_P], axis=1))
        first += len(encoded.dictionary)
    # Rows are numbered before values, so the smallest number in a component is a row.
    return components(np.concatenate(pairs))[1][: len(rows_N)]
