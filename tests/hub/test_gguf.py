"""GGUF files: made by the package's writer or by ours, read as the folders that they were made of."""

import builtins
import json
import struct
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import folders
import pieces

from zoo import checkpoints
from zoo.checkpoints.stored import Held, Stored
from zoo.data.tokenizer import Tokenizer
from zoo.errors import ZooError
from zoo.hub.foreign import Foreign
from zoo.hub.gguf import vocabulary, write
from zoo.hub.made import Piled, Turned, rows

gguf = pytest.importorskip("gguf", reason="gguf is not installed: pip install 'positionzoo[gguf]'")

KINDS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "BF16")
LISTS = {"short_factor": [1.0, 1.1, 1.5, 2.0], "long_factor": [1.0, 2.0, 3.5, 4.0]}
ROPES = {
    "linear": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16},
    "yarn, all said": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "beta_fast": 8.0,
        "beta_slow": 2.0,
        "attention_factor": 1.2,
    },
    "llama3": {
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "longrope": {**LISTS, "original_max_position_embeddings": 16, "factor": 4.0},
}
GROUPED = {**folders.LLAMA, "architectures": None}
FAMILIES = {
    "llama": folders.LLAMA,
    "llama, tied, biases": {**folders.LLAMA, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    "mistral": {**GROUPED, "model_type": "mistral", "sliding_window": 9},
    "qwen2": {**GROUPED, "model_type": "qwen2"},
    "qwen3": {**GROUPED, "model_type": "qwen3", "head_dim": 16},
    "smollm3": {**GROUPED, "model_type": "smollm3", "num_hidden_layers": 4},
    "olmo2": {**GROUPED, "model_type": "olmo2"},
    "gpt_neox": {
        **{key: value for key, value in GROUPED.items() if key not in ("num_key_value_heads", "rms_norm_eps")},
        "model_type": "gpt_neox",
        "hidden_act": "gelu",
    },
    "gpt2": folders.GPT2,
}


def both(tmp_path, config):
    """A folder, and the file that we make of it."""
    folder = folders.write(tmp_path / "folder", {key: value for key, value in config.items() if value is not None})
    source = checkpoints.listed(folder)
    path = tmp_path / "model.gguf"
    write(path, source, tokenizer=Tokenizer.restore(source.about["tokenizer"]))
    return folder, path


def same(folder, path, count=60):
    """Logits of both."""
    torch.manual_seed(0)
    tokens = torch.randint(0, 250, (2, count))
    one, other = checkpoints.read(folder), checkpoints.read(path)
    with torch.no_grad():
        expected, found = one.network()(tokens), other.network()(tokens)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    return one.about["network"]["init_args"], other.about["network"]["init_args"]


@pytest.mark.parametrize("family", FAMILIES)
def test_families_come_back(tmp_path, family):
    folder, path = both(tmp_path, FAMILIES[family])
    one, other = same(folder, path)
    assert one == other
    theirs, found = checkpoints.read(folder).weights, checkpoints.read(path).weights
    assert all(torch.equal(theirs[name], found[name]) for name in {**theirs, **found})


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_ropes_come_back(tmp_path, rope, family):
    said = {"rope_type": rope, **ROPES[rope]}
    config = {**FAMILIES[family], "num_attention_heads": 2, "num_key_value_heads": 1, "hidden_size": 16}
    if rope == "yarn":
        config |= {"hidden_size": 128, "num_attention_heads": 2}  # zoo's YaRN is rounded from 32 channels on, as here
    if rope == "llama3":
        config |= {"hidden_size": 64}
    if family == "qwen2" and rope in ("llama3", "longrope"):
        with pytest.raises(ZooError, match=r"divisors of their own, which llama\.cpp reads in files of llama only"):
            both(tmp_path, {**config, "rope_scaling": said})
        return
    folder, path = both(tmp_path, {**config, "rope_scaling": said})
    for count in (12, 60):
        one, other = same(folder, path, count)
    assert other["reach"] == one["reach"]
    if rope != "longrope":
        assert one["length"] == other["length"]
        assert (
            one["position"]["init_args"]["extension"]["class_path"]
            == (other["position"]["init_args"]["extension"]["class_path"])
        )


def test_a_changed_base_is_a_base_and_other_waves_are_divisors(tmp_path):
    folder, _ = both(tmp_path, folders.LLAMA)
    source = checkpoints.listed(folder)
    exact = {"truncate": False, "fast": 9.0, "slow": 0.8}  # a ramp that llama.cpp, which rounds it, does not have
    for extension, own, name in (
        ("NTK", {}, None),
        ("ByParts", {}, "rope_freqs.weight"),
        ("YaRN", {**exact, "truncate": True}, None),
        ("YaRN", exact, "rope_factors_long.weight"),
    ):
        arguments = source.about["network"]["init_args"]
        arguments["position"]["init_args"]["extension"] = {"class_path": extension, "init_args": {"factor": 4.0, **own}}
        arguments["reach"] = 256
        write(tmp_path / "more.gguf", source)
        tensors = {tensor.name for tensor in gguf.GGUFReader(tmp_path / "more.gguf").tensors}
        assert {each for each in tensors if each.startswith("rope")} - {"rope_factors_short.weight"} == (
            {name} if name else set()
        )
        tokens = torch.arange(100)[None]
        with torch.no_grad():
            expected = checkpoints.build(source.about["network"])
            expected.load_state_dict({name: stored.tensor() for name, stored in source.weights.items()})
            found = checkpoints.read(tmp_path / "more.gguf").network()
            torch.testing.assert_close(found(tokens), expected.eval()(tokens), rtol=0, atol=1e-5)


def test_pairs_of_neighbours_are_written_as_they_are(tmp_path):
    folder, _ = both(tmp_path, folders.LLAMA)
    source = checkpoints.listed(folder)
    source.about["network"]["init_args"]["position"]["init_args"]["pairing"] = "interleaved"
    write(tmp_path / "pairs.gguf", source)
    model = checkpoints.build(source.about["network"])
    model.load_state_dict({name: stored.tensor() for name, stored in source.weights.items()})
    tokens = torch.arange(40)[None]
    with torch.no_grad():
        found = checkpoints.read(tmp_path / "pairs.gguf").network()(tokens)
        torch.testing.assert_close(found, model.eval()(tokens), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_lies_as_it_is(tmp_path, dtype):
    folder, _ = both(tmp_path, folders.LLAMA)
    source = checkpoints.listed(folder)
    write(tmp_path / "half.gguf", source, dtype=dtype)
    found = checkpoints.listed(tmp_path / "half.gguf")
    for name, stored in found.weights.items():
        expected = source.weights[name].tensor()
        assert stored.dtype == (dtype if expected.ndim > 1 else torch.float32)
        torch.testing.assert_close(stored.tensor().float(), expected.to(stored.dtype).float(), rtol=0, atol=0)
    assert type(found.weights["embedding.weight"]) is Stored
    assert type(found.weights["trunk.blocks.0.feed_forward.up.weight"]) is Stored


def quantised(path, tokens=True, drop="", **said):
    """A file as the package writes one, with blocks of several kinds, and what its tensors are."""
    config = {**folders.LLAMA, "hidden_size": 64, "intermediate_size": 96, "tie_word_embeddings": True}
    wide = folders.tensors(config)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    writer, plain = gguf.GGUFWriter(path, said.pop("arch", "llama")), {}
    keys = {
        "block_count": 2,
        "context_length": 64,
        "embedding_length": 64,
        "feed_forward_length": 96,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "rope.dimension_count": 16,
    }
    for key, value in {**keys, **said}.items():
        if isinstance(value, str):
            writer.add_string(f"llama.{key}", value)
        elif isinstance(value, float):
            writer.add_float32(f"llama.{key}", value)
        elif value is not None:
            writer.add_uint32(f"llama.{key}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    if tokens:
        for key, value in vocabulary.described(vocabularies(folders.tokenizer())).items():
            if key in ("model", "pre"):
                writer.add_string(f"tokenizer.ggml.{key}", value)
            elif key == "eos_token_id":
                writer.add_uint32(f"tokenizer.ggml.{key}", value)
            elif isinstance(value, list) and value:
                writer.add_array(f"tokenizer.ggml.{key}", value)
    for number, (theirs, tensor) in enumerate(wide.items()):
        name = names.get_name(f"model.{theirs}", (".weight",))
        if name == drop:
            continue
        if tensor.ndim == 1:
            writer.add_tensor(name, tensor.numpy())
            plain[theirs] = tensor
            continue
        kind = gguf.GGMLQuantizationType[KINDS[number % len(KINDS)]]
        heads = {"q_proj.weight": 4, "k_proj.weight": 2}.get(theirs[-13:], 0)
        lying = tensor
        if heads:
            lying = tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(tensor.shape)
        blocks = gguf.quants.quantize(lying.numpy(), kind)
        writer.add_tensor(name, blocks, raw_dtype=kind)
        back = torch.from_numpy(gguf.quants.dequantize(blocks, kind)).reshape(tensor.shape)
        if heads:
            back = back.unflatten(0, (heads, -1, 2)).transpose(1, 2).reshape(tensor.shape)
        plain[theirs] = back
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return config, plain


def vocabularies(text):
    """A tokenizer."""
    from zoo.hub.foreign import Foreign

    return Foreign("mine", text, end="<|endoftext|>")


def test_blocks_become_float32_when_they_are_read(tmp_path):
    config, plain = quantised(tmp_path / "model.gguf", tokens=False)
    folder = folders.write(tmp_path / "folder", config, plain)
    same(folder, tmp_path / "model.gguf")
    found = checkpoints.listed(tmp_path / "model.gguf")
    for stored in found.weights.values():
        whole = stored.tensor()
        flat = whole.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        assert b"".join(bytes(chunk) for chunk in stored.chunks()) == flat
        assert stored.page(len(flat) // 2 - 5, 100) == flat[len(flat) // 2 - 5 :][:100]
        half = range(1, max(2, whole.shape[0] // 2))
        torch.testing.assert_close(rows(stored, half).tensor(), whole[1 : half.stop], rtol=0, atol=0)


def test_what_is_made_has_rows():
    matrix = torch.arange(12.0).reshape(3, 4)
    turned = Turned(matrix.dtype, (4, 3), Stored.of(matrix).runs)
    piled = Piled(torch.float32, (5, 3), (), ((turned, range(1, 4)), (Stored.of(torch.ones(2, 3).half()), range(2))))
    expected = torch.cat([matrix.mT[1:], torch.ones(2, 3)])
    assert torch.equal(piled.tensor(), expected)
    assert torch.equal(rows(piled, range(2, 4)).tensor(), expected[2:4])
    assert isinstance(rows(Stored.of(matrix), range(1, 2)).runs[0], Held)


def test_the_tokenizer_is_in_the_file(tmp_path):
    folder, path = both(tmp_path, folders.LLAMA)
    one, other = (Tokenizer.restore(checkpoints.listed(each).about["tokenizer"]) for each in (folder, path))
    text = "The end.<|endoftext|> Über  42\n\tünd 中文 don't"
    assert one.encode(text) == other.encode(text)
    assert other.decode(other.encode(text)) == one.decode(one.encode(text))
    assert (one.end, one.vocabulary) == (other.end, other.vocabulary)


def test_what_stands_before_a_text_is_said():
    """Llama 3's tokenizer puts a token before every text, and so does llama.cpp then; zoo itself puts none."""
    text = json.loads(folders.tokenizer())
    plain = vocabulary.described(Foreign("x", json.dumps(text)))
    assert (plain["add_bos_token"], plain["add_eos_token"], plain.get("bos_token_id")) == (False, False, None)
    text["added_tokens"].append({**text["added_tokens"][0], "id": 257, "content": "<s>"})
    text["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [257], "tokens": ["<s>"]}},
    }
    told = vocabulary.described(tokenizer := Foreign("x", json.dumps(text)))
    assert (told["add_bos_token"], told["add_eos_token"], told["bos_token_id"]) == (True, False, 257)
    assert 257 not in tokenizer.encode("a")
    text["post_processor"]["single"].insert(0, text["post_processor"]["single"][0])
    with pytest.raises(ZooError, match="2 tokens before a text"):
        vocabulary.described(Foreign("x", json.dumps(text)))


def test_ranks_of_tiktoken_become_merges():
    from zoo.data.tokenizer import train

    texts = ["the cat sat on the mat, and the other cat's hat was there too " * 9, "nothing like 1234 numbers"] * 9
    mine = train(texts, 300)
    described = vocabulary.described(mine)
    model = {
        "vocab": {token: number for number, token in enumerate(described["tokens"])},
        "merges": [merge.split(" ") for merge in described["merges"]],
    }
    text = vocabulary.whole(
        {"type": "BPE", **model}, vocabulary.words(vocabulary.GPT2), vocabulary.words(vocabulary.GPT2)
    )
    text["added_tokens"] = [vocabulary.added(mine.end, "<|endoftext|>", special=True)]
    theirs = vocabularies(json.dumps(text))
    for sentence in [*texts, "Über the  other 99 cat's hat\n\n"]:
        assert theirs.encode(sentence) == mine.encode(sentence)


def test_sentencepiece_merges_by_score(tmp_path):
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "ab", "▁ab", "ba"]
    scores = [0.0] * 259 + [-9.0, -9.0, -9.0, -1.0, -3.0, -2.0]
    text = vocabulary.sentences({"scores": scores, "unknown_token_id": 0}, tokens)
    text["added_tokens"] = [vocabulary.added(2, "</s>", special=True)]
    from zoo.hub.foreign import Foreign

    found = Foreign("pieces", json.dumps(text), end=2)
    assert found.encode("ab aba") == [tokens.index(token) for token in ("▁ab", "▁ab", "a")]
    assert found.encode("é") == [tokens.index(token) for token in ("▁", "<0xC3>", "<0xA9>")]
    assert found.decode(found.encode("ab é")) == "ab é"


HOSTILE = (
    "The quick brown fox",
    " one space before the fox",
    "   three, and  two within, and some behind   ",
    " ",
    "    ",
    "",
    "\n",
    " \n\tthe",
    "naïve Größe 中文 🎉👩‍👩‍👧 é",
    "▁the ▁▁ of  ▁",
    "def f(x):\n    return x ** 2\n",
    "\x00\x7f\u200b\u00a0the\u3000end",
    "the" * 40,
)


def exported(tmp_path, text, rows=512):
    """A Llama with a tokenizer, the file that we make of it, its keys, and the tokenizers of both."""
    config = {**folders.LLAMA, "vocab_size": rows, "eos_token_id": 2, "bos_token_id": 1}
    folder = folders.write(tmp_path / "folder", config)
    (folder / "tokenizer.json").write_text(text)
    source = checkpoints.listed(folder)
    mine = Tokenizer.restore(source.about["tokenizer"])
    notes = write(tmp_path / "model.gguf", source, tokenizer=mine)
    keys = {
        name.removeprefix("tokenizer.ggml."): field.contents()
        for name, field in gguf.GGUFReader(tmp_path / "model.gguf").fields.items()
    }
    again = Tokenizer.restore(checkpoints.listed(tmp_path / "model.gguf").about["tokenizer"])
    return mine, again, keys, notes


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("start", [True, False])
@pytest.mark.parametrize("form", ["llama2", "mistral"])
def test_sentencepiece_is_written(tmp_path, form, prefix, start):
    """As Llama 2, Mistral and TinyLlama have it, beside the plainest form of SentencePiece's own rule."""
    text = pieces.sentencepiece(form=form, prefix=prefix, start=start, more=("[INST]", "two  spaces"))
    mine, again, keys, notes = exported(tmp_path, text)
    assert (keys["model"], keys["pre"], keys["add_space_prefix"], keys["add_bos_token"]) == (
        "llama",
        "default",
        prefix,
        start,
    )
    assert (keys["eos_token_id"], keys["unknown_token_id"], keys.get("bos_token_id")) == (2, 0, 1 if start else None)
    count = mine.vocabulary
    assert [len(keys[name]) for name in ("tokens", "scores", "token_type")] == [512] * 3
    assert keys["tokens"][count:] == [f"[PAD{number}]" for number in range(count, 512)]
    assert keys["token_type"][count - 2 :] == [4, 4] + [5] * (512 - count)
    assert keys["token_type"][:259] == [2, 3, 3] + [6] * 256
    assert (again.vocabulary, again.end, again.start, again.encode_prefix()) == (count, 2, mine.start, [1] * start)
    differs = form == "mistral" and prefix
    assert notes == [vocabulary.SPACES, vocabulary.BEHIND] * differs
    for each in HOSTILE:
        ids = again.encode(each)
        assert ids == pieces.encode_by_scores(each, keys["tokens"], keys["scores"], prefix=prefix), each
        assert again.decode(ids) == each.replace("▁", " "), "what begins with a space keeps it"
        if not differs or not each.startswith((" ", "▁")):
            assert ids == mine.encode(each), each
    for each in ("a [INST] the two  spaces", "the <s> and </s>", "<unk>"):
        if not differs:
            assert again.encode(each) == mine.encode(each)
        assert prefix or again.decode(again.encode(each)) == each  # else a space is put behind each mark


def test_what_llama_cpp_does_otherwise_is_said(tmp_path):
    text = json.loads(pieces.sentencepiece(form="llama2"))
    text["added_tokens"][1]["normalized"] = True  # as in the first files of Llama 2
    assert exported(tmp_path / "a", json.dumps(text))[-1] == [vocabulary.MARKS.format("<s>")]
    text = json.loads(pieces.sentencepiece())
    text["pre_tokenizer"]["prepend_scheme"] = "always"
    assert exported(tmp_path / "b", json.dumps(text))[-1] == [vocabulary.SPACES]
    assert vocabulary.describe_differences(Tokenizer("bytes")) == []


def test_a_text_that_begins_with_a_space_keeps_it(tmp_path):
    """SentencePiece puts its own space before it; transformers, by Metaspace, does not."""
    keys = {"scores": [0.0] * 259 + [-1.0, -2.0, -3.0, -4.0], "unknown_token_id": 0}
    tokens = [*pieces.SPECIAL, *pieces.BYTES, "▁▁", "▁a", "▁", "a"]
    added = [vocabulary.added(2, "</s>", special=True)]

    def build(**more):
        return Foreign(
            "x", json.dumps({**vocabulary.sentences({**keys, **more}, tokens), "added_tokens": added}), end=2
        )

    names = {number: token for number, token in enumerate(tokens)}
    for more, expected in (
        ({}, {"a": "▁a", " a": "▁▁ a", "  a": "▁▁ ▁a", " ": "▁▁", "": "", "a ": "▁a ▁"}),
        ({"add_space_prefix": False}, {"a": "a", " a": "▁a", "  a": "▁▁ a", " ": "▁"}),
        ({"remove_extra_whitespaces": True}, {"a": "▁a", "   a   a  ": "▁a ▁a", " ": "", "\n a": "▁ <0x0A> ▁a"}),
    ):
        found = build(**more)
        for text, told in expected.items():
            assert [names[number] for number in found.encode(text)] == told.split(), (more, text)
            if "remove_extra_whitespaces" not in more:
                assert found.decode(found.encode(text)) == text


def test_rows_of_the_embedding_without_a_token_are_counted(tmp_path):
    """llama.cpp takes the number of tokens for that of rows."""
    _, path = both(tmp_path, folders.LLAMA)
    reader = gguf.GGUFReader(path)
    rows = next(tensor.shape[1] for tensor in reader.tensors if tensor.name == "token_embd.weight")
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    assert (rows, len(tokens), tokens[257:]) == (300, 300, [f"[PAD{number}]" for number in range(257, 300)])
    again = Tokenizer.restore(checkpoints.listed(path).about["tokenizer"])
    assert (again.vocabulary, again.decode([65, 299])) == (257, f"{again.decode([65])}\ufffd")


def changed(**more):
    """SentencePiece's tokenizer.json with other keys."""
    return json.dumps({**json.loads(pieces.sentencepiece(form="llama2")), **more})


def with_model(**more):
    """SentencePiece's tokenizer.json with another model."""
    return changed(model={**json.loads(pieces.sentencepiece())["model"], **more})


LOWERED = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, vocabulary.replaced({"String": " "}, "▁")]}
WORDS = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}


def test_the_command_says_what_llama_cpp_does_otherwise(tmp_path, capsys):
    config = {**folders.LLAMA, "vocab_size": 512, "eos_token_id": 2}
    for form, told in (("llama2", False), ("mistral", True)):
        folder = folders.write(tmp_path / form, config)
        (folder / "tokenizer.json").write_text(pieces.sentencepiece(form=form))
        status, said = folders.zoo(capsys, "export", folder, "--to", "gguf", "--check", "waves")
        assert status == 0, said
        assert ("llama.cpp, as SentencePiece does, puts a space before a text that begins with one" in said) == told


UNFIT = {
    "merges that are not all": (lambda: pieces.sentencepiece(closed=False), "the merges of this one are others"),
    "another order": (
        lambda: with_model(merges=json.loads(pieces.sentencepiece())["model"]["merges"][::-1]),
        None,  # by which the last are the best: scores say so too
    ),
    "a normalizer": (lambda: changed(normalizer=LOWERED), "this one splits or changes text before"),
    "words only": (lambda: changed(normalizer=None, pre_tokenizer=WORDS), "has tokens of several words, and splits"),
    "dropout": (lambda: with_model(dropout=0.1), "this one is no such BPE"),
    "whole words first": (lambda: with_model(ignore_merges=True), "this one is no such BPE"),
    "marks": (lambda: with_model(end_of_word_suffix="</w>"), "marks the parts of words"),
    "no byte": (
        lambda: with_model(
            vocab={t: n for t, n in json.loads(pieces.sentencepiece())["model"]["vocab"].items() if t != "<0x0A>"}
        ),
        "has no token <0x0A>",
    ),
    "spaces around": (
        lambda: changed(added_tokens=[pieces.added(n, t, lstrip=n == 1) for n, t in enumerate(pieces.SPECIAL)]),
        "finds <s> with the spaces around it",
    ),
    "two before a text": (
        lambda: pieces.sentencepiece().replace(
            '"single": [', '"single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, ', 1
        ),
        "puts 2 tokens before a text",
    ),
    "WordPiece": (lambda: pieces.words("wordpiece"), "is not one that a GGUF file can name"),
}


@pytest.mark.parametrize("unfit", UNFIT)
def test_what_no_score_describes_is_refused(tmp_path, unfit):
    text, message = UNFIT[unfit]
    tokenizer = Foreign("mine", text())
    if message is None:
        vocabulary.described(tokenizer)
        return
    with pytest.raises(ZooError, match=message) as error:
        vocabulary.described(tokenizer)
    assert "mine" in str(error.value)


BAD = {
    "architecture": ({"arch": "gemma9"}, "of the architecture gemma9, and zoo reads llama"),
    "a scaling": ({"rope.scaling.type": "dynamic", "rope.scaling.factor": 2.0}, "rope.scaling.type dynamic"),
    "a key": ({"logit_scale": 2.0}, "has llama.logit_scale, which zoo does not know"),
    "a key of the rope": ({"rope.scaling.alpha": 2.0}, "llama.rope.scaling.alpha"),
    "a factor": ({"rope.scaling.yarn_ext_factor": 0.5}, "yarn_ext_factor 0.5"),
    "experts": ({"expert_count": 8}, "expert_count"),
    "a missing key": ({"block_count": None}, "does not say llama.block_count"),
    "a width": ({"attention.value_length": 8}, "different widths"),
    "part of a head": ({"rope.dimension_count": 8}, "turns whole heads"),
    "a missing tensor": ({"drop": "blk.1.ffn_up.weight"}, "there is no blk.1.ffn_up.weight"),
    "no embedding": ({"drop": "token_embd.weight"}, "there is no token_embd.weight"),
    "a shape": ({"feed_forward_length": 90}, r"blk.0.ffn_gate.weight is \[96, 64\] and should be \[90, 64\]"),
}


@pytest.mark.parametrize("bad", BAD)
def test_what_is_not_understood_is_refused(tmp_path, bad):
    said, message = BAD[bad]
    quantised(tmp_path / "bad.gguf", tokens=False, **said)
    with pytest.raises(ZooError, match=message) as error:
        checkpoints.listed(tmp_path / "bad.gguf")
    assert "\n" not in str(error.value)


def test_damaged_files(tmp_path):
    _, path = both(tmp_path, folders.LLAMA)
    whole, bad = path.read_bytes(), tmp_path / "bad.gguf"
    for content, message in (
        (b"", "truncated"),
        (b"PK\x03\x04" + whole[4:], "not a GGUF file"),
        (whole[:4] + struct.pack("<I", 9) + whole[8:], "version 9"),
        (whole[:200], "truncated: it ends within its head"),
        (whole[:-100], "is truncated: it has"),
        (whole[:24] + struct.pack("<Q", 2**60) + whole[32:], "truncated"),
    ):
        bad.write_bytes(content)
        with pytest.raises(ZooError, match=message):
            checkpoints.listed(bad)
    name = whole.index(b"output_norm.weight")
    at = name + len("output_norm.weight") + 4 + 8
    for start, new, message in (
        (name, b"output.norm_weight", "there is no output_norm.weight"),
        (at - 12, struct.pack("<I", 0), "output_norm.weight has 0 axes"),
        (at, struct.pack("<I", 8), r"output_norm.weight is \[32\], and its blocks hold 32 numbers"),
    ):
        bad.write_bytes(whole[:start] + new + whole[start + len(new) :])
        with pytest.raises(ZooError, match=message):
            checkpoints.listed(bad)
    for kind, called in ((99, "number 99"), (15, "Q8_K")):
        bad.write_bytes(whole[:at] + struct.pack("<I", kind) + whole[at + 4 :])
        with pytest.raises(ZooError, match=rf"output_norm.weight in a quantisation that is not known here \({called}"):
            checkpoints.listed(bad)


def raw(path, keys, tensors):
    """A file of keys that are integers, and of tensors of four numbers each."""

    def text(word):
        return struct.pack("<Q", len(word)) + word.encode()

    head = b"".join(text(key) + struct.pack("<II", 4, value) for key, value in keys)
    head += b"".join(text(name) + struct.pack("<IQIQ", 1, 4, 0, 0) for name in tensors)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)) + head + bytes(99))
    return path


