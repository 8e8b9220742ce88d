"""recipe-kit: one YAML recipe becomes a fine-tuned chat model.

    import recipe_kit

    recipe = recipe_kit.load_recipe("samsum", profiles=["smoke"])
    run = recipe_kit.train(recipe)          # a folder; finished when this returns
    recipe_kit.evaluate(run)                # base against tuned, again

Every public name is listed in `__all__` and imported on first use, so `import recipe_kit` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "Labeller": "recipe_kit.labels",
    "Recipe": "recipe_kit.recipe",
    "RecipeKitError": "recipe_kit.errors",
    "check_formatter": "recipe_kit.testing",
    "check_rows": "recipe_kit.proofs",
    "diff_recipes": "recipe_kit.recipe",
    "dump_recipe": "recipe_kit.recipe",
    "encode": "recipe_kit.labels",
    "evaluate": "recipe_kit.evaluation",
    "examine": "recipe_kit.doctor",
    "formatter": "recipe_kit.formatters",
    "formatter_names": "recipe_kit.formatters",
    "get_formatter": "recipe_kit.formatters",
    "label_rows": "recipe_kit.data",
    "load_recipe": "recipe_kit.recipe",
    "load_tokenizer": "recipe_kit.modeling",
    "prepare": "recipe_kit.data",
    "read_samples": "recipe_kit.evaluation",
    "recipe_digest": "recipe_kit.recipe",
    "recipe_json_schema": "recipe_kit.recipe",
    "recipe_names": "recipe_kit.catalog",
    "require": "recipe_kit.proofs",
    "resolve": "recipe_kit.recipe",
    "train": "recipe_kit.training",
    "validate": "recipe_kit.validation",
}

__all__ = ["__version__", *sorted(_HOME)]

if TYPE_CHECKING:
    from recipe_kit.catalog import recipe_names as recipe_names
    from recipe_kit.data import label_rows as label_rows
    from recipe_kit.data import prepare as prepare
    from recipe_kit.doctor import examine as examine
    from recipe_kit.errors import RecipeKitError as RecipeKitError
    from recipe_kit.evaluation import evaluate as evaluate
    from recipe_kit.evaluation import read_samples as read_samples
    from recipe_kit.formatters import formatter as formatter
    from recipe_kit.formatters import formatter_names as formatter_names
    from recipe_kit.formatters import get_formatter as get_formatter
    from recipe_kit.labels import Labeller as Labeller
    from recipe_kit.labels import encode as encode
    from recipe_kit.modeling import load_tokenizer as load_tokenizer
    from recipe_kit.proofs import check_rows as check_rows
    from recipe_kit.proofs import require as require
    from recipe_kit.recipe import Recipe as Recipe
    from recipe_kit.recipe import diff_recipes as diff_recipes
    from recipe_kit.recipe import dump_recipe as dump_recipe
    from recipe_kit.recipe import load_recipe as load_recipe
    from recipe_kit.recipe import recipe_digest as recipe_digest
    from recipe_kit.recipe import recipe_json_schema as recipe_json_schema
    from recipe_kit.recipe import resolve as resolve
    from recipe_kit.testing import check_formatter as check_formatter
    from recipe_kit.training import train as train
    from recipe_kit.validation import validate as validate


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'recipe_kit' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
