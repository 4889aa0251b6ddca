"""Tokenizers: trained on a task's texts (characters, words or byte-level BPE), or a pretrained one.

A trained tokenizer has `<pad> <bos> <eos> <unk>` as ids 0 to 3, depends on nothing but its settings and its texts,
and is saved and loaded in Hugging Face's format, so every engine reads the same file."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, Self

from pydantic import Field, model_validator
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from rlhf_bench.core.errors import BadInput, check_agreement
from rlhf_bench.core.settings import Section
from rlhf_bench.models.hub import folder_of

PAD, BOS, EOS, UNK = SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>")
_BYTES = pre_tokenizers.ByteLevel.alphabet()
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


class TokenizerSettings(Section):
    """How text becomes tokens."""

    kind: Literal["characters", "words", "bpe", "pretrained"] = Field(
        description="characters: one token each; words: split at white space; bpe: byte-level BPE trained on the "
        "task's texts; pretrained: a Hugging Face tokenizer."
    )
    vocab_size: int | None = Field(
        None,
        ge=len(SPECIALS) + len(_BYTES),
        le=1_000_000,
        description="Maximum number of tokens, special tokens and all 256 bytes included (bpe).",
    )
    name_or_path: str | None = Field(None, description="where it is, as in model.name_or_path (pretrained).")
    chat_template: Literal["own"] | None = Field(
        None,
        description="own: put the tokenizer's own chat template around every prompt, which is one message of the user unless it has messages, and around every answer (pretrained); null: use the text unchanged.",
    )

    @model_validator(mode="after")
    def _fits_kind(self) -> Self:
        check_agreement(self._conflicts())
        return self

    def _conflicts(self) -> Iterator[str]:
        for key, kind in (("vocab_size", "bpe"), ("name_or_path", "pretrained")):
            given = getattr(self, key) is not None
            if given and self.kind != kind:
                yield f"{key} belongs to kind: {kind}; remove it or change the kind"
            if not given and self.kind == kind:
                yield f"kind: {kind} needs {key}; add it"
        if self.chat_template is not None and self.kind != "pretrained":
            yield "chat_template belongs to kind: pretrained; remove it or change the kind"


class TextTokenizer(Protocol):
    """What a run needs of a tokenizer. transformers' tokenizers have it."""

    @property
    def backend_tokenizer(self) -> Tokenizer: ...
    @property
    def pad_token_id(self) -> int: ...
    @property
    def bos_token_id(self) -> int | None: ...
    @property
    def eos_token_id(self) -> int: ...

    def __len__(self) -> int: ...

    def save_pretrained(self, folder: Any) -> Any:
        """Write it in Hugging Face's format."""


