"""Ollama's `Modelfile`: which GGUF file, how a conversation is written, how to sample, where to stop.

Ollama writes conversations with Go templates, not with the Jinja inside the GGUF file.
"""

import json
from collections.abc import Callable
from pathlib import Path

from common.files import write_atomic
from model.chat_template.template import Template
from model.decode.sampling import DEFAULT_MAX_NEW_TOKENS, DEFAULT_SAMPLING
from model.tokenizer.base import SPECIAL_TOKEN_MARK

# As in `python -m chat`. Without its repetition penalty: Ollama's counts the words of the prompt too, and an answer must
# be able to copy them from its reference.
OLLAMA_SAMPLING = {
    "temperature": DEFAULT_SAMPLING.temperature,
    "top_p": DEFAULT_SAMPLING.top_p,
    "top_k": DEFAULT_SAMPLING.top_k,
    "repeat_penalty": 1.0,
}
# What stands for what is said, to see what a template puts around it.
_PLACEHOLDER = "资料甲"


def modelfile_path(gguf: Path) -> Path:
    """Where the `Modelfile` of a GGUF file lies: one of its own for each, so that exports share a folder."""
    return gguf.with_name(f"{gguf.name.removesuffix('.gguf')}.Modelfile")


def is_modelfile_of(gguf: Path) -> bool:
    """Whether what lies there is the `Modelfile` of this GGUF file, and not somebody's own file."""
    with modelfile_path(gguf).open("rb") as file:
        first = _from_line(gguf).encode() + b"\n"
        return file.read(len(first)) == first


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

    Without a `template` the model continues the prompt as it stands. `eos_text` is the text of the id that ends an answer,
    where llama.cpp stops by itself; a model that begins the human's part instead is stopped there. `context_length` are the
    tokens that a conversation may have; an answer gets half of them at most. `rename_special_tokens` gives special tokens in the words of
    an imported template the names that they have in the file.
    """
    lines = [
        _from_line(gguf),
        f'TEMPLATE """{build_go_template(template, eos_text, rename_special_tokens) if template else "{{ .Prompt }}"}"""',
        f"PARAMETER num_ctx {context_length}",
        f"PARAMETER num_predict {min(DEFAULT_MAX_NEW_TOKENS, context_length // 2)}",
        *(f"PARAMETER {key} {value:g}" for key, value in OLLAMA_SAMPLING.items()),
        # An imported template's questions begin with a special token, at which llama.cpp stops by itself where it should.
        *(
            [f'PARAMETER stop """{template.user_prefix(is_first=False)}"""']
            if type(template) is Template
            else []
        ),
    ]
    write_atomic(modelfile_path(gguf), "\n".join(lines) + "\n")


def build_go_template(
    template: Template, eos_text: str, rename_special_tokens: Callable[[str], str]
) -> str:
    """The dialogue as a Go template over Ollama's messages; a system message is the reference.

    `<bos>` is not in it, as llama.cpp adds it. An answer that stands last is one to go on with: nothing follows it.
    """

    def words(text: str) -> str:
        return _go_string_literal(rename_special_tokens(text.replace(SPECIAL_TOKEN_MARK, "")))

    before, _, between = template.user_prefix(_PLACEHOLDER).partition(_PLACEHOLDER)
    answer_prefix, _, answer_suffix = template.segments([("", _PLACEHOLDER)])[1].partition(
        _PLACEHOLDER
    )
    return "".join(
        [
            "{{ if .System }}",
            words(before),
            "{{ .System }}",
            words(between),
            "{{ else }}",
            words(template.user_prefix()),
            "{{ end }}{{ range $index, $message := .Messages }}",
            '{{ if eq $message.Role "user" }}',
            "{{ $message.Content }}",
            words(template.assistant_prefix),
            '{{ else if eq $message.Role "assistant" }}',
            words(answer_prefix),
            "{{ $message.Content }}",
            "{{ if gt (len (slice $.Messages $index)) 1 }}",
            words(answer_suffix),
            _go_string_literal(eos_text),
            words(template.user_prefix(is_first=False)),
            "{{ end }}{{ end }}{{ end }}",
        ]
    )


def _go_string_literal(text: str) -> str:
    """Words as a string of a Go template, where line ends are safe from trimming; JSON writes the same strings."""
    return (
        "{{ " + json.dumps(text, ensure_ascii=False).replace(SPECIAL_TOKEN_MARK, "\\ufdd0") + " }}"
        if text
        else ""
    )
