"""Candidates from seed prompts: several answers each of any model, added to the workbench as they come.

What is empty, cut off, or a copy of an answer that is there is not added, and reported. An id is made from the prompt
and everything that decides the answer, so a killed run continues with the same command, and another model, system
prompt or temperature gives new candidates.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from karma_electric.core.artifact import canonical_json, hash_text
from karma_electric.core.errors import DataError
from karma_electric.core.jsonl import read_jsonl
from karma_electric.core.messages import Conversation, as_dicts, assistant, parse_conversation, system, user
from karma_electric.core.progress import Progress
from karma_electric.data.answers_seen import AnswersSeen
from karma_electric.data.candidate import Candidate
from karma_electric.data.example import CATEGORIES
from karma_electric.data.grading import Failure, Spending
from karma_electric.data.store import Store
from karma_electric.models.asking import Asker, Endpoint, NoAnswer, Outage, Said, in_parallel


@dataclass(frozen=True)
class Prompt:
    """A seed: what a model is asked.

    Attributes:
        id: unique among the prompts of a run.
        messages: turns that end with the person's.
        category: of the candidates, when the prompt says it.
        tags: of the candidates.
    """

    id: str
    messages: Conversation
    category: str | None = None
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """How candidates are made, apart from the prompts.

    Attributes:
        endpoint: the model and how it is sampled.
        samples: answers per prompt.
        seed: the n-th answer to a prompt is sampled with `seed + n`.
        system_prompt: what comes before the prompt; kept in the candidate as `system`.
        category: of the candidates whose prompt names none.
        license: of the answers.
    """

    endpoint: Endpoint
    samples: int
    seed: int
    system_prompt: str | None
    category: str | None
    license: str

    def candidate_id(self, prompt: Prompt, sample: int) -> str:
        """Id of one answer: the prompt's, a hash of what decides the answer, the sample's number."""
        decides = {
            "model": self.endpoint.model,
            "model_args": dict(self.endpoint.model_args),
            "system": self.system_prompt,
            "messages": as_dicts(prompt.messages),
            "temperature": self.endpoint.temperature,
            "top_p": self.endpoint.top_p,
            "max_tokens": self.endpoint.max_tokens,
            "seed": self.seed,
        }
        return f"{prompt.id}-{hash_text(canonical_json(decides))[:8]}-{sample}"


@dataclass(frozen=True)
class NotAdded:
    """An answer that was left out: "empty", "cut off", "exact" or "near" copy of `other`, or a provider's stop."""

    id: str
    reason: str
    other: str | None = None
    similarity: float | None = None


@dataclass
class GenerationReport:
    """What one run brought.

    Attributes:
        model: who answered.
        prompts, samples: what was asked for.
        there_already: answers of an earlier run of the same command.
        added: new candidates.
        not_added: answers that came but were left out. The same command asks for them again.
        failed: answers that did not come.
        spending: requests and tokens.
    """

    model: str
    prompts: int
    samples: int
    there_already: int = 0
    added: list[str] = field(default_factory=list)
    not_added: list[NotAdded] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    spending: Spending = field(default_factory=Spending)

    def reasons(self) -> dict[str, int]:
        """How often each reason for leaving an answer out applied."""
        return dict(Counter(item.reason for item in self.not_added).most_common())

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return asdict(self)


def read_prompts(path: Path) -> list[Prompt]:
    """Read seed prompts: lines with `prompt` (a text) or `messages` (turns), and an `id` that is made when missing.

    `category` and `tags` are used where they fit; other keys, which prompt files of all kinds have, are not read.

    Raises:
        MissingError: no such file.
        DataError: a line that asks nothing, an id used twice, or no lines.
    """
    prompts: dict[str, Prompt] = {}
    for number, item in read_jsonl(path):
        where = f"{path.name} line {number}"
        prompt = _parse_prompt(item, where)
        if prompt.id in prompts:
            raise DataError(f"{where}: the id {prompt.id!r} was already used.", "Ids are unique; so are prompts.")
        prompts[prompt.id] = prompt
    if not prompts:
        raise DataError(f"{path.name} holds no prompts.", 'One JSON object per line, such as {"prompt": "..."}.')
    return list(prompts.values())


