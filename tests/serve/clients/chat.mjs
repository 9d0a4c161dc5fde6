// Two turns as a whole transcript, then the second as a stream, and two turns of responses. node chat.mjs CLIENT URL FOLDER; FOLDER has node_modules.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [client, baseURL, folder] = process.argv.slice(2);
const require = createRequire(pathToFileURL(`${folder}/`));
const TOLD = "Mary went to the kitchen.", ASKED = "Where is Mary?";

async function openai() {
  const { default: OpenAI } = require("openai");
  const at = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
  const messages = [{ role: "user", content: TOLD }], model = "lm2-tiny";
  const first = await at.chat.completions.create({ model, messages });
  messages.push(first.choices[0].message, { role: "user", content: ASKED });
  const second = await at.chat.completions.create({ model, messages });
  let streamed = "";
  for await (const chunk of await at.chat.completions.create({ model, messages, stream: true })) streamed += chunk.choices[0]?.delta?.content ?? "";
  const began = await at.responses.create({ model, input: TOLD });
  const gone = await at.responses.create({ model, input: ASKED, previous_response_id: began.id });
  return { second: second.choices[0].message.content, streamed, response: gone.output_text };
}

async function compatible() {
  const { generateText, streamText } = require("ai");
  const { createOpenAICompatible } = require("@ai-sdk/openai-compatible");
  const model = createOpenAICompatible({ name: "lm2", baseURL, apiKey: "none" })("lm2-tiny");
  const messages = [{ role: "user", content: TOLD }];
  const first = await generateText({ model, messages, maxRetries: 0 });
  messages.push({ role: "assistant", content: first.text }, { role: "user", content: ASKED });
  const second = await generateText({ model, messages, maxRetries: 0 });
  let streamed = "";
  for await (const part of streamText({ model, messages, maxRetries: 0 }).textStream) streamed += part;
  return { second: second.text, streamed };
}

async function openResponses() {
  const { generateText, streamText } = require("ai");
  const { createOpenResponses } = require("@ai-sdk/open-responses");
  const model = createOpenResponses({ name: "lm2", url: `${baseURL}/responses`, apiKey: "none" })("lm2-tiny");
  const messages = [{ role: "user", content: TOLD }];
  const first = await generateText({ model, messages, maxRetries: 0 });
  messages.push({ role: "assistant", content: first.text }, { role: "user", content: ASKED });
  const second = await generateText({ model, messages, maxRetries: 0 });
  let streamed = "";
  for await (const part of streamText({ model, messages, maxRetries: 0 }).textStream) streamed += part;
  return { second: second.text, streamed };
}

console.log(JSON.stringify(await { openai, compatible, "open-responses": openResponses }[client]()));
