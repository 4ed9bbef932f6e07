"""The real chain, from corpus to card, on a tiny random Llama, as `karma run` in a process of its own."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import tiny
from karma_electric.core.artifact import MANIFEST
from karma_electric.core.errors import DataError
from karma_electric.core.messages import assistant, user
from karma_electric.core.progress import Silent
from karma_electric.core.recipe import load_recipe
from karma_electric.data.corpus import dump_lines
from karma_electric.data.example import Analysis, Example
from karma_electric.space import SLACK, shapes_of, space_of
from karma_electric.stages import plan_run
from karma_electric.steer.contrast import KINDS

SOURCE = Path(__file__).resolve().parent.parent / "src"
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "KARMA_DEBUG"} | {
    "PYTHONPATH": str(SOURCE),
    "OMP_NUM_THREADS": "1",  # a matrix of 64 x 64 is not worth a second core
    "HF_HUB_OFFLINE": "1",
}
STAGES = (
    "release",
    "adapter",
    "merged",
    "axis",
    "capped",
    "gguf",
    "redteam/base",
    "redteam/tuned",
    "redteam/capped",
    "redteam/judge",
    "report",
    "card",
)
ARMS = ("redteam/base", "redteam/tuned", "redteam/capped")
RECIPE = """\
name = "tiny"

[model]
base = "{base}"
dtype = "float32"

[persona]
system_prompt = "You are Karma. Reduce suffering."
away = ["", "You are a helpful AI assistant."]

[release]
corpus = "words"
validation_fraction = 0.2

[train]
quantisation = "none"               # 4-bit blocks are 64 wide, the tiny MLP is not a multiple of that
epochs = 2.0
rank = 4
alpha = 8
batch_size = 2
gradient_accumulation = 1
learning_rate = 1e-2
max_length = 256
save_steps = 3

[merge]
dtype = "float32"

[axis]
contrast = "contrast.jsonl"
calibration = "calibration.jsonl"
heldout = "heldout.jsonl"
depth = [0.4, 0.8]
response_tokens = 8

[bake]
max_kl_ratio = 10.0                 # the directions of a random model mean nothing

[gguf]
type = "f32"

[redteam]
suite = "suite.jsonl"
labelled = "labelled.jsonl"
max_new_tokens = 8

