// Requests to the server that this page came from, and every way in which they fail, in sentences.

const KEY = "dialogpt";
export const server = {context_length: 0, history_tokens: 0, defaults: {}, id: ""};  // what it says of its model
let key = "";  // kept until the browser is closed
try { key = sessionStorage.getItem(KEY) || ""; } catch { /* it may not be used */ }

export function apiKey() { return key; }
export function setApiKey(given) {
  key = given;
  try { sessionStorage.setItem(KEY, key); } catch { /* it may not be used */ }
}

export async function ask(path, body, signal, accept = "*/*") {
  const headers = {"Content-Type": "application/json", Accept: accept};
  if (key && !/^[\x21-\x7e]+$/.test(key)) throw new Error("The API key in the settings holds characters that no key has.");
  if (key) headers.Authorization = `Bearer ${key}`;
  let answer;
  try { answer = await fetch(path, body ? {method: "POST", headers, body: JSON.stringify(body), signal} : {headers, signal}); }
  catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. What you wrote is kept.");
  }
  if (answer.ok) return answer;
  const content = await answer.json().catch(() => ({}));
  if (answer.status === 401)
    throw new Error(key ? "The server does not take the API key in the settings." : "The server asks for an API key: put it into the settings.");
  const sentence = content?.error?.message;
  throw new Error(typeof sentence === "string" ? sentence : `The server answered with status ${answer.status}.`);
}

const FOREIGN = "What answered is not this page's server; is there a proxy between them?";

// Learn what the server says of its model.
export async function greet() {
  const content = await (await ask("v1/models")).json().catch(() => null);
  const model = content?.data?.[0];
  if (typeof model?.id !== "string" || !Number.isInteger(model.context_length) || typeof model.defaults !== "object" || !model.defaults)
    throw new Error(FOREIGN);
  Object.assign(server, model);
}

// The events of a stream, each an object.
export async function* events(answer) {
  if (!answer.body || !answer.headers.get("content-type")?.startsWith("text/event-stream")) throw new Error(FOREIGN);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const {value, done} = await reader.read().catch((error) => {
      if (error.name === "AbortError") throw error;
      throw new Error("The connection broke in the middle of the reply.");
    });
    if (done) throw new Error("The server ended in the middle of the reply.");
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      if (part === "data: [DONE]") return;
      let content = null;
      try { content = JSON.parse(part.replace(/^data: /, "")); } catch { /* said below */ }
      if (typeof content?.error?.message === "string") throw new Error(content.error.message);
      if (!Array.isArray(content?.choices)) throw new Error(FOREIGN);
      yield content;
    }
  }
}
