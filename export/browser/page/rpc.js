// The page's end of the worker: calls as promises, events to whoever listens. Knows no element of the page.

/** What the worker could not do, in its own words. known: whether it is an error that lm2 has a name for. */
export class Failed extends Error {
  constructor({ name, message }) {
    super(message);
    this.known = /^(Model|Prompt|Logits|Session\w*)Error$/.test(name);
  }
}

export class Worked {
  constructor(url, listener) {
    this.worker = new Worker(url, { type: 'module' });
    this.waiting = new Map();
    this.last = 0;
    this.worker.onmessage = ({ data }) => {
      if (data.event) return listener(data.event);
      const [resolve, reject] = this.waiting.get(data.id);
      this.waiting.delete(data.id);
      return data.error ? reject(new Failed(data.error)) : resolve(data.value);
    };
    this.worker.onerror = (event) => {
      for (const [, reject] of this.waiting.values()) reject(new Failed({ name: 'Error', message: event.message || 'the worker could not be started' }));
      this.waiting.clear();
    };
  }

  /** Ask for `call`; its value. One after the other: answers come in the order of the calls. */
  ask(call, ...args) {
    return new Promise((resolve, reject) => {
      this.waiting.set((this.last += 1), [resolve, reject]);
      this.worker.postMessage({ id: this.last, call, args });
    });
  }

  /** End the answer under way. */
  stop() {
    this.worker.postMessage({ call: 'stop' });
  }
}
