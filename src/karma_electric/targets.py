"""Arms that are no model of a recipe: any model of Inspect as the target of a red-team.

A target is asked with the patience of models/asking.py, several conversations at a time, and answers like an engine.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from karma_electric.asked import ask, asked_config, chosen_scorer, judge_inputs, suites_of
from karma_electric.core.artifact import canonical_json, hash_file
from karma_electric.core.errors import InputError
from karma_electric.core.messages import Conversation
from karma_electric.core.progress import Progress
from karma_electric.core.recipe import Recipe
from karma_electric.models.asking import Asker, Endpoint, NoAnswer, Outage
from karma_electric.models.engines.protocol import Alpha, Completion, OnDrift, Sampling, Usage
from karma_electric.pipeline import Stage
from karma_electric.redteam.kinds import FOLDERS, Kind, ready, reuse_answers

T = TypeVar("T")


class AskedTarget:
    """A model of Inspect as an engine, as a context manager.

    Where one conversation of a batch gets no answer, the others' are remembered, so that asking them again one by one
    costs nothing.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._asker = Asker(endpoint)
        self._outage = Outage(self._asker)
        self._known: dict[str, Completion] = {}
        self._loop = asyncio.new_event_loop()
        # one loop for all batches: the connections of a provider belong to the loop that made them
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    @property
    def name(self) -> str:
        """The model's name."""
        return self._asker.name

    def __enter__(self) -> AskedTarget:
        self._thread.start()
        self._run(self._asker.__aenter__())
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._run(self._asker.__aexit__(None, None, None))
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def generate(
        self, conversations: Sequence[Conversation], sampling: Sampling, *, alpha: Alpha = None
    ) -> list[Completion]:
        """Answer conversations. See `Engine.generate`.

        Raises:
            NoAnswer: for the first of them that has none.
            MissingError: so many in a row have none that the model is not there.
            InputError: an alpha: the strength of a cap is an argument of the model.
        """
        if alpha is not None:
            raise InputError(f"{self.name} was asked at alpha {alpha}.", "Give --target-arg alpha=... instead.")
        self._asker.endpoint = replace(
            self._asker.endpoint,
            temperature=sampling.temperature,
            top_p=sampling.top_p if sampling.top_p < 1 else None,
            max_tokens=sampling.max_new_tokens,
        )
        found = self._run(self._all(conversations, sampling))
        if len(conversations) > 1 and all(isinstance(one, Completion) for one in found):
            self._known.clear()
        for one in found:
            if not isinstance(one, Completion):
                raise one
        return [one for one in found if isinstance(one, Completion)]

    def stream(
        self,
        conversation: Conversation,
        sampling: Sampling,
        *,
        alpha: float | None = None,
        on_drift: OnDrift | None = None,
    ) -> Iterator[str]:
        """The whole answer as one piece."""
        yield self.generate([conversation], sampling, alpha=alpha)[0].text

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _all(self, conversations: Sequence[Conversation], sampling: Sampling) -> list[Completion | BaseException]:
        free = asyncio.Semaphore(self._asker.max_connections)

        async def one(conversation: Conversation) -> Completion:
            key = canonical_json([sampling.seed, [message.as_dict() for message in conversation]])
            if key not in self._known:
                async with free:
                    self._known[key] = await self._ask(conversation, sampling)
            return self._known[key]

        return await asyncio.gather(*(one(conversation) for conversation in conversations), return_exceptions=True)

    async def _ask(self, conversation: Conversation, sampling: Sampling) -> Completion:
        if not conversation[0].content and not self.name.startswith("karma/"):
            conversation = conversation[1:]  # an empty system prompt is for templates with a prompt of their own
        try:
            said = await self._asker.ask(conversation, seed=sampling.seed)
            if not said.text and said.finish not in ("stop", "length"):
                raise NoAnswer("refused", f"the provider gave no text: {said.finish}")
        except NoAnswer as failure:
            self._outage.failed(failure)
            raise
        self._outage.answered()
        return Completion(
            text=said.text,
            finish_reason="length" if said.finish == "length" else "stop",
            usage=Usage(said.prompt_tokens, said.completion_tokens),
        )


def plan_target(recipe: Recipe, endpoint: Endpoint, place: Path) -> list[Stage]:
    """The arms that ask a recipe's suites of a target, one for each kind of suite, below the folder `place`.

    Raises:
        MissingError: a suite, or a target of ours, is not there.
        InputError: conversations to measure drift in: a target has no axis.
    """
    stages = []
    for kind, suite in suites_of(recipe).items():
        if kind == "drift":
            raise InputError(
                f"{suite.name} measures drift, and nothing is known of a target's axis.", "Ask it of the recipe's arms."
            )
        config = {**asked_config(recipe, kind), "target": target_config(endpoint)}
        inputs = {"suite": hash_file(suite), **target_input(endpoint)}
        name = f"{FOLDERS[kind]}/{slug(endpoint.model)}"
        stages.append(
            Stage(
                name,
                FOLDERS[kind],
                config,
                {**inputs, **judge_inputs(recipe, kind)},
                partial(_arm, recipe, endpoint, kind, suite),
                resumable=True,
                take_over=partial(reuse_answers, config, inputs, {}, place / name),
            )
        )
    return stages


def target_config(endpoint: Endpoint) -> dict[str, Any]:
    """What of an endpoint decides its answers."""
    return {"model": endpoint.model, "base_url": endpoint.base_url, "arguments": dict(endpoint.model_args)}


def target_input(endpoint: Endpoint) -> dict[str, str]:
    """The weights of a target of ours and its cap, by hash; nothing of another provider's is known."""
    from karma_electric.models.engines.named import engine_kind
    from karma_electric.models.refs import resolve

    if not endpoint.model.startswith("karma/"):
        return {}
    name = endpoint.model.removeprefix("karma/")
    kind = engine_kind(name)
    if kind == "hf":
        return {"target": resolve(name).fingerprint, **_cap_input(Path(name), endpoint.model_args)}
    file = Path(name.removeprefix("scripted:"))
    found = {"target": hash_file(file)} if file.is_file() else {}
    return found | (_cap_input(file, endpoint.model_args) if kind == "llamacpp" else {})


def _cap_input(model: Path, arguments: Mapping[str, Any]) -> dict[str, str]:
    """Threshold and directions of the cap that a model's arguments ask for, by hash; one that is missing is told when
    it is opened."""
    from karma_electric.steer.spec import CAP_FILE, load_spec

    if not {"cap", "alpha", "drift"} & arguments.keys():
        return {}
    place = Path(arguments.get("cap") or model.resolve().parent / "axis")
    file = place / CAP_FILE if place.is_dir() else place
    if not file.is_file():
        return {}
    axis = file.parent / load_spec(file).axis
    return {"cap": hash_file(file), **({"directions": hash_file(axis)} if axis.is_file() else {})}


def slug(model: str) -> str:
    """A model's name as the name of an arm."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", model).strip("-.").lower()[-80:] or "target"


def _arm(
    recipe: Recipe,
    endpoint: Endpoint,
    kind: Kind,
    suite: Path,
    out: Path,
    progress: Progress,
) -> None:
    scenarios, scorer = ready(kind, suite, lambda: chosen_scorer(recipe, kind))
    with AskedTarget(endpoint) as target:
        ask(recipe, target, scenarios, out, arm=slug(endpoint.model), scorer=scorer, progress=progress)
