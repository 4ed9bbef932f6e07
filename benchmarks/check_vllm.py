"""Whether vLLM's CPU build runs a baked checkpoint unchanged: its greedy answers and KL against transformers.

vLLM wants other versions than we do, so it runs in an environment of its own, by vllm_answers.py; `make check-vllm`
makes that environment. The uncapped model is compared too: that is the level of the two programs' own differences.

    python benchmarks/check_vllm.py BAKED --uncapped UNCAPPED --python .venv-vllm/bin/python [--out check.json]

Exits 1 unless most answers of the baked checkpoint are the same.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from paths import Answer, compare_paths, line

from karma_electric.core.artifact import write_json
from karma_electric.core.messages import system, user
from karma_electric.core.resources import find
from karma_electric.models.chat_template import prompt_ids
from karma_electric.models.loading import load_model, load_tokenizer
from karma_electric.steer.contrast import load_prompts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("baked", type=Path)
    parser.add_argument("--uncapped", type=Path, help="the model it was made from")
    parser.add_argument("--python", default=".venv-vllm/bin/python", help="interpreter of vLLM's environment")
    parser.add_argument("--prompts", type=int, default=16, help="of suites/heldout-48.jsonl")
    parser.add_argument("--system", default="", help="system prompt of every one; none when empty")
    parser.add_argument("--tokens", type=int, default=32, help="of every answer")
    parser.add_argument("--top", type=int, default=100, help="likeliest tokens that KL is taken over")
    parser.add_argument("--dtype", default="float32", help="arithmetic of both: float32 or bfloat16")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    asked = parser.parse_args()
    if not Path(asked.python).is_file():
        print(f"error: {asked.python} does not exist. Make vLLM's environment: make check-vllm", file=sys.stderr)
        return 3
    found = {}
    for name, model in (("baked", asked.baked), ("uncapped", asked.uncapped)):
        if model is not None:
            answers = vllm_answers(asked, model)
            found[name] = compare_paths(load_model(model, dtype=asked.dtype), answers)
            print(line(f"vLLM against transformers, {name}", found[name]), flush=True)
    if asked.out:
        write_json(asked.out, {"dtype": asked.dtype, **found})
    return int(found["baked"]["identical"] <= 0.5)


def vllm_answers(asked: argparse.Namespace, model: Path) -> list[Answer]:
    """Greedy answers of vLLM on a checkpoint, from a process in its own environment."""
    tokenizer = load_tokenizer(model)
    texts = [prompt.text for prompt in load_prompts(find("suites", "heldout-48.jsonl"))][: asked.prompts]
    before = [system(asked.system)] if asked.system else []
    prompts = [prompt_ids(tokenizer, [*before, user(text)]) for text in texts]
    request: dict[str, Any] = {
        "prompts": prompts, "max_new_tokens": asked.tokens, "top": asked.top, "dtype": asked.dtype,
    }  # fmt: skip
    script = Path(__file__).with_name("vllm_answers.py")
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder, "request.json"), Path(folder, "answers.json")
        files[0].write_text(json.dumps(request))
        done = subprocess.run([asked.python, script, model, *files], capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"vLLM failed on {model}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        answers = json.loads(files[1].read_text())
    return [
        Answer(prompt, a["tokens"], [{int(token): p for token, p in step} for step in a["top"]])
        for prompt, a in zip(prompts, answers, strict=True)
    ]


if __name__ == "__main__":
    sys.exit(main())
