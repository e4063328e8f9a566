"""The report: one HTML file that needs nothing else, and the pictures beside it as PNGs.

It is written for a person who has not read the papers: each measure says in a paragraph what it is, how to read it and
what good and bad look like, then come the picture, the numbers, and every reason for a number that is missing. The page
depends on the results document alone, so that equal documents give equal bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

from zoo.errors import ZooError
from zoo.evaluate import grids, plots
from zoo.evaluate.grids import Cell, Grid, line, number, table
from zoo.evaluate.ink import COLORS

__all__ = ["line", "table", "write"]

WORDS = {
    "perplexity": "Perplexity is how many tokens the model hesitates between at each step: 1 would be certainty, "
    "and a model that knows nothing hesitates between all of its vocabulary. The same documents are cut into "
    "windows of each length. Longer windows give a token more to go by, so the line of a model that reads on is "
    "level or falls to the right of the length that it was trained at; one that is lost there rises, often steeply. "
    "The band is the 95 % interval over documents. Most of its width is how documents differ, which all models share.",
    "position": "The loss of tokens by their place in one long window. A nat is the unit of the natural logarithm: "
    "0.69 nats less is half as much hesitation. The first tokens have nothing before them and are hard; then the "
    "line should fall and stay down. A step upward at the trained length shows a model that cannot tell positions "
    "beyond it; a level line shows one that does not suffer, and does not profit either.",
    "gain": "What the text beyond the trained length is worth. The same last tokens of each document are read "
    "twice, once with as much context as in training and once with more; the gain is by how many nats the loss "
    "falls. Above 0 the model uses what lies far back, at 0 it ignores it, and below 0 it is confused by it. A "
    "perplexity that stays level hides which of these it is. The reach, ringed in the picture, is the shortest "
    "context with which the loss is as good as it gets, "
    "to within the tolerance of the settings.",
    "offset": "The same text, told that it stands at later positions, with nothing before it. An encoding that "
    "knows distances alone gives a level line. A line that moves shows that the model goes by absolute positions, "
    "or that its arithmetic loses digits at large ones; either way it is not a matter of memory, since there is "
    "nothing to remember.",
    "passkey": "A number is hidden in filler sentences and asked for at the end. Each cell counts the trials in "
    "which the model repeated it exactly: across, how long the whole prompt is; down, where the number stood, from "
    "0 at the beginning to 1 just before the question. Full dark cells are good. A model that loses sight of the "
    "past is right in the lowest rows only, and one that never learnt to repeat is right nowhere, at any length. It "
    "is the easiest test of memory: to fail it says much, to pass it little.",
    "needle": "As the passkey, but hidden in real prose, which distracts more than filler does, and with as many "
    "sentences to find as the settings say. Cells count the trials in which all were found; their shade is the mean "
    "share that was found.",
    "ruler": "Thirteen exercises that must be done with the whole prompt in view: find one or several needles, "
    "follow a chain of variables, count words, answer questions about documents (Hsieh et al. 2024, "
    "arXiv:2404.06654). A score is the percentage of the wanted answers that were given; 100 is best. Small models "
    "that were not taught to follow instructions score near 0, which says nothing of their reach; it is the fall "
    "from left to right that does. What does not fit into a length, or has no data here, is n/a: it has no score "
    "and counts in no mean, so means over different numbers of tasks are not comparable.",
    "longppl": "Perplexity over only those tokens that need the far past: the ones that a second, stronger model "
    "predicts well with the whole text before it and badly with the end of it (Fang et al. 2024, arXiv:2410.23771). "
    "Ordinary perplexity is mostly about tokens that the last few words decide, so two models may agree there and "
    "differ here.",
    "redundancy": "How alike the heads of a layer attend: the mean cosine of what two heads look at, 0 where they "
    "share nothing and 1 where they do the same. A high number that goes with weak results means that heads are "
    "spent on one and the same pattern.",
    "resolution": "The share of images whose class is the model's first guess, and for which it is among the first "
    "five, when images are larger or smaller than in training. More pixels hold more detail, so a model that knows "
    "places on any grid keeps its accuracy or gains; one whose places are those of its training grid loses it on "
    "both sides.",
}
"""What each measure is, how to read it, and what good and bad look like."""
CSS = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1d2126;--soft:#666d75;--rule:#8d949b;--line:#e4e7ea;--wash:#f6f7f8;
--heat:#2b7bba;--font:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
@media(prefers-color-scheme:dark){:root{--paper:#14171a;--ink:#e4e7ea;--soft:#9aa2aa;--rule:#69717a;--line:#2b3036;
--wash:#1b1f23}}
*{box-sizing:border-box}html{-webkit-text-size-adjust:100%}
body{margin:0 auto;padding:3.5rem 1.5rem 5rem;max-width:54rem;background:var(--paper);color:var(--ink);
font:1rem/1.65 var(--font);overflow-wrap:anywhere}
h1{font-size:2.1rem;line-height:1.15;letter-spacing:-.02em;font-weight:650;margin:.2rem 0 .8rem}
h2{font-size:1.35rem;line-height:1.3;letter-spacing:-.01em;font-weight:650;margin:0 0 .6rem}
section{margin-top:4rem}p{margin:0 0 1rem;max-width:44rem}header p{font-size:1.1rem;color:var(--soft)}
small,.soft,figcaption,caption{color:var(--soft);font-size:.85rem}a{color:inherit;text-underline-offset:.2em}
nav{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;margin-top:1.6rem;font-size:.9rem}
nav a{text-decoration-color:var(--rule)}
h3{font-size:.9rem;font-weight:600;margin:1.2rem 0 .3rem}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(15rem,1fr));gap:0 2.5rem;font-size:.88rem}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem 1.2rem;margin:0}
dt{color:var(--soft)}dd{margin:0}
figure{margin:1.6rem 0}.wide{overflow-x:auto;margin:1.4rem 0;
background:linear-gradient(270deg,var(--paper) 40%,transparent) right/3rem 100% no-repeat local,
linear-gradient(270deg,var(--line),transparent) right/.8rem 100% no-repeat scroll}
svg{display:block;width:100%;min-width:34rem;height:auto;stroke-linejoin:round}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums;line-height:1.35;overflow-wrap:normal}
caption{text-align:left;padding-bottom:.5rem}
th,td{padding:.42rem .8rem;text-align:right;vertical-align:top;white-space:nowrap;border-bottom:1px solid var(--line)}
th{font-weight:600}thead th{color:var(--soft);font-weight:500;border-color:var(--rule);vertical-align:bottom}
th:first-child,td.word,th.word{text-align:left}
th:first-child{position:sticky;left:0;background:var(--paper);padding-left:0;min-width:8.4rem;max-width:13rem;
white-space:normal;overflow-wrap:break-word}th a{text-decoration-color:var(--line)}
td small,th small{display:block;font-size:.75rem;font-weight:400}
td.heat small{color:inherit;opacity:.75}sup{font-size:.7em;line-height:0}
td.heat{background:color-mix(in srgb,var(--heat) calc(var(--share)*38%),transparent);border-color:var(--paper);
border-left:1px solid var(--paper)}
i.dot{display:inline-block;width:.62em;height:.62em;border-radius:50%;border:.13em solid;margin-right:.55em}
ol.notes{font-size:.88rem;padding-left:1.4rem;max-width:44rem}ol.notes li{margin:.3rem 0}
details{margin:1.2rem 0;font-size:.88rem}summary{cursor:pointer;color:var(--soft)}
.pending{border-left:3px solid var(--rule);padding:.1rem 0 .1rem 1rem}
@media(max-width:40rem){body{padding:2rem 1.1rem 3rem}h1{font-size:1.7rem}section{margin-top:3rem}
th:first-child{max-width:9rem}}
@media print{:root{--paper:#fff;--ink:#000;--soft:#555;--rule:#888;--line:#ddd}body{max-width:none;padding:0;
font-size:10pt}nav{display:none}section{margin-top:2rem}figure,tr,ol.notes,dl{break-inside:avoid}h2,caption{
break-after:avoid}.wide{overflow:visible;background:none}svg{min-width:0;max-width:40rem}th:first-child{position:static}td.heat,i.dot{print-color-adjust:exact}
details::details-content{content-visibility:visible;block-size:auto}th,td{padding:.3rem .5rem}}
"""
Row = dict[str, Any]


