"""`karma data judge`: grades candidates with a judge, and checks whether the judge can tell better from worse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from karma_electric.cli.data.endpoint import (
    BaseUrl,
    MaxConnections,
    MaxTokens,
    Model,
    ModelArgs,
    PriceIn,
    PriceOut,
    Temperature,
    Timeout,
    Workbench,
    endpoint_of,
    open_asker,
)

if TYPE_CHECKING:
    from karma_electric.data.grading import Failure, GradingReport
    from karma_electric.models.asking import Endpoint

_SHOWN = 10  # ids per list; --json has them all


def judge(
    ctx: typer.Context,
    model: Model,
    pairs: Annotated[
        str | None, typer.Argument(metavar="[PAIRS]", help="With --check: the pairs; suites/judge-pairs.jsonl else.")
    ] = None,
    database: Workbench = Path("workbench.db"),
    check: Annotated[
        bool, typer.Option("--check", help="Grade pairs of a better and a worse answer, and count how often it wins.")
    ] = False,
    status: Annotated[
        str | None, typer.Option("--status", help="Only candidates with this status: candidate, accepted, rejected.")
    ] = None,
    category: Annotated[str | None, typer.Option("--category", help="Only candidates of this category.")] = None,
    ids: Annotated[str | None, typer.Option("--ids", help="Only these candidates, separated by commas.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first so many, or pairs.")] = None,
    samples: Annotated[int, typer.Option("--samples", min=1, max=99, help="Grades per answer; the median counts.")] = 3,
    temperature: Temperature = 0.7,
    max_tokens: MaxTokens = 512,
    max_connections: MaxConnections = 4,
    base_url: BaseUrl = None,
    model_arg: ModelArgs = None,
    timeout: Timeout = 300,
    retries: Annotated[
        int, typer.Option("--retries", min=0, max=20, help="How often a request that failed, or a sample, is repeated.")
    ] = 2,
    price_in: PriceIn = None,
    price_out: PriceOut = None,
    force: Annotated[bool, typer.Option("--force", help="With --check: check again what was checked before.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Grade candidates: four dimensions of 0 to 10, several samples, the median of each. The rest is asked for later.

    Every answer of the judge is kept. A killed run continues with the same command. An answer that cannot be
    understood is asked for again, and never counts. Grades decide what is kept only after the judge has passed --check.

    Example: karma data judge ollama/llama3.1 --db workbench.db --samples 3
    """
    from karma_electric.cli.data.given import refuse_unused
    from karma_electric.core.errors import InputError

    if pairs is not None and not check:
        raise InputError(f"{pairs!r} is given, but --check is not.", "Pairs are for: karma data judge MODEL --check")
    if check and (status or category or ids):
        raise InputError("--check grades pairs, not candidates.", "Leave out --status, --category and --ids.")

    if not check:
        refuse_unused(ctx, "force", why="it repeats a check", hint="Leave it out, or add --check.")

    endpoint = endpoint_of(
        model,
        base_url=base_url,
        model_args=model_arg,
        temperature=temperature,
        max_tokens=max_tokens,
        max_connections=max_connections,
        timeout_s=timeout,
        retries=retries,
    )
    if check:
        _check(
            endpoint,
            pairs,
            database,
            limit=limit,
            samples=samples,
            prices=(price_in, price_out),
            force=force,
            json_=json_,
        )
        return

    from itertools import islice

    from karma_electric.core.progress import Console
    from karma_electric.data.example import CATEGORIES, STATUSES
    from karma_electric.data.store import Store

    for name, value, known in (("--status", status, STATUSES), ("--category", category, CATEGORIES)):
        if value is not None and value not in known:
            raise InputError(f"{name} {value!r} is unknown.", f"Give one of {', '.join(known)}.")
    wanted = None if ids is None else [id_.strip() for id_ in ids.split(",") if id_.strip()]
    with Store.open(database) as store:
        chosen = list(islice(store.candidates(status=status, category=category, ids=wanted), limit))
        if not chosen:
            raise InputError(f"No candidate in {database} matches.", "Widen --status, --category or --ids.")
        from karma_electric.data.grading import grade_candidates
        from karma_electric.data.judge_check import asked_otherwise

        asker = open_asker(endpoint)
        asked = _asked(endpoint)
        report = grade_candidates(store, asker, chosen, samples=samples, retries=retries, progress=Console())
        report.spending.price(price_in, price_out)
        last = store.judge_check(model, report.rubric)
    otherwise = asked_otherwise(last, asked) if last else []
    if json_:
        trust = {"trusted": bool(last and last["passed"] and not otherwise), "checked_otherwise": otherwise}
        print(json.dumps({**report.as_dict(), **trust}, indent=2, ensure_ascii=False))
    else:
        _print_report(report, last, otherwise, database)
    _raise_if_incomplete(report)


def _asked(endpoint: Endpoint) -> dict[str, Any]:
    """What decides a judge's answers: how it is asked, and where it is ours, its weights and its cap."""
    from karma_electric.targets import target_config, target_input

    sampled = {"temperature": endpoint.temperature, "max_tokens": endpoint.max_tokens}
    return {**target_config(endpoint), **sampled, "weights": target_input(endpoint)}


