// The conversations of this browser: by date, with search, rename and delete. On a phone it is a drawer.
import {element, find, problem} from "./dom.js";
import {blank, conversation, keep, remove, state, titleOf} from "./store.js";

export const sidebar = {busy: () => false, opened() {}};  // main.js says what happens then
const DAY = 24 * 3600 * 1000;

function dateOf(made) {
  const midnight = new Date().setHours(0, 0, 0, 0);
  if (made >= midnight) return "Today";
  if (made >= midnight - DAY) return "Yesterday";
  return made >= midnight - 7 * DAY ? "Last 7 days" : "Earlier";
}
export function showSidebar() {
  const wanted = find("search").value.trim().toLowerCase();
  const has = (one) => !wanted || [titleOf(one), ...one.messages.map((each) => each.content)].some((text) => text.toLowerCase().includes(wanted));
  const groups = new Map();
  state.conversations.map((one, place) => [one, place]).filter(([one]) => has(one)).reverse().forEach(([one, place]) => {
    const date = dateOf(one.made);
    groups.set(date, [...(groups.get(date) || []), itemFor(one, place)]);
  });
  find("conversations").replaceChildren(...[...groups].flatMap(([date, items]) =>
    [element("h2", {textContent: date}), element("ul", {}, ...items)]));
  if (!groups.size) find("conversations").append(element("p", {className: "nothing", textContent: "No conversation holds these words."}));
}
function itemFor(one, place) {
  const title = titleOf(one), here = place === state.current;
  const open = element("button", {type: "button", className: "open", textContent: title, title, disabled: sidebar.busy(), onclick: () => go(place)});
  if (here) open.setAttribute("aria-current", "true");
  const item = element("li", {className: here ? "item current" : "item"}, open);
  if (one.messages.length) item.append(
    element("button", {type: "button", className: "quiet", textContent: "Rename", ariaLabel: `Rename ${title}`, onclick: () => rename(item, one)}),
    element("button", {type: "button", className: "quiet", textContent: "Delete", ariaLabel: `Delete ${title}`, disabled: sidebar.busy(),
      onclick: () => askToRemove(one)}));
  return item;
}
export function go(place) {
  state.current = place;
  problem("");
  keep();
  closeDrawer();
  sidebar.opened();
}
export function begin() {
  const empty = state.conversations.findIndex((one) => one.messages.length === 0);
  if (empty < 0) state.conversations.push(blank());
  go(empty < 0 ? state.conversations.length - 1 : empty);
  find("input").focus();
}
function rename(item, one) {
  const input = element("input", {value: titleOf(one), maxLength: 80, ariaLabel: "Name of the conversation"});
  let over = false;
  const done = (save) => {
    if (over) return;
    over = true;
    if (save) { one.title = input.value.trim(); keep(one); }
    showSidebar();
  };
  input.onkeydown = (event) => {
    if (event.key === "Enter") done(true);
    if (event.key === "Escape") { event.stopPropagation(); done(false); }
  };
  input.onblur = () => done(true);
  item.replaceChildren(input);
  input.select();
}
function askToRemove(one) {
  find("confirm-text").textContent = `“${titleOf(one)}” will be gone from this browser.`;
  const dialog = find("confirm");
  dialog.returnValue = "";
  dialog.onclose = () => {
    if (dialog.returnValue !== "delete") return;
    const place = state.conversations.findIndex(({id}) => id === one.id);
    if (place >= 0) remove(place);
    problem("");
    keep();
    sidebar.opened();
  };
  dialog.showModal();
}
export function openDrawer() {
  find("sidebar").classList.add("open");
  find("shade").hidden = false;
  find("menu").setAttribute("aria-expanded", "true");
  find("new").focus();
}
export function closeDrawer() {
  find("sidebar").classList.remove("open");
  find("shade").hidden = true;
  find("menu").setAttribute("aria-expanded", "false");
}
export function currentTitle() { return titleOf(conversation()); }
