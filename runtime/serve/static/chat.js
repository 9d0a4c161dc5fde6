// The conversation: messages on the page, and one answer as it comes. Knows the log, not the server's list of sessions.

import { events, request } from "./api.js";

const log = document.getElementById("log");

function element(name, text, kind) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

/** One message; its text goes into the returned paragraph. */
function add(role, text, turn) {
  const box = element("article", undefined, role);
  box.tabIndex = -1;
  if (turn && role === "user") box.id = `turn-${turn}`;
  const who = role === "user" ? "You" : "Answer";
  box.append(element("h3", turn ? `${who}, turn ${turn}` : who), element("p", text));
  log.append(box);
  log.scrollTop = log.scrollHeight;
  return box;
}

export function show(session) {
  log.replaceChildren();
  session.transcript.forEach((message, i) => add(message.role, message.content, session.transcript_turns[i]));
  if (!session.transcript.length) {
    log.append(element("p", "Tell it something, and ask for it later: what leaves the window stays in a memory of constant size.", "dim"));
  }
}

/** Under an answer: which turns it was recalled from, each a way there. */
export function cite(box, turns) {
  if (!turns.length || !box) return;
  const line = element("p", "answered from what was said in ", "cited");
  turns.forEach((turn, i) => {
    const link = element("button", `turn ${turn}`, "link");
    link.type = "button";
    link.addEventListener("click", () => {
      const there = document.getElementById(`turn-${turn}`);
      there?.scrollIntoView({ block: "nearest" });
      there?.focus();
    });
    line.append(i ? ", " : "", link);
  });
  box.append(line);
  log.scrollTop = log.scrollHeight;
}

export const lastAnswer = () => [...log.querySelectorAll("article.assistant")].pop();

/** Ask in a session, the answer as it comes. Returns its text; throws Failed, or the AbortError of a stop. */
export async function ask(id, message, turn, signal) {
  log.querySelector(":scope > .dim")?.remove();
  const mine = add("user", message, turn);
  const box = add("assistant", "", turn), text = box.querySelector("p");
  box.classList.add("waits");
  log.ariaBusy = "true"; // read out when it is whole, not token by token
  try {
    const answer = await request("POST", "/v1/chat/completions", {
      body: { messages: [{ role: "user", content: message }], stream: true }, headers: { "x-session-id": id }, signal,
    });
    for await (const event of events(answer)) {
      const piece = event.choices[0]?.delta?.content;
      if (!piece) continue;
      const below = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
      text.append(piece);
      if (below) log.scrollTop = log.scrollHeight;
    }
    return { text: text.textContent, recalled: (answer.headers.get("x-lm2-recalled") ?? "").split(", ").filter(Boolean).map(Number) };
  } catch (error) {
    if (!text.textContent && error.name !== "AbortError") {
      mine.remove();
      box.remove();
    }
    throw error;
  } finally {
    box.classList.remove("waits");
    log.ariaBusy = "false";
  }
}
