"""LoRA: what is trained, what is saved, that everyone reads the sum, and that only training needs peft."""

import copy
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from zoo import checkpoints, cli
from zoo.adapter import LoRA
from zoo.checkpoints import adapted, lightning
from zoo.checkpoints.stored import Stored
from zoo.decoder import Decoder
from zoo.errors import ZooError
from zoo.plugins import load
from zoo.tasks import LanguageModel

peft = pytest.mark.skipif(find_spec("peft") is None, reason="peft is not installed")
TEXT = "To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer\n"
SMALL = ["--model.length=16", "--model.dim=32", "--model.layers=2", "--model.heads=2", "--data.tokenizer=bytes"]
SMALL += ["--data.files=text.txt", "--data.batch=4", "--data.workers=0", "--data.cache=cache"]
TRAINER = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.num_sanity_val_steps=0"]
TRAINER += ["--trainer.limit_val_batches=2", "--trainer.val_check_interval=3", "--trainer.enable_model_summary=false"]
ADAPTED = ["--model.adapter=LoRA", "--model.adapter.rank=3", "--model.adapter.alpha=5", "--model.adapter.dropout=0.1"]
LONG = '--model.adapter.whole=["positions","norms","embeddings"]'


def zoo(*words):
    before, sys.argv = sys.argv, ["zoo", *map(str, words)]
    try:
        cli.run(sys.argv[1:])
    finally:
        sys.argv = before


def fit(out, *words, steps):
    zoo("fit", *words, *TRAINER, f"--trainer.max_steps={steps}", f"--trainer.default_root_dir={out}")
    return max(Path(out).rglob("last.ckpt"), key=lambda path: path.stat().st_mtime)


