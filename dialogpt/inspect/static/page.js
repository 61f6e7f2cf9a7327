// Draws an inspection (dialogpt/inspect/data.py) as a page. Every text of a dialogue becomes a text node, never markup.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const { tokens, turns, reply, model } = data;
const layers = model.layers;
const state = { chosen: null, tint: "surprise", rival: false, head: null, layer: null };
const by = (id) => document.getElementById(id);

// ---- building blocks ----

function element(make, name, attributes, children) {
  const node = make(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("--")) node.style.setProperty(key, value);
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}
const h = (name, attributes = {}, ...children) => element((n) => document.createElement(n), name, attributes, children);
const s = (name, attributes = {}, ...children) =>
  element((n) => document.createElementNS("http://www.w3.org/2000/svg", n), name, attributes, children);
const put = (node, ...children) => node.replaceChildren(...children.flat(Infinity).filter(Boolean));
const bodyOf = (id) => by(id).querySelector(".body");

function switcher(label, options, current, choose) {
  return h("div", { class: "switch", role: "group", "aria-label": label },
    options.map(([value, text]) =>
      h("button", { type: "button", "aria-pressed": String(value === current), onclick: () => choose(value) }, text)));
}

// ---- words and numbers ----

const CONTROL = /[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;
const spelled = (text) => text.replace(/\n/g, "↵").replace(CONTROL, (c) => `\\u${c.codePointAt(0).toString(16).padStart(4, "0")}`);
const isEnd = (token) => token.end || token.id === endId;
const endId = (tokens.find((token) => token.end) || { id: -1 }).id;
const plain = (token) => (isEnd(token) ? "end of turn" : `“${spelled(token.text).trim() || "space"}”`);

/** A token as text to be read in a row: the space before a word is a dot, the end of a turn a word of its own. */
function piece(token) {
  if (isEnd(token)) return h("span", { class: "piece end" }, "end of turn");
  const space = token.text.startsWith(" ");
  return h("span", { class: "piece" }, space ? h("span", { class: "dot", "aria-hidden": "true" }, "·") : null,
    spelled(space ? token.text.slice(1) : token.text));
}
function face(token) {
  if (token.end) return h("span", { class: "end" }, "end");
  const odd = /^(\\x[0-9a-f]{2})+$/.test(token.text);
  return odd ? h("span", { class: "odd" }, token.text) : document.createTextNode(spelled(token.text));
}
const number = (value) => value.toLocaleString("en");
function percent(p) {
  if (p >= 0.9995) return p >= 0.99995 ? "100 %" : "99.9 %";
  if (p >= 0.0995) return `${(100 * p).toFixed(p >= 0.995 ? 1 : 0)} %`;
  if (p >= 0.0001) return `${(100 * p).toPrecision(2)} %`;
  return p === 0 ? "0 %" : "< 0.01 %";
}
const bits = (value) => `${value >= 9.95 ? value.toFixed(0) : value < 0.005 ? "0" : value < 0.1 ? value.toFixed(2) : value.toFixed(1)} bits`;
const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(Math.abs(value) < 10 ? 2 : 0)}`;
const ordinal = (n) => `${n}${n % 100 > 10 && n % 100 < 14 ? "th" : { 1: "st", 2: "nd", 3: "rd" }[n % 10] || "th"}`;
const layerName = (k) => (k === 0 ? "the embeddings" : k === layers ? `the last layer (${k})` : `layer ${k}`);
const clip = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);
const speaker = (turn) => ({ user: "You", assistant: "Bot" })[turn.role] || turn.role;
const SETTING = { minimum_length: "minimum length", no_repeat_ngram: "no repeated n-gram", no_repeat_reply: "no repeated reply",
  bad_words: "bad words", sequence_bias: "bias", forced_tokens: "forced tokens", exponential_decay: "length decay",
  suppressed_tokens: "suppressed tokens", remove_invalid_values: "valid values" };
const stageName = (stage) => {
  const values = Object.values(stage.settings);
  const name = SETTING[stage.name] || stage.name.replaceAll("_", "-");
  return values.length === 1 && typeof values[0] === "number" ? `${name} ${values[0]}` : name;
};
/** How much likelier or less likely something is, in words: a change of its natural logarithm. */
function times(change) {
  const factor = Math.exp(Math.abs(change));
  if (factor < 1.05) return "as likely";
  const shown = factor < 10 ? factor.toFixed(1) : factor < 1e4 ? number(Math.round(factor)) : factor < 1e6 ? `${number(Math.round(factor / 1e3))} thousand`
    : factor < 1e9 ? `${number(Math.round(factor / 1e6))} million` : factor < 1e12 ? `${number(Math.round(factor / 1e9))} billion` : "more than 10¹² ";
  return `${shown} × ${change < 0 ? "less" : "more"} likely`;
}

// ---- the head of the page ----

function drawTop() {
  document.title = `Inside a reply: ${clip(spelled(reply.text), 60)}`;
  const facts = [["model", model.name || "GPT-2"], ["layers", layers], ["heads", model.heads], ["vocabulary", number(model.vocabulary)]];
  for (const [name, value] of Object.entries(data.settings)) {
    facts.push([name.replaceAll("_", "-"), typeof value === "object" ? "set" : String(value)]);
  }
  put(by("facts"), facts.map(([name, value]) => h("li", {}, `${name} `, h("b", {}, value))));
  put(by("story"), story());
}

function story() {
  const total = -reply.log_probability / Math.LN2;
  const count = tokens.length - reply.first;
  const hardest = tokens.slice(reply.first).reduce((a, b) => (b.bits > a.bits ? b : a));
  const parts = ["“", h("strong", {}, clip(spelled(reply.text), 140)), `” is ${count} tokens and ${bits(total)} of surprise, the most of it (${bits(hardest.bits)}) in ${plain(hardest)}. `];
  const single = data.ablation.filter((entry) => entry.removed.length === 1);
  const others = single.filter((entry) => entry.removed[0] !== turns.length - 2);
  if (others.length) {
    const worth = (entry) => entry.log_probability - reply.log_probability;
    const most = others.reduce((a, b) => (worth(b) < worth(a) ? b : a));
    const all = data.ablation.find((entry) => entry.removed.length > 1) || (others.length === 1 ? others[0] : null);
    if (all) parts.push("Without all earlier turns it would be ", h("strong", {}, times(worth(all))), ". ");
    if (all !== most && worth(most) < -0.05) parts.push(`Of the earlier turns it needs turn ${most.removed[0] + 1} most.`);
  }
  return parts;
}

// ---- the dialogue ----

const SCALES = {
  surprise: { tint: "var(--heat)", name: "Surprise", steps: [0, 1, 2, 4, 8, 12], strength: (token) => (token.bits === null ? 0 : Math.min(1, token.bits / 12)) },
  layer: { tint: "var(--look)", name: "Deciding layer", steps: null, strength: (token) => (token.settles === null ? 0 : token.settles / layers) },
};

function drawDialogue() {
  put(by("tint"), switcher("Colour the tokens by", [["surprise", "Surprise"], ["layer", "Deciding layer"]], state.tint, (value) => {
    state.tint = value;
    drawDialogue();
  }));
  const scale = SCALES[state.tint];
  let place = 0;
  put(by("turns"), turns.map((turn, index) => {
    const isReply = index === turns.length - 1;
    const mine = [];
    while (place < tokens.length && tokens[place].turn === index) mine.push(place++);
    return h("div", { class: `turn ${turn.role === "user" ? "user" : "assistant"}${isReply ? " reply" : ""}${turn.start === null ? " unshown" : ""}` },
      h("span", { class: "who" }, speaker(turn)),
      turn.start === null
        ? h("div", { class: "tokens" }, spelled(turn.text), h("span", { class: "hint" }, " (the model is no longer shown this)"))
        : h("div", { class: "tokens", role: "group", "aria-label": isReply ? "The reply" : `Turn ${index + 1}, ${speaker(turn)}` },
          mine.map((position) => tokenButton(position, scale))));
  }));
  put(by("legend"), legend(scale));
  markChosen();
}

function tokenButton(position, scale) {
  const token = tokens[position];
  return h("button", { type: "button", class: "tok", id: `t${position}`, tabindex: "-1", "--v": scale.strength(token), "--tint": scale.tint,
    "aria-label": `${plain(token)}${token.bits === null ? "" : `, ${bits(token.bits)}`}`, "aria-pressed": "false",
    onclick: () => choose(position), onfocus: () => choose(position),
    onmouseenter: () => peek(position), onmouseleave: () => peek(null) }, face(token));
}

function legend(scale) {
  const steps = scale.steps
    ? scale.steps.map((value, k) => [`${value}${k === scale.steps.length - 1 ? "+" : ""}`, value / 12])
    : [...new Set([0, 0.25, 0.5, 0.75, 1].map((v) => Math.round(v * layers)))].map((k) => [k === 0 ? "embeddings" : String(k), k / layers]);
  const caption = scale.steps ? "Bits of surprise: 0 is certain, each more bit half as likely." : "Layer from which on the model's first choice stays the same.";
  return [h("span", { class: "scale", "aria-hidden": "true" }, steps.map(([text, v]) => h("span", { "--v": v, "--tint": scale.tint }, text))), h("span", {}, caption)];
}

function markChosen() {
  for (const button of by("turns").querySelectorAll("button.tok")) {
    const is = button.id === `t${state.chosen}`;
    button.setAttribute("aria-pressed", String(is));
    button.tabIndex = is ? 0 : -1;
  }
}

function choose(position, focus = false) {
  if (position < 0 || position >= tokens.length) return;
  if (focus) return by(`t${position}`).focus();
  if (state.chosen === position) return;
  state.chosen = position;
  markChosen();
  drawToken(position);
  by("spoken").textContent = inWords(position);
  history.replaceState(null, "", `#token-${position}`);
}
let waiting;
function peek(position) {
  clearTimeout(waiting);
  waiting = setTimeout(() => drawToken(position ?? state.chosen), position === null ? 150 : 60);
}

