"""What goes with what: each cell of the matrix trains, or is refused when the model is built, with the same reasons."""

import pytest
import torch

from zoo import plugins
from zoo.auto import Auto
from zoo.bias import Dense, Logits, Slopes, Toeplitz
from zoo.decoder import Decoder
from zoo.errors import ZooError
from zoo.kernel import Eager, Request
from zoo.matrix import GEOMETRY, GRID, Cell, agree, matrix, objections, request
from zoo.position import Encoding, PositionEncoding
from zoo.vit import ViT

CELLS = matrix()


def model(cell: Cell) -> torch.nn.Module:
    """The small model that a cell is about."""
    slots = {
        "position": plugins.load("zoo.positions", cell.position),
        "kernel": plugins.load("zoo.kernels", cell.kernel),
        "dim": GEOMETRY.dim,
        "heads": GEOMETRY.heads,
        "layers": 2,
    }
    if cell.axes == 1:
        return Decoder(vocabulary=32, length=GEOMETRY.length[0], **slots)
    return ViT(classes=5, channels=1, size=(16, 20), patch=2, **slots)


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: f"{cell.position}-{cell.kernel}-{cell.axes}")
def test_a_cell_trains_or_says_why_not(cell):
    torch.manual_seed(0)
    if cell.reasons:
        with pytest.raises(ZooError) as error:
            model(cell)
        assert all(reason in str(error.value) for reason in cell.reasons)
        assert all(len(reason.split()) > 4 for reason in cell.reasons), "a reason is a sentence"
        return
    made = model(cell)
    refusal = untrainable(cell)
    if refusal:  # it goes together, and trains on another device
        with pytest.raises(ZooError) as error:
            made.trunk.check(
                device="cpu", dtype=torch.float32, training=True, mask=frozenset({"causal"}), extent=GEOMETRY.length[0]
            )
        assert refusal[0] in str(error.value)
        return
    step(made, cell.axes)


def untrainable(cell: Cell) -> list[str]:
    """Why a kernel does not train here."""
    kernel = plugins.load("zoo.kernels", cell.kernel)(GEOMETRY if cell.axes == 1 else GRID)
    return kernel.refuses(Request(device="cpu", dtype=torch.float32, training=True, size=4096))


def step(made: torch.nn.Module, axes: int) -> None:
    """A step of training changes every trainable parameter, and the loss falls."""
    answer = torch.arange(48).view(2, 24) % 32 if axes == 1 else torch.tensor([1, 3])
    asked = answer if axes == 1 else torch.randn(2, 1, 16, 20)
    optimizer = torch.optim.SGD(made.parameters(), lr=0.05)
    losses = []
    for _ in range(3):
        loss = torch.nn.functional.cross_entropy(made(asked).flatten(0, -2), answer.flatten())
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        missing = [name for name, p in made.named_parameters() if p.requires_grad and p.grad is None]
        assert not missing, f"no gradient for {missing}"
        optimizer.step()
    assert losses[-1] < losses[0]


def test_the_matrix_has_every_pair_for_text_and_images():
    names = {(cell.position, cell.kernel, cell.axes) for cell in CELLS}
    positions, kernels = plugins.names("zoo.positions"), plugins.names("zoo.kernels")
    assert names == {(p, k, axes) for p in positions for k in kernels for axes in (1, 2)}


def refusal(encoding, geometry) -> str:
    """Why an encoding does not serve a geometry, or nothing."""
    try:
        encoding(geometry)
    except ZooError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", plugins.names("zoo.positions"))
def test_auto_and_eager_serve_whatever_an_encoding_serves(name):
    served = 0
    for axes, geometry in ((1, GEOMETRY), (2, GRID)):
        reasons = {cell.reasons for cell in CELLS if cell.axes == axes and cell.position == name}
        refused = refusal(plugins.load("zoo.positions", name), geometry)
        if refused:
            assert reasons == {(refused,)}, "no kernel can serve what the encoding refuses"
            continue
        served += 1
        assert {cell.kernel for cell in CELLS if cell.axes == axes and cell.position == name and not cell.reasons} >= {
            "Auto",
            "Eager",
        }
    assert served


class Plain(Eager):
    """Carries no bias."""

    fuses = None


class Steep(Eager):
    """Carries slopes."""

    fuses = Slopes


class Shy(Eager):
    """Refuses rotations."""

    def refuses(self, request: Request) -> list[str]:
        return ["Shy cannot turn."] if request.rotation else []


class Kerple(PositionEncoding):
    """A bias of some rung."""

    rung = Toeplitz

    def forward(self, queries, keys, extent, hidden=None, state=None):
        table = torch.zeros(self.geometry.heads, extent)
        if self.rung is Toeplitz:
            return Encoding(bias=Toeplitz(table, queries[..., 0], keys[..., 0]))
        return Encoding(bias=Dense(torch.zeros(1, self.geometry.heads, len(queries), len(keys))))


class Everything(Kerple):
    """A dense bias."""

    rung = Dense


class Map(PositionEncoding):
    """A map of the logits."""

    def forward(self, queries, keys, extent, hidden=None, state=None):
        return Encoding(bias=Logits(lambda logits, *rest: logits, (), heads=self.geometry.heads))


def refused(position, kernel) -> str:
    with pytest.raises(ZooError) as error:
        Decoder(vocabulary=8, length=16, dim=32, heads=2, layers=1, position=position, kernel=kernel)
    return str(error.value)


def test_a_refusal_says_what_why_and_what_would_work():
    lines = refused(Kerple, Steep).splitlines()
    assert lines[0] == "the kernel Steep cannot carry the bias of the position encoding Kerple."
    assert lines[1] == "  Kerple adds a Toeplitz bias; Steep carries Slopes."
    able, _, hint = lines[2].partition(".   Try:  --model.kernel ")
    assert able.startswith("  Installed kernels that can: ")
    assert set(able.removeprefix("  Installed kernels that can: ").split(", ")) >= {"Auto", "Eager", "SDPA", "Tiled"}
    assert hint in plugins.names("zoo.kernels")
    assert len(lines) == 3


def test_a_kernel_without_any_bias_says_so():
    assert "Everything adds a Dense bias; Plain carries no bias." in refused(Everything, Plain)


def test_kernels_that_cannot_are_not_recommended():
    able = refused(Map, Steep).splitlines()[-1]
    assert "SDPA" not in able
    assert "Flex" not in able
    assert "Tiled" in able


def test_a_kernel_may_refuse_for_reasons_of_its_own():
    sentence = refused(plugins.load("zoo.positions", "RoPE"), Shy)
    assert sentence.startswith("the kernel Shy cannot serve the position encoding RoPE.\n  Shy cannot turn.\n")


def test_what_a_kernel_carries_it_does_not_refuse():
    position = Kerple(GEOMETRY)
    agree(position, Eager(GEOMETRY))
    agree(position, Auto(GEOMETRY))
    assert objections(request(position), Eager(GEOMETRY), "Kerple") == []


def test_auto_says_why_no_kernel_serves(monkeypatch):
    monkeypatch.setattr(Auto, "order", staticmethod(lambda request: ("SDPA", "Nowhere")))
    monkeypatch.setattr("zoo.auto.NAMES", ("SDPA", "Nowhere"))
    with pytest.raises(ZooError) as error:
        agree(Map(GEOMETRY), Auto(GEOMETRY), device="cpu", dtype=torch.float32, training=True, size=4096)
    sentence = str(error.value)
    assert sentence.startswith("No installed kernel serves this model. Not SDPA (does not carry a Logits bias).")
    assert "No kernel is called Nowhere" in sentence
