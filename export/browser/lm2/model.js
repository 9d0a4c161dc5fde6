// Opening a model that `lm2 export --web` wrote: files, sizes, digests, onnxruntime-web. Knows no conversation.

import { Engine } from './engine.js';
import { ModelError, plain } from './errors.js';
import { Noting, ROWS_MAX } from './ledger.js';
import { sampling } from './sampling.js';
import { sha256 } from './sha256.js';
import { Tokenizer } from './tokenizer.js';

export const FORMAT = 1; // of web.json
const SUBTLE_FROM = 1 << 16; // bytes from which the browser's own SHA-256 is asked, where there is one

/** A loaded model. See `load`. */
class Model {
  constructor(web, tokenizer, engine, device) {
    const { memory } = web;
    Object.assign(this, {
      name: web.name, device, engine, tokenizer, texts: web.wording, ends: new Set(web.ends), sampling: sampling(web.sampling),
      window: web.window, positions: web.positions, vocabulary: web.vocabulary,
    });
    const bankShape = [memory.banks, 1, memory.slots, memory.width];
    this.expected = { fingerprint: web.fingerprint, model: web.name, tokenizer: web.tokenizer, bankShape, vocabulary: web.vocabulary, window: Math.max(web.positions, memory.chunk) };
    this.noting = memory.banks && memory.slots <= ROWS_MAX ? new Noting(memory.memories, memory.slots, memory.width, web.eps) : null;
  }

  /** Free it; its sessions cannot go on, but can be saved. */
  async release() {
    await this.engine.session.release();
  }
}

/**
 * Open the model in the folder at `url` (with a slash at its end) with the module `ort` of onnxruntime-web. device: 'wasm', or 'webgpu'.
 * progress(file, bytes, of) hears of what has come. Throws ModelError for a file that is missing, of another size or with other bytes than web.json says.
 */
export async function load(url, ort, { device = 'wasm', progress = () => {} } = {}) {
  if (!['wasm', 'webgpu'].includes(device)) throw new ModelError(`device ${plain(device)} must be wasm or webgpu`);
  if (device === 'webgpu' && !(await globalThis.navigator?.gpu?.requestAdapter())) throw new ModelError('this browser gives no WebGPU adapter: take wasm, or another browser');
  const web = JSON.parse(new TextDecoder().decode(await fetched(new URL('web.json', url), null, progress)));
  if (web.format !== FORMAT) throw new ModelError(`web.json of ${plain(url)} has format ${plain(web.format)}, this module reads ${FORMAT}: export the model and the page with one lm2`);
  const files = {};
  for (const [name, about] of Object.entries(web.files)) files[name] = await fetched(new URL(name, url), { name, ...about }, progress);
  const tokenizer = new Tokenizer(JSON.parse(new TextDecoder().decode(files['tokenizer.json'])), web.text);
  const plan = web.inputs;
  const options = { executionProviders: [device], logSeverityLevel: 3 };
  if (device === 'webgpu') {
    const onDevice = Object.keys(plan).filter((name) => /^past_(key|value|memory_|writes)/.test(name)).map((name) => [name.replace('past_', 'present_'), 'gpu-buffer']);
    options.preferredOutputLocation = Object.fromEntries(onDevice);
  }
  const graph = files['model.onnx'];
  for (const name of Object.keys(files)) delete files[name]; // so that only onnxruntime-web holds them
  let session;
  try {
    session = await ort.InferenceSession.create(graph, options);
  } catch (error) {
    throw new ModelError(`onnxruntime-web could not open ${plain(url)} on ${device} (${String(error.message ?? error).split('\n')[0].slice(0, 240)})`);
  }
  return new Model(web, tokenizer, new Engine(ort, session, plan, device, web.memory, web.vocabulary), device);
}

/** The bytes at `url`, checked. */
async function fetched(url, about, progress) {
  const answer = await fetch(url);
  const shown = plain(url.pathname.split('/').at(-1));
  if (!answer.ok) throw new ModelError(`${shown} cannot be had (${answer.status}): export the model again, and serve the whole folder`);
  if (!about) return new Uint8Array(await answer.arrayBuffer());
  const out = new Uint8Array(about.bytes);
  let at = 0;
  const reader = answer.body.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    if (at + value.length > out.length) throw new ModelError(`${shown} has more than the ${about.bytes} bytes that web.json says: export the model again`);
    out.set(value, at);
    at += value.length;
    progress(about.name, at, about.bytes);
  }
  if (at !== out.length) throw new ModelError(`${shown} has ${at} bytes, web.json says ${about.bytes}: export the model again`);
  const digest = await hashed(out);
  if (digest !== about.sha256) throw new ModelError(`${shown} has other bytes than web.json says (sha256 ${digest.slice(0, 12)}, not ${about.sha256.slice(0, 12)}): export the model again`);
  return out;
}

async function hashed(bytes) {
  if (bytes.length < SUBTLE_FROM || !globalThis.crypto?.subtle) return sha256(bytes);
  const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', bytes));
  return Array.from(digest, (b) => b.toString(16).padStart(2, '0')).join('');
}
