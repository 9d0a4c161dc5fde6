// Session files (.lm2s), version 2: bytes to a record and back, as docs/session-file.md has them. Everything is checked before anything is given out.
// Knows bytes and JSON; no model, no store. Axes: l banks, n rows, d width.

import {
  SessionCorruptError, SessionFormatError, SessionModelError, SessionShapeError, SessionTokenizerError, SessionTooLargeError, SessionTruncatedError,
  SessionValueError, SessionVersionError, plain,
} from './errors.js';
import { sha256 } from './sha256.js';
import { parse } from './strictjson.js';

export const SNAPSHOTS_MAX = 16;
export const BANKS_MAX = 4;
const HEADER_MAX = 1 << 20;
const TEXT_MAX = 8 << 20;
const ARRAYS = { 'memory.bank': 'F32', 'chunk.tokens': 'I32', 'snapshots.banks': 'F32', 'snapshots.tokens': 'I32', 'session.json': 'U8' };
const ITEM = { F32: 4, I32: 4, U8: 1 };
const KEYS = ['backend', 'created', 'draws', 'dtype', 'fingerprint', 'format', 'header_sha256', 'model', 'seed', 'sha256', 'tokenizer', 'tokens_seen', 'updated', 'version', 'written'];
const COUNT = /^(?:0|[1-9][0-9]{0,19})$/;
const DATE = /^\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])T(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,6})?(Z|\+00:00)$/;
const DAMAGED = 'the file is damaged: take another copy of it, or begin a new conversation';
const FOREIGN = 'give a session file that lm2 saved, or begin a new conversation';
const LITTLE = new Uint8Array(Uint32Array.of(1).buffer)[0] === 1;

/**
 * What `bytes` hold: {meta, now, snapshots, document}; a moment is {bank (Float32Array, l x n x d), written, tokens, carried, folds, notes}. Moments that
 * share a bank hold one object. name: what errors call the file. expected: of the model: {fingerprint, tokenizer, bankShape [l, 1, n, d], vocabulary, window, model}.
 * Throws a SessionError, one class for each way a file can be wrong.
 */
export function readSession(bytes, expected, name = 'the file') {
  const { header, meta, body } = readHeader(bytes, name);
  checkModel(meta, expected, name);
  const arrays = readArrays(header, body, expected, name);
  const digest = sha256(body);
  if (digest !== meta.sha256) throw new SessionCorruptError(`${name}: sha256 is ${plain(meta.sha256, 16)}, its arrays' is ${digest.slice(0, 16)}: ${DAMAGED}`);
  const written = count(meta.written, 'written', name);
  for (const key of ['tokens_seen', 'draws']) count(meta[key], key, name);
  if (BigInt(meta.seed) >= 1n << 64n) throw new SessionValueError(`${name}: seed ${meta.seed} must be below 2^64: ${DAMAGED}`);
  const bank = finite(floats(arrays['memory.bank']), 'memory.bank', name);
  const size = bank.length;
  const all = floats(arrays['snapshots.banks']);
  const banks = Array.from({ length: header['snapshots.banks'].shape[0] }, (_, i) => finite(all.slice(i * size, (i + 1) * size), `snapshots.banks[${i}]`, name));
  const tokens = ids(arrays['chunk.tokens'], 'chunk.tokens', expected, name);
  const earlier = ids(arrays['snapshots.tokens'], 'snapshots.tokens', expected, name);
  const text = readText(arrays['session.json'], name);
  checkWindow(text.window, tokens.length, `${name}: session.json: window`);
  const moments = checkTable(text.snapshots, banks, earlier, expected, name).map((m) => ({ ...m, bank: m.bank < 0 ? bank : banks[m.bank] }));
  return { meta, now: { bank, written, tokens, ...text.window, notes: text.notes }, snapshots: moments, document: text.document };
}

/** The bytes of a record, as `readSession` gives them; meta without its digests, format and version. Throws a SessionError for one that could not be read back. */
export function writeSession(record, expected) {
  const { now, snapshots, document, meta } = record;
  const banks = [];
  const rows = snapshots.map((m) => {
    let at = m.bank === now.bank ? -1 : banks.indexOf(m.bank);
    if (at < 0 && m.bank !== now.bank) at = banks.push(m.bank) - 1;
    return { bank: at, written: m.written, tokens: m.tokens.length, carried: m.carried, folds: m.folds, notes: m.notes };
  });
  const window = { carried: now.carried, folds: now.folds };
  const text = new TextEncoder().encode(JSON.stringify({ document, notes: now.notes, window, snapshots: rows }));
  const shapes = {
    'memory.bank': expected.bankShape, 'chunk.tokens': [now.tokens.length], 'snapshots.banks': [banks.length, ...expected.bankShape],
    'snapshots.tokens': [snapshots.reduce((sum, m) => sum + m.tokens.length, 0)], 'session.json': [text.length],
  };
  const parts = [raw(now.bank), raw(Int32Array.from(now.tokens)), ...banks.map(raw), raw(Int32Array.from(snapshots.flatMap((m) => m.tokens))), text];
  const metadata = { ...meta, format: 'lm2-session', version: '2', written: String(now.written), sha256: sha256(...parts) };
  const own = headerDigest(spelled({ ...metadata, header_sha256: '' }, shapes), '');
  const head = spelled({ ...metadata, header_sha256: own }, shapes);
  const out = new Uint8Array(8 + head.length + parts.reduce((sum, part) => sum + part.length, 0));
  new DataView(out.buffer).setBigUint64(0, BigInt(head.length), true);
  out.set(head, 8);
  let at = 8 + head.length;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  readSession(out, expected, 'the session to be saved');
  return out;
}

