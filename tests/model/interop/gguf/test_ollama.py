"""Ollama's Modelfile: chat template, sampling, stop strings."""

from pathlib import Path

import pytest

from model.chat_template.template import ImportedTemplate
from model.decode.sampling import DEFAULT_SAMPLING
from model.interop.gguf.export import write_gguf
from model.interop.gguf.ollama import OLLAMA_SAMPLING, build_go_template, modelfile_path
from model.tokenizer.base import Tokenizer
from tests.helpers.gguf_files import export_to_file, random_llama, read_gguf_metadata

# Go does not run in these tests: Go's text/template rendered this one to the texts of `Template`
# (docs/gguf.md).
GO_TEMPLATE = (
    '{{ if .System }}{{ "人类：" }}{{ .System }}{{ "\\n" }}{{ else }}{{ "人类：" }}'
    '{{ end }}{{ range $index, $message := .Messages }}{{ if eq $message.Role "user" }}'
    '{{ $message.Content }}{{ "\\n\\n助手：" }}{{ else if eq $message.Role "assistant" }}'
    '{{ $message.Content }}{{ if gt (len (slice $.Messages $index)) 1 }}{{ "</s>\\ufdd0" }}'
    '{{ "\\n\\n人类：" }}{{ end }}{{ end }}{{ end }}'
)
# The same was done for this imported template.
IMPORTED = ImportedTemplate(
    bare="\ufdd0<|start|>user ",
    reference="\ufdd0<|start|>system ",
    human="\ufdd0<|eot|>\ufdd0<|start|>user ",
    assistant="\ufdd0<|eot|>\ufdd0<|start|>assistant\n",
    separator="\ufdd0<|start|>user ",
    lead="",
    finish=" ",
)
GO_IMPORTED = (
    '{{ if .System }}{{ "<|start|>system " }}{{ .System }}{{ "<|eot|><|start|>user " }}'
    '{{ else }}{{ "<|start|>user " }}{{ end }}{{ range $index, $message := .Messages }}'
    '{{ if eq $message.Role "user" }}{{ $message.Content }}'
    '{{ "<|eot|><|start|>assistant\\n" }}{{ else if eq $message.Role "assistant" }}'
    '{{ $message.Content }}{{ if gt (len (slice $.Messages $index)) 1 }}{{ " " }}'
    '{{ "<|eot|>\\ufdd0" }}{{ "<|start|>user " }}{{ end }}{{ end }}{{ end }}'
)


@pytest.mark.slow
def test_modelfile_has_weights_stop_tokens_and_sampling(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Prevents Ollama from never stopping, or from sampling differently than chat."""
    model = random_llama(tokenizer)
    model.trained_context = 128
    file = export_to_file(model, tokenizer, tmp_path, "q8_0")
    text = modelfile_path(file).read_text(encoding="utf-8")
    assert text.splitlines()[0] == f"FROM ./{file.name}"
    assert f'TEMPLATE """{GO_TEMPLATE}"""\n' in text
    assert (
        "PARAMETER num_ctx 128\nPARAMETER num_predict 64\n"
        f"PARAMETER temperature {DEFAULT_SAMPLING.temperature}\n"
        f"PARAMETER top_p {DEFAULT_SAMPLING.top_p}\n" in text
    )
    assert text.endswith('PARAMETER stop """\n\n人类："""\n')
    assert {
        key: getattr(DEFAULT_SAMPLING, key) for key in ("temperature", "top_p", "top_k")
    }.items() <= OLLAMA_SAMPLING.items()


def test_modelfile_uses_gguf_names_of_special_tokens() -> None:
    """Prevents special-token marks in prompts, and an eos that llama.cpp reads as text."""
    names = {"<|eot|>": "<|eot|>\ufdd0"}
    assert build_go_template(IMPORTED, "<|eot|>\ufdd0", str) == GO_IMPORTED
    renamed = build_go_template(
        IMPORTED, "<|eot|>\ufdd0", lambda text: text.replace("<|eot|>", names["<|eot|>"])
    )
    assert renamed == GO_IMPORTED.replace("<|eot|><", "<|eot|>\\ufdd0<")


def test_modelfile_without_system_turn_has_system_text_in_first_question() -> None:
    """Prevents a system text that Ollama presents as a reference (资料)."""
    template = ImportedTemplate(bare="[INST] ", reference="[INST] 资料：", human="\n\n")
    go_template = build_go_template(template, "</s>", str)
    assert go_template.startswith(
        '{{ if .System }}{{ "[INST] " }}{{ .System }}{{ "\\n" }}{{ else }}{{ "[INST] " }}{{ end }}'
    )


@pytest.mark.slow
def test_modelfile_without_template_is_text_completion(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Prevents a pretrained model from being prompted with a chat format it does not know."""
    file = export_to_file(random_llama(tokenizer), tokenizer, tmp_path, chat_template=None)
    text = modelfile_path(file).read_text(encoding="utf-8")
    assert 'TEMPLATE """{{ .Prompt }}"""\n' in text and "人类" not in text
    assert "tokenizer.chat_template" not in read_gguf_metadata(file)


@pytest.mark.slow
def test_exports_keep_user_modelfile_in_shared_folder(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Prevents a second export from replacing the first one's or the user's Modelfile."""
    (tmp_path / "Modelfile").write_text("FROM qwen")
    for name in ("a.gguf", "b.gguf", "a.gguf"):
        write_gguf(random_llama(tokenizer), tokenizer, None, tmp_path / name, dtype="f32", name="x")
    assert (tmp_path / "Modelfile").read_text() == "FROM qwen"
    assert [(tmp_path / f"{name}.Modelfile").read_text().split("\n")[0] for name in "ab"] == [
        "FROM ./a.gguf",
        "FROM ./b.gguf",
    ]
