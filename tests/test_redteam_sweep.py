"""Sweeps: grids that cannot be, fronts, and a whole one on the tiny model, with a kill in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny
from karma_electric.core.errors import InputError
from karma_electric.core.recipe import load_recipe
from karma_electric.redteam.suite_file import spread
from karma_electric.redteam.sweep import MOST_CELLS, Cell, front, parse_grid
from karma_electric.steer.axis import save_axis
from karma_electric.steer.responses import RESPONSE_KINDS, Response
from karma_electric.sweeping import Bench, Suites, plan_sweep
from test_chain import write_workplace
from test_cli import Ended, karma_here
from test_inspect_tasks import write_suite

Karma = Callable[..., Ended]
SUITES = ("safety", "benign", "capability")
GRID = ("--alphas", "0,0.5,1", "--layers", "2-4", "--quantiles", "0.5,0.9")


def grid(alphas: str = "0,0.5", layers: str = "1-2", quantiles: str = "0.5") -> list[Cell]:
    return parse_grid(alphas, layers, quantiles, n_layers=6)


def test_a_grid_is_the_uncapped_model_once_and_every_combination() -> None:
    cells = grid("0,0.25,1", "1-2,3", "0.5,0.9")
    assert cells[0] == Cell(None, None, None)
    assert len(cells) == 1 + 2 * 2 * 2
    assert len({cell.name for cell in cells}) == len(cells)
    assert Cell(0.25, (3, 3), 0.9).name == "alpha-0.25_blocks-3-3_q-0.9"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"alphas": "0"}, "no strength above 0"),
        ({"alphas": "0,1.5"}, "'1.5', expected a number from 0 to 1"),
        ({"alphas": "nan"}, "'nan'"),
        ({"alphas": "0.5,,1"}, "with commas between them"),
        ({"alphas": "0.5,0.50"}, "0.5 twice"),
        ({"quantiles": "0"}, "expected a number between 0 and 1"),
        ({"quantiles": "1"}, "expected a number between 0 and 1"),
        ({"quantiles": "high"}, "'high'"),
        ({"layers": "4-6"}, "the model has blocks 0-5"),
        ({"layers": "3-1"}, "the model has blocks 0-5"),
        ({"layers": "1-2-3"}, "expected a range"),
        ({"layers": "-1"}, "expected a range"),
        ({"layers": ""}, "with commas between them"),
        ({"quantiles": ",".join(f"0.{n:03}" for n in range(1, MOST_CELLS + 2))}, f"expected {MOST_CELLS} at most"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(wrong: dict[str, str], said: str) -> None:
    with pytest.raises(InputError) as error:
        grid(**wrong)
    assert said in str(error.value)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=8))
def test_the_front_is_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    rows = [{"cell": str(n), "good": good, "bad": bad} for n, (good, bad) in enumerate(points)]
    best = front(rows, {"good": 1, "bad": -1})
    for number, (good, bad) in enumerate(points):
        beaten = any(g >= good and b <= bad and (g, b) != (good, bad) for g, b in points)
        assert (str(number) in best) != beaten


def test_a_cell_without_a_figure_is_not_on_the_front() -> None:
    assert front([{"cell": "a", "x": None}, {"cell": "b", "x": 0.1}], {"x": 1}) == ["b"]


def test_a_limit_is_spread_over_the_suite() -> None:
    assert spread(range(10), 5) == [0, 2, 4, 6, 8]
    assert spread(range(3), None) == spread(range(3), 9) == [0, 1, 2]


# a whole one


@pytest.fixture
def karma(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_path: Path
) -> Karma:
    """`karma redteam ...` in a folder with a run that has been made as far as its axis."""
    monkeypatch.chdir(tmp_path)
    write_workplace(tmp_path, tiny_path)
    write_run(tmp_path, tiny_path)
    return lambda *words: karma_here(monkeypatch, capsys, "redteam", *words)


def write_run(tmp_path: Path, tiny_path: Path) -> None:
    """runs/tiny with a merged model, an axis and answers to calibrate on; and three suites."""
    write_suite(tmp_path / "suite.jsonl", 3)
    write_suite(tmp_path / "benign.jsonl", 2, prefix="benign-")
    items = (Path(__file__).parent.parent / "suites" / "capability-150.jsonl").read_text().splitlines()[:2]
    (tmp_path / "items.jsonl").write_text("\n".join(items) + "\n")
    run = tmp_path / "runs" / "tiny"
    (run / "axis").mkdir(parents=True)
    (run / "merged").symlink_to(tiny_path)
    save_axis(tiny.random_axis(), run / "axis" / "axis.safetensors")
    rows = []
    for number, chat in enumerate(tiny.chats(12, seed=4)):
        split, kind = ("calibration", "heldout")[number % 2], RESPONSE_KINDS[number // 2 % 3]
        rows.append(Response(f"{kind}-{number}", split, tiny.PERSONA, chat[1].content, chat[2].content, kind))
    (run / "axis" / "responses.jsonl").write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))


WORDS = ("sweep", "tiny.toml", *GRID, "--benign", "benign.jsonl", "--capability", "items.jsonl")


def cells(folder: Path) -> dict[str, dict[str, Any]]:
    return {file.parent.name: json.loads(file.read_text()) for file in folder.glob("sweep/*/cell.json")}


def test_a_cell_is_judged_by_the_judge_of_each_suite(karma: Karma, tmp_path: Path) -> None:
    small = ("--alphas", "1", "--layers", "3", "--quantiles", "0.5")
    files = ("--benign", "benign.jsonl", "--capability", "items.jsonl", "--scorer", "signals-original")
    ended = karma("sweep", "tiny.toml", *small, *files, "--json")
    assert ended.code == 0, ended.err
    folder = tmp_path / "runs" / "tiny" / "sweep" / "alpha-1_blocks-3-3_q-0.5"
    judges = {name: json.loads((folder / name / "summary.json").read_text())["scorer"] for name in SUITES}
    assert judges == {"safety": "signals-original", "benign": "over-refusal", "capability": "capability"}
    bare, capped = json.loads(ended.out)["cells"]
    assert bare["counts"]["unscored"] == 0
    assert bare["cap_rate"] == 0 < capped["cap_rate"] < 1
    assert capped["kl_nats"] > 0
    refused = karma("sweep", "tiny.toml", *small, "--benign", "suite.jsonl", "--capability", "items.jsonl")
    assert (refused.code, "expected harmless twins" in refused.err) == (2, True)


@pytest.mark.slow
def test_a_sweep_measures_every_cell_and_is_continued_after_a_kill(karma: Karma, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "tiny"
    program = f"""
        import os, signal, sys
        from karma_electric import sweeping
        before = sweeping.Bench.action
        done = []
        def action(self, cap):
            done.append(cap)
            if len(done) == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return before(self, cap)
        sweeping.Bench.action = action
        sys.argv = ["karma", "redteam", *{WORDS!r}]
        from karma_electric.cli.main import main
        main()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], check=False, env=os.environ, capture_output=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    whole = {name: (run / "sweep" / name / "manifest.json").read_bytes() for name in cells(run)}
    assert set(whole) == {"uncapped", "alpha-0.5_blocks-2-4_q-0.5"}

    dry = karma(*WORDS, "--dry-run")
    assert dry.code == 0, dry.err
    assert dry.out.count("already there") == 2
    assert "3 cells of about" in dry.out

    ended = karma(*WORDS)
    assert ended.code == 0, ended.err
    found = cells(run)
    assert len(found) == 5
    for name, before in whole.items():
        assert (run / "sweep" / name / "manifest.json").read_bytes() == before
    bare, soft, hard = (found[n] for n in ("uncapped", "alpha-0.5_blocks-2-4_q-0.5", "alpha-1_blocks-2-4_q-0.5"))
    rare = found["alpha-1_blocks-2-4_q-0.9"]
    assert (bare["cap_rate"], bare["dose"], bare["kl_nats"]) == (0.0, 0.0, 0.0)
    assert 0 < rare["cap_rate"] < hard["cap_rate"] < 1
    assert 0 < soft["dose"] < hard["dose"]
    assert 0 < soft["kl_nats"] < hard["kl_nats"]
    assert sum(bare["counts"].values()) == 3
    assert bare["capability_n"] == 2
    summary = json.loads((run / "sweep.json").read_text())
    assert summary["cells"][0]["cell"] == "uncapped"
    assert (run / "pareto.png").read_bytes().startswith(b"\x89PNG")
    assert "Front: " in ended.out