function onKey(event) {
  const here = state.chosen, turnStart = tokens[here].turn;
  const firstOf = (turn) => tokens.findIndex((token) => token.turn === turn);
  const moves = { ArrowLeft: here - 1, ArrowRight: here + 1, ArrowUp: firstOf(turnStart - 1), ArrowDown: firstOf(turnStart + 1), Home: 0, End: tokens.length - 1 };
  if (event.key in moves && !event.altKey && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    choose(moves[event.key], true);
  }
}

// ---- the chosen token ----

function inWords(position) {
  const token = tokens[position];
  if (token.bits === null) return `${plain(token)}: nothing precedes it, so nothing predicted it.`;
  const seen = token.attention.turns.at(-1);
  const most = seen.indexOf(Math.max(...seen));
  return `${plain(token)}: ${percent(token.probability)}, ${ordinal(token.rank)} choice of the network; ` +
    `its first choice stands from ${layerName(token.settles)} on; the last layer looked most at turn ${firstShown + most + 1}.`;
}
const firstShown = turns.findIndex((turn) => turn.start !== null);

function drawToken(position) {
  const token = tokens[position], turn = turns[token.turn];
  const within = position - turn.start + 1;
  put(by("chosen"),
    h("div", { class: "what" }, piece(token)),
    h("div", { class: "where" }, `token ${within} of ${token.turn === turns.length - 1 ? "the reply" : `turn ${token.turn + 1} (${speaker(turn)})`}`,
      token.bits === null ? "" : ` · ${bits(token.bits)} · ${percent(token.probability)} · ${ordinal(token.rank)} choice`));
  by("previous").disabled = position === 0;
  by("next").disabled = position === tokens.length - 1;
  for (const id of ["choice", "lens", "attention", "contributions"]) by(id).hidden = token.bits === null && id !== "choice";
  if (token.bits === null) {
    put(bodyOf("choice"), h("p", { class: "hint" }, "Nothing precedes the first token, so the network had nothing to predict it from."));
    return;
  }
  put(bodyOf("choice"), token.choice ? choiceOfReply(token) : choiceOfDialogue(token));
  put(bodyOf("lens"), lensOf(token));
  drawAttention(position);
  drawContributions(token);
}

