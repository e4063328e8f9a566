"""The kernels in timm's own vision transformers: SDPA is timm's attention, weights load, others train.

timm is imported as in test_timm.py, on a torchvision whose operators are declared and never called.
"""

import copy
import importlib.util
import pickle

import pytest
import torch

from zoo import plugins
from zoo.errors import ZooError

pytestmark = pytest.mark.parity
if importlib.util.find_spec("timm") is None:
    pytest.skip("timm is not installed here: tox -e parity-timm", allow_module_level=True)

torchvision = torch.library.Library("torchvision", "FRAGMENT")
for name in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, name):
        torchvision.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import timm  # noqa: E402
from timm.layers import Attention  # noqa: E402
from timm.models.vision_transformer import VisionTransformer  # noqa: E402
from zoo_kernels.timm import attention, undecayed  # noqa: E402

KERNELS = ("SDPA", "Auto", "RBF", "Cosine", "Sigmoid", "LinearAttention", "FourierIntegral", "FourierQuartic")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def installed(name):
    if name not in plugins.names("zoo.kernels"):
        pytest.skip(f"the kernel {name} is not installed")
    return name


def pair(kernel="SDPA", **settings):
    """timm's attention, and ours with its weights."""
    settings = {"num_heads": 4, "qkv_bias": True, "norm_layer": torch.nn.LayerNorm, **settings}
    theirs = Attention(64, **settings)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    ours = attention(kernel)(64, **settings)
    ours.load_state_dict(theirs.state_dict())
    return ours.eval(), theirs.eval()


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"qk_norm": True},
        {"scale_norm": True, "proj_bias": False},
        {"qk_norm": True, "scale_norm": True, "gated": True},
        {"attn_head_dim": 24, "dim_out": 32, "qkv_bias": False},
    ],
)
@pytest.mark.parametrize("kernel", ["SDPA", "Auto", "Eager", "Tiled"])
def test_the_layer_is_timms(kernel, settings, fused):
    ours, theirs = pair(kernel, **settings)
    theirs.fused_attn = fused
    x = torch.randn(3, 17, 64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-5)
    x, found = x.double(), []
    for layer in (ours.double(), theirs.double()):
        mine = x.clone().requires_grad_()
        layer(mine).square().sum().backward()
        found.append({"x": mine.grad, **{name: parameter.grad for name, parameter in layer.named_parameters()}})
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kernel", ["SDPA", "Eager", "Tiled"])
def test_masks_are_timms(kernel):
    ours, theirs = pair(kernel)
    x = torch.randn(2, 9, 64)
    torch.testing.assert_close(ours(x, is_causal=True), theirs(x, is_causal=True), rtol=0, atol=1e-5)
    keys = torch.arange(9) < torch.tensor([[6], [9]])
    pairs = torch.rand(2, 1, 9, 9) < 0.6
    pairs[..., 0] = True
    for mask in (keys[:, None, None], pairs, pairs[0, 0], torch.randn(2, 4, 9, 9), torch.randn(9, 9)):
        torch.testing.assert_close(ours(x, attn_mask=mask), theirs(x, attn_mask=mask), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kernel", ["SDPA", "Eager", "RBF", "Sigmoid"])
def test_a_token_that_sees_nothing_gives_nothing(kernel):
    ours, _ = pair(kernel)
    x = torch.randn(2, 5, 64, requires_grad=True)
    mask = torch.ones(2, 1, 5, 5, dtype=torch.bool)
    mask[0, :, 2] = False
    y = ours(x, attn_mask=mask)
    torch.testing.assert_close(y[0, 2], ours.proj.bias)
    y.sum().backward()
    assert x.grad.isfinite().all()
    with pytest.raises(ZooError, match="got both"):
        ours(x, attn_mask=mask, is_causal=True)


@pytest.mark.parametrize("name", KERNELS)
def test_a_vision_transformer_trains(name):
    model = timm.create_model("deit_tiny_patch16_224", attn_layer=attention(installed(name)), depth=2, num_classes=5)
    logits = model(torch.randn(2, 3, 224, 224))
    assert logits.shape == (2, 5)
    torch.nn.functional.cross_entropy(logits, torch.tensor([1, 3])).backward()
    for where, parameter in model.named_parameters():
        assert parameter.grad is not None, where
        assert parameter.grad.isfinite().all(), where
    assert all(block.attn.qkv.weight.grad.abs().max() > 0 for block in model.blocks)


def test_the_vision_transformer_is_timms():
    theirs = timm.create_model("deit_tiny_patch16_224", depth=3).eval()
    ours = timm.create_model("deit_tiny_patch16_224", depth=3, attn_layer=attention("SDPA")).eval()
    assert not ours.load_state_dict(theirs.state_dict()).missing_keys
    assert {*ours.state_dict()} == {*theirs.state_dict()}
    images = torch.randn(2, 3, 224, 224)
    torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["Cosine", "Sink", "FourierIntegral"])
