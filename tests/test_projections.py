"""Linear layers computed together give PEFT's loss and PEFT's gradients, and leave the modules what they are."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

from recipe_kit.speed import projections
from recipe_kit.speed.nf4 import dense
from recipe_kit.speed.projections import compute_together, forget_answers, stream_in_16_bits

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SHAPE = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.1,
}  # fmt: skip
BATCHES = [
    torch.tensor([[5, 9, 2, 7, 11, 3, 8], [13, 2, 17, 5, 33, 1, 60]]),
    torch.tensor([[40, 41, 42, 43], [3, 19, 21, 8], [2, 30, 31, 7]]),
]


def base_model(dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**{**SHAPE, **changes}))
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return model.to(dtype)


def adapted(model: Any, **options: Any) -> Any:
    """With an adapter whose B is not 0, as after some steps."""
    options = {"r": 4, "lora_alpha": 8, "target_modules": ALL, **options}
    model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **options))
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.train()


def lora(changes: dict[str, Any] | None = None, **options: Any) -> Any:
    return adapted(base_model(**(changes or {})), **options)


def computed(model: Any, *, batches: int = 1, seed: int = 7) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss, and the gradient of every parameter that gets one, accumulated over the batches."""
    torch.manual_seed(seed)
    model.zero_grad(set_to_none=True)
    total = 0.0
    for ids in BATCHES[:batches]:
        ids = ids.to(model.device)
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        total += float(loss.detach())
    return total, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Length of the difference as a share of the length of what was expected."""
    found, expected = found.detach().float(), expected.detach().float()
    return float((found - expected).norm() / expected.norm().clamp_min(1e-12))


def assert_same(model: Any, layers: int, *, checkpointing: bool = False, limit: float = 1e-5, **how: Any) -> None:
    """The model as it is, then with its layers computed together: `layers` of them."""
    loss, gradients = computed(model, **how)
    assert compute_together(model, checkpointing=checkpointing) == layers
    with watched() as seen:
        found_loss, found = computed(model, **how)
    assert sum(map(len, seen)) >= 14 * how.get("batches", 1)  # more often where layers are computed again
    assert found_loss == pytest.approx(loss, rel=limit)
    assert found.keys() == gradients.keys() and found
    for name, gradient in gradients.items():
        assert found[name].dtype == gradient.dtype
        assert gradient.norm() > 0, name
        assert distance(found[name], gradient) < limit, name


@contextmanager
def watched() -> Iterator[list[list[Any]]]:
    """The groups that were computed together, in order."""
    seen: list[list[Any]] = []
    forward = projections._Projections.forward

    def noted(ctx: Any, x: Any, members: Any, *rest: Any) -> Any:
        seen.append([member.module for member in members])
        return forward(ctx, x, members, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(projections._Projections, "forward", staticmethod(noted))
        yield seen


# --- the same numbers as PEFT's


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": ["k_proj"]},
        {"target_modules": ["down_proj"]},
        {"use_rslora": True},
        {"rank_pattern": {"k_proj": 8, "up_proj": 2}, "alpha_pattern": {"v_proj": 3, "o_proj": 32}},
        {"bias": "all"},
        {"bias": "lora_only", "target_modules": ["q_proj", "down_proj"]},
        {"init_lora_weights": "olora"},
        {"modules_to_save": ["lm_head", "embed_tokens"]},
        {"modules_to_save": ["down_proj"], "target_modules": ["q_proj", "gate_proj"]},
        {"layers_to_transform": [1]},
    ],
    ids=lambda options: "-".join(options) or "all-linear",
)
@pytest.mark.parametrize("biases", [False, True], ids=["", "biases"])
def test_loss_and_gradients_are_pefts(options: dict[str, Any], biases: bool) -> None:
    layers = 14 + (2 if "down_proj" in options.get("modules_to_save", ()) else 0)  # the frozen one and its copy
    assert_same(lora({"attention_bias": biases, "mlp_bias": biases}, **options), layers)


@pytest.mark.parametrize("biases", [False, True], ids=["", "biases"])
def test_full_fine_tuning_has_the_same_gradients(biases: bool) -> None:
    assert_same(base_model(attention_bias=biases, mlp_bias=biases).train(), 14)


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
@pytest.mark.parametrize("reentrant", [False, True], ids=["", "reentrant"])
def test_checkpointed_layers_have_the_same_gradients(full: bool, reentrant: bool) -> None:
    model = base_model().train() if full else lora()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    assert_same(model, 14, checkpointing=True)


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
def test_gradients_of_two_micro_batches_add_up(full: bool) -> None:
    """trl #2175, transformers #35203: a gradient is added to what is there, and the first batch leaves nothing."""
    assert_same(base_model().train() if full else lora(), 14, batches=2)


