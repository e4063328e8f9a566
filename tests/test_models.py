"""The decoder, the vision transformer and sampling: what must hold whatever the plugins are."""

import pytest
import torch
from zoo_positions.fox import FoX

from zoo import plugins
from zoo.cache import Cache
from zoo.decoder import Decoder, restart
from zoo.errors import ZooError
from zoo.generate import choose, generate, stream
from zoo.kernel import Eager, Mask
from zoo.position import Encoding
from zoo.vit import ViT, grid

OPTIONS = [
    {},
    {
        "norm": "LayerNorm",
        "feed_forward": "GELU",
        "qkv_bias": True,
        "out_bias": True,
        "feed_forward_bias": True,
        "parallel": True,
    },
    {"norm_at": "after", "qk_norm": "width", "kv_heads": 2},
    {"norm_at": "stream", "norm": "LayerNorm", "feed_forward": "ReLU", "position": FoX},
    {"qk_norm": "head", "kv_heads": 1, "head_dim": 16, "tied": False, "head_bias": True},
    {"feed_forward": "GELU-tanh", "window": 3},
    {"window": 3, "sinks": 2},
    {"window": 3, "nope_every": 2},
]


def decoder(**options):
    torch.manual_seed(0)
    return Decoder(vocabulary=40, length=24, dim=32, layers=2, heads=4, **options).eval()


@pytest.mark.parametrize("options", OPTIONS)
def test_the_future_changes_nothing(options):
    model, tokens = decoder(**options), torch.randint(0, 40, (2, 12))
    other = tokens.clone()
    other[:, 7:] = (other[:, 7:] + 1) % 40
    one, two = model(tokens), model(other)
    assert torch.allclose(one[:, :7], two[:, :7], atol=1e-6)
    assert not torch.allclose(one[:, 7:], two[:, 7:], atol=1e-3)


@pytest.mark.parametrize("options", OPTIONS)
def test_cached_decoding_is_the_full_forward(options):
    model, tokens = decoder(**options), torch.randint(0, 40, (2, 12))
    cache = Cache(12)
    parts = [model(tokens[:, :5], cache=cache), *(model(tokens[:, i : i + 1], cache=cache) for i in range(5, 9))]
    parts.append(model(tokens[:, 9:], cache=cache))
    assert torch.allclose(torch.cat(parts, 1), model(tokens), atol=1e-5)
    with pytest.raises(ZooError, match="opened for 12 tokens"):
        model(tokens[:, :1], cache=cache)


def test_a_window_sees_so_many_tokens():
    model, tokens = decoder(window=3), torch.randint(0, 40, (1, 12))
    other = tokens.clone()
    other[:, 0] = (other[:, 0] + 1) % 40
    same = (model(tokens) - model(other)).abs().amax(-1)[0] < 1e-6
    assert not same[:5].any(), "two layers of window 3 reach four tokens back"
    assert same[5:].all()


def reach(model, tokens):
    """[tokens] of bool: which of them read the first one."""
    other = tokens.clone()
    other[:, 0] = (other[:, 0] + 1) % 40
    return (model(tokens) - model(other)).abs().amax(-1)[0] > 1e-6


def test_sinks_are_seen_from_behind_the_window():
    tokens = torch.randint(0, 40, (1, 12))
    assert reach(decoder(window=3, sinks=1), tokens).all()
    assert not reach(decoder(window=3), tokens)[5:].any()


def test_sinks_of_packed_documents_are_refused():
    with pytest.raises(ZooError, match="sinks of packed documents"):
        decoder(window=3, sinks=1)(torch.zeros(1, 4, dtype=torch.long), documents=torch.zeros(1, 4))


def test_layers_without_positions_have_no_window_either():
    tokens = torch.randint(0, 40, (1, 12))
    assert reach(decoder(window=3, nope_every=2), tokens).all()


