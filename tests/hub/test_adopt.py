"""Weights of another program: torch's own encoder is the oracle, and a network that somebody else trained."""

import json
import lzma
import os
import sys
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from zoo_positions.learned import Learned

from zoo import checkpoints, cli
from zoo.data.augment import RGB
from zoo.data.tokenizer import Tokenizer
from zoo.errors import ZooError
from zoo.hub.adopt import adopt
from zoo.tasks import ImageClassifier, LanguageModel

NAMES = {
    "embedding.{kind}": "patch_embed.proj.{kind}",
    "prefix": "cls",
    "trunk.positions.0.table": "place",
    "trunk.blocks.{layer}.attention.qkv.{kind}": "transformer.layers.{layer}.self_attn.in_proj_{kind}",
    "trunk.blocks.{layer}.attention.out.{kind}": "transformer.layers.{layer}.self_attn.out_proj.{kind}",
    "trunk.blocks.{layer}.feed_forward.up.{kind}": "transformer.layers.{layer}.linear1.{kind}",
    "trunk.blocks.{layer}.feed_forward.down.{kind}": "transformer.layers.{layer}.linear2.{kind}",
    "trunk.blocks.{layer}.norm{which}.{kind}": "transformer.layers.{layer}.norm{which}.{kind}",
    "trunk.norm.{kind}": "mlp_head.0.{kind}",
    "head.{kind}": "mlp_head.1.{kind}",
}
BIASES = {"qkv_bias": True, "out_bias": True, "feed_forward_bias": True}
CIFAR = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
SHARED = Path(os.environ.get("ZOO_SHARED", "/nowhere"), "data")


class Theirs(nn.Module):
    """A vision transformer as torch's own layers make one."""

    def __init__(self, norm_first=False, activation="relu", layers=3):
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, 32, 4, stride=4)})
        self.cls_token, self.pos_embed = (nn.Parameter(torch.randn(1, count, 32)) for count in (1, 17))
        layer = nn.TransformerEncoderLayer(32, 4, 48, 0.0, activation, batch_first=True, norm_first=norm_first)
        self.transformer = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.mlp_head = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 7))
        for parameter in self.parameters():  # biases and norms too: what is 0 or 1 would hide a mistake
            nn.init.normal_(parameter, std=0.3)

    def forward(self, images):
        patches = self.patch_embed["proj"](images).flatten(2).mT
        x = torch.cat((self.cls_token.expand(len(images), -1, -1), patches), 1) + self.pos_embed
        return self.mlp_head(self.transformer(x)[:, 0])


def ours(**more):
    known = {
        "classes": 7,
        "channels": 3,
        "size": (16, 16),
        "patch": 4,
        "dim": 32,
        "layers": 3,
        "heads": 4,
        "hidden": 48,
    }
    known |= {"norm_at": "stream", "norm": "LayerNorm", "eps": 1e-5, "feed_forward": "ReLU", "position": Learned}
    return ImageClassifier(**{**known, **BIASES, **more})


def split(weights):
    """Their one table has a row for the class token, which ours adds to it."""
    found = {name: torch.as_tensor(weight) for name, weight in weights.items()}
    place = found.pop("pos_embed")[0]
    return {"cls": found.pop("cls_token")[0] + place[:1], "place": place[1:], **found}


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    return Theirs().eval()


@pytest.fixture(scope="module")
def weights(theirs):
    return split(theirs.state_dict())


def logits(network, images):
    with torch.inference_mode():
        return deepcopy(network).double()(images.double()).float()


def normal(pictures, mean, std):
    return (pictures - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)