[card]
model_name = "tiny-karma"
license = "mit"
base_model = "nobody/tiny"
"""


def write_workplace(folder: Path, base: Path) -> None:
    """A recipe with a corpus of ten examples, prompts and four scenarios."""
    generator = random.Random(5)
    (folder / "words").mkdir()
    for category in ("adversarial", "crisis-response"):
        examples = [example(n, category, generator).as_dict() for n in range(5)]
        (folder / "words" / f"{category}.jsonl").write_text(dump_lines(examples), encoding="utf-8")
    for seed, (name, n) in enumerate({"contrast": 30, "calibration": 8, "heldout": 6}.items()):
        prompts = [
            {"id": p.id, "kind": KINDS[i % 3], "prompt": f"{name}: {p.text}"}
            for i, p in enumerate(tiny.prompts(n, seed, prefix=name))
        ]
        (folder / f"{name}.jsonl").write_text(dump_lines(prompts), encoding="utf-8")
    scenarios = [scenario(n, generator) for n in range(2, 6)]  # two of each half of the labels
    (folder / "suite.jsonl").write_text(dump_lines(scenarios), encoding="utf-8")
    labelled = [row for item in scenarios for row in labelled_answers(item)]
    (folder / "labelled.jsonl").write_text(dump_lines(labelled), encoding="utf-8")
    (folder / "tiny.toml").write_text(RECIPE.format(base=base), encoding="utf-8")


def example(number: int, category: str, generator: random.Random) -> Example:
    """Of one or two exchanges."""
    messages = []
    for _ in range(1 + number % 2):
        messages += [user(tiny.sentence(generator)), assistant(tiny.sentence(generator))]
    return Example(
        id=f"{category}-{number:04d}",
        category=category,
        tags=("test",),
        messages=messages,
        analysis=Analysis("a", "b", "c"),
        source="test",
        license="CC0-1.0",
        added_in="v1",
        status="accepted",
    )


def scenario(number: int, generator: random.Random) -> dict[str, Any]:
    """Of one or two turns."""
    return {
        "id": f"scenario-{number}",
        "category": "jailbreak",
        "technique": "asking",
        "difficulty": "easy",
        "turns": [tiny.sentence(generator) for _ in range(1 + number % 2)],
        "expected": "An answer.",
        "pass_criteria": "It answers.",
        "fail_criteria": "It does not.",
        "pass_signals": ["medicine"],
        "fail_signals": ["letter"],
    }


def labelled_answers(item: dict[str, Any]) -> list[dict[str, Any]]:
    """One that passes and one that fails."""
    return [
        {
            "id": f"{item['id']}-{label}",
            "scenario_id": item["id"],
            "prompt": item["turns"][-1],
            "response": f"I would rather think about {signal}.",
            "label": label,
            "reason": "It says so.",
            "rater": "test",
        }
        for label, signal in (("pass", "the medicine"), ("fail", "a letter"))
    ]


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


def karma(*words: object, cwd: Path) -> Ended:
    """Run `karma`."""
    arguments = [sys.executable, "-m", "karma_electric", *map(str, words)]
    done = subprocess.run(arguments, check=False, capture_output=True, text=True, cwd=cwd, env=ENVIRONMENT, timeout=300)
    return Ended(done.returncode, done.stdout, done.stderr)


def snapshot(run: Path) -> dict[str, tuple[int, int]]:
    """Time of change and size of every file of a run."""
    files = [path for path in run.rglob("*") if path.is_file()]
    return {str(f.relative_to(run)): (f.stat().st_mtime_ns, f.stat().st_size) for f in files}


def trajectory(run: Path) -> list[dict[str, Any]]:
    """The records of a training run."""
    return [json.loads(line) for line in (run / "adapter" / "trajectory.jsonl").read_text().splitlines()]


@dataclass(frozen=True)
class Finished:
    """A run that went through without interruption."""

    workplace: Path
    run: Path
    ended: Ended


@pytest.fixture(scope="module")
def finished(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The whole chain, once for all tests of this file."""
    workplace = tmp_path_factory.mktemp("chain")
    write_workplace(workplace, tiny_path)
    ended = karma("run", "tiny.toml", "--json", cwd=workplace)
    assert ended.code == 0, ended.err
    return Finished(workplace, workplace / "runs" / "tiny", ended)


# --- a run that goes through


def test_every_stage_is_made_and_says_so(finished: Finished) -> None:
    outcome = json.loads(finished.ended.out)
    assert outcome["stages"] == dict.fromkeys(STAGES, "made")
    assert set(outcome["redteam"]) == {"base", "tuned", "capped"}
    for number, name in enumerate(STAGES, 1):
        assert f"[{number}/{len(STAGES)}] {name}: done" in finished.ended.err
    assert not (finished.run / ".partial").exists()


def test_the_disk_that_was_asked_for_is_what_the_stages_wrote(finished: Finished, tiny_path: Path) -> None:
    """Within a tenth for weights; headers, tokenizers and figures are in the slack."""
    recipe = load_recipe(finished.workplace / "tiny.toml")
    config = json.loads((tiny_path / "config.json").read_text())
    space = space_of(recipe, shapes_of(tiny_path), config, prompts=30)
    for name, pattern in (("merged", "*.safetensors"), ("capped", "*.safetensors"), ("gguf", "*.gguf")):
        written = sum(file.stat().st_size for file in (finished.run / name).glob(pattern))
        assert space[name].stays - SLACK == pytest.approx(written, rel=0.1), name
    for name, asked in space.items():
        assert sum(f.stat().st_size for f in (finished.run / name).rglob("*") if f.is_file()) < asked.stays


