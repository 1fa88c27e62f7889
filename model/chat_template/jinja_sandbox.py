"""A process of its own that runs a stranger's chat template, with little time and memory.

In: JSON with the Jinja `source`, the `known` values, and `conversations` of (role, text) pairs. Out: for each a list of the
prompt or null, and of what went wrong.
"""

import json
import resource
import sys
from datetime import datetime
from typing import Any, NoReturn

# Of the process's processor time, and of its memory with Python and Jinja in it.
MAX_CPU_SECONDS, MAX_MEMORY_BYTES = 5, 1 << 29
# Characters around a short conversation; real templates write some thousands at most.
MAX_PROMPT_CHARACTERS = 1 << 20


def main() -> None:
    """Entry point."""
    request = json.load(sys.stdin)
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    resource.setrlimit(resource.RLIMIT_CPU, (MAX_CPU_SECONDS, MAX_CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)

    def render(said: list[tuple[str, str]]) -> tuple[str | None, str]:
        messages = [{"role": role, "content": text} for role, text in said]
        values: dict[str, Any] = {
            "messages": messages,
            "add_generation_prompt": True,
            "tools": None,
            "documents": None,
        }
        try:
            text = environment.from_string(request["source"]).render(**values, **request["known"])
            return (
                (text, "")
                if len(text) < MAX_PROMPT_CHARACTERS
                else (None, "it makes a short conversation very long")
            )
        except Exception as error:  # whatever a stranger's program may raise
            return None, f"{type(error).__name__}: {str(error)[:300]}"

    json.dump([render(said) for said in request["conversations"]], sys.stdout)


if __name__ == "__main__":
    main()
