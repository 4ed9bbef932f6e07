"""Does a model end its answers by itself? Twenty held-out prompts under its persona, sampled as it is deployed.

An answer that runs into the limit did not stop. Give the base model beside a trained one: it is the comparison that
says what training did.

    python benchmarks/stops.py MODEL [MODEL ...] [--limit 400] [--out FILE]
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from karma_electric.core.artifact import code_version, hardware, write_json
from karma_electric.core.messages import system, user
from karma_electric.core.recipe import load_recipe
from karma_electric.core.resources import find
from karma_electric.models.engines.hf import HfEngine
from karma_electric.models.engines.protocol import Sampling
from karma_electric.models.loading import load_model, load_tokenizer
from karma_electric.models.refs import resolve
from karma_electric.steer.contrast import load_prompts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", help="model folders, or builtin:smollm2-135m")
    parser.add_argument("--recipe", default="demo.toml", help="whose persona and sampling")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--limit", type=int, default=400, help="tokens an answer may have")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    asked = parser.parse_args()
    recipe = load_recipe(asked.recipe)
    prompts = [prompt.text for prompt in load_prompts(find("suites", recipe.axis.heldout))[: asked.prompts]]
    sampling = Sampling(
        temperature=recipe.redteam.temperature, top_p=recipe.redteam.top_p, max_new_tokens=asked.limit, seed=asked.seed
    )
    rows = [measured(name, prompts, recipe.persona.system_prompt, sampling) for name in asked.models]
    for row in rows:
        print(
            f"{row['model']:<32} {row['stopped']} of {row['prompts']} stopped by themselves within {asked.limit} "
            f"tokens; those had {row['median_tokens_of_stopped']} tokens in the median"
        )
    if asked.out:
        write_json(asked.out, {"rows": rows, "limit": asked.limit, "hardware": hardware(), "code": code_version()})


def measured(name: str, prompts: list[str], persona: str, sampling: Sampling) -> dict[str, Any]:
    folder = resolve(name).path
    engine = HfEngine(load_model(folder), load_tokenizer(folder))
    answers = engine.generate([[system(persona), user(prompt)] for prompt in prompts], sampling)
    lengths = [answer.usage.completion_tokens for answer in answers if answer.finish_reason == "stop"]
    return {
        "model": name,
        "prompts": len(prompts),
        "stopped": len(lengths),
        "median_tokens_of_stopped": round(statistics.median(lengths)) if lengths else None,
    }


if __name__ == "__main__":
    main()
