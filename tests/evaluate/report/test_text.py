"""Results as plain text: a line each, and a table at the end."""

import itertools
import re

from zoo.evaluate.report import line, table


def results(document: dict, **wanted) -> dict:
    """A document with only the results that are as wanted."""
    kept = [each for each in document["results"] if all(each[key] == value for key, value in wanted.items())]
    return {**document, "results": kept}


def test_the_table_is_aligned(made):
    document = results(made.rich(("fope", "learned")), measure="perplexity")
    values = [each.get("value", {}).get("perplexity") for each in document["results"]]
    words = [f"{each:.2f}" if each else "n/a" for each in values]
    assert table({**document, "settings": {}}).splitlines() == [
        "Perplexity over length: lower is better",
        "  tokens     128    256    512   1024   2048",
        f"  fope     {'  '.join(words[:5])}",
        f"  learned  {words[5]}    n/a    n/a    n/a    n/a",
        f"  n/a: {made.ENDS} (learned at 256, 512, 1024, 2048)",
    ]
    whole = table(made.rich())
    blocks = whole.split("\n\n")
    assert [block.partition(":")[0] for block in blocks] == [title for _, title in made.SECTIONS]
    for block in blocks:
        rows = [row for row in block.splitlines() if re.match("  (fope|rope|alibi|learned) ", row)]
        assert len({len(row) for row in rows[:4]}) == 1, block


def test_a_table_is_no_wider_than_a_terminal(made):
    document = made.rich(("fope",), ["position"])
    ends = [16 * at for at in range(1, 31)]
    buckets = [{"start": start, "stop": stop, "nats": 2.5, "tokens": 9} for start, stop in itertools.pairwise(ends)]
    document["results"][0]["value"] = {"buckets": buckets}
    lines = table(document).splitlines()
    assert lines[:3] == [
        "Loss over position: nats per token, lower is better",
        "  position   fope",
        "  16–31     2.500",
    ]
    assert len(lines) == 2 + len(buckets)


def test_what_nobody_could_read_has_its_lengths(made):
    document = made.rich(("learned",), ["position"])
    assert "refused" in document["results"][0]
    assert table(document).splitlines()[1:3] == ["  tokens   2048", "  learned   n/a"]


def test_a_line_for_a_result(made):
    entry = {"checkpoint": "fope", "measure": "perplexity", "length": 512}
    value = {"perplexity": 15.1149, "low": 14.0, "high": 16.25, "nats": 2.7}
    assert line({**entry, "seconds": 1.23, "value": value}) == (
        "fope  perplexity  512 tokens  15.11 (14.00 to 16.25)  lower is better  [1.2 s]"
    )
    assert line({**entry, "refused": made.ENDS}) == f"fope  perplexity  512 tokens  n/a: {made.ENDS}"
    level = {"offsets": [{"offset": 0, "nats": 3.0}, {"offset": 9, "nats": 3.0 - 1e-9}]}
    assert line({**entry, "measure": "offset", "value": level}) == (
        "fope  offset  512 tokens  +0.0000  nats per token, the largest change"
    )
    document = made.rich(measures=[*made.ALL, "resolution"])
    lines = [line(each) for each in document["results"]]
    assert all("\n" not in each and "?" not in each for each in lines)
    assert len(set(lines)) == len(lines)
