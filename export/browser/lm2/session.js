// A conversation with a memory, as lm2.Session is in Python: turns, undo, save. Knows a loaded model, tokens and text; how tokens enter windows is cursor.js's.

import { Windows, atRest, change, filled, newCursor } from './cursor.js';
import { PromptError, SessionValueError } from './errors.js';
import { fromRecord, toRecord } from './keeping.js';
import { Sampler, newSeed, sampling as settings } from './sampling.js';
import { readSession, writeSession } from './statefile.js';
import { Detokenizer } from './tokenizer.js';
import { Wording, checkIds } from './wording.js';

const MAX_TOKENS = 512;
const UNDO_TURNS = 16;
const UNDO_BANKS = 4;
const WINDOW_MIN = 16;
const TRANSCRIPT_CHARS = 1 << 20;
const TURN_CHARS = 1 << 16;
const MESSAGE_COST = 64;

/** One conversation. To read: `transcript`, `reply` (the last one), `at` (where it stands), `system`, `seed`. One call at a time; nothing runs beside another. */
export class Session {
  /** system: prompt, or null. sampling: see sampling.js. seed: BigInt; drawn where it is not given. window: tokens kept word for word. notify(text) hears of folds and slides. */
  constructor(model, { system = null, sampling = {}, seed = null, window = null, overlap = null, notify = () => {} } = {}) {
    this.model = model;
    this.system = system;
    this.sampling = settings({ ...model.sampling, ...sampling });
    this.seed = seed === null ? newSeed() : BigInt(seed);
    new Sampler(this.sampling, this.seed); // checks the seed
    const size = window ?? model.window;
    if (size !== model.window && !(Number.isInteger(size) && size >= WINDOW_MIN && size <= model.positions)) {
      throw new PromptError(`window ${size} must be from ${WINDOW_MIN} to ${model.positions}, the model's positions: choose another window`);
    }
    const repeated = overlap ?? Math.floor(size / 8);
    if (!(repeated >= 0 && repeated <= Math.floor(size / 4))) throw new PromptError(`overlap ${repeated} must be from 0 to a quarter of the window (${Math.floor(size / 4)})`);
    this.feeder = new Windows(model.engine, size, repeated, notify, model.noting);
    this.wording = new Wording(model.tokenizer, model.texts, system, size, model.positions);
    this.at = newCursor(model.engine.empty(), model.noting?.empty() ?? null);
    Object.assign(this, { transcript: [], numbers: [], forgottenTurns: 0, snapshots: [], reply: null, created: '', busy: false });
    if (system) this.wording.head();
  }

  /** The whole answer to a message. See `stream`. */
  async say(content, options = {}) {
    let out = '';
    for await (const piece of this.stream(content, options)) out += piece;
    return out;
  }

  /**
   * Answer a message, piece by piece. However it ends (end of turn, maxTokens, stopped() is true, leaving the loop), the session is at a turn's end with what was
   * answered so far; an error before the answer began leaves it as it was. Throws PromptError for an empty message.
   */
  async *stream(content, { maxTokens = MAX_TOKENS, stopped = () => false } = {}) {
    if (!content.trim()) throw new PromptError('the message is empty: write something');
    this.#enter();
    try {
      yield* this.#answer(content, maxTokens, stopped);
    } finally {
      this.busy = false;
    }
  }

  /** Take back the last turn, across windows too (at most 16 are kept). Throws PromptError when there is none left. */
  undo() {
    this.#enter();
    this.busy = false;
    const past = this.snapshots.pop();
    if (!past) throw new PromptError(`there is nothing to undo${this.at.turns ? ` (the last ${UNDO_TURNS} turns are kept)` : ''}`);
    this.model.engine.drop(this.at.window);
    const left = Math.max(0, past.turns - this.forgottenTurns);
    this.transcript.splice(left);
    this.numbers.splice(left);
    this.forgottenTurns = Math.min(this.forgottenTurns, past.turns);
    this.at = past;
    this.reply = null;
  }

  /** The bytes of a session file, which lm2 in Python opens as well. */
  save() {
    this.#enter();
    this.busy = false;
    const { at, snapshots, transcript, numbers, forgottenTurns, created, system, seed } = this;
    const kept = { system, sampling: this.sampling, seed, overlap: this.feeder.overlap, window: this.feeder.size, at, snapshots, transcript, numbers, forgottenTurns, created };
    const record = toRecord(kept, this.model.expected, { backend: `onnxruntime-web ${this.model.device}`, dtype: 'float32' });
    const bytes = writeSession(record, this.model.expected);
    this.created = record.meta.created;
    return bytes;
  }

