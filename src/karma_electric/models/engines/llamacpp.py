"""Runs a GGUF file through llama.cpp, in this process: what users of Ollama and llama.cpp get from it.

It has no hooks. A cap is either baked into the file or not there, and `alpha` cannot change it.
"""

from __future__ import annotations

import http.client
import json
import os
import queue
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from karma_electric.core.errors import ArtifactError, InputError, MissingError
from karma_electric.core.extras import require
from karma_electric.core.lineage import missing_run_hint
from karma_electric.core.messages import Conversation, as_dicts
from karma_electric.models.chat_template import DATE
from karma_electric.models.engines.live import ClosedError
from karma_electric.models.engines.protocol import Alpha, Completion, OnDrift, Sampling, Usage
from karma_electric.models.literal import parts
from karma_electric.models.loading import read_gguf

Precision = Literal["fast", "exact"]
DEFAULT_CONTEXT = 4096  # tokens, where nobody asks for another: files tell of contexts that no memory holds
_CONTROL = 3  # llama.cpp's number for control tokens among the kinds of tokens
_RANDOM_SEED = (1 << 32) - 1  # llama.cpp's word for "any seed"


class LlamaCppEngine:
    """Answers conversations with llama.cpp, several at a time (continuous batching).

    A conversation is rendered with the file's own chat template, by the same engine and settings as in
    transformers, so that both see the same text. The same call gives the same answers when it holds one
    conversation; in a batch, timing decides which requests share a step, and that moves logits in the last bits.
    """

    name = "llamacpp"

    def __init__(
        self,
        gguf_path: Path,
        *,
        context: int = 2048,
        slots: int = 4,
        threads: int | None = None,
        precision: Precision = "fast",
    ) -> None:
        """Load a model.

        Args:
            gguf_path: the file.
            context: tokens of prompt and answer that one conversation may have.
            slots: conversations decoded together.
            threads: CPU threads; one less than there are when None. They wait for each other at every step, so a core
                that another program uses would hold them all back (10 times, measured with 2 of 2).
            precision: `fast` is llama.cpp's own default, with attention in float16. `exact` has it in float32: on
                float32 weights, log-probabilities then agree with transformers to 1e-4 rather than to 1e-2.

        Raises:
            MissingError: no such file, or the extra `gguf` is not installed.
            ArtifactError: llama.cpp cannot load it.
        """
        require("gguf")
        import xllamacpp

        if not gguf_path.is_file():
            hint = missing_run_hint(gguf_path) or "Make it with: karma run RECIPE --to gguf"
            raise MissingError(f"{gguf_path} does not exist.", hint)
        self.slots = slots
        self.context = context
        self._key = secrets.token_hex(16)  # the server inside also listens on localhost: not for others
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(gguf_path)
        parameters.n_ctx = context * slots
        parameters.n_parallel = slots
        threads = threads or max((os.cpu_count() or 1) - 1, 1)
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
        parameters.verbosity = -1
        parameters.warmup = False
        parameters.fit_params = False
        parameters.cache_ram_mib = 0
        parameters.api_keys = [self._key]
        if precision == "exact":
            parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
            parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        try:
            self._server: Any = xllamacpp.Server(parameters)
        except RuntimeError as error:
            raise ArtifactError(
                f"llama.cpp cannot load {gguf_path} ({error}).",
                "Is it a whole GGUF file, and is there memory for it?",
            ) from None
        properties = self._http("GET", "/props")
        self._bos, self._eos = str(properties["bos_token"]), str(properties["eos_token"])
        self._template = compile_template(str(properties["chat_template"]))
        self._specials = control_tokens(gguf_path)

    def decode(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        receive: Callable[[dict[str, Any]], bool],
        *,
        stop: Sequence[str] = (),
        logprobs: int | None = None,
    ) -> None:
        """Continue a prompt of token ids, in this thread; at most `slots` at a time get on.

        Args:
            prompt: as `prompt_ids` gives.
            sampling: how tokens are chosen, with its own seed.
            receive: called with each chunk, as OpenAI's completions stream them; it returns True to end the decoding.
            stop: the text ends before the first of these.
            logprobs: how many likeliest tokens each chunk tells; None for no log-probabilities.
        """
        asked = self._prompt(prompt, sampling, sampling.seed) | {"stream": True}
        asked |= {"stop": list(stop)} if stop else {}
        asked |= {} if logprobs is None else {"logprobs": max(logprobs, 1)}
        self._server.handle_completions(asked, receive)

    def close(self) -> None:
        """Free the model. The engine cannot be used afterwards."""
        self._server = None

    def generate(
        self, conversations: Sequence[Conversation], sampling: Sampling, *, alpha: Alpha = None
    ) -> list[Completion]:
        """Answer each conversation, in order, `slots` at a time. The i-th samples with `seed + i`.

        Raises:
            InputError: an alpha is given, or a conversation is longer than the context.
        """
        _refuse(alpha)
        requests = [self._request(c, sampling, sampling.seed + i) for i, c in enumerate(conversations)]
        with ThreadPoolExecutor(self.slots) as pool:
            return [_completion(answer) for answer in pool.map(self._complete, requests)]

    def stream(
        self,
        conversation: Conversation,
        sampling: Sampling,
        *,
        alpha: float | None = None,
        on_drift: OnDrift | None = None,
    ) -> Iterator[str]:
        """Yield the answer piece by piece. Closing the iterator stops the decoding. No drift is measured.

        Raises:
            InputError: an alpha is given, or the conversation is longer than the context. What llama.cpp raises.
        """
        _refuse(alpha)
        request = self._request(conversation, sampling, sampling.seed) | {
            "stream": True,
            "cache_prompt": True,
        }
        chunks: queue.Queue[dict[str, Any] | None] = queue.Queue()
        stopped = threading.Event()
        failure: list[BaseException] = []

        def receive(chunk: dict[str, Any]) -> bool:
            chunks.put(chunk)
            return stopped.is_set()  # True ends the decoding

        def work() -> None:
            try:
                self._server.handle_completions(request, receive)
            except BaseException as error:  # handed to the reader, who raises it
                failure.append(error)
            finally:
                chunks.put(None)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            while (chunk := chunks.get()) is not None:
                if text := checked(chunk)["choices"][0]["text"]:
                    yield text
        finally:
            stopped.set()
            thread.join()
        if failure:
            raise failure[0]

    def render(self, conversation: Conversation) -> str:
        """A conversation as the text that the model continues, from the file's own chat template."""
        try:
            return str(
                self._template.render(
                    messages=as_dicts(conversation),
                    add_generation_prompt=True,
                    bos_token=self._bos,
                    eos_token=self._eos,
                    date_string=DATE,
                )
            )
        except Exception as error:  # templates raise what they like
            raise InputError(
                f"The chat template refuses this conversation ({error}).", "Turns alternate, starting with the user."
            ) from None

    def tokenize(self, text: str, *, parse_special: bool = True, add_special: bool = False) -> list[int]:
        """Token ids of a text in which special tokens are written out, or are text; `add_special`: with a BOS."""
        asked = {"content": text, "add_special": add_special, "parse_special": parse_special}
        return [int(token) for token in self._http("POST", "/tokenize", asked)["tokens"]]

    def prompt_ids(self, conversation: Conversation) -> list[int]:
        """A conversation as token ids. Special tokens in a message are text."""
        cut = parts(self.render, conversation, self._specials)
        if cut is None:
            return self.tokenize(self.render(conversation))
        return [token for part in cut for token in self.tokenize(part.text, parse_special=part.control)]

    def greedy_tokens(self, texts: Sequence[str], max_new_tokens: int) -> list[list[int]]:
        """Greedy continuations of rendered texts as token ids, an end-of-turn token included."""
        sampling = Sampling(temperature=0.0, max_new_tokens=max_new_tokens)
        # Not from `logprobs`: those leave out tokens that end inside a character.
        requests = [self._prompt(self.tokenize(text), sampling, 0) | {"return_tokens": True} for text in texts]
        with ThreadPoolExecutor(self.slots) as pool:
            answers = list(pool.map(lambda request: self._http("POST", "/completion", request), requests))
        return [[int(token) for token in answer["tokens"]] for answer in answers]

    def greedy_top(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, top: int
    ) -> list[tuple[list[int], list[dict[int, float]]]]:
        """Greedy answers to prompts of token ids, and at every token the log-probabilities of the `top` likeliest.

        llama.cpp leaves out the steps of tokens that end inside a character: the second list is empty then.
        """

        def ask(prompt: Sequence[int]) -> tuple[list[int], list[dict[int, float]]]:
            request = {
                "prompt": list(prompt), "n_predict": max_new_tokens, "temperature": 0.0, "n_probs": top,
                "return_tokens": True, "cache_prompt": False,
            }  # fmt: skip
            answer = self._http("POST", "/completion", request)
            tokens = [int(token) for token in answer["tokens"]]
            steps = [
                {int(t["id"]): float(t["logprob"]) for t in step["top_logprobs"]}
                for step in answer["completion_probabilities"]
            ]
            return tokens, steps if len(steps) == len(tokens) else []

        with ThreadPoolExecutor(self.slots) as pool:
            return list(pool.map(ask, prompts))

    def top_along(self, prompt: Sequence[int], answer: Sequence[int], top: int, whole: int) -> list[dict[int, float]]:
        """Log-probabilities of the `top` likeliest tokens at every token of a given answer, a request for each.

        For answers of which `greedy_top` gives none. llama.cpp is made to choose `whole`, a token that is a whole
        character: the probabilities it tells are those before that.
        """
        found = []
        for length in range(len(answer)):
            request = {
                "prompt": [*prompt, *answer[:length]], "n_predict": 1, "temperature": 0.0, "n_probs": top,
                "logit_bias": [[whole, 1e4]], "cache_prompt": True,
            }  # fmt: skip
            (step,) = self._http("POST", "/completion", request)["completion_probabilities"]
            found.append({int(t["id"]): float(t["logprob"]) for t in step["top_logprobs"]})
        return found

    def _request(self, conversation: Conversation, sampling: Sampling, seed: int) -> dict[str, Any]:
        return self._prompt(self.prompt_ids(conversation), sampling, seed)

    def _prompt(self, prompt: Sequence[int], sampling: Sampling, seed: int) -> dict[str, Any]:
        return {
            "prompt": list(prompt),
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "samplers": ["temperature", "top_p"],  # in transformers' order, and none of llama.cpp's others
            "seed": seed % _RANDOM_SEED,
            "cache_prompt": False,  # a warm cache moves logits in the last bits
        }

    def _complete(self, request: dict[str, Any]) -> dict[str, Any]:
        return checked(self._server.handle_completions(request))

    def _http(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        """Ask the server for what it only answers over its localhost socket (never through a proxy)."""
        server = self._server
        if server is None:
            raise ClosedError("The engine is closed.", "Open the file again.")
        address = urlsplit(server.listening_address)
        connection = http.client.HTTPConnection(str(address.hostname), address.port)
        try:
            headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer: dict[str, Any] = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        return checked(answer)


def control_tokens(gguf_path: Path) -> list[str]:
    """The tokens of a file that llama.cpp takes for control tokens where they are written out."""
    header = read_gguf(gguf_path)
    texts, kinds = (header.get_field(f"tokenizer.ggml.{key}") for key in ("tokens", "token_type"))
    if texts is None or kinds is None:
        return []
    control = [place for place, kind in enumerate(kinds.contents()) if kind == _CONTROL]
    return [text for place in control if (text := str(texts.contents(place)))]


def _refuse(alpha: Alpha) -> None:
    if alpha is not None:
        raise InputError(
            f"alpha {alpha} was asked for, but llama.cpp runs the file as it is.",
            "Leave alpha out, or use the checkpoint with a cap (karma chat MODEL --cap CAP).",
        )


def checked(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer or a chunk of one, unless it is an error."""
    error = answer.get("error")
    if error is None:
        return answer
    if error.get("type") == "exceed_context_size_error":
        raise InputError(
            f"The conversation has {error['n_prompt_tokens']} tokens, the context is {error['n_ctx']}.",
            "Shorten it, or give the engine a larger context.",
        )
    raise InputError(f"llama.cpp refused the request: {error.get('message', error)}.", "Check prompt and sampling.")


def _completion(answer: dict[str, Any]) -> Completion:
    choice, usage = answer["choices"][0], answer["usage"]
    return Completion(
        text=choice["text"],
        finish_reason="length" if choice["finish_reason"] == "length" else "stop",
        usage=Usage(prompt_tokens=usage["prompt_tokens"], completion_tokens=usage["completion_tokens"]),
    )


def compile_template(template: str) -> Any:
    """A chat template, sandboxed, with the settings and helpers that transformers gives it."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals["raise_exception"] = refuse
    # a template that asks the clock, date or not, is told the time by transformers too
    environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    try:
        return environment.from_string(template)
    except TemplateError as error:
        raise ArtifactError(f"The file's chat template cannot be read ({error}).", "Export the model again.") from None
