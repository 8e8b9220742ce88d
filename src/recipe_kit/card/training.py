"""How the model came about: rows, settings, proofs, merge, machine, and the recipe that does it again."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from recipe_kit.card import scores
from recipe_kit.card.facts import Facts, counted
from recipe_kit.card.markdown import bullets, cell, code, dataset_link, details, facts, plain, table, words_of_author
from recipe_kit.card.private import cleaned
from recipe_kit.recipe import Source
from recipe_kit.report import words
from recipe_kit.report.files import Json, finite, items, section
from recipe_kit.report.state import hardware

LOSS_POINTS = 8
_DIGEST = 16  # digits of a hash that are shown


def data(given: Facts) -> list[str]:
    """Sources, counts and hashes of the rows of every split."""
    splits = section(given.info, "data", "splits")
    if not splits:
        return []
    rows, dropped = [], []
    for name in splits:
        found = section(splits, name)
        left_out = {str(reason): counted(number) for reason, number in section(found, "dropped").items()}
        rows.append([
            name,
            _sources(given, name),
            *(words.count(found.get(key)) for key in ("read", "kept", "tokens", "trained_tokens")),
            code(str(found.get("content_sha256", ""))[:_DIGEST]),
        ])  # fmt: skip
        dropped += [f"{name}: {text}" for text in _changes(found, left_out)]
    header = ("Split", "Source", "Read", "Used", "Tokens", "Learnt", "Content (SHA-256)")
    formatter = given.recipe.data.formatter.name
    made = {
        "assistant": "every assistant turn, with the token that ends it, is learnt",
        "last_assistant": "the last assistant turn, with the token that ends it, is learnt",
        "all": "all tokens are learnt",
    }[given.recipe.data.train_on]
    how = f"Rows became conversations by the formatter {code(formatter)}; {made}."
    if given.recipe.data.system:
        said = plain(cleaned(" ".join(given.recipe.data.system.split())))
        how += f" Conversations without a system prompt were given this one:\n\n> {said}"
    parts = [table(header, rows, numbers=(2, 3, 4, 5)), how]
    if given.recipe.data.streaming:
        streamed = {str(k): counted(v) for k, v in section(given.info, "training", "streamed_rows").items()}
        told = ", ".join(f"{number:,} {plain(key)}" for key, number in streamed.items())
        seen = f"Seen by the process that read them: {told}." if told else "How many were seen was not recorded."
        parts.insert(1, f"The training rows were streamed: the counts of `train` are of the first rows only. {seen}")
    if dropped:
        parts.append(f"Left out or changed:\n\n{bullets(map(plain, dropped))}")
    if given.recipe.card.data:
        parts.append(words_of_author(given.recipe.card.data))
    return parts


def procedure(given: Facts) -> list[str]:
    """Settings and amounts as one table, the losses as another."""
    return [facts(_settings(given)), _losses(given), *_notes(given)]


def _settings(given: Facts) -> Iterator[tuple[str, str]]:
    recipe, training, model = given.recipe, section(given.info, "training"), section(given.info, "model")
    options = recipe.training
    yield (
        "Method",
        {"full": "full fine-tuning", "lora": "LoRA", "qlora": "QLoRA (adapter on a 4-bit base)"}[recipe.method],
    )
    if given.base_id and given.base_id != recipe.model.id:  # named by the recipe, and not where the weights were read
        yield "Started from", code(given.base_name)
    if recipe.method != "full":
        yield "Adapter", _adapter(recipe.lora)
    if recipe.method == "qlora":
        yield (
            "Quantisation",
            ", ".join(f"{key.removeprefix('bnb_4bit_')} {value}" for key, value in recipe.quantization.items()),
        )
    trained, total = finite(model.get("trainable_parameters")), finite(model.get("parameters"))
    if trained > 0 and total > 0:
        yield "Trained parameters", f"{words.count(trained)} of {words.count(total)} ({100 * trained / total:.2f} %)"
    parts = {"base": model.get("dtype") if recipe.method != "full" else None, "trained": model.get("trainable_dtype")}
    yield "Weights held in", ", ".join(f"{dtype} ({which})" for which, dtype in parts.items() if dtype)
    yield "Steps and epochs", _amount(training)
    yield "Rows a step", words.count(training["effective_batch_size"]) if "effective_batch_size" in training else ""
    yield "Tokens seen", words.count(training["tokens"]) if training.get("tokens") is not None else ""
    used = section(given.info, "speed")  # what the card decided, where the recipe leaves it open
    packed = ", packed" if used.get("packing", options.get("packing")) else ""
    yield "Longest row", f"{recipe.data.max_length:,} tokens{packed}"
    yield "Learning rate", ", ".join(filter(None, [
        f"{options['learning_rate']:g}" if isinstance(options.get("learning_rate"), float) else "",
        str(options.get("lr_scheduler_type") or ""),
        f"{options['warmup_steps']} warm-up steps" if options.get("warmup_steps") else "",
    ]))  # fmt: skip
    yield "Optimiser", plain(str(used.get("optim") or options.get("optim") or ""))
    yield "Seed", str(given.info.get("seed", ""))
    yield "Training loss", _loss_line(training)
    yield "Hardware", plain(hardware(given.info)) if given.info.get("hardware") else ""
    yield "Time", _time(training)
    yield "Peak memory", words.size(training["peak_memory_bytes"]) if training.get("peak_memory_bytes") else ""
    yield "Software", cell(", ".join(f"{name} {version}" for name, version in section(given.info, "versions").items()))


def _adapter(options: dict[str, Any]) -> str:
    targets = options.get("target_modules", "all-linear")
    kinds = {"use_dora": "DoRA", "use_rslora": "rsLoRA"}
    named = [name for key, name in kinds.items() if options.get(key)]
    told = [
        f"r {options['r']}" if "r" in options else "",
        f"alpha {options['lora_alpha']}" if "lora_alpha" in options else "",
    ]
    told += [f"dropout {options['lora_dropout']:g}" if options.get("lora_dropout") else "", *named]
    listed = ", ".join(map(str, targets)) if isinstance(targets, list) else str(targets)
    return cell(f"{', '.join(filter(None, told))} on {listed}".removeprefix(" on "))


def _amount(training: Json) -> str:
    parts = [words.counted(training["steps"], "step")] if "steps" in training else []
    epochs = finite(training.get("epochs"))
    parts += [] if math.isnan(epochs) else [f"{epochs:.2f}".rstrip("0").rstrip(".") + " epochs"]
    resumed = training.get("resumed_at_step")
    return ", ".join(parts) + (f", resumed at step {words.count(resumed)}" if resumed else "")


def _loss_line(training: Json) -> str:
    told = []
    if not math.isnan(finite(training.get("train_loss"))):
        told.append(f"{words.number(training['train_loss'])} on average")
    if not math.isnan(finite(training.get("final_loss"))):
        told.append(f"{words.number(training['final_loss'])} at the end")
    return ", ".join(told)


def _time(training: Json) -> str:
    """How long, and how fast: in training proper, and with loading and evaluation."""
    told = []
    if training.get("seconds") is not None:
        told.append(f"{words.duration(training['seconds'])} in training")
    if training.get("tokens_per_second") is not None:
        told.append(f"{words.number(training['tokens_per_second'])} tokens a second")
    if training.get("wall_seconds") is not None:
        told.append(f"{words.duration(training['wall_seconds'])} with loading and evaluation")
    return ", ".join(told)


def _losses(given: Facts) -> str:
    """The logged losses of a few steps from the first to the last."""
    found: dict[int, dict[str, float]] = {}
    for key in ("loss", "eval_loss"):
        for step, value in given.record.logged(key):
            found.setdefault(step, {})[key] = value
    steps = sorted(found)
    if len(steps) > LOSS_POINTS:
        steps = sorted({steps[round(place * (len(steps) - 1) / (LOSS_POINTS - 1))] for place in range(LOSS_POINTS)})
    held_out = any("eval_loss" in found[step] for step in steps)
    columns = ["loss", "eval_loss"] if held_out else ["loss"]
    rows = [
        (words.count(step), *(words.number(found[step][key]) if key in found[step] else "" for key in columns))
        for step in steps
    ]
    header = ("Step", "Training loss", "Held-out loss")[: len(columns) + 1]
    return details("Loss along the way", table(header, rows, numbers=range(len(header)))) if rows else ""


def _notes(given: Facts) -> list[str]:
    notes = [cleaned(words.sentence(note)) for note in items(given.info, "notes") if "not evaluated" not in str(note)]
    return [f"Noted while training:\n\n{bullets(map(plain, notes))}"] if notes else []


def proofs(given: Facts) -> list[str]:
    """What was proved of rows, tokens and trainer before the first step, and what was not."""
    proved = [proof for proof in items(given.info, "proofs") if isinstance(proof, dict)]
    if not proved:
        return []
    held = [proof for proof in proved if proof.get("ok")]
    open_ = [proof for proof in proved if not proof.get("ok")]
    rows = [(code(str(proof.get("name"))), cell(cleaned(str(proof.get("detail", ""))))) for proof in held]
    count = f"All {len(held)}" if not open_ else f"{len(held)} of {len(proved)}"
    parts = [f"{count} proofs about rows, tokens and trainer held before the first step."]
    if open_:
        parts.append(bullets(
            f"{code(str(proof.get('name')))} {'did not hold' if proof.get('ok') is False else 'was not checked'}: "
            f"{plain(cleaned(words.sentence(proof.get('detail', ''))))}"
            for proof in open_
        ))  # fmt: skip
    return [*parts, details("What was proved", table(("Proof", "What was found"), rows))] if rows else parts


def merged(given: Facts) -> list[str]:
    """What the merged weights were made of, and how near they are to the model that was trained."""
    found = given.merge
    if not found:
        return []
    base = {"nf4": "the base as 4 bits made it, in which it was trained"}.get(
        str(found.get("base")), "the original base"
    )
    parts = [f"The adapter was merged into {base}, in {found.get('dtype')}."]
    choice = section(found, "choice")
    losses = section(choice, "loss")
    if losses:
        names = {
            "as_trained": "as trained",
            "original": "merged into the original base",
            "nf4": "merged into the 4-bit base",
        }
        told = ", ".join(f"{words.number(losses[key])} {name}" for key, name in names.items() if key in losses)
        rows = f" on {words.counted(choice['rows'], 'held-out row')}" if "rows" in choice else ""
        parts.append(f"Both were measured{rows}; loss {told}.")
    if parity := section(found, "parity"):
        parts.append(_parity(parity))
    return [" ".join(parts)]


def _parity(parity: Json) -> str:
    where = f"{words.counted(parity.get('rows'), 'row')}, {words.counted(parity.get('positions'), 'position')}"
    agreed, apart, gap = (finite(parity.get(key)) for key in ("greedy_agreement", "mean_kl", "max_logit_gap"))
    told = [
        "" if math.isnan(agreed) else f"the most likely token is the same at {100 * agreed:.2f} % of them",
        "" if math.isnan(apart) else f"mean KL divergence {words.brief(apart)}",
        "" if math.isnan(gap) else f"largest gap between logits {words.brief(gap)}",
    ]
    return f"Compared with the adapter on that base ({where}): {', '.join(filter(None, told))}."


def _sources(given: Facts, split: str) -> str:
    """Where the rows of a split come from: the Hub with commit, a file by its name, rows that ship."""
    own = given.recipe.data.sources(split) if split in ("train", "eval", "test") else ()
    if not own:
        return "held out of `train`"
    revisions = scores.recorded_revisions(given, split)
    return "<br>".join(
        _source(source, revisions[place] if place < len(revisions) else None) for place, source in enumerate(own)
    )


def _source(source: Source, revision: str | None) -> str:
    name = dataset_link(source.id) if source.id else cell(scores.source_name(source))
    told = [f"{code(part)}" for part in (source.config, source.split) if part and not source.path]
    commit = revision or source.revision
    told += [f"at {code(commit[:12])}"] if commit and source.id else []
    told += (
        [f"where {cell(', '.join(f'{key} is {value}' for key, value in source.where.items()))}"]
        if source.where
        else []
    )
    told += [f"first {source.limit:,} rows"] if source.limit else []
    told += [f"weight {source.weight:g}"] if source.weight is not None else []
    return " ".join([name, *([", ".join(told)] if told else [])])


def _changes(found: Json, dropped: dict[str, int]) -> Iterator[str]:
    for reason, number in dropped.items():
        yield f"{words.counted(number, 'row')} dropped ({cleaned(reason)})"
    for key, what in (
        ("held_out", "held out of training"), ("truncated", "cut at the longest length"),
        ("merged_turns", "turns merged with the one before"),
    ):  # fmt: skip
        if counted(found.get(key)):
            yield f"{words.count(found[key]) if key == 'merged_turns' else words.counted(found[key], 'row')} {what}"
    for kind, number in section(found, "redacted").items():
        yield f"{words.count(number)} {kind} replaced"