def said(text: Any) -> str:
    """Text for the page: nothing in it is markup."""
    return escape(str(text), quote=True)


def plain(value: Any) -> str:
    """A number or a setting of any kind, for the page."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list) and not any(isinstance(each, dict | list) for each in value):
        return ", ".join(map(plain, value)) or "all, or by default"
    return said(json.dumps(value, sort_keys=True) if isinstance(value, dict | list) else number(value))


def dot(order: int) -> str:
    """The mark of a checkpoint, as in the pictures: hollow from the seventh on."""
    color = COLORS[order % len(COLORS)]
    ground = "transparent" if order >= len(COLORS) else color
    return f'<i class="dot" style="color:{color};background:{ground}"></i>'


def cells(row: Iterable[Cell], numbers: dict[str, int]) -> str:
    """The cells of a row; one that has a reason points to it."""
    made = []
    for cell in row:
        mark = f"<sup>{numbers[cell.reason]}</sup>" if cell.reason in numbers else ""
        small = f"<small>{said(cell.band)}</small>" if cell.band else ""
        shade = f' class="heat" style="--share:{cell.shade:.3f}"' if cell.shade is not None else ""
        soft = ' class="soft"' if cell.text in ("n/a", "–") else ""
        made.append(f"<td{shade or soft}>{said(cell.text)}{mark}{small}</td>")
    return "".join(made)


def rows(head: Iterable[str], body: Iterable[str], caption: str = "") -> str:
    """A table, in a frame that scrolls by itself."""
    top = "".join(f'<th scope="col"{" class=word" * (each in WORDY)}>{said(each)}</th>' for each in head)
    named = f"<caption>{said(caption)}</caption>" if caption else ""
    lines = "\n".join(f"<tr>{each}</tr>" for each in body)
    return f'<div class="wide"><table>{named}<thead><tr>{top}</tr></thead>\n<tbody>{lines}</tbody></table></div>'


def first(name: str, order: dict[str, int]) -> str:
    """The head of a row, with the mark of a checkpoint."""
    return f'<th scope="row">{dot(order[name]) if name in order else ""}{said(name)}</th>'


def shown(grid: Grid, order: dict[str, int], numbers: dict[str, int]) -> str:
    """A grid as a table."""
    body = (first(name, order) + cells(row, numbers) for name, row in grid.rows.items())
    return rows([grid.corner, *grid.columns], body, grid.caption[:1].upper() + grid.caption[1:])


WORDY = {"position", "kernel", "path", "task", "tokenizer", "digest", "absent", "unfit", "refused"}
"""Columns of words, which stand at the left."""
FRONT = ["start", "stop", "context", "offset", "depth", "task", "score", "right", "trials", *grids.TITLES]
BACK = ["low", "high", "seconds"]


def ranked(keys: Iterable[str]) -> list[str]:
    """Columns in an order that does not depend on how a document was written."""
    place = {key: at for at, key in enumerate(FRONT)} | {key: 10**6 + at for at, key in enumerate(BACK)}
    return sorted(set(keys), key=lambda key: (place.get(key, 1000), key))


def flat(value: Row) -> Row:
    """Dictionaries within a value as columns of their own: last.nats."""
    out: Row = {}
    for key, each in value.items():
        out |= {f"{key}.{k}": v for k, v in flat(each).items()} if isinstance(each, dict) else {key: each}
    return out


def everything(document: Row, measure: str) -> str:
    """Every number of a measure: its plain ones in one table, and each of its lists in another."""
    listed: dict[str, list[tuple[str, int, Row]]] = {}
    for name, results in grids.found(document, measure).items():
        for length, result in results.items():
            value = result.get("value", {})
            lists = {key: v for key, v in value.items() if isinstance(v, list) and v and isinstance(v[0], dict)}
            alone = flat({key: v for key, v in value.items() if key not in lists})
            if "seconds" in result:
                alone["seconds"] = result["seconds"]
            for key, each in [("", [alone] if alone else []), *lists.items()]:
                listed.setdefault(key, []).extend((name, length, item) for item in each)
    tables = []
    for key in ranked(listed):
        columns = ranked(column for *_, item in listed[key] for column in item)
        body = (
            f'<th scope="row">{said(name)}</th><td>{number(length)}</td>'
            + "".join(f"<td{word(key)}>{plain(item.get(key))}</td>" for key in columns)
            for name, length, item in listed[key]
        )
        if columns:
            tables.append(rows(["checkpoint", "length", *columns], body, key))
    return f"<details><summary>All numbers</summary>{''.join(tables)}</details>" if tables else ""


def word(column: str) -> str:
    """Where a column's cells stand."""
    return " class=word" if column in WORDY else ""


