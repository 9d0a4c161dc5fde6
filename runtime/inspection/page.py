"""A Look as one HTML page that needs nothing else: images inside, text escaped, no script. Draws with pixels.py; computes nothing."""

from html import escape

import numpy as np

from .look import Look, Read
from .pixels import BLUE, GREEN, ORANGE, RED, data_uri, png

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1200px; padding: 0 1em; color: #222; }
h1 { font-size: 1.4em; } h2 { font-size: 1.1em; margin-top: 2em; border-top: 1px solid #ddd; padding-top: 1em; }
.maps { display: flex; flex-wrap: wrap; gap: 1.5em; } figure { margin: 0; } figcaption { font-size: 0.85em; color: #555; max-width: 260px; }
img { width: 250px; height: 300px; image-rendering: pixelated; border: 1px solid #bbb; display: block; }
table { border-collapse: collapse; } td, th { padding: 2px 10px 2px 0; text-align: left; vertical-align: top; }
td.n, th.n { text-align: right; } mark { background: #ffd9a0; } .dim { color: #777; }
.carried { color: #888; } .chunk { white-space: pre-wrap; font: 13px/1.7 ui-monospace, monospace; background: #fafafa; padding: 0.6em; margin: 0.4em 0 1em; overflow-wrap: anywhere; }
"""


def page(look: Look) -> str:
    """The whole page. Everything that came from a model, a text or a file is escaped."""
    parts = [f"<h1>{escape(look.title)}</h1>", *(f"<p class=dim>{escape(note)}</p>" for note in look.notes)]
    if look.answered is not None:
        found = look.answered
        rows = {"question": found.question, "answer": found.answer or "(nothing)", "without memory": found.without or "(nothing)"}
        parts.append("<table>" + "".join(f"<tr><th>{name}</th><td>{escape(text)}</td></tr>" for name, text in rows.items()) + "</table>")
    parts += [_text(look)] if look.texts else []
    reads = look.reads()
    for bank, layer in enumerate(look.layers):
        parts.append(f"<h2>{look.word.capitalize()} {layer}</h2><div class=maps>{''.join(_maps(look, bank))}</div>")
        if reads:
            parts.append(_reads(look, reads[bank]))
    body = "\n".join(parts)
    return f"<!doctype html>\n<html lang=en><head><meta charset=utf-8><title>{escape(look.title)}</title><style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"


def _text(look: Look) -> str:
    """What each chunk or fold said, each token as dark as the answer looked at the rows that hold it; before them what was carried over."""
    credit = look.credit()
    top = max((float(c.max(initial=0.0)) for c in credit), default=0.0)
    shown = "; a token is as dark as the answer's attention to the rows that hold it" if top > 0 else ""
    out = [f"<h2>What was written</h2><p class=dim>One box a {look.unit}{shown}. Point at a token for its row and gates.</p>"]
    if look.carried:
        out.append(f"<div>carried over into this window, in the memory before it began</div><div class='chunk carried'>{escape(''.join(look.carried))}</div>")
    for c, pieces in enumerate(look.texts):
        spans = []
        for at, piece in enumerate(pieces):
            color = f" style='background:rgba(214,90,20,{credit[c][at] / top:.2f})'" if top > 0 and credit[c][at] / top >= 0.02 else ""
            spans.append(f"<span title='{escape(_gates(look, c, at), quote=True)}'{color}>{escape(piece)}</span>")
        out.append(f"<div>{look.unit} {c + 1}</div><div class=chunk>{''.join(spans)}</div>")
    return "\n".join(out)


def _gates(look: Look, chunk: int, at: int) -> str:
    if look.history is None:
        return ""
    written = look.history.chunks[chunk]
    lines = [f"row {(written.first + at) % look.history.rows}"]
    for bank, layer in enumerate(look.layers):
        lines.append(f"layer {layer}: write {written.write[bank, at]:.2f}, forget {written.forget[bank, at]:.2f}")
    return "; ".join(lines)


def _maps(look: Look, bank: int) -> list[str]:
    """Images of one layer, rows downwards."""
    out = []
    if look.history is not None and look.history.chunks:
        across = f"rows 0 to {look.rows - 1} down, {look.unit}s 1 to {len(look.history.chunks)} across"
        for name, words, color in (("write", "write gate", BLUE), ("forget", "forget gate (1 keeps everything)", GREEN)):
            values = look.history.gate(name)[bank][: look.rows]
            out.append(_map(values, 0.0, 1.0, color, f"{words}, 0 to 1; {across}; mean {np.nanmean(values):.2f}; grey: not reached"))
    norms = look.norms[bank][: look.rows]
    top = float(norms.max(initial=0.0))
    window = f"; the last {len(look.times) - look.begin} are the folds of this window" if look.begin is not None else ""
    out.append(_map(norms, 0.0, top, ORANGE, f"size of each row (root mean square), 0 to {top:.2g}; across: {look.across}{window}"))
    if look.answered is not None:
        mass = look.answered.mass[bank].T[: look.rows]  # (n, t)
        words = f"attention, 0 to {mass.max(initial=0.0):.2g}; tokens of the question and the answer across (the answer from {look.answered.begin + 1} on)"
        out.append(_map(mass, 0.0, float(mass.max(initial=0.0)), RED, words))
    return out


def _map(values: np.ndarray, low: float, high: float, color: tuple[int, int, int], words: str) -> str:
    return f"<figure><img alt='' src='{data_uri(png(values, low, high, color))}'><figcaption>{escape(words)}</figcaption></figure>"


def _reads(look: Look, reads: list[Read]) -> str:
    if not reads:
        return "<p class=dim>The answer read nothing here: this bank was never written.</p>"
    heads = ("row", "attention", look.unit, "its share")
    lines = [f"<table><tr>{''.join(f'<th class=n>{head}</th>' for head in heads)}<th>text there</th></tr>"]
    for read in reads:
        known = read.holder is not None and read.holder.chunk is not None
        chunk = str(read.holder.chunk + 1) if read.holder is not None and read.holder.chunk is not None else "earlier"
        share = f"{100 * read.holder.share:.0f}%" if known and read.holder is not None else ""
        text = f"{escape(read.before)}<mark>{escape(read.token)}</mark>{escape(read.after)}" if known else ""
        lines.append(
            f"<tr><td class=n>{read.row}</td><td class=n>{100 * read.mass:.1f}%</td><td class=n>{chunk}</td><td class=n>{share}</td><td>{text}</td></tr>"
        )
    return "".join(lines) + "</table>"
