"""Auto: the order in which it asks, the reasons it gives, the sentence where nothing serves."""

from __future__ import annotations

import logging

import pytest
import torch

from zoo import auto as choice
from zoo.auto import DENSE, Auto
from zoo.errors import ZooError
from zoo.kernel import Eager, Kernel, Request
from zoo.position import Logits, Pointwise, Slopes, Toeplitz


def chosen(auto: Auto, **asked: object) -> str:
    return type(auto.choose(Request(device="cpu", **asked))).__name__


def test_a_plain_causal_model_gets_flash(geometry):
    assert chosen(Auto(geometry)) == "SDPA"
    assert chosen(Auto(geometry), mask=frozenset()) == "SDPA"


def test_a_learned_bias_on_the_cpu_gets_tiled_unless_it_is_very_small(geometry):
    auto, asked = Auto(geometry), {"rung": Toeplitz, "learned": True, "training": True}
    assert chosen(auto, **asked, size=DENSE // 4) == "SDPA"
    assert chosen(auto, **asked, size=DENSE // 4 + 1) == "Tiled"


def test_a_fixed_bias_is_held_densely_while_it_is_small(geometry):
    auto = Auto(geometry)
    assert chosen(auto, rung=Slopes, learned=False, size=DENSE) == "SDPA"
    assert chosen(auto, rung=Slopes, learned=False, size=DENSE + 1) == "Tiled"


def test_a_map_of_the_logits_gets_tiled(geometry):
    assert chosen(Auto(geometry), rung=Logits, learned=False, size=100) == "Tiled"


def test_on_cuda_flex_comes_first():
    assert Auto.order(Request(rung=Pointwise, device="cuda"))[0] == "Flex"
    assert Auto.order(Request(rung=None, device="cuda"))[0] == "SDPA"


def test_it_says_why_faster_kernels_were_passed_over(geometry, caplog):
    choice.say.cache_clear()
    with caplog.at_level(logging.INFO):
        Auto(geometry).choose(Request(device="cpu", rung=Logits, size=1))
    assert "Auto chose Tiled on cpu; not SDPA (does not carry a Logits bias)" in caplog.text


def test_nothing_serves(geometry, monkeypatch):
    class Fussy(Kernel):
        fuses = Logits

        def refuses(self, request: Request) -> list[str]:
            return ["It is Sunday."]

    monkeypatch.setattr(choice.plugins, "load", lambda group, name: Fussy)
    with pytest.raises(ZooError, match=r"No installed kernel serves this model.*Not SDPA \(It is Sunday\)"):
        Auto(geometry).choose(Request(device="cpu"))


@pytest.mark.parametrize(
    ("rung", "length", "name"),
    [
        ("none", 21, "SDPA"),
        ("toeplitz", 21, "SDPA"),
        ("toeplitz", 270, "Tiled"),
        ("pointwise", 256, "SDPA"),
        ("logits", 21, "Tiled"),
    ],
)
def test_it_chooses_by_what_it_is_given(case, geometry, rung, length, name):
    one, auto = case(rung, "causal", length), Auto(geometry)
    for found, wanted in zip(one.all(auto), one.all(Eager(geometry)), strict=True):
        torch.testing.assert_close(found, wanted)
    assert [type(kernel).__name__ for kernel in auto.kernels.values()] == [name]


def test_lengths_on_either_side_of_the_limit_get_their_own_kernels(case, geometry):
    auto = Auto(geometry)
    for length in (21, 270):
        case("toeplitz", "causal", length).run(auto)
    assert [type(kernel).__name__ for kernel in auto.kernels.values()] == ["SDPA", "Tiled"]


def test_what_it_chose_is_asked_for_the_same_heads(geometry, monkeypatch):
    auto, asked = Auto(geometry), []

    class Chosen(Eager):
        def forward(self, q, k, v, **rest):
            asked.append(self.share)
            return super().forward(q, k, v, **rest)

    monkeypatch.setattr(auto, "choose", lambda request: Chosen(geometry))
    for share in (slice(0, 2), slice(2, 4), slice(None)):
        auto.share = share
        auto(*(torch.randn(1, 2, 3, 8) for _ in range(3)))
    assert asked == [slice(0, 2), slice(2, 4), slice(None)]
