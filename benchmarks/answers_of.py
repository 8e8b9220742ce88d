"""What saved weights answer with, greedily, in float32: loaded by transformers and PEFT, as anybody would load them.

    python benchmarks/answers_of.py '["BASE", "runs/shop/latest/adapter", ["Where is my parcel?"]]'

Prints the token ids of each answer as JSON. The base is a Hub id or a folder, and not looked at for full weights.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

NEW_TOKENS = 24


def answers(base: str, weights: str, questions: list[str]) -> list[list[int]]:
    tokenizer: Any = AutoTokenizer.from_pretrained(weights)
    if (Path(weights) / "adapter_config.json").is_file():
        from peft import PeftModel

        model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        model = PeftModel.from_pretrained(model, weights)
    else:
        model = AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32)
    model.eval()
    found = []
    for question in questions:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )["input_ids"]
        made = model.generate(
            input_ids=ids, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=tokenizer.pad_token_id
        )
        found.append(made[0, ids.shape[1] :].tolist())
    return found


if __name__ == "__main__":
    print(json.dumps(answers(*json.loads(sys.argv[1]))))
