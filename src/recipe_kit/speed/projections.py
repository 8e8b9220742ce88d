"""Linear layers of a model in training, computed together and in place.

PEFT 0.21 computes `result + lora_B(lora_A(x)) * scaling`: four passes over the layer's output in forward, and as many
in backward. Here the update is written first and the frozen product accumulates onto it (`addmm`, in place), and
projections that read the same input (q, k and v; gate and up) share one pass over it and one gradient of it. What is
kept for backward is the input, which they share, and `r` values a token for each adapter. 4-bit weights are made dense
by one kernel, and under gradient checkpointing twice a step where three times is usual.

The modules stay what they were; only `forward` of those in training mode is another. What is saved is a plain PEFT
adapter or plain weights, and what is evaluated goes PEFT's, bitsandbytes' and PyTorch's own way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer

from recipe_kit.speed.nf4 import dense, is_4bit

# Projections of one input, in the order in which models of the Llama kind call them.
GROUPS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


@dataclass(frozen=True)
class _Member:
    """One linear layer: its weight, and its adapter if it has one.

    Layers are kept, and their weights looked up at each call: whoever moves or loads a model may replace them.
    """

    module: Any
    base: Any
    adapter: str | None
    down: Any = None  # A, a layer whose weight has shape (rank, inputs)
    up: Any = None  # B, of shape (outputs, rank)

    @property
    def scaling(self) -> float:
        return float(self.module.scaling[self.adapter])

    @property
    def dropout(self) -> float:
        layer = self.module.lora_dropout[self.adapter] if self.adapter else None
        return float(layer.p) if isinstance(layer, torch.nn.Dropout) else 0.0

    @property
    def alike(self) -> tuple[float, float, int]:
        """What adapters of one group have in common."""
        return self.dropout, self.scaling, self.down.weight.shape[0]

    def parameters(self) -> list[torch.Tensor]:
        """The tensors that may get a gradient: weight and bias where they are trained, then A and B."""
        weight, bias = self.base.weight, self.base.bias
        found = [weight] if weight.requires_grad else []
        if bias is not None and bias.requires_grad:
            found.append(bias)
        if self.adapter:
            found += [self.down.weight, self.up.weight]
        return found


def compute_together(model: torch.nn.Module, *, checkpointing: bool) -> int:
    """Give the linear layers of a model's decoder the forward of this module; returns how many layers it was.

    `checkpointing` says whether layers are computed again in backward. Left alone are DoRA and other variants,
    adapters with a bias, layers that are no plain or 4-bit linear ones, and the head.
    """
    members: dict[str, _Member] = {}
    wrapped: tuple[str, ...] = ()  # what stands inside an adapter's layer is that layer's business
    for name, module in model.named_modules():
        if ".layers." not in f".{name}" or name.startswith(wrapped):
            continue
        if isinstance(module, LoraLayer):
            wrapped = (*wrapped, f"{name}.")
        found = _member(module)
        if found is not None:
            members[name] = found
    for name, member in members.items():
        parent = name.rpartition(".")[0]
        group = next((group for group in GROUPS if name.endswith(f".{group[0]}")), None)
        together = [member]
        if group:
            others = [members[other] for leaf in group[1:] if (other := f"{parent}.{leaf}") in members]
            if len(others) == len(group) - 1 and _alike([member, *others]):
                together = [member, *others]
        module = member.module
        module._kit = _Together(together, checkpointing)
        module.forward = MethodType(_forward, module)
    return len(members)


def forget_answers(model: torch.nn.Module) -> None:
    """Drop what a step that failed half-way has computed for layers that it did not reach, and all that it holds."""
    for module in model.modules():
        together = getattr(module, "_kit", None)
        if isinstance(together, _Together):
            together.answer = None


def stream_in_16_bits(model: torch.nn.Module) -> None:
    """Under autocast to bfloat16, pass hidden states from block to block in it where the embeddings are float32.

    Full fine-tuning keeps float32 weights and computes in 16 bits; without this the sums between blocks, and all that
    is kept of them, would be float32 too, as in no model that was trained in mixed precision. In float16 they stay
    float32: the sums of some models (Gemma, Qwen) are beyond its range.
    """
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    if embedding.weight.dtype == torch.float32:
        embedding.register_forward_hook(_cast)


def _cast(module: torch.nn.Module, arguments: Any, output: torch.Tensor) -> torch.Tensor:
    device = output.device.type
    in_bfloat16 = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16
    return output.bfloat16() if module.training and in_bfloat16 else output


@dataclass
class _Together:
    """What a layer computes when it is called, and an answer that the first of its group has computed for it."""

    members: Sequence[_Member]
    checkpointing: bool
    answer: tuple[torch.Tensor, torch.Tensor] | None = None  # the input it is for, and the output


def _member(module: torch.nn.Module) -> _Member | None:
    if isinstance(module, LoraLayer):
        base, names = module.get_base_layer(), list(module.active_adapters)
        if type(module).__name__ not in ("Linear", "Linear4bit") or not _is_linear(base) or len(names) != 1:
            return None
        (name,) = names
        plain = (
            name in module.lora_A
            and name not in module.lora_variant
            and not getattr(module, "fan_in_fan_out", False)
            and module.lora_A[name].bias is None
            and module.lora_B[name].bias is None
        )
        return _Member(module, base, name, module.lora_A[name], module.lora_B[name]) if plain else None
    return _Member(module, module, None) if _is_linear(module) else None


def _is_linear(module: torch.nn.Module) -> bool:
    return type(module) is torch.nn.Linear or (type(module).__name__ == "Linear4bit" and is_4bit(module))


def _alike(members: Sequence[_Member]) -> bool:
    return len({member.alike for member in members if member.adapter}) <= 1


def _forward(self: Any, x: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
    """The layer's output, of the shape that it always has; anything but a plain training step goes the usual way."""
    together = self._kit
    ready, together.answer = together.answer, None
    if ready is not None and ready[0] is x:
        output: torch.Tensor = ready[1]
        return output
    unusual = arguments or options or not self.training
    if unusual or getattr(self, "disable_adapters", False) or getattr(self, "merged", False):
        usual: torch.Tensor = type(self).forward(self, x, *arguments, **options)
        return usual
    members = together.members
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    parameters = [parameter for member in members for parameter in member.parameters()]
    with torch.autocast(device, enabled=False):
        answers: tuple[torch.Tensor, ...] = _Projections.apply(  # type: ignore[no-untyped-call]
            x.to(dtype), members, together.checkpointing, *parameters
        )
    for member, answer in zip(members[1:], answers[1:], strict=True):
        member.module._kit.answer = (x, answer)
    return answers[0]


