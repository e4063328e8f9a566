"""PoSE and CREAM: what their papers and codes say of positions and text, and draws that repeat themselves."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, chisquare, ks_2samp, truncnorm

from zoo.data import Text
from zoo.data.positions import Placement
from zoo.errors import ZooError

W, T = 120, 8 * 120


def runs(numbers):
    """Lengths and first numbers of the arithmetic runs of a sequence."""
    cuts = np.flatnonzero(np.diff(numbers) != 1) + 1
    parts = np.split(numbers, cuts)
    return [len(part) for part in parts], [int(part[0]) for part in parts]


def draws(name, count=4000, room=10**6, window=W, target=T, seed=0):
    place = Placement(name, window, target, seed)
    return [place(number, room) for number in range(count)]


def uniform(values, low, high):
    """Whether whole numbers look like draws from low, ..., high."""
    assert low <= min(values)
    assert max(values) <= high
    counts = np.bincount(np.array(values) - low, minlength=high - low + 1)
    groups = [part.sum() for part in np.array_split(counts, 12)]
    sizes = np.array([len(part) for part in np.array_split(counts, 12)])
    return chisquare(groups, sizes / sizes.sum() * len(values)).pvalue > 1e-3


@pytest.mark.parametrize("name", ["pose", "cream"])
@pytest.mark.parametrize("room", [0, 5, 10**6])
def test_positions_rise_below_the_target_and_so_does_text(name, room):
    for places, positions in draws(name, 500, room):
        assert positions.shape == (W,)
        assert places.shape == (W + 1,)
        assert positions[0] == places[0] == 0
        assert (np.diff(positions) > 0).all()
        assert (np.diff(places) > 0).all()
        assert positions[-1] < T
        assert places[-1] <= W + room


def test_pose_is_two_runs():
    firsts, shifts, skips = [], [], []
    for places, positions in draws("pose"):
        lengths, starts = runs(positions)
        assert len(lengths) <= 2
        if len(lengths) == 2:
            firsts.append(lengths[0])
            shifts.append(starts[1] - lengths[0])
        own, texts = runs(places)
        if len(own) == len(lengths) == 2:
            assert own[0] == lengths[0], "text is cut where positions are"
            skips.append(texts[1] - own[0])
    assert len(firsts) > 0.99 * 4000, "a shift of 0 is as rare as any other"
    assert uniform(firsts, 1, math.ceil(W / 2))
    assert uniform(shifts, 1, T - W)
    assert uniform(skips, 1, 4 * W), "what is skipped of the text is drawn by itself"
    assert abs(np.corrcoef(shifts[: len(skips)], skips)[0, 1]) < 0.1


def test_the_first_run_of_an_odd_window_is_at_most_half_and_one():
    assert {runs(positions)[0][0] for _, positions in draws("pose", window=5, target=500, count=600)} <= {1, 2, 3, 5}


def test_cream_is_a_head_a_middle_and_a_tail():
    window, factor = 120, 8
    ends = {40: [], 32: []}  # window // 3, 4 factor
    for _, positions in draws("cream", window=window, target=factor * window):
        assert positions[-1] == factor * window - 1, "the tail has the last positions"
        lengths, starts = runs(positions)
        head = next((size for size in ends if starts[-1] == factor * window - size), None)
        if len(lengths) == 3:
            assert lengths == [head, window - 2 * head, head]
            ends[head].append(starts[1] + lengths[1] - 1)
        else:  # the middle touches the head or the tail
            assert len(lengths) == 2
    sizes = {head: len(found) for head, found in ends.items()}
    assert binomtest(sizes[40], sum(sizes.values())).pvalue > 1e-3
    random = np.random.default_rng(1)
    for head, found in ends.items():
        middle = window - 2 * head
        bell = truncnorm((2 - 9) / 3, (16 - 9) / 3, 9, 3).rvs(20000, random_state=random)  # the code's numbers, f = 8
        half = np.rint(bell) / 2
        low, high = np.ceil(head + (middle - 1) * half), np.floor(half * window) - head - 1
        expected = low + np.floor(random.random(20000) * (high - low + 1))
        touching = (expected == head + middle - 1) | (expected == factor * window - head - 1)
        assert ks_2samp(found, expected[~touching]).pvalue > 1e-3
        assert np.mean(found) == pytest.approx(expected[~touching].mean(), rel=0.02)


def test_cream_takes_the_text_of_its_positions_or_else_the_documents_end():
    for (places, positions), (cut, same) in zip(
        draws("cream", 200, 10**6, 120, 960), draws("cream", 200, 300, 120, 960), strict=True
    ):
        assert np.array_equal(places[:-1], positions)
        assert np.array_equal(positions, same), "what is drawn does not depend on the text"
        assert cut[-1] == 120 + 300
        assert (cut <= places).all()


def test_draws_are_those_of_seed_and_number():
    for name in ("pose", "cream"):
        place, again = Placement(name, 120, 960, 3), Placement(name, 120, 960, 3)
        for number in (7, 0, 7):
            for one, other in zip(place(number, 50), again(number, 50), strict=True):
                assert np.array_equal(one, other)
        others = [place(8, 50), Placement(name, 120, 960, 4)(7, 50), place(7, 50, 1)]
        assert all(not np.array_equal(place(7, 50)[1], other[1]) for other in others)


@pytest.mark.parametrize(
    ("name", "window", "target", "says"),
    [
        ("pose", 64, 64, "64 where the window has 64"),
        ("cream", 64, 16, "--data.positions full"),
        ("pose", 1, 8, "room for its 2 runs"),
        ("cream", 64, 8 * 64, "--data.positions pose"),
    ],
)
def test_a_window_without_room_is_refused(name, window, target, says):
    with pytest.raises(ZooError, match=says):
        Placement(name, window, target)
    if name == "cream":
        Placement(name, 65, 8 * 65)


@pytest.fixture
def texts(tmp_path):
    """Documents whose tokens tell where they stand: the bytes of a document rise."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.txt").write_text("".join(chr(33 + n // 80) * 1 for n in range(900 + 300 * number)))
    rows = [{"text": path.read_text()} for path in sorted(folder.glob("*.txt"))]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def made(texts, positions, streaming, reach=400, length=64, **more):
    files = str(texts / ("rows.jsonl" if streaming else "texts"))
    data = Text(
        files, streaming=streaming, tokenizer="bytes", length=length, positions=positions, batch=2, workers=0,
        valid=0, test=0, cache=str(texts / "cache"), **more,
    )  # fmt: skip
    progress = SimpleNamespace(current=SimpleNamespace(processed=0))
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
    data.trainer = SimpleNamespace(
        lightning_module=SimpleNamespace(reach=reach, length=length), state=SimpleNamespace(fn=None),
        global_rank=0, world_size=1, fit_loop=loop,
    )  # fmt: skip
    data.prepare_data()
    data.setup()
    return data.train_dataloader(), progress


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("positions", ["pose", "cream"])
def test_batches_hold_positions_and_skip_within_a_document(texts, positions, streaming):
    loader, _ = made(texts, positions, streaming)
    skipped = 0
    for batch in loader:
        assert batch["positions"].shape == (2, 64)
        assert batch["positions"].dtype == torch.int64
        assert batch["positions"].max() < 400
        assert (batch["positions"].diff() > 0).all()
        assert batch["tokens"].shape == batch["documents"].shape == (2, 65)
        for tokens, documents in zip(batch["tokens"], batch["documents"], strict=True):
            assert documents[0] == 0
            for owner in documents.unique():
                letters = tokens[(documents == owner) & (tokens != 256)]
                assert (letters.diff() >= 0).all(), "text goes on in the document in which it was"
            skipped += int(((tokens.diff() > 1) & (documents.diff() == 0) & (tokens[1:] != 256)).sum())
    assert skipped > 5
    assert "positions" not in next(iter(made(texts, "full", streaming)[0]))


@pytest.mark.parametrize("positions", ["pose", "cream"])
def test_a_block_ends_in_the_document_in_which_it_would(texts, positions):
    blocks = made(texts, positions, False)[0].dataset
    flat, owner = [], []
    for number, row in enumerate((texts / "rows.jsonl").read_text().splitlines()):
        flat += [*json.loads(row)["text"].encode(), 256]
        owner += [number] * (len(flat) - len(owner))
    ends = 0
    for number in range(len(blocks)):
        start = 64 * number
        room = sum(each == owner[start + 64] for each in owner[start + 65 :])
        places, told = blocks.placement(number, room)
        block = blocks[number]
        assert torch.equal(block["positions"], torch.from_numpy(told))
        assert block["tokens"].tolist() == [flat[start + place] for place in places]
        assert owner[start + places[-1]] == owner[start + 64]
        ends += places[-1] > 64
    assert ends > len(blocks) / 2


@pytest.mark.parametrize("streaming", [False, True])
def test_a_loader_that_goes_on_draws_what_the_other_did(texts, streaming):
    loader, progress = made(texts, "pose", streaming)
    whole = list(loader)
    loader, progress = made(texts, "pose", streaming)
    for done, _ in enumerate(loader, 1):
        progress.current.processed = done
        if done == 7:
            break
    state = loader.state_dict()
    loader, progress = made(texts, "pose", streaming)
    progress.current.processed = 7
    loader.load_state_dict(state)
    rest = list(loader)
    assert len(rest) == len(whole) - 7
    for one, other in zip(rest, whole[7:], strict=True):
        assert all(torch.equal(one[key], other[key]) for key in ("tokens", "documents", "positions"))


def test_each_epoch_draws_anew(texts):
    blocks = made(texts, "pose", False)[0].dataset
    first, again, later = blocks[3], blocks[3], blocks[3 + len(blocks)]
    assert torch.equal(first["positions"], again["positions"])
    assert not torch.equal(first["positions"], later["positions"])
