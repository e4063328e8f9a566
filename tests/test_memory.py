"""Long sequences in bounded memory: the switches change what is held, and no number."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from zoo import cli, plugins
from zoo.decoder import Decoder
from zoo.errors import ZooError
from zoo.kernel import Mask
from zoo.recipe import differences
from zoo.vit import ViT

SWITCHES = [
    {"checkpointing": True},
    {"checkpointing": "offload"},
    {"feed_forward_chunk": 1},
    {"feed_forward_chunk": 7},
    {"feed_forward_chunk": 7, "checkpointing": "offload"},
]
WIDE = 80
"""Like no other width of the model."""


def decoder(position="RoPE", **options):
    torch.manual_seed(0)
    kind = {"position": plugins.load("zoo.positions", position), "kernel": plugins.load("zoo.kernels", "SDPA")}
    shape = {"vocabulary": 40, "length": 32, "dim": 32, "layers": 2, "heads": 4, "hidden": WIDE}
    return Decoder(**{**shape, **kind, **options})


def vit(**options):
    torch.manual_seed(0)
    network = ViT(classes=5, size=(16, 16), patch=4, registers=2, dim=32, layers=2, heads=4, hidden=WIDE, **options)
    torch.nn.init.normal_(network.head.weight)  # which is 0 at first and would stop the gradient
    return network


def pulled(model, given):
    """Output and gradients of one step, dropout drawn from the same seed."""
    torch.manual_seed(1)
    out = model.train()(given).double()
    (out * torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out)).sum().backward()
    return out, {name: parameter.grad for name, parameter in model.named_parameters()}


def same(one, other):
    assert torch.allclose(one[0], other[0], atol=1e-6)
    for name, grad in one[1].items():
        assert torch.allclose(grad, other[1][name], rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("switch", SWITCHES, ids=str)
def test_no_number_changes(switch, dropout):
    tokens = torch.randint(0, 40, (3, 11))
    more = {"dropout": dropout, "feed_forward_bias": True}
    same(pulled(decoder(**more), tokens), pulled(decoder(**more, **switch), tokens))
    images = torch.randn(2, 3, 16, 16)
    same(pulled(vit(dropout=dropout), images), pulled(vit(dropout=dropout, **switch), images))


@pytest.mark.parametrize("switch", SWITCHES, ids=str)
def test_reading_is_the_same_too(switch):
    plain, other, tokens = decoder().eval(), decoder(**switch).eval(), torch.randint(0, 40, (2, 30))
    with torch.no_grad():
        assert torch.allclose(plain(tokens), other(tokens), atol=1e-6)
    assert torch.allclose(plain.read(tokens, rows=9), other.read(tokens, rows=9), atol=1e-5)


class Widest(TorchDispatchMode):
    """The most rows of any tensor as wide as the inside of a feed-forward layer."""

    def __init__(self, wide):
        super().__init__()
        self.wide, self.rows = wide, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, tuple | list) else (out,):
            weight = isinstance(each, torch.Tensor) and each.shape == (32, self.wide)
            if isinstance(each, torch.Tensor) and each.ndim and each.shape[-1] == self.wide and not weight:
                self.rows = max(self.rows, each.numel() // self.wide)
        return out


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("kind", "wide"), [("SwiGLU", 2 * WIDE), ("GELU", WIDE)])
def test_the_inside_of_a_feed_forward_layer_is_never_whole(kind, wide, checkpointing):
    def rows(**options):
        model = decoder(feed_forward=kind, checkpointing=checkpointing, **options)
        with Widest(wide) as seen:
            pulled(model, torch.randint(0, 40, (2, 31)))
        return seen.rows

    assert rows() == 62
    assert rows(feed_forward_chunk=8) == 8
    with Widest(wide) as seen, torch.no_grad():
        decoder(feed_forward=kind, feed_forward_chunk=8).eval()(torch.randint(0, 40, (2, 31)))
    assert seen.rows == 8


def test_inputs_of_blocks_leave_for_the_host(monkeypatch):
    left, fetched = [], []

    class Host(torch.autograd.graph.saved_tensors_hooks):
        def __init__(self, pin_memory):
            assert not pin_memory, "there is no device to copy from"
            super().__init__(lambda x: left.append(x) or x, lambda x: fetched.append(x) or x)

    monkeypatch.setattr("zoo.trunk.save_on_cpu", Host)
    tokens = torch.randint(0, 40, (2, 11))
    pulled(decoder(checkpointing="offload"), tokens)
    streams = [x for x in left if x.shape == (2, 11, 32)]
    assert len(streams) == len([x for x in fetched if x.shape == (2, 11, 32)]) == 2, "one for each block"
    assert all(x.shape == (2, 11, 32) or x.numel() == 0 for x in left), "and nothing else"
    left.clear()
    pulled(decoder(checkpointing=True), tokens)
    decoder(checkpointing="offload").eval()(tokens)
    assert not left


def test_the_loss_graph_holds_no_block(monkeypatch):
    """What is saved for backward, counted: a checkpointed model keeps the streams between blocks and little else."""

    def held(**options):
        sizes, tokens = [], torch.randint(0, 40, (2, 31))
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            decoder(layers=6, **options).train()(tokens)
        return sum(sizes)

    assert held(checkpointing=True) < held(feed_forward_chunk=8) < held()


@pytest.mark.slow
@pytest.mark.parametrize("position", ["RoPE", "T5"])
@pytest.mark.parametrize(
    "switch", [{"checkpointing": True}, {"feed_forward_chunk": 7}, {"feed_forward_chunk": 7, "checkpointing": True}]
)
def test_a_compiled_trunk_is_the_same(position, switch):
    tokens = torch.randint(0, 40, (3, 11))
    expected = pulled(decoder(position), tokens)
    torch._dynamo.reset()
    model = decoder(position, **switch)
    model.trunk.compile(fullgraph=position == "RoPE")  # which makes an error of a graph that breaks
    same(expected, pulled(model, tokens))


def test_a_compiled_trunk_does_not_offload():
    with pytest.raises(ZooError, match="exclude each other"):
        decoder(checkpointing="offload").trunk.compile()


@pytest.mark.parametrize("position", ["RoPE", "FoPE", "xPos", "PoPE", "ALiBi", "T5"])
@pytest.mark.parametrize("kernel", ["SDPA", "Auto"])
def test_dynamo_traces_every_kind_of_position_whole(position, kernel):
    torch._dynamo.reset()
    model = decoder(position, length=16, kernel=plugins.load("zoo.kernels", kernel)).train()
    model.trunk.compile(fullgraph=True, backend="eager")
    at = torch.arange(16.0)[:, None]
    with torch.no_grad():
        model.trunk(torch.randn(2, 16, 32), at, at, 16, Mask(causal=True))


@pytest.mark.parametrize("wrong", [0, -3])
def test_a_chunk_has_tokens(wrong):
    with pytest.raises(ZooError, match=f"at least 1, and got {wrong}"):
        decoder(feed_forward_chunk=wrong)


@pytest.mark.parametrize("wrong", ["disk", "3"])
def test_checkpointing_is_a_word_or_a_switch(wrong, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["zoo", "fit", "--model.checkpointing", wrong, "--trainer.max_steps", "1"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    assert "checkpointing" in capsys.readouterr().err


def test_a_run_may_continue_with_other_switches():
    there = {"class_path": "LanguageModel", "init_args": {"dim": 32}}
    here = {
        "class_path": "LanguageModel",
        "init_args": {"dim": 32, "checkpointing": "offload", "feed_forward_chunk": 9, "chunk": 5},
    }
    assert not list(differences(there, here))
    assert list(differences(there, {"class_path": "LanguageModel", "init_args": {"dim": 33}}))
