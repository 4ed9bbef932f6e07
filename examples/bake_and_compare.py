"""Compile a cap into the weights, and compare three models on the next token: hooked, baked, uncapped.

    python examples/bake_and_compare.py                        the embedded model, a few prompts
    python examples/bake_and_compare.py runs/demo/merged --cap runs/demo/axis

Without --cap one is made first, from few prompts and short answers: rough, and quick. `karma bake` does the same with
its gate and its full report.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from karma_electric.core.progress import Console
from karma_electric.core.recipe import AxisSection, BakeSection
from karma_electric.core.resources import find
from karma_electric.models.blocks import layer_range
from karma_electric.models.chat_template import conversation_ids
from karma_electric.models.loading import load_model, load_tokenizer
from karma_electric.models.refs import resolve
from karma_electric.steer.axis import save_axis
from karma_electric.steer.bake import fit
from karma_electric.steer.calibrate import calibrate_into
from karma_electric.steer.cap import capped
from karma_electric.steer.checkpoint import write_baked
from karma_electric.steer.contrast import ContrastSet, load_prompts
from karma_electric.steer.extract import extract
from karma_electric.steer.responses import FILE, by_split, plan_responses
from karma_electric.steer.spec import load_cap

TOWARD = "You speak for the people who are not in the room. Say plainly what an action does to them."
AWAY = ("", "You are a helpful AI assistant.")


def main() -> None:
    """Make or load a cap, bake it, and print how far the models are from each other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="builtin:smollm2-135m")
    parser.add_argument("--cap", type=Path, help="folder with cap.json, axis.safetensors and responses.jsonl")
    parser.add_argument("--out", type=Path, default=Path("runs/example-baked"))
    parser.add_argument("--prompts", type=int, default=18, help="to make a cap from")
    parser.add_argument("--response-tokens", type=int, default=24)
    options = parser.parse_args()

    ref = resolve(options.model)
    folder = options.cap or make_cap(ref.name, options.out / "cap", options.prompts, options.response_tokens)
    cap, _ = load_cap(folder)
    splits = by_split(folder / FILE)  # conversations with the model's own answers

    neurons, _ = fit(ref.path, [cap], splits["calibration"], BakeSection(), progress=Console())
    baked_at = options.out / "capped"
    baked_at.mkdir(parents=True, exist_ok=True)
    change = write_baked(ref.path, neurons, baked_at)
    print(f"intermediate size {change['intermediate_size']}; {len(neurons)} blocks have a cap neuron")

    tokenizer = load_tokenizer(ref.path)
    uncapped, baked = (load_model(at, dtype="float32", device="cpu") for at in (ref.path, baked_at))
    to_baked = to_uncapped = 0.0
    for conversation in splits["heldout"]:
        ids = torch.tensor([conversation_ids(tokenizer, conversation)])
        with capped(uncapped, cap, alpha=cap.spec.alpha):
            hooked = log_probabilities(uncapped, ids)
        to_baked += divergence(hooked, log_probabilities(baked, ids))
        to_uncapped += divergence(hooked, log_probabilities(uncapped, ids))
    print(f"KL(hooked || baked)    {to_baked / len(splits['heldout']):.2e} nats per token")
    print(f"KL(hooked || uncapped) {to_uncapped / len(splits['heldout']):.2e}")
    print(f"ratio                  {to_baked / to_uncapped:.4f}   0 would be the hooks themselves, 1 no cap at all")


def make_cap(name: str, out: Path, n: int, response_tokens: int) -> Path:
    """A cap from `n` contrast prompts and as many answers, half of them held out."""
    ref = resolve(name)
    model, tokenizer = load_model(ref.path), load_tokenizer(ref.path)
    out.mkdir(parents=True, exist_ok=True)
    contrast = ContrastSet(load_prompts(find("suites", "suites/contrast-200.jsonl"))[:n], TOWARD, AWAY)
    axis = extract(model, tokenizer, contrast, out, fingerprint=ref.fingerprint, progress=Console())
    save_axis(axis, out / "axis.safetensors")
    section = AxisSection(depth=(0.70, 0.88), response_tokens=response_tokens)
    files = {"calibration": "suites/calibration-96.jsonl", "heldout": "suites/heldout-48.jsonl"}
    calibrate_into(
        out,
        model,
        tokenizer,
        axis,
        plan_responses(
            {split: load_prompts(find("suites", file))[:n] for split, file in files.items()},
            toward=TOWARD,
            away=AWAY,
            shares=section.mixture.shares,
        ),
        section,
        layer_range(axis.n_layers, layers=None, depth=section.depth),
        fingerprint=ref.fingerprint,
        progress=Console(),
    )
    return out


def log_probabilities(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """[seq, vocabulary] of the next token, the first position left out: no cap acts there."""
    with torch.no_grad():
        return model(input_ids=ids).logits[0, 1:].float().log_softmax(-1)


def divergence(p: torch.Tensor, q: torch.Tensor) -> float:
    """Mean KL(p || q) over positions, in nats."""
    return float((p.exp() * (p - q)).sum(-1).mean())


if __name__ == "__main__":
    main()
