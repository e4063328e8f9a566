"""The tokenizer in a GGUF file, as the library `tokenizers` has it, and the way back.

`tokenizer.ggml.model` is gpt2, a BPE of bytes whose merges are there and whose rule for words has a name in
`tokenizer.ggml.pre`; or llama, SentencePiece's BPE, whose merges follow from the scores. The numbers are those of
transformers for the same file. It reads names such as `smollm` as GPT-2's rule, where the model's own tokenizer and
llama.cpp have each digit alone: the two differ where digits follow several spaces, by a token in tens of thousands.
Of SentencePiece the numbers are its own and llama.cpp's: a space is put before a text that begins with one too, which
transformers leaves out.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
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
NORMAL, UNKNOWN, CONTROL, OWN, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Types of tokens; one of the user's is found in text as it is, but is no special one."""
SPACE = "\u2581"
"""What SentencePiece writes for a space."""
BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))
CONDITIONS = ("single_word", "lstrip", "rstrip")
"""What an added token of tokenizer.json may say that a GGUF file cannot."""
OTHERWISE = "; the tokenizer.json of this model does not"
SPACES = f"llama.cpp, as SentencePiece does, puts a space before a text that begins with one{OTHERWISE}"
BEHIND = f"llama.cpp puts a space before a text behind a special token{OTHERWISE}"
MARKS = (
    "llama.cpp finds special tokens in a text as it is; the tokenizer.json of this model looks for {} behind a space"
)
"""What the two may differ in, to be said where they do."""
LEAST = -10000.0
"""The score of a token that is none, as llama.cpp's converter has it."""
TRIED = (
    "Hello world! It's 2026; naïve café, Größe, 位置 and 🌍👩‍👩‍👧.",
    " one space before,  two within,   three, and some at the end  ",
    "   def f(x):\n\n\n        return x ** 2\t\t# don't\r\n",
    "1234567890 3.14 a1b2",
    "\u2581 is a letter too\u00a0and\u3000these are spaces\u200b\x00\x7f",
    "<s> <unk> </s> <0x0A> <|endoftext|> [INST]",
    "a <s> b<unk>c",
    "\n",
    " ",
    "",
)
"""Texts that a tokenizer is tried on before it is written."""


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
        text["post_processor"] = template(said, tokens, start=kind == "llama")
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise ZooError(f"{file.path} is damaged: its tokenizer lacks {error}.") from None
    for number, (token, sort) in enumerate(zip(tokens, types, strict=True)):
        if sort == UNUSED and token == f"[PAD{number}]":  # which stands for a row of the embedding without a token
            text["model"]["vocab"].pop(token, None)
    text["added_tokens"] = [
        added(number, token, special=sort != OWN)
        for number, (token, sort) in enumerate(zip(tokens, types, strict=True))
        if sort in (CONTROL, OWN) or (sort == UNKNOWN and kind == "llama")
    ]
    name, start = str(file.said.get("general.name", file.path.stem)), said.get("bos_token_id")
    return Foreign(
        name, json.dumps(text), end=said.get("eos_token_id"), start=start if isinstance(start, int) else None
    )


