"""Brings a publication to a Hugging Face hub: everything at once, in one commit, or nothing.

Large files are sent one by one before the commit, and the hub keeps them, so a push that was cut off sends only what
has not arrived. No reader sees any of it before the commit. This module knows nothing about runs.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from karma_electric.core.errors import ArtifactError, InputError, MissingError
from karma_electric.core.progress import Progress
from karma_electric.hub_errors import told
from karma_electric.publishing import CARD, PlannedFile, Publication

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi

_ALONE_BYTES = 1_000_000  # files of this size are sent one by one, each with a line of progress
_ATTEMPTS = 4
_TIMEOUT_S = (15.0, 300.0, 300.0, 15.0)  # connect, read, write, pool; the hub's client has none of its own
_LOCAL = {"localhost", "127.0.0.1", "::1"}

State = Literal["new", "same", "replaced", "removed"]


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository: its size, and the SHA-256 of a large one or git's SHA-1 of a small one."""

    bytes: int
    sha256: str | None
    git_sha1: str


@dataclass(frozen=True)
class Standing:
    """What a repository has, at one branch. `head` is None where the repository or the branch is not there."""

    exists: bool
    private: bool | None = None
    head: str | None = None
    files: Mapping[str, RemoteFile] = field(default_factory=dict)


@dataclass(frozen=True)
class Pushed:
    """What a push did: the commit, and the files it wrote, left alone and removed."""

    url: str
    commit: str
    sent: tuple[str, ...]
    same: tuple[str, ...]
    removed: tuple[str, ...]


