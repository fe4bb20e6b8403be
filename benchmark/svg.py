"""The report's figures as inline SVG: colours come from the page's style sheet, so that they follow light and dark.

Every text is escaped. A figure is one picture to a screen reader, named by its label; its numbers stand in the table.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

from genrec_bench.benchmark.figures import (
    COSTS,
    CriticalDifference,
    Curve,
    Frontier,
    Point,
    Settings,
    cost_ticks,
    ticks,
)
from genrec_bench.benchmark.tables import clean, metric_title

LETTER = 6.1  # width of a letter of 11 px, more or less
FEW = 24  # points that all get a name and an interval
LONGEST = 34  # letters of a name
SHAPES = {  # by family, since colours alone do not reach everybody; drawn around 0, 0
    "generative": "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0-9 0Z",
    "sequential": "M-4 -4h8v8h-8Z",
    "counting": "M0 -5L5 4H-5Z",
    "graph": "M0 -5.5L5.5 0L0 5.5L-5.5 0Z",
    "language": "M-1.6 -5h3.2v3.4H5v3.2H1.6V5h-3.2V1.6H-5v-3.2h3.4Z",
    "other": "M0 5L5 -4H-5Z",
}


class Box(NamedTuple):
    """A rectangle of the picture."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: "Box") -> bool:
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )


def family_of(name: str) -> str:
    """A family that has a colour and a shape."""
    return name if name in SHAPES else "other"


def marker(family: str) -> Markup:
    """The shape of a family, for legends."""
    return Markup('<svg class="key f-{0}" viewBox="-7 -7 14 14" aria-hidden="true"><path d="{1}"/></svg>').format(
        family, SHAPES[family]
    )