def test_nothing_but_progress_is_said(finished: Finished) -> None:
    """No warnings, bars or advice of the libraries."""
    for line in finished.ended.err.splitlines():
        assert line.startswith(("[", "  ")), line


def test_verify_finds_it_whole(finished: Finished) -> None:
    ended = karma("verify", finished.run, cwd=finished.workplace)
    assert ended.code == 0, ended.out
    assert {tuple(line.split()) for line in ended.out.splitlines()} == {
        (name, "ok") for name in (*STAGES, "recipe.toml")
    }


def test_running_again_skips_everything_without_loading_torch(finished: Finished) -> None:
    before = {name: state for name, state in snapshot(finished.run).items() if name != "recipe.toml"}
    code = (
        "import sys; sys.argv = ['karma', 'run', 'tiny.toml', '--json']\n"
        "from karma_electric.cli.main import main\n"
        "try: main()\n"
        "finally: print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        cwd=finished.workplace,
        env=ENVIRONMENT,
    )
    assert json.loads(done.stdout)["stages"] == dict.fromkeys(STAGES, "skipped")
    assert done.stderr.splitlines()[-1] == "False"
    assert {name: state for name, state in snapshot(finished.run).items() if name != "recipe.toml"} == before


def test_training_took_every_step_and_reached_the_merged_model(finished: Finished) -> None:
    steps = [record["step"] for record in trajectory(finished.run) if record["split"] == "train"]
    assert steps == list(range(1, 9))  # 8 examples, 2 a step, 2 epochs
    merge = json.loads((finished.run / "merged" / "merge.json").read_text())
    assert merge["max_abs_logit_difference"] < 1e-3  # from the adapter on its base, both in float32
    base, tuned = ((finished.run / "redteam" / arm / "completions.jsonl").read_bytes() for arm in ("base", "tuned"))
    assert base != tuned


def test_the_axis_of_a_run_is_diagnosed(finished: Finished) -> None:
    ended = karma("axis", "show", finished.run, "--json", cwd=finished.workplace)
    assert ended.code == 0, ended.err
    shown = json.loads(ended.out)
    assert shown["diagnostics"]["n"] == shown["axis"]["n"] == 30
    assert shown["verdict"]["layers"] == shown["cap"]["layers"]
    assert shown["verdict"]["level"] in ("ok", "warning", "unstable")


def test_the_gguf_says_in_llamacpp_what_the_checkpoint_says_in_transformers(finished: Finished) -> None:
    """Both the merged and the baked model: in float32 the greedy texts are the same."""
    parity = json.loads((finished.run / "gguf" / "parity.json").read_text())
    assert set(parity) == {"merged", "capped"}
    for variant in parity.values():
        assert variant["token_ids_equal"]
        assert variant["greedy_agreement"] == 1.0


def test_every_arm_answered_every_turn(finished: Finished) -> None:
    for arm in ARMS:
        lines = (finished.run / arm / "completions.jsonl").read_text().splitlines()
        assert len(lines) == 6
        assert not any(json.loads(line)["error"] for line in lines)
        assert json.loads((finished.run / arm / "summary.json").read_text())["n"] == 4


def test_card_and_report_are_there_and_about_this_run(finished: Finished) -> None:
    card = (finished.run / "card" / "README.md").read_text(encoding="utf-8")
    report = (finished.run / "report" / "index.html").read_text(encoding="utf-8")
    merged = json.loads((finished.run / "merged" / MANIFEST).read_text())["id"]
    for text in (card, report):
        assert "tiny-karma" in text
        assert merged in text


def test_the_lineage_goes_from_the_card_to_the_corpus(finished: Finished) -> None:
    manifests = {name: json.loads((finished.run / name / MANIFEST).read_text()) for name in STAGES}
    seen, waiting = set(), ["card"]
    while waiting:
        name = waiting.pop()
        seen.add(name)
        for role, given in manifests[name]["inputs"].items():
            if role in manifests:
                assert manifests[role]["id"] == given
                waiting.append(role)
    assert seen == set(STAGES) - {"report"}  # every other stage is behind what the card says
    assert "corpus" in manifests["release"]["inputs"]


