// JSON that every reader gives back as it is: no name twice in one object, whole numbers that a browser counts exactly, a depth that ends.
// Knows text alone.

const DEPTH = 32;
const SPACE = /[ \t\n\r]*/y;
const TEXT = /"(?:[^"\\\u0000-\u001f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"/y;
const WORD = /-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null/y;

/** The value of a JSON text. Throws Error with what is wrong. */
export function parse(text) {
  let at = 0;
  const take = (pattern) => {
    pattern.lastIndex = at;
    const found = pattern.exec(text);
    if (found) at = pattern.lastIndex;
    return found?.[0];
  };
  const fail = (what) => {
    throw new Error(`${what} at place ${at}`);
  };
  const string = () => {
    const found = take(TEXT) ?? fail('expected a text');
    const value = JSON.parse(found);
    if (/\p{Surrogate}/u.test(value)) fail('half of a surrogate pair before');
    return value;
  };
  const list = (open, close, one) => {
    at += 1;
    take(SPACE);
    if (text[at] === close) {
      at += 1;
      return;
    }
    for (;;) {
      one();
      take(SPACE);
      const next = text[at++];
      if (next === close) return;
      if (next !== ',') fail(`expected , or ${close}`);
    }
  };
  const value = (depth) => {
    if (depth > DEPTH) fail(`more than ${DEPTH} levels deep`);
    take(SPACE);
    if (text[at] === '{') {
      const out = {};
      list('{', '}', () => {
        take(SPACE);
        const name = string();
        if (Object.hasOwn(out, name)) fail(`the name ${JSON.stringify(name)} appears twice in one object`);
        take(SPACE);
        if (text[at++] !== ':') fail('expected :');
        Object.defineProperty(out, name, { value: value(depth + 1), writable: true, enumerable: true, configurable: true });
      });
      return out;
    }
    if (text[at] === '[') {
      const out = [];
      list('[', ']', () => out.push(value(depth + 1)));
      return out;
    }
    if (text[at] === '"') return string();
    const word = take(WORD) ?? fail('expected a value');
    const made = JSON.parse(word);
    if (typeof made === 'number' && !Number.isFinite(made)) fail(`number ${word} is not finite`);
    if (/^-?\d+$/.test(word) && !Number.isSafeInteger(made)) fail(`whole number ${word} is beyond what a browser counts exactly`);
    return made;
  };
  const made = value(0);
  take(SPACE);
  if (at !== text.length) fail('text after the end');
  return made;
}
