"""The search for LongRoPE's divisors: what it varies, that it never loses, that it says and keeps its budget."""

import itertools
import json
import math
import random

import pytest
import torch

from zoo import checkpoints, cli, plugins
from zoo.checkpoints import folder
from zoo.errors import ZooError
from zoo.evaluate import Evaluation
from zoo.extend import family, plan, search
from zoo.extend.source import read
from zoo.extension import Series

LongRoPE = plugins.load("zoo.extensions", "LongRoPE")


def subject(width=32, factor=4.0, length=128):
    return LongRoPE(Series(base=10000.0, width=width, length=length), factor=factor)


def rises(numbers):
    return all(one <= other for one, other in itertools.pairwise(numbers))


@pytest.mark.parametrize(
    ("width", "factor", "length"), [(32, 4.0, 128), (128, 32.0, 4096), (16, 1.5, 64), (2, 8.0, 64)]
)
def test_children_rise_and_stay_within_bounds(width, factor, length):
    found, rng = subject(width, factor, length), random.Random(3)
    pool = found.seeds()
    for _ in range(300):
        child = found.child(rng.choice(pool), rng.choice(pool), rng)
        assert rises(child)
        assert child[0] >= 1
        assert child[-1] <= 2 * factor + 1e-4
        assert len(child) == width // 2
        pool.append(child)
    assert len({tuple(child) for child in pool}) > 150


def test_the_seeds_are_the_methods_of_their_names():
    """What the divisors do to waves, against the extensions that they are named after."""
    found, waves = subject(), 10000.0 ** (-torch.arange(16, dtype=torch.float64) / 16)
    series = found.series
    first, yarn, ntk, linear = (waves / torch.tensor(seed, dtype=torch.float64) for seed in found.seeds())
    load = {name: plugins.load("zoo.extensions", name) for name in ("YaRN", "NTK", "Linear")}
    torch.testing.assert_close(first, found.waves(waves, 512)[0])
    torch.testing.assert_close(yarn, load["YaRN"](series, factor=4.0, truncate=False).waves(waves, 512)[0])
    torch.testing.assert_close(ntk, load["NTK"](series, factor=4.0).waves(waves, 512)[0])
    torch.testing.assert_close(linear, load["Linear"](series, factor=4.0).waves(waves, 512)[0])
    assert all(rises(seed) for seed in found.seeds())


def test_a_list_that_was_given_is_the_first_seed():
    given = [1.0 + wave / 4 for wave in range(16)]
    found = LongRoPE(Series(base=10000.0, width=32, length=128), factor=4.0, long=given)
    assert found.seeds()[0] == given
    assert found.arguments(given) == {"long": given}


WANTED = [1 + 3 * (wave / 15) ** 2 for wave in range(16)]


def distance(numbers):
    return sum((math.log(one) - math.log(other)) ** 2 for one, other in zip(numbers, WANTED, strict=True))


def test_evolution_comes_nearer_to_an_optimum_that_is_known():
    found = subject()
    best, loss, start = search.evolve(found, distance, 200, random.Random(0))
    seeds = [distance(seed) for seed in found.seeds()]
    assert start == seeds[0]
    assert loss == distance(best) < min(seeds) / 3


@pytest.mark.parametrize("passes", [1, 2, 4, 5, 60])
def test_it_never_loses_and_asks_as_often_as_it_may(passes):
    """Losses drawn at random, so that no child is better than its parents by anything but chance."""
    for seed in range(10):
        rng, asked = random.Random(seed), {}

        def loss(numbers, asked=asked, rng=rng):
            assert tuple(numbers) not in asked, "judged twice"
            return asked.setdefault(tuple(numbers), rng.random())

        best, least, start = search.evolve(subject(), loss, passes, random.Random(seed))
        assert len(asked) == passes
        assert least == min(asked.values()) == asked[tuple(best)] <= start
        assert start == asked[tuple(subject().seeds()[0])]


def test_it_is_the_same_for_the_same_seed_and_bears_what_is_no_number():
    def loss(numbers):
        return math.nan if numbers[3] < 1.5 else distance(numbers)

    one, other, third = (search.evolve(subject(), loss, 50, random.Random(seed)) for seed in (1, 1, 2))
    assert one[:2] == other[:2]
    assert one[0] != third[0]
    assert math.isfinite(one[1])
    assert one[0][3] >= 1.5
    first = subject().seeds()[0]
    best, loss, start = search.evolve(
        subject(), lambda numbers: math.nan if numbers == first else distance(numbers), 9, random.Random(0)
    )
    assert start == math.inf, "what is no number is as bad as can be, even where nothing else has been judged"
    assert distance(best) == loss < math.inf


def test_it_ends_where_nothing_new_is_left():
    class Still:
        def seeds(self):
            return [[1.0], [2.0], [1.0]]

        def child(self, one, other, rng):
            return one

    asked = []
    assert search.evolve(Still(), lambda numbers: asked.append(numbers) or numbers[0], 99, random.Random(0))[0] == [1.0]
    assert asked == [[1.0], [2.0]]


def extend(*words, capsys):
    cli.run(["extend", *map(str, words), "--json"])
    return json.loads(capsys.readouterr().out)


def chain(path):
    return folder.said(path)["extended"]["chain"][-1]


