// What the memory holds, turn by turn, and what the last answer came from. Knows the panel at the side; asks, and changes nothing by itself.

import { json } from "./api.js";

const at = (id) => document.getElementById(id);
const percent = (share) => (share > 0 && share < 0.01 ? "below 1%" : `${Math.round(100 * share)}%`);

function element(name, text, kind) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

const named = (turn) => (turn > 0 ? `turn ${turn}` : turn === 0 ? "the system prompt" : "before turns were noted");

function meter(share, label) {
  const bar = element("meter");
  bar.max = 1;
  bar.value = share;
  bar.ariaLabel = `${label}: ${percent(share)}`;
  return bar;
}

/** The panel of one session. forget(turn) is called by its buttons. */
export async function showMemory(id, session, forget) {
  const { data } = await json("GET", `/v1/sessions/${id}/held`);
  at("numbers").textContent = `${session.tokens} tokens heard, ${session.memory_tokens} of them in the memory, ` +
    `${session.window_tokens} of ${session.window} word for word in the window`;
  at("held").replaceChildren(...data.map((held) => {
    const item = element("li"), head = element("div", undefined, "row");
    const name = named(held.turn);
    head.append(element("strong", name), meter(held.share, `${name}, share of the memory`), element("span", percent(held.share)));
    if (held.turn > 0) {
      const button = element("button", "Forget", "small");
      button.type = "button";
      button.ariaLabel = `Forget ${name}`;
      button.addEventListener("click", () => forget(held.turn));
      head.append(button);
    }
    item.append(head, element("p", held.text || (held.turn ? "(no words of it)" : "what every window begins with"), "held"));
    if (held.window_tokens) item.append(element("p", held.rows ? "in the window too" : "in the window alone", "dim"));
    return item;
  }));
  if (!data.length) at("held").append(element("li", "nothing yet", "dim"));
}

/** What the last answer came from, where the panel is open. */
export async function showAnswered(id) {
  const place = at("answered");
  if (!at("answered-panel").open) return place.replaceChildren();
  place.ariaBusy = "true";
  try {
    place.replaceChildren(...answered(await json("GET", `/v1/sessions/${id}/answered`)));
  } finally {
    place.ariaBusy = "false";
  }
}

function answered(found) {
  const parts = [];
  for (const passage of found.recalled) {
    parts.push(element("p", `It was answered from what you said in turn ${passage.turn}:`), element("blockquote", passage.text));
  }
  if (found.note) return [...parts, element("p", found.note, "dim")];
  const seen = found.attention;
  if (!seen.memory_tokens) return [...parts, element("p", "Nothing was in the memory yet: all was word for word in the window.", "dim")];
  const heard = found.recalled.length ? "While the conversation heard this answer, it" : "The answer";
  parts.push(element("p", `${heard} looked at the memory's rows. Whose they are, as shares of its attention:`));
  const list = element("ul", undefined, "plain");
  for (const { turn, share } of seen.turns) {
    const item = element("li", undefined, "row"), name = named(turn);
    item.append(element("strong", name), meter(share, `${name}, share of the attention`), element("span", percent(share)));
    list.append(item);
  }
  const rest = 1 - seen.turns.reduce((sum, { share }) => sum + share, 0);
  if (rest >= 0.005) list.append(element("li", `${percent(rest)} to rows that are empty, or of which nobody noted whose they are`, "dim"));
  parts.push(list, rows(seen.rows));
  for (const layer of seen.layers) parts.push(picture(layer, seen));
  return parts;
}

function rows(read) {
  const table = element("table"), head = element("tr");
  table.append(element("caption", "Rows read most"));
  for (const name of ["row", "attention", "turn", "token"]) {
    const cell = element("th", name);
    cell.scope = "col";
    head.append(cell);
  }
  table.append(head);
  for (const row of read) {
    const line = element("tr");
    line.append(element("td", row.row), element("td", percent(row.share)), element("td", row.turn > 0 ? row.turn : "–"), element("td", row.token ? row.token.replaceAll("\n", "⏎") : "–", "token"));
    table.append(line);
  }
  return table;
}

function picture(layer, seen) {
  const figure = element("figure"), image = element("img");
  image.src = layer.picture;
  image.alt = `Attention of layer ${layer.layer} over the memory's rows while the answer was made`;
  const together = layer.rows_a_line > 1 ? `, ${layer.rows_a_line} rows a line` : "";
  figure.append(image, element("figcaption", `layer ${layer.layer}: rows down${together}, the answer's ${seen.tokens.length} tokens across; darkest ${layer.most.toFixed(2)}`));
  return figure;
}
