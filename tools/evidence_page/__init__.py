"""Renders the tables and the statements of docs/evidence.md from a run under results/; tools/results.py calls it.

No sentence on what the evidence supports is typed: each comes from figures by the rules in statements.py, which the
page states as well. What was not measured leaves a gap with the command that would fill it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from evidence_page import releases, statements, tables
from evidence_page.facts import Facts, facts_of, on_one_page, read_loose
from karma_electric.core.recipe import load_recipe

EVIDENCE_RUN = "smollm2-v1"  # the run under results/ that the page is about
WIDER_RUN = "smollm2-v3"  # the run that was asked the wider suite of attacks
PAGE = "docs/evidence.md"
SECTIONS: dict[str, Callable[[Facts], Iterator[str]]] = {
    "run": tables.about,
    "safety": tables.safety,
    "categories": tables.categories,
    "comparisons": tables.comparisons,
    "over-refusal": tables.over_refusal,
    "capability": tables.capability,
    "drift": tables.drift,
    "cap": tables.cap_rate,
    "judges": tables.judges,
    "supports": statements.supports,
    "does-not": statements.does_not,
    "capping": statements.capping,
}


WIDER: dict[str, Callable[[Facts], Iterator[str]]] = {
    "wider-run": tables.about,
    "wider-safety": tables.safety,
    "wider-categories": tables.categories,
    "wider-comparisons": tables.comparisons,
    "wider-supports": statements.supports,
    "wider-does-not": statements.does_not,
    "wider-capping": statements.capping,
}


def rendered(page: str, facts: Facts, wider: Facts) -> str:
    """The page with every generated part made anew, from the run that it is about and the one on the wider suite."""
    parts = [(name, section, facts) for name, section in SECTIONS.items()]
    parts += [(name, section, wider) for name, section in WIDER.items()]
    for name, section, of in parts:
        page = _replaced(page, name, section(of))
    return page


def with_evidence(page: str, root: Path) -> str:
    """The same, from what lies under `root`/results, and what the releases are against each other."""
    judges, refusals = (
        read_loose(root / "results" / "benchmarks" / name) for name in ("judges.json", "judges_benign.json")
    )
    runs = [root / "results" / name for name in (EVIDENCE_RUN, WIDER_RUN)]
    facts = on_one_page([facts_of(run, load_recipe(run / "recipe.toml"), judges, refusals) for run in runs])
    return _replaced(rendered(page, *facts), "releases", releases.table(root))


def _replaced(page: str, name: str, lines: Iterable[str]) -> str:
    """The page with one generated part made anew."""
    begin = f"<!-- evidence: begin {name} (rendered by `make results`; do not edit) -->"
    end = f"<!-- evidence: end {name} -->"
    before, rest = page.split(begin)
    return "\n".join([before + begin, *lines, end + rest.split(end, 1)[1]])
