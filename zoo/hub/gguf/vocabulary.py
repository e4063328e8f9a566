"""The tokenizer in a GGUF file, as the library `tokenizers` has it, and the way back.

`tokenizer.ggml.model` is gpt2, a BPE of bytes whose merges are there and whose rule for words has a name in
`tokenizer.ggml.pre`; or llama, SentencePiece's BPE, whose merges follow from the scores. The numbers are those of
transformers for the same file. It reads names such as `smollm` as GPT-2's rule, where the model's own tokenizer and
llama.cpp have each digit alone: the two differ where digits follow several spaces, by a token in tens of thousands.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from zoo.data.tokenizer import END, Tokenizer, merges, spelled
from zoo.errors import ZooError, listing
from zoo.hub.foreign import Foreign
from zoo.hub.gguf.file import File

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT2, DIGITS = "GPT-2's rule", "GPT-2's rule, each digit alone"
WORDS = {
    **dict.fromkeys(("gpt-2", "default", "olmo", "mpt", "phi-2", "jais"), GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), DIGITS),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "smaug-bpe", "dbrx", "falcon3"), LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), QWEN2),
    "tekken": TEKKEN,
}
"""How text is split into words, by `tokenizer.ggml.pre`; the first name of a rule is the one that is written."""
NORMAL, CONTROL, OWN, UNUSED = 1, 3, 4, 5
"""Types of tokens; one of the user's is found in text as it is, but is no special one."""


def read(file: File, vocabulary: int) -> Foreign | None:
    """The tokenizer of a file; None where it has none.

    Raises ZooError where it is of a kind that is not known, or gives numbers that the model does not have.

    Args:
        file: The file.
        vocabulary: Numbers that the model has.
    """
    said = {key.removeprefix("tokenizer.ggml."): value for key, value in file.said.items()}
    kind = said.get("model", "none")
    if kind in ("none", "no_vocab"):
        return None
    if kind not in ("gpt2", "llama"):
        raise ZooError(f"{file.path} has a tokenizer of the kind {kind}, and zoo reads gpt2 and llama.")
    tokens = said.get("tokens")
    types = said.get("token_type") or [NORMAL] * len(tokens if isinstance(tokens, list) else ())
    if not isinstance(tokens, list) or not isinstance(types, list) or len(types) != len(tokens):
        raise ZooError(f"{file.path} is damaged: its tokenizer has no tokens, or not a type for each.")
    if len(tokens) > vocabulary:
        raise ZooError(
            f"{file.path} contradicts itself: its tokenizer has {len(tokens)} tokens, and the model {vocabulary}."
        )
    try:
        text = byte_level(file, said, tokens) if kind == "gpt2" else sentences(said, tokens)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise ZooError(f"{file.path} is damaged: its tokenizer lacks {error}.") from None
    text["added_tokens"] = [
        added(number, token, special=sort == CONTROL)
        for number, (token, sort) in enumerate(zip(tokens, types, strict=True))
        if sort in (CONTROL, OWN)
    ]
    return Foreign(str(file.said.get("general.name", file.path.stem)), json.dumps(text), end=said.get("eos_token_id"))


def byte_level(file: File, said: dict[str, Any], tokens: Sequence[str]) -> dict[str, Any]:
    """A tokenizer.json of a BPE of bytes."""
    name = said.get("pre", "default")
    if name not in WORDS:
        raise ZooError(
            f"{file.path} splits text by the rule {name} (tokenizer.ggml.pre), and zoo knows {listing(sorted(WORDS))}."
        )
    model = {
        "type": "BPE",
        "vocab": {token: number for number, token in enumerate(tokens)},
        "merges": [merge.split(" ") for merge in said.get("merges", [])],
    }
    rule = GPT2 if WORDS[name] == DIGITS else WORDS[name]  # as transformers has it, whose numbers these are
    return whole(model, words(rule), {**BYTES, "type": "ByteLevel"})


BYTES = {"add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def words(rule: str) -> dict[str, Any]:
    """A pre-tokenizer."""
    bytes_ = {**BYTES, "type": "ByteLevel"}
    if rule == GPT2:
        return bytes_
    if rule == DIGITS:
        return {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, bytes_]}
    split = {"type": "Split", "pattern": {"Regex": rule}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, {**bytes_, "use_regex": False}]}


def sentences(said: dict[str, Any], tokens: Sequence[str]) -> dict[str, Any]:
    """A tokenizer.json of SentencePiece's BPE."""
    prefixed = said.get("add_space_prefix", True)
    model = {
        "type": "BPE",
        "unk_token": tokens[said["unknown_token_id"]] if "unknown_token_id" in said else None,
        "fuse_unk": True,
        "byte_fallback": True,
        "vocab": {token: number for number, token in enumerate(tokens)},
        "merges": scored(tokens, said["scores"]),
    }
    space = {
        "type": "Metaspace",
        "replacement": "▁",
        "prepend_scheme": "first" if prefixed else "never",
        "split": False,
    }
    back: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefixed:
        back.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return whole(model, space, {"type": "Sequence", "decoders": back})


