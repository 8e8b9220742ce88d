"""What a result says: medians, ratios, shares of the ceiling, and the tables for people."""

from __future__ import annotations

import statistics
from typing import Any

Entry = dict[str, Any]
COLUMNS = (
    "configuration",
    "useful tok/s",
    "lowest to highest",
    "tokens a step",
    "peak GiB",
    "of the ceiling",
    "kit is",
    "must reach",
)
SERIES = {"length": "tokens of a row", "size": "parameters", "step": "tokens of a step"}


def summarise(entry: Entry) -> None:
    """Write `summary` into every configuration that ran, and `ceiling_tflops` and `reached` into the work's entry."""
    ceilings = [each["tflops"] for each in entry["ceilings"] if "tflops" in each]
    entry["ceiling_tflops"] = statistics.median(ceilings) if ceilings else None
    for configuration in entry["configurations"].values():
        ran = [each for each in configuration["rounds"] if "tokens_per_second" in each]
        configuration["summary"] = _summary(ran, entry) if ran else None
    kit = _speed(entry, "kit")
    entry["kit_times"] = {
        name: kit / other
        for name in entry["configurations"]
        if kit and name != "kit" and (other := _speed(entry, name))
    }
    entry["reached"] = _reached(entry)


def _summary(ran: list[dict[str, Any]], entry: Entry) -> dict[str, Any]:
    speeds = [each["tokens_per_second"] for each in ran]
    speed, ceiling = statistics.median(speeds), entry["ceiling_tflops"]
    flop = entry["flop_per_parameter"] * entry["parameters"]
    peaks = [each["peak_bytes"] for each in ran if each.get("peak_bytes")]
    return {
        "tokens_per_second": speed,
        "lowest": min(speeds),
        "highest": max(speeds),
        "rounds": len(ran),
        "tokens_per_step": statistics.median(each["tokens_per_step"] for each in ran),
        "step_seconds": statistics.median(each["step_seconds"] for each in ran),
        "peak_bytes": max(peaks) if peaks else None,
        "share_of_ceiling": speed * flop / (ceiling * 1e12) if ceiling else None,
    }


def _speed(entry: Entry, name: str) -> float | None:
    summary = (entry["configurations"].get(name) or {}).get("summary")
    return summary["tokens_per_second"] if summary else None


def _reached(entry: Entry) -> dict[str, bool | None]:
    """Each thing the kit must reach; None where what it is compared with did not run."""
    summary = (entry["configurations"].get("kit") or {}).get("summary")
    must = entry["must"]
    if not summary:
        return {}
    found: dict[str, bool | None] = {}
    if must["tokens_per_second"] or must["share"]:
        fast = bool(must["tokens_per_second"]) and summary["tokens_per_second"] >= must["tokens_per_second"]
        share = summary["share_of_ceiling"]
        found["speed"] = fast or bool(must["share"] and share and share >= must["share"])
    for name, times in must["times"].items():
        measured = entry["kit_times"].get(name)
        found[f"times {name}"] = None if measured is None else measured >= times
    if must["peak_gb"]:
        peak = summary["peak_bytes"]
        found["peak"] = None if peak is None else peak < must["peak_gb"] * 1e9
    return found


def markdown(result: dict[str, Any]) -> str:
    """A section for each work, one for each series that grows, and where it was measured."""
    entries = result["works"]
    parts = [_work(entry) for entry in entries if not entry.get("series")]
    for series in SERIES:
        points = [entry for entry in entries if entry.get("series") == series]
        parts += [_growth(series, points)] if points else []
    return "\n\n".join([*parts, _where(entries)])


def _work(entry: Entry) -> str:
    ceiling = entry["ceiling_tflops"]
    limit = f"{ceiling * 1e12 / (entry['flop_per_parameter'] * entry['parameters']):,.0f}" if ceiling else "unknown"
    lines = [
        f"### {entry['title']}",
        "",
        f"{entry['rows_per_step']} rows a step of {_lengths(entry)}; ceiling {ceiling or 0:,.4g} TFLOP/s, which over "
        f"{entry['flop_per_parameter']}N is {limit} tok/s.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|---" * len(COLUMNS) + "|",
    ]
    for name, configuration in entry["configurations"].items():
        lines.append(_line(entry, name, configuration))
    return "\n".join(lines)


def _line(entry: Entry, name: str, configuration: dict[str, Any]) -> str:
    summary = configuration.get("summary")
    if not summary:
        reason = (configuration["failed"] or "not run").replace("|", "/")
        return f"| {configuration['title']} | did not run: {reason[:160]} |" + " |" * (len(COLUMNS) - 2)
    times = entry["kit_times"].get(name)
    cells = [
        configuration["title"] + _batch(configuration["settings"]) + _failed_later(configuration),
        f"{summary['tokens_per_second']:,.0f}",
        f"{summary['lowest']:,.0f} to {summary['highest']:,.0f}",
        f"{summary['tokens_per_step']:,.0f}",
        f"{summary['peak_bytes'] / 2**30:.1f}" if summary["peak_bytes"] else "",
        f"{summary['share_of_ceiling']:.1%}" if summary["share_of_ceiling"] else "",
        f"{times:.1f} × as fast" if times else "",
        _must(entry) if name == "kit" else "",
    ]
    return "| " + " | ".join(cells) + " |"


def _failed_later(configuration: dict[str, Any]) -> str:
    reason = configuration["failed"]
    return f"; failed in round {len(configuration['rounds'])}: {reason[:80]}".replace("|", "/") if reason else ""


def _batch(settings: dict[str, Any]) -> str:
    """The settings a person would want to know of, in brackets."""
    if "per_device_train_batch_size" not in settings:
        return ""
    batch = settings["per_device_train_batch_size"]
    what = ("block" if settings.get("packing") else "row") + ("s" if batch > 1 else "")
    words = [f"{batch} {what} × {settings['gradient_accumulation_steps']}"]
    words += ["packed"] if settings.get("packing") else []
    words += ["by length"] if settings.get("train_sampling_strategy") else []
    words += ["checkpointing"] if settings.get("gradient_checkpointing") else []
    return f" ({', '.join(words)})"


def _must(entry: Entry) -> str:
    must, reached = entry["must"], entry["reached"]
    marks = {True: "yes", False: "no", None: "not measured"}
    fast = [f"{must['tokens_per_second']:,.0f} tok/s"] if must["tokens_per_second"] else []
    fast += [f"{must['share']:.0%} of the ceiling"] if must["share"] else []
    parts = [f"{' or '.join(fast)}: {marks[reached['speed']]}"] if fast else []
    parts += [f"{times:g} × {name}: {marks[reached[f'times {name}']]}" for name, times in must["times"].items()]
    parts += [f"under {must['peak_gb']:g} GB: {marks[reached['peak']]}"] if must["peak_gb"] else []
    return "; ".join(parts)


def _lengths(entry: Entry) -> str:
    if entry["fixed_length"]:
        return f"{entry['fixed_length']:,} tokens"
    return f"{entry['rows']['tokens'] / entry['rows']['count']:,.0f} tokens on average, {entry['longest']:,} at most"


def _growth(series: str, points: list[Entry]) -> str:
    names = {name: each["title"] for entry in points for name, each in entry["configurations"].items()}
    heads = [f"{title}: {what}" for title in names.values() for what in ("tok/s", "peak GiB")]
    lines = [
        f"### As {SERIES[series]} grow",
        "",
        f"{points[0]['title']}." if series != "size" else "LoRA r=16 on all linear layers.",
        "",
        f"| {SERIES[series]} | {' | '.join(heads)} |",
        "|---|" + "---|" * len(heads),
    ]
    for entry in sorted(points, key=lambda entry: float(entry["x"])):
        cells = []
        for name in names:
            summary = (entry["configurations"].get(name) or {}).get("summary")
            cells.append(f"{summary['tokens_per_second']:,.0f}" if summary else "did not run")
            cells.append(f"{summary['peak_bytes'] / 2**30:.1f}" if summary and summary["peak_bytes"] else "")
        lines.append(f"| {entry['x']:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _where(entries: list[Entry]) -> str:
    """Machine, date and versions; once, where all works were measured alike."""
    told = []
    for entry in entries:
        versions = {
            name: _versions(configuration["rounds"]) for name, configuration in entry["configurations"].items()
        }
        groups: dict[str, list[str]] = {}
        for name, text in versions.items():
            if text:
                groups.setdefault(text, []).append(name)
        machine, rounds = entry["machine"], entry["options"]["rounds"]
        cards = "; ".join(machine.get("cards", [])) or "no GPU"
        text = f"Recorded {entry['recorded']} on {cards}, {machine['cores']} cores, {_count(rounds)}. "
        told.append(text + " ".join(f"{', '.join(names)}: {text}." for text, names in groups.items()))
    return "\n\n".join(dict.fromkeys(told))


def _count(rounds: int) -> str:
    return "one round" if rounds == 1 else f"medians of {rounds} rounds"


def _versions(rounds: list[dict[str, Any]]) -> str:
    found: dict[str, str] = next((each["versions"] for each in rounds if "versions" in each), {})
    return ", ".join(f"{name} {version}" for name, version in found.items())
