// Conversations and settings, kept in this browser: one entry for each conversation, so that tabs do not overwrite
// each other. A message has a role, content and tokens; a reply that was retried has its versions beside them.

const SETTINGS = "dialogpt", PREFIX = "dialogpt:";
const unsaved = new Set();  // ids of conversations that this browser had no room for

// name, label, least, most, step, and what it does
export const FIELDS = [
  ["temperature", "Temperature", 0, 2, 0.1, "How adventurous: 0 always takes the likeliest word, 1 samples as trained."],
  ["top_k", "Top k", 0, 1000, 1, "Choose among so many of the likeliest words. 0 is all."],
  ["top_p", "Top p", 0, 1, 0.05, "Choose among the likeliest words that together have this probability."],
  ["repetition_penalty", "Repetition penalty", 0.1, 5, 0.1, "Above 1, words that were said become less likely."],
  ["max_tokens", "Longest reply", 1, 4096, 1, "In tokens, which are words or parts of words."],
  ["n", "Replies to choose from", 1, 4, 1, "More than one shows arrows beside the reply."],
  ["seed", "Seed", 0, 2 ** 31, 1, "The same seed and words give the same reply. Empty: another one each time."],
];

export const state = load();

function load() {
  const kept = stored(SETTINGS), conversations = keptConversations();
  if (!conversations.length) conversations.push(blank());
  const current = Math.max(0, conversations.findIndex((one) => one.id === kept?.current));
  const settings = {};
  for (const [name, , min, max] of FIELDS) {
    const value = kept?.settings?.[name];
    if (typeof value === "number" && value >= min && value <= max) settings[name] = value;
  }
  return {conversations, current, settings};
}
function stored(key) {
  try { return JSON.parse(localStorage.getItem(key)); } catch { return null; }
}
export function asStored(id) { return JSON.stringify(stored(PREFIX + id)); }
export function isConversation(key) { return key === null || key.startsWith(PREFIX); }
function keptConversations() {  // the oldest first
  let keys = [];
  try { keys = Object.keys(localStorage).filter((key) => key.startsWith(PREFIX)); } catch { /* it may not be used */ }
  const found = keys.flatMap((key) =>
    (clean([stored(key)]) || []).map((one) => ({...one, id: key.slice(PREFIX.length)})));
  return found.sort((one, other) => one.made - other.made);
}
export function newId() {
  return [...crypto.getRandomValues(new Uint8Array(12))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
export function blank() { return {id: newId(), made: Date.now(), used: 0, title: "", messages: []}; }
export function conversation() { return state.conversations[state.current]; }
export function titleOf(one) { return one.title || one.messages[0]?.content.trim().slice(0, 80) || "New conversation"; }

// Conversations from storage or a file, made anew of what is known of them; null if they are none.
export function clean(given) {
  if (!Array.isArray(given) || !given.length) return null;
  const isMessage = (each) => typeof each?.content === "string" && ["user", "assistant"].includes(each.role);
  if (!given.every((one) => Array.isArray(one?.messages) && one.messages.every(isMessage))) return null;
  return given.map((one) => ({
    id: newId(),
    made: Number.isFinite(one.made) ? one.made : Date.now(),
    used: Number.isInteger(one.used) ? one.used : 0,
    title: typeof one.title === "string" ? one.title.slice(0, 80) : "",
    messages: one.messages.map(cleanMessage),
  }));
}
function cleanMessage({role, content, tokens, ended, versions, version}) {
  const message = {role, content, tokens: cleanTokens(tokens), ended: ended === true};
  if (role !== "assistant" || !Array.isArray(versions) || versions.length < 2) return message;
  if (!versions.every((each) => typeof each?.content === "string") || !Number.isInteger(version)) return message;
  if (version < 0 || version >= versions.length) return message;
  message.versions = versions.map((each) =>
    ({content: each.content, tokens: cleanTokens(each.tokens), ended: each.ended === true}));
  message.version = version;
  return message;
}
function cleanTokens(tokens) {
  const number = (value) => typeof value === "number" && value >= 0 && value <= 1;
  const pair = (other) => Array.isArray(other) && typeof other[0] === "string" && number(other[1]);
  const token = (each) => typeof each?.text === "string" && number(each.p) && Array.isArray(each.others) && each.others.every(pair);
  return Array.isArray(tokens) && tokens.every(token) ? tokens.map(({text, p, others}) => ({text, p, others})) : [];
}

// Keep settings and what changed; returns whether there was room.
export function keep(...changed) {
  for (const one of changed) unsaved.add(one.id);
  try {
    for (const one of changed) {
      if (one.messages.length) localStorage.setItem(PREFIX + one.id, JSON.stringify(one));
      unsaved.delete(one.id);
    }
    localStorage.setItem(SETTINGS, JSON.stringify({current: conversation().id, settings: state.settings}));
    return true;
  } catch { return false; }
}
export function remove(place) {
  const [gone] = state.conversations.splice(place, 1);
  try { localStorage.removeItem(PREFIX + gone.id); } catch { /* it may not be used */ }
  if (!state.conversations.length) state.conversations.push(blank());
  if (state.current >= place) state.current = Math.max(0, state.current - 1);
}
// Take over what other tabs have said, begun and deleted; returns whether the open conversation is still there.
export function takeOver() {
  const here = conversation().id;
  const own = state.conversations.filter((one) => !one.messages.length || unsaved.has(one.id));
  const same = (one) => {  // what has not changed stays the same object, and so what shows it
    const known = state.conversations.find(({id}) => id === one.id)?.messages || [];
    const equal = (message, place) => JSON.stringify(message) === JSON.stringify(known[place]);
    return {...one, messages: one.messages.map((message, place) => equal(message, place) ? known[place] : message)};
  };
  state.conversations = [...keptConversations().filter((one) => !unsaved.has(one.id)).map(same), ...own];
  if (!state.conversations.length) state.conversations.push(blank());
  const place = state.conversations.findIndex((one) => one.id === here);
  state.current = place < 0 ? state.conversations.length - 1 : place;
  return place >= 0;
}

// Dialogues in a file: what this page saved, messages with roles, or turns; null if it holds none.
export function dialoguesIn(text) {
  let values;
  try { values = [JSON.parse(text)]; } catch {
    try { values = text.split("\n").filter((line) => line.trim()).map((line) => JSON.parse(line)); } catch { return null; }
  }
  const found = values.flatMap((value) => value?.conversations ?? asConversations(value));
  return clean(found)?.filter((one) => one.messages.length) ?? null;
}
function asConversations(value) {
  const turns = value?.messages ?? value?.turns ?? value;
  if (!Array.isArray(turns)) return [null];
  if (turns.every((turn) => Array.isArray(turn) || Array.isArray(turn?.messages ?? turn?.turns))) return turns.flatMap(asConversations);
  const messages = turns.map((turn, place) =>
    typeof turn === "string" ? {role: ["user", "assistant"][place % 2], content: turn} : turn);
  return [{messages: messages.filter((each) => each?.role !== "system")}];
}
