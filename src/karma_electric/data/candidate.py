"""A candidate: a conversation on its way into the corpus. What an `Example` must have, a candidate may still lack."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from karma_electric.core.errors import DataError
from karma_electric.core.messages import Conversation, as_dicts
from karma_electric.data.example import CATEGORIES, Analysis, Example


@dataclass(frozen=True)
class Candidate:
    """One conversation of the workbench.

    Attributes:
        id: unique in a workbench.
        messages: user and assistant turns that alternate, the user first; no system prompt.
        system: the system prompt the conversation came with; kept for lossless export, not used by releases.
        category: one of `CATEGORIES`, or None while nobody has decided.
        analysis: the three sentences, or None while they are missing.
        source: who wrote it, in plain words ("synthetic-language-model", a data set's name, a model's name).
        license: licence identifier, "unknown" when the import did not say.
        added_in: the release that first held it, or None.
        status: "candidate", "accepted" or "rejected".
        extra: keys of the imported record that have no place here; exported again as they were.
    """

    id: str
    messages: Conversation
    system: str | None = None
    category: str | None = None
    tags: tuple[str, ...] = ()
    analysis: Analysis | None = None
    source: str = "unknown"
    license: str = "unknown"
    added_in: str | None = None
    status: str = "candidate"
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def content_sha256(self) -> str:
        """Hash of the turns: a grade or a penalty holds for these words and no others."""
        text = json.dumps(as_dicts(self.messages), ensure_ascii=False, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def to_example(self) -> Example:
        """The corpus form.

        Raises:
            DataError: naming what the candidate still lacks.
        """
        lacking = [
            name
            for name, missing in (
                ("category", self.category not in CATEGORIES),
                ("tags", not self.tags),
                ("analysis", self.analysis is None),
                ("added_in", self.added_in is None),
                ("an assistant turn at the end", self.messages[-1].role != "assistant"),
            )
            if missing
        ]
        if lacking:
            raise DataError(
                f"{self.id} lacks {', '.join(lacking)}: it is no corpus example yet.", "Add it with: karma data review"
            )
        assert self.category is not None
        assert self.analysis is not None
        assert self.added_in is not None
        return Example(
            id=self.id,
            category=self.category,
            tags=self.tags,
            messages=self.messages,
            analysis=self.analysis,
            source=self.source,
            license=self.license,
            added_in=self.added_in,
            status=self.status,
        )

    @classmethod
    def from_example(cls, example: Example) -> Candidate:
        """The workbench form of a corpus example."""
        return cls(**vars(example))