function chance(p, most) {
  return h("div", { class: "bar" }, h("span", {}, percent(p)), h("i", { "--w": most > 0 ? p / most : 0 }));
}

function choiceOfDialogue(token) {
  const rows = token.alternatives.some((other) => other.id === token.id) ? token.alternatives : [...token.alternatives, token];
  const most = Math.max(...rows.map((row) => row.probability));
  return [
    h("p", { class: "hint" }, "The network's own distribution. Settings act on the reply only."),
    table("choices", ["Token", "Chance"], rows.map((row) => choiceRow(row, row.id === token.id, [h("td", {}, chance(row.probability, most))])))];
}

function choiceRow(row, isChosen, cells) {
  return h("tr", { class: isChosen ? "chosen" : null }, h("th", { scope: "row" }, piece(row), isChosen ? h("span", { class: "badge" }, "came") : null), cells);
}

function table(kind, heads, rows) {
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": kind },
    h("table", { class: kind }, h("thead", {}, h("tr", {}, heads.map((head) => h("th", { scope: "col" }, head)))), h("tbody", {}, rows)));
}

function choiceOfReply(token) {
  const { candidates, stages, possible } = token.choice;
  const acted = stages.filter((stage, k) => k === 0 || stage.removed > 0 || stage.probabilities.some((p, i) => Math.abs(p - stages[k - 1].probabilities[i]) > 5e-7));
  const idle = stages.filter((stage) => !acted.includes(stage));
  const heads = acted.map((stage, k) => [h("span", { class: "stage" }, k === 0 ? "network" : stageName(stage)), h("small", {}, `${number(stage.kept)} left`)]);
  const tops = acted.map((stage) => Math.max(...stage.probabilities));
  const rows = candidates.map((row, i) => choiceRow(row, row.id === token.id, acted.map((stage, k) => {
    if (stage.probabilities[i] > 0 || k === 0) return h("td", {}, chance(stage.probabilities[i], tops[k]));
    const before = acted[k - 1].probabilities[i] > 0;
    return h("td", {}, h("div", { class: "bar gone" }, before ? "removed" : ""));
  })));
  return [
    h("p", { class: "hint" }, data.settings.num_beams ? "Beam search followed several beginnings; here, what it saw along this one." : data.sampled ? "From left to right: what the network said, then what each setting left of it." : "Decoding was greedy: the likeliest token is taken."),
    possible ? null : h("p", { class: "warn" }, "These settings could not have said this token: they removed it."),
    table("choices", ["Token", ...heads], rows),
    h("div", { class: "removed" }, acted.filter((stage) => stage.removed > 0).map((stage) => h("div", {},
      h("b", {}, stageName(stage)), ` removed ${number(stage.removed)} ${stage.removed === 1 ? "token" : "tokens"}, ${percent(stage.removed_probability)} together`, removedList(stage))),
    idle.length ? h("div", { class: "hint" }, `Changed nothing here: ${idle.map(stageName).join(", ")}.`) : null)];
}

