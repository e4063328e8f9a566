"""SentencePiece's tokenizers as GGUF files, beside sentencepiece itself and llama.cpp: the same numbers of every text.

The vocabulary is that of Mistral 7B, which comes with mistral-common; sentencepiece reads its file, llama.cpp (by
xllamacpp, whose server answers what a text's tokens are) and zoo the GGUF file that we write of it.
"""

import importlib.util
import json
import random
import sys
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("gguf", reason="gguf is not installed here: tox -e parity")
sys.path.insert(0, str(Path(__file__).parent.parent / "hub"))
import folders
import pieces

from zoo import checkpoints
from zoo.data.tokenizer import Tokenizer
from zoo.hub.gguf import write
from zoo.hub.gguf.vocabulary import TRIED, scored

pytestmark = pytest.mark.parity
MODEL = "tokenizer.model.v1"


def texts() -> list[str]:
    """Ordinary, strange and random texts, many of which begin with spaces."""
    rng, letters = random.Random(0), list(" abcdefgh\n\t  é中🎉▁ABC019.,'\"")
    found = [*(text for text in TRIED if "<" not in text), "a" * 300, "x y" * 50]
    found += ["".join(rng.choices(letters, k=rng.randrange(1, 40))) for _ in range(200)]
    found += [f"{before}{' ' * count}{after}" for count in range(1, 40) for before, after in (("x", "y"), ("", ""))]
    return found + [Path(json.__file__).read_text()[at : at + 400] for at in range(0, 8000, 377)]


def exported(path: Path, text: str, count: int, end: int = 2) -> tuple[Path, Tokenizer, Tokenizer]:
    """A GGUF file of a small Llama with a tokenizer and some rows to spare; the tokenizer, and as it is read back."""
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 1, "num_key_value_heads": 1}
    config = {**folders.LLAMA, **sizes, "vocab_size": count + 7, "eos_token_id": end, "num_hidden_layers": 1}
    folder = folders.write(path / "folder", config)
    (folder / "tokenizer.json").write_text(text)
    source = checkpoints.listed(folder)
    mine = Tokenizer.restore(source.about["tokenizer"])
    write(path / "model.gguf", source, tokenizer=mine)
    again = Tokenizer.restore(checkpoints.listed(path / "model.gguf").about["tokenizer"])
    return path / "model.gguf", mine, again


@pytest.fixture(scope="module", params=["llama2", "mistral"])
def mistral(request, tmp_path_factory):
    """sentencepiece over Mistral's file, our file of the same, its tokenizer, and as it is read back."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed here: tox -e parity")
    found = importlib.util.find_spec("mistral_common")
    if found is None:
        pytest.skip("mistral-common is not installed here: tox -e parity")
    model = sentencepiece.SentencePieceProcessor(model_file=str(Path(found.origin).parent / "data" / MODEL))
    count = model.get_piece_size()
    tokens = [model.id_to_piece(number) for number in range(count)]
    scores = [model.get_score(number) for number in range(count)]
    text = json.loads(pieces.sentencepiece(form=request.param))
    text["model"]["vocab"] = {token: number for number, token in enumerate(tokens)}
    text["model"]["merges"] = [list(pair) for pair in scored(tokens, scores)]  # as transformers' converter has them
    return model, *exported(tmp_path_factory.mktemp("mistral"), json.dumps(text), count), request.param


class Server:
    """llama.cpp over a file."""

    def __init__(self, path: Path) -> None:
        engine = pytest.importorskip("xllamacpp", reason="xllamacpp is not installed here: tox -e parity")
        asked = engine.CommonParams()
        asked.model.path, asked.n_ctx, asked.n_parallel, asked.warmup, asked.verbosity = str(path), 256, 1, False, -1
        asked.cpuparams.n_threads = 1
        self.server = engine.Server(asked)

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """The numbers of a text; `special`: with what stands before it, and marks that are written out."""
        body = json.dumps({"content": text, "add_special": special, "parse_special": special}).encode()
        asked = urllib.request.Request(
            f"{self.server.listening_address}/tokenize", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(asked) as answer:
            return json.loads(answer.read())["tokens"]


def test_the_numbers_are_sentencepiece_s(mistral):
    model, _, mine, again, form = mistral
    for text in texts():
        assert again.encode(text) == model.encode(text), text
        if form == "llama2" or not text.startswith((" ", "▁")):
            assert mine.encode(text) == model.encode(text), text


def test_the_numbers_are_llama_cpp_s(mistral):
    _, path, _, again, _ = mistral
    server = Server(path)
    for text in texts():
        assert server.encode(text) == again.encode(text), text
    for text in ("<s>hello", "a <s> b", "a<unk>b", "<s> x"):
        assert server.encode(text, special=True) == [*again.encode_prefix(), *again.encode(text)], text


@pytest.mark.parametrize("prefix", [True, False])
def test_a_small_vocabulary_with_tokens_of_the_user_is_llama_cpp_s(tmp_path, prefix):
    text = pieces.sentencepiece(form="llama2", prefix=prefix, more=("[INST]", "two  spaces"))
    path, mine, again = exported(tmp_path, text, 500)
    server = Server(path)
    for each in [*texts(), "a [INST] the two  spaces end", "[INST][INST] x"]:
        assert server.encode(each) == again.encode(each) == mine.encode(each), each


def test_a_byte_level_tokenizer_with_fewer_tokens_than_rows_is_llama_cpp_s(tmp_path):
    path, mine, again = exported(tmp_path, pieces.byte_level(), 340, end=1)
    server = Server(path)
    for each in texts():
        assert server.encode(each) == again.encode(each) == mine.encode(each), each
