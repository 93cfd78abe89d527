"""Optimal assignment: the pairing of two lists with the greatest total gain."""

from __future__ import annotations

import math
from collections.abc import Sequence


def assign(gains: Sequence[Sequence[float]]) -> list[tuple[int, int]]:
    """Pairs of row and column with the greatest sum of gains, each row and column used once.

    The Hungarian method with potentials, O(rows² · columns) with the shorter side as rows
    (Kuhn 1955, Munkres 1957). scipy has it too, but is not a dependency.
    """
    if not gains or not gains[0]:
        return []
    if len(gains) > len(gains[0]):
        flipped = assign(list(zip(*gains, strict=True)))
        return sorted((row, column) for column, row in flipped)
    rows, columns = len(gains), len(gains[0])
    # The prices (dual variables) keep every reduced cost at 0 or above, and at exactly 0 for chosen
    # pairs, which makes the pairing optimal for the rows so far. Each new row is added along a
    # shortest path of reduced costs to a free column, found as in Dijkstra's algorithm.
    row_price, column_price = [0.0] * (rows + 1), [0.0] * (columns + 1)
    owner = [0] * (columns + 1)  # the row assigned to a column, from 1; 0 is none
    for row in range(1, rows + 1):
        owner[0], column = row, 0
        slack, came_from = [math.inf] * (columns + 1), [0] * (columns + 1)
        visited = [False] * (columns + 1)
        while owner[column]:
            visited[column] = True
            current = owner[column]
            for other in range(1, columns + 1):
                if visited[other]:
                    continue
                cost = -gains[current - 1][other - 1] - row_price[current] - column_price[other]
                if cost < slack[other]:
                    slack[other], came_from[other] = cost, column
            free = [other for other in range(1, columns + 1) if not visited[other]]
            nearest = min(free, key=slack.__getitem__)
            step = slack[nearest]
            for other in range(columns + 1):
                if visited[other]:
                    row_price[owner[other]] += step
                    column_price[other] -= step
                else:
                    slack[other] -= step
            column = nearest
        # Shift the rows along the path, so that the new row gets its column.
        while column:
            owner[column] = owner[came_from[column]]
            column = came_from[column]
    return sorted(
        (owner[column] - 1, column - 1) for column in range(1, columns + 1) if owner[column]
    )
