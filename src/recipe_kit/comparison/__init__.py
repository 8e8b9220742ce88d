"""Runs side by side: what they scored and how surely, what they took, and where the comparison is not fair.

    comparison = compare_runs(["runs/a/latest", "runs/b/latest"])
    print(as_text(comparison))

Reads run folders only: nothing is loaded, measured or trained here. `plan.py` decides what
`recipe-kit compare --recipes` has to train first.
"""

from recipe_kit.comparison.build import Comparison as Comparison
from recipe_kit.comparison.build import Entry as Entry
from recipe_kit.comparison.build import Group as Group
from recipe_kit.comparison.build import compare_runs as compare_runs
from recipe_kit.comparison.output import as_csv as as_csv
from recipe_kit.comparison.output import as_page as as_page
from recipe_kit.comparison.output import as_text as as_text
