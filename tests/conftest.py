"""What every test can ask for: the tiny model on disk, its tokenizer, and the model itself. Nothing uses a network."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "Agg"
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # a core for each worker: threads that wait for a core they share waste both

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

import tiny

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

settings.register_profile("karma", deadline=None, derandomize=True)
settings.load_profile("karma")


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny checkpoint. Read only: it is shared."""
    import torch

    torch.set_num_threads(1)  # a matrix of 64 x 64 is not worth a second core
    return tiny.write_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_gguf(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint as a GGUF file in float32. Read only: it is shared."""
    from karma_electric.export.gguf import export_gguf

    out = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    export_gguf(tiny_path, out, file_type="f32", name="tiny")
    return out


@pytest.fixture(scope="session")
def tokenizer(tiny_path: Path) -> PreTrainedTokenizerBase:
    """The tiny tokenizer, as the package loads it."""
    from karma_electric.models.loading import load_tokenizer

    return load_tokenizer(tiny_path)


@pytest.fixture(scope="session")
def model(tiny_path: Path) -> PreTrainedModel:
    """The tiny model in float32, shared: a test that changes it asks for `fresh_model`."""
    from karma_electric.models.loading import load_model

    return load_model(tiny_path, dtype="float32", device="cpu")


@pytest.fixture
def fresh_model(tiny_path: Path) -> PreTrainedModel:
    """The tiny model in float32, for this test alone."""
    from karma_electric.models.loading import load_model

    return load_model(tiny_path, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def few_resamples() -> Iterator[None]:
    """Comparisons bootstrap with a tenth of the draws: for tests of what is said, not of how wide an interval is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("karma_electric.redteam.comparing.RESAMPLES", 1000)
        patch.setattr("evidence_page.facts.RESAMPLES", 1000)
        patch.setattr("evidence_page.tables.RESAMPLES", 1000)
        yield
