"""The commands: help without heavy imports, one line and an exit code for every mistake, what show and verify say."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

import tiny
from docsite.cli_pages import contexts, root
from karma_electric.asked import asked_config
from karma_electric.cli.main import guarded, main
from karma_electric.core.artifact import MANIFEST, amend, seal
from karma_electric.core.recipe import load_recipe
from karma_electric.core.resources import resource_root
from karma_electric.kept import write_kept
from karma_electric.stages import configs_of

ROOT = Path(__file__).resolve().parent.parent
ORIGINAL = ROOT / "bodhisattva_inference.py"
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "KARMA_DEBUG"} | {
    "PYTHONPATH": str(ROOT / "src"),
    "COLUMNS": "100",
}
HEAVY = {"torch", "transformers", "numpy", "peft", "datasets", "safetensors", "karma_electric.core.recipe"}
VERBS = [
    "run",
    "train",
    "merge",
    "chat",
    "serve",
    "bake",
    "card",
    "drift",
    "gguf",
    "modelfile",
    "push",
    "show",
    "verify",
    "doctor",
    "axis",
    "data",
    "redteam",
    "judge",
    "ollama",
]
RECIPE = """\
name = "trial"
model.base = "{base}"
persona.system_prompt = "Be kind."
persona.away = [""]
card.model_name = "trial"
card.license = "mit"
"""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    def refused(self, code: int, *named: str) -> None:
        """Check that it ended with this code and one line of error that names all of this."""
        assert self.code == code, self.err
        assert "Traceback" not in self.err
        line = self.err.splitlines()[-1]
        assert line.startswith("error: ")
        assert "Unexpected" not in line
        for part in named:
            assert part in line


def command(*words: object, cwd: Path) -> Ended:
    """Run a command line in a process of its own, as a user does."""
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        check=False,
        capture_output=True,
        text=True,
        cwd=cwd,
        env=ENVIRONMENT,
        timeout=120,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def karma(*words: object, cwd: Path) -> Ended:
    """Run `karma`."""
    return command("-m", "karma_electric", *words, cwd=cwd)


def karma_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> Ended:
    """Run `karma` in this process, where torch is loaded already."""
    monkeypatch.setattr(sys, "argv", ["karma", *map(str, words)])
    with pytest.raises(SystemExit) as exited:
        main()
    captured = capsys.readouterr()
    return Ended(int(exited.value.code or 0), captured.out, captured.err)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder with a recipe, a base model that is only a config, and a small corpus."""
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    (tmp_path / "trial.toml").write_text(RECIPE.format(base=tmp_path / "base"))
    (tmp_path / "words").mkdir()
    lines = (resource_root("corpus") / "adversarial.jsonl").read_text(encoding="utf-8").splitlines()[:4]
    (tmp_path / "words" / "adversarial.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path


# --- help


@pytest.mark.parametrize(
    "verb",
    [
        None,
        *VERBS,
        "axis convert",
        *(f"redteam {verb}" for verb in ("run", "compare", "report", "suites", "import")),
        "judge calibrate",
    ],
)
def test_help_has_an_example_and_imports_nothing_heavy(tmp_path: Path, verb: str | None) -> None:
    words = [*(verb or "").split(), "--help"]
    code = (
        f"import sys; sys.argv = ['karma', *{words!r}]\n"
        "from karma_electric.cli.main import main\n"
        "try: main()\n"
        "finally: print('modules:', *sys.modules)"
    )
    ended = command("-c", code, cwd=tmp_path)
    assert ended.code == 0
    text, _, modules = ended.out.partition("modules:")
    assert "Example" in text
    assert "karma " in text.partition("Example")[2]
    assert HEAVY & set(modules.split()) == set()
    if verb is None:  # for options typer itself imports pydantic
        assert "pydantic" not in modules.split()


@pytest.mark.slow
def test_the_guard_against_heavy_imports_can_fail(tmp_path: Path) -> None:
    """The names it looks for are those that the commands import when they work."""
    code = "import sys, torch, transformers, karma_electric.core.recipe; print(*sys.modules)"
    modules = set(command("-c", code, cwd=tmp_path).out.split())
    assert {"torch", "transformers", "numpy", "pydantic", "karma_electric.core.recipe"} <= modules


def test_every_verb_is_listed(tmp_path: Path) -> None:
    listed = karma("--help", cwd=tmp_path).out.partition("Commands:")[2].partition("Exit codes")[0]
    assert [line.split()[0] for line in listed.splitlines() if line.strip()] == VERBS


@pytest.mark.parametrize("group", ["", "axis", "data", "redteam", "judge", "ollama"])
def test_a_list_of_commands_says_each_in_whole_sentences(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], group: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    ended = karma_here(monkeypatch, capsys, *group.split(), "--help")
    listed = [line for line in ended.out.partition("Commands:\n")[2].partition("\n\n")[0].splitlines() if line]
    assert listed
    for line in listed:
        assert line.endswith("."), line
        assert not line.endswith("..."), line
        assert line[2] != " ", f"more than a line: {line}"


@pytest.mark.parametrize(
    ("verb", "named"),
    [
        (
            "judge calibrate",
            ["--labelled FILE", "the shipped ones else", "standard-200 else", "signals when not given"],
        ),
        (
            "redteam run",
            ["--seeds N", "recipe's number when", "of base, tuned, capped; the recipe's when", "--suite FILE"],
        ),
        ("redteam run", ["Another suite; the recipe's when not given", "ensemble:A+B; the recipe's when not given"]),
        ("redteam sheet", ["--seed SEED"]),
        ("data judge", ["--price-in PRICE Of a million tokens read, in any currency."]),
        ("data review", ["--accept ID Accept without a screen: an id, or several with commas.", "--reject ID"]),
    ],
)
def test_help_says_what_an_option_takes_and_what_holds_without_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verb: str, named: list[str]
) -> None:
    text = " ".join(karma_here(monkeypatch, capsys, *verb.split(), "--help").out.split())
    for part in named:
        assert part in text


