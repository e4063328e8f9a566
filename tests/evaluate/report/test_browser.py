"""The page in a browser: it shows, fits every width, and takes the ink of its surroundings."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
         "--allow-file-access-from-files"]  # fmt: skip


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """Runs Debian's chromium on a page and returns what it prints."""
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("there is no chromium here: apt-get install chromium")
    profile = tmp_path_factory.mktemp("profile")

    def run(page: Path, *more: str) -> str:
        command = [browser, *FLAGS, f"--user-data-dir={profile}", *more, page.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    return run


MEASURE = """<!doctype html><body style="margin:0">
<iframe src="report.html" style="width:{width}px;height:900px;border:0"></iframe><script>onload = () => {{
  const page = document.querySelector("iframe").contentDocument, root = page.documentElement;
  page.querySelectorAll("details").forEach(each => each.open = {opened});
  const inside = each => each.closest(".wide") !== null;
  const out = [...page.querySelectorAll("body *")].filter(
    each => !inside(each) && each.getBoundingClientRect().right > {width} + 0.5).map(each => each.tagName);
  const frames = [...page.querySelectorAll(".wide")].filter(each => each.getBoundingClientRect().right > {width} + 0.5);
  const box = name => page.querySelector(name).getBoundingClientRect();
  document.body.innerHTML = "<pre>" + JSON.stringify({{
    width: root.clientWidth, scroll: root.scrollWidth, out: out, frames: frames.length,
    svg: [...page.querySelectorAll("svg")].map(each => each.getBoundingClientRect().height),
    ground: page.defaultView.getComputedStyle(page.body).backgroundColor,
    ink: page.defaultView.getComputedStyle(page.querySelector("svg text")).fill,
  }}) + "</pre>";
}}</script></body>"""


def measured(chromium, folder: Path, width: int, opened: bool = False, *more: str) -> dict:
    wrapper = folder / f"wrapper{width}.html"
    wrapper.write_text(MEASURE.format(width=width, opened=str(opened).lower()))
    said = re.search(r"<pre>(.*?)</pre>", chromium(wrapper, "--window-size=1300,1000", "--dump-dom", *more))
    return json.loads(html.unescape(said.group(1)))


@pytest.mark.slow
def test_a_browser_shows_it(made, chromium, report, tmp_path):
    folder = report[-1]
    page = folder / "report.html"
    seen = made.Page(chromium(page, "--dump-dom"))
    assert [attrs["id"] for tag, attrs in seen.tags if tag == "section"] == [
        "summary", *(name for name, _ in made.SECTIONS), "about"]  # fmt: skip
    assert made.CARTOON in seen.text
    shots = {}
    for name, more in (("light", []), ("dark", ["--force-dark-mode"]), ("phone", ["--window-size=500,3000"])):
        shots[name] = tmp_path / f"{name}.png"
        chromium(page, f"--screenshot={shots[name]}", "--window-size=1200,3000", *more)
        inked, size = made.look(shots[name])
        assert 0.02 < inked < 0.5, name
        assert size == ((500 if name == "phone" else 1200), 3000)
    ground = {name: Image.open(path).convert("L").getpixel((3, 3)) for name, path in shots.items()}
    assert ground["light"] == ground["phone"] == 255
    assert ground["dark"] < 40


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 400, 768, 1200])
@pytest.mark.parametrize("opened", [False, True])
def test_nothing_leaves_the_page(chromium, report, width, opened):
    said = measured(chromium, report[-1], width, opened)
    assert said["width"] == said["scroll"] == width
    assert said["out"] == []
    assert said["frames"] == 0
    assert len(said["svg"]) == 7
    assert min(said["svg"]) > 200


@pytest.mark.slow
def test_pictures_take_the_ink_of_the_page(chromium, report):
    light, dark = (measured(chromium, report[-1], 800, False, *more) for more in ([], ["--force-dark-mode"]))
    assert sum(map(int, re.findall(r"\d+", light["ground"])[:3])) == 3 * 255
    assert sum(map(int, re.findall(r"\d+", dark["ground"])[:3])) < 3 * 40
    brightness = [sum(map(int, re.findall(r"\d+", said["ink"])[:3])) for said in (light, dark)]
    assert brightness[0] < 3 * 130 < brightness[1]
