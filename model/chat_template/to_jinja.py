"""The chat template as Jinja, for `chat_template` of transformers, vLLM and llama.cpp.

Messages have the roles system (the reference: first, at most once), user and assistant
(alternating, user first). The rendered text has the ids of `Template.encode` if the tokenizer never
merges characters across the end of `助手：`, and if user text never spells a special token (see
`model.tokenizer.hf_json`).
"""

import json
from pathlib import Path

from common.errors import UserError
from model.chat_template.template import TEMPLATE_FILE, ImportedTemplate, Template
from model.tokenizer.base import SPECIAL_TOKEN_MARK, Tokenizer
from model.tokenizer.imported import ImportedTokenizer

_ROLE_ERROR = "expected system (first, at most once), then user and assistant in turns"
# transformers trims a newline after `%}` and other engines keep it, so all text that the template
# prints is in expressions. `state.asked` is true if a question waits for its answer. Braces are
# doubled for str.format.
_JINJA_FORMAT = """\
{{%- set state = namespace(asked=false, first=true) -%}}
{{{{- bos_token -}}}}
{{%- for message in messages -%}}
{{%- set text = message['content'] | replace({guard}, '') -%}}
{{%- if message['role'] == 'system' and loop.first -%}}
{{%- if text -%}}{{{{- {reference} + text + {separator} -}}}}{{%- endif -%}}
{{%- elif message['role'] == 'user' and not state.asked -%}}
{{%- if not state.first -%}}{{{{- {separator} -}}}}{{%- endif -%}}
{{{{- {human} + text -}}}}
{{%- set state.asked = true -%}}
{{%- set state.first = false -%}}
{{%- elif message['role'] == 'assistant' and state.asked -%}}
{{{{- {closing} + text + eos_token -}}}}
{{%- set state.asked = false -%}}
{{%- else -%}}
{{{{- raise_exception('{role_error}') -}}}}
{{%- endif -%}}
{{%- endfor -%}}
{{%- if add_generation_prompt and state.asked -%}}{{{{- {closing} -}}}}{{%- endif -%}}
"""


def build_jinja_template(template: Template) -> str:
    """Return the Jinja source of the project's own template.

    With `add_generation_prompt` the rendered text ends with `助手：`.
    """
    texts = {
        "guard": SPECIAL_TOKEN_MARK,
        "reference": template.reference,
        "separator": template.separator,
        "human": template.human,
        "closing": template.assistant_prefix,
    }
    # A JSON string literal is also a Jinja string literal.
    literals = {name: json.dumps(text) for name, text in texts.items()}
    return _JINJA_FORMAT.format(**literals, role_error=_ROLE_ERROR)


def export_jinja_template(template: Template, tokenizer: Tokenizer, folder: Path) -> str:
    """Return the Jinja source to export with the template and tokenizer of a checkpoint folder.

    For an imported template, return the source that the model came with. Raises UserError, naming
    the checkpoint `folder`, if it is missing.
    """
    if not isinstance(template, ImportedTemplate):
        return build_jinja_template(template)
    source = None
    if isinstance(tokenizer, ImportedTokenizer):
        source = tokenizer.tokenizer_config.get("chat_template")
    if not isinstance(source, str):
        raise UserError(
            f"{folder / TEMPLATE_FILE} is an imported chat template, but the tokenizer beside it "
            "has no chat_template: the folder is damaged; import the model again"
        )
    return source
