"""Measures whether an axis is real: how stable it is over prompts, and what it separates, beside what chance gives.

Works on the activations an axis is made from, streamed in chunks: two passes, and a state that does not grow with the
number of prompts. Random numbers are drawn prompt by prompt, so the size of the chunks does not matter.
docs/axis-diagnostics.md explains every figure; verdict.py puts them into words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from karma_electric.core.errors import DataError
from karma_electric.core.progress import Progress, Silent
from karma_electric.models.blocks import Site
from karma_electric.steer.diagnostics import AGAIN, Diagnostics, SiteDiagnostics
from karma_electric.steer.separation import auc, auc_interval, d_prime

if TYPE_CHECKING:
    import numpy as np
    import torch

    from karma_electric.steer.extract import Sides

FOLDS = 5
SHUFFLES = 20
RANDOM_DIRECTIONS = 50
HALVES = 10  # random splits into halves
# Unseen prompts that are projected at most: the AUC is known to 0.01 then, and the state stays bounded.
MAX_PROJECTED = 2000
_SLAB = 32  # prompts per step of the arithmetic, whatever the chunks are, so that rounding is the same too


def diagnose(
    chunks: Callable[[], Iterable[Sides]],
    *,
    seed: int = 0,
    resamples: int = 100,
    shuffles: int = SHUFFLES,
    random_directions: int = RANDOM_DIRECTIONS,
    folds: int = FOLDS,
    progress: Progress | None = None,
) -> Diagnostics:
    """Measure how stable a direction is, and what it separates on prompts it was not made from.

    The state is about `resamples + folds * shuffles + 30` float32 vectors [n_layers, hidden] per site, whatever the
    number of prompts: 0.25 GB for 32 blocks of hidden size 4096 and both sites, and 0.65 GB for moments.

    Args:
        chunks: gives the activations, called once per pass (twice): site -> (toward, mean away), float32
            [n_chunk, n_layers, hidden], every time the same.
        seed: of all random numbers.
        resamples: bootstrap resamples of the prompts, at least 2.
        shuffles: random swaps of toward and away, at least 1.
        random_directions: random unit vectors, at least 1.
        folds: parts of the prompts; each is projected on the direction of the others. Fewer where there are fewer
            prompts.
        progress: told about every step.

    Raises:
        DataError: fewer than 2 prompts, activations that are not finite, or chunks that differ from pass to pass.
    """
    if resamples < 2 or shuffles < 1 or random_directions < 1 or folds < 2:
        raise ValueError("expected at least 2 resamples and folds, 1 shuffle and random direction")
    progress = progress or Silent()
    settings = _Settings(seed, resamples, shuffles, random_directions, folds)
    sums: dict[Site, _Sums] = {}
    n = 0
    draws = _Draws(settings)
    for slab, size in _slabs(chunks()):
        drawn = draws.next(size)
        for site, (toward, away) in slab.items():
            sums.setdefault(site, _Sums(toward, settings)).add(toward, away, drawn, site)
        n += size
    if n < 2:
        raise DataError(f"{n} contrast prompts cannot be diagnosed, expected at least 2.", "Give more prompts.")
    seconds = {site: _Second(sums.pop(site), settings, n) for site in list(sums)}  # pop: the sums are not needed again
    draws, counts, done = _Draws(settings), _Counts(settings, n), 0
    for slab, size in _slabs(chunks()):
        drawn, weights, kept = draws.next(size), *counts.next(size)
        for site, (toward, away) in slab.items():
            seconds[site].add(toward, away, drawn, weights, kept)
        done += size
        progress.update(min(done, n), n, "prompts resampled and projected")
    if done != n:
        raise DataError(f"The second pass gave {done} prompts, the first {n}.", "Extract the axis again.")
    return Diagnostics(
        n=n,
        projected=min(n, MAX_PROJECTED),
        seed=seed,
        resamples=resamples,
        shuffles=shuffles,
        random_directions=random_directions,
        folds=min(folds, n),
        sites={site: second.figures() for site, second in seconds.items()},
    )


# Random numbers, drawn in the order of the prompts


@dataclass(frozen=True)
class _Settings:
    seed: int
    resamples: int
    shuffles: int
    random_directions: int
    folds: int

    def generator(self, stream: int) -> np.random.Generator:
        """A generator of its own for each use, so that changing one number of draws leaves the others alone."""
        import numpy as np

        return np.random.default_rng([self.seed, stream])


@dataclass(frozen=True)
class _Drawn:
    fold: torch.Tensor  # [size], which fold a prompt belongs to
    sign: torch.Tensor  # [size, shuffles], -1 where toward and away are swapped
    half: torch.Tensor  # [size, HALVES], 1 in the first half, 0 in the second


class _Draws:
    """Folds, swaps and halves of each prompt. Both passes make one, and get the same."""

    def __init__(self, settings: _Settings) -> None:
        self._settings = settings
        self._folds, self._signs, self._halves = (settings.generator(stream) for stream in range(3))
        self._order: list[int] = []
        self._coins: np.ndarray | None = None

    def next(self, size: int) -> _Drawn:
        """The draws of the next `size` prompts."""
        import numpy as np
        import torch

        folds, signs, halves = [], [], []
        for _ in range(size):
            # Every `folds` prompts in a row go to different folds, every two to different halves: sizes differ by 1
            # at most, and a file sorted by kind is spread evenly.
            self._order = self._order or self._folds.permutation(self._settings.folds).tolist()
            folds.append(self._order.pop())
            signs.append(self._signs.integers(0, 2, self._settings.shuffles) * 2 - 1)
            coins = self._halves.integers(0, 2, HALVES) if self._coins is None else 1 - self._coins
            self._coins = coins if self._coins is None else None
            halves.append(coins)
        return _Drawn(
            torch.tensor(folds),
            torch.from_numpy(np.stack(signs)).float(),
            torch.from_numpy(np.stack(halves)).float(),
        )


class _Counts:
    """How often each prompt is in each resample, and whether it is projected, of n prompts."""

    def __init__(self, settings: _Settings, n: int) -> None:
        import numpy as np

        self._rng, self._keep = settings.generator(3), settings.generator(4)
        self._left = np.full(settings.resamples, n)
        self._seen, self._n, self._wanted = 0, n, min(n, MAX_PROJECTED)

    def next(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Counts [size, resamples] and a mask [size].

        n draws with replacement are a multinomial draw; its counts come one after the other, each binomial given those
        before it. Which prompts are projected is chosen one after the other as well (Knuth's algorithm S).
        """
        import numpy as np
        import torch

        counts, kept = [], []
        for _ in range(size):
            left = max(self._n - self._seen, 1)
            drawn = self._rng.binomial(self._left, 1.0 / left)
            self._left = self._left - drawn
            counts.append(drawn)
            keep = bool(self._keep.random() * left < self._wanted)
            self._wanted -= keep
            kept.append(keep)
            self._seen += 1
        return torch.from_numpy(np.stack(counts)).float(), torch.tensor(kept)


