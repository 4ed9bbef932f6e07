"""Diagnostics of an axis: planted directions are found as theory says, noise is not, and chunks do not matter."""

from __future__ import annotations

import json
import math
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from karma_electric.core.errors import ArtifactError, DataError, MissingError
from karma_electric.steer import diagnose as module
from karma_electric.steer.axis import direction
from karma_electric.steer.diagnose import diagnose
from karma_electric.steer.diagnostics import Diagnostics, prompts_needed, read_diagnostics, write_diagnostics
from karma_electric.steer.extract import Sides
from karma_electric.steer.separation import auc, auc_interval, d_prime, score_interval

NOISE = 1.0  # standard deviation of each side's own noise, per dimension
SHARED = 1.5  # of what both sides of a prompt have in common


def planted(*lengths: float, n: int, hidden: int = 48, seed: int = 0) -> Sides:
    """Activations [n, one block per length, hidden] whose away side is `length` further along a random direction."""
    generator = torch.Generator().manual_seed(seed)
    shape = (n, len(lengths), hidden)
    units = torch.nn.functional.normalize(torch.randn(len(lengths), hidden, generator=generator), dim=-1)
    prompt = SHARED * torch.randn(shape, generator=generator)
    toward = prompt + NOISE * torch.randn(shape, generator=generator)
    away = prompt + NOISE * torch.randn(shape, generator=generator) + torch.tensor(lengths)[:, None] * units
    return {"mlp": (toward, away)}


def in_chunks(sides: Sides, *sizes: int) -> Callable[[], Iterator[Sides]]:
    """The same activations in chunks of these sizes, the last one repeated."""

    def chunks() -> Iterator[Sides]:
        start, left, n = 0, list(sizes), len(sides["mlp"][0])
        while start < n:
            size = left.pop(0) if len(left) > 1 else left[0]
            yield {site: (a[start : start + size], b[start : start + size]) for site, (a, b) in sides.items()}
            start += size

    return chunks


# Recovery of what was planted


LENGTHS = (2.0, 3.5, 6.0, 10.0)
N, HIDDEN = 320, 480


@pytest.fixture(scope="module")
def found() -> Diagnostics:
    return diagnose(in_chunks(planted(*LENGTHS, n=N, hidden=HIDDEN), 25))


def noise_square(n: float) -> float:
    """Expected squared length of the mean difference of n prompts when nothing is planted: tr(covariance) / n."""
    return 2 * NOISE**2 * HIDDEN / n


def test_length_and_noise_are_those_of_the_mean_difference(found: Diagnostics) -> None:
    figures = found.sites["mlp"]
    _, norms = direction(*planted(*LENGTHS, n=N, hidden=HIDDEN)["mlp"])
    assert figures.norm == pytest.approx(norms.tolist(), rel=1e-5)
    assert figures.noise == pytest.approx([math.sqrt(noise_square(N))] * 4, rel=0.03)


def test_resamples_agree_as_much_as_theory_says(found: Diagnostics) -> None:
    """(s + V) / (s + 2V): each resample adds noise of variance V to a direction that holds some already."""
    figures, v = found.sites["mlp"], noise_square(N)
    expected = [(length**2 + v) / (length**2 + 2 * v) for length in LENGTHS]
    assert figures.resample_cosine == pytest.approx(expected, abs=0.03)
    for low, mean, high in zip(
        figures.resample_cosine_low, figures.resample_cosine, figures.resample_cosine_high, strict=True
    ):
        assert low < mean < high
    to_full = [math.sqrt((length**2 + v) / (length**2 + 2 * v)) for length in LENGTHS]
    assert figures.full_cosine == pytest.approx(to_full, abs=0.03)


def test_halves_agree_as_much_as_theory_says(found: Diagnostics) -> None:
    figures, v = found.sites["mlp"], noise_square(N / 2)
    assert figures.half_cosine == pytest.approx([length**2 / (length**2 + v) for length in LENGTHS], abs=0.06)


