"""The weights of a run as files: written beside, read back, compared with memory, and moved into place.

The same is done once after the first step, into a folder that is removed: what cannot be saved is known then, and not
after hours.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import peft
import torch
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM

from recipe_kit import checkpoints
from recipe_kit.errors import RunError, first_line
from recipe_kit.gathering import whole_models
from recipe_kit.saving import SavingTrainer

Write = Callable[[Path], None]  # writes all files of the weights into a folder; called by every rank
_WRAPPERS = ("_checkpoint_wrapped_module.", "_orig_mod.", "_fsdp_wrapped_module.")


def rehearse(trainer: SavingTrainer, run: Path, write: Write, report: Callable[[str], None]) -> int:
    """Save into a folder beside, read it back, compare, remove it; the bytes it took. Called by every rank.

    Raises RunError where the weights of this run could not be saved, or would be others than those in memory.
    """
    trainer.require_numbers()
    started = time.monotonic()
    folder = run / checkpoints.WRITING / "rehearsal"
    try:
        problem = _written_and_equal(trainer, folder, write)
        took = [checkpoints.size(folder) if trainer.accelerator.is_main_process else 0]  # which removes them next
        broadcast_object_list(took)
    finally:
        _remove(trainer, folder)
    if problem:
        raise RunError(
            f"{run}: the trained weights could not be saved: {problem}; saving is tried after the first step, and the "
            "training ends here and not after its last one"
        )
    size = checkpoints.gigabytes(took[0])
    report(f"saving rehearsed: {size} written, read back and as in memory, in {time.monotonic() - started:.1f} s")
    return took[0]


def save(trainer: SavingTrainer, run: Path, place: Path, write: Write, report: Callable[[str], None]) -> None:
    """Save the trained weights to `place`, whole or not at all. Called by every rank. Raises RunError."""
    trainer.require_numbers()
    folder = run / checkpoints.WRITING / place.name
    for attempt in (1, 2):
        problem = _written_and_equal(trainer, folder, write)
        if not problem and trainer.accelerator.is_main_process:
            try:
                checkpoints.flush(folder)
                checkpoints.move_into_place(folder, place)
            except OSError as error:
                problem = f"they cannot be written ({checkpoints.in_words(error, run)})"
        problem = trainer.agreed(problem)
        _remove(trainer, folder)
        if not problem:
            return
        if attempt == 1:
            report(f"{place}: {problem}; trying again")
    step = checkpoints.last_step(run)
    if step is None:
        then = "no checkpoint was saved, so train again with training.save_strategy: steps"
    else:
        then = f"free some space, and `recipe-kit train ... --resume {run}` goes on from the checkpoint of step {step}"
    raise RunError(f"{place}: the trained weights could not be saved: {problem}; {then}")


def _written_and_equal(trainer: SavingTrainer, folder: Path, write: Write) -> str:
    """What went wrong in writing the weights and reading them back, on all ranks alike; "" where nothing did."""
    live = _live(trainer)
    needed = sum(_bytes(value) for value in live.values())
    is_main = trainer.accelerator.is_main_process
    problem = trainer.agreed(checkpoints.shortage(folder.parent.parent, needed) if is_main else "")
    if problem:
        return problem
    _remove(trainer, folder)
    try:
        write(folder)
    except Exception as error:
        if not checkpoints.is_disk_error(error):
            raise
        problem = f"they cannot be written ({checkpoints.in_words(error, folder.parent.parent)})"
    problem = trainer.agreed(problem)
    return problem or trainer.agreed(_difference(trainer, folder, live))


def _live(trainer: SavingTrainer) -> dict[str, torch.Tensor]:
    """What belongs into the files, by its name there: the adapter as PEFT names it, or all of the model."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    if isinstance(model, peft.PeftModel):
        named = {_bare(name): value for name, value in model.named_parameters(remove_duplicate=False)}
        # PEFT's own choice about embeddings would ask the Hub; a trained one that is missing here is found below.
        found: dict[str, torch.Tensor] = peft.get_peft_model_state_dict(model, named, save_embedding_layers=False)
        there = {id(value) for value in found.values()}
        found |= {n: value for n, value in named.items() if value.requires_grad and id(value) not in there}
        return found
    return {_bare(name): value for name, value in model.state_dict(keep_vars=True).items()}