@pytest.mark.parametrize("norm_at", ["stream", "before"])
@pytest.mark.parametrize(("feed_forward", "activation"), [("ReLU", "relu"), ("GELU", "gelu")])
def test_torchs_encoder_gives_the_same_logits(tmp_path, norm_at, feed_forward, activation):
    torch.manual_seed(1)
    model = Theirs(norm_first=norm_at == "before", activation=activation).eval()
    adopt(tmp_path / "vit", ours(norm_at=norm_at, feed_forward=feed_forward), split(model.state_dict()), NAMES)
    other = "before" if norm_at == "stream" else "stream"
    adopt(tmp_path / "other", ours(norm_at=other, feed_forward=feed_forward), split(model.state_dict()), NAMES)
    images = torch.randn(5, 3, 16, 16)
    found, wrong = (logits(checkpoints.read(tmp_path / name).network(), images) for name in ("vit", "other"))
    assert torch.allclose(found, logits(model, images), atol=1e-5)
    assert not torch.allclose(wrong, logits(model, images), atol=1e-2)


def test_gradients_are_torchs_and_recomputation_changes_none(theirs, weights, tmp_path):
    adopt(tmp_path / "vit", ours(), weights, NAMES)
    images, (network, again) = torch.randn(5, 3, 16, 16), (checkpoints.read(tmp_path / "vit").network() for _ in "ab")
    again.train().trunk.checkpointing = True
    for model in (theirs, network, again):
        model.zero_grad()
        model(images).logsumexp(-1).sum().backward()
    for name, grad in (
        ("norm1", lambda block: block.norm1.weight.grad),
        ("norm2", lambda block: block.norm2.bias.grad),
    ):
        for mine, same, other in zip(network.trunk.blocks, again.trunk.blocks, theirs.transformer.layers, strict=True):
            assert torch.equal(grad(mine), grad(same)), name
            assert torch.allclose(grad(mine), grad(other), atol=1e-4), name


def test_pictures_are_normalised_as_zoos_are(tmp_path, theirs, weights):
    pictures = torch.rand(5, 3, 16, 16)
    odd = (0.1, 0.5, 0.9), (0.5, 0.1, 0.25)
    adopt(tmp_path / "vit", ours(), weights, NAMES, normalized=odd)
    network = checkpoints.read(tmp_path / "vit").network()
    found = logits(network, normal(pictures, *RGB))
    assert torch.allclose(found, logits(theirs, normal(pictures, *odd)), atol=1e-4)
    assert not torch.allclose(found, logits(theirs, normal(pictures, *RGB)), atol=1e-2)


def test_a_language_model_of_separate_matrices(tmp_path):
    """Queries, keys and values, gate and value apart; tied; 16 bits; and it writes text."""
    torch.manual_seed(2)
    shape = {"vocabulary": 257, "length": 16, "dim": 16, "layers": 2, "heads": 2, "kv_heads": 1, "hidden": 24}
    task = LanguageModel(**shape)
    task.configure_model()
    own = {name: torch.randn_like(each).bfloat16() for name, each in task.network.state_dict().items()}
    weights = {"wte": own["embedding.weight"], "norm": own["trunk.norm.weight"]}
    for layer in range(2):
        prefix, parts = f"trunk.blocks.{layer}.", {}
        parts["q"], parts["k"], parts["v"] = own[f"{prefix}attention.qkv.weight"].split((16, 8, 8))
        parts["gate"], parts["up"] = own[f"{prefix}feed_forward.up.weight"].split(24)
        parts |= {"o": own[f"{prefix}attention.out.weight"], "down": own[f"{prefix}feed_forward.down.weight"]}
        parts |= {which: own[f"{prefix}norm{which}.weight"] for which in "12"}
        weights |= {f"h.{layer}.{name}": part for name, part in parts.items()}
    block, names = "trunk.blocks.{i}.", {"embedding.weight": "wte", "head.weight": "wte", "trunk.norm.weight": "norm"}
    names |= {f"{block}attention.qkv.weight": ["h.{i}.q", "h.{i}.k", "h.{i}.v"]}
    names |= {f"{block}feed_forward.up.weight": ["h.{i}.gate", "h.{i}.up"], f"{block}norm{{n}}.weight": "h.{i}.{n}"}
    names |= {f"{block}attention.out.weight": "h.{i}.o", f"{block}feed_forward.down.weight": "h.{i}.down"}
    adopt(tmp_path / "text", LanguageModel(**shape), weights, names, tokenizer=Tokenizer("bytes"))
    found = checkpoints.read(tmp_path / "text")
    for name, tensor in found.network().state_dict().items():
        same = own["embedding.weight" if name == "head.weight" else name]
        assert torch.equal(tensor, same.float()), name
    cli.run(["generate", str(tmp_path / "text"), "--prompt", "a", "--tokens", "3"])
    more = {**weights, "out": weights["wte"] + 1}
    with pytest.raises(ZooError, match=r"head\.weight is tied to another tensor"):
        adopt(tmp_path / "untied", LanguageModel(**shape), more, {**names, "head.weight": "out"})
    assert not (tmp_path / "untied").exists()


