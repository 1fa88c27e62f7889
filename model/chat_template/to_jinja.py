"""The chat template as Jinja, for `chat_template` of transformers, vLLM and llama.cpp.

Messages have the roles system (or developer; before all others), user and assistant. Messages of
the user in a row are one question, blank lines around a message do not count, and the assistant may
speak first, as in training. The reference is the `text` of the only one of the `documents`, an
argument of `apply_chat_template`. The rendered text has the ids of `Template.encode` if the
tokenizer never merges characters across the end of `助手：`, and if user text never spells a
special token (see `model.tokenizer.hf_json`).
"""

import json
from pathlib import Path

from common.errors import UserError
from model.chat_template.template import (
    SYSTEM_SUFFIX,
    TEMPLATE_FILE,
    ImportedTemplate,
    Template,
)
from model.tokenizer.base import SPECIAL_TOKEN_MARK, Tokenizer
from model.tokenizer.imported import ImportedTokenizer

# Stands before the template in an export of a model that was only pretrained.
PRETRAINED_COMMENT = "{#- The model was only pretrained: this is for fine-tuning. -#}\n"
_ROLE_ERROR = "expected system messages first, then user and assistant in turns"
_DOCUMENTS_ERROR = "expected one document with a text"
_CONTENT_ERROR = "expected messages whose content is one text"
# transformers trims a newline after `%}` and other engines keep it, so all text that the template
# prints is in expressions. `clean` returns a text as training has it: without marks, and without
# blank lines around it, as `data.sources.base.strip_blank_lines` does (`trimmed` is in the text
# only once). `state.question` collects system text and question until the answer, and `state.asked`
# is true if they wait for it. Braces are doubled for str.format.
_JINJA_FORMAT = """\
{{%- macro clean(text) -%}}
{{%- if text is not string -%}}{{{{- raise_exception('{content_error}') -}}}}{{%- endif -%}}
{{%- set trimmed = text | trim -%}}
{{%- if trimmed -%}}
{{%- set around = text.split(trimmed) -%}}
{{%- set before = (around[0] | replace('\\r', '\\n')).split('\\n')[-1] -%}}
{{%- set after = (around[1] | replace('\\r', '\\n')).split('\\n')[0] -%}}
{{{{- (before + trimmed + after) | replace({guard}, '') -}}}}
{{%- endif -%}}
{{%- endmacro -%}}
{{%- set state = namespace(question='', asked=false, opening=true, first=true) -%}}
{{{{- bos_token -}}}}
{{%- if documents -%}}
{{%- if documents | length > 1 or not documents[0]['text'] | trim -%}}
{{{{- raise_exception('{documents_error}') -}}}}
{{%- endif -%}}
{{{{- {reference} + clean(documents[0]['text']) + {separator} -}}}}
{{%- endif -%}}
{{%- for message in messages -%}}
{{%- set text = clean(message['content']) -%}}
{{%- set is_system = message['role'] == 'system' or message['role'] == 'developer' -%}}
{{%- if message['role'] == 'user' or (is_system and state.opening) -%}}
{{%- if state.question and text -%}}
{{%- set state.question = state.question + {line_end} -%}}
{{%- endif -%}}
{{%- set state.question = state.question + text -%}}
{{%- set state.asked = true -%}}
{{%- elif message['role'] == 'assistant' and (state.asked or state.first) -%}}
{{%- if not state.first -%}}{{{{- {separator} -}}}}{{%- endif -%}}
{{{{- {human} + state.question -}}}}
{{{{- {closing} + text + eos_token -}}}}
{{%- set state.question = '' -%}}
{{%- set state.asked = false -%}}
{{%- set state.first = false -%}}
{{%- else -%}}
{{{{- raise_exception('{role_error}') -}}}}
{{%- endif -%}}
{{%- set state.opening = state.opening and is_system -%}}
{{%- endfor -%}}
{{%- if state.asked -%}}
{{%- if not state.first -%}}{{{{- {separator} -}}}}{{%- endif -%}}
{{{{- {human} + state.question -}}}}
{{%- if add_generation_prompt -%}}{{{{- {closing} -}}}}{{%- endif -%}}
{{%- endif -%}}
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
        "line_end": SYSTEM_SUFFIX,
    }
    # A JSON string literal is also a Jinja string literal.
    literals = {name: json.dumps(text) for name, text in texts.items()}
    return _JINJA_FORMAT.format(
        **literals,
        role_error=_ROLE_ERROR,
        documents_error=_DOCUMENTS_ERROR,
        content_error=_CONTENT_ERROR,
    )


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
