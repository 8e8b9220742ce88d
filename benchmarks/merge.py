"""What merging costs beside PEFT's own path, and what the parity gate can tell apart.

    python benchmarks/merge.py speed CONFIG_FOLDER --out speed.json     # a random model of that configuration
    python benchmarks/merge.py parity runs/quickstart/latest --out parity.json

`speed` merges a LoRA adapter into a random model with `recipe-kit merge`'s writer and with PEFT (load,
merge_and_unload, save_pretrained), turn by turn, each in a fresh process, and compares the tensors of both. `parity`
measures the gate's numbers on a finished run, for honest rounding and for merges that went wrong in known ways.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

HEAD = """
import json, sys, time
from pathlib import Path
import torch
base, adapter, out, dtype = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), getattr(torch, sys.argv[4])
def peak():
    return 1024 * next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
def tell(started, imported):
    print(json.dumps({"seconds": time.monotonic() - started, "peak_bytes": peak(), "imported_bytes": imported,
                      "largest_file_bytes": max(f.stat().st_size for f in out.glob("*.safetensors"))}))
"""
PEFT = (
    HEAD
    + """
from peft import PeftModel
from transformers import AutoModelForCausalLM
imported, started = peak(), time.monotonic()
model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
tell(started, imported)
"""
)
OURS = (
    HEAD
    + """
from recipe_kit import modeling
from recipe_kit.merge import layout, shards, weights
from recipe_kit.merge.adapter import open_adapter
from recipe_kit.recipe import ModelSection, Recipe
imported, started = peak(), time.monotonic()
recipe = Recipe.model_construct(name="benchmark", model=ModelSection(id=str(base)), method="lora", lora={},
                                training={}, quantization={})
