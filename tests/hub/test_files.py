"""What is taken of a folder, what it may link to, and what of its keys reaches transformers."""

import json
import sys
from pathlib import Path

import pytest
import yaml

from zoo import checkpoints, cli
from zoo.checkpoints import folder
from zoo.errors import ZooError, escape_controls
from zoo.export.write import plain_keys
from zoo.hub import files

sys.path.insert(0, str(Path(__file__).parent))
import folders

KNOWN = [
    "LICENSE.txt",
    "NOTICE",
    "USE_POLICY.md",
    "README.md",
    "chat_template.jinja",
    "special_tokens_map.json",
    "merges.txt",
]
OTHERS = ["training_args.bin", "optimizer.pt", "notes.txt", "modeling_other.py", ".env", "rng_state.pth", "model.bin"]


@pytest.fixture
def source(tmp_path):
    """A folder of Hugging Face with known files, and with some that are nobody's business."""
    place = folders.write(tmp_path / "source", folders.LLAMA)
    for name in [*KNOWN, *OTHERS]:
        (place / name).write_text(f"this is {name}")
    (place / "generation_config.json").write_text(json.dumps({"temperature": 0.5, "custom_generate": "somebody/code"}))
    (place / "more").mkdir()
    return place


def names(path):
    return {entry.name for entry in path.iterdir()}


@pytest.mark.parametrize("command", ["extend", "export"])
def test_known_files_are_taken_and_the_others_are_named(command, source, tmp_path, capsys):
    words = ["--to", "128", "--method", "YaRN"] if command == "extend" else ["--to", "hf", "--check", "waves"]
    cli.run([command, str(source), *words, "--out", str(tmp_path / "out")])
    taken = names(tmp_path / "out" / "hub" if command == "extend" else tmp_path / "out")
    assert set(KNOWN) <= taken
    assert not taken & {*OTHERS, "more"}
    told = capsys.readouterr().err
    assert "left behind" in told
    assert "and 3 more" in told


def test_a_link_that_leads_out_is_refused_by_name(source, tmp_path):
    private = tmp_path / "private.txt"
    private.write_text("a secret")
    (source / "vocab.txt").symlink_to(private)
    for command in (
        ["extend", str(source), "--to", "128"],
        ["export", str(source), "--to", "hf"],
        ["generate", str(source), "--prompt", "a"],
    ):
        with pytest.raises(ZooError, match=r"a link that leads out of it: vocab\.txt"):
            cli.run(command)
    assert not list(tmp_path.glob("source-*"))


def test_links_within_the_folder_and_its_name_itself_may_be_links(source, tmp_path):
    (source / "vocab.txt").symlink_to("merges.txt")
    (tmp_path / "alias").symlink_to(source)
    assert checkpoints.listed(tmp_path / "alias").weights


def cache(source, tmp_path, blobs="blobs"):
    """The folder as a snapshot in a cache of Hugging Face."""
    root = tmp_path / "hub" / "models--somebody--model"
    snapshot = root / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (root / blobs).mkdir(exist_ok=True)
    for path in [path for path in source.iterdir() if path.is_file()]:
        path.rename(root / blobs / path.name)
        (snapshot / path.name).symlink_to(Path("../..") / blobs / path.name)
    return snapshot


def test_a_snapshot_links_to_the_blobs_of_its_own_repository(source, tmp_path):
    snapshot = cache(source, tmp_path)
    assert checkpoints.listed(snapshot).weights
    cli.run(["extend", str(snapshot), "--to", "128", "--method", "YaRN", "--out", str(tmp_path / "long")])
    assert not (tmp_path / "long/hub/config.json").is_symlink()


def test_a_snapshot_links_nowhere_else(source, tmp_path):
    snapshot = cache(source, tmp_path, "secrets")
    with pytest.raises(ZooError, match="a link that leads out of it"):
        checkpoints.listed(snapshot)


def test_a_folder_of_ours_is_held_to_the_same(source, tmp_path):
    cli.run(["extend", str(source), "--to", "128", "--method", "YaRN", "--out", str(tmp_path / "long")])
    (tmp_path / "private").write_text("a secret")
    (tmp_path / "long/hub/vocab.txt").symlink_to(tmp_path / "private")
    with pytest.raises(ZooError, match=r"hub/vocab\.txt"):
        cli.run(["export", str(tmp_path / "long"), "--to", "hf"])


@pytest.mark.parametrize("name", ["../other.bin", "/etc/passwd", "run.py", "a/b.bin"])
def test_an_index_names_files_of_weights_in_its_folder(name, tmp_path):
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ZooError, match="no file of weights in its folder"):
        files.shards(index)