/** The metadata of a file, its header checked and its model not: for a list of sessions. */
export function readMeta(bytes, name = 'the file') {
  return readHeader(bytes, name).meta;
}

function readHeader(bytes, name) {
  if (bytes.length < 8) throw new SessionTruncatedError(`${name} has ${bytes.length} bytes, a session file has more than 8: ${DAMAGED}`);
  const length = Number(new DataView(bytes.buffer, bytes.byteOffset, 8).getBigUint64(0, true));
  if (length > HEADER_MAX) throw new SessionTooLargeError(`${name} claims a header of ${length} bytes, at most ${HEADER_MAX} are allowed (not a session file, or damaged): ${FOREIGN}`);
  if (8 + length > bytes.length) throw new SessionTruncatedError(`${name} has ${bytes.length} bytes, its header alone has ${8 + length}: ${DAMAGED}`);
  const head = bytes.subarray(8, 8 + length);
  let entries;
  try {
    entries = parse(new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(head));
  } catch (error) {
    throw new SessionFormatError(`${name}: its header is not valid JSON (${plain(error.message)}): ${FOREIGN}`);
  }
  const { __metadata__: meta, ...header } = isObject(entries) ? entries : {};
  if (!isObject(meta) || meta.format !== 'lm2-session') throw new SessionFormatError(`${name} is not a session file (its format is ${plain(meta?.format)}): ${FOREIGN}`);
  const own = headerDigest(head, String(meta.header_sha256 ?? ''));
  if (own !== meta.header_sha256) throw new SessionCorruptError(`${name}: header_sha256 is ${plain(meta.header_sha256, 16)}, its header's is ${own.slice(0, 16)}: ${DAMAGED}`);
  if (meta.version === '1') throw new SessionVersionError(`${name} has session version 1, the browser reads 2: open and save it once with \`lm2 chat --session\``);
  if (meta.version !== '2') {
    const newer = COUNT.test(meta.version) && BigInt(meta.version) > 2n;
    throw new SessionVersionError(`${name} has session version ${plain(meta.version)}, this page reads 2: ${newer ? 'made by a newer lm2: export the page again with it' : FOREIGN}`);
  }
  sameNames(Object.keys(header), Object.keys(ARRAYS), 'array', name);
  sameNames(Object.keys(meta), KEYS, 'metadata key', name);
  for (const [key, value] of Object.entries(meta)) {
    if (typeof value !== 'string' || value.length > 256 || plain(value, 256) !== value) throw new SessionValueError(`${name}: ${key} ${plain(value)} must be printable text of at most 256 characters: ${DAMAGED}`);
    if (['fingerprint', 'tokenizer'].includes(key) && !/^[0-9a-f]{64}$/.test(value)) throw new SessionValueError(`${name}: ${key} ${plain(value)} must be a sha256 (64 lowercase hex digits): ${DAMAGED}`);
    if (['created', 'updated'].includes(key) && !(DATE.test(value) && isDay(value))) throw new SessionValueError(`${name}: ${key} ${plain(value)} must be a date like 2025-01-31T12:00:00Z: ${DAMAGED}`);
    if (['tokens_seen', 'draws', 'seed', 'written'].includes(key) && !COUNT.test(value)) throw new SessionValueError(`${name}: ${key} ${plain(value)} must be a whole number, 0 or more: ${DAMAGED}`);
  }
  const shapes = Object.fromEntries(Object.entries(header).map(([array, entry]) => [array, entry?.shape]));
  for (const [array, shape] of Object.entries(shapes)) {
    const right = Array.isArray(shape) && shape.every((n) => Number.isSafeInteger(n) && n >= 0) && header[array].dtype === ARRAYS[array];
    if (!right) throw new SessionFormatError(`${name}: ${array} is ${plain(JSON.stringify(header[array]))}, a session file has ${ARRAYS[array]} there: ${DAMAGED}`);
  }
  const canonical = spelled(meta, shapes);
  if (canonical.length !== head.length || canonical.some((b, i) => b !== head[i])) throw new SessionFormatError(`${name}: its header is not spelled as lm2 spells it (order, spaces or places): ${DAMAGED}`);
  const body = bytes.subarray(8 + length);
  const described = Object.values(header).reduce((most, entry) => Math.max(most, entry.data_offsets[1]), 0);
  if (body.length < described) throw new SessionTruncatedError(`${name} has ${bytes.length} bytes, its header describes ${8 + length + described} (cut off): ${DAMAGED}`);
  if (body.length > described) throw new SessionFormatError(`${name} has ${bytes.length} bytes, its header describes ${8 + length + described} (bytes left over): ${DAMAGED}`);
  return { header, meta, body };
}