@pytest.mark.parametrize("name", ["suite", "benign", "items"])
def test_a_cell_is_made_anew_when_a_suite_was_corrected(karma: Karma, tmp_path: Path, name: str) -> None:
    recipe = load_recipe("tiny.toml")

    def ids() -> list[str]:
        suites = Suites.load(recipe, "benign.jsonl", "items.jsonl", None)
        return [stage.id for stage in plan_sweep(Bench(recipe, tmp_path / "runs" / "tiny", grid()), grid(), suites)]

    before = ids()
    assert ids() == before
    file = tmp_path / f"{name}.jsonl"
    file.write_text(file.read_text() + "\n")  # no id changes
    assert not set(before) & set(ids())


def test_a_grid_that_cannot_be_is_said_before_a_model_that_is_not_there(karma: Karma) -> None:
    for wrong in (("--alphas", "2"), ("--quantiles", "1"), ("--layers", "3-2")):
        ended = karma("sweep", "tiny.toml", *wrong, "--run-dir", "nowhere", "--dry-run")
        assert (ended.code, wrong[0] in ended.err) == (2, True)


def test_harmless_twins_are_no_attacks_for_a_sweep(karma: Karma) -> None:
    ended = karma(*WORDS, "--set", "redteam.suite=benign.jsonl")
    assert (ended.code, "expected attacks" in ended.err) == (2, True)


def test_a_sweep_without_a_run_says_what_to_type(karma: Karma, tmp_path: Path) -> None:
    ended = karma(*WORDS, "--run-dir", "nowhere")
    assert (ended.code, "karma run tiny.toml --to axis" in ended.err) == (3, True)
    (tmp_path / "runs" / "tiny" / "axis" / "responses.jsonl").unlink()
    ended = karma(*WORDS)
    assert (ended.code, "responses.jsonl is not there" in ended.err) == (3, True)
