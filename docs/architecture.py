"""Draws docs/images/architecture.svg from the imports of the code: `python docs/architecture.py`.

A package stands one row above the highest package that it imports from. To keep the lines few, an
import is drawn only where no path through other packages says the same.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from support import imports  # noqa: E402

PICTURE = Path(__file__).parent / "images" / "architecture.svg"

BOX, GAP, SPACE, MARGIN = 28, 60, 16, 20
"""Height of a box, distance of rows, space between boxes and around the picture, in pixels."""
LETTER = 7.8
ROUNDS = 24
TITLE = "Packages of llm-lora; an arrow means: imports from"

STYLE = """
  .box { fill: #eef3f8; stroke: #5b7083; }
  .package { fill: #d7e5f2; stroke: #38536b; }
  .line { fill: none; stroke: #8a9aa8; stroke-width: 1.1; marker-end: url(#tip); }
  text { font: 13px ui-monospace, Menlo, Consolas, monospace; fill: #1c2a36; text-anchor: middle; }
"""

Graph = Mapping[str, set[str]]


def graph() -> dict[str, set[str]]:
    """Every package, and every module that stands beside them, with what it imports from."""
    edges: dict[str, set[str]] = {}
    for module in imports.modules():
        own = imports.top(module)
        if own:
            others = {imports.top(one.module) for one in imports.imports(module)}
            edges.setdefault(own, set()).update(others - {"", own})
    return edges


def rows(edges: Graph) -> list[list[str]]:
    """The packages in rows, lowest first: each above all that it imports from."""
    height: dict[str, int] = {}

    def place(name: str) -> int:
        if name not in height:
            height[name] = 1 + max((place(other) for other in edges[name]), default=-1)
        return height[name]

    for name in edges:
        place(name)
    return [
        sorted(name for name in edges if height[name] == level)
        for level in range(max(height.values()) + 1)
    ]


def reduced(edges: Graph) -> dict[str, set[str]]:
    """The edges without those that a longer path implies."""
    reach: dict[str, set[str]] = {}

    def reached(name: str) -> set[str]:
        if name not in reach:
            reach[name] = edges[name].union(*(reached(other) for other in edges[name]))
        return reach[name]

    return {
        name: {one for one in others if not any(one in reached(other) for other in others)}
        for name, others in edges.items()
    }


def drawn(edges: Graph) -> str:
    """The picture as SVG."""
    levels = rows(edges)
    lines = sorted((name, other) for name, others in reduced(edges).items() for other in others)
    level_of = {name: level for level, names in enumerate(levels) for name in names}
    # A line that passes a row takes a place in it, so that it runs between the boxes.
    order: list[list[str]] = [list(names) for names in levels]
    chains = []
    for name, other in lines:
        between = range(level_of[name] - 1, level_of[other], -1)
        points = [f"{name}>{other}@{level}" for level in between]
        for level, point in zip(between, points, strict=True):
            order[level].append(point)
        chains.append([name, *points, other])
    links: dict[str, list[str]] = {}
    for chain in chains:
        for upper, lower in pairwise(chain):
            links.setdefault(upper, []).append(lower)
            links.setdefault(lower, []).append(upper)
    x = _ordered(order, links)
    width = max(x[name] + _width(name) / 2 for name in x) + MARGIN
    height = MARGIN * 2 + BOX + (len(levels) - 1) * GAP

    def y(level: int) -> int:
        return MARGIN + (len(levels) - 1 - level) * GAP

    parts = []
    for chain in chains:
        level = level_of[chain[0]]
        path = f"M {x[chain[0]]:.0f} {y(level) + BOX}"
        for step, (upper, lower) in enumerate(pairwise(chain), 1):
            last = step == len(chain) - 1
            top, below = y(level - step + 1) + BOX, y(level - step) - (4 if last else 0)
            middle = (top + below) // 2
            path += f" C {x[upper]:.0f} {middle} {x[lower]:.0f} {middle} {x[lower]:.0f} {below}"
            if not last:
                path += f" V {y(level - step) + BOX}"
        parts.append(f'<path class="line" d="{path}"/>')
    for level, names in enumerate(levels):
        for name in names:
            wide = _width(name)
            kind = "package" if imports.is_package(f"{imports.ROOM}.{name}") else "box"
            parts.append(
                f'<rect class="{kind}" x="{x[name] - wide / 2:.0f}" y="{y(level)}" '
                f'width="{wide:.0f}" height="{BOX}" rx="5"/>'
            )
            parts.append(f'<text x="{x[name]:.0f}" y="{y(level) + 19}">{name}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" '
        f'width="{width:.0f}" height="{height}">\n'
        f"<title>{TITLE}</title>\n<style>{STYLE}</style>\n"
        '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M 0 0 L 8 4 L 0 8 z" fill="#8a9aa8"/></marker>\n'
        '<rect width="100%" height="100%" fill="#ffffff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _ordered(order: Sequence[list[str]], links: Mapping[str, list[str]]) -> dict[str, float]:
    """The middle of each box or passing line: near those that it is linked to."""
    x: dict[str, float] = {}
    for names in order:
        x.update(_spread(names, dict.fromkeys(names, 0.0)))
    for number in range(ROUNDS):
        for names in order if number % 2 else order[::-1]:
            near = {name: [x[other] for other in links.get(name, [name])] for name in names}
            wanted = {name: sum(found) / len(found) for name, found in near.items()}
            names.sort(key=lambda name: (wanted[name], name))
            x.update(_spread(names, wanted))
    left = min(x[name] - _width(name) / 2 for name in x) - MARGIN
    return {name: middle - left for name, middle in x.items()}


def _spread(names: Sequence[str], wanted: Mapping[str, float]) -> dict[str, float]:
    """The middles of a row from left to right, each as near to its wanted one as others allow."""
    from_left, from_right = _packed(names, wanted, 1), _packed(names[::-1], wanted, -1)
    return {name: (from_left[name] + from_right[name]) / 2 for name in names}


def _packed(names: Iterable[str], wanted: Mapping[str, float], sign: int) -> dict[str, float]:
    """The middles where each box gives way to those before it, to the right (1) or left (-1)."""
    found: dict[str, float] = {}
    edge = -math.inf
    for name in names:
        half = _width(name) / 2
        middle = max(sign * wanted[name], edge + half)
        found[name] = sign * middle
        edge = middle + half + SPACE
    return found


def _width(name: str) -> float:
    return 4.0 if "@" in name else len(name) * LETTER + 22


if __name__ == "__main__":
    PICTURE.write_text(drawn(graph()))
    print(f"wrote {PICTURE}")
