// Which turn's tokens the rows of a memory hold, row by row, and how strongly: what `/memory` and `/forget` of lm2 in Python read from a session file.
// Rules of runtime/session/ledger.py. Knows numbers; no model, no file. Axes: l banks, n rows, d width. A ledger is a list of n rows
// {number, token, turns [4], sizes [4]}, never changed.

import { UNKNOWN } from './spans.js';

export const ROWS_MAX = 4096; // of a memory whose ledger is kept
const PARTS = 4;
const ENTRY = 44; // bytes of a row in a file
const EMPTY = Object.freeze({ number: -1, token: -1, turns: [0, 0, 0, 0], sizes: [0, 0, 0, 0] });

/** Keeps ledgers of banks (l, n, d) of which the first `l` are memories. eps: of the norm that reads a row. */
export class Noting {
  constructor(l, n, d, eps) {
    Object.assign(this, { l, n, d, eps });
  }

  /** Of a memory that was never written. */
  empty() {
    return Array(this.n).fill(EMPTY);
  }

  /** Of a bank that nothing was noted of: rows that can be heard belong to nobody known. */
  unknown(bank) {
    return Array.from({ length: this.n }, (_, i) => {
      const size = this.#heard(bank, i);
      return { ...EMPTY, turns: [size > 0 ? UNKNOWN : 0, 0, 0, 0], sizes: [Math.fround(size), 0, 0, 0] };
    });
  }

  /** The ledger after a fold {begin, count, first, turns, bank (before)}; after: the bank then. ids: of the window. */
  folded(ledger, { begin, count, first, turns, bank }, after, ids) {
    const rows = [...ledger];
    for (let j = 0; j < count; j++) {
      const place = (first + j) % this.n;
      rows[place] = this.#row(ledger[place], first + j, ids[begin + j], turns[j], bank, after, place);
    }
    return rows;
  }

  #row(old, number, token, turn, before, after, place) {
    const total = this.#heard(before, place);
    const [kept, fresh] = this.#split(before, after, place);
    const scale = total > 0 ? kept / total : 0;
    const shares = [fresh, ...old.sizes.map((size) => size * scale)];
    const whose = [turn, ...old.turns];
    const takes = shares[0] >= shares[1];
    const again = old.turns.map((t) => t === turn);
    const into = again[0] && !takes ? 1 : 0;
    const both = Math.sqrt(shares[0] ** 2 + again.reduce((sum, same, p) => sum + (same ? shares[p + 1] ** 2 : 0), 0));
    again.forEach((same, p) => { if (same) shares[p + 1] = 0; });
    shares[0] = 0;
    shares[into] = both;
    const falling = shares.map((_, p) => p).sort((a, b) => shares[b] - shares[a] || a - b).slice(0, PARTS);
    const owner = takes ? 0 : 1;
    const order = [owner, ...falling.filter((p) => p !== owner)].slice(0, PARTS);
    const size = this.#heard(after, place);
    const sizes = order.map((p) => Math.fround(shares[p] * size));
    return {
      number: takes ? number : old.number, token: takes ? token : old.token,
      turns: order.map((p, i) => (i && sizes[i] === 0 ? 0 : whose[p])), sizes,
    };
  }

  /** How large a row is to a reader. */
  #heard(bank, place) {
    let sum = 0;
    for (let b = 0; b < this.l; b++) {
      const at = (b * this.n + place) * this.d;
      let square = 0;
      for (let i = at; i < at + this.d; i++) square += bank[i] * bank[i];
      square /= this.d;
      sum += square / Math.sqrt(square + this.eps);
    }
    return this.l ? sum / this.l : 0;
  }

  /** The sizes of what is left of the old row and of what is new, in those of the new one: squares add up to 1. */
  #split(before, after, place) {
    let left = 0;
    let added = 0;
    for (let b = 0; b < this.l; b++) {
      const at = (b * this.n + place) * this.d;
      let along = 0;
      let length = 0;
      let whole = 0;
      for (let i = at; i < at + this.d; i++) {
        along += before[i] * after[i];
        length += before[i] * before[i];
        whole += after[i] * after[i];
      }
      const a = length > 0 ? Math.min(1, Math.max(0, along / length)) : 0;
      let rest = 0;
      for (let i = at; i < at + this.d; i++) rest += (after[i] - a * before[i]) ** 2;
      whole /= this.d;
      const loud = whole > 0 ? Math.sqrt(whole / (whole + this.eps)) : 0;
      left += a * Math.sqrt(length / this.d) * loud;
      added += Math.sqrt(rest / this.d) * loud;
    }
    const both = Math.hypot(left, added);
    return both > 0 ? [left / both, added / both] : [0, 1];
  }
}

/** A ledger as base64 of its entries, as session files have it. */
export function packed(ledger) {
  const bytes = new Uint8Array(ENTRY * ledger.length);
  const view = new DataView(bytes.buffer);
  ledger.forEach(({ number, token, turns, sizes }, i) => {
    view.setBigInt64(ENTRY * i, BigInt(number), true);
    view.setInt32(ENTRY * i + 8, token, true);
    for (let p = 0; p < PARTS; p++) {
      view.setInt32(ENTRY * i + 12 + 4 * p, turns[p], true);
      view.setFloat32(ENTRY * i + 28 + 4 * p, sizes[p], true);
    }
  });
  let text = '';
  for (let i = 0; i < bytes.length; i += 0x6000) text += btoa(String.fromCharCode(...bytes.subarray(i, i + 0x6000)));
  return text;
}

/** The ledger of n rows from `packed`'s text. fail(what): throws. */
export function unpacked(text, n, written, turns, vocabulary, fail) {
  const size = 4 * Math.ceil((n * ENTRY) / 3);
  if (typeof text !== 'string' || text.length !== size) fail(`must be text of ${size} characters, ${n} rows of ${ENTRY} bytes in base64`);
  let raw;
  try {
    raw = atob(text);
  } catch {
    fail('is not base64');
  }
  if (raw.length !== n * ENTRY || btoa(raw) !== text) fail(`has ${raw.length} bytes, ${n} rows have ${n * ENTRY}`);
  const view = new DataView(Uint8Array.from(raw, (c) => c.charCodeAt(0)).buffer);
  return Array.from({ length: n }, (_, i) => {
    const row = { number: Number(view.getBigInt64(ENTRY * i, true)), token: view.getInt32(ENTRY * i + 8, true), turns: [], sizes: [] };
    for (let p = 0; p < PARTS; p++) {
      row.turns.push(view.getInt32(ENTRY * i + 12 + 4 * p, true));
      row.sizes.push(view.getFloat32(ENTRY * i + 28 + 4 * p, true));
    }
    const known = row.number >= 0;
    if (row.number < -1 || row.number >= Math.max(written, 0) || (known && row.number % n !== i)) fail(`row ${i} has token number ${row.number}, which cannot be in it`);
    if (known ? row.token < 0 || row.token >= vocabulary : row.token !== -1) fail(`row ${i} has token id ${row.token}, ids go from 0 to ${vocabulary - 1}`);
    if (row.turns.some((t) => t < UNKNOWN || t > turns) || (!known && row.turns[0] > 0)) fail(`row ${i} has turns ${row.turns}, which cannot be in it`);
    if (row.sizes.some((s) => !Number.isFinite(s) || s < 0 || Object.is(s, -0))) fail(`row ${i} has sizes ${row.sizes}, they must be finite, 0 or more`);
    if (row.sizes.some((s, p) => p && s === 0 && row.turns[p] !== 0)) fail(`row ${i}: a turn has a part of no size`);
    return row;
  });
}
