// Where a conversation stands, and the rule of windows: folds at turn ends, slides that carry whole turns over. The rule is docs/model.md's, as lm2 has it
// in Python. Knows ids and an engine; neither text nor files.

import { moved, spansAfter, turnsOf } from './spans.js';

/**
 * Names are lm2's. memory {bank, written}: as it stood when the window began. window: the engine's, or null until it must be run (again). tokens: fed so
 * far; pending: fed next. logits after `tokens`. A cursor is replaced whole, never edited.
 */
export function newCursor(memory, ledger) {
  return Object.freeze({
    memory, window: null, tokens: [], pending: [], logits: null, folds: [], carried: 0, starts: [], seen: 0, draws: 0, turns: 0, number: 0, spans: [], ledger, held: null,
  });
}

export const change = (at, fields) => Object.freeze({ ...at, ...fields });
export const filled = (at) => at.tokens.length + at.pending.length;
/** The same point without anything that can be recomputed. */
export const atRest = (at) => change(at, { window: null, logits: null, tokens: [...at.tokens, ...at.pending], pending: [], held: null });
const latest = (folds, otherwise) => (folds.length ? folds[folds.length - 1] : otherwise);

/** Feeds windows of `size` positions. `notify(text)` hears of folds and slides; `noting`: has ledgers kept. */
export class Windows {
  constructor(engine, size, overlap, notify = () => {}, noting = null) {
    Object.assign(this, { engine, size, overlap, notify, noting });
    this.chunk = engine.memory.chunk;
    this.reserve = Math.floor(size / 8);
    this.half = Math.floor(size / 2);
  }

  /** Add a turn's tokens: `first` in an empty window, else `later`, after a slide where it would leave too little room for an answer. */
  async begin(at, first, later, head) {
    if (filled(at) && filled(at) + later.length + this.reserve > this.size) at = await this.slide(at, head, this.size - this.reserve - later.length);
    let began = filled(at);
    const ids = began ? later : first;
    if (!began && head.length && head.every((id, i) => ids[i] === id)) began = head.length;
    at = change(at, { ...spansAfter(at, filled(at), began), starts: [...at.starts, began] });
    return this.append(at, ids, ids.length > this.size ? head : []);
  }

  /** Add tokens; where the window is full it slides, with `head` and the last `overlap` tokens. */
  async append(at, ids, head) {
    while (ids.length) {
      const room = this.size - filled(at);
      if (room === 0) {
        at = await this.cut(at, head, this.overlap);
        continue;
      }
      const some = ids.slice(0, room);
      at = change(at, { pending: [...at.pending, ...some], seen: at.seen + some.length });
      ids = ids.slice(room);
    }
    return at;
  }

  /** One token of an answer; the window slides first where it is full. */
  async add(at, token, head) {
    if (filled(at) === this.size) at = await this.slide(at, head, this.size - this.reserve);
    return change(at, { pending: [...at.pending, token], seen: at.seen + 1 });
  }

  /** A turn's end: its closing tokens, and a fold when tokens are next fed. */
  async close(at, ids, head) {
    if (filled(at) + ids.length > this.size) at = await this.slide(at, head, this.size - this.reserve);
    return this.mark(change(at, { pending: [...at.pending, ...ids], seen: at.seen + ids.length }));
  }

  mark(at) {
    return filled(at) > latest(at.folds, at.carried) ? change(at, { folds: [...at.folds, filled(at)] }) : at;
  }

  /** Begin a new window with `head` and the last whole turns, at most half a window and `most` tokens in all. */
  async slide(at, head, most) {
    const half = Math.min(most, this.half);
    let longest = at.starts.filter((s) => s > 0 && head.length + filled(at) - s <= half);
    const last = latest(at.starts, 0);
    if (!longest.length && last > 0 && head.length + filled(at) - last <= most) longest = [last];
    if (!longest.length) return this.cut(at, head, half - head.length);
    return this.#next(at, head, longest[0], at.starts.filter((s) => s >= longest[0]));
  }

  /** Begin a new window with `head` and the last `tail` tokens, wherever turns begin. */
  cut(at, head, tail) {
    return this.#next(at, head, Math.max(0, filled(at) - Math.max(0, tail)), []);
  }

  async #next(at, head, begin, starts) {
    at = await this.flush(this.mark(at));
    const carried = [...head, ...at.tokens.slice(begin)];
    this.notify(`the window was full: ${carried.length} tokens are carried over into a new one, what is older is in the memory alone`);
    const memory = at.window ? await this.engine.taken(at.window) : at.memory;
    const ledger = at.window ? at.held : at.ledger;
    this.engine.drop(at.window);
    return change(at, {
      memory, window: null, tokens: [], pending: carried, logits: null, folds: [], carried: carried.length, starts: starts.map((s) => s - begin + head.length),
      spans: moved(at.spans, begin, head.length), ledger, held: null,
    });
  }

  /** Feed what is pending and fold where it is marked; a window that is not there is run again. It is also folded after a chunk of tokens without a fold. */
  async flush(at) {
    if (at.window?.spoiled) at = atRest(at);
    const ids = [...at.tokens, ...at.pending];
    const folds = new Set(at.folds);
    const last = Math.max(0, ...folds);
    if (!at.pending.length && ((at.window && last <= at.window.folded) || !ids.length)) return at;
    const rerun = !at.window;
    const window = at.window ?? this.engine.start(at.memory, this.size, at.carried);
    let { logits } = at;
    let held = rerun ? at.ledger : at.held;
    let folding = null;
    const noted = async () => {
      if (folding && this.noting) held = this.noting.folded(held, folding, (await this.engine.taken(window)).bank, ids);
      folding = null;
    };
    for (;;) {
      const here = window.length;
      if (folds.has(here) && here > window.folded) {
        const count = here - window.folded;
        const first = at.memory.written + window.folded - at.carried;
        folding = { begin: window.folded, count, first, turns: turnsOf(at.spans, window.folded, here), bank: window.bank };
        this.engine.fold(window);
        if (here > at.tokens.length || !rerun) this.notify(`${count} tokens went into the memory (${first + count} in all)`);
      }
      if (here === ids.length) break;
      if (here >= at.carried && here - window.folded === this.chunk) {
        folds.add(here);
        continue;
      }
      const stops = [...folds].filter((f) => f > here);
      stops.push(here < at.carried ? at.carried : window.folded + this.chunk);
      const end = Math.min(ids.length, ...stops);
      logits = await this.engine.extend(ids.slice(here, end), window);
      await noted();
    }
    await noted();
    return change(at, { window, tokens: ids, pending: [], logits, folds: [...folds].sort((a, b) => a - b), held });
  }

  /** A cursor whose `logits` follow all its tokens. */
  async logits(at) {
    at = await this.flush(at);
    return at.logits ? at : this.flush(atRest(at));
  }
}
