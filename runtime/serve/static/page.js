// The page: which session is open, its buttons, what is said when something fails. The others show; this one decides.

import { Failed, json, request } from "./api.js";
import { ask, cite, lastAnswer, show } from "./chat.js";
import { showAnswered, showMemory } from "./memory.js";

const at = (id) => document.getElementById(id);
const TITLES = "lm2-titles", LOOKED_UP = 24;
const titles = JSON.parse(sessionStorage.getItem(TITLES) ?? "{}"); // of this tab
let open = null; // the session that is shown
let running = null; // what stops the answer under way

function say(text) {
  at("status").textContent = text;
}

function fail(error) {
  if (error.name === "AbortError") return;
  if (!(error instanceof Failed)) console.error(error);
  at("error").textContent = error instanceof Failed ? error.message : `the page failed: ${error.message}`;
  at("error").hidden = false;
  say("");
}

const answering = () => running !== null;

function buttons() {
  for (const id of ["fork", "download", "read", "delete"]) at(id).disabled = !open || answering();
  at("undo").disabled = !open || answering() || !open.undo;
  at("stop").disabled = !answering();
  at("send").disabled = answering();
  for (const button of document.querySelectorAll("#held button, #sessions button, #new")) button.disabled = answering();
  at("upload").disabled = answering();
}

/** Do something with the session; what fails is said in words. Returns whether it went well. */
async function attempt(work) {
  at("error").hidden = true;
  try {
    await work();
    return true;
  } catch (error) {
    fail(error);
    return false;
  } finally {
    buttons();
  }
}

const titleOf = (id) => titles[id] || `Session ${id.slice(5, 11)}`;

function remember(session) {
  const first = session.transcript.find((message) => message.role === "user")?.content;
  titles[session.id] = first ? first.replace(/\s+/g, " ").slice(0, 60) : `New session ${session.id.slice(5, 9)}`;
  sessionStorage.setItem(TITLES, JSON.stringify(titles));
}

function link(id) {
  const item = document.createElement("li"), button = document.createElement("button");
  button.type = "button";
  button.dataset.id = id;
  button.textContent = titleOf(id);
  if (open?.id === id) button.ariaCurrent = "true";
  button.addEventListener("click", () => attempt(() => go(id)));
  item.append(button);
  return item;
}

async function list() {
  const { data } = await json("GET", "/v1/sessions");
  const ids = data.map((session) => session.id);
  at("sessions").replaceChildren(...ids.map(link));
  buttons();
  for (const id of ids.filter((id) => !titles[id]).slice(0, LOOKED_UP)) {
    try {
      remember(await json("GET", `/v1/sessions/${id}`));
    } catch {
      continue; // it was deleted meanwhile, or its file cannot be read: opening it will say so
    }
    const button = at("sessions").querySelector(`[data-id="${id}"]`);
    if (button) button.textContent = titleOf(id);
  }
}

/** Show a session as the server has it; `list` keeps its place in the list. */
async function shown(session) {
  open = session;
  remember(session);
  history.replaceState(null, "", `#${session.id}`);
  show(session);
  buttons();
  await Promise.all([showMemory(session.id, session, forget), showAnswered(session.id), list()]);
}

async function go(id) {
  await shown(await json("GET", `/v1/sessions/${id}`));
  say(`${titleOf(id)} is open`);
  at("message").focus();
}

async function created() {
  const system = at("system").value.trim();
  return json("POST", "/v1/sessions", { body: system ? { system } : {} });
}

async function send() {
  const message = at("message").value;
  if (!message.trim() || answering()) return;
  const stopping = new AbortController();
  running = stopping;
  buttons();
  say("answering");
  let recalled = [], stopped = false;
  const went = await attempt(async () => {
    if (!open) open = await created();
    at("message").value = "";
    try {
      ({ recalled } = await ask(open.id, message, open.turns + 1, stopping.signal));
    } catch (error) {
      stopped = error.name === "AbortError";
      if (!stopped) at("message").value = message;
      if (!stopped) throw error;
    }
  });
  running = null;
  if (open) {
    const said = at("error").hidden ? "" : at("error").textContent;
    await attempt(async () => shown(await json("GET", `/v1/sessions/${open.id}`)));
    if (said) fail(new Failed(said, 0));
    cite(lastAnswer(), recalled);
  }
  if (went) say(stopped ? "stopped; what was said until then is kept" : "answered");
  buttons();
}

