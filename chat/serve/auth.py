"""Refuse requests under a foreign host name or without the API key."""

import secrets
import socket
from ipaddress import ip_address

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from chat.serve.errors import ProtocolError


class AuthMiddleware:
    """Check the Host header of every request, and the API key of those under /v1.

    A web page of another origin can let its own host name point to this machine, and the browser
    would then let it read the answers as those of its own server (DNS rebinding). Its requests
    carry that name in their Host header, so only names that nobody else can own are allowed: IP
    addresses, localhost, this machine's name and `--host`.

    Starlette's TrustedHostMiddleware cannot replace this: it compares with a list of names and has
    no rule for "any IP address", and it answers in plain text instead of the protocol's error.
    """

    def __init__(self, app: ASGIApp, host: str, api_key: str | None) -> None:
        self._app = app
        self._api_key = api_key
        self._allowed_hosts = {"localhost", host.lower(), socket.gethostname().lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self._authorize(scope["path"], Headers(scope=scope))
            except ProtocolError as error:
                await JSONResponse(error.body, error.status, error.headers)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _authorize(self, path: str, headers: Headers) -> None:
        """Raise ProtocolError for a foreign host, or if the API key is required and wrong."""
        if not self._is_allowed_host(headers.get("host", "")):
            raise ProtocolError(
                403,
                "the Host header names another server: use this server's address",
                code="bad_host",
            )
        if self._api_key is None or not path.startswith("/v1"):
            return
        scheme, _, key = headers.get("authorization", "").partition(" ")
        # Not ==, which ends at the first difference, so that its duration would reveal the key.
        is_right_key = secrets.compare_digest(key.strip().encode(), self._api_key.encode())
        if scheme.lower() != "bearer" or not is_right_key:
            raise ProtocolError(
                401,
                "the API key is missing or wrong: send Authorization: Bearer KEY",
                code="invalid_api_key",
            )

    def _is_allowed_host(self, host_header: str) -> bool:
        """Return whether a Host header, with or without a port, has an allowed name.

        Any IP address is allowed, because DNS rebinding needs a name.
        """
        has_port = ":" in host_header and not host_header.endswith("]")  # [::1] has no port
        host = host_header.rpartition(":")[0] if has_port else host_header
        host = host.removeprefix("[").removesuffix("]").lower()
        try:
            ip_address(host)
        except ValueError:
            return host in self._allowed_hosts
        return True
