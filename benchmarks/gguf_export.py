"""Time and memory of our GGUF export beside llama.cpp's own converter, both as whole commands, in alternation.

    python benchmarks/gguf_export.py [CONVERTER] [--model M] [--type q8_0] [--repeats 3] [--json FILE]

What a user waits for is measured: from the command to the finished file, loading of Python included. Peak memory is
that of the process (resident, as the system counts it). CONVERTER is .llama.cpp/convert_hf_to_gguf.py, which
`make check-gguf` fetches.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from karma_electric.core.artifact import code_version, hardware, write_json
from karma_electric.models.refs import resolve

OURS = "import sys; from pathlib import Path; from karma_electric.export.gguf import export_gguf; export_gguf(Path(sys.argv[1]), Path(sys.argv[2]), file_type=sys.argv[3], name='x')"  # noqa: E501


def commands(converter: Path, model: Path, out: Path, file_type: str) -> dict[str, list[str]]:
    theirs = [str(converter), str(model), "--outfile", str(out), "--outtype", file_type]
    return {
        "llama.cpp": [sys.executable, *theirs],
        "karma": [sys.executable, "-c", OURS, str(model), str(out), file_type],
    }


def measured(command: list[str], converter: Path) -> dict[str, float]:
    """Seconds by the clock, seconds of the processor, and the peak of resident memory of one command."""
    own = str(converter.parent / "gguf-py") if str(converter) in command else ""
    path = os.pathsep.join(filter(None, (own, os.environ.get("PYTHONPATH"))))
    started = time.perf_counter()
    process = subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"failed: {' '.join(command)}")
    return {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_mb": usage.ru_maxrss / 1000,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("converter", nargs="?", type=Path, default=Path(".llama.cpp/convert_hf_to_gguf.py"))
    parser.add_argument("--model", default="builtin:smollm2-135m")
    parser.add_argument("--type", default="q8_0")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    converter = asked.converter.resolve()
    if not converter.is_file():
        sys.exit(f"{converter} is not there: make check-gguf fetches it")
    model = resolve(asked.model).path
    runs: dict[str, list[dict[str, float]]] = {"llama.cpp": [], "karma": []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(asked.repeats):
            for side, command in commands(converter, model, Path(folder, "x.gguf"), asked.type).items():
                runs[side].append(measured(command, converter))
    sides = {
        side: {key: statistics.median(run[key] for run in found) for key in found[0]} for side, found in runs.items()
    }
    for side, figures in sides.items():
        print(
            f"{side:<10} {figures['seconds']:6.1f} s, {figures['cpu_seconds']:6.1f} s of the processor, "
            f"peak {figures['peak_mb']:7.0f} MB"
        )
    ratio = {key: sides["llama.cpp"][key] / sides["karma"][key] for key in sides["karma"]}
    print(f"llama.cpp / karma: {ratio['seconds']:.2f} in time, {ratio['cpu_seconds']:.2f} of the processor")
    result: dict[str, Any] = {"model": asked.model, "type": asked.type, "repeats": asked.repeats, "sides": sides}
    result |= {"ratio": ratio, "runs": runs, "hardware": hardware(), "code": code_version()}
    if asked.json:
        write_json(asked.json, result)
    else:
        print(json.dumps(ratio))


if __name__ == "__main__":
    main()
