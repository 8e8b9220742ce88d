"""Real processes: the launch lines a user types, several ranks, a wheel in an empty environment, plain PEFT."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from recipe_kit import catalog, run_dir

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent


def start(*words: str | Path, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=280,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def finished(runs: Path, name: str) -> tuple[Path, run_dir.RunInfo]:
    run = run_dir.find(runs / name)
    return run, run_dir.require_finished(run)


@pytest.mark.parametrize("name", catalog.recipe_names())
def test_accelerate_launch_trains_every_recipe_in_its_smoke_profile(name: str, tmp_path: Path) -> None:
    recipe = ROOT / "recipes" / f"{name}.yaml"
    done = start(
        BIN / "accelerate", "launch", "-m", "recipe_kit", recipe, "--profile", "smoke", "--runs-dir", tmp_path
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    run, info = finished(tmp_path, name)
    assert "wiring check" in " ".join(info["notes"])
    assert run_dir.read_metrics(run)["tuned"]["tokens"] > 100
    assert "perplexity" in done.stdout and str(run) in done.stdout


def test_two_ranks_share_one_split_and_one_run_folder(tmp_path: Path) -> None:
    for processes in ("1", "2"):
        done = start(
            BIN / "torchrun", "--standalone", "--nproc_per_node", processes, "-m", "recipe_kit",
            ROOT / "recipes" / "customer_support.yaml", "--profile", "smoke", "--runs-dir", tmp_path / processes,
            "--set", "training.per_device_train_batch_size=" + {"1": "4", "2": "2"}[processes],
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.count("16 held-out rows (eval)") == 1
    (one, alone), (two, shared) = (finished(tmp_path / processes, "customer_support") for processes in ("1", "2"))
    assert (alone["processes"], shared["processes"]) == (1, 2)
    assert alone["data"] == shared["data"]
    assert len([path for path in (tmp_path / "2" / "customer_support").iterdir() if path.name != "latest"]) == 1
    assert alone["training"]["effective_batch_size"] == shared["training"]["effective_batch_size"] == 4
    base = [run_dir.read_metrics(run)["base"] for run in (one, two)]
    assert base[0]["tokens"] == base[1]["tokens"]
    assert base[0]["loss"] == pytest.approx(base[1]["loss"], abs=1e-6)
    samples = [(run / "samples.jsonl").read_text().splitlines() for run in (one, two)]
    assert [json.loads(line)["prompt"] for line in samples[0]] == [json.loads(line)["prompt"] for line in samples[1]]


def test_train_with_two_processes_on_a_cpu_really_starts_two(tmp_path: Path) -> None:
    done = start(
        BIN / "recipe-kit", "train", "samsum", "--profile", "smoke", "--num-processes", "2", "--runs-dir", tmp_path
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert finished(tmp_path, "samsum")[1]["processes"] == 2


ONE_RANK_FAILS = """
import os, sys, torch
from recipe_kit.evaluation import work
from recipe_kit.recipe import load_recipe
from recipe_kit.training import train
measured = work.perplexity.row_losses
def out_of_memory_on_rank_1(*arguments, **options):
    if os.environ["RANK"] == "1":
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")
    return measured(*arguments, **options)
