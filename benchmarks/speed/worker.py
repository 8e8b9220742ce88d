"""The inside of a measured process: what it says to the driver, the random model, the clock.

The driver starts a worker ahead of its turn, with its job as JSON in the first argument. The worker imports what it
needs without touching the GPU, prints `ready` and waits for a line on its input. Then it trains and prints one line of
JSON: its numbers, or {"failed": reason}. Everything else that libraries print goes to stderr.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from typing import Any

import rows
from shapes import SHAPES, Shape
from works import Work

Job = dict[str, Any]
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes", "triton", "liger-kernel",
            "unsloth", "unsloth_zoo", "xformers", "flash-attn", "recipe-kit")  # fmt: skip


def serve(prepare: Callable[[Job], None], act: Callable[[Job], dict[str, Any]]) -> None:
    """Run `prepare` (imports) ahead, `act` when told to; a failure is told to the driver in one line."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
    job = json.loads(sys.argv[1])
    job["work"] = work_of(job["work"])
    try:
        prepare(job)
        print("ready", file=answers)
        if not sys.stdin.readline():
            return  # the driver has gone
        print(json.dumps(act(job)), file=answers)
    except Exception as error:
        lines = str(error).strip().splitlines()
        print(json.dumps({"failed": f"{type(error).__name__}: {lines[0] if lines else ''}"[:500]}), file=answers)
        raise


def work_of(fields: dict[str, Any]) -> Work:
    """A work as it was before it became JSON."""
    known = {name: value for name, value in fields.items() if name != "must"}
    return Work(**known | {"targets": tuple(known["targets"])})


def limit_memory(job: Job) -> None:
    import torch

    if job["work"].memory_gb and job["device"] == "cuda":
        share = job["work"].memory_gb * 1e9 / torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, share))


def base_dtype(job: Job) -> Any:
    """Frozen weights in bfloat16; weights that are trained, and all on a CPU, in float32."""
    import torch

    return torch.float32 if job["work"].method == "full" or job["device"] == "cpu" else torch.bfloat16


def random_model(job: Job, attention: str = "sdpa") -> Any:
    """A model of the work's shape with random weights, made on its device; linear layers in NF4 for QLoRA."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(rows.SEED)
    config = SHAPES[job["work"].shape].config()
    dtype = base_dtype(job)
    if job["work"].method == "qlora":
        return _quantised(config, dtype, attention, job["device"])
    with torch.device(job["device"]):
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)


def _quantised(config: Any, dtype: Any, attention: str, device: str) -> Any:
    """As `from_pretrained` with a BitsAndBytesConfig leaves a model, without weights on a disk.

    One layer at a time is made and quantised, so the peak is that of the finished model.
    """
    import torch
    from bitsandbytes.nn import Linear4bit, Params4bit
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    for name, layer in list(model.named_modules()):
        if type(layer) is torch.nn.Linear and name != "lm_head":
            quantised = Linear4bit(
                layer.in_features, layer.out_features, bias=False, compute_dtype=dtype, quant_type="nf4", device="meta"
            )
            weights = torch.empty(layer.weight.shape, dtype=dtype, device=device).normal_(std=0.02)
            quantised.weight = Params4bit(weights, requires_grad=False, quant_type="nf4", module=quantised).to(device)
            model.set_submodule(name, quantised)
    for name, parameter in list(model.named_parameters()):
        if parameter.is_meta:
            weights = torch.empty(parameter.shape, dtype=dtype, device=device)
            filled = weights.fill_(1) if parameter.ndim == 1 else weights.normal_(std=0.02)
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, torch.nn.Parameter(filled, requires_grad=False))
    model.tie_weights()
    with torch.device(device):  # its frequencies are computed when it is made
        model.model.rotary_emb = type(model.model.rotary_emb)(config=config)
    model.is_loaded_in_4bit = True  # PEFT, TRL and accelerate ask for it
    return model


def tokenizer(shape: Shape) -> Any:
    """A tokenizer with as many tokens as the shape has; nobody tokenises with it."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<unk>"]
    words = {word: number for number, word in enumerate([*special, *map(str, range(len(special), shape.vocab_size))])}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<unk>")),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )


def dataset(job: Job) -> Any:
    """The work's rows for all steps; their fingerprint is noted in the job."""
    from datasets import Dataset

    made = job["work"].rows(job["warmup"] + job["steps"])
    job["rows_sha256"] = rows.fingerprint(made)
    return Dataset.from_list(made)


