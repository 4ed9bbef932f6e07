"""Run by repeng's own Python, not ours: reads a control vector, steers a model with it, and writes it again.

    python benchmarks/peer_repeng.py IN.gguf MODEL_DIR OUT.gguf OUT.npz

`check_formats.py` calls it and compares.
"""

import sys
import warnings
from importlib.metadata import version

import numpy as np
import torch
from repeng import ControlModel, ControlVector
from transformers import AutoModelForCausalLM

IDS = [[5, 9, 40, 77, 120, 33]]


def main(source: str, model_dir: str, target: str, arrays: str) -> None:
    """Import, steer, export, and keep what was read and the steered logits as plain arrays."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # repeng warns where a file is not quite a control vector
        vector = ControlVector.import_gguf(source)
    vector.export_gguf(target)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    steered = ControlModel(model, sorted(vector.directions))
    steered.set_control(vector, 1.0)
    with torch.no_grad():
        logits = steered(input_ids=torch.tensor(IDS)).logits
    directions = {str(layer): v for layer, v in vector.directions.items()}
    np.savez(arrays, model_type=vector.model_type, logits=logits.numpy(), **directions)
    print(f"repeng {version('repeng')}, torch {version('torch')}, transformers {version('transformers')}")


if __name__ == "__main__":
    main(*sys.argv[1:])