def test_weights_go_round(name):
    """timm's weights leave a kernel's own parameters alone; its own come back; a part of them is not enough."""
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 3}
    layer = attention(installed(name), grid=(4, 4))
    theirs, ours, other = VisionTransformer(**size), *(VisionTransformer(**size, attn_layer=layer) for _ in range(2))
    own = {key: value.clone() for key, value in ours.state_dict().items() if ".kernel." in key}
    ours.load_state_dict(theirs.state_dict())
    assert all(torch.equal(value, ours.state_dict()[key]) for key, value in own.items())
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter += 0.1
    other.load_state_dict(ours.state_dict())
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(other.eval()(images), ours.eval()(images))
    if own:
        with pytest.raises(RuntimeError, match="kernel"):
            ours.load_state_dict(
                {key: value for key, value in ours.state_dict().items() if "0.attn.kernel" not in key}
                | {"blocks.0.attn.kernel.stray": torch.zeros(1)}
            )


def test_a_kernel_is_told_its_arguments_and_its_place():
    layer = attention("Cosine", temperature=3.0)(32, num_heads=2, depth=7, device="cpu", dtype=torch.bfloat16)
    assert layer.kernel.temperature == 3.0
    assert layer.qkv.weight.dtype == torch.bfloat16
    assert layer.kernel.log_temperature.dtype == torch.float32, "as in any zoo model"
    assert layer(torch.randn(1, 4, 32, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert attention("Sigmoid", grid=(3, 5), prefix=2)(32).kernel.shift == pytest.approx(-torch.tensor(17.0).log())
    assert attention("RBF")(32, num_heads=2, device="meta").qkv.weight.is_meta


def test_what_cannot_be_had_is_said():
    with pytest.raises(ZooError, match=r"No kernel is called Cosin\. Did you mean Cosine"):
        attention("Cosin")
    with pytest.raises(ZooError, match=r"has no argument heat; it has: temperature, limit"):
        attention("Cosine", heat=3.0)
    with pytest.raises(ZooError, match=r"drops no attention weights.*0\.1"):
        attention("SDPA")(32, attn_drop=0.1)
    layer = attention("LinearAttention")(32)
    assert layer(torch.randn(1, 4, 32), is_causal=True).shape == (1, 4, 32)
    with pytest.raises(ZooError, match="cannot carry a Dense bias"):
        layer(torch.randn(1, 4, 32), attn_mask=torch.ones(4, 4, dtype=torch.bool))


def test_a_model_is_pickled_and_copied():
    model = timm.create_model("deit_tiny_patch16_224", attn_layer=attention("FourierIntegral", power=2.0), depth=1)
    again = pickle.loads(pickle.dumps(model))
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
    assert copy.deepcopy(again).blocks[0].attn.kernel.bandwidth.power == 2.0


def test_the_kernels_own_parameters_are_spared_by_weight_decay():
    from timm.optim import param_groups_weight_decay

    model = timm.create_model("deit_tiny_patch16_224", attn_layer=attention("FourierIntegral"), depth=2)
    names = undecayed(model)
    assert names == {f"blocks.{n}.attn.kernel.bandwidth.log_radius" for n in range(2)}
    spared, decayed = param_groups_weight_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay() | names)
    own = {id(block.attn.kernel.bandwidth.log_radius) for block in model.blocks}
    assert own <= {id(p) for p in spared["params"]}
    assert not own & {id(p) for p in decayed["params"]}
