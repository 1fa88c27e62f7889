"""The project's template in Jinja, as transformers, vLLM and llama.cpp keep one: `chat_template` of a tokenizer.

Messages have the roles system (the reference: first, at most once), user and assistant (in turns, user first) and become
the ids of `model.template.Template`, provided that the tokenizer, if it is of the project's own kind, never merges across the
end of `助手：`, where the template's pieces meet, and that text never spells a special token (`model.tokenizer.hf_json`).
"""

import json

from model.chat_template.template import Template
from model.tokenizer.base import SPECIAL_TOKEN_MARK

# A line end behind `%}` is eaten by transformers and kept by others: whatever is printed stands in an expression.
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
{{{{- raise_exception('expected system (first, at most once), then user and assistant in turns') -}}}}
{{%- endif -%}}
{{%- endfor -%}}
{{%- if add_generation_prompt and state.asked -%}}{{{{- {closing} -}}}}{{%- endif -%}}
"""


def build_jinja_template(template: Template) -> str:
    """The Jinja source that renders what `template` encodes; `add_generation_prompt` ends it with `助手：`."""
    # A JSON string is a Jinja string.
    words = {
        "guard": SPECIAL_TOKEN_MARK,
        "reference": template.reference,
        "separator": template.separator,
        "human": template.human,
        "closing": template.assistant_prefix,
    }
    return _JINJA_FORMAT.format(**{name: json.dumps(word) for name, word in words.items()})
