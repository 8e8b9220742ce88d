"""Out of GPU memory, as one sentence: where in the run it happened, what was needed, and the line that helps.

Nothing here imports torch: an error that is one of memory comes from a process that has imported it.
"""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from recipe_kit.errors import ModelError, OutOfMemory

if TYPE_CHECKING:
    from recipe_kit.recipe import Recipe

Phase = Literal["load", "forward", "backward", "optimiser", "evaluation", "save"]

ONE_ROW = "one row alone does not fit"  # why a batch is not halved
_SIGNS = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
_SIZE = r"([\d.]+ (?:[KMG]iB|bytes))"
_SMALL_STATE = ("8bit", "4bit", "paged", "adafactor", "sgd", "lomo", "galore", "apollo")  # optimisers
_UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


class Arguments(Protocol):
    """What a sentence needs of TRL's configuration: numbers, whatever the recipe says."""

    per_device_train_batch_size: int
    per_device_eval_batch_size: int
    gradient_accumulation_steps: int
    gradient_checkpointing: bool
    optim: Any


@dataclass
class Watch:
    """How far a run is and what is known of its memory. The trainer keeps `phase` and `step` up to date.

    Without a recipe nothing is halved, and the advice is general; without arguments nothing is being trained.
    """

    recipe: Recipe | None = None
    arguments: Arguments | None = None
    estimated_peak_bytes: int | None = None
    note: Callable[[str], None] = lambda text: None  # for the person and for run.json
    go_on: Callable[[str], str] = lambda remedy: ""  # what to type once the recipe says so, where that is known
    phase: Phase | None = "load"
    step: int = 0  # the training step under way, from 1; 0 before the first
    parts: int = 1  # that each batch is computed in
    obstacle: str = ""  # why a batch that did not fit was not halved

    @property
    def place(self) -> str:
        """`in backward at step 12`."""
        return (f"in {self.phase}" if self.phase else "") + (f" at step {self.step}" if self.step else "")

    @contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """Something between two steps. After an error the phase stays, for the sentence."""
        before, self.phase = self.phase, phase
        yield
        self.phase = before


@dataclass(frozen=True)
class Device:
    """The GPU of this process, and the most that was allocated on it."""

    name: str
    total_bytes: int
    peak_bytes: int


@contextmanager
def explained(watch: Watch) -> Iterator[None]:
    """Raises OutOfMemory, with its sentence, in place of an error of the GPU's memory; other errors pass."""
    refused = _refused_allocations()
    try:
        yield
    except (RuntimeError, ModelError) as error:
        if isinstance(error, ModelError) and watch.phase != "load":
            raise
        cause = _memory_error(error)
        # transformers 5.23 keeps an error of quantising a weight to itself, and says that the file has issues.
        hidden = watch.phase == "load" and _refused_allocations() > refused
        if cause is None and not hidden:
            raise
        text = sentence(watch, str(cause or ""), device())
        for chained in _chain(error):  # a notebook keeps the last error, and tensors with it
            traceback.clear_frames(chained.__traceback__)
        raise OutOfMemory(text) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a GPU's memory ran out: PyTorch's own, and those of cuBLAS, Triton, bitsandbytes."""
    if not isinstance(error, RuntimeError):
        return False
    return type(error).__name__ == "OutOfMemoryError" or any(sign in str(error) for sign in _SIGNS)


def _memory_error(error: BaseException) -> BaseException | None:
    return next((chained for chained in _chain(error) if is_out_of_memory(chained)), None)


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__


def _refused_allocations() -> int:
    torch = sys.modules.get("torch")
    return 0 if torch is None or not torch.cuda.is_initialized() else torch.cuda.memory_stats().get("num_ooms", 0)


def device() -> Device | None:
    """The GPU this process works on; None where it works on none."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    return Device(torch.cuda.get_device_name(), total, torch.cuda.max_memory_allocated())


def sentence(watch: Watch, said: str, device: Device | None) -> str:
    """Phase, what CUDA `said` was needed and free, measured and estimated peak, and what to do; on one line."""
    facts = [_needed(said, device), _others(said), _fragments(said), _peaks(watch, device), watch.obstacle]
    line = remedy(watch)
    then = watch.go_on(line) if watch.arguments is not None else ""  # where nothing is trained nothing goes on
    told = "; ".join(fact for fact in [*facts, line, then] if fact)
    return f"out of GPU memory {watch.place}".rstrip() + f": {told}"


def _needed(said: str, device: Device | None) -> str:
    tried, free = _found(f"Tried to allocate {_SIZE}", said), _found(f"of which {_SIZE} is free", said)
    total, allowed = _found(f"total capacity of {_SIZE}", said), _found(f"{_SIZE} allowed", said)
    card = f"the {device.name}'s" if device else "the card's"
    if tried and total and allowed:
        return f"{tried} more needed, and this process may use {allowed} of {card} {total}"
    if tried and total and free:
        return f"{tried} more needed, {free} of {card} {total} free"
    return f"{tried} more needed" if tried else f"{card} {_gib(device.total_bytes)} are full" if device else ""


