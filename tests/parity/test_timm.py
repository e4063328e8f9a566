"""The vision transformer and rotation on a grid against timm's, each side built and computed by its own code.

timm imports torchvision, which has no build for torch on the CPU: two operators of which it then misses the schemas are
declared here, so that the import succeeds, and never called. transformers trips over that torchvision, so that
`tox -e parity-timm` has an environment of its own.
"""

import importlib.util

import pytest
import torch

from zoo import plugins
from zoo.position import Geometry
from zoo.vit import ViT, grid

pytestmark = pytest.mark.parity
if importlib.util.find_spec("timm") is None:
    pytest.skip("timm is not installed here: tox -e parity-timm", allow_module_level=True)

torchvision = torch.library.Library("torchvision", "FRAGMENT")
for name in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, name):
        torchvision.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from timm.layers import RotaryEmbeddingCat, apply_rot_embed_cat  # noqa: E402
from timm.models.eva import Eva  # noqa: E402
from timm.models.vision_transformer import VisionTransformer  # noqa: E402

SIZE, PATCH, GRID = (24, 40), 8, (3, 5)
RoPE, NoPE, Learned = (plugins.load("zoo.positions", name) for name in ("RoPE", "NoPE", "Learned"))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("pairing", ["half", "interleaved"])
@pytest.mark.parametrize("base", [100.0, 10000.0])
def test_rotation_on_a_grid(pairing, base):
    """RotaryEmbeddingCat numbers rows before columns and spreads dim / 4 frequencies over each, as RoPE does."""
    q, half = torch.randn(2, 4, GRID[0] * GRID[1], 16), pairing == "half"
    theirs = RotaryEmbeddingCat(16, temperature=base, in_pixels=False, feat_shape=list(GRID), rotate_half=half)
    geometry = Geometry(dim=64, heads=4, kv_heads=4, head_dim=16, length=GRID, causal=False)
    at = grid(*GRID)
    ours = RoPE(geometry, base=base, pairing=pairing)(at, at, len(at)).rotation
    expected = apply_rot_embed_cat(q, theirs.get_embed(), half=half)
    torch.testing.assert_close(ours.apply(q), expected, rtol=0, atol=1e-5)
    assert not torch.allclose(expected, q, atol=0.1)


def ours(theirs: torch.nn.Module, position, **changes) -> ViT:
    """Our model with the weights of one of timm's."""
    model = ViT(
        classes=10,
        size=SIZE,
        patch=PATCH,
        dim=64,
        layers=2,
        heads=4,
        position=position,
        norm="LayerNorm",
        feed_forward="GELU",
        hidden=256,
        out_bias=True,
        feed_forward_bias=True,
        **changes,
    )
    state = theirs.state_dict()
    words = (
        ("patch_embed.proj.", "embedding."),
        ("blocks.", "trunk.blocks."),
        ("attn.qkv.", "attention.qkv."),
        ("attn.proj.", "attention.out."),
        ("mlp.fc1.", "feed_forward.up."),
        ("mlp.fc2.", "feed_forward.down."),
    )
    renamed = {"prefix": torch.zeros_like(model.prefix)}
    special = [state.pop(name)[0] for name in ("cls_token", "reg_token") if name in state]
    if special:
        renamed["prefix"] = torch.cat(special)
    if "pos_embed" in state:
        renamed["trunk.positions.0.table"] = state.pop("pos_embed")[0]
    for name, value in state.items():
        for theirs_word, our_word in words:
            name = name.replace(theirs_word, our_word)
        renamed[f"trunk.{name}" if name.startswith("norm.") else name] = value
    model.load_state_dict(renamed)
    return model.eval()


def jolt(model: torch.nn.Module) -> torch.nn.Module:
    """Weights far from their start, so that no zero and no symmetry hides a difference."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def agree(mine: ViT, theirs: torch.nn.Module) -> None:
    """Same logits, in float64, where a difference in convention cannot pass for rounding."""
    images = torch.randn(3, 3, *SIZE, dtype=torch.float64)
    with torch.no_grad():
        expected, got = theirs.double()(images), mine.double()(images)
    assert expected.std() > 0.1
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("pool", "registers", "place"),
    [("class", 0, "learn"), ("class", 4, "learn"), ("mean", 0, "learn"), ("class", 0, "")],
)
def test_the_vision_transformer(pool, registers, place):
    """Patches by row then column, class token before registers, positions on patches only, norm before pooling."""
    theirs = VisionTransformer(
        img_size=SIZE,
        patch_size=PATCH,
        num_classes=10,
        global_pool="token" if pool == "class" else "avg",
        fc_norm=False,
        embed_dim=64,
        depth=2,
        num_heads=4,
        class_token=pool == "class",
        no_embed_class=True,
        reg_tokens=registers,
        pos_embed=place or "none",
    )
    mine = ours(jolt(theirs), Learned if place else NoPE, pool=pool, registers=registers, qkv_bias=True)
    agree(mine, theirs)


@pytest.mark.parametrize("registers", [0, 2])
@pytest.mark.parametrize("pairing", ["half", "interleaved"])
def test_the_rotary_vision_transformer(pairing, registers):
    """EVA-02's block without its inner norms: the prefix is left unturned, patches turn with row and column."""
    theirs = Eva(
        img_size=SIZE,
        patch_size=PATCH,
        num_classes=10,
        global_pool="token",
        embed_dim=64,
        depth=2,
        num_heads=4,
        qkv_bias=False,
        num_reg_tokens=registers,
        use_abs_pos_emb=False,
        use_rot_pos_emb=True,
        rope_temperature=100.0,
        rope_rotate_half=pairing == "half",
    )
    agree(ours(jolt(theirs), lambda g: RoPE(g, base=100.0, pairing=pairing), registers=registers), theirs)