@pytest.mark.parametrize("position", ["RoPE", "FoPE"])
def test_every_kth_layer_has_no_positions(position):
    """By hand: the blocks of the model, run one by one, with what is claimed of each."""
    kind = plugins.load("zoo.positions", position)
    arguments = {"dialect": "paper"} if position == "FoPE" else {}  # a module per layer
    torch.manual_seed(0)
    model = Decoder(
        vocabulary=40,
        length=24,
        dim=32,
        layers=5,
        heads=4,
        window=3,
        nope_every=2,
        position=lambda geometry: kind(geometry, **arguments),
        kernel=Eager,
    )
    tokens = torch.randint(0, 40, (1, 12))
    at, x = torch.arange(12.0).view(-1, 1), model.embedding(tokens)
    for number, block in enumerate(model.trunk.blocks):
        own = model.trunk.positions[number if position == "FoPE" else 0]
        bare = number in (1, 3)
        x = block(x, Encoding() if bare else own(at, at, 12), Mask(causal=True, window=None if bare else 3))
    torch.testing.assert_close(model.hidden(tokens), model.trunk.norm(x))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"nope_every": 1}, "nope_every 1 makes no layer of 2 .*from 2 to"),
        ({"nope_every": 3}, "nope_every 3 makes no layer of 2 one without"),
        ({"head_dim": -4}, "at least 1 for head_dim, and got -4"),
        ({"head_dim": 0}, "at least 1 for head_dim, and got 0"),
        ({"nope_every": 2, "position": plugins.load("zoo.positions", "Learned")}, "an embedding is added before"),
        ({"sinks": 4}, "the window is None.*model.window"),
        ({"sinks": -1, "window": 4}, "sinks -1"),
        ({"window": 0}, "A window holds at least"),
    ],
)
def test_options_that_cannot_be_are_refused(options, sentence):
    with pytest.raises(ZooError, match=sentence):
        decoder(**options)


def test_an_encoding_of_content_reads_what_attention_reads():
    torch.manual_seed(0)
    fox = plugins.load("zoo.positions", "FoX")
    model = Decoder(vocabulary=40, length=24, dim=32, layers=2, heads=4, position=fox, kernel=Eager, dropout=0.5)
    read = {}
    for layer in range(2):
        model.trunk.positions[layer].linear.register_forward_pre_hook(
            lambda _, inputs, at=layer: read.update({("encoding", at): inputs[0]})
        )
        model.trunk.blocks[layer].attention.register_forward_pre_hook(
            lambda _, inputs, at=layer: read.update({("attention", at): inputs[0]})
        )
    model.train()(torch.randint(0, 40, (2, 12)))
    for layer in range(2):
        assert torch.equal(read["encoding", layer], read["attention", layer])


def test_positions_may_be_told():
    model, tokens = decoder(), torch.randint(0, 40, (2, 12))
    plain = model(tokens)
    assert torch.equal(model(tokens, positions=torch.arange(12), extent=12), plain)
    spread = torch.tensor([0, 1, 5, 6, 9, 20, 31, 32, 33, 40, 50, 63])
    wide = model(tokens, positions=spread, extent=64)
    assert not torch.allclose(wide, plain, atol=1e-4)
    rows = torch.stack((spread, torch.arange(12)))
    both = model(tokens, positions=rows, extent=64)
    assert torch.allclose(both[0], wide[0], atol=1e-5)
    assert torch.allclose(both[1], plain[1], atol=1e-5)
    cache = Cache(64)
    parts = [
        model(tokens[:, :7], cache=cache, positions=spread[:7], extent=64),
        model(tokens[:, 7:], cache=cache, positions=spread, extent=64),
    ]
    with pytest.raises(ZooError, match="need an extent"):
        model(tokens, positions=spread)
    assert torch.allclose(torch.cat(parts, 1), wide, atol=1e-5)


