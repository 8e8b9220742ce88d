"""The chart of the README, drawn from results of run.py: useful tokens a second, and the card's ceiling.

    python benchmarks/speed/chart.py result.json --out docs/images/speed.svg
    python benchmarks/speed/chart.py growth.json --growth --out docs/images/growth.svg

One drawing serves light and dark: the SVG carries the colours of both and takes those that the reader's system asks
for. What it shows is also told in words, for those who do not see it.
"""

from __future__ import annotations

import argparse
import io
import json
import re
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Entry = dict[str, Any]

# What is drawn -> the name of a colour, and the colour on light and on dark.
INK, FAINT, RULE, KIT, OTHER, LIMIT = "#101010", "#202020", "#303030", "#404040", "#505050", "#606060"
COLOURS = {
    INK: ("ink", "#1f2328", "#f0f6fc"),
    FAINT: ("faint", "#59636e", "#9198a1"),
    RULE: ("rule", "#d1d9e0", "#3d444d"),
    KIT: ("kit", "#0a58b9", "#4c9aff"),
    OTHER: ("other", "#8b949e", "#6e7681"),
    LIMIT: ("limit", "#b1470a", "#f0883e"),
}
BAR = 0.34  # inches
LABELS = {"length": "tokens of a row", "size": "parameters, billions", "step": "tokens of a step"}
DASHES = ("-", (0, (4, 2)), (0, (1, 1.5)), "-.", ":")
MARKERS = ("o", "s", "^", "D", "v")


def speeds(entries: list[Entry]) -> tuple[Figure, str]:
    """Bars for every configuration of each work, the ceiling as a line; and the same in words."""
    from matplotlib.figure import Figure

    entries = [entry for entry in entries if not entry.get("series")]
    ran = [[each for each in entry["configurations"].values() if each.get("summary")] for entry in entries]
    entries = [entry for entry, each in zip(entries, ran, strict=True) if each]
    ran = [each for each in ran if each]
    counts = [len(each) for each in ran]
    figure = Figure(figsize=(7.2, sum(counts) * BAR + 0.8 * len(entries)), layout="constrained")
    panels = figure.subplots(len(entries), 1, squeeze=False, sharex=True, height_ratios=counts)[:, 0]
    words = []
    for axes, entry, configurations in zip(panels, entries, ran, strict=True):
        words.append(_bars(axes, entry, configurations))
    panels[-1].set_xlim(0, 1.12 * max(axes.dataLim.x1 for axes in panels))
    panels[-1].set_xlabel("useful tokens a second")
    return figure, " ".join(words)


def _bars(axes: Axes, entry: Entry, configurations: list[dict[str, Any]]) -> str:
    from matplotlib.ticker import MaxNLocator

    values = [each["summary"]["tokens_per_second"] for each in configurations]
    titles = [each["title"].replace("`", "") for each in configurations]
    colours = [KIT if title.startswith("recipe-kit") else OTHER for title in titles]
    limit = None
    if entry["ceiling_tflops"]:
        limit = entry["ceiling_tflops"] * 1e12 / (entry["flop_per_parameter"] * entry["parameters"])
    axes.barh(range(len(values)), values, color=colours, height=0.68)
    for place, value in enumerate(values):
        axes.annotate(f"{value:,.0f}", (value, place), (4, 0), textcoords="offset points", va="center", fontsize=9)
    if limit:
        axes.axvline(limit, color=LIMIT, linewidth=1.2, linestyle=(0, (4, 2)))
        axes.annotate(
            "ceiling",
            (limit, len(values) - 1),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=LIMIT,
        )
    axes.set_yticks(range(len(values)), titles)
    axes.invert_yaxis()
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_title(entry["title"], loc="left", fontsize=10, fontweight="bold", color=INK)
    axes.grid(axis="x", color=RULE, linewidth=0.7)
    told = "; ".join(f"{title}: {value:,.0f}" for title, value in zip(titles, values, strict=True))
    return f"{entry['title']}, in useful tokens a second. {told}{f'; ceiling: {limit:,.0f}' if limit else ''}."


