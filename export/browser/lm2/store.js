// Session files in the browser's IndexedDB: by name, each a whole .lm2s file. Knows bytes and names; no session.

import { SessionLockedError, SessionMissingError } from './errors.js';

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

  /**
   * Write `bytes` under `key`, and `about` (a small object) beside them, on the disk when the promise is kept; returns its revision. revision: the one that
   * this conversation was read or written as, 0 for a new one. Throws SessionLockedError where another tab has written or removed it since.
   */
  async put(key, bytes, about = {}, revision = 0) {
    const writing = this.database.transaction('sessions', 'readwrite', { durability: 'strict' });
    const sessions = writing.objectStore('sessions');
    const done = new Promise((resolve, reject) => {
      writing.oncomplete = resolve;
      writing.onabort = () => reject(writing.error ?? new DOMException('it was not written', 'AbortError'));
    });
    const have = (await settled(sessions.get(key)))?.revision ?? 0;
    if (have !== revision) {
      writing.abort();
      await done.catch(() => {});
      throw new SessionLockedError(`another tab has ${have ? 'gone on with' : 'deleted'} this conversation: download what is here, and open it again`);
    }
    sessions.put({ bytes, about, revision: revision + 1 }, key);
    await done;
    return revision + 1;
  }

  /** {bytes, revision} under `key`. Throws SessionMissingError. */
  async get(key) {
    const found = await settled(this.#sessions().get(key));
    if (!found) throw new SessionMissingError(`there is no session ${key} in this browser: it was deleted`);
    return { bytes: found.bytes, revision: found.revision };
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