work.perplexity.row_losses = out_of_memory_on_rank_1
changes = ["training.max_steps=1", "training.save_strategy=no"]
train(load_recipe("samsum", profiles=["smoke"], overrides=changes), runs_dir=sys.argv[1])
"""


def test_a_measurement_that_fails_on_one_rank_ends_on_all_and_keeps_the_run(tmp_path: Path) -> None:
    script = tmp_path / "one_rank_fails.py"
    script.write_text(ONE_RANK_FAILS)
    # An empty cache: whichever rank comes first builds the model's folder, and builds it whole.
    done = start(
        BIN / "torchrun", "--standalone", "--nproc_per_node", "2", script, tmp_path / "runs",
        RECIPE_KIT_CACHE=str(tmp_path / "cache"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    _, info = finished(tmp_path / "runs", "samsum")
    assert "another process could not measure its part (OutOfMemoryError: CUDA out of memory)" in info["notes"][-1]


@pytest.mark.reference
def test_200_real_rows_score_the_same_padded_packed_and_on_two_processes(reference: Path, tmp_path: Path) -> None:
    """LlamaFactory #2140: ROUGE differed from rouge_score; the loss is that of a float64 loop over single rows."""
    import torch
    from rouge_score.rouge_scorer import RougeScorer

    from recipe_kit import data, modeling
    from recipe_kit.recipe import load_recipe

    rows = reference / "data" / "customer_support.train.jsonl"
    changes = [
        f"data.test={{path: {rows}, limit: 200}}", "data.eval=null", "evaluation.limit=null",
        "evaluation.max_new_tokens=12", "training.max_steps=2", "data.max_length=2048", "method=lora",
        "quantization=null", "evaluation.prompts=[]",
    ]  # fmt: skip
    recipe = load_recipe("customer_support", profiles=["smoke"], overrides=changes)
    train = [
        BIN / "recipe-kit", "train", "customer_support", "--profile", "smoke", "--runs-dir", tmp_path,
        *(word for change in changes for word in ("--set", change)),
    ]  # fmt: skip
    assert start(*train).returncode == 0
    run, _ = finished(tmp_path, "customer_support")
    found = {}
    for name, words in (("padded", []), ("packed", ["--packed"]), ("two", ["--num-processes", "2"])):
        done = start(BIN / "recipe-kit", "eval", run, "--json", "--fresh", *words)
        assert done.returncode == 0, done.stderr[-2000:]
        found[name] = json.loads(done.stdout)
        assert found[name]["processes"] == (2 if name == "two" else 1)

    tokenizer = modeling.load_tokenizer(recipe.model)
    prepared = data.prepare(recipe.data, tokenizer, splits=["test"])["test"].rows
    model = modeling.load_model(recipe, tokenizer, "float32").double().eval()
    total, count = 0.0, 0
    for row in prepared:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
        targets = torch.tensor(row["labels"][1:])
        losses = torch.nn.functional.cross_entropy(logits, targets, ignore_index=-100, reduction="sum")
        total, count = total + losses.item(), count + int((targets != -100).sum())
    expected = math.exp(total / count)
    for metrics in found.values():
        assert metrics["rows"] == 200 and metrics["base"]["tokens"] == count
        assert metrics["scores"]["perplexity"]["base"]["value"] == pytest.approx(expected, rel=1e-4)
        assert metrics["scores"].keys() == found["padded"]["scores"].keys()
        for which in ("base", "tuned"):  # a near tie may fall another way in another batch
            rouge = (found[name]["scores"]["rouge1"][which]["value"] for name in ("padded", "packed", "two"))
            assert max(rouge) == pytest.approx(found["padded"]["scores"]["rouge1"][which]["value"], abs=0.01)
    scorer = RougeScorer(["rouge1", "rougeLsum"], use_stemmer=True)
    lines = run_dir.read_lines(run / run_dir.SCORES)
    assert len(lines) == 200
    for line in lines:
        (answer,) = line["answers"]
        scores = scorer.score(answer["reference"], answer["base"]["text"])
        assert answer["base"]["scores"]["rouge1"] == scores["rouge1"].fmeasure
        assert answer["base"]["scores"]["rougeLsum"] == scores["rougeLsum"].fmeasure


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_mistake_in_the_ranks_is_one_sentence_and_exit_one(tmp_path: Path, processes: str) -> None:
    done = start(
        BIN / "recipe-kit", "train", "samsum", "--profile", "smoke", "--num-processes", processes,
        "--runs-dir", tmp_path, "--set", "data.train={path: /nowhere/rows.jsonl}",
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("recipe-kit: /nowhere/rows.jsonl: no such file or folder") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("processes", "number", "code"), [("1", signal.SIGTERM, 75), ("2", signal.SIGINT, 130)])
def test_a_request_to_stop_ends_with_a_word_and_a_run_to_go_on_with(
    tmp_path: Path, processes: str, number: signal.Signals, code: int
) -> None:
    words = [BIN / "recipe-kit", "train", "quickstart", "--profile", "smoke", "--num-processes", processes]
    more = ["--set", "training.max_steps=2000", "--set", "training.logging_steps=5", "--runs-dir", tmp_path]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    said = []
    with subprocess.Popen(
        [*words, *more],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment,
        # A shell starts background jobs with interrupts ignored; this one is to be interrupted wherever it runs.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line)
            if line.startswith("step 10/"):
                # A terminal sends to the group, a scheduler often to the first process alone.
                (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    assert process.returncode == code
    assert "Traceback" not in "".join(said)
    run = run_dir.newest_unfinished(tmp_path, "quickstart")
    assert run_dir.read(run)["status"] == "interrupted"
    assert said[-1].startswith(f"stopped by {number.name} after step 1")
    assert f"go on with: recipe-kit train quickstart --runs-dir {tmp_path}" in said[-1]
    assert said[-1].endswith(f"--num-processes {processes} --resume {run}\n")


PLAIN_PEFT = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
assert "recipe_kit" not in sys.modules
adapter, ids = sys.argv[1], json.loads(sys.argv[2])
base = json.load(open(f"{adapter}/adapter_config.json"))["base_model_name_or_path"]
quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                  bnb_4bit_compute_dtype=torch.float32)
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, quantization_config=quantization,
                                             device_map={"": "cpu"})