def test_projections_of_one_input_are_computed_together_and_the_others_alone() -> None:
    model = lora()
    compute_together(model, checkpointing=False)
    with watched() as seen:
        computed(model)
    assert [len(group) for group in seen] == [3, 1, 2, 1] * 2
    first = model.get_base_model().model.layers[0]
    attention, block = first.self_attn, first.mlp
    assert seen[0] == [attention.q_proj, attention.k_proj, attention.v_proj]
    assert seen[2] == [block.gate_proj, block.up_proj]


def test_projections_with_dropouts_of_their_own_are_computed_alone() -> None:
    model = lora(lora_dropout=0.1)
    model.get_base_model().model.layers[0].self_attn.k_proj.lora_dropout.default.p = 0.5
    compute_together(model, checkpointing=False)
    with watched() as seen:
        computed(model)
    assert [len(group) for group in seen] == [1, 1, 1, 1, 2, 1, 3, 1, 2, 1]


@pytest.mark.parametrize("options", [{"rank_pattern": {"k_proj": 8}}, {"alpha_pattern": {"k_proj": 3}}])
def test_adapters_of_other_ranks_or_scalings_are_computed_alone(options: dict[str, Any]) -> None:
    model = lora(**options)
    compute_together(model, checkpointing=False)
    with watched() as seen:
        computed(model)
    assert [len(group) for group in seen] == [1, 1, 1, 1, 2, 1] * 2


def test_an_answer_may_be_changed_in_place() -> None:
    attention = lora().get_base_model().model.layers[0].self_attn
    x = torch.randn(2, 5, 64, requires_grad=True)
    compute_together(torch.nn.ModuleDict({"layers": attention}), checkpointing=False)
    attention.q_proj(x).mul_(2).sum().backward()
    assert x.grad is not None and x.grad.norm() > 0


def test_an_answer_is_not_kept_for_another_input() -> None:
    attention = lora().get_base_model().model.layers[0].self_attn
    x, other = torch.randn(2, 5, 64), torch.randn(2, 5, 64)
    expected = [attention.q_proj(x), attention.k_proj(other), attention.v_proj(x), attention.k_proj(x)]
    compute_together(torch.nn.ModuleDict({"layers": attention}), checkpointing=False)
    found = [attention.q_proj(x), attention.k_proj(other), attention.v_proj(x), attention.k_proj(x)]
    for answer, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(answer, wanted)
    assert attention.k_proj._kit.answer is None and attention.v_proj._kit.answer is None


def test_what_only_one_of_a_group_uses_has_the_right_gradient() -> None:
    attention = lora().get_base_model().model.layers[0].self_attn

    def gradient() -> torch.Tensor:
        x = BATCHES[0].float()[:, :, None].expand(2, 7, 64).clone().requires_grad_()
        attention.q_proj(x).square().sum().backward()
        assert x.grad is not None
        return x.grad

    expected = gradient()
    compute_together(torch.nn.ModuleDict({"layers": attention}), checkpointing=False)
    torch.testing.assert_close(gradient(), expected)


def test_an_answer_of_a_step_that_failed_holds_nothing_once_it_is_forgotten() -> None:
    """A step that runs out of memory between two layers of a group is repeated, and needs the room."""
    model = lora()
    compute_together(model, checkpointing=False)
    block = model.get_base_model().model.layers[1].mlp
    held: list[weakref.ref[torch.Tensor]] = []

    def fails(*arguments: Any) -> None:
        held.append(weakref.ref(block.up_proj._kit.answer[1]))
        raise MemoryError

    hook = block.act_fn.register_forward_pre_hook(fails)
    with pytest.raises(MemoryError):
        computed(model)
    hook.remove()
    gc.collect()
    assert held[0]() is not None
    forget_answers(model)
    assert held[0]() is None


# --- dropout


@pytest.mark.parametrize("target", ["o_proj", "down_proj", "q_proj"])
def test_a_single_adapter_draws_pefts_own_dropout(target: str) -> None:
    assert_same(lora(target_modules=[target], lora_dropout=0.3), 14)


@pytest.mark.parametrize("reentrant", [False, True], ids=["", "reentrant"])
def test_dropout_is_drawn_alike_when_layers_are_computed_again(reentrant: bool) -> None:
    model = lora(lora_dropout=0.3)
    compute_together(model, checkpointing=False)
    loss, expected = computed(model)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    found_loss, found = computed(model)
    assert found_loss == loss
    assert all(torch.allclose(found[name], expected[name], atol=1e-6) for name in expected)