@pytest.mark.parametrize(
    ("names", "weights", "said"),
    [
        ({"head.{kind}": "mlp_head.{kind}"}, {}, "head.weight is to be made of mlp_head.weight, which is not there"),
        ({"heads.{kind}": "mlp_head.1.{kind}"}, {}, "There is no heads.{kind} in this network"),
        ({"trunk.nrom.weight": "place"}, {}, "Did you mean trunk.norm.weight"),
        (
            {"head.weight": "mlp_head.1.weight"},
            {},
            "What head.weight is made of is said twice: under head.{kind}, head.w",
        ),
        (
            {"prefix": ["cls", "place"]},
            {},
            "prefix is [1, 32] here and cannot be made of cls, [1, 32], place, [16, 32]",
        ),
        (
            {"prefix": ["cls", "mlp_head.1.weight", "mlp_head.1.bias"]},
            {},
            "cannot be made of cls, [1, 32], mlp_head.1.w",
        ),
        ({"prefix": []}, {}, "prefix is [1, 32] here and cannot be made of none"),
        ({"prefix": "cls.{kind}"}, {}, "cls.{kind} has braces that prefix, of which"),
        ({"head.{kind}": None}, {}, "Nothing says what to make of theirs: mlp_head.1.weight, mlp_head.1.bias."),
        ({}, {"steps": torch.tensor(3)}, "Nothing says what to make of theirs: steps."),
        (
            {"trunk.positions.0.table": None},
            {"place": None},
            "Nothing says what to make ours of: trunk.positions.0.table",
        ),
        (
            {"trunk.positions.0.table": "mlp_head.1.bias"},
            {},
            "table is [16, 32] here and cannot be made of mlp_head.1.b",
        ),
    ],
)
def test_what_is_on_one_side_only_is_refused(tmp_path, theirs, names, weights, said):
    def without(mapping):
        return {name: each for name, each in mapping.items() if each is not None}

    weights = without({**split(theirs.state_dict()), **weights})
    with pytest.raises(ZooError) as error:
        adopt(tmp_path / "vit", ours(), weights, without({**NAMES, **names}))
    assert said in str(error.value)
    assert not (tmp_path / "vit").exists()


def test_other_refusals(tmp_path, weights):
    (tmp_path / "vit").mkdir()
    with pytest.raises(ZooError, match="vit exists"):
        adopt(tmp_path / "vit", ours(), weights, NAMES)
    with pytest.raises(ZooError, match="needs `classes`"):
        adopt(tmp_path / "new", ours(classes=None), weights, NAMES)
    for wrong in (((0.5,), (0.5,)), ((0.5, 0.5, 0.5), (0.5, 0.0, 0.5))):
        with pytest.raises(ZooError, match="a mean and a positive deviation for each of 3 channels"):
            adopt(tmp_path / "new", ours(), weights, NAMES, normalized=wrong)
    with pytest.raises(ZooError, match=r"norm_at stream .* --model.norm_at before"):
        ours(parallel=True).configure_model()