def test_no_option_is_said_to_take_a_python_type() -> None:
    leaks = [
        f"{words}: {parameter.name}"
        for words, context in contexts(root())
        for parameter in context.command.get_params(context)
        if parameter.opts[0].startswith("-") and "<list" in (parameter.get_help_record(context) or [""])[0]
    ]
    assert leaks == []


def test_short_forms_of_help_and_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["merge"], ["data"], ["data", "release"]):
        short, long = (karma_here(monkeypatch, capsys, *words, option) for option in ("-h", "--help"))
        assert (short.code, short.out) == (0, long.out)
    short, long = (karma_here(monkeypatch, capsys, option) for option in ("-V", "--version"))
    assert (short.code, short.out) == (0, long.out)
    asked = karma_here(monkeypatch, capsys, "version")
    assert asked.code == 2
    assert "Did you mean '--version'?" in asked.err


def test_the_exit_codes_are_in_the_help(tmp_path: Path) -> None:
    text = " ".join(karma("--help", cwd=tmp_path).out.split())
    assert "0 ok, 1 a check did not pass, 2 wrong usage or bad input, 3 a missing extra, model or artifact" in text


def test_the_version(tmp_path: Path) -> None:
    ended = karma("--version", cwd=tmp_path)
    assert ended.code == 0
    assert ended.out.startswith("karma-electric ")


# --- mistakes on the command line of `karma run`


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        (["nowhere.toml"], 3, ["error: 'nowhere.toml' does not exist", "Shipped with the package: demo.toml"]),
        (["words"], 2, ["words is a folder", "Recipes end in .toml."]),
        (["trial.toml", "--set", "train.epoch=1"], 2, ["--set train.epoch: unknown key", "Did you mean train.epochs?"]),
        (["trial.toml", "--set", "train.epochs=many"], 2, ["train.epochs", "found 'many'"]),
        (["trial.toml", "--set", "epochs"], 2, ["--set 'epochs' is not KEY=VALUE"]),
        (["trial.toml", "--set", "model.base=./nowhere"], 3, ["'./nowhere' does not exist", "hub id"]),
        (["trial.toml", "--set", "model.base=words"], 3, ["words is a folder without config.json"]),
        (["trial.toml", "--set", "model.base=builtin:gpt"], 3, ["no 'builtin:gpt'", "builtin:smollm2-135m"]),
        (["trial.toml", "--set", "model.base=some-owner/no-model"], 3, ["could not be fetched from the hub"]),
        (["trial.toml", "--set", "release.corpus=nowhere"], 3, ["release.corpus: 'nowhere' does not exist"]),
        (["trial.toml", "--set", "redteam.suite=nowhere"], 3, ["redteam.suite: 'nowhere' does", "starter-30"]),
        (["trial.toml", "--set", "redteam.labelled=x.jsonl"], 3, ["redteam.labelled: 'x.jsonl' does not exist"]),
        (
            ["trial.toml", "--set", "axis.depth=[0.7, 0.9]", "--set", "axis.contrast=contrast20.jsonl"],
            3,
            ["axis.contrast: 'contrast20.jsonl' does not exist", "Did you mean 'contrast-200.jsonl'?"],
        ),
        (["trial.toml", "--from", "tarin"], 2, ["--from 'tarin' is not a stage", "release, adapter, merged"]),
        (["trial.toml", "--to", "tarin"], 2, ["--to 'tarin' is not a stage"]),
        (["trial.toml", "--from", "card", "--to", "release"], 2, ["--from card comes after --to release"]),
        (["trial.toml", "--from", "axis"], 3, ["runs/trial/release, which is not there", "--from release"]),
        (["trial.toml", "--run-dir", "trial.toml"], 2, ["trial.toml is a file, expected a folder"]),
        (["trial.toml", "--run-dir", "trial.toml/x"], 2, ["trial.toml is a file, expected a folder"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and value[0] == "trial.toml" else None,
)
def test_a_mistake_is_one_line_and_leaves_nothing(folder: Path, words: list[str], code: int, named: list[str]) -> None:
    before = sorted(folder.rglob("*"))
    ended = karma("run", *words, cwd=folder)
    ended.refused(code, *named)
    assert len(ended.err.splitlines()) == 1
    assert ended.out == ""
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    "words", [["rnu"], ["run"], ["run", "trial.toml", "--sett", "a=1"], ["chat"], ["chat", "base", "--alpha", "strong"]]
)
def test_wrong_usage_says_how(folder: Path, words: list[str]) -> None:
    ended = karma(*words, cwd=folder)
    assert ended.code == 2
    assert "Usage: " in ended.err
    assert "Error: " in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["show", ""], "PATH"),
        (["verify", ""], "PATH"),
        (["run", ""], "RECIPE"),
        (["chat", "", "--prompt", "Hi"], "MODEL"),
        (["run", "trial.toml", "--run-dir", ""], "--run-dir"),
        (["bake", "base", "cap", ""], "OUT"),
        (["data", "import", "words", ""], "PATHS"),
        (["data", "check", "words", "--against", ""], "--against"),
    ],
    ids=str,
)
def test_an_empty_word_is_not_taken_for_this_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], named: str
) -> None:
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))
    karma_here(monkeypatch, capsys, *words).refused(2, f"error: {named} is empty.", ". is this folder")
    assert sorted(folder.rglob("*")) == before


