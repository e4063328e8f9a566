"""Pictures of waves: of the rotation, of the response to distance, of the hidden states."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from zoo.analyze.canvas import LATE, Document, chosen, columns, ends, label, maps, periods, sheet, tint
from zoo.analyze.waves import untrained
from zoo.pictures import WEIGHT

LINE: dict[str, Any] = {"linewidth": 0.8, "markersize": 1.8}
ROWS = {
    "measured": (
        "measured",
        "Measured: the mean over a text of query times key, by the distance between them; at the greatest distances it "
        "is a mean over few pairs.",
    ),
    "positions": (
        "positions alone",
        "Positions alone: the same if every token had the same, mean content; what is beyond it is content.",
    ),
    "steady": (
        "rotation's waves",
        "Rotation's waves: the coefficients of that second curve, a Fourier series whose periods are the rotation's "
        "wavelengths (shaded: longer than training).",
    ),
    "amplitude": (
        "waves of measured",
        "Waves of measured: the plain Fourier transform of the first curve; a peak at a period of 8 tokens means that "
        "every 8th token gets more.",
    ),
}
"""Curves of the response, their names and what they are."""
SITES = {
    "before": ("#8a8a8a", "stream before the block"),
    "attended": ("#2a7f9e", "added by attention"),
    "fed": (LATE, "added by the feed-forward layer"),
    "after": ("#12355b", "stream after the block"),
}


def spectrum(documents: list[Document]) -> Figure | None:
    """Waves, and the energy that heads put on them."""
    shown = [document for document in documents if document["spectrum"]]
    if not shown:
        return None
    unit = "patches" if shown[0]["task"] == "images" else "tokens"
    turning = ""
    if any("vectors" in document["spectrum"]["encodings"][0] for document in shown):
        turning = " Points in a plane: each pair turns in a direction of its own, by so much per row and per column;"
        turning += ends(shown[0]["size"]["heads"]).replace("One line", "one point a pair,").lower()
    figure, axes = sheet(
        2,
        len(shown),
        "How long the waves of the rotation are, and how much each head uses them",
        f"Above: the wavelength of each pair of channels. Orange: less than one full turn within the length of first "
        f"training (line), so that the model never saw all angles of it. Below: the share of each pair in a head's "
        f"energy, mean |q| times mean |k| of the pair: what it could at most add to a logit; a row a head. Lengths are "
        f"{unit}.{turning}",
        wide=4.6,
        high=2.4,
        height_ratios=(1, 1 + 0.012 * max(d["size"]["layers"] * d["size"]["heads"] for d in shown)),
    )
    shares = []
    for document in shown:
        rows = np.array([row for layer in document["spectrum"]["layers"] for row in layer["energy"]])
        still = np.array([value for layer in document["spectrum"]["layers"] for value in layer["still"]])
        shares.append(100 * rows / np.maximum(rows.sum(1) + still, 1e-30)[:, None])
    most = max(share.max() for share in shares)
    for column, (document, share) in enumerate(zip(shown, shares, strict=True)):
        found = document["spectrum"]
        wavelengths(axes[0, column], found["encodings"][0], document, unit)
        image = axes[1, column].imshow(
            share, aspect="auto", cmap=WEIGHT, vmin=0, vmax=max(most, 1e-9), interpolation="nearest"
        )
        heads = document["size"]["heads"]
        axes[1, column].set_yticks(
            [heads * k + (heads - 1) / 2 for k in range(len(found["layers"]))],
            [f"layer {layer['layer'] + 1}" for layer in found["layers"]],
        )
        for k in range(1, len(found["layers"])):
            axes[1, column].axhline(heads * k - 0.5, color="white", linewidth=1)
        for pair, late in enumerate(untrained(found["encodings"][0], 1)[0]):
            if late and "vectors" not in found["encodings"][0]:
                axes[1, column].plot([pair - 0.5, pair + 0.5], [-0.9, -0.9], color=LATE, linewidth=2, clip_on=False)
        axes[1, column].set(xlabel="pair of channels", ylim=(len(share) - 0.5, -0.5))
        figure.colorbar(image, ax=axes[1, column], label="% of the head's energy", shrink=0.9)
    lines = [one for one in axes[0] if one.get_yscale() == "log"]
    limits = [limit for one in lines for limit in one.get_ylim()]
    for one in lines:
        one.set_ylim(min(limits), max(limits))
    return figure


def wavelengths(axes: Axes, encoding: Document, document: Document, unit: str) -> None:
    """The wavelengths of one encoding; directions, where each pair has its own."""
    axes.set_title(f"{document['name']}: {document['position']}", fontsize=8, loc="left")
    if "vectors" in encoding:
        for head, vectors in enumerate(encoding["vectors"]):
            y, x = np.array(vectors).T
            axes.scatter(x, y, s=9, color=tint(head, len(encoding["vectors"])))
        axes.set(xlabel="radians per column", ylabel="radians per row", aspect="equal")
        axes.axhline(0, color="#cccccc", linewidth=0.6, zorder=0)
        axes.axvline(0, color="#cccccc", linewidth=0.6, zorder=0)
        return
    marks = ("o", "s")
    still = []
    for pair, follows in enumerate(encoding["pairs"]):
        wave = follows and encoding["axes"][follows["axis"]][follows["wave"]]
        if not wave:
            still.append(pair)
            continue
        late = wave["undertrained"]
        axes.plot(pair, wave["wavelength"], marks[follows["axis"]], markersize=3.5, color=LATE if late else "#12355b")
    for axis, length in enumerate(dict.fromkeys(encoding["trained"])):
        axes.axhline(length, color="#888888", linewidth=0.8, linestyle=("-", "--")[axis])
        axes.annotate(f"trained on {length}", (0, length), xytext=(2, 2), textcoords="offset points", color="#666666")
    axes.set_yscale("log")
    axes.margins(y=0.12)
    axes.set(ylabel=f"wavelength ({unit})", xlabel="pair of channels", xlim=(-0.5, len(encoding["pairs"]) - 0.5))
    above: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "va": "bottom", "ha": "center"}
    for _, group in groupby(enumerate(still), lambda place: place[1] - place[0]):  # on a grid: of each axis
        run = [pair for _, pair in group]
        axes.axvspan(run[0] - 0.5, run[-1] + 0.5, color="#eeeeee", zorder=0)
        axes.text(sum(run) / len(run), 0.03, "do not turn", color="#666666", **above)
    if len(encoding["axes"]) > 1:
        axes.plot([], [], "o", color="#12355b", markersize=3.5, label="rows")
        axes.plot([], [], "s", color="#12355b", markersize=3.5, label="columns")
        axes.legend(frameon=False, fontsize=7)


def coefficients(documents: list[Document]) -> Figure | None:
    """The matrices that mix waves."""
    shown = [(d, d["spectrum"]["encodings"][0]) for d in documents if d["spectrum"]]
    shown = [(d, e) for d, e in shown if e["mixed"]]
    if not shown:
        return None
    heads = chosen(len(shown[0][1]["coefficients"][0]["cos"]), 4)
    figure, axes = sheet(
        2 * len(shown),
        len(heads),
        "Which waves each pair of channels is a sum of",
        "Coefficients of the cosines (above) and the sines (below), read off the encoding's tables by least squares. "
        "A row is a wave, the fastest on top and the constant last; a column is a pair of channels. Plain RoPE is dark "
        "on the diagonal and white elsewhere." + " These are the rows' waves." * (shown[0][0]["task"] == "images"),
        wide=2.2,
        high=2.2,
    )
    for number, (document, encoding) in enumerate(shown):
        for part, name in enumerate(("cos", "sin")):
            for column, head in enumerate(heads):
                one, values = axes[2 * number + part, column], np.array(encoding["coefficients"][0][name])
                head = min(head, len(values) - 1)
                image = one.imshow(values[head], cmap="RdBu", vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
                one.set_title(
                    f"{document['name']}: {name}, head {head + 1}" if not column else f"head {head + 1}", fontsize=7.5
                )
                count = len(values[head])
                step = -(-count // 8)
                ticks = [*range(0, count - step, step), count - 1]
                one.set_yticks(ticks, [*map(str, ticks[:-1]), "const."])
                one.set(xlabel="pair of channels", ylabel="" if column else "wave")
            figure.colorbar(image, ax=axes[2 * number + part, -1], label="coefficient")
    return figure


def response(documents: list[Document]) -> Figure | None:
    """The mean logit over distance."""
    if documents[0]["task"] == "images":
        return maps(
            [(d, d["response"]["layers"], "measured") for d in documents],
            "How a logit depends on where the other patch lies",
            "The mean over all pairs of patches of what query and key put into a logit, by the key's offset from the "
            "query: the centre is the patch itself. A layer a row, a head a column, colours per panel: dark is more.",
        )
    layers = columns([d["response"] for d in documents])
    found, all_ = len(documents[0]["response"]["distances"]), documents[0]["grid"][0]
    rows = [row for row in ROWS if any(response_lines(document, 0, row) for document in documents)]
    figure, axes = sheet(
        len(rows) * len(documents),
        max(map(len, layers)),
        "How a logit responds to the distance of the key, and which waves the response is made of",
        " ".join(ROWS[row][1] for row in rows)
        + " A position bias is not in it." * any(bool(d["bias"]) for d in documents)
        + f" Of all distances {found} are drawn, near ones closer together: far out, fast waves look slow."
        * (found < all_)
        + ends(documents[0]["size"]["heads"]),
        sharey="row",
    )
    for number, document in enumerate(documents):
        for row, kind in enumerate(rows):
            for column, layer in enumerate(layers[number]):
                one = axes[number * len(rows) + row, column]
                lines = response_lines(document, layer, kind)
                for head, (x, curve) in enumerate(lines):
                    one.plot(x, curve, "o-" if kind == "steady" else "-", color=tint(head, len(lines)), **LINE)
                one.set_title(f"layer {document['response']['layers'][layer]['layer'] + 1}", fontsize=7.5, loc="left")
                if not lines:
                    mixed = document["spectrum"] and document["spectrum"]["encodings"][0]["mixed"]
                    said = "each pair of channels\nis a sum of waves" if mixed else "no such curve"
                    one.text(0.5, 0.5, said, transform=one.transAxes, ha="center", va="center", color="#888888")
                elif kind == "steady":
                    one.set_xscale("log")
                    if max(lines[0][0]) > document["trained"][0]:
                        one.axvspan(document["trained"][0], max(lines[0][0]) * 1.3, color=LATE, alpha=0.12, linewidth=0)
                elif kind == "amplitude":
                    periods(one, lines[0][0][0], 0.5)
                one.set_xlabel("distance (tokens)" if kind in ("measured", "positions") else "period (tokens)")
                one.set_ylabel("" if column else f"{ROWS[kind][0]}\n(logit)")
    for row in range(len(rows)):  # one scale for the same curve of all checkpoints
        drawn = [number for number, document in enumerate(documents) if response_lines(document, 0, rows[row])]
        limits = [axes[number * len(rows) + row, 0].get_ylim() for number in drawn]
        for number in drawn:
            axes[number * len(rows) + row, 0].set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    label(axes, documents, len(rows))
    return figure


def response_lines(document: Document, layer: int, kind: str) -> list[tuple[list[float], list[float]]]:
    """(x, y) of each head; none where the layer has no such curve."""
    found = document["response"]
    entry = found["layers"][layer]
    if kind != "steady":
        x = found["frequencies"] if kind == "amplitude" else found["distances"]
        return [(x, curve) for curve in entry.get(kind) or []]
    spectrum = document["spectrum"] or {"layers": []}
    energy = next((e for e in spectrum["layers"] if e["layer"] == entry["layer"] and "steady" in e), None)
    if energy is None or spectrum["encodings"][energy["encoding"]]["mixed"]:
        return []
    encoding = spectrum["encodings"][energy["encoding"]]
    turning = [
        (encoding["axes"][0][follows["wave"]]["wavelength"], pair)
        for pair, follows in enumerate(encoding["pairs"])
        if follows
    ]
    turning.sort()
    return [([x for x, _ in turning], [row[pair] for _, pair in turning]) for row in energy["steady"]]


def streams(documents: list[Document]) -> Figure | None:
    """The frequency content of the hidden states."""
    shown = [document for document in documents if document["streams"]]
    if not shown:
        return None
    unit = "patches" if shown[0]["task"] == "images" else "tokens"
    layers = columns([d["streams"] for d in shown])
    figure, axes = sheet(
        len(shown),
        max(map(len, layers)),
        "How fast the hidden states change along the " + ("image" if unit == "patches" else "text"),
        f"Power by period: on the right what changes slowly, over many {unit}; on the left what changes from one to "
        "the next. 1 is what it would be if all periods had the same, as in noise. Where the blue line leaves the grey "
        "one, the block has moved power to other periods; change: how much of all.",
        high=2.3,
        sharey=True,
    )
    for row, document in enumerate(shown):
        found = document["streams"]
        for column, layer in enumerate(layers[row]):
            one, entry = axes[row, column], found["layers"][layer]
            for site, (colour, name) in SITES.items():
                share = np.array(entry[site]["share"]) / found["even"]
                one.plot(
                    found["bands"],
                    share,
                    ".-",
                    color=colour,
                    linewidth=1.2 if site in ("before", "after") else 0.8,
                    label=name,
                )
            one.set_yscale("log")
            periods(one, found["bands"][0], max(found["bands"][-1], 0.5))
            one.set_title(f"layer {entry['layer'] + 1}, change {entry['change']:.0%}", fontsize=7.5, loc="left")
            one.set(xlabel=f"period ({unit})", ylabel="" if column else "power, relative to noise")
    label(axes, shown)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure
