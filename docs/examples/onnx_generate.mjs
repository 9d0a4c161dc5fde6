// The same conversation from the same files in Node: npm install onnxruntime-node; node onnx_generate.mjs FOLDER < turns.json
// turns.json: [[token ids of a turn], ...], one chunk each. Prints the greedy answer's token ids, one line of JSON a turn.
import { readFileSync } from 'node:fs';
import ort from 'onnxruntime-node';

const folder = process.argv[2];
const config = JSON.parse(readFileSync(`${folder}/config.json`, 'utf8'));
const turns = JSON.parse(readFileSync(0, 'utf8'));
const session = await ort.InferenceSession.create(`${folder}/model.onnx`, { logSeverityLevel: 3 });

const int64 = (values) => new ort.Tensor('int64', BigInt64Array.from(values.map(BigInt)), [1, values.length]);
const one = (value) => new ort.Tensor('int64', BigInt64Array.from([BigInt(value)]), [1]);
const arrays = { float32: Float32Array, float16: Uint16Array, int64: BigInt64Array };

const state = {};
for (const { name, type, shape } of session.inputMetadata) {
  if (!name.startsWith('past_')) continue;
  const dims = shape.map((n) => (typeof n === 'number' ? n : 1)); // one sequence
  state[name] = new ort.Tensor(type, new arrays[type](dims.reduce((a, b) => a * b, 1)), dims);
}
if (config.memory.init === 'eye') {
  const { data, dims: [, banks, rows, width] } = state.past_bank;
  for (let l = 0; l < banks; l++) for (let i = 0; i < Math.min(rows, width); i++) data[(l * rows + i) * width + i] = 1;
}

// Every present_X is written where past_X was read, so nothing is copied.
const kept = Object.fromEntries(Object.entries(state).map(([name, tensor]) => [name.replace('past_', 'present_'), tensor]));

// Feed ids; the likeliest next token.
async function step(ids, newChunk) {
  const out = await session.run({ ...state, input_ids: int64(ids), new_chunk: one(newChunk ? 1 : 0), logits_from: one(-1) }, { logits: null, ...kept });
  const logits = out.logits.data;
  let best = 0;
  for (let i = 1; i < logits.length; i++) if (logits[i] > logits[best]) best = i;
  return best;
}

for (const ids of turns) {
  const answer = [];
  let token = await step(ids, true);
  while (!config.eos_token_id.includes(token) && answer.length < 24 && ids.length + answer.length < config.memory.chunk) {
    answer.push(token);
    token = await step([token], false);
  }
  console.log(JSON.stringify(answer));
}
