"""The semantic judge's weights: how they turn features into probabilities, and their files. Knows nothing of training.

A folder holds `weights.safetensors` (the tensors), `judge.json` (what they were trained on and how well they did),
`predictions.jsonl` (for every labelled answer, what a fit that had not seen its scenario said) and a manifest.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karma_electric.core.artifact import hash_text, is_whole, read_json, read_manifest
from karma_electric.core.errors import ArtifactError, MissingError
from karma_electric.core.jsonl import read_jsonl
from karma_electric.core.resources import resource_root
from karma_electric.redteam.scorers.features import BLOCKS, PLAIN, VERSION
from karma_electric.redteam.signals import OUTCOMES, Outcome

if TYPE_CHECKING:
    from numpy.typing import NDArray

KIND = "judge"
TENSORS = "weights.safetensors"
ABOUT = "judge.json"
PREDICTIONS = "predictions.jsonl"
SHIPPED = "judge-semantic"  # below suites/
PLAIN_WEIGHT = 1.5  # how much more the similarities and counts weigh than one block of vectors
_AGAIN = "Train it: karma judge train suites/labelled-*.jsonl OUT"
_CLIP = 3.0  # standard deviations: what is further out than the training answers is taken for that far


@dataclass(frozen=True)
class Scaling:
    """Centres and scales of features, from the answers that were trained on.

    Attributes:
        vector_mean: [BLOCKS x width]; `vector_scale` [BLOCKS]: root mean squared length of each block around it.
        plain_mean, plain_scale: [PLAIN].
    """

    vector_mean: NDArray[Any]
    vector_scale: NDArray[Any]
    plain_mean: NDArray[Any]
    plain_scale: NDArray[Any]

    @classmethod
    def of(cls, vectors: NDArray[Any], plain: NDArray[Any]) -> Scaling:
        """Fitted to answers: vectors [n, BLOCKS x width], plain [n, PLAIN]."""
        import numpy as np

        mean = vectors.mean(axis=0)
        blocks = (vectors - mean).reshape(len(vectors), BLOCKS, -1)
        scale = np.sqrt((blocks**2).sum(axis=2).mean(axis=0))
        return cls(mean, np.maximum(scale, 1e-6), plain.mean(axis=0), plain.std(axis=0) + 1e-6)

    def apply(self, vectors: NDArray[Any], plain: NDArray[Any]) -> NDArray[Any]:
        """[n, BLOCKS x width + PLAIN], ready for the linear layer."""
        import numpy as np

        blocks = (vectors - self.vector_mean).reshape(len(vectors), BLOCKS, -1) / self.vector_scale[None, :, None]
        counts = np.clip((plain - self.plain_mean) / self.plain_scale, -_CLIP, _CLIP)
        return np.concatenate(
            [blocks.reshape(len(vectors), -1), PLAIN_WEIGHT * counts / np.sqrt(plain.shape[1])], axis=1
        )


@dataclass(frozen=True)
class Weights:
    """A trained judge.

    Attributes:
        scaling: of the features.
        coefficients: [OUTCOMES, features]; `intercepts` [OUTCOMES].
        intercepts: see there.
        temperature: logits are divided by it, so that confidences are right as often as they say.
        threshold: an outcome with a lower probability is not given.
    """

    scaling: Scaling
    coefficients: NDArray[Any]
    intercepts: NDArray[Any]
    temperature: float
    threshold: float

    def probabilities(self, vectors: NDArray[Any], plain: NDArray[Any]) -> NDArray[Any]:
        """[n, OUTCOMES], calibrated."""
        logits = self.scaling.apply(vectors, plain) @ self.coefficients.T + self.intercepts
        return softmax(logits / self.temperature)


@dataclass(frozen=True)
class Prediction:
    """What a fit that had not seen an answer's scenario said of it: a line of predictions.jsonl."""

    key: str
    outcome: Outcome
    confidence: float
    probabilities: dict[str, float]


@dataclass(frozen=True)
class TrainedJudge:
    """Weights, what is known of them, and their predictions on the answers they were trained on, by key."""

    weights: Weights
    about: dict[str, Any]
    predictions: dict[str, Prediction]
    id: str


def key_of(scenario_id: str, response: str) -> str:
    """Names an answer whatever file it stands in."""
    return hash_text(f"{scenario_id}\0{response.strip()}")[:24]


def softmax(logits: NDArray[Any]) -> NDArray[Any]:
    """Over the last axis."""
    import numpy as np

    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


def decide(probabilities: NDArray[Any], threshold: float) -> tuple[Outcome, float]:
    """The likeliest outcome and its probability; unscored where that is below the threshold."""
    best = int(probabilities.argmax())
    confidence = float(probabilities[best])
    return (OUTCOMES[best] if confidence >= threshold else "unscored"), confidence


def save_tensors(weights: Weights, path: Path) -> None:
    """Write weights.safetensors, in float32: the same training gives the same bytes."""
    import numpy as np
    from safetensors.numpy import save_file

    scaling = weights.scaling
    tensors = {
        "coefficients": weights.coefficients,
        "intercepts": weights.intercepts,
        "vector_mean": scaling.vector_mean,
        "vector_scale": scaling.vector_scale,
        "plain_mean": scaling.plain_mean,
        "plain_scale": scaling.plain_scale,
        "temperature": np.array([weights.temperature]),
        "threshold": np.array([weights.threshold]),
    }
    save_file({name: np.ascontiguousarray(value, dtype=np.float32) for name, value in tensors.items()}, path)


def find_weights(spec: str) -> Path:
    """The folder of a semantic judge, by the name that it has in a recipe.

    Raises:
        MissingError: there is none.
    """
    _, _, rest = spec.partition(":")
    folder = Path(rest) if rest else resource_root("suites") / SHIPPED
    if not (folder / ABOUT).is_file():
        raise MissingError(f"{folder} holds no {ABOUT}: it is not a trained judge.", _AGAIN)
    return folder


def load_judge(folder: Path | None = None) -> TrainedJudge:
    """Read a trained judge; the shipped one when no folder is given.

    Raises:
        MissingError: no such folder, or none that `karma judge train` wrote.
        ArtifactError: it is damaged, or of features that this version does not compute.
    """
    from safetensors.numpy import load_file

    place = find_weights(f"semantic:{folder or ''}")
    if not is_whole(place):
        raise ArtifactError(f"{place} is not whole: files are missing or of another size.", _AGAIN)
    about = read_json(place / ABOUT)
    if about.get("features") != VERSION or about.get("plain") != list(PLAIN):
        raise ArtifactError(
            f"{place} was trained on {len(about.get('plain', ()))} features of version {about.get('features')}, this "
            f"version computes {len(PLAIN)} of version {VERSION}.",
            _AGAIN,
        )
    try:
        tensors = load_file(place / TENSORS)
        if tensors["coefficients"].shape[1] != len(tensors["vector_mean"]) + len(PLAIN):
            raise ValueError("its shapes do not fit together")
        weights = Weights(
            scaling=Scaling(
                tensors["vector_mean"], tensors["vector_scale"], tensors["plain_mean"], tensors["plain_scale"]
            ),
            coefficients=tensors["coefficients"],
            intercepts=tensors["intercepts"],
            temperature=float(tensors["temperature"][0]),
            threshold=float(tensors["threshold"][0]),
        )
        rows = [Prediction(**row) for _, row in read_jsonl(place / PREDICTIONS)]
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise ArtifactError(f"{place} is not what training writes ({error}).", _AGAIN) from None
    return TrainedJudge(weights, about, {row.key: row for row in rows}, read_manifest(place).id)