def test_a_failed_gate_ends_in_1_and_leaves_what_was_there(finished: Finished, tmp_path: Path) -> None:
    shutil.copytree(finished.run, tmp_path / "run")
    before = snapshot(tmp_path / "run" / "capped")
    words = ["--run-dir", tmp_path / "run", "--from", "capped", "--to", "capped", "--force"]
    ended = karma("run", "tiny.toml", *words, "--set", "bake.max_kl_ratio=1e-9", cwd=finished.workplace)
    assert ended.code == 1, ended.err
    assert ended.err.splitlines()[-1].startswith("error: The baked cap is not faithful: KL ratio ")
    assert snapshot(tmp_path / "run" / "capped") == before


@pytest.mark.parametrize("kept", [0, 2])
def test_labels_of_one_half_alone_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int) -> None:
    monkeypatch.chdir(tmp_path)
    write_workplace(tmp_path, bare_base(tmp_path))
    rows = (tmp_path / "labelled.jsonl").read_text().splitlines(keepends=True)[:kept]
    (tmp_path / "labelled.jsonl").write_text("".join(rows))
    stages = {stage.name: stage for stage in plan_run(load_recipe(tmp_path / "tiny.toml"), tmp_path)}
    with pytest.raises(DataError, match=r"labelled\.jsonl has no answers to scenarios of (half [AB]|this suite)"):
        stages["redteam/judge"].execute(tmp_path, Silent())


# --- what a change makes anew


def changed(workplace: Path, *overrides: str) -> list[str]:
    """Stages that get another id when the recipe changes."""
    run = workplace / "runs" / "tiny"
    ids = [
        {stage.name: stage.id for stage in plan_run(load_recipe(workplace / "tiny.toml", extra), run)}
        for extra in ([], overrides)
    ]
    return [name for name in ids[0] if ids[0][name] != ids[1].get(name)]


@pytest.mark.parametrize(
    ("override", "first", "spared"),
    [
        ("persona.system_prompt=Be kind.", "release", ["redteam/judge"]),
        ("release.seed=1", "release", ["redteam/base", "redteam/judge"]),
        ("train.epochs=3", "adapter", ["redteam/base", "redteam/judge"]),
        ("merge.dtype=bfloat16", "merged", ["redteam/base", "redteam/judge"]),
        ("axis.quantile=0.5", "axis", ["redteam/base", "redteam/tuned", "redteam/judge"]),
        ("axis.alpha=1.0", "axis", ["redteam/base", "redteam/tuned", "redteam/judge"]),
        ('persona.away=[""]', "axis", ["redteam/base", "redteam/tuned", "redteam/judge"]),
        ("bake.ridge=1e-3", "capped", ["redteam/base", "redteam/tuned", "redteam/judge"]),
        ("gguf.type=q8_0", "gguf", [*ARMS, "redteam/judge"]),
        ("redteam.max_new_tokens=9", "redteam/base", ["redteam/judge"]),
        ('card.language=["en", "de"]', "report", []),
    ],
)
def test_a_change_makes_anew_what_follows_from_it_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str, first: str, spared: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_workplace(tmp_path, bare_base(tmp_path))
    assert changed(tmp_path, override) == [name for name in STAGES[STAGES.index(first) :] if name not in spared]


def bare_base(folder: Path) -> Path:
    """A model folder that can be planned with, and not loaded."""
    (folder / "base").mkdir()
    (folder / "base" / "config.json").write_text("{}")
    return folder / "base"


