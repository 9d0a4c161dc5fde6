// The same conversation from the same files in Node: npm install onnxruntime-node; WINDOW=2048 node onnx_generate.mjs FOLDER < turns.json
// turns.json: [[token ids of a turn], ...]. Prints the greedy answer's token ids, one line of JSON a turn. A fold at each turn's end; a window that
// is full is followed by one that begins with its last turns. onnxruntime-web (RUNTIME=onnxruntime-web) does not write into tensors that it is given and says
// nothing: the first call finds it out, and outputs are then fed back as new tensors.
import { readFileSync } from 'node:fs';

const { default: ort } = await import(process.env.RUNTIME ?? 'onnxruntime-node');

if (ort.env.wasm) ort.env.wasm.numThreads = 1; // onnxruntime-web's

const folder = process.argv[2];
const config = JSON.parse(readFileSync(`${folder}/config.json`, 'utf8'));
const turns = JSON.parse(readFileSync(0, 'utf8'));
const session = await ort.InferenceSession.create(`${folder}/model.onnx`, { logSeverityLevel: 3 });

const [GO_ON, BEGIN, FOLD] = [0, 1, 3];
const gated = session.inputNames.includes('past_folded');
const chunk = config.memory.chunk;
let window = gated ? Number(process.env.WINDOW ?? Math.min(2048, config.max_position_embeddings)) : chunk;

const int64 = (values) => new ort.Tensor('int64', BigInt64Array.from(values.map(BigInt)), [1, values.length]);
const one = (value) => new ort.Tensor('int64', BigInt64Array.from([BigInt(value)]), [1]);
const arrays = { float32: Float32Array, float16: Uint16Array, int64: BigInt64Array };

const state = {};
for (const { name, type, shape } of session.inputMetadata) {
  if (!name.startsWith('past_')) continue;
  const dims = shape.map((n) => (typeof n === 'number' ? n : n === 'window' ? window : 1)); // one sequence
  state[name] = new ort.Tensor(type, new arrays[type](dims.reduce((a, b) => a * b, 1)), dims);
}
if (config.memory.init === 'eye') {
  const { data, dims: [, banks, rows, width] } = state.past_bank;
  for (let l = 0; l < banks; l++) for (let i = 0; i < Math.min(rows, width); i++) data[(l * rows + i) * width + i] = 1;
}
if (gated) window = state['past_key.0'].dims[2]; // a file may fix it
const number = (name) => Number(state[name].data[0]);

// Every present_X is written where past_X was read, so nothing is copied; null in its place asks for a new tensor.
const kept = Object.fromEntries(Object.entries(state).map(([name, tensor]) => [name.replace('past_', 'present_'), tensor]));
let inPlace = true;

// One call; the likeliest next token.
async function step(ids, newChunk, carry) {
  const length = newChunk === GO_ON || newChunk === FOLD ? number('past_length') : 0;
  const feeds = { ...state, new_chunk: one(newChunk), logits_from: one(-1), ...(gated && { carry: one(carry) }), input_ids: int64(ids) };
  let out = await session.run(feeds, { logits: null, ...kept });
  if (inPlace && number('past_length') !== length + ids.length) {
    // Nothing was written, so the state is as it was: make the call again.
    inPlace = false;
    for (const name of Object.keys(kept)) kept[name] = null;
    out = await session.run(feeds, { logits: null, ...kept });
  }
  if (!inPlace) for (const name of Object.keys(state)) state[name] = out[name.replace('past_', 'present_')];
  if (number('past_length') !== length + ids.length) throw new Error(`the call left ${number('past_length')} positions, not ${length + ids.length}: this runtime gives no state back`);
  const logits = out.logits.data;
  let best = 0;
  for (let i = 1; i < logits.length; i++) if (logits[i] > logits[best]) best = i;
  return best;
}

// Feed ids in as many calls as it takes: no more than a chunk between two folds.
async function feed(ids, newChunk = GO_ON, carry = 0) {
  if (!gated) return step(ids, newChunk, carry);
  for (;;) {
    const length = newChunk === BEGIN ? 0 : number('past_length');
    const folded = newChunk === BEGIN ? carry : newChunk === FOLD ? Math.max(length, number('past_folded')) : number('past_folded');
    const room = folded + chunk - length;
    if (room === 0) {
      newChunk = FOLD;
      continue;
    }
    const token = await step(ids.slice(0, room), newChunk, carry);
    ids = ids.slice(room);
    newChunk = GO_ON;
    if (ids.length === 0) return token;
  }
}

let said = []; // the window's turns
const total = () => said.reduce((sum, turn) => sum + turn.length, 0);
for (const ids of turns) {
  let token;
  if (gated && said.length && total() + ids.length + 24 <= window) {
    token = await feed(ids, FOLD);
  } else {
    // The next window begins with the last turns, which are in the memory and not written again.
    while (said.length && (!gated || total() > window / 2)) said.shift();
    const carried = said.flat();
    if (carried.length) await feed(carried, BEGIN, carried.length);
    token = await feed(ids, carried.length ? GO_ON : BEGIN);
  }
  const answer = [];
  while (!config.eos_token_id.includes(token) && answer.length < 24 && number('past_length') < window) {
    answer.push(token);
    token = await feed([token]);
  }
  said.push([...ids, ...answer]);
  console.log(JSON.stringify(answer));
}
