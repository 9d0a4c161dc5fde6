// What the browser's sampler draws: node draws.mjs < [{settings, seed, draws, logits, recent, count}, ...]; prints the tokens of each, a line of JSON.
import { readFileSync } from 'node:fs';
import { Sampler, sampling, uniform } from '../../../export/browser/lm2/sampling.js';

for (const one of JSON.parse(readFileSync(0, 'utf8'))) {
  if (!one.logits) {
    console.log(JSON.stringify(Array.from({ length: one.count }, (_, i) => uniform(BigInt(one.seed), one.draws + i))));
    continue;
  }
  const sampler = new Sampler(sampling(one.settings), BigInt(one.seed), one.draws);
  const logits = Float32Array.from(one.logits, (x) => x ?? -Infinity);
  console.log(JSON.stringify(Array.from({ length: one.count }, () => sampler.sample(logits, one.recent))));
}