def test_the_cosine_of_fresh_prompts_is_foretold() -> None:
    """Ten fresh sets of prompts really agree as much as each set alone says they would."""
    fresh = [planted(4.0, n=60, hidden=HIDDEN, seed=seed) for seed in range(10)]
    units = []  # cosine to the planted direction, which is the first that each seed's generator gives
    for seed, sides in enumerate(fresh):
        unit, _ = direction(*sides["mlp"])
        generator = torch.Generator().manual_seed(seed)
        true = torch.nn.functional.normalize(torch.randn(1, HIDDEN, generator=generator), dim=-1)
        units.append(((unit * true).sum(-1)).item())
    # two independent directions meet only along the true one: the cosine between them is the product of theirs to it
    pairs = [a * b for i, a in enumerate(units) for b in units[i + 1 :]]
    foretold = [diagnose(in_chunks(s, 60), resamples=2, shuffles=1).sites["mlp"].fresh_cosine[0] for s in fresh]
    assert sum(foretold) / 10 == pytest.approx(sum(pairs) / len(pairs), abs=0.04)


def test_separation_of_unseen_prompts_is_as_theory_says(found: Diagnostics) -> None:
    """d' = length * cos(direction of 4/5 of the prompts, true one) / spread; AUC = Phi(d' / sqrt(2))."""
    figures, v = found.sites["mlp"], noise_square(N * 4 / 5)
    spread = math.hypot(NOISE, SHARED)
    expected = [length * math.sqrt(length**2 / (length**2 + v)) / spread for length in LENGTHS]
    assert figures.d_prime == pytest.approx(expected, abs=0.2, rel=0.06)
    areas = [NormalDist().cdf(d / math.sqrt(2)) for d in expected]
    assert figures.auc == pytest.approx(areas, abs=0.05)
    for low, area, high in zip(figures.auc_low, figures.auc, figures.auc_high, strict=True):
        assert low <= area <= high
    # within a prompt what both its sides have in common cancels out
    own = NormalDist().cdf(expected[0] * spread / NOISE / math.sqrt(2))
    assert figures.own_higher[0] == pytest.approx(own, abs=0.05)


def test_shuffled_labels_separate_nothing_however_strong_the_direction(found: Diagnostics) -> None:
    figures = found.sites["mlp"]
    assert figures.shuffled_auc == pytest.approx([0.5] * 4, abs=0.06)
    assert figures.shuffled_d_prime == pytest.approx([0.0] * 4, abs=0.25)
    assert all(low < 0.5 < high for low, high in zip(figures.shuffled_auc_low, figures.shuffled_auc_high, strict=True))


def test_random_directions_reach_what_their_share_of_the_planted_one_gives(found: Diagnostics) -> None:
    """A random unit vector has about 1/sqrt(hidden) of it: |d'| of about length / sqrt(hidden) / spread * 0.8."""
    figures = found.sites["mlp"]
    expected = LENGTHS[3] / math.sqrt(HIDDEN) / math.hypot(NOISE, SHARED) * math.sqrt(2 / math.pi)
    assert figures.random_d_prime[3] == pytest.approx(expected, rel=0.3)
    assert all(area >= 0.5 for area in figures.random_auc_low), "the better sign is taken"
    assert figures.random_auc[0] == pytest.approx(0.52, abs=0.02), "near 0.5 where hardly anything is planted"


def test_noise_is_not_taken_for_a_direction() -> None:
    """More dimensions than prompts: the prompts a direction is made from would be separated perfectly."""
    sides = planted(0.0, n=60, hidden=512)
    figures = diagnose(in_chunks(sides, 20)).sites["mlp"]
    unit, _ = direction(*sides["mlp"])
    seen = [(side * unit).sum(-1).T for side in sides["mlp"]]
    assert float(auc(seen[0], seen[1])) > 0.9
    assert figures.auc[0] == pytest.approx(0.5, abs=0.12)
    assert figures.resample_cosine[0] == pytest.approx(0.5, abs=0.04)
    assert figures.fresh_cosine[0] < 0.15
    assert figures.norm[0] == pytest.approx(figures.noise[0], rel=0.1)