@pytest.mark.parametrize(
    ("keys", "tensors", "message"),
    [
        ([("general.alignment", 0)], ["a"], r"says general\.alignment 0"),
        ([], ["a", "a"], "two of its keys or tensors have one name"),
        ([("x", 1), ("x", 2)], ["a"], "two of its keys or tensors have one name"),
    ],
)
def test_heads_that_make_no_sense(tmp_path, keys, tensors, message):
    with pytest.raises(ZooError, match=message):
        checkpoints.listed(raw(tmp_path / "a.gguf", keys, tensors))


@pytest.mark.parametrize(
    "said",
    [
        {"token_type": 5},
        {"merges": [1]},
        {"model": "llama", "scores": [0.0]},
        {"model": "llama", "scores": [0.0] * 3, "unknown_token_id": 9},
        {"eos_token_id": -1},
    ],
    ids=str,
)
def test_tokenizers_that_make_no_sense(tmp_path, said):
    from zoo.hub.gguf.file import File

    keys = {"model": "gpt2", "tokens": ["a", "b", "ab"], "eos_token_id": 0, **said}
    file = File(tmp_path / "x.gguf", {f"tokenizer.ggml.{key}": value for key, value in keys.items()}, {})
    with pytest.raises(ZooError):
        vocabulary.read(file, 3)


