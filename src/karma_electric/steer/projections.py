"""What a cap sees: projection and norm of the residual stream at every response token, with or without the cap acting.

Answers are given to the model as they are (teacher forcing), so the same tokens are measured however strong the cap is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from karma_electric.core.progress import Progress
from karma_electric.models.blocks import Site
from karma_electric.models.chat_template import prompt_ids
from karma_electric.steer.activations import batches_by_length, picked, recording, right_padded, run_decoder
from karma_electric.steer.axis import Axis
from karma_electric.steer.cap import capped
from karma_electric.steer.mixture import Interval, rate_interval, token_weights
from karma_electric.steer.responses import RESPONSE_KINDS, Response
from karma_electric.steer.spec import Cap

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class TokenText:
    """Responses as token ids, ready for a model.

    Attributes:
        ids: prompt and answer of every response.
        starts: how many of them are prompt.
        kinds: kind of every response.
    """

    ids: tuple[tuple[int, ...], ...]
    starts: tuple[int, ...]
    kinds: tuple[str, ...]


@dataclass(frozen=True)
class Projections:
    """What a site shows at the response tokens.

    Attributes:
        values: block -> <h, v>, float32 [tokens].
        norms: block -> |h|, float32 [tokens].
        owners: number of the response each token is of, [tokens].
        kinds: kind of every response, [responses].
    """

    values: dict[int, NDArray[np.float32]]
    norms: dict[int, NDArray[np.float32]]
    owners: NDArray[np.int64]
    kinds: tuple[str, ...]

    @cached_property
    def token_kinds(self) -> NDArray[Any]:
        """Kind of every token, [tokens]."""
        import numpy as np

        return np.asarray(self.kinds)[self.owners]

    def weights(self, shares: Mapping[str, float]) -> NDArray[np.float64]:
        """Weight of every token; each kind has its share whatever its number of tokens."""
        return token_weights(self.token_kinds.tolist(), shares)


def token_text(tokenizer: PreTrainedTokenizerBase, responses: Sequence[Response]) -> TokenText:
    """Responses as token ids.

    The end of the turn and what the template writes after it are left out: a cap never acts on them, since they are
    not fed back.
    """
    prompts = [prompt_ids(tokenizer, r.question) for r in responses]
    answers = [tokenizer(r.text, add_special_tokens=False)["input_ids"] for r in responses]
    return TokenText(
        ids=tuple((*prompt, *answer) for prompt, answer in zip(prompts, answers, strict=True)),
        starts=tuple(len(prompt) for prompt in prompts),
        kinds=tuple(r.kind for r in responses),
    )


def project(
    model: PreTrainedModel,
    text: TokenText,
    axis: Axis,
    site: Site,
    layers: Sequence[int],
    *,
    cap: Cap | None = None,
    pad_id: int,
    batch_tokens: int,
    progress: Progress,
    note: str,
) -> Projections:
    """Projections on the axis at every response token.

    Prompt tokens (the first position, an attention sink, among them) and padding are left out.

    Args:
        model: the model, uncapped.
        text: what it reads.
        axis: directions.
        site: where.
        layers: blocks.
        cap: acts meanwhile, with its own alpha; what is recorded at a block is what the cap of that block reads, after
            the corrections at earlier blocks and before its own.
        pad_id: token for padding.
        batch_tokens: padded tokens per forward pass.
        progress: told about the batches.
        note: what for, in a few words.
    """
    import numpy as np
    import torch

    found: dict[int, list[NDArray[np.float32]]] = {layer: [] for layer in layers}
    owners: list[NDArray[np.int64]] = []
    batches = batches_by_length([len(ids) for ids in text.ids], batch_tokens)
    with contextlib.nullcontext() if cap is None else capped(model, cap):
        for number, batch in enumerate(batches):
            progress.update(number, len(batches), note)
            ids, mask = right_padded([text.ids[i] for i in batch], pad_id, model.device)
            starts = torch.tensor([text.starts[i] for i in batch], device=model.device)
            response = mask.bool() & (torch.arange(ids.shape[1], device=model.device) >= starts.unsqueeze(1))
            with recording(model, [(site, layer) for layer in layers], picked(response), before_cap=True) as seen:
                run_decoder(model, ids, mask)
            owners.append(np.repeat(np.asarray(batch, dtype=np.int64), response.sum(1).cpu().numpy()))
            for (_, layer), h in seen.items():  # h: float32 [response tokens, hidden]
                found[layer].append(torch.stack([h @ axis.directions[site][layer], h.norm(dim=-1)]).numpy())
    progress.update(len(batches), len(batches), note)
    joined = {layer: np.concatenate(parts, axis=1) for layer, parts in found.items()}
    return Projections(
        values={layer: both[0] for layer, both in joined.items()},
        norms={layer: both[1] for layer, both in joined.items()},
        owners=np.concatenate(owners),
        kinds=text.kinds,
    )


@dataclass(frozen=True)
class Action:
    """How often and how hard a cap acts on some text.

    Attributes:
        responses, tokens: how much text.
        cap_rate: per block (as text) and `mean`, the share of tokens above the threshold.
        dose: the same for mean |dh| / |h|.
        interval: of the mean cap rate.
        kinds: kind -> the same of its tokens alone, with its `weight`; empty for a single kind.
    """

    responses: int
    tokens: int
    cap_rate: dict[str, float]
    dose: dict[str, float]
    interval: Interval | None
    kinds: dict[str, Action]

    def as_dict(self, shares: Mapping[str, float]) -> dict[str, Any]:
        """The form it has in cap.json."""
        return {
            "responses": self.responses,
            "tokens": self.tokens,
            "cap_rate": self.cap_rate,
            "cap_rate_interval": None if self.interval is None else self.interval.as_dict(),
            "dose": self.dose,
            **(
                {"kinds": {kind: {"weight": shares[kind], **a.as_dict(shares)} for kind, a in self.kinds.items()}}
                if self.kinds
                else {}
            ),
        }


def action(seen: Projections, thresholds: Mapping[int, float], alpha: float, shares: Mapping[str, float]) -> Action:
    """Cap rate and dose of a cap from what its hooks saw: |dh| = alpha * max(0, <h, v> - t), since |v| = 1.

    Overall, each kind counts with its share whatever its number of tokens.
    """
    import numpy as np

    over = {layer: np.maximum(values - thresholds[layer], 0.0) for layer, values in seen.values.items()}
    moved = {layer: alpha * excess / seen.norms[layer] for layer, excess in over.items()}
    owner_kinds = np.asarray(seen.kinds)

    def of(chosen: NDArray[np.bool_], weights: Mapping[str, float], parts: dict[str, Action]) -> Action:
        """For the tokens `chosen` ([tokens])."""
        each = token_weights(seen.token_kinds[chosen].tolist(), weights)
        cap_rate = {str(layer): float(((x[chosen] > 0) * each).sum()) for layer, x in over.items()}
        dose = {str(layer): float((x[chosen] * each).sum()) for layer, x in moved.items()}
        owners = np.unique(seen.owners[chosen])
        mean_over = np.mean([x > 0 for x in over.values()], axis=0)
        n = len(seen.kinds)
        capped_tokens = np.bincount(seen.owners[chosen], mean_over[chosen], n)[owners]
        tokens = np.bincount(seen.owners[chosen], minlength=n)[owners]
        return Action(
            responses=len(owners),
            tokens=int(chosen.sum()),
            cap_rate={**cap_rate, "mean": sum(cap_rate.values()) / len(cap_rate)},
            dose={**dose, "mean": sum(dose.values()) / len(dose)},
            interval=rate_interval(capped_tokens, tokens, owner_kinds[owners].tolist(), weights),
            kinds=parts,
        )

    kinds = [kind for kind in RESPONSE_KINDS if (seen.token_kinds == kind).any()]
    parts = {kind: of(seen.token_kinds == kind, {kind: 1.0}, {}) for kind in kinds}
    return of(np.ones(len(seen.owners), dtype=bool), shares, parts)
