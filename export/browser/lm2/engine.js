// One model in onnxruntime-web: windows, folds, the memory. Outputs are fed back as new tensors, since onnxruntime-web does not write into memory that it is
// given. Knows the names of docs/onnx.md; no text, no conversation. Axes: l banks, n rows, d width, v vocabulary.

import { ModelError } from './errors.js';

const [GO_ON, BEGIN, TAKE, FOLD] = [0, 1, 2, 3];
const STEP = 64; // positions by which keys and values grow
const NUMBERS = ['past_length', 'past_written', 'past_folded'];
const ARRAYS = { float32: Float32Array, int64: BigInt64Array };

/** A window in progress. Changed in place: whoever goes back begins a new one. spoiled: a call failed, so it cannot go on. */
class Window {
  constructor(memory, size, carried) {
    Object.assign(this, { memory, size, carried, folded: carried, length: 0, written: memory.written, pending: false, spoiled: false, bank: memory.bank, after: null, state: null });
  }
}

export class Engine {
  /**
   * ort: the onnxruntime-web module. session: an InferenceSession of an exported model.onnx. plan: its inputs, name -> {type, dims}, names of axes as text.
   * device: 'wasm' or 'webgpu'. memory: {banks, slots, chunk, width} and vocabulary of the model.
   */
  constructor(ort, session, plan, device, memory, vocabulary) {
    Object.assign(this, { ort, session, device, memory, vocabulary });
    this.states = Object.entries(plan).filter(([name]) => name.startsWith('past_') && !NUMBERS.includes(name) && name !== 'past_bank');
    const readOfBank = (name) => name.startsWith('past_memory_');
    const present = (names) => names.map((name) => name.replace('past_', 'present_'));
    const names = this.states.map(([name]) => name);
    this.always = ['logits', ...present(names.filter((name) => !readOfBank(name)))];
    this.begun = [...this.always, ...present(names.filter(readOfBank))];
    this.anew = [...this.begun, ...(memory.banks ? ['present_bank'] : [])];
  }

  /** A memory that was never written. */
  empty() {
    return { bank: new Float32Array(this.memory.banks * this.memory.slots * this.memory.width), written: 0 };
  }

  /** A new window of `size` positions that reads `memory`; its first `carried` tokens are in it already. */
  start(memory, size, carried) {
    return new Window(memory, size, carried);
  }

  /** Feed ids; Float32Array logits (v,) after the last. Throws ModelError where they do not fit, or when onnxruntime-web fails. */
  async extend(ids, window) {
    if (window.spoiled) throw new ModelError('this window cannot go on, a call of it failed: run its tokens again in a new one');
    const { chunk } = this.memory;
    if (!ids.length || window.length + ids.length > window.size || window.length + ids.length - window.folded > chunk) {
      throw new ModelError(`${ids.length} tokens do not fit after ${window.length}: a window has ${window.size} positions, and ${chunk} tokens between two folds`);
    }
    const kind = window.length === 0 ? BEGIN : window.pending ? FOLD : GO_ON;
    if (!window.state) window.state = this.#zeros(window);
    this.#grow(window, window.length + ids.length);
    const before = kind === FOLD ? window.before : { written: window.written, folded: window.carried };
    const numbers = kind === GO_ON ? { written: window.written, folded: window.folded } : before;
    const made = await this.#run(window, ids, kind, window.carried, numbers, kind === GO_ON ? this.always : kind === BEGIN ? this.begun : this.anew);
    for (const [name] of this.states) {
      const output = made[name.replace('past_', 'present_')];
      if (!output) continue;
      window.state[name].dispose();
      window.state[name] = output;
    }
    if (made.present_bank) window.bank = made.present_bank.data;
    Object.assign(window, { pending: false, after: null });
    window.length += ids.length;
    return made.logits.data;
  }

  /** Enter the rows of the tokens since the last fold into the memory; the next call does it. */
  fold(window) {
    const count = window.length - window.folded;
    if (count <= 0) return;
    window.before = { written: window.written, folded: window.folded };
    window.written += count;
    window.folded = window.length;
    window.pending = true;
  }

  /** The memory as of the last fold, made or pending: {bank, written}. The window goes on as if nothing had happened. */
  async taken(window) {
    if (window.pending && this.memory.banks && !window.after) {
      this.#grow(window, window.length + 1); // where the window is full: one position that is never read
      const made = await this.#run(window, [0], TAKE, 1, window.before, ['present_bank']);
      window.after = made.present_bank.data;
    }
    return { bank: window.after ?? window.bank, written: window.written };
  }

  /** Free what a window holds on the device. */
  drop(window) {
    for (const tensor of Object.values(window?.state ?? {})) tensor.dispose();
    if (window) Object.assign(window, { state: null, spoiled: true });
  }

  async #run(window, ids, kind, carry, { written, folded }, wanted) {
    const one = (n) => new this.ort.Tensor('int64', BigInt64Array.of(BigInt(n)), [1]);
    const { banks, slots, width } = this.memory;
    const feeds = {
      ...window.state,
      input_ids: new this.ort.Tensor('int64', BigInt64Array.from(ids, BigInt), [1, ids.length]),
      new_chunk: one(kind), carry: one(carry), logits_from: one(-1), past_length: one(window.length), past_written: one(written), past_folded: one(folded),
    };
    if (banks) feeds.past_bank = new this.ort.Tensor('float32', window.bank, [1, banks, slots, width]);
    try {
      return await this.session.run(feeds, wanted);
    } catch (error) {
      window.spoiled = true;
      throw new ModelError(`onnxruntime-web could not run the model (${String(error.message ?? error).split('\n')[0].slice(0, 240)})`);
    }
  }

  /** Positions that are allocated: on a GPU all, else as many as are filled, in steps, since every call copies them. */
  #capacity(window, length) {
    return this.device === 'webgpu' ? window.size + 1 : Math.min(window.size + 1, STEP * Math.ceil((length + 1) / STEP));
  }

  #zeros(window) {
    const positions = this.#capacity(window, 1);
    const out = {};
    for (const [name, { type, dims }] of this.states) {
      const shape = dims.map((n) => (n === 'window' ? positions : typeof n === 'string' ? 1 : n));
      out[name] = new this.ort.Tensor(type, new ARRAYS[type](shape.reduce((a, b) => a * b, 1)), shape);
    }
    return out;
  }

  /** Make keys and values (1, k, W, e) of the window long enough for `length` positions. */
  #grow(window, length) {
    for (const [name, { dims }] of this.states) {
      const tensor = window.state[name];
      if (!dims.includes('window') || tensor.dims[2] >= length) continue;
      const [, k, had, e] = tensor.dims;
      const has = this.#capacity(window, length);
      const data = new Float32Array(k * has * e);
      for (let i = 0; i < k; i++) data.set(tensor.data.subarray(i * had * e, (i + 1) * had * e), i * has * e);
      window.state[name] = new this.ort.Tensor('float32', data, [1, k, has, e]);
    }
  }
}