/** The likeliest of the tokens that a setting removed; those that nobody would have missed are not worth a line. */
function removedList(stage) {
  const missed = stage.removed_tokens.filter((other) => other.probability >= 0.0001);
  if (!missed.length) return ".";
  return [": ", missed.map((other, k) => [k ? ", " : "", h("span", { class: "struck" }, isEnd(other) ? "end of turn" : spelled(other.text).trim() || "space"), ` ${percent(other.probability)}`]),
    stage.removed > missed.length ? ", …" : "."];
}

function lensOf(token) {
  const last = token.lens.at(-1).top[0];
  const rows = token.lens.map((layer, k) => h("tr", { class: k >= token.settles ? "settled" : null },
    h("th", { scope: "row" }, k === 0 ? "embeddings" : `layer ${k}`, k === token.settles ? h("span", { class: "badge" }, "settles") : null),
    h("td", { class: "answers" }, layer.top.map((guess) => h("span", { class: `says${guess.id === token.id ? " same" : ""}`, "--v": Math.sqrt(guess.probability) * 0.9, title: percent(guess.probability) }, piece(guess)))),
    h("td", {}, percent(layer.probability)),
    h("td", {}, number(layer.rank))));
  const agrees = last.id === token.id;
  return [
    h("p", { class: "hint" }, `The model's first choice is ${plain(last)} from ${layerName(token.settles)} on${agrees ? "" : `; what came, ${plain(token)}, was its ${ordinal(token.rank)}`}. Each row: what it would answer if it ended there.`),
    table("lens", ["After", "would say", ["chance", h("small", {}, `of ${clip(plain(token), 12)}`)], "rank"], rows)];
}

// ---- attention ----

const SINK = 0.2; // share on the very first token from which on it gets a row of its own

function drawAttention(position) {
  const token = tokens[position];
  const { turns: byTurn, first, heads } = token.attention;
  const sink = Math.max(...first) >= SINK;
  const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
  const rows = [];
  if (sink) rows.push(["the very first token alone", first]);
  for (let k = 0; k < byTurn[0].length; k++) {
    const turn = turns[firstShown + k];
    if (turn.start > position - 1) continue;
    rows.push([`${firstShown + k + 1} ${speaker(turn)}: ${k === byTurn[0].length - 1 ? "this reply so far" : spelled(turn.text)}`, byTurn.map((row, l) => row[k] - (sink && k === 0 ? first[l] : 0))]);
  }
  const cell = (v, extra = {}) => h("td", { "--v": Math.max(0, v) * 0.95, ...extra }, Math.abs(v) < 0.005 ? "·" : (100 * v).toFixed(0));
  put(bodyOf("attention"),
    h("p", { class: "hint" }, "Percent of attention on each turn, by layer, averaged over heads.", sink ? " Much of it rests on the first token, where heads look when they have nothing to look for." : ""),
    h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Attention by turn and layer" },
      h("table", { class: "grid" },
        h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Turn"), Array.from({ length: layers }, (_, l) => h("th", { scope: "col" }, l + 1)), h("th", { scope: "col" }, "all"))),
        h("tbody", {}, rows.map(([name, values]) => h("tr", {}, h("th", { scope: "row", title: name }, clip(name, 34)), values.map((v) => cell(v)), cell(mean(values), { class: "mean" })))))),
    heads ? headDetails(position) : null);
}

