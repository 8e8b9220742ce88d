"""The errors a user can cause, and nothing else.

Everything the command line turns into one sentence and exit code 1 is here. Any other exception is a bug of ours and
keeps its traceback.

    RecipeKitError
    ├── RecipeError        a recipe cannot be read or is wrong; carries every problem found
    ├── RegistryError      a name is unknown, taken twice, or cannot be imported
    ├── FormatError        one row does not fit its formatter
    │   └── SkipRow        the formatter leaves this row out on purpose; counted, never fatal
    ├── DataError          rows cannot be found, read, split, or none is left
    ├── LabelError         a conversation cannot be turned into labels that can be trusted
    ├── ProofError         a proof about rows, tokens or trainer failed before the first step
    ├── ModelError         a model or tokenizer cannot be found, loaded or combined with the method
    ├── MetricError        a metric gives no score: wrong options, no reference, or its code failed
    ├── OutOfMemory        the GPU's memory ran out, in a named phase, and smaller parts did not help
    ├── LaunchError        the training processes cannot be started, or one of them failed
    ├── RunError           a run folder is missing, unfinished, or cannot be written
    ├── MergeError         an adapter cannot be merged, or the merged model is not the adapter model
    ├── CardError          a model card cannot be written from a run, or does not pass the lint
    └── PublishError       the Hub refused, cannot be reached, or would get what it should not
"""

from __future__ import annotations

from dataclasses import dataclass


class RecipeKitError(Exception):
    """A mistake the user can correct; its text says what was expected, what was got, where, and what to do next."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong in a recipe, with the place to look at."""

    message: str
    key: str = ""  # dotted path, such as `training.learning_rate`
    file: str = ""
    line: int = 0  # 1-based; 0 when the value does not come from a line of a file

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return ": ".join(part for part in (place, self.key, self.message) if part)


class RecipeError(RecipeKitError):
    """A recipe cannot be used. `problems` lists all that is wrong, in file order."""

    def __init__(self, problems: list[Problem] | str) -> None:
        self.problems = [Problem(problems)] if isinstance(problems, str) else problems
        super().__init__("\n".join(str(problem) for problem in self.problems))


class RegistryError(RecipeKitError):
    """A name is unknown, is claimed by two parties, or what it points to cannot be imported."""


class FormatError(RecipeKitError):
    """One row does not fit its formatter. `column` names the column at fault, when there is one."""

    def __init__(self, message: str, *, column: str | None = None) -> None:
        self.column = column
        super().__init__(message)


class SkipRow(FormatError):  # noqa: N818 - not a mistake, a decision
    """Raised by a formatter for a row it leaves out on purpose; the row is counted under this message."""


class DataError(RecipeKitError):
    """Rows cannot be found, read or split, or none is left to train on."""


class LabelError(RecipeKitError):
    """A conversation cannot be turned into token labels that can be trusted."""


class ProofError(RecipeKitError):
    """What would be trained is not what the recipe says; one sentence for each proof that failed."""


class ModelError(RecipeKitError):
    """A model or its tokenizer cannot be found, loaded, or combined with the chosen method."""


class MetricError(RecipeKitError):
    """A metric gives no score that can be trusted; the other metrics are not touched by it."""


class OutOfMemory(RecipeKitError):  # noqa: N818 - the name that PyTorch's users know
    """The GPU's memory does not hold the model, a step, an evaluation or what saving needs."""


class LaunchError(RecipeKitError):
    """The training processes could not be started, or one of them failed."""


class RunError(RecipeKitError):
    """A run folder is missing, unfinished, or cannot be written."""


class MergeError(RecipeKitError):
    """An adapter cannot be merged, or what came of it is not the model the adapter makes."""


class CardError(RecipeKitError):
    """A model card cannot be written from a run, or does not pass the lint."""


class PublishError(RecipeKitError):
    """The Hub refused or cannot be reached, or a push would publish what it should not."""


def first_line(error: BaseException) -> str:
    """What another library's error says, short enough for the middle of a sentence; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