def section(document: Row, measure: str, picture: str) -> str:
    """One measure: words, picture, numbers, reasons."""
    order = {name: at for at, name in enumerate(grids.names(document))}
    why = grids.notes(document, measure)
    numbers = {reason: at for at, reason in enumerate(why, 1)}
    parts = [f'<section id="{said(measure)}"><h2>{said(grids.TITLES.get(measure, measure))}</h2>']
    if measure in WORDS:
        parts.append(f"<p>{said(WORDS[measure])}</p>")
    if picture:
        title = said(grids.TITLES[measure])
        labelled = picture.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)
        parts.append(f'<figure class="wide">{labelled}</figure>')
    parts += [shown(grid, order, numbers) for grid in grids.grids(document, measure)]
    if measure == "ruler":
        found = grids.found(document, measure)
        every = (shown(grids.tasks(document, name), {}, numbers) for name, each in found.items() if each)
        parts.append(f"<details><summary>Each task</summary>{''.join(every)}</details>")
    if why:
        notes = (f"<li>{said(reason)} <small>({said(places)})</small></li>" for reason, places in why.items())
        parts.append(f'<p class="soft">n/a, and why:</p><ol class="notes">{"".join(notes)}</ol>')
    parts.append(everything(document, measure))
    return "\n".join([*parts, "</section>"])


