// llama.cpp (node-llama-cpp's prebuilt CPU binaries) for onnx_speed.py, with the protocol of onnx_engines.py: node onnx_llama.mjs GGUF THREADS
import { createInterface } from 'node:readline';
import { getLlama } from 'node-llama-cpp';

const [path, threads] = [process.argv[2], Number(process.argv[3])];
// With one thread the processor's time, so that a busy machine changes little; with more the wall's. Milliseconds.
const clock = () => (threads === 1 ? process.cpuUsage().user / 1e3 + process.cpuUsage().system / 1e3 : performance.now());
const say = (value) => process.stdout.write(`@${JSON.stringify(value)}\n`);
const llama = await getLlama({ gpu: false, build: 'never', logLevel: 'error', maxThreads: threads });
const model = await llama.loadModel({ modelPath: path });
const context = await model.createContext({ contextSize: 512, batchSize: 512, threads });
const sequence = context.getSequence();
say({ ready: { llama: llama.llamaCppRelease?.release ?? '', threads: context.currentThreads } });

for await (const line of createInterface({ input: process.stdin })) {
  const { prompt, steps } = JSON.parse(line);
  await sequence.clearHistory();
  const began = clock();
  let prefilled;
  const tokens = [];
  for await (const token of sequence.evaluate(prompt, { temperature: 0, yieldEogToken: true })) {
    prefilled ??= clock(); // the first token comes after the prompt
    tokens.push(token);
    if (tokens.length > steps) break;
  }
  say({ prefill: (prefilled - began) / 1e3, decode: (clock() - prefilled) / 1e3, tokens });
}
