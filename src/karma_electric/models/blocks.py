"""THE layer convention: where the decoder blocks of a model are, and what is read and written in each.

Layer `l` is the 0-based decoder block. Two sites (design, section 4):
  block  the residual stream after block `l`, the block's own output;
  mlp    the residual stream that block `l`'s MLP reads: the input of the norm in front of that MLP.
No other module may look inside a model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

from karma_electric.core.errors import InputError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

Site = Literal["mlp", "block"]
SITES: tuple[Site, ...] = ("mlp", "block")

_BLOCK_PATHS = (
    "model.layers",
    "model.language_model.layers",
    "transformer.h",
    "gpt_neox.layers",
    "model.decoder.layers",
)
_MLP_NORMS = ("pre_feedforward_layernorm", "post_attention_layernorm", "ln_2")


@dataclass(frozen=True)
class Block:
    """One decoder block: the module itself, its MLP, and the norm whose input is the `mlp` site."""

    module: nn.Module
    mlp: nn.Module
    mlp_norm: nn.Module


def decoder_blocks(model: PreTrainedModel, path: str | None = None) -> list[Block]:
    """The decoder blocks of a model, in order.

    Args:
        model: a causal language model.
        path: dotted path to the list of blocks, for a layout this module does not know.

    Raises:
        InputError: the layout is unknown; names the override.
    """
    from torch import nn

    for candidate in (path,) if path else _BLOCK_PATHS:
        try:
            modules = model.get_submodule(candidate)
        except AttributeError:
            continue
        if isinstance(modules, nn.ModuleList):
            return [_block(module) for module in modules]
    tried = path or ", ".join(_BLOCK_PATHS)
    raise InputError(
        f"No decoder blocks found in {type(model).__name__} (tried {tried}).",
        "Pass decoder_blocks(model, path='...') the dotted path of its list of blocks.",
    )


def _block(module: nn.Module) -> Block:
    children = dict(module.named_children())
    norm = next((children[name] for name in _MLP_NORMS if name in children), None)
    if "mlp" not in children or norm is None:
        raise InputError(
            f"{type(module).__name__} has no MLP with a norm in front of it (children: {', '.join(children)}).",
            "Only pre-norm blocks with a child named mlp are known.",
        )
    return Block(module=module, mlp=children["mlp"], mlp_norm=norm)


def hidden_size(model: PreTrainedModel) -> int:
    """Width of the residual stream."""
    return cast("int", model.config.get_text_config().hidden_size)


def layer_range(n_layers: int, *, layers: tuple[int, int] | None, depth: tuple[float, float] | None) -> list[int]:
    """The blocks of an inclusive range, given as numbers or as fractions of depth.

    A depth fraction `f` names block `floor(f * n_layers)`: 0.70-0.88 is 22-28 of 32, and 21-26 of 30.
    """
    if layers is None:
        if depth is None:
            raise ValueError("one of layers and depth is needed")
        first, last = (min(int(f * n_layers), n_layers - 1) for f in depth)
    else:
        first, last = layers
    if not 0 <= first <= last < n_layers:
        raise InputError(
            f"Layers {first}-{last} do not exist: the model has blocks 0-{n_layers - 1}.",
            "Set axis.layers within that range.",
        )
    return list(range(first, last + 1))