def test_what_all_activations_have_in_common_does_not_matter() -> None:
    """Real ones share a component far longer than what differs; the folds' directions see different bits of it."""
    toward, away = planted(3.0, n=50, hidden=64)["mlp"]
    common = 300 * torch.nn.functional.normalize(torch.randn(64, generator=torch.Generator().manual_seed(1)), dim=0)
    plain = diagnose(lambda: [{"mlp": (toward, away)}]).sites["mlp"]
    moved = diagnose(lambda: [{"mlp": (toward + common, away + common)}]).sites["mlp"]
    assert moved.auc == pytest.approx(plain.auc, abs=2e-3)
    assert moved.d_prime == pytest.approx(plain.d_prime, rel=1e-3)
    assert moved.shuffled_auc == pytest.approx(plain.shuffled_auc, abs=2e-3)


def test_similarity_is_the_cosine_of_the_directions(found: Diagnostics) -> None:
    figures = found.sites["mlp"]
    unit, _ = direction(*planted(*LENGTHS, n=N, hidden=HIDDEN)["mlp"])
    for a in range(4):
        for b in range(4):
            assert figures.cosine(a, b) == pytest.approx(float(unit[a] @ unit[b]), abs=1e-5)


def test_two_sides_that_are_the_same_are_no_direction_and_no_crash() -> None:
    side = torch.randn(12, 2, 8, generator=torch.Generator().manual_seed(0))
    figures = diagnose(lambda: [{"block": (side, side.clone())}]).sites["block"]
    assert figures.norm == (0.0, 0.0)
    assert figures.auc == (0.5, 0.5)
    assert figures.d_prime == (0.0, 0.0)
    assert figures.fresh_cosine == (0.0, 0.0)


# Streaming


@settings(max_examples=10)
@given(st.lists(st.integers(1, 70), min_size=1, max_size=5))
def test_the_size_of_the_chunks_does_not_matter(sizes: list[int]) -> None:
    sides = planted(1.0, 3.0, n=75, hidden=8)
    assert diagnose(in_chunks(sides, *sizes), resamples=10) == diagnose(lambda: [sides], resamples=10)


def test_the_same_seed_gives_the_same_figures_and_another_one_others() -> None:
    chunks = in_chunks(planted(1.0, n=40, hidden=8), 40)
    assert diagnose(chunks, seed=3) == diagnose(chunks, seed=3)
    assert diagnose(chunks, seed=3).sites != diagnose(chunks, seed=4).sites


def state_bytes(n: int) -> int:
    """Bytes of all tensors that are held at the end of both passes."""
    config = module._Settings(seed=0, resamples=5, shuffles=2, random_directions=3, folds=5)
    (toward, away), draws = planted(1.0, n=n, hidden=8)["mlp"], module._Draws(config)
    sums = module._Sums(toward, config)
    sums.add(toward, away, draws.next(n), "mlp")
    second, draws, counts = module._Second(sums, config, n), module._Draws(config), module._Counts(config, n)
    second.add(toward, away, draws.next(n), *counts.next(n))
    held = [*vars(sums).values(), *vars(second).values(), *second._projected]
    return sum(t.untyped_storage().nbytes() for t in held if isinstance(t, torch.Tensor))


def test_the_state_does_not_grow_with_the_number_of_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PROJECTED", 50)
    assert state_bytes(50) == state_bytes(1000)


def test_chunks_are_let_go_when_they_have_been_added() -> None:
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def chunks() -> Iterator[Sides]:
        nonlocal most
        for number in range(12):
            most = max(most, sum(ref() is not None for ref in alive))
            chunk = planted(1.0, n=32, hidden=8, seed=number)
            alive.append(weakref.ref(chunk["mlp"][0]))
            yield chunk
            del chunk

    diagnose(chunks, resamples=4)
    assert most <= 2