  /** Open the bytes of a session file on this model. Throws a SessionError; name: what it calls the file. */
  static restore(model, bytes, { notify, name = 'the file' } = {}) {
    const kept = fromRecord(readSession(bytes, model.expected, name), model.expected, model.noting, name);
    let session;
    try {
      session = new Session(model, { ...kept, notify });
    } catch (error) {
      if (!(error instanceof PromptError)) throw error;
      throw new SessionValueError(`${name}: ${error.message}`);
    }
    const { at, snapshots, transcript, numbers, forgottenTurns, created } = kept;
    return Object.assign(session, { at, snapshots, transcript, numbers, forgottenTurns, created });
  }

  /** Free what it holds on the device; it can be saved or go on afterwards, and runs its window again then. */
  rest() {
    this.model.engine.drop(this.at.window);
    this.at = atRest(this.at);
  }

  async *#answer(content, maxTokens, stopped) {
    const before = atRest(this.at);
    const check = (ids) => checkIds(ids, this.model.vocabulary);
    const sampler = new Sampler(this.sampling, this.seed, this.at.draws);
    const words = new Detokenizer(this.model.tokenizer, true);
    const started = performance.now();
    let head;
    let closing;
    let prompt;
    try {
      head = check(this.wording.head());
      const first = check(this.wording.turn(content, true));
      const later = filled(this.at) ? check(this.wording.turn(content, false)) : first;
      closing = check(this.wording.closing());
      prompt = later.length;
      this.at = await this.feeder.begin(this.at, first, later, head);
      this.at = await this.feeder.logits(this.at);
    } catch (error) {
      this.at = before;
      throw error;
    }
    const prefill = performance.now() - started;
    const tokens = [];
    let text = '';
    let finish = '';
    try {
      while (tokens.length < maxTokens && !finish) {
        if (stopped()) {
          finish = 'interrupted';
          break;
        }
        const at = await this.feeder.logits(this.at);
        const token = sampler.sample(at.logits, at.tokens);
        this.at = change(at, { draws: sampler.draws });
        if (this.model.ends.has(token)) {
          finish = 'stop';
          break;
        }
        this.at = await this.feeder.add(this.at, token, head);
        tokens.push(token);
        const piece = words.add(token);
        text += piece;
        if (piece) yield piece;
      }
      const last = words.flush();
      text += last;
      if (last) yield last;
      finish ||= 'length';
    } finally {
      finish ||= 'interrupted';
      text += words.flush();
      try {
        this.at = await this.feeder.close(this.at, closing, head);
        this.reply = { text, message: content, promptTokens: prompt, tokens, finish, prefillMs: prefill, decodeMs: performance.now() - started - prefill };
        this.#remember('user', content);
        this.#remember('assistant', text);
        this.#keep(before);
      } catch (error) {
        this.at = before; // a window that cannot be left: the turn cannot be kept
        this.reply = null;
        throw error;
      }
    }
  }

  #enter() {
    if (this.busy) throw new PromptError('an answer is being made: stop it, or wait for its end');
    this.busy = true;
  }

  #remember(role, content) {
    this.transcript.push({ role, content: short(content) });
    this.numbers.push(this.at.number);
    let size = this.transcript.reduce((sum, m) => sum + m.content.length + MESSAGE_COST, 0);
    let dropped = 0;
    while (size > TRANSCRIPT_CHARS) size -= this.transcript[dropped++].content.length + MESSAGE_COST;
    this.transcript.splice(0, dropped);
    this.numbers.splice(0, dropped);
    this.forgottenTurns += dropped;
    this.at = change(this.at, { turns: this.at.turns + 1 });
  }

  /** Make `before` what undo returns to; bounded in turns and banks, so that a session's size is constant. */
  #keep(before) {
    this.snapshots.push(before);
    const others = () => new Set(this.snapshots.map((s) => s.memory.bank).filter((bank) => bank !== this.at.memory.bank)).size;
    while (this.snapshots.length > UNDO_TURNS || others() > UNDO_BANKS) this.snapshots.shift();
  }
}

/** A message as the transcript keeps it: shortened where it is very long, between characters. */
function short(content) {
  if (content.length <= TURN_CHARS) return content;
  const characters = Array.from(content);
  return characters.length <= TURN_CHARS ? content : `${characters.slice(0, TURN_CHARS).join('')} [${characters.length} characters in all]`;
}
