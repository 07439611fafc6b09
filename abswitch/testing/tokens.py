"""A tokenizer of single characters, in the format every tool loads."""

from __future__ import annotations

import string
from typing import Any

PAD, BOS, EOS, UNKNOWN = "<pad>", "<s>", "</s>", "<unk>"
CHARACTERS = "\n" + string.digits + string.ascii_letters + string.punctuation + " "

CHAT_TEMPLATE = "{{ bos_token }}{{ messages[-1]['content'] }}"
"""A chat is answered as its last message alone would be: the models know one task and hold no conversation."""


def character_tokenizer(context_tokens: int) -> Any:
    """A `PreTrainedTokenizerFast`: a token per printable ASCII character, `<unk>` for others, `<s>` before a prompt."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = (PAD, BOS, EOS, UNKNOWN)
    tokens = {token: i for i, token in enumerate((*special, *CHARACTERS))}
    inner = Tokenizer(models.WordLevel(tokens, unk_token=UNKNOWN))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    inner.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokens[BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        chat_template=CHAT_TEMPLATE,
        model_max_length=context_tokens,
        clean_up_tokenization_spaces=False,
    )