def facts(title: str, values: Row) -> str:
    """What was measured, as a list of words."""
    each = (f"<dt>{said(key.replace('_', ' '))}</dt><dd>{plain(value)}</dd>" for key, value in sorted(values.items()))
    return f"<div><h3>{said(title)}</h3><dl>{''.join(each)}</dl></div>" if values else ""


def summary(document: Row) -> str:
    """Measures down, checkpoints across: from the shortest to the longest length."""
    known = {each["name"]: each for each in document.get("checkpoints", [])}
    head = ['<th scope="col"></th>']
    for at, name in enumerate(grids.names(document)):
        about = [re.split(r"[.:]", str(each))[-1] for each in (known.get(name, {}).get("position"),) if each]
        about += [f"trained on {plain(known[name]['trained'])}"] if known.get(name, {}).get("trained") else []
        head.append(f'<th scope="col">{dot(at)}{said(name)}<small>{said(", ".join(about))}</small></th>')
    body = []
    for measure in grids.measures(document):
        told = [r["length"] for r in document["results"] if r["measure"] == measure and not grids.reason(r)]
        across = sorted(set(told)) or grids.lengths(document, measure)
        unit = "pixels" if measure == "resolution" else "tokens"
        span = f"{number(across[0])} → {number(across[-1])}" if len(across) > 1 else f"at {number(across[0])}"
        title, meant = said(grids.TITLES.get(measure, measure)), said(grids.MEANT.get(measure, ""))
        row = ""
        for results in grids.found(document, measure).values():
            ends = [grids.head(measure, results.get(at)).text for at in (across[0], across[-1])[: len(across)]]
            row += f"<td>{said(' → '.join(ends if set(ends) != {'n/a'} else ends[:1]))}</td>"
        body.append(
            f'<th scope="row"><a href="#{said(measure)}">{title}</a><small>{meant}<br>{span} {unit}</small></th>{row}'
        )
    lines = "\n".join(f"<tr>{each}</tr>" for each in body)
    return f'<div class="wide"><table><thead><tr>{"".join(head)}</tr></thead>\n<tbody>{lines}</tbody></table></div>'


