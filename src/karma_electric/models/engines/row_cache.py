"""A key/value cache whose rows come and go: for decoding requests together that began at different times.

Rows end at the same column (padding is on the left, as transformers expects it), and a step writes the next column of
all of them in place. A row keeps exactly the keys and values that were computed for it, and none is ever shared: what
was computed under one strength of a cap is never continued under another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers.cache_utils import Cache, CacheLayerMixin

if TYPE_CHECKING:
    import torch

_ROOM = 64  # columns added beyond need, at least


class _Columns:
    """What all layers share: which rows and columns are in use.

    Columns are counted on from step to step; where a buffer begins with another one than the first, its layer knows.

    Attributes:
        lengths: tokens of each row. Row i has them in the columns from `end - lengths[i]` to `end`.
        end: behind the last column.
    """

    def __init__(self, lengths: list[int], end: int) -> None:
        self.lengths = lengths
        self.end = end

    @property
    def start(self) -> int:
        return self.end - max(self.lengths, default=0)


class _Layer(CacheLayerMixin):  # type: ignore[misc]
    """One block's keys and values: buffers [rows, heads, columns, size].

    A layer moves to larger buffers by itself: where memory runs out in the middle, some have moved and others have not,
    and all of them still hold the same columns.
    """

    def __init__(self, columns: _Columns, room: int) -> None:
        super().__init__()
        self.columns = columns
        self.room = room  # columns of a new buffer
        self.first = 0  # the column that the buffers begin with

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.keys, self.values = (
            states.new_zeros(states.shape[0], states.shape[1], self.room, states.shape[3])
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the next columns, and give all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        n, start, end = key_states.shape[0], *self.place()
        stop = end + key_states.shape[2]
        self.keys[:n, :, end:stop] = key_states
        self.values[:n, :, end:stop] = value_states
        return self.keys[:n, :, start:stop], self.values[:n, :, start:stop]

    def get_seq_length(self) -> int:
        return self.columns.end - self.columns.start

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def place(self) -> tuple[int, int]:
        """Where the columns in use begin and end in the buffers."""
        return self.columns.start - self.first, self.columns.end - self.first

    def buffers(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.keys, self.values

    def move(self, n_rows: int, width: int, n_tokens: int) -> None:
        """New buffers, in which `width` columns fit in front of the end, and `n_tokens` behind."""
        start, end = self.place()
        new_end = width + max(_ROOM, width // 4)  # room on the left too: a longer row may join
        room = new_end + n_tokens + max(_ROOM, width // 2)
        moved = []
        for old in self.buffers():
            new = old.new_zeros(n_rows, old.shape[1], room, old.shape[3])
            new[: old.shape[0], :, new_end - (end - start) : new_end] = old[:, :, start:end]
            moved.append(new)
        self.keys, self.values = moved
        self.first = self.columns.end - new_end


class RowCache(Cache):  # type: ignore[misc]
    """The cache that a model is given. After every forward pass, call `advance`."""

    def __init__(self, n_layers: int, *, room: int = _ROOM) -> None:
        """A cache of one row without tokens; `room`: how many columns are expected."""
        self.columns = _Columns([0], 0)
        super().__init__(layers=[_Layer(self.columns, room) for _ in range(n_layers)])

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return self.columns.lengths

    def advance(self, n_tokens: int) -> None:
        """A forward pass has written so many columns."""
        self.columns.end += n_tokens
        self.columns.lengths[:] = [length + n_tokens for length in self.columns.lengths]

    def reserve(self, n_tokens: int) -> None:
        """Make room for so many more columns."""
        for layer in self.layers:
            if layer.is_initialized and layer.place()[1] + n_tokens > layer.keys.shape[2]:
                layer.move(layer.keys.shape[0], max(self.lengths), n_tokens)

    def join(self, other: RowCache) -> None:
        """Take in another cache's only row, behind the ones that are here."""
        n, length = len(self.lengths), other.lengths[0]
        for layer, added in zip(self.layers, other.layers, strict=True):
            if not added.is_initialized:
                continue  # a block that reads another's keys and values
            rows = layer.keys.shape[0]
            if n + 1 > rows or length > layer.place()[1]:
                layer.move(rows if n + 1 <= rows else 2 * n, max(length, *self.lengths), 1)
            old_start, end = layer.place()
            start = min(old_start, end - length)
            its_end = added.place()[1]
            for mine, its in zip(layer.buffers(), added.buffers(), strict=True):
                # what earlier rows left there is masked, but a number that is not finite would shine through
                mine[:n, :, start:old_start] = 0
                mine[n, :, start : end - length] = 0
                mine[n, :, end - length : end] = its[0, :, its_end - length : its_end]
        self.columns.lengths.append(length)

    def leave(self, row: int) -> None:
        """Forget a row; the last one takes its number."""
        last = len(self.lengths) - 1
        if row != last:
            for layer in self.layers:
                start, end = layer.place()
                for buffer in layer.buffers() if layer.is_initialized else ():
                    buffer[row, :, start:end] = buffer[last, :, start:end]
        self.columns.lengths[row] = self.columns.lengths[last]
        self.columns.lengths.pop()

    def mask(self, n_tokens: int, device: torch.device) -> torch.Tensor | None:
        """Attention mask [rows, columns] of a forward pass of so many tokens; None where there is no padding."""
        import torch

        longest = max(self.lengths)
        if all(length == longest for length in self.lengths):
            return None
        padding = torch.tensor([[longest - length] for length in self.lengths], device=device)
        return (torch.arange(longest + n_tokens, device=device) >= padding).long()