let headsOpen = false;
function headDetails(position) {
  const weights = headsOf(position);
  const holder = h("div");
  const details = h("details", { open: headsOpen, ontoggle: (event) => { headsOpen = event.target.open; if (headsOpen) drawHeads(holder, position, weights); } },
    h("summary", {}, "Token by token, head by head"), holder);
  if (headsOpen) drawHeads(holder, position, weights);
  return details;
}

/** The heads' weights of one token: layer, head, position; in the page they are bytes, 255 for a weight of 1. */
function headsOf(position) {
  const bytes = Uint8Array.from(atob(tokens[position].attention.heads), (c) => c.charCodeAt(0));
  return (layer, head, place) => bytes[(layer * model.heads + head) * position + place] / 255;
}

function drawHeads(holder, position, weightOf) {
  const lists = { layers: [...Array(layers).keys()], heads: [...Array(model.heads).keys()], places: [...Array(position).keys()] };
  const share = (l, e) => lists.places.reduce((sum, place) => sum + (place < reply.first ? weightOf(l, e, place) : 0), 0);
  const picked = (l, e) => state.layer === l && state.head === e;
  const pick = (l, e) => {
    [state.layer, state.head] = picked(l, e) ? [null, null] : [l, e];
    drawHeads(holder, position, weightOf);
    holder.querySelector(`[data-at="${l}-${e}"]`).focus();
  };
  const used = lists.layers.flatMap((l) => lists.heads.map((e) => [l, e])).filter(([l, e]) => state.head === null || picked(l, e));
  const weights = lists.places.map((place) => used.reduce((sum, [l, e]) => sum + weightOf(l, e, place), 0) / used.length);
  const top = Math.max(...weights, 1e-9);
  const best = lists.places.slice().sort((a, b) => weights[b] - weights[a]).slice(0, 5).filter((place) => weights[place] > 0.005);
  const which = state.head === null ? "all heads, averaged" : `layer ${state.layer + 1}, head ${state.head + 1}`;
  put(holder,
    h("p", { class: "hint" }, "Each square is a head, darker the more it looks beyond the reply itself. Choose one; choose it again for all."),
    h("div", { class: "scroll" }, h("table", { class: "heads" },
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "layer"), lists.heads.map((e) => h("th", { scope: "col" }, e + 1)))),
      h("tbody", {}, lists.layers.map((l) => h("tr", {}, h("th", { scope: "row" }, l + 1), lists.heads.map((e) => h("td", {},
        h("button", { type: "button", "data-at": `${l}-${e}`, "--v": share(l, e) * 0.95, "aria-pressed": String(picked(l, e)), title: `layer ${l + 1}, head ${e + 1}: ${percent(share(l, e))} on the dialogue`,
          "aria-label": `Layer ${l + 1}, head ${e + 1}: ${percent(share(l, e))} on the dialogue`, onclick: () => pick(l, e) })))))))),
    h("div", { class: "strip" },
      h("p", { class: "hint" }, `Where ${which} looked: `, best.map((place, k) => [k ? ", " : "", h("b", {}, plain(tokens[place])), ` (turn ${tokens[place].turn + 1}) ${percent(weights[place])}`]).flat()),
      turns.map((turn, index) => {
        const mine = lists.places.filter((place) => tokens[place].turn === index);
        return mine.length ? h("p", {}, mine.map((place) => h("span", { class: "tok", "--v": (weights[place] / top) * 0.95, title: percent(weights[place]) }, face(tokens[place])))) : null;
      })));
}

// ---- contributions ----

