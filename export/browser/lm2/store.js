// Session files in the browser's IndexedDB: by name, each a whole .lm2s file. Knows bytes and names; no session.

import { SessionMissingError } from './errors.js';

/** One store. `put` replaces a file whole or, where the browser refuses (no room, say), not at all. */
export class Store {
  constructor(database) {
    this.database = database;
  }

  static async open(name = 'lm2') {
    const asked = indexedDB.open(name, 1);
    asked.onupgradeneeded = () => asked.result.createObjectStore('sessions');
    return new Store(await settled(asked));
  }

  /** Write `bytes` under `key`, and `about` (a small object) beside them; in the file system when the promise is kept. */
  async put(key, bytes, about = {}) {
    const made = this.database.transaction('sessions', 'readwrite', { durability: 'strict' });
    made.objectStore('sessions').put({ bytes, about }, key);
    await new Promise((resolve, reject) => {
      made.oncomplete = resolve;
      made.onabort = made.onerror = () => reject(made.error);
    });
  }

  /** The bytes under `key`. Throws SessionMissingError. */
  async get(key) {
    const found = await settled(this.#sessions().get(key));
    if (!found) throw new SessionMissingError(`there is no session ${key} in this browser`);
    return found.bytes;
  }

  /** [{key, about, size}], of all sessions. */
  async list() {
    const sessions = this.#sessions();
    const [keys, values] = await Promise.all([settled(sessions.getAllKeys()), settled(sessions.getAll())]);
    return keys.map((key, i) => ({ key, about: values[i].about, size: values[i].bytes.length }));
  }

  async remove(key) {
    await settled(this.database.transaction('sessions', 'readwrite').objectStore('sessions').delete(key));
  }

  #sessions() {
    return this.database.transaction('sessions').objectStore('sessions');
  }
}

const settled = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
