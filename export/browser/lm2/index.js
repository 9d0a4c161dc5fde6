// LM2 models in a browser with onnxruntime-web: what is exported. docs/web.md says how it is used.

export * from './errors.js';
export { load } from './model.js';
export { Session } from './session.js';
export { Store } from './store.js';
export { readMeta, readSession, writeSession } from './statefile.js';
export { sampling } from './sampling.js';
