"""What a run pins, so that it can be trained again: here, from a published folder, or from the Hub."""

from recipe_kit.lock.public import FOLDER, public_recipe, public_record, weights_sha256
from recipe_kit.lock.recipes import pinned, recipe_of, require_files
from recipe_kit.lock.source import Locked, source_of

__all__ = [
    "FOLDER",
    "Locked",
    "pinned",
    "public_recipe",
    "public_record",
    "recipe_of",
    "require_files",
    "source_of",
    "weights_sha256",
]
