"""Steering formats: what other projects' files mean is kept through every conversion, and said the right way round."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import foreign_steering as foreign
import tiny
from karma_electric.core.errors import ArtifactError, InputError, MissingError
from karma_electric.steer.axis import load_axis, require_blocks, save_axis
from karma_electric.steer.formats import acap, control_vector, karma, original, paper
from karma_electric.steer.formats.registry import FORMATS, detect, with_blocks
from karma_electric.steer.formats.registry import read as read_as
from karma_electric.steer.formats.registry import write as write_as
from karma_electric.steer.formats.steering import (
    AWAY,
    MAX_BYTES,
    TOWARD,
    ReadOptions,
    Steering,
    blocks_text,
    finished,
    flipped,
    oriented,
)
from karma_electric.steer.hooks import corrected, excess, push
from karma_electric.steer.spec import CapSpec, load_cap, save_spec

PLAIN = ReadOptions()
CAPS = {2: -1.5, 3: 0.25, 4: 7.0}  # exact in float32
UNIT_ROUNDING = 3e-7  # a float32 direction times its float32 length: two roundings


def rows(axis: torch.Tensor) -> dict[int, torch.Tensor]:
    return dict(enumerate(axis))


def same(left: Steering, right: Steering, *, rtol: float = 0.0) -> None:
    """The same blocks, vectors, thresholds and orientation; bit for bit when `rtol` is 0."""
    assert left.orientation == right.orientation
    assert left.layers == right.layers
    for layer in left.layers:
        scale = float(left.vectors[layer].norm())
        torch.testing.assert_close(left.vectors[layer], right.vectors[layer], rtol=0, atol=rtol * scale)
    assert dict(left.thresholds) == dict(right.thresholds)


# Orientation and bounds


def floor(h: torch.Tensor, v: torch.Tensor, t: float, alpha: float) -> torch.Tensor:
    """A floor, written out: what is missing up to t is added along v."""
    return h + alpha * (t - h @ v).clamp_min(0.0).unsqueeze(-1) * v


def act(steering: Steering, h: torch.Tensor, layer: int, alpha: float) -> torch.Tensor:
    """What a file does to a residual stream [tokens, hidden] at one of its blocks."""
    v = steering.vectors[layer] / steering.vectors[layer].norm()
    t = steering.thresholds[layer]
    return corrected(h, excess(h, v, t), push(v, alpha)) if steering.orientation == AWAY else floor(h, v, t, alpha)


seeds = st.integers(0, 2**31)
heights = st.floats(-20, 20, width=32)


@given(seeds, heights, st.floats(0, 1))
def test_a_floor_along_v_at_t_is_a_ceiling_along_minus_v_at_minus_t(seed: int, t: float, alpha: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    toward = Steering({3: torch.randn(16, generator=generator)}, TOWARD, {3: t})
    h = 10 * torch.randn(50, 16, generator=generator)
    torch.testing.assert_close(act(toward, h, 3, alpha), act(flipped(toward), h, 3, alpha), rtol=1e-5, atol=1e-4)


@given(seeds, heights)
def test_turning_a_file_around_twice_changes_no_bit(seed: int, t: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    steering = Steering({1: torch.randn(8, generator=generator)}, AWAY, {1: t}, alpha=0.5, n_layers=3)
    twice = flipped(flipped(steering))
    same(twice, steering)
    assert (twice.alpha, twice.n_layers) == (0.5, 3)


def test_only_what_points_the_other_way_is_turned_around() -> None:
    steering = Steering({1: torch.ones(4)}, AWAY, {1: 2.0})
    assert oriented(steering, AWAY) is steering
    turned = oriented(steering, TOWARD)
    assert turned.orientation == TOWARD
    assert torch.equal(turned.vectors[1], -torch.ones(4))
    assert turned.thresholds == {1: -2.0}


# Round trips: every format, random contents

layer_sets = st.sets(st.integers(1, 11), min_size=1)


@st.composite
def steerings(draw: st.DrawFn) -> Steering:
    """Any cap away from a persona, of a model of 12 blocks; block 0 is left out, GGUF files have none."""
    layers = sorted(draw(layer_sets))
    generator = torch.Generator().manual_seed(draw(seeds))
    scale = draw(st.sampled_from([1e-3, 1.0, 1e4]))
    return Steering(
        {layer: scale * torch.randn(16, generator=generator) for layer in layers},
        AWAY,
        {layer: draw(heights) for layer in layers},
        alpha=1.0,
        n_layers=12,
    )


def through(name: str, steering: Steering, folder: Path, options: ReadOptions = PLAIN) -> Steering:
    """Write in a format and read back, pointing the way it was."""
    target = FORMATS[name]
    place = folder if target.folder else folder / "file"
    write_as(target, steering, place)
    return oriented(read_as(target, place, options), steering.orientation)


@pytest.mark.parametrize("name", ["original", "paper-axis", "paper-capping", "control-vector", "acap"])
@given(steering=steerings())
def test_what_is_written_is_read_back_bit_for_bit(
    name: str, steering: Steering, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("round")
    partial = ReadOptions(layers=tuple(steering.layers)) if name in ("original", "paper-axis") else PLAIN
    back = through(name, steering, folder, partial)
    if not FORMATS[name].caps:
        steering = Steering(steering.vectors, AWAY)
    same(back, steering)


@given(steering=steerings())
def test_our_own_folder_keeps_a_vector_to_two_roundings_and_a_threshold_exactly(
    steering: Steering, tmp_path_factory: pytest.TempPathFactory
) -> None:
    back = through("karma", steering, tmp_path_factory.mktemp("round"))
    same(back, steering, rtol=UNIT_ROUNDING)
    assert (back.alpha, back.n_layers) == (1.0, 12)


@given(steering=steerings(), route=st.permutations(["original", "paper-capping", "acap", "karma"]))
def test_a_cap_comes_through_every_format_in_any_order(
    steering: Steering, route: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    current = steering
    for name in route:
        partial = ReadOptions(layers=tuple(steering.layers)) if name == "original" else PLAIN
        current = with_blocks(through(name, current, tmp_path_factory.mktemp("route"), partial), 12)
    same(current, steering, rtol=UNIT_ROUNDING)


# The original's files


def test_the_originals_axis_points_away_and_its_thresholds_are_ceilings(tmp_path: Path) -> None:
    axis = foreign.vectors()
    file = foreign.original_axis(tmp_path, axis)
    steering = original.read(file, ReadOptions(thresholds=foreign.original_thresholds(tmp_path, CAPS)))
    same(steering, Steering(rows(axis), AWAY, CAPS))
    assert (steering.n_layers, steering.alpha, steering.about.position) == (6, 0.5, "last-prompt")
    assert any("alpha is 0.5" in note for note in steering.notes), "what is assumed is said"


def test_a_stats_file_says_more_than_thresholds(tmp_path: Path) -> None:
    stats = foreign.original_stats(tmp_path, CAPS, alpha=0.75)
    steering = original.read(foreign.original_axis(tmp_path, foreign.vectors()), ReadOptions(thresholds=stats))
    assert steering.thresholds == CAPS
    assert steering.alpha == 0.75
    assert (steering.about.toward, steering.about.n) == ("I am Karma.", 200)
    assert steering.about.away == ("You are a helpful AI assistant.", "")


@pytest.mark.parametrize("form", [lambda t: t, lambda t: {"tau": t, "p25": t}])
def test_recalibrated_thresholds_count_where_there_are_some(tmp_path: Path, form: Callable[[float], Any]) -> None:
    again = {str(layer): form(t + 0.5) for layer, t in CAPS.items()}
    stats = foreign.original_stats(tmp_path, CAPS, recalibration_v2={"new_thresholds": again})
    found = original.read_thresholds(stats, MAX_BYTES)
    assert found.values == {layer: t + 0.5 for layer, t in CAPS.items()}
    assert any("recalibrated" in note for note in found.notes)


def test_thresholds_of_blocks_that_are_not_capped_are_left_out_and_named(tmp_path: Path) -> None:
    found = original.read_thresholds(foreign.original_stats(tmp_path, CAPS, capping_layers=[3, 4]), MAX_BYTES)
    assert set(found.values) == {3, 4}
    assert any("blocks 2 are left out" in note for note in found.notes)


def test_a_folder_of_the_original_with_one_set_of_thresholds_needs_no_more_words(tmp_path: Path) -> None:
    foreign.original_axis(tmp_path, foreign.vectors())
    foreign.original_thresholds(tmp_path, CAPS)
    foreign.original_stats(tmp_path, CAPS)
    assert original.read(tmp_path, PLAIN).thresholds == CAPS


def test_thresholds_that_contradict_each_other_are_not_chosen_from(tmp_path: Path) -> None:
    foreign.original_axis(tmp_path, foreign.vectors())
    foreign.original_thresholds(tmp_path, CAPS)
    stats = foreign.original_stats(tmp_path, {2: 9.0})
    with pytest.raises(InputError, match=r"different thresholds.*--thresholds"):
        original.read(tmp_path, PLAIN)
    assert original.read(tmp_path, ReadOptions(thresholds=stats)).thresholds == {2: 9.0}


@pytest.mark.parametrize("key", [int, str])
def test_an_axis_may_be_a_dict_of_block_to_vector(tmp_path: Path, key: type) -> None:
    axis = foreign.vectors()
    torch.save({key(layer): axis[layer] for layer in (2, 5)}, tmp_path / "axis.pt")
    steering = original.read(tmp_path / "axis.pt", PLAIN)
    same(steering, Steering({2: axis[2], 5: axis[5]}, AWAY))
    assert steering.n_layers is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_number_formats_are_read_as_the_numbers_they_are(tmp_path: Path, dtype: torch.dtype) -> None:
    axis = foreign.vectors().to(dtype)
    same(original.read(foreign.original_axis(tmp_path, axis), PLAIN), Steering(rows(axis.float()), AWAY))


def test_what_we_write_is_what_the_originals_scripts_load(tmp_path: Path) -> None:
    axis = foreign.vectors()
    steering = Steering(rows(axis), AWAY, CAPS, alpha=0.5, n_layers=6)
    lost = original.write(steering, tmp_path)
    loaded = torch.load(tmp_path / "bodhisattva_axis.pt", weights_only=True)
    thresholds = torch.load(tmp_path / "bodhisattva_thresholds.pt", weights_only=True)
    stats = json.loads((tmp_path / "axis_stats.json").read_text())
    assert torch.equal(loaded, axis)
    assert thresholds == CAPS
    assert stats["capping_layers"] == [2, 3, 4]
    assert {int(layer): value["tau"] for layer, value in stats["thresholds"].items()} == CAPS
    assert any("22-28" in line for line in lost), "its script has the blocks in its source"


# The paper's files


@pytest.mark.parametrize("wrapped", [True, False])
def test_the_papers_axis_points_toward_the_persona(tmp_path: Path, wrapped: bool) -> None:
    axis, path = foreign.vectors().to(torch.bfloat16), tmp_path / "assistant_axis.pt"
    torch.save(axis, path)
    if wrapped:
        foreign.paper_axis(path, axis)
    steering = paper.read_axis(path, PLAIN)
    same(steering, Steering(rows(axis.float()), TOWARD))
    assert (steering.n_layers, steering.about.position) == (6, "response")


def test_the_papers_axis_is_turned_around_for_ours(tmp_path: Path) -> None:
    axis = foreign.vectors()
    steering = paper.read_axis(foreign.paper_axis(tmp_path / "a.pt", axis), PLAIN)
    karma.write(steering, tmp_path)
    ours = load_axis(tmp_path / "axis.safetensors")
    expected = -axis / axis.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(ours.directions["block"], expected)
    torch.testing.assert_close(ours.norms["block"], axis.norm(dim=-1))
    assert set(ours.directions) == {"block"}


def test_an_experiment_of_a_capping_config_is_a_full_ceiling(tmp_path: Path) -> None:
    axis = foreign.vectors()
    path = foreign.capping_config(tmp_path / "c.pt", axis, {"layers_2:5-p0.25": CAPS})
    steering = paper.read_capping(path, PLAIN)
    same(steering, Steering({layer: axis[layer] for layer in CAPS}, AWAY, CAPS))
    assert (steering.alpha, steering.n_layers) == (1.0, None)


def test_of_several_experiments_one_is_named_and_the_others_are_listed(tmp_path: Path) -> None:
    path = foreign.capping_config(tmp_path / "c.pt", foreign.vectors(), {"p0.25": CAPS, "p0.5": {2: 1.0, 3: 2.0}})
    assert paper.read_capping(path, ReadOptions(experiment="p0.5")).thresholds == {2: 1.0, 3: 2.0}
    with pytest.raises(InputError, match=r"2 experiments: p0\.25, p0\.5\. .*--experiment"):
        paper.read_capping(path, PLAIN)
    with pytest.raises(InputError, match=r"no experiment 'p1': p0\.25, p0\.5"):
        paper.read_capping(path, ReadOptions(experiment="p1"))


@pytest.mark.parametrize("inner", [lambda caps: caps, lambda caps: {"interventions": caps}])
def test_experiments_may_be_a_dict_by_id(tmp_path: Path, inner: Callable[[Any], Any]) -> None:
    caps = [{"vector": "v", "cap": 1.0}]
    torch.save({"vectors": {"v": {"layer": 3, "vector": torch.ones(4)}}, "experiments": {"a": inner(caps)}},
               tmp_path / "c.pt")  # fmt: skip
    assert paper.read_capping(tmp_path / "c.pt", PLAIN).thresholds == {3: 1.0}


def test_interventions_that_are_not_caps_are_left_out_and_counted(tmp_path: Path) -> None:
    interventions = [{"vector": "v", "cap": 1.0}, {"vector": "v", "coefficient": 2.0}]
    config = {
        "vectors": {"v": {"layer": 3, "vector": torch.ones(4)}},
        "experiments": [{"id": "a", "interventions": interventions}],
    }
    torch.save(config, tmp_path / "c.pt")
    steering = paper.read_capping(tmp_path / "c.pt", PLAIN)
    assert steering.thresholds == {3: 1.0}
    assert any("1 interventions" in note for note in steering.notes)


def test_what_we_write_is_a_capping_config_as_the_papers_code_walks_it(tmp_path: Path) -> None:
    axis = foreign.vectors()
    paper.write_capping(Steering(rows(axis), AWAY, CAPS, alpha=1.0, n_layers=6), tmp_path / "c.pt")
    config = torch.load(tmp_path / "c.pt", weights_only=True)
    (experiment,) = config["experiments"]
    assert experiment["id"] == "layers_2:5-karma"
    walked = {}
    for intervention in experiment["interventions"]:
        entry = config["vectors"][intervention["vector"]]
        assert torch.equal(entry["vector"], axis[entry["layer"]])
        walked[entry["layer"]] = float(intervention["cap"])
    assert walked == CAPS


# GGUF


def directions_of(path: Path) -> dict[str, Any]:
    """The tensors of a GGUF file, by the gguf package."""
    return {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}


def field(path: Path, key: str) -> Any:
    found = gguf.GGUFReader(path).get_field(key)
    return None if found is None else found.contents()


def test_a_control_vector_is_written_toward_the_persona_in_its_length(tmp_path: Path) -> None:
    axis = foreign.vectors()
    control_vector.write(Steering(rows(axis), AWAY, n_layers=6), tmp_path / "v.gguf")
    written = directions_of(tmp_path / "v.gguf")
    assert set(written) == {f"direction.{layer}" for layer in range(1, 6)}, "block 0 has no direction in llama.cpp"
    for layer in range(1, 6):
        assert torch.equal(torch.tensor(written[f"direction.{layer}"]), -axis[layer])
    assert field(tmp_path / "v.gguf", "general.architecture") == "controlvector"
    assert field(tmp_path / "v.gguf", "controlvector.layer_count") == 5
    assert field(tmp_path / "v.gguf", "karma.orientation") == "toward-persona"


def test_a_control_vector_of_a_cap_has_the_capped_blocks_and_says_what_is_lost(tmp_path: Path) -> None:
    lost = control_vector.write(Steering(rows(foreign.vectors()), AWAY, CAPS, alpha=0.5), tmp_path / "v.gguf")
    assert set(directions_of(tmp_path / "v.gguf")) == {f"direction.{layer}" for layer in CAPS}
    assert any("thresholds and alpha" in line for line in lost)


def test_a_control_vector_needs_to_be_told_which_way_it_points(tmp_path: Path) -> None:
    axis = foreign.vectors()
    path = foreign.control_vector(tmp_path / "v.gguf", {1: axis[1], 4: axis[4]})
    with pytest.raises(InputError, match=r"does not say which way.*--orientation"):
        control_vector.read(path, PLAIN)
    for orientation in (AWAY, TOWARD):
        found = control_vector.read(path, ReadOptions(orientation=orientation))
        same(found, Steering({1: axis[1], 4: axis[4]}, orientation))
    assert found.about.model_type == "llama"


def test_a_control_vector_of_ours_says_it_and_is_believed(tmp_path: Path) -> None:
    control_vector.write(Steering({2: torch.ones(8)}, AWAY, n_layers=6), tmp_path / "v.gguf")
    found = control_vector.read(tmp_path / "v.gguf", PLAIN)
    assert (found.orientation, found.n_layers) == (TOWARD, 6)
    with pytest.raises(InputError, match=r"says that it points toward-persona"):
        control_vector.read(tmp_path / "v.gguf", ReadOptions(orientation=AWAY))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_control_vectors_are_read(tmp_path: Path, dtype: torch.dtype) -> None:
    vector = foreign.vectors()[2].to(dtype)
    path = foreign.control_vector(tmp_path / "v.gguf", {2: vector})
    assert torch.equal(control_vector.read(path, ReadOptions(orientation=AWAY)).vectors[2], vector.float())


def test_the_forks_axis_holds_ceilings_of_a_full_cap(tmp_path: Path) -> None:
    axis = foreign.vectors()
    path = foreign.acap(tmp_path / "a.gguf", {layer: axis[layer] for layer in CAPS}, CAPS)
    steering = acap.read(path, PLAIN)
    same(steering, Steering({layer: axis[layer] for layer in CAPS}, AWAY, CAPS))
    assert steering.alpha == 1.0


def test_an_older_axis_of_the_fork_takes_its_thresholds_from_the_stats(tmp_path: Path) -> None:
    axis = foreign.vectors()
    path = foreign.acap(tmp_path / "a.gguf", {layer: axis[layer] for layer in CAPS}, {})
    assert acap.read(path, PLAIN).thresholds == {}
    stats = foreign.original_stats(tmp_path, CAPS)
    assert acap.read(path, ReadOptions(thresholds=stats)).thresholds == CAPS


def test_an_axis_for_the_fork_is_no_control_vector_to_others(tmp_path: Path) -> None:
    lost = acap.write(Steering(rows(foreign.vectors()), AWAY, CAPS, alpha=0.5), tmp_path / "a.gguf")
    assert field(tmp_path / "a.gguf", "general.architecture") == "acap"
    assert field(tmp_path / "a.gguf", "controlvector.model_hint") is None, "repeng refuses a file without it"
    assert field(tmp_path / "a.gguf", "acap.threshold.3") == CAPS[3]
    assert any("alpha 0.5" in line for line in lost), "the fork has no soft cap"


def test_the_fork_cannot_cap_block_0(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Block 0 is capped"):
        acap.write(Steering(rows(foreign.vectors()), AWAY, {0: 1.0}, alpha=1.0), tmp_path / "a.gguf")


@pytest.mark.parametrize("write", [acap.write, paper.write_capping])
def test_a_cap_format_is_not_written_without_thresholds(
    tmp_path: Path, write: Callable[[Steering, Path], list[str]]
) -> None:
    with pytest.raises(InputError, match=r"no thresholds"):
        write(Steering({2: torch.ones(4)}, AWAY), tmp_path / "x")


# Our own folder


def our_folder(folder: Path, site: Any) -> Path:
    save_axis(tiny.random_axis(), folder / "axis.safetensors")
    save_spec(CapSpec("axis.safetensors", site, (2, 3), {2: -1.0, 3: 1.0}, 0.5), folder / "cap.json")
    return folder


def test_a_cap_at_the_block_site_is_read_with_its_lengths(tmp_path: Path) -> None:
    axis = tiny.random_axis()
    steering = karma.read(our_folder(tmp_path, "block"), PLAIN)
    raw = axis.directions["block"] * axis.norms["block"].unsqueeze(-1)
    same(steering, Steering(rows(raw), AWAY, {2: -1.0, 3: 1.0}), rtol=UNIT_ROUNDING)
    assert (steering.alpha, steering.about.toward, steering.about.model) == (0.5, tiny.PERSONA, "tiny")


def test_a_cap_at_the_mlp_site_does_not_carry_over(tmp_path: Path) -> None:
    folder = our_folder(tmp_path, "mlp")
    with pytest.raises(InputError, match=r"'mlp'.*thresholds do not carry over.*calibrate --site block"):
        karma.read(folder, PLAIN)
    alone = karma.read(folder, ReadOptions(site="block"))
    assert alone.thresholds == {}
    assert len(alone.layers) == tiny.LAYERS
    assert any("left out" in note for note in alone.notes)


def test_a_file_without_its_models_depth_needs_to_be_told_it(tmp_path: Path) -> None:
    steering = Steering({2: torch.ones(4)}, AWAY, {2: 1.0}, alpha=1.0)
    for write in (karma.write, original.write):
        with pytest.raises(InputError, match=r"--blocks N"):
            write(steering, tmp_path)


@pytest.mark.parametrize("blocks", [2, 7])
def test_a_depth_that_contradicts_the_file_is_refused(blocks: int) -> None:
    with pytest.raises(InputError, match=r"not for a model of"):
        with_blocks(Steering({2: torch.ones(4)}, AWAY, n_layers=6), blocks)


def test_an_imported_cap_with_some_blocks_only_is_a_cap_of_ours(tmp_path: Path) -> None:
    axis = foreign.vectors()
    steering = Steering({2: axis[2], 3: axis[3]}, AWAY, {2: 1.0, 3: 2.0}, alpha=1.0, n_layers=6)
    karma.write(steering, tmp_path)
    cap, ours = load_cap(tmp_path)
    assert (ours.n_layers, ours.blocks) == (6, (2, 3))
    assert (cap.spec.site, cap.spec.layers, cap.spec.thresholds) == ("block", (2, 3), {2: 1.0, 3: 2.0})
    torch.testing.assert_close(cap.directions[2], axis[2] / axis[2].norm())
    require_blocks(ours, [3, 2])
    with pytest.raises(ArtifactError, match=r"no direction for the blocks \[4\]"):
        require_blocks(ours, [3, 4])


# Recognising files


def test_files_are_recognised_by_what_is_in_them(tmp_path: Path) -> None:
    axis = foreign.vectors()
    made = {
        "paper-axis": foreign.paper_axis(tmp_path / "a", axis),
        "paper-capping": foreign.capping_config(tmp_path / "b", axis, {"e": CAPS}),
        "control-vector": foreign.control_vector(tmp_path / "c", {1: axis[1]}),
        "acap": foreign.acap(tmp_path / "d", {1: axis[1]}, {1: 0.0}),
        "original": tmp_path / "o",
        "karma": tmp_path / "k",
    }
    for name in ("original", "karma"):
        made[name].mkdir()
    foreign.original_axis(made["original"], axis)
    our_folder(made["karma"], "block")
    assert {name: detect(path, MAX_BYTES)[0].name for name, path in made.items()} == {name: name for name in made}


def test_a_bare_tensor_may_point_either_way_and_is_not_guessed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"away from the persona.*toward it.*--from"):
        detect(foreign.original_axis(tmp_path, foreign.vectors()), MAX_BYTES)


def test_directions_without_a_word_on_them_are_not_guessed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"more than one format.*--from"):
        detect(foreign.acap(tmp_path / "a", {1: torch.ones(4)}, {}), MAX_BYTES)


def test_what_is_not_there_or_not_known_is_said(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("hello")
    with pytest.raises(ArtifactError, match=r"in no format known here.*paper-capping"):
        detect(tmp_path / "x", MAX_BYTES)
    with pytest.raises(InputError, match=r"holds none"):
        detect(tmp_path, MAX_BYTES)
    with pytest.raises(MissingError):
        detect(tmp_path / "nothing", MAX_BYTES)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("original", ReadOptions(orientation=TOWARD), "point away-from-persona"),
        ("paper-axis", ReadOptions(orientation=AWAY), "point toward-persona"),
        ("paper-axis", ReadOptions(thresholds=Path("x")), "--thresholds is not for"),
        ("acap", ReadOptions(experiment="e"), "--experiment is not for"),
        ("acap", ReadOptions(site="block"), "Only our own folders hold several sites"),
    ],
)
def test_an_option_that_a_format_cannot_use_is_refused(name: str, options: ReadOptions, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_as(FORMATS[name], Path("unread"), options)


def test_an_orientation_that_repeats_the_formats_own_is_accepted(tmp_path: Path) -> None:
    path = foreign.original_axis(tmp_path, foreign.vectors())
    assert read_as(FORMATS["original"], path, ReadOptions(orientation=AWAY)).orientation == AWAY


# Blocks


@given(st.sets(st.integers(0, 40), min_size=1))
def test_block_numbers_are_the_same_in_every_format(layers: set[int]) -> None:
    """Each keeps the vector with a mark in it at the block it was given for: nothing is shifted by one."""
    marked = {layer: torch.full((4,), layer + 1.0) for layer in layers}
    steering = Steering(marked, AWAY, n_layers=41)
    tensor = original.as_tensor(steering)
    assert all(torch.equal(tensor[layer], marked[layer]) for layer in layers)
    assert torch.equal(tensor.any(-1).nonzero().flatten(), torch.tensor(sorted(layers)))


def test_asked_blocks_are_kept_and_missing_ones_named() -> None:
    steering = Steering(rows(foreign.vectors()), AWAY, CAPS)
    kept = finished(steering, Path("x"), (3, 5))
    assert (kept.layers, kept.thresholds) == ([3, 5], {3: CAPS[3]})
    with pytest.raises(InputError, match=r"no vector for the blocks 6-7; it has 0-5"):
        finished(steering, Path("x"), (5, 6, 7))


def test_blocks_are_named_as_ranges() -> None:
    assert blocks_text([22, 23, 24, 3, 28]) == "3, 22-24, 28"


def test_the_page_on_formats_says_of_each_which_way_it_points() -> None:
    page = (Path(__file__).parents[1] / "docs" / "formats.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")] for line in page.splitlines() if line.startswith("| `")]
    points = {row[1].strip("`"): row[3] for row in rows if len(row) == 8}
    assert points.keys() == FORMATS.keys()
    for name, text in points.items():
        assert text.startswith(FORMATS[name].written), name
        assert ("--orientation" in text) == (FORMATS[name].orientation is None), name