def lora(work: Work) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=work.rank, lora_alpha=work.alpha, lora_dropout=0.0, target_modules=list(work.targets), task_type="CAUSAL_LM"
    )


def training_options(job: Job) -> dict[str, Any]:
    """What every trainer gets, beside its own settings."""
    on_cpu = job["device"] == "cpu"
    return {
        "output_dir": job["folder"],
        "max_steps": job["warmup"] + job["steps"],
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch_fused",
        "bf16": not on_cpu,
        "use_cpu": on_cpu,
        "seed": rows.SEED,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def measure(trainer: Any, job: Job, notes: dict[str, Any] | None = None) -> dict[str, Any]:
    """Train and tell: useful tokens a second over the timed steps, peak memory from the first step on, losses.

    The clock runs from a synchronised GPU after the warm-up to a synchronised GPU after the last step. A slow
    configuration stops once it has been timed for `seconds`, after two steps at least, and ends its warm-up after
    `warmup_seconds`, after one.
    """
    import torch

    on_gpu = job["device"] == "cuda"
    clock = _clock(job, torch.cuda.synchronize if on_gpu else lambda: None)
    trainer.add_callback(clock)
    _count_tokens(trainer, clock)
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
    trainer.train()
    seconds = clock.stopped - clock.started
    tokens, trained = [[int(count) for count in counts] for counts in (clock.tokens, clock.trained)]
    timed = tokens[clock.warmup :]
    found = {
        "tokens_per_second": sum(timed) / seconds,
        "step_seconds": seconds / len(timed),
        "tokens_per_step": sum(timed) / len(timed),
        "tokens": tokens,
        "trained_tokens": trained,
        "warmup_steps": clock.warmup,
        "steps": len(timed),
        "losses": [float(loss) for loss in clock.losses],
        "rows_sha256": job["rows_sha256"],
        "trained_dtypes": sorted({str(p.dtype)[6:] for p in trainer.model.parameters() if p.requires_grad}),
        "notes": notes or {},
        "versions": versions(),
    }
    if on_gpu:
        found |= {
            "held_bytes": held,  # before the first step: weights and adapter
            "peak_bytes": torch.cuda.max_memory_allocated(),
            "peak_reserved_bytes": torch.cuda.max_memory_reserved(),
        }
    return found


def _clock(job: Job, synchronise: Callable[[], None]) -> Any:
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        """Start and stop of the timed steps; tokens and losses of each step."""

        def __init__(self) -> None:
            self.started = self.stopped = 0.0
            self.warmup = 0  # steps, once known
            self.tokens: list[Any] = [0]
            self.trained: list[Any] = [0]
            self.losses: list[Any] = [0.0]

        def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            self.began = time.perf_counter()

        def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            if state.global_step:
                for each in (self.tokens, self.trained, self.losses):
                    each.append(0)

        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            done, now = state.global_step, time.perf_counter()
            if not self.warmup:
                if done >= job["warmup"] or now - self.began > job["warmup_seconds"]:
                    synchronise()
                    self.warmup, self.started = done, time.perf_counter()
                return
            timed = done - self.warmup
            if timed >= job["steps"] or (timed >= 2 and now - self.started > job["seconds"]):
                synchronise()
                self.stopped = time.perf_counter()
                control.should_training_stop = True

    return Clock()


def _count_tokens(trainer: Any, clock: Any) -> None:
    """Book what each step is given: its tokens without padding, the trained ones, and its loss.

    What lies on the GPU is added up there and read at the end, so that counting makes nothing wait.
    """
    step = trainer.training_step

    def booked(model: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
        mask = inputs.get("attention_mask")
        # Without a mask there is no padding. The first token of a row is never trained; `rows` trains it in none.
        clock.tokens[-1] += inputs["input_ids"].numel() if mask is None else mask.sum()
        clock.trained[-1] += (inputs["labels"] != -100).sum()
        loss = step(model, inputs, *arguments, **options)
        clock.losses[-1] = clock.losses[-1] + loss.detach()
        return loss

    trainer.training_step = booked


def versions() -> dict[str, str]:
    """Of Python, CUDA and those packages a result may depend on that this process has imported."""
    import torch

    found = {"python": platform.python_version()}
    for name in PACKAGES:
        if name.replace("-", "_") in sys.modules:
            try:
                found[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:  # read from its sources
                found[name] = getattr(sys.modules[name.replace("-", "_")], "__version__", "unknown")
    return found | ({"cuda": torch.version.cuda} if torch.version.cuda else {})