# Running sums of one site


class _Sums:
    """First pass: the sums that give the direction of all prompts but one fold, for true and for swapped labels."""

    def __init__(self, like: torch.Tensor, settings: _Settings) -> None:
        import torch

        shape = like.shape[1:]
        self.difference = torch.zeros(settings.folds, *shape, dtype=torch.float64)
        self.middle = torch.zeros(settings.folds, *shape, dtype=torch.float64)
        self.count = torch.zeros(settings.folds, dtype=torch.float64)
        self.swapped = torch.zeros(settings.folds * settings.shuffles, *shape)
        self.half = torch.zeros(HALVES, *shape)
        self.square = torch.zeros(shape[0], dtype=torch.float64)

    def add(self, toward: torch.Tensor, away: torch.Tensor, drawn: _Drawn, site: Site) -> None:
        """Add some prompts, [size, n_layers, hidden]."""
        import torch

        difference = away - toward
        bad = ~torch.isfinite(difference).all(-1)
        if bad.any():
            block = int(bad.any(0).nonzero()[0])
            raise DataError(
                f"The activations at block {block}, site {site}, are not finite.",
                "Extract in another precision (model.dtype = 'float32').",
            )
        member = torch.nn.functional.one_hot(drawn.fold, len(self.count)).double()  # [size, folds]
        self.difference += _weighted(member, difference.double())
        self.middle += _weighted(member, (toward.double() + away.double()) / 2)
        self.count += member.sum(0)
        signed = (member.float().unsqueeze(2) * drawn.sign.unsqueeze(1)).flatten(1)  # [size, folds * shuffles]
        self.swapped += _weighted(signed, difference)
        self.half += _weighted(drawn.half, difference)
        self.square += difference.double().pow(2).sum((0, 2))


