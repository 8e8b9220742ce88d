"""Rows packed into one sequence give what each row gives alone, through the kernel and where it cannot be used."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from itertools import chain, pairwise
from typing import Any

import pytest
import torch
import transformers

from recipe_kit import varlen

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

ROWS = [[5, 9, 2, 7, 11, 3, 8, 6, 4], [13, 2, 17, 5], [40], [3, 19, 21, 8, 2, 30, 31, 7, 7, 12, 50, 9]]
SHAPE = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "initializer_range": 0.2,  # as large as that, attention moves the logits
}  # fmt: skip
KINDS = {
    "grouped heads": ("Llama", {}),
    "all heads": ("Llama", {"num_key_value_heads": 4}),
    "a sliding window": ("Mistral", {"sliding_window": 4}),
    "sliding and full layers": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"] * 2,
         "num_hidden_layers": 4},
    ),
}  # fmt: skip


def config_of(kind: str = "grouped heads", **changes: Any) -> Any:
    name, values = KINDS[kind]
    return getattr(transformers, f"{name}Config")(**{**SHAPE, **values, **changes})


def model_of(kind: str = "grouped heads", attention: str = varlen.NAME, **options: Any) -> Any:
    """A model in training; the same weights for every attention."""
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(
        config_of(kind), attn_implementation=attention, **options
    ).train()


def packed_batch(device: str = "cpu", *, boundaries: bool = True) -> dict[str, Any]:
    """All rows end to end, as padding-free collators write them."""
    lengths = torch.tensor([0, *map(len, ROWS)])
    batch: dict[str, Any] = {
        "input_ids": torch.tensor([[*chain(*ROWS)]], device=device),
        "position_ids": torch.cat([torch.arange(len(row)) for row in ROWS])[None].to(device),
        "use_cache": False,
    }
    if boundaries:
        starts = lengths.cumsum(0).to(torch.int32).to(device)
        batch |= {"cu_seq_lens_q": starts, "cu_seq_lens_k": starts, "max_length_q": 12, "max_length_k": 12}
    return batch


def alone(model: Any) -> torch.Tensor:
    """Logits of each row by itself, one after the other: (1, tokens, vocabulary)."""
    return torch.cat([model(torch.tensor([row], device=model.device)).logits for row in ROWS], dim=1)


def gradients(model: Any, logits: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of a sum in which every logit has another weight."""
    model.zero_grad()
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1)).to(logits.device)
    (logits.float() * weights).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Length of the difference as a share of the length of what was expected."""
    found, expected = found.detach().float(), expected.detach().float()
    return float((found - expected).norm() / expected.norm())


def kernel_in_plain_torch(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, starts: torch.Tensor, key_starts: torch.Tensor,
    longest: int, longest_key: int, *, scale: float | None, window_size: tuple[int, int], enable_gqa: bool = False,
) -> torch.Tensor:  # fmt: skip
    """What the kernel is documented to compute: (tokens, heads, head size) in and out, row by row."""
    assert (longest, longest_key) == (12, 12) and starts is key_starts and starts.dtype == torch.int32
    assert enable_gqa == (q.shape[1] != k.shape[1])
    before, after = window_size
    assert after == 0
    answers = []
    for start, end in pairwise(starts.tolist()):
        queries = q[start:end].transpose(0, 1)
        keys, values = (
            states[start:end].transpose(0, 1).repeat_interleave(q.shape[1] // k.shape[1], 0) for states in (k, v)
        )
        back = torch.arange(end - start)[:, None] - torch.arange(end - start)[None]
        seen = (back >= 0) if before < 0 else (back >= 0) & (back <= before)
        scores = (queries @ keys.transpose(1, 2)) * (scale or q.shape[-1] ** -0.5)
        weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        answers.append((weights @ values).transpose(0, 1))
    return torch.cat(answers)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The kernel's path on a CPU: numbers of tokens that the stand-in was called with."""
    calls: list[int] = []

    def counted(q: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        calls.append(len(q))
        return kernel_in_plain_torch(q, *arguments, **options)

    monkeypatch.setattr(varlen, "varlen_attn", counted)
    monkeypatch.setattr(varlen, "_ASKS", True)
    monkeypatch.setattr(varlen, "_computing_dtype", lambda query: query.dtype)
    return calls


@pytest.fixture
def masks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the masks that were built."""
    built: list[int] = []
    build = varlen.sdpa_mask

    def counted(batch_size: int, q_length: int, *arguments: Any, **options: Any) -> Any:
        found = build(batch_size, q_length, *arguments, **options)
        if found is not None:
            built.append(found.numel())
        return found

    monkeypatch.setattr(varlen, "sdpa_mask", counted)
    return built


@pytest.mark.slow
def test_one_import_is_enough_for_any_program() -> None:
    code = (
        "import recipe_kit.varlen; from transformers import AutoModelForCausalLM, LlamaConfig; import torch; "
        "config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, "
        "num_attention_heads=1); "
        "model = AutoModelForCausalLM.from_config(config, attn_implementation='torch_varlen'); "
        "print(model.config._attn_implementation, *model(torch.tensor([[1, 2, 3]])).logits.shape)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "torch_varlen 1 3 8\n"


# --- through the kernel, whose place plain PyTorch takes here


@pytest.mark.parametrize("kind", KINDS)
def test_packed_rows_through_the_kernel_give_what_each_gives_alone(kernel: list[int], kind: str) -> None:
    """trl #805, torchtune #892, ms-swift #4736: packed rows do not see each other, forward and backward."""
    model = model_of(kind)
    logits = model(**packed_batch()).logits
    assert kernel == [26] * model.config.num_hidden_layers
    expected = alone(model)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    found, wanted = gradients(model, logits), gradients(model, expected)
    assert max(distance(found[name], wanted[name]) for name in wanted) < 1e-5


def test_rows_that_did_see_each_other_would_be_noticed() -> None:
    model = model_of()
    joined = {**packed_batch(boundaries=False), "position_ids": torch.arange(26)[None]}
    assert distance(model(**joined).logits, alone(model)) > 0.3


def test_no_mask_is_built_for_the_kernel(kernel: list[int], masks: list[int]) -> None:
    """A mask of all tokens by all tokens is what makes packed rows slow: not even the first layer needs it."""
    model_of("sliding and full layers")(**packed_batch())
    assert kernel == [26] * 4
    assert masks == []


@pytest.mark.parametrize(
    "change",
    [
        {"dropout": 0.1},
        {"is_causal": False},
        {"softcap": 30.0},
        {"position_bias": torch.zeros(1, 4, 26, 26)},
        {"s_aux": torch.zeros(4)},
        {"sliding_window": 4},  # where the mask is that of full attention
        {"attention_mask": torch.ones(1, 1, 26, 26, dtype=torch.bool)},
        {"attention_mask": varlen.PackedMask(lambda: torch.ones(1, 1, 26, 26, dtype=torch.bool), 8)},  # chunks of 8
        {"cu_seq_lens_q": None},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_the_kernel_cannot_do_is_not_asked_of_it(
    kernel: list[int], monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(
        varlen, "sdpa_attention_forward", lambda *arguments, **options: given.append(options) or arguments[4]
    )
    states = torch.randn(1, 4, 26, 16)
    dense = torch.ones(1, 1, 26, 26, dtype=torch.bool)
    options: dict[str, Any] = {
        "attention_mask": varlen.PackedMask(lambda: dense, None),
        "cu_seq_lens_q": torch.tensor([0, 26], dtype=torch.int32),
        "max_length_q": 12,
        **change,
    }
    mask = varlen.varlen_attention(torch.nn.Module(), states, states, states, **options)
    assert torch.equal(mask, dense)  # type: ignore[arg-type]
    assert kernel == []
    if "attention_mask" not in change:  # whatever it is, sdpa is told, and takes or refuses it
        assert given[0].keys() >= change.keys()


@pytest.mark.parametrize("size", [20, 264])
def test_head_sizes_that_the_kernel_has_not_go_to_sdpa(kernel: list[int], size: int) -> None:
    states = torch.randn(1, 2, 12, size)
    starts = torch.tensor([0, 12], dtype=torch.int32)
    answer, _ = varlen.varlen_attention(torch.nn.Module(), states, states, states, None, cu_seq_lens_q=starts)
    assert kernel == []
    assert answer.shape == (1, 12, 2, size)


# --- without the kernel: on a CPU, and for batches that are not packed


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("boundaries", [True, False])
def test_packed_rows_give_what_each_gives_alone_without_the_kernel(kind: str, boundaries: bool) -> None:
    model = model_of(kind)
    batch = packed_batch(boundaries=boundaries)
    torch.testing.assert_close(model(**batch).logits, alone(model), atol=1e-4, rtol=1e-4)


def test_the_mask_is_built_once_for_all_layers(masks: list[int]) -> None:
    model_of()(**packed_batch())
    assert masks == [26 * 26]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batches_equal_sdpa(kind: str, side: str) -> None:
    """Attention for packed rows that meets padding takes the mask that sdpa would have got, on either side."""
    width = max(map(len, ROWS))
    padded = [[0] * (width - len(row)) + row if side == "left" else row + [0] * (width - len(row)) for row in ROWS]
    batch = {"input_ids": torch.tensor(padded), "attention_mask": (torch.tensor(padded) != 0).long()}
    ours, theirs = (model_of(kind, attention)(**batch).logits for attention in (varlen.NAME, "sdpa"))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_generation_with_a_cache_equals_sdpa(kind: str) -> None:
    batch = {"input_ids": torch.tensor([[0, 0, 3, 9, 4], [5, 6, 7, 8, 9]]),
             "attention_mask": torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])}  # fmt: skip
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "output_logits": True,
               "return_dict_in_generate": True}  # fmt: skip
    ours, theirs = (
        model_of(kind, attention).eval().generate(**batch, **options) for attention in (varlen.NAME, "sdpa")
    )
    assert torch.equal(ours.sequences, theirs.sequences) and ours.sequences.shape == (2, 13)
    assert torch.equal(torch.stack(ours.logits), torch.stack(theirs.logits))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_layers_take_the_mask_that_is_not_built_yet(kernel: list[int], reentrant: bool) -> None:
    model = model_of()
    wanted = gradients(model, alone(model))
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    found = gradients(model, model(**packed_batch()).logits)
    assert kernel == [26] * 6
    assert max(distance(found[name], wanted[name]) for name in wanted) < 1e-5


# --- what is known before a model is loaded


class OfAnotherPackage(transformers.LlamaConfig):  # type: ignore[misc]
    model_type = "of_another_package"


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (OfAnotherPackage(), "its code is not of transformers"),
        (transformers.Gemma2Config(), "its attention caps logits"),
        (transformers.Llama4TextConfig(), "its attention is chunked"),
        (transformers.GptOssConfig(), "transformers has no interchangeable attention for gpt_oss models"),  # sinks
        (transformers.DogeConfig(), "transformers has no interchangeable attention for doge models"),  # edits masks
        (transformers.OPTConfig(), "packed rows of opt models see each other in transformers"),
        (transformers.BloomConfig(), "transformers has no interchangeable attention for bloom models"),
        (transformers.Qwen3NextConfig(), "it has layers of another kind (linear_attention)"),
        (transformers.MambaConfig(), "it has layers of another kind (linear_attention)"),
        (transformers.Qwen2Config(), None),
        (transformers.Phi3Config(hidden_size=64, num_attention_heads=4), None),
        (transformers.LlamaConfig(attention_dropout=0.1), "its attention has dropout"),
        (transformers.FalconConfig(alibi=True), "its attention adds a bias by distance"),
        (transformers.GPT2Config(), "its attention has dropout"),
        (
            transformers.GPT2Config(n_embd=514, n_head=2, attn_pdrop=0),
            "its heads have 257 values, and the kernel takes multiples of 8 up to 256",
        ),
        (config_of(head_dim=20), "its heads have 20 values, and the kernel takes multiples of 8 up to 256"),
        (config_of(head_dim=256), None),
        (config_of("a sliding window"), None),
        (transformers.GemmaConfig(head_dim=256), None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, transformers.PretrainedConfig) else "",
)
def test_a_model_is_told_beforehand_why_it_cannot(config: Any, reason: str | None) -> None:
    assert varlen.unsupported(config) == reason


