"""`karma axis show`: what it prints and writes, how it ends, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

import tiny
from karma_electric.core.artifact import seal
from karma_electric.steer.axis import Axis, direction, load_axis, save_axis
from karma_electric.steer.diagnose import diagnose
from karma_electric.steer.diagnostics import DIAGNOSTICS_FILE, write_diagnostics
from karma_electric.steer.spec import AXIS_FILE, CAP_FILE, CapSpec, save_spec
from test_cli import Ended, command, karma_here
from test_diagnose import planted

if TYPE_CHECKING:
    from karma_electric.steer.extract import Sides

Show = Callable[..., Ended]
LENGTHS = (0.0, 1.0, 9.0, 9.0, 9.0, 2.0)


def activations(n: int, seed: int) -> Sides:
    return {
        "mlp": planted(*LENGTHS, n=n, hidden=24, seed=seed)["mlp"],
        "block": planted(*LENGTHS, n=n, hidden=24, seed=seed + 1)["mlp"],
    }


def write_axis(folder: Path, *, n: int = 60, seed: int = 0, layers: tuple[int, ...] = (2, 3, 4)) -> Path:
    """An axis with its diagnostics and a cap, from activations with directions at blocks 2 to 4."""
    folder.mkdir(exist_ok=True)
    sides = activations(n, seed)
    made = {site: direction(*both) for site, both in sides.items()}
    axis = replace(
        tiny.random_axis(),
        directions={site: unit for site, (unit, _) in made.items()},
        norms={site: norm for site, (_, norm) in made.items()},
        projections={site: (torch.stack(both) * made[site][0]).sum(-1) for site, both in sides.items()},
        n=n,
    )
    save_axis(axis, folder / AXIS_FILE)
    write_diagnostics(diagnose(lambda: [sides], resamples=20, shuffles=10), folder / DIAGNOSTICS_FILE)
    thresholds = dict.fromkeys(layers, 1.5)
    spec = CapSpec(AXIS_FILE, "mlp", layers, thresholds, 0.5, method={"name": "runtime-q"}, cap_rate={"mean": 0.26})
    save_spec(replace(spec, dose={"mean": 0.0123}), folder / CAP_FILE)
    return folder


def change(folder: Path, **to: object) -> Axis:
    axis = replace(load_axis(folder / AXIS_FILE), **to)  # type: ignore[arg-type]
    save_axis(axis, folder / AXIS_FILE)
    return axis


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with an axis, shared: read only."""
    run = tmp_path_factory.mktemp("run")
    write_axis(run / "axis")
    return run


