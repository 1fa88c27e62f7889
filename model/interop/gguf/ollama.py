"""Ollama's `Modelfile`: the GGUF file, the chat template, sampling, stop strings.

Ollama renders conversations with Go templates, not with the Jinja inside the GGUF file.
"""

import json
from collections.abc import Callable
from pathlib import Path

from common.files import write_atomic
from model.chat_template.template import SYSTEM_SUFFIX, ImportedTemplate, Template
from model.decode.sampling import DEFAULT_MAX_NEW_TOKENS, DEFAULT_SAMPLING
from model.tokenizer.base import SPECIAL_TOKEN_MARK

# Sampling as in `python -m chat`, except for the repetition penalty: that of Ollama counts the ids
# of the prompt, too, and an answer must be able to repeat names from its reference text.
OLLAMA_SAMPLING = {
    "temperature": DEFAULT_SAMPLING.temperature,
    "top_p": DEFAULT_SAMPLING.top_p,
    "top_k": DEFAULT_SAMPLING.top_k,
    "repeat_penalty": 1.0,
}
# A sample message, around which the texts of a template are found.
_PLACEHOLDER = "资料甲"


def modelfile_path(gguf: Path) -> Path:
    """Return the path NAME.Modelfile beside NAME.gguf."""
    # Not just `Modelfile`, so that several exports can share a folder.
    return gguf.with_name(f"{gguf.name.removesuffix('.gguf')}.Modelfile")


def is_modelfile_of(gguf: Path) -> bool:
    """Return whether the file at `modelfile_path(gguf)` was written for this GGUF file.

    The first line of a Modelfile names the GGUF file.
    """
    first_line = _from_line(gguf).encode() + b"\n"
    with modelfile_path(gguf).open("rb") as file:
        return file.read(len(first_line)) == first_line


def _from_line(gguf: Path) -> str:
    return f"FROM ./{gguf.name}"


def write_modelfile(
    gguf: Path,
    template: Template | None,
    *,
    eos_text: str,
    rename_special_tokens: Callable[[str], str],
    context_length: int,
) -> None:
    """Write `NAME.Modelfile` beside NAME.gguf, for `ollama create NAME -f NAME.Modelfile`.

    Without a `template` the model continues the prompt as text. `eos_text` is the name of the eos
    in the GGUF file; `rename_special_tokens` replaces special tokens in the texts of an imported
    template by their names in the GGUF file. `context_length` is in tokens; an answer gets at most
    half of them.
    """
    go_template = "{{ .Prompt }}"
    if template is not None:
        go_template = build_go_template(template, eos_text, rename_special_tokens)
    lines = [
        _from_line(gguf),
        f'TEMPLATE """{go_template}"""',
        f"PARAMETER num_ctx {context_length}",
        f"PARAMETER num_predict {min(DEFAULT_MAX_NEW_TOKENS, context_length // 2)}",
        *(f"PARAMETER {key} {value:g}" for key, value in OLLAMA_SAMPLING.items()),
    ]
    # Stop if the model begins the next question itself. In an imported template, what precedes a
    # question is a special token, at which llama.cpp stops anyway.
    if template is not None and not isinstance(template, ImportedTemplate):
        lines.append(f'PARAMETER stop """{template.user_prefix(is_first=False)}"""')
    write_atomic(modelfile_path(gguf), "\n".join(lines) + "\n")


def build_go_template(
    template: Template, eos_text: str, rename_special_tokens: Callable[[str], str]
) -> str:
    """Return the chat template as a Go template over Ollama's messages.

    A reference has no place in it: Ollama knows only messages. The template has no bos, which
    llama.cpp adds. If the last message is an answer, it has no eos, so that the model continues it.
    """

    def literal(text: str) -> str:
        """Return an action that prints a text of the template."""
        return _go_string(rename_special_tokens(text.replace(SPECIAL_TOKEN_MARK, "")))

    # Render a placeholder, and split there: this gives the texts around a system text or an answer.
    if template.has_system_turn:
        system_prefix, _, system_suffix = template.user_prefix(_PLACEHOLDER).partition(_PLACEHOLDER)
    else:
        system_prefix, system_suffix = template.user_prefix(), SYSTEM_SUFFIX
    answer_prefix, _, answer_suffix = template.render_answer(_PLACEHOLDER).partition(_PLACEHOLDER)
    parts = [
        "{{ if .System }}",
        literal(system_prefix),
        "{{ .System }}",
        literal(system_suffix),
        "{{ else }}",
        literal(template.user_prefix()),
        "{{ end }}{{ range $index, $message := .Messages }}",
        '{{ if eq $message.Role "user" }}',
        "{{ $message.Content }}",
        literal(template.assistant_prefix),
        '{{ else if eq $message.Role "assistant" }}',
        literal(answer_prefix),
        "{{ $message.Content }}",
        # Unless the answer is the last message: the eos and the text before the next question.
        "{{ if gt (len (slice $.Messages $index)) 1 }}",
        literal(answer_suffix),
        _go_string(eos_text),
        literal(template.user_prefix(is_first=False)),
        "{{ end }}{{ end }}{{ end }}",
    ]
    return "".join(parts)


def _go_string(text: str) -> str:
    """Return a Go template action that prints `text`, or nothing for an empty text."""
    # Outside an action, line breaks could be trimmed.
    if not text:
        return ""
    # A JSON string literal is also a Go string literal.
    quoted = json.dumps(text, ensure_ascii=False).replace(SPECIAL_TOKEN_MARK, "\\ufdd0")
    return "{{ " + quoted + " }}"
