"""The decoder and its encodings against transformers', each side built and computed by its own code.

A transformers model gets random weights, norms and biases included; a table says which of them ours takes from where,
and loading is strict, so that nothing is left over on either side. Logits agree to 1e-5, and cached greedy generation
gives the same ids.
"""

import importlib.util
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from zoo import plugins
from zoo.decoder import Decoder
from zoo.generate import generate
from zoo.position import Geometry

pytestmark = pytest.mark.parity
if importlib.util.find_spec("transformers") is None:
    pytest.skip("transformers is not installed here: tox -e parity", allow_module_level=True)

import transformers  # noqa: E402
from transformers.models.bloom.modeling_bloom import build_alibi_tensor  # noqa: E402
from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding  # noqa: E402

OLD = transformers.__version__.startswith("4.")
VOCABULARY, LENGTH, LAYERS, DIM, HIDDEN = 61, 32, 2, 48, 80
State = dict[str, Tensor]


def draw(name: str, **config: object) -> transformers.PreTrainedModel:
    """A transformers model, every weight of it random."""
    torch.manual_seed(0)
    kind = getattr(transformers, f"{name}Config")
    if OLD and "rope_parameters" in config:
        rope = config.pop("rope_parameters")
        words = ("rotary_emb_base", "rotary_pct") if name == "GPTNeoX" else ("rope_theta", "partial_rotary_factor")
        config |= dict(zip(words, (rope["rope_theta"], rope.get("partial_rotary_factor", 1.0)), strict=True))
    config = kind(
        vocab_size=VOCABULARY,
        hidden_size=DIM,
        num_hidden_layers=LAYERS,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
        tie_word_embeddings=False,
        attn_implementation="eager",
        **config,
    )
    known = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in known.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1)
    return known


def tokens(count: int, rows: int = 2) -> Tensor:
    return torch.randint(1, VOCABULARY, (rows, count), generator=torch.Generator().manual_seed(1))


def plugin(name: str, **numbers: object) -> Callable[[Geometry], torch.nn.Module]:
    return lambda geometry: plugins.load("zoo.positions", name)(geometry, **numbers)


def decoder(state: State, **options: object) -> Decoder:
    """Ours, with those weights and no others."""
    own = Decoder(vocabulary=VOCABULARY, length=LENGTH, dim=DIM, layers=LAYERS, tied=False, **options).eval()
    own.load_state_dict({name: weight.clone() for name, weight in state.items()})
    return own


def rename(theirs: State, outer: dict[str, str], inner: dict[str, str], layers: str) -> State:
    """Weights under our names; `inner` are those of one layer."""
    pairs = dict(outer)
    for layer in range(LAYERS):
        pairs |= {f"trunk.blocks.{layer}.{own}": f"{layers}.{layer}.{name}" for own, name in inner.items()}
    return {
        f"{own}.{kind}": theirs[f"{name}.{kind}"]
        for own, name in pairs.items()
        for kind in ("weight", "bias")
        if f"{name}.{kind}" in theirs
    }


def stack(state: State, own: str, layers: str, theirs: State, *names: str) -> None:
    """Several of their matrices as one of ours."""
    for layer in range(LAYERS):
        parts = [theirs[f"{layers}.{layer}.{name}.weight"] for name in names]
        state[f"trunk.blocks.{layer}.{own}.weight"] = torch.cat(parts)


def sort_heads(state: State, heads: int) -> None:
    """Rows of query, key and value are grouped by head there (GPT-NeoX, Bloom), and by kind here."""
    for name, weight in state.items():
        if ".qkv." in name:
            state[name] = weight.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2)


