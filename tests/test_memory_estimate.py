"""The memory estimate: its parts against bytes that real layers hold, keep and need; what it says of known shapes."""

from __future__ import annotations

import json
import weakref
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from llama_shapes import LLAMA_2_7B, LLAMA_32_1B, LLAMA_32_3B
from recipe_kit.recipe import Recipe, load_recipe
from recipe_kit.speed import activations, memory, moments, parameters
from recipe_kit.speed.activations import Layer, Numbers
from recipe_kit.speed.moments import Work
from recipe_kit.speed.shape import shape_of

HIDDEN, INNER, LAYERS, HEAD, VOCABULARY = 64, 192, 3, 16, 96
SMALL = {
    "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": HEAD, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

FAST = {"fused_layers": True, "in_place_adapters": True, "attention": "torch_varlen"}
PLAIN = {"fused_layers": False, "in_place_adapters": False, "attention": "sdpa"}


def config_of(kind: str = "Llama", **values: Any) -> Any:
    import transformers

    return getattr(transformers, f"{kind}Config")(**values)


def recipe_of(method: str, dtype: str, **lora: Any) -> Recipe:
    """A shipped recipe with another method, type of weights and adapter, and nothing in its training section."""
    base = load_recipe("llama32_1b_lora" if method != "full" else "llama32_1b_full")
    model = base.model.model_copy(update={"dtype": dtype})
    adapter = {"r": 4, "lora_dropout": 0.0, "target_modules": ALL, **lora} if method != "full" else {}
    return base.model_copy(update={"model": model, "method": method, "lora": adapter, "training": {}})


def numbers_of(recipe: Recipe, config: Any, precision: str, work: Work, **how: Any) -> tuple[Any, Numbers]:
    model = shape_of(recipe, config, precision)
    attention = how.get("attention", "sdpa")
    return model, moments._numbers(recipe, model, precision, work, False, how.get("in_place", False), attention)


def real_model(recipe: Recipe, config: Any, precision: str, *, in_place: bool, attention: str = "sdpa") -> Any:
    """A model in training on the CPU, with the adapter that the recipe says."""
    import peft
    from transformers import AutoModelForCausalLM

    from recipe_kit import modeling
    from recipe_kit.speed.projections import compute_together, stream_in_16_bits

    dtype = modeling.model_dtype(recipe, precision)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    if recipe.method != "full":
        model = peft.get_peft_model(model, modeling.lora_config(recipe))
    if in_place:
        compute_together(model, checkpointing=False)
        stream_in_16_bits(model)
    return model.train()


def decoder(model: Any) -> Any:
    return (model.get_base_model() if hasattr(model, "get_base_model") else model).model


def kept_by_second_layer(model: Any, work: Work, *, autocast: bool) -> int:
    """Bytes of all storages that autograd saves within the second layer, each once; no weights, nor casts of them."""
    inner = decoder(model)
    weights = {weight.untyped_storage().data_ptr() for weight in [*model.parameters(), *model.buffers()]}
    found: dict[int, dict[int, torch.Tensor]] = {0: {}}
    place = [0]
    for index, layer in enumerate(inner.layers):
        layer.register_forward_pre_hook(lambda module, inputs, index=index: place.__setitem__(0, index + 1))
    ids = torch.randint(3, VOCABULARY, (work.rows, work.row_tokens))
    options: dict[str, Any] = {}
    if work.rows == 1 and work.longest < work.row_tokens:  # two packed rows
        parts = [torch.arange(work.longest), torch.arange(work.row_tokens - work.longest)]
        options["position_ids"] = torch.cat(parts).unsqueeze(0)

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        address = tensor.untyped_storage().data_ptr()
        is_weight = address in weights or (work.tokens not in tensor.shape and work.row_tokens not in tensor.shape)
        if not is_weight:
            found.setdefault(place[0], {})[address] = tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        inner(input_ids=ids, use_cache=False, **options)
    before = found[0].keys() | found[1].keys()
    return sum(t.untyped_storage().nbytes() for address, t in found[2].items() if address not in before)


KINDS = [
    ("lora", "bfloat16", "bfloat16", {}),
    ("lora", "bfloat16", "bfloat16", {"target_modules": ["q_proj", "v_proj"]}),
    ("lora", "float32", "float32", {}),
    ("full", "bfloat16", "bfloat16", {}),
    ("full", "float32", "float32", {}),
]


@pytest.mark.parametrize("in_place", [False, True], ids=["peft", "in place"])
@pytest.mark.parametrize(("method", "dtype", "precision", "lora"), KINDS)
def test_what_a_layer_keeps_is_what_autograd_saves(
    method: str, dtype: str, precision: str, lora: dict[str, Any], in_place: bool
) -> None:
    recipe, config, work = recipe_of(method, dtype, **lora), config_of(**SMALL), Work(1, 40, 40, 20, 40)
    model, numbers = numbers_of(recipe, config, precision, work, in_place=in_place)
    real = real_model(recipe, config, precision, in_place=in_place)
    counted = kept_by_second_layer(real, work, autocast=numbers.autocast)
    assert activations.kept(model.first, numbers) * work.tokens == counted


@pytest.mark.parametrize("in_place", [False, True], ids=["plain", "in place"])
def test_float32_weights_under_autocast_keep_what_is_cast_as_well(in_place: bool) -> None:
    recipe = recipe_of("full", "float32").model_copy(update={"training": {"bf16": True}})
    config, work = config_of(**SMALL), Work(1, 40, 40, 20, 40)
    model, numbers = numbers_of(recipe, config, "float32", work, in_place=in_place)
    real = real_model(recipe, config, "float32", in_place=in_place)
    assert (numbers.compute, numbers.stream, numbers.autocast) == (2, 2 if in_place else 4, True)
    assert activations.kept(model.first, numbers) * work.tokens == kept_by_second_layer(real, work, autocast=True)


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("kind", ["Mistral", "Qwen2", "Qwen3", "Gemma", "Gemma3Text", "SmolLM3"])
def test_layers_of_other_families_keep_what_is_counted(kind: str, method: str) -> None:
    recipe, config, work = recipe_of(method, "bfloat16"), config_of(kind, **SMALL), Work(1, 40, 40, 20, 40)
    assert memory.unsupported(recipe, config) is None
    model, numbers = numbers_of(recipe, config, "bfloat16", work)
    counted = kept_by_second_layer(real_model(recipe, config, "bfloat16", in_place=False), work, autocast=True)
    assert activations.kept(model.first, numbers) * work.tokens == pytest.approx(counted, rel=0.002)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_rows_without_boundaries_keep_a_mask_in_every_layer(attention: str) -> None:
    recipe, config, work = recipe_of("lora", "bfloat16"), config_of(**SMALL), Work(1, 48, 48, 20, 30)
    model, numbers = numbers_of(recipe, config, "bfloat16", work, attention=attention)
    assert numbers.masked and not numbers.grouped
    real = real_model(recipe, config, "bfloat16", in_place=False, attention=attention)
    assert moments._kept(model, model.first, numbers, work) == kept_by_second_layer(real, work, autocast=True)


class Live(TorchDispatchMode):
    """Bytes of the tensors that are made while it is on and still live, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: dict[int, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        given = function(*arguments, **(options or {}))
        for tensor in tree_iter(given):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self.known:
                storage = tensor.untyped_storage()
                self.known[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                weakref.finalize(storage, self.gone, storage._cdata)
        self.most = max(self.most, self.now)
        return given

    def gone(self, address: int) -> None:
        self.now -= self.known.pop(address, 0)


def measured_slope(recipe: Recipe, config: Any, precision: str, *, in_place: bool, checkpointing: bool) -> float:
    """The most bytes a token that forward and backward of a decoder make: what does not grow with tokens falls out."""
    from recipe_kit.speed.projections import compute_together, stream_in_16_bits

    most = []
    for tokens in (2048, 4096):
        model = real_model(recipe, config, precision, in_place=False)
        inner = decoder(model)
        if checkpointing:
            base = model.get_base_model() if hasattr(model, "get_base_model") else model
            base.gradient_checkpointing_enable()
            base.enable_input_require_grads()
        if in_place:
            compute_together(model, checkpointing=checkpointing)
            stream_in_16_bits(model)
        ids = torch.randint(3, VOCABULARY, (1, tokens))
        gradient = torch.ones(1, tokens, HIDDEN, dtype=inner.norm.weight.dtype)
        with Live() as live:
            with torch.autocast("cpu", torch.bfloat16, enabled=moments.computing_itemsize(recipe, precision)[1]):
                hidden = inner(input_ids=ids, use_cache=False).last_hidden_state
            hidden.backward(gradient)
        most.append(live.most)
    return (most[1] - most[0]) / 2048


def test_float16_runs_with_float32_weights_pass_float32_from_block_to_block() -> None:
    work, config = Work(1, 40, 40, 20, 40), config_of(**SMALL)
    for precision, training, stream in (("float16", {"fp16": True}, 4), ("float32", {"bf16": True}, 2)):
        recipe = recipe_of("full", "float32").model_copy(update={"training": training})
        assert numbers_of(recipe, config, precision, work, in_place=True)[1].stream == stream
    assert numbers_of(recipe_of("lora", "float16"), config, "float16", work, in_place=True)[1].stream == 2


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("in_place", [False, True], ids=["peft", "in place"])
@pytest.mark.parametrize(("method", "dtype", "training"), [
    ("lora", "bfloat16", {}), ("full", "bfloat16", {}), ("full", "float32", {"bf16": True}),
])  # fmt: skip
def test_the_most_that_lives_in_a_step_of_the_decoder_is_within_two_per_cent(
    method: str, dtype: str, training: dict[str, Any], in_place: bool, checkpointing: bool
) -> None:
    recipe = recipe_of(method, dtype).model_copy(update={"training": training})
    config = config_of(**SMALL)
    found = []
    for tokens in (2048, 4096):
        work = Work(1, tokens, tokens, 1, tokens)
        model, numbers = numbers_of(recipe, config, dtype, work, in_place=in_place)
        backward = moments._moments(model, numbers, work, config, checkpointing, False, "sgd")["backward"]
        found.append(backward.activations + backward.workspace)
    predicted = (found[1] - found[0]) / 2048
    measured = measured_slope(recipe, config, dtype, in_place=in_place, checkpointing=checkpointing)
    assert predicted == pytest.approx(measured, rel=0.02)


@pytest.mark.parametrize("double", [False, True], ids=["float32 scales", "double quantisation"])
@pytest.mark.parametrize("shape", [(512, 384), (100, 77), (96, 2752)])
def test_bytes_of_a_4_bit_layer_are_those_that_bitsandbytes_holds(shape: tuple[int, int], double: bool) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    weight = bitsandbytes.nn.Params4bit(
        torch.randn(shape, dtype=torch.bfloat16), requires_grad=False, compress_statistics=double, quant_type="nf4"
    ).to("cpu")
    state = weight.quant_state
    held = [weight.data, state.absmax, state.code]
    if double:
        held += [state.offset, state.state2.absmax, state.state2.code]
    assert weight.data.dtype == torch.uint8
    assert parameters.nf4_bytes(shape[0] * shape[1], double=double) == sum(t.numel() * t.element_size() for t in held)


@pytest.mark.slow
def test_bytes_of_a_4_bit_model_are_those_of_its_tensors() -> None:
    pytest.importorskip("bitsandbytes")
    from recipe_kit.speed.throughput import random_model

    recipe, config = recipe_of("qlora", "bfloat16"), config_of(**SMALL)
    real = random_model(recipe, config, "bfloat16")
    held = sum(value.numel() * value.element_size() for value in [*real.parameters(), *real.buffers()])
    for module in real.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None:
            extra = [state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
            held += sum(value.numel() * value.element_size() for value in extra)
    assert shape_of(recipe, config, "bfloat16").weights == held
    assert real.lm_head.weight.dtype == torch.bfloat16 and real.lm_head.weight.shape == (VOCABULARY, HIDDEN)


def test_weights_adapter_and_states_are_counted_exactly() -> None:
    recipe, config = recipe_of("lora", "bfloat16", r=16), config_of(**LLAMA_32_1B)
    found = memory.estimate(
        recipe,
        config,
        "bfloat16",
        Work(1, 4096, 4096, 1200, 900),
        checkpointing=True,
        optim="adamw_torch_fused",
        **FAST,
    )
    adapter = 16 * 16 * (4 * 2048 + 2 * 2048 + 2 * 512 + 3 * (2048 + 8192))  # layers, r, inputs and outputs
    assert found is not None
    assert found.weights == pytest.approx(2 * 1_235_814_400, abs=1024)  # and the frequencies of its positions
    assert (found.adapter, found.optimizer) == (4 * adapter, 8 * adapter)
    assert sum(found.parts.values()) == found.peak == max(found.phases.values())


@pytest.mark.parametrize("method", ["lora", "qlora"])
@pytest.mark.parametrize("precision", ["bfloat16", "float16", "float32"])
def test_adapters_gradients_and_states_are_float32_whatever_the_run_computes_in(method: str, precision: str) -> None:
    recipe, config = recipe_of(method, precision), config_of(**SMALL)
    work, how = Work(1, 8, 8, 4, 8), {"checkpointing": True, "optim": "adamw_torch_fused", **FAST}
    found = memory.estimate(recipe, config, precision, work, accumulates=True, **how)
    adapter = 4 * LAYERS * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 192))  # r, layers, inputs and outputs
    assert found is not None
    assert (found.adapter, found.gradients, found.optimizer) == (4 * adapter, 4 * adapter, 8 * adapter)


def test_whole_layers_that_are_trained_beside_an_adapter_have_the_type_of_the_base() -> None:
    recipe, config = recipe_of("qlora", "bfloat16", modules_to_save=["lm_head"]), config_of(**SMALL)
    half, single = (shape_of(recipe, config, precision).trained for precision in ("bfloat16", "float16"))
    sizes = [{tensor.dtype for tensor in trained if "lm_head" in tensor.name} for trained in (half, single)]
    assert sizes == [{"BF16"}, {"F32"}]


def test_states_that_are_paged_are_outside_of_the_peak() -> None:
    recipe, config = recipe_of("lora", "bfloat16", r=64), config_of(**LLAMA_32_1B)
    work, how = Work(1, 512, 512, 200, 512), {"checkpointing": True, **FAST}
    paged, plain = (
        memory.estimate(recipe, config, "bfloat16", work, optim=optim, **how)
        for optim in ("paged_adamw_32bit", "adamw_torch_fused")
    )
    assert paged is not None and plain is not None
    assert plain.paged == 0 and paged.paged + paged.optimizer == plain.optimizer
    assert paged.paged > 0.9 * plain.optimizer and paged.peak < plain.peak


def peak_gib(recipe: Recipe, config: Any, work: Work, **how: Any) -> float:
    settings = {"checkpointing": False, "optim": "adamw_torch_fused", "accumulates": False, **how}
    found = memory.estimate(recipe, config, "bfloat16", work, **settings)
    assert found is not None
    return found.peak / 2**30


def test_a_peak_measured_with_a_mask_of_all_tokens_comes_out_within_the_stated_error() -> None:
    """An H100, TRL's packed rows without boundaries, 8 x 2048 tokens: 7.2 GiB, and 6.4 without the mask."""
    recipe, config = recipe_of("lora", "bfloat16", r=16), config_of(**LLAMA_32_1B)
    work, how = Work(1, 16_384, 16_384, 4915, 1000), {**PLAIN, "checkpointing": True}
    assert peak_gib(recipe, config, work, **how) == pytest.approx(7.2, rel=0.03)
    assert peak_gib(recipe, config, work, **{**how, "attention": "flash_attention_2"}) == pytest.approx(6.4, rel=0.03)


def test_peaks_of_the_shipped_recipes_on_a_gpu_come_out_within_the_stated_error() -> None:
    results = Path(__file__).parent.parent / "benchmarks" / "results" / "shape_h100.json"
    measured = {run["method"]: run["training"]["peak_memory_bytes"] for run in json.loads(results.read_text())}
    assert sorted(measured) == ["full", "lora", "qlora"]
    work = Work(8, 320, 2560, 1200, 320)  # padded batches of 8 short rows, of which the longest is a guess
    for method, peak in measured.items():
        recipe = load_recipe(f"llama32_1b_{method}")
        found = memory.estimate(
            recipe, config_of(**LLAMA_32_1B), recipe.model.dtype, work,
            checkpointing=True, optim="adamw_torch_fused", accumulates=True, **PLAIN,
        )  # fmt: skip
        assert found is not None and found.peak == pytest.approx(peak, rel=memory.ERROR)


def test_checkpointing_keeps_the_inputs_of_layers_and_one_layer() -> None:
    recipe, config, work = recipe_of("lora", "bfloat16"), config_of(**LLAMA_32_1B), Work(1, 16_384, 16_384, 4915, 1000)
    kept, again = (peak_gib(recipe, config, work, checkpointing=value, **FAST) for value in (False, True))
    assert again < kept / 3


def test_more_rows_a_batch_and_a_longer_mask_take_more() -> None:
    recipe, config = recipe_of("lora", "bfloat16"), config_of(**LLAMA_32_1B)
    packed, padded = Work(1, 8192, 8192, 2000, 1000), Work(8, 1024, 8192, 2000, 1024)
    varlen = peak_gib(recipe, config, packed, **{**PLAIN, "attention": "torch_varlen"})
    dense = peak_gib(recipe, config, packed, **PLAIN)
    assert dense > varlen + 16 * 2 * 8192**2 / 2**30  # each layer keeps the mask as numbers
    assert varlen < peak_gib(recipe, config, padded, **PLAIN) < dense


def test_gradients_of_earlier_micro_batches_are_there_while_activations_are_largest() -> None:
    recipe, config, work = recipe_of("full", "bfloat16"), config_of(**LLAMA_32_1B), Work(1, 16_384, 16_384, 4915, 1000)
    once, twice = (peak_gib(recipe, config, work, accumulates=value, **FAST) for value in (False, True))
    assert twice - once == pytest.approx(2 * 1_235_814_400 / 2**30, rel=0.05)


def test_several_processes_hold_copies_of_the_gradients() -> None:
    recipe, config, work = recipe_of("lora", "bfloat16"), config_of(**LLAMA_32_1B), Work(1, 512, 512, 200, 512)
    one, two = (peak_gib(recipe, config, work, processes=number, **FAST) for number in (1, 2))
    assert two - one == pytest.approx(4 * 2_818_048 / 2**30, rel=1e-6)  # r=4


def test_a_layer_whose_rank_differs_is_counted_by_itself() -> None:
    recipe = recipe_of("lora", "bfloat16", rank_pattern={"layers.0.mlp.down_proj": 32})
    model = shape_of(recipe, config_of(**SMALL), "bfloat16")
    assert Counter(layer.down.rank for layer in model.layers.elements()) == {4: LAYERS - 1, 32: 1}
    assert model.first.down.rank == 32


def test_liger_keeps_less_than_plain_layers_and_in_place_adapters_less_than_peft() -> None:
    recipe, config, work = recipe_of("lora", "bfloat16"), config_of(**LLAMA_32_1B), Work(1, 1024, 1024, 300, 1024)
    model, plain = numbers_of(recipe, config, "bfloat16", work)
    layer: Layer = model.first

    def in_hidden(numbers: Numbers) -> float:
        """Values of 16 bits that a layer keeps of a token, for each of its hidden width."""
        return activations.kept(layer, numbers) / (2 * layer.hidden)

    # norms in float32, inputs of q, k, v, of o, of gate, up, of down, attention with few heads of keys, inner values
    attention = 1 + 0.25 + 0.25 + 1
    close = {"rel": 0.005}  # ranks, roots and log-sum-exps
    assert in_hidden(plain) == pytest.approx(2 * 2 + 3 + 1 + 2 + 4 + attention + 3 * 4, **close)
    in_place = replace(plain, in_place=True)  # inputs once; that of o is attention's output
    assert in_hidden(in_place) == pytest.approx(2 * 2 + 1 + 0 + 1 + 4 + attention + 3 * 4, **close)
    fused = replace(in_place, fused_layers=True)
    assert in_hidden(fused) == pytest.approx(2 * 1 + 1 + 0 + 1 + 4 + attention + 2 * 4, **close)


@pytest.mark.parametrize(
    ("kind", "values", "reason"),
    [
        ("Mixtral", {}, "mixtral models are mixtures of experts"),
        ("Qwen3Moe", {}, "qwen3_moe models are mixtures of experts"),
        ("Mamba", {}, "mamba models have state-space layers"),
        ("T5", {}, "t5 models have an encoder and a decoder"),
        ("GPT2", {}, "the layers of gpt2 models are not known; those of llama, mistral"),
    ],
)
def test_models_of_unknown_structure_get_a_sentence_and_no_number(
    kind: str, values: dict[str, Any], reason: str
) -> None:
    recipe, config = recipe_of("lora", "bfloat16"), config_of(kind, **values)
    assert str(memory.unsupported(recipe, config)).startswith(reason)
    work = Work(1, 512, 512, 200, 512)
    assert memory.estimate(recipe, config, "bfloat16", work, checkpointing=True, optim="sgd", **FAST) is None


@pytest.mark.parametrize(
    ("update", "reason"),
    [
        ({"lora": {"use_dora": True}}, "lora: of its variants"),
        ({"training": {"label_smoothing_factor": 0.1}}, "training.label_smoothing_factor"),
        ({"training": {"activation_offloading": True}}, "training.activation_offloading"),
        ({"training": {"fsdp": "full_shard"}}, "weights shared between processes"),
    ],
)
def test_settings_whose_memory_is_not_known_get_a_sentence(update: dict[str, Any], reason: str) -> None:
    recipe = recipe_of("lora", "bfloat16").model_copy(update=update)
    assert str(memory.unsupported(recipe, config_of(**SMALL))).startswith(reason)


def test_seven_billion_parameters_fit_15_gb_under_the_guanaco_recipe() -> None:
    recipe = load_recipe("guanaco")
    padded = Work(4, 1024, 4096, 2500, 1024)
    found = memory.estimate(
        recipe, config_of(**LLAMA_2_7B), "float16", padded, checkpointing=True, optim="paged_adamw_32bit", **PLAIN
    )
    assert found is not None
    assert 5.0e9 < found.peak < memory.card_needs(found) < 15e9


def test_three_billion_parameters_fit_8_gb_under_the_support_recipe() -> None:
    recipe, config = load_recipe("customer_support"), config_of(**LLAMA_32_3B)
    packed = Work(1, 4 * 768, 4 * 768, 1800, 768)
    how = {"optim": "paged_adamw_8bit", **FAST}
    found = memory.estimate(recipe, config, "bfloat16", packed, checkpointing=True, **how)
    assert found is not None and memory.card_needs(found) < 8e9
    kept = memory.estimate(recipe, config, "bfloat16", packed, checkpointing=False, **how)
    assert kept is not None and memory.card_needs(kept) > 8e9


def test_an_estimate_takes_no_time_once_the_model_was_looked_at() -> None:
    import time

    recipe, config = load_recipe("guanaco"), config_of(**LLAMA_2_7B)
    started = time.monotonic()
    for rows in range(1, 101):
        work = Work(1, rows * 100, rows * 100, rows * 50, 100)
        memory.estimate(recipe, config, "float16", work, checkpointing=True, optim="sgd", **FAST)
    assert time.monotonic() - started < 5


def test_a_recipe_of_the_kit_is_read(tmp_path: Path) -> None:
    assert moments.computing_itemsize(load_recipe("guanaco"), "float16") == (2, True)
    assert moments.computing_itemsize(load_recipe("llama32_1b_full"), "float32") == (2, True)
    assert moments.computing_itemsize(recipe_of("full", "float32"), "float32") == (4, False)
