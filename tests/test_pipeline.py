"""The stages of a run: skipped when done, refused when something else is there, whole however they are killed."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from karma_electric.core.artifact import MANIFEST, content_hash, damage, disk_full, is_whole, read_manifest
from karma_electric.core.errors import ArtifactError, BusyError, GateError, InputError, MissingError, SpaceError
from karma_electric.core.progress import Progress, Silent
from karma_electric.pipeline import Stage, difference, make_artifacts, run_stages

TESTS = Path(__file__).resolve().parent
SOURCE = TESTS.parent / "src"


class Told:
    """Keeps what a run says."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def update(self, done: int, total: int, note: str = "") -> None:
        """Ignore."""

    def say(self, text: str) -> None:
        """Keep."""
        self.lines.append(text)


class Chain:
    """A run of cheap stages: a -> b -> c/x, c/y -> d. Each writes its settings to `out.txt`, and a line to a log."""

    names = ("a", "b", "c/x", "c/y", "d")

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.run = folder / "run"
        self.log = folder / "log.txt"
        self.config: dict[str, dict[str, object]] = {name: {"text": f"text of {name}"} for name in self.names}
        self.resumable: set[str] = set()
        self.execute: dict[str, Callable[[Path, Progress], None]] = {}

    def stages(self) -> list[Stage]:
        """The stages, as the settings are now."""
        stages: list[Stage] = []
        for name in self.names:
            inputs = {stages[-1].name: stages[-1].id} if stages else {"corpus": "0"}
            work = self.execute.get(name) or self._writer(name)
            kind = name.partition("/")[0]
            stages.append(
                Stage(name, kind, self.config[name], inputs, work, resumable=name in self.resumable, space_bytes=1)
            )
        return stages

    def go(self, **options: object) -> dict[str, str]:
        """Run, and return what happened to each stage."""
        return dict(run_stages(self.run, self.stages(), progress=Silent(), **options))  # type: ignore[arg-type]

    def executed(self) -> list[str]:
        """Names of the stages that were executed, in order, over all runs so far."""
        return self.log.read_text().split() if self.log.exists() else []

    def text(self, name: str) -> str:
        """What a finished stage wrote."""
        return (self.run / name / "out.txt").read_text()

    def note(self, name: str) -> None:
        """Log that a stage is executed."""
        with self.log.open("a") as file:
            file.write(name + "\n")

    def _writer(self, name: str) -> Callable[[Path, Progress], None]:
        def write(out: Path, progress: Progress) -> None:
            self.note(name)
            (out / "out.txt").write_text(str(self.config[name]["text"]))

        return write


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    """A run that has not begun."""
    return Chain(tmp_path)


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below a folder: time of change and content."""
    return {
        str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()
    }


def whole(run: Path, names: tuple[str, ...] = Chain.names) -> bool:
    """Whether every stage is in place, undamaged, and no half-written or replaced file is left over."""
    left_over = [p for p in run.rglob("*") if p.name.endswith((".replaced", ".tmp"))]
    return not left_over and all((run / name / MANIFEST).exists() and not damage(run / name) for name in names)


# --- skipping


def test_a_run_makes_every_stage_in_order(chain: Chain) -> None:
    assert chain.go() == dict.fromkeys(Chain.names, "made")
    assert chain.executed() == list(Chain.names)
    assert whole(chain.run)


def test_running_again_skips_everything_and_touches_nothing(chain: Chain) -> None:
    chain.go()
    before = snapshot(chain.run)
    assert chain.go() == dict.fromkeys(Chain.names, "skipped")
    assert chain.executed() == list(Chain.names)
    assert snapshot(chain.run) == before


def test_a_stage_that_is_gone_is_made_again_and_nothing_else(chain: Chain) -> None:
    chain.go()
    (chain.run / "b" / MANIFEST).unlink()
    (chain.run / "b" / "out.txt").unlink()
    (chain.run / "b").rmdir()
    assert [name for name, what in chain.go().items() if what == "made"] == ["b"]


def test_an_empty_stage_is_whole_too(chain: Chain) -> None:
    chain.execute["b"] = lambda out, progress: None
    chain.go()
    assert read_manifest(chain.run / "b").files == {}
    assert chain.go()["b"] == "skipped"


def test_a_run_says_what_it_does(chain: Chain) -> None:
    told = Told()
    run_stages(chain.run, chain.stages(), last="a", progress=told)
    run_stages(chain.run, chain.stages(), last="b", progress=told)
    assert [line.split(":")[0] for line in told.lines] == ["[1/1] a", "[1/1] a", "[1/2] a", "[2/2] b", "[2/2] b"]
    assert "already there, skipped" in told.lines[2]


# --- refusing and replacing


def test_something_else_is_refused_with_what_differs(chain: Chain) -> None:
    chain.config["b"] = {"text": "x", "epochs": 1, "layers": [1, 2]}
    chain.go()
    before = snapshot(chain.run)
    chain.config["b"] = {"text": "x", "epochs": 3, "layers": [1, 3]}
    with pytest.raises(ArtifactError) as caught:
        chain.go()
    assert caught.value.message.endswith(
        "run/b was made from something else: epochs: 1 -> 3; layers: [1, 2] -> [1, 3]."
    )
    assert "--force" in caught.value.hint
    assert "--run-dir" in caught.value.hint
    assert snapshot(chain.run) == before


def test_another_input_is_refused_by_its_name(chain: Chain) -> None:
    chain.go()
    chain.config["a"] = {"text": "other"}
    ids = {stage.name: stage.id for stage in chain.stages()}
    old = read_manifest(chain.run / "b").inputs["a"]
    with pytest.raises(ArtifactError, match="run/a was made from something else"):
        chain.go()
    chain.go(last="a", force=True)
    with pytest.raises(ArtifactError, match=f'inputs.a: "{old}" -> "{ids["a"]}"'):
        chain.go()


def test_a_file_that_is_another_now_is_told_in_words(chain: Chain) -> None:
    chain.go()
    stages = [replace(chain.stages()[0], inputs={"corpus": "1", "heldout": "1"})]
    with pytest.raises(ArtifactError) as caught:
        run_stages(chain.run, stages, progress=Silent())
    assert caught.value.message.endswith(
        'run/a was made from something else: inputs.heldout: null -> "1"; the corpus has changed since, or is another.'
    )
    run_stages(chain.run, stages, force=True, progress=Silent())
    stages = [replace(stages[0], inputs={"corpus": "1", "heldout": "2"})]
    with pytest.raises(ArtifactError, match="something else: the file of held-out prompts has changed since"):
        run_stages(chain.run, stages, progress=Silent())


def test_nothing_is_done_when_a_later_stage_is_refused(chain: Chain) -> None:
    """Hours of training must not come before the refusal."""
    chain.go()
    (chain.run / "a" / MANIFEST).unlink()
    (chain.run / "a" / "out.txt").unlink()
    (chain.run / "a").rmdir()
    chain.config["d"] = {"text": "other"}
    with pytest.raises(ArtifactError, match="run/d was made from something else"):
        chain.go()
    assert not (chain.run / "a").exists()


def test_force_replaces_what_differs_and_what_follows_from_it(chain: Chain) -> None:
    chain.go()
    chain.config["b"] = {"text": "other"}
    outcome = chain.go(force=True)
    assert outcome == {"a": "skipped", **dict.fromkeys(("b", "c/x", "c/y", "d"), "made")}
    assert chain.text("b") == "other"
    assert whole(chain.run)
    assert chain.go() == dict.fromkeys(Chain.names, "skipped")


def test_force_alone_redoes_nothing_that_is_right(chain: Chain) -> None:
    chain.go()
    assert chain.go(force=True) == dict.fromkeys(Chain.names, "skipped")


def test_force_with_from_redoes_everything_from_there(chain: Chain) -> None:
    chain.go()
    assert chain.go(first="c", force=True) == dict.fromkeys(("c/x", "c/y", "d"), "made")
    assert chain.executed() == [*Chain.names, "c/x", "c/y", "d"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda f: (f / "out.txt").unlink(),
        lambda f: (f / "out.txt").write_text("cut"),
        lambda f: (f / MANIFEST).write_text("{"),
        lambda f: (f / MANIFEST).write_text('{"id": 1}'),
    ],
    ids=["file gone", "file cut", "manifest torn", "no manifest"],
)
def test_a_damaged_artifact_is_refused_and_force_replaces_it(chain: Chain, spoil: Callable[[Path], object]) -> None:
    chain.go()
    spoil(chain.run / "b")
    with pytest.raises(ArtifactError, match="run/b is damaged") as caught:
        chain.go()
    assert "--force" in caught.value.hint
    assert chain.go(force=True)["b"] == "made"
    assert whole(chain.run)


def test_a_folder_that_karma_did_not_make_is_never_deleted(chain: Chain) -> None:
    notes = chain.run / "b" / "notes.txt"
    notes.parent.mkdir(parents=True)
    notes.write_text("mine")
    for force in (False, True):
        with pytest.raises(ArtifactError, match="was not made by karma"):
            chain.go(force=force)
    assert notes.read_text() == "mine"


def test_a_folder_that_appears_while_a_stage_is_made_is_never_deleted(chain: Chain) -> None:
    notes = chain.run / "b" / "notes.txt"

    def make_beside(out: Path, progress: Progress) -> None:
        chain.note("b")
        (out / "out.txt").write_text("made")
        notes.parent.mkdir()
        notes.write_text("mine")

    chain.execute["b"] = make_beside
    for _ in range(2):  # when it is made, and when the next attempt would put it in place
        with pytest.raises(ArtifactError, match="was not made by karma") as caught:
            chain.go(force=True)
        assert "Move it away" in caught.value.hint
        assert notes.read_text() == "mine"
    notes.parent.rename(chain.run / "notes")
    chain.go()
    assert chain.text("b") == "made"
    assert chain.executed().count("b") == 1
    assert whole(chain.run)


def test_force_finds_a_file_that_was_changed_without_changing_its_size(chain: Chain) -> None:
    chain.go()
    file = chain.run / "b" / "out.txt"
    good = file.read_bytes()
    file.write_bytes(bytes([good[0] ^ 1]) + good[1:])
    assert chain.go(force=True)["b"] == "made"
    assert file.read_bytes() == good


def test_other_contents_of_an_input_make_what_follows_differ(chain: Chain) -> None:
    """The same settings can give other weights: what was made from the old ones is not taken for current."""
    chain.go()
    manifest = json.loads((chain.run / "a" / MANIFEST).read_text())
    manifest["files"] = dict.fromkeys(manifest["files"], "0" * 64)
    (chain.run / "a" / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="the contents of a have changed since"):
        chain.go()


def test_a_difference_is_told_in_short() -> None:
    old = {"a": {"b": 1, "c": "x" * 100}, "same": [1]}
    new = {"a": {"b": 1, "c": "y"}, "same": [1], "added": True}
    assert difference(old, new) == [f'a.c: "{"x" * 56}... -> "y"', "added: null -> true"]


# --- from and to


def test_to_stops_after_a_stage_or_a_group(chain: Chain) -> None:
    assert list(chain.go(last="b")) == ["a", "b"]
    assert list(chain.go(last="c")) == ["a", "b", "c/x", "c/y"]
    assert not (chain.run / "d").exists()


def test_from_starts_at_a_stage_or_a_group(chain: Chain) -> None:
    chain.go(last="c/x")
    assert chain.go(first="c") == {"c/x": "skipped", "c/y": "made", "d": "made"}


def test_from_needs_what_comes_before(chain: Chain) -> None:
    chain.go(last="a")
    with pytest.raises(MissingError, match=r"--from c needs .*run/b, which is not there") as caught:
        chain.go(first="c")
    assert caught.value.hint == "Run without --from, or --from b."


def test_from_refuses_to_build_on_something_else(chain: Chain) -> None:
    chain.go()
    chain.config["a"] = {"text": "other"}
    with pytest.raises(MissingError, match="run/a, which is not what this recipe makes"):
        chain.go(first="b", force=True)
    assert chain.text("b") == "text of b"


@pytest.mark.parametrize("option", ["first", "last"])
def test_an_unknown_stage_lists_the_known_ones(chain: Chain, option: str) -> None:
    with pytest.raises(InputError, match="'tarin' is not a stage") as caught:
        chain.go(**{option: "tarin"})
    assert caught.value.hint == "Stages: a, b, c, d."
    assert not chain.run.exists()


def test_from_after_to_is_refused(chain: Chain) -> None:
    with pytest.raises(InputError, match="--from d comes after --to a"):
        chain.go(first="d", last="a")


# --- dry runs


@pytest.mark.parametrize("dry_run", [False, True])
def test_what_a_later_stage_refuses_beforehand_is_said_before_the_first(chain: Chain, dry_run: bool) -> None:
    def refuse() -> None:
        raise InputError("c/y takes no such model.", "Give another.")

    stages = [replace(stage, require=refuse) if stage.name == "c/y" else stage for stage in chain.stages()]
    with pytest.raises(InputError, match="takes no such model"):
        run_stages(chain.run, stages, dry_run=dry_run, progress=Silent())
    assert chain.executed() == []
    assert dict(run_stages(chain.run, stages, last="b", progress=Silent())) == {"a": "made", "b": "made"}


def test_a_dry_run_of_nothing_makes_not_even_the_folder(chain: Chain) -> None:
    assert chain.go(dry_run=True) == dict.fromkeys(Chain.names, "would be made")
    assert not chain.run.exists()


def test_a_dry_run_says_what_would_happen_and_touches_nothing(chain: Chain) -> None:
    chain.go(last="c")
    (chain.run / "a" / "out.txt").write_text("cut")
    chain.config["c/x"] = {"text": "other"}
    before = snapshot(chain.run)
    assert chain.go(dry_run=True) == {
        "a": "damaged: would be refused without --force",
        "b": "already there",
        "c/x": "differs: would be refused without --force",
        "c/y": "differs: would be refused without --force",  # its input is c/x
        "d": "would be made",
    }
    assert chain.go(dry_run=True, force=True)["c/x"] == "would be replaced"
    assert snapshot(chain.run) == before
    assert chain.executed() == ["a", "b", "c/x", "c/y"]


def test_a_dry_run_with_force_and_from_says_again(chain: Chain) -> None:
    chain.go()
    assert chain.go(dry_run=True, force=True, first="d") == {"d": "would be made again (--force)"}


# --- what a killed or failed attempt leaves


def failing_once(chain: Chain, name: str, error: BaseException) -> None:
    """Let a stage write one file and fail, and the next attempt write what it found and finish."""

    def execute(out: Path, progress: Progress) -> None:
        found = sorted(p.name for p in out.iterdir())
        chain.note(name)
        (out / "step-1").write_text("done")
        if chain.executed().count(name) == 1:
            raise error
        (out / "out.txt").write_text(" ".join(found) or "nothing")

    chain.execute[name] = execute


class Killed(BaseException):
    """Stands for whatever ends a process in the middle; no handler of errors catches it."""


def test_a_resumable_stage_continues_with_what_it_had(chain: Chain) -> None:
    chain.resumable = {"b"}
    failing_once(chain, "b", Killed())
    with pytest.raises(Killed):
        chain.go()
    assert not (chain.run / "b").exists()
    told = Told()
    run_stages(chain.run, chain.stages(), progress=told)
    assert chain.text("b") == "step-1"
    assert "  continuing where the last attempt stopped" in told.lines


def test_another_stage_starts_afresh(chain: Chain) -> None:
    failing_once(chain, "b", Killed())
    with pytest.raises(Killed):
        chain.go()
    chain.go()
    assert chain.text("b") == "nothing"
    assert chain.executed().count("a") == 1


def test_a_resumable_stage_with_other_settings_starts_afresh(chain: Chain) -> None:
    chain.resumable = {"b"}
    failing_once(chain, "b", Killed())
    with pytest.raises(Killed):
        chain.go()
    chain.config["b"] = {"text": "other"}
    chain.go()
    assert chain.text("b") == "nothing"


def writes(text: str) -> Callable[[Path, Progress], None]:
    """A stage's work: one file."""

    def execute(out: Path, progress: Progress) -> None:
        (out / "out.txt").write_text(text)

    return execute


