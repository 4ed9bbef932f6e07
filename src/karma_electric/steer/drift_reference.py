"""What drift is measured in: the spread of the model's own answers, and the level above which an answer alarms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from karma_electric.core.artifact import canonical_json, hash_file, hash_text, read_json, write_json
from karma_electric.core.errors import ArtifactError, DataError, MissingError
from karma_electric.core.progress import Progress
from karma_electric.models.blocks import context_length
from karma_electric.models.refs import cache_root
from karma_electric.steer.conversation_drift import project, render_all, turn_drifts
from karma_electric.steer.responses import FILE, load_responses
from karma_electric.steer.spec import Cap

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from karma_electric.models.turns import Rendered

TAIL = 0.01  # share of ordinary answers that exceed the default alarm level
_VERSION = 1  # of the cached file


@dataclass(frozen=True)
class Reference:
    """What drift is measured in and held against.

    Attributes:
        scales: block -> standard deviation of the projection over the tokens of answers.
        ordinary: mean drift of each held-out answer under the deployment prompt, in rising order; empty where a cap
            has no responses.
    """

    scales: dict[int, float]
    ordinary: tuple[float, ...]


@dataclass(frozen=True)
class Alarm:
    """A level of an answer's mean drift, and where it comes from, for people."""

    level: float
    source: str

    @classmethod
    def at(cls, level: float) -> Alarm:
        """A level that somebody chose."""
        return cls(level, "as given")

    @classmethod
    def from_ordinary(cls, reference: Reference, tail: float = TAIL) -> Alarm:
        """The mean drift that a share `tail` of the ordinary answers exceed: their quantile, linear between
        neighbours. Without ordinary answers it is 0, the ceiling itself.
        """
        if not reference.ordinary:
            return cls(0.0, "the ceiling itself")
        n = len(reference.ordinary)
        return cls(
            quantile(reference.ordinary, 1.0 - tail), f"the mean that {100 * tail:g}% of {n} ordinary answers exceed"
        )


def reference_for(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    cap: Cap,
    cap_file: Path,
    fingerprint: str,
    *,
    progress: Progress,
) -> Reference | None:
    """The reference from the responses beside a cap; None where there are none.

    The model reads its responses once; what comes out is kept in the cache folder ($KARMA_CACHE) under a hash of the
    cap, the axis, the responses and the model.

    Args:
        model: the model that is measured, with no cap acting.
        tokenizer: its tokenizer.
        cap: the cap.
        cap_file: its cap.json, in the folder that holds axis and responses.jsonl.
        fingerprint: of the model.
        progress: told about the reading.
    """
    responses = cap_file.parent / FILE
    if not responses.is_file() or not load_responses(responses):
        return None
    key = {
        "version": _VERSION,
        "cap": hash_file(cap_file),
        "axis": hash_file(cap_file.parent / cap.spec.axis),
        "responses": hash_file(responses),
        "model": fingerprint,
        "dtype": str(model.dtype),
    }
    cached = cache_root() / "drift" / f"{hash_text(canonical_json(key))[:16]}.json"
    known = _read(cached)
    if known is not None:
        return known
    found = measure_reference(model, tokenizer, cap, responses, progress=progress)
    cached.parent.mkdir(parents=True, exist_ok=True)
    scales = {str(layer): s for layer, s in found.scales.items()}
    write_json(cached, {"scales": scales, "ordinary": list(found.ordinary)})
    return found


def measure_reference(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cap: Cap, responses: Path, *, progress: Progress
) -> Reference:
    """Scales from the calibration answers, ordinary drift from the held-out ones.

    Answers under other prompts than the deployment's (generic, adversarial) are no ordinary ones and left out. Without
    a split of its own, either is taken from all answers.

    Raises:
        DataError: the answers have no spread.
    """
    members = [r for r in load_responses(responses) if r.text.strip()]
    members = [r for r in members if r.kind == "deployment"] or members
    conversations = {f"{number} {r.split} {r.id}": r.conversation for number, r in enumerate(members)}
    rendered = render_all(tokenizer, conversations, context_length(model))
    projections = project(model, tokenizer, cap, rendered, progress=progress)

    def split(name: str) -> list[int]:
        return [i for i, r in enumerate(members) if r.split == name] or list(range(len(members)))

    scales = spread([rendered[i] for i in split("calibration")], [projections[i] for i in split("calibration")], cap)
    means = [turn_drifts(rendered[i], projections[i], cap, scales)[-1].drift.mean for i in split("heldout")]
    return Reference(scales, tuple(sorted(mean for mean in means if mean is not None)))


def own_reference(rendered: Sequence[Rendered], projections: Sequence[torch.Tensor], cap: Cap) -> Reference:
    """Scales from the answers that are measured themselves, for a cap without responses.

    Good for a look at one transcript; not comparable between transcripts.
    """
    return Reference(spread(rendered, projections, cap), ())


def spread(rendered: Sequence[Rendered], projections: Sequence[torch.Tensor], cap: Cap) -> dict[int, float]:
    """Block -> standard deviation of the projection over all tokens of all answers, in float64.

    Raises:
        DataError: it is zero, or there are not two tokens.
    """
    import torch

    tokens = [
        values[[at for turn in one.turns if turn.role == "assistant" for at in turn.tokens if at > 0]]
        for one, values in zip(rendered, projections, strict=True)
    ]
    deviations = torch.cat(tokens).double().std(dim=0).tolist()
    if not all(math.isfinite(s) and s > 0 for s in deviations):
        raise DataError("The answers have too few tokens to tell their spread.", "Give a longer transcript.")
    return dict(zip(cap.spec.layers, deviations, strict=True))


def quantile(values: Sequence[float], q: float) -> float:
    """The q-quantile, linear between neighbours."""
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def _read(path: Path) -> Reference | None:
    """A cached reference; None where there is none, or a damaged one."""
    try:
        raw = read_json(path)
        scales = {int(layer): float(s) for layer, s in raw["scales"].items()}
        return Reference(scales, tuple(sorted(float(mean) for mean in raw["ordinary"])))
    except (MissingError, ArtifactError, KeyError, TypeError, ValueError, AttributeError):
        return None