class _Second:
    """Second pass: the sum of every resample, and the projections of every prompt on directions it is not part of."""

    def __init__(self, sums: _Sums, settings: _Settings, n: int) -> None:
        import torch

        self._n = n
        total = sums.difference.sum(0)
        self._direction = _unit(total).float()  # [n_layers, hidden]
        self._norm = (total / n).norm(dim=-1)
        self._noise = ((sums.square / n - self._norm.pow(2)).clamp_min(0) / (n - 1)).sqrt()
        self._half_cosine = (_unit(sums.half) * _unit(total.float() - sums.half)).sum(-1).mean(0)
        self._without = _unit(total - sums.difference).float()  # [folds, n_layers, hidden]: from the other folds
        others = (n - sums.count).clamp_min(1).view(-1, 1, 1)
        self._centre = ((sums.middle.sum(0) - sums.middle) / others).float()
        swapped = sums.swapped.view(settings.folds, settings.shuffles, *total.shape)
        self._swapped = _unit(swapped.sum(0) - swapped)  # [folds, shuffles, n_layers, hidden]
        random = settings.generator(5).standard_normal((settings.random_directions, total.shape[-1]))
        self._random = _unit(torch.from_numpy(random)).float()
        self._resampled = torch.zeros(settings.resamples, *total.shape)
        self._projected: list[torch.Tensor] = []  # each [kept, 2, n_layers, 1 + shuffles + random directions]

    def add(
        self, toward: torch.Tensor, away: torch.Tensor, drawn: _Drawn, counts: torch.Tensor, kept: torch.Tensor
    ) -> None:
        """Add some prompts, [size, n_layers, hidden]."""
        import torch

        self._resampled += _weighted(counts, away - toward)
        for fold in drawn.fold[kept].unique().tolist():
            rows = kept & (drawn.fold == fold)
            # centred on the middle of the other folds: their directions differ a little, and the common part of all
            # activations, which is long, must not turn that into a difference between folds
            both = torch.stack([toward[rows], away[rows]], 1) - self._centre[fold]  # [rows, 2, n_layers, hidden]
            true = torch.einsum("rslh,lh->rsl", both, self._without[fold])
            swapped = torch.einsum("rslh,klh->rslk", both, self._swapped[fold])
            keep = (drawn.sign[rows] > 0)[:, None, None, :]
            swapped = torch.where(keep, swapped, swapped.flip(1))
            self._projected.append(torch.cat([true.unsqueeze(-1), swapped, both @ self._random.T], -1))

    def figures(self) -> SiteDiagnostics:
        """All figures of the site."""
        import torch

        shuffles = self._swapped.shape[1]
        values = torch.cat(self._projected).permute(1, 2, 3, 0)  # [2, n_layers, columns, prompts]
        areas, distances = auc(values[0], values[1]), d_prime(values[0], values[1])  # [n_layers, columns]
        own = values[:, :, 0].contiguous()  # [2, n_layers, prompts]
        low, high = auc_interval(own[0], own[1])
        random = slice(1 + shuffles, None)
        signal = (self._norm.pow(2) - self._noise.pow(2)).clamp_min(0)
        cosines = (self._direction.double() @ self._direction.double().T).clamp(-1, 1)
        return SiteDiagnostics(
            norm=_column(self._norm),
            noise=_column(self._noise),
            **self._stability(),
            half_cosine=_column(self._half_cosine),
            fresh_cosine=_column(signal / (signal + self._noise.pow(2)).clamp_min(1e-300)),
            auc=_column(areas[:, 0]),
            auc_low=_column(low),
            auc_high=_column(high),
            d_prime=_column(distances[:, 0]),
            own_higher=_column((own[1] > own[0]).double().mean(-1)),
            **_range("random_auc", areas[:, random].maximum(1 - areas[:, random])),
            **_range("random_d_prime", distances[:, random].abs()),
            **_range("shuffled_auc", areas[:, 1 : 1 + shuffles]),
            **_range("shuffled_d_prime", distances[:, 1 : 1 + shuffles]),
            similarity=tuple(_column(row[i + 1 :]) for i, row in enumerate(cosines)),
        )

    def _stability(self) -> dict[str, Any]:
        import torch

        units = _unit(self._resampled).transpose(0, 1)  # [n_layers, resamples, hidden]
        i, j = torch.triu_indices(units.shape[1], units.shape[1], offset=1)
        pairs = (units @ units.transpose(1, 2))[:, i, j].clamp(-1, 1)  # [n_layers, pairs]
        to_full = (units * self._direction.unsqueeze(1)).sum(-1).mean(-1)
        return {**_range("resample_cosine", pairs), "full_cosine": _column(to_full.clamp(-1, 1))}