@pytest.fixture
def show(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Show:
    """Run `karma axis show` in this process."""

    def run(*words: object) -> Ended:
        return karma_here(monkeypatch, capsys, "axis", "show", *words)

    return run


def rows(text: str) -> list[list[str]]:
    """The rows of the tables: those that begin with a block's number, starred or not."""
    lines = (line.replace("*", " ").split() for line in text.splitlines() if line.startswith((" *", "  ")))
    return [words for words in lines if words and words[0].isdigit()]


# What is shown


def test_it_says_what_the_axis_was_made_from(show: Show, written: Path) -> None:
    ended = show(written)
    assert ended.code == 0, ended.err
    assert "made from 60 prompts, read at last-prompt" in ended.out
    assert "6 blocks of hidden size 24" in ended.out
    assert "toward    " + tiny.PERSONA[:40] in ended.out
    assert "away      (empty)" in ended.out
    assert "cap at blocks 2-4, site mlp, alpha 0.5, runtime-q, 26% of held-out tokens capped" in ended.out
    assert "1.23%" in ended.out


@pytest.mark.parametrize("path", ["", "axis", f"axis/{AXIS_FILE}"])
def test_a_run_its_axis_folder_and_the_file_are_the_same(show: Show, written: Path, path: str) -> None:
    assert show(written / path).out == show(written).out


def test_the_table_has_the_figures_of_every_block_and_site(show: Show, written: Path) -> None:
    ended = show(written, "--all")
    figures = json.loads((written / "axis" / DIAGNOSTICS_FILE).read_text())["sites"]
    expected = [(site, block) for site in ("mlp", "block") for block in range(6)]
    table = rows(ended.out)
    assert len(table) == len(expected)
    for (site, block), row in zip(expected, table, strict=True):
        assert int(row[0]) == block
        assert float(row[1]) == pytest.approx(figures[site]["norm"][block], rel=0.01)
        assert float(row[3]) == pytest.approx(figures[site]["resample_cosine"][block], abs=0.001)
        assert float(row[5]) == pytest.approx(figures[site]["auc"][block], abs=0.001)
        assert float(row[7]) == pytest.approx(figures[site]["d_prime"][block], abs=0.01)
        assert float(row[8]) == pytest.approx(figures[site]["random_auc_high"][block], abs=0.01)
        assert float(row[9]) == pytest.approx(figures[site]["random_d_prime_high"][block], abs=0.01)
        assert float(row[10]) == pytest.approx(figures[site]["shuffled_auc_high"][block], abs=0.01)
        assert float(row[11]) == pytest.approx(figures[site]["shuffled_d_prime_high"][block], abs=0.01)


def test_the_capped_blocks_are_marked_at_the_cap_s_site(show: Show, written: Path) -> None:
    mlp, _, block = show(written, "--all").out.partition("site block")
    assert [line.split()[1] for line in mlp.splitlines() if line.startswith(" *")] == ["2", "3", "4"]
    assert [line for line in block.splitlines() if line.startswith(" *")] == []


def test_one_site_alone(show: Show, written: Path) -> None:
    assert "site mlp" not in show(written, "--site", "block", "--all").out.partition("verdict")[0].partition("dose")[2]
    assert len(rows(show(written, "--site", "block", "--all").out)) == 6


def test_deep_models_show_the_capped_blocks_and_some_others(show: Show, tmp_path: Path) -> None:
    save_axis(tiny.random_axis(n_layers=40, hidden=8), tmp_path / AXIS_FILE)
    ended = show(tmp_path, "--site", "mlp")
    blocks = [int(row[0]) for row in rows(ended.out)]
    assert {*range(28, 36), 0, 39} <= set(blocks)  # 70-88% of depth
    assert len(blocks) < 20
    assert "--all shows every one" in ended.out
    assert len(rows(show(tmp_path, "--site", "mlp", "--all").out)) == 40


def test_the_verdict_is_in_words(show: Show, written: Path) -> None:
    text = " ".join(show(written).out.partition("verdict for site mlp: ")[2].split())
    assert text.startswith("ok")
    assert "ok: 60 prompts are enough" in text
    assert "of the capped blocks 2-4" in text


def test_json_holds_everything(show: Show, written: Path) -> None:
    ended = show(written, "--json")
    value = json.loads(ended.out)
    assert value["axis"]["away"] == list(tiny.AWAY)
    assert value["cap"]["layers"] == [2, 3, 4]
    assert value["diagnostics"]["sites"] == json.loads((written / "axis" / DIAGNOSTICS_FILE).read_text())["sites"]
    assert (value["verdict"]["level"], value["verdict"]["site"], value["verdict"]["layers"]) == ("ok", "mlp", [2, 3, 4])
    assert all(set(finding) == {"level", "text"} for finding in value["verdict"]["findings"])


def test_without_a_cap_the_original_s_depth_is_judged(show: Show, tmp_path: Path) -> None:
    (write_axis(tmp_path / "axis") / CAP_FILE).unlink()
    ended = show(tmp_path)
    assert "none beside it; shown for blocks 4-5" in ended.out
    assert json.loads(show(tmp_path, "--json").out)["cap"] is None


def test_a_system_prompt_cannot_command_the_terminal(show: Show, tmp_path: Path) -> None:
    write_axis(tmp_path)
    change(tmp_path, toward="red \x1b[31m", away=("x" * 500,))
    ended = show(tmp_path)
    assert "\x1b" not in ended.out
    assert max(map(len, ended.out.splitlines())) < 130


# The gate


def test_check_passes_a_good_axis(show: Show, written: Path) -> None:
    assert show(written, "--check").code == 0


def test_check_fails_an_unstable_one(show: Show, tmp_path: Path) -> None:
    write_axis(tmp_path, layers=(0, 1))
    assert show(tmp_path).code == 0
    ended = show(tmp_path, "--check")
    ended.refused(1, "is unstable", "60 prompts show no direction at block 0")
    assert "verdict for site mlp: unstable" in ended.out


def test_check_cannot_pass_what_was_not_measured(show: Show, tmp_path: Path) -> None:
    (write_axis(tmp_path) / DIAGNOSTICS_FILE).unlink()
    show(tmp_path, "--check").refused(3, "has no diagnostics to check", "karma axis extract MODEL OUT")


# Without diagnostics


def test_an_older_axis_shows_what_it_has_and_how_to_get_the_rest(show: Show, tmp_path: Path) -> None:
    (write_axis(tmp_path) / DIAGNOSTICS_FILE).unlink()
    ended = show(tmp_path, "--all")
    assert ended.code == 0, ended.err
    assert "of the prompts the direction was made from: too good" in ended.out
    assert "verdict: none" in ended.out
    assert "karma axis extract MODEL OUT" in ended.out
    axis = load_axis(tmp_path / AXIS_FILE)
    assert float(rows(ended.out)[2][1]) == pytest.approx(float(axis.norms["mlp"][2]), rel=0.01)


def test_an_imported_axis_of_one_site_has_lengths_and_similarity(show: Show, tmp_path: Path) -> None:
    axis = tiny.random_axis()
    save_axis(replace(axis, directions={"block": axis.directions["block"]}), tmp_path / "their.safetensors")
    ended = show(tmp_path / "their.safetensors", "--all")
    assert ended.code == 0, ended.err
    assert "site mlp" not in ended.out
    expected = axis.directions["block"][0] @ axis.directions["block"][1]
    assert float(rows(ended.out)[0][2]) == pytest.approx(float(expected), abs=0.01)
    assert json.loads(show(tmp_path / "their.safetensors", "--json").out)["verdict"]["level"] is None


def test_a_cap_of_another_axis_in_the_folder_is_left_out(show: Show, tmp_path: Path) -> None:
    save_axis(tiny.random_axis(), write_axis(tmp_path) / "other.safetensors")
    (tmp_path / DIAGNOSTICS_FILE).unlink()
    assert "none beside it" in show(tmp_path / "other.safetensors").out


# Plots


def test_the_plots_are_written_where_asked(show: Show, written: Path, tmp_path: Path) -> None:
    ended = show(written, "--plots", tmp_path / "deep" / "plots")
    assert ended.code == 0, ended.err
    names = {"norms.png", "separation.png", "stability.png", "similarity.png", "contrast.png"}
    assert {file.name for file in (tmp_path / "deep" / "plots").iterdir()} == names
    for file in (tmp_path / "deep" / "plots").iterdir():
        assert file.read_bytes().startswith(b"\x89PNG")
        assert str(file) in ended.out


def test_without_diagnostics_fewer_plots_are_drawn(show: Show, tmp_path: Path) -> None:
    save_axis(tiny.random_axis(), tmp_path / AXIS_FILE)
    show(tmp_path, "--plots", tmp_path / "plots")
    assert [file.name for file in (tmp_path / "plots").iterdir()] == ["norms.png"]


def test_a_finished_artifact_gets_no_plots(show: Show, tmp_path: Path) -> None:
    seal(write_axis(tmp_path / "axis"), kind="axis", config={}, inputs={})
    for folder in ("axis", "axis/plots"):
        show(tmp_path, "--plots", tmp_path / folder).refused(2, "is a finished artifact", "another --plots")
    assert not list(tmp_path.rglob("*.png"))


# What is refused


@pytest.mark.parametrize(
    ("spoil", "code", "named"),
    [
        (lambda f: (f / AXIS_FILE).unlink(), 3, ("holds no axis.safetensors", "karma run RECIPE --to axis")),
        (lambda f: (f / AXIS_FILE).write_bytes(b"\x80\x04"), 2, ("not a safetensors file",)),
        (lambda f: (f / DIAGNOSTICS_FILE).write_text("{"), 2, ("diagnostics.json is not JSON",)),
        (lambda f: (f / DIAGNOSTICS_FILE).write_text("{}"), 2, ("holds no diagnostics",)),
        (lambda f: (f / CAP_FILE).write_text("{}"), 2, ("cap.json is not a cap",)),
        (lambda f: write_axis(f, layers=(7,)), 2, ("caps blocks [7], the axis has 0-5",)),
        (lambda f: change(f, norms=tiny.random_axis().norms), 2, ("measured on another axis",)),
    ],
)
def test_damaged_files_are_refused(
    show: Show, tmp_path: Path, spoil: Callable[[Path], object], code: int, named: tuple[str, ...]
) -> None:
    spoil(write_axis(tmp_path))
    show(tmp_path).refused(code, *named)


def test_an_axis_that_is_not_there(show: Show, tmp_path: Path) -> None:
    show(tmp_path / "nowhere").refused(3, "does not exist", "karma run RECIPE --to axis")


def test_a_site_that_is_not_there(show: Show, written: Path) -> None:
    show(written, "--site", "attention").refused(2, "'attention'", "mlp, block")


def test_plots_into_a_file_are_refused(show: Show, written: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    show(written, "--plots", tmp_path / "file").refused(2, "is a file")


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['karma', 'axis', 'show', '--help']\n"
        "from karma_electric.cli.main import main\n"
        "try: main()\n"
        "finally: print('modules:', *sys.modules)"
    )
    text, _, modules = command("-c", code, cwd=tmp_path).out.partition("modules:")
    assert "karma axis show runs/demo" in text
    assert {"torch", "numpy", "matplotlib", "safetensors"} & set(modules.split()) == set()