function drawContributions(token) {
  const { logit, parts, rival, rival_logit: rivalLogit, rival_parts: rivalParts } = token.contributions;
  const values = state.rival ? parts.map((part, k) => part - rivalParts[k]) : parts;
  const total = state.rival ? logit - rivalLogit : logit;
  const groups = [{ name: "in", bars: [] }, ...Array.from({ length: layers }, (_, l) => ({ name: String(l + 1), bars: [] })), { name: "rest", bars: [] }];
  data.parts.forEach((part, k) => {
    const group = part.layer !== null ? groups[part.layer + 1] : part.kind === "token" || part.kind === "position" ? groups[0] : groups.at(-1);
    if (part.kind !== "rounding" || Math.abs(values[k]) > 0.01) group.bars.push([part.kind, values[k]]);
  });
  const alike = rival.text !== token.text && rival.text.trim() === token.text.trim();
  const rivalName = alike ? `${plain(rival)} ${rival.text.startsWith(" ") ? "after" : "without"} a space` : clip(plain(rival), 18);
  const best = groups.flatMap((group) => group.bars.map(([kind, value]) => [group.name, kind, value])).sort((a, b) => b[2] - a[2])[0];
  const place = best[0] === "in" ? `the ${best[1]} embedding` : best[0] === "rest" ? best[1] : `the ${best[1] === "mlp" ? "MLP" : best[1]} of layer ${best[0]}`;
  put(bodyOf("contributions"),
    h("p", { class: "hint" }, state.rival
      ? `What put ${plain(token)} ${total < 0 ? "behind" : "ahead of"} ${rivalName} by ${Math.abs(total).toFixed(1)}; most for it: ${place} (${signed(best[2])}).`
      : `The score (logit) of ${plain(token)} is ${total.toFixed(1)}, the sum of all bars; most for it: ${place} (${signed(best[2])}).`),
    switcher("Compare", [[false, "Its score"], [true, `Its lead over ${rivalName}`]], state.rival, (value) => { state.rival = value; drawContributions(token); }),
    columnChart(groups, total),
    h("div", { class: "keys" }, [["attention", "attention"], ["mlp", "MLP"], ["other", "embeddings (in) and final bias (rest)"], ["sum", "sum so far"]].map(([kind, text]) => h("span", {}, h("i", { class: kind }), text))),
    h("p", { class: "note" }, "Size (norm) of the residual stream, the sum that every layer adds to:"),
    normChart(token.norms));
}

/** Charts are drawn at the width that they are shown at, so that their letters keep their size. */
const chartWidth = () => Math.max(240, Math.min(640, bodyOf("contributions").clientWidth || 640));

function columnChart(groups, total) {
  const W = chartWidth(), H = 190, L = 40, B = 20, gap = (W - L) / groups.length;
  let sum = 0;
  const sums = groups.map((group) => (sum += group.bars.reduce((a, [, v]) => a + v, 0)));
  const all = [0, ...sums, ...groups.flatMap((group) => group.bars.map(([, v]) => v))];
  const low = Math.min(...all), high = Math.max(...all), span = high - low || 1;
  const y = (v) => 8 + ((high - v) / span) * (H - B - 16);
  const wide = Math.min(16, gap / 3);
  const every = Math.ceil((groups.length * 24) / W);
  return s("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `Contributions by layer, in all ${total.toFixed(1)}: ` + groups.map((group) => `${group.name}: ${group.bars.map(([kind, v]) => `${kind} ${v.toFixed(1)}`).join(", ")}`).join("; ") },
    [high, low].filter((v) => Math.abs(y(v) - y(0)) > 12).map((v) => s("text", { x: L - 6, y: y(v) + 4, "text-anchor": "end" }, v.toFixed(Math.abs(v) < 10 ? 1 : 0))),
    s("text", { x: L - 6, y: y(0) + 4, "text-anchor": "end" }, "0"),
    s("line", { class: "zero", x1: L, x2: W, y1: y(0), y2: y(0) }),
    groups.map((group, g) => {
      const middle = L + gap * (g + 0.5), start = middle - (wide * group.bars.length) / 2;
      return [
        group.bars.map(([kind, v], k) => s("rect", { class: kind === "attention" || kind === "mlp" ? kind : "other", x: start + k * wide, width: Math.max(1, wide - 1.5), y: Math.min(y(v), y(0)), height: Math.max(1, Math.abs(y(v) - y(0))), rx: 1.5 }, s("title", {}, `${kind}: ${signed(v)}`))),
        g % every === 0 || g === groups.length - 1 ? s("text", { x: middle, y: H - 4, "text-anchor": "middle" }, group.name) : null];
    }),
    s("polyline", { class: "sum", points: sums.map((v, g) => `${L + gap * (g + 0.5)},${y(v)}`).join(" ") }));
}

