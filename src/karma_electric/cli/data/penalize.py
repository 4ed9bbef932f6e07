"""`karma data penalize`: deterministic penalties, with the words that decided."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from karma_electric.core.messages import Conversation
    from karma_electric.core.progress import Progress
    from karma_electric.data.penalties import Finding, Penalties
    from karma_electric.data.penalty_measure import Measurement

_SHOWN = 220  # characters of a sentence on the screen
_BATCH = 200  # candidates per transaction: what a kill can cost


def penalize(
    ctx: typer.Context,
    source: Annotated[
        Path | None, typer.Argument(help="A .jsonl file or a folder of them; the workbench when not given.")
    ] = None,
    database: Annotated[
        Path, typer.Option("--db", envvar="KARMA_WORKBENCH", help="The workbench; findings are stored in it.")
    ] = Path("workbench.db"),
    status: Annotated[str | None, typer.Option("--status", help="Only candidates with this status.")] = None,
    category: Annotated[
        str | None, typer.Option("--category", help="Only this category; with --text, the category to read it as.")
    ] = None,
    text: Annotated[str | None, typer.Option("--text", help="Read one answer instead.")] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", help="With --text: what was asked.")] = None,
    measure: Annotated[
        Path | None,
        typer.Option("--measure", metavar="FILE", help="Precision and recall on labelled sentences instead."),
    ] = None,
    split: Annotated[str, typer.Option("--split", help="With --measure: test or development.")] = "test",
    markdown: Annotated[bool, typer.Option("--markdown", help="With --measure: print a Markdown table.")] = False,
    show: Annotated[int, typer.Option("--show", min=0, help="Examples to show for every rule.")] = 2,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Find what no grade should hide, and what it costs: points are taken off a grade's total.

    \b
    absolutism 0.5: an unqualified always, never, everyone or guaranteed about people or outcomes.
    moralising 1.0: what a good person would do, shame, sermons.
    minimisation 1.5: at least, others have it worse, not that bad, just relax.
    mind-reading 1.0: feelings or motives that nobody can know, stated as fact.
    authority-hallucination 2.0: studies show, experts agree, figures from nowhere.
    performative-language 1.5: a display of empathy, devotion or values.
    harm-encouragement 10.0, and blocks: urges self-harm, violence, neglect, crime or plain danger.
    sycophancy 0.5: flatters the person or the question.
    false-urgency 1.0: presses for haste where there is no emergency.
    concept-density 1.0, once per answer: abstract nouns of the framework piled up.

    A sentence counts once per rule, three sentences per rule at most. What is quoted, reported, refuted or negated does
    not count. How far to trust it: docs/penalties.md.

    Example: karma data penalize --db workbench.db --status candidate --show 3
    """
    from karma_electric.core.errors import InputError

    chosen = [name for name, given in (("--text", text), ("--measure", measure), ("a source", source)) if given]
    if len(chosen) > 1:
        raise InputError(f"{chosen[0]} and {chosen[1]} exclude each other.", "Give one of them.")
    _refuse_unused(ctx, source, text, measure)
    if text is not None:
        _one(text, prompt, category, json_)
    elif measure is not None:
        _measured(measure, split, markdown, json_)
    else:
        _all(source, database, status, category, show, json_)


def _refuse_unused(ctx: typer.Context, source: Path | None, text: str | None, measure: Path | None) -> None:
    from karma_electric.cli.data.given import refuse_unused

    if text is not None:
        why = "--text reads one answer, and no candidates"
        refuse_unused(ctx, "database", "status", "show", why=why, hint="Leave it out.")
    else:
        refuse_unused(ctx, "prompt", why="it belongs to an answer", hint="Give the answer: --text TEXT")
    if measure is not None:
        why = "--measure reads labelled sentences, and no candidates"
        refuse_unused(ctx, "database", "status", "category", "show", why=why, hint="Leave it out.")
    else:
        why = "it belongs to a measurement"
        refuse_unused(ctx, "split", "markdown", why=why, hint="Name the labelled sentences: --measure FILE")
    if source is not None:
        refuse_unused(ctx, "database", why=f"{source} is read, no workbench", hint="Leave out one of them.")
    if ctx.params.get("json_"):
        refuse_unused(ctx, "markdown", "show", why="--json prints everything, as JSON", hint="Leave out one of them.")


def _one(text: str, prompt: str | None, category: str | None, json_: bool) -> None:
    from karma_electric.data.penalties import penalize as penalize_text

    found = penalize_text(text, prompt=prompt, category=category)
    if json_:
        _print_json(_as_dict(found))
        return
    for finding in found.findings:
        print(f"{finding.rule:<24} {finding.points:>4.1f}  {_marked(finding)}")
    print(f"{'total':<24} {found.total:>4.1f}{'  blocked' if found.blocked else ''}")


def _measured(path: Path, split: str, markdown: bool, json_: bool) -> None:
    from karma_electric.core.errors import InputError
    from karma_electric.data.penalty_measure import SPLITS, as_markdown, read_labelled, table
    from karma_electric.data.penalty_measure import measure as measured
    from karma_electric.redteam.stats import wilson

    half = next((name for name in SPLITS if name == split), None)
    if half is None:
        raise InputError(f"--split is {split!r}.", f"Expected one of {', '.join(SPLITS)}.")
    found = measured(read_labelled(path), half)
    if json_:
        _print_json(_measurement(found))
    elif markdown:
        print(as_markdown(found, wilson), end="")
    else:
        print(f"{found.ruleset} on {found.sentences} {found.split} sentences of {path}, 95% Wilson intervals")
        for rule, labelled, hits, right, precision, recall in table(found, wilson):
            print(f"{rule:<24} {labelled:>8} {hits:>6} {right:>6}  {precision:<22} {recall}")
        print(f"{found.clean_found} of {found.clean} clean sentences were penalised")


