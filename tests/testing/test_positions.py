"""The exam for encodings, examined: what is broken on purpose must be caught, by name; what is sound must pass."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from zoo import plugins
from zoo.bias import Dense, Pointwise, Toeplitz
from zoo.errors import ZooError
from zoo.kernel import Eager
from zoo.position import Encoding, NoPE, PositionEncoding, Rotation
from zoo.testing import examine, suite, take


def failures(subject, *names: str) -> set[str]:
    """The checks that fail, of all or of some."""
    found = [take(check, subject) for check in suite(subject) if not names or check.__name__ in names]
    return {result.name for result in found if not result.passed}


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


class Weaker(Table):
    """The gradient is one percent too small.

    Args:
        start: Of the numbers.
    """

    def forward(self, queries, keys, extent, hidden=None, state=None):
        table = 0.99 * self.table + 0.01 * self.table.detach()
        return Encoding(bias=Toeplitz(table, queries[..., 0], keys[..., 0], lowest=-64, prefix=self.prefix))


class Single(Table):
    """Rounded to float32 whatever the module's type.

    Args:
        start: Of the numbers.
    """

    def forward(self, queries, keys, extent, hidden=None, state=None):
        table = self.table.float() * 1
        return Encoding(bias=Toeplitz(table, queries[..., 0], keys[..., 0], lowest=-64, prefix=self.prefix))


class Lost(Table):
    """Without a gradient in one situation, and with the right values.

    Args:
        start: Of the numbers.
    """

    def forward(self, queries, keys, extent, hidden=None, state=None):
        table = self.table * 1
        if self.now():
            table = table.detach() + 0 * table
        return Encoding(bias=Toeplitz(table, queries[..., 0], keys[..., 0], lowest=-64, prefix=self.prefix))


class LostInCompiling(Lost):
    def now(self):
        return torch.compiler.is_compiling()


class LostInAutocast(Lost):
    def now(self):
        return torch.is_autocast_enabled("cpu")


class Once(Toeplitz):
    """Counts on being read once, while a kernel may read again what it did not store."""

    def values(self, rows, columns):
        if vars(self).setdefault("seen", set()) & {(rows.start, columns.start)}:
            self.tensors = tuple(tensor.detach() for tensor in self.tensors)
        self.seen.add((rows.start, columns.start))
        return super().values(rows, columns)


class LostInRecomputing(Table):
    def forward(self, queries, keys, extent, hidden=None, state=None):
        return Encoding(bias=Once(self.table * 1, queries[..., 0], keys[..., 0], lowest=-64, prefix=self.prefix))


class OneWay(Table):
    """Keys ahead of the query all count as the query's own position.

    Args:
        start: Of the numbers.
    """

    def cut(self, queries, keys):
        return super().cut(queries, keys).clamp(min=64)

    def forward(self, queries, keys, extent, hidden=None, state=None):
        table = self.table[:, 64:] * 1
        return Encoding(bias=Toeplitz(table, queries[..., 0], keys[..., 0], prefix=self.prefix))


class Sorted(Table):
    """In a model that looks both ways the positions are taken to count up.

    Args:
        start: Of the numbers.
    """

    def forward(self, queries, keys, extent, hidden=None, state=None):
        if not self.geometry.causal:
            queries, keys = queries.sort(-2).values, keys.sort(-2).values
        return super().forward(queries, keys, extent)


class Late(Table):
    """Refused when it is called.

    Args:
        start: Of the numbers.
    """

    def forward(self, queries, keys, extent, hidden=None, state=None):
        if self.geometry.heads == 3:
            raise ZooError("Late does not like three heads.")
        return super().forward(queries, keys, extent)


class Wide(Table):
    """Wrong for one width.

    Args:
        start: Of the numbers.
    """

    def forward(self, queries, keys, extent, hidden=None, state=None):
        found = super().forward(queries, keys, extent)
        return Encoding(
            bias=found.bias, embedding=torch.full((self.geometry.dim,), torch.inf * (self.geometry.dim % 2))
        )


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


class Constant(Turn):
    """A constant that is in no state dict, and lost with the meta device.

    Args:
        base: Of the waves.
    """

    def __init__(self, geometry, *, base: float = 1000.0):
        super().__init__(geometry, base=base)
        self.register_buffer("waves", self.waves, persistent=False)


class Unbuildable(Turn):
    """Reads numbers while it is built.

    Args:
        base: Of the waves.
    """

    def __init__(self, geometry, *, base: float = 1000.0):
        super().__init__(geometry, base=base)
        self.slowest = self.waves.min().item()


class Unspanned(Turn):
    """A pair of numbers that nobody reads.

    Args:
        base: Of the waves.
        span: Of nothing.
    """

    def __init__(self, geometry, *, base: float = 1000.0, span: tuple[float, float] = (1.0, 2.0)):
        super().__init__(geometry, base=base)


class Cast(Turn):
    _apply = nn.Module._apply


class OnGrids(Turn):
    """Sound in text.

    Args:
        base: Of the waves.
    """

    def angles(self, positions):
        return super().angles(self.spoil(positions) if positions.shape[-1] == 2 else positions)


class RoundedOnGrids(OnGrids):
    def spoil(self, positions):
        return positions.bfloat16().float()


class BentOnGrids(OnGrids):
    def spoil(self, positions):
        return positions + positions.square() / 100


class UnseenOnGrids(OnGrids):
    def spoil(self, positions):
        return positions[:1].expand_as(positions) if positions.ndim == 3 else positions


class RoughOnGrids(OnGrids):
    def spoil(self, positions):
        return positions * (1.01 if torch.is_autocast_enabled("cpu") else 1)


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
    Weaker: "gradients",
    Single: "gradients",
    LostInCompiling: "compiled",
    LostInAutocast: "mixed",
    LostInRecomputing: "checkpointing",
    OneWay: "bidirectional",
    Sorted: "bidirectional",
    Late: "geometry",
    Wide: "geometry",
    Constant: "storage",
    Unbuildable: "storage",
    Unspanned: "settings",
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
    RoundedOnGrids: "precision",
    BentOnGrids: "shift",
    UnseenOnGrids: "rows",
    RoughOnGrids: "autocast",
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
    assert failures(broken, name) == {name}


def test_documents_and_padding_are_looked_at():
    assert failures(Numbered, "packing", "rows") == {"packing", "rows"}


class NoOffset(Eager):
    """Takes every token for the first of its sequence."""

    def forward(self, q, k, v, *, bias=None, mask=None, scale=1.0):
        return super().forward(q, k, v, bias=bias, mask=replace(mask, offset=0), scale=scale)


class NoDocuments(Eager):
    """Does not see where a document ends."""

    def forward(self, q, k, v, *, bias=None, mask=None, scale=1.0):
        return super().forward(q, k, v, bias=bias, mask=replace(mask, documents=None), scale=scale)


class NoGradient(Eager):
    """Does not train a bias."""

    def forward(self, q, k, v, *, bias=None, mask=None, scale=1.0):
        lost = bias and bias.replace(*(tensor.detach() for tensor in bias.tensors))
        return super().forward(q, k, v, bias=lost, mask=mask, scale=scale)


@pytest.mark.parametrize(
    ("kernel", "name"), [(NoOffset, "decoding"), (NoDocuments, "packing"), (NoGradient, "gradients")]
)
def test_every_installed_kernel_is_tried(kernel, name, monkeypatch):
    known = plugins.classes("zoo.kernels")
    monkeypatch.setattr(plugins, "classes", lambda group: known | {"Broken": kernel})
    assert failures(Table, "decoding", "packing", "gradients") == {name}


def test_a_causal_encoding_may_refuse_to_look_both_ways():
    class Causal(Table):
        def __init__(self, geometry, *, start: float = 0.1):
            if not geometry.causal:
                raise ZooError("Causal looks back.")
            super().__init__(geometry, start=start)

    Causal.__doc__ = Table.__doc__
    found = take(next(check for check in suite(Causal) if check.__name__ == "bidirectional"), Causal)
    assert found.skipped
    assert found.message == "Causal looks back."
    assert not failures(Causal, "geometry", "settings", "storage")


def test_an_exam_says_what_it_did():
    failed = take(next(check for check in suite(Leaked) if check.__name__ == "tensors"), Leaked)
    assert "A rung names the tensors" in failed.sentence
    assert "holds a parameter" in failed.message
    skipped = next(result for result in examine(NoPE) if result.name == "tensors")
    assert skipped.skipped
    assert skipped.passed
    assert skipped.message == "NoPE adds no bias."


def test_there_is_no_exam_for_anything_else():
    with pytest.raises(ZooError, match="neither a PositionEncoding nor a Kernel"):
        examine(nn.Linear)
