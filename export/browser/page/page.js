// The page: which model and conversation are open, its buttons, what is said when something fails. The worker computes and keeps.

import { Failed, Worked } from './rpc.js';

const at = (id) => document.getElementById(id);
const MAX_TOKENS = 512;
const SETTINGS = ['temperature', 'top_k', 'top_p', 'min_p'];
const NOTES = 6;
let [models, model, open, running, sure] = [[], null, null, false, false];
let writes = null; // where the answer under way is written
const worker = new Worked(new URL('worker.js', import.meta.url), heard);

function say(text) {
  at('status').textContent = text;
}

function heard({ piece, note, file, bytes, of }) {
  if (piece !== undefined && writes) {
    writes.textContent += piece;
    at('log').scrollTop = at('log').scrollHeight;
  }
  if (note) {
    const item = document.createElement('li');
    item.textContent = note;
    at('notes').prepend(item);
    while (at('notes').children.length > NOTES) at('notes').lastChild.remove();
  }
  if (file) say(bytes < of ? `${file}: ${(bytes / 1e6).toFixed(1)} of ${(of / 1e6).toFixed(1)} MB` : `${file} is here, the model is being opened`);
}

function buttons() {
  const idle = Boolean(model) && !running;
  for (const id of ['new', 'upload', 'send']) at(id).disabled = !idle;
  for (const id of ['download', 'delete']) at(id).disabled = !idle || !open;
  at('undo').disabled = !idle || !open?.undo;
  at('stop').disabled = !running || !writes;
  for (const element of document.querySelectorAll('#sessions button, header select')) element.disabled = running;
}

function fail(text) {
  at('error').textContent = text;
  at('error').hidden = false;
}

/** Do something; what fails is said in words. Returns whether it went well. */
async function attempt(work) {
  at('error').hidden = true;
  running = true;
  buttons();
  try {
    await work();
    return true;
  } catch (error) {
    fail(error instanceof Failed && error.known ? error.message : `the page failed: ${error.message}`);
    say('');
    return false;
  } finally {
    running = false;
    buttons();
  }
}

function article(role, text) {
  const made = document.createElement('article');
  const title = document.createElement('h3');
  const said = document.createElement('p');
  made.className = role;
  title.textContent = role === 'user' ? 'You' : 'Answer';
  said.textContent = text;
  made.append(title, said);
  at('log').append(made);
  at('log').scrollTop = at('log').scrollHeight;
  return said;
}

function show(session) {
  open = session;
  at('log').replaceChildren();
  for (const { role, content } of session?.transcript ?? []) article(role, content);
  numbers();
}

function numbers() {
  const n = open?.numbers;
  const speed = open?.reply?.tokens.length ? `, ${((1000 * open.reply.tokens.length) / open.reply.decodeMs).toFixed(1)} tokens/s` : '';
  at('numbers').textContent = n?.seen ? `${n.seen} tokens in all, the window has ${n.window} of ${n.size} (${n.carried} carried over)${speed}` : 'nothing was said yet';
  at('part').value = n ? n.window / n.size : 0;
}

async function list() {
  const items = (await worker.ask('list')).map(({ key, about }) => {
    const item = document.createElement('li');
    const button = document.createElement('button');
    button.type = 'button';
    button.textContent = about.title;
    if (open?.key === key) button.ariaCurrent = 'true';
    button.addEventListener('click', () => attempt(() => go(key)));
    item.append(button);
    return item;
  });
  at('sessions').replaceChildren(...items);
}

async function shown(session) {
  show(session);
  if (session.unsaved) fail(session.unsaved);
  location.replace(`#${at('model').value}/${session.key}`);
  await list();
  at('message').focus();
}

async function go(key) {
  await shown(await worker.ask('go', key));
  say('the conversation goes on');
}