class Hub:
    """One hub and one repository of it.

    Args:
        repo_id: owner/name.
        endpoint: address of the hub; huggingface_hub's own (HF_ENDPOINT) when None.
        revision: branch; main when None.

    Raises:
        InputError: an address that is none, or that a token would travel to in the clear.
    """

    def __init__(self, repo_id: str, *, endpoint: str | None = None, revision: str | None = None) -> None:
        from huggingface_hub import HfApi, get_token

        if endpoint is not None:
            _require_address(endpoint)
        self.token = get_token()
        self._api: HfApi = HfApi(endpoint=endpoint, token=self.token or False, library_name="karma-electric")
        self.endpoint = str(self._api.endpoint)
        self.repo_id = repo_id
        self.revision = revision or "main"

    @property
    def offline(self) -> bool:
        """Whether the environment forbids any contact (HF_HUB_OFFLINE)."""
        from huggingface_hub import constants

        return constants.is_offline_mode()

    def look(self) -> Standing:
        """What the repository has.

        Raises:
            MissingError: the hub cannot be reached.
            InputError: it does not let us look.
        """
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
        from huggingface_hub.hf_api import RepoFile

        with self._told():
            try:
                info = self._api.model_info(self.repo_id, timeout=_TIMEOUT_S[0])
            except RepositoryNotFoundError:
                return Standing(exists=False)
            try:
                head = self._api.model_info(self.repo_id, revision=self.revision, timeout=_TIMEOUT_S[0]).sha
                tree = list(self._api.list_repo_tree(self.repo_id, recursive=True, revision=self.revision))
            except RevisionNotFoundError:
                return Standing(exists=True, private=info.private)
            files = {
                entry.path: RemoteFile(entry.size, entry.lfs.sha256 if entry.lfs else None, entry.blob_id)
                for entry in tree
                if isinstance(entry, RepoFile)
            }
            return Standing(exists=True, private=info.private, head=head, files=files)

    def require_access(self) -> str:
        """The name of the account that the token belongs to.

        Raises:
            MissingError: no token, no network, or a network that may not be used.
            InputError: the hub does not know the token, or it may only read.
        """
        if self.offline:
            raise MissingError(
                "HF_HUB_OFFLINE is set, so nothing is sent.", "Unset it to push; --dry-run works with it."
            )
        if self.token is None:
            raise MissingError(
                "There is no Hugging Face token on this machine.",
                f"Make one with write access at {self.endpoint}/settings/tokens, then: hf auth login (or set HF_TOKEN)",
            )
        with self._told():
            who = self._api.whoami()
        role = who.get("auth", {}).get("accessToken", {}).get("role")
        if role == "read":
            raise InputError(
                f"The token of {who.get('name')} may only read.",
                f"Make one with write access at {self.endpoint}/settings/tokens, then: hf auth login --force",
            )
        return str(who.get("name"))

    def push(self, publication: Publication, *, private: bool, progress: Progress) -> Pushed:
        """Send what the repository does not have, and commit all of it at once.

        Args:
            publication: what to publish.
            private: the repository is to be private; one that is public already is refused.
            progress: told about each large file.

        Raises:
            MissingError: the hub cannot be reached, or stops answering.
            InputError: the hub refuses: the repository is not ours, is public, or has changed meanwhile.
            ArtifactError: a file was changed while it was being sent.
        """
        before = self.look()
        if private and before.private is False:
            raise InputError(
                f"{self.repo_id} is public, and --private makes new repositories private only.",
                f"Make it private first ({self.endpoint}/{self.repo_id}/settings), or push to another name.",
            )
        self._check_card(publication)
        before = self._prepare(before, private)
        publication = beside(publication, before)
        states = compare(publication, before)
        files = [file for file in publication.files if states[file.path] in ("new", "replaced")]
        removed = tuple(path for path, state in states.items() if state == "removed")
        same = tuple(path for path, state in states.items() if state == "same")
        if not files and not removed:
            return Pushed(f"{self.endpoint}/{self.repo_id}", str(before.head), (), same, ())
        with self._told():
            operations = self._send(files, progress)
            progress.say(f"  publishing {len(files)} files in one commit")
            commit = self._commit(publication, operations, removed, before)
        return Pushed(f"{self.endpoint}/{self.repo_id}", commit, tuple(file.path for file in files), same, removed)

    def _session(self) -> tuple[Any, dict[str, str]]:
        """The hub client's own HTTP client, and the headers that say who asks."""
        from huggingface_hub.utils import build_hf_headers, get_session  # type: ignore[attr-defined]

        return get_session(), build_hf_headers(token=self.token or False)

    def _told(self) -> contextlib.AbstractContextManager[None]:
        self._session()[0].timeout = _TIMEOUT_S
        return told(self.repo_id, self.endpoint, self.token)

    def _check_card(self, publication: Publication) -> None:
        """Ask the hub about the card's metadata before anything is sent, as the commit would after it."""
        text = next(str(file.source) for file in publication.files if file.path == CARD)
        session, headers = self._session()
        with self._told():
            answer = session.post(
                f"{self.endpoint}/api/validate-yaml",
                json={"content": text, "repoType": "model"},
                headers=headers,
            )
        if answer.status_code == 400:
            said = "; ".join(str(error.get("message")) for error in answer.json().get("errors", []))
            raise InputError(
                f"The hub does not take the card's metadata: {said}.",
                "Correct the recipe's [card] and render it again.",
            )

    def _prepare(self, before: Standing, private: bool) -> Standing:
        """Make the repository and the branch, where they are not there."""
        if before.head is not None:
            return before
        with self._told():
            if not before.exists:
                _patiently(lambda: self._api.create_repo(self.repo_id, private=private or None, exist_ok=True))
            if self.revision != "main":
                _patiently(lambda: self._api.create_branch(self.repo_id, branch=self.revision, exist_ok=True))
        return self.look()

    def _send(self, files: list[PlannedFile], progress: Progress) -> list[CommitOperationAdd]:
        """Bring the contents of large files to the hub; nobody sees them before the commit.

        Each is what its manifest says, and not something that was written there meanwhile.
        """
        from huggingface_hub import CommitOperationAdd

        operations = []
        large = [file for file in files if file.bytes >= _ALONE_BYTES]
        done, total = 0, sum(file.bytes for file in large)
        with self._storage():
            for file in sorted(files, key=lambda file: file.bytes):
                source = file.source.encode() if isinstance(file.source, str) else str(file.source)
                operation = CommitOperationAdd(path_in_repo=file.path, path_or_fileobj=source)
                if file.bytes >= _ALONE_BYTES:
                    progress.say(f"  {done / 1e6:,.0f} of {total / 1e6:,.0f} MB sent; {file.path}")
                    self._api.preupload_lfs_files(
                        self.repo_id, additions=[operation], revision=self.revision, free_memory=False
                    )
                    done += file.bytes
                if operation.upload_info.sha256.hex() != file.sha256:
                    raise ArtifactError(
                        f"{file.source} was changed while it was being sent; nothing was published.",
                        "See karma verify, and push again.",
                    )
                operations.append(operation)
        return operations

    @contextlib.contextmanager
    def _storage(self) -> Iterator[None]:
        """Send over Xet where this hub has it. huggingface_hub would do so whenever hf_xet is installed.

        Raises what the hub says to somebody who may not write here.
        """
        from huggingface_hub import constants
        from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

        before = constants.HF_HUB_DISABLE_XET
        if not before:
            url = f"{self.endpoint}/api/models/{self.repo_id}/xet-write-token/{self.revision.replace('/', '%2F')}"
            session, headers = self._session()
            answer = session.get(url, headers=headers)
            if answer.status_code in (401, 403):
                hf_raise_for_status(answer)
            constants.HF_HUB_DISABLE_XET = answer.status_code != 200
        try:
            yield
        finally:
            constants.HF_HUB_DISABLE_XET = before

    def _commit(
        self,
        publication: Publication,
        operations: list[CommitOperationAdd],
        removed: tuple[str, ...],
        before: Standing,
    ) -> str:
        """Commit, upon the state that was looked at. Gives the id of the commit.

        An answer that was lost is not taken for a commit that was: the repository is asked first.
        """
        from huggingface_hub import CommitOperationDelete

        deletions = [CommitOperationDelete(path_in_repo=path, is_folder=False) for path in removed]

        def attempt() -> str:
            now = self.look()
            if now.head != before.head and all(state == "same" for state in compare(publication, now).values()):
                return str(now.head)
            with self._storage():
                done: Any = self._api.create_commit(
                    self.repo_id,
                    operations=[*operations, *deletions],
                    commit_message=publication.title,
                    revision=self.revision,
                    parent_commit=before.head,
                )
            return str(done.oid)

        return str(_patiently(attempt))


