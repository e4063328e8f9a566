"""Tokenizers in the forms that the hub has them: SentencePiece's BPE as of Llama 2 and of Mistral, and others."""

import json
from functools import cache
from itertools import pairwise

TEXT = """The quick brown fox jumps over the lazy dog, and the other dogs jump over the other foxes. It's 2026; don't
they know? def f(x):\n    return x ** 2  # the square\n\tnaïve café, Über ünd the end of the beginning. Once upon a time
there was a little girl who lived in the woods with her mother and her other brothers, and they were all happy there.
"""
SPECIAL = ("<unk>", "<s>", "</s>")
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))


@cache
def merges(count: int = 120) -> tuple[tuple[str, str], ...]:
    """Merges of words with a space before them, as a trainer finds them, and no token is two words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    letters = set(TEXT)
    trainer = trainers.BpeTrainer(vocab_size=len(letters) + 1 + count, show_progress=False)
    trained.train_from_iterator([TEXT], trainer)
    found = json.loads(trained.to_str())["model"]["merges"]
    spaces = [("▁", "▁"), ("▁▁", "▁▁")]
    return tuple([*map(tuple, found), *spaces])


def added(number: int, token: str, **more: bool) -> dict:
    """An added token as tokenizer.json has it."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": number, "content": token, **plain, **more}


def sentencepiece(
    *, form: str = "mistral", prefix: bool = True, start: bool = True, more: tuple[str, ...] = (), closed: bool = True
) -> str:
    """A tokenizer.json of SentencePiece's BPE with bytes for what it does not know.

    Args:
        form: "mistral", whose pre-tokenizer puts the space before a text, or "llama2", whose normalizer does.
        prefix: Whether a space is put before a text.
        start: Whether <s> is put before every text.
        more: Tokens of the user, found in text as they are.
        closed: Whether the merges are all that the tokens allow, as where they come from scores; else the trainer's.
    """
    pairs = list(merges())
    letters = sorted({letter for pair in pairs for part in pair for letter in part} | set("0123456789.,?") - {" "})
    names = [*SPECIAL, *BYTES, *(left + right for left, right in pairs), *letters]
    vocabulary = {name: number for number, name in enumerate(dict.fromkeys(names))}
    if closed:
        cuts = [(name[:at], name[at:]) for name in vocabulary for at in range(1, len(name))]
        pairs = [pair for pair in cuts if pair[0] in vocabulary and pair[1] in vocabulary]
    first, last = {"type": "Prepend", "prepend": "▁"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    replaced = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    normalizer, words = None, None
    if form == "llama2":
        normalizer = {"type": "Sequence", "normalizers": [first, replaced] if prefix else [replaced]}
    else:
        scheme = "first" if prefix else "never"
        words = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}
    back = [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]
    count = len(vocabulary)
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    own = [added(count + n, token, special=False, normalized=False) for n, token in enumerate(more)]
    model = {"type": "BPE", "dropout": None, "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [*(added(number, token) for number, token in enumerate(SPECIAL)), *own],
            "normalizer": normalizer,
            "pre_tokenizer": words,
            "post_processor": template if start else None,
            "decoder": {"type": "Sequence", "decoders": [*back, last] if prefix else back},
            "model": {**model, "vocab": vocabulary, "merges": [list(pair) for pair in pairs]},
        }
    )


def byte_level() -> str:
    """A tokenizer.json of a BPE of bytes with a start and an end, neither of which it puts around a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    found = Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=340, initial_alphabet=alphabet, special_tokens=["<s>", "</s>"], show_progress=False
    )
    found.train_from_iterator([TEXT], trainer)
    return found.to_str()


def words(kind: str) -> str:
    """A tokenizer.json whose decoder joins words by spaces: WordPiece's, or a BPE with a mark at the end of words."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    if kind == "wordpiece":
        found = Tokenizer(models.WordPiece(unk_token="<unk>"))
        trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=list(SPECIAL), show_progress=False)
        found.decoder = decoders.WordPiece(cleanup=True)
    else:
        found = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
        trainer = trainers.BpeTrainer(
            vocab_size=200, special_tokens=list(SPECIAL), end_of_word_suffix="</w>", show_progress=False
        )
        found.decoder = decoders.BPEDecoder(suffix="</w>")
    found.normalizer = normalizers.NFC()
    found.pre_tokenizer = pre_tokenizers.Whitespace()
    found.train_from_iterator([TEXT], trainer)
    return found.to_str()


def encode_by_scores(text: str, tokens: list[str], scores: list[float], *, prefix: bool = True) -> list[int]:
    """SentencePiece's BPE in its plainest form: of all neighbours that make a token the best are merged, from the left.

    A letter that is no token becomes its bytes.
    """
    numbers = {token: number for number, token in enumerate(tokens)}
    parts = list((" " * (prefix and text != "") + text).replace(" ", "▁"))
    while True:
        pairs = [left + right for left, right in pairwise(parts)]
        known = [(-scores[numbers[pair]], at) for at, pair in enumerate(pairs) if pair in numbers]
        if not known:
            break
        _, at = min(known)
        parts[at : at + 2] = [pairs[at]]
    found = [[part] if part in numbers else [f"<0x{byte:02X}>" for byte in part.encode()] for part in parts]
    return [numbers[name] for names in found for name in names]