opened = open_adapter(adapter, recipe, {"model": {}})
files = shards.find_base(recipe.model)
plan = layout.build(recipe, modeling.load_config(recipe.model), opened, files, 0)
assert plan.whole is None, plan.whole
out.mkdir()
weights.write(weights.Source(recipe, opened, plan, files, "bfloat16"), out, dtype)
tell(started, imported)
"""
)


def random_model(config_folder: Path, folder: Path, dtype: str) -> None:
    """A model of that configuration with random weights, and an adapter on all its linear layers, random too."""
    import peft
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(config_folder)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.save_pretrained(folder / "base")
    settings = peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model.name_or_path = str(folder / "base")
    adapted = peft.get_peft_model(model, settings)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    adapted.save_pretrained(folder / "adapter")


def farthest(one: Path, other: Path) -> dict[str, float]:
    """How two merged folders differ: tensors that do, and the largest difference in units of the last place.

    The unit is taken at the larger of the two numbers.
    """
    import torch

    from recipe_kit.merge import shards

    differing, most = 0, 0.0
    places = [
        {name: file for file in sorted(folder.glob("*.safetensors")) for name in shards.shapes(file)}
        for folder in (one, other)
    ]
    assert set(places[0]) == set(places[1])
    for name in places[0]:
        a, b = (shards.read(where[name], name) for where in places)
        if torch.equal(a, b):
            continue
        differing += 1
        larger = torch.maximum(a.abs(), b.abs())
        unit = (larger - torch.nextafter(larger, torch.zeros_like(larger))).float()
        most = max(most, ((a.float() - b.float()).abs() / unit).nan_to_num().max().item())
    return {"tensors": len(places[0]), "tensors_differing": differing, "units_in_the_last_place": most}


def speed(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=options.work) as name:
        folder = Path(name)
        random_model(options.config, folder, options.base_dtype)
        results: dict[str, list[dict[str, float]]] = {"peft": [], "recipe-kit": []}
        last: dict[str, Path] = {}
        for number in range(options.rounds):
            for which, code in (("peft", PEFT), ("recipe-kit", OURS))[:: 1 if number % 2 else -1]:
                out = folder / f"{which}-{number}"
                arguments = [folder / "base", folder / "adapter", out, options.dtype]
                child = subprocess.run(
                    [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False
                )
                if child.returncode:
                    sys.exit(child.stderr)
                results[which].append(json.loads(child.stdout.splitlines()[-1]))
                print(which, results[which][-1], flush=True)
                if which in last:
                    shutil.rmtree(last[which])
                last[which] = out
        difference = farthest(last["peft"], last["recipe-kit"])
    return {"config": options.config.name, "dtype": options.dtype, "rounds": results, "against_peft": difference}


def parity(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    from recipe_kit import merge, modeling, run_dir
    from recipe_kit.lock import recipe_of
    from recipe_kit.merge import parity as gate
    from recipe_kit.merge import rows, whole
    from recipe_kit.merge.adapter import open_adapter

    run = run_dir.find(options.run)
    info, recipe = run_dir.read(run), recipe_of(run)
    source, tokenizer = merge._source(recipe, info, open_adapter(run / run_dir.ADAPTER, recipe, info))
    ids = [row.ids[: gate.TOKENS] for row in rows.find(recipe, tokenizer, info, gate.ROWS).rows]
    honest = whole.adapter_model(source, tokenizer, "float32", on_cpu=True).merge_and_unload().state_dict()
    base = modeling.load_model(whole.in_precision(recipe, "float32", on_cpu=True), tokenizer, "float32").state_dict()
    changed = [name for name in honest if not torch.equal(honest[name], base[name])]
    layers = sorted({name.split("layers.")[1].split(".")[0] for name in changed if "layers." in name}, key=int)
    middle, last = layers[len(layers) // 2], changed[-1]
    generator = torch.Generator().manual_seed(1)
    variants: dict[str, Callable[[str], torch.Tensor]] = {
        "honest": lambda name: honest[name],
        f"without {changed[0]}": lambda name: base[name] if name == changed[0] else honest[name],
        f"without {last}": lambda name: base[name] if name == last else honest[name],
        f"without layer {middle}": lambda name: base[name] if f"layers.{middle}." in name else honest[name],
        "scaled by 0.5": lambda name: base[name] + 0.5 * (honest[name] - base[name]),
        "scaled by 0.95": lambda name: base[name] + 0.95 * (honest[name] - base[name]),
        "merged twice": lambda name: base[name] + 2 * (honest[name] - base[name]),
        "the base alone": lambda name: base[name],
        "another base": lambda name: (
            honest[name]
            + base[name].std() * torch.randn(base[name].shape, generator=generator) * (base[name].ndim > 1)
        ),
    }
    found: dict[str, Any] = {}
    for dtype in options.dtypes.split(","):
        compute = "float32" if options.compute == "float32" else dtype
        seen = gate.observe(whole.adapter_model(source, tokenizer, compute), ids)
        for name, variant in variants.items():
            model = modeling.load_model(whole.in_precision(recipe, compute), tokenizer, compute, quantize=False).eval()
            held = model.state_dict()
            with torch.no_grad():
                for tensor in held:
                    held[tensor].copy_(variant(tensor).to(getattr(torch, dtype)))
            verdict = gate.compare(seen, model, ids, dtype)
            found[f"{dtype}: {name}"] = verdict
            print(
                f"{dtype:9} {'passes' if verdict['ok'] else 'fails ':7} kl {verdict['mean_kl']:.2e}  "
                f"gap {verdict['max_logit_gap']:.2e}  greedy {verdict['greedy_agreement']:.4f}  "
                f"layer {verdict['layer_error']:.3g}  {name}",
                flush=True,
            )
    return {"run": recipe.name, "model": recipe.model.id, "verdicts": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("speed")
    one.add_argument("config", type=Path)
    one.add_argument("--dtype", default="float16")
    one.add_argument("--base-dtype", default="bfloat16")
    one.add_argument("--rounds", type=int, default=3)
    one.add_argument("--work", type=Path, default=None, help="a folder on the disk to measure")
    other = commands.add_parser("parity")
    other.add_argument("run", type=Path)
    other.add_argument("--dtypes", default="float32,float16,bfloat16")
    other.add_argument("--compute", default="float32", help="float32, or `same` for the type of the weights")
    for each in (one, other):
        each.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    result = speed(options) if options.command == "speed" else parity(options)

    import torch

    from recipe_kit import provenance

    result |= {
        "versions": provenance.versions(),
        "machine": {
            "platform": f"{platform.system()} {platform.machine()}",
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
    }
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
