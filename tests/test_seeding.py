"""The rest of a model starts alike under every encoding and every kernel, which draw from generators of their own."""

import random
from contextlib import suppress
from functools import partial

import numpy
import pytest
import torch
from torch import nn

from zoo import plugins
from zoo.decoder import Decoder
from zoo.errors import ZooError
from zoo.position import NoPE
from zoo.seeding import derive_seed, name_plugin
from zoo.vit import ViT

POSITIONS, KERNELS = plugins.classes("zoo.positions"), plugins.classes("zoo.kernels")
SMALL = {"dim": 64, "layers": 2, "heads": 2}


class Draws(NoPE):
    """A third party's encoding, which draws from every generator that there is and seeds none."""

    per_layer = True

    def __init__(self, geometry):
        super().__init__(geometry)
        self.table = nn.Parameter(torch.randn(3, dtype=torch.float32))
        self.python, self.numpy = random.random(), numpy.random.rand()

    def state(self):
        return [*self.table.tolist(), self.python, self.numpy]


class Reseeds(Draws):
    """One that seeds the process's generators, as it should not."""

    def __init__(self, geometry):
        random.seed(5)
        numpy.random.seed(5)
        torch.manual_seed(5)
        super().__init__(geometry)


def build_decoder(seed=0, **options):
    torch.manual_seed(seed)
    return Decoder(vocabulary=40, length=64, tied=False, **SMALL, **options)


def build_vit(seed=0, **options):
    torch.manual_seed(seed)
    return ViT(classes=3, size=(64, 64), patch=4, **SMALL, **options)


def list_rest(network):
    """All weights but those of the plugins."""
    return {
        name: weight
        for name, weight in network.state_dict().items()
        if not name.startswith("trunk.positions.") and ".attention.kernel." not in name
    }


def assert_alike(one, other):
    assert one.keys() == other.keys()
    assert {"trunk.blocks.1.attention.qkv.weight", "trunk.blocks.1.feed_forward.up.weight", "head.weight"} <= one.keys()
    for name, weight in one.items():
        assert torch.equal(weight, other[name]), name


def list_built(**choices):
    """Decoder and vision transformer, as far as the plugins serve them."""
    for build in (build_decoder, build_vit):
        with suppress(ZooError):
            yield build, build(**choices)


@pytest.mark.parametrize("name", POSITIONS)
def test_the_rest_starts_alike_under_every_encoding(name):
    built = list(list_built(position=POSITIONS[name]))
    assert built
    for build, network in built:
        assert_alike(list_rest(network), list_rest(build(position=POSITIONS["RoPE"])))


@pytest.mark.parametrize("name", KERNELS)
def test_the_rest_starts_alike_under_every_kernel(name):
    positions = ("RoPE", "ALiBi", "NoPE")
    built = [each for position in positions for each in list_built(position=POSITIONS[position], kernel=KERNELS[name])]
    assert built
    for build, network in built:
        assert_alike(list_rest(network), list_rest(build(position=POSITIONS["RoPE"])))


@pytest.mark.parametrize("build", [build_decoder, build_vit])
@pytest.mark.parametrize("position", [Draws, Reseeds, partial(Draws)])
def test_a_plugin_need_not_do_anything_for_it(position, build):
    torch.manual_seed(0)
    random.seed(0)
    numpy.random.seed(0)
    build(position=NoPE)
    expected = torch.rand(1), random.random(), numpy.random.rand()
    random.seed(0)
    numpy.random.seed(0)
    network = build(position=position)
    assert (torch.rand(1), random.random(), numpy.random.rand()) == expected
    assert_alike(list_rest(network), list_rest(build(position=NoPE)))


def test_layers_seeds_and_names_draw_differently():
    first, second = (position.state() for position in build_decoder(position=Draws).trunk.positions)
    assert not set(first) & set(second)
    assert [first, second] == [position.state() for position in build_decoder(position=partial(Draws)).trunk.positions]
    assert not set(first) & set(build_decoder(1, position=Draws).trunk.position.state())
    other = type("Other", (Draws,), {})
    assert not set(first) & set(build_decoder(position=other).trunk.position.state())


def test_nothing_is_drawn_without_memory():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with torch.device("meta"):
        ViT(classes=3, size=(16, 16), patch=4, position=POSITIONS["RoPEMixed"], **SMALL)
    assert torch.equal(before, torch.get_rng_state())


def test_a_seed_gives_these_weights():
    network = build_decoder(position=POSITIONS["FIRE"])
    assert derive_seed(0, "zoo.positions", "FIRE", 0) == 6659797792557099473
    values = [*network.embedding.weight[0, :2], *network.trunk.position.layers[0].weight[:2, 0]]
    assert [round(value.item(), 6) for value in values] == [0.002719, -0.013551, -0.826981, 0.99135]


def test_the_name_is_that_of_the_class():
    assert name_plugin(partial(partial(Draws), scale=2)) == "Draws"
    assert name_plugin(lambda geometry: Draws(geometry)) == "<lambda>"