def frontier(figure: Frontier) -> Markup:
    """Quality against a cost on a logarithmic axis; the line joins what nothing beats at less cost."""
    area = Box(46, 26, 528, 290)
    points = figure.points
    detailed = len(points) <= FEW
    low = min(one.quality.low if detailed else one.quality.mean for one in points)
    high = max(one.quality.high if detailed else one.quality.mean for one in points)
    y_ticks = _spread(low, high)
    x_ticks = cost_ticks(figure.cost, min(one.cost for one in points), max(one.cost for one in points))
    x_low, x_high = math.log10(x_ticks[0][0]), math.log10(x_ticks[-1][0])

    def x(cost: float) -> float:
        return area.left + (math.log10(cost) - x_low) / (x_high - x_low) * (area.right - area.left)

    def y(value: float) -> float:
        return area.bottom - (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (area.bottom - area.top)

    parts = _grid(area, [(x(value), text) for value, text in x_ticks], _marks(y, y_ticks))
    parts.append(_text(area.left, 12, metric_title(figure.metric), "axis", "start"))
    parts.append(_text((area.left + area.right) / 2, 326, COSTS[figure.cost], "axis", "middle"))
    steps = sorted((one for one in points if one.on_frontier), key=lambda one: one.cost)
    if len(steps) > 1:
        path = f"M{x(steps[0].cost):.1f} {y(steps[0].quality.mean):.1f}" + "".join(
            f"L{x(one.cost):.1f} {y(one.quality.mean):.1f}" for one in steps[1:]
        )
        parts.append(Markup('<path class="front" d="{}"/>').format(path))
    if detailed:
        parts += [_line(x(one.cost), y(one.quality.low), x(one.cost), y(one.quality.high), "iv") for one in points]
    for one in points:
        parts.append(
            Markup('<use class="p f-{0}" href="#m-{0}" x="{1:.1f}" y="{2:.1f}" data-row="{3}"/>').format(
                family_of(one.family), x(one.cost), y(one.quality.mean), one.row
            )
        )
    parts += _names(area, [(one, x(one.cost), y(one.quality.mean)) for one in points], detailed)
    label = f"{metric_title(figure.metric)} against {COSTS[figure.cost]}, {len(points)} methods. Best for their cost: "
    return _picture(560, 334, label + ", ".join(clean(one.name) for one in steps), parts)


def _names(area: Box, placed: Sequence[tuple[Point, float, float]], every: bool) -> list[Markup]:
    """Names beside their points where there is room; the frontier's first, since those are asked for."""
    taken = [Box(x - 5, y - 5, x + 5, y + 5) for _, x, y in placed]
    names = []
    for one, x, y in sorted(placed, key=lambda each: (not each[0].on_frontier, -each[0].quality.mean)):
        if not (every or one.on_frontier):
            continue
        name = _cut(one.name)
        width = len(name) * LETTER
        for left, base, anchor in (
            (x + 8, y + 4, "start"), (x - 8 - width, y + 4, "end"), (x - width / 2, y - 9, "middle"),
            (x - width / 2, y + 17, "middle"), (x + 7, y - 7, "start"), (x + 7, y + 14, "start"),
            (x - 7 - width, y - 7, "end"), (x - 7 - width, y + 14, "end"),
        ):  # fmt: skip
            box = Box(left, base - 9, left + width, base + 3)
            inside = (
                box.left >= area.left
                and box.right <= area.right + 30
                and box.top >= area.top - 8
                and box.bottom <= area.bottom
            )
            if inside and not any(box.meets(other) for other in taken):
                taken.append(box)
                at = {"start": left, "end": left + width, "middle": left + width / 2}[anchor]
                names.append(_text(at, base, name, "name strong" if one.on_frontier else "name", anchor))
                break
    return names


def settings(figure: Settings) -> Markup:
    """One line a setting: its mean and interval, and a hollow mark for what a paper prints."""
    left = 30 + LETTER * max(len(_cut(step.name)) for step in figure.steps)
    printed = [step.printed for step in figure.steps if step.printed is not None]
    x_ticks = _spread(
        min([step.quality.low for step in figure.steps] + printed),
        max([step.quality.high for step in figure.steps] + printed),
    )
    bottom = 16 + 24 * len(figure.steps)
    area = Box(left, 8, 548, bottom)

    def x(value: float) -> float:
        return area.left + (value - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]) * (area.right - area.left)

    def y(place: int) -> float:
        return 24.0 + 24 * place

    parts = _grid(area, _marks(x, x_ticks), [])
    joined = "L".join(f"{x(step.quality.mean):.1f} {y(place):.1f}" for place, step in enumerate(figure.steps))
    parts.append(Markup('<path class="join" d="M{}"/>').format(joined))
    for place, step in enumerate(figure.steps):
        parts.append(_text(area.left - 10, y(place) + 4, _cut(step.name), "name", "end"))
        parts.append(_line(x(step.quality.low), y(place), x(step.quality.high), y(place), "iv"))
        parts.append(_circle(x(step.quality.mean), y(place), "dot"))
        if step.printed is not None:
            parts.append(
                Markup('<path class="printed" transform="translate({:.1f} {:.1f})" d="M0 -5L5 0L0 5L-5 0Z"/>').format(
                    x(step.printed), y(place)
                )
            )
    parts.append(_text((area.left + area.right) / 2, bottom + 34, metric_title(figure.metric), "axis", "middle"))
    said = "; ".join(f"{clean(step.name)} {step.quality.mean:.4f}" for step in figure.steps)
    return _picture(
        560, bottom + 42, f"{metric_title(figure.metric)} of the settings of {figure.method}: {said}", parts
    )


