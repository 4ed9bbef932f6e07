"""The formula of the cap, and the hooks that carry it out on the blocks of a model.

    h <- h - alpha * max(0, <h, v> - t) * v        (design, section 4; after the Assistant Axis, arXiv 2601.10387)

The dot product, the threshold and the sum are float32 whatever the model's type. Nothing here waits for the device: no
value of a tensor decides what is done. Whether the hooks act at all is found out by self_test.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from karma_electric.core.errors import InputError, KarmaError
from karma_electric.models.blocks import Block, Site

if TYPE_CHECKING:
    import torch
    from torch import nn

REPORT = "This is a layout the hooks do not reach: please report it with the model's name."


def excess(h: torch.Tensor, v: torch.Tensor, t: float | torch.Tensor) -> torch.Tensor:
    """`max(0, <h, v> - t)` in float32. h: [..., hidden], v: [hidden]; returns [...]."""
    # a matrix times a vector: never in TF32 or bfloat16, whatever the process allows for matrix products
    projections = h.float().reshape(-1, h.shape[-1]).mv(v).view(h.shape[:-1])
    return (projections - t).clamp_min(0.0)


def push(v: torch.Tensor, alpha: float | torch.Tensor) -> torch.Tensor:
    """What one unit of excess adds: `-alpha * v`, [hidden], or [rows, 1, hidden] for an alpha per row [rows].

    Where alpha is 0 it is -0.0, since `x + -0.0` has the bits of `x` for every `x`, which `x + 0.0` has not.
    """
    import torch

    if not isinstance(alpha, torch.Tensor):
        return -alpha * v if alpha else torch.full_like(v, -0.0)
    strengths = alpha.to(v)[:, None, None]  # [rows, 1, 1]
    return torch.where(strengths == 0, torch.tensor(-0.0), -strengths * v)


def corrected(
    h: torch.Tensor, over: torch.Tensor, pushed: torch.Tensor, *, wide: torch.Tensor | None = None
) -> torch.Tensor:
    """`h + over * pushed`, computed in float32 and rounded back: a new tensor.

    h: [batch, seq, hidden], or [batch * seq, hidden] as some mixtures of experts give; over: [batch, seq], what
    `excess` gave; pushed: what `push` gave; wide: `h.float()` where it is at hand, which is used up.
    """
    import torch

    if h.dim() == over.dim():
        return corrected(h.view(*over.shape, -1), over, pushed).view_as(h)
    if h.dtype == torch.float32:
        return torch.addcmul(h, over.unsqueeze(-1), pushed)
    # in place on the copy that the wider type needs anyway: fresh memory costs more than the arithmetic
    return (h.float() if wide is None else wide).addcmul_(over.unsqueeze(-1), pushed).to(h.dtype)


class Recording(Protocol):
    """What counts where caps acted."""

    def record(self) -> None:
        """Take in one forward pass."""


class LayerCap:
    """The cap of one block, while it is attached.

    Attributes:
        over: what the read hook found in the stream [batch, seq], for the write hook of the same forward pass.
        seen: the same, kept for the meter.
        meter: asked to record when the last of its blocks is done; None in all others.
        suspended: while another cap is being tested.
    """

    def __init__(self, v: torch.Tensor, t: float, alpha: float | torch.Tensor, scale: float = 1.0) -> None:
        """v: unit vector [hidden]; t: ceiling; alpha: a number, or one per row [rows]; scale: of what is added."""
        import torch

        self.v = v.float()
        self.t = torch.tensor(t, dtype=torch.float32)
        self._scale = scale
        self.strengthen(alpha)
        self.over: torch.Tensor | None = None
        self.seen: torch.Tensor | None = None
        self.meter: Recording | None = None
        self.suspended = False

    def strengthen(self, alpha: float | torch.Tensor) -> None:
        """Act with this strength from now on: a number, or one per row [rows]."""
        import torch

        self.push = push(self.v, alpha / self._scale)
        self.rows: int | None = None
        self.off: torch.Tensor | None = None  # rows of alpha 0 [rows, 1], if there are any beside others
        if isinstance(alpha, torch.Tensor):
            self.rows = alpha.shape[0]
            self.off = (alpha == 0)[:, None].to(self.v.device) if bool((alpha == 0).any()) else None

    def to(self, device: torch.device) -> None:
        """Move what the hooks need to where the block computes."""
        self.v, self.t, self.push = self.v.to(device), self.t.to(device), self.push.to(device)
        self.off = None if self.off is None else self.off.to(device)

    def measure(self, h: torch.Tensor) -> torch.Tensor:
        """The excess of a stream [batch, seq, hidden]."""
        if h.device != self.v.device:  # once: weights that are loaded for each call do not tell where to
            self.to(h.device)
        if h.dim() != 3:
            raise KarmaError(f"A stream has the shape {list(h.shape)}, expected [rows, tokens, hidden].", REPORT)
        if self.rows is not None and h.shape[0] != self.rows:
            raise InputError(
                f"alpha has {self.rows} rows, the batch has {h.shape[0]}.",
                "Give one alpha per row that the model sees: with num_beams or num_return_sequences n, n per prompt.",
            )
        over = excess(h, self.v, self.t)
        return over if self.off is None else over.masked_fill(self.off, 0.0)

    def note(self, over: torch.Tensor) -> None:
        """Keep what was found for the meter; the last block hands it over."""
        self.seen = over
        if self.meter is not None:
            self.meter.record()


def mlp_hooks(block: Block, cap: LayerCap) -> list[Any]:
    """Read the residual stream in front of the MLP's norm, add the correction to what the MLP adds."""

    def read(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not cap.suspended:
            cap.over = cap.measure(args[0] if args else next(iter(kwargs.values())))

    def write(_: Any, __: Any, output: Any) -> Any:
        if cap.suspended:
            return output
        over, cap.over = cap.over, None
        if over is None:
            raise KarmaError("The norm in front of an MLP is called past its hooks; nothing was capped.", REPORT)
        cap.note(over)
        return _replaced(output, lambda h: corrected(h, over, cap.push))

    return [
        block.mlp_norm.register_forward_pre_hook(read, with_kwargs=True),
        block.mlp_added.register_forward_hook(write),
    ]


def block_hooks(block: Block, cap: LayerCap) -> list[Any]:
    """Cap the block's own output."""

    def correct(h: torch.Tensor) -> torch.Tensor:
        wide = h.float()
        over = cap.measure(wide)
        cap.note(over)
        return corrected(h, over, cap.push, wide=wide)

    def write(_: Any, __: Any, output: Any) -> Any:
        return output if cap.suspended else _replaced(output, correct)

    return [block.module.register_forward_hook(write)]


def _replaced(output: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A module's output with its hidden state changed: a tensor, or the first of a tuple."""
    return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)


@contextlib.contextmanager
def attached(blocks: Sequence[Block], site: Site, caps: dict[int, LayerCap]) -> Iterator[None]:
    """Attach a cap to each of some blocks (block number -> cap), and take exactly these away again."""
    with contextlib.ExitStack() as undo:
        for layer, cap in caps.items():
            block = blocks[layer]
            device = _device(block.module)
            if device != cap.v.device:
                cap.to(device)
            for module in block.hooked(site):
                _mark(module, cap)
                undo.callback(_unmark, module, cap)
            for handle in (mlp_hooks if site == "mlp" else block_hooks)(block, cap):
                undo.callback(handle.remove)
        yield


def _device(module: nn.Module) -> torch.device:
    """Where a block computes, as far as its weights tell (`measure` corrects it)."""
    import torch

    for part in module.modules():
        for parameter in part._parameters.values():
            if parameter is not None and parameter.device.type != "meta":
                return parameter.device
    return torch.device("cpu")


_MARK = "_karma_caps"  # in a module's __dict__: the caps attached to it, and its own class
_capped_classes: dict[type, type] = {}


def _mark(module: nn.Module, cap: LayerCap) -> None:
    """Give a module a subclass of its class for as long as caps are attached to it.

    torch.compile guards on a module's class and on hooks that were there, but not on there being none: what was
    compiled before a cap was attached would run on without it. The subclass makes it compile again, once; later caps
    of the same structure share that code, and without a cap the old one is used again.
    """
    if _MARK not in module.__dict__:
        module.__dict__[_MARK] = ([], type(module))
        object.__setattr__(module, "__class__", _capped_class(type(module)))
    module.__dict__[_MARK][0].append(cap)


def _unmark(module: nn.Module, cap: LayerCap) -> None:
    """Undo `_mark`: a module that nothing is attached to has its own class again."""
    caps, original = module.__dict__[_MARK]
    caps.remove(cap)
    if not caps:
        object.__setattr__(module, "__class__", original)
        del module.__dict__[_MARK]


def own_class(module: nn.Module) -> type:
    """A module's class, as it is when nothing is attached."""
    own: type = module.__dict__[_MARK][1] if _MARK in module.__dict__ else type(module)
    return own


def _capped_class(original: type) -> type:
    """A subclass that behaves, and is called, like the original; always the same one."""
    if original not in _capped_classes:
        named = {"__module__": original.__module__, "__qualname__": original.__qualname__, "__doc__": original.__doc__}
        _capped_classes[original] = type(original.__name__, (original,), named)
    return _capped_classes[original]


@contextlib.contextmanager
def suspended(model: nn.Module) -> Iterator[None]:
    """Let every cap that is attached to a model pass everything through."""
    marked = [module.__dict__[_MARK][0] for module in model.modules() if _MARK in module.__dict__]
    caps = [cap for attached_here in marked for cap in attached_here if not cap.suspended]
    for cap in caps:
        cap.suspended = True
    try:
        yield
    finally:
        for cap in caps:
            cap.suspended = False
