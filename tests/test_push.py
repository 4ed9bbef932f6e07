"""karma push: what is published and what is refused, against a hub on this machine that stores every byte."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

import fake_hub
import fake_run
import tiny
from fake_hub import READ_TOKEN, TOKEN, FakeHub, Fault, running
from karma_electric.card import render_card
from karma_electric.cli.run import _keep_recipe
from karma_electric.core.artifact import MANIFEST, damage, read_manifest, seal, write_atomic
from karma_electric.core.errors import ArtifactError, GateError, InputError, KarmaError, MissingError, RecipeError
from karma_electric.core.leaks import leaks_in
from karma_electric.core.lineage import artifacts_of
from karma_electric.core.progress import Silent
from karma_electric.core.recipe import Recipe, load_recipe
from karma_electric.export.modelfile import hub_settings, render_modelfile
from karma_electric.hub_errors import told
from karma_electric.publishing import Publication, plan_publication, with_layout, without_layout
from karma_electric.redteam.signals import Outcome
from karma_electric.uploading import Hub, compare
from test_cli import Ended, karma, karma_here

# huggingface_hub hands its files to httpx2 in a way that httpx2 no longer likes
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

N = 3
OUTCOMES: dict[str, list[Outcome]] = {"tuned": ["pass", "fail", "pass"]}  # one arm: nothing is resampled for the card
SYSTEM = 'You weigh what follows.\n"Be kind."'
TEMPLATE = "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}{{ .Response }}"
REPO = "me/karma-tiny"


def reseal(folder: Path) -> None:
    """Write the manifest of changed contents, under the same id."""
    old = read_manifest(folder)
    (folder / MANIFEST).unlink()
    seal(folder, kind=old.kind, config=old.config, inputs=old.inputs)


def write_card(run: Path, recipe: Recipe) -> None:
    """The card stage."""
    write_atomic(run / "card" / "README.md", render_card(run, recipe))
    made = [folder for folder in artifacts_of(run) if folder.name != "card"]
    ids = {folder.relative_to(run).as_posix(): read_manifest(folder).id for folder in made}
    seal(run / "card", kind="card", config={}, inputs=ids)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_path: Path) -> Path:
    """A whole run with its card: real models and Modelfiles, the rest of it small."""
    recipe = fake_run.recipe_for(fake_run.write_suite(tmp_path_factory.mktemp("suite") / "three.jsonl", N))
    run = fake_run.write_run(tmp_path_factory.mktemp("runs") / "fake", recipe, OUTCOMES)
    other = tiny.write_checkpoint(tmp_path_factory.mktemp("capped"), seed=1)
    for variant, source in (("merged", tiny_path), ("capped", other)):
        shutil.copytree(source, run / variant, dirs_exist_ok=True)
        reseal(run / variant)
    for suffix in ("", "-capped"):
        text = render_modelfile(
            f"fake-135m{suffix}-q8_0.gguf",
            template=TEMPLATE,
            stops=["<|im_end|>", "<|endoftext|>"],
            system=SYSTEM,
            temperature=0.7,
            context=4096,
            license_text="apache-2.0",
        )
        write_atomic(run / "gguf" / f"Modelfile{suffix.replace('-', '.')}", text)
    reseal(run / "gguf")
    _keep_recipe(recipe, run)
    (run / "card").mkdir()
    write_card(run, recipe)
    return run


@pytest.fixture(scope="module")
def publication(run: Path) -> Publication:
    return plan_publication(run, REPO, progress=Silent())


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """The run, to be changed."""
    return Path(shutil.copytree(run, tmp_path / "fake"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """A hub, and an environment that may use it as "me". No waiting between attempts."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with running() as hub:
        yield hub
    huggingface_hub.close_session()


def there(hub: FakeHub, repo_id: str = REPO, branch: str = "main") -> dict[str, bytes]:
    """What is published, without the file every repository begins with."""
    files = dict(hub.repositories[repo_id].files(branch))
    files.pop(".gitattributes")
    return files


