"""Folders that transformers reads by zoo's own code: logits, padding, loss and generation through its own classes."""

import shutil

import pytest
import torch

from zoo import checkpoints
from zoo.checkpoints import folder as weights
from zoo.checkpoints.description import build, owners
from zoo.data.tokenizer import load
from zoo.errors import ZooError
from zoo.export.write import plan, write

transformers = pytest.importorskip("transformers", reason="transformers is not installed here: tox -e parity")
pytestmark = pytest.mark.parity

TOKENS = torch.tensor([[5, 9, 77, 3, 200, 41, 8, 6], [11, 12, 9, 9, 1, 0, 2, 150]])


@pytest.fixture(scope="module", params=["FIRE", "FoPE"])
def folder(request, tmp_path_factory):
    """A model with random weights, exported."""
    root = tmp_path_factory.mktemp(request.param)
    sizes = {"vocabulary": 257, "length": 64, "dim": 32, "layers": 2, "heads": 4, "kv_heads": 2}
    position = {"class_path": request.param, "init_args": {}}
    network = {"class_path": "zoo.decoder.Decoder", "init_args": {**sizes, "position": position, "std": 0.5}}
    torch.manual_seed(0)
    about = {"format": 1, "task": "LanguageModel", "network": network, "plugins": owners(network)}
    about["tokenizer"] = load("bytes").describe()
    weights.write(root / "from", about, build(network).state_dict(), "")
    found = checkpoints.listed(root / "from")
    write(found, plan(found), root / "hf")
    return root / "hf"


@pytest.fixture(scope="module")
def model(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)


def test_it_is_read_by_its_code_only(folder):
    with pytest.raises(ValueError, match="trust_remote_code"):
        transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)


@torch.no_grad()
def test_logits_and_loss_are_ours(folder, model):
    network = checkpoints.read(folder).network()
    expected = network(TOKENS)
    found = model(TOKENS, labels=TOKENS)
    torch.testing.assert_close(found.logits, expected)
    loss = torch.nn.functional.cross_entropy(expected[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten())
    torch.testing.assert_close(found.loss, loss)
    torch.testing.assert_close(model(TOKENS, logits_to_keep=1).logits, expected[:, -1:])
    some = torch.tensor([2, 5])
    torch.testing.assert_close(model(TOKENS, logits_to_keep=some).logits, expected[:, some])
    torch.testing.assert_close(model(TOKENS, labels=TOKENS, num_items_in_batch=28).loss, loss / 2)  # 14 are scored here


@torch.no_grad()
def test_padding_changes_no_number(model):
    alone = model(TOKENS[:1, 3:]).logits
    left = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1], [0] + 7 * [1]])
    torch.testing.assert_close(model(TOKENS, attention_mask=left).logits[:1, 3:], alone, rtol=1e-4, atol=1e-5)
    right = left.flip(1)
    shifted = torch.cat((TOKENS[:, 3:], TOKENS[:, :3]), 1)
    torch.testing.assert_close(model(shifted, attention_mask=right).logits[:1, :5], alone, rtol=1e-4, atol=1e-5)
    with pytest.raises(ZooError, match="has a gap"):
        model(TOKENS, attention_mask=torch.tensor([[1, 0, 1, 1, 1, 1, 1, 1]] * 2))


def test_it_generates(folder, model):
    found = model.generate(TOKENS[:1], max_new_tokens=4, do_sample=False, eos_token_id=None)
    network, ids = checkpoints.read(folder).network(), TOKENS[:1]
    with torch.no_grad():
        for _ in range(4):
            ids = torch.cat((ids, network(ids)[:, -1:].argmax(-1)), 1)
    assert found.tolist() == ids.tolist()
    assert transformers.AutoTokenizer.from_pretrained(folder)("Hello").input_ids == [72, 101, 108, 108, 111]


def test_generation_is_as_the_folder_says(folder, tmp_path):
    """What is exported of a folder of Hugging Face's keeps that file."""
    shutil.copytree(folder, tmp_path / "hf")
    said = transformers.GenerationConfig(max_new_tokens=3, do_sample=False, eos_token_id=[256, 7])
    said.save_pretrained(tmp_path / "hf")
    found = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", trust_remote_code=True)
    config = found.generation_config
    assert (config.max_new_tokens, config.eos_token_id, config.use_cache) == (3, [256, 7], False)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"dtype": torch.bfloat16}, "computes in float32"),
        ({"device_map": "auto"}, "without device_map='auto'"),
        ({"quantization_config": {"bits": 4}}, "without quantization_config"),
    ],
)
def test_what_it_does_not_serve_is_refused(folder, arguments, sentence):
    with pytest.raises((ZooError, ValueError), match=sentence):
        transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **arguments)


def test_what_it_is_not_asked_in_tokens(model, tmp_path):
    with pytest.raises(ZooError, match="no position_ids"):
        model(TOKENS, position_ids=torch.arange(8)[None])
    with pytest.raises(ZooError, match="zoo fit"):
        model.save_pretrained(tmp_path)
