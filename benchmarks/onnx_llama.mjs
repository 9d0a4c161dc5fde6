// llama.cpp (node-llama-cpp's prebuilt CPU binaries) for onnx_speed.py, with the protocol of onnx_engines.py: node onnx_llama.mjs GGUF THREADS
import { createInterface } from 'node:readline';
import { getLlama } from 'node-llama-cpp';

const [path, threads] = [process.argv[2], Number(process.argv[3])];
// With one thread the processor's time, so that a busy machine changes little; with more the wall's. Milliseconds.
const clock = () => (threads === 1 ? process.cpuUsage().user / 1e3 + process.cpuUsage().system / 1e3 : performance.now());
const say = (value) => process.stdout.write(`@${JSON.stringify(value)}\n`);
const FLUSH = 640 << 20; // bytes, as in onnx_engines.py
let buffer;
const flush = () => {
  buffer ??= new Float64Array(FLUSH / 8).fill(1);
  let sum = 0;
  for (let i = 0; i < buffer.length; i += 8) sum += buffer[i]; // a number of each cache line
  return sum;
};
const llama = await getLlama({ gpu: false, build: 'never', logLevel: 'error', maxThreads: threads });
const opened = performance.now();
const model = await llama.loadModel({ modelPath: path });
const context = await model.createContext({ contextSize: 512, batchSize: 512, threads });
const sequence = context.getSequence();
const load_s = Number(((performance.now() - opened) / 1e3).toFixed(3));
say({ ready: { llama: llama.llamaCppRelease?.release ?? '', threads: context.currentThreads, load_s } });

for await (const line of createInterface({ input: process.stdin })) {
  const { prompt, steps, cold: coldSteps = 0 } = JSON.parse(line);
  await sequence.clearHistory();
  const began = clock();
  let prefilled, decode, resident, start;
  let cold = 0;
  const tokens = [];
  for await (const token of sequence.evaluate(prompt, { temperature: 0, yieldEogToken: true })) {
    prefilled ??= clock(); // the first token comes after the prompt
    if (tokens.length > steps) cold += clock() - start;
    tokens.push(token);
    if (tokens.length === steps + 1) [decode, resident] = [clock() - prefilled, process.memoryUsage().rss];
    if (tokens.length > steps + coldSteps) break;
    if (tokens.length > steps) {
      flush();
      start = clock();
    }
  }
  tokens.length = steps + 1;
  say({ prefill: (prefilled - began) / 1e3, decode: decode / 1e3, cold: cold / 1e3, tokens, resident });
}
