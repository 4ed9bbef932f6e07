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

import json
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal, cast

from karma_electric.core.errors import InputError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

Site = Literal["mlp", "block"]
SITES: tuple[Site, ...] = ("mlp", "block")

KEY = "karma_layout"  # in a model's config.json: a Layout, for a model whose parts have other names

_BLOCK_PATHS = (
    "model.layers",
    "model.language_model.layers",
    "transformer.h",
    "transformer.blocks",
    "gpt_neox.layers",
    "model.decoder.layers",
)
_MLPS = ("mlp", "feed_forward", "block_sparse_moe", "ffn")
# Names of the norm in front of the MLP. The last two serve both branches of parallel blocks, which have no other.
_MLP_NORMS = (
    "pre_feedforward_layernorm",
    "pre_ff_layernorm",
    "feedforward_layernorm",
    "ffn_norm",
    "post_attention_layernorm",
    "ln_mlp",
    "ln_2",
    "norm_2",
    "input_layernorm",
    "ln_1",
)
_MLP_OUTPUT_NORMS = ("post_feedforward_layernorm", "post_mlp_layernorm")


@dataclass(frozen=True)
class Layout:
    """Where the parts of a model are that this module does not find by itself, all as dotted paths.

    Attributes:
        blocks: the list of decoder blocks, within the model.
        mlp: the MLP, within a block; None where the usual names do.
        mlp_norm: the norm in front of the MLP, within a block.
        mlp_added: the module whose output is added to the residual stream: the MLP when None.
    """

    blocks: str | None = None
    mlp: str | None = None
    mlp_norm: str | None = None
    mlp_added: str | None = None


class Block:
    """One decoder block.

    Attributes:
        module: the block; its output is the `block` site.
        mlp: its MLP.
        mlp_norm: the module whose input is the `mlp` site: the norm in front of the MLP, or the MLP without one.
        mlp_added: the module whose output is added to the residual stream: the MLP, or the norm behind it.
        mlp_scale: what that output is multiplied by when it is added (Granite; 1 elsewhere).
    """

    def __init__(
        self,
        module: nn.Module,
        mlp: nn.Module | None,
        mlp_norm: nn.Module | None,
        mlp_added: nn.Module | None,
        mlp_scale: float = 1.0,
    ) -> None:
        """The parts of the MLP are None where they were not found: only the site `block` can then be used."""
        self.module = module
        self.mlp_scale = mlp_scale
        self._mlp = mlp
        self._mlp_norm = mlp_norm
        self._mlp_added = mlp_added

    @property
    def mlp(self) -> nn.Module:
        """See the class. Raises: InputError, when it was not found."""
        return self._known(self._mlp)

    @property
    def mlp_norm(self) -> nn.Module:
        """See the class. Raises: InputError, when it was not found."""
        return self._known(self._mlp_norm)

    @property
    def mlp_added(self) -> nn.Module:
        """See the class. Raises: InputError, when it was not found."""
        return self._known(self._mlp_added)

    def hooked(self, site: Site) -> tuple[nn.Module, ...]:
        """The modules that a cap at a site listens to, those of the `mlp` site in the order they are called."""
        return (self.mlp_norm, self.mlp_added) if site == "mlp" else (self.module,)

    def _known(self, part: nn.Module | None) -> nn.Module:
        if part is None or self._mlp_norm is None:
            children = ", ".join(name for name, _ in self.module.named_children())
            raise InputError(
                f"{type(self.module).__name__} has no MLP with a norm in front of it that is known "
                f"(its parts: {children}).",
                f'Name them under {KEY} in the model\'s config.json: "mlp": "PART", "mlp_norm": "PART". '
                'The site "block" needs neither.',
            )
        return part


def _example(**parts: str) -> str:
    return json.dumps({KEY: parts})[1:-1]


def decoder_blocks(model: PreTrainedModel, layout: Layout | str | None = None) -> list[Block]:
    """The decoder blocks of a model, in order.

    Args:
        model: a causal language model.
        layout: where its parts are, or the dotted path of its blocks; None takes what its config.json says under
            `karma_layout`, and else looks at the usual places.

    Raises:
        InputError: the layout is unknown, or not the model's; names the override.
    """
    from torch import nn

    layout = Layout(blocks=layout) if isinstance(layout, str) else layout or _configured(model)
    paths = (layout.blocks,) if layout.blocks else _BLOCK_PATHS
    for path in paths:
        modules = _part(model, path)
        if isinstance(modules, nn.ModuleList) and len(modules):
            return [_block(module, layout) for module in modules]
    lists = [f"{name} ({len(m)})" for name, m in model.named_modules() if isinstance(m, nn.ModuleList)]
    raise InputError(
        f"No decoder blocks found in {type(model).__name__} (tried {', '.join(paths)}; "
        f"it has these lists of modules: {', '.join(lists) or 'none'}).",
        f"Name the right one in the model's config.json: {_example(blocks='PATH')}, "
        "or in Python: capped(model, cap, blocks_path='PATH').",
    )


def _configured(model: PreTrainedModel) -> Layout:
    """What the model's config.json says about its layout."""
    given = getattr(getattr(model, "config", None), KEY, None)
    if given is None:
        return Layout()
    names = [field.name for field in fields(Layout)]
    if not isinstance(given, dict) or not all(k in names and isinstance(v, str) for k, v in given.items()):
        raise InputError(
            f"{KEY} in the model's config.json is {given!r}, expected names of modules for any of {', '.join(names)}.",
            f"For example: {_example(blocks='trunk.layers', mlp='ffn', mlp_norm='ffn_norm')}",
        )
    return Layout(**given)


def _part(module: nn.Module, path: str) -> nn.Module | None:
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


def _block(module: nn.Module, layout: Layout) -> Block:
    children = {name: child for name, child in module._modules.items() if child is not None}
    mlp = _named(module, layout.mlp) if layout.mlp else next((children[n] for n in _MLPS if n in children), None)
    behind = next((children[name] for name in _MLP_OUTPUT_NORMS if name in children), None)
    if layout.mlp_norm:
        norm: nn.Module | None = _named(module, layout.mlp_norm)
    elif "post_feedforward_layernorm" in children and "pre_feedforward_layernorm" not in children:
        norm = mlp  # OLMo 2: its post_attention_layernorm belongs to the attention
    else:
        norm = next((children[name] for name in _MLP_NORMS if name in children), None)
    added = _named(module, layout.mlp_added) if layout.mlp_added else mlp if behind is None else behind
    return Block(module, mlp, norm, added, mlp_scale=float(module.__dict__.get("residual_multiplier", 1.0)))


def _named(module: nn.Module, path: str) -> nn.Module:
    part = _part(module, path)
    if part is None:
        children = ", ".join(name for name, _ in module.named_children())
        raise InputError(
            f"{type(module).__name__} has no part {path!r} (it has {children}).", f"Correct {KEY} in config.json."
        )
    return part


def hidden_size(model: PreTrainedModel) -> int:
    """Width of the residual stream."""
    return cast("int", model.config.get_text_config().hidden_size)


def context_length(model: PreTrainedModel) -> int:
    """How many positions a model was made for; 32768 where it does not say."""
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or 32768)


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
