"""What every first-party encoding keeps in half precision, under autocast, on the meta device and in checkpoints."""

import copy
import pickle

import pytest
import torch
from zoo_positions.alibi import ALiBi
from zoo_positions.dynamic import DynamicBias
from zoo_positions.kerple import KERPLE
from zoo_positions.learned import Learned
from zoo_positions.rope import FoPE, RoPE
from zoo_positions.sandwich import Sandwich
from zoo_positions.sinusoidal import Sinusoidal
from zoo_positions.t5 import T5

from zoo.position import Encoding, PositionEncoding

FAR = 32_000
BUILDERS = {
    "RoPE": lambda shape: RoPE(shape(head_dim=64)),
    "RoPE partial": lambda shape: RoPE(shape(head_dim=64), fraction=0.25, pairing="interleaved"),
    "FoPE": lambda shape: FoPE(shape(head_dim=64, heads=4, kv_heads=2, length=(1024,))),
    "FoPE paper": lambda shape: FoPE(shape(head_dim=64, length=(512,)), dialect="paper"),
    "ALiBi": lambda shape: ALiBi(shape(heads=12)),
    "ALiBi trainable": lambda shape: ALiBi(shape(heads=12), trainable=True),
    "T5": lambda shape: T5(shape(heads=12)),
    "T5 both": lambda shape: T5(shape(heads=12, causal=False), std="xavier", multiplier="root"),
    "KERPLE": lambda shape: KERPLE(shape(heads=12)),
    "KERPLE power": lambda shape: KERPLE(shape(heads=12), kind="power", parametrization="softplus"),
    "Sandwich": lambda shape: Sandwich(shape(heads=12)),
    "DynamicBias": lambda shape: DynamicBias(shape(heads=12)),
    "DynamicBias linear": lambda shape: DynamicBias(shape(heads=12), distance="linear"),
    "Sinusoidal": lambda shape: Sinusoidal(shape()),
    "Learned": lambda shape: Learned(shape(length=(FAR + 64,))),
}
CONSTANT = ["Sandwich", "RoPE", "RoPE partial", "ALiBi", "Sinusoidal"]


@pytest.fixture(params=BUILDERS)
def encoding(request, shape) -> PositionEncoding:
    torch.manual_seed(0)
    return BUILDERS[request.param](shape)


def tensors(encoding: Encoding) -> list[torch.Tensor]:
    """Everything that an encoding says, as numbers."""
    said = [encoding.embedding] if encoding.embedding is not None else []
    if encoding.rotation is not None:
        said += [encoding.rotation.cos, encoding.rotation.sin]
    if encoding.bias is not None:
        whole = slice(0, encoding.bias.queries), slice(0, encoding.bias.keys)
        said.append(encoding.bias.block(*whole))
    return said


def speak(encoding: PositionEncoding) -> list[torch.Tensor]:
    at = torch.arange(FAR, FAR + 40).float().unsqueeze(-1)
    return tensors(encoding(at, at, FAR + 40))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_changes_no_bit(encoding, kind):
    before = speak(encoding)
    after = speak(encoding.to(kind))
    for one, other in zip(before, after, strict=True):
        assert other.dtype == torch.float32
        assert torch.equal(one, other)


def test_a_default_of_bfloat16_changes_no_bit(encoding, request, shape):
    name = request.node.callspec.params["encoding"]
    torch.set_default_dtype(torch.bfloat16)  # as Lightning does while it builds a model in bf16-true
    try:
        other = BUILDERS[name](shape)
        assert all(x.dtype == torch.float32 for x in (*other.parameters(), *other.buffers()) if x.is_floating_point())
        other.load_state_dict(encoding.state_dict())
        said = speak(other)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(one, two) for one, two in zip(speak(encoding), said, strict=True))


def test_autocast_changes_no_bit(encoding):
    before = speak(encoding)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        after = speak(encoding)
    assert all(torch.equal(one, two) for one, two in zip(before, after, strict=True))


def test_a_bfloat16_module_far_out_agrees_with_float64(encoding):
    said = speak(copy.deepcopy(encoding).bfloat16())
    exact = speak(encoding.double())
    for one, other in zip(said, exact, strict=True):
        assert other.dtype == torch.float64
        torch.testing.assert_close(one.double(), other, rtol=1e-6, atol=8e-3)  # 32 000 is known to 0.002 in float32


def test_a_round_trip_through_half_and_double_restores_every_bit(encoding):
    before = speak(encoding)
    assert all(torch.equal(a, b) for a, b in zip(before, speak(encoding.double().float()), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, speak(encoding.double().half().float()), strict=True))


def test_pickles_and_copies_speak_alike(encoding):
    for other in (copy.deepcopy(encoding), pickle.loads(pickle.dumps(encoding))):
        assert all(torch.equal(one, two) for one, two in zip(speak(encoding), speak(other), strict=True))


@pytest.mark.parametrize("name", CONSTANT)
def test_constants_are_in_no_state_dict(shape, name):
    assert not BUILDERS[name](shape).state_dict()


@pytest.mark.parametrize("name", BUILDERS)
def test_the_meta_device_loses_nothing(shape, name):
    torch.manual_seed(0)
    plain = BUILDERS[name](shape)
    with torch.device("meta"):
        empty, assigned = BUILDERS[name](shape), BUILDERS[name](shape)
    filled = empty.to_empty(device="cpu")
    filled.load_state_dict(plain.state_dict())
    assigned.load_state_dict(plain.state_dict(), assign=True)
    for other in (filled, assigned):
        assert all(torch.equal(one, two) for one, two in zip(speak(plain), speak(other), strict=True))


@pytest.mark.parametrize("name", [name for name in BUILDERS if name not in CONSTANT])
def test_reset_parameters_draws_what_the_constructor_drew(shape, name):
    torch.manual_seed(3)
    plain = BUILDERS[name](shape)
    with torch.device("meta"):
        empty = BUILDERS[name](shape)
    filled = empty.to_empty(device="cpu")
    torch.manual_seed(3)
    filled.reset_parameters()
    assert all(torch.equal(one, two) for one, two in zip(speak(plain), speak(filled), strict=True))
