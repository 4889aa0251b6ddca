"""Chat templates in the shapes that families of models document, written for tests, and tokenizers with their special tokens."""

import json
from dataclasses import dataclass

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

_LOOP = "{% for m in messages %}"
_CHATML = _LOOP + "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
_CHATML_ASKS = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
_LLAMA3 = (
    "{{ bos_token }}"
    + _LOOP
    + "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """A template; its special tokens, BOS and EOS first; what ends an answer's turn, and how it writes the example."""

    template: str
    special: tuple[str, ...]
    end: str | None
    prompt: str
    answer: str
    """Behind the prompt for the question "q one" and the answer "a two", the end's token left out."""
    system: bool = True  # whether it takes a message of the system's
    sentencepiece: str = (
        ""  # "legacy" puts a space before what follows a special token, too; "first" before a text alone
    )
    bos: bool = True


SHAPES = {
    "ChatML, Qwen": Shape(
        _CHATML + _CHATML_ASKS, ("<|endoftext|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"), "<|im_end|>",
        "<|im_start|>user\nq one<|im_end|>\n<|im_start|>assistant\n", "a two", bos=False,
    ),
    "SmolLM2: a system message of its own": Shape(
        "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nBe kind<|im_end|>\n' }}{% endif %}" + _CHATML + _CHATML_ASKS,
        ("<|im_start|>", "<|im_end|>", "<|endoftext|>"), "<|im_end|>",
        "<|im_start|>system\nBe kind<|im_end|>\n<|im_start|>user\nq one<|im_end|>\n<|im_start|>assistant\n", "a two",
    ),
    "Llama 2": Shape(
        "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}{% set system = '<<SYS>>\n' + messages[0].content + "
        "'\n<</SYS>>\n\n' %}{% else %}{% set rest = messages %}{% set system = '' %}{% endif %}{% for m in rest %}"
        "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
        "{% set content = system + m.content if loop.first else m.content %}{% if m.role == 'user' %}"
        "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
        ("<s>", "</s>"), "</s>", "<s>[INST] q one [/INST]", " a two ", sentencepiece="legacy",
    ),
    "Llama 3": Shape(
        _LLAMA3, ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"), "<|eot_id|>",
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nq one<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "a two",
    ),
    "Llama 3.2: writes the date": Shape(
        "{% if strftime_now is defined %}{% set today = strftime_now('%d %b %Y') %}{% else %}{% set today = '26 Jul 2024' %}{% endif %}"
        "{{ bos_token + '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + today + '\n\n' }}"
        "{% if messages[0].role == 'system' %}{{ messages[0].content | trim }}{% set rest = messages[1:] %}{% else %}{% set rest = messages %}{% endif %}"
        "{{ '<|eot_id|>' }}" + _LLAMA3.removeprefix("{{ bos_token }}").replace("in messages", "in rest"),
        ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"), "<|eot_id|>",
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday Date: 29 Nov 2026\n\n<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nq one<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n", "a two",
    ),
    "Mistral v1": Shape(
        "{{ bos_token }}" + _LOOP + "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}"
        "{% endif %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}",
        ("<s>", "</s>"), "</s>", "<s>[INST] q one [/INST]", "a two", system=False, sentencepiece="legacy",
    ),
    "Mistral v3: the system message only before the last question": Shape(
        "{{ bos_token }}{% if messages[0].role == 'system' %}{% set system = messages[0].content + '\n\n' %}{% set rest = messages[1:] %}"
        "{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}{% for m in rest %}{% if m.role == 'user' %}"
        "{{ '[INST] ' + (system if loop.last else '') + m.content + '[/INST]' }}{% else %}{{ ' ' + m.content | trim + eos_token }}{% endif %}{% endfor %}",
        ("<s>", "</s>", "[INST]", "[/INST]"), "</s>", "<s>[INST] q one[/INST]", " a two", sentencepiece="first",
    ),
    "Gemma: refuses system messages, and trims": Shape(
        "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + _LOOP
        + "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), "<end_of_turn>",
        "<bos><start_of_turn>user\nq one<end_of_turn>\n<start_of_turn>model\n", "a two", system=False, sentencepiece="first",
    ),
    "Phi-3: EOS at the very end only": Shape(
        _LOOP + "{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
        ("<s>", "<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"), "<|end|>",
        "<|user|>\nq one<|end|>\n<|assistant|>\n", "a two", bos=False,
    ),
    "Zephyr": Shape(
        _LOOP + "{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}"
        "{% endif %}{% endfor %}",
        ("<s>", "</s>"), "</s>", "<|user|>\nq one</s>\n<|assistant|>\n", "a two", sentencepiece="legacy", bos=False,
    ),
    "Vicuna": Shape(
        "{{ bos_token }}" + _LOOP + "{% if m.role == 'system' %}{{ m.content + ' ' }}{% elif m.role == 'user' %}{{ 'USER: ' + m.content + ' ' }}"
        "{% else %}{{ 'ASSISTANT: ' + m.content + eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}",
        ("<s>", "</s>"), "</s>", "<s>USER: q one ASSISTANT:", " a two", sentencepiece="legacy",
    ),
    "Command R": Shape(
        "{{ bos_token }}" + _LOOP + "{{ '<|START_OF_TURN_TOKEN|><|' + ('CHATBOT' if m.role == 'assistant' else m.role | upper) + '_TOKEN|>' + "
        "m.content.strip() + '<|END_OF_TURN_TOKEN|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}",
        ("<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>", "<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>"),
        "<|END_OF_TURN_TOKEN|>", "<BOS_TOKEN><|START_OF_TURN_TOKEN|><|USER_TOKEN|>q one<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        "a two",
    ),
    "R1: opens <think>, which finished answers lack": Shape(
        "{{ bos_token }}" + _LOOP + "{% if m.role == 'system' %}{{ m.content }}{% elif m.role == 'user' %}{{ '<|User|>' + m.content }}{% else %}"
        "{{ '<|Assistant|>' + m.content.split('</think>')[-1] + eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}",
        ("<|begin|>", "<|end|>", "<|User|>", "<|Assistant|>", "<think>", "</think>"), "<|end|>",
        "<|begin|><|User|>q one<|Assistant|><think>\n", "a two",
    ),
    "Qwen3: thinks in every last answer": Shape(
        _LOOP + "{% if m.role == 'assistant' and loop.last %}{{ '<|im_start|>assistant\n<think>\n' + (m.reasoning_content or '') + '\n</think>\n\n' + "
        "m.content.lstrip('\n') + '<|im_end|>\n' }}{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
        + _CHATML_ASKS.replace("assistant\n", "assistant\n<think>\n"),
        ("<|endoftext|>", "<|im_end|>", "<|im_start|>", "<think>", "</think>"), "<|im_end|>",
        "<|im_start|>user\nq one<|im_end|>\n<|im_start|>assistant\n<think>\n", "\n</think>\n\na two", bos=False,
    ),
    "Alpaca: no token ends a turn": Shape(
        _LOOP + "{{ '### ' + m.role + ':\n' + m.content + '\n\n' }}{% endfor %}{% if add_generation_prompt %}{{ '### assistant:\n' }}{% endif %}",
        ("<s>", "</s>"), None, "### user:\nq one\n\n### assistant:\n", "a two", sentencepiece="legacy", bos=False,
    ),
    "the generation prompt always": Shape(
        "{{ bos_token }}" + _LOOP + "{{ '<|' + m.role + '|>' + m.content + eos_token }}{% endfor %}{{ '<|assistant|>' }}",
        ("<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>"), "</s>", "<s><|user|>q one</s><|assistant|>", "a two",
    ),
}  # fmt: skip

_TEXTS = [
    "the quick brown fox jumps over the lazy dog. a two q one user assistant system model\n\n", "what is it? yes no 0 1 2\n",
] * 4  # fmt: skip


def tokenizer_of(shape: Shape, **changed) -> PreTrainedTokenizerFast:
    """BPE with the shape's special tokens and template: of bytes, or of sentencepiece's kind, which puts a space before a text."""
    backend = Tokenizer(models.BPE(unk_token=None, byte_fallback=bool(shape.sentencepiece)))
    if shape.sentencepiece:
        if shape.sentencepiece == "legacy":
            backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        else:
            backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        backend.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        alphabet, bytes_ = (
            sorted({c for c in "".join(_TEXTS) + "▁<>[]/|:#_'-" if c != " "}),
            [f"<0x{i:02X}>" for i in range(256)],
        )
    else:
        lines = pre_tokenizers.Split(
            Regex(r"\s*[\r\n]+|\s?[^\s]+|\s+"), "isolated"
        )  # line ends stay together, as in Llama 3
        bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.Sequence([lines, bytes_only]), decoders.ByteLevel()
        alphabet, bytes_ = pre_tokenizers.ByteLevel.alphabet(), []
    special = list(dict.fromkeys(shape.special))
    backend.train_from_iterator(
        _TEXTS, trainers.BpeTrainer(vocab_size=700, special_tokens=[*special, *bytes_], initial_alphabet=alphabet, show_progress=False)
    )  # fmt: skip
    if bytes_:  # they are pieces of the vocabulary, and no special tokens
        backend = _without_special(backend, bytes_)
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    given = {"bos_token": special[0], "eos_token": shape.special[1], "pad_token": shape.special[1]} | changed
    made = PreTrainedTokenizerFast(tokenizer_object=backend, **given)
    made.chat_template = shape.template
    return made


def _without_special(backend: Tokenizer, tokens) -> Tokenizer:
    whole = json.loads(backend.to_str())
    whole["added_tokens"] = [t for t in whole["added_tokens"] if t["content"] not in tokens]
    return Tokenizer.from_str(json.dumps(whole))
