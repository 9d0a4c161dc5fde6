// Tokens of texts in the browser's tokenizer: node text.mjs WEB_FOLDER < [[text, asText], ...]; prints [ids or null, text again] of each, a line of JSON.
import { readFileSync } from 'node:fs';
import { Tokenizer } from '../../../export/browser/lm2/tokenizer.js';

const folder = process.argv[2];
const read = (name) => JSON.parse(readFileSync(`${folder}/${name}`, 'utf8'));
const tokenizer = new Tokenizer(read('tokenizer.json'), read('web.json').text);
for (const [text, asText] of JSON.parse(readFileSync(0, 'utf8'))) {
  try {
    const ids = tokenizer.encode(text, asText);
    console.log(JSON.stringify([ids, tokenizer.decode(ids)]));
  } catch (error) {
    if (error.name !== 'PromptError') throw error;
    console.log(JSON.stringify([null, error.message]));
  }
}
