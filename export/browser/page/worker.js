// Computes, so that the page does not stand still: one model, one conversation of it, and the store. The page asks by messages; rpc.js is the other end.

import { Session, Store, load } from '../lm2/index.js';

const MODULES = { wasm: ['ort.wasm.bundle.min.mjs', 'ort-wasm-simd-threaded.wasm'], webgpu: ['ort.webgpu.bundle.min.mjs', 'ort-wasm-simd-threaded.asyncify.wasm'] };
const THREADS = 4;
let [model, session, key, revision, stopping] = [null, null, null, 0, false];
const store = Store.open();

const tell = (event) => postMessage({ event });
const notify = (note) => tell({ note });

/** onnxruntime-web from this folder. Threads need a page that is isolated from others (docs/web.md). */
async function runtime(device) {
  const [module, wasm] = MODULES[device];
  const ort = await import(new URL(`../ort/${module}`, import.meta.url).href);
  ort.env.wasm.wasmPaths = { wasm: new URL(`../ort/${wasm}`, import.meta.url).href };
  ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(THREADS, navigator.hardwareConcurrency) : 1;
  ort.env.logLevel = 'error';
  return ort;
}

/** What the page shows of a conversation. */
function shown() {
  const { at, reply, transcript, system, snapshots, seed, sampling } = session;
  const numbers = { seen: at.seen, written: at.memory.written, window: at.tokens.length + at.pending.length, size: session.feeder.size, carried: at.carried };
  return { key, transcript, system, undo: snapshots.length, seed: String(seed), sampling, numbers, reply: reply && { ...reply, message: null } };
}

async function keep() {
  const first = session.transcript.find((m) => m.role === 'user')?.content ?? 'New conversation';
  const about = { title: first.replace(/\s+/g, ' ').slice(0, 60), model: model.name, fingerprint: model.expected.fingerprint, updated: Date.now() };
  revision = await (await store).put(key, session.save(), about, revision);
}

/** What the page shows, once the conversation is kept; `unsaved` says why it could not be. It goes on in this tab either way. */
async function kept() {
  try {
    await keep();
    return shown();
  } catch (error) {
    return { ...shown(), unsaved: `the conversation could not be kept in this browser (${error.message}): download it before the tab is closed` };
  }
}

/** Make `next` the conversation in hand. */
function take(next, asKey, asRevision) {
  session?.rest();
  [session, key, revision] = [next, asKey, asRevision];
  return shown();
}

const newKey = () => Array.from(crypto.getRandomValues(new Uint8Array(8)), (b) => b.toString(16).padStart(2, '0')).join('');

const calls = {
  async open(folder, device) {
    session?.rest();
    await model?.release();
    [model, session] = [null, null];
    const began = performance.now();
    model = await load(new URL(`../models/${folder}/`, import.meta.url).href, await runtime(device), { device, progress: (file, bytes, of) => tell({ file, bytes, of }) });
    return { name: model.name, seconds: (performance.now() - began) / 1000, system: model.texts.under !== null, window: model.window, positions: model.positions, sampling: model.sampling };
  },
  async list() {
    const all = await (await store).list();
    return all.filter(({ about }) => about.fingerprint === model.expected.fingerprint).sort((a, b) => b.about.updated - a.about.updated);
  },
  async fresh(options) {
    return take(new Session(model, { ...options, notify }), newKey(), 0);
  },
  async go(wanted) {
    const found = await (await store).get(wanted);
    return take(Session.restore(model, found.bytes, { notify, name: 'the kept conversation' }), wanted, found.revision);
  },
  async upload(bytes, name) {
    const opened = Session.restore(model, bytes, { notify, name });
    take(opened, newKey(), 0);
    return kept();
  },
  async say(message, maxTokens) {
    stopping = false;
    const pieces = session.stream(message, { maxTokens, stopped: () => stopping });
    for await (const piece of pieces) {
      tell({ piece });
      await new Promise((go) => setTimeout(go)); // so that a message to stop can come in
    }
    return kept();
  },
  async undo() {
    session.undo();
    return kept();
  },
  async download() {
    return session.save();
  },
  async remove() {
    await (await store).remove(key);
    session.rest();
    session = null;
  },
};

onmessage = async ({ data: { id, call, args } }) => {
  if (call === 'stop') {
    stopping = true;
    return;
  }
  try {
    postMessage({ id, value: await calls[call](...args) });
  } catch (error) {
    postMessage({ id, error: { name: error.name, message: error.message } });
  }
};
