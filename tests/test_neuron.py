"""The cap neuron: its algebra, how it is fitted, several caps at once, and what cannot hold one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

import tiny
from baking import fitted, logits_of, written
from karma_electric.core.errors import ArtifactError, InputError
from karma_electric.core.progress import Silent
from karma_electric.models.chat_template import conversation_ids, prompt_ids
from karma_electric.steer.cap import capped
from karma_electric.steer.caps import all_capped, at_strength
from karma_electric.steer.fidelity import measure_fidelity
from karma_electric.steer.fit import RIDGES, fit_neurons
from karma_electric.steer.gather import gather
from karma_electric.steer.neuron import require_bakeable
from karma_electric.steer.spec import Cap, CapSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CALIBRATION = tiny.chats(64, seed=21)
UNSEEN = tiny.chats(8, seed=22)


@pytest.fixture(scope="module")
def cap(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Cap:
    """A soft cap at blocks 2-4, with thresholds that a quarter of the calibration tokens are above."""
    return tiny.cap_at(model, tokenizer, "mlp", quantile=0.75, conversations=CALIBRATION)


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
    neuron = fitted(model, tokenizer, cap, CALIBRATION, ridge=1e-12, sharpness=1e4)[0][0]
    assert neuron.r2_excess > 1 - 1e-9

    a = model.get_input_embeddings().weight.detach()  # tokens that calibration saw and others
    x = model.model.layers[0].post_attention_layernorm(a).detach()
    added = torch.nn.functional.silu(x @ neuron.gate) * (x @ neuron.up)
    expected = -alpha * (a @ v - t).clamp(min=0).unsqueeze(-1) * v
    assert 0.1 < (expected != 0).any(-1).float().mean() < 0.9
    torch.testing.assert_close(added.unsqueeze(-1) * neuron.down, expected, rtol=1e-3, atol=1e-3)

    model.save_pretrained(tmp_path / "source")
    baked = written(tmp_path / "source", {0: (neuron,)}, tmp_path / "out")
    ids = torch.tensor([conversation_ids(tokenizer, UNSEEN[0])])
    with capped(model, cap):
        hooked = logits_of(model, ids)
    torch.testing.assert_close(logits_of(baked, ids), hooked, rtol=1e-3, atol=2e-3)
    assert not torch.allclose(logits_of(model, ids), hooked, atol=0.1)


def test_the_example_of_the_docs_is_right() -> None:
    """The table in docs/cap-neuron.md, number by number."""
    a = torch.tensor([[3, 2, 0], [3, 0.5, 4], [3, 3, 3]], dtype=torch.float64)
    v, t, alpha, beta = torch.tensor([0.0, 1, 0], dtype=torch.float64), 1.0, 0.5, 100.0
    rho = a.pow(2).mean(-1).sqrt()
    x = a / rho[:, None]
    g = torch.tensor([-1 / 3, 1, 0], dtype=torch.float64)
    u = torch.tensor([0.5685, 0, 0.6122], dtype=torch.float64)
    rho_mean = (rho[0] + rho[2]) / 2
    assert rho.tolist() == pytest.approx([2.0817, 2.9011, 3.0], abs=5e-5)
    assert (x @ g).tolist() == pytest.approx([0.4804, -0.1723, 0.6667], abs=5e-5)
    assert (x @ g).tolist() == pytest.approx(((a @ v - t) / rho).tolist())
    assert (x @ u).tolist() == pytest.approx([0.8193, 1.4320, 1.1807], abs=2e-4)
    assert float(rho_mean) == pytest.approx(2.5408, abs=5e-5)
    down = -alpha * rho_mean / beta
    assert float(down) == pytest.approx(-0.012704, abs=5e-7)
    added = torch.nn.functional.silu(x @ (beta * g)) * (x @ u) * down
    assert added.tolist() == pytest.approx([-0.5, 0.0, -1.0], abs=2e-4)
    page = (Path(__file__).parents[1] / "docs" / "cap-neuron.md").read_text(encoding="utf-8")
    for number in (
        "2.0817",
        "2.9011",
        "(-0.3333, 1, 0)",
        "(0.5685, 0, 0.6122)",
        "2.5408",
        "-0.012704",
        "1.4320",
        "1.1807",
    ):
        assert number in page


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
        n = fitted(model, tokenizer, cap, CALIBRATION, ridge=1e-12, sharpness=sharpness)[0][0]
        added = (torch.nn.functional.silu(x @ n.gate) * (x @ n.up)).unsqueeze(-1) * n.down
        errors.append(float((added - expected).abs().max()))
    assert errors[1] == pytest.approx(errors[0] / 10, rel=0.3)
    assert errors[2] < errors[1] / 5


def test_a_bolder_alpha_only_scales_the_down_column(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """One capped block: with several, alpha changes what the later ones read."""
    cap = tiny.cap_at(model, tokenizer, "mlp", layers=(3,), alpha=0.25)
    bold = replace(cap, spec=replace(cap.spec, alpha=0.75))
    soft, hard = (fitted(model, tokenizer, c, CALIBRATION[:16])[3][0] for c in (cap, bold))
    assert torch.equal(soft.gate, hard.gate)
    assert torch.equal(soft.up, hard.up)
    torch.testing.assert_close(hard.down, 3 * soft.down)
    torch.testing.assert_close(soft.down / -soft.down.norm(), cap.directions[3])
    torch.testing.assert_close(soft.at(0.75).down, hard.down)
    assert soft.at(0.75).alpha == 0.75


def test_a_neuron_is_fitted_on_what_the_caps_before_it_leave(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cap: Cap
) -> None:
    """Each of them alone may be right, and all together wrong, if they were fitted on the uncapped model."""
    last = cap.spec.layers[-1]
    alone = replace(cap, spec=replace(cap.spec, layers=(last,)))
    among, by_itself = (fitted(model, tokenizer, c, CALIBRATION[:16])[last][0] for c in (cap, alone))
    assert not torch.allclose(among.gate, by_itself.gate, rtol=1e-3)


def test_batching_changes_no_neuron(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cap: Cap) -> None:
    alone, together = (fitted(model, tokenizer, cap, CALIBRATION[:16], batch_tokens=size) for size in (1, 100_000))
    for layer in cap.spec.layers:
        for part in ("gate", "up", "down"):
            a, b = getattr(alone[layer][0], part), getattr(together[layer][0], part)
            torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3 * float(b.abs().max()))


@pytest.mark.parametrize("weight", [0.0, 1e-6])
def test_a_dimension_that_the_norm_switches_off_is_left_alone(
    fresh_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cap: Cap, weight: float
) -> None:
    """A huge coefficient on a tiny input would be exact in float32, and ruined by 8-bit weights or activations."""
    fresh_model.model.layers[4].post_attention_layernorm.weight.data[7] = weight
    neuron = fitted(fresh_model, tokenizer, cap, CALIBRATION[:16])[4][0]
    for row in (neuron.gate, neuron.up):
        assert row.isfinite().all()
        assert row[7].abs() < 0.01 * row.abs().mean()


@given(
    z=st.floats(-50, 50),
    beta=st.floats(1e-2, 1e4),
)
def test_the_error_of_a_silu_for_a_ramp_is_at_most_0_2785_over_beta(z: float, beta: float) -> None:
    """docs/cap-neuron.md says so: the largest of `|x sigmoid(x) - max(0, x)|` is 0.2785, at |x| = 1.278."""
    value = torch.nn.functional.silu(torch.tensor(beta * z, dtype=torch.float64)) / beta
    assert abs(float(value) - max(0.0, z)) <= 0.27847 / beta


def test_a_sharper_neuron_costs_no_precision_in_bfloat16(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cap: Cap
) -> None:
    """A power of two moves the exponent only; rounding is relative, so beta trades nothing against it."""
    sharp, sharper = (fitted(model, tokenizer, cap, CALIBRATION[:16], sharpness=s)[3][0] for s in (64.0, 1024.0))
    for part, factor in (("gate", 16), ("down", 1 / 16)):
        a, b = getattr(sharp, part).bfloat16().float(), getattr(sharper, part).bfloat16().float()
        torch.testing.assert_close(a * factor, b, rtol=1e-6, atol=0)


def test_beta_comes_from_the_spread_of_the_projections(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cap: Cap
) -> None:
    """`|beta g|` for a map `g` that gives z: the gate's input has a standard deviation near the sharpness."""
    neuron = fitted(model, tokenizer, cap, CALIBRATION, sharpness=60.0)[2][0]
    gathered = gather(model, tokenizer, [cap], CALIBRATION)
    norm = model.model.layers[2].post_attention_layernorm
    with torch.no_grad():
        inputs = norm(gathered.streams[2]) @ neuron.gate
    assert float(inputs.std()) == pytest.approx(60.0, rel=0.25)