def test_left_padding_changes_nothing():
    model = decoder()
    short, long = torch.randint(0, 40, (1, 5)), torch.randint(0, 40, (1, 9))
    both = torch.cat((torch.cat((torch.zeros(1, 4, dtype=torch.long), short), 1), long))
    padding = torch.tensor([4, 0])
    assert torch.allclose(model(both, padding=padding)[0, 4:], model(short)[0], atol=1e-5)
    ids = generate(model, both, 6, temperature=0, padding=padding)
    assert torch.equal(ids[:1], generate(model, short, 6, temperature=0))
    assert torch.equal(ids[1:], generate(model, long, 6, temperature=0))


def test_positions_restart_with_documents():
    documents = torch.tensor([[0, 0, 0, 1, 1, 2], [0, 1, 1, 1, 1, 1]])
    assert restart(documents).tolist() == [[0, 1, 2, 0, 1, 0], [0, 0, 1, 2, 3, 4]]


def test_greedy_is_the_likeliest():
    model, prompt = decoder(), torch.randint(0, 40, (2, 4))
    tokens = prompt
    for _ in range(6):
        tokens = torch.cat((tokens, model(tokens)[:, -1].argmax(-1, keepdim=True)), 1)
    assert torch.equal(generate(model, prompt, 6, temperature=0), tokens[:, 4:])


def test_top_p_draws_from_the_smallest_set():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().expand(4000, -1)
    generator = torch.Generator().manual_seed(0)
    ids = choose(logits, 1.0, 0.8, generator)
    assert set(ids.tolist()) == {0, 1}
    assert (ids == 0).float().mean().item() == pytest.approx(0.625, abs=0.03)
    assert set(choose(logits, 1.0, 1.0, generator).tolist()) == {0, 1, 2, 3}
    assert set(choose(logits, 1.0, 0.01, generator).tolist()) == {0}


def test_generation_ends_at_the_end_token():
    model, prompt = decoder(), torch.randint(0, 40, (1, 4))
    first = int(next(iter(stream(model, prompt, 5, temperature=0))))
    assert generate(model, prompt, 5, temperature=0, end=first).shape == (1, 1)


def test_the_grid_counts_rows_then_columns():
    assert grid(2, 3).tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert grid(1, 1).tolist() == [[0, 0]]


@pytest.mark.parametrize("pool", ["class", "mean"])
def test_patches_are_told_apart_by_position_alone(pool):
    torch.manual_seed(0)
    model = ViT(classes=4, channels=1, size=(4, 6), patch=2, registers=2, pool=pool, dim=32, layers=2, heads=2, std=0.3)
    torch.nn.init.normal_(model.eval().head.weight)
    assert model.trunk.geometry.prefix == 2 + (pool == "class")
    images = torch.randn(3, 1, 4, 6)
    swapped = torch.cat((images[..., 2:4], images[..., :2], images[..., 4:]), -1)
    assert not torch.allclose(model(images), model(swapped), atol=1e-4)
    assert model(torch.randn(2, 1, 8, 4)).shape == (2, 4), "another size, another grid"
    with pytest.raises(ZooError, match="5 x 6 does not divide into patches of 2"):
        model(torch.randn(1, 1, 5, 6))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"dim": 30}, "does not divide into 4 heads"),
        ({"kv_heads": 3}, "kv_heads must divide heads"),
        ({"layers": 0}, "at least 1 for layers"),
        ({"length": 0}, "at least 1 for length"),
    ],
)
def test_numbers_that_do_not_fit(wrong, says):
    with pytest.raises(ZooError, match=says):
        Decoder(**{"vocabulary": 9, "dim": 32, "layers": 1, "heads": 4, **wrong})


def test_a_patch_divides_the_image():
    with pytest.raises(ZooError, match=r"8 x 8 does not divide into patches of 3; \[1, 2, 4, 8\] do"):
        ViT(classes=2, size=(8, 8), patch=3, dim=32, layers=1, heads=4)