def _difference(trainer: SavingTrainer, folder: Path, live: Mapping[str, torch.Tensor]) -> str:
    """In what the files are not the model in memory; "" where they are. A collective call: shards are put together."""
    is_main = trainer.accelerator.is_main_process
    problem = ""
    saved: _Saved | None = None
    if is_main:
        try:
            is_adapter = isinstance(trainer.accelerator.unwrap_model(trainer.model), peft.PeftModel)
            saved = _Saved(folder, live, is_adapter=is_adapter, trusted=bool(trainer.args.trust_remote_code))
            problem = saved.problem
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            problem = f"what was written cannot be read back ({first_line(error)})"
    for name, value in live.items():
        whole = _whole(value, trainer.accelerator.device)
        if saved is not None and not problem and not saved.has_equal(name, whole):
            problem = f"{name} in the files is not {name} in memory"
    return problem


class _Saved:
    """The tensors that were written, by the names they have in memory."""

    def __init__(self, folder: Path, live: Mapping[str, torch.Tensor], *, is_adapter: bool, trusted: bool) -> None:
        self.problem = ""
        self._files = {name: path for path in sorted(folder.glob("*.safetensors")) for name in _names(path)}
        self._loaded: Mapping[str, torch.Tensor] = {}
        self._tied: dict[str, str] = {}
        if is_adapter:
            peft.PeftConfig.from_pretrained(str(folder))  # a configuration that cannot be read fails here
        else:
            self._check_model(folder, live, trusted)
        first: dict[int, str] = {id(live[name]): name for name in live if name in self}
        self._tied = {name: first[id(value)] for name, value in live.items() if id(value) in first}
        missing = [name for name in live if name not in self._tied]
        if missing and not self.problem:
            others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            self.problem = f"{missing[0]}{others} would not be in the files"

    def _check_model(self, folder: Path, live: Mapping[str, torch.Tensor], trusted: bool) -> None:
        """Whether a fresh model of the saved configuration has these weights, under these names."""
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=trusted)
        with torch.device("meta"), whole_models():
            fresh = AutoModelForCausalLM.from_config(config, trust_remote_code=trusted).state_dict()
        wrong = [name for name in fresh if name not in live or _shape(live[name]) != fresh[name].shape]
        if wrong or len(fresh) != len(live):
            name = next(iter([*wrong, *(set(live) - set(fresh))]))
            self.problem = f"a model of the saved config.json has another {name}"
        elif not any(name in self._files for name in live):  # transformers saves some models under other names
            with whole_models():
                model = AutoModelForCausalLM.from_pretrained(str(folder), dtype="auto", trust_remote_code=trusted)
            self._loaded = model.state_dict()

    def __contains__(self, name: object) -> bool:
        return name in self._files or name in self._loaded

    def has_equal(self, name: str, whole: torch.Tensor) -> bool:
        """Bit by bit, so that a NaN is equal to itself; in the narrower type of both, where files have another one."""
        name = self._tied[name]
        if name in self._loaded:
            saved = self._loaded[name]
        else:
            with safe_open(self._files[name], framework="pt") as file:
                saved = file.get_tensor(name)
        narrow = min(saved.dtype, whole.dtype, key=lambda dtype: dtype.itemsize)
        saved, whole = saved.to(narrow), whole.to("cpu", narrow)
        return saved.shape == whole.shape and torch.equal(_bits(saved), _bits(whole))


def _names(path: Path) -> list[str]:
    with safe_open(path, framework="pt") as file:
        return list(file.keys())


def _bits(value: torch.Tensor) -> torch.Tensor:
    return value.detach().contiguous().reshape(-1).view(torch.uint8)


def _bare(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def _shape(value: torch.Tensor) -> torch.Size:
    """Of the whole tensor: a shard of FSDP2 knows it, one of ZeRO-3 has it written beside."""
    shape: torch.Size = getattr(value, "ds_shape", value.shape)
    return shape


def _bytes(value: torch.Tensor) -> int:
    return _shape(value).numel() * value.element_size()


def _whole(value: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor of all ranks together, where each holds a shard; called by every rank."""
    from torch.distributed.tensor import DTensor

    if isinstance(value, DTensor):  # FSDP2
        shard: Any = value.detach().to(device)
        whole: torch.Tensor = shard.full_tensor()
        return whole
    if hasattr(value, "ds_id"):  # ZeRO-3
        zero: Any = importlib.import_module("deepspeed").zero
        with zero.GatheredParameters([value]):
            return value.detach().cpu().clone()
    return value.detach()


def _remove(trainer: SavingTrainer, folder: Path) -> None:
    if trainer.accelerator.is_main_process:
        checkpoints.discard(folder)
