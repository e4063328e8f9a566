"""ZeRO directories: written by hand in DeepSpeed's layout, and by DeepSpeed itself where it is there; both read."""

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from zoo import checkpoints, cli
from zoo.checkpoints import folder, lightning, zero
from zoo.checkpoints.stored import Held
from zoo.data.tokenizer import Tokenizer
from zoo.errors import ZooError
from zoo.extend import source

ABOUT = {"zoo": {"format": 1, "who": "by hand"}, "epoch": 2, "global_step": 7, "pytorch-lightning_version": "2.6.0"}


def weights():
    """Sizes that no number of processes divides, some smaller than their number."""
    torch.manual_seed(3)
    shapes = {
        "a": (3, 7),
        "b": (5,),
        "one": (1,),
        "c": (2, 3, 5),
        "scalar": (),
        "cold": (3, 3),
        "ice": (2,),
        "d": (11,),
    }
    found = {f"network.{name}": torch.randn(shape) for name, shape in shapes.items()}
    found["network.waves"] = torch.arange(3.0) / 8
    found["network.count"] = torch.tensor(5)
    found["network.tied"] = found["network.a"]
    return found


PARTS = {
    "frozen": ("network.cold", "network.ice"),
    "buffers": ("network.waves", "network.count"),
    "shared": {"network.tied": "network.a"},
}


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("half", [True, False])
def test_weights_are_put_together(tmp_path, zero_directory, stage, world, groups, half):
    wanted = weights()
    path = zero_directory(
        tmp_path / "x", wanted, stage=stage, world=world, groups=groups, half=half, client=ABOUT, most=2, **PARTS
    )
    assert zero.holds(path)
    found = checkpoints.read(path)
    assert found.about == ABOUT["zoo"]
    assert list(found.weights) == [name.removeprefix("network.") for name in wanted]
    for name, value in wanted.items():
        told = found.weights[name.removeprefix("network.")]
        exact = not half or name not in {*PARTS["frozen"], *PARTS["buffers"]}
        assert torch.equal(told.float(), (value if exact else value.bfloat16()).float()), name
        assert told.shape == value.shape
    listing = checkpoints.listed(path)
    assert listing.kept == {key: ABOUT[key] for key in ("epoch", "global_step", "pytorch-lightning_version")}
    assert listing.weights["tied"] == listing.weights["a"]
    assert not any(isinstance(run, Held) for stored in listing.weights.values() for run in stored.runs)
    assert {type(checkpoints.listed(path / "global_step7").about)} == {dict}, "the folder of the step will do"


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("prefix", ["", "bf16_"])
def test_weights_that_are_aligned_in_their_row(tmp_path, zero_directory, stage, prefix):
    wanted = weights()
    path = zero_directory(
        tmp_path / "x", wanted, stage=stage, groups=2, align=8, prefix=prefix, client=ABOUT, **PARTS
    )  # fmt: skip
    found = checkpoints.read(path).weights
    for name in ("a", "b", "c", "d", "one", "scalar"):
        assert torch.equal(found[name], wanted[f"network.{name}"])


def test_processes_are_in_the_order_of_numbers(tmp_path, zero_directory):
    wanted = {"network.a": torch.arange(500.0)}
    path = zero_directory(tmp_path / "x", wanted, stage=3, world=12, client=ABOUT)
    assert torch.equal(checkpoints.read(path).weights["a"], wanted["network.a"])


