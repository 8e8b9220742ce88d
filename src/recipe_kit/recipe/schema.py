"""What a recipe is: its sections, their fields, types and defaults.

Field names are a promise. The kit's own sections are closed; `lora`, `quantization` and `training` hold whatever the
installed libraries take, and are checked in `checks.py`. Every description here is also the text of the reference
page.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, ValidatorFunctionWrapHandler, WrapValidator

from recipe_kit.recipe.data_section import DataSection, FormatterSpec, Source
from recipe_kit.recipe.section import Options, Section, named

Dtype = Literal["bfloat16", "float16", "float32"]
Method = Literal["full", "lora", "qlora"]
Attention = Literal[
    "auto", "eager", "sdpa", "torch_varlen", "flash_attention_2", "flash_attention_3", "flash_attention_4",
    "flex_attention",
]  # fmt: skip
ProofName = Literal[
    "answers_trained", "end_of_turn_trained", "only_answers_trained", "one_bos", "padding_not_trained",
    "no_forged_turns", "answers_whole", "serving_renders_the_same", "no_overlap", "no_added_tokens",
    "labels_reach_the_model", "packed_rows_isolated", "batch_size_does_not_matter", "processes_agree",
]  # fmt: skip

# Options of TRL for which the kit also takes `auto`: what fits the card is chosen.
AUTO_TRAINING = ("per_device_train_batch_size", "gradient_checkpointing", "optim")
PASSED_ON = {"lora": "LoraConfig", "quantization": "BitsAndBytesConfig", "training": "SFTConfig"}


class ModelSection(Section):
    """The model to start from, and how to load it."""

    id: str = Field(
        min_length=1,
        description="Hub id `org/name`, a local folder, `package:NAME` for a model inside an installed Python "
        "package, or `tiny:FAMILY` for a tiny random one made on the spot.",
    )
    revision: str | None = Field(None, description="Commit, tag or branch on the Hub. Pin a commit to repeat a run.")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "bfloat16",
        description="Type the weights are held in; `auto` is bfloat16. A card without bfloat16 gets float16.",
    )
    attention: Attention = Field(
        "auto",
        description="Attention implementation. `auto` takes one that does no work between packed rows where card and "
        "model allow it (FlashAttention if installed, else `torch_varlen`), and leaves the choice to transformers "
        "elsewhere.",
    )
    kernels: Literal["auto", "none", "liger", "hub"] = Field(
        "auto",
        description="Faster layers on a GPU. `auto` takes Liger's where the extra `kernels` is installed and knows "
        "the architecture, and computes linear layers and adapters in place; `hub` loads upstream's kernels from the "
        "Hub (needs the package kernels); `none` leaves every layer as transformers and PEFT made it.",
    )
    chat_template: str | None = Field(
        None, description="A `.jinja` file, or the template itself; null keeps the tokenizer's own."
    )
    chat_template_kwargs: Options = Field(
        default_factory=dict, description="Variables handed to the chat template, such as `date_string`."
    )
    pad_token: str | None = Field(None, description="Padding token; null chooses one that is never a trained token.")
    trust_remote_code: bool = Field(False, description="Run Python code that comes with the model. Read it first.")


class ProofsSection(Section):
    """What is proved about rows, tokens and trainer before the first step. A failed proof ends the run."""

    warn: list[ProofName] = Field(
        default_factory=list,
        description="Proofs, by the names `recipe-kit plan` prints, whose failure is said and does not end the run.",
    )
    max_cut_off_share: float = Field(
        0.05, ge=0, le=1, description="Largest share of rows whose answer may be cut off by `data.max_length`."
    )


class MetricSpec(Section):
    """A measure of answers against references."""

    name: str = Field(
        min_length=1,
        description="`rouge`, `chrf`, `exact_match`, `normalised_match`, `length_ratio`, one that an installed "
        "package adds, or `module:attribute`.",
    )
    options: Options = Field(default_factory=dict, description="Keyword arguments for the metric.")


Metric = Annotated[MetricSpec, BeforeValidator(named, json_schema_input_type=str | MetricSpec)]


class JudgeSection(Section):
    """A language model that says which of two answers is better. Prompts and answers are sent to `url`."""

    url: str = Field(
        pattern=r"^https?://", description="An OpenAI-compatible endpoint, such as http://localhost:8000/v1."
    )
    model: str = Field(min_length=1, description="The judging model, by the name its server knows.")
    api_key_env: str = Field(
        "OPENAI_API_KEY",
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="Environment variable that holds the key; the key itself never stands in a recipe.",
    )
    pairs: int = Field(
        50, gt=0, description="Most pairs of answers to ask about; each is asked twice, in both orders."
    )
    timeout: float = Field(60.0, gt=0, description="Seconds to wait for one verdict.")
    criteria: str | None = Field(None, description="What makes an answer better, in a sentence or two.")
    price_per_million_input_tokens: float | None = Field(None, ge=0, description="For the cost that is shown.")
    price_per_million_output_tokens: float | None = Field(None, ge=0, description="For the cost that is shown.")


class LmEvalSection(Section):
    """Tasks of EleutherAI's lm-evaluation-harness, run on both models; needs the extra `lm-eval`."""

    tasks: list[str] = Field(min_length=1, description="Task names, or folders that hold task files.")
    limit: int | None = Field(None, gt=0, description="Documents a task; null takes all.")
    num_fewshot: int | None = Field(None, ge=0, description="Worked examples before each question; null: the task's.")


