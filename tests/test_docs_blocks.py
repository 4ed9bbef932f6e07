"""Every block of code in the tutorial and the how-to pages is run, or says why it is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from docsite.blocks import ROOT, Block, blocks, pages, prepare, run, runnable
from docsite.links import broken, relative_links

PAGES = {page.relative_to(ROOT / "docs").with_suffix("").as_posix(): page for page in pages()}
DOCUMENTS = sorted(
    [*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md"), ROOT / "corpus/README.md", ROOT / "suites/README.md"]
)
MANY_S = 3600


def blocks_of(name: str) -> list[Block]:
    """The blocks of a page."""
    return list(blocks(PAGES[name].read_text(encoding="utf-8"), name))


def is_slow(name: str) -> bool:
    """Whether a page has blocks for `make check-examples`."""
    return any("slow" in block.marks for block in blocks_of(name))


@pytest.mark.parametrize("name", PAGES)
def test_every_block_is_marked(name: str) -> None:
    assert [said for block in blocks_of(name) if (said := block.problem)] == []
    assert "\n\n    karma " not in PAGES[name].read_text(encoding="utf-8"), "an indented block cannot be marked"


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name.startswith("howto/") else [])  # together they take a minute
        for name in PAGES
        if runnable(blocks_of(name), slow=False)
    ],
)
def test_the_quick_blocks_do_what_the_page_says(name: str, tmp_path: Path) -> None:
    environment = prepare(tmp_path / "work")
    for block in runnable(blocks_of(name), slow=False):
        run(block, tmp_path / "work", environment, timeout_s=300)


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in PAGES if is_slow(name)])
def test_all_blocks_do_what_the_page_says(name: str, tmp_path: Path) -> None:
    environment = prepare(tmp_path / "work")
    for block in runnable(blocks_of(name), slow=True):
        run(block, tmp_path / "work", environment, timeout_s=MANY_S)


def test_relative_links_lead_somewhere() -> None:
    found = [link for file in DOCUMENTS for link in broken(file, ROOT)]
    generated = "docs/index.md: reference/"  # pages that the site is given when it is built
    assert [link for link in found if not link.startswith(generated)] == []
    assert sum(1 for file in DOCUMENTS for _ in relative_links(file.read_text(encoding="utf-8"))) > 60


# --- the reader of blocks itself


@pytest.mark.parametrize(
    ("fence", "said"),
    [
        ("```bash", "needs one of run"),
        ("```bash run skip='no reason at all'", "needs one of run"),
        ("```bash skip=slow", "say why"),
        ("```toml run", "toml cannot be run"),
        ("```bash run quickly", "unknown mark ['quickly']"),
        ("```bash run", ""),
        ("```text", ""),
        ('```toml file="a.toml"', ""),
    ],
)
def test_a_block_without_good_marks_is_named(fence: str, said: str) -> None:
    (block,) = blocks(f"words\n\n{fence}\nx\n```\n", "page")
    assert (said in block.problem and block.problem.startswith("page:3: ")) if said else not block.problem


def test_blocks_run_in_order_in_one_folder_and_stop_at_the_first_that_fails(tmp_path: Path) -> None:
    text = (
        '```toml file="a/b.toml"\nx = 1\n```\n\n```bash run\ntest -f a/b.toml; echo hello > c\n```\n\n'
        '```bash run exit="3"\nexit 3\n```\n\n```python run\nassert open("c").read() == "hello\\n"\n```\n\n'
        "```bash run\nfalse\necho not here\n```\n\n```bash run slow\ntouch slow\n```\n"
    )
    found = list(blocks(text, "page"))
    environment = prepare(tmp_path / "work")
    assert len(runnable(found, slow=False)) == 5
    assert len(runnable(found, slow=True)) == 6
    *good, bad = runnable(found, slow=False)
    for block in good:
        run(block, tmp_path / "work", environment)
    with pytest.raises(AssertionError, match=r"page:17 ended with 1, expected 0"):
        run(bad, tmp_path / "work", environment)


def test_a_link_to_nowhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("")
    page = tmp_path / "page.md"
    page.write_text("[a](there.md#x) [b](gone.md) `[c](code.md)` [d](https://x.org/y)\n\n```text\n[e](f.md)\n```\n")
    assert broken(page, tmp_path) == ["page.md: gone.md"]
