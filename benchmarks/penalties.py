"""Penalties on long, unkind texts: reading must stay proportional to length, and fast on ordinary ones.

python benchmarks/penalties.py --characters 200000
"""

from __future__ import annotations

import argparse
import time

from karma_electric.core.resources import resource_root
from karma_electric.data.corpus import read_corpus
from karma_electric.data.penalties import penalize, penalize_conversation

UNKIND = {
    "one word": "a",
    "one long sentence": "everyone who says that you ",
    "quotation marks": "\"'",
    "opening marks": "“ ‘ ",
    "words of one rule": "you must be so really truly very clearly obviously angry ",
    "reported again and again": "people say that nobody ever would be better off without you and ",
    "a hundred questions": "great question! ",
    "negations": "not never no don't ",
    "percent signs": "7% of 8% in 9 out of ",
    "blank lines": "\n\n- ",
    "code fences": "``` ",
    "capitals": "*Of The ",
}


def seconds(text: str) -> float:
    """Time to penalise a text."""
    start = time.perf_counter()
    penalize(text, prompt=text[:2000])
    return time.perf_counter() - start


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--characters", type=int, default=200_000)
    n = parser.parse_args().characters
    penalize("warm up")
    print(f"{'text':<26} {n // 2:>9} {n:>9}  ratio (2 is linear)")
    for name, piece in UNKIND.items():
        half, whole = (seconds((piece * (size // len(piece) + 1))[:size]) for size in (n // 2, n))
        print(f"{name:<26} {half:>7.2f} s {whole:>7.2f} s  {whole / half:.2f}")
    examples = read_corpus(resource_root("corpus"))
    start = time.perf_counter()
    for example in examples:
        penalize_conversation(example.messages, category=example.category)
    took = time.perf_counter() - start
    print(f"corpus: {len(examples)} conversations in {took:.1f} s, {1000 * took / len(examples):.1f} ms each")


if __name__ == "__main__":
    main()
