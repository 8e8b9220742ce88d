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

from collections.abc import Sequence
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
    """One linear layer: its weight, and its adapter if it has one."""

    module: Any
    base: Any
    adapter: str | None

    @property
    def down(self) -> torch.Tensor:
        """A, of shape (rank, inputs)."""
        weight: torch.Tensor = self.module.lora_A[self.adapter].weight
        return weight.detach()

    @property
    def up(self) -> torch.Tensor:
        """B, of shape (outputs, rank)."""
        weight: torch.Tensor = self.module.lora_B[self.adapter].weight
        return weight.detach()

    @property
    def scaling(self) -> float:
        return float(self.module.scaling[self.adapter])

    @property
    def dropout(self) -> float:
        layer = self.module.lora_dropout[self.adapter] if self.adapter else None
        return float(layer.p) if isinstance(layer, torch.nn.Dropout) else 0.0

    @property
    def trained(self) -> bool:
        return bool(self.base.weight.requires_grad)

    def parameters(self) -> list[torch.Tensor]:
        """The tensors that may get a gradient: weight and bias where they are trained, then A and B."""
        found = [self.base.weight] if self.trained else []
        if self.base.bias is not None and self.base.bias.requires_grad:
            found.append(self.base.bias)
        if self.adapter:
            found += [self.module.lora_A[self.adapter].weight, self.module.lora_B[self.adapter].weight]
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
            if len(others) == len(group) - 1 and _one_dropout([member, *others]):
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
        return _Member(module, base, name) if plain else None
    return _Member(module, module, None) if _is_linear(module) else None


def _is_linear(module: torch.nn.Module) -> bool:
    return type(module) is torch.nn.Linear or (type(module).__name__ == "Linear4bit" and is_4bit(module))


def _one_dropout(members: Sequence[_Member]) -> bool:
    return len({member.dropout for member in members if member.adapter}) <= 1


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
    flat = x.reshape(-1, x.shape[-1]).to(dtype)
    with torch.autocast(device, enabled=False):
        parameters = [parameter for member in members for parameter in member.parameters()]
        answers: tuple[torch.Tensor, ...] = _Projections.apply(  # type: ignore[no-untyped-call]
            flat, members, together.checkpointing, *parameters
        )
    shaped = [answer.view(*x.shape[:-1], answer.shape[-1]) for answer in answers]
    for member, answer in zip(members[1:], shaped[1:], strict=True):
        member.module._kit.answer = (x, answer)
    return shaped[0]


class _Projections(torch.autograd.Function):
    """y_i = x W_i^T + b_i + s_i dropout(x) A_i^T B_i^T for linear layers of one input x of shape (tokens, inputs).

    LoRA is Hu et al., 2021 (arXiv:2106.09685), equation 3. Layers of one input share the values that dropout takes
    away, where PEFT draws anew for each; each layer by itself sees the same distribution.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, members: Sequence[_Member], checkpointing: bool, *parameters: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        adapted = [member for member in members if member.adapter]
        mask = small = downs = None
        ups: list[torch.Tensor] = []
        if adapted:
            seen = x
            if adapted[0].dropout:
                seen, mask = torch.native_dropout(x, adapted[0].dropout, True)
            downs = _joined([member.down for member in adapted]).to(x.dtype)
            small = seen @ downs.t()  # (tokens, the sum of the ranks)
            ups = [(member.up * member.scaling).to(x.dtype) for member in adapted]
        answers, kept = [], []
        parts = iter(() if small is None else torch.split(small, [up.shape[1] for up in ups], dim=1))
        scaled_ups = iter(ups)
        for member in members:
            weight, bias = dense(member.base, x.dtype), member.base.bias
            if member.adapter:
                update = next(scaled_ups).t()
                # The update first, and the product of the frozen weight onto it, in one pass over the output.
                answer = next(parts) @ update if bias is None else torch.addmm(bias.to(x.dtype), next(parts), update)
                answer.addmm_(x, weight.t())
            else:
                answer = torch.nn.functional.linear(x, weight, None if bias is None else bias.to(x.dtype))
            answers.append(answer)
            # In checkpointing's first pass nothing that is saved here is kept; in its second, until backward.
            kept.append(weight if checkpointing and is_4bit(member.base) else None)
        needed = bool(adapted) or any(member.trained for member in members)
        ctx.save_for_backward(x if needed else None, mask, small, downs, *ups, *kept)
        ctx.members, ctx.adapted, ctx.dtype = members, adapted, x.dtype
        return tuple(answers)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        members, adapted, dtype = ctx.members, ctx.adapted, ctx.dtype
        x, mask, small, downs, *rest = ctx.saved_tensors
        ups, kept = rest[: len(adapted)], rest[len(adapted) :]
        scale = 1 / (1 - adapted[0].dropout) if mask is not None else 1.0
        down_gradients: list[torch.Tensor] = []
        up_gradients: list[torch.Tensor] = []
        x_gradient = None
        if adapted:
            reached = [gradient for member, gradient in zip(members, gradients, strict=True) if member.adapter]
            ranks = [up.shape[1] for up in ups]
            for member, gradient, part in zip(adapted, reached, small.split(ranks, dim=1), strict=True):
                up_gradients.append(_product(gradient.t(), part, member.up.dtype).mul_(member.scaling))
            small_gradient = _joined([g @ up for g, up in zip(reached, ups, strict=True)], dim=1)
            seen = x if mask is None else torch.ops.aten.native_dropout_backward(x, mask, scale)
            down_gradients = list(torch.split(_product(small_gradient.t(), seen, adapted[0].down.dtype), ranks))
            if ctx.needs_input_grad[0]:
                x_gradient = small_gradient @ downs
                if mask is not None:
                    x_gradient = torch.ops.aten.native_dropout_backward(x_gradient, mask, scale)
        if ctx.needs_input_grad[0]:
            for member, gradient, weight in zip(members, gradients, kept, strict=True):
                weight = dense(member.base, dtype) if weight is None else weight
                x_gradient = gradient @ weight if x_gradient is None else x_gradient.addmm_(gradient, weight)
        found: list[torch.Tensor | None] = []
        for member, gradient in zip(members, gradients, strict=True):
            weight, bias = member.base.weight, member.base.bias
            if member.trained:
                found.append(_product(gradient.t(), x, weight.dtype))
            if bias is not None and bias.requires_grad:
                found.append(gradient.sum(0, dtype=torch.float32).to(bias.dtype))
            if member.adapter:
                found += [down_gradients.pop(0), up_gradients.pop(0)]
        return (x_gradient, None, None, *found)


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
