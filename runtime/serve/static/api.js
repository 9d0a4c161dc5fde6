// What the page asks of the server: requests with the key, errors in words, answers as they come. Knows no element of the page but the key's dialog.

const KEY = "lm2-key";

export class Failed extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

let asking = null; // one dialog, however many requests wait for it

function askForKey(said) {
  asking ??= new Promise((given) => {
    const dialog = document.getElementById("key-dialog"), field = document.getElementById("key");
    document.getElementById("key-said").textContent = said;
    field.value = "";
    dialog.addEventListener("close", () => {
      asking = null;
      if (field.value) sessionStorage.setItem(KEY, field.value.trim());
      given(Boolean(field.value));
      field.value = "";
    }, { once: true });
    dialog.showModal();
    field.focus();
  });
  return asking;
}

async function words(answer) {
  try {
    return (await answer.json()).error.message;
  } catch {
    return `the server answered ${answer.status} ${answer.statusText}`.trim();
  }
}

/** A request; asks for a key where the server wants one. Throws Failed with the server's own line. */
export async function request(method, path, { body, raw, headers = {}, signal } = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEY), sent = { ...headers };
    if (key) sent.authorization = `Bearer ${key}`;
    if (body !== undefined) sent["content-type"] = "application/json";
    let answer;
    try {
      answer = await fetch(path, { method, headers: sent, body: raw ?? (body === undefined ? undefined : JSON.stringify(body)), signal });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Failed("the server does not answer: is it still running?", 0);
    }
    if (answer.ok) return answer;
    const said = await words(answer);
    if (answer.status === 401) {
      sessionStorage.removeItem(KEY);
      if (await askForKey(key ? said : "")) continue;
    }
    const wait = answer.headers.get("retry-after");
    throw new Failed(answer.status === 429 && wait ? `${said} (in ${wait} s)` : said, answer.status);
  }
}

export async function json(method, path, more) {
  return (await request(method, path, more)).json();
}

/** The objects of a stream of events, until [DONE]. Throws Failed for an error among them, or where the stream breaks off. */
export async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Failed("the answer broke off: the connection was lost", 0);
    text += value;
    const whole = text.split("\n\n");
    text = whole.pop();
    for (const event of whole) {
      const data = event.split("\n").find((line) => line.startsWith("data: "))?.slice(6);
      if (data === undefined) continue;
      if (data === "[DONE]") return;
      const found = JSON.parse(data);
      if (found.error) throw new Failed(found.error.message, 0);
      yield found;
    }
  }
}
