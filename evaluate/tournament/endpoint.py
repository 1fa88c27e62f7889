"""A client for the chat-completions route of OpenAI's protocol.

The key goes to the endpoint's own URL alone: redirects are not followed. It is replaced by *** in
all that the endpoint sends back, which is printed and stored.
"""

import json
import time
from typing import Any

import requests
from requests.auth import AuthBase

from common.download import TRANSIENT_STATUS_CODES, summarize_error
from common.errors import UserError
from evaluate.predictions import excerpt

MAX_ATTEMPTS = 5
# Before the second attempt; doubled after each failure.
INITIAL_BACKOFF_SECONDS = 1.0
# The longest wait that a server may ask for.
MAX_RETRY_AFTER_SECONDS = 60.0
MAX_RESPONSE_BYTES = 1 << 22
# The request itself is at fault, such as one that is too long for the model.
REFUSED_STATUS_CODES = frozenset({400, 413, 422})


class RequestRefused(Exception):
    """The endpoint refuses this request, and may accept others; the message is the endpoint's."""


class _RetryableError(Exception):
    """This attempt failed; another may succeed."""

    def __init__(self, reason: str, retry_after: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class _BearerAuth(AuthBase):
    """The Authorization header with the key, or none.

    With an object such as this one, `requests` does not send passwords from ~/.netrc either.
    """

    def __init__(self, key: str) -> None:
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request


class Endpoint:
    """The completions route of a server."""

    def __init__(self, url: str, key: str, key_variable: str, timeout: float) -> None:
        """Open no connection yet.

        Args:
            url: of the route itself, http or https.
            key: sent as a bearer token unless it is empty.
            key_variable: the environment variable of the key, for messages.
            timeout: seconds to connect, and without a byte from the server.
        """
        self.url = url
        self._key = key
        self._key_variable = key_variable
        self._timeout = timeout
        self._session = requests.Session()
        self._session.auth = _BearerAuth(key)

    def ask(self, body: dict[str, Any]) -> str:
        """Return the text of the first choice; an empty one if the endpoint sends none.

        Tries again, later each time, if the server cannot be reached, is busy, fails, or sends
        something else than a completion. Raises RequestRefused if the request is at fault, and
        UserError if the endpoint is, or fails too often.
        """
        backoff = INITIAL_BACKOFF_SECONDS
        for attempt in range(MAX_ATTEMPTS):
            try:
                return self._ask_once(body)
            except _RetryableError as error:
                failure = error
            if attempt < MAX_ATTEMPTS - 1:
                time.sleep(max(backoff, failure.retry_after))
                backoff *= 2
        raise UserError(
            f"{self.url}: {failure}, in {MAX_ATTEMPTS} attempts; check --endpoint, or wait, then "
            "run the same command again: it goes on"
        )

    def _ask_once(self, body: dict[str, Any]) -> str:
        """Send one request. Raises _RetryableError, RequestRefused or UserError."""
        try:
            with self._session.post(
                self.url, json=body, timeout=self._timeout, allow_redirects=False, stream=True
            ) as response:
                content = _read_limited(response)
        except requests.Timeout:
            raise _RetryableError(f"no answer within {self._timeout:g} seconds") from None
        except requests.RequestException as error:
            reason = self._make_printable(summarize_error(error))
            raise _RetryableError(f"cannot be reached, or breaks off ({reason})") from None
        if response.status_code != 200:
            raise self._status_error(response, content)
        try:
            text = json.loads(content)["choices"][0]["message"]["content"]
        except (ValueError, RecursionError, KeyError, IndexError, TypeError):
            raise _RetryableError("sends something else than a chat completion") from None
        if text is None:
            return ""
        if not isinstance(text, str):
            raise _RetryableError("sends a completion that is no text")
        return text.replace(self._key, "***") if self._key else text

    def _status_error(self, response: requests.Response, content: bytes) -> Exception:
        """Return the error for a response with another status than 200."""
        status = response.status_code
        message = f"status {status}, {self._describe(content)}"
        if status in TRANSIENT_STATUS_CODES:
            return _RetryableError(message, _retry_after(response))
        if status in REFUSED_STATUS_CODES:
            return RequestRefused(message)
        if 300 <= status < 400:
            target = self._make_printable(response.headers.get("Location", "")) or "another place"
            return UserError(
                f"{self.url} redirects to {target}, where nothing was sent: give the right URL as "
                "--endpoint"
            )
        if status in (401, 403):
            return UserError(
                f"{self.url}: {message}; put the endpoint's key into the environment variable "
                f"{self._key_variable}"
            )
        return UserError(f"{self.url}: {message}; check --endpoint (…/v1) and --judge")

    def _describe(self, content: bytes) -> str:
        """Return the message of an error response."""
        try:
            return self._make_printable(str(json.loads(content)["error"]["message"]))
        except (ValueError, RecursionError, KeyError, TypeError):
            return self._make_printable(content.decode("utf-8", "replace")) or "without a message"

    def _make_printable(self, text: str) -> str:
        """Return a text of the server on one short line, without the key and control characters."""
        if self._key:
            text = text.replace(self._key, "***")
        line = excerpt(text, 200)
        return "".join(character if character.isprintable() else "?" for character in line)


def _read_limited(response: requests.Response) -> bytes:
    """Return the body of a response. Raises _RetryableError if it is larger than a completion."""
    content = b""
    for block in response.iter_content(1 << 16):
        content += block
        if len(content) > MAX_RESPONSE_BYTES:
            raise _RetryableError(f"sends more than {MAX_RESPONSE_BYTES >> 20} MB")
    return content


def _retry_after(response: requests.Response) -> float:
    """Return the seconds that the server asks to wait; 0 if it names none, or a date."""
    value = response.headers.get("Retry-After", "")
    return (
        min(float(value), MAX_RETRY_AFTER_SECONDS) if value.isascii() and value.isdigit() else 0.0
    )
