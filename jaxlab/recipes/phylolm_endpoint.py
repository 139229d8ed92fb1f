"""Completions from an OpenAI-compatible HTTP server, at a limited rate, with a limited number of tries."""

import dataclasses
import os
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from jaxlab.errors import InputError, ResourceError
from jaxlab.recipes.options import optional_module

_WORTH_ANOTHER_TRY = (408, 409, 425, 429)
_LONGEST_WAIT_S = 60.0
_INSTRUCTION = (
    "Continue the user's text from exactly where it stops, even inside a word. "
    "Answer with the continuation alone."
)


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """Where a model is served, and how patient to be with it."""

    url: str
    """Up to the version, such as http://localhost:8000/v1."""
    model: str
    """As the server calls it."""
    chat: bool = False
    """Ask `/chat/completions` instead of `/completions`."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable of the key; none is sent where it is not set."""
    tries: int = 6
    """Of each request, before giving up."""
    per_second: float = 0.0
    """Requests a second, at most; 0 is no limit."""
    timeout: float = 60.0
    """Seconds for an answer."""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if not self.url.startswith(("http://", "https://")) or not self.model:
            raise InputError(
                f"endpoint {self.url!r} with model {self.model!r} must be http://HOST/v1#MODEL, or chat+http://... "
                "for a chat model"
            )
        if self.tries < 1:
            raise InputError(f"tries is {self.tries}; it must be at least 1")
        if not self.per_second >= 0:
            raise InputError(f"per_second is {self.per_second}; it must not be negative")
        if not self.timeout > 0:
            raise InputError(f"timeout is {self.timeout}; it must be above 0")


def is_endpoint(source: str) -> bool:
    """Whether a model's source is one of a server."""
    return source.startswith(("http://", "https://", "chat+http://", "chat+https://"))


def parse_endpoint(source: str, **options: Any) -> Endpoint:
    """`http://HOST/v1#MODEL`, or `chat+http://...` for a chat model; other fields of `Endpoint` as given.

    Raises:
      InputError: the source has another form.
    """
    url, _, model = source.removeprefix("chat+").partition("#")
    return Endpoint(url.rstrip("/"), model, chat=source.startswith("chat+"), **options)


class Client:
    """A connection to one endpoint; use it as a context manager."""

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Opens no connection yet.

        Args:
          endpoint: where to.
          clock: seconds.
          sleep: waits for seconds.

        Raises:
          ResourceError: httpx is not installed.
        """
        self._httpx = optional_module("httpx", extra="endpoints")
        key = os.environ.get(endpoint.key_variable)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = self._httpx.Client(timeout=endpoint.timeout, headers=headers)
        self._endpoint = endpoint
        self._clock = clock
        self._sleep = sleep
        self._last = float("-inf")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def complete(self, gene: str, *, probes: int, tokens: int, temperature: float) -> list[str]:
        """Completions of a gene; asks again for what a server that gives fewer at a time has left out.

        Args:
          gene: the prompt.
          probes: how many.
          tokens: of each, at most.
          temperature: of sampling.

        Raises:
          ResourceError: the server refused the request, or did not answer well in any of the tries.
        """
        found: list[str] = []
        while len(found) < probes:
            body = {
                "model": self._endpoint.model,
                "n": probes - len(found),
                "max_tokens": tokens,
                "temperature": temperature,
                "top_p": 1.0,
            }
            if self._endpoint.chat:
                messages = [{"role": "system", "content": _INSTRUCTION}, {"role": "user", "content": gene}]
                found += self._post("chat/completions", body | {"messages": messages})
            else:
                found += self._post("completions", body | {"prompt": gene})
        return found[:probes]

    def _post(self, path: str, body: dict[str, Any]) -> list[str]:
        """At least one completion."""
        url, reason = f"{self._endpoint.url}/{path}", ""
        for attempt in range(self._endpoint.tries):
            self._wait_for_turn()
            wait = 0.5 * 2**attempt
            try:
                response = self._client.post(url, json=body)
            except self._httpx.TransportError as error:
                reason = f"{type(error).__name__}: {error}"
            else:
                if response.status_code == 200:
                    texts = _texts(response)
                    if texts:
                        return texts
                    reason = f"an answer without completions: {response.text[:200]}"
                else:
                    reason = f"HTTP {response.status_code}: {response.text[:200]}"
                    if response.status_code < 500 and response.status_code not in _WORTH_ANOTHER_TRY:
                        raise ResourceError(
                            f"{url} refused the request for {self._endpoint.model!r} ({reason})"
                        )
                    wait = _asked_wait(response.headers.get("retry-after"), wait)
            if attempt + 1 < self._endpoint.tries:
                self._sleep(min(wait, _LONGEST_WAIT_S))
        raise ResourceError(
            f"{url} failed {self._endpoint.tries} times for {self._endpoint.model!r}, at last with {reason}; what was "
            "answered before is kept: run again with --resume"
        )

    def _wait_for_turn(self) -> None:
        if self._endpoint.per_second:
            wait = self._last + 1 / self._endpoint.per_second - self._clock()
            if wait > 0:
                self._sleep(wait)
        self._last = self._clock()


def _texts(response: Any) -> list[str]:
    """The completions of an answer; none if it is not what it should be."""
    try:
        choices = response.json()["choices"]
        return [
            str((choice["message"]["content"] if "message" in choice else choice["text"]) or "")
            for choice in choices
        ]
    except (ValueError, KeyError, TypeError):
        return []


def _asked_wait(header: str | None, default: float) -> float:
    """Seconds that the server asks to wait; dates are not looked at."""
    try:
        return max(default, float(header)) if header else default
    except ValueError:
        return default