@dataclass(frozen=True)
class TrainedTokenizer:
    """A tokenizer trained by this project. transformers' class for it takes seconds to import."""

    backend_tokenizer: Tokenizer
    pad_token_id: int = 0
    bos_token_id: int | None = 1
    eos_token_id: int = 2
    unk_token_id: int = 3

    def __len__(self) -> int:
        return self.backend_tokenizer.get_vocab_size()

    def save_pretrained(self, folder: Any) -> None:
        self.backend_tokenizer.save(str(Path(folder) / "tokenizer.json"))
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "pad_token": PAD,
            "bos_token": BOS,
            "eos_token": EOS,
            "unk_token": UNK,
            "clean_up_tokenization_spaces": False,
        }
        (Path(folder) / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def build_tokenizer(settings: TokenizerSettings, corpus: Sequence[str]) -> TextTokenizer:
    """The tokenizer, trained on `corpus` unless it is pretrained.

    On the corpus's texts decode(encode(text)) is text, for `words` with single spaces. BPE has fewer tokens than
    `vocab_size` where the texts have no more to merge. BadInput where a pretrained tokenizer cannot be used."""
    match settings.kind:
        case "characters":
            return _wrap(_characters(corpus))
        case "words":
            return _wrap(_words(corpus))
        case "bpe":
            assert settings.vocab_size is not None  # the settings' own check
            return _wrap(_bpe(corpus, settings.vocab_size))
        case "pretrained":
            assert settings.name_or_path is not None
            return _pretrained(settings.name_or_path, settings.chat_template is not None)


# The functions below call the backend tokenizer directly, as transformers does inside: it takes a tenth of the time, and a run
# encodes tens of thousands of texts.


def encode_prompt(tokenizer: TextTokenizer, text: str) -> tuple[int, ...]:
    """BOS, if the tokenizer has one and the text does not begin with it, and the text's tokens."""
    ids, bos = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids, tokenizer.bos_token_id
    return tuple(ids) if bos is None or ids[:1] == [bos] else (bos, *ids)


def encode_response(tokenizer: TextTokenizer, text: str) -> tuple[int, ...]:
    """The text's tokens and EOS."""
    return (*tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids, tokenizer.eos_token_id)


def decode_response(tokenizer: TextTokenizer, ids: Sequence[int], ends: Collection[int] = ()) -> str:
    """The text without EOS, `ends` and padding at its end. Special tokens elsewhere stay, so that the judge sees them."""
    end, taken = len(ids), {tokenizer.eos_token_id, tokenizer.pad_token_id, *ends}
    while end and ids[end - 1] in taken:
        end -= 1
    return tokenizer.backend_tokenizer.decode(list(ids[:end]), skip_special_tokens=False)


def _characters(corpus: Sequence[str]) -> Tokenizer:
    tokenizer = Tokenizer(_word_level(sorted(set().union(*corpus))))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def _words(corpus: Sequence[str]) -> Tokenizer:
    tokenizer = Tokenizer(_word_level(sorted({word for text in corpus for word in text.split()})))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def _word_level(words: Sequence[str]) -> models.WordLevel:
    vocabulary = dict.fromkeys([*SPECIALS, *words])
    return models.WordLevel({word: index for index, word in enumerate(vocabulary)}, unk_token=UNK)


def _bpe(corpus: Sequence[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(SPECIALS), initial_alphabet=_BYTES, show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def _wrap(tokenizer: Tokenizer) -> TrainedTokenizer:
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    return TrainedTokenizer(tokenizer)


def _pretrained(name_or_path: str, chat: bool) -> TextTokenizer:
    """Load it. Where it has no padding token, EOS is used: padding is recognised by lengths, never by its id."""
    # Imported here, since it takes seconds and most runs train their own tokenizer.
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    key = "model.tokenizer.name_or_path"
    check_folder(key, name_or_path)
    folder = Path(name_or_path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder_of(name_or_path, weights=False), trust_remote_code=False)
    except Exception as error:  # any error of transformers means that the user's files are wrong
        lacking = folder.is_dir() and not (folder / "tokenizer.json").exists()
        reason = "it has no tokenizer.json" if lacking else first_line(error)
        raise BadInput(f"{key}: cannot load '{name_or_path}' ({reason}); give a Hugging Face id or a folder") from None
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise BadInput(f"{key}: '{name_or_path}' has no tokenizer.json; choose one that has")
    if tokenizer.eos_token_id is None:
        raise BadInput(
            f"{key}: '{name_or_path}' has no end-of-sequence token, so responses could not end; "
            "set eos_token in its tokenizer_config.json or choose another"
        )
    if chat and not tokenizer.chat_template:
        raise BadInput(
            f"model.tokenizer.chat_template: '{name_or_path}' has none of its own; put chat_template.jinja there, choose "
            "an instruction-tuned one, or set it to null"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.backend_tokenizer.no_truncation()  # its file may turn on either
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def check_folder(key: str, name_or_path: str) -> None:
    """BadInput where the name can only mean a folder and there is no such folder. The Hub is not asked."""
    if os.path.isfile(name_or_path):  # unlike Path's methods, these never raise
        raise BadInput(f"{key}: {name_or_path} is a file; give the folder it is in")
    if not os.path.isdir(name_or_path) and not HUB_ID.fullmatch(name_or_path.partition("@")[0]):
        raise BadInput(f"{key}: there is no folder {name_or_path}; correct the path, or give a Hugging Face id")


def first_line(error: BaseException) -> str:
    """The first line of the error's message, or its type where it has none."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {error}" if isinstance(error, LookupError) or not lines else lines[0]
