// Saying something, and the reply: streamed, stopped, retried, or kept as one version of several.
import {atBottom, find, grow, problem} from "./dom.js";
import {edit, lineFor, showMessages} from "./messages.js";
import {ask, events} from "./server.js";
import {asStored, conversation, keep, newId, state, takeOver} from "./store.js";
import {showSidebar} from "./sidebar.js";

let running = null;  // the AbortController of the reply that is being generated
export function isBusy() { return Boolean(running); }
export function stop() { running?.abort(); }
const VISITOR = newId();  // whose cached words a server with --isolate-cache keeps apart
const NO_ROOM = "This browser has no room to keep the conversation; save it before you leave.";
const rounded = (p) => Number(Math.min(1, p).toPrecision(3));

export function show(toEnd = true) {
  showMessages(toEnd);
  showSidebar();
}
export function refresh() {
  const there = takeOver();
  show(!there);
  if (!there) problem("The conversation that was here was deleted in another tab.");
}
export function say(text) {
  if (!text.trim() || running) return;
  conversation().messages.push({role: "user", content: text, tokens: []});
  find("input").value = "";
  grow(find("input"));
  const room = keep(conversation());
  show();
  reply();
  if (!room) problem(NO_ROOM);
}
// The reply that was there becomes a version of the new one.
export function retry(place) {
  if (running) return;
  const before = conversation().messages.splice(place);
  show();
  reply({before, from: place, earlier: before[0]});
}
export function sayInstead(here, place, text) {
  if (here.id !== conversation().id || running) return;
  const before = conversation().messages.splice(place, Infinity, {role: "user", content: text, tokens: []});
  show();
  reply({before, from: place, again: () => sayInstead(here, place, text), failed: () => edit(place, text)});
}
function askAgain(id) {
  const {messages} = conversation();
  if (id !== conversation().id || running || !messages.length) return;
  if (messages.at(-1).role === "assistant") retry(messages.length - 1);
  else reply();
}

// If there is no reply, what was there from some place on comes back, and `failed` is called.
export async function reply({before = [], from = 0, earlier = null, again = null, failed = () => {}} = {}) {
  problem("");
  const here = conversation(), kept = asStored(here.id);
  again ??= () => askAgain(here.id);
  running = new AbortController();
  setBusy(true);
  if (document.activeElement === document.body) find("stop").focus();
  const line = lineFor({role: "assistant", content: ""}, -1), text = line.querySelector(".text");
  line.querySelector(".actions").remove();
  text.classList.add("waiting");
  find("log").setAttribute("aria-busy", "true");
  atBottom(() => find("log").append(line), true);
  const found = {replies: [], used: 0, note: ""};
  let wrong = "";
  try {
    await receive(here, found, (content) => atBottom(() => { text.textContent = content; }));
  } catch (error) {
    if (error.name !== "AbortError") wrong = error.message;
  }
  running = null;
  const said = found.replies.filter((each) => each?.content.trim());
  if (!said.length && !wrong && found.complete) wrong = "The model said nothing. Ask again, or say it in another way.";
  if (said.length) {
    here.messages.push(withVersions(said, earlier));
    here.used = found.used || here.used + said[0].tokens.length;  // of one that was stopped, what is known
  } else if (before.length) here.messages.splice(from, Infinity, ...before);
  if (kept !== asStored(here.id)) {  // another tab went on with it meanwhile: both are kept
    here.id = newId();
    here.made = Date.now();
  }
  find("heard").textContent = said[0]?.content || "";
  const room = keep(here);
  setBusy(false);
  find("log").removeAttribute("aria-busy");
  refresh();
  if (!room) problem(NO_ROOM);
  if (wrong) problem(wrong, again);
  if (wrong && !said.length) failed();
  if (document.activeElement === document.body) find("input").focus();
}
// Fill `found` with what the server sends, and show the first reply as it grows.
async function receive(here, found, shown) {
  const body = {...state.settings, messages: sent(here.messages), stream: true, user: VISITOR,
    logprobs: true, top_logprobs: 5, stream_options: {include_usage: true}};
  const start = performance.now();
  for await (const content of events(await ask("v1/chat/completions", body, running.signal))) {
    if (content.usage) {
      found.used = content.usage.total_tokens;
      if (content.usage.tokens_cut) found.note = "; the beginning of your message did not fit";
      else if (content.usage.turns_left_out) found.note = "; the oldest turns are not shown to the model any more";
    }
    for (const choice of content.choices) {
      const one = found.replies[choice.index ?? 0] ??= {content: "", tokens: [], ended: false};
      one.content += choice.delta?.content || "";
      one.ended = choice.finish_reason === "stop";
      for (const token of choice.logprobs?.content || [])
        one.tokens.push({text: token.token, p: rounded(Math.exp(token.logprob)),
          others: token.top_logprobs.map((other) => [other.token, rounded(Math.exp(other.logprob))])});
    }
    const first = found.replies[0];
    if (first) shown(first.content);
    const tokens = found.replies.reduce((total, each) => total + (each?.tokens.length || 0), 0);
    if (tokens > 1)
      find("speed").textContent = `${(tokens / (performance.now() - start) * 1000).toFixed(0)} tokens/s${found.note}`;
  }
  found.complete = true;
}
function withVersions(said, earlier) {
  const older = earlier ? earlier.versions || [{content: earlier.content, tokens: earlier.tokens, ended: earlier.ended}] : [];
  const message = {role: "assistant", ...said[0]};
  if (older.length + said.length > 1) {
    message.versions = [...older, ...said];
    message.version = older.length;
  }
  return message;
}
// The last messages: the model is shown fewer.
function sent(messages) { return messages.slice(-400).map(({role, content}) => ({role, content})); }

function setBusy(now) {
  const leaves = document.activeElement === find(now ? "send" : "stop");
  find("stop").hidden = !now;
  find("send").hidden = now;
  if (leaves) find(now ? "stop" : "input").focus();
  for (const id of ["new", "import"]) find(id).disabled = now;
  for (const each of document.querySelectorAll(".changes, .item .open, .item .quiet")) each.disabled = now;
}
