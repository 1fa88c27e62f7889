"""A separate process that renders an untrusted chat template with bounded time and memory.

Reads JSON from stdin: the Jinja `source`, `variables`, `conversations` of (role, text) pairs, and
`max_cpu_seconds`.
Writes to stdout a list with (rendered text or null, error message) for each conversation.
"""

import json
import resource
import sys
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_MEMORY_BYTES = 1 << 29  # address space, Python and Jinja included
# Real templates write some thousand characters around a short conversation.
MAX_PROMPT_CHARACTERS = 1 << 20


def main() -> None:
    """Render every conversation of the request on stdin, and write the results to stdout."""
    request = json.load(sys.stdin)

    def raise_exception(message: str) -> NoReturn:
        """Raise an error; chat templates call this for conversations that they do not support."""
        raise jinja2.TemplateError(message)

    # Set before the untrusted template is compiled. They count what the imports used, too.
    max_cpu_seconds = request["max_cpu_seconds"]
    resource.setrlimit(resource.RLIMIT_CPU, (max_cpu_seconds, max_cpu_seconds))
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    # The same settings and functions as transformers' apply_chat_template.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)

    def render(conversation: list[tuple[str, str]]) -> tuple[str | None, str]:
        """Return (text, "") or, if the template fails, (None, error message)."""
        values: dict[str, Any] = {
            "messages": [{"role": role, "content": text} for role, text in conversation],
            "add_generation_prompt": True,
            "tools": None,
            "documents": None,
            **request["variables"],
        }
        try:
            text = environment.from_string(request["source"]).render(**values)
        except Exception as error:  # an untrusted template may raise anything
            return None, f"{type(error).__name__}: {str(error)[:300]}"
        if len(text) >= MAX_PROMPT_CHARACTERS:
            return None, f"the prompt has {MAX_PROMPT_CHARACTERS:,} characters or more"
        return text, ""

    json.dump([render(conversation) for conversation in request["conversations"]], sys.stdout)


if __name__ == "__main__":
    main()
