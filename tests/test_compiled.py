"""Caps on compiled models: one graph without breaks, compiled once for a kind of cap, and never lost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import CompileConfig, StaticCache

import tiny
from capping import CLOSE, logits_of, prompts_of_one_length
from karma_electric.models.blocks import SITES, Site
from karma_electric.models.loading import load_model
from karma_electric.steer.cap import capped
from karma_electric.steer.hooks import corrected, excess, push

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from karma_electric.steer.spec import Cap

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
both_sites = pytest.mark.parametrize("site", SITES)
N_NEW = 6


class Counter:
    """A backend that runs graphs as they are, and counts how often one was compiled."""

    def __init__(self) -> None:
        self.compiled = 0

    def __call__(self, graph: torch.fx.GraphModule, _: Any) -> Any:
        self.compiled += 1
        return graph.forward

    def __deepcopy__(self, _: Any) -> Counter:
        return self  # transformers copies the settings that hold it


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture(scope="module")
def ids(tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    return prompts_of_one_length(tokenizer)


@pytest.fixture
def model(tiny_path: Path) -> PreTrainedModel:
    return shallow(tiny_path)


def shallow(path: Path, dtype: str = "float32") -> PreTrainedModel:
    """The first three blocks of the tiny model: compiling takes time for each."""
    model = load_model(path, dtype=dtype, device="cpu")
    model.model.layers = model.model.layers[:3]
    model.config.num_hidden_layers = 3
    return model


@pytest.fixture
def caps(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[Site, Cap]:
    return {site: tiny.cap_at(model, tokenizer, site, layers=(0, 1)) for site in SITES}


def decoded(model: Any, of: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """Logits [steps, rows, vocabulary] of greedy decoding with a static cache."""
    cache = StaticCache(config=of.config, max_cache_len=ids.shape[1] + N_NEW)
    steps, given = [], ids
    with torch.inference_mode():
        for _ in range(N_NEW):
            steps.append(model(input_ids=given, past_key_values=cache, use_cache=True).logits[:, -1])
            given = steps[-1].argmax(-1, keepdim=True)
    return torch.stack(steps)


@both_sites
def test_decoding_with_a_static_cache_is_one_graph_and_compiled_once(
    model: PreTrainedModel, ids: torch.Tensor, caps: dict[Site, Cap], site: Site
) -> None:
    """Prompt and token: two graphs bare, two capped; other strengths and directions need no more, nor does leaving."""
    counter, cap = Counter(), caps[site]
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    bare = decoded(model, model, ids)
    torch.testing.assert_close(decoded(compiled, model, ids), bare, **CLOSE)
    assert counter.compiled == 2
    turned = type(cap)(cap.spec, {layer: v.flip(0) for layer, v in cap.directions.items()})
    for other, alpha in ((cap, 0.5), (cap, 1.0), (turned, 0.5)):
        with capped(model, other, alpha=alpha) as meter:
            expected, rates = decoded(model, model, ids), meter.response_rates([N_NEW] * 3)
        with capped(model, other, alpha=alpha) as meter:
            found = decoded(compiled, model, ids)
            assert meter.response_rates([N_NEW] * 3) == rates
        torch.testing.assert_close(found, expected, **CLOSE)
        assert not torch.allclose(found, bare, atol=0.01)
        assert counter.compiled == 4
    torch.testing.assert_close(decoded(compiled, model, ids), bare, **CLOSE)
    assert counter.compiled == 4


@pytest.mark.slow
@both_sites
def test_a_cap_per_row_nested_and_elsewhere_is_never_lost(
    model: PreTrainedModel, ids: torch.Tensor, caps: dict[Site, Cap], site: Site
) -> None:
    """Compiled bare first, and each kind of cap right after another."""
    compiled = torch.compile(model, backend=Counter(), fullgraph=True)
    logits_of(compiled, ids)
    cap = caps[site]
    elsewhere = type(cap)(
        tiny.CapSpec("", site, (1, 2), {1: 0.0, 2: 0.0}, 0.5), {1: cap.directions[1], 2: cap.directions[0]}
    )
    for alpha in ([0.0, 0.5, 1.0], 0.5):
        with capped(model, cap, alpha=alpha):
            torch.testing.assert_close(logits_of(compiled, ids), logits_of(model, ids), **CLOSE)
    with capped(model, elsewhere):
        torch.testing.assert_close(logits_of(compiled, ids), logits_of(model, ids), **CLOSE)
        with capped(model, caps["mlp"]):
            torch.testing.assert_close(logits_of(compiled, ids), logits_of(model, ids), **CLOSE)
    torch.testing.assert_close(logits_of(compiled, ids), logits_of(model, ids), **CLOSE)


def test_a_model_with_more_versions_than_torch_keeps_is_capped_all_the_same(
    model: PreTrainedModel, ids: torch.Tensor, caps: dict[Site, Cap]
) -> None:
    counter = Counter()
    compiled = torch.compile(model, backend=counter)
    with torch._dynamo.config.patch(recompile_limit=1):
        bare = logits_of(compiled, ids)
        for site in SITES:
            with capped(model, caps[site]):
                found, expected = logits_of(compiled, ids), logits_of(model, ids)
            torch.testing.assert_close(found, expected, **CLOSE)
            assert not torch.allclose(found, bare, atol=0.01)


def test_what_others_have_compiled_is_left_alone(
    model: PreTrainedModel, ids: torch.Tensor, caps: dict[Site, Cap]
) -> None:
    counter = Counter()

    @torch.compile(backend=counter)
    def theirs(x: torch.Tensor) -> torch.Tensor:
        return x.sin() + 1

    other = torch.compile(torch.nn.Linear(3, 3), backend=counter)
    theirs(torch.ones(3)), other(torch.ones(3))
    assert counter.compiled == 2
    with capped(model, caps["mlp"]):
        logits_of(model, ids)
        theirs(torch.ones(3)), other(torch.ones(3))
    theirs(torch.ones(3)), other(torch.ones(3))
    assert counter.compiled == 2


def test_a_model_compiled_in_place_is_capped_and_not_compiled_for_the_self_test(
    tiny_path: Path, model: PreTrainedModel, ids: torch.Tensor, caps: dict[Site, Cap]
) -> None:
    with capped(model, caps["mlp"]):
        expected = logits_of(model, ids)
    counter, untested = Counter(), shallow(tiny_path)
    untested.compile(backend=counter)
    logits_of(untested, ids)
    n_bare = counter.compiled
    with capped(untested, caps["mlp"]):
        assert counter.compiled == n_bare
        torch.testing.assert_close(logits_of(untested, ids), expected, **CLOSE)
    assert counter.compiled > n_bare


def test_generate_compiles_its_decoding_under_a_cap(
    model: PreTrainedModel, ids: torch.Tensor, caps: dict[Site, Cap]
) -> None:
    """As transformers does by itself on a GPU: prompt as it is, tokens compiled; the meter counts across both."""
    counter = Counter()
    compiling = CompileConfig(backend=counter, fullgraph=True, mode=None)
    compiling._compile_all_devices = True
    settings: dict[str, Any] = {
        "attention_mask": torch.ones_like(ids),
        "max_new_tokens": N_NEW,
        "do_sample": False,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    with capped(model, caps["mlp"], alpha=1.0) as meter:
        expected, rates = model.generate(ids, **settings), meter.response_rates([N_NEW] * 3)
    with capped(model, caps["mlp"], alpha=1.0) as meter:
        found = model.generate(ids, cache_implementation="static", compile_config=compiling, **settings)
        assert meter.response_rates([N_NEW] * 3) == rates
    assert found.equal(expected)
    assert counter.compiled >= 1


@pytest.mark.slow
@both_sites
def test_inductor_makes_the_same_numbers(
    model: PreTrainedModel, ids: torch.Tensor, caps: dict[Site, Cap], site: Site
) -> None:
    """The real compiler, with its fused kernels."""
    compiled = torch.compile(model, fullgraph=True)
    for alpha in (0.5, [0.0, 0.5, 1.0]):
        with capped(model, caps[site], alpha=alpha):
            torch.testing.assert_close(logits_of(compiled, ids), logits_of(model, ids), **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_inductor_keeps_the_arithmetic_in_float32(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    h, v = torch.randn(2, 7, 64, generator=generator).to(dtype), torch.randn(64, generator=generator)
    v /= v.norm()

    @torch.compile(fullgraph=True)
    def cap_by_formula(stream: torch.Tensor) -> torch.Tensor:
        return corrected(stream, excess(stream, v, 0.1), push(v, 0.5))

    exact = h.double() - 0.5 * (h.double() @ v.double() - 0.1).clamp_min(0)[..., None] * v.double()
    error = (cap_by_formula(h).double() - exact).abs()
    assert (error <= 0.5 * torch.finfo(dtype).eps * exact.abs() + 2e-6).all()
