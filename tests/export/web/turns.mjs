// Tokens of turns in the browser's wording: node turns.mjs WEB_FOLDER < [[system, message], ...]; prints [head, first, later, closing] of each, or an error's name.
import { readFileSync } from 'node:fs';
import { Tokenizer } from '../../../export/browser/lm2/tokenizer.js';
import { Wording } from '../../../export/browser/lm2/wording.js';

const folder = process.argv[2];
const read = (name) => JSON.parse(readFileSync(`${folder}/${name}`, 'utf8'));
const web = read('web.json');
const tokenizer = new Tokenizer(read('tokenizer.json'), web.text);
for (const [system, message] of JSON.parse(readFileSync(0, 'utf8'))) {
  try {
    const words = new Wording(tokenizer, web.wording, system, 1e6, 1e6);
    console.log(JSON.stringify([words.head(), words.turn(message, true), words.turn(message, false), words.closing()]));
  } catch (error) {
    console.log(JSON.stringify(error.name));
  }
}