def llama(name: str, heads: int = 4, kv_heads: int = 2, after: bool = False, **config: object) -> tuple:
    """Llama and what descends from it: theirs, and the state and options of ours."""
    known = draw(
        name,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=HIDDEN,
        max_position_embeddings=LENGTH,
        **config,
    )
    theirs, layers = known.state_dict(), "model.layers"
    norms = ("post_attention_layernorm", "post_feedforward_layernorm") if after else None
    first, second = norms or ("input_layernorm", "post_attention_layernorm")
    inner = {"norm1": first, "norm2": second, "attention.out": "self_attn.o_proj", "feed_forward.down": "mlp.down_proj"}
    inner |= {f"attention.{part}_norm": f"self_attn.{part}_norm" for part in "qk"}
    outer = {"embedding": "model.embed_tokens", "trunk.norm": "model.norm"}
    state = rename(theirs, outer, inner, layers)
    stack(state, "attention.qkv", layers, theirs, *(f"self_attn.{part}_proj" for part in "qkv"))
    stack(state, "feed_forward.up", layers, theirs, "mlp.gate_proj", "mlp.up_proj")
    base = known.config.rope_theta if OLD else known.config.rope_parameters["rope_theta"]
    options = {"heads": heads, "kv_heads": kv_heads, "hidden": HIDDEN, "eps": known.config.rms_norm_eps}
    return known, state, {**options, "position": plugin("RoPE", base=base)}


def case(name: str) -> tuple[transformers.PreTrainedModel, Decoder]:
    """Theirs and ours with the same weights."""
    if name == "Llama":
        known, state, options = llama("Llama", rope_parameters={"rope_type": "default", "rope_theta": 777.0})
    elif name == "Mistral":
        known, state, options = llama("Mistral", sliding_window=7)
        options |= {"window": 7}
    elif name == "Qwen3":
        known, state, options = llama("Qwen3", head_dim=16)
        options |= {"head_dim": 16, "qk_norm": "head"}
    elif name == "Olmo2":
        known, state, options = llama("Olmo2", after=True)
        options |= {"norm_at": "after", "qk_norm": "width"}
    else:
        known, state, options = gpt(name)
    return known, decoder({**state, "head.weight": known.get_output_embeddings().weight}, **options)


def gpt(name: str) -> tuple:
    """GPT-2, GPT-NeoX and Bloom: LayerNorm, GELU, biases everywhere."""
    family, _, count = name.partition(" ")
    heads = int(count or 4)
    biases = {name: True for name in ("qkv_bias", "out_bias", "feed_forward_bias")}
    options = {"heads": heads, "norm": "LayerNorm", "eps": 1e-5, "feed_forward": "GELU-tanh", **biases}
    if family == "GPT2":
        known = draw("GPT2", n_head=heads, n_positions=LENGTH)
        theirs, root = known.state_dict(), "transformer"
        outer = {"embedding": f"{root}.wte", "trunk.norm": f"{root}.ln_f"}
        inner = {"norm1": "ln_1", "norm2": "ln_2", "attention.qkv": "attn.c_attn", "attention.out": "attn.c_proj"}
        inner |= {"feed_forward.up": "mlp.c_fc", "feed_forward.down": "mlp.c_proj"}
        state = rename(theirs, outer, inner, f"{root}.h")
        for own in state:  # Conv1D keeps [in, out]
            if own.endswith("weight") and ("attention" in own or "feed_forward" in own):
                state[own] = state[own].T
        state["trunk.positions.0.table"] = theirs[f"{root}.wpe.weight"]
        return known, state, {**options, "position": plugin("Learned")}
    if family == "Bloom":
        known = draw("Bloom", n_head=heads)
        root, layers = "transformer", "transformer.h"
        outer = {"embedding": f"{root}.word_embeddings", "trunk.norm": f"{root}.ln_f"}
        attention, options["position"] = "self_attention", plugin("ALiBi")
    else:
        known = draw(
            "GPTNeoX",
            num_attention_heads=heads,
            intermediate_size=HIDDEN,
            max_position_embeddings=LENGTH,
            use_parallel_residual=family == "GPTNeoX",
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        )
        layers, attention = "gpt_neox.layers", "attention"
        outer = {"embedding": "gpt_neox.embed_in", "trunk.norm": "gpt_neox.final_layer_norm"}
        options |= {"position": plugin("RoPE", fraction=0.5), "feed_forward": "GELU", "hidden": HIDDEN}
        options |= {"parallel": family == "GPTNeoX"}
    inner = {"norm1": "input_layernorm", "norm2": "post_attention_layernorm"}
    inner |= {"attention.qkv": f"{attention}.query_key_value", "attention.out": f"{attention}.dense"}
    inner |= {"feed_forward.up": "mlp.dense_h_to_4h", "feed_forward.down": "mlp.dense_4h_to_h"}
    state = rename(known.state_dict(), outer, inner, layers)
    sort_heads(state, heads)
    if family == "Bloom":  # a norm on the embeddings, which is a row at a time: it goes into the table
        state["embedding.weight"] = known.transformer.word_embeddings_layernorm(state["embedding.weight"])
    return known, state, options


