"""Whether llama.cpp computes what transformers does on a baked checkpoint: greedy answers and KL, on the Q8_0 file.

Both the baked and the uncapped checkpoint are exported and compared with transformers in float32: the uncapped one
tells what 8-bit weights cost by themselves. A cap neuron that 8 bits ruin would show as a larger KL of the baked one.

    python benchmarks/check_baked.py BAKED --uncapped UNCAPPED [--type q8_0] [--out check.json]

Exits 1 if the KL of the baked file is more than twice that of the uncapped one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from paths import Answer, compare_paths, line

from karma_electric.core.artifact import write_json
from karma_electric.core.messages import system, user
from karma_electric.core.resources import find
from karma_electric.export.gguf import export_gguf
from karma_electric.models.chat_template import prompt_ids, prompt_text
from karma_electric.models.engines.llamacpp import LlamaCppEngine
from karma_electric.models.loading import load_model, load_tokenizer
from karma_electric.steer.contrast import load_prompts

_WORST = 2.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("baked", type=Path)
    parser.add_argument("--uncapped", type=Path, required=True, help="the model it was made from")
    parser.add_argument("--type", default="q8_0", choices=["q8_0", "f16", "bf16", "f32"])
    parser.add_argument("--prompts", type=int, default=16, help="of suites/heldout-48.jsonl")
    parser.add_argument("--system", default="", help="system prompt of every one; none when empty")
    parser.add_argument("--tokens", type=int, default=32, help="of every answer")
    parser.add_argument("--top", type=int, default=100, help="likeliest tokens that KL is taken over")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    asked = parser.parse_args()
    found = {}
    for name, model in (("baked", asked.baked), ("uncapped", asked.uncapped)):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, f"{name}.gguf")
            export_gguf(model, file, file_type=asked.type, name=name)
            answers = llama_answers(asked, model, file)
        found[name] = compare_paths(load_model(model, dtype="float32"), answers)
        print(line(f"llama.cpp {asked.type} against transformers, {name}", found[name]), flush=True)
    ratio = found["baked"]["kl_nats"] / found["uncapped"]["kl_nats"]
    print(
        f"KL of the baked file is {ratio:.2f} times that of the uncapped one, at most {_WORST:g} is taken as the same"
    )
    if asked.out:
        write_json(asked.out, {"type": asked.type, **found, "kl_baked_to_uncapped": ratio})
    return int(ratio > _WORST)


def llama_answers(asked: argparse.Namespace, model: Path, file: Path) -> list[Answer]:
    """Greedy answers of llama.cpp with its likeliest tokens."""
    tokenizer = load_tokenizer(model)
    texts = [prompt.text for prompt in load_prompts(find("suites", "heldout-48.jsonl"))][: asked.prompts]
    before = [system(asked.system)] if asked.system else []
    conversations = [[*before, user(text)] for text in texts]
    prompts = [prompt_ids(tokenizer, c) for c in conversations]
    engine = LlamaCppEngine(file, context=max(map(len, prompts)) + asked.tokens + 64, slots=4, precision="exact")
    try:
        for conversation, ids in zip(conversations, prompts, strict=True):
            if engine.tokenize(prompt_text(tokenizer, conversation)) != ids:
                sys.exit("llama.cpp reads other tokens than transformers: see karma gguf --check")
        answers = engine.greedy_top(prompts, asked.tokens, asked.top)
    finally:
        engine.close()
    return [Answer(prompt, tokens, top) for prompt, (tokens, top) in zip(prompts, answers, strict=True)]


if __name__ == "__main__":
    sys.exit(main())
