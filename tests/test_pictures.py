"""Pictures: what is drawn is the formula, every installed encoding has a panel, and a broken one costs only its own."""

import json
import math
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from zoo_positions.rope import RoPE

from zoo import cli, pictures, plugins
from zoo.bias import Dense
from zoo.errors import ZooError
from zoo.pictures import KINDS, SIZE, Panel, by_distance, by_offset, draw, panels, response
from zoo.position import Encoding, NoPE, PositionEncoding

ROOT = Path(__file__).parent.parent
SHEET = ROOT / "plugins" / "pictures.png"
TEXT, IMAGES = KINDS["text"], KINDS["images"]
HEADS, WIDTH = SIZE["heads"], SIZE["head_dim"]
FIRST_PARTY = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["zoo.positions"]


def build(name: str, kind: str = "text", **numbers) -> PositionEncoding:
    return plugins.load("zoo.positions", name)(KINDS[kind], **numbers)


def expect(name: str, value, distances=range(256), **numbers) -> None:
    """`value(head, distance)` by hand is what is drawn, less the head's largest."""
    position = numbers.pop("position", None) or build(name, **numbers)
    got = by_distance(position, 256)
    assert got.shape == (HEADS, 256)
    for head in range(HEADS):
        by_hand = [value(head, distance) for distance in range(256)]
        for distance in distances:
            said = got[head, distance].item()
            assert said == pytest.approx(by_hand[distance] - max(by_hand), abs=2e-5, rel=1e-5), (head, distance)


def test_alibi_is_its_slopes():
    expect("ALiBi", lambda head, distance: -distance / 2 ** (head + 1))


