"""Was it reproduced? A run trained again from its lock, held against what was recorded.

`compare` is a pure function of two records; `check_here` looks at this machine before anything is trained.
"""

from recipe_kit.reproduce.facts import Fact, environment, rows, threads
from recipe_kit.reproduce.here import check_here
from recipe_kit.reproduce.verdict import Comparison, Record, compare

__all__ = ["Comparison", "Fact", "Record", "check_here", "compare", "environment", "rows", "threads"]
