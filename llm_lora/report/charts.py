"""Charts as inline SVG, without scripts, own styles or external files.

Colours come from the page's classes (`series-0`, `series-1`, `grid`, `tick`), so that one drawing
serves light, dark and print. Every chart fills the width available to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 560, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 20, 34
# A loss that falls by more than this factor is drawn on a logarithmic scale, since its tail would
# otherwise look flat.
_LOG_RATIO = 20.0


@dataclass(frozen=True)
class Series:
    """A line: a name and its points."""

    name: str
    points: Sequence[tuple[float, float]]


def lines(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    falling: bool = True,
    top: float = 0.0,
    kept: float | None = None,
) -> str:
    """A line chart. Empty text without points.

    Args:
        series: its lines, in the order of their colours.
        x_label, y_label: the quantities on the axes.
        falling: lower is better, as with losses: the lowest point of the last series is marked,
            and a long fall is drawn on a logarithmic scale.
        top: the minimum upper end of the y axis.
        kept: the x value of the kept weights, marked by a line.
    """
    drawn = [Series(one.name, [p for p in one.points if math.isfinite(p[1])]) for one in series]
    drawn = [one for one in drawn if one.points]
    if not drawn:
        return ""
    xs = [x for one in drawn for x, _ in one.points]
    ys = [y for one in drawn for _, y in one.points]
    logarithmic = falling and min(ys) > 0 and max(ys) / min(ys) > _LOG_RATIO
    low = -ticks(0, -min(ys))[-1] if min(ys) < 0 else 0.0
    y_ticks = _log_ticks(min(ys), max(ys)) if logarithmic else ticks(low, max(top, *ys))
    x_ticks = ticks(0, max(xs), 6)
    x = _scale(0, max(max(xs), 1), _LEFT, WIDTH - _RIGHT)
    bottom = HEIGHT - _BOTTOM
    y = _scale(low, max(y_ticks[-1], *ys) or 1, bottom, _TOP)
    if logarithmic:
        exponent = _scale(math.log(y_ticks[0]), math.log(y_ticks[-1]), bottom, _TOP)
        y = lambda value: exponent(math.log(value))  # noqa: E731
    label = f"{y_label} (log scale)" if logarithmic else y_label
    body = [_grid(y_ticks, y), _x_axis(x_ticks, x, bottom, x_label), _y_label(label)]
    if kept is not None and kept <= max(xs):
        side, anchor = (-5, "end") if kept > max(xs) / 2 else (5, "start")
        body.append(
            f'<line class="kept" x1="{x(kept):.1f}" x2="{x(kept):.1f}" y1="{_TOP}" y2="{bottom}"/>'
            f'<text class="note" x="{x(kept) + side:.1f}" y="{_TOP + 10}" text-anchor="{anchor}">'
            f"kept: {escape(x_label)} {kept:g}</text>"
        )
    for index, one in enumerate(drawn):
        path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in one.points)
        body.append(f'<polyline class="line series-{index}" points="{path}"/>')
        # Points that are few enough to be distinguished have tooltips.
        if len(one.points) <= 40:
            body += [
                f'<circle class="dot series-{index}" cx="{x(a):.1f}" cy="{y(b):.1f}" r="2.6">'
                f"<title>{escape(one.name)}: {b:.4g} at {escape(x_label)} {a:g}</title></circle>"
                for a, b in one.points
            ]
    if falling:
        best = min(drawn[-1].points, key=lambda point: point[1])
        body.append(
            f'<circle class="ring series-{len(drawn) - 1}" cx="{x(best[0]):.1f}" '
            f'cy="{y(best[1]):.1f}" r="5"/>'
            f'<text class="note" x="{WIDTH - _RIGHT}" y="9" text-anchor="end">'
            f"lowest {escape(drawn[-1].name)} {best[1]:.3g} at {escape(x_label)} {best[0]:g}</text>"
        )
    return _svg(f"{y_label} by {x_label}", body, HEIGHT)


def histograms(lengths: Mapping[str, Sequence[int]], *, x_label: str) -> str:
    """One histogram per name, stacked on a common axis. Empty text without values."""
    kept = {name: values for name, values in lengths.items() if values}
    if not kept:
        return ""
    longest = max(max(values) for values in kept.values())
    x_ticks = ticks(0, longest, 6)
    top = max(x_ticks[-1], longest)
    width = max(1, math.ceil(top / 40))
    x = _scale(0, top, _LEFT, WIDTH - _RIGHT)
    room = (HEIGHT - _TOP - _BOTTOM) / len(kept)
    body = [_x_axis(x_ticks, x, HEIGHT - _BOTTOM, x_label)]
    for index, (name, values) in enumerate(kept.items()):
        floor = _TOP + room * (index + 1)
        counts: dict[int, int] = {}
        for value in values:
            counts[value // width] = counts.get(value // width, 0) + 1
        y = _scale(0, max(counts.values()), floor, floor - room + 26)
        for slot, count in sorted(counts.items()):
            left, right = x(slot * width), x((slot + 1) * width)
            body.append(
                f'<rect class="bar series-{index}" x="{left:.1f}" y="{y(count):.1f}" '
                f'width="{max(right - left - 1, 0.8):.1f}" height="{floor - y(count):.1f}">'
                f"<title>{slot * width} to {(slot + 1) * width - 1}: {count}</title></rect>"
            )
        ordered = sorted(values)
        middle = ordered[len(ordered) // 2]
        note = f"{name}: median {middle}, longest {ordered[-1]}"
        body.append(
            f'<line class="axis" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{floor:.1f}" '
            f'y2="{floor:.1f}"/><text class="note" x="{WIDTH - _RIGHT}" '
            f'y="{floor - room + 16:.1f}" text-anchor="end">{escape(note)}</text>'
        )
    return _svg(f"{x_label}: {', '.join(kept)}", body, HEIGHT)


def reliability(bins: Sequence[tuple[float, float, int]]) -> str:
    """A reliability diagram from (confidence, accuracy, answers).

    On the diagonal, confidence equals accuracy. A dot's area grows with its number of answers.
    Empty text without bins.
    """
    if not bins:
        return ""
    marks = [0, 0.2, 0.4, 0.6, 0.8, 1]
    bottom = HEIGHT - _BOTTOM
    x = _scale(0, 1, _LEFT, WIDTH - _RIGHT)
    y = _scale(0, 1, bottom, _TOP)
    body = [
        _grid(marks, y),
        _x_axis(marks, x, bottom, "probability of the value"),
        _y_label("share of correct values"),
        f'<line class="axis" x1="{x(0):.1f}" y1="{y(0):.1f}" x2="{x(1):.1f}" y2="{y(1):.1f}"/>',
    ]
    most = max(count for _, _, count in bins)
    path = " ".join(f"{x(said):.1f},{y(right):.1f}" for said, right, _ in bins)
    body.append(f'<polyline class="line series-0" points="{path}"/>')
    body += [
        f'<circle class="dot series-0" cx="{x(said):.1f}" cy="{y(right):.1f}" '
        f'r="{3 + 7 * math.sqrt(count / most):.1f}"><title>{count} values of {said:.0%} '
        f"probability: {right:.0%} correct</title></circle>"
        for said, right, count in bins
    ]
    return _svg("share of correct values by probability", body, HEIGHT)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from `low` to at least `high`, `about` that many."""
    if high <= low:
        return [low, low + 1]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * unit for unit in (1, 2, 2.5, 5, 10) if power * unit >= raw * 0.999)
    count = math.ceil((high - low) / step - 1e-9)
    return [round(low + step * index, 10) for index in range(count + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Round marks from below `low` to above `high`: 1, 2 and 5 of each decade, only 1 of many."""
    exponents = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    units = (1, 2, 5) if len(exponents) <= 5 else (1,)
    marks = [unit * 10.0**exponent for exponent in exponents for unit in units]
    first = max(mark for mark in marks if mark <= low * (1 + 1e-9))
    last = min(mark for mark in marks if mark >= high * (1 - 1e-9))
    return [mark for mark in marks if first <= mark <= last]


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def _grid(marks: Sequence[float], y: Callable[[float], float]) -> str:
    return "".join(
        f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y(mark):.1f}" '
        f'y2="{y(mark):.1f}"/><text class="tick" x="{_LEFT - 7}" y="{y(mark) + 3.5:.1f}" '
        f'text-anchor="end">{mark:g}</text>'
        for mark in marks
    )


def _x_axis(marks: Sequence[float], x: Callable[[float], float], bottom: float, label: str) -> str:
    shown = "".join(
        f'<text class="tick" x="{x(mark):.1f}" y="{bottom + 15:.1f}" text-anchor="middle">'
        f"{mark:g}</text>"
        for mark in marks
        if x(mark) <= WIDTH - _RIGHT + 0.5
    )
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    return (
        f'{shown}<text class="tick" x="{middle:.1f}" y="{bottom + 29:.1f}" '
        f'text-anchor="middle">{escape(label)}</text>'
    )


def _y_label(label: str) -> str:
    return f'<text class="tick" x="{_LEFT}" y="9" text-anchor="start">{escape(label)}</text>'


def _svg(title: str, body: Sequence[str], height: int) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">'
        f"{''.join(body)}</svg>"
    )