class _Projections(torch.autograd.Function):
    """y_i = x W_i^T + b_i + s dropout(x) A_i^T B_i^T for linear layers of one input x of shape (..., inputs).

    LoRA is Hu et al., 2021 (arXiv:2106.09685), equation 3. Layers of one input share the values that dropout takes
    away, where PEFT draws anew for each; each layer by itself sees the same distribution. A small step takes as long
    as the processor needs for it, so there are few calls here: adapters of one input are cast and scaled as one
    tensor, and shapes change in here, where autograd does not see it.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, members: Sequence[_Member], checkpointing: bool, *parameters: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        shape, dtype = x.shape[:-1], x.dtype
        x = x.reshape(-1, x.shape[-1])
        adapted = [member for member in members if member.adapter]
        mask = small = downs = ups = None
        parts: Iterator[tuple[torch.Tensor, torch.Tensor]] = iter(())
        if adapted:
            seen = x
            if dropout := adapted[0].dropout:
                seen, mask = torch.native_dropout(x, dropout, True)
            downs = _joined([member.down.weight for member in adapted]).to(dtype)
            ups = (_joined([member.up.weight for member in adapted]) * adapted[0].scaling).to(dtype)
            small = seen @ downs.t()  # (tokens, the sum of the ranks)
            parts = _each(adapted, small, ups)
        answers, kept = [], []
        for member in members:
            weight, bias = dense(member.base, dtype), member.base.bias
            if member.adapter:
                part, up = next(parts)
                # The update first, and the product of the frozen weight onto it, in one pass over the output.
                answer = part @ up.t() if bias is None else torch.addmm(bias.to(dtype), part, up.t())
                answer.addmm_(x, weight.t())
            else:
                answer = torch.nn.functional.linear(x, weight, None if bias is None else bias.to(dtype))
            # No view, which autograd would not let anyone change.
            answers.append(torch.ops.aten._unsafe_view(answer, [*shape, answer.shape[-1]]))
            # In checkpointing's first pass nothing that is saved here is kept; in its second, until backward.
            if checkpointing and is_4bit(member.base):
                kept.append(weight)
        needed = bool(adapted) or any(member.base.weight.requires_grad for member in members)
        ctx.save_for_backward(x if needed else None, mask, small, downs, ups, *kept)
        ctx.members, ctx.adapted, ctx.shape, ctx.dtype = members, adapted, shape, dtype
        return tuple(answers)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        members, adapted, dtype = ctx.members, ctx.adapted, ctx.dtype
        x, mask, small, downs, ups, *kept = ctx.saved_tensors
        gradients = tuple(gradient.reshape(-1, gradient.shape[-1]) for gradient in gradients)
        down_gradients: list[torch.Tensor] = []
        up_gradients: list[torch.Tensor] = []
        x_gradient = None
        if adapted:
            reached = [gradient for member, gradient in zip(members, gradients, strict=True) if member.adapter]
            small_gradients = []
            for member, gradient, (part, up) in zip(adapted, reached, _each(adapted, small, ups), strict=True):
                up_gradients.append(_product(gradient.t(), part, member.up.weight.dtype))
                small_gradients.append(gradient @ up)
            torch._foreach_mul_(up_gradients, adapted[0].scaling)
            small_gradient = _joined(small_gradients, dim=1)
            scale = 1.0 if mask is None else 1 / (1 - adapted[0].dropout)
            seen = x if mask is None else torch.ops.aten.native_dropout_backward(x, mask, scale)
            down = adapted[0].down.weight
            down_gradients = list(torch.split(_product(small_gradient.t(), seen, down.dtype), down.shape[0]))
            if ctx.needs_input_grad[0]:
                x_gradient = small_gradient @ downs
                if mask is not None:
                    x_gradient = torch.ops.aten.native_dropout_backward(x_gradient, mask, scale)
        if ctx.needs_input_grad[0]:
            made = iter(kept)
            for member, gradient in zip(members, gradients, strict=True):
                weight = next(made) if kept and is_4bit(member.base) else dense(member.base, dtype)
                x_gradient = gradient @ weight if x_gradient is None else x_gradient.addmm_(gradient, weight)
            assert x_gradient is not None  # there is a layer
            x_gradient = x_gradient.view(*ctx.shape, x_gradient.shape[-1])
        found: list[torch.Tensor | None] = []
        for member, gradient in zip(members, gradients, strict=True):
            weight, bias = member.base.weight, member.base.bias
            if weight.requires_grad:
                found.append(_product(gradient.t(), x, weight.dtype))
            if bias is not None and bias.requires_grad:
                found.append(gradient.sum(0, dtype=torch.float32).to(bias.dtype))
            if member.adapter:
                found += [down_gradients.pop(0), up_gradients.pop(0)]
        return (x_gradient, None, None, *found)


def _each(
    adapted: Sequence[_Member], small: torch.Tensor, ups: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Of each adapter, its columns of x A^T and its scaled B."""
    if len(adapted) == 1:
        return iter([(small, ups)])
    outputs = [member.up.weight.shape[0] for member in adapted]
    return zip(torch.split(small, ups.shape[1], dim=1), torch.split(ups, outputs), strict=True)


def _joined(tensors: Sequence[torch.Tensor], dim: int = 0) -> torch.Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim=dim)


def _product(left: torch.Tensor, right: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """left @ right in `dtype`; for float32 parameters the sum over all tokens is not rounded to 16 bits on the way."""
    if left.dtype == dtype:
        return left @ right
    if left.is_cuda and dtype == torch.float32:
        found: torch.Tensor = torch.mm(left, right, out_dtype=torch.float32)
        return found
    return (left @ right).to(dtype)
