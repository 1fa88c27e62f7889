"""The error object of the protocol."""

from typing import Any


class ProtocolError(Exception):
    """A refused request: an HTTP status, a sentence, and the protocol's `param` and `code`.

    `param` is the field of the request that is wrong. `retry_after` is in seconds.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        if status == 401:  # for which HTTP requires the header
            self.headers["WWW-Authenticate"] = "Bearer"

    @property
    def body(self) -> dict[str, Any]:
        """The JSON body, `{"error": {...}}`."""
        error_types = {401: "authentication_error", 429: "rate_limit_error"}
        default_type = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": self.message,
                "type": error_types.get(self.status, default_type),
                "param": self.param,
                "code": self.code,
            }
        }
