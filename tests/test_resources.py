"""Names of a corpus, suites and recipes: where they are looked for, and what is said of one that is nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from karma_electric.core.errors import MissingError
from karma_electric.core.resources import find, resource_root


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a suite, a corpus, a workbench and a recipe of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words").mkdir()
    for name in ("desk.jsonl", "words/adversarial.jsonl", "workbench.db", "librarian.toml", "notes.md"):
        (tmp_path / name).touch()
    return tmp_path


def refused(kind: str, name: str, key: str = "") -> MissingError:
    """The error that a name ends in."""
    with pytest.raises(MissingError) as caught:
        find(kind, name, key=key)
    return caught.value


def test_the_key_and_the_places_that_were_looked_in_are_named(here: Path) -> None:
    error = refused("suites", "dsk.jsonl", "redteam.suite")
    looked = f"(looked in {here} and among the shipped suites)"
    assert error.message == f"redteam.suite: 'dsk.jsonl' does not exist {looked}."


@pytest.mark.parametrize(
    ("kind", "name", "meant"),
    [
        ("suites", "dsk.jsonl", "desk.jsonl"),
        ("suites", "starter30.jsonl", "starter-30.jsonl"),
        ("suites", "suites/standard-20.jsonl", "standard-200.jsonl"),
        ("corpus", "wrds", "words"),
        ("corpus", "workbnch.db", "workbench.db"),
        ("corpus", "corpsu", "corpus"),
        ("recipes", "libarian.toml", "librarian.toml"),
        ("recipes", "dmeo.toml", "demo.toml"),
    ],
)
def test_the_closest_name_is_told(here: Path, kind: str, name: str, meant: str) -> None:
    hint = refused(kind, name).hint
    assert hint == f"Did you mean {meant!r}?"


def test_the_closest_name_is_one_that_is_found(here: Path) -> None:
    (here / "mine").mkdir()
    (here / "mine" / "desk.jsonl").touch()
    assert refused("suites", "mine/dsk.jsonl").hint == "Did you mean 'mine/desk.jsonl'?"
    assert find("suites", "mine/desk.jsonl").is_file()


def test_where_none_is_close_what_is_shipped_is_listed_and_nothing_else(here: Path) -> None:
    assert refused("corpus", "zzz").hint == "Shipped with the package: corpus."
    suites = refused("suites", "zzz").hint
    assert "starter-30.jsonl" in suites
    for other in ("README", "LICENSE", "attacks.toml"):
        assert other not in suites
    names = ", ".join(sorted(path.name for path in resource_root("recipes").glob("*.toml")))
    assert refused("recipes", "zzz").hint == f"Shipped with the package: {names}."