# The choice of the penalty


def test_the_ridge_is_the_one_whose_neuron_is_nearest_to_the_cap_on_what_was_left_out(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cap: Cap
) -> None:
    gathered = gather(model, tokenizer, [cap], CALIBRATION[:20])
    chosen = fit_neurons(model, [cap], gathered)
    each = {ridge: fit_neurons(model, [cap], gathered, ridge=ridge) for ridge in RIDGES}
    for layer in cap.spec.layers:
        (neuron,) = chosen[layer]
        assert neuron.ridge in RIDGES
        assert torch.equal(neuron.gate, each[neuron.ridge][layer][0].gate)
    errors = {ridge: sum(loss_on_fifths(model, cap, gathered, layer, ridge) for layer in (3,)) for ridge in RIDGES}
    assert chosen[3][0].ridge == min(errors, key=lambda ridge: errors[ridge])
    assert max(errors.values()) > 1.05 * min(errors.values()), "the choice matters"


def loss_on_fifths(model: PreTrainedModel, cap: Cap, gathered: Any, layer: int, ridge: float) -> float:
    """Fit on four fifths of the conversations, measure on the last: written anew, with the whole matrices."""
    norm = model.model.layers[layer].post_attention_layernorm
    a, t = gathered.streams[layer].double(), cap.spec.thresholds[layer]
    rho = (a.pow(2).mean(-1) + norm.variance_epsilon).sqrt()
    x = norm.weight.detach().double() * a / rho[:, None]
    z = (a @ cap.directions[layer].double() - t) / rho
    kind = torch.where(gathered.response, 4.0, 1.0).double()
    gate_weight = kind * torch.sigmoid((z / z.std() + 0.25) * 12)
    up_weight = kind * (z > 0)
    seen = gathered.conversation % 5 != 4

    def solved(y: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        part, w = x[seen], weight[seen][:, None]
        xx = part.T @ (w * part)
        return torch.linalg.solve(xx + ridge * xx.diagonal().mean() * torch.eye(len(xx)), part.T @ (w[:, 0] * y[seen]))

    given_ = (x @ solved(z, gate_weight)).clamp(min=0) * (x @ solved(rho, up_weight))
    error = kind * (given_ - z.clamp(min=0) * rho).pow(2)
    return float(error[~seen].sum())


def test_with_hardly_any_text_the_middle_penalty_is_taken(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cap: Cap
) -> None:
    """Four conversations: none is left out, and nothing can be chosen."""
    neurons = fitted(model, tokenizer, cap, CALIBRATION[:4])
    assert {n.ridge for members in neurons.values() for n in members} == {RIDGES[len(RIDGES) // 2]}


@pytest.mark.parametrize("ridge", [None, 1e-3])
@pytest.mark.parametrize("part", [3, 4])
def test_tokens_above_in_one_part_alone_leave_nothing_to_choose(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cap: Cap, part: int, ridge: float | None
) -> None:
    """Conversation 4 is left out of the fit, 3 is not: fitted is what all tokens give."""
    one = replace(cap, spec=replace(cap.spec, layers=(3,), thresholds={3: cap.spec.thresholds[3]}))
    gathered = gather(model, tokenizer, [one], CALIBRATION[:8])
    over = gathered.streams[3] @ one.directions[3] > one.spec.thresholds[3]
    (neuron,) = fit_neurons(
        model, [one], replace(gathered, conversation=torch.where(over, part, 7 - part)), ridge=ridge
    )[3]
    assert neuron.ridge == (ridge or RIDGES[len(RIDGES) // 2])
    (expected,) = fit_neurons(model, [one], gathered, ridge=neuron.ridge)[3]
    torch.testing.assert_close(neuron.gate, expected.gate, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(neuron.up, expected.up, rtol=1e-4, atol=1e-4)


def test_answers_are_told_from_prompts(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cap: Cap) -> None:
    """They weigh more in the fit, from the position on that predicts the first token of the answer."""
    chats = CALIBRATION[:6]
    gathered = gather(model, tokenizer, [cap], chats, batch_tokens=300)
    for number, chat in enumerate(chats):
        flags = gathered.response[gathered.conversation == number].tolist()
        n, start = len(conversation_ids(tokenizer, chat)), len(prompt_ids(tokenizer, chat[:-1])) - 1
        assert flags == [position >= start for position in range(1, n)]


# Several caps


def two_caps(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[Cap]:
    """Blocks 2-4 along one direction each, and blocks 3-4 along another; different strengths."""
    first = tiny.cap_at(model, tokenizer, "mlp", quantile=0.75, conversations=CALIBRATION[:16])
    generator = torch.Generator().manual_seed(99)
    directions = {
        layer: torch.nn.functional.normalize(torch.randn(tiny.HIDDEN, generator=generator), dim=0) for layer in (3, 4)
    }
    thresholds = {}
    for layer, v in directions.items():
        a = gather(model, tokenizer, [first], CALIBRATION[:16]).streams[layer]
        thresholds[layer] = float((a @ v).quantile(0.6))
    return [first, Cap(CapSpec("", "mlp", (3, 4), thresholds, 0.8), directions)]


def test_two_caps_on_one_block_are_two_neurons_and_act_like_nested_hooks(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    from karma_electric.models.loading import load_model

    source = tiny.write_checkpoint(tmp_path / "source", constant=10.0)
    model = load_model(source, dtype="float32", device="cpu")
    caps = two_caps(model, tokenizer)
    neurons = fitted(model, tokenizer, caps, CALIBRATION)
    assert {layer: [n.alpha for n in members] for layer, members in neurons.items()} == {
        2: [0.5],
        3: [0.5, 0.8],
        4: [0.5, 0.8],
    }
    baked = written(source, neurons, tmp_path / "out")
    assert baked.config.intermediate_size == 192
    report = measure_fidelity(model, baked, tokenizer, caps, UNSEEN, progress=Silent())
    assert report["all"]["kl_ratio"] < 0.005
    one_missing = measure_fidelity(model, baked, tokenizer, caps[:1], UNSEEN, progress=Silent())
    assert one_missing["all"]["kl_ratio"] > 0.1, "the second cap is in the weights, and matters"


def test_all_capped_is_the_sum_of_the_corrections_of_what_the_mlp_reads(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Two caps on block 3: both read the stream in front of the MLP, and neither what the other changes."""
    caps = two_caps(model, tokenizer)
    caps = [replace(c, spec=replace(c.spec, layers=(3,), thresholds={3: c.spec.thresholds[3]})) for c in caps]
    ids = torch.tensor([conversation_ids(tokenizer, UNSEEN[0])])
    a = tiny.residuals(model, ids, "mlp")[3].float()
    expected = tiny.residuals(model, ids, "block")[3]
    for c in caps:
        v = c.directions[3]
        expected = expected - c.spec.alpha * (a @ v - c.spec.thresholds[3]).clamp(min=0).unsqueeze(-1) * v
    with all_capped(model, caps):
        found = tiny.residuals(model, ids, "block")[3]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_one_strength_for_all_caps_or_each_its_own(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    caps = two_caps(model, tokenizer)
    assert [c.spec.alpha for c in at_strength(caps, None)] == [0.5, 0.8]
    assert [c.spec.alpha for c in at_strength(caps, 0.3)] == [0.3, 0.3]


# Other models, and what is refused


@pytest.mark.parametrize("family", ["Mistral", "Qwen2", "Qwen3", "Phi3"])
@pytest.mark.parametrize("activation", ["silu", "gelu_pytorch_tanh", "relu"])
def test_other_gated_families_hold_a_cap_neuron(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, family: str, activation: str
) -> None:
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, initializer_range=0.3, pad_token_id=0, hidden_act=activation,
        **({} if family == "Phi3" else {"head_dim": 16}),
    )  # fmt: skip
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    model.get_input_embeddings().weight.data[:, 0] += 10.0
    for name, parameter in model.named_parameters():
        if name.endswith("_proj.bias"):  # Qwen2's attention
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path / "source")
    cap = tiny.cap_at(model, tokenizer, "mlp", layers=(1, 2), alpha=1.0, conversations=CALIBRATION)
    require_bakeable(model.config.to_dict(), [cap])
    baked = written(tmp_path / "source", fitted(model, tokenizer, cap, CALIBRATION), tmp_path / "out")
    assert measure_fidelity(model, baked, tokenizer, [cap], UNSEEN, progress=Silent())["all"]["kl_ratio"] < 0.01


CONFIG: dict[str, Any] = {"architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "intermediate_size": 160}


def test_a_llama_can_hold_one(cap: Cap) -> None:
    require_bakeable(CONFIG, [cap])
    require_bakeable({key: value for key, value in CONFIG.items() if key != "hidden_act"}, [cap])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["Gemma2ForCausalLM"]}, r"Gemma2ForCausalLM cannot hold a cap neuron.* LlamaForCausalLM"),
        ({"architectures": None}, "without a named architecture"),
        ({"hidden_act": "sigmoid"}, r"activation 'sigmoid' does not tend to a ramp.*silu"),
        ({"hidden_act": "leaky_relu"}, "'leaky_relu'"),
        ({"quantization_config": {"quant_method": "fp8"}}, r"quantised \(fp8\).*before|quantised \(fp8\)"),
    ],
)
def test_a_model_that_cannot_hold_one_is_refused_by_name(cap: Cap, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        require_bakeable({**CONFIG, **change}, [cap])


def test_a_cap_at_the_block_site_or_of_no_strength_cannot_be_baked(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cap: Cap
) -> None:
    with pytest.raises(InputError, match="site 'block'; only 'mlp' can be baked"):
        require_bakeable(CONFIG, [cap, tiny.cap_at(model, tokenizer, "block")])
    with pytest.raises(InputError, match="alpha 0"):
        require_bakeable(CONFIG, at_strength([cap], 0.0))


def test_a_threshold_that_no_token_reaches_is_an_error(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cap: Cap
) -> None:
    high = replace(cap, spec=replace(cap.spec, thresholds={**cap.spec.thresholds, 3: 1e6}))
    with pytest.raises(ArtifactError, match="above the threshold of block 3: there is nothing to fit"):
        fitted(model, tokenizer, high, CALIBRATION[:4])