def curve(figure: Curve) -> Markup:
    """What validation said of each value; the best one marked."""
    area = Box(46, 26, 344, 190)
    xs, ys = [value for value, _ in figure.points], [score for _, score in figure.points]
    x_ticks, y_ticks = _spread(min(xs), max(xs), 5), _spread(min(ys), max(ys), 5)

    def x(value: float) -> float:
        return area.left + (value - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]) * (area.right - area.left)

    def y(value: float) -> float:
        return area.bottom - (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (area.bottom - area.top)

    best, score = max(figure.points, key=lambda one: one[1])
    parts = _grid(area, _marks(x, x_ticks), _marks(y, y_ticks))
    parts.append(_line(x(best), area.top, x(best), area.bottom, "chosen"))
    line = "L".join(f"{x(value):.1f} {y(value_score):.1f}" for value, value_score in figure.points)
    parts.append(Markup('<path class="line" d="M{}"/>').format(line))
    parts += [_circle(x(one), y(value), "dot") for one, value in figure.points]
    parts.append(_text((area.left + area.right) / 2, 226, clean(figure.stage), "axis", "middle"))
    parts.append(_text(area.left, 12, f"{metric_title(figure.metric)} on validation", "axis", "start"))
    label = f"{metric_title(figure.metric)} on validation by {figure.stage}: best {score:.4f} at {best:g}"
    return _picture(360, 234, clean(label), parts)


def critical_difference(figure: CriticalDifference) -> Markup:
    """Demsar's diagram: methods on an axis of average ranks, a bar over those that do not differ."""
    methods = len(figure.ranks)
    left, right, axis = 190.0, 570.0, 52.0
    bars = figure.bars
    half = (methods + 1) // 2
    first_name = axis + 26 + 9 * len(bars)

    def x(rank: float) -> float:
        return left + (rank - 1) / (methods - 1) * (right - left)

    parts = [_line(left, axis, right, axis, "ax")]
    for place in range(1, methods + 1):
        parts += [
            _line(x(place), axis - 5, x(place), axis, "ax"),
            _text(x(place), axis - 10, str(place), "tick", "middle"),
        ]
    width = min(x(1 + figure.test.critical_difference), right) - left
    parts += [
        _line(left, 18, left + width, 18, "cd"), _line(left, 14, left, 22, "cd"),
        _line(left + width, 14, left + width, 22, "cd"),
        _text(left + width + 8, 22, f"CD {figure.test.critical_difference:.2f}", "tick", "start"),
    ]  # fmt: skip
    for place, (name, rank) in enumerate(figure.ranks):
        on_left = place < half
        down = first_name + 20 * (place if on_left else methods - 1 - place)
        edge, anchor = (left - 12, "end") if on_left else (right + 12, "start")
        parts.append(
            Markup('<path class="lead" d="M{0:.1f} {1:.1f}V{2:.1f}H{3:.1f}"/>').format(x(rank), axis, down, edge)
        )
        said = f"{_cut(name, 20)} {rank:.2f}"
        parts.append(_text(edge + (-5 if on_left else 5), down + 4, said, "name", anchor))
    for level, (first, last) in enumerate(bars):
        height = axis + 12 + 9 * level
        parts.append(_line(x(figure.ranks[first][1]) - 4, height, x(figure.ranks[last][1]) + 4, height, "bar"))
    said = ", ".join(f"{clean(name)} {rank:.2f}" for name, rank in figure.ranks)
    label = f"Average ranks over {len(figure.datasets)} data sets: {said}; they differ from "
    return _picture(760, first_name + 20 * half, f"{label}{figure.test.critical_difference:.2f} apart", parts)


def _spread(low: float, high: float, most: int = 6) -> list[float]:
    """Ticks around a range, which may be a single value."""
    if high - low < 1e-9:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    return ticks(low, high, most)


def _marks(along: Callable[[float], float], values: Sequence[float]) -> list[tuple[float, str]]:
    """Places and words of an axis, all with as many decimals as the steps between them need; .05 for 0.05."""
    step = values[1] - values[0]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    words = [f"{value:.{decimals}f}" for value in values]
    shown = [
        word.replace("0.", ".", 1) if word.lstrip("-").startswith("0.") and float(word) else word for word in words
    ]
    return [(along(value), word if float(word) else "0") for value, word in zip(values, shown, strict=True)]


def _grid(area: Box, xs: Iterable[tuple[float, str]], ys: Iterable[tuple[float, str]]) -> list[Markup]:
    parts = []
    for at, text in xs:
        parts += [_line(at, area.top, at, area.bottom, "grid"), _text(at, area.bottom + 16, text, "tick", "middle")]
    for at, text in ys:
        parts += [_line(area.left, at, area.right, at, "grid"), _text(area.left - 8, at + 4, text, "tick", "end")]
    return parts


def _cut(name: str, longest: int = LONGEST) -> str:
    name = clean(name)
    return name if len(name) <= longest else name[: longest - 1] + "…"


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    return Markup('<path class="{}" d="M{:.1f} {:.1f}L{:.1f} {:.1f}"/>').format(kind, x1, y1, x2, y2)


def _circle(x: float, y: float, kind: str) -> Markup:
    return Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="4"/>').format(kind, x, y)


def _text(x: float, y: float, content: str, kind: str, anchor: str) -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
        kind, x, y, anchor, content
    )


def _picture(width: float, height: float, label: str, parts: Sequence[Markup]) -> Markup:
    return Markup('<svg class="figure" viewBox="0 0 {:g} {:g}" role="img" aria-label="{}">{}</svg>').format(
        width, height, escape(label), Markup("").join(parts)
    )