def test_an_attempt_on_other_contents_of_an_input_is_not_continued(chain: Chain) -> None:
    """The same recipe made again has the same ids, and may have other contents."""
    chain.resumable = {"b"}
    failing_once(chain, "b", Killed())
    with pytest.raises(Killed):
        chain.go()
    chain.execute["a"] = writes("another a")
    chain.go(first="a", last="a", force=True)
    chain.go()
    assert chain.text("b") == "nothing"
    manifest = read_manifest(chain.run / "b")
    assert manifest.parents == {"a": content_hash(read_manifest(chain.run / "a"))}


def test_all_of_it_again_begins_anew_and_is_itself_continued(chain: Chain) -> None:
    chain.resumable = {"b"}
    failing_once(chain, "b", Killed())
    with pytest.raises(Killed):
        chain.go()
    failing_once(chain, "b", Killed())
    chain.log.unlink()
    with pytest.raises(Killed):
        chain.go(first="b", force=True)
    told = Told()
    run_stages(chain.run, chain.stages(), first="b", force=True, progress=told)
    assert chain.text("b") == "step-1"  # of the second attempt, which began with nothing
    assert "  continuing where the last attempt stopped" in told.lines


def test_what_may_be_kept_is_taken_over_unless_all_of_it_is_made_anew(chain: Chain) -> None:
    def stages() -> list[Stage]:
        return [replace(s, take_over=keep) if s.name == "b" else s for s in chain.stages()]

    def keep(out: Path, progress: Progress) -> None:
        earlier = chain.run / "b" / "out.txt"
        if earlier.exists():
            (out / "kept.txt").write_text(earlier.read_text())

    run_stages(chain.run, stages(), progress=Silent())
    assert not (chain.run / "b" / "kept.txt").exists()
    chain.config["b"] = {"text": "other"}
    run_stages(chain.run, stages(), force=True, progress=Silent())
    assert ((chain.run / "b" / "kept.txt").read_text(), chain.text("b")) == ("text of b", "other")
    run_stages(chain.run, stages(), first="b", force=True, progress=Silent())
    assert not (chain.run / "b" / "kept.txt").exists()


