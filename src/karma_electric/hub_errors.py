"""What a Hugging Face hub answers instead of success, or the way to it, as errors of ours, never with the token."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from karma_electric.core.errors import InputError, KarmaError, MissingError

_AGAIN = "Nothing was published. Run the same command again: what has arrived is kept."


@contextlib.contextmanager
def told(repo_id: str, endpoint: str, token: str | None) -> Iterator[None]:
    """Turn what the hub's client raises inside into one line and what to do next.

    Raises:
        InputError: the hub refuses.
        MissingError: it cannot be reached, or does not answer.
    """
    try:
        yield
    except KarmaError:
        raise
    except Exception as error:
        ours = _as_ours(error, repo_id, endpoint)
        if ours is None:
            raise
        raise type(ours)(_without(ours.message, token), ours.hint) from None


def _as_ours(error: BaseException, repo_id: str, endpoint: str) -> KarmaError | None:
    """Ours for the first error of the chain that is known; None for what is a bug."""
    from httpx2 import TransportError
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    chain: BaseException | None = error
    root = error
    while chain is not None:
        root = chain
        if isinstance(chain, OfflineModeIsEnabled):
            return MissingError("HF_HUB_OFFLINE is set, so nothing is sent.", "Unset it.")
        if isinstance(chain, HfHubHTTPError):
            return _of_status(chain.response.status_code, _said(chain), repo_id, endpoint)
        if isinstance(chain, TransportError):
            return MissingError(f"The hub at {endpoint} cannot be reached ({_first_line(chain)}).", _AGAIN)
        if type(chain).__module__.partition(".")[0] == "hf_xet" or "xet" in type(chain).__name__.lower():
            return MissingError(
                f"The storage of {endpoint} failed ({_first_line(chain)}).",
                f"{_AGAIN} HF_HUB_DISABLE_XET=1 sends without Xet.",
            )
        chain = chain.__cause__ or chain.__context__
    local = isinstance(error, OSError) and error.filename is not None  # a file of this machine, told elsewhere
    if isinstance(error, RuntimeError | ValueError | OSError) and not local:  # an answer the client does not understand
        return MissingError(f"The hub at {endpoint} answered what its client cannot use ({_first_line(root)}).", _AGAIN)
    return None


def _of_status(status: int, said: str, repo_id: str, endpoint: str) -> KarmaError:
    owner = repo_id.partition("/")[0]
    if status == 401:
        return InputError(
            f"The hub does not accept the token (401{said}).",
            f"Make one with write access at {endpoint}/settings/tokens, then: hf auth login --force (HF_TOKEN, where "
            "set, comes first)",
        )
    if status == 403:
        return InputError(
            f"{repo_id} is not yours to write to (403{said}).",
            f"Push to a name of your own, or use a token that may write to {owner} (hf auth whoami says whose it is).",
        )
    if status in (409, 412):
        return InputError(
            f"{repo_id} was changed while this ran ({status}{said}); nothing was published.", "Push again."
        )
    if status == 429:
        return MissingError(f"The hub asks for a pause (429{said}).", f"Wait some minutes. {_AGAIN}")
    if status >= 500:
        return MissingError(f"The hub at {endpoint} does not answer ({status}{said}).", _AGAIN)
    return InputError(
        f"The hub at {endpoint} refuses ({status}{said}).", "See what it says, and its terms for storage."
    )


def _said(error: object) -> str:
    """What the hub itself says, after a colon."""
    message = getattr(error, "server_message", None)
    return f": {_first_line(message)}" if message else ""


def _first_line(value: object) -> str:
    text = re.sub(
        r"(https?://[^\s?]+)\?\S+", r"\1", str(value).strip()
    )  # addresses of storage are signed in their query
    return (text.splitlines()[0] if text else type(value).__name__)[:200].rstrip(".")


def _without(text: str, token: str | None) -> str:
    return text.replace(token, "...") if token else text
