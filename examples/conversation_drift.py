"""How far a conversation drifts from a persona, turn by turn, with a plot.

    python examples/conversation_drift.py                            examples/conversation.json, the embedded model
    python examples/conversation_drift.py my-chat.json runs/demo/merged --plot drift.png

The direction is extracted here from a few prompts, with the conversation's own system prompt as the persona, and the
ceiling is the middle of what the answers themselves project to: a look at one conversation. For figures that can be
compared, calibrate a cap and use `karma drift`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from karma_electric.core.progress import Console
from karma_electric.core.resources import find
from karma_electric.core.transcripts import read_transcripts
from karma_electric.models.blocks import context_length, layer_range
from karma_electric.models.loading import load_model, load_tokenizer
from karma_electric.models.refs import resolve
from karma_electric.steer.contrast import ContrastSet, load_prompts
from karma_electric.steer.conversation_drift import ConversationDrift, project, render_all, turn_drifts
from karma_electric.steer.drift_plot import plot_drift
from karma_electric.steer.drift_reference import own_reference
from karma_electric.steer.extract import extract
from karma_electric.steer.spec import Cap, CapSpec

HERE = Path(__file__).parent
AWAY = ("", "You are a helpful AI assistant.")


def main() -> None:
    """Extract a direction, read the conversation, print a line per answer, draw every token."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("transcript", nargs="?", default=str(HERE / "conversation.json"))
    parser.add_argument("model", nargs="?", default="builtin:smollm2-135m")
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--plot", type=Path, default=Path("drift.png"))
    options = parser.parse_args()

    ref = resolve(options.model)
    model, tokenizer = load_model(ref.path), load_tokenizer(ref.path)
    conversation = read_transcripts(options.transcript)[0].messages
    persona = next((message.content for message in conversation if message.role == "system"), "")
    if not persona:
        raise SystemExit("error: the conversation has no system message, and that is the persona here.")

    with tempfile.TemporaryDirectory() as folder:
        prompts = load_prompts(find("suites", "suites/contrast-200.jsonl"))[: options.prompts]
        contrast = ContrastSet(prompts, persona, AWAY)
        axis = extract(model, tokenizer, contrast, Path(folder), fingerprint=ref.fingerprint, progress=Console())

    layers = tuple(layer_range(axis.n_layers, layers=None, depth=(0.70, 0.88)))
    rendered = render_all(tokenizer, {"conversation": conversation}, context_length(model))
    flat = Cap.of(CapSpec("axis.safetensors", "mlp", layers, dict.fromkeys(layers, 0.0), 0.5), axis)
    (projections,) = project(model, tokenizer, flat, rendered, progress=Console())  # [tokens, capped blocks]
    own = [at for turn in rendered[0].turns if turn.role == "assistant" for at in turn.tokens]
    middle = projections[own].median(dim=0).values.tolist()
    cap = Cap.of(CapSpec("axis.safetensors", "mlp", layers, dict(zip(layers, middle, strict=True)), 0.5), axis)

    scales = own_reference(rendered, [projections], cap).scales
    drift = ConversationDrift(turn_drifts(rendered[0], projections, cap, scales), alarm=0.0)
    for turn in drift.turns:
        if turn.role == "assistant":
            text = "".join(turn.pieces).strip()
            print(f"turn {turn.number}: mean {turn.drift.mean:+.2f}, highest {turn.drift.max:+.2f}   {text[:60]}")
    plot_drift({"conversation": drift}, f"{options.model}, blocks {layers[0]}-{layers[-1]}", options.plot)
    print(f"{options.plot}: every token; 0 is the middle of these answers, positive is away from the persona")


if __name__ == "__main__":
    main()