async function forget(turn) {
  await attempt(async () => {
    const session = await json("POST", `/v1/sessions/${open.id}/forget`, { body: { turn } });
    await shown(session);
    say(`turn ${turn} is forgotten: ${session.forgotten.rows} rows, ${session.forgotten.tokens} tokens of the window`);
    at("memory-title").focus();
  });
}

async function download() {
  const answer = await request("GET", `/v1/sessions/${open.id}/file`);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await answer.blob());
  link.download = `${open.id}.lm2s`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  say("the session file is in your downloads");
}

async function upload(file) {
  const session = await json("POST", "/v1/sessions", { body: {} });
  try {
    await shown(await json("PUT", `/v1/sessions/${session.id}/file`, { raw: file }));
    say(`${file.name} is open`);
  } catch (error) {
    await json("DELETE", `/v1/sessions/${session.id}`);
    throw error;
  }
}

async function read(file) {
  say(`reading ${file.name}`);
  const session = await json("POST", `/v1/sessions/${open.id}/read`, { body: { text: await file.text(), title: file.name.slice(0, 200) } });
  await shown(session);
  say(`${file.name} was read: ${session.read_tokens} tokens`);
}

let asked = null; // a first press of Delete, for some seconds

async function remove() {
  if (!asked) {
    at("delete").textContent = "Delete for good?";
    say("press Delete again to delete this session for good");
    asked = setTimeout(settle, 6000);
    return;
  }
  settle();
  await json("DELETE", `/v1/sessions/${open.id}`);
  delete titles[open.id];
  await fresh();
  say("the session is deleted");
}

function settle() {
  clearTimeout(asked);
  asked = null;
  at("delete").textContent = "Delete";
}

async function fresh() {
  open = null;
  history.replaceState(null, "", location.pathname);
  show({ transcript: [], transcript_turns: [] });
  at("numbers").textContent = "nothing was said yet";
  at("held").replaceChildren();
  at("answered").replaceChildren();
  await list();
  at("message").focus();
}

function wire() {
  const on = (id, event, work) => at(id).addEventListener(event, (e) => attempt(() => work(e)));
  at("form").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  at("message").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  });
  const stop = () => running?.abort();
  at("stop").addEventListener("click", stop);
  document.addEventListener("keydown", (event) => event.key === "Escape" && !at("key-dialog").open && stop());
  on("new", "click", fresh);
  on("undo", "click", async () => {
    await shown(await json("POST", `/v1/sessions/${open.id}/undo`));
    say("the last turn is taken back");
  });
  on("fork", "click", async () => {
    await shown(await json("POST", `/v1/sessions/${open.id}/fork`));
    say("this is a second session that goes on from there");
  });
  on("download", "click", download);
  on("delete", "click", remove);
  at("read").addEventListener("click", () => at("text").click());
  for (const [id, work] of [["upload", upload], ["text", read]]) {
    on(id, "change", async ({ target }) => {
      const [file] = target.files;
      if (!file) return;
      try {
        await work(file);
      } finally {
        target.value = "";
      }
    });
  }
  on("answered-panel", "toggle", () => open && !answering() && showAnswered(open.id));
}

async function ready() {
  for (;;) {
    try {
      const answer = await fetch("/health");
      if (answer.ok) return;
      at("model").textContent = "the model is being loaded";
    } catch {
      at("model").textContent = "the server does not answer";
    }
    await new Promise((later) => setTimeout(later, 1000));
  }
}

async function begin() {
  wire();
  if (matchMedia("(max-width: 60rem)").matches) at("sessions-panel").open = at("memory-panel").open = false;
  show({ transcript: [], transcript_turns: [] });
  await ready();
  await attempt(async () => {
    const props = await json("GET", "/props");
    at("model").textContent = `${props.model} on ${props.backend}, ${props.device}`;
    document.title = `${props.model} - lm2`;
    const id = location.hash.slice(1);
    if (/^sess_[0-9a-f]{32}$/.test(id)) await go(id);
    else await list();
  });
  at("message").focus();
}

begin();
