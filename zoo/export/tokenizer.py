"""Our tokenizers as a tokenizer.json of the library `tokenizers`, proven on text before it is written."""

from __future__ import annotations

import json

from zoo.data.tokenizer import END, Tokenizer, letters
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
    letter = {byte: char for char, byte in letters().items()}
    spelled = {token: "".join(letter[byte] for byte in token) for token in ranks}
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) > 1:
            left, right = halves(token, ranks, rank)
            merges.append((spelled[left], spelled[right]))
    found = Library(models.BPE({spelled[token]: rank for token, rank in ranks.items()}, merges, ignore_merges=True))
    byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    # tiktoken's possessive quantifiers mean the same as plain ones where nothing that follows could match less.
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    found.pre_tokenizer = pre_tokenizers.Sequence([split, byte])
    found.decoder = decoders.ByteLevel()
    text = json.loads(found.to_str())
    special = {"id": tokenizer.end, "content": END, "special": True, "single_word": False, "lstrip": False}
    text["added_tokens"] = [{**special, "rstrip": False, "normalized": False}]
    return json.dumps(text)


def halves(token: bytes, ranks: dict[bytes, int], limit: int) -> tuple[bytes, bytes]:
    """The two tokens that are merged last to make one: merging by rank, as encoding does, stopped before the end."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        pairs = [(ranks.get(parts[n] + parts[n + 1], limit), n) for n in range(len(parts) - 1)]
        rank, at = min(pairs)
        if rank >= limit:
            raise ZooError(f"The token {token!r} cannot be made by merging smaller ones.")
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts[0], parts[1]