def test_the_result_is_written_and_is_as_good_as_it_says(knowing, texts, tmp_path, reads, capsys):
    words = (knowing, "--to=64", "--method=LongRoPE", "--files", texts)
    told = extend(*words, "--search=perplexity", "--budget=8k", "--out", tmp_path / "found", capsys=capsys)
    step = chain(tmp_path / "found")
    assert told["extended"]["chain"][-1] == step
    facts, divisors = step["search"], step["arguments"]["long"]
    assert rises(divisors)
    assert (
        folder.said(tmp_path / "found")["network"]["init_args"]["position"]["init_args"]["extension"]["init_args"][
            "long"
        ]
        == divisors
    )
    assert "short" not in step["arguments"], "within the trained length nothing moves"
    assert facts["kind"] == "perplexity"
    assert (facts["seed"], facts["passes"]) == (0, 64)
    assert facts["text"]["documents"] == 2
    assert sum(map(len, reads)) == facts["tokens"] == 64 * 2 * 64 == 8192
    assert facts["best"] <= facts["start"]
    assert "search by perplexity (seed 0, 64 passes, 8192 tokens" in (tmp_path / "found" / "README.md").read_text()

    # the same documents, by the evaluation of what was written
    used = family.text(family.Family(knowing), [str(texts)], 64, 2, measured=False).used
    assert used.digest == facts["text"]["digest"]
    cli.run(["extend", *map(str, (knowing, "--to=64", "--method=LongRoPE", "--out", tmp_path / "plain"))])
    found = Evaluation(
        [str(tmp_path / "plain"), str(tmp_path / "found")], lengths=(64,), measures="perplexity", files=used
    )
    nats = [one["value"]["nats"] for one in found.run()]
    assert nats == [pytest.approx(facts["start"], abs=1e-6), pytest.approx(facts["best"], abs=1e-6)]
    assert nats[1] < nats[0], "on this model there is something to find"


def test_runs_are_the_same_for_the_same_seed(knowing, texts, tmp_path, capsys):
    def found(name, *words):
        out = tmp_path / name
        words = (
            "--to=64",
            "--method=LongRoPE",
            "--search=perplexity",
            "--budget=3k",
            "--files",
            texts,
            *words,
            "--out",
            out,
        )
        extend(knowing, "--files", texts, *words, capsys=capsys)
        return chain(out)["arguments"]["long"]

    assert found("one") == found("two")
    assert found("one-seed", "--seed=1") != found("two", "--overwrite")


def test_needles_count_nothing_but_their_answers(knowing, texts, capsys):
    known = family.Family(knowing)
    documents = family.text(known, [str(texts)], 400, 3, measured=False)
    pieces = search.losses(known.untouched, documents, 400, "needle", 7)
    assert len(pieces) == 3
    depths = []
    for tokens, count in pieces:
        said = bytes(tokens.tolist()).decode()
        assert 380 < len(tokens) <= 400
        answer = said[-count:]
        assert answer.startswith(" ")
        assert answer.strip().isdigit()
        assert said.count(answer.strip()) == 2, "hidden once, answered once"
        depths.append(said.index(answer.strip()) - said.index("afterwards"))
    assert depths == sorted(depths)
    assert depths[0] < depths[1] < depths[2], said
    wanted = []
    for tokens, count in pieces:
        with torch.no_grad():
            logits = known.untouched.model(tokens[None, :-1])[0].log_softmax(-1)
        wanted += [-float(logits[at - 1, tokens[at]]) for at in range(len(tokens) - count, len(tokens))]
    assert search.judged(known.untouched, pieces) == pytest.approx(sum(wanted) / len(wanted), abs=1e-5)
    again = search.losses(known.untouched, documents, 400, "needle", 7)
    assert all(torch.equal(one[0], other[0]) for one, other in zip(pieces, again, strict=True))
    told = extend(
        knowing, "--to=400", "--method=LongRoPE", "--search=needle", "--budget=6k", "--files", texts, "--dry-run",
        capsys=capsys,
    )  # fmt: skip
    facts = told["extended"]["chain"][-1]["search"]
    assert facts["kind"] == "needle"
    assert facts["best"] <= facts["start"]
    assert facts["tokens"] <= 6144


def test_documents_of_an_evaluation_were_not_searched_by(knowing, texts, tmp_path, capsys):
    told = extend(
        knowing, "--to=64", "--method=LongRoPE", "--search=perplexity", "--budget=2k", "--files", texts,
        "--evaluate=quick", "--out", tmp_path / "b", capsys=capsys,
    )  # fmt: skip
    assert told["evaluation"]["text"]["documents"] == 6
    assert told["evaluation"]["text"]["digest"] != chain(tmp_path / "b")["search"]["text"]["digest"]
    assert checkpoints.read(tmp_path / "b").network().reach == 64


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--method=YaRN", "--search=needle"], r"YaRN has nothing to search for. Methods of RoPE that have: LongRoPE"),
        (["--method=Resonance+LongRoPE", "--search=needle"], "has nothing to search for"),
        (["--method=LongRoPE", "--search=luck"], "invalid choice"),
        (
            ["--method=LongRoPE", "--search=perplexity", "--budget=200", "--files=texts"],
            r"takes 256 tokens .* and the budget is 200",
        ),
        (["--method=LongRoPE", "--search=none", "--budget=2k"], "--budget limits"),
        (["--method=LongRoPE", "--search=needle", "--budget=2k", "--files=texts"], "Needles without a haystack take"),
    ],
)
def test_bad_input(knowing, tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ZooError, match=says):
        cli.run(["extend", str(knowing), "--to=64", *words])
    assert {path.name for path in tmp_path.iterdir()} <= {"tiny", "texts", "cache"}


def test_without_text_it_is_refused(make, tmp_path):
    path = make.store(tmp_path / "a")
    with pytest.raises(ZooError, match=r"no text to choose by.*--files"):
        cli.run(["extend", str(path), "--to=64", "--method=LongRoPE", "--search=perplexity"])
    assert search.searched(plan(read(path), 64, "LongRoPE"))