def test_the_sums_begin_before_all_chunks_are_read() -> None:
    read: list[int] = []

    def chunks() -> Iterator[Sides]:
        for number in range(100):
            read.append(number)
            yield planted(1.0, n=10, hidden=8, seed=number)

    _, size = next(module._slabs(chunks()))
    assert len(read) == -(-size // 10) < 10


def test_every_resample_draws_as_many_prompts_as_there_are() -> None:
    config = module._Settings(seed=1, resamples=200, shuffles=1, random_directions=1, folds=2)
    counts, _ = module._Counts(config, 90).next(90)
    assert counts.sum(0).tolist() == [90] * 200
    assert counts.var(0).mean().item() == pytest.approx(1.0, abs=0.05)  # a multinomial draw: variance 1 - 1/n
    assert counts[:45].sum(0).mean().item() == pytest.approx(45, abs=1.5), "early prompts are not preferred"


def test_only_so_many_prompts_are_projected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PROJECTED", 40)
    found = diagnose(in_chunks(planted(6.0, n=200, hidden=8), 64))
    assert (found.n, found.projected) == (200, 40)
    assert found.sites["mlp"].own_higher[0] * 40 == pytest.approx(round(found.sites["mlp"].own_higher[0] * 40))


@pytest.mark.parametrize("n", [2, 3, 7])
def test_a_handful_of_prompts_gives_figures_all_the_same(n: int) -> None:
    found = diagnose(in_chunks(planted(5.0, n=n, hidden=8), 4))
    assert (found.n, found.folds) == (n, min(5, n))
    assert 0 <= found.sites["mlp"].auc[0] <= 1


# What cannot be diagnosed


def spoiled(value: float) -> Sides:
    sides = planted(1.0, 1.0, n=9, hidden=8)
    sides["mlp"][1][4, 1, 2] = value
    return sides


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        (list, "0 contrast prompts cannot be diagnosed"),
        (lambda: [planted(1.0, n=1, hidden=8)], "1 contrast prompts cannot be diagnosed"),
        (lambda: [spoiled(float("nan"))], "block 1, site mlp, are not finite"),
        (lambda: [spoiled(float("inf"))], "block 1, site mlp, are not finite"),
        (lambda: [planted(1.0, n=4), {"block": planted(1.0, n=4)["mlp"]}], "holds the sites"),
        (lambda: [{"mlp": (torch.zeros(4, 1, 8), torch.zeros(4, 2, 8))}], "of the shapes"),
    ],
)
def test_activations_that_cannot_be_are_refused(chunks: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        diagnose(chunks)


def test_passes_that_differ_are_refused() -> None:
    sizes = iter([10, 9])
    with pytest.raises(DataError, match="second pass gave 9 prompts, the first 10"):
        diagnose(lambda: [planted(1.0, n=next(sizes), hidden=8)])


# How many prompts are needed


@given(st.floats(0.05, 20), st.floats(0.5, 5), st.integers(5, 500), st.floats(0.6, 0.99))
def test_the_prompts_needed_are_just_enough(signal: float, spread: float, n: int, cosine: float) -> None:
    noise = spread / math.sqrt(n)
    needed = prompts_needed(math.hypot(signal, noise), noise, n, cosine=cosine)
    assert needed is not None

    def reached(prompts: int) -> float:
        v = spread**2 / prompts
        return (signal**2 + v) / (signal**2 + 2 * v)

    assert reached(needed) >= cosine - 1e-6
    assert needed == n or reached(needed - 1) < cosine + 1e-6


def test_no_number_of_prompts_is_named_for_noise() -> None:
    assert prompts_needed(0.9, 1.0, 40, cosine=0.95) is None


# The statistics


def columns(draw: list[list[int]]) -> torch.Tensor:
    return torch.tensor(draw, dtype=torch.float32)


SAMPLE = st.lists(st.integers(-4, 4), min_size=2, max_size=12)


@given(SAMPLE, SAMPLE)
def test_auc_is_the_share_of_pairs_and_mann_whitney_s_u(low: list[int], high: list[int]) -> None:
    area = float(auc(columns([low]), columns([high])))
    pairs = [(h > x) + 0.5 * (h == x) for x in low for h in high]
    assert area == pytest.approx(sum(pairs) / len(pairs))
    assert area == pytest.approx(mannwhitneyu(high, low).statistic / len(pairs))
    assert area == pytest.approx(1 - float(auc(columns([high]), columns([low]))))


@given(SAMPLE, st.data())
def test_the_interval_holds_the_auc(low: list[int], data: st.DataObject) -> None:
    high = data.draw(st.lists(st.integers(-4, 4), min_size=len(low), max_size=len(low)))
    both = columns([low]), columns([high])
    start, end = auc_interval(*both)
    assert 0 <= float(start) <= float(auc(*both)) + 1e-12
    assert float(auc(*both)) - 1e-12 <= float(end) <= 1


@pytest.mark.parametrize(("apart", "shared"), [(0.0, 0.0), (1.0, 0.0), (1.0, 2.0), (3.0, 0.5)])
def test_the_interval_holds_the_true_auc_about_as_often_as_it_says(apart: float, shared: float) -> None:
    generator = torch.Generator().manual_seed(5)
    common = shared * torch.randn(1000, 60, generator=generator)
    toward = common + torch.randn(1000, 60, generator=generator)
    away = common + torch.randn(1000, 60, generator=generator) + apart
    true = NormalDist().cdf(apart / math.sqrt(2 * (1 + shared**2)))
    low, high = auc_interval(toward, away)
    covered = float(((low <= true) & (true <= high)).double().mean())
    assert 0.92 <= covered <= 0.99


@given(st.integers(2, 1000), st.floats(0.01, 0.99))
def test_the_ends_of_the_score_interval_solve_its_equation(n: int, area: float) -> None:
    for end in score_interval(area, n):
        v = end * (1 - end) / n**2 * (1 + (n - 1) * ((1 - end) / (2 - end) + end / (1 + end)))
        assert abs(area - end) == pytest.approx(1.959964 * math.sqrt(v), rel=1e-6)


def test_a_perfect_separation_is_not_certain() -> None:
    low, high = auc_interval(torch.zeros(1, 200), torch.ones(1, 200))
    assert float(low) == pytest.approx(1 - 1.96**2 / 400, abs=0.001)
    assert float(high) == 1.0


@given(SAMPLE, SAMPLE, st.integers(-5, 5), st.integers(1, 9))
def test_d_prime_does_not_depend_on_origin_and_scale(low: list[int], high: list[int], shift: int, scale: int) -> None:
    moved = d_prime(columns([low]) * scale + shift, columns([high]) * scale + shift)
    assert float(moved) == pytest.approx(float(d_prime(columns([low]), columns([high]))), rel=1e-5, abs=1e-9)


def test_d_prime_is_the_distance_in_standard_deviations() -> None:
    assert float(d_prime(columns([[-1, 1]]), columns([[2, 4]]))) == pytest.approx(3 / math.sqrt(2))


# The file


@pytest.fixture(scope="module")
def small() -> Diagnostics:
    return diagnose(in_chunks(planted(1.0, 2.0, 3.0, n=20, hidden=8), 7), resamples=5)


def test_what_is_written_is_what_is_read(small: Diagnostics, tmp_path: Path) -> None:
    write_diagnostics(small, tmp_path / "diagnostics.json")
    assert read_diagnostics(tmp_path / "diagnostics.json") == small


def test_missing_diagnostics_are_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingError):
        read_diagnostics(tmp_path / "diagnostics.json")


