"""What a model is made of, without its weights: which modules are linear, which are the embeddings, what is tied."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from karma_electric.core.errors import ArtifactError, MissingError
from karma_electric.models.loading import quiet_transformers


@dataclass(frozen=True)
class Skeleton:
    """Names of modules, as in the names of the checkpoint's tensors (without `.weight`).

    Attributes:
        linear: linear layers that are stored [out, in], the output embedding included.
        transposed: linear layers that are stored [in, out] (GPT-2's Conv1D).
        input_embedding: the token embedding.
        output_embedding: the vocabulary projection; empty for a model without one.
        tied: whether these two are one tensor.
    """

    linear: frozenset[str]
    transposed: frozenset[str]
    input_embedding: str
    output_embedding: str
    tied: bool


def read_skeleton(folder: Path) -> Skeleton:
    """Build a model's modules from its config.json on no device.

    Raises:
        MissingError: no config.json. ArtifactError: not a causal language model this transformers knows.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    if not (folder / "config.json").is_file():
        raise MissingError(f"{folder} has no config.json.", "Give a Hugging Face model folder.")
    try:
        with quiet_transformers(), torch.device("meta"):
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
            model = AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise ArtifactError(
            f"{folder} could not be read as a causal language model ({reason}).", "Is it a whole model folder?"
        ) from error
    names = {id(module): name for name, module in model.named_modules()}
    return Skeleton(
        linear=frozenset(name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)),
        transposed=frozenset(name for name, module in model.named_modules() if isinstance(module, Conv1D)),
        input_embedding=names[id(model.get_input_embeddings())],
        output_embedding=names.get(id(model.get_output_embeddings()), ""),
        tied=bool(getattr(config, "tie_word_embeddings", False)),
    )
