"""Float32 matrix products on the CPU, by the faster of the two libraries that torch carries.

Torch gives them to MKL, which takes a path of half the vector width on processors that are not Intel's; oneDNN has no
such preference (measured on an AMD EPYC, one core: 95 against 210 GFLOP/s). Both compute in float32.
"""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def fast_products(model: PreTrainedModel) -> AbstractContextManager[object]:
    """While open, a float32 model on the CPU multiplies with oneDNN where that is the faster one. For inference only.

    Anything else is left alone: other dtypes and devices have one library, and that a good one.
    """
    import torch

    if model.dtype == torch.float32 and model.device.type == "cpu" and _onednn_is_faster():
        return _onednn_mode()
    return contextlib.nullcontext()


@cache
def _onednn_is_faster() -> bool:
    """By what the processor is, never by a race: the same machine must give the same digits every time."""
    import torch

    cpuinfo = Path("/proc/cpuinfo")
    vendor = cpuinfo.read_text() if cpuinfo.exists() else ""
    if "AuthenticAMD" not in vendor or not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    return hasattr(torch.ops.mkldnn, "_linear_pointwise") and _agrees()


def _agrees() -> bool:
    """Whether oneDNN's product is the product: torch does not promise this operator, so it is tried first."""
    import torch

    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(shape, generator=generator) for shape in ((2, 3, 32), (48, 32), (48,)))
    try:
        with torch.inference_mode():
            actual = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], None)
    except (RuntimeError, TypeError):
        return False
    expected = x.double() @ weight.double().T + bias.double()
    return actual.shape == expected.shape and bool(torch.allclose(actual.double(), expected, atol=1e-4))


def _onednn_mode() -> AbstractContextManager[object]:
    import torch
    from torch.overrides import TorchFunctionMode

    class Mode(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.nn.functional.linear and not kwargs:
                x, weight, bias = (*args, None)[:3]
                if _plain(x) and _plain(weight) and (bias is None or _plain(bias)):
                    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], None)
            return func(*args, **(kwargs or {}))

    def _plain(tensor: torch.Tensor) -> bool:
        """Dense float32 on the CPU, and not a subclass that means something else (quantised weights)."""
        return (
            type(tensor) in (torch.Tensor, torch.nn.Parameter)
            and tensor.dtype == torch.float32
            and tensor.device.type == "cpu"
            and tensor.layout == torch.strided
            and tensor.numel() > 0
        )

    return Mode()
