// Text to token ids and back: byte-level BPE as a tokenizer.json says, the same ids as lm2's Python. What it does not understand it refuses by name.
// Knows no model and no template.

import { ModelError, PromptError, plain } from './errors.js';

// GPT-2's pattern; \s and \S are what Unicode calls white space, as in the library that lm2 encodes with.
const WORDS = /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+/gu;
const CACHED = 20000; // words whose ids are kept

/** GPT-2's stand-ins: the character of each byte. */
const CHARACTERS = (() => {
  const out = [];
  let next = 0x100;
  for (let b = 0; b < 256; b++) {
    const shown = (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b !== 0xad);
    out.push(String.fromCharCode(shown ? b : next++));
  }
  return out;
})();
const BYTES = new Map(CHARACTERS.map((c, b) => [c, b]));

/** A tokenizer. spec: a tokenizer.json, parsed. text: the `text` block of web.json: added tokens, control ids, ids that begin a text. */
export class Tokenizer {
  constructor(spec, text) {
    const model = spec.model ?? {};
    const refuse = (what) => {
      throw new ModelError(`tokenizer.json: ${what} is not supported in the browser: run this model with lm2 in Python`);
    };
    if (model.type !== 'BPE') refuse(`a model of type ${plain(model.type)}`);
    for (const name of ['dropout', 'unk_token', 'continuing_subword_prefix', 'end_of_word_suffix']) if (model[name]) refuse(`${name} ${plain(model[name])}`);
    for (const name of ['fuse_unk', 'byte_fallback']) if (model[name]) refuse(name);
    if (spec.normalizer !== null && spec.normalizer !== undefined) refuse(`a normalizer (${plain(JSON.stringify(spec.normalizer))})`);
    this.steps = splitters(spec.pre_tokenizer, refuse);
    this.strip = stripping(spec.decoder, refuse);
    this.whole = model.ignore_merges === true;
    this.vocabulary = new Map(Object.entries(model.vocab));
    this.size = text.size;
    this.ranks = new Map();
    model.merges.forEach((merge, rank) => {
      const [a, b] = Array.isArray(merge) ? merge : merge.split(' ');
      const made = this.vocabulary.get(a + b);
      if (made === undefined || !this.vocabulary.has(a) || !this.vocabulary.has(b)) refuse(`a merge of ${plain(a)} and ${plain(b)} outside the vocabulary`);
      this.ranks.set(this.vocabulary.get(a) * this.size + this.vocabulary.get(b), [rank, made]);
    });
    this.names = new Map([...this.vocabulary].map(([name, id]) => [id, name]));
    for (const token of text.added) {
      for (const flag of ['single_word', 'lstrip', 'rstrip']) if (token[flag]) refuse(`added token ${plain(token.content)} with ${flag}`);
      this.names.set(token.id, token.content);
    }
    this.added = new Map(text.added.map((token) => [token.id, token]));
    this.special = new Set(text.added.filter((token) => token.special).map((token) => token.id));
    this.control = new Set(text.control);
    this.begin = text.begin;
    const [first, last] = [text.added.filter((t) => !t.normalized), text.added.filter((t) => t.normalized)];
    this.finders = [first, last].filter((tokens) => tokens.length).map((tokens) => [finder(tokens.map((t) => t.content)), new Map(tokens.map((t) => [t.content, t.id]))]);
    this.spelled = finder(text.control.map((id) => this.added.get(id)?.content ?? this.decode([id])));
    this.cache = new Map();
  }

