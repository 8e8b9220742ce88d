"""What is trained, by whom and with which settings, and what the kit must reach.

A work is a shape, a method and rows. Every configuration trains the same rows with the same number of rows a step; how
it cuts a step into micro-batches is its own affair. Where that is not given by a library's defaults, a configuration
has several candidates: all run once before the rounds, and the fastest goes on.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import rows
from shapes import SHAPES, TITLES

Settings = dict[str, Any]
ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Must:
    """What the kit must reach; of `tokens_per_second` and `share` one is enough."""

    tokens_per_second: float | None = None
    share: float | None = None  # of the card's measured ceiling
    times: dict[str, float] = dataclasses.field(default_factory=dict)  # as fast as these configurations
    peak_gb: float | None = None  # 10^9 bytes


@dataclass(frozen=True)
class Work:
    """One shape trained by one method on rows of one kind."""

    name: str
    shape: str
    method: str  # full, lora or qlora
    rows_per_step: int = 144  # about 32,800 tokens
    rank: int = 16
    alpha: int = 32
    targets: tuple[str, ...] = ALL_LINEAR
    checkpointing: bool = False  # as the recipe has it; a step then computes each layer's forward twice
    median: int = rows.MEDIAN  # tokens of a row
    longest: int = rows.LONGEST
    fixed_length: int | None = None  # every row has as many tokens
    memory_gb: float | None = None  # all that a process may allocate, 10^9 bytes
    must: Must = Must()
    series: str | None = None  # what grows, in the growth mode: this work is one point of it
    x: float | None = None

    @property
    def title(self) -> str:
        method = {"full": "full fine-tuning", "lora": f"LoRA r={self.rank}", "qlora": f"QLoRA NF4 r={self.rank}"}
        text = f"{TITLES[self.shape]} shape, {method[self.method]}"
        text += ", checkpointing" if self.checkpointing else ""
        return text + (f", memory limited to {self.memory_gb:g} GB" if self.memory_gb else "")

    @property
    def flop_per_parameter(self) -> int:
        """Of one token: 2 forward, 2 for gradients of activations, 2 for those of weights or for a second forward."""
        return 6 if self.method == "full" or self.checkpointing else 4

    @property
    def flop_per_token(self) -> float:
        return self.flop_per_parameter * SHAPES[self.shape].parameters

    @property
    def longest_row(self) -> int:
        return self.fixed_length or self.longest

    @property
    def tokens_per_step(self) -> float:
        return self.rows_per_step * _mean_length(self.median, self.longest, self.fixed_length)

    def lengths(self, steps: int) -> list[int]:
        """Tokens of every row of that many steps, and of one more: packing leaves out a little at the end."""
        count = self.rows_per_step * (steps + 1)
        if self.fixed_length:
            return [self.fixed_length] * count
        return rows.lengths(count, median=self.median, longest=self.longest)

    def rows(self, steps: int) -> list[rows.Row]:
        return rows.rows(self.lengths(steps), SHAPES[self.shape].vocab_size)


@functools.cache
def _mean_length(median: int, longest: int, fixed_length: int | None) -> float:
    if fixed_length:
        return float(fixed_length)
    sample = rows.lengths(4096, median=median, longest=longest)
    return sum(sample) / len(sample)


WORKS = (
    Work("lora-1b", "llama-3.2-1b", "lora", must=Must(100_000, 0.66, {"trl-packed": 8, "unsloth": 5})),
    Work("qlora-1b", "llama-3.2-1b", "qlora", must=Must(85_000)),
    Work("full-1b", "llama-3.2-1b", "full", must=Must(share=0.80)),
    # The recipes guanaco, customer_support and hinglish: their adapters, lengths and batches.
    Work(
        "guanaco-7b", "llama-2-7b", "qlora", rows_per_step=10, rank=64, alpha=16, targets=("q_proj", "v_proj"),
        checkpointing=True, median=360, memory_gb=15, must=Must(share=0.65, peak_gb=15),
    ),
    Work(
        "support-3b", "llama-3.2-3b", "qlora", rows_per_step=56, checkpointing=True, longest=768, memory_gb=8,
        must=Must(peak_gb=8),
    ),
    Work(
        "hinglish-1b", "tinyllama-1.1b", "qlora", rows_per_step=72, checkpointing=True, memory_gb=8,
        must=Must(peak_gb=8),
    ),
)  # fmt: skip

PROGRAMS = {
    "kit": "kit.py",
    "kit-flash4": "kit.py",
    "trl": "plain_trl.py",
    "trl-packed": "plain_trl.py",
    "trl-best": "plain_trl.py",
    "unsloth": "with_unsloth.py",
    "unsloth-xformers": "with_unsloth.py",
}
TITLES_OF_CONFIGURATIONS = {
    "kit": "recipe-kit, `auto`",
    "kit-flash4": "recipe-kit, FlashAttention-4",
    "trl": "TRL, defaults",
    "trl-packed": "TRL, `packing=True`",
    "trl-best": "TRL, best without extras",
    "unsloth": "unsloth, as it installs",
    "unsloth-xformers": "unsloth, its xformers helped to load",
}


def of_shape(shape: str) -> tuple[Work, ...]:
    """The works of one shape; a shape that has none of its own gets all three methods."""
    own = tuple(work for work in WORKS if work.shape == shape)
    count = 8 if shape == "tiny" else Work.rows_per_step
    return own or tuple(Work(f"{method}-{shape}", shape, method, count) for method in ("lora", "qlora", "full"))


def growth(shapes: Sequence[str] = ("smollm2-135m", "llama-3.2-1b", "llama-3.2-3b", "llama-2-7b")) -> list[Work]:
    """LoRA as three things grow, one at a time: length of rows, size of the model, tokens of a step."""
    middle = "llama-3.2-1b" if "llama-3.2-1b" in shapes else shapes[0]
    works = []
    for length in (512, 1_024, 2_048, 4_096, 8_192, 16_384):
        count = 32_768 // length
        works.append(Work(f"length-{length}", middle, "lora", count, fixed_length=length, series="length", x=length))
    for shape in shapes:
        works.append(Work(f"size-{shape}", shape, "lora", 36, series="size", x=SHAPES[shape].parameters))
    for count in (18, 36, 72, 144, 288):
        work = Work(f"step-{count}", middle, "lora", count, series="step")
        works.append(dataclasses.replace(work, x=round(work.tokens_per_step)))
    return works


def candidates(configuration: str, work: Work) -> list[Settings]:
    """The settings a configuration may choose from; one for those that come as they are."""
    if configuration == "trl":
        return [_padded(work, 8, checkpointing=True)]
    if configuration == "trl-packed":
        return [_packed(work, 8, checkpointing=True)]
    if configuration == "trl-best":
        packed = [_packed(work, 1, checkpointing=work.checkpointing)]  # a mask of more rows only costs more
        padded = [_padded(work, batch, checkpointing=work.checkpointing, grouped=True) for batch in (16, 72)]
        return _different(packed + padded)
    if configuration == "kit-flash4":
        return [{"attention": "flash_attention_4"}]
    if configuration in ("unsloth", "unsloth-xformers"):
        saving = "unsloth" if work.checkpointing else False
        # With PyTorch's attention a batch is one row with a mask of all its tokens by all: small ones are faster.
        return [_padded(work, 36 if configuration == "unsloth" else 144, checkpointing=saving)]
    return [{}]


def _padded(work: Work, batch: int, *, checkpointing: bool | str, grouped: bool = False) -> Settings:
    batch = _divisor(work.rows_per_step, batch)
    settings = {
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": work.rows_per_step // batch,
        "gradient_checkpointing": checkpointing,
        "max_length": work.longest_row,
    }
    return settings | ({"train_sampling_strategy": "group_by_length"} if grouped else {})


def _packed(work: Work, batch: int, *, checkpointing: bool) -> Settings:
    """Blocks as long as the longest row; as many a step as hold the tokens of `rows_per_step` rows."""
    blocks = max(1, round(work.tokens_per_step / work.longest_row))
    batch = _divisor(blocks, batch)
    return {
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": blocks // batch,
        "gradient_checkpointing": checkpointing,
        "max_length": work.longest_row,
        "packing": True,
    }


def _divisor(count: int, most: int) -> int:
    """The largest number up to `most` that divides `count`: every step then has exactly as many."""
    return max(number for number in range(1, min(count, most) + 1) if count % number == 0)


def _different(settings: list[Settings]) -> list[Settings]:
    return [each for index, each in enumerate(settings) if each not in settings[:index]]