/** A header as lm2 spells it, in UTF-8, with spaces to a multiple of 8. shapes: by array. */
function spelled(meta, shapes) {
  let at = 0;
  const sorted = Object.fromEntries(Object.keys(meta).sort().map((key) => [key, meta[key]]));
  const entries = { __metadata__: sorted };
  for (const [array, dtype] of Object.entries(ARRAYS)) {
    const end = at + ITEM[dtype] * shapes[array].reduce((a, b) => a * b, 1);
    entries[array] = { dtype, shape: shapes[array], data_offsets: [at, end] };
    at = end;
  }
  const head = new TextEncoder().encode(JSON.stringify(entries));
  const out = new Uint8Array(8 * Math.ceil(head.length / 8)).fill(0x20);
  out.set(head);
  return out;
}

function headerDigest(head, own) {
  let end = head.length;
  while (end && head[end - 1] === 0x20) end--;
  const entry = new TextEncoder().encode(`"header_sha256":"${own}",`);
  for (let i = 0; i + entry.length <= end; i++) {
    if (entry.every((b, j) => head[i + j] === b)) return sha256(head.subarray(0, i), head.subarray(i + entry.length, end));
  }
  return sha256(head.subarray(0, end));
}

function checkModel(meta, expected, name) {
  if (meta.fingerprint !== expected.fingerprint) {
    throw new SessionModelError(
      `${name} was saved with model ${plain(meta.model)} (fingerprint ${meta.fingerprint.slice(0, 12)}), this is ${plain(expected.model)} ` +
        `(fingerprint ${expected.fingerprint.slice(0, 12)}), or the same with another memory: open it with the model it was saved with`,
    );
  }
  if (meta.tokenizer !== expected.tokenizer) {
    throw new SessionTokenizerError(`${name} was saved with tokenizer ${meta.tokenizer.slice(0, 12)}, this model has ${expected.tokenizer.slice(0, 12)}: export the model again with its own tokenizer.json`);
  }
}

function readArrays(header, body, expected, name) {
  const shape = (array) => header[array].shape;
  const same = (a, b) => a.length === b.length && a.every((n, i) => n === b[i]);
  if (!same(shape('memory.bank'), expected.bankShape)) throw new SessionShapeError(`${name}: memory.bank is [${shape('memory.bank')}], the model calls for [${expected.bankShape}]: ${DAMAGED}`);
  const banks = shape('snapshots.banks');
  if (!same(banks.slice(1), expected.bankShape) || banks[0] > BANKS_MAX) throw new SessionShapeError(`${name}: snapshots.banks is [${banks}], not [0 to ${BANKS_MAX},${expected.bankShape}]: ${DAMAGED}`);
  for (const [array, most] of [['chunk.tokens', expected.window], ['snapshots.tokens', SNAPSHOTS_MAX * expected.window], ['session.json', TEXT_MAX]]) {
    const wrong = shape(array).length !== 1 ? SessionShapeError : shape(array)[0] <= most ? null : array === 'session.json' ? SessionTooLargeError : SessionShapeError;
    if (wrong) throw new wrong(`${name}: ${array} is [${shape(array)}], not [0 to ${most}], what this model's windows can have: ${DAMAGED}`);
  }
  return Object.fromEntries(Object.entries(header).map(([array, entry]) => [array, body.subarray(...entry.data_offsets)]));
}

function readText(bytes, name) {
  let content;
  try {
    content = parse(new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes));
  } catch (error) {
    throw new SessionFormatError(`${name}: session.json is not JSON that can be taken (${plain(error.message, 100)}): ${DAMAGED}`);
  }
  const right = isObject(content) && sameSet(Object.keys(content), ['document', 'notes', 'window', 'snapshots']);
  if (!right || ![content.document, content.notes, content.window].every(isObject) || !Array.isArray(content.snapshots)) {
    throw new SessionFormatError(`${name}: session.json must hold document, notes, window and snapshots, and nothing else: ${DAMAGED}`);
  }
  if (!sameSet(Object.keys(content.window), ['carried', 'folds'])) throw new SessionFormatError(`${name}: session.json: window must hold carried and folds, and nothing else: ${DAMAGED}`);
  return content;
}