def contents(publication: Publication) -> dict[str, bytes]:
    """What a publication is to bring."""
    return {
        file.path: file.source.encode() if isinstance(file.source, str) else file.source.read_bytes()
        for file in publication.files
    }


def push(hub: FakeHub, publication: Publication, *, private: bool = False, revision: str | None = None) -> object:
    return Hub(publication.repo_id, endpoint=hub.endpoint, revision=revision).push(
        publication, private=private, progress=Silent()
    )


WRITES = r"^(POST|PUT) (?!/api/validate-yaml)"


# --- what arrives


def test_every_byte_arrives_at_its_place_in_one_commit(
    hub: FakeHub, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = karma_here(monkeypatch, capsys, "push", run, REPO, "--endpoint", hub.endpoint)
    assert ended.code == 0, ended.err
    files = there(hub)
    for name in read_manifest(run / "capped").files:
        assert files[name] == (run / "capped" / name).read_bytes()
    for name in read_manifest(run / "gguf").files:
        assert files[name] == (run / "gguf" / name).read_bytes()
    for part in ("merged", "adapter", "axis"):
        for name in (*read_manifest(run / part).files, MANIFEST):
            assert files[f"{part}/{name}"] == (run / part / name).read_bytes()
    for folder in artifacts_of(run):
        name = folder.relative_to(run).as_posix().replace("/", "-")
        assert files[f"lineage/{name}.json"] == (folder / MANIFEST).read_bytes()
    assert files["recipe.toml"] == (run / "recipe.toml").read_bytes()
    assert without_layout(files["README.md"].decode()) == (run / "card" / "README.md").read_text()
    assert len(hub.repositories[REPO].branches["main"]) == 2  # the first is the hub's own
    assert hub.count("/part/2")
    assert hub.count("PUT /lfs/[0-9a-f]+$"), "small ones whole"
    assert f"{hub.endpoint}/{REPO}" in ended.out
    assert TOKEN not in ended.out + ended.err
    assert "Traceback" not in ended.err


def test_the_models_load_from_the_root_and_from_their_folder(
    hub: FakeHub, publication: Publication, run: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    push(hub, publication)
    for path, content in there(hub).items():
        (tmp_path / "got" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "got" / path).write_bytes(content)
    for variant, where in (("capped", {}), ("merged", {"subfolder": "merged"})):
        got = AutoModelForCausalLM.from_pretrained(tmp_path / "got", **where)
        made = AutoModelForCausalLM.from_pretrained(run / variant)
        assert all(a.equal(b) for a, b in zip(got.parameters(), made.parameters(), strict=True))
        assert AutoTokenizer.from_pretrained(tmp_path / "got", **where).encode("A nurse")
    assert damage(tmp_path / "got" / "merged") == damage(tmp_path / "got" / "axis") == []


def test_it_goes_over_xet_where_the_hub_has_it(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import test_cli
    from fake_xet import Cas

    settings = {"HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path), "HF_XET_CACHE": str(tmp_path)}
    monkeypatch.setattr(test_cli, "ENVIRONMENT", test_cli.ENVIRONMENT | settings)
    with running() as hub:
        hub.cas = Cas()
        ended = karma("push", run, REPO, "--endpoint", hub.endpoint, "--json", cwd=tmp_path)
        assert ended.code == 0, ended.err
        assert there(hub) == contents(plan_publication(run, REPO, progress=Silent()).beside([".gitattributes"]))
        assert hub.count("/cas/v1/xorbs/")
        assert not hub.count("lfs")
        assert set(json.loads(ended.out)["sent"]) == there(hub).keys()
        assert "%" not in ended.err, "no bars where there is no terminal"


def test_a_second_push_sends_nothing(hub: FakeHub, publication: Publication) -> None:
    first = push(hub, publication)
    hub.log.clear()
    second = push(hub, publication)
    assert not hub.count(WRITES)
    assert second.commit == first.commit  # type: ignore[attr-defined]
    assert second.sent == ()  # type: ignore[attr-defined]


def test_what_changed_is_sent_alone_and_stale_shards_and_manifests_go(
    hub: FakeHub, publication: Publication, run: Path
) -> None:
    stale = [
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "merged/model-00002-of-00002.safetensors",
    ]
    kept = {"photo.png": b"theirs", "other/model.safetensors": b"theirs", "notes.md": b"theirs"}
    old = contents(publication) | {
        "merged/config.json": b"{}",
        "axis/cap.json": b"{}",
        "lineage/redteam-old.json": b"{}",
    }
    hub.add(REPO, old | kept | dict.fromkeys(stale, b"old"))
    done = push(hub, publication)
    assert there(hub) == contents(publication) | kept | {"README.md": there(hub)["README.md"]}
    assert sorted(done.removed) == sorted([*stale, "lineage/redteam-old.json"])  # type: ignore[attr-defined]
    assert set(done.sent) == {"axis/cap.json", "merged/config.json"}  # type: ignore[attr-defined]
    assert not hub.count("PUT")


def test_parts_join_what_is_there_and_the_card_tells_of_both(hub: FakeHub, run: Path) -> None:
    push(hub, plan_publication(run, REPO, only=["merged"], root="merged", progress=Silent()))
    assert there(hub)["config.json"] == (run / "merged" / "config.json").read_bytes()
    assert not {"capped/config.json", "Modelfile"} & there(hub).keys()
    push(hub, plan_publication(run, REPO, only=["gguf"], root="merged", progress=Silent()))
    card = there(hub)["README.md"].decode()
    assert f'The top: the model without the cap: `AutoModelForCausalLM.from_pretrained("{REPO}")`' in card
    assert f"`ollama run hf.co/{REPO}:fake-135m-capped-q8_0.gguf`" in card
    assert card.count("### In this repository") == 1


def only(run: Path, *parts: str, **options: str) -> Publication:
    """Some parts of a run."""
    return plan_publication(run, REPO, only=parts, progress=Silent(), **options)  # type: ignore[arg-type]


def layout(hub: FakeHub) -> tuple[str, str]:
    """The card's section on the repository: what it tells of this version, and the line on others."""
    lines = there(hub)["README.md"].decode().partition("### In this repository")[2].partition("<!--")[0].splitlines()
    others = [line for line in lines if "From an earlier push, not of this version" in line]
    return "\n".join(line for line in lines if line not in others), "".join(others)


def test_what_an_earlier_push_of_the_same_run_left_is_told_as_the_runs(hub: FakeHub, run: Path) -> None:
    push(hub, plan_publication(run, REPO, root="merged", progress=Silent()))
    push(hub, only(run, "gguf"))
    ours, others = layout(hub)
    assert "- The top: the model without the cap" in ours, "not what --root says, but what lies there"
    assert all(f"- `{folder}/`" in ours for folder in ("capped", "adapter", "axis"))
    assert others == ""
    push(hub, only(run, "capped"))
    ours, others = layout(hub)
    assert "- The top: the capped model" in ours
    assert "`capped/`: the capped model" in ours
    assert others == ""


def test_what_another_version_left_is_named_apart(hub: FakeHub, run: Path, publication: Publication) -> None:
    old = contents(publication) | {"other-q4_k_m.gguf": b"old", "merged/model.safetensors": b"old", "photo.png": b"x"}
    hub.add(REPO, old | {"fake-135m-q8_0.gguf": b"old", "config.json": b"{}"})
    push(hub, only(run, "axis"))
    ours, others = layout(hub)
    assert "- `axis/`" in ours
    assert "- `adapter/`" in ours
    assert "fake-135m-capped-q8_0.gguf`: `ollama" in ours
    for stale in ("the model at the top", "`merged/`", "`other-q4_k_m.gguf`", "`fake-135m-q8_0.gguf`"):
        assert stale in others
    assert not any(part in ours for part in ("- The top", "- `merged/`", "q4_k_m", "fake-135m-q8_0.gguf"))
    assert "photo.png" not in others
    push(hub, publication)
    ours, others = layout(hub)
    assert ours.count("- The top: the capped model") == ours.count("- `merged/`") == 1
    assert "- From an earlier push, not of this version: `other-q4_k_m.gguf`." in others
    hub.log.clear()
    push(hub, publication)
    assert not hub.count(WRITES)


def test_another_root_leaves_the_folder_of_the_other_version(hub: FakeHub, run: Path, publication: Publication) -> None:
    hub.add(REPO, contents(publication) | {"merged/model.safetensors": b"old"})
    push(hub, plan_publication(run, REPO, root="merged", progress=Silent()))
    ours, others = layout(hub)
    assert "- The top: the model without the cap" in ours
    assert "- `merged/`" not in ours
    assert "of this version: `merged/`." in others


def test_a_dry_run_gives_the_card_that_the_push_would_publish(
    hub: FakeHub, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("push", run, REPO, "--only", "axis", "--json", "--endpoint", hub.endpoint)
    hub.add(REPO, {"merged/model.safetensors": b"old"})
    said = json.loads(karma_here(monkeypatch, capsys, *words, "--dry-run").out)
    assert karma_here(monkeypatch, capsys, *words).code == 0
    assert "`merged/`" in layout(hub)[1]
    assert said["files"][0]["sha256"] == fake_hub.sha256(there(hub)["README.md"])


def test_another_branch(hub: FakeHub, publication: Publication) -> None:
    push(hub, publication, revision="v2/new")
    assert there(hub, branch="v2/new") == contents(publication)
    assert there(hub) == {}


def test_private_is_asked_for_and_a_public_repository_is_no_place_for_it(
    hub: FakeHub, publication: Publication
) -> None:
    push(hub, publication, private=True)
    assert hub.repositories[REPO].private
    hub.add(REPO)
    with pytest.raises(InputError, match="is public"):
        push(hub, publication, private=True)
    assert there(hub) == {}


# --- what is looked at before


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_dry_run_lists_and_sends_nothing(
    hub: FakeHub,
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
) -> None:
    hub.add(REPO, {"config.json": b"{}", "merged/config.json": (run / "merged" / "config.json").read_bytes()})
    monkeypatch.delenv("HF_TOKEN")
    ended = karma_here(monkeypatch, capsys, "push", run, REPO, "--dry-run", "--endpoint", hub.endpoint, *options)
    assert ended.code == 0, ended.err
    assert not hub.count(WRITES)
    digest = read_manifest(run / "merged").files["model.safetensors"]
    if not options:
        assert f"{digest[:16]}  new       merged/model.safetensors\n" in ended.out
        assert "replaced  config.json\n" in ended.out
        assert "same      merged/config.json\n" in ended.out
        assert f"{REPO}: there, 3 files, public" in ended.out
        return
    said = json.loads(ended.out)
    assert {"path": "merged/model.safetensors", "sha256": digest, "state": "new"}.items() <= next(
        file.items() for file in said["files"] if file["path"] == "merged/model.safetensors"
    )
    assert said["bytes"] == sum(file["bytes"] for file in said["files"]) > 5_000_000


def test_a_dry_run_offline_contacts_nobody(
    hub: FakeHub, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    ended = karma_here(monkeypatch, capsys, "push", run, REPO, "--dry-run", "--endpoint", hub.endpoint)
    assert (ended.code, hub.log) == (0, [])
    assert "not asked, HF_HUB_OFFLINE is set" in ended.out
    karma_here(monkeypatch, capsys, "push", run, REPO, "--endpoint", hub.endpoint).refused(3, "HF_HUB_OFFLINE is set")
    assert hub.log == []


def test_a_hub_that_is_not_there(
    hub: FakeHub, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{free.getsockname()[1]}"
    karma_here(monkeypatch, capsys, "push", run, REPO, "--endpoint", nowhere).refused(3, nowhere, "cannot be reached")
    ended = karma_here(monkeypatch, capsys, "push", run, REPO, "--dry-run", "--endpoint", nowhere)
    assert ended.code == 0
    assert f"{REPO}: The hub at {nowhere} cannot be reached" in ended.out


@pytest.mark.parametrize(
    ("token", "repo_id", "code", "named"),
    [
        (None, REPO, 3, ("no Hugging Face token", "hf auth login", "HF_TOKEN")),
        ("hf_" + "wrong" * 5, REPO, 2, ("does not accept the token (401", "hf auth login --force")),
        (READ_TOKEN, REPO, 2, ("token of me may only read", "write access")),
        (TOKEN, "karma-tiny", 2, ("'karma-tiny' is not the id", "OWNER/NAME")),
        (TOKEN, "me/a--b", 2, ("'me/a--b' is not the id",)),
        (TOKEN, "me/a/b", 2, ("'me/a/b' is not the id",)),
    ],
)
def test_who_and_where_is_asked_first(
    hub: FakeHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    token: str | None,
    repo_id: str,
    code: int,
    named: tuple[str, ...],
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    ended: Ended = karma_here(monkeypatch, capsys, "push", tmp_path, repo_id, "--endpoint", hub.endpoint)
    ended.refused(code, *named)
    assert not hub.count(WRITES)
    assert token is None or token not in ended.err


@pytest.mark.parametrize(
    ("endpoint", "named"), [("huggingface.co", "not an address"), ("http://hub.org", "in the clear")]
)
def test_a_token_goes_to_no_odd_address(hub: FakeHub, endpoint: str, named: str) -> None:
    with pytest.raises(InputError, match=named):
        Hub(REPO, endpoint=endpoint)


def refused(run: Path, error: type[KarmaError], match: str, **options: object) -> KarmaError:
    """Check that nothing of a run may be published."""
    with pytest.raises(error, match=match) as raised:
        plan_publication(run, REPO, progress=Silent(), **options)  # type: ignore[arg-type]
    assert raised.value.hint
    return raised.value


def test_kept_figures_are_no_run_to_push_nor_to_be_made_again_in_their_place() -> None:
    kept = Path(__file__).resolve().parent.parent / "results" / "demo"
    error = refused(kept, GateError, "kept figures of a run without its weights")
    assert "--run-dir" not in error.hint


def test_a_changed_file_is_not_published(copy: Path) -> None:
    with (copy / "axis" / "cap.json").open("a") as file:
        file.write(" ")
    said = refused(copy, GateError, r"axis: cap\.json was changed after it was written")
    assert f"karma verify {copy}" in said.hint
    refused(copy, GateError, "axis", only=["gguf"])  # the card tells of it, too


def test_a_card_that_says_something_else_is_not_published(copy: Path) -> None:
    card = copy / "card" / "README.md"
    card.write_text(card.read_text().replace("3.0454", "2.0454"))
    reseal(copy / "card")
    said = refused(copy, GateError, r"card/README.md line \d+ has .*2\.0454.*rendered now it is .*3\.0454")
    assert "--from card --force" in said.hint


@pytest.mark.parametrize(
    ("gone", "options", "match"),
    [
        ("gguf", {}, "has no gguf"),
        ("card", {}, "has no card"),
        ("recipe.toml", {}, "has no recipe.toml"),
        ("gguf", {"only": ["axis", "gguf"]}, "has no gguf"),
    ],
)
def test_what_is_missing_is_named(copy: Path, gone: str, options: dict[str, object], match: str) -> None:
    place = copy / gone
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    refused(copy, MissingError, match, **options)


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    refused(tmp_path / "nothing", MissingError, "does not exist")


def change_recipe(run: Path, **card: str) -> Recipe:
    """Give the run another card section. Gives the recipe."""
    old = load_recipe(run / "recipe.toml")
    recipe = old.model_copy(update={"card": old.card.model_copy(update=card)})
    _keep_recipe(recipe, run)
    return recipe


def test_a_llama_derivative_is_named_so_and_brings_its_notice(copy: Path) -> None:
    llama = {"license": "llama3.1", "model_name": "Llama-3.1-Karma-8B", "base_model": "meta-llama/Llama-3.1-8B"}
    write_card(copy, change_recipe(copy, **llama))
    refused(copy, RecipeError, "names of Llama derivatives begin with 'Llama', that of the repository too")
    plan = plan_publication(copy, "me/Llama-3.1-Karma-8B", progress=Silent())
    notice = contents(plan)["NOTICE"].decode()
    assert notice.startswith(
        "Built with Llama\n\nLlama 3.1 is licensed under the Llama 3.1 Community License, Copyright ©"
    )
    assert [name for remark in plan.remarks for name in ("LICENSE", "USE_POLICY") if name in remark]
    (copy / "LICENSE").write_text("the licence")
    (copy / "USE_POLICY.md").write_text("the policy")
    plan = plan_publication(copy, "me/Llama-3.1-Karma-8B", progress=Silent())
    assert {"LICENSE": b"the licence", "USE_POLICY.md": b"the policy"}.items() <= contents(plan).items()
    assert plan.remarks == ()


def test_a_llama_derivative_under_another_name_is_refused(copy: Path) -> None:
    change_recipe(copy, license="llama3.1", model_name="karma-8b")
    refused(copy, RecipeError, "card.model_name is 'karma-8b', but names of Llama derivatives begin with 'Llama'")


def test_a_token_in_a_recipe_is_not_published_and_not_shown(copy: Path) -> None:
    recipe = copy / "recipe.toml"
    recipe.write_text(f"# {TOKEN}\n{recipe.read_text()}")
    said = refused(copy, GateError, r"recipe\.toml line 1 holds a Hugging Face token")
    assert TOKEN not in str(said)


def test_a_path_of_this_machine_is_told(copy: Path) -> None:
    recipe = copy / "recipe.toml"
    recipe.write_text(f"# made in /home/anna/models\n{recipe.read_text()}")
    plan = plan_publication(copy, REPO, progress=Silent())
    assert plan.remarks == (f"{recipe} line 1 tells the public the path /home/anna.",)


def test_the_card_of_a_run_is_found_again_in_that_of_the_repository() -> None:
    for card in ("# Title\n\n## Usage\n\n### Ollama\n", "# Title\n"):
        told = with_layout(card, REPO, ["config.json", "adapter/x", "a.gguf"], "capped")
        assert f"vllm serve {REPO}" in told
        assert "`adapter/`" in told
        assert without_layout(told) == card


# --- when the hub says no, or nothing


def test_a_repository_of_somebody_else(hub: FakeHub, publication: Publication) -> None:
    hub.add("somebody/model")
    theirs = Publication(**{**vars(publication), "repo_id": "somebody/model"})
    with pytest.raises(InputError, match=r"somebody/model is not yours to write to \(403: You don't have the rights"):
        push(hub, theirs)
    assert not hub.stored
    with pytest.raises(InputError, match=r"nobody/new is not yours"):
        push(hub, Publication(**{**vars(publication), "repo_id": "nobody/new"}))
    assert "nobody/new" not in hub.repositories


def test_metadata_the_hub_does_not_take(hub: FakeHub, copy: Path) -> None:
    write_card(copy, change_recipe(copy, license="not-a-licence"))
    plan = plan_publication(copy, REPO, progress=Silent())
    with pytest.raises(InputError, match='metadata: "license" must be one of'):
        push(hub, plan)
    assert hub.repositories == {}


@pytest.mark.parametrize(
    "fault",
    [
        Fault("POST /api/repos/create", 503),
        Fault("POST /api/repos/create", "lost"),
        Fault("POST .*/preupload/", 502),
        Fault("POST .*/objects/batch", 500),
        Fault("PUT /lfs/[0-9a-f]+$", 503, times=2),
        Fault("PUT /lfs/.*/part/2", "close"),
        Fault("POST .*/complete", 504),
        Fault("POST .*/commit/", 503),
        Fault("POST .*/commit/", "close"),
        Fault("POST .*/commit/", "lost"),
    ],
    ids=lambda fault: f"{fault.pattern} {fault.answer}",
)
def test_what_passes_is_waited_for(hub: FakeHub, publication: Publication, fault: Fault) -> None:
    hub.faults.append(fault)
    push(hub, publication)
    assert fault.times == 0, "it went wrong once"
    assert there(hub) == contents(publication)
    assert len(hub.repositories[REPO].branches["main"]) == 2


def test_a_push_that_was_cut_off_publishes_nothing_and_goes_on_where_it_was(
    hub: FakeHub, publication: Publication
) -> None:
    last = max((file for file in publication.files), key=lambda file: file.bytes)
    hub.faults.append(Fault(f"/lfs/{last.sha256}/part/2", "close", times=6))
    with pytest.raises(MissingError, match="cannot be reached") as raised:
        push(hub, publication)
    assert "Nothing was published. Run the same command again" in raised.value.hint
    assert there(hub) == {}
    arrived = set(hub.stored)
    assert arrived
    hub.log.clear()
    push(hub, publication)
    assert there(hub) == contents(publication)
    assert not any(hub.count(f"(PUT|complete).*{oid}|{oid}/complete") for oid in arrived)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["PUT /lfs/.*/part/2", "POST .*/commit/"])
def test_a_push_that_is_killed_publishes_nothing_and_goes_on_where_it_was(
    hub: FakeHub, run: Path, publication: Publication, where: str
) -> None:
    hub.faults.append(Fault(where, "hold"))
    words = [sys.executable, "-m", "karma_electric", "push", str(run), REPO, "--endpoint", hub.endpoint]
    killed = subprocess.Popen(words, env=os.environ | {"HF_HUB_OFFLINE": "0"}, stderr=subprocess.PIPE, text=True)
    try:
        assert hub.holds.wait(timeout=120)
    finally:
        killed.kill()
        _, err = killed.communicate()
    assert killed.returncode == -signal.SIGKILL, err
    assert there(hub) == {}
    arrived = set(hub.stored)
    hub.log.clear()
    push(hub, publication)
    assert there(hub) == contents(publication)
    assert len(hub.repositories[REPO].branches["main"]) == 2
    assert not any(hub.count(f"(PUT|complete).*{oid}|{oid}/complete") for oid in arrived)
    if "commit" in where:
        assert arrived
        assert not hub.count("PUT /lfs/")  # all of it had arrived; only the commit was missing


@pytest.mark.parametrize(
    ("status", "error", "named"),
    [(403, InputError, "not yours to write to"), (429, MissingError, "asks for a pause"), (507, MissingError, "507")],
)
def test_a_commit_that_is_refused(
    hub: FakeHub, publication: Publication, status: int, error: type[KarmaError], named: str
) -> None:
    hub.faults.append(Fault("POST .*/commit/", status, times=9, message=f"no, says the hub to {TOKEN}"))
    with pytest.raises(error, match=named) as raised:
        push(hub, publication)
    assert "no, says the hub to ..." in raised.value.message
    assert there(hub) == {}


def test_a_repository_that_moved_meanwhile_is_left_alone(
    hub: FakeHub, publication: Publication, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = Hub._send

    def somebody_else_commits(self: Hub, *given: object) -> object:
        operations = send(self, *given)  # type: ignore[arg-type]
        hub.commit(hub.repositories[REPO], "main", {".gitattributes": b"", "theirs": b"x"})
        return operations

    monkeypatch.setattr(Hub, "_send", somebody_else_commits)
    with pytest.raises(InputError, match=f"{REPO} was changed while this ran"):
        push(hub, publication)
    assert there(hub) == {"theirs": b"x"}


@pytest.mark.parametrize("name", ["merged/model.safetensors", "axis/cap.json"])
def test_a_file_that_changes_while_it_is_sent_is_not_published(
    hub: FakeHub, copy: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    plan = plan_publication(copy, REPO, progress=Silent())
    with (copy / name).open("r+b") as file:
        file.write(b"X")
    with pytest.raises(ArtifactError, match="was changed while it was being sent; nothing was published"):
        push(hub, plan)
    assert there(hub) == {}


def test_a_hub_that_is_not_known_well_is_no_traceback(hub: FakeHub, publication: Publication) -> None:
    hub.faults.append(Fault("POST .*/objects/batch", 200))
    with pytest.raises(MissingError, match="answered what its client cannot use"):
        push(hub, publication)


def test_what_the_hub_or_its_storage_says_is_told_without_what_opens_them() -> None:
    signed = "https://storage.example.org/x?X-Amz-Signature=0123abcd"
    with pytest.raises(MissingError) as raised, told(REPO, "https://hub.example.org", TOKEN):
        raise OSError(f"cannot PUT {signed} as {TOKEN}")
    assert "cannot PUT https://storage.example.org/x as ..." in raised.value.message
    with pytest.raises(PermissionError), told(REPO, "https://hub.example.org", TOKEN):
        raise PermissionError(13, "Permission denied", "model.safetensors")


def test_the_fake_hub_takes_no_content_under_a_wrong_name(hub: FakeHub) -> None:
    import httpx

    assert httpx.put(f"{hub.endpoint}/lfs/{'0' * 64}", content=b"x").status_code == 400
    assert fake_hub.sha256(b"x") not in hub.stored


def test_files_that_are_there_are_compared_by_content(publication: Publication, hub: FakeHub) -> None:
    files = contents(publication)
    hub.add(
        REPO,
        {
            "recipe.toml": files["recipe.toml"],
            "NOTICE": b"",
            "model.safetensors": b"0" * len(files["model.safetensors"]),
        },
    )
    states = compare(publication, Hub(REPO, endpoint=hub.endpoint).look())
    assert states["recipe.toml"] == "same"
    assert states["model.safetensors"] == "replaced"
    assert states["axis/cap.json"] == "new"
    assert "NOTICE" not in states


# --- what it is made with


def test_ollama_is_told_by_files_what_the_modelfile_says(publication: Publication) -> None:
    files = contents(publication)
    assert files["template"].decode() == TEMPLATE
    assert files["system"].decode() == SYSTEM
    expected = {"temperature": 0.7, "num_ctx": 4096, "stop": ["<|im_end|>", "<|endoftext|>"]}
    assert json.loads(files["params"]) == expected
    assert hub_settings("FROM ./x.gguf\n") == {}


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("token = hf_abcdefghijABCDEFGHIJ1234", "a Hugging Face token"),
        ('"key": "sk-proj-abcdefghijklmnopqrst"', "an API key"),
        ("ghp_" + "a1" * 18, "a GitHub token"),
        ("AKIAIOSFODNN7EXAMPLE", "an AWS access key"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----", "a private key"),
        ("scorer_url = 'https://me:hunter22@host/v1'", "a password in an address"),
        ('api_key: "0123456789abcdef0123456789abcdef"', "a credential"),
        ("base = '/home/anna/models'", "the path /home/anna"),
        ("base = '/Users/anna/models'", "the path /Users/anna"),
        ('"base": "C:\\\\Users\\\\anna\\\\models"', "the path C:\\\\Users\\\\anna"),
        ("/root/.cache/x", "the path /root"),
        ("https://example.org/home/page", None),
        ("tokens 46843 secret password", None),
        ("a sha256 of 0123456789abcdef0123456789abcdef", None),
        ("hf_hub_download, hf_xet", None),
        ("/work/models", None),
    ],
)
def test_leaks(line: str, what: str | None) -> None:
    found = list(leaks_in(f"first\n{line}\n"))
    assert [(leak.line, leak.what) for leak in found] == ([(2, what)] if what else [])
