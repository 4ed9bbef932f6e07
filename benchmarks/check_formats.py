"""Control vectors between this project and repeng itself, in an environment of its own, in both directions.

    python benchmarks/check_formats.py .venv-peers/bin/python        (make check-formats)

Ours is written, read by repeng, written by repeng and read by us again: blocks, numbers and direction must be the
same bit for bit. repeng steers a small random model with it, which must do what adding each vector after its block
does. A file for the original's fork must not pass for a control vector: it would be added, not capped.
Exit code 1 if anything differs.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from karma_electric.models.loading import quiet_transformers
from karma_electric.steer.formats import acap, control_vector
from karma_electric.steer.formats.steering import AWAY, TOWARD, About, ReadOptions, Steering, oriented

PEER = Path(__file__).with_name("peer_repeng.py")
N_LAYERS, HIDDEN = 30, 576  # the embedded model's
IDS = [[5, 9, 40, 77, 120, 33]]  # as in the peer


def main(python: str) -> None:
    """Compare, print a table, exit with 1 if a line says no."""
    generator = torch.Generator().manual_seed(0)
    vectors = {layer: 5 * torch.randn(HIDDEN, generator=generator) for layer in range(1, N_LAYERS)}
    ours = Steering(vectors, AWAY, n_layers=N_LAYERS, about=About(model_type="llama"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        control_vector.write(ours, folder / "ours.gguf")
        save_model(folder / "model")
        said = peer(python, folder / "ours.gguf", folder)
        print(said.stdout.strip() or said.stderr.strip()[-2000:])
        rows = {"repeng reads the file without a warning": said.returncode == 0}
        if said.returncode == 0:
            rows |= compared(ours, folder)
        capped = Steering(vectors, AWAY, dict.fromkeys(vectors, 1.0), alpha=1.0, n_layers=N_LAYERS)
        acap.write(capped, folder / "acap.gguf")
        refused = peer(python, folder / "acap.gguf", folder)
        rows["repeng refuses a file for the original's fork"] = (
            refused.returncode != 0 and "control vector" in refused.stderr
        )
    for line, ok in rows.items():
        print(f"{'yes' if ok else 'NO ':<4} {line}")
    sys.exit(0 if all(rows.values()) else 1)


def compared(ours: Steering, folder: Path) -> dict[str, bool]:
    """What repeng read against what was written, and what it wrote against both."""
    toward = oriented(ours, TOWARD)
    read = dict(np.load(folder / "read.npz"))
    model_type, logits = str(read.pop("model_type")), torch.tensor(read.pop("logits"))
    expected, bare = steered(folder / "model", toward), steered(folder / "model", None)
    back = control_vector.read(folder / "back.gguf", ReadOptions(orientation=TOWARD))
    layers = {str(layer) for layer in ours.layers}
    return {
        "its model hint is the one written": model_type == "llama",
        f"its {len(layers)} blocks are the ones written": set(read) == layers,
        "its numbers are the negated directions, bit for bit": all(
            np.array_equal(read[str(layer)], toward.vectors[layer].numpy()) for layer in ours.layers
        ),
        "steering with it is adding each vector after its block, counted from 0": bool(
            (logits - expected).abs().max() < 1e-4 and (bare - expected).abs().max() > 0.1
        ),
        "what it exports is read here bit for bit": back.layers == ours.layers
        and all(torch.equal(back.vectors[layer], toward.vectors[layer]) for layer in ours.layers)
        and back.about.model_type == "llama",
        "turned around, that is the axis it began with": all(
            torch.equal(oriented(back, AWAY).vectors[layer], ours.vectors[layer]) for layer in ours.layers
        ),
    }


def save_model(folder: Path) -> None:
    """A random Llama of the embedded model's depth and width."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=HIDDEN, num_hidden_layers=N_LAYERS, vocab_size=256, intermediate_size=64, num_attention_heads=9,
        num_key_value_heads=3,
    )  # fmt: skip
    with quiet_transformers():
        LlamaForCausalLM(config).save_pretrained(folder)


def steered(folder: Path, toward: Steering | None) -> torch.Tensor:
    """Logits with every vector added to its block's output, by hooks of this file's own."""
    from transformers import AutoModelForCausalLM

    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for layer, vector in toward.vectors.items() if toward else ():
        model.model.layers[layer].register_forward_hook(lambda _, __, h, v=vector: h + v)
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=torch.tensor(IDS)).logits
    return logits


def peer(python: str, source: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Let repeng read and write a file."""
    words = [python, PEER, source, folder / "model", folder / "back.gguf", folder / "read.npz"]
    return subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