def test_a_cpu_and_a_torch_without_it_are_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert varlen.unsupported(config_of(), "cpu") == "there is no GPU"
    monkeypatch.setattr(varlen, "varlen_attn", None)
    assert varlen.unsupported(config_of()) == f"PyTorch {torch.__version__} has no variable-length attention"
    model = model_of()
    torch.testing.assert_close(model(**packed_batch()).logits, alone(model), atol=1e-4, rtol=1e-4)


def test_an_older_card_is_told_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    assert varlen.unsupported(config_of(), "cuda") == "Tesla T4 is older than Ampere"


# --- on a GPU


@pytest.fixture
def calls_of_the_kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    calls: list[int] = []
    real = varlen.varlen_attn
    assert real is not None

    def counted(q: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        calls.append(len(q))
        return real(q, *arguments, **options)

    monkeypatch.setattr(varlen, "varlen_attn", counted)
    yield calls


ROUNDING = {torch.bfloat16: 0.08, torch.float16: 0.02}


def half_and_exact(kind: str, dtype: torch.dtype, device: str) -> tuple[Any, Any]:
    """A model in 16 bits, and the same numbers in float32."""
    exact = model_of(kind, "sdpa")
    for parameter in exact.parameters():
        parameter.data = parameter.data.to(dtype).float()
    model = model_of(kind, dtype=dtype)
    model.load_state_dict(exact.state_dict())
    return model.to(device), exact.to(device)


def in_a_row(gradients: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([gradients[name].float().flatten() for name in sorted(gradients)])


@pytest.mark.parametrize("kind", KINDS)
def test_sixteen_bits_round_as_much_as_the_gpu_may(kernel: list[int], kind: str) -> None:
    """The limit that the tests on a GPU use is one that plain PyTorch keeps, too."""
    model, exact = half_and_exact(kind, torch.bfloat16, "cpu")
    logits, expected = model(**packed_batch()).logits, alone(exact)
    assert len(kernel) == model.config.num_hidden_layers
    assert distance(logits, expected) < ROUNDING[torch.bfloat16]
    found, wanted = gradients(model, logits), gradients(exact, expected)
    assert distance(in_a_row(found), in_a_row(wanted)) < ROUNDING[torch.bfloat16]


@needs_gpu
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_packed_rows_on_a_gpu_give_what_each_gives_alone(
    calls_of_the_kernel: list[int], kind: str, dtype: torch.dtype
) -> None:
    """trl #1230, alignment-handbook #204: the kernel of the card itself. The rows alone are computed in float32."""
    model, exact = half_and_exact(kind, dtype, "cuda")
    logits, expected = model(**packed_batch("cuda")).logits, alone(exact)
    assert calls_of_the_kernel == [26] * model.config.num_hidden_layers
    assert distance(logits, expected) < ROUNDING[dtype]
    found, wanted = gradients(model, logits), gradients(exact, expected)
    assert distance(in_a_row(found), in_a_row(wanted)) < ROUNDING[dtype]


@needs_gpu
def test_a_float32_model_on_a_gpu_goes_to_sdpa_and_under_autocast_to_the_kernel(
    calls_of_the_kernel: list[int],
) -> None:
    model = model_of().cuda()
    expected = alone(model)
    assert distance(model(**packed_batch("cuda")).logits, expected) < 1e-3
    assert calls_of_the_kernel == []
    with torch.autocast("cuda", dtype=torch.bfloat16):
        logits = model(**packed_batch("cuda")).logits
    assert calls_of_the_kernel == [26] * 3
    assert distance(logits, expected) < ROUNDING[torch.bfloat16]


@needs_gpu
def test_a_padded_batch_and_generation_on_a_gpu_never_reach_the_kernel(calls_of_the_kernel: list[int]) -> None:
    batch = {"input_ids": torch.tensor([[0, 0, 3, 9], [5, 6, 7, 8]], device="cuda"),
             "attention_mask": torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]], device="cuda")}  # fmt: skip
    ours, theirs = (
        model_of(attention=attention, dtype=torch.bfloat16).cuda().eval() for attention in (varlen.NAME, "sdpa")
    )
    assert torch.equal(ours(**batch).logits, theirs(**batch).logits)
    found, expected = (model.generate(**batch, max_new_tokens=6, do_sample=False) for model in (ours, theirs))
    assert torch.equal(found, expected)
    assert calls_of_the_kernel == []
