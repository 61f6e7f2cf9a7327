// Small helpers for the document. Everything that was said is shown as text, never as HTML.

export const find = (id) => document.getElementById(id);

export function element(kind, properties = {}, ...children) {
  const made = Object.assign(document.createElement(kind), properties);
  made.append(...children);
  return made;
}

// Change what is shown, and stay at its end if that is where the reader is.
export function atBottom(change, always = false) {
  const main = find("main"), there = main.scrollTop + main.clientHeight > main.scrollHeight - 40;
  change();
  if (always || there) main.scrollTop = main.scrollHeight;
}

export function problem(text, again = null) {
  find("problem").hidden = !text;
  find("problem").firstElementChild.textContent = text || "";
  find("again").hidden = !again;
  find("again").onclick = again;
}

export const MAX_CHARACTERS = 8000;  // of a message

export function grow(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + 2}px`;
  if (area.value.length === MAX_CHARACTERS) problem(`A message has at most ${MAX_CHARACTERS} characters.`);
}