function normChart(norms) {
  const W = chartWidth(), H = 92, L = 40, B = 20, high = Math.max(...norms);
  const x = (k) => L + ((W - L) * (k + 0.5)) / norms.length, y = (v) => 12 + (1 - v / high) * (H - B - 14);
  const every = Math.ceil((norms.length * 24) / W);
  return s("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `Norm of the residual stream by layer: ${norms.map((v) => v.toFixed(1)).join(", ")}` },
    s("line", { class: "axis", x1: L, x2: W, y1: y(0), y2: y(0) }),
    s("text", { x: L - 6, y: y(high) + 4, "text-anchor": "end" }, high.toFixed(high < 10 ? 1 : 0)), s("text", { x: L - 6, y: y(0) + 4, "text-anchor": "end" }, "0"),
    s("polyline", { class: "line", points: norms.map((v, k) => `${x(k)},${y(v)}`).join(" ") }),
    norms.map((v, k) => [s("circle", { class: "point", cx: x(k), cy: y(v), r: 3 }, s("title", {}, `${k === 0 ? "embeddings" : `layer ${k}`}: ${v.toFixed(1)}`)),
      k % every === 0 ? s("text", { x: x(k), y: H - 4, "text-anchor": "middle" }, k === 0 ? "in" : k) : null]));
}

// ---- the reply as a whole ----

function drawAblation() {
  const changes = data.ablation.map((entry) => entry.log_probability - reply.log_probability);
  const most = Math.max(...changes.map(Math.abs), Math.LN2);
  put(bodyOf("ablation"),
    h("p", { class: "hint" }, "The same reply after the dialogue without a turn. Its tokens are orange where they needed that turn, blue where they would come easier without it."),
    h("ul", { class: "turnless" }, data.ablation.map((entry, k) => {
      const change = changes[k], many = entry.removed.length > 1;
      const turn = turns[entry.removed[0]];
      const last = turns.length - 2;
      const name = many ? `Without turns ${entry.removed[0] + 1} ${entry.removed.length === 2 ? "and" : "to"} ${entry.removed.at(-1) + 1}, all but the last`
        : `Without turn ${entry.removed[0] + 1}, ${speaker(turn)}${entry.removed[0] === last ? ", which it answers" : ""}`;
      return h("li", {},
        h("div", { class: "row" }, h("span", { class: "name" }, h("small", {}, name), many ? null : spelled(turn.text)), h("b", {}, times(change))),
        h("div", { class: "balance", "aria-hidden": "true" }, h("i", { "--tint": change < 0 ? "var(--less)" : "var(--more)", "--w": Math.abs(change) / most / 2, "--from": change < 0 ? 0.5 - Math.abs(change) / most / 2 : 0.5 })),
        h("div", { class: "tokens" }, tokens.slice(reply.first).map((token, i) => {
          const delta = entry.log_probabilities[i] - reply.log_probabilities[i];
          return h("span", { class: "tok", "--v": Math.min(1, Math.abs(delta) / 5), "--tint": delta < 0 ? "var(--less)" : "var(--more)", title: times(delta) }, face(token));
        })));
    })));
}

function drawConsidered() {
  const { candidates, branches, beams, rounds } = data.considered;
  by("considered").hidden = !(candidates.length || branches.length || rounds.length);
  put(bodyOf("considered"),
    candidates.length ? [h("h3", {}, "Candidates"), candidateTable(candidates)] : null,
    beams.length ? [h("h3", {}, "Beam search"), h("p", { class: "hint" }, "From left to right, the beginnings that were followed; thick, those that became the best reply."), beamTree(branches, beams[0]), candidateTable(beams)] : null,
    rounds.length ? [h("h3", {}, "Draft tokens"), h("p", { class: "hint" }, draftInWords(rounds)),
      h("div", {}, rounds.map((round) => h("span", { class: "round" }, round.tokens.map((token, k) => h("span", { class: k < round.accepted ? "yes" : "no" }, piece(token))))))] : null);
}

function draftInWords(rounds) {
  const suggested = rounds.reduce((n, r) => n + r.tokens.length, 0), accepted = rounds.reduce((n, r) => n + r.accepted, 0);
  const said = accepted === suggested ? "all are what the model said (green)"
    : accepted === 0 ? "none is what the model said: all were struck"
    : `${number(accepted)} ${accepted === 1 ? "is" : "are"} what the model said (green), the others were struck`;
  return `A fast draft suggested ${number(suggested)} ${suggested === 1 ? "token" : "tokens"}; ${said}.`;
}

function candidateTable(replies) {
  const ranks = replies.some((one) => one.rank !== null);
  const log = (value) => (Math.abs(value) < 0.01 || Math.abs(value) >= 1000 ? value.toPrecision(3) : value.toFixed(2));
  return table("Candidates", ["Reply", ...(ranks ? ["rank"] : []), "score"], replies.map((one, k) => h("tr", { class: k === 0 ? "chosen" : null },
    h("th", { scope: "row" }, h("span", { class: "piece" }, spelled(one.text) || "(empty)"), k === 0 ? h("span", { class: "badge" }, "chosen") : null),
    ranks ? h("td", {}, log(one.rank)) : null, h("td", {}, log(one.score)))));
}

