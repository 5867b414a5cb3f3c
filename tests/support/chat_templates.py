"""Chat templates as models have them, reduced to what makes them different, and tokenizers with
them.
"""

import copy

from transformers import PreTrainedTokenizerBase

# Qwen2.5: a turn ends with a token and a line break; tool calls
CHATML = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content }}"
    "{%- for call in message.tool_calls or [] %}"
    "{{- '<tool>' + (call.function.arguments | tojson) + '</tool>' }}{%- endfor %}"
    "{{- '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
# Qwen3: what was thought is left out of all turns but the last, which has a place for it
THINKING = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.role == 'assistant' and loop.last %}"
    "{{- '<think>' + (message.content.split('</think>')[0].split('<think>')[-1]"
    " if '</think>' in message.content else '') + '</think>' }}{%- endif %}"
    "{{- message.content.split('</think>')[-1] + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
# Llama 2 and Mistral: a first token of its own, nothing asks for an answer, the content is trimmed
INSTRUCT = (
    "{{- bos_token }}{%- for message in messages %}{%- if message.role == 'user' %}"
    "{{- '[INST] ' + message.content + ' [/INST]' }}{%- elif message.role == 'assistant' %}"
    "{{- ' ' + message.content | trim + eos_token }}{%- else %}"
    "{{- raise_exception('Only user and assistant roles are supported!') }}{%- endif %}"
    "{%- endfor %}"
)
# Mistral's: what the system said goes into the last question, so that no beginning of a chat is
# the chat's beginning
LATE_SYSTEM = (
    "{%- set ns = namespace(last=0) %}{%- for message in messages %}"
    "{%- if message.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}"
    "{%- for message in messages %}{%- if message.role == 'user' %}"
    "{{- '[INST]' + ('Be brief. ' if loop.index0 == ns.last else '') + message.content }}"
    "{{- '[/INST]' }}"
    "{%- elif message.role == 'assistant' %}{{- message.content + eos_token }}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{%- endif %}"
)
# DeepSeek's: arguments of tool calls are text, and nothing asks for an answer behind a tool's; here
# it has a beginning all the same
TEXT_CALLS = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + ':' + message.content }}"
    "{%- for call in message.tool_calls or [] %}{{- '<tool>' + call.function.arguments }}"
    "{%- endfor %}{{- '<|im_end|>' }}{%- endfor %}"
    "{%- if add_generation_prompt and messages[-1].role != 'tool' %}"
    "{{- '<|im_start|>assistant:' }}{%- endif %}"
)
# without a token that ends a turn
PLAIN = (
    "{%- for message in messages %}"
    "{{- message.role + ': ' + message.content + '\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- 'assistant: ' }}{%- endif %}"
)
# the template itself says what the assistant writes
MARKED = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.role == 'assistant' %}{% generation %}{{ message.content + '<|im_end|>' }}"
    "{% endgeneration %}{%- else %}{{- message.content + '<|im_end|>' }}{%- endif %}{{- '\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def with_template(
    tokenizer: PreTrainedTokenizerBase, template: str, *, adds_tokens: bool = True
) -> PreTrainedTokenizerBase:
    """A copy with a chat template, its special tokens, and a first token that it adds to text.

    Args:
        adds_tokens: False adds no tokens, for models whose embeddings have no place for more.
    """
    chats = copy.deepcopy(tokenizer)
    if not adds_tokens:
        chats.chat_template = template
        return chats
    special = {"bos_token": "<|begin|>", "extra_special_tokens": ["<|im_start|>", "<|im_end|>"]}
    chats.add_special_tokens(special)
    chats.chat_template = template
    return chats
