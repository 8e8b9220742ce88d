"""What the numbers say: in a sentence or two at the top, and as tables of base against tuned model."""

from __future__ import annotations

from collections.abc import Iterator

from recipe_kit.card import scores
from recipe_kit.card.facts import Facts
from recipe_kit.card.markdown import bullets, cell, code, details, plain, table
from recipe_kit.card.private import cleaned
from recipe_kit.report import words
from recipe_kit.report.files import Json, items, section
from recipe_kit.report.state import cost
from recipe_kit.report.verdict import finding, label, scores_of, verdict

_HOW_SURE = (
    "Intervals hold 95 % of what was found when these rows were drawn again and again, the same rows for both models. "
    "They tell what other rows like these might give, not what another training seed might give. Where the interval "
    "of the difference includes zero, no difference is claimed. *Better on* counts rows: tuned, base, ties."
)


def headline(facts: Facts) -> str:
    """Did it help, on what, how sure: the verdict of the run's report, in words."""
    said = verdict(facts.record)
    if facts.metrics is None:
        return f"**{plain(said.headline)}.** {_not_evaluated(facts)}"
    left_out = {*cost(facts.record)}
    sentences = [plain(cleaned(text)) for text in said.sentences if text not in left_out]
    return " ".join([f"**{plain(said.headline)}.**", *sentences])


def results(facts: Facts) -> list[str]:
    """The paragraphs and tables of the evaluation; empty where nothing was measured."""
    metrics = facts.metrics
    if metrics is None:
        return []
    own = scores_of(metrics)
    parts = [_on_what(facts), _scores(own)]
    for name, group in section(metrics, "groups").items():
        rows = words.counted(section(group).get("rows"), "row")
        parts.append(f"**{plain(str(name).capitalize())}** ({rows}):\n\n{_scores(scores_of(section(group)))}")
    parts += [_HOW_SURE if own else _plain_perplexity(metrics), _benchmarks(section(metrics, "lm_eval"))]
    if unknown := scores.not_numbers(facts):
        parts.append(f"No finite number came of {plain(words.listed(unknown))}, which the metadata leaves out.")
    if problems := [cleaned(words.sentence(text)) for text in items(metrics, "problems")]:
        parts.append(f"What could not be measured, or only in part:\n\n{bullets(map(plain, problems))}")
    return [*(part for part in parts if part), *_settings(own)]


def _not_evaluated(facts: Facts) -> str:
    if facts.record.remarks:
        return plain(cleaned(" ".join(facts.record.remarks)))
    splits = section(facts.info, "data", "splits")
    if not {"test", "eval"} & set(splits):
        return "The recipe names no held-out rows, so there are no scores."
    because = [str(note) for note in items(facts.info, "notes") if "not evaluated" in str(note)]
    why = f" {plain(cleaned(words.sentence(because[0].partition(';')[0].capitalize())))}" if because else ""
    return f"The run was not evaluated, so there are no scores.{why}"


def _on_what(facts: Facts) -> str:
    metrics = section(facts.metrics)
    names = words.listed([plain(scores.source_name(source)) for source in scores.held_out_sources(facts)])
    own = facts.recipe.data.sources(scores.measured_split(facts))
    where = f"{names}, split {code(own[0].split)}" if own else f"held out of the training rows ({names})"
    tokens = section(metrics, "tuned").get("tokens")
    counted = f" with {words.count(tokens)} answer tokens" if tokens is not None else ""
    told = [f"Base and tuned model on the same {words.counted(metrics.get('rows'), 'row')}{counted}: {where}."]
    if metrics.get("precision"):
        when = ", before the adapter was merged" if facts.merge else ""
        told.append(f"Weights in {metrics['precision']}{when}.")
    generation = section(metrics, "generation")
    if generation.get("answers"):
        most = generation.get("max_new_tokens")
        told.append(f"{words.counted(generation['answers'], 'answer')} of each, greedy, of at most {most} tokens.")
    return " ".join(told)


def _scores(found: dict[str, Json]) -> str:
    rows = []
    for name, score in found.items():
        higher = score.get("higher_is_better")
        direction = "" if higher is None else " ↑" if higher else " ↓"
        tuned = words.estimate(section(score, "tuned"))
        won = " / ".join(words.count(score.get(key)) for key in ("tuned_better", "base_better", "ties"))
        rows.append([
            cell(cleaned(label(name, score))) + direction,
            words.estimate(section(score, "base")),
            f"**{tuned}**" if finding(score) == "better" else tuned,
            words.estimate(section(score, "difference")),
            won if higher is not None else "",
            words.count(score.get("rows")),
        ])  # fmt: skip
    header = ("Score", "Base (95 %)", "Tuned (95 %)", "Difference (95 %)", "Better on", "n")
    return table(header, rows, numbers=(5,)) if rows else ""


def _plain_perplexity(metrics: Json) -> str:
    """What runs of the first version recorded."""
    base, tuned = (section(metrics, which).get("perplexity") for which in ("base", "tuned"))
    if base is None or tuned is None:
        return "" if section(metrics, "lm_eval") else "No score was computed."
    return table(("Score", "Base", "Tuned"), [("perplexity ↓", words.number(base), words.number(tuned))])


def _benchmarks(found: Json) -> str:
    rows = list(_benchmark_rows(found))
    if not rows:
        return ""
    version = found.get("lm_eval") or ""
    return f"Tasks of lm-evaluation-harness {version}, ± standard error:\n\n" + table(
        ("Task", "Metric", "Base", "Tuned", "Documents", "Shots"), rows, numbers=(4, 5)
    )


def _benchmark_rows(found: Json) -> Iterator[list[str]]:
    for task, result in section(found, "tasks").items():
        for metric, both in section(result, "metrics").items():
            higher = section(both, "tuned").get("higher_is_better")
            yield [
                cell(cleaned(str(task))),
                cell(str(metric)) + ("" if higher is None else " ↑" if higher else " ↓"),
                *(_with_error(section(both, which)) for which in ("base", "tuned")),
                words.count(section(result).get("documents")),
                words.count(section(result).get("num_fewshot")),
            ]


def _with_error(score: Json) -> str:
    error = score.get("stderr")
    return words.number(score.get("value")) + (f" ± {words.number(error)}" if error is not None else "")


def _settings(own: dict[str, Json]) -> list[str]:
    """What decides the numbers: packages, versions, options."""
    rows = []
    for name, score in own.items():
        settings = section(score, "settings")
        if "package" in settings:
            options = ", ".join(f"{key}={value}" for key, value in section(settings, "options").items())
            parts = [f"{settings['package']} {settings.get('version', '')}".strip(), options]
            parts.append(str(settings.get("signature") or ""))
            rows.append([cell(label(name, score)), cell(cleaned("; ".join(part for part in parts if part)))])
    inner = table(("Score", "Computed by"), rows) if rows else ""
    return [details("How the scores were computed", inner)] if inner else []