class EvaluationSection(Section):
    """What is measured on held-out rows, for the base model and the tuned one."""

    after_training: bool = Field(True, description="Evaluate as soon as training ends.")
    split: Literal["test", "eval"] | None = Field(
        None, description="Held-out rows to measure on; null is `test` where the recipe names one, else `eval`."
    )
    perplexity: bool = Field(True, description="Measure perplexity, over answer tokens and over all tokens.")
    metrics: list[Metric] = Field(
        default_factory=list,
        description="Measures of generated answers against the references: a name, or `{name: …, options: {…}}`. "
        "Every measured row is then answered by both models.",
    )
    answers: int | None = Field(
        None, gt=0, description="Held-out prompts answered for `metrics`, spread over the rows; null is all of them."
    )
    samples: int = Field(8, ge=0, description="Held-out prompts whose answers are kept to read side by side.")
    prompts: list[str] = Field(
        default_factory=list, description="Fixed prompts, answered by both models and kept side by side."
    )
    max_new_tokens: int = Field(128, gt=0, description="Longest generated answer in tokens.")
    batch_size: int | None = Field(None, gt=0, description="Rows at a time; null chooses by the memory there is.")
    seed: int = Field(42, ge=0, description="Seed of the intervals; answers are greedy and need none.")
    limit: int | None = Field(None, gt=0, description="Measure at most this many rows.")
    judge: JudgeSection | None = Field(None, description="A judge of the answers side by side; null asks nobody.")
    lm_eval: LmEvalSection | None = Field(None, description="Tasks of lm-evaluation-harness; null runs none.")


class LaunchSection(Section):
    """How the training processes are started. Holds no hyper-parameter."""

    accelerate_config: str | None = Field(
        None,
        description="A topology that ships (cpu, single_gpu, multi_gpu, fsdp2, fsdp2_offload, zero2, zero3, "
        "zero3_offload, multi_node, multi_node_fsdp2, multi_node_zero3) or a file of `accelerate config`.",
    )
    num_processes: int | None = Field(
        None, gt=0, description="Number of processes, one for each GPU, over all machines."
    )
    on_oom: Literal["halve", "stop"] = Field(
        "halve",
        description="When a training step runs out of GPU memory: `halve` repeats it with each batch computed in "
        "twice as many parts, the effective batch unchanged; `stop` ends the run. Several processes always stop.",
    )


class PublishSection(Section):
    """What `recipe-kit push` and `recipe-kit train --push` publish on the Hub. Nothing is sent without either."""

    repo_id: str | None = Field(
        None,
        pattern=r"^[\w.-]+(/[\w.-]+)?$",
        description="Repository to publish to, `owner/name`; a name alone is one of your own account.",
    )
    private: bool = Field(True, description="Create the repository private.")
    what: Literal["adapter", "merged", "both"] = Field("adapter", description="Adapter, merged weights, or both.")
    revision: str | None = Field(None, description="Branch to publish to, made if missing; null is `main`.")
    tag: str | None = Field(None, description="Tag for the published commit, such as `v1.0`.")
    merged_dtype: Dtype | None = Field(None, description="Type of the merged weights; null takes `model.dtype`.")
    merged_base: Literal["auto", "original", "nf4"] = Field(
        "auto",
        description="For `qlora`: merge into the original 16-bit weights, or into what 4 bits made of them (`nf4`); "
        "`auto` measures both on held-out rows and takes the better.",
    )


