"""A Hugging Face hub on this machine: the endpoints that huggingface_hub calls to publish, storing what arrives.

It is real HTTP and has real rules: nothing is committed that was not uploaded with the right hash, nothing upon a
state that has moved, nothing without a token that may. What the true hub does beyond that is not known here.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import fake_xet

TOKEN = "hf_" + "a1B2" * 8  # of "me", who may write to "me" and "our-lab"
READ_TOKEN = "hf_" + "r0R0" * 8
NAMESPACES = ("me", "our-lab")
PART_BYTES = 1_000_000  # larger files are uploaded in parts of this size
_LARGE = (".safetensors", ".gguf", ".png")  # what .gitattributes of a new repository gives to large file storage


@dataclass
class Repository:
    """Branches, each a list of commits, each (id, path -> content)."""

    private: bool
    branches: dict[str, list[tuple[str, dict[str, bytes]]]] = field(default_factory=dict)

    def files(self, branch: str = "main") -> dict[str, bytes]:
        """What is published."""
        return self.branches[branch][-1][1]


@dataclass
class Fault:
    """Requests that go wrong: the first `times` whose line ("PUT /lfs/...") matches.

    `answer` is a status, or "close": the connection ends when half of the body has been read; "lost": the request is
    carried out, and the connection ends without an answer; "hold": it is read, and nothing comes of it while the client
    lives (`FakeHub.holds` is set meanwhile).
    """

    pattern: str
    answer: int | str
    times: int = 1
    message: str = ""


class FakeHub:
    """Its state. `log` has the line of every request, in order."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.stored: dict[str, bytes] = {}  # sha256 -> content, of what was uploaded
        self.parts: dict[str, dict[int, bytes]] = {}
        self.cas: fake_xet.Cas | None = None
        self.faults: list[Fault] = []
        self.log: list[str] = []
        self.agents: set[str] = set()
        self.endpoint = ""
        self.lock = threading.Lock()
        self.holds = threading.Event()

    def count(self, pattern: str) -> int:
        """How many requests matched."""
        return sum(re.search(pattern, line) is not None for line in self.log)

    def add(self, repo_id: str, files: dict[str, bytes] | None = None, *, private: bool = False) -> Repository:
        """A repository with one commit."""
        made = Repository(private)
        self.repositories[repo_id] = made
        self.commit(made, "main", {".gitattributes": b"*.safetensors filter=lfs\n", **(files or {})})
        return made

    def commit(self, repository: Repository, branch: str, files: dict[str, bytes]) -> str:
        """Put a new state onto a branch. Gives its id."""
        history = repository.branches.setdefault(branch, [])
        before = history[-1][0] if history else ""
        said = json.dumps([before, len(history), sorted((k, sha256(v)) for k, v in files.items())])
        history.append((hashlib.sha1(said.encode()).hexdigest(), files))
        return history[-1][0]


