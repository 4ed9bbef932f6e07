"""Proves that a cap acts on a model before it is relied on: the commonest fault of steering is a hook without effect.

One batch of a few tokens. Row 0 is not capped; each other row is capped at one block, hard, well below its stream. The
block's output must differ from row 0's by the correction of the formula, worked out here: in a pass without a cache, in
one that fills a cache, and for a token decoded with it. What moves too little, too much or elsewhere is refused.
"""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from karma_electric.core.errors import KarmaError
from karma_electric.models.blocks import Block, Site
from karma_electric.steer.hooks import REPORT, LayerCap, attached, own_class, suspended

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

_TOKENS = (1, 2, 3)  # the last is decoded with a cache
_TOLERANCE = 0.25  # relative: rounding to bfloat16 stays below 0.02, a correction that is lost or scaled is far above

_passed: weakref.WeakKeyDictionary[nn.Module, set[Any]] = weakref.WeakKeyDictionary()


@dataclass
class _Seen:
    """One forward pass at its last position, block -> float32 [rows, hidden]."""

    read: dict[int, torch.Tensor] = field(default_factory=dict)
    output: dict[int, torch.Tensor] = field(default_factory=dict)


def require_acting(
    model: PreTrainedModel, blocks: Sequence[Block], site: Site, directions: Mapping[int, torch.Tensor]
) -> None:
    """Raise `KarmaError` unless hooks at some blocks (number -> unit vector [hidden]) do what the formula says.

    Done once for a model with these modules, on this device and in this type: what is tested is the way through the
    code, not the weights. Random numbers, training mode, other caps and compiled code are left as they were; the test
    itself is not compiled.
    """
    key = (model.device, model.dtype, site, tuple(_identity(blocks[layer], site) for layer in directions))
    passed = _passed.setdefault(model, set())
    if key in passed:
        return
    with _undisturbed(model):
        bare = _passes(model, blocks, site, tuple(directions), n_rows=1)
        ceilings = {layer: _ceiling(model, bare, layer, v) for layer, v in directions.items()}
        caps = {}
        for row, (layer, v) in enumerate(directions.items(), start=1):
            alone = [0.0] * (len(directions) + 1)
            alone[row] = 1.0
            caps[layer] = _cap(v, ceilings[layer], alone, blocks[layer], site)
        with attached(blocks, site, caps):
            tested = _passes(model, blocks, site, tuple(directions), n_rows=len(directions) + 1)
    for seen in tested:
        for row, (layer, v) in enumerate(directions.items(), start=1):
            _check(model, seen, layer, row, v.cpu().float(), ceilings[layer])
    passed.add(key)


def _identity(block: Block, site: Site) -> tuple[Any, ...]:
    """Differs when a module is replaced, or the way it is called."""
    modules = dict.fromkeys((block.module, *block.hooked(site)))
    return tuple((id(m), own_class(m), id(m.__dict__.get("forward"))) for m in modules)


def _cap(v: torch.Tensor, ceiling: float, alphas: list[float], block: Block, site: Site) -> LayerCap:
    import torch

    return LayerCap(v, ceiling, torch.tensor(alphas), scale=block.mlp_scale if site == "mlp" else 1.0)


def _ceiling(model: PreTrainedModel, bare: Sequence[_Seen], layer: int, v: torch.Tensor) -> float:
    """A threshold that every tested position is above, by about the length of its stream."""
    import torch

    streams = [seen.read.get(layer) for seen in bare]
    if any(layer not in seen.output for seen in bare):
        raise _deaf(model, layer)
    if any(stream is None for stream in streams):
        raise KarmaError(
            f"The norm in front of the MLP of block {layer} is called past its hooks; nothing was capped.", REPORT
        )
    h = torch.cat([stream for stream in streams if stream is not None])  # [positions, hidden]
    if not bool(h.isfinite().all()):
        raise KarmaError(
            f"{type(model).__name__} computes numbers that are not finite at block {layer}; nothing was capped.",
            "Are the weights whole, and the type wide enough (bfloat16 where float16 overflows)?",
        )
    return float((h @ v.cpu().float()).min() - h.norm(dim=-1).max())