function checkTable(table, banks, earlier, expected, name) {
  if (table.length > SNAPSHOTS_MAX) throw new SessionFormatError(`${name}: it has ${table.length} snapshots, at most ${SNAPSHOTS_MAX} are allowed: ${DAMAGED}`);
  let used = 0;
  let at = 0;
  const out = table.map((row, i) => {
    const where = `${name}: snapshot ${i}`;
    if (!isObject(row) || !sameSet(Object.keys(row), ['bank', 'written', 'tokens', 'carried', 'folds', 'notes']) || !isObject(row.notes)) {
      throw new SessionFormatError(`${where} must hold bank, carried, folds, notes, tokens and written, and nothing else: ${DAMAGED}`);
    }
    whole(row.written, `${where}: written`);
    whole(row.tokens, `${where}: tokens`, expected.window);
    checkWindow(row, row.tokens, where);
    if (!Number.isInteger(row.bank) || row.bank < -1 || row.bank > Math.min(used, banks.length - 1)) {
      throw new SessionValueError(`${where}: bank ${plain(row.bank)} must be from -1 to ${Math.min(used, banks.length - 1)}: ${DAMAGED}`);
    }
    used = Math.max(used, row.bank + 1);
    at += row.tokens;
    return { ...row, tokens: earlier.slice(at - row.tokens, at) };
  });
  if (used !== banks.length || at !== earlier.length) throw new SessionFormatError(`${name}: snapshots use ${used} banks and ${at} tokens, the file stores ${banks.length} and ${earlier.length}: ${DAMAGED}`);
  return out;
}

function checkWindow({ carried, folds }, tokens, where) {
  whole(carried, `${where}: carried`, tokens);
  let last = carried;
  for (const fold of Array.isArray(folds) ? folds : [NaN]) {
    if (!Number.isInteger(fold) || fold <= last || fold > tokens) {
      throw new SessionValueError(`${where}: folds ${plain(JSON.stringify(folds))} must ascend from above ${carried} (carried) to at most ${tokens} (tokens): ${DAMAGED}`);
    }
    last = fold;
  }
}

/** Throw SessionValueError unless `n` is a whole number from 0 to `most`. */
export function whole(n, where, most = Number.MAX_SAFE_INTEGER) {
  if (!Number.isInteger(n) || n < 0 || n > most) throw new SessionValueError(`${where} ${plain(n)} must be a whole number from 0 to ${most}: ${DAMAGED}`);
}

function count(text, key, name) {
  if (!Number.isSafeInteger(Number(text))) throw new SessionValueError(`${name}: ${key} ${text} is more than a browser counts exactly: go on with lm2 in Python`);
  return Number(text);
}

function ids(bytes, array, expected, name) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const out = Array.from({ length: bytes.length / 4 }, (_, i) => view.getInt32(4 * i, true));
  const wrong = out.find((id) => id < 0 || id >= expected.vocabulary);
  if (wrong !== undefined) throw new SessionValueError(`${name}: ${array} has token id ${wrong}, ids go from 0 to ${expected.vocabulary - 1}: ${DAMAGED}`);
  return out;
}

function floats(bytes) {
  const copy = bytes.slice();
  if (!LITTLE) for (let i = 0; i < copy.length; i += 4) copy.subarray(i, i + 4).reverse();
  return new Float32Array(copy.buffer);
}

function raw(array) {
  const bytes = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
  if (LITTLE) return bytes;
  const copy = bytes.slice();
  for (let i = 0; i < copy.length; i += 4) copy.subarray(i, i + 4).reverse();
  return copy;
}

function finite(bank, array, name) {
  const wrong = bank.findIndex((x) => !Number.isFinite(x));
  if (wrong >= 0) throw new SessionValueError(`${name}: ${array} has a value that is NaN or infinite, at place ${wrong}: ${DAMAGED}`);
  return bank;
}

function sameNames(have, want, what, name) {
  if (sameSet(have, want)) return;
  const missing = want.filter((x) => !have.includes(x)).sort()[0];
  const extra = have.filter((x) => !want.includes(x)).sort()[0];
  throw new SessionFormatError(`${name}: ${what} ${missing === undefined ? `${plain(extra)} does not belong there` : `${missing} is missing`}: ${DAMAGED}`);
}

/** Whether the day of a date is one of its month. */
function isDay(text) {
  const [year, month, day] = text.slice(0, 10).split('-').map(Number);
  return year > 0 && day <= new Date(Date.UTC(year, month, 0)).getUTCDate();
}

const isObject = (x) => typeof x === 'object' && x !== null && !Array.isArray(x);
const sameSet = (a, b) => a.length === b.length && b.every((x) => a.includes(x));
