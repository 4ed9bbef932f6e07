"""The original project's own command line, kept working: `python bodhisattva_inference.py --model ./merged ...`."""

from __future__ import annotations

import argparse
from pathlib import Path

from karma_electric.cli.chat import chat
from karma_electric.cli.main import guarded


def main(arguments: list[str] | None = None) -> None:
    """Parse the original's options and hand over to `karma chat`."""
    parser = argparse.ArgumentParser(
        prog="bodhisattva_inference.py",
        description="Full-weight inference with activation capping. The same engine as `karma chat`.",
        epilog="Example: python bodhisattva_inference.py --model ./runs/demo/merged --alpha 0.5 --interactive",
    )
    parser.add_argument("--model", required=True, help="model folder; its cap is found in the run it lies in")
    parser.add_argument("--cap", type=Path, help="cap.json, when it does not lie in the run")
    parser.add_argument("--alpha", type=float, help="0.0 off, 0.5 soft, 1.0 hard; the cap's own when not given")
    parser.add_argument("--interactive", action="store_true", help="chat (the default without --prompt)")
    parser.add_argument("--prompt", help="answer this and leave")
    parser.add_argument("--compare", action="store_true", help="capped and uncapped side by side")
    parser.add_argument("--system", help="system prompt; the persona's when not given")
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--top-p", type=float, default=0.9)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.interactive and options.prompt is not None:
        parser.error("--interactive and --prompt exclude each other: leave one out")
    if not 0 <= options.seed < 2**63:
        parser.error("--seed must be a whole number from 0")
    if options.max_new_tokens < 1 or options.temperature < 0 or not 0 < options.top_p <= 1:
        parser.error("--max-new-tokens must be at least 1, --temperature at least 0, --top-p in (0, 1]")
    guarded(
        lambda: chat(
            options.model,
            cap=options.cap,
            alpha=options.alpha,
            prompt=options.prompt,
            compare=options.compare,
            system=options.system,
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            top_p=options.top_p,
            seed=options.seed,
        )
    )
