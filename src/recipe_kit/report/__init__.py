"""One page about one run, made of the files in its folder: `recipe-kit report RUN`.

`files` reads them, `verdict` says in words what they show, `results`, `answers` and `sections` are the parts of the
page, `curves` and `plots` draw. Nothing is computed anew: no model, no tokenizer, no network.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from recipe_kit import run_dir
from recipe_kit.errors import RunError
from recipe_kit.page import escape, generator, page
from recipe_kit.report import answers, curves, plots, results, sections, words
from recipe_kit.report.files import Json, Record, read, section
from recipe_kit.report.verdict import label, scores_of, verdict

__all__ = ["write_report"]

METRICS_CSV = "metrics.csv"
CURVES_CSV = "training_log.csv"
_ESTIMATES = [f"{which}{part}" for which in ("base", "tuned", "difference") for part in ("", "_low", "_high")]
_COUNTS = ["tuned_better", "base_better", "ties", "p_value"]
CSV_COLUMNS = ["group", "score", "label", "higher_is_better", "rows", *_ESTIMATES, *_COUNTS]


def write_report(run: str | Path, out: Path | None = None, figures: Path | None = None) -> Path:
    """Write the page about a run, finished or not, and return its path; by default `report.html` in the run folder.

    With `figures`, a folder, the plots are also written there as PNG (300 dots an inch), the scores as `metrics.csv`
    and the logged steps as `training_log.csv`. A file that is there already is replaced, but not one that is no page
    of ours. Raises RunError when the folder is no run, when something cannot be written, and without matplotlib.
    """
    record = read(run_dir.find(run))
    plots.require_matplotlib()
    path = out or record.folder / run_dir.REPORT
    _check_ours(path)
    _write(path, html(record))
    if figures is not None:
        write_figures(record, figures)
    return path


def html(record: Record) -> str:
    """The whole page."""
    held_out, fixed = answers.held_out(record.samples), answers.fixed(record.samples)
    parts: list[tuple[str, str]] = [
        ("Evaluation", results.evaluation(record)),
        ("What the judge said", results.judge(record.metrics)),
        ("Benchmarks", results.benchmarks(record.metrics)),
        ("Answers side by side", _held_out_answers(held_out, record)),
        ("Fixed prompts", answers.side_by_side(fixed, "Fixed prompt")),
        ("Training", sections.training(record)),
        ("Data", sections.data(record)),
        ("Proofs", sections.proofs(record)),
        ("Recipe", sections.recipe(record)),
        ("Environment", sections.environment(record)),
    ]
    title = f"{record.name}: did it help?"
    style = _STYLE + answers.STYLE + sections.STYLE
    filled = [(heading, inner) for heading, inner in parts if inner]
    return page(title, filled, kind="report", lead=_lead(record), style=style)


def write_figures(record: Record, folder: Path) -> list[Path]:
    """The plots as PNG and their numbers as CSV, for papers. Raises RunError when they cannot be written."""
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for plot in [*curves.training_plots(record), *curves.length_plots(record)]:
            written.append(plots.write_png(plot, folder))
    except OSError as error:
        raise RunError(f"cannot write to {folder}: {error.strerror or error}; choose another --figures") from error
    header, rows = curves.numbers(record)
    _write(folder / METRICS_CSV, _as_csv([CSV_COLUMNS, *_csv_rows(record.metrics)]))
    _write(folder / CURVES_CSV, _as_csv([header, *rows]))
    return [*written, folder / METRICS_CSV, folder / CURVES_CSV]


def _lead(record: Record) -> str:
    info, said = record.info, verdict(record)
    model = section(info, "model").get("id")
    about = [str(info.get("method", "")), str(model or ""), f"seed {info['seed']}" if "seed" in info else ""]
    about += [f"started {words.moment(info['started_at'])}" if "started_at" in info else "", record.status]
    written = datetime.now().astimezone().isoformat(timespec="seconds")
    about.append(f"page written {words.moment(written)}")
    sentences = "".join(f"<p>{escape(text)}</p>\n" for text in said.sentences)
    remarks = "".join(f'<p class="note">{escape(text)}</p>\n' for text in record.remarks)
    return (
        f'<p class="faint">{escape(" · ".join(filter(None, about)))}</p>\n<div class="verdict">\n'
        f'<p class="headline">{escape(said.headline)}.</p>\n{sentences}</div>\n{remarks}'
    )


def _held_out_answers(held_out: Sequence[Json], record: Record) -> str:
    if held_out:
        return answers.LEGEND + answers.side_by_side(held_out, "Held-out prompt")
    return "" if record.samples else "<p>No answers are recorded yet.</p>"


def _csv_rows(metrics: Json | None) -> list[list[object]]:
    """One row a score: of all held-out rows (group empty), then of each group."""
    groups = {"": section(metrics), **section(metrics, "groups")}
    rows = []
    for group, found in groups.items():
        for name, score in scores_of(section(found)).items():
            numbers: list[object] = [
                section(score, which).get(key)
                for which in ("base", "tuned", "difference")
                for key in ("value", "low", "high")
            ]
            known = [group, name, label(name, score), score.get("higher_is_better"), score.get("rows")]
            rows.append([*known, *numbers, *(score.get(key) for key in _COUNTS)])
    return rows


def _as_csv(rows: Sequence[Sequence[object]]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(rows)
    return file.getvalue()


def _check_ours(path: Path) -> None:
    """Raises RunError when the file is there and no report: it is not ours to replace."""
    if path.is_file():
        with path.open(encoding="utf-8", errors="replace") as file:
            if generator("report") not in file.read(2000):
                raise RunError(f"{path} exists and is no report; choose another file with --out")


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}; choose another place") from error


_STYLE = """
.verdict { border-inline-start: .35rem solid var(--series-1); background: var(--shade); padding: .75rem 1.1rem;
  margin: 1rem 0; }
.verdict p { margin: .35rem 0; }
.headline { font-size: 1.3rem; font-weight: 650; line-height: 1.35; max-width: none; }
.verdict .headline { margin-bottom: .6rem; }
"""
