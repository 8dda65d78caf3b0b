"""Find connected components of a graph given by pairs of numbers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

# Shapes: P pairs of numbers, F numbers that occur in any of them.


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
