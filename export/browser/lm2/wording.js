// What is said as the tokens of one model: turns, and what a window begins with. The template's texts come from web.json, where `lm2 export --web` put
// what the model's own template makes. Knows a tokenizer and those texts, no cursor.

import { PromptError, ModelError } from './errors.js';

const MARKS = ['\u2060mark0\u2060', '\u2060mark1\u2060'];
const BLANKS = '\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000'; // what Python strips
const STRIP = new RegExp(`^[${BLANKS}]+|[${BLANKS}]+$`, 'g');

/** Tokens under one system prompt (a text, or null), for windows of `size`. Throws PromptError for one that the template, or the window, does not take. */
export class Wording {
  constructor(tokenizer, texts, system, size, most) {
    this.tokenizer = tokenizer;
    this.texts = texts;
    this.system = system || null;
    this.parts = this.system ? texts.under : texts.bare;
    if (!this.parts) throw new PromptError(`this model's template takes no system prompt (${texts.refusal}): leave it out`);
    this.size = size;
    this.most = most;
  }

  /** A user's turn and the opening of the answer. Whatever the message spells, it cannot end the turn or begin another's. */
  turn(content, first) {
    const said = { user: this.texts.trims.user ? content.replace(STRIP, '') : content };
    const parts = (first ? null : this.parts.later) ?? this.parts.first;
    return this.#rendered(parts, said);
  }

  /** What follows an answer. */
  closing() {
    return this.tokenizer.encode(this.parts.closing);
  }

  /** What every window begins with. Throws PromptError if it leaves less than half of one. */
  head() {
    if (!this.ids) {
      const ids = this.#rendered(this.parts.head, {});
      if (ids.length > this.size / 2) {
        const remedy = 2 * ids.length <= this.most ? `take a window of at least ${2 * ids.length}, or shorten it` : 'shorten it';
        throw new PromptError(`the system prompt has ${ids.length} tokens, more than half of the window of ${this.size}: ${remedy}`);
      }
      this.ids = ids;
    }
    return this.ids;
  }

  /** Ids of parts: texts of the template, and {said: 'user' | 'system'} where a text of people stands. */
  #rendered(parts, said) {
    const t = this.tokenizer;
    if (this.system) said = { ...said, system: this.texts.trims.system ? this.system.replace(STRIP, '') : this.system };
    const filled = parts.map((part) => (typeof part === 'string' ? [part, true] : [said[part.said], false]));
    const ids = t.encode(filled.map(([text]) => text).join(''));
    if (parts.every((part) => typeof part === 'string')) return ids;
    const neutral = parts.map((part) => (typeof part === 'string' ? part : MARKS[part.said === 'user' ? 1 : 0])).join('');
    const steering = (list) => list.filter((i) => t.control.has(i)).join();
    if (steering(ids) === steering(t.encode(neutral))) return ids;
    const shown = filled.filter(([text]) => text);
    const apart = shown.flatMap(([text, own], at) => this.#part(text, own, at === 0));
    return steering(ids) === steering(apart) ? ids : apart;
  }

  /** Ids of a part; of one in the middle without the blank that some tokenizers put before a text, where a line's end keeps it away. */
  #part(text, own, first) {
    const t = this.tokenizer;
    const line = first ? [] : t.encode('\n');
    const ids = line.length ? t.encode(`\n${text}`, !own) : [];
    return line.length && line.every((id, i) => ids[i] === id) ? ids.slice(line.length) : t.encode(text, !own);
  }
}

/** Throw ModelError unless `ids` are all below `size`. */
export function checkIds(ids, size) {
  const worst = ids.find((id) => id < 0 || id >= size);
  if (worst !== undefined) throw new ModelError(`token id ${worst} is outside the model's vocabulary of ${size}: the tokenizer is not this model's`);
  return ids;
}