def refused(*words):
    with pytest.raises(ZooError) as error:
        zoo("fit", *words, *TRAINER)
    return str(error.value)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a text, a trained model, and a run that trained it further by LoRA."""
    place = tmp_path_factory.mktemp("adapter")
    (place / "text.txt").write_text(TEXT * 200)
    before = Path.cwd()
    os.chdir(place)
    try:
        fit("base", *SMALL, "--model.position=FIRE", steps=3).rename("base.ckpt")
        if find_spec("peft") is not None:
            fit("lora", "--model.weights=base.ckpt", *SMALL[4:], *ADAPTED, LONG, steps=5).rename("lora.ckpt")
    finally:
        os.chdir(before)
    return place


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place)


def network(position="T5", **more):
    torch.manual_seed(0)
    shape = {"dim": 32, "layers": 2, "heads": 4, "kv_heads": 2, "qkv_bias": True, "qk_norm": "head", **more}
    return Decoder(vocabulary=19, length=16, position=load("zoo.positions", position), **shape).double().eval()


def trained(lora, model):
    """A model with adapters that are no longer 0."""
    lora.inject(model)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


@peft
@pytest.mark.parametrize("targets", [("qkv", "out", "up", "down"), ("qkv",), ("out", "up")])
def test_the_sum_gives_the_same_logits(targets):
    lora = LoRA(rank=3, alpha=5, targets=targets)
    plain, both = network(), trained(lora, network())
    tokens = torch.randint(0, 19, (2, 16))
    about = {"trained": {"adapter": lora.described()}}
    stored = {name: Stored.of(each) for name, each in both.state_dict().items()}
    weights = {name: each.tensor() for name, each in adapted.summed(stored, about, "x").items()}
    found = network()
    checkpoints.fill(found, weights, "x")
    with torch.no_grad():
        assert (found(tokens) - both(tokens)).abs().max() < 1e-12
        assert (found(tokens) - plain(tokens)).abs().max() > 1e-2
    for name, module in both.named_modules():  # peft's own sum
        if hasattr(module, "merge"):
            module.merge()
            assert torch.allclose(module.base_layer.weight, weights[f"{name}.weight"], atol=1e-14)
            targets = [each for each in targets if each != name.rpartition(".")[2]]
    assert not targets, "each has adapters"


@peft
@pytest.mark.parametrize(
    ("whole", "also"),
    [
        ((), ()),
        (("positions",), ("trunk.positions",)),
        (("norms", "embeddings"), ("norm", "embedding")),
        (("kernels",), ("kernel",)),
    ],
)
def test_what_is_trained(whole, also):
    model = network("FIRE", kernel=load("zoo.kernels", "Sink"), tied=False)
    LoRA(whole=whole).inject(model)
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    rest = {name for name in names if ".lora_" not in name}
    assert rest == {name for name, _ in model.named_parameters() if any(word in name for word in also)}
    assert bool(rest) == bool(whole)
    assert len(names - rest) == 2 * 2 * 4
    optimized = LanguageModel(vocabulary=19)
    optimized.network = model
    count = sum(len(group["params"]) for group in optimized.groups())
    assert count == len(names), "only what is trained has an optimizer's state"


def test_a_sum_is_the_same_in_pieces():
    torch.manual_seed(0)
    base, down, up = torch.randn(700, 600).bfloat16(), torch.randn(3, 600), torch.randn(700, 3)
    whole = adapted.Sum(base.dtype, (700, 600), (), *map(Stored.of, (base, down, up)), 2.0)
    expected = (base.double() + 2 * up.double() @ down.double()).bfloat16()
    assert (whole.tensor().float() - expected.float()).abs().max() <= 0.0625  # one bit of a number below 16
    row = b"".join(bytes(chunk) for chunk in whole.chunks())
    assert row == bytes(whole.tensor().view(torch.uint8).numpy().data)
    assert whole.page(5000, 4096) == row[5000:9096]


@peft
def test_a_run_goes_on_to_the_bit_and_the_frozen_stay(here):
    (half,) = Path("lora").rglob("epoch*step=3.ckpt")
    again = lightning.load(fit("again", f"--ckpt_path={half}", steps=5))
    whole = lightning.load("lora.ckpt")
    base = checkpoints.read("base.ckpt").weights
    moved = set()
    for name, weight in whole["state_dict"].items():
        assert torch.equal(weight, again["state_dict"][name]), name
        own = name.removeprefix("network.")
        frozen = base.get(own.replace(".base_layer.", "."))
        if frozen is not None and not torch.equal(frozen, weight):
            moved.add(own)
    assert moved == {name for name in base if any(part in name for part in ("norm", "positions", "embedding", "head"))}
    counts = [len(each["optimizer_states"][0]["state"]) for each in (whole, again)]
    assert counts[0] == counts[1] == len([name for name in whole["state_dict"] if "lora_" in name]) + len(moved) - 1
    told = whole["zoo"]
    assert told["trained"]["adapter"] == {
        **{"method": "LoRA", "rank": 3, "alpha": 5.0, "dropout": 0.1, "targets": ["qkv", "out", "up", "down"]},
        "whole": ["positions", "norms", "embeddings"],
    }
    assert told["parent"] == "base.ckpt"


@peft
def test_everyone_reads_the_sum_without_peft(here, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.setattr("zoo.adapter.find_spec", lambda name: None)
    path = Path("lora.ckpt")
    folder = checkpoints.read(next(Path("lora").rglob("model")))
    found, listed = checkpoints.read(path), checkpoints.listed(path)
    base = checkpoints.read("base.ckpt")
    assert {name: each.shape for name, each in found.weights.items()} == {n: e.shape for n, e in base.weights.items()}
    for name, weight in found.weights.items():
        assert torch.equal(weight, folder.weights[name]), "what is published is what was trained"
        assert torch.equal(weight, listed.weights[name].tensor())
    assert "by LoRA with zoo" in (folder.path / "README.md").read_text()
    assert found.network().head.weight is not None
    zoo("validate", f"--ckpt_path={path}", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false")
    assert "val/perplexity" in capsys.readouterr().out
    after = lightning.load(fit("after", f"--model.weights={path}", *SMALL[4:], steps=1))
    assert after["zoo"]["network"] == base.about["network"]
    assert after["state_dict"].keys() == {f"network.{name}" for name in base.weights}
    assert "adapter" not in after["zoo"]["trained"], "a run that trains all weights"


def test_what_cannot_be_is_said(here, monkeypatch):
    weights = "--model.weights=base.ckpt"
    assert "a fresh model has random ones" in refused(*SMALL, "--model.adapter=LoRA")
    assert "rank of at least 1" in refused(weights, *SMALL[4:], *ADAPTED[:1], "--model.adapter.rank=0")
    with pytest.raises(ZooError, match="without targets"):
        LoRA(targets=())
    monkeypatch.setattr("zoo.adapter.find_spec", lambda name: None)
    said = refused(weights, *SMALL[4:], *ADAPTED)
    assert said == "LoRA is peft's, which is not installed.   Try:  pip install 'positionzoo[lora]'"


def test_unknown_words_are_refused_by_name(here, capsys):
    weights = "--model.weights=base.ckpt"
    for word in ("--model.adapter=LoRa", '--model.adapter.targets=["q_proj"]', "--model.adapter.ranks=4"):
        with pytest.raises(SystemExit) as stop:
            zoo("fit", weights, *SMALL[4:], *ADAPTED[:1], word, *TRAINER)
        said = capsys.readouterr().err
        assert stop.value.code == 2
        assert word.partition("=")[2].strip('[]"4') in said or "ranks" in said
        assert "Traceback" not in said


@peft
@pytest.mark.parametrize("word", ["--model.adapter.rank=4", "--model.adapter=null"])
def test_an_adapter_goes_on_as_it_was_or_not_at_all(here, word):
    said = refused("--ckpt_path=lora.ckpt", "--trainer.max_steps=7", word)
    assert "the checkpoint holds another model" in said
    assert "model.adapter" in said


@peft
@pytest.mark.parametrize("how", ["no factor", "no A", "no B", "another rank"])
def test_half_an_adapter_is_no_weight(here, tmp_path, how):
    content = copy.deepcopy(lightning.load("lora.ckpt"))
    name = next(name for name in content["state_dict"] if name.endswith(adapted.UP))
    if how == "no factor":
        del content["zoo"]["trained"]["adapter"]
    elif how == "another rank":
        content["state_dict"][name] = content["state_dict"][name][:, :2].clone()
    else:
        del content["state_dict"][name if how == "no B" else name.replace(adapted.UP, adapted.DOWN)]
    lightning.save(content, tmp_path / "x.ckpt")
    with pytest.raises(ZooError, match="its adapters are not whole"):
        checkpoints.read(tmp_path / "x.ckpt")
