"""What training and serving have in common of chat templates: a model answers best in the words that it was trained on.

It is stored with each registered model, so it imports nothing.
"""

MARK = "\U0010fffd"  # private use, in no font and so in no data and no template

# Marks turns with plain text and ends the assistant's with the tokenizer's own end token, so that a base model needs no new token.
SIMPLE = """\
{{- bos_token -}}
{%- if tools %}{{ '<|tools|>\\n' + tools | tojson + '\\n' }}{% endif -%}
{%- for message in messages -%}
    {{- '<|' + message.role + '|>\\n' + (message.content or '') -}}
    {%- for call in message.tool_calls or [] -%}
        {{- ('\\n' if message.content or not loop.first else '') + (call.function or call) | tojson -}}
    {%- endfor -%}
    {{- (eos_token if message.role == 'assistant' else '') + '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif -%}
"""

# Some templates write today's date. Data must be the same tomorrow, so they get the day that Llama 3's own template falls back to.
_DATE = {"%Y": "2024", "%m": "07", "%d": "26", "%b": "Jul", "%B": "July", "%A": "Friday", "%a": "Fri", "%H": "00", "%M": "00", "%S": "00"}
_REPLACED = "".join(f" | replace('{directive}', '{value}')" for directive, value in _DATE.items())
_FIXED_DATE = f"{{% macro strftime_now(format) %}}{{{{ format{_REPLACED} }}}}{{% endmacro %}}\n"


def dated(template: str) -> str:
    """With the fixed day, where it asks for today's."""
    return _FIXED_DATE + template if "strftime_now" in template else template