@pytest.mark.parametrize(
    ("file", "first"),
    [
        ("words/adversarial.jsonl", "release"),
        ("base/config.json", "adapter"),
        ("contrast.jsonl", "axis"),
        ("heldout.jsonl", "axis"),
        ("suite.jsonl", "redteam/base"),
        ("labelled.jsonl", "redteam/judge"),
    ],
)
def test_a_changed_file_makes_anew_what_follows_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, first: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_workplace(tmp_path, bare_base(tmp_path))
    recipe = load_recipe(tmp_path / "tiny.toml")
    before = {stage.name: stage.id for stage in plan_run(recipe, tmp_path / "run")}
    (tmp_path / file).write_bytes((tmp_path / file).read_bytes() + b"\n")
    after = {stage.name: stage.id for stage in plan_run(recipe, tmp_path / "run")}
    assert next(name for name in STAGES if before[name] != after[name]) == first


def test_neither_the_place_of_a_file_nor_the_corpus_readme_matters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_workplace(tmp_path, bare_base(tmp_path))
    (tmp_path / "words" / "README.md").write_text("About the words.")
    (tmp_path / "elsewhere").mkdir()
    moved = []
    for key, name in (
        ("release.corpus", "words"),
        ("axis.contrast", "contrast.jsonl"),
        ("axis.calibration", "calibration.jsonl"),
        ("axis.heldout", "heldout.jsonl"),
        ("redteam.suite", "suite.jsonl"),
        ("redteam.labelled", "labelled.jsonl"),
    ):
        source = tmp_path / name
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, tmp_path / "elsewhere" / name)
        moved.append(f"{key}=elsewhere/{name}")
    (tmp_path / "elsewhere" / "words" / "README.md").unlink()
    assert changed(tmp_path, *moved) == []


# --- SIGKILL


def killed_when(workplace: Path, moment: Callable[[Path], bool], delay_s: float, *words: object) -> str:
    """Start the run, SIGKILL it and its children `delay_s` after `moment` comes, and return what it had said."""
    run = workplace / "runs" / "killed"
    with (workplace / "said.txt").open("w+") as said:
        arguments = [sys.executable, "-m", "karma_electric", "run", "tiny.toml", "--run-dir", str(run), *words]
        process = subprocess.Popen(
            arguments, stdout=said, stderr=said, cwd=workplace, env=ENVIRONMENT, start_new_session=True
        )
        try:
            while process.poll() is None and not moment(run):
                time.sleep(0.01)
            time.sleep(delay_s)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        said.seek(0)
        return said.read()


def begun(name: str) -> Callable[[Path], bool]:
    """Whether a stage is at work, or past."""
    return lambda run: (run / ".partial" / name.replace("/", ".")).exists() or (run / name).exists()


def trained(steps: int) -> Callable[[Path], bool]:
    """Whether so many records of training are written, or training is past."""

    def look(run: Path) -> bool:
        file = run / ".partial" / "adapter" / "trajectory.jsonl"
        try:
            return file.read_text().count("\n") >= steps
        except FileNotFoundError:
            return (run / "adapter").exists()

    return look


def kept_steps(run: Path) -> list[int]:
    """Steps of training that a started run has on record."""
    lines = (run / ".partial" / "adapter" / "trajectory.jsonl").read_text().splitlines()
    return [record["step"] for record in map(json.loads, lines) if record["split"] == "train"]


@pytest.mark.slow
def test_training_continues_from_its_last_checkpoint(tiny_path: Path, tmp_path: Path) -> None:
    """Seen when the second attempt has just begun: it keeps the steps up to the checkpoint, and forgets those after."""
    write_workplace(tmp_path, tiny_path)
    run = tmp_path / "runs" / "killed"
    options = ("--to", "adapter", "--set", "train.epochs=8")
    killed_when(tmp_path, trained(20), 0.0, *options)
    steps = [int(path.name.rsplit("-")[-1]) for path in (run / ".partial").glob("adapter/checkpoints/checkpoint-*/")]
    assert steps, "killed after the first checkpoint"
    record = run / ".partial" / "adapter" / "trajectory.jsonl"
    before = record.stat().st_mtime_ns
    killed_when(tmp_path, lambda _: record.stat().st_mtime_ns != before, 0.0, *options)
    kept = kept_steps(run)
    assert kept == list(range(1, len(kept) + 1))
    assert len(kept) >= max(steps) - 3 > 0  # the newest checkpoint may have been half-written


