"""`karma gguf`, `karma modelfile` and `karma ollama`: from a checkpoint to a model in Ollama."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest

import tiny
from exported import write_model, write_tokenizer
from karma_electric.core import artifact
from karma_electric.core.artifact import damage
from karma_electric.export import gguf as export
from karma_electric.export.gguf_header import read_values
from test_cli import Ended, karma_here
from test_modelfile import parse_modelfile

PROMPTS = "".join(
    json.dumps({"id": f"p{n}", "kind": "everyday", "prompt": prompt.text}) + "\n"
    for n, prompt in enumerate(tiny.prompts(2))
)
Run = Any


@pytest.fixture
def karma(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `karma` in this process."""

    def run(*words: object) -> Ended:
        return karma_here(monkeypatch, capsys, *words)

    return run


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.jsonl"
    file.write_text(PROMPTS)
    return file


def test_an_export_is_an_artifact_with_its_lineage(karma: Run, tiny_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "made"
    ended = karma("gguf", tiny_path, out, "--type", "f16", "--name", "tiny", "--license", "mit", "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out) == {
        "file": str(out / "tiny-f16.gguf"),
        "bytes": (out / "tiny-f16.gguf").stat().st_size,
    }
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["kind"], manifest["config"]) == ("gguf", {"type": "f16", "name": "tiny", "license": "mit"})
    assert damage(out) == []
    said = read_values(out / "tiny-f16.gguf", ["general.license", "general.name", "karma.model"])
    assert said == {"general.license": "mit", "general.name": "tiny", "karma.model": manifest["inputs"]["model"]}
    assert (
        "already there, skipped"
        in karma("gguf", tiny_path, out, "--type", "f16", "--name", "tiny", "--license", "mit").err
    )
    other = karma("gguf", tiny_path, out, "--type", "q8_0", "--name", "tiny")
    assert other.code == 2
    assert "--force" in other.err
    assert sorted(file.name for file in tmp_path.iterdir()) == ["made"]


def test_the_check_is_a_gate_and_its_figures_are_in_the_manifest(
    karma: Run, tiny_path: Path, tmp_path: Path, prompts: Path
) -> None:
    out = tmp_path / "made"
    arguments = ("gguf", tiny_path, out, "--type", "f32", "--prompts", prompts)
    assert karma(*arguments).code == 0
    ended = karma(*arguments, "--check", "--system", tiny.PERSONA)  # of the file that is there
    assert ended.code == 0, ended.err
    assert "52 of 52 texts" in ended.out
    measured = json.loads((out / "manifest.json").read_text())["measured"]["parity"]
    assert measured["greedy_agreement"] == 1.0
    assert measured["mean_kl_nats"] < 1e-6
    assert damage(out) == []


def test_a_file_is_compared_again_only_where_something_else_is_asked(
    karma: Run, tiny_path: Path, tmp_path: Path, prompts: Path
) -> None:
    def check(*words: object) -> tuple[bool, dict[str, Any]]:
        """Whether it was compared, and the figures that are kept."""
        ended = karma("gguf", tiny_path, tmp_path / "made", "--type", "f16", "--check", "--prompts", prompts, *words)
        assert ended.code == 0, ended.err
        assert damage(tmp_path / "made") == []
        figures = json.loads((tmp_path / "made" / "manifest.json").read_text())["measured"]["parity"]
        return "comparing with transformers" in ended.err, figures

    compared, first = check()
    assert (compared, first["system"]) == (True, None)
    assert check() == (False, first)
    compared, persona = check("--system", tiny.PERSONA)
    assert (compared, persona["system"]) == (True, tiny.PERSONA)
    prompts.write_text(PROMPTS.splitlines()[0])
    compared, fewer = check("--system", tiny.PERSONA)
    assert (compared, fewer["n_prompts"]) == (True, 1)


def test_figures_that_are_kept_are_held_against_the_limits_asked_for_now(
    karma: Run, tiny_path: Path, tmp_path: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "interleave_rotary", lambda rows, _: rows)
    arguments = ("gguf", tiny_path, tmp_path / "made", "--check", "--prompts", prompts)
    assert karma(*arguments, "--max-kl", "100").code == 0
    assert karma(*arguments, "--max-kl", "100").code == 0
    for limit in ((), ("--max-kl", "0.01")):
        again = karma(*arguments, *limit)
        assert again.code == 1
        assert "mean KL of" in again.err
        assert "comparing with transformers" not in again.err


