"""The parts of the page that say how the scores came about: training, data, proofs, recipe, environment."""

from __future__ import annotations

import shlex
from pathlib import PurePath
from typing import Any

from recipe_kit import run_dir
from recipe_kit.page import escape, table
from recipe_kit.report import curves, plots, words
from recipe_kit.report.files import Json, Record, finite, items, section
from recipe_kit.report.results import details, facts, flat, plain
from recipe_kit.report.state import hardware, not_finite

TABLE_ROWS = 100  # of the numbers behind the curves


def training(record: Record) -> str:
    """Curves, their numbers, and what the training amounted to."""
    drawn = curves.training_plots(record)
    header, rows = curves.numbers(record, limit=TABLE_ROWS)
    behind = table(header, rows, caption=f"Logged steps{'' if len(record.log) <= TABLE_ROWS else ', thinned'}")
    known = section(record.info, "training")
    amounts = {
        "steps": known.get("steps"),
        "epochs": known.get("epochs"),
        "rows a step": known.get("effective_batch_size"),
        "mean training loss": known.get("train_loss"),
        "last training loss": known.get("final_loss"),
        "tokens read": known.get("tokens"),
        "tokens a second": known.get("tokens_per_second"),
        "time in training": _given(known.get("seconds"), words.duration),
        "time in all, with loading and evaluation": _given(known.get("wall_seconds"), words.duration),
        "peak memory": _given(known.get("peak_memory_bytes"), words.size),
        "resumed at step": known.get("resumed_at_step"),
        "rows streamed": known.get("streamed_rows"),
    }
    wrong = "".join(f'<p class="note worse">{escape(text)}</p>' for text in not_finite(record))
    if not record.log:
        return "<p>No step was logged yet.</p>" + facts(amounts, "Training in numbers")
    return "\n".join(
        part
        for part in (wrong, figures(drawn), details("The numbers behind the curves", behind), _amounts(amounts))
        if part
    )


def figures(drawn: list[plots.Plot]) -> str:
    """Plots side by side where there is room, each with the sentence that says the same."""
    inner = "\n".join(
        f"<figure>\n{plots.svg(plot)}\n<figcaption><strong>{escape(plot.title)}.</strong> "
        f"{escape(plot.description)}</figcaption>\n</figure>"
        for plot in drawn
    )
    return f'<div class="figures">\n{inner}\n</div>' if drawn else ""


def _amounts(amounts: dict[str, Any]) -> str:
    return facts(amounts, "Training in numbers") or "<p>The totals are written when training has ended.</p>"


def data(record: Record) -> str:
    """Sources, counts and lengths of the rows, and why some were dropped."""
    splits = section(record.info, "data", "splits")
    if not splits:
        return "<p>Nothing is recorded of the rows.</p>"
    counts, reasons, sources = [], [], []
    for name in splits:
        found = section(splits, name)
        dropped = section(found, "dropped")
        tokens, trained = finite(found.get("tokens")), finite(found.get("trained_tokens"))
        share = f"{100 * trained / tokens:.0f} %" if trained <= tokens and tokens > 0 else "—"
        counts.append([
            name,
            *(words.count(found.get(key)) for key in ("read", "kept")),
            words.count(sum(map(finite, dropped.values()))),
            *(words.count(found.get(key)) for key in ("truncated", "tokens", "trained_tokens")),
            share,
        ])  # fmt: skip
        reasons += [[name, words.count(number), str(reason)] for reason, number in dropped.items()]
        reasons += _changes(name, found)
        sources += [[name, plain(source)] for source in items(found, "sources")]
        sources.append([name, f"content hash {found.get('content_sha256', 'not recorded')}"])
    header = ["split", "read", "used", "dropped", "cut off", "tokens", "trained tokens", "share trained"]
    parts = [
        table(header, counts, caption="Rows and tokens"),
        table(["split", "rows", "what was done"], reasons, caption="Rows dropped or changed") if reasons else "",
        figures(curves.length_plots(record)),
        details("Sources and hashes", table(["split", "source"], sources, caption="Where the rows come from")),
    ]
    return "\n".join(part for part in parts if part)


def _changes(name: str, found: Json) -> list[list[str]]:
    changes = [[name, words.count(found["held_out"]), "held out of training"]] if found.get("held_out") else []
    changes += [[name, words.count(found["merged_turns"]), "turns merged"]] if found.get("merged_turns") else []
    return changes + [
        [name, words.count(number), f"{kind} replaced"] for kind, number in section(found, "redacted").items()
    ]