def _check(model: PreTrainedModel, seen: _Seen, layer: int, row: int, v: torch.Tensor, ceiling: float) -> None:
    """Compare how a capped row differs from the bare one with what the formula says."""
    if layer not in seen.output or layer not in seen.read:
        raise _deaf(model, layer)
    expected = -(seen.read[layer][0] @ v - ceiling) * v  # [hidden]
    moved = seen.output[layer][row] - seen.output[layer][0]
    if float((moved - expected).norm()) <= _TOLERANCE * float(expected.norm()):
        return
    share = float(moved @ expected / expected.norm().square())
    if float(moved.norm()) <= 0.01 * float(expected.norm()):
        raise _deaf(model, layer)
    raise KarmaError(
        f"The cap moves block {layer} of {type(model).__name__} by {share:.2f} of what it should; nothing was capped.",
        'What its MLP adds is changed on the way. Use a cap at the site "block", or report the model\'s name.',
    )


def _deaf(model: PreTrainedModel, layer: int) -> KarmaError:
    return KarmaError(f"The cap does not act on block {layer} of {type(model).__name__}; nothing was capped.", REPORT)


def _passes(
    model: PreTrainedModel, blocks: Sequence[Block], site: Site, layers: Sequence[int], *, n_rows: int
) -> list[_Seen]:
    """A pass without a cache, one that fills a cache, and one that decodes a token with it."""
    import torch

    tokens = torch.tensor([_TOKENS] * n_rows, device=_input_device(model))
    seen: list[_Seen] = []
    with _recorded(blocks, site, layers, seen), torch.no_grad():
        for use_cache in (False, True):
            seen.append(_Seen())
            prompt = tokens[:, :-1]
            output = model(input_ids=prompt, attention_mask=torch.ones_like(prompt), use_cache=use_cache)
        cache = getattr(output, "past_key_values", None)
        if cache is not None:
            seen.append(_Seen())
            model(
                input_ids=tokens[:, -1:], attention_mask=torch.ones_like(tokens), past_key_values=cache, use_cache=True
            )
    return seen


@contextlib.contextmanager
def _recorded(blocks: Sequence[Block], site: Site, layers: Sequence[int], seen: list[_Seen]) -> Iterator[None]:
    """Write what the blocks read and put out into the last of `seen`."""

    def kept(h: torch.Tensor) -> torch.Tensor:
        return h[:, -1].float().cpu()

    def reads(layer: int) -> Any:
        def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen[-1].read[layer] = kept(args[0] if args else next(iter(kwargs.values())))

        return hook

    def puts_out(layer: int) -> Any:
        def hook(_: Any, __: Any, output: Any) -> None:
            seen[-1].output[layer] = kept(output[0] if isinstance(output, tuple) else output)
            if site == "block":
                seen[-1].read[layer] = seen[-1].output[layer]

        return hook

    with contextlib.ExitStack() as undo:
        for layer in layers:
            if site == "mlp":
                handle = blocks[layer].mlp_norm.register_forward_pre_hook(reads(layer), with_kwargs=True)
                undo.callback(handle.remove)
            undo.callback(blocks[layer].module.register_forward_hook(puts_out(layer)).remove)
        yield


def _input_device(model: PreTrainedModel) -> torch.device:
    """Where token ids go: with weights that are kept elsewhere, the CPU, from where they are fetched."""
    import torch

    return torch.device("cpu") if model.device.type == "meta" else model.device


@contextlib.contextmanager
def _undisturbed(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode without other caps or compilation; everything as before afterwards."""
    import torch

    training = [module for module in model.modules() if module.training]
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with contextlib.ExitStack() as undo:
        undo.enter_context(torch.random.fork_rng(devices=list(devices)))
        undo.enter_context(suspended(model))
        if "torch._dynamo" in sys.modules:  # nothing is compiled before it is imported
            undo.enter_context(torch.compiler.set_stance("force_eager"))
        for module in training:
            module.training = False
        try:
            yield
        finally:
            for module in training:
                module.training = True
