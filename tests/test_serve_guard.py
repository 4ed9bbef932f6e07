"""Who may ask: host names, origins, keys; and what the operator's log and metrics tell of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from karma_electric.core.errors import InputError, MissingError
from karma_electric.serve.settings import is_loopback, read_keys, require_key_to_leave
from serving import MODEL, ask, in_process, scripted

KEYS = ("0123456789abcdef", "fedcba9876543210")
SECRET = "a-very-private-sentence"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("localhost:8080", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:80", 200),
        ("127.8.9.10", 200),
        ("proxy.example", 200),
        ("evil.example", 421),
        ("localhost.evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("0.0.0.0", 421),
        ("[", 421),
        ("", 421),
    ],
)
def test_on_loopback_the_host_must_be_a_name_of_this_machine(host: str, status: int) -> None:
    with in_process(scripted(), hosts=("proxy.example",)) as client:
        assert client.get("/v1/models", headers={"Host": host}).status_code == status


def test_elsewhere_any_name_will_do() -> None:
    with in_process(scripted(), host="0.0.0.0", keys=KEYS) as client:
        headers = {"Host": "models.example", "Authorization": f"Bearer {KEYS[1]}"}
        assert client.get("/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 200),
        ("http://localhost", 200),
        ("https://localhost", 200),
        ("https://chat.example", 200),
        ("http://localhost:9", 403),
        ("https://evil.example", 403),
        ("null", 403),
        ("", 403),
    ],
)
def test_a_web_page_of_another_origin_may_not_call_unless_allowed(origin: str | None, status: int) -> None:
    headers = {} if origin is None else {"Origin": origin}
    with in_process(scripted(), origins=("https://chat.example",)) as client:
        assert client.post("/v1/chat/completions", json=ask(), headers=headers).status_code == status


def test_browsers_are_told_of_allowed_origins_only() -> None:
    asking = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    allowed, other = {"Origin": "https://chat.example"}, {"Origin": "https://evil.example"}
    with in_process(scripted(), origins=("https://chat.example",), keys=KEYS) as client:
        preflight = client.options("/v1/chat/completions", headers=asking | allowed)
        assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (200, allowed["Origin"])
        assert client.options("/v1/chat/completions", headers=asking | other).status_code == 400
        refused = client.get("/v1/models", headers=allowed)
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, allowed["Origin"])
    with in_process(scripted()) as client:
        closed = client.options("/v1/chat/completions", headers=asking | allowed)
        assert closed.status_code == 403
        assert not any(name.startswith("access-control") for name in closed.headers)


@pytest.mark.parametrize(
    "path", ["/v1/models", "/api/tags", "/karma/model", "/metrics", "/openapi.json", "/v1", "/api/"]
)
@pytest.mark.parametrize(
    "given", [None, "", "Bearer", f"Bearer {KEYS[0]}x", f"Basic {KEYS[0]}", KEYS[0], "Bearer \xe9"]
)
def test_without_a_right_key_nothing_is_told(path: str, given: str | None) -> None:
    headers = {} if given is None else {"Authorization": given.encode("latin-1")}
    with in_process(scripted(), keys=KEYS) as client:
        reply = client.get(path, headers=headers)
    assert reply.status_code == 401
    assert reply.headers["www-authenticate"] == "Bearer"
    assert not any(key in reply.text for key in KEYS)


def test_any_of_the_keys_will_do_and_health_needs_none() -> None:
    with in_process(scripted(), keys=KEYS) as client:
        for key in KEYS:
            headers = {"Authorization": f"Bearer {key}"}
            assert client.post("/v1/chat/completions", json=ask(), headers=headers).status_code == 200
        assert client.get("/healthz").json() == {"status": "ok"}
        assert client.get("/readyz").status_code in (200, 503)
        assert client.get("/").status_code == 200  # the page's files
        assert client.post("/", json={}).status_code == 401


def test_only_an_address_of_this_machine_needs_no_key() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "localhost", "::1", "[::1]", "127.1.2.3"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "192.168.1.5", "example.org", ""))
    require_key_to_leave("127.0.0.1", ())
    require_key_to_leave("0.0.0.0", KEYS)
    with pytest.raises(InputError, match="KARMA_API_KEY"):
        require_key_to_leave("0.0.0.0", ())


def test_keys_come_from_a_file_else_from_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# ours\n{KEYS[0]}\n\n  {KEYS[1]}  \n")
    assert read_keys(file, "unused") == KEYS
    assert read_keys(None, KEYS[0]) == (KEYS[0],)
    assert read_keys(None, None) == ()


@pytest.mark.parametrize(
    "text", ["", "# only a comment\n", "short\n", "with a space in it\n", "naïve-und-lang-genug\n"]
)
def test_a_file_without_a_usable_key_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InputError):
        read_keys(file, None)
    with pytest.raises(MissingError):
        read_keys(tmp_path / "none", None)


def test_the_log_has_a_line_of_json_per_request_without_what_was_said(capsys: pytest.CaptureFixture[str]) -> None:
    with in_process(scripted(lambda _: SECRET), access_log=True, keys=KEYS) as client:
        headers = {"Authorization": f"Bearer {KEYS[0]}"}
        body = ask(messages=[{"role": "user", "content": SECRET}], user=SECRET)
        reply = client.post(f"/v1/chat/completions?key={SECRET}", json=body, headers=headers)
        client.get(f"/{SECRET}", headers=headers)
    assert reply.json()["choices"][0]["message"]["content"] == SECRET
    answered, missed = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert answered["request"] == reply.headers["x-request-id"]
    assert (answered["method"], answered["route"], answered["status"]) == ("POST", "/v1/chat/completions", 200)
    assert (answered["prompt_tokens"], answered["completion_tokens"], answered["finish"]) == (1, 1, "stop")
    assert (missed["route"], missed["status"]) == ("other", 404)
    assert SECRET not in json.dumps([answered, missed])
    assert not any(key in json.dumps([answered, missed]) for key in KEYS)


def test_the_metrics_count_requests_tokens_and_answers() -> None:
    with in_process(scripted()) as client:
        client.post("/v1/chat/completions", json=ask())
        client.post("/api/generate", json={"model": MODEL, "prompt": "Hello"})
        client.post("/v1/chat/completions", json={})
        reply = client.get("/metrics")
    lines = reply.text.splitlines()
    assert reply.headers["content-type"].startswith("text/plain; version=")
    assert 'karma_http_requests_total{route="/v1/chat/completions",status="200"} 1.0' in lines
    assert 'karma_http_requests_total{route="/v1/chat/completions",status="400"} 1.0' in lines
    assert 'karma_tokens_total{kind="completion"} 10.0' in lines
    assert 'karma_answers_finished_total{reason="stop"} 2.0' in lines
    assert 'karma_cap_rate_bucket{le="0.5"} 2.0' in lines
    assert 'karma_answers{state="active"} 0.0' in lines


def test_two_servers_in_a_process_count_for_themselves() -> None:
    with in_process(scripted()) as one, in_process(scripted()) as other:
        one.get("/v1/models")
        assert 'route="/v1/models"' in one.get("/metrics").text
        assert 'route="/v1/models"' not in other.get("/metrics").text


def test_no_page_may_frame_the_server_or_have_it_load_from_elsewhere() -> None:
    with in_process(scripted()) as client:
        headers = client.get("/").headers
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