def growing(entries: list[Entry]) -> tuple[Figure, str]:
    """Speed above, peak memory below, over what grows; a line a configuration."""
    from matplotlib.figure import Figure

    series = [name for name in LABELS if any(entry.get("series") == name for entry in entries)]
    figure = Figure(figsize=(2.9 * len(series) + 0.8, 4.6), layout="constrained")
    panels = figure.subplots(2, len(series), squeeze=False)
    words = []
    for column, name in enumerate(series):
        points = sorted((each for each in entries if each.get("series") == name), key=lambda each: float(each["x"]))
        words.append(_lines(panels[0, column], panels[1, column], name, points))
    panels[0, 0].set_ylabel("tokens a second")
    panels[1, 0].set_ylabel("peak GiB allocated")
    if figure.axes:
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, labelcolor=INK)
    return figure, " ".join(words)


def _lines(above: Axes, below: Axes, name: str, points: list[Entry]) -> str:
    configurations = {key: each["title"] for entry in points for key, each in entry["configurations"].items()}
    told = []
    scale = 1e9 if name == "size" else 1
    for number, (key, title) in enumerate(configurations.items()):
        title = title.replace("`", "")
        found = [
            (entry["x"] / scale, summary["tokens_per_second"], (summary["peak_bytes"] or 0) / 2**30)
            for entry in points
            if (summary := (entry["configurations"].get(key) or {}).get("summary"))
        ]
        style = {
            "color": KIT if key == "kit" else OTHER,
            "linestyle": DASHES[number],
            "marker": MARKERS[number],
            "markersize": 4,
        }
        for axes, place in ((above, 1), (below, 2)):
            axes.plot([each[0] for each in found], [each[place] for each in found], label=title, **style)
        told.append(f"{title} " + ", ".join(f"{speed:,.0f} at {x:,.4g}" for x, speed, _ in found))
    unit = 1024 if name == "length" else 1000
    for axes in (above, below):
        axes.set_xscale("log", base=2)
        axes.set_xticks([entry["x"] / scale for entry in points])
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.3g}" if value < 1000 else f"{value / unit:.2g}k")
        axes.minorticks_off()
        axes.tick_params(axis="x", labelrotation=45)
        axes.set_ylim(0, 1.08 * max(axes.dataLim.y1, 1e-9))
        axes.grid(color=RULE, linewidth=0.7)
    if name == "size":  # a model of 50 times the size is that much slower: ratios are what can be seen
        above.set_ylim(auto=True)
        above.set_yscale("log")
    above.yaxis.set_major_formatter(lambda value, _: f"{value / 1000:,.0f}k" if value >= 1000 else f"{value:,.0f}")
    below.set_xlabel(LABELS[name])
    return f"Useful tokens a second over {LABELS[name]}: {'; '.join(told)}."


def svg(figure: Figure, title: str, description: str) -> str:
    """The figure with text as text, a name and a description, and colours for light and dark."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = file.getvalue()
    body = text[text.index(">", text.index("<svg")) + 1 :]
    view_box = re.search(r'viewBox="([^"]+)"', text)
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    for drawn, (name, light, _) in COLOURS.items():
        body = body.replace(drawn, f"var(--{name}, {light})")
    light, dark = ("; ".join(f"--{each[0]}: {each[place]}" for each in COLOURS.values()) for place in (1, 2))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" role="img" '
        f'viewBox="{view_box[1] if view_box else ""}" aria-labelledby="title desc">\n'
        f'<title id="title">{escape(title)}</title>\n<desc id="desc">{escape(description)}</desc>\n'
        f"<style>svg {{ {light}; font-family: system-ui, sans-serif }} * {{ stroke-linejoin: round }}\n"
        f"@media (prefers-color-scheme: dark) {{ svg {{ {dark} }} }}</style>\n" + body.strip() + "\n"
    )


def draw(entries: list[Entry], *, growth: bool = False) -> str:
    """The chart as SVG; the same for the same result."""
    import matplotlib

    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "speed",
        "font.size": 10,
        "text.color": INK,
        "text.parse_math": False,
        "axes.labelcolor": INK,
        "axes.edgecolor": FAINT,
        "xtick.color": FAINT,
        "ytick.color": FAINT,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
    }
    with matplotlib.rc_context(settings):
        figure, words = growing(entries) if growth else speeds(entries)
        title = "How speed and memory grow" if growth else "Useful tokens a second on one GPU"
        return svg(figure, title, words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--works", nargs="+", help="only these works, in this order")
    options = parser.parse_args()
    entries = json.loads(options.result.read_text(encoding="utf-8"))["works"]
    if options.works:
        named = {entry["name"]: entry for entry in entries}
        entries = [named[name] for name in options.works]
    options.out.write_text(draw(entries, growth=options.growth), encoding="utf-8")


if __name__ == "__main__":
    main()
