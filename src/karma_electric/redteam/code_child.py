"""The inside of the code sandbox: a script that `code_sandbox` starts by path, in a process of its own.

It binds itself first (limits, network, an audit hook), says so, and only then compiles what a model wrote. What it
answers are texts that the other side compares; the expected values never come in here, so that code cannot copy them.
Needs the standard library alone.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

_DEEPEST = 20  # levels of a value
_LONGEST = 20_000  # characters of a value
_MOST_DROPPED = 60  # lines of prose after code that is not fenced
_DIGITS = 9  # of a float that count
_FORBIDDEN = (
    "socket.",
    "subprocess.",
    "ctypes.",
    "shutil.",
    "tempfile.",
    "os.system",
    "os.exec",
    "os.spawn",
    "os.posix_spawn",
    "os.startfile",
    "os.fork",
    "os.kill",
    "os.putenv",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.mkdir",
    "os.mkfifo",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.ch",
    "os.lockf",
    "os.setxattr",
    "os.utime",
    "pty.",
    "signal.",
    "syslog.",
    "webbrowser.",
    "urllib.",
    "http.",
    "ftplib.",
    "smtplib.",
    "sqlite3.",
)
# They start processes or write to memory below what the audit hook sees.
_NO_IMPORT = ("ctypes", "_ctypes", "_posixsubprocess", "multiprocessing", "_multiprocessing", "_testcapi")
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_SIGKILL = 9


def canonical(value: object, depth: int = 0) -> str:
    """A value as text, the same text for values that a test takes for equal: 2 and 2.0, sets in any order.

    Raises:
        ValueError: the value is of another type than numbers, texts, lists, tuples, sets and dicts, or nested too
            deeply.
    """
    if depth > _DEEPEST:
        raise ValueError("a value nested too deeply")
    if value is None or type(value) is bool:
        return str(value)
    if type(value) is int:
        return str(value) if abs(value) < 10**300 else hex(value)
    if type(value) is float:
        if math.isfinite(value) and value == int(value) and abs(value) < 1e15:
            return str(int(value))
        return format(value, f".{_DIGITS}g")
    if type(value) is str:
        return json.dumps(value)
    if type(value) in (list, tuple):
        inner = ", ".join(canonical(item, depth + 1) for item in value)  # type: ignore[attr-defined]
        return f"[{inner}]" if type(value) is list else f"({inner})"
    if type(value) in (set, frozenset):
        return "{" + ", ".join(sorted(canonical(item, depth + 1) for item in value)) + "}"  # type: ignore[attr-defined]
    if isinstance(value, dict):  # Counter and defaultdict as well
        pairs = (f"{canonical(key, depth + 1)}: {canonical(item, depth + 1)}" for key, item in value.items())
        return "dict{" + ", ".join(sorted(pairs)) + "}"
    raise ValueError(f"a value of type {type(value).__name__}")


def _cut_network() -> str:
    """Leave the network, and die with the parent, where the kernel lets us. Returns what was reached."""
    if not sys.platform.startswith("linux"):
        return "hook"
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    for flags in (_CLONE_NEWNET, _CLONE_NEWUSER | _CLONE_NEWNET):  # the first as root alone
        if libc.unshare(flags) == 0:
            return "namespace"
    return "hook"


def _set_limits(limits: Mapping[str, int]) -> None:
    import resource

    for name, most in {
        "RLIMIT_CPU": limits["cpu_s"],
        "RLIMIT_AS": limits["memory_bytes"],
        "RLIMIT_FSIZE": limits["file_bytes"],
        "RLIMIT_CORE": 0,
        "RLIMIT_NOFILE": 32,
        "RLIMIT_NPROC": 0,
    }.items():
        if most < 0:  # the kernel would take it for no limit
            raise ValueError(f"{name} below 0")
        resource.setrlimit(getattr(resource, name), (most, most))


def _audit_hook() -> Callable[[str, tuple[Any, ...]], None]:
    """Refuses processes, sockets, foreign functions, signals, and every file but the standard library's, to read."""
    readable = tuple({os.path.realpath(os.path.dirname(os.__file__)) + os.sep, sys.base_prefix + os.sep + "lib"})  # noqa: PTH120
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    real_path, type_of, is_text = os.path.realpath, isinstance, str

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(_FORBIDDEN):
            raise PermissionError(f"the sandbox allows no {event}")
        if event == "import" and arguments[0] in _NO_IMPORT:
            raise PermissionError(f"the sandbox allows no import of {arguments[0]}")
        if event == "open":
            path, mode, flags = arguments
            writes = (type_of(flags, int) and flags & writing) or (type_of(mode, is_text) and set(mode) & set("wax+"))
            if writes or not type_of(path, is_text) or not real_path(path).startswith(readable):
                raise PermissionError("the sandbox opens no files")

    return hook


def _compile(code: str, *, trim: bool) -> Any:
    """Compile; with `trim`, lines at the end that are no code are left out one by one."""
    lines = code.splitlines()
    for dropped in range(1, min(_MOST_DROPPED, len(lines)) if trim else 0):
        with contextlib.suppress(SyntaxError):
            return compile("\n".join(lines[: 1 - dropped or None]), "<answer>", "exec")
    return compile(code, "<answer>", "exec")


def _said(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:200]
    except BaseException:
        return type(error).__name__[:200]


def main() -> None:
    """Read a request, bind this process, run the calls, write a line each."""
    request = json.loads(sys.stdin.buffer.read())
    channel = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    write, dumps, encode = os.write, json.dumps, canonical

    def report(**line: object) -> None:
        write(channel, (dumps(line) + "\n").encode())

    try:
        network = _cut_network()
        _set_limits(request["limits"])
        for name in _NO_IMPORT:
            sys.modules.pop(name, None)
        sys.addaudithook(_audit_hook())
    except BaseException as error:
        report(unavailable=_said(error))
        return
    report(ready=network)
    names: dict[str, Any] = {"__name__": "answer", "__builtins__": __builtins__}
    try:
        exec(_compile(request["code"], trim=request["trim"]), names)
    except BaseException as error:
        report(error=_said(error))
        return
    if not callable(names.get(request["function"])):
        report(error=f"no function {request['function']}")
        return
    for call in request["calls"]:
        try:
            text = encode(eval(compile(call, "<call>", "eval"), names))
            report(value=text) if len(text) <= _LONGEST else report(raised="a value too long")
        except BaseException as error:
            report(raised=_said(error))
    os._exit(0)  # neither exit handlers nor threads of the answer


if __name__ == "__main__":
    main()