def scored(tokens: Sequence[str], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Every way to make a token of two others, the best token first, and of one token the longest right part last."""
    known = {token: number for number, token in enumerate(tokens)}
    found = []
    for token, number in known.items():
        cuts = [(token[:at], token[at:]) for at in range(1, len(token))]
        pairs = [pair for pair in cuts if pair[0] in known and pair[1] in known]
        pairs.sort(key=lambda pair: (known[pair[0]], known[pair[1]]))
        found += [(scores[number], len(left), len(right), (left, right)) for left, right in pairs]
    found.sort(key=lambda each: each[:3], reverse=True)
    return [pair for *_, pair in found]


def whole(model: dict[str, Any], before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer.json without its added tokens."""
    return {"version": "1.0", "normalizer": None, "pre_tokenizer": before, "decoder": after, "model": model}


def added(number: int, token: str, *, special: bool) -> dict[str, Any]:
    """A token that is found in text before anything else."""
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": token, **plain, "special": special}


def described(tokenizer: Tokenizer) -> dict[str, Any]:
    """The keys `tokenizer.ggml.*` of a tokenizer, without that beginning.

    Raises ZooError for one that such a file cannot describe: only a BPE of bytes whose rule for words has a name can.
    """
    if not isinstance(tokenizer, Foreign):
        return ranked(tokenizer)
    text = json.loads(tokenizer.text)
    model, before = text["model"], text.get("pre_tokenizer")
    name = next((name for name, rule in WORDS.items() if same(before, words(rule))), None)
    if model.get("type") != "BPE" or model.get("byte_fallback") or name is None or text.get("normalizer"):
        raise ZooError(
            f"The tokenizer {tokenizer.name} is not one that a GGUF file can name: that is a BPE of bytes, without a "
            f"normalizer, that splits text by one of the rules {listing(sorted(WORDS))}."
        )
    tokens = tokenizer.library.get_vocab(with_added_tokens=True)
    names = {number: token for token, number in tokens.items()}
    sorts = {each["id"]: CONTROL if each["special"] else OWN for each in text.get("added_tokens", [])}
    return {
        "model": "gpt2",
        "pre": name,
        "tokens": [names.get(number, f"[PAD{number}]") for number in range(tokenizer.vocabulary)],
        "token_type": [
            sorts.get(number, NORMAL if number in names else UNUSED) for number in range(tokenizer.vocabulary)
        ],
        "merges": [each if isinstance(each, str) else " ".join(each) for each in model["merges"]],
        "eos_token_id": tokenizer.end,
        **around(tokenizer),
    }


def around(tokenizer: Foreign) -> dict[str, Any]:
    """What the library puts before and behind a text by itself, and llama.cpp therefore too."""
    before, after = tokenizer.template
    if len(before) > 1 or after not in ([], [tokenizer.end]):
        raise ZooError(
            f"The tokenizer {tokenizer.name} puts {len(before)} tokens before a text and {len(after)} behind it; a "
            "GGUF file says one before it, and the one that ends a document behind it."
        )
    first = {"bos_token_id": before[0]} if before else {}
    return {**first, "add_bos_token": bool(before), "add_eos_token": bool(after)}


def ranked(tokenizer: Tokenizer) -> dict[str, Any]:
    """The keys of a tokenizer of tiktoken's, whose ranks say which merge comes before which."""
    encoding = tokenizer.encoding
    rule = {"cl100k_base": LLAMA3}.get(tokenizer.name, GPT2)
    ranks = {} if encoding is None else tokenizer.ranks or encoding._mergeable_ranks
    if not ranks or (tokenizer.ranks is None and tokenizer.name not in ("gpt2", "cl100k_base")):
        raise ZooError(
            f"The tokenizer {tokenizer.name} is not one that a GGUF file can name: that is a BPE of bytes with merges, "
            "such as gpt2, cl100k_base or one trained here. Leave the tokenizer out."
        )
    names = spelled(ranks)
    tokens = {rank: names[token] for token, rank in ranks.items()}
    return {
        "model": "gpt2",
        "pre": next(name for name, own in WORDS.items() if own == rule),
        "tokens": [tokens.get(n, END if n == tokenizer.end else f"[PAD{n}]") for n in range(tokenizer.vocabulary)],
        "token_type": [
            CONTROL if n == tokenizer.end else NORMAL if n in tokens else UNUSED for n in range(tokenizer.vocabulary)
        ],
        "merges": [f"{names[left]} {names[right]}" for left, right in merges(ranks)],
        "eos_token_id": tokenizer.end,
        "add_bos_token": False,
    }


def same(one: Any, other: Any) -> bool:
    """Whether two pre-tokenizers are one, whatever they leave to the library to fill in."""
    if not isinstance(one, dict) or not isinstance(other, dict):
        return False
    if one.get("type") == "Sequence" == other.get("type"):
        first, second = one["pretokenizers"], other["pretokenizers"]
        return len(first) == len(second) and all(same(*pair) for pair in zip(first, second, strict=True))
    return {**BYTES, **one, "trim_offsets": True} == {**BYTES, **other, "trim_offsets": True}