def subjects(document: Row) -> str:
    """The checkpoints themselves."""
    order = {name: at for at, name in enumerate(grids.names(document))}
    told = [each for each in document.get("checkpoints", []) if each.get("name") in order]
    known = ["position", "kernel", "trained", "parameters", "steps", "path", "task"]
    keys = dict.fromkeys([*known, *ranked(key for each in told for key in each)])
    columns = [key for key in keys if key != "name" and any(key in each for each in told)]
    body = (
        first(each["name"], order) + "".join(f"<td{word(key)}>{plain(each.get(key))}</td>" for key in columns)
        for each in told
    )
    return rows(["checkpoint", *columns], body)


def page(document: Row, pictures: dict[str, str]) -> str:
    """The whole page."""
    names, there, waiting = grids.names(document), grids.measures(document), grids.pending(document)
    asked = [each for each in document.get("results", []) if grids.reason(each)]
    title = "How far does it read?" if len(names) == 1 else "How far do they read?"
    if there == ["resolution"]:
        title = "At what resolution do they see?"
    who = said(", ".join(names) or "no checkpoint")
    total = len(document.get("results", []))
    counts = f"{total - len(asked)} measured" + f", {len(asked)} refused (each with its reason below)" * bool(asked)
    parts = [f"<header><small>zoo {said(document.get('zoo', ''))} · evaluation</small><h1>{title}</h1><p>{who}</p>"]
    if waiting or not there:
        left = f"Not measured yet: {said(', '.join(grids.TITLES.get(each, each) for each in waiting))}." * bool(waiting)
        nothing = "" if there else "There are no results: nothing has been measured. "
        parts.append(f'<p class="pending">{nothing}{left}</p>')
    if there and (warning := grids.caution(document)):
        parts.append(f'<p class="pending">{said(warning)}</p>')
    if there:
        links = (f'<a href="#{said(each)}">{said(grids.TITLES.get(each, each))}</a>' for each in there)
        parts.append(f"<nav>{''.join(links)}</nav>")
    parts.append("</header>")
    if there:
        over = f'<p class="soft">{counts}. From the shortest to the longest length that was asked for:</p>'
        parts.append(f'<section id="summary"><h2>At a glance</h2>{over}{summary(document)}</section>')
    parts += [section(document, measure, pictures.get(measure, "")) for measure in there]
    groups = {"text": "The text", "machine": "The machine", "settings": "The settings"}
    about = "".join(facts(title, document.get(group, {})) for group, title in groups.items())
    parts.append('<section id="about"><h2>What was measured, and on what</h2>')
    parts.append(f'{subjects(document)}<div class="facts">{about}</div></section>')
    meta = '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head>{meta}<title>{title} {who}</title><style>{CSS}</style></head>\n'
        f"<body>\n{body}\n</body></html>\n"
    )


def write(document: Row, folder: Path) -> list[Path]:
    """Write report.html and a PNG for each picture into the folder, which is made where it is missing.

    Args:
        document: The results document, whole or of an interrupted run.
        folder: Where to write; files of an earlier report are replaced.

    Returns:
        The files, the page first.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        document = json.loads(json.dumps(document))  # as it is read again: a tuple that was never written is a list
        drawn = plots.draw(document)
        page_file = folder / "report.html"
        page_file.write_text(page(document, {name: svg for name, (_, svg) in drawn.items()}), encoding="utf-8")
        for name, (png, _) in drawn.items():
            (folder / f"{name}.png").write_bytes(png)
    except OSError as error:
        raise ZooError(
            f"The report cannot be written to {folder}: {error.strerror}. Name a folder that you may write to."
        ) from error
    return [page_file, *(folder / f"{name}.png" for name in drawn)]
