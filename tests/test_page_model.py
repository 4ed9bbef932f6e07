"""The chat page with a real model: `karma serve` with the embedded model and a cap, in a real browser."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the server's packages are not installed: pip install -e '.[serve]'")
pytest.importorskip("playwright", reason="playwright is not installed: pip install -e '.[dev]'")

from browser import Watched, find_chromium, opened_browser

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(find_chromium() is None, reason="there is no Chromium here: apt-get install chromium"),
]

ROOT = Path(__file__).resolve().parent.parent
MODEL = "builtin:smollm2-135m"
KARMA = (sys.executable, "-m", "karma_electric")
PATIENCE_MS = 300_000


def karma(*arguments: str | Path) -> str:
    done = subprocess.run([*KARMA, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def cap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cap of the embedded model, from a handful of prompts: good enough to act."""
    folder = tmp_path_factory.mktemp("cap")
    for name, lines in (("contrast-200", 8), ("calibration-96", 6), ("heldout-48", 4)):
        few = (ROOT / "suites" / f"{name}.jsonl").read_text().splitlines()[:lines]
        (folder / f"{name}.jsonl").write_text("\n".join(few) + "\n")
    karma(
        "axis", "extract", MODEL, folder / "axis", "--recipe", "demo.toml", "--contrast", folder / "contrast-200.jsonl"
    )
    prompts = ("--calibration", folder / "calibration-96.jsonl", "--heldout", folder / "heldout-48.jsonl")
    karma("axis", "calibrate", MODEL, folder / "axis", folder / "cap", *prompts, "--response-tokens", "16")
    return folder / "cap"


@pytest.fixture(scope="module")
def address(cap: Path) -> Iterator[str]:
    """A running `karma serve`, ready."""
    command = [*KARMA, "serve", MODEL, "--cap", str(cap), "--port", "0", "--no-access-log"]
    log = cap.parent / "serve.log"
    with log.open("w") as errors, subprocess.Popen(command, stderr=errors, env=os.environ) as server:
        try:
            while not (found := re.search(r" at (http://\S+)", log.read_text())):
                assert server.poll() is None, log.read_text()
                time.sleep(0.2)
            yield found.group(1)
        finally:
            server.terminate()
            server.wait(60)


def test_a_conversation_with_the_embedded_model_capped_and_uncapped(address: str, cap: Path, tmp_path: Path) -> None:
    with opened_browser() as browser:
        page = browser.new_page()
        page.set_default_timeout(PATIENCE_MS)
        watched = Watched(address)
        watched.watch(page)
        page.goto(address)
        page.wait_for_selector("#compare:checked:enabled")
        assert "blocks 21 to 26" in (page.text_content("#facts") or "")
        page.fill("#max-tokens", "24")
        page.fill("#seed", "1")
        page.fill("#temperature", "0")
        for text, key in (("Name three kinds of bread.", "Home"), ("Which of them is the oldest?", "End")):
            page.focus("#alpha")
            page.keyboard.press(key)
            page.fill("#message", text)
            page.press("#message", "Enter")
            page.wait_for_selector("#stop:enabled")
            page.wait_for_selector("#stop[disabled]")
        names = page.locator(".answer h3").all_text_contents()
        assert names == ["Capped, alpha 0.00", "Uncapped, cap off", "Capped, alpha 1.00", "Uncapped, cap off"]
        said = page.locator(".answer .text").all_text_contents()
        assert all(text.strip() for text in said)
        assert said[0] == said[1]  # alpha 0 is off
        for shown in page.locator(".answer .text").all():
            shades = [span.get_attribute("class") for span in shown.locator("span").all()]
            assert sum(bool(shade) for shade in shades) >= 20
        feet = page.locator(".foot").all_text_contents()
        assert re.search(r"cap rate \d+", feet[2])
        on_page = [float(re.search(r"drift mean ([+−][\d.]+)", foot)[1].replace("−", "-")) for foot in feet]  # type: ignore[index]
        with page.expect_download() as waiting:
            page.click("#export")
        waiting.value.save_as(tmp_path / "chat.json")
        assert watched.errors == []
        assert watched.elsewhere == []
    (tmp_path / "uncapped.json").write_text(json.dumps(json.loads((tmp_path / "chat.json").read_text())[1]))
    measured = json.loads(karma("drift", tmp_path / "uncapped.json", "--model", MODEL, "--cap", cap, "--json"))
    turns = [turn for turn in measured["conversations"][0]["turns"] if turn["role"] == "assistant"]
    # the transcript also has the last token of an answer that was cut, and bfloat16 rounds
    assert [turn["mean"] for turn in turns] == pytest.approx([on_page[1], on_page[3]], abs=0.15)
