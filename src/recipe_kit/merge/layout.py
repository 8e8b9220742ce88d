"""What each tensor of the merged model is made of, decided on the meta device before any weight is read."""

from __future__ import annotations

import copy
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import peft
import torch
from peft.tuners.lora import Embedding, Linear
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import TrainableTokensWrapper
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter

from recipe_kit.errors import MergeError, first_line
from recipe_kit.merge.adapter import CONFIG, WEIGHTS, Adapter
from recipe_kit.recipe import Recipe

_PREFIX = "base_model.model."
# Adapters whose layers hold more than one low-rank product; PEFT merges or refuses them itself.
_OWN_WAYS = (
    "target_parameters", "trainable_token_indices", "megatron_config", "arrow_config", "velora_config",
    "monteclora_config", "kasa_config", "use_bdlora", "use_qalora",
)  # fmt: skip


@dataclass
class Layout:
    """A model on the meta device with the adapter attached, and where the parts of its tensors come from.

    Names of tensors are those of the base model without an adapter.
    """

    model: PreTrainedModel  # the base, with PEFT's layers in it
    config: PretrainedConfig  # of the merged model
    shapes: dict[str, tuple[int, ...]]
    layers: dict[str, BaseTunerLayer]  # by path
    parts: dict[str, dict[str, str]]  # of each layer: its own tensors, by the adapter tensor that goes there
    values: dict[str, str] = field(default_factory=dict)  # tensor -> the adapter tensor that takes its place
    tied: dict[str, str] = field(default_factory=dict)  # tensor -> the one it shares its values with
    whole: str | None = None  # why PEFT has to merge this one in memory, all at once

    @property
    def parameter_count(self) -> int:
        """How many numbers the merged model holds, at most."""
        own = [name for name in self.shapes if name not in self.tied or self.is_touched(name)]
        return sum(torch.Size(self.shapes[name]).numel() for name in own)

    def layer_of(self, name: str) -> str | None:
        """The adapted layer a tensor belongs to."""
        path = name.rpartition(".")[0]
        return path if path in self.layers else None

    def is_touched(self, name: str) -> bool:
        return name in self.values or self.layer_of(name) is not None

    def kept_dtype(self, name: str, dtype: torch.dtype) -> torch.dtype | None:
        """The type a tensor keeps although all others become `dtype`: the model computes with it in float32."""
        kept = set(getattr(self.model, "_keep_in_fp32_modules_strict", None) or [])
        if dtype == torch.float16:
            kept |= set(getattr(self.model, "_keep_in_fp32_modules", None) or [])
        return torch.float32 if any(re.search(rf"(^|\.){re.escape(part)}(\.|$)", name) for part in kept) else None

    def ignores(self, name: str) -> bool:
        """Whether the model leaves a tensor of its files out when it is loaded."""
        patterns = {*(self.model._keys_to_ignore_on_load_unexpected or ()), r"rotary_emb\.inv_freq"}
        return any(re.search(pattern, name) for pattern in patterns)


def build(
    recipe: Recipe, config: PretrainedConfig, adapter: Adapter, base: dict[str, Path] | None, tokens: int
) -> Layout:
    """The layout of a run's merged model. `tokens` is the size of its tokenizer; `base` None for no safetensors.

    Raises MergeError when the adapter is one of another base.
    """
    config = copy.deepcopy(config)
    if recipe.trains_embeddings and tokens > config.get_text_config().vocab_size:
        config.get_text_config().vocab_size = tokens  # as the base was resized for training
    model = on_meta(config, recipe.model.trust_remote_code)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    tied = dict(model.all_tied_weights_keys)
    converts = any(isinstance(step, WeightConverter) for step in get_model_conversion_mapping(model))
    attached = _attach(model, adapter)
    layers = {
        name.removeprefix(_PREFIX): module
        for name, module in attached.named_modules()
        if isinstance(module, BaseTunerLayer)
    }
    layout = Layout(model, config, shapes, layers, {path: {} for path in layers}, tied=tied)
    if converts:
        layout.whole = f"{config.model_type} is held in another form than it is stored in"
        return layout
    _place(layout, attached, adapter)
    layout.whole = _reason(layout, adapter, base)
    return layout


