"""The exam for encodings, examined: what is broken on purpose must be caught, by name; what is sound must pass."""

import pytest
import torch
from torch import nn

from zoo.bias import Dense, Pointwise, Toeplitz
from zoo.errors import ZooError
from zoo.position import Encoding, NoPE, PositionEncoding, Rotation
from zoo.testing import examine


def failures(subject) -> set[str]:
    return {result.name for result in examine(subject) if not result.passed}


class Table(PositionEncoding):
    """A learned number per head and distance.

    Args:
        start: Of the numbers.
    """

    def __init__(self, geometry, *, start: float = 0.1):
        super().__init__(geometry)
        if geometry.axes != 1:
            raise ZooError("Table knows one axis.")
        self.table = nn.Parameter(start * torch.randn(geometry.heads, 129))

    def cut(self, queries, keys):
        """Distances as an index into the table."""
        return (queries[..., 0].unsqueeze(-1) - keys[..., 0].unsqueeze(-2)).clamp(-64, 64).long() + 64

    def forward(self, queries, keys, extent, hidden=None, state=None):
        return Encoding(bias=Toeplitz(self.table * 1, queries[..., 0], keys[..., 0], lowest=-64, prefix=self.prefix))

    @property
    def prefix(self):
        return self.geometry.prefix


class Turn(PositionEncoding):
    """Rotation by hand, on one axis or two.

    Args:
        base: Of the waves.
    """

    def __init__(self, geometry, *, base: float = 1000.0):
        super().__init__(geometry)
        if geometry.head_dim % (2 * geometry.axes):
            raise ZooError("Turn needs pairs.")
        pairs = geometry.head_dim // 2 // geometry.axes
        self.register_buffer("waves", base ** -(torch.arange(pairs) / pairs))

    def angles(self, positions):
        with torch.autocast("cpu", enabled=False):
            return (positions.unsqueeze(-1) * self.waves).flatten(-2)

    def forward(self, queries, keys, extent, hidden=None, state=None):
        angles = self.angles(queries)
        angles = angles.view(-1, 1, *angles.shape[-2:])
        return Encoding(rotation=Rotation(angles.cos(), angles.sin(), self.waves, prefix=self.geometry.prefix))


class Waves(PositionEncoding):
    """Sines added to the tokens, on one axis or two.

    Args:
        base: Of the waves.
    """

    relative = False

    def __init__(self, geometry, *, base: float = 1000.0):
        super().__init__(geometry)
        if geometry.dim % (2 * geometry.axes):
            raise ZooError("Waves needs pairs.")
        pairs = geometry.dim // 2 // geometry.axes
        self.register_buffer("waves", base ** -(torch.arange(pairs) / pairs))

    def forward(self, queries, keys, extent, hidden=None, state=None):
        angles = (self.number(queries, extent).unsqueeze(-1) * self.waves).flatten(-2)
        return Encoding(embedding=torch.cat((angles.sin(), angles.cos()), -1))

    def number(self, positions, extent):
        return positions


class LogN(PositionEncoding):
    """Sharper attention further on: a scale for each query (Chiang and Cholak 2022, arXiv:2202.12172)."""

    relative = False

    def forward(self, queries, keys, extent, hidden=None, state=None):
        return Encoding(scale=(queries.sum(-1) + 2).log())


@pytest.mark.parametrize("sound", [Table, Turn, Waves, LogN, NoPE])
def test_sound_encodings_pass(sound):
    assert not failures(sound)


class Dropped(Table):
    def forward(self, queries, keys, extent, hidden=None, state=None):
        return Encoding()


class Leaked(Table):
    def forward(self, queries, keys, extent, hidden=None, state=None):
        return Encoding(bias=Toeplitz(self.table, queries[..., 0], keys[..., 0], lowest=-64))


class Closed(Table):
    """The parameter in a closure.

    Args:
        start: Of the numbers.
    """

    def forward(self, queries, keys, extent, hidden=None, state=None):
        where = self.cut(queries, keys)
        where = where if where.ndim == 3 else where.unsqueeze(0)
        sizes = {"heads": len(self.table), "queries": where.shape[1], "keys": where.shape[2], "batch": len(where)}
        return Encoding(bias=Pointwise(self.value, (where,), **sizes, prefix=self.prefix))

    def value(self, b, h, i, j, where):
        return self.table[h, where[b, i, j]]


class Detached(Table):
    def forward(self, queries, keys, extent, hidden=None, state=None):
        table = self.table * self.table.detach()  # half of the gradient of a square
        return Encoding(bias=Toeplitz(table, queries[..., 0], keys[..., 0], lowest=-64, prefix=self.prefix))


class Frozen(Table):
    def forward(self, queries, keys, extent, hidden=None, state=None):
        table = self.table.detach() * 1
        return Encoding(bias=Toeplitz(table, queries[..., 0], keys[..., 0], lowest=-64, prefix=self.prefix))


class Batched(Table):
    def forward(self, queries, keys, extent, hidden=None, state=None):
        table = torch.cat((self.table[:, :1], self.table), 1)
        where = self.cut(queries, keys)
        where = where if where.ndim == 3 else where.unsqueeze(0)
        own = torch.arange(len(where)).view(-1, 1, 1) % 2  # the row's number in the batch
        return Encoding(bias=Dense(table[:, where + own].transpose(0, 1), prefix=self.prefix))


