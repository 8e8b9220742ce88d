"""Merged weights, tensor by tensor: PEFT's own arithmetic in float32, rounded once.

Only the layer at hand is in memory, with the shard it is written to.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

from recipe_kit.errors import MergeError
from recipe_kit.merge import nf4, shards
from recipe_kit.merge.adapter import Adapter
from recipe_kit.merge.layout import Layout
from recipe_kit.recipe import Recipe


@dataclass
class Source:
    """The weights an adapter is merged into."""

    recipe: Recipe
    adapter: Adapter
    layout: Layout
    tensors: dict[str, Path] | None  # the file of each tensor; None for a base that is not in safetensors
    trained_in: str  # the precision the base was loaded in for training
    quantised: nf4.Quantised | None = None  # for a base that goes through 4 bits first

    def base(self, name: str) -> torch.Tensor:
        """A tensor of the base as it is on disk, after its round trip through 4 bits where it makes one."""
        assert self.tensors is not None
        tied = self.layout.tied
        others = [tied.get(name, ""), *(other for other, root in tied.items() if root == name)]
        found = next((other for other in (name, *others) if other in self.tensors), None)
        if found is None:
            raise MergeError(f"model.id: {self.recipe.model.id} has no tensor {name}; load the model anew")
        tensor = shards.read(self.tensors[found], found)
        return tensor if self.quantised is None else self.quantised.round_trip(name, tensor)


@dataclass
class Outcome:
    """What a merge has written."""

    changed: list[str] = field(default_factory=list)  # tensors that are not the base's any more
    untied: bool = False  # two tensors that were one in the base differ now


def write(source: Source, folder: Path, dtype: torch.dtype) -> Outcome:
    """Merge into `folder`, in the order of the base's files. Raises MergeError."""
    layout, outcome, done = source.layout, Outcome(), set[str]()
    assert source.tensors is not None
    writer = shards.Writer(folder)
    for first in [*source.tensors, *layout.values]:
        for name, part in _belonging_together(source, first, done).items():
            final = _rounded(layout, name, part.merged, dtype)
            if layout.is_touched(name) and not _equal(final, source.base(name) if part.base is None else part.base):
                outcome.changed.append(name)
            outcome.untied |= name in layout.tied
            writer.add(name, final)
    writer.finish()
    return outcome


class _Part(NamedTuple):
    merged: torch.Tensor
    base: torch.Tensor | None = None  # where it is at hand


def _belonging_together(source: Source, first: str, done: set[str]) -> dict[str, _Part]:
    """A tensor with all that has to be settled with it: what its layer holds besides, and what shares its values.

    A tensor that is equal to the one it is tied to is left out: it is read from there.
    """
    layout = source.layout
    if first in done or first not in layout.shapes:
        return {}
    root = layout.tied.get(first, first)
    sharing = [root, *(name for name, other in layout.tied.items() if other == root)]
    stored = [name for name in sharing if name in (source.tensors or {})]
    apart = len(stored) > 1 or any(layout.is_touched(name) for name in sharing)
    found: dict[str, _Part] = {}
    for name in sharing if apart else [root]:
        if layout.layer_of(name) is not None:
            found |= _merged_layer(source, name)
        elif name in layout.values:
            found[name] = _Part(source.adapter.tensor(layout.values[name]))
        else:
            found[name] = _Part(source.base(name))
    done.update(sharing, found)
    same = [name for name in sharing[1:] if name in found and _equal(found[name].merged, found[root].merged)]
    return {name: part for name, part in found.items() if name not in same}


@torch.no_grad()
def _merged_layer(source: Source, name: str) -> dict[str, _Part]:
    """All tensors of the adapted layer that one of them names, merged by PEFT in float32."""
    layout = source.layout
    path = layout.layer_of(name)
    assert path is not None
    layer = layout.layers[path]
    held = {inner: source.adapter.tensor(saved) for inner, saved in layout.parts[path].items()}
    own = [inner.removeprefix("base_layer.") for inner in layer.state_dict() if inner.startswith("base_layer.")]
    base = {}
    for inner in own:
        full = f"{path}.{inner}"
        base[inner] = source.adapter.tensor(layout.values[full]) if full in layout.values else source.base(full)
        held[f"base_layer.{inner}"] = base[inner].to(torch.float32, copy=True)  # PEFT adds to it in place
    layer.load_state_dict(held, assign=True)
    layer.merge()
    merged = layer.get_base_layer()
    parts = {
        f"{path}.{inner}": _Part(
            merged.get_parameter(inner).data, None if f"{path}.{inner}" in layout.values else base[inner]
        )
        for inner in own
    }
    layer.to("meta")
    layer.merged_adapters.clear()  # so that it can be merged into another base
    return parts


def _rounded(layout: Layout, name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The tensor in the type it is written in. Raises MergeError for what that type cannot hold."""
    if not tensor.is_floating_point():
        return tensor
    final = tensor.to(layout.kept_dtype(name, dtype) or dtype)
    if (layout.is_touched(name) or final.dtype == torch.float16) and not shards.is_finite(final):
        if shards.is_finite(tensor):
            raise MergeError(
                f"{name} reaches {tensor.abs().max():.3g}, more than {str(dtype).removeprefix('torch.')} can hold; "
                "merge with --dtype bfloat16"
            )
        raise MergeError(f"{name}: merging gives numbers that are not finite; the adapter is damaged, train again")
    return final


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors say the same, in the type of the first; their first rows mostly tell."""
    if one.shape != other.shape:
        return False
    return all(torch.equal(one[part], other[part].to(one.dtype)) for part in (slice(1), slice(1, None)))
