"""Ollama's `Modelfile`: which GGUF file, how a conversation is written, how to sample, where to stop.

Ollama writes conversations with Go templates, not with the Jinja inside the GGUF file.
"""

import json
from collections.abc import Callable
from pathlib import Path

from common.files import write_atomic
from model.chat_template.template import Template
from model.tokenizer.base import MARK

# As in `python -m chat`. Without its repetition penalty: Ollama's counts the words of the prompt too, and an answer must
# be able to copy them from its reference.
SAMPLING = {"temperature": 0.7, "top_p": 0.9, "top_k": 0, "repeat_penalty": 1.0}
_MOST_NEW = 256
# What stands for what is said, to see what a template puts around it.
_PART = "资料甲"


def modelfile_of(gguf: Path) -> Path:
    """Where the `Modelfile` of a GGUF file lies: one of its own for each, so that exports share a folder."""
    return gguf.with_name(f"{gguf.name.removesuffix('.gguf')}.Modelfile")


def is_modelfile_of(gguf: Path) -> bool:
    """Whether what lies there is the `Modelfile` of this GGUF file, and not somebody's own file."""
    with modelfile_of(gguf).open("rb") as file:
        first = _first_line(gguf).encode() + b"\n"
        return file.read(len(first)) == first


def _first_line(gguf: Path) -> str:
    return f"FROM ./{gguf.name}"


def write_modelfile(
    gguf: Path, template: Template | None, *, eos: str, rename: Callable[[str], str], context: int
) -> None:
    """Write `NAME.Modelfile` beside NAME.gguf, for `ollama create NAME -f NAME.Modelfile`.

    Without a `template` the model continues the prompt as it stands. `eos` is the text of the id that ends an answer,
    where llama.cpp stops by itself; a model that begins the human's part instead is stopped there. `context` are the
    tokens that a conversation may have; an answer gets half of them at most. `rename` gives special tokens in the words of
    an imported template the names that they have in the file.
    """
    lines = [
        _first_line(gguf),
        f'TEMPLATE """{go_template(template, eos, rename) if template else "{{ .Prompt }}"}"""',
        f"PARAMETER num_ctx {context}",
        f"PARAMETER num_predict {min(_MOST_NEW, context // 2)}",
        *(f"PARAMETER {key} {value:g}" for key, value in SAMPLING.items()),
        # An imported template's questions begin with a special token, at which llama.cpp stops by itself where it should.
        *([f'PARAMETER stop """{template.opening(first=False)}"""'] if type(template) is Template else []),
    ]
    write_atomic(modelfile_of(gguf), "\n".join(lines) + "\n")


def go_template(template: Template, eos: str, rename: Callable[[str], str]) -> str:
    """The dialogue as a Go template over Ollama's messages; a system message is the reference.

    `<bos>` is not in it, as llama.cpp adds it. An answer that stands last is one to go on with: nothing follows it.
    """
    def words(text: str) -> str:
        return _said(rename(text.replace(MARK, "")))

    before, _, between = template.opening(_PART).partition(_PART)
    lead, _, finish = template.texts([("", _PART)])[1].partition(_PART)
    return "".join([
        "{{ if .System }}", words(before), "{{ .System }}", words(between), "{{ else }}", words(template.opening()),
        "{{ end }}{{ range $index, $message := .Messages }}",
        '{{ if eq $message.Role "user" }}',
        "{{ $message.Content }}", words(template.closing),
        '{{ else if eq $message.Role "assistant" }}',
        words(lead), "{{ $message.Content }}",
        "{{ if gt (len (slice $.Messages $index)) 1 }}", words(finish), _said(eos), words(template.opening(first=False)),
        "{{ end }}{{ end }}{{ end }}",
    ])


def _said(words: str) -> str:
    """Words as a string of a Go template, where line ends are safe from trimming; JSON writes the same strings."""
    return "{{ " + json.dumps(words, ensure_ascii=False).replace(MARK, "\\ufdd0") + " }}" if words else ""
