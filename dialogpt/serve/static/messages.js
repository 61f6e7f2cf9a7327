// The conversation on the screen: its messages, what can be done with each, and the meter.
import {atBottom, element, find, grow, MAX_CHARACTERS, problem} from "./dom.js";
import {toggleInside} from "./inside.js";
import {server} from "./server.js";
import {conversation, keep, state} from "./store.js";

const lines = new WeakMap();  // what shows each message, so that an open panel or edit stays as it is
export const handlers = {busy: () => false, ask() {}, retry() {}, sayInstead() {}};  // what talk.js does

export function showMessages(toEnd = true) {
  const messages = conversation().messages, log = find("log");
  const now = messages.map(lineOf);
  if (now.length !== log.children.length || now.some((line, place) => line !== log.children[place]))
    atBottom(() => log.replaceChildren(...now), toEnd);
  find("empty").hidden = messages.length > 0;
  showMeter();
}
// What the model is shown of the dialogue; the oldest turns are dropped when it is full.
export function showMeter() {
  const used = conversation().used || 0, most = server.history_tokens || server.context_length || 1;
  find("window").value = Math.min(1, used / most);
  find("window-text").textContent = server.id ? `${Math.min(used, most)} of ${most} tokens` : "";
  find("window").textContent = find("window-text").textContent;
}
function lineOf(message, place) {
  if (lines.get(message)?.place !== place) lines.set(message, {place, line: lineFor(message, place)});
  return lines.get(message).line;
}
// A reply with all that was said before it, as the server takes it.
function dialogueTo(message) {
  const messages = conversation().messages;
  const {n, ...settings} = state.settings;
  return {...settings, messages: messages.slice(0, messages.indexOf(message) + 1).map(({role, content}) => ({role, content}))};
}
export function forget(message) { lines.delete(message); }

export function lineFor(message, place) {
  const line = element("li", {className: message.role});
  line.append(element("span", {className: "hidden", textContent: message.role === "user" ? "You: " : "Reply: "}),
    element("div", {className: "text", textContent: message.content}));
  const actions = element("div", {className: "actions"});
  const action = (name, run, className = "") =>
    actions.append(element("button", {type: "button", textContent: name, onclick: run, className}));
  if (message.versions) actions.append(versions(message, place));
  action("Copy", (event) => copy(message.content, event.target));
  if (message.role === "user") {
    action("Edit", () => edit(place), "changes");
    action("Ask again", () => { if (!handlers.busy()) handlers.ask(); }, "changes last");
  }
  if (message.role === "assistant") {
    action("Retry", () => handlers.retry(place), "changes last");
    if (message.tokens?.length) {
      action("See inside", (event) => toggleInside(line, message, event.target, () => dialogueTo(message)));
      actions.lastChild.setAttribute("aria-expanded", "false");
    }
  }
  line.append(actions);
  return line;
}
// Arrows between the replies that were given to the same message; in the middle of a dialogue the one that was taken.
function versions(message, place) {
  const step = (by) => () => {
    if (handlers.busy()) return;
    const version = (message.version + by + message.versions.length) % message.versions.length;
    Object.assign(message, message.versions[version], {version});
    forget(message);
    keep(conversation());
    showMessages(false);
    find("log").children[place].querySelector(by < 0 ? ".earlier" : ".later").focus();
  };
  const arrow = (name, label, by) =>
    element("button", {type: "button", textContent: label, ariaLabel: name, className: `changes last ${by < 0 ? "earlier" : "later"}`, onclick: step(by)});
  return element("span", {className: "versions"}, arrow("Earlier reply", "‹", -1),
    `${message.version + 1}/${message.versions.length}`, arrow("Later reply", "›", 1));
}
export function edit(place, text = conversation().messages[place].content) {
  if (handlers.busy()) return;
  const line = find("log").children[place], here = conversation(), message = here.messages[place];
  const area = element("textarea", {value: text, rows: 3, maxLength: MAX_CHARACTERS, ariaLabel: "Edit your message"});
  const done = () => {
    forget(message);
    const again = lineOf(message, place);
    line.replaceWith(again);
    again.querySelectorAll(".changes").forEach((each) => { each.disabled = handlers.busy(); });
    find("input").focus();
  };
  const save = () => {
    if (!area.value.trim() || handlers.busy()) return;
    forget(message);  // if it comes back, it is not being edited
    handlers.sayInstead(here, place, area.value);
  };
  area.oninput = () => grow(area);
  area.onkeydown = (event) => {
    if (event.key === "Escape") { event.stopPropagation(); done(); }
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); save(); }
  };
  line.replaceChildren(element("div", {className: "edit"}, area), element("div", {className: "actions"},
    element("button", {type: "button", textContent: "Say this instead", onclick: save}),
    element("button", {type: "button", textContent: "Cancel", onclick: done})));
  grow(area);
  area.focus();
}
async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  }
  catch { problem("The browser did not let the page copy; select the text and copy it."); }
}