def test_layers_of_one_input_share_the_values_that_dropout_takes_away() -> None:
    """PEFT draws for each layer. Here q, k and v lose the same values of their input: each sees the distribution that
    it would have seen, of zeros and of values divided by the share that stays, and one mask is kept instead of three.
    """
    model = lora({"num_key_value_heads": 4}, r=64, lora_alpha=64, lora_dropout=0.25)
    attention = model.get_base_model().model.layers[0].self_attn
    members = [attention.q_proj, attention.k_proj, attention.v_proj]
    for layer in members:  # what comes out is what dropout left
        layer.base_layer.weight.data.zero_()
        layer.lora_A.default.weight.data.copy_(torch.eye(64))
        layer.lora_B.default.weight.data.copy_(torch.eye(64))
    compute_together(model, checkpointing=False)
    torch.manual_seed(0)
    x = torch.ones(50, 40, 64)
    answers = [layer(x) for layer in members]
    assert sorted(set(answers[0].flatten().tolist())) == [0, pytest.approx(1 / 0.75)]
    assert float((answers[0] == 0).float().mean()) == pytest.approx(0.25, abs=0.005)  # of 128,000
    assert torch.equal(answers[0], answers[1]) and torch.equal(answers[0], answers[2])
    assert not torch.equal(members[0](x), answers[0])  # and others at the next call


def test_gradients_of_grouped_layers_with_dropout_are_those_of_what_they_compute() -> None:
    """Against differences of the outputs, in float64 and with one draw."""
    model = lora(lora_dropout=0.25).double()
    attention = model.get_base_model().model.layers[0].self_attn
    compute_together(model, checkpointing=False)
    layers = [attention.q_proj, attention.k_proj, attention.v_proj]
    weights = [part.default.weight for layer in layers for part in (layer.lora_A, layer.lora_B)]

    def outputs(x: torch.Tensor, *parameters: torch.Tensor) -> tuple[torch.Tensor, ...]:
        torch.manual_seed(0)
        return tuple(layer(x) for layer in layers)

    x = torch.randn(1, 3, 64, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(outputs, (x, *weights), fast_mode=True)


def test_grouped_layers_with_dropout_expect_what_they_give_without() -> None:
    model = lora(lora_dropout=0.25)
    attention = model.get_base_model().model.layers[0].self_attn
    torch.manual_seed(3)
    x = torch.randn(1, 2, 64)
    expected = [layer.eval()(x).detach() for layer in (attention.q_proj, attention.k_proj, attention.v_proj)]
    attention.train()
    compute_together(model, checkpointing=False)
    many = x.expand(20000, 2, 64)
    found = [layer(many).mean(dim=0, keepdim=True) for layer in (attention.q_proj, attention.k_proj, attention.v_proj)]
    for answer, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(answer, wanted, atol=0.02, rtol=0)


# --- what is left alone


def test_dora_adapters_with_a_bias_and_the_head_go_pefts_way() -> None:
    for options in ({"use_dora": True}, {"lora_bias": True}):
        model = lora(target_modules=["q_proj", "up_proj", "lm_head"], **options)
        expected = computed(model)[1]
        assert compute_together(model, checkpointing=False) == 10  # of 14, without q_proj and up_proj of two layers
        found = computed(model)[1]
        assert all(distance(found[name], expected[name]) < 1e-5 for name in expected)
        assert not hasattr(model.lm_head, "_kit")
        assert not hasattr(model.get_base_model().model.layers[0].self_attn.q_proj, "_kit")


def test_eight_bit_layers_and_subclasses_of_linear_are_left_alone() -> None:
    import bitsandbytes

    class Other(torch.nn.Linear):
        pass

    eight_bit = bitsandbytes.nn.Linear8bitLt(8, 8, has_fp16_weights=False)
    model = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([eight_bit, Other(8, 8), torch.nn.Linear(8, 8)])})
    assert compute_together(model, checkpointing=False) == 1
    assert [hasattr(layer, "_kit") for layer in model["layers"]] == [False, False, True]  # type: ignore[arg-type]


def test_two_adapters_at_once_are_left_alone() -> None:
    model = lora()
    model.add_adapter("second", peft.LoraConfig(r=2, target_modules=ALL))
    model.base_model.set_adapter(["default", "second"])
    assert compute_together(model, checkpointing=False) == 0