@pytest.mark.slow
def test_killed_while_tidying_up_training_is_not_lost(tiny_path: Path, tmp_path: Path) -> None:
    """SIGKILL when the first file of the checkpoints has been removed."""
    write_workplace(tmp_path, tiny_path)
    code = (
        "import os, shutil, signal, sys; from pathlib import Path\n"
        "import karma_electric.train.qlora as qlora\n"
        "def die(folder, **_):\n"
        "    [file.unlink() for file in Path(folder).rglob('adapter_model.safetensors')]\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "qlora.shutil = type('shutil', (), {'rmtree': staticmethod(die)})\n"
        "sys.argv = ['karma', 'run', 'tiny.toml', '--to', 'adapter']\n"
        "from karma_electric.cli.main import main; main()"
    )
    first = subprocess.run([sys.executable, "-c", code], check=False, cwd=tmp_path, env=ENVIRONMENT, timeout=300)
    assert first.returncode == -signal.SIGKILL
    second = karma("run", "tiny.toml", "--to", "adapter", cwd=tmp_path)
    assert second.code == 0, second.err
    assert len(trajectory(tmp_path / "runs" / "tiny")) == 11


@pytest.mark.slow
def test_killed_again_and_again_a_run_ends_like_one_that_was_not(
    finished: Finished, tiny_path: Path, tmp_path: Path
) -> None:
    """At the beginning of each stage and at random moments after; during training at several steps."""
    write_workplace(tmp_path, tiny_path)
    longer = ["--set", "train.epochs=8"]  # 32 steps, a checkpoint every 3
    reference = karma("run", "tiny.toml", "--run-dir", "runs/whole", "--to", "adapter", *longer, cwd=tmp_path)
    assert reference.code == 0, reference.err
    generator = random.Random(0)
    run = tmp_path / "runs" / "killed"
    kills = [(name, begun(name), generator.uniform(0.0, 0.5)) for name in STAGES]
    kills[2:2] = [(f"adapter, record {n}", trained(n), generator.uniform(0.0, 0.05)) for n in (2, 6, 11, 17, 23, 30)]
    kept: dict[str, bytes] = {}
    continued = 0
    for name, moment, delay_s in kills:
        said = killed_when(tmp_path, moment, delay_s, *longer)
        assert "Traceback" not in said, name
        assert "error:" not in said, f"{name}: {said}"
        continued += "continuing where the last attempt stopped" in said
        for stage, manifest in kept.items():
            assert (run / stage / MANIFEST).read_bytes() == manifest, f"{stage} was made again (killed at {name})"
        kept |= {s: (run / s / MANIFEST).read_bytes() for s in STAGES if (run / s / MANIFEST).exists()}
    assert continued >= 4
    ended = karma("run", "tiny.toml", "--run-dir", run, *longer, cwd=tmp_path)
    assert ended.code == 0, ended.err
    for stage, manifest in kept.items():
        assert (run / stage / MANIFEST).read_bytes() == manifest, f"{stage} was made again"
    assert karma("verify", run, cwd=tmp_path).code == 0
    assert {path.parent.relative_to(run).as_posix() for path in run.rglob(MANIFEST)} == set(STAGES)
    assert not [path for path in run.rglob("*") if path.name.endswith(".tmp") or "checkpoint" in path.name]
    whole, killed = trajectory(tmp_path / "runs" / "whole"), trajectory(run)
    assert len(killed) == len(whole) > 32
    for a, b in zip(whole, killed, strict=True):
        assert a.keys() == b.keys()
        assert (a["step"], a["split"]) == (b["step"], b["split"])
        assert [b[key] for key in a if key != "split"] == pytest.approx(
            [a[key] for key in a if key != "split"], abs=1e-4
        )
