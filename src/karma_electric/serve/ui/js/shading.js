// An answer as it grows: its text, its tokens with their drift, and how they are shaded.
//
// The server sends final text and, a step later, the tokens it was made of. Tokens are laid over the text in order; a
// character that several tokens make up together is shaded by their mean. Text that no token is known for yet stays
// plain, so that what is read is always exactly what was sent.

import { el, percent, signed } from "./dom.js";

// Upper bound in SD, class, words. The underline tells beyond from below without colour.
export const STEPS = [
  [-1, "d0", "below −1 SD", "well below"],
  [0, "d1", "−1 to 0 SD", "below"],
  [1, "d2", "0 to +1 SD", "beyond"],
  [2, "d3", "+1 to +2 SD", "well beyond"],
  [Infinity, "d4", "over +2 SD", "far beyond"],
];

export const stepOf = (value) => STEPS.find(([upper]) => value < upper) ?? STEPS.at(-1);

// What a token is shaded by: its drift, or the projection at one capped block, in the same units.
export function makeScale(model, choice) {
  const cap = model?.cap;
  const block = choice.startsWith("block-") ? cap?.layers.indexOf(Number(choice.slice(6))) : -1;
  if (choice === "none") return { name: "none", of: () => null };
  if (block === undefined || block < 0) return { name: "drift", of: (token) => token.drift };
  const layer = cap.layers[block];
  const threshold = thresholdOf(cap, block);
  const spread = model.drift_reference?.scales?.[String(layer)] ?? null;
  return {
    name: `block ${layer}`,
    of: (token) => (token.projections && spread ? (token.projections[block] - threshold) / spread : null),
    words: (token) => (token.projections ? `; at block ${layer} the projection is ${signed(token.projections[block])}, the threshold ${signed(threshold)}` : ""),
  };
}

export const thresholdOf = (cap, block) => (Array.isArray(cap.thresholds) ? cap.thresholds[block] : cap.thresholds[String(cap.layers[block])]);

export class Answer {
  constructor(label) {
    this.text = "";
    this.tokens = [];
    this.spans = []; // {from, to, tokens, element}
    this.at = 0; // end of the text that tokens are known for
    this.pending = []; // tokens of a character that is not whole yet
    this.scale = null;
    this.blocks = 0;
    this.current = -1;
    this.tail = document.createTextNode("");
    this.element = el("div", { class: "text", dir: "auto", role: "group", "aria-label": label }, this.tail);
  }

  add(text, tokens, scale) {
    this.scale = scale;
    this.text += text;
    for (const token of tokens) this.#lay(token);
    this.tail.data = this.text.slice(this.at);
    if (this.spans.length && !this.element.hasAttribute("tabindex")) this.element.setAttribute("tabindex", "0");
  }

  #lay(token) {
    this.tokens.push(token);
    if (token.projections) this.blocks = token.projections.length;
    const start = this.#find(token.text);
    if (start < 0) {
      this.pending.push(token);
      return;
    }
    if (this.pending.length && start > this.at) this.#span(this.at, start, this.pending);
    this.pending = [];
    const length = this.text.startsWith(token.text, start) ? token.text.length : token.text.trimStart().length;
    if (length) this.#span(start, start + length, [token]);
  }

  // Where a token's text begins: at the end of what is known or, past a character that others made up, a little later.
  #find(text) {
    if (text.includes("\ufffd")) return -1;
    if (!this.pending.length) {
      if (this.text.startsWith(text, this.at)) return this.at;
      const bare = text.trimStart(); // a first space that the server left out
      return this.at === 0 && this.text.startsWith(bare) ? 0 : -1;
    }
    const found = text ? this.text.indexOf(text, this.at) : -1;
    return found >= 0 && found <= this.at + 4 * this.pending.length ? found : -1;
  }

  #span(from, to, tokens) {
    const element = el("span", {}, this.text.slice(from, to));
    const span = { from, to, tokens, element };
    element.dataset.token = String(this.spans.length);
    this.spans.push(span);
    this.at = to;
    this.tail.before(element);
    this.#shade(span);
  }

  shade(scale) {
    this.scale = scale;
    for (const span of this.spans) this.#shade(span);
  }

  #shade(span) {
    const values = span.tokens.map((token) => this.scale.of(token)).filter((value) => value !== null && value !== undefined);
    span.element.className = values.length ? stepOf(values.reduce((a, b) => a + b, 0) / values.length)[1] : "";
  }

  // A token's numbers in words.
  describe(number) {
    const span = this.spans[number];
    const known = span.tokens.filter((token) => token.drift !== null && token.drift !== undefined);
    const shown = `“${this.text.slice(span.from, span.to)}”`;
    if (!known.length) return `${shown}: drift not measured`;
    const drift = known.reduce((sum, token) => sum + token.drift, 0) / known.length;
    const share = known.reduce((sum, token) => sum + (token.share_above ?? 0), 0) / known.length;
    const above = this.blocks ? `above it in ${Math.round(share * this.blocks)} of ${this.blocks} capped blocks` : `above it in ${percent(share)} of the capped blocks`;
    const block = known.length === 1 ? (this.scale?.words?.(known[0]) ?? "") : "";
    return `${shown}: drift ${signed(drift)} SD, ${stepOf(drift)[3]} the threshold; ${above}${block}`;
  }

  // Running figures, until the server has given its own.
  get mean() {
    const known = this.tokens.filter((token) => token.drift !== null && token.drift !== undefined);
    return known.length ? known.reduce((sum, token) => sum + token.drift, 0) / known.length : null;
  }
}