def test_evaluation_and_a_disabled_adapter_go_pefts_way_bit_by_bit() -> None:
    model = lora(lora_dropout=0.1)
    ids = BATCHES[0]

    def answers() -> list[torch.Tensor]:
        with torch.no_grad():
            model.eval()
            found = [model(ids).logits]
            with model.disable_adapter():
                found.append(model(ids).logits)
            model.train()
            with model.disable_adapter():
                found.append(model(ids).logits)
        return found

    before = answers()
    compute_together(model, checkpointing=False)
    with watched() as seen:
        after = answers()
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert seen == []


def test_what_is_saved_is_what_peft_saves_byte_by_byte(tmp_path: Path) -> None:
    """torchtune #2025, litgpt #378: no format of our own, nothing that another program would have to know."""
    for kind, model in {"adapter": lora(modules_to_save=["lm_head"]), "model": base_model().train()}.items():
        model.save_pretrained(tmp_path / kind / "plain")
        compute_together(model, checkpointing=False)
        computed(model)
        model.save_pretrained(tmp_path / kind / "ours")
        plain, ours = (
            {path.name: path.read_bytes() for path in (tmp_path / kind / whose).iterdir()}
            for whose in ("plain", "ours")
        )
        assert f"{kind}_model.safetensors".removeprefix("model_") in plain
        assert ours == plain


def test_a_merged_and_a_copied_model_are_right_too() -> None:
    model = lora()
    compute_together(model, checkpointing=False)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in copied.named_parameters():
            if "lora_B" in name:
                parameter.zero_()  # must not reach the original, nor the original's the copy
    base = base_model().train()
    assert distance(copied(BATCHES[0]).logits, base(BATCHES[0]).logits) < 1e-5
    expected = model(BATCHES[0]).logits
    merged = model.merge_and_unload()
    assert distance(merged.train()(BATCHES[0]).logits, expected) < 1e-5


# --- 16 bits


def test_bfloat16_autocast_rounds_as_pefts_does() -> None:
    model = lora()
    exact_loss, exact = computed(model)

    def in_bfloat16() -> tuple[float, dict[str, torch.Tensor]]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return computed(model)

    _, theirs = in_bfloat16()
    compute_together(model, checkpointing=False)
    loss, ours = in_bfloat16()
    assert loss == pytest.approx(exact_loss, rel=0.01)
    errors = [distance(flat(gradients), flat(exact)) for gradients in (ours, theirs)]
    assert 0 < errors[0] < 1.2 * errors[1] < 0.05
    assert {gradient.dtype for gradient in ours.values()} == {torch.float32}