@contextlib.contextmanager
def running() -> Iterator[FakeHub]:
    """A hub that listens, until the block ends."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def sha256(content: bytes) -> str:
    """As hex."""
    return hashlib.sha256(content).hexdigest()


class _Refused(Exception):
    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one packet for head and body: two would wait for each other
    disable_nagle_algorithm = True
    hub: FakeHub

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self) -> None:
        path = urlsplit(self.path).path
        line = f"{self.command} {unquote(path)}"
        self.hub.log.append(line)
        self.hub.agents.add(self.headers.get("User-Agent", "").partition("/")[0])
        with self.hub.lock:
            fault = next((f for f in self.hub.faults if f.times and re.search(f.pattern, line)), None)
            if fault:
                fault.times -= 1
        if fault and fault.answer == "close":
            self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
            self.close_connection = True
            self.connection.close()
            return
        body = self._body()
        if fault and fault.answer == "hold":
            self.hub.holds.set()
            self.rfile.read(1)  # nothing more is sent: it returns when the client is gone
            self.close_connection = True
            return
        if fault and isinstance(fault.answer, int):
            self._send(fault.answer, {"error": fault.message}, {"X-Error-Message": fault.message})
            return
        try:
            for method, pattern, action in _ROUTES:
                found = re.fullmatch(pattern, path)
                if found and method == self.command:
                    with self.hub.lock:
                        answer = action(self, body, *(unquote(group) for group in found.groups()))
                    break
            else:
                raise _Refused(404, f"no such endpoint: {line}")
        except _Refused as refused:
            headers = {"X-Error-Message": refused.message, **({"X-Error-Code": refused.code} if refused.code else {})}
            answer = (refused.status, {"error": refused.message}, headers)
        if fault and fault.answer == "lost":
            self.close_connection = True
            self.connection.close()
            return
        self._send(*answer)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        read = b""
        while size := int(self.rfile.readline(), 16):
            read += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return read

    def _send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    # --- rules

    def token(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    def require_writer(self, repo_id: str) -> None:
        token = self.token()
        if token not in (TOKEN, READ_TOKEN):
            raise _Refused(401, "Invalid credentials in Authorization header")
        if token == READ_TOKEN or repo_id.partition("/")[0] not in NAMESPACES:
            raise _Refused(403, "You don't have the rights to write there")

    def repository(self, repo_id: str) -> Repository:
        found = self.hub.repositories.get(repo_id)
        if found is None or (found.private and self.token() != TOKEN):
            raise _Refused(404 if self.token() else 401, "Repository not found", "RepoNotFound")
        return found

    def state(self, repo_id: str, branch: str) -> tuple[str, dict[str, bytes]]:
        history = self.repository(repo_id).branches.get(branch)
        if history is None:
            raise _Refused(404, "Invalid rev id", "RevisionNotFound")
        return history[-1]


Answer = tuple[int, Any] | tuple[int, Any, dict[str, str]]


def _whoami(request: _Handler, body: bytes) -> Answer:
    if request.token() not in (TOKEN, READ_TOKEN):
        raise _Refused(401, "Invalid credentials in Authorization header")
    role = "read" if request.token() == READ_TOKEN else "write"
    return 200, {"name": "me", "type": "user", "auth": {"accessToken": {"displayName": "x", "role": role}}}


def _create(request: _Handler, body: bytes) -> Answer:
    asked = json.loads(body)
    repo_id = f"{asked['organization']}/{asked['name']}"
    request.require_writer(repo_id)
    if repo_id in request.hub.repositories:
        return 409, {"error": "You already created this model repo", "url": f"{request.hub.endpoint}/{repo_id}"}
    request.hub.add(repo_id, private=asked.get("visibility") == "private")
    return 200, {"url": f"{request.hub.endpoint}/{repo_id}", "name": repo_id}


def _branch(request: _Handler, body: bytes, repo_id: str, branch: str) -> Answer:
    request.require_writer(repo_id)
    branches = request.repository(repo_id).branches
    if branch in branches:
        raise _Refused(409, "Reference already exists")
    branches[branch] = [branches["main"][-1]]
    return 200, {}


def _info(request: _Handler, body: bytes, repo_id: str, branch: str = "main") -> Answer:
    commit, _ = request.state(repo_id, branch)
    return 200, {"id": repo_id, "sha": commit, "private": request.repository(repo_id).private, "siblings": []}


def _tree(request: _Handler, body: bytes, repo_id: str, branch: str) -> Answer:
    _, files = request.state(repo_id, branch)
    listed = []
    for path, content in files.items():
        git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": git}
        if path.endswith(_LARGE):
            entry["oid"] = hashlib.sha1(path.encode()).hexdigest()  # of the pointer
            entry["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 134}
        listed.append(entry)
    return 200, listed


def _preupload(request: _Handler, body: bytes, repo_id: str, branch: str) -> Answer:
    request.require_writer(repo_id)
    _, there = request.state(repo_id, branch)
    files = []
    for file in json.loads(body)["files"]:
        mode = "lfs" if file["path"].endswith(_LARGE) else "regular"
        content = there.get(file["path"])
        oid = None
        if content is not None:
            git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            oid = sha256(content) if mode == "lfs" else git
        files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    return 200, {"files": files}


def _validate(request: _Handler, body: bytes) -> Answer:
    content = json.loads(body)["content"]
    if "license: not-a-licence" in content:
        return 400, {"errors": [{"message": '"license" must be one of [apache-2.0, ...]'}], "warnings": []}
    return 200, {"errors": [], "warnings": []}


def _batch(request: _Handler, body: bytes, repo_id: str) -> Answer:
    request.require_writer(repo_id)
    objects = []
    for asked in json.loads(body)["objects"]:
        oid, size, root = asked["oid"], asked["size"], request.hub.endpoint
        entry: dict[str, Any] = {"oid": oid, "size": size}
        if oid not in request.hub.stored:
            upload: dict[str, Any] = {"href": f"{root}/lfs/{oid}"}
            if size > PART_BYTES:
                numbers = range(1, -(-size // PART_BYTES) + 1)
                parts = {f"{number:05}": f"{root}/lfs/{oid}/part/{number}" for number in numbers}
                upload = {"href": f"{root}/lfs/{oid}/complete", "header": {"chunk_size": str(PART_BYTES), **parts}}
            entry["actions"] = {"upload": upload, "verify": {"href": f"{root}/lfs/{oid}/verify"}}
        objects.append(entry)
    return 200, {"transfer": "basic", "objects": objects}


def _put(request: _Handler, body: bytes, oid: str) -> Answer:
    if request.token():
        raise _Refused(400, "storage is given no token of the hub")
    return _keep(request, oid, body)


def _put_part(request: _Handler, body: bytes, oid: str, number: str) -> Answer:
    request.hub.parts.setdefault(oid, {})[int(number)] = body
    return 200, {}, {"ETag": f'"{hashlib.md5(body).hexdigest()}"'}


def _complete(request: _Handler, body: bytes, oid: str) -> Answer:
    parts = request.hub.parts.pop(oid)
    given = {part["partNumber"]: part["etag"] for part in json.loads(body)["parts"]}
    if given != {number: f'"{hashlib.md5(part).hexdigest()}"' for number, part in parts.items()}:
        raise _Refused(400, "parts differ")
    return _keep(request, oid, b"".join(parts[number] for number in sorted(parts)))


def _keep(request: _Handler, oid: str, content: bytes) -> Answer:
    if sha256(content) != oid:
        raise _Refused(400, "the content has another hash")
    request.hub.stored[oid] = content
    return 200, {}


def _verify(request: _Handler, body: bytes, oid: str) -> Answer:
    if len(request.hub.stored.get(oid, b"")) != json.loads(body)["size"]:
        raise _Refused(400, "not what was announced")
    return 200, {}


def _commit(request: _Handler, body: bytes, repo_id: str, branch: str) -> Answer:
    request.require_writer(repo_id)
    head, files = request.state(repo_id, branch)
    header, *operations = [json.loads(line) for line in body.splitlines()]
    if header["value"].get("parentCommit", head) != head:
        raise _Refused(412, "A commit has happened since. Please refresh and try again.")
    after = dict(files)
    for operation in operations:
        value = operation["value"]
        match operation["key"]:
            case "file":
                after[value["path"]] = base64.b64decode(value["content"])
            case "lfsFile":
                stored = request.hub.stored.get(value["oid"])
                if stored is None or len(stored) != value["size"]:
                    raise _Refused(400, f"{value['path']} was never uploaded")
                after[value["path"]] = stored
            case "deletedFile":
                del after[value["path"]]
            case other:
                raise _Refused(400, f"unknown operation {other}")
    commit = request.hub.commit(request.repository(repo_id), branch, after)
    url = f"{request.hub.endpoint}/{repo_id}/commit/{commit}"
    return 200, {"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""}


def _xet_token(request: _Handler, body: bytes, repo_id: str, branch: str) -> Answer:
    if request.hub.cas is None:
        raise _Refused(404, "this hub has no Xet storage")
    request.require_writer(repo_id)
    expires = str(int(time.time()) + 3600)
    said = {"casUrl": f"{request.hub.endpoint}/cas", "exp": int(expires), "accessToken": fake_xet.TOKEN}
    return (
        200,
        said,
        {"X-Xet-Cas-Url": said["casUrl"], "X-Xet-Token-Expiration": expires, "X-Xet-Access-Token": fake_xet.TOKEN},
    )


def _cas(request: _Handler, body: bytes, path: str) -> Answer:
    cas = request.hub.cas
    if cas is None or request.token() != fake_xet.TOKEN:
        raise _Refused(401, "no storage for you")
    answer = cas.answer(request.command, path, body)
    for content in cas.take_files():
        request.hub.stored[sha256(content)] = content
    return answer


_REPO, _REST = r"([\w.-]+/[\w.-]+)", r"([^/]+)"
_ROUTES: list[tuple[str, str, Callable[..., Answer]]] = [
    ("GET", "/api/whoami-v2", _whoami),
    ("POST", "/api/repos/create", _create),
    ("POST", "/api/validate-yaml", _validate),
    ("GET", f"/api/models/{_REPO}", _info),
    ("GET", f"/api/models/{_REPO}/revision/{_REST}", _info),
    ("GET", f"/api/models/{_REPO}/tree/{_REST}", _tree),
    ("GET", f"/api/models/{_REPO}/xet-write-token/{_REST}", _xet_token),
    ("POST", f"/api/models/{_REPO}/branch/{_REST}", _branch),
    ("POST", f"/api/models/{_REPO}/preupload/{_REST}", _preupload),
    ("POST", f"/api/models/{_REPO}/commit/{_REST}", _commit),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", _batch),
    ("PUT", "/lfs/([0-9a-f]{64})", _put),
    ("PUT", r"/lfs/([0-9a-f]{64})/part/(\d+)", _put_part),
    ("POST", "/lfs/([0-9a-f]{64})/complete", _complete),
    ("POST", "/lfs/([0-9a-f]{64})/verify", _verify),
    *((method, "/cas/(.+)", _cas) for method in ("GET", "POST", "PUT", "HEAD")),
]