def test_every_verb_takes_the_folder(tmp_path, weights, capsys, monkeypatch):
    """Measured, looked at, extended, trained; what has no counterpart elsewhere is refused by name."""
    monkeypatch.chdir(tmp_path)
    adopt("vit", ours(), weights, NAMES, normalized=CIFAR)
    assert "`transformer.layers.{layer}.linear1.{kind}`" in Path("vit/README.md").read_text()
    generator = np.random.default_rng(0)
    pictures(Path("pictures"), generator.integers(0, 256, (28, 16, 16, 3), np.uint8), np.arange(28) % 7, "abcdefg")
    cli.run(["evaluate", "vit", "--files", "pictures", "--out", "report"])
    cli.run(["analyze", "vit", "--files", "pictures", "--out", "why"])
    cli.run(["extend", "vit", "--to", "32px", "--method", "Resampling", "--evaluate", "none"])
    network = checkpoints.read("vit-32px").network()
    assert network(torch.randn(1, 3, 32, 32)).isfinite().all()
    monkeypatch.setattr(sys, "argv", ["zoo"])
    data = "--data Images --data.files pictures --data.batch 4 --data.workers 0 --data.augment false"
    run = "--trainer.accelerator cpu --trainer.max_steps 2 --trainer.default_root_dir run"
    cli.run(["fit", "--model.weights", "vit", *data.split(), *run.split()])
    assert "Checkpoint: run" in capsys.readouterr().out
    (again,) = Path("run").rglob("model/config.yaml")
    assert "norm_at: stream" in again.read_text()
    for kind in ("hf", "gguf"):
        with pytest.raises(ZooError, match=r"holds no language model|are language models"):
            cli.run(["export", "vit", "--to", kind])


def pictures(folder, images, labels, classes):
    """A folder for each class."""
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / classes[label] / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path, compress_level=0)


@pytest.mark.skipif(not SHARED.is_dir(), reason="ZOO_SHARED is not set: the trained network is not at hand")
def test_a_network_that_somebody_trained(tmp_path, capsys):
    """811 146 weights of a CIFAR-10 ViT: the logits and the accuracy that its author's program gives."""
    weights = split(np.load(SHARED / "checkpoints/vit_cifar10_0.8M.npz"))
    task = ours(classes=10, size=(32, 32), dim=128, layers=6, heads=8, hidden=256)
    adopt(tmp_path / "vit", task, weights, NAMES, normalized=CIFAR)
    network = checkpoints.read(tmp_path / "vit").network()
    assert sum(parameter.numel() for parameter in network.parameters()) == 811146 - 128  # of two class rows one is left
    golden = np.load(SHARED / "checkpoints/vit_cifar10_0.8M.golden.npz")
    packed = (SHARED / "images/cifar10_test_0000-1999.u8delta.xz").read_bytes()
    planes = np.frombuffer(lzma.decompress(packed), np.uint8)
    planes = planes.reshape(3, 2000, 32, 32).cumsum(-2, dtype=np.uint8).cumsum(-1, dtype=np.uint8)
    images = np.stack([planes[1] + planes[0], planes[0], planes[2] + planes[0]], -1)
    told = json.loads((SHARED / "images/cifar10_labels.json").read_text())
    labels, expected = np.array([*told["test_0000_1999"]], int), torch.from_numpy(golden["logits_test_0000_1999"])
    with torch.inference_mode():
        found = network(normal(torch.from_numpy(images).permute(0, 3, 1, 2) / 255, *RGB))
    assert torch.allclose(found, expected, atol=1e-4)
    right = found.argmax(-1).numpy() == labels
    assert right.mean() == golden["acc_first_2000"] == 0.7225
    pictures(tmp_path / "test", images[:200], labels[:200], told["classes"])
    cli.run(["evaluate", str(tmp_path / "vit"), "--files", str(tmp_path / "test"), "--lengths", "32", "--json"])
    (cell,) = json.loads(capsys.readouterr().out)["results"]
    assert (cell["value"]["top1"], cell["value"]["images"]) == (right[:200].mean(), 200)
