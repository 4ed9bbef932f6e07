"""`karma axis convert`: moving between projects by hand, what it says, and what it leaves alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

import foreign_steering as foreign
import tiny
from karma_electric.core.artifact import MANIFEST, damage, read_manifest
from karma_electric.models.chat_template import template_sha256
from karma_electric.models.refs import resolve
from karma_electric.steer.axis import load_axis, save_axis
from karma_electric.steer.cap import capped
from karma_electric.steer.compat import differences
from karma_electric.steer.spec import CapSpec, load_cap, load_spec, save_spec
from test_cli import Ended, karma_here

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Run = Any
CAPS = {2: -1.5, 3: 0.25, 4: 7.0}


@pytest.fixture
def convert(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `karma axis convert` in this process."""

    def run(*words: object) -> Ended:
        return karma_here(monkeypatch, capsys, "axis", "convert", *words)

    return run


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The original's axis for the tiny model, with its stats in the same folder."""
    axis = foreign.vectors(tiny.LAYERS, tiny.HIDDEN)
    foreign.original_stats(tmp_path, CAPS, hidden_size=tiny.HIDDEN)
    return foreign.original_axis(tmp_path, axis)


def test_the_originals_files_become_a_cap_for_the_named_model(
    convert: Run, source: Path, tiny_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    out = source.parent / "ours"
    words = ("--from", "original", "--thresholds", source.parent / "axis_stats.json", "--model", tiny_path)
    before = set(source.parent.iterdir())
    ended = convert(source, out, "--to", "karma", *words)
    assert ended.code == 0, ended.err
    assert set(source.parent.iterdir()) - before == {out}
    cap, axis = load_cap(out)
    assert (cap.spec.site, cap.spec.thresholds, cap.spec.alpha) == ("block", CAPS, 0.5)
    assert cap.spec.method["from"] == "original"
    fingerprint, template = resolve(str(tiny_path)).fingerprint, template_sha256(tokenizer)
    assert differences(cap.spec, axis, fingerprint=fingerprint, template=template, dtype="float32") == []
    assert (read_manifest(out).kind, damage(out)) == ("axis", [])


def test_without_a_model_the_axis_warns_wherever_it_is_used(convert: Run, source: Path) -> None:
    ended = convert(source, source.parent / "ours", "--from", "original", "--to", "karma")
    assert "unknown" in ended.out
    axis = load_axis(source.parent / "ours" / "axis.safetensors")
    spec = CapSpec("", "block", (2,), {2: 0.0}, 0.5)
    warnings = differences(spec, axis, fingerprint="x", template="y", dtype="float32")
    assert [text.split(":")[0] for text in warnings] == [
        "The cap does not say which model it was made for",
        "The cap does not say which chat template it was made under",
    ]


def test_an_imported_cap_acts_as_the_originals_hook_does(
    convert: Run, source: Path, fresh_model: PreTrainedModel
) -> None:
    """The original's hook, written out: after the block, along the unit vector, in the tensors it saved."""
    ids = torch.tensor([[5, 9, 40, 77, 120, 33]])
    axis = torch.load(source, weights_only=True)
    plain = [h[0] for h in tiny.residuals(fresh_model, ids, "block")]
    taus = {layer: float((plain[layer] @ (axis[layer] / axis[layer].norm())).median()) for layer in (2, 4)}
    file = foreign.original_thresholds(source.parent, taus)
    convert(source, source.parent / "ours", "--from", "original", "--thresholds", file, "--to", "karma")

    def hook(layer: int) -> Any:
        v = axis[layer] / axis[layer].norm()
        return lambda _, __, h: h - 0.5 * (h @ v - taus[layer]).clamp_min(0.0).unsqueeze(-1) * v

    with torch.no_grad():
        handles = [fresh_model.model.layers[layer].register_forward_hook(hook(layer)) for layer in taus]
        expected = fresh_model(ids).logits
        for handle in handles:
            handle.remove()
        with capped(fresh_model, load_cap(source.parent / "ours")[0]):
            found = fresh_model(ids).logits
        bare = fresh_model(ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (bare - expected).abs().max() > 0.01, "the cap acts at all"


def test_the_output_says_in_plain_words_what_was_turned_around_and_lost(convert: Run, tmp_path: Path) -> None:
    path = foreign.paper_axis(tmp_path / "assistant_axis.pt", foreign.vectors())
    out = convert(path, tmp_path / "ours", "--to", "karma").out
    assert "as paper-axis (it is a dict with the key `axis`)" in out
    assert "toward-persona in the source, away-from-persona in the output: every vector is negated" in out
    assert "the residual stream after the block" in out
    assert "blocks 0-5 of 6, counted from 0" in out
    out = convert(tmp_path / "ours", tmp_path / "v.gguf", "--to", "control-vector", "--layers", "0-3").out
    assert "lost     block 0: llama.cpp has no direction for it" in out
    assert "direction.N is block N" in out


def test_the_same_can_be_had_as_json(convert: Run, tmp_path: Path) -> None:
    path = foreign.capping_config(tmp_path / "c.pt", foreign.vectors(), {"a": CAPS})
    ended = convert(path, tmp_path / "a.gguf", "--to", "acap", "--json")
    report = json.loads(ended.out)
    assert report["orientation"] == {"source": "away-from-persona", "out": "away-from-persona", "negated": False}
    assert report["thresholds"] == {"source": "ceiling", "out": "ceiling"}
    assert (report["from"], report["layers"], report["capped"], report["site"]) == (
        "paper-capping",
        [2, 3, 4],
        [2, 3, 4],
        "block",
    )
    assert report["files"] == ["a.gguf"]


def test_experiments_are_listed_when_none_is_named(convert: Run, tmp_path: Path) -> None:
    path = foreign.capping_config(tmp_path / "c.pt", foreign.vectors(), {"p0.25": CAPS, "p0.5": CAPS})
    ended = convert(path, tmp_path / "ours", "--to", "karma", "--blocks", 6)
    assert ended.code == 2
    assert "p0.25, p0.5" in ended.err
    assert not (tmp_path / "ours").exists()
    assert convert(path, tmp_path / "ours", "--to", "karma", "--blocks", 6, "--experiment", "p0.5").code == 0
    assert load_axis(tmp_path / "ours" / "axis.safetensors").blocks == (2, 3, 4)


def test_the_same_again_changes_nothing_and_something_else_needs_force(convert: Run, source: Path) -> None:
    for name, to in (("ours", "karma"), ("axis.gguf", "control-vector")):
        out = source.parent / name
        words = (source, out, "--from", "original", "--to", to)
        assert convert(*words).code == 0
        file = out / MANIFEST if out.is_dir() else out
        before = (file.stat().st_mtime_ns, file.read_bytes())
        assert convert(*words).code == 0
        assert (file.stat().st_mtime_ns, file.read_bytes()) == before
        assert convert(*words, "--layers", "2-3").code == 2
        assert file.read_bytes() == before[1]
        assert convert(*words, "--layers", "2-3", "--force").code == 0
        assert file.read_bytes() != before[1]


def test_a_cap_at_the_mlp_site_has_nothing_to_be_converted_to_in_a_folder_of_ours(convert: Run, tmp_path: Path) -> None:
    source, out = tmp_path / "axis", tmp_path / "out"
    source.mkdir()
    save_axis(tiny.random_axis(), source / "axis.safetensors")
    save_spec(CapSpec("axis.safetensors", "mlp", (2,), {2: 0.0}, 0.5), source / "cap.json")
    refused = convert(source, out, "--to", "karma")
    refused.refused(2, "is one of our folders already", "for the site 'mlp'", "cp -r", "--site block")
    assert "every other format caps" not in refused.err
    assert [path.name for path in tmp_path.iterdir()] == ["axis"]
    ended = convert(source, out, "--to", "karma", "--site", "block")
    assert ended.code == 0, ended.err
    assert not (out / "cap.json").exists()


def test_a_cap_at_the_mlp_site_goes_out_as_directions_only_when_asked(convert: Run, tmp_path: Path) -> None:
    save_axis(tiny.random_axis(), tmp_path / "axis.safetensors")
    save_spec(CapSpec("axis.safetensors", "mlp", (2,), {2: 0.0}, 0.5), tmp_path / "cap.json")
    refused = convert(tmp_path / "cap.json", tmp_path / "v.gguf", "--to", "control-vector")
    assert refused.code == 2
    assert "'mlp'" in refused.err
    assert "--site block" in refused.err
    assert not (tmp_path / "v.gguf").exists()
    words = (tmp_path / "cap.json", tmp_path / "v.gguf", "--site", "block")
    assert convert(*words, "--to", "control-vector").code == 0
    assert convert(*words, "--to", "acap", "--force").code == 2, "a cap without thresholds is none"


def test_a_model_of_another_shape_is_refused(convert: Run, tmp_path: Path, tiny_path: Path) -> None:
    words = ("--from", "original", "--to", "karma", "--model", tiny_path)
    narrow = foreign.original_axis(tmp_path, foreign.vectors(tiny.LAYERS, 8))
    ended = convert(narrow, tmp_path / "ours", *words)
    assert ended.code == 2
    assert f"hidden size of {tiny.HIDDEN}" in ended.err
    shallow = foreign.original_axis(tmp_path, foreign.vectors(tiny.LAYERS - 1, tiny.HIDDEN))
    ended = convert(shallow, tmp_path / "ours", *words)
    assert ended.code == 2
    assert f"not for a model of {tiny.LAYERS}" in ended.err


def test_a_known_model_is_not_renamed(convert: Run, tmp_path: Path, tiny_path: Path) -> None:
    save_axis(tiny.random_axis(), tmp_path / "axis.safetensors")
    out = convert(tmp_path, tmp_path / "copy", "--to", "karma", "--model", tiny_path).out
    assert "extracted from another model" in out
    assert load_axis(tmp_path / "copy" / "axis.safetensors").model == "tiny"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--to", "gguf"), "no format 'gguf'"),
        (("--to", "karma", "--from", "pt"), "no format 'pt'"),
        (("--to", "karma"), "more than one format"),
        (("--to", "karma", "--from", "original", "--orientation", "up"), "--orientation is 'up'"),
        (("--to", "karma", "--from", "original", "--layers", "5-2"), "--layers is '5-2'"),
        (("--to", "karma", "--from", "original", "--layers", "all"), "--layers is 'all'"),
        (("--to", "karma", "--from", "original", "--site", "mlp"), "--site is 'mlp'"),
        (("--to", "acap", "--from", "original"), "no thresholds"),
        (("--to", "acap", "--from", "original", "--blocks", "7"), "not for a model of 7"),
    ],
)
def test_wrong_words_are_answered_with_the_right_ones(
    convert: Run, source: Path, words: tuple[str, ...], message: str
) -> None:
    ended = convert(source, source.parent / "out", *words)
    assert ended.code == 2
    assert message in ended.err
    assert not (source.parent / "out").exists()


def test_a_payload_ends_with_exit_code_2_and_a_missing_file_with_3(convert: Run, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "mark",)

    torch.save(Payload(), tmp_path / "evil.pt")
    ended = convert(tmp_path / "evil.pt", tmp_path / "ours", "--to", "karma")
    assert ended.code == 2
    assert "Nothing was run" in ended.err
    assert not (tmp_path / "mark").exists()
    assert convert(tmp_path / "nothing.pt", tmp_path / "ours", "--to", "karma").code == 3
    assert convert(tmp_path, tmp_path / "no" / "x.gguf", "--to", "karma").code == 2


def test_an_imported_cap_is_read_like_any_other(convert: Run, source: Path) -> None:
    convert(source, source.parent / "ours", "--from", "original", "--thresholds", source.parent / "axis_stats.json",
            "--to", "karma")  # fmt: skip
    spec = load_spec(source.parent / "ours" / "cap.json")
    assert spec.layers == (2, 3, 4)
    assert spec.method["name"] == "imported"