@pytest.mark.parametrize("stage", [2, 3])
def test_classes_are_stood_in_for(tmp_path, zero_directory, stage, monkeypatch):
    path = zero_directory(tmp_path / "x", weights(), stage=stage, client=ABOUT, scaler="DynamicLossScaler", **PARTS)
    monkeypatch.delitem(sys.modules, "deepspeed", raising=False)  # other tests may have imported it
    checkpoints.read(path)
    assert "deepspeed" not in sys.modules
    names = {name for _, name in zero.ALLOWED}
    needed = set()
    for file in (path / "global_step7").iterdir():
        needed |= set(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    assert needed <= names
    assert ("deepspeed.utils.tensor_fragment.fragment_address" in needed) == (stage == 2)


@pytest.mark.parametrize("where", ["optim", "model"])
def test_a_file_that_needs_more_is_refused_before_it_is_opened(tmp_path, zero_directory, monkeypatch, where):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    more = {"extra": {"evil": Evil()}} if where == "optim" else {"client": {**ABOUT, "evil": Evil()}}
    path = zero_directory(tmp_path / "x", weights(), stage=3, **{"client": ABOUT, **more}, **PARTS)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was opened"))
    for look in (zero.checked, zero.described, checkpoints.read, checkpoints.listed):
        with pytest.raises(ZooError, match=r"_states\.pt was not opened: it needs posix\.mkdir, and"):
            look(path)
    assert not (tmp_path / "ran").exists()


def test_a_class_of_deepspeed_that_is_not_among_them(tmp_path, zero_directory, monkeypatch):
    monkeypatch.setattr(zero, "ALLOWED", zero.ALLOWED[1:])
    path = zero_directory(tmp_path / "x", weights(), stage=2, client=ABOUT, **PARTS)
    with pytest.raises(ZooError, match=r"it needs deepspeed\.runtime\.zero\.config\.ZeroStageEnum"):
        checkpoints.read(path)


def broken(path, what):
    """Damage a directory."""
    place = path / "global_step7"
    optim = sorted(place.glob("*_optim_states.pt"))
    if what == "a process is missing":
        optim[-1].unlink()
    elif what == "no processes":
        [file.unlink() for file in optim]
    elif what == "no model":
        [file.unlink() for file in place.glob("*_model_states.pt")]
    elif what == "nothing":
        [file.unlink() for file in place.iterdir()]
    elif what == "truncated":
        optim[0].write_bytes(optim[0].read_bytes()[:-30])
    elif what == "empty":
        optim[0].write_bytes(b"")
    elif what == "text":
        optim[0].write_text("not a file of torch")
    elif what == "latest":
        (path / "latest").write_text("global_step8")
    elif what == "latest leads away":
        (path / "latest").write_text("../x/global_step7")
    elif what == "layers apart":
        shutil.copy(optim[0], place / optim[0].name.replace("mp_rank_00", "mp_rank_01"))
    elif what == "other content":
        torch.save([1], optim[0])


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("a process is missing", "3 processes wrote it, and the files of 2"),
        ("no processes", "no *_optim_states.pt"),
        ("no model", "no *_model_states.pt"),
        ("nothing", "has none of the files"),
        ("truncated", "truncated or is not a checkpoint"),
        ("empty", "truncated or is not a checkpoint"),
        ("text", "truncated or is not a checkpoint"),
        ("latest", "names the folder 'global_step8', which is not there"),
        ("latest leads away", "which is not there"),
        ("layers apart", "tensor parallelism"),
        ("other content", "is damaged: TypeError"),
    ],
)
def test_damaged_directories(tmp_path, zero_directory, stage, what, says):
    path = zero_directory(tmp_path / "x", weights(), stage=stage, world=3, client=ABOUT, **PARTS)
    broken(path, what)
    for read in (checkpoints.read, checkpoints.listed):
        with pytest.raises(ZooError) as error:
            read(path)
        assert says in str(error.value)


@pytest.mark.parametrize("stage", [1, 3])
@pytest.mark.parametrize("more", [{"network.a": (3, 80)}, {"network.a": (1, 1)}])
def test_shapes_that_do_not_fit_the_rows(tmp_path, zero_directory, stage, more):
    """The rows are those of other weights."""
    path = zero_directory(tmp_path / "x", weights(), stage=stage, client=ABOUT, **PARTS)
    other = weights() | {name: torch.zeros(shape) for name, shape in more.items()}
    donor = zero_directory(tmp_path / "y", other, stage=stage, client=ABOUT, **PARTS)
    for file in (donor / "global_step7").glob("*_optim_states.pt"):
        shutil.copy(file, path / "global_step7" / file.name)
    with pytest.raises(ZooError, match="is damaged: ValueError"):
        checkpoints.listed(path)


def test_another_programs_run(tmp_path, zero_directory):
    path = zero_directory(tmp_path / "x", weights(), stage=2, **PARTS)
    with pytest.raises(ZooError, match="a DeepSpeed checkpoint of another program"):
        checkpoints.read(path)
    assert zero.described(zero_directory(tmp_path / "y", weights(), stage=2, client=ABOUT)) == ABOUT["zoo"]


# A language model, through all that takes a checkpoint.

SIZE = {"vocabulary": 257, "length": 16, "dim": 32, "layers": 2, "heads": 2, "std": 0.3}
NODE = {
    "class_path": "zoo.decoder.Decoder",
    "init_args": {
        **SIZE,
        "position": {"class_path": "RoPE", "init_args": {}},
        "kernel": {"class_path": "Auto", "init_args": {}},
    },
}


@pytest.fixture(params=[2, 3])
def trained(tmp_path, zero_directory, request):
    """A ZeRO directory as Lightning names it, and a folder of the same model."""
    torch.manual_seed(5)
    about = {
        "format": 1,
        "zoo": "0",
        "network": NODE,
        "tokenizer": Tokenizer("bytes").describe(),
        "trained": {"steps": 7},
    }
    about["plugins"] = checkpoints.owners(NODE)
    model = checkpoints.build(NODE)
    tied = {"network.head.weight": "network.embedding.weight"}
    state = {f"network.{name}": value.detach() for name, value in model.state_dict().items()}
    assert state["network.head.weight"].data_ptr() == state["network.embedding.weight"].data_ptr()
    buffers = tuple(f"network.{name}" for name, _ in model.named_buffers() if f"network.{name}" in state)
    client = {**ABOUT, "zoo": about}
    more = {"stage": request.param, "groups": 2, "client": client, "shared": tied, "buffers": buffers, "half": False}
    path = zero_directory(tmp_path / "last.ckpt", state, **more)
    folder.write(tmp_path / "same", about, model.state_dict(), "card")
    return path