LLAMAS = ("Llama", "Mistral", "Qwen3", "Olmo2")
OTHERS = ("GPTNeoX", "GPTNeoX-sequential", "Bloom 4", "Bloom 3", "Bloom 6", "GPT2")


@pytest.mark.parametrize("name", LLAMAS + OTHERS)
@torch.inference_mode()
def test_logits(name):
    known, own = case(name)
    ids = tokens(LENGTH)
    expected = known(input_ids=ids).logits
    torch.testing.assert_close(own(ids), expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.1
    assert not torch.allclose(own(ids.flip(1)).flip(1), expected, atol=0.1), "order does not matter to this test"


@pytest.mark.parametrize("name", ["Llama", "Mistral", "GPTNeoX", "Bloom 6"])
@torch.inference_mode()
def test_logits_beyond_the_trained_length(name):
    known, own = case(name)
    ids = tokens(3 * LENGTH)
    torch.testing.assert_close(own(ids), known(input_ids=ids).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", LLAMAS + OTHERS)
@torch.inference_mode()
def test_cached_greedy_generation(name):
    known, own = case(name)
    ids = tokens(8)
    expected = known.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False)[:, 8:]
    assert generate(own, ids, 24, temperature=0).tolist() == expected.tolist()
    assert len(set(expected.flatten().tolist())) > 4


@pytest.mark.parametrize("name", ["Llama", "Mistral", "Bloom 6"])
@torch.inference_mode()
def test_cached_greedy_generation_with_left_padding(name):
    known, own = case(name)
    ids, padding = tokens(8), torch.tensor([0, 3])
    seen = (torch.arange(8) >= padding[:, None]).long()
    expected = known.generate(ids * seen, attention_mask=seen, max_new_tokens=24, do_sample=False)[:, 8:]
    assert generate(own, ids * seen, 24, temperature=0, padding=padding).tolist() == expected.tolist()


@pytest.mark.parametrize("heads", [1, 2, 3, 8, 12, 16, 20])
def test_slopes_of_alibi(heads):
    """Bloom adds slope x key position, we take away slope x distance: the rows differ by a constant."""
    geometry = Geometry(dim=8 * heads, heads=heads, kv_heads=heads, head_dim=8, length=(LENGTH,))
    at = torch.arange(float(LENGTH)).unsqueeze(-1)
    bias = plugin("ALiBi")(geometry)(at, at, LENGTH).bias
    added = build_alibi_tensor(torch.ones(1, LENGTH, dtype=torch.long), heads, torch.float32)  # [heads, 1, keys]
    torch.testing.assert_close(bias.tensors[0], added[:, 0, 1], rtol=0, atol=1e-7)
    every, hidden = slice(0, LENGTH), torch.ones(LENGTH, LENGTH).triu(1).bool()
    both = bias.block(every, every)[0], added.expand(-1, LENGTH, -1)
    ours, theirs = (x.masked_fill(hidden, -torch.inf).softmax(-1) for x in both)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dim", [8, 48])
def test_sinusoidal(dim):
    geometry = Geometry(dim=dim, heads=1, kv_heads=1, head_dim=dim, length=(LENGTH,))
    at = torch.arange(100.0).unsqueeze(-1)
    found = plugin("Sinusoidal", layout="concatenated")(geometry)(at, at, 100).embedding
    table = MarianSinusoidalPositionalEmbedding(100, dim)
    expected = (table._init_weight() or table.weight) if OLD else table.create_weight()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
