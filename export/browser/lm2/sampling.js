// Choosing the next token from logits: the rules and the random numbers of lm2's runtime/session/sampling.py. Knows numbers and a seed; no model, no text.

import { LogitsError, PromptError } from './errors.js';

export const SEED_MAX = (1n << 64n) - 1n;
const DEFAULTS = { temperature: 0.7, top_k: 40, top_p: 0.95, min_p: 0.05, repetition_penalty: 1.0, repetition_window: 64 };
const RANGES = {
  temperature: [0, Infinity], top_k: [0, Infinity], top_p: [0, 1], min_p: [0, 1], repetition_penalty: [0.01, 100], repetition_window: [0, Infinity],
};
const WHOLE = ['top_k', 'repetition_window'];

/** Checked settings: `given` over the defaults. Throws PromptError for a name that is none or a value out of range. */
export function sampling(given = {}) {
  const made = { ...DEFAULTS };
  for (const [name, value] of Object.entries(given)) {
    if (!Object.hasOwn(DEFAULTS, name)) throw new PromptError(`sampling has no ${name}: it has ${Object.keys(DEFAULTS).join(', ')}`);
    const [low, high] = RANGES[name];
    const right = typeof value === 'number' && Number.isFinite(value) && value >= low && value <= high;
    if (!right || (WHOLE.includes(name) && !Number.isInteger(value))) {
      const what = WHOLE.includes(name) ? 'a whole number' : 'a number';
      throw new PromptError(`${name} ${value} must be ${what} from ${low}${high < Infinity ? ` to ${high}` : ''}`);
    }
    made[name] = value;
  }
  return Object.freeze(made);
}

const MASK = (1n << 64n) - 1n;
const MULTIPLY = [0xd2e7470ee14c6c93n, 0xca5a826395121157n];
const WEYL = [0x9e3779b97f4a7c15n, 0xbb67ae8584caa73bn];

/** Random number `draw` of `seed` (BigInt), in [0, 1): the top 53 bits of Philox4x64-10's first word, key = seed, counter = draw + 1. */
export function uniform(seed, draw) {
  let c = [(BigInt(draw) + 1n) & MASK, (BigInt(draw) + 1n) >> 64n, 0n, 0n];
  let k = [seed, 0n];
  for (let round = 0; round < 10; round++) {
    const a = MULTIPLY[0] * c[0];
    const b = MULTIPLY[1] * c[2];
    c = [(b >> 64n) ^ c[1] ^ k[0], b & MASK, (a >> 64n) ^ c[3] ^ k[1], a & MASK];
    k = [(k[0] + WEYL[0]) & MASK, (k[1] + WEYL[1]) & MASK];
  }
  return Number(c[0] >> 11n) * 2 ** -53;
}

/** A fresh seed of 32 bits. */
export function newSeed() {
  return BigInt(crypto.getRandomValues(new Uint32Array(1))[0]);
}

/** Draws tokens. Draw number i depends on (seed, i) alone: another Sampler with as many `draws` goes on exactly where this one stopped. */
export class Sampler {
  /** settings: of `sampling()`. seed: BigInt from 0 to 2^64 - 1. draws: random numbers used so far; a greedy choice uses none. */
  constructor(settings, seed, draws = 0) {
    if (typeof seed !== 'bigint' || seed < 0n || seed > SEED_MAX) throw new PromptError(`seed ${seed} must be a BigInt from 0 to ${SEED_MAX}`);
    this.settings = settings;
    this.seed = seed;
    this.draws = draws;
  }

  /** A token id from logits (v,) Float32Array; recent: ids so far, newest last. Ties go to the lowest id. Throws LogitsError. */
  sample(logits, recent = []) {
    const s = this.settings;
    checkLogits(logits);
    const window = s.repetition_window ? recent.slice(-s.repetition_window) : [];
    const z = s.repetition_penalty !== 1 && window.length ? penalized(logits, window, s.repetition_penalty) : logits;
    if (s.temperature === 0) return likeliest(z);
    const { ids, weights } = candidates(z, s);
    const u = uniform(this.seed, this.draws);
    this.draws += 1;
    let total = 0;
    for (const w of weights) total += w;
    let mass = 0;
    for (let i = 0; i < ids.length; i++) {
      mass += weights[i];
      if (mass > u * total || mass === total) return ids[i];
    }
    return ids[ids.length - 1];
  }
}

/** The id of the largest; of several the lowest. */
export function likeliest(z) {
  let best = 0;
  for (let i = 1; i < z.length; i++) if (z[i] > z[best]) best = i;
  return best;
}

function checkLogits(logits) {
  let most = -Infinity;
  for (let i = 0; i < logits.length; i++) {
    const x = logits[i];
    if (!(x <= Number.MAX_VALUE)) throw new LogitsError(`the logit of token ${i} is ${x}: check that the model's files are whole`);
    if (x > most) most = x;
  }
  if (most === -Infinity) throw new LogitsError(`the logits of all ${logits.length} tokens are -inf, so no token is allowed`);
}

function penalized(logits, recent, penalty) {
  const out = Float64Array.from(logits);
  for (const id of new Set(recent)) {
    if (id < 0 || id >= out.length) throw new PromptError(`recent token ${id} is outside the vocabulary of ${out.length}`);
    out[id] = out[id] > 0 ? out[id] / penalty : out[id] * penalty;
  }
  return out;
}

/** Tokens that may be drawn, ids ascending, and their weights up to a common factor. Order of the filters: top-k, top-p, min-p. */
export function candidates(z, s) {
  let ids = topK(z, s.top_k);
  let top = -Infinity;
  for (const i of ids) if (z[i] > top) top = z[i];
  const weight = (i) => Math.exp((z[i] - top) / s.temperature);
  const total = ids.reduce((sum, i) => sum + weight(i), 0);
  const count = ids.length;
  ids = ids.filter((i) => weight(i) > 0 && (s.min_p === 0 || weight(i) >= s.min_p));
  if (s.top_p < 1) {
    const rare = ((total * (1 - s.top_p)) / count) * (1 - 1e-9); // so unlikely that all of them are not what top-p leaves out
    ids = ids.filter((i) => weight(i) >= Math.min(1, rare));
    const falling = [...ids].sort((a, b) => z[b] - z[a]);
    let some = 0;
    for (let mass = 0; some < falling.length && mass < s.top_p * total; some++) mass += weight(falling[some]);
    ids = largest(z, ids, Math.max(1, some), falling);
  }
  return { ids, weights: ids.map(weight) };
}

function topK(z, k) {
  const all = Array.from(z, (_, i) => i);
  if (k === 0 || k >= z.length) return all;
  const sorted = Float64Array.from(z).sort();
  const border = sorted[z.length - k];
  const some = all.filter((i) => z[i] >= border);
  return largest(z, some, k, [...some].sort((a, b) => z[b] - z[a]));
}

/** The `count` largest of `ids` (ascending), the first ones among equals. falling: ids, largest first. */
function largest(z, ids, count, falling) {
  const border = z[falling[count - 1]];
  let equal = count - ids.filter((i) => z[i] > border).length;
  return ids.filter((i) => z[i] > border || (z[i] === border && equal-- > 0));
}
