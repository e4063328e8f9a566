"""Our tokenizers as a tokenizer.json of the library `tokenizers`, proven on text before it is written."""

from __future__ import annotations

import json

from zoo.data.tokenizer import END, PATTERN, Tokenizer, merges, spelled
from zoo.errors import ZooError
from zoo.hub.foreign import Foreign

TRIED = "Hello world! It's 2026; naïve café, 位置 and 🌍.\n\n\tdef f(x):\n        return x ** 2  # don't\r\n   end"


def portable(tokenizer: Tokenizer) -> tuple[str, str]:
    """The content of tokenizer.json, and the text of the token that ends a document.

    Raises ZooError where the library would give other numbers.
    """
    if isinstance(tokenizer, Foreign):
        return tokenizer.text, tokenizer.told
    text = built(tokenizer)
    found = Foreign(tokenizer.name, text, end=tokenizer.end)
    if found.encode(TRIED) != tokenizer.encode(TRIED):
        raise ZooError(f"The tokenizer {tokenizer.name} gives other numbers as a tokenizer.json: it is not exported.")
    return text, END


def built(tokenizer: Tokenizer) -> str:
    """A byte-level BPE with the ranks of ours."""
    from tokenizers import Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Library

    pattern = tokenizer.pattern
    if tokenizer.encoding is None:
        ranks = {bytes([byte]): byte for byte in range(256)}
    elif tokenizer.ranks is not None:
        ranks = tokenizer.ranks
    else:  # one of tiktoken's own
        ranks, pattern = tokenizer.encoding._mergeable_ranks, tokenizer.encoding._pat_str
    names = spelled(ranks)
    pairs = [(names[left], names[right]) for left, right in merges(ranks)]
    found = Library(models.BPE({names[token]: rank for token, rank in ranks.items()}, pairs, ignore_merges=True))
    if pattern == PATTERN:  # by its name in that library, which others look for, those that write a GGUF file too
        found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    else:
        split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        found.pre_tokenizer = pre_tokenizers.Sequence([split, byte])
    found.decoder = decoders.ByteLevel()
    text = json.loads(found.to_str())
    special = {"id": tokenizer.end, "content": END, "special": True, "single_word": False, "lstrip": False}
    text["added_tokens"] = [{**special, "rstrip": False, "normalized": False}]
    return json.dumps(text)
