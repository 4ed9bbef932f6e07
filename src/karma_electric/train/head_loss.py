"""Cross entropy through a frozen output head, a few positions at a time.

A vocabulary is so wide that logits, their float32 copy and its gradient are the largest tensors of training. The head
is frozen, so the gradient of a position's loss needs nothing but that position: it is worked out in the forward pass,
chunk by chunk, and only a gradient as wide as the hidden state is kept.
"""

from __future__ import annotations

from typing import Any

import torch

CHUNK = 256  # positions


def head_loss(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed cross entropy of `hidden @ weight^T` against `targets`, and how many targets had the largest logit.

    Args:
        hidden: [n, h], any floating-point type; products are computed in it, the loss in float32.
        weight: [vocabulary, h], frozen.
        targets: [n], token ids.

    Returns:
        The loss in nats, a float32 scalar with a gradient for `hidden`, and the count, an int64 scalar without one.
    """
    loss, correct = _HeadLoss.apply(hidden, weight, targets)
    return loss, correct


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> Any:
        wanted = hidden.requires_grad
        gradient = torch.empty_like(hidden) if wanted else None
        loss = hidden.new_zeros((), dtype=torch.float32)
        correct = targets.new_zeros(())
        for start in range(0, len(targets), CHUNK):
            part = slice(start, start + CHUNK)
            logits = (hidden[part] @ weight.t()).float()  # [chunk, vocabulary]
            correct += (logits.argmax(-1) == targets[part]).sum()
            highest = logits.amax(-1, keepdim=True)
            asked = logits.gather(-1, targets[part, None])
            scores = logits.sub_(highest).exp_()  # in the logits' own memory
            total = scores.sum(-1, keepdim=True)
            loss += (total.log() + highest - asked).sum()
            if gradient is not None:
                scores.div_(total)
                scores.scatter_add_(-1, targets[part, None], scores.new_full((len(scores), 1), -1.0))
                gradient[part] = scores.to(weight.dtype) @ weight  # d loss / d hidden = (softmax - target) W
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        return None if gradient is None else gradient * gradients[0].to(gradient.dtype), None, None