def test_a_kill_while_figures_are_noted_leaves_a_whole_artifact(
    karma: Run, tiny_path: Path, tmp_path: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("killed")

    arguments = ("gguf", tiny_path, tmp_path / "made", "--type", "f32", "--prompts", prompts)
    assert karma(*arguments).code == 0
    monkeypatch.setattr(artifact, "amend", killed)
    assert "killed" in karma(*arguments, "--check").err
    assert damage(tmp_path / "made") == []


def test_a_file_that_is_not_the_model_is_refused(
    karma: Run, tiny_path: Path, tmp_path: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "interleave_rotary", lambda rows, _: rows)
    ended = karma("gguf", tiny_path, tmp_path / "made", "--check", "--prompts", prompts)
    assert ended.code == 1
    assert "mean KL of" in ended.err
    assert not (tmp_path / "made").exists()


def test_what_cannot_be_exported_is_said_with_what_can(karma: Run, tiny_path: Path, tmp_path: Path) -> None:
    file = karma("gguf", tiny_path, tmp_path / "x.gguf")
    assert (file.code, "--name x" in file.err) == (2, True)
    kind = karma("gguf", tiny_path, tmp_path / "x", "--type", "q4_k_m")
    assert kind.code == 2
    assert "llama-quantize" in kind.err
    gpt = tmp_path / "gpt"
    shutil.copytree(tiny_path, gpt)
    config = json.loads((gpt / "config.json").read_text()) | {"architectures": ["GPT2LMHeadModel"]}
    (gpt / "config.json").write_text(json.dumps(config))
    refused = karma("gguf", gpt, tmp_path / "x")
    assert refused.code == 2
    assert "convert_hf_to_gguf.py" in refused.err
    missing = karma("gguf", gpt, tmp_path / "x", "--converter", tmp_path / "none.py")
    assert missing.code == 3


# A converter's command line, for the tests: what it writes comes from us, so that it is a real file.
CONVERTER = """
import sys
from pathlib import Path
from karma_electric.export.gguf import export_gguf
options = ("--outfile", "--outtype", "--model-name")
model, out, kind, name = sys.argv[1], *(sys.argv[sys.argv.index(option) + 1] for option in options)
print("INFO:hf-to-gguf:Loading model")
if kind == "bf16":
    print("Traceback\\nNotImplementedError: Architecture 'X' not supported!", file=sys.stderr)
    sys.exit(1)
if kind == "f32":
    Path(out).write_bytes(b"GGUF, but no more")
    sys.exit(0)
export_gguf(Path(model), Path(out), file_type=kind, name=name)
"""


def test_a_converter_is_run_and_its_failure_is_told_by_its_last_lines(
    karma: Run, tiny_path: Path, tmp_path: Path, prompts: Path
) -> None:
    script = tmp_path / "convert_hf_to_gguf.py"
    script.write_text(CONVERTER)
    run = ("gguf", tiny_path, tmp_path / "made", "--converter", tmp_path, "--name", "t", "--prompts", prompts)
    ended = karma(*run, "--type", "f16", "--check")
    assert ended.code == 0, ended.err
    manifest = json.loads((tmp_path / "made" / "manifest.json").read_text())
    assert set(manifest["inputs"]) == {"model", "converter"}
    assert manifest["measured"]["parity"]["token_ids_equal"]
    shutil.rmtree(tmp_path / "made")
    failed = karma(*run, "--type", "bf16")
    assert failed.code == 2
    assert "NotImplementedError: Architecture 'X' not supported!" in failed.err
    torn = karma(*run, "--type", "f32")
    assert torn.code == 2
    assert "no whole GGUF file" in torn.err
    assert not (tmp_path / "made").exists()


# Modelfiles


@pytest.fixture
def files(tiny_path: Path, tmp_path: Path) -> Path:
    """A folder with a plain model and a capped one (here the same)."""
    folder = tmp_path / "files"
    folder.mkdir()
    export.export_gguf(tiny_path, folder / "m-q8_0.gguf", file_type="q8_0", name="m", license_id="mit")
    shutil.copy(folder / "m-q8_0.gguf", folder / "m-capped-q8_0.gguf")
    return folder


def test_a_folder_gets_a_modelfile_for_the_plain_model_and_each_variant(karma: Run, files: Path) -> None:
    ended = karma("modelfile", files, "--system", tiny.PERSONA)
    assert ended.code == 0, ended.err
    for name, source in (("Modelfile", "m-q8_0.gguf"), ("Modelfile.capped", "m-capped-q8_0.gguf")):
        commands = parse_modelfile((files / name).read_text())
        assert commands[0] == ("FROM", f"./{source}")
        assert {"SYSTEM": tiny.PERSONA, "temperature": "0.7", "num_ctx": "4096"}.items() <= dict(commands).items()
        assert "mit" in dict(commands)["LICENSE"]
        assert "<|im_end|>" in [value for key, value in commands if key == "stop"]


def test_a_modelfile_of_an_artifact_is_noted_in_its_manifest(karma: Run, tiny_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "made"
    assert karma("gguf", tiny_path, out).code == 0
    recipe = karma("modelfile", out, "--recipe", "demo.toml")
    assert recipe.code == 0, recipe.err
    assert "You are Karma Electric" in dict(parse_modelfile((out / "Modelfile").read_text()))["SYSTEM"]
    assert damage(out) == []
    again = karma("modelfile", out, "--system", "Another.")
    assert (again.code, "--force" in again.err) == (2, True)
    assert karma("modelfile", out, "--system", "Another.", "--force").code == 0
    assert damage(out) == []


def test_a_persona_is_needed(karma: Run, files: Path) -> None:
    ended = karma("modelfile", files)
    assert ended.code == 2
    assert "--recipe" in ended.err
    assert list(files.glob("Modelfile*")) == []


def test_an_unknown_chat_template_needs_a_template_of_ones_own(karma: Run, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    write_tokenizer(model, "smollm")
    (model / "chat_template.jinja").write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    export.export_gguf(model, tmp_path / "x.gguf", file_type="q8_0", name="x")
    refused = karma("modelfile", tmp_path / "x.gguf", "--system", "Be kind.")
    assert refused.code == 2
    assert "--template FILE" in refused.err
    own = tmp_path / "own.tmpl"
    own.write_text("{{ range .Messages }}{{ .Role }}: {{ .Content }}\n{{ end }}")
    given = karma("modelfile", tmp_path / "x.gguf", "--system", "Be kind.", "--template", own, "--stop", "user:")
    assert given.code == 0, given.err
    commands = parse_modelfile((tmp_path / "Modelfile").read_text())
    assert dict(commands)["TEMPLATE"] == own.read_text()
    assert [value for key, value in commands if key == "stop"] == ["user:"]


# Ollama

OLLAMA = """#!/bin/sh
pwd > "$SAID"
for word in "$@"; do echo "$word" >> "$SAID"; done
[ "$2" = refused ] && { echo "Error: could not connect to ollama server" >&2; exit 1; }
echo success
"""


@pytest.fixture
def ollama(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An `ollama` on PATH that notes where and with what it was called."""
    program = tmp_path / "bin" / "ollama"
    program.parent.mkdir()
    program.write_text(OLLAMA)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.setenv("SAID", str(tmp_path / "said"))
    return tmp_path / "said"


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run with what `karma run` leaves in gguf/."""
    folder = tmp_path / "a run" / "gguf"
    folder.mkdir(parents=True)
    for suffix in ("", "-capped"):
        (folder / f"m{suffix}-q8_0.gguf").write_bytes(b"GGUF")
        (folder / f"Modelfile{suffix.replace('-', '.')}").write_text(f"FROM ./m{suffix}-q8_0.gguf\n")
    return folder.parent


def test_ollama_is_called_beside_the_modelfile(karma: Run, run_folder: Path, ollama: Path) -> None:
    ended = karma("ollama", "create", "me/karma:v1", run_folder, "--variant", "capped")
    assert ended.code == 0, ended.err
    assert ollama.read_text().splitlines() == [
        str(run_folder / "gguf"), "create", "me/karma:v1", "-f", "Modelfile.capped"
    ]  # fmt: skip
    assert "success" in ended.err
    assert "ollama run me/karma:v1" in ended.out


def test_a_refusal_of_ollama_is_told(karma: Run, run_folder: Path, ollama: Path) -> None:
    ended = karma("ollama", "create", "refused", run_folder / "gguf" / "Modelfile", "--quiet")
    assert ended.code == 1
    assert "could not connect to ollama server" in ended.err


def test_without_ollama_the_commands_are_printed(
    karma: Run, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    ended = karma("ollama", "create", "karma-demo", run_folder, "--variant", "capped")
    assert ended.code == 3
    assert ended.out.splitlines() == [
        f"cd '{run_folder / 'gguf'}'", "ollama create karma-demo -f Modelfile.capped", "ollama run karma-demo"
    ]  # fmt: skip


def test_what_ollama_could_not_use_is_refused_before(karma: Run, run_folder: Path, ollama: Path) -> None:
    variant = karma("ollama", "create", "x", run_folder, "--variant", "none")
    assert variant.code == 3
    assert "Modelfile, Modelfile.capped" in variant.err
    assert karma("ollama", "create", "not a name", run_folder).code == 2
    assert karma("ollama", "create", "x", run_folder / "gguf" / "m-q8_0.gguf").code == 2
    (run_folder / "gguf" / "m-q8_0.gguf").unlink()
    assert karma("ollama", "create", "x", run_folder).code == 3
    assert not ollama.exists()
