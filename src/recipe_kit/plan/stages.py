"""Stages that are tried one after another, so that one mistake does not hide the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from recipe_kit.errors import RecipeKitError
from recipe_kit.plan.shape import StageError
from recipe_kit.secrets import blotted

T = TypeVar("T")
Report = Callable[[str], None]

_MISSING = {
    "training section": "the training section is wrong",
    "tokenizer": "the tokenizer could not be loaded",
    "config": "the model's config could not be loaded",
    "parameters": "the parameters could not be counted",
    "rows": "the rows could not be prepared",
}


class Stages:
    """Collects what went wrong, and what was therefore left out."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.errors: list[StageError] = []
        self.not_looked_at: dict[str, str] = {}

    def run(
        self, part: str, action: Callable[..., T], needs: Mapping[str, Any] | None = None, *, cause: str = ""
    ) -> T | None:
        """What `action` returns when given the values of `needs`; None when one of them is None, or when it fails.

        `cause` names what has been told already and would make this stage fail: it is not told twice.
        """
        needs = needs or {}
        for name, value in needs.items():
            if value is None:
                self.leave_out(part, self.not_looked_at.get(name, _MISSING[name]))
                return None
        try:
            return action(*needs.values())
        except RecipeKitError as error:
            if cause:
                self.leave_out(part, cause)
            else:
                self.errors.append({"part": part, "message": blotted(str(error))})
        return None

    def leave_out(self, part: str, why: str) -> None:
        self.not_looked_at[part] = why


def silent(text: str) -> None:
    return None
