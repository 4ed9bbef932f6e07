"""The LoRA projections of training on a CPU, each as one operation that keeps and computes less.

peft composes a projection from six operations: the base product, a cast of the input to float32, dropout, two products
and a sum. On a CPU the passes over memory between them cost more than the arithmetic. Here it is one autograd function
with a backward pass of its own, for the same result: `y = x W^T + s drop(x) A^T B^T` (LoRA: Hu et al. 2021, arXiv
2106.09685), with gradients for x, A and B. W is frozen.

A base weight in NF4 is unpacked once instead of in every pass: the numbers are the same, and a small model can afford
the memory (2 bytes a weight in place of half a byte).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy
import torch

if TYPE_CHECKING:
    from peft import PeftModel

ADAPTER = "default"
_LEVELS = 2**15  # a dropout rate is rounded to this many levels


def fuse_projections(model: PeftModel) -> int:
    """Replace the forward pass of every adapted linear layer; parameters, names and checkpoints stay as they are.

    A validation takes them too: peft would unpack NF4 again for every batch of it. Where the adapter is switched off
    or merged, peft's own forward pass runs.

    Args:
        model: with plain LoRA adapters on linear layers without bias in the adapter.

    Returns:
        How many layers were fused; those that hold something else than plain LoRA are left to peft.
    """
    from peft.tuners.lora import LoraLayer

    fused = 0
    for module in model.modules():
        if isinstance(module, LoraLayer) and _is_plain(module):
            weight = _unpacked(module.get_base_layer())
            module.forward = _forward_of(module, weight)
            fused += 1
    return fused


def _is_plain(module: Any) -> bool:
    base = module.get_base_layer()
    return (
        isinstance(base, torch.nn.Linear)
        and module.active_adapters == [ADAPTER]
        and not module.lora_variant
        and not module.lora_bias[ADAPTER]
        and not module.fan_in_fan_out
    )


def _unpacked(base: Any) -> torch.Tensor:
    """The frozen weight [out, in] in the type that products are computed in."""
    weight: torch.Tensor = base.weight.detach()
    state = getattr(base.weight, "quant_state", None)
    if state is None:
        return weight
    import bitsandbytes.functional as bnb

    restored: torch.Tensor = bnb.dequantize_4bit(weight, state)
    dtype: torch.dtype = base.compute_dtype or restored.dtype
    return restored.to(dtype)


def _forward_of(module: Any, weight: torch.Tensor) -> Any:
    plain = module.forward
    scaling, dropout = float(module.scaling[ADAPTER]), module.lora_dropout[ADAPTER]
    bias = module.get_base_layer().bias

    def forward(x: torch.Tensor) -> torch.Tensor:
        if module.disable_adapters or module.merged:
            out: torch.Tensor = plain(x)
            return out
        # looked up every time: peft makes parameters anew when it loads the adapter of a checkpoint
        a, b = module.lora_A[ADAPTER].weight, module.lora_B[ADAPTER].weight
        rate = float(dropout.p) if module.training and isinstance(dropout, torch.nn.Dropout) else 0.0
        y: torch.Tensor = _Projection.apply(x, weight, a, b, scaling, rate)
        return y if bias is None else y + bias

    return forward


class _Projection(torch.autograd.Function):
    """`x W^T + s drop(x) A^T B^T`; x [..., in], W [out, in], A [r, in], B [out, r]; computed in W's type."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scaling: float, rate: float
    ) -> torch.Tensor:
        dtype = weight.dtype
        flat = x.reshape(-1, x.shape[-1]).to(dtype)
        keep = _kept(flat.shape, rate) if rate else None
        scaling /= 1 - rate  # dropout's factor is applied to the narrow product
        low = _dropped(flat, keep) @ a.to(dtype).t()  # [n, r]
        y = flat @ weight.t()
        y.addmm_(low, b.to(dtype).t(), alpha=scaling)
        ctx.save_for_backward(flat, weight, a, b, low, keep)
        ctx.scaling, ctx.shape, ctx.dtype = scaling, x.shape, x.dtype
        return y.reshape(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        flat, weight, a, b, low, keep = ctx.saved_tensors
        dtype = weight.dtype
        g = gradients[0].reshape(-1, weight.shape[0]).to(dtype)
        g_low = (g @ b.to(dtype)).mul_(ctx.scaling)  # [n, r]
        grad_b = (g.t() @ low).to(b.dtype).mul_(ctx.scaling)
        grad_a = (g_low.t() @ _dropped(flat, keep)).to(a.dtype)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = _dropped(g_low @ a.to(dtype), keep).addmm_(g, weight)
            grad_x = grad_x.reshape(ctx.shape).to(ctx.dtype)
        return grad_x, None, grad_a, grad_b, None, None


def _kept(shape: torch.Size, rate: float) -> torch.Tensor:
    """Which entries dropout keeps: int16 with all bits set where it does, else none.

    torch draws a float an entry, by a generator that is slow on a CPU: this took longer than the products. Here an
    entry costs 16 bits of a fast generator, whose seed is drawn from torch's, so that a checkpoint's random state fixes
    it; and integer operations in place, which torch vectorises.
    """
    n = shape.numel()
    seed = int(torch.empty((), dtype=torch.int64).random_())
    bits = torch.from_numpy(numpy.random.SFC64(seed).random_raw((n + 3) // 4).view(numpy.int16)[:n])
    bits.bitwise_right_shift_(1)  # 15 bits, so that the difference below cannot overflow
    bits.sub_(round(rate * _LEVELS) - _LEVELS // 2)  # negative where dropped
    return bits.bitwise_right_shift_(15).bitwise_not_().view(shape)


def _dropped(x: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
    """`x` with 0 where an entry is not kept; always a tensor that may be written to where `keep` is given."""
    if keep is None:
        return x
    if x.itemsize == 2:
        return (x.view(torch.int16) & keep).view(x.dtype)
    return x * (keep != 0)