class Unseen(Table):
    """Rows of a batch share the first row's positions.

    Args:
        start: Of the numbers.
    """

    def forward(self, queries, keys, extent, hidden=None, state=None):
        if queries.ndim == 3:
            queries, keys = queries[0], keys[0]
        return super().forward(queries, keys, extent)


class Bare(Table):
    """No room for the prefix."""

    prefix = 0


class Idle(Table):
    """An argument that nobody reads.

    Args:
        start: Of the numbers.
        depth: Of nothing.
    """

    def __init__(self, geometry, *, start: float = 0.1, depth: int = 3):
        super().__init__(geometry, start=start)


class Loose(Table):
    """Not keyword-only.

    Args:
        start: Of the numbers.
    """

    def __init__(self, geometry, start: float = 0.1):
        super().__init__(geometry, start=start)


class Mute(Table):
    """An argument that the docstring leaves out."""

    def __init__(self, geometry, *, start: float = 0.1):
        super().__init__(geometry, start=start)


class Forgetful(Table):
    def __init__(self, geometry, *, start: float = 0.1):
        super().__init__(geometry, start=start)
        self.register_buffer("noise", torch.randn_like(self.table), persistent=False)

    def forward(self, queries, keys, extent, hidden=None, state=None):
        table = self.table + self.noise
        return Encoding(bias=Toeplitz(table, queries[..., 0], keys[..., 0], lowest=-64, prefix=self.prefix))


class Mixed(Table):
    def forward(self, queries, keys, extent, hidden=None, state=None):
        table = self.table @ torch.eye(129)  # a matrix product: half precision under autocast
        return Encoding(bias=Toeplitz(table, queries[..., 0], keys[..., 0], lowest=-64, prefix=self.prefix))


class Counting(Table):
    def forward(self, queries, keys, extent, hidden=None, state=None):
        table = self.table * len(keys)
        return Encoding(bias=Toeplitz(table, queries[..., 0], keys[..., 0], lowest=-64, prefix=self.prefix))


class Infinite(Table):
    def forward(self, queries, keys, extent, hidden=None, state=None):
        table = torch.cat((torch.full_like(self.table[:, :64], -torch.inf), self.table[:, 64:]), 1)
        return Encoding(bias=Toeplitz(table, queries[..., 0], keys[..., 0], lowest=-64, prefix=self.prefix))


class Crashing(Turn):
    def __init__(self, geometry, *, base: float = 1000.0):
        if geometry.head_dim % 2:
            raise ValueError("odd")
        super().__init__(geometry, base=base)


class Rounded(Turn):
    def angles(self, positions):
        return super().angles(positions.bfloat16().float())


class Cast(Turn):
    _apply = nn.Module._apply


class Absolute(Turn):
    relative = False


class Elsewhere(Turn):
    def angles(self, positions):
        return super().angles(positions) + super().angles(positions).square() / 100

    relative = True


class Relative(Waves):
    relative = True


class Numbered(Waves):
    def number(self, positions, extent):
        count = torch.arange(positions.shape[-2], dtype=positions.dtype)
        return count.unsqueeze(-1).expand_as(positions)


class Square(Waves):
    def number(self, positions, extent):
        if positions.shape[-1] == 1:
            return positions
        side = self.geometry.length[0]  # rows are longer than that
        return (positions[..., :1] * side + positions[..., 1:]).expand_as(positions)


class OneAxis(Waves):
    def number(self, positions, extent):
        return positions[..., :1].expand_as(positions)


class Stretched(Waves):
    def number(self, positions, extent):
        return positions / positions.shape[-2]


ENCODINGS = {
    Dropped: "gradients",
    Leaked: "tensors",
    Closed: "tensors",
    Detached: "gradients",
    Frozen: "gradients",
    Batched: "rows",
    Unseen: "rows",
    Bare: "geometry",
    Idle: "settings",
    Loose: "keywords",
    Mute: "keywords",
    Forgetful: "storage",
    Mixed: "autocast",
    Counting: "growth",
    Infinite: "tensors",
    Crashing: "geometry",
    Rounded: "precision",
    Cast: "precision",
    Absolute: "shift",
    Elsewhere: "shift",
    Relative: "shift",
    Numbered: "decoding",
    Square: "registers",
    OneAxis: "registers",
    Stretched: "growth",
}


@pytest.mark.parametrize(("broken", "name"), ENCODINGS.items(), ids=lambda x: getattr(x, "__name__", x))
def test_broken_encodings_are_caught(broken, name):
    assert name in failures(broken)


def test_documents_and_padding_are_looked_at():
    assert failures(Numbered) >= {"packing", "rows"}


def test_an_exam_says_what_it_did():
    results = examine(Leaked)
    failed = next(result for result in results if result.name == "tensors")
    assert "A rung names the tensors" in failed.sentence
    assert "holds a parameter" in failed.message
    skipped = next(result for result in examine(NoPE) if result.name == "tensors")
    assert skipped.skipped
    assert skipped.passed
    assert skipped.message == "NoPE adds no bias."


def test_there_is_no_exam_for_anything_else():
    with pytest.raises(ZooError, match="neither a PositionEncoding nor a Kernel"):
        examine(nn.Linear)
