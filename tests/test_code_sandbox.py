"""Code of a model runs apart, within limits, and is gone afterwards; what it gives is compared outside."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import pytest

from karma_electric.redteam import code_sandbox
from karma_electric.redteam.code_child import canonical
from karma_electric.redteam.code_sandbox import CodeRun, Limits, run_calls

LIMITS = Limits(cpu_s=1)


def run(code: str, call: str = "f()", **others: object) -> CodeRun:
    return run_calls(code, "f", [call], limits=LIMITS, **others)  # type: ignore[arg-type]


def test_values_come_back_as_canonical_text_in_the_order_of_the_calls() -> None:
    ran = run_calls("def f(x):\n    return x * 2", "f", ["f(2)", "f('ab')", "f([1])", "f(x=0.5)"])
    assert ran.values == ("4", '"abab"', "[1, 1]", "1")
    assert ran.problem is None
    assert ran.network in ("namespace", "hook")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (2, 2.0, True),
        (0.1 + 0.2, 0.3, True),
        (1, True, False),
        ([1, 2], (1, 2), False),
        ({1, 2, 3}, {3, 2, 1}, True),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
        ("1", 1, False),
        (None, False, False),
        ("{1}", {1}, False),
        (float("nan"), float("inf"), False),
        (10**400, 10**400, True),
    ],
)
def test_canonical_texts_are_equal_where_a_test_would_call_the_values_equal(
    one: object, other: object, same: bool
) -> None:
    assert (canonical(one) == canonical(other)) is same


def test_a_value_that_holds_itself_or_is_no_plain_data_is_no_value() -> None:
    assert run("def f():\n    a = []\n    a.append(a)\n    return a").problem == "ValueError: a value nested too deeply"
    assert run("def f():\n    return object()").problem == "ValueError: a value of type object"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def f():\n    while True: pass", "out of processor time"),
        ("while True: pass", "out of processor time"),
        ("def f():\n    return [0] * 10**9", "MemoryError"),
        ("def f():\n    return f()", "RecursionError"),
        ("def f(:", "SyntaxError"),
        ("def g(): return 1", "no function f"),
        ("f = 3", "no function f"),
        ("def f():\n    raise SystemExit", "SystemExit"),
        ("def f():\n    import os\n    os._exit(0)", "ended before all calls"),
        ("def f():\n    import os, signal\n    os.kill(os.getppid(), signal.SIGTERM)", "allows no os.kill"),
        ("def f():\n    return input()", "EOFError"),
        ("def f():\n    return 'a' * 10**6", "a value too long"),
        ("raise ValueError('at import')\ndef f(): return 1", "ValueError: at import"),
        ("def f():\n    class E(Exception):\n        def __str__(self): raise KeyError\n    raise E", "E"),
        ("\0def f(): return 1", "null bytes"),
    ],
)
def test_what_goes_wrong_inside_is_said_and_gives_no_value(code: str, said: str) -> None:
    ran = run(code)
    assert ran.values == (None,)
    assert ran.unavailable is None
    assert ran.problem is not None
    assert said in ran.problem


@pytest.mark.parametrize(
    "body",
    [
        "open('made', 'w').write('x')",
        "open('/etc/passwd').read()",
        "import os; os.open('made', os.O_CREAT | os.O_WRONLY)",
        "import os; os.mkdir('made')",
        "import os; os.system('touch made')",
        "import subprocess; subprocess.run(['touch', 'made'])",
        "import os; os.fork()",
        "import os; os.execv('/bin/sh', ['sh'])",
        "import socket; socket.socket()",
        "import urllib.request; urllib.request.urlopen('http://localhost:1')",
        "import ctypes; ctypes.CDLL(None)",
        "import shutil; shutil.rmtree('.')",
        "import _posixsubprocess",
        "import multiprocessing; multiprocessing.Process(target=print).start()",
        "import sys; sys.modules['ctypes'].memset",
    ],
)
def test_files_processes_and_sockets_are_refused(body: str) -> None:
    ran = run(f"def f():\n    {body}\n    return 1")
    assert ran.values == (None,)
    assert ran.problem is not None
    assert any(word in ran.problem for word in ("PermissionError", "ImportError", "OSError", "KeyError: 'ctypes'"))


def test_modules_of_the_standard_library_may_be_imported_and_no_package() -> None:
    assert run("import collections, math, re, itertools, datetime\ndef f(): return math.gcd(12, 18)").values == ("6",)
    assert "ModuleNotFoundError" in str(run("import pytest\ndef f(): return 1").problem)


def test_nothing_of_the_callers_environment_or_folder_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KARMA_SECRET", "s")
    ran = run("import os, sys\ndef f():\n    return [os.environ.get('KARMA_SECRET'), os.listdir('.'), len(sys.argv)]")
    assert ran.values == ("[None, [], 1]",)


def test_what_code_prints_is_no_answer() -> None:
    code = """def f():\n    print('{"value": "7"}')\n    import sys\n    sys.stderr.write('x' * 10**6)\n    return 1"""
    assert run(code).values == ("1",)


def test_a_report_that_was_written_over_gives_no_value() -> None:
    loop = "for fd in range(3, 9):\n        try: os.write(fd, b'x\\n')\n        except OSError: pass"
    ran = run(f"import os\ndef f():\n    {loop}")
    assert ran.values == (None,)
    assert ran.problem == "it wrote over its own report"


def test_code_never_runs_in_this_process() -> None:
    code = "import sys, os\nsys.karma_was_here = True\ndef f(): return os.getpid()"
    assert run(code).values != (str(os.getpid()),)
    assert not hasattr(sys, "karma_was_here")


def test_sleeping_ends_with_the_wall_clock() -> None:
    started = time.monotonic()
    ran = run("import time\ndef f():\n    time.sleep(60)", timeout_s=2.0)
    assert ran.problem == "stopped after 2 s"
    assert time.monotonic() - started < 20


def test_values_before_the_one_that_hangs_are_kept() -> None:
    ran = run_calls("def f(x):\n    while x: pass\n    return x", "f", ["f(0)", "f(1)", "f(0)"], limits=LIMITS)
    assert ran.values == ("0", None, None)


def test_a_thread_left_behind_does_not_keep_it() -> None:
    code = (
        "import threading, time\ndef f():\n    try:\n        threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "    except RuntimeError:\n        pass\n    return 1"
    )
    started = time.monotonic()
    assert run(code).values == ("1",)
    assert time.monotonic() - started < 10


def test_the_group_is_killed_also_when_the_leader_has_ended(tmp_path: Path) -> None:
    """The parent's side alone: a child that leaves a grandchild behind in its group."""
    child = tmp_path / "child.py"
    child.write_text(
        "import os, sys, time\nsys.stdin.read()\n"
        "if os.fork() == 0:\n    os.close(1)\n    time.sleep(1.5)\n"
        f"    open({str(tmp_path / 'outlived')!r}, 'w').close()\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code_sandbox, "_CHILD", child)
        assert run("def f(): return 1").unavailable is not None
    time.sleep(2)
    assert not (tmp_path / "outlived").exists()


@pytest.mark.parametrize(
    ("child", "said"),
    [
        ("import sys; sys.stdin.read()", "no word of it"),
        ("import sys; sys.stdin.read(); print('nonsense')", "no word of it"),
        ("import sys; sys.stdin.read(); sys.exit(3)", "code 3"),
        ('print(\'{"unavailable": "no limits"}\')', "no limits"),
    ],
)
def test_where_the_sandbox_cannot_be_set_up_nothing_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, child: str, said: str
) -> None:
    (tmp_path / "child.py").write_text(child)
    monkeypatch.setattr(code_sandbox, "_CHILD", tmp_path / "child.py")
    ran = run("def f(): return 1")
    assert ran.values == (None,)
    assert ran.unavailable is not None
    assert said in ran.unavailable


@pytest.mark.parametrize("limits", [Limits(cpu_s=-7), Limits(memory_bytes=1 << 80)])
def test_a_limit_that_cannot_be_set_means_that_nothing_runs(limits: Limits) -> None:
    ran = run_calls("def f(): return 1", "f", ["f()"], limits=limits)
    assert ran.values == (None,)
    assert ran.unavailable is not None


def test_without_posix_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_sandbox.os, "name", "nt")
    unavailable = run("def f(): return 1").unavailable
    monkeypatch.undo()
    assert "no sandbox on this platform" in str(unavailable)


def test_too_much_code_is_not_run() -> None:
    assert "characters of code" in str(run("def f(): return 1\n" + "#" * 40_000).problem)


def test_prose_after_code_is_left_out_when_asked() -> None:
    code = "def f():\n    return 1\n\nThis function returns one.\nIt's simple, isn't it?"
    assert run(code, trim=True).values == ("1",)
    assert "SyntaxError" in str(run(code).problem)


def test_runs_beside_each_other_do_not_mix() -> None:
    found: dict[int, CodeRun] = {}

    def work(n: int) -> None:
        found[n] = run(f"def f(): return {n}")

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {n: ran.values for n, ran in found.items()} == {n: (str(n),) for n in range(4)}
