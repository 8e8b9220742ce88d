"""A recipe short enough to read in a test, and what the user reads when one is wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from recipe_kit.errors import RecipeError
from recipe_kit.recipe import load_recipe

BASE = """\
name: base
model: {id: org/model}
method: lora
data:
  train: {id: org/rows}
  formatter: chat
"""

Write = Callable[..., Path]


def problems(path: Path | str, *, profiles: Sequence[str] = (), overrides: Sequence[str] = ()) -> list[str]:
    """What is wrong with a recipe, as the user reads it."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, profiles=profiles, overrides=overrides)
    return [str(problem) for problem in caught.value.problems]
