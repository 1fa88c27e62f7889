"""Serve the web page at `/`, a single file, under a strict content security policy."""

import base64
import functools
import hashlib
import re
from pathlib import Path

from starlette.requests import Request
from starlette.responses import HTMLResponse

PAGE_FILE = Path(__file__).parent / "page.html"


@functools.cache
def content_security_policy(html: str) -> str:
    """Return a policy that allows the styles and scripts in `html`, and requests to this server.

    The page is protected even if text from a person or the model ever got into it as HTML: a
    script that is not in the file has a different hash and does not run.
    https://www.w3.org/TR/CSP3/
    """

    def hash_sources(tag: str) -> str:
        contents = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digests = [hashlib.sha256(content.encode()).digest() for content in contents]
        return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)

    return (
        f"default-src 'none'; script-src {hash_sources('script')}; "
        f"style-src {hash_sources('style')}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )


async def get_page(request: Request) -> HTMLResponse:
    """Answer GET / with the chat page."""
    html = PAGE_FILE.read_text(encoding="utf-8")
    return HTMLResponse(
        html,
        headers={
            "Content-Security-Policy": content_security_policy(html),
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-cache",
        },
    )