def test_keys_by_which_transformers_would_import_or_fetch_are_not_written(source, tmp_path):
    config = json.loads((source / "config.json").read_text())
    config |= {
        "_attn_implementation": "somebody/kernel",
        "attn_implementation": "somebody/kernel",
        "_name_or_path": "somebody/model",
    }
    (source / "config.json").write_text(json.dumps(config))
    tokens = {
        "auto_map": {"AutoTokenizer": ["other.Tokenizer", None]},
        "tokenizer_file": "/etc/passwd",
        "padding_side": "left",
    }
    (source / "tokenizer_config.json").write_text(json.dumps(tokens))
    cli.run(["export", str(source), "--to", "hf", "--check", "waves", "--out", str(tmp_path / "out")])
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        text = (tmp_path / "out" / name).read_text()
        assert not any(word in text for word in ("somebody", "auto_map", "/etc/passwd")), name
    assert json.loads((tmp_path / "out/tokenizer_config.json").read_text())["padding_side"] == "left"
    assert json.loads((tmp_path / "out/generation_config.json").read_text()) == {"temperature": 0.5}


def test_a_folder_that_brings_code_is_refused(source):
    config = json.loads((source / "config.json").read_text()) | {
        "auto_map": {"AutoModelForCausalLM": "modeling_other.Model"}
    }
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(ZooError, match="brings its own code"):
        checkpoints.listed(source)


def test_plain_keys():
    assert plain_keys({"auto_map": 1, "_x": 1, "vocab_file": 1, "attn_implementation": 1, "rope_theta": 2}) == {
        "rope_theta": 2
    }


# Checksums.


def state(path, capsys):
    try:
        cli.run(["check", str(path)])
        status = 0
    except SystemExit as end:
        status = end.code
    return status, capsys.readouterr().out


def test_checksums_are_recorded_carried_over_and_compared(source, tmp_path, capsys):
    first = checkpoints.read(source)
    folder.write(tmp_path / "ours", first.about, first.weights, "")
    assert state(tmp_path / "ours", capsys) == (0, "pass  model.safetensors: same\n")
    cli.run(["extend", str(tmp_path / "ours"), "--to", "128", "--method", "FoPE", "--out", str(tmp_path / "long")])
    capsys.readouterr()
    there, here = (folder.recorded_checksums(tmp_path / name) for name in ("ours", "long"))
    assert here["model.safetensors"] == there["model.safetensors"]
    assert len(here["position.safetensors"]) == 64
    assert state(tmp_path / "long", capsys)[0] == 0
    assert "checksums" not in checkpoints.read(tmp_path / "long").about
    weights = tmp_path / "long/position.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(bytes(damaged))
    status, told = state(tmp_path / "long", capsys)
    assert status == 1
    assert "FAIL  position.safetensors: different" in told
    assert "pass  model.safetensors: same" in told


def test_what_nobody_has_computed_is_not_recorded(source, tmp_path, capsys):
    assert state(source, capsys) == (0, "skip  model.safetensors: not recorded\n")
    cli.run(["extend", str(source), "--to", "128", "--method", "YaRN", "--out", str(tmp_path / "long")])
    capsys.readouterr()
    assert folder.recorded_checksums(tmp_path / "long") == {"hub/model.safetensors": "not recorded"}
    assert state(tmp_path / "long", capsys)[0] == 0


def test_a_word_with_a_separator_is_a_folder(tmp_path):
    with pytest.raises(ZooError, match="There is no folder"):
        cli.run(["check", str(tmp_path / "nowhere")])
    with pytest.raises(ZooError, match="No plugin is called nowhere"):
        cli.run(["check", "nowhere"])


# What is printed.


def test_nothing_in_a_name_steers_a_terminal():
    assert escape_controls("a\x1b[31mb\x07\u202ec\n\t\u00e9\x9b") == "a\\x1b[31mb\\x07\\u202ec\n\t\u00e9\\x9b"


def test_a_description_comes_without_what_steers_a_terminal(source, tmp_path, capsys):
    first = checkpoints.read(source)
    hostile = "\x1b]0;title\x07"
    about = {**first.about, "trained": {hostile: hostile, "steps": 1}, "parent": [hostile]}
    folder.write(tmp_path / "ours", about, first.weights, "")
    found = checkpoints.read(tmp_path / "ours").about
    assert "\x1b" not in yaml.safe_dump(found, allow_unicode=True).replace("\\e", "\x1b")
    assert found["tokenizer"]["packed"] == first.about["tokenizer"]["packed"]


@pytest.mark.parametrize("method", ["<script>", "[x](http://x)", "a\x1b[1m", "`a`"])
def test_the_name_of_a_method_is_no_markup(method, source, tmp_path):
    first = checkpoints.read(source)
    chain = {"chain": [{"method": method, "to": 128, "from": 64}], "length": 64}
    folder.write(tmp_path / "ours", {**first.about, "extended": chain}, first.weights, "")
    with pytest.raises(ZooError, match="what it says under extended"):
        checkpoints.read(tmp_path / "ours")


def test_a_missing_plugin_is_named_and_not_pasted_into_a_command(source, tmp_path):
    first = checkpoints.read(source)
    owner = {"Missing": ["zoo.positions", "evil; rm -rf / 1.0"]}
    folder.write(tmp_path / "ours", {**first.about, "plugins": owner}, first.weights, "")
    with pytest.raises(ZooError, match="of the distribution evil") as refused:
        checkpoints.read(tmp_path / "ours").network()
    assert "pip install" not in str(refused.value)
