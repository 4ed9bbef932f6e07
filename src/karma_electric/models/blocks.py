"""THE layer convention: where the decoder blocks of a model are, and what is read and written in each.

Layer `l` is the 0-based decoder block. Two sites (design, section 4):
  block  the residual stream after block `l`, the block's own output;
  mlp    the residual stream that block `l`'s MLP reads: the input of the norm in front of that MLP; what a cap
         changes there is added to what the MLP adds.
Where attention and MLP run in parallel (GPT-NeoX, Phi, Cohere), that is the block's own input. Where the MLP's output
is normalised before it is added (Gemma 2 and 3, OLMo 2), a correction goes in after that norm.
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
# Names of the norm in front of the MLP. The last two serve both branches of parallel blocks, which have no other.
_MLP_NORMS = ("pre_feedforward_layernorm", "post_attention_layernorm", "ln_2", "input_layernorm", "ln_1")
_MLP_OUTPUT_NORM = "post_feedforward_layernorm"


@dataclass(frozen=True)
class Block:
    """One decoder block.

    Attributes:
        module: the block; its output is the `block` site.
        mlp: its MLP.
        mlp_norm: the module whose input is the `mlp` site: the norm in front of the MLP, or the MLP without one.
        mlp_added: the module whose output is added to the residual stream: the MLP, or the norm behind it.
    """

    module: nn.Module
    mlp: nn.Module
    mlp_norm: nn.Module
    mlp_added: nn.Module


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
    mlp, behind = children.get("mlp"), children.get(_MLP_OUTPUT_NORM)
    norm = next((children[name] for name in _MLP_NORMS if name in children), None)
    if behind is not None and "pre_feedforward_layernorm" not in children:
        norm = mlp  # OLMo 2: its post_attention_layernorm belongs to the attention
    if mlp is None or norm is None:
        raise InputError(
            f"{type(module).__name__} has no MLP with a norm in front of it (children: {', '.join(children)}).",
            "Only blocks with a child named mlp and a norm in front of it are known: please report the model's name.",
        )
    return Block(module=module, mlp=mlp, mlp_norm=norm, mlp_added=mlp if behind is None else behind)


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
