// What the buttons and keys do. The parts: store.js keeps conversations, server.js asks, talk.js says and receives,
// messages.js and inside.js show, sidebar.js lists, settings.js sets.
import {element, find, grow, problem} from "./dom.js";
import {handlers, showMeter} from "./messages.js";
import {greet, server, setApiKey} from "./server.js";
import {openText, saveAll, showSettings} from "./settings.js";
import {begin, closeDrawer, openDrawer, showSidebar, sidebar} from "./sidebar.js";
import {isConversation, keep, state} from "./store.js";
import {isBusy, refresh, reply, retry, say, sayInstead, show, stop} from "./talk.js";

const OPENINGS = ["Hi! How are you?", "Tell me something about yourself.", "What did you do today?"];

Object.assign(handlers, {busy: isBusy, ask: reply, retry, sayInstead});
Object.assign(sidebar, {busy: isBusy, opened: show});

find("openings").append(...OPENINGS.map((text) => element("button", {type: "button", textContent: text, onclick: () => say(text)})));
find("form").onsubmit = (event) => { event.preventDefault(); say(find("input").value); };
find("input").oninput = () => grow(find("input"));
find("input").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); say(find("input").value); }
};
find("stop").onclick = () => { stop(); find("input").focus(); };
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.isComposing || document.querySelector("dialog[open]")) return;
  if (find("sidebar").classList.contains("open")) { closeDrawer(); find("menu").focus(); }
  else stop();
});
window.addEventListener("storage", ({key}) => { if (!isBusy() && isConversation(key)) refresh(); });
find("new").onclick = begin;
find("search").oninput = showSidebar;
find("menu").onclick = openDrawer;
find("shade").onclick = closeDrawer;
find("open-settings").onclick = () => { showSettings(); find("settings").showModal(); };
find("key").onchange = () => { setApiKey(find("key").value); meet(); };
find("defaults").onclick = () => { state.settings = {}; keep(); showSettings(); };
find("export").onclick = saveAll;
find("import").onclick = () => find("file").click();
find("file").onchange = (event) => { if (event.target.files[0]) openFile(event.target.files[0]); event.target.value = ""; };
for (const kind of ["paste", "drop"]) document.addEventListener(kind, (event) => {
  const file = (event.clipboardData || event.dataTransfer)?.files[0];
  if (file) { event.preventDefault(); openFile(file); }
});
document.addEventListener("dragover", (event) => event.preventDefault());

async function openFile(file) {
  if (!isBusy() && openText(await file.text(), file.name)) { closeDrawer(); show(); }
}
async function meet() {
  try {
    await greet();
    find("model").textContent = `dialogpt: ${server.id}`;
    find("empty-title").textContent = `Talk with ${server.id}`;
    find("about").textContent = "A small language model that learned from dialogues. It keeps talking rather than " +
      "knowing things, and it can be wrong. What you say stays between this browser and its server.";
    problem("");
  } catch (error) { problem(error.message, meet); }
  showMeter();
}
show();
meet();
