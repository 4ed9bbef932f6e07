"""The cap neuron: the same cap in the weights of an ordinary checkpoint, and how far it is from the hooks."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import tiny
from karma_electric.core.errors import ArtifactError, InputError
from karma_electric.core.progress import Silent
from karma_electric.models.chat_template import conversation_ids, prompt_ids
from karma_electric.models.loading import load_model
from karma_electric.steer.cap import capped
from karma_electric.steer.checkpoint import write_baked
from karma_electric.steer.fidelity import measure_fidelity
from karma_electric.steer.neuron import (
    Neuron,
    fit_neurons,
    load_neurons,
    require_bakeable,
    save_neurons,
)
from karma_electric.steer.spec import Cap, CapSpec

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CALIBRATION = tiny.chats(64, seed=21)
UNSEEN = tiny.chats(8, seed=22)


@pytest.fixture(scope="module")
def cap(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Cap:
    """A soft cap at blocks 2-4, with thresholds that a quarter of the calibration tokens are above."""
    return tiny.cap_at(model, tokenizer, "mlp", quantile=0.75, conversations=CALIBRATION)


@pytest.fixture(scope="module")
def neurons(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cap: Cap) -> dict[int, Neuron]:
    return fit_neurons(model, tokenizer, cap, CALIBRATION)


@pytest.fixture(scope="module")
def baked_path(tiny_path: Path, neurons: dict[int, Neuron], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("baked")
    write_baked(tiny_path, neurons, out)
    return out


def logits_of(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids).logits


# The file


def test_the_baked_checkpoint_is_an_ordinary_one(baked_path: Path, tiny_path: Path) -> None:
    model, info = AutoModelForCausalLM.from_pretrained(baked_path, output_loading_info=True)
    assert type(model) is LlamaForCausalLM
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert model.config.intermediate_size == 192  # 160 + 1, up to the next multiple of 32
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (baked_path / name).read_bytes() == (tiny_path / name).read_bytes()


def test_everything_but_the_new_rows_is_the_old_checkpoint(
    baked_path: Path, tiny_path: Path, neurons: dict[int, Neuron]
) -> None:
    old, new = load_file(tiny_path / "model.safetensors"), load_file(baked_path / "model.safetensors")
    assert old.keys() == new.keys()
    for name, tensor in old.items():
        if "mlp" not in name:
            assert torch.equal(new[name], tensor)
            continue
        columns = new[name].T if "down_proj" in name else new[name]  # [intermediate, hidden]
        before = tensor.T if "down_proj" in name else tensor
        assert columns.shape == (192, tiny.HIDDEN)
        assert torch.equal(columns[:160], before)
        assert not columns[161:].any(), "zeros up to the multiple of 32"
        layer, part = int(name.split(".")[2]), name.split(".")[4].removesuffix("_proj")
        if layer in neurons:
            assert torch.equal(columns[160], getattr(neurons[layer], part))
        else:
            assert not columns[160].any()


def test_growing_without_neurons_changes_no_logit(
    tiny_path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    changed = write_baked(tiny_path, {}, tmp_path)
    assert changed["intermediate_size"] == {"before": 160, "after": 192}
    grown = load_model(tmp_path, dtype="float32", device="cpu")
    for conversation in UNSEEN:
        ids = torch.tensor([conversation_ids(tokenizer, conversation)])
        torch.testing.assert_close(logits_of(grown, ids), logits_of(model, ids), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("old", "new"), [(160, 192), (159, 160), (191, 192), (192, 224)])
def test_the_width_is_the_next_multiple_of_32_with_room_for_one(tmp_path: Path, old: int, new: int) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    tiny.write_checkpoint(source, intermediate=old)
    out.mkdir()
    assert write_baked(source, {}, out)["intermediate_size"] == {"before": old, "after": new}
    assert load_model(out, dtype="float32", device="cpu").config.intermediate_size == new


def test_a_checkpoint_in_shards_is_baked_shard_by_shard(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    baked_path: Path,
    tmp_path: Path,
    neurons: dict[int, Neuron],
) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    model.save_pretrained(source, max_shard_size="200KB")
    tokenizer.save_pretrained(source)
    out.mkdir()
    write_baked(source, neurons, out)
    assert len(list(out.glob("model-*.safetensors"))) == len(list(source.glob("model-*.safetensors"))) > 2
    ids = torch.tensor([conversation_ids(tokenizer, UNSEEN[0])])
    sharded, whole = (load_model(path, dtype="float32", device="cpu") for path in (out, baked_path))
    assert torch.equal(logits_of(sharded, ids), logits_of(whole, ids))


def test_an_mlp_with_biases_is_baked_too(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """Llama's `mlp_bias`: the new neuron has none, and the old ones keep theirs."""
    source, out = tmp_path / "source", tmp_path / "out"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tiny.VOCABULARY, hidden_size=32, intermediate_size=40, num_hidden_layers=3,
        num_attention_heads=2, num_key_value_heads=1, initializer_range=0.3, mlp_bias=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("proj.bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(source)
    out.mkdir()
    write_baked(source, {}, out)
    ids = torch.tensor([conversation_ids(tokenizer, UNSEEN[0])])
    grown = load_model(out, dtype="float32", device="cpu")
    torch.testing.assert_close(logits_of(grown, ids), logits_of(model, ids), rtol=1e-5, atol=1e-4)


def test_neurons_survive_their_file(neurons: dict[int, Neuron], tmp_path: Path) -> None:
    save_neurons(neurons, tmp_path / "cap_neurons.safetensors")
    loaded = load_neurons(tmp_path / "cap_neurons.safetensors")
    assert loaded.keys() == neurons.keys()
    for layer, neuron in neurons.items():
        for part in ("gate", "up", "down"):
            assert torch.equal(getattr(loaded[layer], part), getattr(neuron, part))
        assert (loaded[layer].r2_excess, loaded[layer].r2_rho) == (neuron.r2_excess, neuron.r2_rho)


# Fidelity


@pytest.mark.parametrize(("constant", "bound"), [(10.0, 0.002), (0.0, 0.2)])
def test_the_baked_model_is_close_to_the_hooked_one_on_unseen_text(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, constant: float, bound: float
) -> None:
    """KL(hooked || baked) / KL(hooked || uncapped): 0.0003 measured, and 0.12 without a constant component.

    Both linear maps have no bias and live on such a component. Trained models have one (0.003-0.005 on the embedded
    model); a residual stream of pure noise has none, and shows what a bad fit looks like: its R^2 is negative.
    """
    source, out = tmp_path / "source", tmp_path / "out"
    tiny.write_checkpoint(source, constant=constant)
    out.mkdir()
    model = load_model(source, dtype="float32", device="cpu")
    cap = tiny.cap_at(model, tokenizer, "mlp", alpha=1.0, conversations=CALIBRATION)
    neurons = fit_neurons(model, tokenizer, cap, CALIBRATION)
    write_baked(source, neurons, out)
    baked = load_model(out, dtype="float32", device="cpu")
    report = measure_fidelity(model, baked, tokenizer, cap, UNSEEN, progress=Silent())
    assert report["all"]["kl_hooked_uncapped_nats"] > 0.005, "the cap changes the model"
    for kind in ("prompt", "response", "all"):
        assert report[kind]["kl_ratio"] < bound
        assert report[kind]["same_top_token_baked"] > report[kind]["same_top_token_uncapped"]
    assert all((n.r2_rho > 0.8) == (constant > 0) for n in neurons.values())
    assert all(n.r2_excess > 0.95 for n in neurons.values())


def test_fidelity_is_the_kl_of_the_three_models_token_by_token(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cap: Cap, baked_path: Path
) -> None:
    baked = load_model(baked_path, dtype="float32", device="cpu")
    report = measure_fidelity(model, baked, tokenizer, cap, UNSEEN[:2], progress=Silent())
    sums = {"prompt": [0.0, 0.0, 0], "response": [0.0, 0.0, 0]}
    for conversation in UNSEEN[:2]:
        ids = torch.tensor([conversation_ids(tokenizer, conversation)])
        with capped(model, cap):
            hooked = logits_of(model, ids)[0].log_softmax(-1)
        kl = [
            torch.nn.functional.kl_div(other.log_softmax(-1), hooked, log_target=True, reduction="none").sum(-1)
            for other in (logits_of(baked, ids)[0], logits_of(model, ids)[0])
        ]
        first_answer = len(prompt_ids(tokenizer, conversation[:-1]))
        for position in range(1, ids.shape[1] - 1):  # not the attention sink, not what follows the last token
            kind = "response" if position + 1 >= first_answer else "prompt"  # by the token that is predicted
            sums[kind] = [sums[kind][0] + kl[0][position], sums[kind][1] + kl[1][position], sums[kind][2] + 1]
    for kind, (to_baked, to_uncapped, tokens) in sums.items():
        assert report[kind]["tokens"] == tokens
        assert report[kind]["kl_hooked_baked_nats"] == pytest.approx(float(to_baked) / tokens, rel=1e-3)
        assert report[kind]["kl_hooked_uncapped_nats"] == pytest.approx(float(to_uncapped) / tokens, rel=1e-3)
        assert report[kind]["kl_ratio"] == pytest.approx(float(to_baked / to_uncapped), rel=1e-3)


def test_a_model_compared_with_itself_loses_nothing(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cap: Cap
) -> None:
    report = measure_fidelity(model, model, tokenizer, cap, UNSEEN[:1], progress=Silent())
    assert report["all"]["kl_ratio"] == 1.0, "what is not capped at all is as far as the uncapped model"
    idle = replace(cap, spec=replace(cap.spec, thresholds=dict.fromkeys(cap.spec.layers, 1e6)))
    assert measure_fidelity(model, model, tokenizer, idle, UNSEEN[:1], progress=Silent())["all"]["kl_ratio"] == 0.0


# The algebra


def linear_model(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """One block without attention whose MLP reads streams of one length and one constant component.

    There `1 / rho` and `rho` are exactly linear in `x`, so both regressions have no residual.
    """
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, initializer_range=0.3,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        embeddings = model.get_input_embeddings().weight
        rest = torch.randn(len(tokenizer), 15)
        embeddings[:, 0] = 3.0
        embeddings[:, 1:] = 4.0 * rest / rest.norm(dim=-1, keepdim=True)  # every |a| is 5
        block = model.model.layers[0]
        block.self_attn.o_proj.weight.zero_()
        block.post_attention_layernorm.weight.uniform_(0.5, 1.5)
    return model


def test_where_both_maps_are_exactly_linear_the_neuron_is_the_formula(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = linear_model(tokenizer)
    v = torch.nn.functional.normalize(torch.randn(16, generator=torch.Generator().manual_seed(3)), dim=0)
    t, alpha = 0.7, 0.6
    cap = Cap(CapSpec("", "mlp", (0,), {0: t}, alpha), {0: v})
    neuron = fit_neurons(model, tokenizer, cap, CALIBRATION, ridge=1e-12, sharpness=1e4)[0]
    assert neuron.r2_excess > 1 - 1e-9

    a = model.get_input_embeddings().weight.detach()  # tokens that calibration saw and others
    x = model.model.layers[0].post_attention_layernorm(a).detach()
    written = torch.nn.functional.silu(x @ neuron.gate) * (x @ neuron.up)
    expected = -alpha * (a @ v - t).clamp(min=0).unsqueeze(-1) * v
    assert 0.1 < (expected != 0).any(-1).float().mean() < 0.9
    torch.testing.assert_close(written.unsqueeze(-1) * neuron.down, expected, rtol=1e-3, atol=1e-3)

    model.save_pretrained(tmp_path / "source")
    (tmp_path / "out").mkdir()
    write_baked(tmp_path / "source", {0: neuron}, tmp_path / "out")
    baked = load_model(tmp_path / "out", dtype="float32", device="cpu")
    ids = torch.tensor([conversation_ids(tokenizer, UNSEEN[0])])
    with capped(model, cap):
        hooked = logits_of(model, ids)
    torch.testing.assert_close(logits_of(baked, ids), hooked, rtol=1e-3, atol=2e-3)
    assert not torch.allclose(logits_of(model, ids), hooked, atol=0.1)


def test_a_sharper_neuron_is_closer_to_the_hard_corner(tokenizer: PreTrainedTokenizerBase) -> None:
    """act(beta z) / beta tends to max(0, z): the error at the corner falls like 1 / beta."""
    model = linear_model(tokenizer)
    v = torch.eye(16)[1]
    cap = Cap(CapSpec("", "mlp", (0,), {0: 0.5}, 1.0), {0: v})
    a = model.get_input_embeddings().weight.detach()
    x = model.model.layers[0].post_attention_layernorm(a).detach()
    expected = -(a @ v - 0.5).clamp(min=0).unsqueeze(-1) * v
    errors = []
    for sharpness in (5.0, 50.0, 500.0):
        n = fit_neurons(model, tokenizer, cap, CALIBRATION, ridge=1e-12, sharpness=sharpness)[0]
        written = (torch.nn.functional.silu(x @ n.gate) * (x @ n.up)).unsqueeze(-1) * n.down
        errors.append(float((written - expected).abs().max()))
    assert errors[1] == pytest.approx(errors[0] / 10, rel=0.3)
    assert errors[2] < errors[1] / 5


def test_a_bolder_alpha_only_scales_the_down_column(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """One capped block: with several, alpha changes what the later ones read."""
    cap = tiny.cap_at(model, tokenizer, "mlp", layers=(3,), alpha=0.25)
    bold = replace(cap, spec=replace(cap.spec, alpha=0.75))
    soft, hard = (fit_neurons(model, tokenizer, c, CALIBRATION[:16])[3] for c in (cap, bold))
    assert torch.equal(soft.gate, hard.gate)
    assert torch.equal(soft.up, hard.up)
    torch.testing.assert_close(hard.down, 3 * soft.down)
    torch.testing.assert_close(soft.down / -soft.down.norm(), cap.directions[3])


def test_a_neuron_is_fitted_on_what_the_caps_before_it_leave(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cap: Cap
) -> None:
    """Each of them alone may be right, and all together wrong, if they were fitted on the uncapped model."""
    last = cap.spec.layers[-1]
    alone = replace(cap, spec=replace(cap.spec, layers=(last,)))
    among, by_itself = (fit_neurons(model, tokenizer, c, CALIBRATION[:16])[last] for c in (cap, alone))
    assert not torch.allclose(among.gate, by_itself.gate, rtol=1e-3)


def test_batching_changes_no_neuron(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cap: Cap) -> None:
    alone, together = (fit_neurons(model, tokenizer, cap, CALIBRATION[:16], batch_tokens=size) for size in (1, 100_000))
    for layer in cap.spec.layers:
        for part in ("gate", "up", "down"):
            a, b = getattr(alone[layer], part), getattr(together[layer], part)
            torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3 * float(b.abs().max()))


@pytest.mark.parametrize("weight", [0.0, 1e-6])
def test_a_dimension_that_the_norm_switches_off_is_left_alone(
    fresh_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cap: Cap, weight: float
) -> None:
    """A huge coefficient on a tiny input would be exact in float32, and ruined by 8-bit weights or activations."""
    fresh_model.model.layers[4].post_attention_layernorm.weight.data[7] = weight
    neuron = fit_neurons(fresh_model, tokenizer, cap, CALIBRATION[:16])[4]
    for row in (neuron.gate, neuron.up):
        assert row.isfinite().all()
        assert row[7].abs() < 0.01 * row.abs().mean()


# Other models, and what is refused


@pytest.mark.parametrize("family", ["Mistral", "Qwen2", "Qwen3"])
def test_other_gated_families_hold_a_cap_neuron(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, family: str
) -> None:
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, initializer_range=0.3,
    )  # fmt: skip
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    model.get_input_embeddings().weight.data[:, 0] += 10.0
    model.save_pretrained(tmp_path / "source")
    (tmp_path / "out").mkdir()
    cap = tiny.cap_at(model, tokenizer, "mlp", layers=(1, 2), alpha=1.0, conversations=CALIBRATION)
    write_baked(tmp_path / "source", fit_neurons(model, tokenizer, cap, CALIBRATION), tmp_path / "out")
    baked = load_model(tmp_path / "out", dtype="float32", device="cpu")
    assert measure_fidelity(model, baked, tokenizer, cap, UNSEEN, progress=Silent())["all"]["kl_ratio"] < 0.01


def test_another_architecture_cannot_hold_one(cap: Cap) -> None:
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=64, n_layer=6, n_head=2, n_positions=16))
    with pytest.raises(InputError, match=r"GPT2LMHeadModel cannot hold a cap neuron.* LlamaForCausalLM"):
        require_bakeable(gpt2, cap)


def test_a_cap_at_the_block_site_cannot_be_baked(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    block = tiny.cap_at(model, tokenizer, "block")
    with pytest.raises(InputError, match="site 'block'; only 'mlp' can be baked"):
        fit_neurons(model, tokenizer, block, CALIBRATION[:2])


def test_a_threshold_that_no_token_reaches_is_an_error(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cap: Cap
) -> None:
    high = replace(cap, spec=replace(cap.spec, thresholds={**cap.spec.thresholds, 3: 1e6}))
    with pytest.raises(ArtifactError, match="above the threshold of block 3: there is nothing to fit"):
        fit_neurons(model, tokenizer, high, CALIBRATION[:4])