def beside(publication: Publication, standing: Standing) -> Publication:
    """The publication with the card that tells what the repository has beside it, of this run and of others."""
    files = (file for place in publication.places for file in place.files)
    same = {file for file in files if file.path in standing.files and _is_same(file, standing.files[file.path])}
    return publication.beside(standing.files, same)


def compare(publication: Publication, standing: Standing) -> dict[str, State]:
    """What a push would do to each file: those it brings, and those of the repository that it supersedes."""
    states: dict[str, State] = {}
    for file in publication.files:
        there = standing.files.get(file.path)
        states[file.path] = "new" if there is None else "same" if _is_same(file, there) else "replaced"
    superseded = (path for path in standing.files if path not in states and publication.supersedes(path))
    return states | dict.fromkeys(superseded, "removed")


def _is_same(file: PlannedFile, there: RemoteFile) -> bool:
    if there.sha256 is not None:
        return there.sha256 == file.sha256
    if there.bytes != file.bytes:
        return False
    content = file.source.encode() if isinstance(file.source, str) else Path(file.source).read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == there.git_sha1


def _patiently(action: Any) -> Any:
    """Do it again after errors that pass; huggingface_hub does so for everything but these calls."""
    from httpx2 import TransportError
    from huggingface_hub.errors import HfHubHTTPError

    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return action()
        except (HfHubHTTPError, TransportError) as error:
            status = error.response.status_code if isinstance(error, HfHubHTTPError) else 503
            if status not in (429, 500, 502, 503, 504) or attempt == _ATTEMPTS:
                raise
            time.sleep(2.0**attempt)
    raise AssertionError("unreachable")


def _require_address(endpoint: str) -> None:
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"{endpoint!r} is not an address.", "Give one such as https://huggingface.co")
    if parts.scheme == "http" and parts.hostname not in _LOCAL:
        raise InputError(f"{endpoint} would have your token in the clear.", "Use https.")
