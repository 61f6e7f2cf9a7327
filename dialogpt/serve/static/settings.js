// The settings, with the values in force; and conversations to and from files.
import {element, find, problem} from "./dom.js";
import {apiKey, server} from "./server.js";
import {blank, dialoguesIn, FIELDS, keep, state} from "./store.js";

export function showSettings() {
  find("fields").replaceChildren(...FIELDS.map(fieldFor));
  find("key").value = apiKey();
}
function fieldFor([name, label, min, max, step, help]) {
  const most = name === "max_tokens" ? server.max_completion_tokens || max : max;
  const inForce = server.defaults[name] ?? {n: 1, top_k: 0, top_p: 1, repetition_penalty: 1}[name] ?? "";
  const input = element("input", {type: "number", id: `set-${name}`, min, max: most, step: "any"});
  const reset = element("button", {type: "button", textContent: "Reset", ariaLabel: `Reset ${label}`});
  const show = () => {
    const own = name in state.settings;
    input.value = own ? state.settings[name] : inForce;
    input.classList.toggle("default", !own);
    reset.style.visibility = own ? "visible" : "hidden";
  };
  input.onchange = () => {
    const value = input.valueAsNumber;
    if (!input.reportValidity()) return;  // the browser says what is wrong
    if (Number.isNaN(value) || value === inForce) delete state.settings[name];
    else state.settings[name] = step === 1 ? Math.round(value) : value;
    keep();
    show();
  };
  reset.onclick = () => { delete state.settings[name]; keep(); show(); input.focus(); };
  show();
  input.setAttribute("aria-describedby", `help-${name}`);
  return element("div", {className: "field"}, element("label", {htmlFor: input.id, textContent: label}), input, reset,
    element("p", {id: `help-${name}`, textContent: help}));
}
export function saveAll() {
  const file = new Blob([JSON.stringify({conversations: state.conversations}, null, 1)], {type: "application/json"});
  const link = element("a", {href: URL.createObjectURL(file), download: "dialogpt-conversations.json"});
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
// Add the dialogues of a file; returns whether there were any.
export function openText(text, name) {
  const given = dialoguesIn(text);
  if (!given) { problem(`${name} holds no conversations; expected what "Save all" writes, or a list of messages or turns.`); return false; }
  const own = state.conversations.filter((one) => one.messages.length);
  const words = (one) => JSON.stringify(one.messages.map(({role, content}) => [role, content]));
  const others = given.filter((one) => !own.some((known) => words(known) === words(one)));
  state.conversations = own.length + others.length ? [...own, ...others] : [blank()];
  state.current = state.conversations.length - 1;
  problem("");
  keep(...others);
  return true;
}