def test_a_system_prompt_may_be_empty(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    ended = karma_here(monkeypatch, capsys, "chat", "nowhere", "--system", "", "--prompt", "Hi")
    assert "empty" not in ended.err


# --- bad corpus lines, through the whole command


@pytest.mark.parametrize(("kind", "named"), [("json", "not JSON"), ("turns", "user turn after user")])
def test_a_bad_corpus_line_is_named_and_mending_it_is_enough(folder: Path, kind: str, named: str) -> None:
    file = folder / "words" / "adversarial.jsonl"
    good = file.read_text(encoding="utf-8")
    bad = "{'id': 1}\n"
    if kind == "turns":
        example = json.loads(good.splitlines()[0])
        example |= {"id": "adversarial-9999", "messages": [example["messages"][0], *example["messages"]]}
        bad = json.dumps(example) + "\n"
    file.write_text(good + bad, encoding="utf-8")
    words = ["run", "trial.toml", "--to", "release", "--set", "release.corpus=words"]
    karma(*words, cwd=folder).refused(2, "adversarial.jsonl line 5: ", named)
    assert not (folder / "runs" / "trial" / "release").exists()
    file.write_text(good, encoding="utf-8")
    assert karma(*words, cwd=folder).code == 0
    assert karma("verify", "runs/trial", cwd=folder).code == 0


def test_a_second_run_in_the_same_folder_is_turned_away(folder: Path) -> None:
    (folder / "here").mkdir()
    with FileLock(folder / "here" / ".lock"):
        ended = karma("run", "trial.toml", "--to", "release", "--run-dir", "here", cwd=folder)
    ended.refused(2, "Another karma run is working in here.", "--run-dir")
    assert [path.name for path in (folder / "here").iterdir()] == [".lock"]


def test_other_settings_are_refused_with_what_differs(folder: Path) -> None:
    words = ["run", "trial.toml", "--to", "release", "--set", "release.corpus=words"]
    assert karma(*words, cwd=folder).code == 0
    other = [*words, "--set", "release.seed=1"]
    karma(*other, cwd=folder).refused(2, "runs/trial/release was made from something else: seed: 0 -> 1.", "--force")
    assert karma(*other, "--force", cwd=folder).code == 0


def test_of_an_edited_corpus_a_broken_line_is_told_before_any_advice_to_replace(folder: Path) -> None:
    words = ["run", "trial.toml", "--to", "release", "--set", "release.corpus=words"]
    assert karma(*words, cwd=folder).code == 0
    file = folder / "words" / "adversarial.jsonl"
    good = file.read_text(encoding="utf-8")
    file.write_text(good + "{'id': 1}\n", encoding="utf-8")
    for dry_run in ([], ["--dry-run"]):
        broken = karma(*words, *dry_run, cwd=folder)
        broken.refused(2, "adversarial.jsonl line 5: not JSON")
        assert "--force" not in broken.err
    file.write_text("".join(good.splitlines(keepends=True)[:3]), encoding="utf-8")
    karma(*words, cwd=folder).refused(2, "the corpus has changed since", "--force")


def test_the_recipe_is_kept_with_its_overrides_and_runs_again(folder: Path) -> None:
    words = ["--to", "release", "--set", "release.corpus=words", "--set", "release.validation_fraction=0.25"]
    assert karma("run", "trial.toml", *words, cwd=folder).code == 0
    ended = karma("run", "runs/trial/recipe.toml", "--to", "release", "--json", cwd=folder)
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["stages"] == {"release": "skipped"}


def test_a_dry_run_lists_every_stage_and_makes_nothing(folder: Path) -> None:
    ended = karma("run", "trial.toml", "--dry-run", cwd=folder)
    assert ended.code == 0
    lines = dict(line.split(maxsplit=1) for line in ended.out.splitlines())
    stages = ["release", "adapter", "merged", "axis", "capped", "gguf", "redteam/base", "redteam/tuned"]
    assert lines == dict.fromkeys([*stages, "redteam/capped", "report", "card"], "would be made")
    assert not (folder / "runs").exists()


def test_a_dry_run_of_a_release_makes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    words = ["data", "release", "trial.toml", "--set", "release.corpus=words"]
    ended = karma_here(monkeypatch, capsys, *words, "--dry-run")
    assert (ended.code, ended.out.split(maxsplit=1)) == (0, ["release", "would be made\n"])
    assert not (folder / "runs").exists()
    ended = karma_here(monkeypatch, capsys, *words, "--dry-run", "--json")
    assert json.loads(ended.out) == {"run": "runs/trial", "stages": {"release": "would be made"}}
    assert karma_here(monkeypatch, capsys, *words).code == 0
    assert karma_here(monkeypatch, capsys, *words, "--dry-run").out.split(maxsplit=1)[1] == "already there\n"
    other = karma_here(monkeypatch, capsys, *words, "--dry-run", "--set", "release.seed=3")
    assert "would be refused without --force" in other.out


@pytest.mark.parametrize("words", [["--dry-run"], []], ids=["dry", "real"])
def test_a_base_that_can_hold_no_cap_is_refused_before_it_is_trained(folder: Path, words: list[str]) -> None:
    (folder / "base" / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}')
    ended = karma("run", "trial.toml", *words, cwd=folder)
    ended.refused(2, "cannot go on to the stage capped", "GPT2LMHeadModel cannot hold a cap neuron", "--to axis")
    assert not (folder / "runs").exists()
    assert karma("run", "trial.toml", "--dry-run", "--to", "axis", cwd=folder).code == 0


# --- show and verify


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of three linked artifacts."""
    folder = tmp_path / "runs" / "trial"
    ids: dict[str, str] = {"corpus": "0" * 16}
    for name, source in (("release", "corpus"), ("adapter", "release"), ("redteam/base", "adapter")):
        (folder / name).mkdir(parents=True)
        (folder / name / "out.txt").write_text(f"text of {name}")
        kind = name.partition("/")[0]
        ids[name] = seal(folder / name, kind=kind, config={"seed": 0}, inputs={source: ids[source]}).id
    return folder


def test_show_lists_the_artifacts_in_the_order_they_are_made(run: Path) -> None:
    ended = karma("show", run, cwd=run)
    assert ended.code == 0
    assert [line.split()[0] for line in ended.out.splitlines()] == ["artifact", "release", "adapter", "redteam/base"]
    found = json.loads(karma("show", run, "--json", cwd=run).out)
    assert {name: manifest["kind"] for name, manifest in found.items()} == {
        "release": "release",
        "adapter": "adapter",
        "redteam/base": "redteam",
    }


def test_show_tells_small_artifacts_in_kilobytes(run: Path) -> None:
    (run / "adapter" / "weights.bin").write_bytes(bytes(3_200_000))
    amend(run / "adapter", names=["weights.bin"])
    (run / "release" / "words.txt").write_bytes(bytes(30_000))
    amend(run / "release", names=["words.txt"])
    sizes = {line.split()[0]: " ".join(line.split()[2:4]) for line in karma("show", run, cwd=run).out.splitlines()}
    assert sizes["adapter"] == "3.2 MB"
    assert sizes["release"] == "30.0 kB"
    assert sizes["redteam/base"] == "20 B"


def test_show_tells_of_one_artifact_everything_its_manifest_holds(run: Path) -> None:
    ended = karma("show", run / "adapter", cwd=run)
    manifest = json.loads((run / "adapter" / MANIFEST).read_text())
    assert ended.code == 0
    for part in ("adapter", manifest["id"], "out.txt", "seed", manifest["inputs"]["release"], "torch"):
        assert part in ended.out


def test_show_explains_every_key_of_a_recipe(tmp_path: Path) -> None:
    ended = karma("show", "recipes/demo.toml", cwd=tmp_path)
    assert ended.code == 0
    lines = ended.out.splitlines()
    assert "epochs = 1.0  # passes over the training split" in lines
    assert 'base = "builtin:smollm2-135m"  # a local folder, a hub id, or builtin:smollm2-135m' in lines
    assert "[axis]  # Direction extraction and calibration of the cap." in lines
    assert [line for line in lines if line and "  # " not in line] == []


@pytest.mark.parametrize("verb", ["show", "verify"])
@pytest.mark.parametrize(
    ("path", "named"),
    [("base/..", "has no artifacts"), ("nowhere", "nowhere does not exist"), ("base/config.json", "is no run")],
)
def test_where_nothing_was_made_it_says_how_to_make_a_run(folder: Path, verb: str, path: str, named: str) -> None:
    ended = karma(verb, path, cwd=folder)
    ended.refused(3, named, "karma run recipes/demo.toml")
    assert len(ended.err.splitlines()) == 1


@pytest.mark.parametrize(
    "words",
    [
        ["chat", "runs/demo"],
        ["chat", "runs/demo/gguf/a.gguf"],
        ["serve", "runs/demo/merged", "--port", "0"],
        ["chat", "base", "--cap", "runs/demo/axis"],
        ["redteam", "compare", "runs/demo", "base"],
        ["axis", "show", "runs/demo"],
        ["drift", "talk.json", "--cap", "runs/demo/axis"],
        ["ollama", "create", "trial", "runs/demo"],
    ],
    ids=" ".join,
)
def test_of_a_run_that_is_not_there_every_command_says_how_to_make_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    monkeypatch.chdir(folder)
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    (folder / "talk.json").write_text(json.dumps({"messages": talk}))
    ended = karma_here(monkeypatch, capsys, *words)
    ended.refused(3, "runs/demo", "does not exist", "Make a run first: karma run recipes/demo.toml")


def test_of_a_stage_that_was_not_made_yet_it_says_how_to_make_that(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    (folder / "runs" / "trial").mkdir(parents=True)
    shutil.copyfile(folder / "trial.toml", folder / "runs" / "trial" / "recipe.toml")
    ended = karma_here(monkeypatch, capsys, "chat", "runs/trial/merged")
    ended.refused(3, "karma run runs/trial/recipe.toml --run-dir runs/trial --to merged")


def test_show_of_a_missing_recipe(tmp_path: Path) -> None:
    karma("show", "nowhere.toml", cwd=tmp_path).refused(3, "'nowhere.toml' does not exist")


def test_verify_finds_a_whole_run_ok(run: Path) -> None:
    ended = karma("verify", run, cwd=run)
    assert ended.code == 0
    assert [line.split() for line in ended.out.splitlines()] == [
        ["release", "ok"],
        ["adapter", "ok"],
        ["redteam/base", "ok"],
        ["not", "made", "yet:", "merged,", "axis,", "capped,", "gguf,", "report,", "card"],
    ]
    assert json.loads(karma("verify", run, "--json", cwd=run).out)["ok"] is True


def test_verify_takes_only_stages_for_inputs_of_the_run(run: Path) -> None:
    (run / "corpus").mkdir()
    seal(run / "corpus", kind="corpus", config={}, inputs={})  # a folder whose name is a role by chance
    ended = karma("verify", run, cwd=run)
    assert ended.code == 0, ended.out


def test_verify_finds_an_artifact_that_lost_its_manifest(run: Path) -> None:
    (run / "adapter" / "manifest.json").unlink()
    ended = karma("verify", run, cwd=run)
    assert ended.code == 1
    assert "adapter          has no manifest" in ended.out


def test_verify_finds_an_input_whose_contents_are_others_now(run: Path) -> None:
    manifest = json.loads((run / "adapter" / "manifest.json").read_text())
    manifest["parents"] = {"release": "0" * 64}
    (run / "adapter" / "manifest.json").write_text(json.dumps(manifest))
    ended = karma("verify", run, cwd=run)
    assert ended.code == 1
    assert "was made from other contents of release than lie here" in ended.out


def _replace(run: Path, name: str) -> None:
    manifest = json.loads((run / name / MANIFEST).read_text())
    (run / name / MANIFEST).unlink()
    seal(run / name, kind=manifest["kind"], config={"seed": 1}, inputs=manifest["inputs"])


@pytest.mark.parametrize(
    ("spoil", "artifact", "problem"),
    [
        (lambda run: (run / "adapter" / "out.txt").write_text("text of adaptor"), "adapter", "out.txt was changed"),
        (lambda run: (run / "adapter" / "out.txt").unlink(), "adapter", "out.txt is missing"),
        (lambda run: (run / "adapter" / "more.txt").write_text("x"), "adapter", "more.txt is not in the manifest"),
        (lambda run: shutil.rmtree(run / "release"), "adapter", "was made from release, which is missing"),
        (lambda run: _replace(run, "release"), "adapter", "was made from another release"),
        (lambda run: _replace(run, "adapter"), "redteam/base", "was made from another adapter"),
    ],
    ids=["changed", "missing", "added", "input gone", "input replaced", "deeper input replaced"],
)
def test_verify_names_what_is_not_intact(
    run: Path, spoil: Callable[[Path], object], artifact: str, problem: str
) -> None:
    spoil(run)
    ended = karma("verify", run, "--json", cwd=run)
    ended.refused(1, "1 of ", "artifacts are not intact", "--force")
    found = json.loads(ended.out)
    assert found["ok"] is False
    assert [name for name, problems in found["artifacts"].items() if problems] == [artifact]
    assert problem in found["artifacts"][artifact][0]


def test_verify_of_one_artifact_looks_at_that_one(run: Path) -> None:
    (run / "adapter" / "out.txt").write_text("text of adaptor")
    assert karma("verify", run / "release", cwd=run).code == 0
    karma("verify", run / "adapter", cwd=run).refused(1, "1 of 1 artifacts")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"kind": "adap', "manifest.json is not JSON"),
        ("[]", "manifest.json is not a manifest"),
    ],
    ids=["torn", "a list"],
)
def test_verify_tells_a_bad_manifest_as_a_problem_of_its_artifact_and_goes_on(
    run: Path, text: str, problem: str
) -> None:
    (run / "adapter" / MANIFEST).write_text(text)
    (run / "release" / "out.txt").unlink()
    ended = karma("verify", run, cwd=run)
    ended.refused(1, "2 of 3 artifacts are not intact.", f"karma run RECIPE --run-dir {run} --force")
    lines = ended.out.splitlines()
    assert [lines[0], lines[2]] == ["release          out.txt is missing", "redteam/base     ok"]
    assert lines[1].startswith(f"adapter          {problem}")
    single = karma("verify", run / "adapter", cwd=run)
    single.refused(1, "1 of 1 artifacts")
    assert problem in single.out


def test_what_verify_advises_for_a_bad_manifest_makes_the_artifact_again(folder: Path) -> None:
    assert karma("run", "trial.toml", "--to", "release", "--set", "release.corpus=words", cwd=folder).code == 0
    (folder / "runs" / "trial" / "release" / MANIFEST).write_text("{")
    advised = "karma run runs/trial/recipe.toml --run-dir runs/trial --force"
    karma("verify", "runs/trial", cwd=folder).refused(1, advised)
    assert karma(*advised.split()[1:], "--to", "release", cwd=folder).code == 0
    assert karma("verify", "runs/trial", cwd=folder).code == 0


@pytest.mark.parametrize("part", ["redteam", "redteam/.", "axis"])
def test_verify_of_a_part_that_is_no_artifact_names_the_run(run: Path, tmp_path: Path, part: str) -> None:
    (run / "axis").mkdir()
    ended = karma("verify", f"runs/trial/{part}", cwd=tmp_path)
    ended.refused(2, "is part of the run runs/trial, and no artifact", "karma verify runs/trial")
    assert ended.out == ""
    karma("verify", ".", cwd=run / part).refused(2, f"karma verify {run}")


def test_verify_takes_a_run_below_a_folder_with_a_recipe_for_a_run(run: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE.format(base="base"))
    assert karma("verify", "runs/trial", cwd=tmp_path).code == 0


# --- the recipe of a run


@pytest.fixture
def recorded(folder: Path) -> Path:
    """A run with the manifests of a recipe, the base answering under five seeds; nothing was trained."""
    loaded = load_recipe(folder / "trial.toml", ["redteam.seeds=5", "redteam.temperature=0.7"])
    made = folder / "runs" / "trial"
    configs = {**configs_of(loaded), "redteam/base": {**asked_config(loaded), "dtype": "auto"}}
    configs["benign/base"] = {**asked_config(loaded, "benign"), "dtype": "auto"}
    ids: dict[str, str] = {}
    for name, config in sorted(configs.items(), key=lambda item: item[0] == "report"):
        (made / name).mkdir(parents=True)
        inputs = {"redteam/base": ids["redteam/base"]} if name == "report" else {}
        ids[name] = seal(made / name, kind=name.partition("/")[0], config=config, inputs=inputs).id
    text = (folder / "trial.toml").read_text()
    (made / "recipe.toml").write_text(f'{text}redteam.seeds = 5\nredteam.temperature = 0.7\nredteam.arms = ["base"]\n')
    return made


def test_verify_finds_the_recipe_that_a_run_was_made_by_ok(recorded: Path, folder: Path) -> None:
    ended = karma("verify", "runs/trial", cwd=folder)
    assert ended.code == 0, ended.out
    assert "recipe.toml      ok" in ended.out.splitlines()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("seeds = 5", "seeds = 3", "redteam.seeds is 3, and 5 in redteam/base, benign/base"),
        ("redteam.seeds = 5", "", "redteam.seeds is 1, and 5 in redteam/base, benign/base"),
        ("redteam.seeds", "train.epochs = 9\nredteam.seeds", "train.epochs is 9.0, and 3.0 in adapter"),
        ("redteam.seeds", "release.seed = 4\nredteam.seeds", "release.seed is 4, and 0 in release"),
        (
            "redteam.seeds",
            "axis.depth = [0.7, 0.88]\naxis.alpha = 1\nredteam.seeds",
            "axis.alpha is 1.0, and 0.5 in axis",
        ),
        ("redteam.seeds", 'model.dtype = "float32"\nredteam.seeds', 'model.dtype is "float32", and "auto" in adapter'),
        ("redteam.seeds", 'redteam.scorer = "llm:a/b"\nredteam.seeds', 'redteam.scorer is "llm:a/b", and "signals"'),
        ("redteam.seeds", 'redteam.benign_scorer = "llm:a/b"\nredteam.seeds', 'redteam.benign_scorer is "llm:a/b"'),
        ('"mit"', '"apache-2.0"', 'card.license is "apache-2.0", and "mit" in gguf, report, card'),
        ("Be kind.", "Be rude.", 'persona.system_prompt is "Be rude.", and "Be kind." in release'),
        ('["base"]', '["base", "tuned"]', 'redteam.arms is ["base", "tuned"], and ["base"] in report'),
        ("name =", "nam =", "unknown key 'nam'"),
        ("name =", "[", "is not TOML"),
    ],
)
def test_verify_names_the_key_of_a_recipe_that_is_another_now(
    recorded: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], old: str, new: str, said: str
) -> None:
    recipe = recorded / "recipe.toml"
    recipe.write_text(recipe.read_text().replace(old, new, 1))
    ended = karma_here(monkeypatch, capsys, "verify", recorded, "--json")
    ended.refused(1, "recipe.toml is not as it should be", f"{recorded}/recipe.toml", "put" if "TOML" in said else "")
    found = json.loads(ended.out)
    assert not found["ok"]
    assert said in "; ".join(found["files"]["recipe.toml"])
    assert not any(found["artifacts"].values())


# --- kept results: the small files of a run, without its weights


@pytest.fixture
def kept(run: Path, tmp_path: Path) -> Path:
    """What is kept of that run: of its adapter, a file was left out."""
    (run / "adapter" / MANIFEST).unlink()
    (run / "adapter" / "weights.bin").write_text("large")
    release = json.loads((run / "release" / MANIFEST).read_text())["id"]
    adapter = seal(run / "adapter", kind="adapter", config={"seed": 0}, inputs={"release": release})
    (run / "redteam" / "base" / MANIFEST).unlink()
    seal(run / "redteam" / "base", kind="redteam", config={"seed": 0}, inputs={"adapter": adapter.id})
    folder = tmp_path / "results" / "trial"
    shutil.copytree(run, folder)
    (folder / "adapter" / "weights.bin").unlink()
    (folder / "recipe.toml").write_text(RECIPE.format(base="base"))
    write_kept(folder)
    return folder


def test_verify_takes_what_kept_results_left_out_for_no_damage(kept: Path, tmp_path: Path) -> None:
    ended = karma("verify", "results/trial", cwd=tmp_path)
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    assert lines[:3] == [
        "release          ok",
        "adapter          ok, 1 file left out on purpose",
        "redteam/base     ok",
    ]
    assert lines[-1] == "These are kept results: 1 file left out on purpose (kept.json)."
    found = json.loads(karma("verify", "results/trial", "--json", cwd=tmp_path).out)
    assert (found["ok"], found["left_out"]) == (True, ["adapter/weights.bin"])
    single = karma("verify", "results/trial/adapter", cwd=tmp_path)
    assert (single.code, single.out.splitlines()[0]) == (0, "adapter          ok, 1 file left out on purpose")


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda folder: (folder / "adapter" / "out.txt").unlink(), "out.txt is missing"),
        (lambda folder: (folder / "adapter" / "weights.bin").write_text("other"), "weights.bin was changed"),
    ],
    ids=["one that was kept is gone", "one that was left out is another"],
)
def test_verify_of_spoilt_kept_results_advises_nothing_that_replaces_them(
    kept: Path, tmp_path: Path, spoil: Callable[[Path], object], problem: str
) -> None:
    spoil(kept)
    for path in ("results/trial", "results/trial/adapter"):
        ended = karma("verify", path, cwd=tmp_path)
        ended.refused(1, "not intact", "git diff results/trial", "in runs/trial: karma run results/trial/recipe.toml")
        assert problem in ended.out
        assert "--force" not in ended.err
        assert "--run-dir" not in ended.err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "kept.json        is not JSON"),
        ('{"left_out": "adapter/weights.bin"}', "kept.json        holds no list left_out"),
        ('{"left_out": ["adapter/weights.bin", "adapter/no.bin"]}', "lists adapter/no.bin, which no artifact here has"),
    ],
    ids=["torn", "no list", "a file of no artifact"],
)
def test_verify_tells_of_a_bad_list_of_what_was_left_out(kept: Path, tmp_path: Path, text: str, said: str) -> None:
    (kept / "kept.json").write_text(text)
    ended = karma("verify", "results/trial", cwd=tmp_path)
    ended.refused(1, "kept.json is not as it should be", "git diff results/trial")
    assert said in ended.out
    assert "redteam/base     ok" in ended.out


def test_verify_of_kept_results_is_the_same_from_within(kept: Path) -> None:
    assert karma("verify", ".", cwd=kept / "adapter").code == 0
    assert karma("verify", "adapter", cwd=kept).code == 0


@pytest.mark.parametrize(
    ("words", "given"),
    [
        (["chat", "results/demo/merged"], "runs/demo/merged"),
        (["chat", "results/demo/gguf/karma-electric-smollm2-135m-demo-q8_0.gguf"], "runs/demo/gguf/karma-electric"),
        (["serve", "results/demo/capped", "--port", "0"], "runs/demo/capped"),
        (["serve", "results/demo", "--port", "0"], "runs/demo/merged."),
        (["axis", "show", "results/demo"], "runs/demo."),
        (["axis", "show", "results/demo/axis"], "runs/demo/axis."),
    ],
    ids=" ".join,
)
def test_what_needs_the_weights_of_kept_results_says_how_to_have_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], given: str
) -> None:
    monkeypatch.chdir(ROOT)
    ended = karma_here(monkeypatch, capsys, *words)
    ended.refused(
        3, "kept figures of a run without its weights", f"karma run results/demo/recipe.toml. Then give {given}"
    )


# --- chat, and the original's command line


@pytest.fixture
def models(folder: Path) -> Path:
    """Model folders that are only a config, one of them with its cap compiled in."""
    for name in ("merged", "capped"):
        shutil.copytree(folder / "base", folder / name)
    (folder / "capped" / "karma").mkdir()
    (folder / "capped" / "karma" / "cap_neurons.safetensors").touch()
    return folder


@pytest.mark.parametrize("script", ["karma chat", "original"])
@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        (["nowhere/at/all", "--prompt", "Hi"], 3, ["'nowhere/at/all' does not exist"]),
        (["merged", "--prompt", "  "], 2, ["--prompt is empty"]),
        (["merged", "--alpha", "1.5", "--prompt", "Hi"], 2, ["--alpha is 1.5", "from 0 (off) to 1 (hard)"]),
        (["merged", "--alpha=-0.1", "--prompt", "Hi"], 2, ["--alpha is -0.1"]),
        (["merged", "--alpha", "nan", "--prompt", "Hi"], 2, ["--alpha is nan"]),
        (["merged", "--cap", "nowhere.json", "--prompt", "Hi"], 3, ["The cap nowhere.json does not exist"]),
        (["merged", "--cap", "base", "--prompt", "Hi"], 3, ["The cap base does not exist"]),
        (["merged", "--alpha", "0.5", "--prompt", "Hi"], 3, ["There is no cap beside", "--cap"]),
        (["merged", "--compare", "--prompt", "Hi"], 3, ["There is no cap beside"]),
        (["capped", "--alpha", "0.5", "--prompt", "Hi"], 2, ["has its cap compiled into the weights", "merged"]),
        (["capped", "--alpha", "0", "--prompt", "Hi"], 2, ["has its cap compiled into the weights", "merged"]),
        (["capped", "--cap", "base", "--prompt", "Hi"], 2, ["has its cap compiled into the weights"]),
    ],
    ids=lambda value: " ".join(value[:-2]) if isinstance(value, list) and "--prompt" in value else None,
)
def test_a_mistake_before_a_chat_is_one_line(
    models: Path, script: str, words: list[str], code: int, named: list[str]
) -> None:
    ended = (
        karma("chat", *words, cwd=models)
        if script == "karma chat"
        else command(ORIGINAL, "--model", *words, cwd=models)
    )
    ended.refused(code, *named)
    assert len(ended.err.splitlines()) == 1


def test_the_originals_help_has_an_example(tmp_path: Path) -> None:
    ended = command(ORIGINAL, "--help", cwd=tmp_path)
    assert ended.code == 0
    text = " ".join(ended.out.split())
    assert "Example: python bodhisattva_inference.py --model ./runs/demo/merged --alpha 0.5 --interactive" in text


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "--model"),
        (["--model", "m", "--interactive", "--prompt", "Hi"], "exclude each other"),
        (["--model", "m", "--alpha", "strong"], "invalid float value: 'strong'"),
        (["--model", "m", "--max-new-tokens", "0"], "--max-new-tokens must be at least 1"),
        (["--model", "m", "--temperature", "-1"], "--temperature at least 0"),
    ],
)
def test_the_originals_wrong_usage_says_how(tmp_path: Path, words: list[str], named: str) -> None:
    ended = command(ORIGINAL, *words, cwd=tmp_path)
    assert ended.code == 2
    assert ended.err.startswith("usage: bodhisattva_inference.py")
    assert named in ended.err.splitlines()[-1]


def test_a_cap_of_another_hidden_size_is_refused(
    tmp_path: Path, tiny_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from karma_electric.steer.axis import save_axis
    from karma_electric.steer.spec import AXIS_FILE, CAP_FILE, CapSpec, save_spec

    save_axis(tiny.random_axis(hidden=32), tmp_path / AXIS_FILE)
    save_spec(CapSpec(AXIS_FILE, "mlp", (2, 3), {2: 0.0, 3: 0.0}, 0.5), tmp_path / CAP_FILE)
    ended = karma_here(monkeypatch, capsys, "chat", tiny_path, "--cap", tmp_path, "--prompt", "Hi")
    ended.refused(2, "hidden size 32", f"{tiny.HIDDEN}")
    assert len(ended.err.splitlines()) == 1


def test_a_damaged_model_is_one_line(
    tmp_path: Path, tiny_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_path, tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    karma_here(monkeypatch, capsys, "chat", tmp_path / "model", "--prompt", "Hi").refused(2, "could not be loaded")


def test_a_missing_extra_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("karma_electric.core.extras.is_present", lambda module: module != "accelerate")
    ended = karma_here(monkeypatch, capsys, "chat", tmp_path, "--prompt", "Hi")
    ended.refused(3, "needs accelerate", "pip install -c constraints.txt -e '.[model]'")


def test_doctor_says_what_is_missing_and_what_it_would_enable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("karma_electric.core.extras.is_present", lambda module: module != "xllamacpp")
    text = karma_here(monkeypatch, capsys, "doctor")
    assert text.code == 0
    assert "gguf         missing xllamacpp: would enable GGUF files" in text.out
    assert "pip install -c constraints.txt -e '.[gguf]'" in text.out
    found = json.loads(karma_here(monkeypatch, capsys, "doctor", "--json").out)
    assert {extra["name"] for extra in found["extras"] if extra["missing"]} == {"gguf"}


# --- however a command ends


@pytest.mark.parametrize(
    ("error", "code", "named"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 2, "The disk is full. Free some space"),
        (PermissionError(errno.EACCES, "Permission denied", "/some/file"), 2, "No permission for /some/file"),
        (KeyboardInterrupt(), 130, "Stopped. Run the same command again to continue."),
        (ZeroDivisionError("division\nby zero"), 70, "Unexpected ZeroDivisionError: division. This is a bug."),
    ],
    ids=["disk", "permission", "interrupt", "bug"],
)
def test_what_nobody_caught_is_one_line_too(
    error: BaseException, code: int, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(SystemExit) as exited:
        guarded(fail)
    assert exited.value.code == code
    [line] = capsys.readouterr().err.splitlines()
    assert named in line


def test_ctrl_c_says_how_to_continue(tmp_path: Path) -> None:
    code = (
        "import signal, sys, time; from karma_electric.cli import inspect, main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background job inherits that it is ignored
        "def long_work(path): print('at work', flush=True); time.sleep(60)\n"
        "inspect.artifacts_of = long_work; sys.argv = ['karma', 'show', '.']; main.main()"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], text=True, env=ENVIRONMENT, cwd=tmp_path, **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "at work\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err == "error: Stopped. Run the same command again to continue.\n"


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    """As in `karma show recipes/demo.toml | head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "karma_electric", "show", "recipes/demo.toml"],
        check=False,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=ENVIRONMENT,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.slow
def test_a_dry_run_of_training_says_what_it_takes_and_makes_nothing(tmp_path: Path, tiny_path: Path) -> None:
    recipe = tmp_path / "trial.toml"
    recipe.write_text(RECIPE.format(base=tiny_path), encoding="utf-8")
    changes = ("--set", "train.quantisation=none", "--set", "train.epochs=2", "--set", "train.max_length=4000")
    ended = karma("train", str(recipe), "--dry-run", *changes, cwd=tmp_path)
    assert ended.code == 0, ended.err
    for word in ("examples", "tokens", "steps", "trainable", "memory", "disk", "time"):
        assert word in ended.out
    assert [path.name for path in tmp_path.iterdir()] == ["trial.toml"]
    found = json.loads(karma("train", str(recipe), "--dry-run", "--json", *changes, cwd=tmp_path).out)
    assert found["steps"] > 0
    assert found["memory_bytes_total"] == sum(found["memory_bytes"].values())
