"""The embedded sentence model, loaded once for all tests that ask for it."""

from __future__ import annotations

from functools import cache as once

from karma_electric.models.sentences import SentenceModel


@once
def sentence_model(*, cache: bool = False) -> SentenceModel:
    """The model; with vectors kept on disk only where a whole corpus is embedded."""
    return SentenceModel.load(device="cpu", cache=cache)