def _others(said: str) -> str:
    """What CUDA counts that is neither free nor of this process."""
    total, free = _bytes(f"total capacity of {_SIZE}", said), _bytes(f"of which {_SIZE} is free", said)
    own = _bytes(f"this process has {_SIZE} memory in use", said)
    others = total - free - own if own else 0
    return f"other programs hold {_gib(others)} of it" if others > 2**29 else ""


def _fragments(said: str) -> str:
    """Memory that PyTorch holds, in pieces too small: said only where all of them together would have been enough."""
    held, tried = _bytes(f"{_SIZE} is reserved by PyTorch but unallocated", said), _bytes(f"allocate {_SIZE}", said)
    if not 0 < tried <= held:
        return ""
    return f"{_gib(held)} lie unused in pieces, which PYTORCH_ALLOC_CONF=expandable_segments:True prevents"


def _peaks(watch: Watch, device: Device | None) -> str:
    peaks = [f"peak {_gib(device.peak_bytes)}"] if device else []
    if watch.estimated_peak_bytes is not None:
        peaks.append(f"estimated {_gib(watch.estimated_peak_bytes)}")
    return ", ".join(peaks)


def _found(pattern: str, said: str) -> str:
    match = re.search(pattern, said)
    return match[1] if match else ""


def _bytes(pattern: str, said: str) -> float:
    number, _, unit = _found(pattern, said).partition(" ")
    return float(number) * _UNITS[unit] if unit else 0.0


def _gib(count: float) -> str:
    return f"{count / 2**30:.2f} GiB"


def remedy(watch: Watch) -> str:
    """The one line of the recipe that helps most in this phase, with its value."""
    recipe, arguments = watch.recipe, watch.arguments
    if recipe is None:
        less = "add --precision nf4, or " if watch.phase == "evaluation" else ""
        return f"{less}run it on the CPU with `CUDA_VISIBLE_DEVICES=` before the command"
    if watch.phase == "load":
        return _smaller_weights(recipe)
    if watch.phase == "evaluation":
        return _smaller_evaluation(recipe, arguments)
    if arguments is None:
        return _smaller_weights(recipe)
    if watch.phase in ("optimiser", "save"):  # no activations are held: weights and optimiser state fill the card
        return _smaller_state(recipe, arguments, watch.phase)
    return _smaller_step(recipe, arguments, can_cut=watch.obstacle != ONE_ROW)


def _smaller_step(recipe: Recipe, arguments: Arguments, *, can_cut: bool) -> str:
    if not arguments.gradient_checkpointing:
        return "set training.gradient_checkpointing: true"
    rows, steps = arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps
    if rows > 1 and can_cut:
        cut = next(number for number in range(2, rows + 1) if rows % number == 0)
        return (
            f"set training.per_device_train_batch_size: {rows // cut} and "
            f"training.gradient_accumulation_steps: {steps * cut}, which is the same effective batch"
        )
    shorter = f"data.max_length: {recipe.data.max_length // 2}"
    return f"set {shorter}" if recipe.method == "qlora" else f"set method: qlora, or {shorter}"


def _smaller_state(recipe: Recipe, arguments: Arguments, phase: Phase) -> str:
    optimiser = str(getattr(arguments.optim, "value", arguments.optim))
    if not any(part in optimiser for part in _SMALL_STATE):
        return "set training.optim: paged_adamw_8bit"
    if recipe.method == "full":
        return "set method: lora"
    if recipe.method == "lora":
        return "set method: qlora"
    if phase == "save":
        return "set training.save_strategy: no; the weights are still saved at the end"
    return _smaller_step(recipe, arguments, can_cut=True)


def _smaller_weights(recipe: Recipe) -> str:
    if recipe.method == "qlora":
        return "name a smaller model in model.id, or take a card with more memory"
    if recipe.model.dtype == "float32":
        return "set model.dtype: bfloat16"
    return "set method: qlora"


def _smaller_evaluation(recipe: Recipe, arguments: Arguments | None) -> str:
    if arguments is not None:  # in the middle of training: the loss on held-out rows, and nothing else
        rows = arguments.per_device_eval_batch_size
        if rows > 1:
            return f"set training.per_device_eval_batch_size: {rows // 2}"
        return "set training.eval_strategy: no; what is measured after training stays"
    settings = recipe.evaluation
    if settings.lm_eval is not None and settings.batch_size != 1:
        return "set evaluation.batch_size: 1"
    if recipe.method != "qlora":
        return "measure with --precision nf4"
    return f"set evaluation.max_new_tokens: {max(1, settings.max_new_tokens // 2)}"
