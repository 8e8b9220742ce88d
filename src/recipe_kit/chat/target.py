"""What a user wants to talk to: a run, a folder in it, a folder with weights or an adapter, or a model id."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import huggingface_hub
import torch
from huggingface_hub.errors import EntryNotFoundError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recipe_kit import labels, modeling, run_dir
from recipe_kit.errors import ModelError, RunError, first_line
from recipe_kit.evaluation import generation, inference
from recipe_kit.lock import recipe_of
from recipe_kit.recipe import ModelSection, Recipe

Which = Literal["base", "tuned"]
Report = Callable[[str], None]

_ADAPTER_CONFIG = "adapter_config.json"
_ADAPTER_FILES = [
    "adapter_*",
    "*.jinja",
    "*.json",
    "*.model",
    "*.txt",
]  # on the Hub, without checkpoints
_HUB_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_DTYPES = {"torch.bfloat16": "bfloat16", "torch.float16": "float16", "torch.float32": "float32"}


@dataclass
class Chat:
    """A tuned model and its base, ready to answer. Weights are loaded when they are first asked for."""

    name: str
    recipe: Recipe  # its model is the base, and its method says how `weights` are put on it
    weights: Path | None  # an adapter or full weights; None for a model that stands alone
    tokenizer: PreTrainedTokenizerBase
    system: str | None  # the system prompt the run was trained with
    precision: str
    quantize: bool
    _models: dict[Which, PreTrainedModel] = field(default_factory=dict, repr=False)

    @property
    def is_adapter(self) -> bool:
        return self.recipe.method != "full"

    @property
    def weights_type(self) -> str:
        return "nf4" if self.quantize else self.precision

    @cached_property
    def control_texts(self) -> list[str]:
        """What must not stand in a message."""
        return [text for text in labels.control_texts(self.tokenizer) if text.strip()]

    def model(self, which: Which) -> PreTrainedModel:
        """The model that answers as `which`; for an adapter both are one, which `answering` switches over.

        Raises ModelError when weights cannot be loaded, or when `base` is asked of a model that stands alone.
        """
        if which == "base" and self.weights is None:
            raise ModelError(f"{self.name} stands alone, with no base to compare it with; give a run or an adapter")
        kept: Which = "tuned" if self.is_adapter else which
        if kept not in self._models:
            with _loading(self.name):
                self._models[kept] = self._load(kept).eval()
        return self._models[kept]

    def stop_token_ids(self, which: Which) -> list[int]:
        """Tokens that end an answer: the model's and the tokenizer's own, and what the template ends a turn with."""
        return generation.stop_token_ids(self.model(which), self.tokenizer)

    @contextmanager
    def answering(self, which: Which) -> Iterator[PreTrainedModel]:
        """The model set up as `recipe-kit eval` does it, with the adapter off for the base."""
        model = self.model(which)
        off = model.disable_adapter() if self.is_adapter and which == "base" else nullcontext()
        with torch.inference_mode(), inference(model), off:
            yield model

    def _load(self, which: Which) -> PreTrainedModel:
        if which == "tuned" and self.weights is not None:
            return modeling.load_tuned(
                self.recipe, self.weights, self.tokenizer, self.precision, quantize=self.quantize
            )
        return modeling.load_model(self.recipe, self.tokenizer, self.precision, quantize=self.quantize)


class _Found(NamedTuple):
    """What a target turned out to be."""

    name: str
    recipe: Recipe
    weights: Path | None = None
    tokenizer: Path | None = None  # None: with the base
    system: str | None = None


def load(target: str, *, precision: str | None = None, report: Report = lambda text: None) -> Chat:
    """What `target` names: a run folder or a folder in it, a folder with weights or an adapter, a model id.

    A Hub id may end in `@revision`. `precision` is bfloat16, float16, float32 or nf4; None takes what the run was
    trained in, or the type a model was saved in. Raises RunError or ModelError; reads the tokenizer but no weights.
    """
    found = _resolve(target)
    recipe = found.recipe if precision is None else _in_precision(found.recipe, precision)
    quantize = recipe.method == "qlora" if precision is None else precision == "nf4"
    notes: list[str] = []
    computed = modeling.choose_precision(recipe, notes)
    for note in notes:
        report(note)
    section = recipe.model
    if found.tokenizer is not None:
        saved: dict[str, Any] = {"id": str(found.tokenizer), "revision": None, "chat_template": None}
        section = section.model_copy(update={**saved, "chat_template_kwargs": {}})
    with _loading(found.name):
        tokenizer = modeling.load_tokenizer(section)
    if not tokenizer.chat_template:
        raise ModelError(f"{found.name}: its tokenizer has no chat template, so it cannot chat; give a chat model")
    return Chat(found.name, recipe, found.weights, tokenizer, found.system, computed, quantize)


def _resolve(target: str) -> _Found:
    path = Path(target)
    if (path / run_dir.RUN).is_file() or (path / run_dir.LATEST / run_dir.RUN).is_file():
        return _run(run_dir.find(path), None)
    if path.name in (run_dir.ADAPTER, run_dir.MODEL, run_dir.MERGED) and (path.parent / run_dir.RUN).is_file():
        return _run(path.parent.resolve(), path.name)
    if (path / _ADAPTER_CONFIG).is_file():
        return _adapter(target, path)
    if (path / "config.json").is_file() or target.startswith(("tiny:", "package:")):
        return _model(target, ModelSection(id=target))
    if path.exists() or _holds_runs(path.parent):
        run_dir.find(path)  # says what is missing, and which name comes near
    hub = _HUB_ID.fullmatch(target)
    if hub is None:
        raise RunError(
            f"{target}: no such folder, and no Hub id; expected a run such as runs/samsum/latest, a folder with "
            "weights or an adapter, or `owner/name`"
        )
    return _from_hub(hub["id"], hub["revision"])


def _run(run: Path, part: str | None) -> _Found:
    """A finished run, or one of the folders with weights in it. Merged weights are whole, like those of `full`."""
    run_dir.require_finished(run)
    recipe = recipe_of(run)
    if part == run_dir.MERGED:
        recipe = recipe.model_copy(update={"method": "full"})
    weights = run / part if part else run_dir.weights(run, recipe.method)
    if not weights.is_dir():
        raise RunError(f"{run}: its folder {weights.name}/ is gone; train again, or choose another run")
    return _Found(f"{recipe.name} {run.name}", recipe, weights, weights, recipe.data.system)


def _model(name: str, section: ModelSection) -> _Found:
    with _loading(name):
        saved_in = str(getattr(modeling.load_config(section), "dtype", None))
    dtype = _DTYPES.get(saved_in, "bfloat16")
    return _Found(name, _recipe_of(section.model_copy(update={"dtype": dtype}), "full", {}))


def _adapter(name: str, folder: Path) -> _Found:
    try:
        config = json.loads((folder / _ADAPTER_CONFIG).read_text(encoding="utf-8"))
        base, revision = config.get("base_model_name_or_path"), config.get("revision")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{name}: {_ADAPTER_CONFIG} cannot be read ({error})") from error
    if not base:
        raise ModelError(f"{name}: {_ADAPTER_CONFIG} names no base model (base_model_name_or_path)")
    recipe = _recipe_of(
        _model(name, ModelSection(id=base, revision=revision)).recipe.model,
        "lora",
        {"modules_to_save": config.get("modules_to_save")},
    )
    return _Found(name, recipe, folder, folder if (folder / "tokenizer_config.json").is_file() else None)


def _from_hub(repo: str, revision: str | None) -> _Found:
    """A model or an adapter on the Hub; what says which is the file that every adapter has."""
    try:
        huggingface_hub.hf_hub_download(repo, _ADAPTER_CONFIG, revision=revision)
    except EntryNotFoundError:  # no adapter; or no network either, and then the model says so
        return _model(repo, ModelSection(id=repo, revision=revision))
    except Exception as error:  # the Hub client has many errors, without a common parent
        raise ModelError(_unreachable(repo, error)) from error
    try:
        folder = huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=_ADAPTER_FILES)
    except Exception as error:
        raise ModelError(_unreachable(repo, error)) from error
    return _adapter(repo, Path(folder))


def _recipe_of(model: ModelSection, method: str, lora: dict[str, Any]) -> Recipe:
    """A recipe that says how to load a model and nothing else: it has no rows and is never trained."""
    sections: dict[str, Any] = {"name": "chat", "model": model, "method": method, "lora": lora}
    return Recipe.model_construct(**sections, quantization={}, training={})


def _in_precision(recipe: Recipe, precision: str) -> Recipe:
    """The recipe with the user's precision in place of its own; nf4 keeps the precision that it computes in."""
    if precision == "nf4":
        return recipe
    training = {key: value for key, value in recipe.training.items() if key not in ("fp16", "bf16")}
    model = recipe.model.model_copy(update={"dtype": precision})
    return recipe.model_copy(update={"model": model, "training": training})


def _holds_runs(folder: Path) -> bool:
    return any(True for depth in ("*/", "*/*/") for _ in folder.glob(depth + run_dir.RUN))


@contextmanager
def _loading(name: str) -> Iterator[None]:
    """What goes wrong while a model is loaded, as one sentence that begins with what the user named."""
    try:
        yield
    except ModelError as error:
        raise ModelError(f"{name}: {str(error).removeprefix('model.id: ')}") from error
    except torch.cuda.OutOfMemoryError as error:
        raise ModelError(f"{name}: the GPU's memory does not hold these weights; try --precision nf4") from error
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(f"{name}: the weights cannot be loaded ({first_line(error)})") from error


def _unreachable(repo: str, error: Exception) -> str:
    return (
        f"{repo}: cannot be read from the Hub ({first_line(error)}); check the id and the network, and for a private "
        "or gated repository run `hf auth login`"
    )
