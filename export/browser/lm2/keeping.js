// Between a conversation and its file: which part goes where in a record, and back, with the checks on the parts that only a conversation gives a meaning to.
// Knows cursors and records; no bytes.

import { SessionValueError, plain } from './errors.js';
import { ROWS_MAX, packed, unpacked } from './ledger.js';
import { UNKNOWN } from './spans.js';
import { sampling } from './sampling.js';
import { whole } from './statefile.js';

const DAMAGED = 'the file is damaged: take another copy of it, or begin a new conversation';
const TURN_MAX = 2 ** 31 - 1;

/** The record of a conversation `kept` {system, sampling, seed, overlap, window, at, snapshots, transcript, numbers, forgottenTurns, created}. */
export function toRecord(kept, expected, about) {
  const ledgers = new Map();
  const moment = (at) => {
    if (at.ledger && at.ledger.length <= ROWS_MAX && !ledgers.has(at.memory.bank)) ledgers.set(at.memory.bank, packed(at.ledger));
    return {
      bank: at.memory.bank, written: at.memory.written, tokens: [...at.tokens, ...at.pending], carried: at.carried, folds: [...at.folds],
      notes: { starts: at.starts, seen: at.seen, draws: at.draws, turns: at.turns, number: at.number, spans: at.spans },
    };
  };
  const now = moment(kept.at);
  const snapshots = kept.snapshots.map(moment);
  const stamp = new Date().toISOString().replace(/\.\d+Z$/, 'Z');
  const document = {
    system: kept.system, transcript: kept.transcript, forgotten_turns: kept.forgottenTurns, overlap: kept.overlap, window: kept.window,
    sampling: { ...kept.sampling }, numbers: kept.numbers, ...(ledgers.size ? { ledgers: [...ledgers.values()] } : {}),
  };
  const meta = {
    fingerprint: expected.fingerprint, model: expected.model, tokenizer: expected.tokenizer, backend: about.backend, dtype: about.dtype,
    tokens_seen: String(kept.at.seen), seed: String(kept.seed), draws: String(kept.at.draws), created: kept.created || stamp, updated: stamp,
  };
  return { now, snapshots, document, meta };
}

/** What `toRecord` was given, from a checked record; cursors are at rest. noting: of the model, or null. Throws SessionValueError naming the field. */
export function fromRecord(record, expected, noting, name) {
  const { document, now, snapshots, meta } = record;
  const need = (right, field, value, what) => {
    if (!right) throw new SessionValueError(`${name}: ${field} ${plain(JSON.stringify(value) ?? 'missing')} must be ${what}: ${DAMAGED}`);
  };
  const { system, transcript } = document;
  need(system === null || typeof system === 'string', 'document.system', system, 'text or null');
  need(Array.isArray(transcript), 'document.transcript', transcript, 'a list');
  transcript.forEach((m, i) => need(['user', 'assistant'].includes(m?.role) && typeof m.content === 'string', `document.transcript[${i}]`, m, 'a message with role (user or assistant) and content (text)'));
  for (const key of ['forgotten_turns', 'overlap', 'window']) whole(document[key], `${name}: document.${key}`);
  need(typeof document.sampling === 'object' && document.sampling !== null, 'document.sampling', document.sampling, 'an object');
  let settings;
  try {
    settings = sampling(document.sampling);
  } catch (error) {
    need(false, 'document.sampling', document.sampling, `settings that can be (${error.message})`);
  }
  const turns = document.forgotten_turns + transcript.length;
  const all = [now, ...snapshots];
  all.forEach((m, i) => checkMoment(m, i ? `snapshot ${i - 1}` : 'now', turns, document.window, name, need));
  snapshots.forEach((m, i) => need(m.written === all.find((other) => other.bank === m.bank).written, `snapshot ${i} written`, m.written, 'the same wherever a bank stands'));
  need(now.notes.turns === turns, 'now notes.turns', now.notes.turns, `${turns}, as many as the transcript counts`);
  need(document.window <= expected.window, 'document.window', document.window, `at most ${expected.window}, what this model's windows can have in the browser`);
  const numbers = document.numbers ?? transcript.map(() => 0);
  const ascending = Array.isArray(numbers) && numbers.length === transcript.length && numbers.every((n, i) => Number.isInteger(n) && n >= (numbers[i - 1] ?? 0) && n <= numberOf(now.notes));
  need(ascending, 'document.numbers', numbers, `${transcript.length} turns (one a message), ascending from 0 to at most ${numberOf(now.notes)}`);
  const ledgers = readLedgers(document.ledgers, all, expected, noting, name, need);
  const memories = new Map(all.map((m) => [m.bank, { bank: m.bank, written: m.written }]));
  const cursor = (m) => Object.freeze({
    memory: memories.get(m.bank), window: null, tokens: m.tokens, pending: [], logits: null, folds: m.folds, carried: m.carried, starts: m.notes.starts,
    seen: m.notes.seen, draws: m.notes.draws, turns: m.notes.turns, number: numberOf(m.notes), spans: m.notes.spans ?? [], ledger: ledgers.get(m.bank) ?? null, held: null,
  });
  return {
    system, sampling: settings, seed: BigInt(meta.seed), overlap: document.overlap, window: document.window, at: cursor(now), snapshots: snapshots.map(cursor),
    transcript: transcript.map(({ role, content }) => ({ role, content })), numbers: [...numbers], forgottenTurns: document.forgotten_turns, created: meta.created,
  };
}