def template(said: dict[str, Any], tokens: Sequence[str], *, start: bool) -> dict[str, Any] | None:
    """What is put around every text (a post_processor); `start` says whether that is a start where nothing is said."""
    single: list[dict[str, Any]] = [{"Sequence": {"id": "A", "type_id": 0}}]
    ends: dict[str, Any] = {}
    for key, place, usual in (("bos", 0, start and "bos_token_id" in said), ("eos", 1, False)):
        if said.get(f"add_{key}_token", usual):
            number = int(said[f"{key}_token_id"])
            if number < 0:
                raise IndexError(f"a token of the number {number}")
            ends[tokens[number]] = {"id": tokens[number], "ids": [number], "tokens": [tokens[number]]}
            single.insert(place * len(single), {"SpecialToken": {"id": tokens[number], "type_id": 0}})
    pair = [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}]
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": ends} if ends else None


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
    """A tokenizer.json of SentencePiece's BPE.

    Spaces are written, and one is put before a text, by normalizers: the pre-tokenizer Metaspace puts none before a
    text that begins with a space.
    """
    prefixed = said.get("add_space_prefix", True)
    model = {
        "type": "BPE",
        "unk_token": tokens[said["unknown_token_id"]] if "unknown_token_id" in said else None,
        "fuse_unk": True,
        "byte_fallback": True,
        "vocab": {token: number for number, token in enumerate(tokens)},
        "merges": scored(tokens, said["scores"]),
    }
    first: list[dict[str, Any]] = []
    if said.get("remove_extra_whitespaces", False):
        first += [replaced({"Regex": r"\A +| +\z"}, ""), replaced({"Regex": " {2,}"}, " ")]
    if prefixed:
        first.append({"type": "Prepend", "prepend": SPACE})
    first.append(replaced({"String": " "}, SPACE))
    back: list[dict[str, Any]] = [replaced({"String": SPACE}, " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
    if prefixed:
        back.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    before = {"type": "Sequence", "normalizers": first}
    return whole(model, None, {"type": "Sequence", "decoders": back}, before)


def replaced(pattern: dict[str, str], content: str) -> dict[str, Any]:
    """A normalizer or a decoder that replaces a part of a text."""
    return {"type": "Replace", "pattern": pattern, "content": content}


def scored(tokens: Sequence[str], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Every way to make a token of two others, the best token first, and of one token the longest right part last."""
    known = {token: number for number, token in enumerate(tokens)}
    found = []
    for token, number in known.items():
        pairs = halves(token, known)
        pairs.sort(key=lambda pair: (known[pair[0]], known[pair[1]]))
        found += [(scores[number], len(left), len(right), (left, right)) for left, right in pairs]
    found.sort(key=lambda each: each[:3], reverse=True)
    return [pair for *_, pair in found]


def halves(token: str, known: Container[str]) -> list[tuple[str, str]]:
    """Every way to make a token of two others."""
    cuts = [(token[:at], token[at:]) for at in range(1, len(token))]
    return [pair for pair in cuts if pair[0] in known and pair[1] in known]


def whole(
    model: dict[str, Any],
    before: dict[str, Any] | None,
    after: dict[str, Any],
    normalizer: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A tokenizer.json without its added tokens."""
    return {"version": "1.0", "normalizer": normalizer, "pre_tokenizer": before, "decoder": after, "model": model}


def added(number: int, token: str, *, special: bool) -> dict[str, Any]:
    """A token that is found in text before anything else."""
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": token, **plain, "special": special}


def described(tokenizer: Tokenizer, rows: int | None = None) -> dict[str, Any]:
    """The keys `tokenizer.ggml.*` of a tokenizer, without that beginning.

    Raises ZooError for one that such a file cannot describe: only a BPE of bytes whose rule for words has a name can,
    and SentencePiece's BPE.

    Args:
        tokenizer: The tokenizer.
        rows: Of the embedding: as many tokens there are in the file, for llama.cpp counts them (default: no more than
            the tokenizer has).
    """
    if not isinstance(tokenizer, Foreign):
        found = ranked(tokenizer)
    elif json.loads(tokenizer.text)["model"].get("byte_fallback"):
        found = describe_sentencepiece(tokenizer)
    else:
        found = describe_byte_level(tokenizer)
    more = range(len(found["tokens"]), rows or 0)
    found["tokens"] += [f"[PAD{number}]" for number in more]
    found["token_type"] += [UNUSED for _ in more]
    if "scores" in found:
        found["scores"] += [LEAST for _ in more]
    return found


def describe_byte_level(tokenizer: Foreign) -> dict[str, Any]:
    """The keys of a BPE of bytes."""
    text = json.loads(tokenizer.text)
    model, before = text["model"], text.get("pre_tokenizer")
    name = next((name for name, rule in WORDS.items() if same(before, words(rule))), None)
    if model.get("type") != "BPE" or name is None or text.get("normalizer"):
        raise ZooError(
            f"The tokenizer {tokenizer.name} is not one that a GGUF file can name: that is a BPE of bytes, without a "
            f"normalizer, that splits text by one of the rules {listing(sorted(WORDS))}; or SentencePiece's BPE with a "
            "token for each byte."
        )
    return {
        "model": "gpt2",
        "pre": name,
        **spelled_out(tokenizer, text),
        "merges": [each if isinstance(each, str) else " ".join(each) for each in model["merges"]],
        "eos_token_id": tokenizer.end,
        **around(tokenizer),
    }


def spelled_out(tokenizer: Foreign, text: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The tokens of a tokenizer.json by their numbers, and their types."""
    names = {number: token for token, number in tokenizer.library.get_vocab(with_added_tokens=True).items()}
    sorts = {each["id"]: CONTROL if each["special"] else OWN for each in text.get("added_tokens", [])}
    every = range(tokenizer.vocabulary)
    return {
        "tokens": [names.get(number, f"[PAD{number}]") for number in every],
        "token_type": [sorts.get(number, NORMAL if number in names else UNUSED) for number in every],
    }


def describe_sentencepiece(tokenizer: Foreign) -> dict[str, Any]:
    """The keys of SentencePiece's BPE, as Llama 2, Mistral and TinyLlama have it; read back and tried on texts.

    A file has no merges but a score for each token, by which any two neighbours are merged that make one. So the merges
    have to be all that the tokens allow, in the order of their scores.
    """
    text = json.loads(tokenizer.library.to_str())  # in which nothing is left to be filled in
    model = text["model"]
    prefixed, differences = space_rule(tokenizer, text)
    found: dict[str, Any] = {"model": "llama", "pre": "default", **spelled_out(tokenizer, text)}
    tokens, types = found["tokens"], found["token_type"]
    marks = {each["content"] for each in text["added_tokens"]}
    scores = rank_pieces(tokenizer, {token: n for token, n in model["vocab"].items() if token not in marks}, model)
    found["scores"] = [LEAST if types[n] == UNUSED else scores.get(token, 0.0) for n, token in enumerate(tokens)]
    for token in BYTE_TOKENS:
        types[model["vocab"][token]] = BYTE
    if model["unk_token"] is not None:
        number = found["unknown_token_id"] = model["vocab"][model["unk_token"]]
        types[number] = UNKNOWN
    found |= {"eos_token_id": tokenizer.end, "add_space_prefix": prefixed, **around(tokenizer)}
    excepted = [each for each in TRIED if each.startswith((" ", SPACE)) or any(mark in each for mark in marks)]
    compare_read_back(tokenizer, found, [each for each in TRIED if not differences or each not in excepted])
    return found


def compare_read_back(tokenizer: Foreign, keys: Mapping[str, Any], texts: Iterable[str]) -> None:
    """Raise ZooError where a tokenizer with these keys gives a text other numbers, or its numbers another text."""
    file = File(Path(tokenizer.name), {f"tokenizer.ggml.{key}": value for key, value in keys.items()}, {})
    again = read(file, len(keys["tokens"]))
    for text in texts:
        ids = tokenizer.encode(text)
        if again is None or again.encode(text) != ids or again.decode(ids) != tokenizer.decode(ids):
            raise ZooError(
                f"The tokenizer {tokenizer.name} gives other numbers as a GGUF file, of {text!r} for example: it is "
                "not exported."
            )


def describe_differences(tokenizer: Tokenizer) -> list[str]:
    """What llama.cpp does with texts that this tokenizer does not, in sentences."""
    if not isinstance(tokenizer, Foreign) or not json.loads(tokenizer.text)["model"].get("byte_fallback"):
        return []
    return space_rule(tokenizer, json.loads(tokenizer.library.to_str()))[1]


def space_rule(tokenizer: Foreign, text: Mapping[str, Any]) -> tuple[bool, list[str]]:
    """Whether a space is put before a text, and what llama.cpp does otherwise, in sentences.

    Raises ZooError where spaces are treated as SentencePiece's BPE does not, or a token has conditions.
    """
    model, before, rule = text["model"], text["pre_tokenizer"], text["normalizer"] or {}
    steps = rule["normalizers"] if rule.get("type") == "Sequence" else [rule] if rule else []
    prepended, spaces = {"type": "Prepend", "prepend": SPACE}, replaced({"String": " "}, SPACE)
    within = any(SPACE in token[1:] for token in model["vocab"])  # a token that is more than a word
    reason = None
    if model["type"] != "BPE" or model["dropout"] or model["ignore_merges"]:
        reason = "is no such BPE"
    elif model["continuing_subword_prefix"] or model["end_of_word_suffix"]:
        reason = "marks the parts of words"
    elif missing := [token for token in BYTE_TOKENS if token not in model["vocab"]]:
        reason = f"has no token {missing[0]}"
    elif conditions := [each for each in text["added_tokens"] if any(each[name] for name in CONDITIONS)]:
        reason = f"finds {conditions[0]['content']} with the spaces around it, or between words only"
    elif before is None and steps in ([prepended, spaces], [spaces, prepended], [spaces]):
        late = [each["content"] for each in text["added_tokens"] if each["normalized"]]
        return prepended in steps, [MARKS.format(listing(late[:3]))] if late else []
    elif before is None or before["type"] != "Metaspace" or before["replacement"] != SPACE or steps:
        reason = "splits or changes text before"
    elif before["split"] and within:
        reason = "has tokens of several words, and splits text into words"
    if reason:
        raise ZooError(
            f"The tokenizer {tokenizer.name} is not one that a GGUF file can name: that is SentencePiece's BPE, which "
            f"writes {SPACE} for spaces and has a token for each byte, and this one {reason}."
        )
    differences = {"first": [SPACES, BEHIND], "always": [SPACES], "never": []}
    return before["prepend_scheme"] != "never", differences[before["prepend_scheme"]]


def rank_pieces(tokenizer: Foreign, pieces: Mapping[str, int], model: Mapping[str, Any]) -> dict[str, float]:
    """A score for each piece: the earlier its merges, the higher; letters, which nothing makes, last.

    Pieces whose merges are mixed have one score, as runs of spaces do in Mistral's vocabulary. Raises ZooError unless
    the merges are all that the pieces allow, in the order in which these scores would list them.
    """
    pairs = [tuple(each.split(" ")) if isinstance(each, str) else tuple(each) for each in model["merges"]]
    made = [piece for pair in pairs if (piece := "".join(pair)) in pieces]
    last = {piece: number for number, piece in enumerate(made)}
    scores, group, end = dict[str, float](), 0, -1
    for number, piece in enumerate(made):
        if piece not in scores:
            group -= number > end
            scores[piece] = float(group)
        end = max(end, last[piece])
    letters = [piece for piece in sorted(pieces, key=pieces.__getitem__) if piece not in scores]
    scores |= {piece: float(group - 1 - number) for number, piece in enumerate(letters)}
    allowed = scored(list(pieces), [scores[piece] for piece in pieces])
    listed = [pair for pair in pairs if "".join(pair) in pieces]
    strange = next(iter(sorted({*allowed} ^ {*listed})), None)
    for one, other in zip(allowed, listed, strict=False):
        if "".join(one) != "".join(other):
            strange = strange or other
    if strange:
        raise ZooError(
            f"The tokenizer {tokenizer.name} is not one that a GGUF file can describe: that has a score for each token "
            f"and merges whatever makes one, and the merges of this one are others, {' + '.join(strange)} for example."
        )
    return scores


def around(tokenizer: Foreign) -> dict[str, Any]:
    """What the library puts before and behind a text by itself, and llama.cpp therefore too."""
    before, after = tokenizer.template
    if len(before) > 1 or after not in ([], [tokenizer.end]):
        raise ZooError(
            f"The tokenizer {tokenizer.name} puts {len(before)} tokens before a text and {len(after)} behind it; a "
            "GGUF file says one before it, and the one that ends a document behind it."
        )
    start = before[0] if before else tokenizer.start
    first = {} if start is None else {"bos_token_id": start}
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
