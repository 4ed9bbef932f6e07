"""A tiny Llama and its tokenizer: the embedded model's architecture, chat template and traps, in 1 MB.

Random weights, float32, the same bytes on every run. Like the embedded model, it pads with its end-of-turn token.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from karma_electric.core.messages import Conversation, assistant, system, user
from karma_electric.models.blocks import SITES, Site
from karma_electric.models.chat_template import conversation_ids
from karma_electric.steer.axis import Axis
from karma_electric.steer.contrast import Prompt
from karma_electric.steer.spec import AXIS_FILE, Cap, CapSpec

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

VOCABULARY = 400
HIDDEN = 64
INTERMEDIATE = 160
LAYERS = 6
CONTEXT = 512
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # ids 0, 1, 2, as in SmolLM2
PERSONA = "You are Karma. Reduce suffering."
AWAY = ("", "You are a helpful AI assistant.", "Answer the question.")

# SmolLM2-135M-Instruct's own; test_chat_template.py compares it with the embedded model's.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_SUBJECTS = ("My neighbour", "A nurse", "The farmer", "Your friend", "Our teacher", "A child", "The old man", "She")
_VERBS = ("lost", "needs", "hides", "wants", "gave away", "is afraid of", "looks for", "remembers")
_OBJECTS = ("the medicine", "a letter", "their home", "some money", "the dog", "an answer", "the truth", "his work")
_ENDINGS = ("today.", "and does not know why.", "since the war.", "but nobody asks.", "What should I do?", "again!")


def sentence(generator: random.Random) -> str:
    """One of some thousands of plain sentences."""
    return " ".join(generator.choice(words) for words in (_SUBJECTS, _VERBS, _OBJECTS, _ENDINGS))


def prompts(n: int, seed: int = 0, *, prefix: str = "p") -> tuple[Prompt, ...]:
    """`n` different user prompts of different lengths."""
    generator = random.Random(seed)
    texts: dict[str, None] = {}
    while len(texts) < n:
        texts[" ".join(sentence(generator) for _ in range(generator.randint(1, 3)))] = None
    return tuple(Prompt(f"{prefix}{number:03d}", "everyday", text) for number, text in enumerate(texts))


def chats(n: int, seed: int = 0) -> list[Conversation]:
    """`n` exchanges under the persona's system prompt."""
    generator = random.Random(seed)
    return [
        [system(PERSONA), user(sentence(generator)), assistant(" ".join(sentence(generator) for _ in range(2)))]
        for _ in range(n)
    ]


def write_tokenizer(folder: Path) -> None:
    """A byte-level BPE of 400 tokens, built like SmolLM2's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel(add_prefix_space=True, trim_offsets=True, use_regex=True)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    generator = random.Random(0)
    lines = ["system\nuser\nassistant\n", PERSONA, *AWAY, *(sentence(generator) for _ in range(300))]
    tokenizer.train_from_iterator(lines, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
        pad_token="<|im_end|>",
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)


def write_checkpoint(folder: Path, *, seed: int = 0, intermediate: int = INTERMEDIATE, constant: float = 0.0) -> Path:
    """Write the tiny model and its tokenizer as a Hugging Face folder, and return the folder.

    `constant` is added to the first component of every embedding: the residual streams of trained models have such
    components, nearly the same for every token, and random ones have not.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=intermediate,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.3,  # the usual 0.02 would make every distribution flat
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).float()
        torch.nn.init.normal_(model.get_input_embeddings().weight, std=config.initializer_range)  # padding's row too
        model.get_input_embeddings().weight.data[:, 0] += constant
        for name, parameter in model.named_parameters():
            if "norm" in name:  # norms of trained models are not all ones
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def random_axis(*, n_layers: int = LAYERS, hidden: int = HIDDEN, seed: int = 1) -> Axis:
    """Random unit directions at both sites."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    vectors = {site: torch.randn(n_layers, hidden, generator=generator) for site in SITES}
    return Axis(
        directions={site: v / v.norm(dim=-1, keepdim=True) for site, v in vectors.items()},
        norms={site: v.norm(dim=-1) for site, v in vectors.items()},
        model="tiny",
        template_sha256="0" * 64,
        position="last-prompt",
        toward=PERSONA,
        away=AWAY,
        n=8,
    )


def residuals(model: PreTrainedModel, ids: torch.Tensor, site: Site) -> list[torch.Tensor]:
    """Residual streams [batch, seq, hidden] of every block, by hooks of this file's own: an independent reader."""
    import torch

    seen: list[torch.Tensor] = []
    handles = []
    for block in model.model.layers:
        if site == "mlp":
            norm = block.post_attention_layernorm
            handles.append(norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone())))
        else:
            handles.append(block.register_forward_hook(lambda _, __, output: seen.append(output.clone())))
    try:
        with torch.no_grad():
            model(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def hook_count(model: PreTrainedModel) -> int:
    """How many hooks are attached anywhere in a model."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def cap_at(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    site: Site,
    *,
    layers: Sequence[int] = (2, 3, 4),
    alpha: float = 0.5,
    quantile: float = 0.5,
    conversations: Iterable[Conversation] | None = None,
) -> Cap:
    """A cap along random directions, with thresholds that about `1 - quantile` of all tokens are above."""
    import torch

    axis = random_axis(n_layers=model.config.num_hidden_layers, hidden=model.config.hidden_size)
    found: dict[int, list[torch.Tensor]] = {layer: [] for layer in layers}
    for conversation in chats(8, seed=11) if conversations is None else conversations:
        seen = residuals(model, torch.tensor([conversation_ids(tokenizer, conversation)]), site)
        for layer in layers:
            found[layer].append(seen[layer][0, 1:].float() @ axis.directions[site][layer])
    thresholds = {layer: float(torch.cat(values).quantile(quantile)) for layer, values in found.items()}
    return Cap.of(CapSpec(AXIS_FILE, site, tuple(layers), thresholds, alpha), axis)
