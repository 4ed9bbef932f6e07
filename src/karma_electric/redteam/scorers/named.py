"""Judges by the names that recipes and commands give them."""

from __future__ import annotations

from pathlib import Path

from karma_electric.core.errors import InputError
from karma_electric.redteam.scorers.protocol import Scorer

SPECS = (
    "signals, semantic, semantic:FOLDER, llm:PROVIDER/MODEL, labels:FILE, ensemble:A+B, signals-original, and "
    "over-refusal for harmless requests"
)


def open_scorer(spec: str, *, base_url: str | None = None, samples: int | None = None) -> Scorer:
    """The judge of a name, loaded.

    Args:
        spec: see SPECS.
        base_url: address of an `llm` judge's API.
        samples: replies per case of an `llm` judge.

    Raises:
        InputError: no such judge.
        MissingError: what it needs is not installed or not there.
        ArtifactError: its weights cannot be used.
    """
    kind, _, rest = spec.partition(":")
    if spec == "signals":
        from karma_electric.redteam.scorers.signals import SignalsScorer

        return SignalsScorer()
    if spec == "signals-original":
        from karma_electric.redteam.scorers.signals import OriginalScorer

        return OriginalScorer()
    if spec == "over-refusal":
        from karma_electric.redteam.scorers.over_refusal import OverRefusalScorer

        return OverRefusalScorer()
    if kind == "semantic" and (rest or spec == kind):
        from karma_electric.redteam.scorers.semantic import SemanticScorer

        return SemanticScorer.load(Path(rest) if rest else None, spec=spec)
    if kind == "labels" and rest:
        from karma_electric.redteam.scorers.labels import LabelsScorer

        return LabelsScorer(rest)
    if kind == "llm" and rest:
        from karma_electric.redteam.scorers.llm import SAMPLES, LlmScorer

        return LlmScorer(rest, base_url=base_url, samples=samples or SAMPLES)
    if kind == "ensemble" and rest:
        members = rest.split("+")
        if len(members) < 2 or len(set(members)) < len(members) or any(m.startswith("ensemble") for m in members):
            raise InputError(
                f"{spec!r} is no ensemble: it needs two different judges or more, none of them an ensemble.",
                "Write for example ensemble:signals+semantic",
            )
        from karma_electric.redteam.scorers.ensemble import EnsembleScorer

        return EnsembleScorer([open_scorer(member, base_url=base_url, samples=samples) for member in members])
    raise InputError(f"{spec!r} is no judge.", f"Expected one of: {SPECS}.")
