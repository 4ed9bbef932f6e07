"""Finding copies in 6,000 public prompts: seconds and peak memory, and against comparing every pair.

The parts run in processes of their own, so that each peak of memory is its own, imports and the loading of the model
included; vectors kept on disk are not used. The naive side compares the character shingles of every pair of a subset,
in alternating runs with ours on the same subset, and must find the same copies.

    python benchmarks/dedupe.py [PROMPTS.jsonl] [--repeats 3] [--subset 600]
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from karma_electric.data.dedupe import NEAR, Item, counts, find_duplicates
from karma_electric.data.texts import normalised, read_texts

PUBLIC = Path(__file__).resolve().parents[2] / "shared" / "data" / "prompts-6k.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prompts", nargs="?", type=Path, default=PUBLIC)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--subset", type=int, default=600)
    parser.add_argument("--part", choices=["words", "meaning"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.prompts.is_file():
        print(f"skipped: {options.prompts} is not here; give a .jsonl file of prompts")
        return
    if options.part:
        one_part(options.prompts, options.part)
        return
    for part, title in (("words", "exact and near"), ("meaning", "exact, near and semantic")):
        print(f"{title:<26}", end="", flush=True)
        subprocess.run([sys.executable, __file__, str(options.prompts), "--part", part], check=True)
    alternate(read(options.prompts)[: options.subset], options.repeats)


def read(path: Path) -> list[Item]:
    return [Item(record.id, {"prompt": "\n\n".join(record.prompts)}) for record in read_texts(path)]


def one_part(path: Path, part: str) -> None:
    started = time.perf_counter()
    items = read(path)
    if part == "words":
        found = find_duplicates(items, semantic=None)
    else:
        from karma_electric.models.sentences import SentenceModel

        found = find_duplicates(items, model=SentenceModel.load(device="cpu", cache=False))
    seconds = time.perf_counter() - started
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(
        f"{len(items)} prompts in {seconds:6.1f} s (processor {usage.ru_utime + usage.ru_stime:.1f} s), "
        f"peak {usage.ru_maxrss / 1e6:.2f} GB, {', '.join(f'{kind} {n}' for kind, n in counts(found).items())}"
    )


def naive(items: list[Item]) -> set[str]:
    """Ids of items that are like an earlier one, longest first: every pair compared."""
    ordered = sorted(items, key=lambda item: (-len(item.texts["prompt"]), item.id))
    shingles = []
    for item in ordered:
        padded = f"    {normalised(item.texts['prompt'])}    "
        shingles.append({padded[i : i + 5] for i in range(len(padded) - 4)})
    return {
        ordered[later].id
        for later in range(len(ordered))
        if any(
            len(shingles[later] & shingles[earlier]) >= NEAR * len(shingles[later] | shingles[earlier])
            for earlier in range(later)
        )
    }


def alternate(items: list[Item], repeats: int) -> None:
    seconds: dict[str, list[float]] = {"every pair": [], "MinHash": []}
    for _ in range(repeats + 1):  # the first round warms up
        started = time.perf_counter()
        slow = naive(items)
        seconds["every pair"].append(time.perf_counter() - started)
        started = time.perf_counter()
        fast = {duplicate.id for duplicate in find_duplicates(items, semantic=None)}
        seconds["MinHash"].append(time.perf_counter() - started)
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    for name, value in medians.items():
        print(f"{name:<12} {value:7.3f} s for {len(items)} prompts (median of {repeats})")
    print(f"ratio        {medians['every pair'] / medians['MinHash']:7.2f}")
    print(
        f"found by both {len(slow & fast)}, by every pair alone {len(slow - fast)}, by MinHash alone {len(fast - slow)}"
    )


if __name__ == "__main__":
    main()
