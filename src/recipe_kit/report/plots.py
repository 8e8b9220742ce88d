"""Curves and histograms by matplotlib: as SVG that takes the colours of the page, and as PNG for papers.

Figures are drawn in the colours of paper; in an SVG each of these is replaced by a variable of the page, so that one
drawing serves light and dark. Lines differ in dashes and markers too, and text stays text.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipe_kit.errors import RunError
from recipe_kit.page import escape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points = Sequence[tuple[float, float]]  # (x, y); NaN is a gap
MAX_POINTS = 500
FEW_POINTS = 60  # up to so many are marked one by one

_INK, _FAINT, _GRID = "#1f2328", "#59636e", "#d1d9e0"
_SERIES = ("#0a58b9", "#b1470a")
_VARIABLES = {_INK: "ink", _FAINT: "faint", _GRID: "rule", _SERIES[0]: "series-1", _SERIES[1]: "series-2"}
_STYLES = (("-", "o"), ((0, (4, 2)), "s"))
_SIZE = (4.6, 2.9)  # inches; small, so that text can still be read where a phone shrinks the figure


@dataclass(frozen=True)
class Curve:
    """One line of a plot."""

    label: str
    points: Points


@dataclass(frozen=True)
class Plot:
    """What a plot shows, and a sentence or two that say the same in words."""

    name: str  # file name, and start of the ids inside the SVG
    title: str
    description: str
    draw: Callable[[Axes], None]


def require_matplotlib() -> None:
    """Raises RunError when matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise RunError("a report needs matplotlib for its plots: pip install matplotlib") from error


def curves(
    name: str, title: str, description: str, x_label: str, y_label: str, lines: Sequence[Curve], *, from_zero: bool
) -> Plot:
    """Lines over a common x axis. Of a long line means are drawn, and behind them a thinned one with its extremes."""

    def draw(axes: Axes) -> None:
        from matplotlib.ticker import MaxNLocator

        for curve, color, (dashes, marker) in zip(lines, _SERIES, _STYLES, strict=False):
            points = curve.points
            if len(points) > MAX_POINTS:
                axes.plot(*_columns(thin(points)), color=color, linewidth=0.7, alpha=0.35)
                points = means(points)
            marked = marker if len(points) <= FEW_POINTS else ""
            axes.plot(
                *_columns(points), color=color, linestyle=dashes, marker=marked, markersize=3, linewidth=1.4,
                label=curve.label,
            )  # fmt: skip
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        highest = max((y for curve in lines for _, y in curve.points if not math.isnan(y)), default=0)
        if from_zero and highest > 0:
            axes.set_ylim(0, 1.05 * highest)
        if len(lines) > 1:
            axes.legend(frameon=False, labelcolor=_INK)

    if any(len(curve.points) > MAX_POINTS for curve in lines):
        description += (
            " The line shows means, a hundred in all; the pale one behind it keeps the lowest and the highest."
        )
    return Plot(name, title, description, draw)


def histogram(
    name: str, title: str, description: str, edges: Sequence[float], counts: Sequence[tuple[str, Sequence[float]]]
) -> Plot:
    """Outlines of one or two histograms over the same edges, of which the first is filled."""

    def draw(axes: Axes) -> None:
        for place, ((label, values), color, (dashes, _)) in enumerate(zip(counts, _SERIES, _STYLES, strict=False)):
            if place == 0:
                axes.stairs(values, edges, fill=True, color=color, alpha=0.25)
            axes.stairs(values, edges, color=color, linestyle=dashes, linewidth=1.4, label=label)
        axes.set_xlabel("tokens in a row")
        axes.set_ylabel("rows")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, labelcolor=_INK)

    return Plot(name, title, description, draw)


def thin(points: Points) -> Points:
    """At most MAX_POINTS points: the least and the greatest of each stretch, in order, with the first and the last."""
    if len(points) <= MAX_POINTS:
        return points
    inner = points[1:-1]
    stretches = (MAX_POINTS - 2) // 2
    kept = [points[0]]
    for index in range(stretches):
        stretch = inner[index * len(inner) // stretches : (index + 1) * len(inner) // stretches]
        real = [place for place, (_, y) in enumerate(stretch) if not math.isnan(y)] or [0]
        extremes = {min(real, key=lambda place: stretch[place][1]), max(real, key=lambda place: stretch[place][1])}
        kept += [stretch[place] for place in sorted(extremes)]
    return [*kept, points[-1]]


def means(points: Points) -> Points:
    """A hundred means of stretches of equal length, each in the middle of its own; NaN counts for nothing."""
    found = []
    for index in range(100):
        stretch = points[index * len(points) // 100 : (index + 1) * len(points) // 100]
        real = [y for _, y in stretch if not math.isnan(y)]
        found.append((stretch[len(stretch) // 2][0], sum(real) / len(real) if real else math.nan))
    return found


def svg(plot: Plot) -> str:
    """The plot for a page: no id that another plot could have, named and described for those who do not see it."""
    with _settings(plot.name):
        file = io.StringIO()
        _figure(plot).savefig(
            file, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    text = file.getvalue()
    body = text[text.index(">", text.index("<svg")) + 1 :]
    view_box = re.search(r'viewBox="([^"]+)"', text)
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body).replace("xlink:href", "href")
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{plot.name}-", body)
    for color, variable in _VARIABLES.items():
        body = body.replace(color, f"var(--{variable})")
    opening = (
        f'<svg class="plot" role="img" viewBox="{view_box[1] if view_box else ""}" '
        f'aria-labelledby="{plot.name}-title {plot.name}-desc">'
        f'<title id="{plot.name}-title">{escape(plot.title)}</title>'
        f'<desc id="{plot.name}-desc">{escape(plot.description)}</desc>'
    )
    return opening + re.sub(r"\s*\n\s*", "\n", body).strip()


def write_png(plot: Plot, folder: Path) -> Path:
    """The plot on white, at 300 dots an inch, as `folder/NAME.png`. Raises OSError when it cannot be written."""
    path = folder / f"{plot.name}.png"
    with _settings(plot.name):
        _figure(plot).savefig(path, dpi=300, facecolor="white")
    return path


def _columns(points: Points) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _figure(plot: Plot) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=_GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    plot.draw(axes)
    return figure


def _settings(salt: str) -> AbstractContextManager[None]:
    """matplotlib's own defaults with ours on top, whatever its configuration on this machine says."""
    import matplotlib

    # `backend` stays as it is: nothing here opens a window.
    defaults: dict[str, Any] = {str(k): value for k, value in matplotlib.rcParamsDefault.items() if k != "backend"}
    ours: Any = {
        **defaults,
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
        "text.parse_math": False,
        "font.size": 10,
        "text.color": _INK,
        "axes.labelcolor": _INK,
        "axes.edgecolor": _FAINT,
        "xtick.color": _FAINT,
        "ytick.color": _FAINT,
        "xtick.labelcolor": _INK,
        "ytick.labelcolor": _INK,
        "axes.formatter.useoffset": False,
        "axes.formatter.limits": (-4, 6),
    }
    return matplotlib.rc_context(ours)
