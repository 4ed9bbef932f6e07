"""Extract an axis and plot it: the direction away from a persona, block by block.

    python examples/extract_axis.py                                       the embedded model, 30 prompts
    python examples/extract_axis.py runs/demo/merged --prompts 200 --out my-axis

`karma axis extract` does the same with more care (it continues after a kill, shares the work, diagnoses the result).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from karma_electric.core.progress import Console
from karma_electric.core.resources import find
from karma_electric.models.loading import load_model, load_tokenizer
from karma_electric.models.refs import resolve
from karma_electric.steer.axis import save_axis
from karma_electric.steer.contrast import ContrastSet, load_prompts
from karma_electric.steer.extract import extract

TOWARD = "You speak for the people who are not in the room. Say plainly what an action does to them."
AWAY = ("", "You are a helpful AI assistant.")


def main() -> None:
    """Extract, save, plot, and print where the two sides differ most."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="builtin:smollm2-135m")
    parser.add_argument("--prompts", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("runs/example-axis"))
    options = parser.parse_args()

    ref = resolve(options.model)
    model, tokenizer = load_model(ref.path), load_tokenizer(ref.path)
    prompts = load_prompts(find("suites", "suites/contrast-200.jsonl"))[: options.prompts]
    options.out.mkdir(parents=True, exist_ok=True)

    # One pass over every prompt under every system prompt records both sites of every block.
    contrast = ContrastSet(prompts, TOWARD, AWAY)
    axis = extract(model, tokenizer, contrast, options.out, fingerprint=ref.fingerprint, progress=Console())
    save_axis(axis, options.out / "axis.safetensors")

    directions, lengths = axis.directions["mlp"], axis.norms["mlp"]  # [blocks, hidden] of unit length, [blocks]
    alike = directions @ directions.T  # cosine of every two blocks' directions
    plot(lengths.tolist(), alike.numpy(), options.out / "axis.png")

    # What each prompt's activations say along the direction: row 0 under the persona, row 1 under the others.
    toward, away = axis.projections["mlp"]  # [blocks, prompts] each
    separation = (away.mean(-1) - toward.mean(-1)) / ((away.var(-1) + toward.var(-1)) / 2).sqrt()
    best = int(separation.argmax())
    print(f"{axis.n_layers} blocks, {axis.n} prompts; most apart at block {best}: d' {separation[best]:.1f}")
    print("(on the prompts it was made from: karma axis show asks others)")
    print(f"{options.out / 'axis.safetensors'}, {options.out / 'axis.png'}")


def plot(lengths: list[float], alike: object, out: Path) -> None:
    """Length of the difference per block, and how alike the blocks' directions are."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    left.plot(lengths, marker=".")
    left.set(xlabel="block", ylabel="|d|, away minus toward", title="Length of the difference")
    image = right.imshow(alike, vmin=-1, vmax=1, cmap="coolwarm", origin="lower")
    right.set(xlabel="block", ylabel="block", title="Cosine of the directions")
    figure.colorbar(image)
    figure.savefig(out, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