  /** Ids of a text. Control tokens spelled out in it become their ids, unless `asText`: then none does. Throws PromptError for half a surrogate pair. */
  encode(text, asText = false) {
    const half = text.search(/\p{Surrogate}/u);
    if (half >= 0) throw new PromptError(`the text has half of a surrogate pair at place ${half}: remove it`);
    const ids = this.#encode(text, asText);
    if (!asText || !ids.some((i) => this.control.has(i))) return ids;
    // The model's own vocabulary has one of them too: it cannot be made of the halves of its text.
    const out = [];
    let begin = 0;
    for (const found of text.matchAll(this.spelled)) {
      const cut = found.index + String.fromCodePoint(found[0].codePointAt(0)).length;
      out.push(...this.#encode(text.slice(begin, cut), true));
      begin = cut;
    }
    out.push(...this.#encode(text.slice(begin), true));
    const wrong = out.find((i) => this.control.has(i));
    if (wrong !== undefined) throw new PromptError(`the text means the control token ${plain(this.names.get(wrong))}, however it is spelled: leave that part out`);
    return out;
  }

  /** The text of ids. */
  decode(ids, skipSpecial = false) {
    const words = new Detokenizer(this, skipSpecial);
    return ids.map((i) => words.add(i)).join('') + words.flush();
  }

  /** Bytes of a token, or null if it adds nothing. */
  piece(id, skipSpecial) {
    const name = this.names.get(id);
    if (name === undefined || (skipSpecial && this.special.has(id))) return null;
    const bytes = this.added.has(id) ? [undefined] : Array.from(name, (c) => BYTES.get(c));
    return bytes.includes(undefined) ? new TextEncoder().encode(name) : Uint8Array.from(bytes);
  }

  #encode(text, asText) {
    let parts = [text];
    for (const [pattern, ids] of this.finders) {
      parts = parts.flatMap((part) => (typeof part === 'string' ? this.#found(part, pattern, ids, asText) : [part]));
    }
    const out = [];
    for (const part of parts) {
      if (typeof part === 'number') out.push(part);
      else {
        let pieces = [part];
        for (const step of this.steps) pieces = pieces.flatMap(step);
        for (const piece of pieces) for (const id of this.#word(piece)) out.push(id);
      }
    }
    return out;
  }

  #found(text, pattern, ids, asText) {
    const out = [];
    let begin = 0;
    for (const match of text.matchAll(pattern)) {
      const id = ids.get(match[0]);
      if (asText && (this.special.has(id) || this.control.has(id))) continue;
      if (match.index > begin) out.push(text.slice(begin, match.index));
      out.push(id);
      begin = match.index + match[0].length;
    }
    if (begin < text.length) out.push(text.slice(begin));
    return out;
  }

  #word(piece) {
    let ids = this.cache.get(piece);
    if (ids === undefined) {
      const name = Array.from(new TextEncoder().encode(piece), (b) => CHARACTERS[b]);
      const whole = this.whole ? this.vocabulary.get(name.join('')) : undefined;
      ids = whole !== undefined ? [whole] : this.#merged(name.map((c) => this.vocabulary.get(c)).filter((id) => id !== undefined)); // a byte without a token is left out
      if (this.cache.size >= CACHED) this.cache.clear();
      this.cache.set(piece, ids);
    }
    return ids;
  }

  /** Merge neighbours, the lowest rank first and of several the leftmost, until none is left. */
  #merged(ids) {
    const next = ids.map((_, i) => i + 1);
    const before = ids.map((_, i) => i - 1);
    const heap = [];
    const offer = (i) => {
      if (i < 0 || next[i] >= ids.length) return;
      const found = this.ranks.get(ids[i] * this.size + ids[next[i]]);
      if (found) push(heap, [found[0], i, ids[i], ids[next[i]], found[1]]);
    };
    ids = [...ids];
    for (let i = 0; i + 1 < ids.length; i++) offer(i);
    while (heap.length) {
      const [, i, a, b, made] = pop(heap);
      const j = next[i];
      if (ids[i] !== a || j >= ids.length || ids[j] !== b) continue; // one of them was merged since
      ids[i] = made;
      ids[j] = -1;
      next[i] = next[j];
      if (next[j] < ids.length) before[next[j]] = i;
      offer(before[i]);
      offer(i);
    }
    return ids.filter((id) => id >= 0);
  }
}

/** Tokens in, text out as soon as it is certain: never half a character. What `add` and `flush` return, joined, is the text. */
export class Detokenizer {
  constructor(tokenizer, skipSpecial = false) {
    this.tokenizer = tokenizer;
    this.skip = skipSpecial;
    [this.drop, this.left] = tokenizer.strip;
    this.utf8 = new TextDecoder('utf-8', { ignoreBOM: true });
  }

  add(id) {
    const piece = this.tokenizer.piece(id, this.skip);
    return piece === null ? '' : this.#stripped(this.utf8.decode(piece, { stream: true }));
  }

  flush() {
    return this.#stripped(this.utf8.decode());
  }

  #stripped(text) {
    for (; this.left && text; this.left--) {
      if (!text.startsWith(this.drop)) {
        this.left = 0;
        break;
      }
      text = text.slice(this.drop.length);
    }
    return text;
  }
}

function splitters(spec, refuse) {
  const steps = spec?.type === 'Sequence' ? spec.pretokenizers : [spec];
  const kinds = steps.map((step) => step?.type);
  if (kinds.at(-1) !== 'ByteLevel' || kinds.slice(0, -1).some((kind) => kind !== 'Digits')) refuse(`a pre_tokenizer of ${plain(kinds.join(', '))}`);
  const out = steps.slice(0, -1).map((step) => (text) => text.match(step.individual_digits ? /\p{N}|\P{N}+/gu : /\p{N}+|\P{N}+/gu) ?? []);
  const level = steps.at(-1);
  if (level.use_regex === false) refuse('a ByteLevel pre_tokenizer without its pattern');
  out.push((text) => (level.add_prefix_space && !text.startsWith(' ') ? ` ${text}` : text).match(WORDS) ?? []);
  return out;
}

function stripping(spec, refuse) {
  const steps = spec?.type === 'Sequence' ? spec.decoders : [spec];
  const kinds = steps.map((step) => step?.type).join(', ');
  if (kinds === 'ByteLevel') return ['', 0];
  if (kinds === 'ByteLevel, Strip' && steps[1].stop === 0) return [steps[1].content, steps[1].start];
  return refuse(`a decoder of ${plain(kinds)}`);
}

/** Finds the first of `texts` in a text, of several at one place the longest. */
function finder(texts) {
  const sorted = [...texts].filter((t) => t).sort((a, b) => b.length - a.length);
  return new RegExp(sorted.map((t) => t.replace(/[\\^$.*+?()[\]{}|/-]/g, '\\$&')).join('|') || '(?!)', 'gu');
}

const less = (a, b) => a[0] < b[0] || (a[0] === b[0] && a[1] < b[1]);

function push(heap, item) {
  let i = heap.push(item) - 1;
  while (i) {
    const up = (i - 1) >> 1;
    if (!less(heap[i], heap[up])) break;
    [heap[i], heap[up]] = [heap[up], heap[i]];
    i = up;
  }
}

function pop(heap) {
  const top = heap[0];
  const last = heap.pop();
  if (heap.length) {
    heap[0] = last;
    for (let i = 0; ; ) {
      let least = i;
      for (const child of [2 * i + 1, 2 * i + 2]) if (child < heap.length && less(heap[child], heap[least])) least = child;
      if (least === i) break;
      [heap[i], heap[least]] = [heap[least], heap[i]];
      i = least;
    }
  }
  return top;
}