def logits(path):
    with torch.no_grad():
        return checkpoints.read(path).network()(torch.arange(40)[None] * 7 % 257)


def test_one_is_extended_into_either_format(trained, tmp_path):
    same = tmp_path / "same"
    assert source.read(trained).fingerprint == source.read(same).fingerprint
    before = {file: file.read_bytes() for file in trained.rglob("*.*")}
    for child in ("long", "long.ckpt"):
        cli.run(["extend", str(trained), "--to", "40", "--method", "YaRN", "--out", str(tmp_path / child)])
    cli.run(["extend", str(trained), "--to", "40", "--method", "YaRN"])
    cli.run(["extend", str(same), "--to", "40", "--method", "YaRN", "--out", str(tmp_path / "wanted")])
    for child in ("long", "long.ckpt", "last-40.ckpt"):
        assert torch.equal(logits(tmp_path / child), logits(tmp_path / "wanted")), child
    content = lightning.load(tmp_path / "long.ckpt")
    assert set(content) == {"state_dict", "zoo", "epoch", "global_step", "pytorch-lightning_version"}
    assert content["global_step"] == 7
    wanted = (tmp_path / "wanted" / "model.safetensors").read_bytes()
    assert (tmp_path / "long" / "model.safetensors").read_bytes() == wanted
    assert {file: file.read_bytes() for file in trained.rglob("*.*")} == before
    with pytest.raises(ZooError, match="that is extended, or inside it"):
        cli.run(["extend", str(trained), "--to", "40", "--out", str(trained / "global_step7" / "x")])


def test_one_is_read_like_any_other(trained, tmp_path, capsys):
    assert torch.equal(logits(trained), logits(tmp_path / "same"))
    words = ["--prompt", "ab", "--tokens", "5", "--temperature", "0"]
    cli.run(["generate", str(trained), *words])
    told = capsys.readouterr().out
    cli.run(["generate", str(tmp_path / "same"), *words])
    assert capsys.readouterr().out == told


def test_a_run_starts_from_one_and_none_is_resumed_unlooked_at(trained, tmp_path, monkeypatch):
    (tmp_path / "texts").mkdir()
    for number in range(3):
        (tmp_path / "texts" / f"{number}.txt").write_text(" ".join(f"word{number * i % 97}" for i in range(100)))

    def zoo(*words):
        monkeypatch.setattr(sys, "argv", ["zoo", *map(str, words)])
        cli.run(sys.argv[1:])

    flags = [
        f"--data.files={tmp_path / 'texts'}", f"--data.cache={tmp_path / 'cache'}", "--data.workers=0",
        "--data.batch=2", "--data.tokenizer=bytes", f"--trainer.default_root_dir={tmp_path / 'runs'}",
        "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
    ]  # fmt: skip
    size = [f"--model.{name}={value}" for name, value in SIZE.items() if name != "vocabulary"]
    zoo("fit", *size, *flags, "--trainer.max_steps=1", "--model.optimizer.lr=0", f"--model.weights={trained}")
    last = next((tmp_path / "runs").rglob("last.ckpt"))
    for name, value in checkpoints.read(tmp_path / "same").weights.items():
        assert torch.equal(checkpoints.read(last).weights[name], value)
    for file in (trained / "global_step7").glob("*_optim_states.pt"):
        torch.save({"optimizer_state_dict": Path("x")}, file)
    with pytest.raises(ZooError, match=r"was not opened: it needs pathlib"):
        zoo("fit", *size, *flags, "--ckpt_path", trained)


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("deepspeed"), reason="DeepSpeed is not installed")
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_what_deepspeed_writes_is_read_as_deepspeed_reads_it(tmp_path, stage):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = Path(__file__).with_name("zero_run.py")
    path = tmp_path / "x"
    subprocess.run([sys.executable, script, str(stage), path, str(port)], check=True, timeout=600)
    wanted = torch.load(path / "read.pt", weights_only=True)
    found = checkpoints.read(path).weights
    assert {"embedding.weight", "head.weight", "norm.running_var", "waves", "inner.bias"} <= set(found)
    frozen = {"frozen.weight", "frozen.bias"}
    assert {name.removeprefix("network.") for name in wanted} == set(found) - (frozen if stage == 1 else set())
    assert frozen <= set(found), "which DeepSpeed's own script leaves out at stage 1"
    for name, value in wanted.items():
        assert torch.equal(found[name.removeprefix("network.")].float(), value.float()), name
