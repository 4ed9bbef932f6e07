"""`karma serve`: one model behind OpenAI's and Ollama's endpoints, with a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from karma_electric.cli.options import CapFile, Model


def serve(
    model: Model,
    cap: CapFile = None,
    alpha: Annotated[
        float | None,
        typer.Option("--alpha", help="Strength for requests that name none; the cap's own when not given."),
    ] = None,
    drift: Annotated[
        bool, typer.Option("--drift/--no-drift", help="Let requests measure drift (reads the cap's responses once).")
    ] = True,
    system: Annotated[
        str | None,
        typer.Option("--system", help="System prompt of requests without one; the persona's when not given."),
    ] = None,
    persona: Annotated[
        bool, typer.Option("--persona/--no-persona", help="Whether requests without a system prompt get the persona's.")
    ] = True,
    host: Annotated[str, typer.Option("--host", help="Address; any but this machine's own needs a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port; 0 takes a free one.")] = 8080,
    api_key_file: Annotated[
        Path | None,
        typer.Option("--api-key-file", help="File of keys, one a line; else $KARMA_API_KEY, else no key."),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option("--allow-host", metavar="HOST", help="Further name in the Host header (behind a proxy)."),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-origin", metavar="ORIGIN", help="Origin whose web pages may call, e.g. https://a.example."
        ),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="The model's name in requests.")] = None,
    engine: Annotated[str, typer.Option("--engine", help="auto, hf, llamacpp or scripted.")] = "auto",
    rows: Annotated[
        int | None, typer.Option("--rows", min=1, max=1024, help="Answers given at a time; 16, with llama.cpp 4.")
    ] = None,
    context: Annotated[
        int | None,
        typer.Option("--context", min=16, help="Tokens of prompt and answer; the model's own, with llama.cpp 4096."),
    ] = None,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0.0, max=2.0, help="For requests that give none.")
    ] = 0.7,
    top_p: Annotated[float, typer.Option("--top-p", min=0.01, max=1.0, help="For requests that give none.")] = 0.9,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Longest answer.")] = 1024,
    max_n: Annotated[
        int | None, typer.Option("--max-n", min=1, help="Most answers to one request; 8, or --max-answers if fewer.")
    ] = None,
    max_messages: Annotated[int, typer.Option("--max-messages", min=1, help="Longest conversation.")] = 256,
    max_body: Annotated[int, typer.Option("--max-body", min=1024, help="Largest body, in bytes.")] = 1 << 20,
    max_answers: Annotated[
        int, typer.Option("--max-answers", min=1, max=4096, help="Answers under way or waiting; more get 429.")
    ] = 64,
    drain: Annotated[
        float, typer.Option("--drain", min=0.0, max=3600.0, help="Seconds that answers may take after a stop signal.")
    ] = 30.0,
    runs: Annotated[Path | None, typer.Option("--runs", help="Folder of runs to browse at /runs.html.")] = None,
    access_log: Annotated[
        bool, typer.Option("--access-log/--no-access-log", help="A line of JSON per request on stderr.")
    ] = True,
) -> None:
    """Serve a model over HTTP: OpenAI's and Ollama's endpoints, with alpha and drift per request; a page at /.

    GET /healthz, /readyz and /metrics tell how it is. SIGTERM or Ctrl-C lets answers finish first, a second one not.

    Example: karma serve runs/demo/merged --cap runs/demo/axis
    """
    import os

    from karma_electric.core.errors import InputError, MissingError
    from karma_electric.core.extras import require

    require("serve")
    from karma_electric.serve.settings import Limits, ServeSettings, read_keys, require_key_to_leave

    keys = read_keys(api_key_file, os.environ.get("KARMA_API_KEY"))
    require_key_to_leave(host, keys)
    origins = tuple(_origin(given) for given in allow_origin or ())
    max_n = min(8, max_answers) if max_n is None else max_n
    if max_n > max_answers:
        raise InputError(
            f"--max-n is {max_n} and --max-answers {max_answers}.", f"One request must fit: --max-n {max_answers}."
        )
    if runs is not None and not runs.is_dir():
        raise MissingError(f"--runs {runs} is no folder.", "Give the folder that runs are in, such as runs.")
    if not persona and system is not None:
        raise InputError("--system and --no-persona were both given.", "Give one of them.")

    from karma_electric.cli.serve_model import Opening, open_model
    from karma_electric.serve.app import create_app
    from karma_electric.serve.running import DROPPED, bind, listen, run, url_of

    with bind(host, port) as listener:
        opening = Opening(
            cap=cap, alpha=alpha, drift=drift, system=system, persona=persona, name=name, engine=engine, rows=rows,
            queue=max_answers, context=context,
        )  # fmt: skip
        _say(f"Loading {model}")
        live, served = open_model(model, opening)
        settings = ServeSettings(
            served=served,
            limits=Limits(
                body_bytes=max_body, messages=max_messages, n=max_n, max_tokens=max_tokens, answers=max_answers
            ),
            host=host,
            keys=keys,
            hosts=tuple(allow_host or ()),
            origins=origins,
            temperature=temperature,
            top_p=top_p,
            runs=runs,
            access_log=access_log,
        )
        app = create_app(live, settings)
        listen(listener)
        url = url_of(listener)
        if served.persona is None and persona:
            _say(
                "No persona is known for this model: requests without a system message go as they are (--system TEXT)."
            )
        _say(f"{served.id} ({live.name}, context {live.context}) at {url}")
        _say(f"OpenAI: base_url={url}/v1   Ollama: OLLAMA_HOST={url}   ready when {url}/readyz says 200")
        code = run(app, listener, drain_s=drain)
    if code == DROPPED:  # threads of the model may still be at work, and nobody waits for them
        _say("Stopped. Unfinished answers were dropped.")
        os._exit(DROPPED)
    raise typer.Exit(code)


def _origin(given: str) -> str:
    from urllib.parse import urlsplit

    from karma_electric.core.errors import InputError

    parts = urlsplit(given)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query:
        raise InputError(f"--allow-origin {given!r} is no origin.", "Scheme, host and port: https://chat.example.org")
    return f"{parts.scheme}://{parts.netloc}".lower()


def _say(text: str) -> None:
    import sys

    print(text, file=sys.stderr, flush=True)
