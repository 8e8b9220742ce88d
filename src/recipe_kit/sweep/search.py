"""Which settings to try next: every combination in order, or what Optuna suggests."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

from recipe_kit.errors import RecipeError
from recipe_kit.sweep.pruning import FINISHED_NEEDED, Curve, Prune
from recipe_kit.sweep.values import Axis, Range, Settings, grid

Sampler = Literal["grid", "tpe", "random"]
SEED = 42  # of Optuna's samplers: the same results lead to the same suggestions, so a sweep can be taken up again


class Search(Protocol):
    """Asked for settings, then told how they did, in turn."""

    def ask(self) -> Settings | None:
        """The next settings; None when all were tried."""
        ...

    def prune(self, otherwise: Prune) -> Prune:
        """The rule for the trial just asked for; `otherwise` is the one without any sampler."""
        ...

    def tell(self, loss: float | None, curve: Curve, *, pruned: bool = False) -> None:
        """How the trial just asked for ended: with a loss, pruned, or failed (neither)."""
        ...


class Grid:
    """Every combination, in the order of `values.grid`."""

    def __init__(self, axes: Sequence[Axis]) -> None:
        self.left = iter(grid(axes))

    def ask(self) -> Settings | None:
        return next(self.left, None)

    def prune(self, otherwise: Prune) -> Prune:
        return otherwise

    def tell(self, loss: float | None, curve: Curve, *, pruned: bool = False) -> None:
        return None


class Optuna:
    """Suggestions of an Optuna study, which is built anew from what the trials did whenever a sweep is taken up."""

    def __init__(self, axes: Sequence[Axis], sampler: Sampler, trials: int) -> None:
        check_installed(sampler)
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        samplers: dict[str, Callable[..., Any]] = {
            "tpe": optuna.samplers.TPESampler,
            "random": optuna.samplers.RandomSampler,
        }
        self.axes = axes
        self.left = trials
        self.study = optuna.create_study(
            direction="minimize",
            sampler=samplers[sampler](seed=SEED),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=FINISHED_NEEDED, n_warmup_steps=0),
        )
        self.trial: Any = None

    def ask(self) -> Settings | None:
        if self.left == 0:
            return None
        self.left -= 1
        self.trial = self.study.ask()
        return {axis.key: _suggest(self.trial, axis) for axis in self.axes}

    def prune(self, otherwise: Prune) -> Prune:
        """Optuna's median rule, with the exceptions of ours: the first and last evaluation, and other steps."""

        def should_prune(step: int, loss: float, evaluations: int) -> str | None:
            self._report({step: loss})
            reason = otherwise(step, loss, evaluations)
            return reason if reason is not None and self.trial.should_prune() else None

        return should_prune

    def tell(self, loss: float | None, curve: Curve, *, pruned: bool = False) -> None:
        import optuna

        self._report(curve)
        state = optuna.trial.TrialState
        if loss is not None:
            self.study.tell(self.trial, loss)
        else:
            self.study.tell(self.trial, state=state.PRUNED if pruned and curve else state.FAIL)

    def _report(self, curve: Curve) -> None:
        known = self.study.trials[self.trial.number].intermediate_values
        for step, loss in curve.items():
            if step not in known:
                self.trial.report(loss, step)


def check_installed(sampler: Sampler) -> None:
    """Raises RecipeError when the sampler needs Optuna and it is not there."""
    spec = importlib.util.find_spec("optuna") if sampler != "grid" else None
    if sampler != "grid" and (spec is None or spec.origin is None):  # no origin: a folder that happens to be so named
        raise RecipeError(
            f"--sampler {sampler}: the package optuna is not installed; `pip install 'recipe-kit[sweep]'`, "
            "or leave --sampler out and list the values"
        )


def _suggest(trial: Any, axis: Axis) -> Any:
    if not isinstance(axis.values, Range):
        # As text: Optuna takes lists and mappings for no category.
        return json.loads(trial.suggest_categorical(axis.key, [json.dumps(value) for value in axis.values]))
    low, high = axis.values.ends
    suggest = trial.suggest_int if axis.values.whole else trial.suggest_float
    return suggest(axis.key, low, high, log=axis.values.log)