def test_rope_is_the_mean_of_its_cosines():
    waves = [10000 ** (-2 * pair / WIDTH) for pair in range(WIDTH // 2)]
    expect("RoPE", lambda head, distance: sum(math.cos(distance * wave) for wave in waves) / len(waves))


def test_norms_do_not_count():
    """PoPE takes softplus of the content, and so makes it longer: drawn is its cosine all the same."""
    waves = [10000 ** (-channel / WIDTH) for channel in range(WIDTH)]
    expect("PoPE", lambda head, distance: sum(math.cos(distance * wave) for wave in waves) / len(waves))


def test_sinusoidal_is_the_product_of_two_embeddings():
    dim = SIZE["dim"]

    def channel(place: int, number: int) -> float:
        angle = place / 10000 ** (number // 2 * 2 / dim)
        return math.cos(angle) if number % 2 else math.sin(angle)

    last = [channel(255, number) for number in range(dim)]
    by_hand = [sum(a * channel(255 - far, n) for n, a in enumerate(last)) / (dim / 2) for far in range(256)]
    expect("Sinusoidal", lambda head, distance: by_hand[distance], distances=range(0, 256, 5))


def test_kerple_is_its_logarithm():
    position = build("KERPLE")
    with torch.no_grad():
        position.p.copy_(torch.linspace(0.5, 1.5, HEADS))
        position.a.copy_(torch.linspace(0.1, 0.9, HEADS))
    p, a = position.p.tolist(), position.a.tolist()
    expect("KERPLE", lambda head, far: -p[head] * math.log1p(a[head] * far), position=position)


def test_t5_is_its_buckets():
    position = build("T5")
    starts = [*range(16), 16, 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113]
    table = position.weight.tolist()
    expect("T5", lambda head, far: table[sum(far >= start for start in starts) - 1][head], position=position)


def test_a_map_of_the_logits_gets_the_queries_and_the_logits():
    position = build("CoPE", positions=4)
    assert torch.equal(by_distance(position, 256), torch.zeros(HEADS, 256)), "it starts without positions"
    with torch.no_grad():
        position.vectors.copy_(torch.tensor([0.0, -1.0, -3.0, -7.0]).expand(WIDTH, 4))
    gate, total = 1 / (1 + math.exp(-1)), WIDTH / math.sqrt(WIDTH)  # every key's logit is 1, the query 1 / sqrt(width)

    def value(head: int, far: int) -> float:
        place = min(gate * (far + 1), 3)
        below = min(int(place), 2)
        e = [0.0, -1.0, -3.0, -7.0]
        return 1 + total * (e[below] + (place - below) * (e[below + 1] - e[below]))

    expect("CoPE", value, position=position)


def test_hidden_states_are_the_same_at_one_distance():
    position = build("FoX")
    near, far = by_distance(position, 256), by_distance(position, 1024)
    torch.testing.assert_close(near, far, atol=1e-3, rtol=0)
    steps = near.diff(dim=-1)
    assert (steps < 0).all(), "a gate forgets"
    assert steps.std() > 0.01, "and reads what it is given"


class Warm(PositionEncoding):
    """A bias in which the query's own number counts, and a factor per query."""

    def forward(self, queries, keys, extent, hidden=None, state=None):
        bias = -(queries[:, None, 0] - keys[None, :, 0]).abs() * queries[:, None, 0] / 1000
        return Encoding(bias=Dense(bias.expand(1, self.geometry.heads, -1, -1)), scale=1 + queries[:, 0])


def test_scale_and_bias_are_added_up_for_the_row_that_is_asked_for():
    places = torch.arange(10.0)[:, None]
    got = response(Warm(TEXT), places, 6)
    assert got.shape == (HEADS, 10)
    assert got[3].tolist() == pytest.approx([7 - abs(6 - key) * 0.006 for key in range(10)])


def test_images_are_drawn_from_the_centre():
    height, width = IMAGES.length
    got = by_offset(build("ALiBi", "images"))
    assert got.shape == (HEADS, height, width)
    for head, dy, dx in ((0, 0, 0), (0, 3, -4), (2, -7, 7), (7, 0, 5)):
        assert got[head, 7 + dy, 7 + dx].item() == pytest.approx(-math.hypot(dy, dx) / 2 ** (head + 1))
    waves = [10000 ** (-4 * pair / WIDTH) for pair in range(WIDTH // 4)]
    got = by_offset(build("RoPE", "images"))
    for dy, dx in ((2, 0), (0, -5), (6, 3)):
        by_hand = sum(math.cos(dy * wave) + math.cos(dx * wave) for wave in waves) / (2 * len(waves)) - 1
        assert got[0, 7 + dy, 7 + dx].item() == pytest.approx(by_hand, abs=1e-5)


@pytest.mark.parametrize("name", plugins.names("zoo.positions"))
def test_every_installed_encoding_has_its_panels(name):
    before = torch.get_rng_state()
    found = panels(name)
    assert torch.equal(before, torch.get_rng_state()), "drawing draws from no generator but its own"
    assert found
    for panel in found:
        assert not panel.reason
        assert panel.near.shape == ((HEADS, 256) if panel.kind == "text" else (HEADS, 15, 15))
        assert panel.near.isfinite().all()
        assert (panel.near.flatten(1).amax(1) == 0).all()
    again = panels(name)
    assert all(torch.equal(one.near, other.near) for one, other in zip(found, again, strict=True))


def test_subtitles_say_what_is_special():
    said = {name: panels(name)[0] for name in ("NoPE", "CoPE", "ALiBi", "FoPE", "Learned", "RoPE")}
    assert said["NoPE"].said == "nothing"
    assert said["CoPE"].said == "Logits bias, per layer, flat at first"
    assert said["ALiBi"].said == "Slopes bias"
    assert said["FoPE"].said == "rotation"
    assert {name for name, panel in said.items() if panel.far is not None} == {"FoPE"}, "Learned ends, the others shift"


@pytest.fixture
def install(monkeypatch):
    """Put classes, or what is raised when they are imported, in the place of the installed encodings."""

    real = plugins.load

    def put(**found):
        def load(group, name):
            if isinstance(found.get(name), Exception):
                raise found[name]
            return found[name] if name in found else real(group, name)

        monkeypatch.setattr(plugins, "names", lambda group: list(found))
        monkeypatch.setattr(plugins, "load", load)

    return put


class Crash(NoPE):
    """Breaks when it is asked."""

    def forward(self, queries, keys, extent, hidden=None, state=None):
        raise RuntimeError("the moon is in the wrong house")


class Picky(NoPE):
    """Serves no model."""

    def __init__(self, geometry):
        raise ZooError("Picky wants three axes.")


class Half(NoPE):
    """Serves text and has a defect on a grid."""

    def forward(self, queries, keys, extent, hidden=None, state=None):
        return Encoding() if self.geometry.axes == 1 else Encoding(rotation=1)


def test_a_broken_plugin_costs_its_panel(install, tmp_path):
    install(NoPE=NoPE, Crash=Crash, Picky=Picky, Half=Half, Gone=ZooError("Gone cannot be imported."))
    reasons = {name: [(panel.kind, panel.reason) for panel in panels(name)] for name in plugins.names("")}
    moon = "RuntimeError: the moon is in the wrong house"
    assert reasons["NoPE"] == [("text", ""), ("images", "")]
    assert reasons["Crash"] == [("text", moon)]
    assert reasons["Picky"] == [("text", "Picky wants three axes.")]
    assert reasons["Gone"] == [("text", "Gone cannot be imported.")]
    assert reasons["Half"] == [("text", ""), ("images", "TypeError: 'int' object is not callable")]
    names = [path.name for path in draw(tmp_path)]
    assert names == ["NoPE.png", "Crash.png", "Picky.png", "Half.png", "Gone.png", "sheet.png"]


def test_the_reason_is_in_the_picture():
    figure = pictures.compose([pictures.Section("", [Panel("Crash", "text", reason="no luck " * 40)], 1, 3.2, 2.0)])
    (axes,) = figure.axes
    words = [text.get_text() for text in axes.texts]
    assert words[0].startswith("no luck no luck")
    assert words[0].endswith(" ...")
    assert words[1:] == ["Crash", "cannot be drawn"]


def image(path: Path) -> Image.Image:
    with Image.open(path) as opened:
        opened.load()
    assert opened.format == "PNG"
    return opened


def test_files_are_pictures_and_the_same_twice(install, tmp_path):
    chosen = {name: plugins.load("zoo.positions", name) for name in ("NoPE", "Learned", "ALiBi", "FoPE", "CoPE")}
    install(**chosen)
    written = draw(tmp_path / "new" / "one")
    assert written == [tmp_path / "new" / "one" / f"{name}.png" for name in (*chosen, "sheet")]
    for path in written:
        shown = image(path)
        assert "Software" not in shown.info, "another version of it would be another file"
        assert 500 < shown.width < 2000
        assert 300 < shown.height < 3000
        pixels = np.asarray(shown.convert("L"))
        assert 0.003 < (pixels < 200).mean() < 0.5, "neither empty nor full"
    assert image(written[-1]).info["Description"] == "NoPE, Learned, FoPE, ALiBi, CoPE", "by family"
    assert [path.read_bytes() for path in draw(tmp_path / "two")] == [path.read_bytes() for path in written]


def test_lines_are_the_heads_and_leave_at_the_floor():
    figure = pictures.compose([pictures.Section("", panels("ALiBi")[:1], 1, 3.2, 2.0)])
    axes = next(axes for axes in figure.axes if axes.get_xlabel() == "distance (tokens)")
    drawn = [line for line in axes.lines if len(line.get_ydata()) == 256]
    assert [float(line.get_ydata()[1]) for line in drawn] == pytest.approx([-(0.5**head) / 2 for head in range(HEADS)])
    assert axes.get_ylim()[0] == pictures.FLOOR
    assert axes.get_ylabel() == "relative logit"
    assert [text.get_text() for text in figure.texts] == [""], "nothing is dotted"
    dotted = pictures.compose([pictures.Section("Look", panels("FoPE")[:1], 1, 3.2, 2.0)])
    assert [text.get_text() for text in dotted.texts] == ["Look (dotted: token 1024)"]
    axes = next(axes for axes in dotted.axes if axes.get_xlabel() == "distance (tokens)")
    assert len([line for line in axes.lines if len(line.get_ydata()) == 256]) == 2 * HEADS
    flat = pictures.compose([pictures.Section("", panels("NoPE")[:1], 1, 3.2, 2.0)]).axes
    assert len(flat) == 1, "one line needs no key of heads"
    assert len([line for line in flat[0].lines if len(line.get_ydata()) == 256]) == 1


def test_a_name_that_is_none_for_a_file(install, tmp_path):
    install(**{"../up/Side": NoPE})
    assert [path.name for path in draw(tmp_path)] == ["___up_Side.png", "sheet.png"]


def zoo(*argv: str, capsys) -> str:
    cli.run(list(argv))
    return capsys.readouterr().out


def test_the_command_says_what_it_wrote(install, tmp_path, capsys):
    install(NoPE=NoPE, RoPE=RoPE)
    files = [str(tmp_path / "p" / f"{name}.png") for name in ("NoPE", "RoPE", "sheet")]
    assert zoo("plugins", "--pictures", str(tmp_path / "p"), capsys=capsys).splitlines() == files
    assert json.loads(zoo("plugins", "--pictures", str(tmp_path / "p"), "--json", capsys=capsys)) == files
    assert all(Path(file).is_file() for file in files)


def test_a_folder_that_cannot_be_written_is_a_sentence(install, tmp_path, capsys, monkeypatch):
    install(NoPE=NoPE)
    (tmp_path / "file").write_text("")
    for where, why in (("file", "File exists"), ("file/below", "Not a directory")):
        monkeypatch.setattr(sys, "argv", ["zoo", "plugins", "--pictures", str(tmp_path / where)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code == 2
        said = capsys.readouterr().err
        assert said.startswith(f"zoo: The pictures cannot be written to {tmp_path / where}: {why}. Name a folder ")
    (tmp_path / "NoPE.png").mkdir()
    with pytest.raises(ZooError, match="Is a directory"):
        draw(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_without_permission_is_a_sentence(install, tmp_path):
    install(NoPE=NoPE)
    tmp_path.chmod(0o500)
    with pytest.raises(ZooError, match="Permission denied"):
        draw(tmp_path)


@pytest.mark.parametrize("argv", [["--pictures", "x", "--matrix"], ["--details", "--pictures", "x"], ["--pictures"]])
def test_one_thing_at_a_time(argv):
    with pytest.raises(ZooError, match=r"Try:  zoo plugins --help"):
        cli.run(["plugins", *argv])


def test_a_listing_draws_nothing():
    code = (
        "import sys; from zoo import cli; cli.run(['plugins']);"
        "assert not {'torch', 'matplotlib', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_window_system_is_asked():
    """Figures are made without pyplot, and so without the backend that the user's settings name."""
    code = (
        "import os, sys; os.environ['MPLBACKEND'] = 'TkAgg'; from zoo import pictures;"
        "figure = pictures.compose([pictures.Section('', pictures.panels('NoPE'), 2, 3.2, 2.0)]);"
        "assert type(figure.canvas).__name__ == 'FigureCanvasAgg'; assert 'matplotlib.pyplot' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_readme_shows_the_sheet_of_all_our_encodings():
    assert f"({SHEET.relative_to(ROOT)})" in (ROOT / "README.md").read_text()
    shown = set(image(SHEET).info["Description"].split(", "))
    assert shown == set(FIRST_PARTY), "draw it anew:  zoo plugins --pictures D && cp D/sheet.png plugins/pictures.png"


def test_parameters_stay_as_they_were_drawn(install):
    """Building for a picture is building for a model: the seed decides."""
    torch.manual_seed(0)
    again = build("FoPE")
    torch.testing.assert_close(panels("FoPE")[0].near, by_distance(again, 256))
    assert isinstance(again.cos_coef, nn.Parameter)
