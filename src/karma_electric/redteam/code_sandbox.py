"""Runs code that a model wrote: in a process of its own, limited, watched, and killed with all that it started.

What binds it: `python -I -S` (no environment, no packages, no user's settings), an empty working folder, limits of the
kernel on processor time, memory, size of files, open files and processes, a wall clock, and a process group that is
killed at the end whatever happened. On Linux the process also leaves the network (a namespace of its own) where the
kernel allows it; everywhere an audit hook refuses sockets, processes, signals, foreign functions and every file that is
not the standard library's. If one limit cannot be set, nothing is run.

What it is not: a boundary against an attacker. The process has the user's rights. Python's audit hooks can be got round
by code that means to; the process limit does not bind root; a process that leaves its group outlives the kill where it
could be made at all. It stops what language models write by accident: loops without end, memory without end, files,
downloads. For code you believe to be hostile run the whole evaluation in a container or a virtual machine.

Windows has no such limits: there nothing is run, and results are unscored. It was tried on Linux alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_CHILD = Path(__file__).with_name("code_child.py")
_LONGEST_CODE = 30_000  # characters; the request must fit into a pipe (64 KiB), or writing it could wait
_START_S = 60  # for the interpreter to start and bind itself, on a machine that has other work
_LONGEST_REPLY = 1 << 20  # bytes


@dataclass(frozen=True)
class Limits:
    """What the code may use: processor seconds, bytes of memory (address space), bytes of a file it writes."""

    cpu_s: int = 4
    memory_bytes: int = 512 << 20
    file_bytes: int = 0


@dataclass(frozen=True)
class CodeRun:
    """What came of running a piece of code.

    Attributes:
        values: what each call gave, as canonical text; None where it raised or was not reached.
        problem: the first thing that went wrong inside (an exception, a limit), or None.
        unavailable: why nothing was run, or None. Then the code is neither right nor wrong.
        network: "namespace" where the process had no network at all, "hook" where only Python refused it.
    """

    values: tuple[str | None, ...]
    problem: str | None = None
    unavailable: str | None = None
    network: str | None = None


def run_calls(
    code: str,
    function: str,
    calls: Sequence[str],
    *,
    trim: bool = False,
    limits: Limits | None = None,
    timeout_s: float = 30.0,
) -> CodeRun:
    """Define `function` by running `code`, and make some calls to it, in a sandboxed process.

    Args:
        code: Python.
        function: the name it must define.
        calls: expressions such as `add(2, 3)`. They are ours, not the model's.
        trim: leave out lines at the end that do not compile (prose after code that is not fenced).
        limits: what it may use; the defaults do for short functions.
        timeout_s: wall clock from the moment the process is ready. It is for code that sleeps: what works meets the
            limit on processor time first, however busy the machine is.
    """
    nothing = (None,) * len(calls)
    if os.name != "posix":
        return CodeRun(nothing, unavailable="no sandbox on this platform (it needs POSIX resource limits)")
    if len(code) > _LONGEST_CODE:
        return CodeRun(nothing, problem=f"{len(code)} characters of code, the limit is {_LONGEST_CODE}")
    request = {
        "code": code,
        "function": function,
        "calls": list(calls),
        "trim": trim,
        "limits": asdict(limits or Limits()),
    }
    with tempfile.TemporaryDirectory(prefix="karma-code-") as folder:
        try:
            raw, ended = _run(json.dumps(request, ensure_ascii=False).encode("utf-8", "replace"), folder, timeout_s)
        except OSError as error:
            return CodeRun(nothing, unavailable=f"the process could not be started ({error})")
    return _read(raw, ended, len(calls))


def _run(request: bytes, folder: str, timeout_s: float) -> tuple[bytes, str | None]:
    """What the child wrote, and why it ended early (None if by itself, in order)."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", "-X", "utf8", str(_CHILD)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        env={},
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    deadline, started = time.monotonic() + _START_S, False
    raw, why = b"", None
    try:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(request)
            process.stdin.close()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while why is None:
                if not selector.select(max(deadline - time.monotonic(), 0)):
                    why = f"stopped after {timeout_s:g} s" if started else f"it did not start in {_START_S} s"
                    continue
                block = os.read(process.stdout.fileno(), 1 << 16)
                raw += block
                if not started and b"\n" in raw:
                    deadline, started = time.monotonic() + timeout_s, True
                if not block:
                    break
                if len(raw) > _LONGEST_REPLY:
                    why = "stopped: it wrote without end"
    finally:
        # before the leader is waited for, so that its number cannot be another's yet
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if why is None:
                _wait_briefly(process, deadline)
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
    if why is None and process.returncode != 0:
        why = _ending(process.returncode)
    return raw, why


def _wait_briefly(process: subprocess.Popen[bytes], deadline: float) -> None:
    """Let a child that closed its pipe end by itself, without reaping it: its exit code says which limit it met."""
    until = min(deadline, time.monotonic() + 1)
    while hasattr(os, "waitid") and time.monotonic() < until:
        if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return
        time.sleep(0.002)


def _ending(code: int) -> str:
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        return "stopped: out of processor time"
    return f"the process ended with signal {-code}" if code < 0 else f"the process ended with code {code}"


def _read(raw: bytes, ended: str | None, n: int) -> CodeRun:
    lines = [_line(line) for line in raw.split(b"\n") if line.strip()]
    if not lines or lines[0].get("ready") not in ("namespace", "hook"):
        said = lines[0].get("unavailable") if lines else None
        return CodeRun((None,) * n, unavailable=f"the sandbox could not be set up ({said or ended or 'no word of it'})")
    results = lines[1:][:n]
    values = [line["value"] if isinstance(line.get("value"), str) else None for line in results]
    values += [None] * (n - len(values))
    raised = next((str(line[key]) for line in results for key in ("error", "raised") if key in line), None)
    missing = ended or "it ended before all calls were made" if len(results) < n else None
    if None in values and missing is None:
        missing = "it wrote over its own report"
    return CodeRun(tuple(values), problem=raised or missing, network=str(lines[0]["ready"]))


def _line(raw: bytes) -> dict[str, Any]:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
