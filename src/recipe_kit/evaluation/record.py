"""The files of an evaluation: what both models made of each row, answers to read, and a judge's verdicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recipe_kit import data, preview, run_dir
from recipe_kit.errors import RecipeKitError
from recipe_kit.evaluation import judge, scoring
from recipe_kit.evaluation.scoring import ModelResults
from recipe_kit.evaluation.work import Report, Work
from recipe_kit.run_dir import Metrics


def keep_earlier(run: Path, metrics: Metrics, report: Report) -> None:
    """Set an evaluation of other rows, precision or decoding aside before this one takes its place; also one with
    verdicts or tasks, which cost more than time."""
    if not (run / run_dir.METRICS).is_file():
        return
    old: dict[str, Any] = {**run_dir.read_metrics(run)}
    new: dict[str, Any] = {**metrics}
    same = all(old.get(fact) == new[fact] for fact in ("split", "rows", "content_sha256", "precision", "generation"))
    paid_for = "judge" in old or "lm_eval" in old
    if same and not paid_for and old.get("scores", {}).keys() <= metrics["scores"].keys():
        return
    place = run / run_dir.EVALUATIONS / str(old.get("evaluated_at", "earlier")).replace(":", "-")
    place.mkdir(parents=True, exist_ok=True)
    for name in (run_dir.METRICS, run_dir.SCORES, run_dir.SAMPLES, run_dir.JUDGE):
        if (run / name).is_file():
            (run / name).replace(place / name)
    rows = f"{old.get('rows')} rows of {old.get('split')} in {old.get('precision')}"
    report(f"the earlier evaluation ({rows}) is kept in {place}")


def score_lines(
    work: Work, results: dict[str, ModelResults], found: scoring.Found, held_out: data.Split
) -> list[dict[str, Any]]:
    """The lines of `scores.jsonl`: a held-out row with the loss sums of both models and their answers to its turns."""
    lines: list[dict[str, Any]] = [
        {
            "row": row,
            "digest": held_out.digests[row].tobytes().hex(),
            **{which: result.loss_line(row) for which, result in results.items()},
            "answers": [],
        }
        for row in range(len(work.rows))
    ]
    for index, question in enumerate(work.asked):
        if question.row is not None and results["base"].answers[index] is not None:
            both = {which: {**result.answers[index], "scores": found.answers[which].get(index, {})}  # type: ignore[dict-item]
                    for which, result in results.items()}  # fmt: skip
            lines[question.row]["answers"].append({"turn": question.turn, "reference": question.reference, **both})
    return lines


def sample_lines(work: Work, results: dict[str, ModelResults]) -> list[dict[str, Any]]:
    """The lines of `samples.jsonl`: a prompt to read with both answers, and its row token by token."""
    lines = []
    for index, question in enumerate(work.asked):
        if not question.shown:
            continue
        pieces = None
        if question.row is not None:
            found = preview.pieces(work.ids[question.row], work.labels[question.row], work.tokenizer)
            pieces = [[piece.text, piece.trained, piece.control] for piece in found]
        lines.append({
            "kind": "prompt" if question.row is None else "held_out",
            "prompt": question.messages,
            "reference": question.reference,
            **{which: results[which].answers[index] or scoring.NO_ANSWER for which in ("base", "tuned")},
            "pieces": pieces,
        })  # fmt: skip
    return lines


def ask_judge(run: Path, work: Work, metrics: Metrics, results: dict[str, ModelResults]) -> None:
    """Let the judge compare answers, those to be read first; its failure joins the problems."""
    settings = work.recipe.evaluation.judge
    assert settings is not None
    pairs = []
    for index in sorted(range(len(work.asked)), key=lambda index: not work.asked[index].shown):
        question, base, tuned = work.asked[index], results["base"].answers[index], results["tuned"].answers[index]
        if base is not None and tuned is not None:
            pairs.append(judge.Pair(question.messages, base["text"], tuned["text"], question.reference))
    try:
        metrics["judge"], lines = judge.judge(pairs, settings, seed=work.recipe.evaluation.seed, report=work.report)
        run_dir.write_lines(run / run_dir.JUDGE, lines)
    except RecipeKitError as error:
        work.problems.append(f"judge: {error}")
    run_dir.write_json(run / run_dir.METRICS, metrics)
