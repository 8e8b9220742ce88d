"""What all sections of a recipe have in common."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

# `lora: null` in an overlay clears what was inherited.
Options = Annotated[dict[str, Any], BeforeValidator(lambda value: {} if value is None else value)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def named(value: Any) -> Any:
    """A bare name is the short form of `{name: …}`."""
    return {"name": value} if isinstance(value, str) else value
