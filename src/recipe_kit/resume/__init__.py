"""Which run to go on with, whether it may be gone on with as things are now, and what is kept of what changed."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from recipe_kit import checkpoints, run_dir
from recipe_kit.errors import RecipeError, RunError, first_line
from recipe_kit.recipe import Difference, Recipe, diff_recipes, load_recipe, recipe_digest
from recipe_kit.resume.changes import SIZES, Change, compare, of_recipe
from recipe_kit.run_dir import RunInfo

__all__ = ["Change", "advice", "check_unchanged", "find", "record", "sentences", "set_anew"]

Report = Callable[[str], None]

AUTO = "auto"
_SHOWN = 5  # differences of one kind that a sentence names


def find(recipe: Recipe, runs_dir: Path, resume: bool | str | Path, report: Report = lambda text: None) -> Path | None:
    """The run folder to go on with; None to begin a new one.

    `resume` is False, True for the newest unfinished run of this recipe, a run folder, or "auto": the newest
    unfinished run with a checkpoint, else a new one. Where "auto" finds that this same recipe is finished it returns
    that run, so that a job that is queued again after its end does nothing. Raises RunError where there is nothing to
    go on with, and for a run that another process trains.
    """
    if not resume:
        return None
    if resume == AUTO:
        return _automatic(recipe, runs_dir, report)
    run = run_dir.newest_unfinished(runs_dir, recipe.name) if resume is True else run_dir.find(resume)
    info = run_dir.read(run)
    if info["status"] == "finished":
        raise RunError(f"{run}: this run is finished; there is nothing to resume")
    _require_alone(run, info)
    if not checkpoints.any_saved(run):
        raise RunError(f"{run}: no checkpoint was saved; start anew without --resume")
    return run


def _automatic(recipe: Recipe, runs_dir: Path, report: Report) -> Path | None:
    folder = runs_dir / recipe.name
    found = [entry for entry in folder.iterdir() if (entry / run_dir.RUN).is_file()] if folder.is_dir() else []
    for run in sorted((entry for entry in found if entry.name != run_dir.LATEST), reverse=True):
        try:
            info = run_dir.read(run)
        except RunError as error:  # one damaged folder does not keep a job from its queue
            report(f"passed over: {error}")
            continue
        if info["status"] == "finished":
            if info["recipe_sha256"] == recipe_digest(recipe):
                report(f"{run}: this run is finished; leave --resume auto out to train once more")
                return run
            continue
        _require_alone(run, info)
        if checkpoints.newest(run, report) is not None:
            report(f"going on with {run}")
            return run
    report(f"nothing to go on with in {folder}: a new run begins")
    return None


def _require_alone(run: Path, info: RunInfo) -> None:
    if info["status"] == "running" and run_dir.is_alive(info):
        owner = info["process"]["pid"]
        raise RunError(f"{run}: process {owner} is still training here; wait for it, or stop it before you resume")


def check_unchanged(
    run: Path,
    before: RunInfo,
    now: RunInfo,
    recipe: Recipe,
    *,
    accepted: bool = False,
    report: Report = lambda text: None,
) -> list[Change]:
    """The changes that were accepted, [] for none; they are reported, and what is noted also goes to `now`'s notes.

    `before` is the run's own `run.json`, and `now` what it would say, with `speed`. Raises RunError for changes that
    are not accepted, and for those that no checkpoint can bear.
    """
    found = list(compare(before, now, _recipe_of(run, before, recipe), recipe))
    fixed, asked, noted = ([each for each in found if each.kind == kind] for kind in ("fixed", "asked", "noted"))
    if fixed:
        raise RunError(
            f"{run}: its checkpoint cannot be gone on with after these changes: {_listed(fixed)}; undo them, or start "
            "anew without --resume"
        )
    if asked and not accepted:
        many = sum(each.subject == "recipe" for each in asked) > _SHOWN
        them = "them" if len(asked) > 1 else "it"
        all_of_them = f" (`recipe-kit diff {run / run_dir.RECIPE} YOUR_RECIPE` shows all)" if many else ""
        raise RunError(
            f"{run}: the {_subjects(asked)} changed since this run started: {_listed(asked)}{all_of_them}; add "
            f"--accept-changes to go on with what is here now, undo {them}, or start anew without --resume"
        )
    if asked:
        report(f"accepted: {_listed(asked)}")
    if noted:
        note = f"goes on with other settings, which change nothing of what is learnt: {_listed(noted)}"
        now["notes"].append(note)
        report(note)
    return asked


def record(run: Path, before: RunInfo, now: RunInfo, accepted: list[Change]) -> None:
    """Keep for good what was accepted: in `now`, with the step, and the recipe of the steps before in its own file.

    Called before `recipe.yaml` is written anew. What earlier resumes recorded stays.
    """
    entries = list(before.get("changed_on_resume", []))
    if not entries and not accepted:
        return
    checkpoint = checkpoints.newest(run, lambda text: None)  # every byte is read: the newest whole one, not the last
    step = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
    told: dict[str, dict[str, Any]] = {
        each.what: {"what": each.what, "then": each.then, "now": each.now} for each in accepted
    }
    kept = None
    if any(each.subject == "recipe" for each in accepted):
        kept = run_dir.RECIPE_BEFORE.format(step=step)
        if not (run / kept).exists():  # a try at this step that came to nothing is not what trained the steps before
            shutil.copyfile(run / run_dir.RECIPE, run / kept)
    while entries and entries[-1]["step"] >= step:  # the steps since then are lost: one change, not two
        lost = entries.pop()
        kept = lost["recipe_before"] or kept
        for earlier in lost["changes"]:
            told[earlier["what"]] = {**earlier, "now": told.get(earlier["what"], earlier)["now"]}
    told = {what: each for what, each in told.items() if each["then"] != each["now"]}
    if told:
        changed = list(told.values())
        entries.append({"step": step, "at": now["started_at"], "recipe_before": kept, "changes": changed})
    if entries:
        now["changed_on_resume"] = entries
        now["notes"] += sentences(now)


def sentences(info: Mapping[str, Any]) -> list[str]:
    """What to say of a run that was not trained by one recipe, rows and packages alone; one sentence a change."""
    return [
        f"the steps after {entry['step']} were not trained as those before: "
        + "; ".join(str(Change("asked", "", **change)) for change in entry["changes"])
        for entry in info.get("changed_on_resume", [])
    ]


def advice(run: Path, recipe: Recipe, remedy: str) -> str:
    """How to go on with a run once its recipe has been helped, where it can: `go on with --resume --set ...`.

    `remedy` is a sentence with `key: value` in it; the first of several that it offers is taken.
    """
    settings = re.findall(r"(method|[a-z_]+(?:\.[a-z_]+)+): (\w+)", remedy.partition(", or ")[0])
    found = [of_recipe(Difference(key, recipe.method if key == "method" else None, value)) for key, value in settings]
    if not found or not checkpoints.any_saved(run) or any(each.kind == "fixed" for each in found):
        return ""
    same_batch = [each.what.removeprefix("training.") for each in found] == list(SIZES)
    asked = any(each.kind == "asked" for each in found) and not same_batch
    words = ["--resume", *(["--accept-changes"] if asked else [])]
    return "go on with `" + " ".join([*words, *(f"--set {key}={value}" for key, value in settings)]) + "`"


def set_anew(run: Path, before: RunInfo, recipe: Recipe) -> set[str]:
    """Keys of `training` that the recipe decides now, where `as_begun` would keep what the run had."""
    found = diff_recipes(_recipe_of(run, before, recipe), recipe)
    changed = {each.key.removeprefix("training.") for each in found if each.key.startswith("training.")}
    return {key for key in changed if recipe.training.get(key) != "auto"} - {"optim"}


def _recipe_of(run: Path, before: RunInfo, recipe: Recipe) -> Recipe:
    if before["recipe_sha256"] == recipe_digest(recipe):
        return recipe
    try:
        return load_recipe(run / run_dir.RECIPE)
    except RecipeError as error:
        reason = first_line(error)
        raise RunError(
            f"{run}: its {run_dir.RECIPE} cannot be read any more, so nobody knows what has changed ({reason}); go on "
            f"with recipe-kit {before['recipe_kit_version']}, which wrote it, or start anew without --resume"
        ) from error


def _listed(found: list[Change]) -> str:
    """The first few of each subject, and how many more there are."""
    parts = []
    for subject in dict.fromkeys(each.subject for each in found):
        same = [str(each) for each in found if each.subject == subject]
        parts += same[:_SHOWN]
        parts += [f"and {len(same) - _SHOWN} more"] if len(same) > _SHOWN else []
    return "; ".join(parts)


def _subjects(found: Iterable[Change]) -> str:
    """`recipe has`, `recipe, rows and packages have`."""
    names = list(dict.fromkeys(each.subject for each in found))
    listed = f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]
    return f"{listed} {'have' if len(names) > 1 or names[0] in ('rows', 'packages') else 'has'}"
