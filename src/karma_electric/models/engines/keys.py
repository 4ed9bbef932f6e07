"""Keys and values of a batch: what is read once though many begin with it, what is known from the turn before, and
buffers with room for what will come. Models of plain full attention alone.

Rows are aligned on the right, and what is left of them is masked; a key carries its own position, wherever it lies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache as once
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_SHORTEST_PREFIX = 16  # tokens; less is not worth a pass of its own
_PASS_TOKENS = 2048  # padded tokens of one pass over prompts

Pair = tuple["torch.Tensor", "torch.Tensor"]  # keys and values of a layer, [heads, tokens, size]


@dataclass(frozen=True)
class _Row:
    """A conversation that was answered: its tokens, how many of them were asked, and their keys and values."""

    ids: tuple[int, ...]
    asked: int
    pairs: list[Pair]
    bytes: int


class Memory:
    """Keys and values of conversations that were answered, so that their next turn need not read them again.

    What comes first stays until it is used; what no longer fits is not kept.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._free = limit_bytes
        self._rows: list[_Row] = []

    def keep(self, ids: Sequence[int], asked: int, pairs: list[Pair]) -> None:
        """Remember a conversation, of which `asked` tokens were a prompt, if there is room. The views are copied."""
        size = sum(side.numel() * side.element_size() for pair in pairs for side in pair)
        if size <= self._free:
            self._rows.append(_Row(tuple(ids), asked, [(k.clone(), v.clone()) for k, v in pairs], size))
            self._free -= size

    def take(self, ids: Sequence[int]) -> tuple[int, list[Pair]]:
        """How many of the first tokens are known, at most all but one, and their keys and values.

        A conversation that goes on, or is asked anew, is forgotten with that.
        """
        best, found = 0, None
        for row in self._rows:
            length = shared_length(row.ids, ids, most=min(len(row.ids), len(ids) - 1))
            if length > best:
                best, found = length, row
        if found is None:
            return 0, []
        if best >= found.asked - 1:
            self._rows = [row for row in self._rows if row is not found]
            self._free += found.bytes
        return best, [(k[:, :best], v[:, :best]) for k, v in found.pairs]


@dataclass(frozen=True)
class Read:
    """Prompts that were read.

    Attributes:
        past: the cache, with room.
        mask: [rows, width].
        logits: of the first token of each answer, float32 [rows, vocabulary].
    """

    past: Any
    mask: torch.Tensor
    logits: torch.Tensor


def read_prompts(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], *, room: int, pad_id: int, memory: Memory
) -> Read:
    """Read prompts: what is known or shared not again, the rest with others of like length."""
    import torch

    device, width = model.device, max(map(len, prompts))
    known = [memory.take(ids) for ids in prompts]
    known = _share(model, prompts, known)
    joint: list[list[torch.Tensor]] = []  # per layer: keys and values, [rows, heads, width + room, size]
    logits: list[torch.Tensor | None] = [None] * len(prompts)
    equal: dict[tuple[int, ...], list[int]] = {}
    for row, ids in enumerate(prompts):
        equal.setdefault(tuple(ids), []).append(row)
    groups = list(equal.values())
    for numbers in _chunks([len(prompts[rows[0]]) - known[rows[0]][0] for rows in groups]):
        chunk = [groups[number] for number in numbers]
        readers = [rows[0] for rows in chunk]  # of equal prompts, one reads for all
        past, first = _read_chunk(
            model, [prompts[row] for row in readers], [known[row] for row in readers], pad_id=pad_id
        )
        for place, rows in enumerate(chunk):
            for row in rows:
                logits[row] = first[place]
        for number, layer in enumerate(past.layers):
            if number == len(joint):
                shapes = [(len(prompts), t.shape[1], width + room, t.shape[-1]) for t in (layer.keys, layer.values)]
                joint.append([layer.keys.new_zeros(shape) for shape in shapes])
            for buffer, new, side in zip(joint[number], (layer.keys, layer.values), (0, 1), strict=True):
                for place, rows in enumerate(chunk):
                    n, pairs = known[rows[0]]
                    fresh = len(prompts[rows[0]]) - n
                    buffer[rows, :, width - fresh : width] = new[place, :, new.shape[-2] - fresh :]
                    if n:
                        buffer[rows, :, width - fresh - n : width - fresh] = pairs[number][side]
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts], device=device)
    return Read(roomy_cache(model, room, joint, width), mask, torch.stack([row for row in logits if row is not None]))


def next_logits(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, past: Any) -> torch.Tensor:
    """One pass: logits of the next token of every row, float32 [rows, vocabulary].

    Args:
        model: the model.
        ids: new tokens, [rows, new].
        mask: 1 where a token is, past and new, [rows, all].
        past: the cache, which takes in the new tokens.
    """
    positions = (mask.cumsum(-1) - 1).clamp_min(0)[:, -ids.shape[1] :]
    keep = {"logits_to_keep": 1} if model._supports_logits_to_keep() else {}
    output = model(
        input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=past, use_cache=True, **keep
    )
    logits: torch.Tensor = output.logits[:, -1].float()
    return logits