def flat(gradients: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([gradients[name].float().flatten() for name in sorted(gradients)])


def test_hidden_states_of_full_fine_tuning_pass_on_in_16_bits_under_autocast() -> None:
    model = base_model().train()
    stream_in_16_bits(model)
    seen: list[torch.dtype] = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    model(BATCHES[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(BATCHES[0])
        model.eval()(BATCHES[0])
    with torch.autocast("cpu", dtype=torch.float16):  # whose largest number is smaller than some models' sums
        model.train()(BATCHES[0])
    assert seen == [torch.float32] * 2 + [torch.bfloat16] * 2 + [torch.float32] * 4


# --- 4 bits


def in_four_bits(model: Any, device: str = "cpu", dtype: torch.dtype = torch.float32, *, nested: bool = True) -> Any:
    """The decoder's linear layers as QLoRA loads them."""
    import bitsandbytes

    for name, layer in list(model.named_modules()):
        if ".layers." in name and type(layer) is torch.nn.Linear:
            made = bitsandbytes.nn.Linear4bit(
                layer.in_features, layer.out_features, bias=layer.bias is not None, compute_dtype=dtype,
                compress_statistics=nested, quant_type="nf4",
            )  # fmt: skip
            made.weight = bitsandbytes.nn.Params4bit(
                layer.weight.detach(), requires_grad=False, compress_statistics=nested, quant_type="nf4", module=made
            )
            made.bias = layer.bias
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, made)
    model.is_loaded_in_4bit = True
    return model.to(device)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("nested", [False, True], ids=["", "nested"])
@pytest.mark.parametrize("biases", [False, True], ids=["", "biases"])
def test_four_bit_layers_have_the_same_gradients(checkpointing: bool, nested: bool, biases: bool) -> None:
    model = adapted(in_four_bits(base_model(attention_bias=biases, mlp_bias=biases), nested=nested))
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    assert_same(model, 14, checkpointing=checkpointing)


def test_adapters_on_some_four_bit_layers_leave_the_others_frozen() -> None:
    model = adapted(in_four_bits(base_model()), target_modules=["q_proj", "v_proj"])
    before = model.get_base_model().model.layers[0].mlp.up_proj.weight.data.clone()
    assert_same(model, 14)
    assert torch.equal(model.get_base_model().model.layers[0].mlp.up_proj.weight.data, before)


def test_a_dense_weight_is_not_copied_and_a_packed_one_is_what_bitsandbytes_makes() -> None:
    import bitsandbytes

    plain = torch.nn.Linear(64, 64)
    assert dense(plain, torch.float32).data_ptr() == plain.weight.data_ptr()
    for nested in (False, True):
        layer = in_four_bits(base_model(), nested=nested).model.layers[0].mlp.up_proj
        made = dense(layer, torch.bfloat16)
        assert made.shape == (96, 64)
        whole = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        assert torch.equal(made, whole.to(torch.bfloat16))


# --- on a GPU


@needs_gpu
@pytest.mark.parametrize("shape", [(64, 64), (3, 21), (1000, 512), (4099, 64), (1024, 4096)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("nested", [False, True], ids=["", "nested"])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_the_kernel_makes_the_bits_of_bitsandbytes(
    shape: tuple[int, int], dtype: torch.dtype, nested: bool, kind: str
) -> None:
    import bitsandbytes

    torch.manual_seed(0)
    values = torch.randn(shape) * torch.logspace(-6, 1, shape[0])[:, None]  # blocks of many sizes
    layer = torch.nn.Linear(1, 1)
    weight = bitsandbytes.nn.Params4bit(
        values.to(dtype), requires_grad=False, compress_statistics=nested, quant_type=kind
    ).cuda()
    layer.weight = weight
    expected = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
    assert expected.dtype == dtype and expected.shape == shape
    assert torch.equal(dense(layer, dtype), expected)


@needs_gpu
@pytest.mark.parametrize("storage", [torch.uint8, torch.bfloat16, torch.float32], ids=str)
def test_what_type_4_bit_weights_are_kept_as_changes_no_value(storage: torch.dtype) -> None:
    import bitsandbytes

    torch.manual_seed(0)
    layer = torch.nn.Linear(1, 1)
    layer.weight = bitsandbytes.nn.Params4bit(
        torch.randn(96, 64).bfloat16(), requires_grad=False, quant_type="nf4", quant_storage=storage
    ).cuda()
    expected = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    assert layer.weight.dtype == storage
    assert torch.equal(dense(layer, torch.bfloat16), expected)


def on_the_gpu(make: Callable[[], Any], *, checkpointing: bool = False) -> None:
    """Gradients under bfloat16 autocast are as far from exact ones as PEFT's are."""
    model = make().cuda()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    exact_loss, exact = computed(model)
    for layer in model.modules():
        if hasattr(layer, "compute_dtype"):  # of bitsandbytes
            layer.compute_dtype = torch.bfloat16

    def in_bfloat16() -> tuple[float, dict[str, torch.Tensor]]:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            return computed(model)

    _, theirs = in_bfloat16()
    compute_together(model, checkpointing=checkpointing)
    with watched() as seen:
        loss, ours = in_bfloat16()
    assert seen and loss == pytest.approx(exact_loss, rel=0.02)
    assert ours.keys() == exact.keys()
    errors = [distance(flat(gradients), flat(exact)) for gradients in (ours, theirs)]
    assert errors[0] < 1.2 * errors[1] < 0.05
    assert {ours[name].dtype for name in ours} == {exact[name].dtype for name in exact}


@needs_gpu
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_sixteen_bits_on_a_gpu_round_as_pefts_do(method: str, checkpointing: bool) -> None:
    make: dict[str, Callable[[], Any]] = {
        "full": lambda: base_model().train(),
        "lora": lora,
        "qlora": lambda: adapted(in_four_bits(base_model(), "cuda")),
    }
    on_the_gpu(make[method], checkpointing=checkpointing)


@needs_gpu
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
def test_four_bit_layers_on_a_gpu_have_pefts_gradients_in_float32(checkpointing: bool) -> None:
    model = adapted(in_four_bits(base_model(), "cuda"))
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    assert_same(model, 14, checkpointing=checkpointing, limit=1e-4)


@needs_gpu
def test_a_single_adapter_on_a_gpu_draws_pefts_own_dropout() -> None:
    assert_same(lora(target_modules=["o_proj"], lora_dropout=0.3).cuda(), 14, limit=1e-4)