def _language(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    if value is None or isinstance(value, str) or (isinstance(value, list) and all(isinstance(v, str) for v in value)):
        return handler(value)
    raise ValueError("expected a language code such as en, or a list of them")


class CardSection(Section):
    """Words for the model card that no measurement can supply."""

    license: str | None = Field(
        None, description="Licence id of the Hub's list for the published weights; null takes the base model's."
    )
    license_name: str | None = Field(None, description="Name of a licence that is not on the list (`license: other`).")
    license_link: str | None = Field(None, description="Where the text of such a licence is.")
    base_model: str | None = Field(
        None,
        pattern=r"^[\w.-]+/[\w.-]+$",
        description="Hub id of the base model, `owner/name`, where `model.id` is a folder or a package.",
    )
    language: Annotated[str | list[str] | None, WrapValidator(_language)] = Field(
        None, description="Language code of the data, or a list of them."
    )
    intended_use: str | None = Field(None, description="What the model is for.")
    out_of_scope: str | None = Field(None, description="What it is not for.")
    limitations: str | None = Field(None, description="What it should not be trusted with.")
    data: str | None = Field(None, description="Where the rows come from and under what licence, in your words.")
    developed_by: str | None = Field(None, description="Who made it.")
    contact: str | None = Field(None, description="Where to ask.")
    citation: str | None = Field(None, description="How to cite it, such as a BibTeX entry.")
    tags: list[str] = Field(default_factory=list, description="Further tags for the Hub's search.")
    samples: int = Field(3, ge=0, description="Answers shown on the card, fixed prompts first; 0 shows no row.")


class Recipe(Section):
    """One experiment, resolved: no parent, no profile, every default filled in."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9_-]*$",
        description="Names the experiment and its run folders: small letters, digits, `-` and `_`.",
    )
    description: str | None = Field(None, description="One sentence about it.")
    model: ModelSection = Field(description="The model to start from.")
    method: Method = Field(
        description="Train all weights (`full`), an adapter (`lora`), or an adapter on a 4-bit model (`qlora`)."
    )
    data: DataSection = Field(description="Rows, and how they become tokens to learn.")
    lora: Options = Field(default_factory=dict, description="Passed on to `peft.LoraConfig`.")
    quantization: Options = Field(
        default_factory=dict, description="Passed on to `transformers.BitsAndBytesConfig`; for `qlora` only."
    )
    training: Options = Field(default_factory=dict, description="Passed on to `trl.SFTConfig`.")
    proofs: ProofsSection = Field(default_factory=ProofsSection, description="What is proved before the first step.")
    evaluation: EvaluationSection = Field(default_factory=EvaluationSection, description="What is measured.")
    launch: LaunchSection = Field(default_factory=LaunchSection, description="How processes are started.")
    publish: PublishSection = Field(
        default_factory=PublishSection, description="What is published by `push`, and where."
    )
    card: CardSection = Field(default_factory=CardSection, description="Words for the model card.")

    @property
    def trains_embeddings(self) -> bool:
        """Whether embedding rows are trained and saved with the result: only then may tokens be added."""
        return self.method == "full" or {"embed_tokens", "lm_head"} <= set(self.lora.get("modules_to_save") or [])


# Keys of a recipe file that are gone once it is resolved.
FILE_KEYS = {
    "extends": "A parent recipe: a path relative to this file, or a shipped recipe by name. Keys here override it.",
    "profiles": "Named overlays, such as the same experiment on other hardware: `{name: keys to override}`.",
}

# Dotted place -> the model whose fields may stand there.
CLOSED: dict[str, type[BaseModel]] = {
    "": Recipe,
    "model": ModelSection,
    "data": DataSection,
    "data.train": Source,
    "data.eval": Source,
    "data.test": Source,
    "data.formatter": FormatterSpec,
    "proofs": ProofsSection,
    "evaluation": EvaluationSection,
    "evaluation.metrics": MetricSpec,
    "evaluation.judge": JudgeSection,
    "evaluation.lm_eval": LmEvalSection,
    "launch": LaunchSection,
    "publish": PublishSection,
    "card": CardSection,
}
