"""`karma data generate`: candidates from seed prompts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    from karma_electric.data.generate import GenerationReport, Prompt

_SHOWN = 10


def generate(
    ctx: typer.Context,
    model: Model,
    prompts: Annotated[
        str, typer.Option("--prompts", help="JSONL with 'prompt' or 'messages' per line; - reads standard input.")
    ],
    database: Workbench = Path("workbench.db"),
    samples: Annotated[int, typer.Option("--samples", min=1, max=1000, help="Answers per prompt.")] = 2,
    system_prompt: Annotated[
        Path | None, typer.Option("--system-prompt", help="File with the system prompt; the recipe's persona else.")
    ] = None,
    recipe: Annotated[
        str, typer.Option("--recipe", help="Recipe whose persona is the system prompt.", show_default=True)
    ] = "demo.toml",
    category: Annotated[
        str | None, typer.Option("--category", help="Category of the candidates whose prompt names none.")
    ] = None,
    license_: Annotated[
        str, typer.Option("--license", help="Licence of the answers, by the model's terms.")
    ] = "unknown",
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first so many prompts.")] = None,
    temperature: Temperature = 0.8,
    top_p: Annotated[
        float | None, typer.Option("--top-p", min=0.01, max=1.0, help="Sample from the likeliest tokens of this sum.")
    ] = None,
    max_tokens: MaxTokens = 512,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**31, help="Answer n is sampled with this plus n.")] = 0,
    max_connections: MaxConnections = 4,
    base_url: BaseUrl = None,
    model_arg: ModelArgs = None,
    timeout: Timeout = 300,
    retries: Annotated[
        int, typer.Option("--retries", min=0, max=20, help="How often a failed request is repeated.")
    ] = 2,
    price_in: PriceIn = None,
    price_out: PriceOut = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Ask a model seed prompts under the persona's system prompt, and add its answers as candidates.

    Answers that are empty, cut off, or copies of answers in the workbench are not added. A killed run continues with
    the same command.

    Example: karma data generate ollama/llama3.1 --prompts seeds.jsonl --samples 3 --license llama3.1
    """
    from karma_electric.cli.data.given import refuse_unused
    from karma_electric.core.errors import InputError
    from karma_electric.core.progress import Console
    from karma_electric.data.example import CATEGORIES

    if category is not None and category not in CATEGORIES:
        raise InputError(f"--category {category!r} is unknown.", f"Give one of {', '.join(CATEGORIES)}.")
    if system_prompt is not None:
        refuse_unused(
            ctx, "recipe", why="--system-prompt takes the place of its persona", hint="Leave out one of them."
        )
    asked = _read(prompts)[:limit]
    persona = _system_prompt(system_prompt, recipe)
    from karma_electric.data.generate import Plan, generate_candidates
    from karma_electric.data.store import Store

    endpoint = endpoint_of(
        model,
        base_url=base_url,
        model_args=model_arg,
        temperature=temperature,
        top_p=top_p,
        max_tokens=max_tokens,
        max_connections=max_connections,
        timeout_s=timeout,
        retries=retries,
    )
    asker = open_asker(endpoint)
    plan = Plan(
        endpoint=endpoint,
        samples=samples,
        seed=seed,
        system_prompt=persona,
        category=category,
        license=license_,
    )
    with Store.open(database, create=True) as store:
        report = generate_candidates(store, asker, asked, plan, progress=Console())
    report.spending.price(price_in, price_out)
    if json_:
        print(json.dumps(report.as_dict(), indent=2, ensure_ascii=False))
    else:
        _print(report, database)
    _raise_if_incomplete(report)


def _print(report: GenerationReport, database: Path) -> None:
    print(f"{report.model}: {report.prompts} prompts, {report.samples} answers each")
    print(f"  added       {len(report.added)} to {database}")
    if report.there_already:
        print(f"  there       {report.there_already} from an earlier run")
    if report.not_added:
        reasons = ", ".join(f"{count} {reason}" for reason, count in report.reasons().items())
        print(f"  not added   {len(report.not_added)}: {reasons}")
        for item in report.not_added[:_SHOWN]:
            other = f" of {item.other} ({item.similarity:.0%})" if item.similarity is not None else ""
            print(f"              {item.id}: {item.reason}{other}")
        _more(len(report.not_added))
    if report.failed:
        print(f"  failed      {len(report.failed)}")
        for failure in report.failed[:_SHOWN]:
            print(f"              {failure.id}: {failure.kind}, {failure.reason}")
        _more(len(report.failed))
    print(f"  spent       {report.spending.in_words()}")


def _more(count: int) -> None:
    if count > _SHOWN:
        print(f"              and {count - _SHOWN} more (--json lists all)")


def _raise_if_incomplete(report: GenerationReport) -> None:
    from karma_electric.core.errors import GateError
    from karma_electric.models.asking import not_there

    if not report.failed:
        return
    failure = report.failed[0]
    if not report.added and not report.not_added:
        raise not_there(report.model, failure.kind, failure.reason, "every request")
    raise GateError(
        f"{len(report.failed)} answers did not come ({failure.reason}).",
        "Run the same command again: it asks for what is missing.",
    )


def _read(prompts: str) -> list[Prompt]:
    from karma_electric.data.generate import read_prompts

    if prompts != "-":
        return read_prompts(Path(prompts))
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "standard input"
        copy.write_bytes(sys.stdin.buffer.read() if sys.stdin is not None else b"")
        return read_prompts(copy)


def _system_prompt(file: Path | None, recipe: str) -> str:
    if file is None:
        from karma_electric.core.recipe import load_recipe

        return load_recipe(recipe).persona.system_prompt
    from karma_electric.core.errors import DataError, MissingError

    if not file.is_file():
        raise MissingError(f"The system prompt {file} does not exist.", "Give a text file with --system-prompt.")
    try:
        text = file.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        raise DataError(f"{file} is not UTF-8.", "Save it as UTF-8.") from None
    if not text:
        raise DataError(f"{file} is empty.", "Write the system prompt into it.")
    return text