def proofs(record: Record) -> str:
    """What was proved of rows, tokens and trainer before the first step; whatever does not hold comes first."""
    proved = [proof for proof in items(record.info, "proofs") if isinstance(proof, dict)]
    if not proved:
        return "<p>No proofs are recorded.</p>"
    rows = [(_proof_word(proof), proof) for proof in proved]
    order = ["FAILED", "warned", "not checked", "ok"]
    rows.sort(key=lambda row: order.index(row[0]))
    counts = {word: sum(found == word for found, _ in rows) for word in order}
    summary = words.listed([f"{number} {word}" for word, number in counts.items() if number])
    cells = [
        [
            str(proof.get("name", "")),
            word,
            "; ".join(str(proof[key]) for key in ("detail", "remedy") if proof.get(key)),
        ]
        for word, proof in rows
    ]
    found = table(["proof", "verdict", "what was found"], cells, caption="Proofs made before the first step")
    intro = (
        f"<p>{escape(summary)} of {len(rows)}.</p>" if counts["ok"] < len(rows) else f"<p>All {len(rows)} hold.</p>"
    )
    return intro + (found if counts["ok"] < len(rows) else details("What was looked at", found))


def _proof_word(proof: Json) -> str:
    if proof.get("ok") is False:
        return "FAILED" if proof.get("fatal", True) else "warned"
    return "ok" if proof.get("ok") else "not checked"


def recipe(record: Record) -> str:
    """`recipe.yaml` as it is."""
    if not record.recipe:
        return f"<p>This folder has no <code>{run_dir.RECIPE}</code>.</p>"
    text = f'<pre tabindex="0" role="region" aria-label="Recipe">{escape(record.recipe)}</pre>'
    return details(f"{run_dir.RECIPE}: every value that was used", text)


def environment(record: Record) -> str:
    """Model, machine, versions, command and notes: what somebody needs to do it again."""
    info = record.info
    model, machine = section(info, "model"), section(info, "hardware")
    formatter = flat(section(info, "data", "formatter"), "formatter ")
    known = {
        "status": info.get("status"),
        "error": info.get("error"),
        "method": info.get("method"),
        "model": model.get("id"),
        "model revision": model.get("revision"),
        "weights": model.get("dtype"),
        "parameters": model.get("parameters"),
        "trained parameters": model.get("trainable_parameters"),
        "type of trained parameters": model.get("trainable_dtype"),
        "seed": str(info["seed"]) if "seed" in info else None,
        "started": _given(info.get("started_at"), words.moment),
        "finished": _given(info.get("finished_at"), words.moment),
        "command": _command(info.get("command")),
        "git commit": info.get("git_commit"),
        "machine": hardware(info) if machine else None,
        "machine memory": _given(machine.get("memory_bytes"), words.size),
        "CUDA": machine.get("cuda"),
        "processes": info.get("processes"),
        "recipe-kit": info.get("recipe_kit_version"),
        **{str(name): version for name, version in section(info, "versions").items()},
        "recipe hash": info.get("recipe_sha256"),
        "chat template hash": model.get("chat_template_sha256"),
        **{key.replace("_sha256", " hash"): value for key, value in formatter},
    }
    notes = "".join(f"<li>{escape(words.sentence(note))}</li>" for note in items(info, "notes"))
    return facts(known, "What it ran on") + (f"\n<h3>Notes of the run</h3>\n<ul>{notes}</ul>" if notes else "")


def _command(argv: Any) -> str | None:
    """What was typed, or nearly: the training processes are started with the same words."""
    if not isinstance(argv, list) or not argv:
        return None
    first, *rest = map(str, argv)
    typed = ["recipe-kit", "train"] if PurePath(first).name == "__main__.py" else [first]
    return shlex.join([*typed, *rest])


def _given(value: Any, say: Any) -> str | None:
    return None if value is None else str(say(value))


STYLE = """
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr)); gap: 0 1.5rem; }
.figures figure { max-width: 34rem; margin-inline: 0; min-width: 0; }
.plot { width: 100%; }
.plot * { stroke-linejoin: round; stroke-linecap: butt; }
.plot text { font-family: inherit !important; }
@media (forced-colors: active) { .plot { forced-color-adjust: none; background: #fff; --ink: #1f2328; --faint: #59636e;
  --rule: #d1d9e0; --series-1: #0a58b9; --series-2: #b1470a; } }
"""
