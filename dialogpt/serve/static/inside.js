// "See inside": each token of a reply, how sure the model was of it, and what else could have come.
import {element, problem} from "./dom.js";
import {ask, server} from "./server.js";

const visible = (text) => text.replaceAll("\n", "⏎").replaceAll(" ", "·") || "∅";
const percent = (p) => p >= 0.001 ? `${(p * 100).toFixed(1)} %` : p > 0 ? "under 0.1 %" : "0 %";

// The server's own picture of a reply, in a tab of its own: layers, attention, and what each turn was worth.
async function openPicture(dialogue, message) {
  const tab = window.open("", "_blank");  // at once, while the browser knows that a person asked for it
  try {
    const body = {...dialogue, ended: message.ended};
    const page = await (await ask("inspect", body, undefined, "text/html")).text();
    const url = URL.createObjectURL(new Blob([page], {type: "text/html"}));
    if (tab) tab.location = url;
    else problem("The browser did not let the page open a tab.");
    setTimeout(() => URL.revokeObjectURL(url), 60000);
  } catch (error) { tab?.close(); problem(error.message); }
}

export function toggleInside(line, message, button, dialogue) {
  const open = line.querySelector(".inside");
  button.setAttribute("aria-expanded", String(!open));
  if (open) { open.remove(); return; }
  const table = element("table"), tokens = element("div", {className: "tokens", role: "group", ariaLabel: "Tokens of the reply"});
  const pick = (place) => {
    [...tokens.querySelectorAll("button")].forEach((each, number) => {
      each.setAttribute("aria-pressed", String(number === place));
      each.tabIndex = number === place ? 0 : -1;
    });
    table.replaceChildren(...alternatives(message.tokens[place]));
  };
  message.tokens.forEach((token, place) => {
    const each = element("button", {type: "button", textContent: visible(token.text), title: percent(token.p),
      onclick: () => pick(place), onmouseenter: () => pick(place), onfocus: () => pick(place)});
    each.style.setProperty("--sure", token.p);
    tokens.append(each);
  });
  if (message.ended) tokens.append(element("span", {className: "end", textContent: "end of turn",
    title: "Here the model chose to end its turn, with a token that is never shown."}));
  tokens.onkeydown = (event) => {  // one stop in the order of tabs; arrows go on from there
    const step = {ArrowRight: "nextSibling", ArrowLeft: "previousSibling"}[event.key];
    if (step) document.activeElement[step]?.focus?.();
  };
  const legend = element("p", {className: "legend"}, "unsure", element("span"), "sure");
  const panel = element("div", {className: "inside"}, tokens, legend, table, element("p", {textContent:
    "Point at a token to see what else the model considered. These are its own probabilities, before the settings change them; a dot is a space."}));
  if (server.inspect) panel.append(element("button", {type: "button", textContent: "Look deeper",
    title: "Layers, attention, and what each turn was worth, in a new tab", onclick: () => openPicture(dialogue(), message)}));
  line.append(panel);
  pick(0);
  panel.scrollIntoView({block: "nearest"});
}

function alternatives(token) {
  const rows = token.others.some((other) => other[0] === token.text) ? token.others : [...token.others, [token.text, token.p]];
  const heads = ["Token", "Probability", ""].map((name) => element(name ? "th" : "td", name ? {scope: "col", textContent: name} : {}));
  const caption = element("caption", {className: "hidden", textContent: "Its alternatives"});
  return [caption, element("tr", {}, ...heads), ...rows.map(([text, p]) => {
    const bar = element("span", {className: text === token.text ? "bar" : "bar other"});
    bar.style.width = `${p * 100}%`;
    return element("tr", {}, element("td", {textContent: (text === token.text ? "▸ " : "  ") + visible(text)}),
      element("td", {textContent: percent(p)}), element("td", {}, bar));
  })];
}
