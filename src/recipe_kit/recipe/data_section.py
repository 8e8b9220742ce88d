"""The section `data` of a recipe: where rows come from, and how a row becomes tokens to learn."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    Tag,
    model_serializer,
)

from recipe_kit.recipe.section import Options, Section, named

SOURCE_KEYS = ("id", "path", "sample")
HELD_OUT_KEYS = ("fraction", "rows")


class FormatterSpec(Section):
    """The function that turns one row into a conversation."""

    name: str = Field(
        min_length=1, description="A registered name (see `recipe-kit formatters`) or `module:attribute`."
    )
    options: Options = Field(default_factory=dict, description="Keyword arguments for the formatter.")
    columns: Annotated[dict[str, str], BeforeValidator(lambda value: {} if value is None else value)] = Field(
        default_factory=dict, description="Which column of the data stands for each column the formatter reads."
    )


Formatter = Annotated[FormatterSpec, BeforeValidator(named, json_schema_input_type=str | FormatterSpec)]


class Source(Section):
    """Rows to read: exactly one of `id`, `path` and `sample` says where from."""

    id: str | None = Field(None, description="Data set on the Hub, `org/name`.")
    path: str | None = Field(
        None, description="JSON, JSONL, CSV or Parquet file, or a folder of them; relative to the recipe's own folder."
    )
    sample: str | None = Field(None, description="Rows that ship with the kit, by name.")
    config: str | None = Field(None, description="Configuration of a Hub data set, for those that have several.")
    split: str = Field("train", description="Split to read.")
    revision: str | None = Field(None, description="Commit, tag or branch of a Hub data set. Pin it.")
    where: Options = Field(
        default_factory=dict, description="Keep the rows whose columns equal these values, `{column: value}`."
    )
    limit: int | None = Field(None, gt=0, description="Read at most this many rows.")
    weight: float | None = Field(
        None,
        gt=0,
        description="How often each training row is seen in an epoch: 0.5 keeps half of the rows, chosen by content, "
        "2 shows each twice; null is 1.",
    )
    formatter: Formatter | None = Field(None, description="Used for these rows instead of `data.formatter`.")

    @model_serializer(mode="wrap")
    def _only_the_chosen_place(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = handler(self)
        return {key: value for key, value in data.items() if key not in SOURCE_KEYS or value is not None}


class HeldOut(Section):
    """Rows taken out of the training data: exactly one of `fraction` and `rows`."""

    fraction: float | None = Field(None, gt=0, lt=1, description="Share of the training rows.")
    rows: int | None = Field(None, gt=0, description="Number of training rows.")

    @model_serializer(mode="wrap")
    def _only_the_chosen_measure(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = handler(self)
        return {key: value for key, value in data.items() if value is not None}


# Tags in angle brackets cannot be taken for keys of a recipe.
HELD_OUT_TAG, SOURCE_TAG = "<held out>", "<source>"


def _eval_kind(value: Any) -> str:
    if isinstance(value, HeldOut):
        return HELD_OUT_TAG
    held_out = isinstance(value, dict) and any(key in value for key in HELD_OUT_KEYS)
    return HELD_OUT_TAG if held_out and not any(key in value for key in SOURCE_KEYS) else SOURCE_TAG


EvalRows = Annotated[
    Annotated[HeldOut, Tag(HELD_OUT_TAG)] | Annotated[Source, Tag(SOURCE_TAG)], Discriminator(_eval_kind)
]


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


def _one_or_many(sources: tuple[Source, ...]) -> Any:
    rows = [source.model_dump() for source in sources]
    return rows[0] if len(rows) == 1 else rows


# Always a tuple in Python; in YAML one source needs no list around it.
Mixture = Annotated[
    tuple[Source, ...],
    Field(strict=False),
    BeforeValidator(_as_list, json_schema_input_type=Source | list[Source]),
    PlainSerializer(_one_or_many),
]


class DataSection(Section):
    """Rows to train and measure on, and how a row becomes tokens to learn."""

    train: Mixture = Field(description="Rows to learn from: one source, or a list of them mixed together.")
    eval: EvalRows | None = Field(
        None,
        description="Rows for the loss during training: a source, or a part held out of the training rows, "
        "`{fraction: 0.05}` or `{rows: 100}`.",
    )
    test: Source | None = Field(None, description="Rows for the scores reported after training.")
    formatter: Formatter = Field(
        description="Turns one row into a conversation: a name, or `{name: …, options: {…}}`."
    )
    train_on: Literal["assistant", "last_assistant", "all"] = Field(
        "assistant", description="Tokens to learn: every assistant turn, only the last one, or all tokens."
    )
    system: str | None = Field(None, description="System prompt put before conversations that have none.")
    max_length: int = Field(1024, gt=0, description="Longest conversation in tokens; also the length of a packed row.")
    too_long: Literal["drop", "truncate", "error"] = Field(
        "drop", description="What happens to a longer one. Always counted."
    )
    bad_rows: Literal["error", "drop"] = Field(
        "error", description="What happens to a row its formatter refuses. Always counted."
    )
    redact: list[Literal["email", "phone", "card"]] = Field(
        default_factory=list,
        description="Personal data replaced before training, such as `[email, phone]`: an address becomes `[email]`.",
    )
    role_order: Literal["keep", "merge"] = Field(
        "keep",
        description="Two turns of one role in a row: `keep` leaves them to the template, `merge` makes them one turn. "
        "Merged rows are counted.",
    )
    streaming: bool = Field(
        False,
        description="Read, format and tokenise while training, for data larger than the disk; needs "
        "`training.max_steps`.",
    )
    split_seed: int = Field(42, description="Seed that decides which rows are held out.")

    def sources(self, split: str) -> tuple[Source, ...]:
        """Where the rows of `train`, `eval` or `test` are read from; none for rows held out of the training rows."""
        chosen = getattr(self, split)
        return chosen if isinstance(chosen, tuple) else (chosen,) if isinstance(chosen, Source) else ()

    def formatter_of(self, source: Source) -> FormatterSpec:
        """The formatter for the rows of one source."""
        return source.formatter or self.formatter
