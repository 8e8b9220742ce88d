"""What a recipe is, and how one is read, checked, compared and written down. Needs pydantic and PyYAML only."""

from recipe_kit.recipe.data_section import DataSection, FormatterSpec, HeldOut, Source
from recipe_kit.recipe.load import (
    ABSENT,
    Difference,
    Resolved,
    check_profiles,
    diff_recipes,
    dump_recipe,
    flatten,
    load_recipe,
    recipe_digest,
    resolve,
    to_data,
)
from recipe_kit.recipe.overlay import Origin
from recipe_kit.recipe.reference import recipe_json_schema, recipe_reference
from recipe_kit.recipe.schema import (
    CardSection,
    EvaluationSection,
    LaunchSection,
    ModelSection,
    PublishSection,
    Recipe,
)

__all__ = [
    "ABSENT",
    "CardSection",
    "DataSection",
    "Difference",
    "EvaluationSection",
    "FormatterSpec",
    "HeldOut",
    "LaunchSection",
    "ModelSection",
    "Origin",
    "PublishSection",
    "Recipe",
    "Resolved",
    "Source",
    "check_profiles",
    "diff_recipes",
    "dump_recipe",
    "flatten",
    "load_recipe",
    "recipe_digest",
    "recipe_json_schema",
    "recipe_reference",
    "resolve",
    "to_data",
]