def _print_report(report: GradingReport, last: dict[str, Any] | None, otherwise: list[str], database: Path) -> None:
    partly = f" ({report.partly} from fewer than {report.samples} samples)" if report.partly else ""
    print(f"{report.judge}, {report.rubric}, {report.samples} samples")
    print(f"  graded      {report.graded} of {report.selected}{partly}")
    print(f"  kept        {report.kept} with {report.kept_from:g} or more of 40")
    if report.ungraded:
        print(f"  ungraded    {len(report.ungraded)}, no answer could be understood: {_some(report.ungraded)}")
        print("              A higher --retries asks again.")
    if report.failed:
        print(f"  failed      {len(report.failed)}")
        _print_failures(report.failed)
    if report.without_answer:
        print(f"  no answer   {len(report.without_answer)} end with the person's turn: {_some(report.without_answer)}")
    if report.spread is not None:
        print(f"  agreement   samples lie {report.spread:.2f} points of 40 from their median, on average")
    print(f"  this run    {report.new_answers} new answers, {report.unparseable_answers} of them unparseable")
    for reason, times in list(report.unparseable_reasons.items())[:5]:
        print(f"              {times} x {reason}")
    print(f"  spent       {report.spending.in_words()}")
    if last is None:
        print(
            "  trust       not checked: its grades decide nothing until "
            f"karma data judge {report.judge} --check --db {database}"
        )
    elif otherwise:
        print(
            f"  trust       checked as something else ({', '.join(otherwise)}): check it as it is asked now, "
            f"karma data judge {report.judge} --check --db {database} with the same options"
        )
    else:
        passed = "passed" if last["passed"] else "did not pass"
        print(f"  trust       {passed} its check: the better answer won in {last['rate']:.0%} of {last['pairs']} pairs")


def _raise_if_incomplete(report: GradingReport) -> None:
    from karma_electric.core.errors import GateError
    from karma_electric.models.asking import not_there

    if report.failed:
        failure = report.failed[0]
        if not report.new_answers:
            raise not_there(report.judge, failure.kind, failure.reason, "every request")
        raise GateError(
            f"{len(report.failed)} of {report.selected} candidates got no answer from the judge ({failure.reason}).",
            "Run the same command again: it asks for what is missing.",
        )
    if report.ungraded and not report.graded:
        raise GateError(
            f"Nothing is graded: no answer of {report.judge} is the JSON it was asked for.",
            "Use a larger judge, or read its answers in the workbench's table replies.",
        )


def _check(
    endpoint: Endpoint,
    pairs: str | None,
    database: Path,
    *,
    limit: int | None,
    samples: int,
    prices: tuple[float | None, float | None],
    force: bool,
    json_: bool,
) -> None:
    from karma_electric.core.errors import GateError
    from karma_electric.core.progress import Console
    from karma_electric.core.resources import find
    from karma_electric.data.judge_check import PAIRS, check_judge, read_pairs, record, recorded
    from karma_electric.data.store import Store
    from karma_electric.redteam.stats import wilson

    path = find("suites", pairs or PAIRS)
    chosen = read_pairs(path)
    whole = limit is None or limit >= len(chosen)
    chosen = chosen[:limit]
    asked = _asked(endpoint) if whole else {}
    with Store.open(database, create=True) as store:
        report = None
        if whole and not force:
            report = recorded(store, endpoint.model, path, samples=samples, asked=asked)
        if report is None:
            report, failures = check_judge(
                open_asker(endpoint),
                chosen,
                samples=samples,
                retries=endpoint.retries,
                interval=wilson,
                prices=prices,
                progress=Console(),
            )
            if whole and not failures:
                record(store, report, path, asked=asked)
        else:
            failures = []
    shown = {key: value for key, value in report.items() if key != "answers"}
    if json_:
        failed = [vars(failure) for failure in failures]
        print(json.dumps({**shown, "recorded": whole and not failures, "failed": failed}, indent=2, ensure_ascii=False))
    else:
        _print_check(report, failures, whole=whole)
    if failures:
        raise GateError(
            f"{len(failures)} of {len(chosen)} pairs got no answer from the judge ({failures[0].reason}).",
            "The check is not recorded. Run it again.",
        )
    if not report["passed"] and whole:
        raise GateError(
            f"{endpoint.model} did not pass: the better answer won in {report['rate']:.0%} of {report['pairs']} pairs, "
            f"{report['required']:.0%} is expected.",
            "Its grades will not be used for filtering, unless forced. Try a larger judge, or more --samples.",
        )


def _print_check(report: dict[str, Any], failures: list[Failure], *, whole: bool) -> None:
    when = f", checked {report['checked_at']} (--force checks again)" if "checked_at" in report else ""
    print(f"{report['judge']}, {report['rubric']}, {report['samples']} samples{when}")
    print(f"  {'':<20} {'pairs':>5} {'won':>4} {'tied':>4} {'lost':>4} {'unparseable':>11}  better one wins")
    for name, row in (*report["faults"].items(), ("all", report)):
        low, high = row["interval"]
        print(
            f"  {name:<20} {row['pairs']:>5} {row['won']:>4} {row['tied']:>4} {row['lost']:>4} "
            f"{row['unparseable']:>11}  {row['rate']:.0%} [{low:.0%}, {high:.0%}]"
        )
    lost = [outcome["id"] for outcome in report["outcomes"] if outcome["result"] == "lost"]
    if lost:
        print(f"  lost: {_some(lost)}")
    _print_failures(failures)
    from karma_electric.data.grading import Spending

    print(f"  {Spending(**report['spending']).in_words()}")
    if not whole:
        print("  Not recorded: a check counts with all its pairs.")
    elif report["passed"]:
        print(f"  Passed: {report['required']:.0%} or more. Its grades may be used for filtering.")


def _print_failures(failures: list[Failure]) -> None:
    for failure in failures[:_SHOWN]:
        print(f"              {failure.id}: {failure.kind}, {failure.reason}")
    if len(failures) > _SHOWN:
        print(f"              and {len(failures) - _SHOWN} more (--json lists all)")


def _some(ids: list[str]) -> str:
    more = f" and {len(ids) - _SHOWN} more (--json lists all)" if len(ids) > _SHOWN else ""
    return ", ".join(ids[:_SHOWN]) + more
