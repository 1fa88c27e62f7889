"""Who may ask at all."""

import secrets
import socket
from ipaddress import ip_address

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from chat.serve.errors import ProtocolError


class AuthMiddleware:
    """Turns away requests under a host name that is not ours, and those to /v1 without the key where there is one.

    A web page elsewhere can point its own name at this machine and then read our answers as its own (DNS rebinding). Its
    requests carry that name, so only names that nobody else can give are taken: addresses, localhost, the machine's own
    name and what `--host` says.
    """

    def __init__(self, app: ASGIApp, host: str, api_key: str | None) -> None:
        self._app, self._api_key = app, api_key
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
        if not self._is_own_host(headers.get("host", "")):
            raise ProtocolError(
                403,
                "the Host header names another server: use the address of this one",
                code="bad_host",
            )
        if self._api_key is None or not path.startswith("/v1"):
            return
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not secrets.compare_digest(
            key.strip().encode(), self._api_key.encode()
        ):
            raise ProtocolError(
                401,
                "the key is missing or wrong: send Authorization: Bearer KEY",
                code="invalid_api_key",
            )

    def _is_own_host(self, host: str) -> bool:
        name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
        name = name.removeprefix("[").removesuffix("]").lower()
        try:
            ip_address(name)
        except ValueError:
            return name in self._allowed_hosts
        return True
