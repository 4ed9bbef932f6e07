"""The options that say which model is asked, shared by the verbs that ask one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from karma_electric.models.asking import Asker, Endpoint

Model = Annotated[
    str,
    typer.Argument(
        help="An Inspect model name: karma/builtin:smollm2-135m, karma/runs/demo/merged, karma/x.gguf, ollama/NAME, "
        "vllm/NAME, openai-api/SERVICE/NAME."
    ),
]
Workbench = Annotated[Path, typer.Option("--db", envvar="KARMA_WORKBENCH", help="The workbench.")]
BaseUrl = Annotated[
    str | None,
    typer.Option(
        "--base-url", help="Address of the server, such as http://localhost:8000/v1; the provider's own else."
    ),
]
ModelArgs = Annotated[
    list[str] | None,
    typer.Option(
        "--model-arg",
        metavar="KEY=VALUE",
        help="Argument of the provider; karma has cap, alpha, batch_size, engine, context. Repeatable.",
    ),
]
Temperature = Annotated[float, typer.Option("--temperature", min=0.0, max=2.0, help="0 takes the likeliest token.")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", min=1, help="Longest answer, in tokens.")]
MaxConnections = Annotated[int, typer.Option("--max-connections", min=1, max=512, help="Requests in flight.")]
Timeout = Annotated[int, typer.Option("--timeout", min=1, help="Seconds that one request may take.")]
PriceIn = Annotated[
    float | None,
    typer.Option("--price-in", min=0.0, metavar="PRICE", help="Of a million tokens read, in any currency."),
]
PriceOut = Annotated[
    float | None,
    typer.Option("--price-out", min=0.0, metavar="PRICE", help="Of a million tokens written, in the same."),
]


def endpoint_of(
    model: str,
    *,
    base_url: str | None,
    model_args: list[str] | None,
    temperature: float,
    max_tokens: int,
    max_connections: int,
    timeout_s: int,
    retries: int,
    top_p: float | None = None,
) -> Endpoint:
    """What a command asks, and how.

    Raises:
        InputError: an argument without "=".
    """
    from karma_electric.models.asking import Endpoint, parse_model_args

    return Endpoint(
        model=model,
        base_url=base_url,
        model_args=parse_model_args(model_args or []),
        temperature=temperature,
        top_p=top_p,
        max_tokens=max_tokens,
        max_connections=max_connections,
        timeout_s=timeout_s,
        retries=retries,
    )


def open_asker(endpoint: Endpoint) -> Asker:
    """The model that a command names, ready to be asked.

    Raises:
        InputError: no such provider, or arguments that it does not take.
        MissingError: a key, a package or a model that is not there.
    """
    from karma_electric.core.extras import require

    require("data")
    from karma_electric.cli import inspect_models  # noqa: F401  says how a cap is opened
    from karma_electric.models.asking import Asker

    return Asker(endpoint)
