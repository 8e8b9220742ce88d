"""Models in memory: the adapter on its base, and PEFT's own merge of all of it at once."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recipe_kit import modeling
from recipe_kit.errors import MergeError, first_line
from recipe_kit.merge import shards
from recipe_kit.merge.weights import Outcome, Source
from recipe_kit.recipe import Recipe


def adapter_model(
    source: Source, tokenizer: PreTrainedTokenizerBase, precision: str, *, on_cpu: bool = False
) -> PreTrainedModel:
    """The adapter, not merged, on the base it is merged into; computed in `precision`. Raises ModelError.

    An adapter that changes its base when it is attached gets the base in the precision it was trained in.
    """
    held_in = source.trained_in if source.adapter.changes_base else precision
    recipe = in_precision(source.recipe, held_in, on_cpu=on_cpu)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's worries about ties, as if it were to merge them
        model = modeling.load_tuned(recipe, source.adapter.folder, tokenizer, held_in, quantize=False)
    if source.quantised is not None:
        held = _plain_parameters(model.get_base_model())
        with torch.no_grad():
            for name in source.quantised.names:
                held[name].copy_(source.quantised.round_trip(name, held[name]))
    return (model if held_in == precision else model.to(getattr(torch, precision))).eval()


def write(source: Source, tokenizer: PreTrainedTokenizerBase, folder: Path, dtype: torch.dtype) -> Outcome:
    """Merge with PEFT's `merge_and_unload`, in float32 and in memory, and write the weights into `folder`."""
    model = adapter_model(source, tokenizer, "float32", on_cpu=True)
    inner = model.get_base_model()
    before = {name: value.to(dtype, copy=True) for name, value in _plain_parameters(inner).items()}
    _untie(inner)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            merged = model.merge_and_unload()
    except (ValueError, RuntimeError, NotImplementedError, TypeError) as error:
        raise MergeError(
            f"{source.adapter.folder}: PEFT cannot merge this adapter ({first_line(error)}); use it as it is"
        ) from error
    merged.to(dtype)
    after = dict(merged.named_parameters(remove_duplicate=False))
    for name, value in after.items():
        if not shards.is_finite(value):
            raise MergeError(
                f"{name} holds numbers that {str(dtype).removeprefix('torch.')} cannot; merge with --dtype bfloat16"
            )
    changed = [name for name, value in after.items() if name not in before or not torch.equal(before[name], value)]
    tied = source.layout.tied
    untied = any(after[name] is not after[other] for name, other in tied.items())
    merged.save_pretrained(folder, max_shard_size=shards.MAX_SHARD_BYTES)
    return Outcome(changed, untied)


def in_precision(recipe: Recipe, precision: str, *, on_cpu: bool = False) -> Recipe:
    """The recipe with its model in one of float32, bfloat16 and float16, on the CPU where that is asked."""
    training = {key: value for key, value in recipe.training.items() if key not in ("fp16", "bf16")}
    if on_cpu:
        training["use_cpu"] = True
    model = recipe.model.model_copy(update={"dtype": precision})
    return recipe.model_copy(update={"model": model, "training": training})


def _plain_parameters(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The base's parameters by the names they have without PEFT."""
    return {
        name.replace(".base_layer.", ".").replace(".original_module.", "."): value
        for name, value in model.named_parameters(remove_duplicate=False)
        if "lora_" not in name and ".modules_to_save." not in name and ".token_adapter." not in name
    }


def _untie(model: PreTrainedModel) -> None:
    """Give an adapted embedding or head weights of its own: merged in place, it would change the other one too."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if not isinstance(head, BaseTunerLayer) and not isinstance(embedding, BaseTunerLayer):
        return
    one, other = (
        layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer for layer in (head, embedding)
    )
    if one.weight is other.weight:
        one.weight = torch.nn.Parameter(one.weight.detach().clone(), requires_grad=False)