@pytest.mark.parametrize(
    "change",
    [
        {"format": "something"},
        {"version": 99},
        {"n": "many"},
        {"sites": {}},
        {"sites": []},
        {"auc": [0.5]},
        {"auc": None},
        {"auc": [0.5, "x", 0.5]},
        {"auc": [0.5, float("nan"), 0.5]},
        {"similarity": [[0.1], [0.2], []]},
    ],
)
def test_damaged_diagnostics_are_refused(small: Diagnostics, tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "diagnostics.json"
    write_diagnostics(small, path)
    raw = json.loads(path.read_text())
    for key, value in change.items():
        (raw["sites"]["mlp"] if key in raw["sites"]["mlp"] else raw)[key] = value
    path.write_text(json.dumps(raw))
    with pytest.raises(ArtifactError, match="diagnostics"):
        read_diagnostics(path)


def test_sites_of_different_models_are_refused(small: Diagnostics, tmp_path: Path) -> None:
    other = diagnose(in_chunks(planted(1.0, n=20, hidden=8), 7), resamples=5).sites["mlp"]
    write_diagnostics(replace(small, sites={"mlp": small.sites["mlp"], "block": other}), tmp_path / "d.json")
    with pytest.raises(ArtifactError, match="different models"):
        read_diagnostics(tmp_path / "d.json")