def shared_length(a: Sequence[int], b: Sequence[int], *, most: int) -> int:
    """Length of what two sequences begin with, at most `most`."""
    return next((n for n in range(most) if a[n] != b[n]), most)


def _share(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], known: list[tuple[int, list[Pair]]]
) -> list[tuple[int, list[Pair]]]:
    """Read once what all prompts begin with of which nothing is known."""
    import torch

    new = [list(ids) for ids, (n, _) in zip(prompts, known, strict=True) if n < _SHORTEST_PREFIX]
    if len(new) < 2:
        return known
    first, last = min(new), max(new)  # in lexical order: what these share, all share
    length = shared_length(first, last, most=min(map(len, new)) - 1)
    if length < _SHORTEST_PREFIX:
        return known
    past = roomy_cache(model, 0)
    ids = torch.tensor([first[:length]], device=model.device)
    next_logits(model, ids, torch.ones_like(ids), past)
    pairs = [(layer.keys[0], layer.values[0]) for layer in past.layers]
    return [(length, pairs) if n < _SHORTEST_PREFIX else (n, own) for n, own in known]


def _chunks(lengths: Sequence[int]) -> list[list[int]]:
    """Rows of like length together, as many as a pass may hold with their padding."""
    chunks: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        if chunks and (len(chunks[-1]) + 1) * lengths[row] <= _PASS_TOKENS:
            chunks[-1].append(row)
        else:
            chunks.append([row])
    return chunks


def _read_chunk(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    known: Sequence[tuple[int, list[Pair]]],
    *,
    pad_id: int,
) -> tuple[Any, torch.Tensor]:
    """Read what is not known of some prompts. Returns the cache of the pass and the logits after it."""
    import torch

    before = max(n for n, _ in known)
    after = max(len(ids) - n for ids, (n, _) in zip(prompts, known, strict=True))
    joint: list[list[torch.Tensor]] = []
    if before:
        example = next(pairs for n, pairs in known if n)
        for number, pair in enumerate(example):
            sides = []
            for side in (0, 1):
                heads, _, size = pair[side].shape
                buffer = pair[side].new_zeros(len(prompts), heads, before + after, size)
                for place, (n, pairs) in enumerate(known):
                    if n:
                        buffer[place, :, before - n : before] = pairs[number][side]
                sides.append(buffer)
            joint.append(sides)
    rows, mask = [], []
    for ids, (n, _) in zip(prompts, known, strict=True):
        fresh = list(ids[n:])
        rows.append([pad_id] * (after - len(fresh)) + fresh)
        mask.append([0] * (before - n) + [1] * n + [0] * (after - len(fresh)) + [1] * len(fresh))
    past = roomy_cache(model, after, joint, before)
    ids_ = torch.tensor(rows, device=model.device)
    return past, next_logits(model, ids_, torch.tensor(mask, device=model.device), past)


def roomy_cache(
    model: PreTrainedModel, room: int, joint: Sequence[Sequence[torch.Tensor]] = (), filled: int = 0
) -> Any:
    """A cache that keeps keys and values in buffers, made for `room` tokens, or given with `filled` of them in use."""
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config.get_text_config())
    cache.layers = [_roomy_layer()(room) for _ in cache.layers]
    for layer, buffers in zip(cache.layers, joint, strict=False):
        layer.preset(buffers, filled)
    return cache


@once
def _roomy_layer() -> type:
    from transformers.cache_utils import DynamicLayer

    class Roomy(DynamicLayer):  # type: ignore[misc]
        """`keys` and `values` are views of the filled part of the buffers."""

        def __init__(self, room: int) -> None:
            super().__init__()
            self._room = room
            self._buffers: list[torch.Tensor] = []

        def preset(self, buffers: Sequence[torch.Tensor], filled: int) -> None:
            self.lazy_initialization(*buffers)
            self._buffers = list(buffers)
            self._show(filled)

        def update(
            self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
        ) -> tuple[torch.Tensor, torch.Tensor]:
            filled = self.get_seq_length()
            end = filled + key_states.shape[-2]
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
            if not self._buffers or end > self._buffers[0].shape[-2]:
                self._grow(filled, end + self._room, key_states, value_states)
            for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
                buffer[..., filled:end, :] = new
            self._show(end)
            return self.keys, self.values

        def _grow(self, filled: int, length: int, keys: torch.Tensor, values: torch.Tensor) -> None:
            old = self._buffers
            self._buffers = [new.new_zeros((*new.shape[:2], length, new.shape[-1])) for new in (keys, values)]
            for buffer, before in zip(self._buffers, old, strict=False):
                buffer[..., :filled, :] = before[..., :filled, :]

        def _show(self, end: int) -> None:
            self.keys, self.values = (buffer[..., :end, :] for buffer in self._buffers)

        def batch_select_indices(self, indices: torch.Tensor) -> None:
            end = self.get_seq_length()
            if end:
                self._buffers = [buffer[indices] for buffer in self._buffers]
                self._show(end)

    return Roomy
