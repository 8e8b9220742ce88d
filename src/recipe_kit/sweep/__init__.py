"""One recipe with many settings: tried one after another, chosen by the held-out loss, written down as a recipe.

    plan = plan_sweep("samsum", ["training.learning_rate=1e-4,2e-4"])   # everything checked, nothing trained
    tried = run_trials(plan)                                            # each trial in a process of its own
    write_best(plan, tried)

`values.py` reads `--over`, `search.py` says what to try next, `pruning.py` when to stop early, `result.py` what
came of it. Test rows are never looked at.
"""

from recipe_kit.sweep.drive import Tried as Tried
from recipe_kit.sweep.drive import run_trials as run_trials
from recipe_kit.sweep.plan import SweepPlan as SweepPlan
from recipe_kit.sweep.plan import plan_sweep as plan_sweep
from recipe_kit.sweep.result import write_best as write_best