/** The last turn's number; where none was noted, as if every two messages had been a turn. */
const numberOf = (notes) => notes.number ?? Math.floor((notes.turns + 1) / 2);

function checkMoment(m, where, turns, window, name, need) {
  const { notes } = m;
  const length = m.tokens.length;
  for (const [key, most] of [['seen'], ['draws'], ['turns', turns]]) whole(notes[key], `${name}: ${where} notes.${key}`, most);
  const ascend = (list, least) => list.every((s, i) => Number.isInteger(s) && s >= least && s <= length && (i === 0 || s > list[i - 1]));
  need(Array.isArray(notes.starts) && ascend(notes.starts, 0), `${where} notes.starts`, notes.starts, `ascending from 0 to at most ${length} (tokens)`);
  if (notes.number !== undefined || notes.spans !== undefined) {
    whole(notes.number, `${name}: ${where} notes.number`, TURN_MAX);
    const pairs = Array.isArray(notes.spans) && notes.spans.every((s) => Array.isArray(s) && s.length === 2 && Number.isInteger(s[1]) && s[1] >= UNKNOWN && s[1] <= notes.number);
    need(pairs && ascend(notes.spans.map(([start]) => start), 0), `${where} notes.spans`, notes.spans, `pairs of a position, ascending from 0 to at most ${length}, and a turn from ${UNKNOWN} to ${notes.number}`);
  }
  need(length <= window, `${where} tokens`, length, `at most its window of ${window} positions (document.window)`);
  need(m.carried === 0 || m.carried < window, `${where} carried`, m.carried, `less than its window of ${window} positions`);
}

function readLedgers(texts, all, expected, noting, name, need) {
  const first = all.filter((m, i) => all.findIndex((other) => other.bank === m.bank) === i);
  const turns = Math.max(...all.map((m) => m.notes.number ?? 0));
  if (texts === undefined) return new Map(noting ? first.map((m) => [m.bank, noting.unknown(m.bank)]) : []);
  need(Array.isArray(texts) && texts.length === first.length, 'document.ledgers', texts, `a list of ${first.length} texts, one of each bank`);
  return new Map(first.map((m, i) => [m.bank, unpacked(texts[i], expected.bankShape[2], m.written, turns, expected.vocabulary, (what) => need(false, `document.ledgers[${i}]`, '', `right (${what})`))]));
}