model = PeftModel.from_pretrained(model, adapter).eval()
tokenizer = AutoTokenizer.from_pretrained(adapter)
chat = [{"role": "user", "content": "hello"}]
prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
with torch.no_grad():
    logits = model(input_ids=torch.tensor([ids])).logits
torch.save({"logits": logits, "prompt": prompt}, sys.argv[3])
"""


def test_a_qlora_adapter_gives_the_same_logits_in_a_fresh_process_with_plain_peft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from recipe_kit import evaluation
    from recipe_kit.recipe import load_recipe
    from recipe_kit.training import train

    ids = [5, 60, 61, 62, 300, 301]
    seen: dict[str, Any] = {}
    measure = evaluation.measure

    def keep_logits(run: Path, recipe: Any, tokenizer: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        model.eval()
        with torch.no_grad():
            seen["logits"] = model(input_ids=torch.tensor([ids])).logits
        chat = [{"role": "user", "content": "hello"}]
        seen["prompt"] = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        return measure(run, recipe, tokenizer, model, *args, **kwargs)

    monkeypatch.setattr(evaluation, "measure", keep_logits)
    run = train(load_recipe("samsum", profiles=["smoke"]), runs_dir=tmp_path)
    out = tmp_path / "logits.pt"
    done = start(sys.executable, "-c", PLAIN_PEFT, run / "adapter", json.dumps(ids), out)
    assert done.returncode == 0, done.stderr[-2000:]
    fresh = torch.load(out)
    assert fresh["prompt"] == seen["prompt"]
    assert torch.allclose(fresh["logits"], seen["logits"], atol=1e-5)
    assert (seen["logits"] - fresh["logits"]).abs().max() < 1e-5 < seen["logits"].abs().max()


def test_the_wheel_carries_recipes_and_configs_inside_the_package_only(tmp_path: Path) -> None:
    done = start(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"recipe_kit", f"recipe_kit-{_version()}.dist-info"}
    assert "recipe_kit/recipes/samsum.yaml" in names and "recipe_kit/accelerate_configs/cpu.yaml" in names
    assert "recipe_kit/samples/support.train.jsonl" in names and "recipe_kit/py.typed" in names
    unpacked = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(unpacked)
    shown = start(
        sys.executable, "-m", "recipe_kit", "list", "--json", cwd=tmp_path, PYTHONPATH=str(unpacked)
    )  # fmt: skip
    assert len(json.loads(shown.stdout)) == 8


def _version() -> str:
    import recipe_kit

    return recipe_kit.__version__
