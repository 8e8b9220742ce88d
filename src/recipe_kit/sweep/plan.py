"""What a sweep will do: every trial checked, and all that would stop it said, before the first one trains."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from recipe_kit import trials
from recipe_kit.errors import Problem, RecipeError
from recipe_kit.recipe import Recipe, load_recipe
from recipe_kit.sweep import best
from recipe_kit.sweep.search import Grid, Optuna, Sampler, Search, check_installed
from recipe_kit.sweep.values import Axis, Range, Settings, as_overrides, corners, grid, parse
from recipe_kit.trials import Trial

MEMORY = "sweep.json"
EVALUATIONS = 5  # of the held-out loss while a trial trains
DEFAULT_TRIALS = 20
# A trial is judged by its held-out loss on the eval rows and by nothing else.
_MEASURED = (
    "evaluation.after_training=true", "evaluation.split=eval", "evaluation.perplexity=true", "evaluation.metrics=[]",
    "evaluation.samples=0", "evaluation.prompts=[]", "evaluation.judge=null", "evaluation.lm_eval=null",
)  # fmt: skip

_UNPRUNED = "trials of qlora on a CPU are not stopped early: evaluating one in training would change its 4-bit weights"


@dataclass(frozen=True)
class SweepPlan:
    """A sweep, decided."""

    source: str
    profiles: tuple[str, ...]
    overrides: tuple[str, ...]
    axes: tuple[Axis, ...]
    sampler: Sampler
    trials: int
    prune: bool
    name: str  # of the recipe
    folder: Path  # where the sweep keeps its runs and its memory
    out: Path
    num_processes: int | None
    on_cpu: bool = False  # whether there is no GPU for a trial
    remark: str = ""  # what is done otherwise than usual, and why

    @property
    def keys(self) -> list[str]:
        return [axis.key for axis in self.axes]

    @property
    def memory(self) -> Path:
        """The file in which ended trials are remembered."""
        return self.folder / MEMORY

    def search(self) -> Search:
        """A new search, at its beginning."""
        if self.sampler == "grid":
            return Grid(self.axes)
        return Optuna(self.axes, self.sampler, self.trials)

    def trial(self, settings: Settings) -> Trial:
        """The training run of a combination. Raises RecipeError."""
        overrides = [*self.overrides, *as_overrides(settings)]
        recipe = load_recipe(self.source, profiles=self.profiles, overrides=overrides)
        overrides += trial_overrides(recipe, prune=self.prune and not self.must_not_evaluate(recipe))
        return trials.load(self.source, self.profiles, overrides, num_processes=self.num_processes)

    def must_not_evaluate(self, recipe: Recipe) -> bool:
        """Whether evaluating while it trains would change what is trained: on a CPU, bitsandbytes packs 4-bit weights
        anew for a model that is evaluated, which loses some of their precision, and training goes on with those."""
        chosen = recipe.training.get("use_cpu") is True or recipe.launch.accelerate_config == "cpu"
        return recipe.method == "qlora" and (self.on_cpu or chosen)

    def wanted(self, settings: Settings) -> Recipe:
        """The recipe of a combination as a user would train it: without what a trial changes in how it is measured."""
        overrides = [*self.overrides, *as_overrides(settings)]
        return load_recipe(self.source, profiles=self.profiles, overrides=overrides)


def plan_sweep(
    source: str,
    over: Sequence[str],
    *,
    profiles: Sequence[str] = (),
    overrides: Sequence[str] = (),
    runs_dir: str | Path = "runs",
    num_processes: int | None = None,
    sampler: Sampler = "grid",
    trials: int | None = None,
    prune: bool = True,
    out: str | Path | None = None,
    on_cpu: bool = False,
) -> SweepPlan:
    """Everything checked that can be checked without training. Raises RecipeError with all problems at once.

    `on_cpu` says that there is no GPU for the trials.
    """
    if not over:
        raise RecipeError("nothing to sweep over; add one or more `--over training.learning_rate=1e-4,2e-4`")
    if trials is not None and sampler == "grid":
        raise RecipeError("--trials: a grid tries every combination; leave it out, or add --sampler tpe")
    check_installed(sampler)
    recipe = load_recipe(source, profiles=profiles, overrides=overrides)
    if recipe.data.eval is None:
        raise RecipeError(
            f"{source}: names no data.eval, and a setting must not be chosen by the test rows; hold rows out of the "
            "training rows with --set 'data.eval={fraction: 0.1}'"
        )
    axes = parse(over, ranges=sampler != "grid", overrides=overrides)
    target = Path(out) if out is not None else best.default_path(source, recipe.name)
    folder = Path(runs_dir) / f"{recipe.name}-sweep"
    best.check_path(target, folder / MEMORY)
    found = SweepPlan(
        source=source,
        profiles=tuple(profiles),
        overrides=tuple(overrides),
        axes=tuple(axes),
        sampler=sampler,
        trials=len(grid(axes)) if sampler == "grid" else trials or DEFAULT_TRIALS,
        prune=prune,
        name=recipe.name,
        folder=folder,
        out=target,
        num_processes=num_processes,
        on_cpu=on_cpu,
    )
    recipes = _check_all(found)
    return replace(found, remark=_UNPRUNED) if prune and any(map(found.must_not_evaluate, recipes)) else found


def trial_overrides(recipe: Recipe, *, prune: bool) -> list[str]:
    """What a trial changes in its recipe: it is measured by held-out loss, also while it trains, and leaves no
    checkpoint, since an interrupted trial starts anew. What the recipe itself says about evaluation steps stays."""
    training = recipe.training
    found = list(_MEASURED)
    if not training.get("load_best_model_at_end"):
        found.append("training.save_strategy=no")
    if prune and "eval_strategy" not in training:
        found.append("training.eval_strategy=steps")
    if prune and training.get("eval_strategy", "steps") == "steps" and training.get("eval_steps") is None:
        max_steps = int(training.get("max_steps", -1))
        steps = math.ceil(max_steps / EVALUATIONS) if max_steps > 0 else 1 / EVALUATIONS  # below 1: a share
        found.append(f"training.eval_steps={steps}")
    return found


def range_lines(axes: Sequence[Axis]) -> list[str]:
    """How each range is searched, in words."""
    return [f"{axis.key}: {axis.values}" for axis in axes if isinstance(axis.values, Range)]


def _check_all(plan: SweepPlan) -> list[Recipe]:
    """Every combination as a recipe. Raises RecipeError with the sentences of all of them, each once, in terms of
    what the user wrote."""
    problems: dict[str, Problem] = {}
    recipes: list[Recipe] = []
    for settings in grid(plan.axes) if plan.sampler == "grid" else corners(plan.axes):
        try:
            recipes.append(plan.trial(settings).recipe)
        except RecipeError as error:
            for problem in error.problems:
                found = _in_terms_of_over(problem, plan, settings)
                problems.setdefault(str(found), found)
    if problems:
        raise RecipeError(list(problems.values()))
    return recipes


def _in_terms_of_over(problem: Problem, plan: SweepPlan, settings: Settings) -> Problem:
    message = problem.message
    for axis, change in zip(plan.axes, as_overrides(settings), strict=True):
        message = message.replace(f"`--set {change}`", f"`--over {axis.text}`")
    return Problem(message, key=problem.key, file=problem.file, line=problem.line)