function options() {
  const sampling = Object.fromEntries(SETTINGS.filter((name) => at(name).value !== '').map((name) => [name, Number(at(name).value)]));
  if (!/^[0-9]*$/.test(at('seed').value)) throw new Failed({ name: 'PromptError', message: `seed ${at('seed').value} must be a whole number` });
  return { system: at('system').value.trim() || null, sampling, window: at('window').value ? Number(at('window').value) : null, seed: at('seed').value ? BigInt(at('seed').value) : null };
}

async function load(wanted) {
  model = null;
  show(null);
  at('sessions').replaceChildren();
  at('notes').replaceChildren();
  say('the model is being loaded');
  model = await worker.ask('open', at('model').value, at('device').value);
  for (const name of SETTINGS) at(name).value = model.sampling[name];
  at('window').value = model.window;
  at('window').max = model.positions;
  at('system').disabled = !model.system;
  at('system').value = '';
  await list();
  if (wanted) await go(wanted);
  say(`${model.name} is ready (${model.seconds.toFixed(1)} s)`);
  at('message').focus();
}

async function send() {
  const message = at('message').value;
  if (!message.trim() || running || !model) return;
  await attempt(async () => {
    if (!open) show(await worker.ask('fresh', options()));
    at('message').value = '';
    article('user', message);
    writes = article('assistant', '');
    buttons();
    say('answering');
    try {
      const after = await worker.ask('say', message, MAX_TOKENS);
      await shown(after);
      say(after.reply.finish === 'interrupted' ? 'stopped: what was said is kept' : 'answered');
    } catch (error) {
      writes.parentElement.previousElementSibling.remove();
      writes.parentElement.remove();
      at('message').value = message;
      throw error;
    } finally {
      writes = null;
    }
  });
}

async function download() {
  const bytes = await worker.ask('download');
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([bytes], { type: 'application/octet-stream' }));
  link.download = `${open.key}.lm2s`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  say('the session file is among your downloads');
}

async function remove() {
  if (!sure) {
    sure = true;
    say('press Delete again to delete the conversation');
    return;
  }
  await worker.ask('remove');
  show(null);
  location.replace(`#${at('model').value}`);
  await list();
  say('the conversation is deleted');
}

function listen() {
  at('form').addEventListener('submit', (event) => {
    event.preventDefault();
    send();
  });
  at('message').addEventListener('keydown', (event) => {
    if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  });
  document.addEventListener('keydown', (event) => {
    if (event.key === 'Escape' && writes) worker.stop();
  });
  document.addEventListener('click', (event) => {
    if (event.target.id !== 'delete') sure = false;
  });
  at('stop').addEventListener('click', () => worker.stop());
  at('new').addEventListener('click', () => {
    show(null);
    location.replace(`#${at('model').value}`);
    attempt(list);
    say('a new conversation');
    at('message').focus();
  });
  at('undo').addEventListener('click', () => attempt(async () => {
    await shown(await worker.ask('undo'));
    say('the last turn is taken back');
  }));
  at('download').addEventListener('click', () => attempt(download));
  at('delete').addEventListener('click', () => attempt(remove));
  at('upload').addEventListener('change', () => attempt(async () => {
    const [file] = at('upload').files;
    if (!file) return;
    const bytes = new Uint8Array(await file.arrayBuffer());
    at('upload').value = '';
    await shown(await worker.ask('upload', bytes, file.name));
    say(`${file.name} is open`);
  }));
  for (const id of ['model', 'device']) at(id).addEventListener('change', () => attempt(() => load()));
}

listen();
await attempt(async () => {
  const answer = await fetch('models.json');
  if (!answer.ok) throw new Failed({ name: 'ModelError', message: `models.json cannot be had (${answer.status}): serve the whole folder` });
  models = await answer.json();
  for (const { name, folder, bytes } of models) at('model').append(new Option(`${name} (${(bytes / 1e6).toFixed(0)} MB)`, folder));
  const [folder, key] = location.hash.slice(1).split('/');
  if (models.some((m) => m.folder === folder)) at('model').value = folder;
  await load(key);
});
