"""The verdict on an axis: which sentence, how serious, and about which block."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from karma_electric.core.errors import InputError
from karma_electric.steer.diagnose import diagnose
from karma_electric.steer.diagnostics import Diagnostics, SiteDiagnostics
from karma_electric.steer.verdict import Finding, judge, overall, span
from test_diagnose import planted

GOOD = {
    "norm": 10.0,
    "noise": 1.0,
    "resample_cosine": 0.99,
    "resample_cosine_low": 0.98,
    "resample_cosine_high": 0.996,
    "auc": 0.99,
    "auc_low": 0.97,
    "auc_high": 0.996,
    "d_prime": 4.0,
    "random_d_prime": 0.5,
    "random_d_prime_high": 1.2,
    "shuffled_auc": 0.51,
    "shuffled_auc_high": 0.58,
}
LAYERS = 6
CAPPED = [3, 4]


def diagnostics(n: int = 200, cosine: float = 0.95, **at_block_4: float) -> Diagnostics:
    """Good figures at every block, but for those given at block 4; the same cosine between all blocks."""
    values: dict[str, Any] = {
        f.name: tuple(GOOD.get(f.name, 0.5) for _ in range(LAYERS)) for f in fields(SiteDiagnostics)
    }
    for name, value in at_block_4.items():
        values[name] = (*values[name][:4], value, *values[name][5:])
    values["similarity"] = tuple((cosine,) * (LAYERS - 1 - row) for row in range(LAYERS))
    return Diagnostics(
        n=n,
        projected=n,
        seed=0,
        resamples=100,
        shuffles=20,
        random_directions=50,
        folds=5,
        sites={"mlp": SiteDiagnostics(**values)},
    )


def said(found: Diagnostics, level: str) -> str:
    """All sentences of one level."""
    findings = judge(found, "mlp", CAPPED, what="capped blocks")
    return "\n".join(finding.text for finding in findings if finding.level == level)


def test_a_good_axis_is_ok() -> None:
    findings = judge(diagnostics(), "mlp", CAPPED, what="capped blocks")
    assert overall(findings) == "ok"
    text = said(diagnostics(), "ok")
    assert "200 prompts are enough: two resamples agree at cosine 0.99 (0.98 to 0.996)" in text
    assert "(AUC 0.99, 0.97 to 0.996, at block 3, the least of the capped blocks 3-4) is far above" in text
    assert "shuffled labels (0.51, 95% up to 0.58)" in text
    assert "better than a random direction: d' 4.0" in text
    assert "the directions at capped blocks 3-4 are nearly the same (cosine at least 0.95)" in text


def test_too_few_prompts_are_unstable_and_the_number_that_is_needed_is_named() -> None:
    few = diagnostics(
        40, norm=1.5, noise=1.0, resample_cosine=0.71, resample_cosine_low=0.62, resample_cosine_high=0.79
    )
    text = said(few, "unstable")
    assert "40 prompts are too few: two resamples agree at cosine 0.71 (0.62 to 0.79) at block 4" in text
    assert "at least 0.95 is expected, which takes about 580 prompts" in text  # 40 * 1 / (1.5^2 - 1) * 0.9 / 0.05


def test_nearly_stable_is_a_warning() -> None:
    found = diagnostics(60, norm=3.5, resample_cosine=0.93)
    assert "60 prompts are too few" in said(found, "warning")
    assert said(found, "unstable") == ""


def test_a_difference_no_longer_than_noise_is_no_direction() -> None:
    text = said(diagnostics(norm=1.02, noise=1.0, resample_cosine=0.52), "unstable")
    assert "show no direction at block 4" in text
    assert "only 1.02 times as long as noise alone" in text
    assert "takes about" not in text


@pytest.mark.parametrize(
    ("area", "low", "level", "words"),
    [
        (0.57, 0.50, "unstable", "not shown to be real at block 4"),
        (0.70, 0.57, "warning", "above shuffled labels (0.51, 95% up to 0.58), but not clearly"),
        (0.70, 0.60, "ok", "far above shuffled labels"),
    ],
)
def test_separation_is_held_against_shuffled_labels(area: float, low: float, level: str, words: str) -> None:
    assert words in said(diagnostics(auc=area, auc_low=low), level)


def test_sides_that_overlap_are_a_warning() -> None:
    assert "overlap at block 4: AUC 0.70 at block 4, so 30% of pairs are the wrong way round" in said(
        diagnostics(auc=0.70, auc_low=0.62), "warning"
    )


def test_a_random_direction_that_does_as_well_is_named() -> None:
    text = said(diagnostics(d_prime=1.1), "unstable")
    assert "not distinguishable from a random direction at block 4: d' 1.1" in text
    assert "95% up to 1.2" in text


def test_directions_that_turn_are_described() -> None:
    text = said(diagnostics(cosine=0.6), "ok")
    assert "neighbours agree at cosine 0.60 to 0.60, the first and the last at 0.60" in text


def test_where_the_sides_are_furthest_apart_is_said() -> None:
    figures = diagnostics().sites["mlp"]
    found = replace(diagnostics(), sites={"mlp": replace(figures, d_prime=(4.0, 9.0, 4.0, 4.0, 5.0, 4.0))})
    assert "furthest apart at block 1 (d' 9.0), outside the capped blocks 3-4 (at most 5.0, at block 4)" in said(
        found, "ok"
    )


def test_directions_that_are_not_known_are_not_described_further() -> None:
    found = diagnostics(d_prime=0.1)
    assert said(diagnostics(), "ok").count("furthest apart") == 1
    assert "furthest apart" not in said(found, "ok")
    assert "nearly the same" not in said(found, "ok")


def test_few_prompts_make_the_intervals_rough() -> None:
    assert "with 10 prompts the intervals below are themselves only rough" in said(diagnostics(10), "warning")
    assert "rough" not in said(diagnostics(20), "warning")


def test_what_is_wrong_elsewhere_does_not_count() -> None:
    spoiled = diagnostics(auc=0.5, auc_low=0.4, d_prime=0.1, resample_cosine=0.5)
    assert overall(judge(spoiled, "mlp", [0, 1, 2])) == "ok"
    assert overall(judge(spoiled, "mlp", [0, 4])) == "unstable"


def test_pure_noise_is_not_taken_for_an_axis() -> None:
    found = diagnose(lambda: [planted(0.0, 0.0, n=80, hidden=256)])
    text = "\n".join(f.text for f in judge(found, "mlp", [0, 1]) if f.level == "unstable")
    assert "80 prompts show no direction" in text
    assert "not shown to be real" in text
    assert "not distinguishable from a random direction" in text


def test_a_strong_direction_is_ok_and_the_same_one_with_few_prompts_is_not() -> None:
    def level(n: int) -> str:
        return overall(judge(diagnose(lambda: [planted(6.0, 6.0, n=n, hidden=256)]), "mlp", [0, 1]))

    assert level(400) == "ok"
    assert level(8) == "unstable"


def test_prompts_needed_are_about_those_that_suffice() -> None:
    """The number named at 40 prompts, tried: the resamples then agree as expected."""
    few = diagnose(lambda: [planted(6.0, n=40, hidden=256)])
    (text,) = [f.text for f in judge(few, "mlp", [0]) if "too few" in f.text]
    needed = int(text.split("takes about ")[1].split()[0])
    assert needed == pytest.approx(18 * 2 * 256 / 36, rel=0.25)  # 18 T / s
    enough = diagnose(lambda: [planted(6.0, n=needed, hidden=256, seed=1)])
    assert enough.sites["mlp"].resample_cosine[0] == pytest.approx(0.95, abs=0.01)


@pytest.mark.parametrize(("site", "layers"), [("block", [1]), ("mlp", []), ("mlp", [6]), ("mlp", [-1])])
def test_blocks_that_are_not_there_are_refused(site: Any, layers: list[int]) -> None:
    with pytest.raises(InputError):
        judge(diagnostics(), site, layers)


def test_the_most_serious_finding_decides() -> None:
    assert overall([Finding("ok", ""), Finding("unstable", ""), Finding("warning", "")]) == "unstable"
    assert overall([]) == "ok"


@pytest.mark.parametrize(("layers", "text"), [([21, 22, 23], "21-23"), ([3, 7, 8], "3, 7-8"), ([5], "5")])
def test_blocks_are_named_as_ranges(layers: list[int], text: str) -> None:
    assert span(layers) == text


def test_figures_that_are_not_1_do_not_look_like_it() -> None:
    figures = diagnostics().sites["mlp"]
    found = replace(diagnostics(), sites={"mlp": replace(figures, auc=(0.9996,) * LAYERS)})
    assert "AUC 0.9996" in said(found, "ok")