def on_meta(config: PretrainedConfig, trust_remote_code: bool) -> PreTrainedModel:
    """The architecture of a model without weights."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            copy.deepcopy(config), trust_remote_code=trust_remote_code
        )
    return model


def _attach(model: PreTrainedModel, adapter: Adapter) -> peft.PeftModel:
    settings = copy.deepcopy(adapter.config)
    if settings.init_lora_weights != "mica":  # a way of its own to merge; all others only say how training starts
        settings.init_lora_weights = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's worries about ties and biases, which are looked after here
            return peft.get_peft_model(model, settings, low_cpu_mem_usage=True)
    except (ValueError, TypeError) as error:
        raise MergeError(f"{adapter.folder / CONFIG}: {_another_base(first_line(error))}") from error


def _place(layout: Layout, attached: peft.PeftModel, adapter: Adapter) -> None:
    """Find the place of every tensor of the adapter, by PEFT's own names for them. Raises MergeError."""
    held = attached.state_dict()
    # Given names in place of tensors, PEFT says under which name it saves what.
    expected: dict[str, str] = peft.get_peft_model_state_dict(
        attached, state_dict={name: name for name in held}, save_embedding_layers=False
    )
    file = adapter.folder / WEIGHTS
    if missing := [name for name in expected if name not in adapter.shapes]:
        raise MergeError(f"{file}: {_another_base(f'{_named(missing)} not in it')}")
    for saved, shape in adapter.shapes.items():
        name = expected.get(saved) or _base_name(saved, layout)
        if name is None:
            raise MergeError(f"{file}: {_another_base(f'the base has no place for {saved}')}")
        if name == "":
            continue
        own = name.removeprefix(_PREFIX)
        wanted = tuple(held[name].shape) if name in held else layout.shapes[own]
        if shape != wanted:
            raise MergeError(f"{file}: {_another_base(f'{saved} has shape {shape} and the base needs {wanted}')}")
        path, inner = _split(own, layout)
        if path is not None and saved in expected and not inner.startswith("base_layer."):
            layout.parts[path][inner] = saved
        else:
            layout.values[_plain(own)] = saved


def _base_name(saved: str, layout: Layout) -> str | None:
    """For a tensor of the base that PEFT saved beside the adapter: its name, "" for a copy that is not used."""
    if ".original_module." in saved or ".modules_to_save." in saved:
        return ""
    own = _plain(saved.removeprefix(_PREFIX))
    return own if own in layout.shapes else None


def _split(name: str, layout: Layout) -> tuple[str | None, str]:
    """The adapted layer a name begins with, and the rest."""
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        if (path := ".".join(parts[:end])) in layout.layers:
            return path, ".".join(parts[end:])
    return None, name


def _plain(name: str) -> str:
    """The name a tensor has without PEFT's wrappers around its module."""
    return name.replace(".base_layer.", ".").replace(".modules_to_save.default.", ".")


def _reason(layout: Layout, adapter: Adapter, base: dict[str, Path] | None) -> str | None:
    """Why tensors cannot be merged one by one, as the end of a sentence; None when they can."""
    if base is None:
        return "the base has no weights in safetensors"
    for key in _OWN_WAYS:
        if getattr(adapter.config, key, None):
            return f"the adapter uses {key}"
    if adapter.changes_base:
        return f"init_lora_weights: {adapter.config.init_lora_weights} changes the base beneath the adapter"
    for path, layer in layout.layers.items():
        if not isinstance(layer, Linear | Embedding):
            return f"{path} is adapted by PEFT's {type(layer).__name__}"
    for name, module in layout.model.named_modules():
        if isinstance(module, TrainableTokensWrapper):
            return f"single tokens of {name} are trained"
    unknown = [name for name in base if name not in layout.shapes and not layout.ignores(name)]
    sources = {name: {other for other, source in layout.tied.items() if source == name} for name in layout.shapes}
    absent = [
        name
        for name in layout.shapes
        if name not in base
        and name not in layout.values
        and layout.tied.get(name) not in base
        and not sources[name] & set(base)
    ]
    if unknown or absent:
        return f"its files name tensors another way than the model ({_named([*unknown, *absent])})"
    return None


def check_biases(layout: Layout, adapter: Adapter) -> None:
    """Raises MergeError for an adapter that adds to a bias which its layer does not have."""
    if not adapter.config.lora_bias:
        return
    for path, layer in layout.layers.items():
        if getattr(layer.get_base_layer(), "bias", None) is None:
            raise MergeError(
                f"{adapter.folder / CONFIG}: lora_bias adds a bias to {path}, which has none to hold it; use the "
                "adapter as it is, or train again without lora_bias"
            )


def _another_base(what: str) -> str:
    return f"{what}; the adapter is damaged, or of another base than the recipe's model"


def _named(names: list[str], most: int = 2) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"
