"""What is in a workbench, counted."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

from karma_electric.data.rubric import KEPT_FROM
from karma_electric.data.store import Store

_COUNTED = ("status", "category", "source", "license", "added_in")


def summarise(store: Store) -> dict[str, Any]:
    """Counts of candidates, their lengths, grades, penalties, removals and releases, as JSON.

    Returns:
        `candidates`, and under `by` the counts per status, category, source, license and added_in ("none" where there
        is none); `turns` and `answer_words` with shortest, median, 90th percentile and longest; `grades` per rubric and
        judge; `penalties` per rule set; `removals` by kind; `releases` with their sizes.
    """
    turns, words, system_prompts = [], [], 0
    by: dict[str, Counter[str]] = {name: Counter() for name in _COUNTED}
    for candidate in store.candidates():
        for name in _COUNTED:
            by[name][getattr(candidate, name) or "none"] += 1
        turns.append(len(candidate.messages))
        words += [len(m.content.split()) for m in candidate.messages if m.role == "assistant"]
        system_prompts += candidate.system is not None
    return {
        "candidates": len(turns),
        "by": {name: dict(counts.most_common()) for name, counts in by.items()},
        "turns": _spread(turns),
        "answer_words": _spread(words),
        "system_prompts": system_prompts,
        "grades": [_grades(store, rubric, judge) for rubric, judge in store.judges()],
        "penalties": {ruleset: _penalties(store, ruleset) for ruleset in store.rulesets()},
        "removals": dict(Counter(removal.kind for removal in store.removals()).most_common()),
        "releases": {release.name: release.members for release in store.releases()},
    }


def _spread(values: Sequence[int]) -> dict[str, float] | None:
    if not values:
        return None
    ordered = sorted(values)
    return {
        "shortest": ordered[0],
        "median": statistics.median(ordered),
        "p90": ordered[len(ordered) * 9 // 10],
        "longest": ordered[-1],
    }


def _grades(store: Store, rubric: str, judge: str) -> dict[str, Any]:
    grades = [grade for found in store.grades(rubric=rubric, judge=judge).values() for grade in found]
    totals = [grade.total for grade in grades if grade.total is not None]
    outdated = store.rows(
        "SELECT count(DISTINCT r.candidate_id) FROM replies r JOIN candidates c ON c.id = r.candidate_id"
        " WHERE r.rubric = ? AND r.judge = ? AND r.content_sha256 <> c.content_sha256",
        (rubric, judge),
    )
    return {
        "rubric": rubric,
        "judge": judge,
        "graded": len(totals),
        "unreadable": len(grades) - len(totals),
        "of_earlier_words": outdated[0][0],
        "median": statistics.median(totals) if totals else None,
        "share_kept": sum(total >= KEPT_FROM for total in totals) / len(totals) if totals else None,
    }


def _penalties(store: Store, ruleset: str) -> dict[str, Any]:
    found = store.penalties(ruleset)
    rules = Counter(rule for findings in found.values() for rule in {str(f.get("rule", "?")) for f in findings})
    return {
        "checked": len(found),
        "penalised": sum(bool(findings) for findings in found.values()),
        "rules": dict(rules.most_common()),
    }
