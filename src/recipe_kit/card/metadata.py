"""The YAML block at the top of a card: what the Hub files a model under."""

from __future__ import annotations

from typing import Any

import yaml

from recipe_kit.card.facts import Facts
from recipe_kit.card.scores import CUSTOM, model_index
from recipe_kit.recipe.yaml_source import CORE_SCALARS

PIPELINE_TAG = "text-generation"


def metadata(facts: Facts) -> dict[str, Any]:
    """The metadata of a run's card, in the order in which it is written. Nothing is there that no file says."""
    adapter = facts.what == "adapter"
    index = model_index(facts)
    types = [metric["type"] for entry in index for result in entry["results"] for metric in result["metrics"]]
    found: dict[str, Any] = {
        "base_model": facts.base_id,
        "base_model_relation": ("adapter" if adapter else "finetune") if facts.base_id else None,
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": PIPELINE_TAG,
        **facts.license,
        "language": facts.languages,
        "datasets": training_datasets(facts),
        "tags": tags(facts),
        "metrics": list(dict.fromkeys(name for name in types if name != CUSTOM)),
        "model_name": None if index else facts.title,  # with scores, the index carries the name
        "model-index": index,
    }
    return {key: value for key, value in found.items() if value not in (None, [], "")}


def tags(facts: Facts) -> list[str]:
    method = {"full": "full-fine-tuning"}.get(facts.recipe.method, facts.recipe.method)
    found = ["lora"] if facts.what == "adapter" else []
    if facts.what == "adapter" and facts.base_id:
        found.append(f"base_model:adapter:{facts.base_id}")  # as PEFT writes it
    return list(dict.fromkeys([*found, method, "sft", "trl", "recipe-kit", *facts.recipe.card.tags]))


def training_datasets(facts: Facts) -> list[str]:
    """Hub ids of the rows that were learnt from; rows from a file have none."""
    return list(dict.fromkeys(source.id for source in facts.recipe.data.train if source.id is not None))


def block(data: dict[str, Any]) -> str:
    """The metadata as the block a card begins with."""
    text = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return f"---\n{text}---\n"


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.1 or 1.2 would not read as text (`no`, `1e3`, dates), and writes no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, _pattern, _first in CORE_SCALARS:
    _Dumper.add_implicit_resolver(_tag, _pattern, _first)
