"""The axis: extracted like the definition says, whatever the batching and the kills, and read back only when sound."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

import tiny
from karma_electric.core.errors import ArtifactError, MissingError
from karma_electric.core.messages import system, user
from karma_electric.models.blocks import SITES, Site
from karma_electric.models.chat_template import prompt_ids, template_sha256
from karma_electric.steer import extract as extraction
from karma_electric.steer.axis import Axis, direction, load_axis, require_fits, save_axis
from karma_electric.steer.contrast import ContrastSet
from karma_electric.steer.extract import Sides, extract, forget_chunks, iter_chunks
from karma_electric.steer.moments import separation
from karma_electric.steer.spec import AXIS_FILE, Cap, CapSpec

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CONTRAST = ContrastSet(prompts=tiny.prompts(30), toward=tiny.PERSONA, away=tiny.AWAY)  # two chunks: 25 and 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the axis is extracted."""
    return tmp_path_factory.mktemp("axis")


@pytest.fixture(scope="module")
def extracted(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Axis:
    """The axis of the tiny model, extracted once, uninterrupted."""
    return extract(model, tokenizer, CONTRAST, folder, fingerprint="tiny")


def all_sides(out: Path) -> Sides:
    """The chunks of an extraction in one piece."""
    chunks = list(iter_chunks(out))
    return {
        site: (torch.cat([chunk[site][0] for chunk in chunks]), torch.cat([chunk[site][1] for chunk in chunks]))
        for site in SITES
    }


def last_prompt_residuals(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, system_prompt: str, prompt: str, site: Site
) -> torch.Tensor:
    """The residual streams [n_layers, hidden] at the last token of one prompt, alone in its batch, in float64."""
    ids = torch.tensor([prompt_ids(tokenizer, [system(system_prompt), user(prompt)])])
    read = [h[0, -1].double() for h in tiny.residuals(model, ids, site)]
    if site == "block":
        with torch.no_grad():
            states = model(input_ids=ids, output_hidden_states=True).hidden_states
        # hidden_states[0] is the embedding; the last one is after the final norm, so the hook's is kept there
        read[:-1] = [h[0, -1].double() for h in states[1:-1]]
        with torch.no_grad():
            torch.testing.assert_close(model.model.norm(read[-1].float()), states[-1][0, -1])
    return torch.stack(read)


# Extraction


@pytest.mark.parametrize("site", SITES)
def test_extraction_equals_the_definition_one_prompt_at_a_time(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, extracted: Axis, site: Site
) -> None:
    toward, away = [], []
    for prompt in CONTRAST.prompts:
        generic = [last_prompt_residuals(model, tokenizer, text, prompt.text, site) for text in CONTRAST.away]
        toward.append(last_prompt_residuals(model, tokenizer, CONTRAST.toward, prompt.text, site))
        away.append(torch.stack(generic).mean(0))
    expected = (torch.stack(away) - torch.stack(toward)).mean(0)
    v = extracted.directions[site].double()
    assert torch.nn.functional.cosine_similarity(v, expected, dim=-1).min() > 1 - 1e-9
    torch.testing.assert_close(extracted.norms[site].double(), expected.norm(dim=-1), rtol=1e-5, atol=0)
    projections = torch.stack([(torch.stack(side) * v).sum(-1) for side in (toward, away)])  # in the prompts' order
    torch.testing.assert_close(extracted.projections[site].double(), projections, rtol=1e-4, atol=1e-3)


def test_the_axis_says_what_it_was_made_from(tokenizer: PreTrainedTokenizerBase, extracted: Axis, folder: Path) -> None:
    axis = extracted
    assert (axis.n_layers, axis.hidden, axis.n) == (tiny.LAYERS, tiny.HIDDEN, 30)
    assert (axis.model, axis.template_sha256) == ("tiny", template_sha256(tokenizer))
    assert (axis.position, axis.toward, axis.away) == ("last-prompt", tiny.PERSONA, tiny.AWAY)
    assert axis.stats["shortened"] == axis.stats["left_out"] == []
    sides = all_sides(folder)
    for site in SITES:
        assert [side.shape for side in sides[site]] == [(30, tiny.LAYERS, tiny.HIDDEN)] * 2
        torch.testing.assert_close(direction(*sides[site])[0], axis.directions[site])


@pytest.mark.parametrize("batch_tokens", [1, 300])
def test_batching_does_not_matter(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    extracted: Axis,
    tmp_path: Path,
    batch_tokens: int,
) -> None:
    axis = extract(model, tokenizer, CONTRAST, tmp_path, fingerprint="tiny", batch_tokens=batch_tokens)
    for site in SITES:
        torch.testing.assert_close(axis.directions[site], extracted.directions[site], rtol=1e-4, atol=1e-6)


class Killed(Exception):
    """Stands for a kill in the middle of a forward pass."""


def count_passes(model: PreTrainedModel, *, die_in_pass: int | None = None) -> tuple[list[int], Any]:
    """Count forward passes of the decoder, and die in one of them."""
    passes: list[int] = []

    def hook(*_: Any) -> None:
        passes.append(1)
        if len(passes) == die_in_pass:
            raise Killed

    return passes, model.get_decoder().register_forward_pre_hook(hook)


def test_a_killed_extraction_continues_with_the_next_chunk(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(extraction, "_CHUNK", 4)
    contrast = replace(CONTRAST, prompts=CONTRAST.prompts[:10])  # chunks of 4, 4 and 2 prompts, 4 renderings of each

    def run(folder: Path) -> Axis:
        return extract(model, tokenizer, contrast, folder, fingerprint="tiny", batch_tokens=1)  # 1 pass a rendering

    whole = run(tmp_path / "whole")
    _, handle = count_passes(model, die_in_pass=40)  # in the last chunk
    with pytest.raises(Killed):
        run(tmp_path / "cut")
    handle.remove()
    passes, handle = count_passes(model)
    again = run(tmp_path / "cut")
    handle.remove()
    prefixes = 4 + 2  # one for each system prompt, and one prompt with and without
    assert len(passes) == prefixes + 2 * 4, "only the chunk that was cut off is computed again"
    assert again.stats == whole.stats
    for site in SITES:
        assert torch.equal(again.directions[site], whole.directions[site])
        assert torch.equal(again.norms[site], whole.norms[site])
        assert torch.equal(again.projections[site], whole.projections[site])


def test_the_chunks_are_forgotten_when_asked(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    few = replace(CONTRAST, prompts=CONTRAST.prompts[:4])
    extract(model, tokenizer, few, tmp_path, fingerprint="tiny")
    assert list(tmp_path.rglob("*.safetensors"))
    forget_chunks(tmp_path)
    assert list(tmp_path.iterdir()) == []
    forget_chunks(tmp_path)  # nothing left: no error


def test_extraction_leaves_no_hook_behind(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    before = tiny.hook_count(model)
    few = replace(CONTRAST, prompts=CONTRAST.prompts[:4])
    extract(model, tokenizer, few, tmp_path, fingerprint="tiny")
    assert tiny.hook_count(model) == before


# Directions and their diagnostics


def test_a_direction_points_away_from_the_persona() -> None:
    toward = torch.tensor([[[1.0, 0.0]], [[1.0, 2.0]]])  # [2 prompts, 1 layer, 2]
    away = torch.tensor([[[4.0, 1.0]], [[4.0, 9.0]]])
    unit, norm = direction(toward, away)
    assert torch.allclose(unit, torch.tensor([[0.6, 0.8]]))  # mean of (3, 1) and (3, 7) is (3, 4)
    assert torch.allclose(norm, torch.tensor([5.0]))
    assert ((away - toward).mean(0) * unit).sum() > 0


def test_small_differences_survive_beside_large_ones() -> None:
    """The mean is taken in float64: float32 has no 2^24 + 1."""
    toward, away = torch.zeros(102, 1, 2), torch.ones(102, 1, 2)
    away[0, 0], away[-1, 0] = torch.tensor([2.0**24, 0.0]), torch.tensor([-(2.0**24), 0.0])
    unit, norm = direction(toward, away)  # both axes sum up to 100
    assert torch.allclose(unit, torch.full((1, 2), 0.5**0.5))
    assert norm.item() == pytest.approx(2**0.5 * 100 / 102)


def test_separation_of_two_clouds_is_their_distance_in_standard_deviations() -> None:
    generator = torch.Generator().manual_seed(0)
    toward, away = torch.randn(2, 4000, 2, generator=generator)  # projections on the directions of two blocks
    away[:, 0] += 3.0  # block 0: three standard deviations apart; block 1: not apart
    stats = separation(toward, away)
    assert stats["d_prime"][0] == pytest.approx(3.0, abs=0.15)
    assert stats["d_prime"][1] == pytest.approx(0.0, abs=0.15)
    assert stats["away_higher"][0] == pytest.approx(0.983, abs=0.01)  # P(N(3, 2) > 0)
    assert stats["away_higher"][1] == pytest.approx(0.5, abs=0.05)


# The file


def test_what_is_saved_is_what_is_loaded(extracted: Axis, tmp_path: Path) -> None:
    axis = extracted
    save_axis(axis, tmp_path / "axis.safetensors")
    loaded = load_axis(tmp_path / "axis.safetensors")
    for site in SITES:
        assert torch.equal(loaded.directions[site], axis.directions[site])
        assert torch.equal(loaded.norms[site], axis.norms[site])
        assert torch.equal(loaded.projections[site], axis.projections[site])
    assert replace(loaded, directions={}, norms={}, projections={}) == replace(
        axis, directions={}, norms={}, projections={}
    )


def rewrite(path: Path, *, drop: str = "", tensors: dict[str, torch.Tensor] | None = None, **metadata: str) -> None:
    """Write the axis file again with something else in it."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        held = {name: file.get_tensor(name) for name in file.keys()} | (tensors or {})  # noqa: SIM118
        described = file.metadata() | metadata
    held.pop(drop, None)
    described.pop(drop, None)
    save_file(held, path, described)


@pytest.fixture
def axis_file(tmp_path: Path) -> Path:
    save_axis(tiny.random_axis(), tmp_path / "axis.safetensors")
    return tmp_path / "axis.safetensors"


def spoiled(**at: float) -> torch.Tensor:
    vectors = tiny.random_axis().directions["mlp"].clone()
    vectors[2] = vectors[2] * at["scale"] if "scale" in at else vectors[2]
    if "value" in at:
        vectors[2, 5] = at["value"]
    return vectors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"orientation": "toward-persona"}, "orientation 'toward-persona'"),
        ({"format": "repeng"}, "not an axis"),
        ({"tensors": {"direction.mlp": spoiled(value=float("nan"))}}, "direction.mlp is not a set of unit vectors"),
        ({"tensors": {"direction.mlp": spoiled(value=float("inf"))}}, "direction.mlp is not a set of unit vectors"),
        ({"tensors": {"direction.mlp": spoiled(scale=0.0)}}, "direction.mlp is not a set of unit vectors"),
        ({"tensors": {"direction.mlp": spoiled(scale=1.1)}}, "direction.mlp is not a set of unit vectors"),
        ({"tensors": {"direction.mlp": torch.ones(1)}}, "direction.mlp is not a set of unit vectors"),
        ({"tensors": {"direction.mlp": spoiled()[:3].clone()}}, "not the same blocks"),
        ({"drop": "norm.mlp"}, "norm.mlp"),
        ({"tensors": {"norm.mlp": torch.ones(2)}}, "norms and directions have not the same blocks"),
        ({"blocks": "[0, 1, 2, 3, 4]"}, "direction.mlp is not a set of unit vectors"),  # block 5 is not zero
        ({"blocks": "[0, 1, 2, 3, 4, 5, 6]"}, "direction.mlp is not a set of unit vectors"),
        ({"blocks": "[2, 1]"}, r"its list of blocks is '\[2, 1\]'"),
        ({"blocks": "[1, 1]"}, "its list of blocks"),
        ({"blocks": "[-1]"}, "its list of blocks"),
        ({"blocks": "[true]"}, "its list of blocks"),
        ({"blocks": "[]"}, "its list of blocks"),
        ({"blocks": "all"}, "its list of blocks"),
        ({"drop": "template_sha256"}, "template_sha256"),
        ({"away": "[not json"}, "missing or damaged"),
        ({"n": "many"}, "missing or damaged .*'many'"),
    ],
)
def test_an_unsound_axis_is_refused(axis_file: Path, change: dict[str, Any], message: str) -> None:
    rewrite(axis_file, **change)
    with pytest.raises(ArtifactError, match=message):
        load_axis(axis_file)


def partial_axis(blocks: tuple[int, ...]) -> Axis:
    """The random axis with zero rows outside some blocks."""
    axis = tiny.random_axis()
    absent = [layer for layer in range(axis.n_layers) if layer not in blocks]
    for tensors in (axis.directions, axis.norms):
        for tensor in tensors.values():
            tensor[absent] = 0.0
    return replace(axis, blocks=blocks)


def test_an_axis_may_lack_blocks_when_it_says_which_it_has(tmp_path: Path) -> None:
    axis = partial_axis((2, 4))
    save_axis(axis, tmp_path / "axis.safetensors")
    loaded = load_axis(tmp_path / "axis.safetensors")
    assert (loaded.blocks, loaded.n_layers) == ((2, 4), tiny.LAYERS)
    assert torch.equal(loaded.directions["block"], axis.directions["block"])


def test_an_axis_that_lacks_blocks_without_saying_so_is_refused(tmp_path: Path) -> None:
    save_axis(replace(partial_axis((2, 4)), blocks=None), tmp_path / "axis.safetensors")
    with pytest.raises(ArtifactError, match="not a set of unit vectors"):
        load_axis(tmp_path / "axis.safetensors")


def test_an_axis_that_lacks_a_block_it_names_is_refused(tmp_path: Path) -> None:
    save_axis(replace(partial_axis((2, 4)), blocks=(2, 3, 4)), tmp_path / "axis.safetensors")
    with pytest.raises(ArtifactError, match="not a set of unit vectors"):
        load_axis(tmp_path / "axis.safetensors")


def test_a_cap_of_a_block_without_a_direction_is_refused() -> None:
    axis = partial_axis((2, 4))
    assert set(Cap.of(CapSpec(AXIS_FILE, "mlp", (2, 4), {2: 0.0, 4: 0.0}, 0.5), axis).directions) == {2, 4}
    with pytest.raises(ArtifactError, match=r"no direction for the blocks \[3\]"):
        Cap.of(CapSpec(AXIS_FILE, "mlp", (2, 3), {2: 0.0, 3: 0.0}, 0.5), axis)


def test_an_axis_of_nothing_is_refused(tmp_path: Path) -> None:
    save_axis(replace(tiny.random_axis(), directions={}, norms={}), tmp_path / "axis.safetensors")
    with pytest.raises(ArtifactError, match="holds no directions"):
        load_axis(tmp_path / "axis.safetensors")


def test_a_direction_of_no_length_does_not_become_an_axis(tmp_path: Path) -> None:
    """Toward and away that render alike give zero vectors: they are never written over with something plausible."""
    same = torch.ones(4, 2, 8)
    unit, _ = direction(same, same)
    axis = replace(tiny.random_axis(), directions={"mlp": unit}, norms={"mlp": unit.norm(dim=-1)})
    save_axis(axis, tmp_path / "axis.safetensors")
    with pytest.raises(ArtifactError, match="not a set of unit vectors"):
        load_axis(tmp_path / "axis.safetensors")


@pytest.mark.parametrize("keep", [0, 5, 100, -50])
def test_a_torn_file_is_refused(axis_file: Path, keep: int) -> None:
    axis_file.write_bytes(axis_file.read_bytes()[:keep])
    with pytest.raises(ArtifactError, match="not a safetensors file"):
        load_axis(axis_file)


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    path = tmp_path / "axis.safetensors"
    torch.save({"direction.mlp": torch.ones(2, 2)}, path)
    with pytest.raises(ArtifactError, match="not a safetensors file"):
        load_axis(path)


def test_a_missing_axis_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="karma run RECIPE --to axis"):
        load_axis(tmp_path / "axis.safetensors")


def test_an_axis_fits_only_a_model_of_its_shape() -> None:
    require_fits(tiny.random_axis(), n_layers=6, hidden=64)
    for n_layers, hidden in ((7, 64), (6, 32)):
        with pytest.raises(ArtifactError, match="for 6 blocks of hidden size 64"):
            require_fits(tiny.random_axis(), n_layers=n_layers, hidden=hidden)