def generate_candidates(
    store: Store, asker: Asker, prompts: Sequence[Prompt], plan: Plan, *, progress: Progress
) -> GenerationReport:
    """Ask a model for the answers that are not in the workbench yet, and add those that are new.

    Args:
        store: the workbench.
        asker: the model of `plan.endpoint`.
        prompts: what to ask.
        plan: how.
        progress: told of every answer.

    Raises:
        MissingError: the model does not answer at all; what it answered before is kept.
    """
    report = GenerationReport(model=asker.name, prompts=len(prompts), samples=plan.samples)
    there = {str(row["id"]) for row in store.rows("SELECT id FROM candidates")}
    due = [(prompt, sample) for prompt in prompts for sample in range(plan.samples)]
    missing = [item for item in due if plan.candidate_id(*item) not in there]
    report.there_already = len(due) - len(missing)
    if missing:
        seen = AnswersSeen(
            (candidate.id, candidate.messages[-1].content)
            for candidate in store.candidates()
            if candidate.messages[-1].role == "assistant"
        )
        asyncio.run(_ask_all(store, asker, missing, plan, seen, report, progress))
    report.spending.requests = asker.requests
    return report


async def _ask_all(
    store: Store,
    asker: Asker,
    missing: Sequence[tuple[Prompt, int]],
    plan: Plan,
    seen: AnswersSeen,
    report: GenerationReport,
    progress: Progress,
) -> None:
    outage = Outage(asker)
    done = 0

    async def work(item: tuple[Prompt, int]) -> None:
        nonlocal done
        prompt, sample = item
        id_ = plan.candidate_id(prompt, sample)
        opening = [] if plan.system_prompt is None else [system(plan.system_prompt)]
        try:
            said = await asker.ask([*opening, *prompt.messages], seed=plan.seed + sample)
        except NoAnswer as failure:
            report.failed.append(Failure(id_, failure.kind, failure.reason))
            outage.failed(failure)
        else:
            outage.answered()
            report.spending.add(said)
            left_out = _left_out(id_, said, seen)
            if left_out is not None:
                report.not_added.append(left_out)
            else:
                store.add([_candidate(id_, prompt, sample, said, plan)], origin=f"generate:{asker.name}")
                seen.add(id_, said.text)
                report.added.append(id_)
        done += 1
        progress.update(done, len(missing), f"{len(report.not_added)} not added, {len(report.failed)} failed")

    async with asker:
        await in_parallel(missing, work, connections=asker.max_connections)


def _left_out(id: str, said: Said, seen: AnswersSeen) -> NotAdded | None:
    if not said.text.strip():
        return NotAdded(id, "empty")
    if said.finish == "length":
        return NotAdded(id, "cut off")
    if said.finish != "stop":
        return NotAdded(id, said.finish)
    copy = seen.copy_of(said.text)
    return None if copy is None else NotAdded(id, f"{copy.kind} copy", copy.other, round(copy.similarity, 4))


def _candidate(id: str, prompt: Prompt, sample: int, said: Said, plan: Plan) -> Candidate:
    return Candidate(
        id=id,
        messages=[*prompt.messages, assistant(said.text.strip())],
        system=plan.system_prompt,
        category=prompt.category or plan.category,
        tags=prompt.tags,
        source=plan.endpoint.model,
        license=plan.license,
        extra={
            "generated": {
                "prompt": prompt.id,
                "sample": sample,
                "seed": plan.seed + sample,
                "temperature": plan.endpoint.temperature,
                "top_p": plan.endpoint.top_p,
            }
        },
    )


def _parse_prompt(item: object, where: str) -> Prompt:
    if not isinstance(item, dict):
        raise DataError(f"{where}: found {type(item).__name__}, expected a JSON object.")
    if ("prompt" in item) == ("messages" in item):
        raise DataError(f"{where}: expected either 'prompt' or 'messages'.", 'Such as {"id": "p1", "prompt": "..."}.')
    if "prompt" in item:
        if not isinstance(item["prompt"], str) or not item["prompt"].strip():
            raise DataError(f"{where}: 'prompt' is {item['prompt']!r}, expected text.")
        messages = [user(item["prompt"])]
    else:
        messages = parse_conversation(item["messages"], where)
    if messages[0].role == "system":
        raise DataError(f"{where}: a system prompt is among the turns.", "Give it with --system-prompt.")
    if messages[-1].role != "user":
        raise DataError(f"{where}: the last turn is an answer, expected the person's.")
    category, tags, id_ = item.get("category"), item.get("tags"), item.get("id")
    if id_ is not None and (not isinstance(id_, str) or not id_.strip()):
        raise DataError(f"{where}: 'id' is {id_!r}, expected text.")
    return Prompt(
        id=id_ or f"p-{hash_text(canonical_json(as_dicts(messages)))[:12]}",
        messages=messages,
        category=category if category in CATEGORIES else None,
        tags=tuple(tag for tag in tags if isinstance(tag, str)) if isinstance(tags, list) else (),
    )