def _measurement(found: Measurement) -> dict[str, Any]:
    from dataclasses import asdict

    from karma_electric.redteam.stats import wilson

    scores = [*found.scores, found.overall]
    return {
        **{key: value for key, value in asdict(found).items() if key not in ("scores", "overall")},
        "rules": {
            score.rule: {
                "labelled": score.labelled,
                "found": score.found,
                "right": score.right,
                "precision": score.precision,
                "precision_interval": wilson(score.right, score.found),
                "recall": score.recall,
                "recall_interval": wilson(score.right, score.labelled),
            }
            for score in scores
        },
    }


def _all(source: Path | None, database: Path, status: str | None, category: str | None, show: int, json_: bool) -> None:
    from karma_electric.core.progress import Console
    from karma_electric.data.penalties import RULESET

    progress = Console()
    if source is None:
        results = _stored(database, status, category, progress)
    else:
        results = _read(source, status, category, progress)
    if json_:
        _print_json({"ruleset": RULESET, "read": len(results), "candidates": {i: _as_dict(f) for i, f in results}})
        return
    _report(results, show)


def _stored(
    database: Path, status: str | None, category: str | None, progress: Progress
) -> list[tuple[str, Penalties]]:
    """Penalise the candidates of a workbench, and keep what is found there."""
    from karma_electric.data.penalties import RULESET, penalize_conversation
    from karma_electric.data.store import Store

    results: list[tuple[str, Penalties]] = []
    with Store.open(database) as store:
        candidates = list(store.candidates(status=status, category=category))
        for start in range(0, len(candidates), _BATCH):
            with store.transaction():
                for candidate in candidates[start : start + _BATCH]:
                    found = penalize_conversation(candidate.messages, category=candidate.category)
                    findings = [finding.as_dict() for finding in found.findings]
                    store.add_penalties(candidate.id, candidate.content_sha256, RULESET, findings)
                    results.append((candidate.id, found))
                    progress.update(len(results), len(candidates), "conversations")
    return results


def _read(source: Path, status: str | None, category: str | None, progress: Progress) -> list[tuple[str, Penalties]]:
    """Penalise the conversations of files; nothing is kept."""
    from karma_electric.core.errors import MissingError
    from karma_electric.core.jsonl import read_jsonl
    from karma_electric.data.penalties import penalize_conversation

    files = sorted(source.glob("*.jsonl")) if source.is_dir() else [source]
    if not files:
        raise MissingError(f"{source} has no .jsonl files.", "Give a file, or a folder that has some.")
    rows = [_conversation(item, f"{file.name} line {number}") for file in files for number, item in read_jsonl(file)]
    chosen = [row for row in rows if status in (None, row[2]) and category in (None, row[1])]
    results = []
    for done, (id_, its_category, _, messages) in enumerate(chosen, 1):
        results.append((id_, penalize_conversation(messages, category=its_category)))
        progress.update(done, len(chosen), "conversations")
    return results


def _conversation(item: object, where: str) -> tuple[str, str | None, str | None, Conversation]:
    from karma_electric.core.errors import DataError
    from karma_electric.core.messages import parse_conversation

    if not isinstance(item, dict) or "messages" not in item:
        raise DataError(f"{where} has no 'messages'.", 'Expected {"messages": [{"role", "content"}, ...]}.')
    texts = [item.get(key) if isinstance(item.get(key), str) else None for key in ("id", "category", "status")]
    return texts[0] or where, texts[1], texts[2], parse_conversation(item["messages"], where)


def _report(results: list[tuple[str, Penalties]], show: int) -> None:
    from karma_electric.data.penalties import RULES, RULESET

    print(f"{RULESET}: {len(results)} conversations read, {sum(bool(f.findings) for _, f in results)} with findings")
    print(f"{'rule':<24} {'points':>6} {'conversations':>13} {'sentences':>9} {'taken off':>9}")
    for rule in RULES:
        found = [(id_, finding) for id_, f in results for finding in f.findings if finding.rule == rule.name]
        print(
            f"{rule.name:<24} {rule.points:>6.1f} {len({id_ for id_, _ in found}):>13} {len(found):>9} "
            f"{sum(finding.points for _, finding in found):>9.1f}"
        )
        for id_, finding in found[:show]:
            print(f"    {id_}: {_marked(finding)}")
    blocked = [id_ for id_, f in results if f.blocked]
    if blocked:
        print(f"blocked: {', '.join(blocked)}")


def _marked(finding: Finding) -> str:
    """The sentence with its evidence in [[ ]], cut around it."""
    before, evidence, after = finding.sentence.partition(finding.evidence)
    room = max(0, _SHOWN - len(evidence)) // 2
    before = before if len(before) <= room else "..." + before[len(before) - room :]
    after = after if len(after) <= room else after[:room] + "..."
    return " ".join(f"{before}[[{evidence}]]{after}".split())


def _as_dict(found: Penalties) -> dict[str, Any]:
    return {"total": found.total, "blocked": found.blocked, "findings": [f.as_dict() for f in found.findings]}


def _print_json(value: Any) -> None:
    import json

    print(json.dumps(value, indent=2, ensure_ascii=False))
