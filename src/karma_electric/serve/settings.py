"""What a server serves and how: decided once, before it starts. Knows nothing of HTTP frameworks."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from karma_electric.core.errors import InputError, MissingError

SHORTEST_KEY = 16
_MIB = 1 << 20


@dataclass(frozen=True)
class Persona:
    """Who answers where a request brings no system prompt."""

    name: str
    system_prompt: str


@dataclass(frozen=True)
class Served:
    """The model, as clients are told of it.

    Attributes:
        id: its name in requests; `id:latest` is the same, as Ollama writes it.
        created: when its files were made, in seconds since 1970.
        fingerprint: changes whenever its weights, tokenizer or template do; empty where there is none.
        family: its architecture ("llama").
        parameters: how many; None if unknown.
        numbers: how its weights are stored ("bfloat16", "Q8_0").
        size_bytes: of its weights on disk.
        template: its chat template.
        persona: None where nothing tells which.
        use_persona: whether conversations without a system prompt get the persona's.
        cap: what `GET /karma/model` tells of the cap; None without one.
        drift_reference: what drift is measured in; None where it is not measured.
    """

    id: str
    created: int = 0
    fingerprint: str = ""
    family: str = "unknown"
    parameters: int | None = None
    numbers: str = "unknown"
    size_bytes: int = 0
    template: str = ""
    persona: Persona | None = None
    use_persona: bool = True
    cap: dict[str, Any] | None = None
    drift_reference: dict[str, Any] | None = None

    @property
    def default_system(self) -> str | None:
        """The system prompt of a conversation that brings none."""
        return self.persona.system_prompt if self.persona is not None and self.use_persona else None


@dataclass(frozen=True)
class Limits:
    """What one request may ask for, and all of them together.

    Attributes:
        body_bytes: length of a request's body.
        messages: in a conversation.
        n: answers to one request.
        max_tokens: of one answer; also what a request without a limit of its own gets, if the context has room.
        answers: being given or waiting, over all requests; more are refused with 429.
        body_s: time for a body to arrive.
        send_s: time for a client to take the next piece.
    """

    body_bytes: int = _MIB
    messages: int = 256
    n: int = 8
    max_tokens: int = 1024
    answers: int = 64
    body_s: float = 30.0
    send_s: float = 60.0


@dataclass(frozen=True)
class ServeSettings:
    """A server.

    Attributes:
        served: the model.
        limits: of requests.
        host: where it listens.
        keys: one of them must come with every request, if there are any.
        hosts: further names that the Host header may have on loopback (behind a proxy, say).
        origins: web pages of other origins that may call it; their browsers are told so (CORS).
        temperature, top_p: for requests that give none.
        runs: folder of red-team runs to browse, if any.
        access_log: whether to write a line per request to stderr.
    """

    served: Served
    limits: Limits = field(default_factory=Limits)
    host: str = "127.0.0.1"
    keys: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    temperature: float = 0.7
    top_p: float = 0.9
    runs: Path | None = None
    access_log: bool = True


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def require_key_to_leave(host: str, keys: tuple[str, ...]) -> None:
    """Refuse to be reachable from other machines without a key.

    Raises:
        InputError: it would be.
    """
    if not is_loopback(host) and not keys:
        raise InputError(
            f"--host {host} can be reached from other machines, and no API key is set.",
            "Set one: export KARMA_API_KEY=$(openssl rand -hex 32), or give --api-key-file FILE.",
        )


def read_keys(file: Path | None, environment: str | None) -> tuple[str, ...]:
    """The keys that are let in: those of the file, one a line, else the one of the environment variable.

    Raises:
        MissingError: no such file.
        InputError: a file without keys, or a key that is short or not of plain characters.
    """
    if file is None and environment is None:
        return ()
    if file is not None:
        if not file.is_file():
            raise MissingError(f"--api-key-file {file} does not exist.", "Make one: openssl rand -hex 32 > FILE")
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            raise InputError(f"{file} is not UTF-8 text.", "One key a line, of plain characters.") from None
        keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        where = str(file)
        if not keys:
            raise InputError(f"{file} holds no key.", "One key a line: openssl rand -hex 32 > FILE")
    else:
        keys, where = [(environment or "").strip()], "KARMA_API_KEY"
    for key in keys:
        if len(key) < SHORTEST_KEY or not key.isascii() or not key.isprintable() or " " in key:
            raise InputError(
                f"A key in {where} has {len(key)} characters, expected {SHORTEST_KEY} or more, plain ones, no spaces.",
                "Make one: openssl rand -hex 32",
            )
    return tuple(keys)