/** Those branches of a search that lead to the best reply, with an end token that closes it. */
function pathTo(best, branches, children) {
  const path = new Set();
  let parent = null;
  const follow = (found) => {
    if (found === undefined) return false;
    path.add(found);
    parent = found;
    return true;
  };
  const next = (test) => (children.get(parent) || []).find((k) => test(branches[k]));
  if (best.ids.every((id) => follow(next((branch) => branch.token === id)))) follow(next((branch) => isEnd({ id: branch.token })));
  return path;
}

/**
 * The row of each branch: the best reply is a straight line at the top, and every other beginning goes down from the line
 * that it shares to the first row with room. Taken are squares: two for each step, the one before a token and its own.
 */
function rowsOf(branches, children, followed) {
  const rows = new Map(), taken = new Set();
  const ordered = (parent) => (children.get(parent) || []).slice().sort((a, b) => followed.has(b) - followed.has(a));
  const lay = (start, from) => {
    const line = [start];
    for (let own; (own = ordered(line.at(-1))).length; ) line.push(own[0]);
    const first = 2 * branches[start].step, last = 2 * branches[line.at(-1)].step;
    const squares = Array.from({ length: last - first + 1 }, (_, k) => first + k);
    let row = from + 1;
    while (squares.some((square) => taken.has(`${row} ${square}`))) row++;
    squares.forEach((square) => taken.add(`${row} ${square}`));
    for (let between = from + 1; between <= row; between++) taken.add(`${between} ${first - 1}`);
    line.forEach((k) => rows.set(k, row));
    line.reverse().forEach((k) => ordered(k).slice(1).forEach((other) => lay(other, row))); // the last first: no two lines cross
  };
  ordered(null).forEach((root) => lay(root, -1));
  return rows;
}

function beamTree(branches, best) {
  const children = new Map();
  branches.forEach((branch, k) => children.set(branch.parent, [...(children.get(branch.parent) || []), k]));
  const followed = pathTo(best, branches, children), rows = rowsOf(branches, children, followed);
  const depth = Math.max(...branches.map((branch) => branch.step)) + 1, wide = 96, tall = 26;
  const x = (k) => branches[k].step * wide + 4, y = (k) => rows.get(k) * tall + 6;
  const W = depth * wide, H = (Math.max(...rows.values()) + 1) * tall + 8;
  const label = (branch) => (isEnd({ id: branch.token }) ? "end" : clip(spelled(branch.text).replace(/^ /, "·"), 10));
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Tree of the beam search" },
    s("svg", { viewBox: `0 0 ${W} ${H}`, width: W, height: H, "--w": 1, role: "img", "aria-label": `${branches.length} beginnings in ${depth} steps; the best reply: ${best.text}`, class: "tree" },
      branches.map((branch, k) => branch.parent === null ? null : s("path", { class: `edge${followed.has(k) && followed.has(branch.parent) ? " best" : ""}`, d: `M${x(branch.parent) + 78} ${y(branch.parent) + 10}C${x(branch.parent) + 88} ${y(branch.parent) + 10} ${x(k) - 10} ${y(k) + 10} ${x(k)} ${y(k) + 10}` })),
      branches.map((branch, k) => s("g", {}, s("rect", { class: `node${followed.has(k) ? " best" : ""}`, x: x(k), y: y(k), width: 78, height: 20, rx: 5 }),
        s("text", { class: "ink", x: x(k) + 39, y: y(k) + 14, "text-anchor": "middle" }, label(branch)), s("title", {}, `${plain({ id: branch.token, text: branch.text })}, log-probability so far ${branch.log_probability.toFixed(2)}`)))));
}

// ---- begin ----

drawTop();
drawDialogue();
drawAblation();
if (data.considered) drawConsidered();
by("turns").addEventListener("keydown", onKey);
by("previous").addEventListener("click", () => choose(state.chosen - 1));
by("next").addEventListener("click", () => choose(state.chosen + 1));
let wide = chartWidth();
addEventListener("resize", () => {
  if (wide === chartWidth()) return;
  wide = chartWidth();
  drawToken(state.chosen);
});
const asked = /^#token-(\d+)$/.exec(location.hash);
const hardest = tokens.reduce((best, token, k) => (k >= reply.first && !token.end && token.bits > (tokens[best].bits ?? -1) ? k : best), Math.min(reply.first, tokens.length - 1));
choose(asked && Number(asked[1]) < tokens.length ? Number(asked[1]) : hardest);
