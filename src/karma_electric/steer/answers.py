"""Answers to the contrast prompts under each system prompt, generated once or given: what position `response` reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from karma_electric.core.artifact import write_atomic
from karma_electric.core.errors import DataError
from karma_electric.core.jsonl import append_jsonl, drop_torn_line, read_jsonl
from karma_electric.core.messages import system, user
from karma_electric.core.progress import Progress
from karma_electric.models.engines.protocol import Engine, Sampling
from karma_electric.models.processes import Processes
from karma_electric.steer.contrast import ContrastSet, Prompt

ANSWERS_FILE = "contrast-responses.jsonl"
_KEYS = ("id", "system", "prompt", "text")
_BATCH = 48

Answers = Mapping[tuple[str, str], str]  # (prompt id, system prompt) -> the answer


def read_answers(path: Path, contrast: ContrastSet) -> dict[tuple[str, str], str]:
    """Read given answers: JSONL with the keys id, system, prompt, text.

    An answer to another prompt, or under another system prompt, is left alone. `prompt` may be a head of the prompt:
    a long one was shortened before it was asked.

    Raises:
        MissingError: no such file.
        DataError: naming file and line; or an answer is missing.
    """
    prompts = {prompt.id: prompt for prompt in contrast.prompts}
    found: dict[tuple[str, str], str] = {}
    for number, item in read_jsonl(path):
        where = f"{path.name} line {number}"
        strings = isinstance(item, dict) and all(isinstance(value, str) for value in item.values())
        if not strings or set(item) != set(_KEYS):
            raise DataError(f"{where}: expected an object with exactly the keys {', '.join(_KEYS)}, each a text.")
        key = (item["id"], item["system"])
        if key in found:
            raise DataError(f"{where}: a second answer to {key[0]!r} under the same system prompt.", "Keep one.")
        if item["id"] in prompts and not prompts[item["id"]].text.startswith(item["prompt"]):
            raise DataError(
                f"{where}: the prompt {item['id']!r} is another one in the contrast file.",
                "Give the contrast prompts that were answered, with --contrast.",
            )
        found[key] = item["text"]
    wanted = [(prompt.id, text) for prompt in contrast.prompts for text in (contrast.toward, *contrast.away)]
    missing = [key for key in wanted if key not in found]
    if missing:
        raise DataError(
            f"{path.name} has no answer to {len(missing)} of {len(wanted)} prompts under their system prompts; the "
            f"first is {missing[0][0]!r} under {_quoted(missing[0][1])}.",
            "Give an answer for every prompt and system prompt, the empty one included.",
        )
    return {key: found[key] for key in wanted}


def _quoted(text: str) -> str:
    return json.dumps(text if len(text) <= 40 else f"{text[:37]}...", ensure_ascii=False)


def generate_answers(
    engine: Engine,
    contrast: ContrastSet,
    out: Path,
    *,
    parts: Path,
    name: str,
    sampling: Sampling,
    processes: Processes,
    progress: Progress,
) -> dict[tuple[str, str], str]:
    """Answer every contrast prompt under every system prompt, and write `ANSWERS_FILE`.

    Batches are fixed: one that was cut off is asked again whole, and with the same seed gives the same answers.

    Args:
        engine: the model itself.
        contrast: the prompts, each short enough.
        out: folder of `ANSWERS_FILE`.
        parts: working folder, where each process appends what it has.
        name: of the working files; another model or other settings have another.
        sampling: how tokens are chosen.
        processes: those that share the batches.
        progress: told about every batch.
    """
    systems = dict.fromkeys((contrast.toward, *contrast.away))
    wanted = [(prompt, text) for prompt in contrast.prompts for text in systems]
    batches = [wanted[i : i + _BATCH] for i in range(0, len(wanted), _BATCH)]
    own = parts / f"{name}-{processes.index}.jsonl"
    if processes.first:
        for part in parts.glob(f"{name}-*.jsonl"):
            drop_torn_line(part)
    processes.wait()
    found: dict[tuple[str, str], str] = {}
    for part in sorted(parts.glob(f"{name}-*.jsonl")):
        found |= {(row["id"], row["system"]): row["text"] for _, row in read_jsonl(part)}
    processes.wait()  # nobody writes before all have read
    mine = processes.share(len(batches))
    for done, number in enumerate(mine):
        progress.update(done, len(mine), "batches of responses to the contrast prompts")
        missing = [(prompt.id, text) for prompt, text in batches[number] if (prompt.id, text) not in found]
        if not missing:
            continue
        answers = engine.generate([[system(text), user(prompt.text)] for prompt, text in batches[number]], sampling)
        fresh = {
            (prompt.id, text): answer.text for (prompt, text), answer in zip(batches[number], answers, strict=True)
        }
        append_jsonl(
            own, (_row(prompt, text, fresh) for prompt, text in batches[number] if (prompt.id, text) in missing)
        )
        found |= {key: fresh[key] for key in missing}
    progress.update(len(mine), len(mine), "batches of responses to the contrast prompts")
    everything: dict[tuple[str, str], str] = {}
    for share in processes.gather(found):
        everything |= share
    if processes.first:
        lines = [json.dumps(_row(prompt, text, everything), ensure_ascii=False) for prompt, text in wanted]
        write_atomic(out / ANSWERS_FILE, "".join(f"{line}\n" for line in lines))
    return {(prompt.id, text): everything[prompt.id, text] for prompt, text in wanted}


def _row(prompt: Prompt, system_prompt: str, answers: Answers) -> dict[str, str]:
    return {"id": prompt.id, "system": system_prompt, "prompt": prompt.text, "text": answers[prompt.id, system_prompt]}