def _slabs(chunks: Iterable[Sides]) -> Iterator[tuple[Sides, int]]:
    """The same activations in steps of `_SLAB` prompts (the last one smaller), each with its size."""
    import torch

    held: Sides = {}
    for chunk in chunks:
        if held and set(chunk) != set(held):
            raise DataError(f"A chunk holds the sites {sorted(chunk)}, those before it {sorted(held)}.", AGAIN)
        shapes = {side.shape for both in chunk.values() for side in both}
        if len(shapes) != 1 or len(next(iter(shapes))) != 3:
            raise DataError(f"A chunk holds activations of the shapes {sorted(map(tuple, shapes))}.", AGAIN)
        held = {
            site: _pair(torch.cat([a, b.float()]) for a, b in zip(held[site], both, strict=True)) if held else both
            for site, both in chunk.items()
        }
        size = len(next(iter(held.values()))[0])
        whole = size - size % _SLAB
        for start in range(0, whole, _SLAB):
            yield _rows(held, start, start + _SLAB), _SLAB
        held = _rows(held, whole, size)
    rest = len(next(iter(held.values()))[0]) if held else 0
    if rest:
        yield held, rest


def _rows(sides: Sides, start: int, end: int) -> Sides:
    return {site: _pair(side[start:end].float() for side in both) for site, both in sides.items()}


def _pair(sides: Iterable[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    toward, away = sides
    return toward, away


def _weighted(weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Sums over prompts: [size, rows] and [size, n_layers, hidden] -> [rows, n_layers, hidden]."""
    return (weights.T @ values.flatten(1)).view(-1, *values.shape[1:])


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    """Vectors over their lengths; zero vectors stay zero."""
    lengths: torch.Tensor = vectors.norm(dim=-1, keepdim=True)
    return vectors / lengths.clamp_min(1e-30)


def _range(name: str, values: torch.Tensor) -> dict[str, tuple[float, ...]]:
    """Mean and 95% range over the last dimension, as three columns."""
    import torch

    ends = torch.quantile(values.double(), torch.tensor([0.025, 0.975], dtype=torch.float64), dim=-1)
    return {name: _column(values.mean(-1)), f"{name}_low": _column(ends[0]), f"{name}_high": _column(ends[1])}


def _column(values: torch.Tensor) -> tuple[float, ...]:
    """Six significant digits: more would only say which machine it was."""
    return tuple(float(f"{value:.6g}") for value in values.tolist())