def test_without_the_package(tmp_path, monkeypatch):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    real = builtins.__import__

    def without(name, *rest, **more):
        if name == "gguf":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ZooError, match=r"pip install 'positionzoo\[gguf\]'"):
        checkpoints.listed(tmp_path / "model.gguf")


def extended(name, **arguments):
    """The position of RoPE with an extension."""
    return {
        "position": {"class_path": "RoPE", "init_args": {"extension": {"class_path": name, "init_args": arguments}}}
    }


CANNOT = {
    "another encoding": ({"position": {"class_path": "ALiBi", "init_args": {}}}, "these are ALiBi"),
    "a kernel": ({"kernel": {"class_path": "Sigmoid", "init_args": {}}}, "by the kernel Sigmoid"),
    "sinks": ({"window": 9, "sinks": 4}, "sinks 4"),
    "relocation": (
        {
            "position": {
                "class_path": "RoPE",
                "init_args": {"extension": {"class_path": "SelfExtend", "init_args": {"factor": 2}}},
            }
        },
        "cannot describe SelfExtend",
    ),
    "dynamic": (
        extended("DynamicNTK"),
        "cannot describe DynamicNTK",
    ),
}


@pytest.mark.parametrize("what", CANNOT)
def test_what_a_file_cannot_say_is_not_written(tmp_path, what):
    changed, message = CANNOT[what]
    folder, _ = both(tmp_path, folders.LLAMA)
    source = checkpoints.listed(folder)
    source.about["network"]["init_args"] |= changed
    with pytest.raises(ZooError, match=message):
        write(tmp_path / "not.gguf", source)
    assert not list(tmp_path.glob("*not.gguf*"))
