"""Pictures of attention: what a bias adds, what heads attend to, which of them do the same."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from zoo.analyze.canvas import Document, columns, ends, label, maps, sheet, tint
from zoo.pictures import WEIGHT


def bias(documents: list[Document]) -> Figure | None:
    """What the bias adds over distance."""
    shown = [document for document in documents if document["bias"]]
    if not shown:
        return None
    if shown[0]["task"] == "images":
        return maps(
            [(d, d["bias"]["layers"], "values") for d in shown],
            "What the position bias adds to a logit",
            "By the key's offset from the query: the centre is the patch itself. A layer a row, a head a column, "
            "colours per panel: dark is more attention.",
        )
    # One panel where all layers say the same.
    same = all(layer["values"] == d["bias"]["layers"][0]["values"] for d in shown for layer in d["bias"]["layers"])
    layers = [[0]] * len(shown) if same else columns([d["bias"] for d in shown])
    first, last = shown[0]["bias"]["queries"][0], shown[0]["bias"]["queries"][-1]
    dots = f" Dotted: query {last}, where its curve is another." if last != first else ""
    moves = any(layer["content"] for d in shown for layer in d["bias"]["layers"])
    figure, axes = sheet(
        len(shown),
        max(map(len, layers)),
        f"What the position bias adds to the logits of query {first}",
        "By how many tokens back the key is: higher is more attention, and only differences count."
        + dots
        + " The bias depends on the text: drawn are means." * moves
        + ends(shown[0]["size"]["heads"]),
        wide=5.5 if same else 2.3,
        high=2.6 if same else 2.0,
        sharey=True,
    )
    for row, document in enumerate(shown):
        found = document["bias"]
        for column, layer in enumerate(layers[row]):
            one, entry = axes[row, column], found["layers"][layer]
            for head, (near, far) in enumerate(zip(entry["values"][0], entry["values"][-1], strict=True)):
                colour = tint(head, len(entry["values"][0]))
                one.plot(found["distances"][0], near, color=colour, linewidth=0.9)
                known = dict(zip(found["distances"][0], near, strict=True))
                spread = max(max(near) - min(near), 1e-9)
                apart = (abs(known.get(d, v) - v) for d, v in zip(found["distances"][-1], far, strict=True))
                if any(gap > 0.01 * spread for gap in apart):
                    one.plot(found["distances"][-1], far, color=colour, linewidth=0.8, linestyle=":")
            one.set_title("all layers" if same else f"layer {entry['layer'] + 1}", fontsize=7.5, loc="left")
            one.set(xlabel="distance (tokens)", ylabel="" if column else "bias (logit)")
    label(axes, shown)
    return figure


def heads(documents: list[Document]) -> Figure | None:
    """Distance, entropy, sinks and redundancy of every head."""
    shown = [document for document in documents if document["heads"]]
    if not shown:
        return None
    images = shown[0]["task"] == "images"
    unit = "patches" if images else "tokens"
    start = "class and registers" if images else "the first token"
    panels = {
        "distance": f"mean distance ({unit})",
        "entropy": "entropy (nats)",
        "sink": f"weight on {start}",
        "alike": "likeness to other heads",
    }
    figure, axes = sheet(
        len(shown),
        len(panels),
        "What each head attends to: how far, how widely, how much to the start, how much like the others",
        f"A dot a head, means over {shown[0]['heads']['examples']} examples. An entropy of ln 8 = 2.1 is that of "
        "attention spread evenly over 8 keys. Likeness: mean cosine between the head's attention and that of the "
        "layer's other heads; 1 means that they do the same.",
        wide=2.2,
        high=2.1,
        sharey="col",
    )
    for row, document in enumerate(shown):
        found = document["heads"]["layers"]
        for column, (key, words) in enumerate(panels.items()):
            one = axes[row, column]
            for entry in found:
                values = alike(entry["similarity"]) if key == "alike" else entry[key]
                for head, value in enumerate(values):
                    shift = (head - (len(values) - 1) / 2) * 0.5 / max(len(values), 1)
                    one.plot(
                        entry["layer"] + 1 + shift,
                        value,
                        "o",
                        markersize=3,
                        color=tint(head, len(values)),
                        clip_on=False,
                    )
            one.set(xlabel="layer", ylabel=words)
            one.xaxis.set_major_locator(MaxNLocator(integer=True))
    for column, key in enumerate(panels):  # a column has one scale, known when all rows are drawn
        top = axes[0, column].get_ylim()[1]
        axes[0, column].set_ylim(*((-0.03, 1.03) if key in ("sink", "alike") else (0, top * 1.05)))
    label(axes, shown)
    return figure


def alike(similarity: list[list[float]]) -> list[float]:
    """Mean similarity of each head to the others; nothing where it is alone."""
    count = len(similarity)
    return [(sum(row) - row[head]) / (count - 1) for head, row in enumerate(similarity)] if count > 1 else []


def redundancy(documents: list[Document]) -> Figure | None:
    """Which heads do the same."""
    shown = [d for d in documents if d["heads"] and d["heads"]["redundancy"] is not None]
    if not shown:
        return None
    layers = columns([d["heads"] for d in shown])
    figure, axes = sheet(
        len(shown),
        max(map(len, layers)),
        "Which heads of a layer do the same",
        "The mean cosine between the attention of two heads: dark squares off the diagonal are heads that look at the "
        "same tokens. Mean: the layer's redundancy.",
        wide=1.9,
        high=1.9,
    )
    for row, document in enumerate(shown):
        for column, layer in enumerate(layers[row]):
            one, entry = axes[row, column], document["heads"]["layers"][layer]
            count = len(entry["similarity"])
            edge = (0.5, count + 0.5, count + 0.5, 0.5)
            image = one.imshow(entry["similarity"], cmap=WEIGHT, vmin=0, vmax=1, extent=edge, interpolation="nearest")
            one.set_title(f"layer {entry['layer'] + 1}, mean {entry['redundancy']:.2f}", fontsize=7.5, loc="left")
            one.set(xlabel="head", ylabel="" if column else "head")
            for axis in (one.xaxis, one.yaxis):
                axis.set_major_locator(MaxNLocator(6, integer=True))
        figure.colorbar(image, ax=axes[row, -1], label="likeness", shrink=0.8)
    label(axes, shown)
    return figure
