"""A plan as text: one heading a part, columns aligned, no line over 100 columns."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from recipe_kit.plan.judge import does_not_fit, failed_proofs, gib, problems
from recipe_kit.plan.shape import Plan, Value

WIDTH = 100
_BAR = 40
_TURNS = 6  # turns with a line of their own
_PATH = ("file", "extends", "profile")

# What decides how a run turns out. Whatever a profile or --set changed is shown as well.
_KEYS = (
    "method", "model.id", "model.revision", "model.dtype", "data.train.id", "data.train.path", "data.train.sample",
    "data.formatter.name", "data.train_on", "data.max_length", "data.too_long", "lora.r", "lora.lora_alpha",
    "lora.target_modules", "training.learning_rate", "training.num_train_epochs", "training.max_steps",
    "training.optim", "training.packing", "training.seed",
)  # fmt: skip

Row = tuple[str, ...]


def lines(plan: Plan, *, origins: bool = False) -> list[str]:
    """The plan for a person; with `origins` every value of the recipe, and where it comes from."""
    recipe = plan["recipe"]
    profiles = "".join(f" --profile {name}" for name in recipe["profiles"])
    parts = {
        "Recipe": _recipe(recipe["values"], origins),
        "Rows": _rows(plan),
        "Tokens a row": _lengths(plan),
        "Trained tokens": _trained(plan),
        "Batches": _batches(plan),
        "Steps": _steps(plan),
        "Parameters": _parameters(plan),
        "Disk": _disk(plan),
        "Access": _access(plan),
        "Proofs": _proofs(plan),
        "Quality": _quality(plan),
        "Memory": _memory(plan),
        "Time": _time(plan),
        "Notes": iter(_items("-", plan["notes"])),
    }
    found = [f"Plan of {recipe['name']}: {recipe['source']}{profiles}"]
    for title, body in parts.items():
        shown = [f"  {line}" for line in body]
        if shown:
            found += ["", title, *shown]
    return [line.rstrip() for line in [*found, "", *_verdict(plan)]]


def _verdict(plan: Plan) -> list[str]:
    found = problems(plan)
    if not found:
        return ["Nothing was found that would stop training."]
    numbered = [line for number, text in enumerate(found, 1) for line in _items(f"{number}.", [text])]
    proofs = [proof["name"] for proof in failed_proofs(plan)]
    if proofs:
        numbered += _items("->", [f"to train in spite of proofs: proofs: {{warn: [{', '.join(proofs)}]}}"])
    return ["Training would fail" if len(found) == 1 else f"Training would fail, for {len(found)} reasons",
            *[f"  {line}" for line in numbered]]  # fmt: skip


def _recipe(values: list[Value], origins: bool) -> Iterator[str]:
    chosen = [
        value
        for value in values
        if origins or (value["key"] in _KEYS and value["value"] is not None) or value["kind"] in ("profile", "set")
    ]
    yield from _table(
        [(_cut(value["key"], 36), _value(value["value"], 28), _cut(_origin(value), 30)) for value in chosen]
    )


def _value(value: Any, width: int) -> str:
    """A value as JSON; of a long path the end is shown, of anything else the start."""
    text = json.dumps(value, ensure_ascii=False)
    if isinstance(value, str) and "/" in value and len(text) > width:
        return f"…{text[len(text) - width + 1 :]}"
    return _cut(text, width)


def _origin(value: Value) -> str:
    """Where a value comes from, without the folders before the file."""
    if value["kind"] not in _PATH:
        return value["kind"] if value["kind"] == "default" else "--set"
    profile, _, place = value["origin"].rpartition(" (")
    return ", ".join(part for part in (profile, Path(place.rstrip(")")).name) if part)


def _rows(plan: Plan) -> Iterator[str]:
    if plan["splits"] is None:
        yield from _left_out(plan, "rows")
        return
    table: list[Row] = [("split", "read", "kept", "held out", "dropped", "cut off", "tokens", "trained")]
    for name, split in plan["splits"].items():
        dropped = sum(split["dropped"].values())
        share = split["trained_tokens"] / max(split["tokens"], 1)
        numbers = (split["read"], split["kept"], split["held_out"], dropped, split["truncated"], split["tokens"])
        table.append((name, *(f"{number:,}" for number in numbers), _percent(share)))
    yield from _table(table, right=range(1, 8))
    for name, split in plan["splits"].items():
        for reason, number in sorted(split["dropped"].items(), key=lambda item: -item[1]):
            yield from _items(f"{name}:", [f"{number:,} dropped: {reason}"])
        if merged := split.get("merged_turns"):
            yield from _items(f"{name}:", [f"{merged:,} with turns of one role merged"])
        for kind, number in split.get("redacted", {}).items():
            yield from _items(f"{name}:", [f"{number:,} replaced: {kind}"])


def _lengths(plan: Plan) -> Iterator[str]:
    part = plan["lengths"]
    if part is None:
        return
    most = max(bin["rows"] for bin in part["bins"])
    table: list[Row] = []
    for bin in part["bins"]:
        bar = "█" * max(round(_BAR * bin["rows"] / most), 1 if bin["rows"] else 0)
        mark = "<- data.max_length" if bin["first"] <= part["max_length"] <= bin["last"] else ""
        table.append((f"{bin['first']:,}", f"- {bin['last']:,}", f"{bin['rows']:,}", bar, mark))
    yield from _table(table, right=(0, 2))
    points = "   ".join(f"{name} {length:,}" for name, length in part["quantiles"].items())
    yield f"{points}   data.max_length {part['max_length']:,}"


def _trained(plan: Plan) -> Iterator[str]:
    part = plan["trained"]
    if part is None:
        return
    yield f"{part['trained_tokens']:,} of {part['tokens']:,} tokens are trained ({_percent(part['share'])})"
    first, later = part["turns"][:_TURNS], part["turns"][_TURNS:]
    table: list[Row] = [("trained turn", "rows", "tokens", "of the trained")]
    table += [(str(t["turn"]), f"{t['rows']:,}", f"{t['tokens']:,}", _percent(t["share"])) for t in first]
    if later:
        tokens, share = sum(t["tokens"] for t in later), sum(t["share"] for t in later)
        table.append((f"{_TURNS + 1} to {later[-1]['turn']}", f"{later[0]['rows']:,}", f"{tokens:,}", _percent(share)))
    yield from _table(table, right=(1, 2, 3))


def _batches(plan: Plan) -> Iterator[str]:
    part, rows = plan["batches"], plan["lengths"]
    if part is None or rows is None:
        yield from _left_out(plan, "batches")
        return
    packed, instead = part["packed"], part["packed_instead"]
    if packed:
        yield f"packed ({packed['strategy']}): {rows['rows']:,} rows become {packed['rows']:,}"
        slots = f"{packed['rows']:,} x {rows['max_length']:,}"
        yield f"{_percent(packed['filled_share'])} of their {slots} slots are filled"
    if part["padding_share"] or not packed:
        yield f"{_percent(part['padding_share'])} of each batch is padding, about"
    if instead:
        about = "about " if instead["estimated"] else ""
        yield (
            f"training.packing: true would make {about}{instead['rows']:,} rows, {_percent(instead['filled_share'])} "
            "filled, without padding"
        )


def _steps(plan: Plan) -> Iterator[str]:
    part = plan["steps"]
    if part is None:
        yield from _left_out(plan, "batches")
        return
    processes = f"{part['processes']} process{'es' if part['processes'] > 1 else ''}"
    table: list[Row] = [
        (
            "effective batch",
            f"{part['effective_batch_size']:,} rows = {part['rows_per_device']} a device x "
            f"{part['accumulation']} accumulated x {processes}",
        )
    ]
    if part["steps_per_epoch"] is not None:
        table.append(("an epoch", _in_steps(part["steps_per_epoch"])))
    epochs = "" if part["epochs"] is None else f", {part['epochs']:.3g} epoch{'' if part['epochs'] == 1 else 's'}"
    table.append(("the run", f"{_in_steps(part['steps'])}{epochs}"))
    trained = f"{part['trained_tokens_per_step']:,} trained"
    table.append(("a step", f"{part['tokens_per_step']:,} tokens, {trained}, on average"))
    yield from _table(table)


def _parameters(plan: Plan) -> Iterator[str]:
    part = plan["parameters"]
    if part is None:
        yield from _left_out(plan, "parameters")
        return
    table: list[Row] = [("base model", f"{part['base']:,}")]
    if part["total"] != part["base"]:
        table.append(("with adapter", f"{part['total']:,}"))
    table.append(("trained", f"{part['trainable']:,} ({100 * part['share']:.2f} %)"))
    table.append(("saved weights", gib(part["saved_bytes"])))
    yield from _table(table)


def _in_steps(number: int) -> str:
    return f"{number:,} step{'' if number == 1 else 's'}"


def _disk(plan: Plan) -> Iterator[str]:
    if plan["disk"] is None:
        yield from _left_out(plan, "disk")
        return
    table: list[Row] = []
    for part in plan["disk"]:
        table.append((_home(part["folder"]), gib(part["needed_bytes"]), f"needed of {gib(part['free_bytes'])} free"))
        for use in part["uses"]:
            table.append((f"  {use['what']}", gib(use["bytes"]), "about" if use["estimated"] else ""))
    yield from _table([(_cut(what, 60), size, words) for what, size, words in table], right=(1,))


def _access(plan: Plan) -> Iterator[str]:
    for finding in plan["access"] or ():
        yield from _items(f"{_word(finding['ok'])}  {finding['what']}:", [finding["detail"]])


def _proofs(plan: Plan) -> Iterator[str]:
    part = plan["proofs"]
    if part is None:
        yield from _left_out(plan, "proofs")
        return
    streamed = any(value["key"] == "data.streaming" and value["value"] for value in plan["recipe"]["values"])
    everything = "the first rows of each stream" if streamed else "all rows"
    looked_at = everything if part["sample"] is None else f"at most {part['sample']:,} rows of each split"
    yield f"on {looked_at}; a proof that looks at fewer says so"
    width = max((len(verdict["name"]) for verdict in part["verdicts"]), default=0)
    for verdict in part["verdicts"]:
        word = "warned" if verdict["ok"] is False and not verdict["fatal"] else _word(verdict["ok"])
        detail = verdict["detail"] + (f"; {verdict['remedy']}" if not verdict["ok"] and verdict["remedy"] else "")
        yield from _items(f"{word:<11}  {verdict['name']:<{width}} ", [detail])


def _quality(plan: Plan) -> Iterator[str]:
    for line in plan["quality"]["lines"] if plan["quality"] else ():
        yield from _items("-", [line])


def _memory(plan: Plan) -> Iterator[str]:
    part = plan["memory"]
    if part is None:
        yield from _left_out(plan, "memory")
        return
    known = f"within about {100 * part['error']:.0f} %"
    yield f"{gib(part['peak_bytes'])} at the peak ({part['phase']}), {known}: {part['tokens']:,} tokens a micro-batch"
    if part["processes"] > 1:
        yield f"  on each of {part['processes']} GPUs, strategy {part['strategy']}"
    shown = [f"{name} {gib(size)}" for name, size in part["parts"].items() if size]
    yield from _items(" ", [", ".join(shown)])
    how = "computed twice (gradient checkpointing)" if part["checkpointing"] else "kept"
    fused = ", fused layers" if part["fused_layers"] else ""
    yield from _items(" ", [f"activations {how}, {part['optim']}, attention {part['attention']}{fused}"])
    if part["host_bytes"]:
        yield f"{gib(part['host_bytes'])} more of each process in the machine's memory"
    if part["paged_bytes"]:
        yield f"{gib(part['paged_bytes'])} more of paged optimiser states, on the card while there is room"
    if part["calibrated_peak_bytes"]:
        yield f"measured here with random weights: {gib(part['calibrated_peak_bytes'])}"
    if part["fits"]:
        room = f"{gib(part['needed_bytes'])} of {gib(part['card_bytes'])}, CUDA's own share included"
        yield f"fits on {part['card']}: {room}"
    else:
        close = "" if part["hopeless"] else "may not fit: "
        yield from _items("->", [close + does_not_fit(part).removeprefix("memory: ")])


def _time(plan: Plan) -> Iterator[str]:
    part = plan["time"]
    if part is None:
        yield from _left_out(plan, "time")
        return
    cost = f", {part['cost']:,.2f} at {part['price_per_hour']:g} an hour" if part["cost"] is not None else ""
    yield f"{_duration(part['hours'])} of training steps{cost}"
    speed = f"{part['tokens_per_second']:,.0f} tokens/s, {part['seconds_per_step']:.2g} s a step"
    yield from _items(speed + ";", [part["where"]])


def _duration(hours: float) -> str:
    if hours >= 1:
        return f"{hours:.1f} hours"
    return f"{60 * hours:.0f} minutes" if hours >= 1 / 60 else f"{3600 * hours:.0f} seconds"


def _left_out(plan: Plan, part: str) -> Iterator[str]:
    """Why a part is missing: it failed, and stands below among the problems, or it was not looked at."""
    why = plan["not_looked_at"].get(part)
    failed = any(error["part"] == part for error in plan["errors"])
    if why:
        yield from _items("not looked at:", [why])
    elif failed:
        yield "failed: see below"


def _word(ok: bool | None) -> str:
    return {True: "ok", False: "failed", None: "not checked"}[ok]


def _percent(share: float) -> str:
    """Whole per cent; one decimal where that would read 0 or 100 and is not."""
    text = f"{100 * share:.0f}"
    return f"{100 * share:.1f} %" if text in ("0", "100") and share not in (0, 1) else f"{text} %"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _home(folder: str) -> str:
    home = str(Path.home())
    return f"~{folder.removeprefix(home)}" if home != "/" and folder.startswith(f"{home}/") else folder


def _items(mark: str, texts: Iterable[str]) -> Iterator[str]:
    """Sentences behind a mark, broken at spaces, further lines indented by the width of the mark."""
    start = f"{mark} "
    for text in texts:
        yield from textwrap.wrap(
            text, WIDTH - 2, initial_indent=start, subsequent_indent=" " * len(start), break_on_hyphens=False
        ) or [mark]


def _table(rows: Iterable[Row], right: Iterable[int] = ()) -> Iterator[str]:
    """Columns two spaces apart, those in `right` with their numbers to the right."""
    rows, to_the_right = list(rows), set(right)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.rjust(width) if index in to_the_right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