def test_a_half_wiped_attempt_is_not_continued(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while wiping the attempt at other settings; then the old settings again."""
    chain.resumable = {"b"}
    failing_once(chain, "b", Killed())
    with pytest.raises(Killed):
        chain.go()
    old = chain.config["b"]
    chain.config["b"] = {"text": "other"}
    with monkeypatch.context() as patched:
        patched.setattr("karma_electric.pipeline.shutil.rmtree", _killed_for("b"))
        with pytest.raises(Killed):
            chain.go()
    chain.config["b"] = old
    chain.go()
    assert chain.text("b") == "nothing"


def _killed_for(name: str) -> Callable[..., None]:
    def rmtree(folder: Path, *, ignore_errors: bool = False) -> None:
        if folder.name == name:
            raise Killed

    return rmtree


@pytest.mark.parametrize("mark", [None, "", "[1]", '{"id": 3}'])
def test_an_attempt_of_unknown_settings_is_not_continued(chain: Chain, mark: str | None) -> None:
    chain.resumable = {"b"}
    failing_once(chain, "b", Killed())
    with pytest.raises(Killed):
        chain.go()
    file = chain.run / ".partial" / "b.json"
    file.unlink() if mark is None else file.write_text(mark)
    chain.go()
    assert chain.text("b") == "nothing"


def test_a_torn_temporary_file_is_not_sealed_with_the_rest(chain: Chain) -> None:
    chain.resumable = {"b"}
    failing_once(chain, "b", Killed())
    with pytest.raises(Killed):
        chain.go()
    (chain.run / ".partial" / "b" / ".out.txt.123.tmp").write_text("hal")
    chain.go()
    assert sorted(read_manifest(chain.run / "b").files) == ["out.txt", "step-1"]


def test_files_of_others_beside_the_stages_are_left_alone(chain: Chain) -> None:
    """A verb that makes one folder works in the folder around it, which may be the user's own."""
    chain.run.mkdir()
    kept = [chain.run / ".notes.tmp", chain.run / ".replaced" / "mine.txt", chain.run / ".x.tmp" / "y"]
    for file in kept:
        file.parent.mkdir(exist_ok=True)
        file.write_text("precious")
    chain.go()
    chain.go()
    assert [file.read_text() for file in kept] == ["precious"] * 3


def test_a_crash_between_sealing_and_renaming_loses_nothing(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr("karma_electric.pipeline._put_in_place", crash)
        with pytest.raises(Killed):
            chain.go()
    assert not (chain.run / "a").exists()
    assert chain.go()["a"] == "skipped"
    assert chain.executed().count("a") == 1
    assert whole(chain.run)


def test_a_crash_while_hashing_does_not_cost_the_stage(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr("karma_electric.pipeline.seal", crash)
        with pytest.raises(Killed):
            chain.go()
    assert chain.go()["a"] == "made"
    assert chain.executed().count("a") == 1
    assert whole(chain.run)


def test_a_failed_check_leaves_nothing_in_place_and_stops_the_run(chain: Chain) -> None:
    failing_once(chain, "b", GateError("Not good.", "Do better."))
    with pytest.raises(GateError, match=r"Not good\."):
        chain.go()
    assert not (chain.run / "b").exists()
    assert not (chain.run / "c").exists()
    assert chain.go()["a"] == "skipped"


# --- a full disk


@pytest.mark.parametrize("resumable", [True, False])
def test_a_full_disk_in_a_stage_leaves_nothing_to_be_trusted(chain: Chain, resumable: bool) -> None:
    chain.resumable = {"b"} if resumable else set()
    failing_once(chain, "b", OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(SpaceError, match="The disk is full: b could not be written") as caught:
        chain.go()
    assert caught.value.hint == "Free some space and run the same command again."
    assert disk_full(caught.value)
    assert not (chain.run / "b").exists()
    assert chain.go() == {"a": "skipped", **dict.fromkeys(("b", "c/x", "c/y", "d"), "made")}
    assert whole(chain.run)


def test_a_disk_that_fills_while_sealing_leaves_nothing_to_be_trusted(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("karma_electric.core.artifact.write_json", full)
        with pytest.raises(SpaceError):
            chain.go()
    assert not (chain.run / "a").exists()
    assert not list(chain.run.rglob(MANIFEST))
    chain.go()
    assert chain.executed().count("a") == 1  # its work was done: only the manifest was not written
    assert whole(chain.run)


def test_the_space_is_asked_for_before_anything_runs(chain: Chain) -> None:
    stages = chain.stages()
    stages[-1] = Stage(**{**vars(stages[-1]), "space_bytes": 10**18})
    with pytest.raises(SpaceError, match="needs about 1000000000"):
        run_stages(chain.run, stages, progress=Silent())
    assert chain.executed() == []


def test_space_is_asked_for_what_is_to_be_made_only(chain: Chain) -> None:
    chain.go()
    stages = [Stage(**{**vars(stage), "space_bytes": 10**18}) for stage in chain.stages()]
    assert dict(run_stages(chain.run, stages, progress=Silent())) == dict.fromkeys(Chain.names, "skipped")


def test_what_a_stage_needs_while_it_works_is_free_again_for_the_next(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """a keeps 100, b 100 and works in 1000, the rest keep 100 each: the most is there while b works."""
    asked: list[int] = []
    monkeypatch.setattr("karma_electric.pipeline.require_space", lambda folder, needed: asked.append(needed))
    scratch = {"a": 900, "b": 1000}
    stages = [Stage(**{**vars(s), "space_bytes": 100, "scratch_bytes": scratch.get(s.name, 0)}) for s in chain.stages()]
    run_stages(chain.run, stages, progress=Silent())
    run_stages(chain.run, [Stage(**{**vars(s), "scratch_bytes": 0}) for s in stages], progress=Silent())
    assert asked == [1200, 0]


def test_what_an_earlier_attempt_has_written_is_not_asked_for_again(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the stage that goes on there; what another recipe left is removed, but not before space is looked for."""
    asked: list[int] = []
    monkeypatch.setattr("karma_electric.pipeline.require_space", lambda folder, needed: asked.append(needed))

    def cut_off(out: Path, progress: Progress) -> None:
        (out / "half.bin").write_bytes(b"x" * 60)
        raise ZeroDivisionError("cut off")

    def go() -> None:
        stages = [Stage(**{**vars(stage), "space_bytes": 100}) for stage in chain.stages()]
        run_stages(chain.run, stages, progress=Silent())

    chain.resumable.add("b")
    chain.execute["b"] = cut_off
    with pytest.raises(ZeroDivisionError):
        go()
    with pytest.raises(ZeroDivisionError):
        go()
    chain.config["b"] = {"text": "another"}
    with pytest.raises(ZeroDivisionError):
        go()
    assert asked == [500, 340, 400]


def test_another_error_is_passed_on_as_it_is(chain: Chain) -> None:
    failing_once(chain, "b", ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        chain.go()
    assert not (chain.run / "b").exists()


# --- two processes


def held_run(folder: str) -> None:
    """In a process of its own: a run whose stage b says so on stdout and never ends."""
    chain = Chain(Path(folder))

    def hang(out: Path, progress: Progress) -> None:
        (out / "half").write_text("half")
        print("in b", flush=True)
        signal.pause()

    chain.execute["b"] = hang
    chain.go()


@contextmanager
def another_process(code: str) -> Iterator[subprocess.Popen[str]]:
    """A Python process that can import this file; killed at the end."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SOURCE), str(TESTS)])}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_second_process_is_turned_away_until_the_first_is_gone(chain: Chain) -> None:
    """The lock is the system's: SIGKILL, after which nobody can clean up, frees it."""
    code = f"import test_pipeline; test_pipeline.held_run({str(chain.run.parent)!r})"
    with another_process(code) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "in b\n"
        before = snapshot(chain.run)
        with pytest.raises(BusyError, match="Another karma run is working") as caught:
            chain.go()
        assert "--run-dir" in caught.value.hint
        assert snapshot(chain.run) == before
        first.send_signal(signal.SIGKILL)
        first.wait()
    assert chain.go() == {"a": "skipped", **dict.fromkeys(("b", "c/x", "c/y", "d"), "made")}
    assert sorted(read_manifest(chain.run / "b").files) == ["out.txt"]
    assert whole(chain.run)


def test_a_dry_run_may_look_while_another_process_works(chain: Chain) -> None:
    with another_process(f"import test_pipeline; test_pipeline.held_run({str(chain.run.parent)!r})") as first:
        assert first.stdout is not None
        first.stdout.readline()
        assert chain.go(dry_run=True)["a"] == "already there"


# --- SIGKILL at every operation on the file system


class _Scenario(Chain):
    """A resumable stage between two that are not, each writing two files in two steps."""

    names = ("a", "b", "c")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.resumable = {"b"}

    def _writer(self, name: str) -> Callable[[Path, Progress], None]:
        def write(out: Path, progress: Progress) -> None:
            self.note(name)
            (out / "part.txt").write_text("half")
            sys.audit("karma.test")  # a moment of its own to be killed in
            (out / "out.txt").write_text(str(self.config[name]["text"]))

        return write


_EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "karma.test")


def _die_at(moment: int, run: Path) -> None:
    """SIGKILL this process when it is about to do its `moment`-th operation on files of the run."""
    count = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        if event in _EVENTS and (event == "karma.test" or str(run) in str(arguments[0])):
            count += 1
            if count == moment:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _in_a_child(action: Callable[[], object]) -> int:
    """Exit status of a forked child that does `action`: 0, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        try:
            action()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_everywhere(folder: str, replace: bool) -> None:
    """Kill a run at its first, second, ... operation, look, finish it; print what was found as JSON lines.

    With `replace`, the run replaces a finished one that was made with other settings.
    """
    os.fsync = lambda _: None  # a killed process loses nothing it has written; only a power cut does, and fsync is slow
    _Scenario(Path(folder) / "warm-up").go()  # so that the children inherit what is looked up once per process
    for moment in range(1, 1000):
        chain = _Scenario(Path(folder) / str(moment))
        options = {"force": replace}
        if replace:
            chain.go()
            chain.log.unlink()
            chain.config = {name: {"text": f"new text of {name}"} for name in chain.names}

        def die(chain: _Scenario = chain, moment: int = moment) -> None:
            _die_at(moment, chain.run)
            chain.go(force=replace)

        status = _in_a_child(die)
        in_place = [n for n in chain.names if (chain.run / n).exists()]
        ids = {stage.name: stage.id for stage in chain.stages()}
        finished = [n for n in in_place if read_manifest(chain.run / n).id == ids[n]]
        broken = [n for n in in_place if not is_whole(chain.run / n) or damage(chain.run / n)]
        made_before = chain.executed()
        error = ""
        try:
            outcome = chain.go(**options)
        except Exception as caught:
            error, outcome = repr(caught), {}
        found = {
            "moment": moment,
            "status": status,
            "broken": broken,
            "finished": finished,
            "executed_before": made_before,
            "executed_after": chain.executed()[len(made_before) :],
            "outcome": outcome,
            "error": error,
            "whole": not error and whole(chain.run, chain.names),
            "right": not error and all(chain.text(n) == chain.config[n]["text"] for n in chain.names),
        }
        print(json.dumps(found), flush=True)
        if status == 0:
            return


@pytest.mark.slow
@pytest.mark.parametrize("replace", [False, True], ids=["first run", "replacing"])
def test_killed_at_any_operation_a_run_is_finished_by_the_next(tmp_path: Path, replace: bool) -> None:
    code = f"import test_pipeline; test_pipeline.kill_everywhere({str(tmp_path)!r}, {replace})"
    with another_process(code) as process:
        assert process.stdout is not None
        found = [json.loads(line) for line in process.stdout]
    *kills, last = found
    assert last["status"] == 0, "the last attempt was not killed: every operation has had its turn"
    assert len(kills) > 30
    for attempt in kills:
        assert attempt["status"] == -signal.SIGKILL, attempt
        assert attempt["broken"] == [], attempt
        assert attempt["error"] == "", attempt
        assert attempt["whole"], attempt
        assert attempt["right"], attempt
        assert not set(attempt["finished"]) & set(attempt["executed_after"]), attempt
        again = set(attempt["executed_before"]) & set(attempt["executed_after"])
        assert len(again) <= 1, attempt  # the stage that was at work, and no other


# --- one artifact in a folder that is the user's own


def artifact(
    name: str = "out", *, execute: Callable[[Path, Progress], None] | None = None, text: str = "", **more: bool
) -> Stage:
    def write(folder: Path, progress: Progress) -> None:
        (folder / "out.txt").write_text(text)

    return Stage(name, "thing", {"text": text}, {}, execute or write, **more)


def make(folder: Path, *stages: Stage, **options: bool) -> dict[str, str]:
    return dict(make_artifacts(folder, stages, progress=Silent(), **options))  # type: ignore[arg-type]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_nothing_stays_beside_an_artifact(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    assert make(tmp_path, artifact()) == {"out": "made"}
    assert names_in(tmp_path) == ["mine", "out"]
    assert make(tmp_path, artifact()) == {"out": "skipped"}
    assert make(tmp_path, artifact(text="other"), force=True) == {"out": "made"}
    assert (tmp_path / "out" / "out.txt").read_text() == "other"
    assert names_in(tmp_path) == ["mine", "out"]


def test_a_refusal_leaves_nothing(tmp_path: Path) -> None:
    make(tmp_path, artifact())
    with pytest.raises(ArtifactError, match="made from something else"):
        make(tmp_path, artifact(text="other"))
    assert names_in(tmp_path) == ["out"]


@pytest.mark.parametrize("below", ["", "deep/down"])
def test_nothing_is_made_in_a_finished_artifact(tmp_path: Path, below: str) -> None:
    make(tmp_path, artifact())
    with pytest.raises(InputError, match="out is a finished artifact"):
        make(tmp_path / "out" / below, artifact("inner"), force=True)
    assert names_in(tmp_path / "out") == [MANIFEST, "out.txt"]
    assert damage(tmp_path / "out") == []


def test_an_attempt_that_wrote_nothing_leaves_nothing(tmp_path: Path) -> None:
    def refuse(folder: Path, progress: Progress) -> None:
        raise InputError("No.")

    with pytest.raises(InputError):
        make(tmp_path / "new" / "deep", artifact(execute=refuse, resumable=True))
    assert names_in(tmp_path) == []


def test_what_an_attempt_has_written_is_kept_for_the_next(tmp_path: Path) -> None:
    def half(folder: Path, progress: Progress) -> None:
        (folder / "half").touch()
        raise GateError("No.")

    with pytest.raises(GateError):
        make(tmp_path, artifact(execute=half, resumable=True))
    assert names_in(tmp_path / ".partial") == ["out", "out.json"]
    assert make(tmp_path, artifact(resumable=True)) == {"out": "made"}
    assert names_in(tmp_path) == ["out"]
    assert names_in(tmp_path / "out") == ["half", MANIFEST, "out.txt"]


def held_artifact(folder: str) -> None:
    """In a process of its own: an artifact `out` that says so on stdout and is never done."""

    def hang(out: Path, progress: Progress) -> None:
        (out / ".half.1.tmp").write_text("half")
        print("in out", flush=True)
        signal.pause()

    make(Path(folder), artifact(execute=hang))


def test_two_processes_make_two_artifacts_side_by_side_and_not_the_same_twice(chain: Chain) -> None:
    code = f"import test_pipeline; test_pipeline.held_artifact({str(chain.run)!r})"
    with another_process(code) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "in out\n"
        assert make(chain.run, artifact("other")) == {"other": "made"}
        with pytest.raises(BusyError, match=r"Another karma process is making .*run/out"):
            make(chain.run, artifact())
        with pytest.raises(BusyError, match="run/out"):
            make(chain.run, artifact("third"), artifact())
        assert names_in(chain.run) == [".partial", "other"]
        assert names_in(chain.run / ".partial") == ["out", "out.json", "out.lock"]
        assert names_in(chain.run / ".partial" / "out") == [".half.1.tmp"]
        first.send_signal(signal.SIGKILL)
        first.wait()
    assert make(chain.run, artifact()) == {"out": "made"}
    assert names_in(chain.run) == ["other", "out"]


def test_a_run_and_a_verb_do_not_make_the_same_stage_at_once(chain: Chain) -> None:
    code = f"import test_pipeline; test_pipeline.held_run({str(chain.run.parent)!r})"
    with another_process(code) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "in b\n"
        with pytest.raises(BusyError, match=r"Another karma process is making .*run/b"):
            make(chain.run, artifact("b"))
        assert make(chain.run, artifact("capped-2")) == {"capped-2": "made"}


def race(folder: str) -> None:
    """In a process of its own: makes the same artifact again and again, and notes when it was alone with it."""
    for _ in range(60):

        def alone(out: Path, progress: Progress) -> None:
            os.close(os.open(Path(folder) / "inside", os.O_CREAT | os.O_EXCL))  # fails if another is inside
            (Path(folder) / "inside").unlink()

        with contextlib.suppress(BusyError):
            make(Path(folder) / "place", artifact(execute=alone, text=str(os.getpid())), force=True)


def test_a_lock_that_is_removed_still_locks(tmp_path: Path) -> None:
    """Each process removes the lock's file and the folders around it when it is done; no two ever work at once."""
    code = f"import test_pipeline; test_pipeline.race({str(tmp_path)!r})"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SOURCE), str(TESTS)])}
    racing = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(3)]
    assert [process.wait() for process in racing] == [0, 0, 0]
    assert names_in(tmp_path / "place") == ["out"]
