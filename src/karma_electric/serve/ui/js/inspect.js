// Tokens tell their numbers to the mouse, to a finger and to the keyboard.

import { $ } from "./dom.js";

export function watchTokens(answer) {
  const box = answer.element;
  const show = (number, loud) => {
    box.querySelector(".current")?.classList.remove("current");
    const span = answer.spans[number];
    if (!span) return;
    span.element.classList.add("current");
    const tip = $("tip");
    tip.setAttribute("aria-live", loud ? "polite" : "off");
    tip.textContent = answer.describe(number);
    tip.hidden = false;
    if (loud) span.element.scrollIntoView({ block: "nearest" });
    const at = span.element.getClientRects()[0] ?? box.getBoundingClientRect();
    tip.style.left = `${Math.max(8, Math.min(at.left, innerWidth - tip.offsetWidth - 8))}px`;
    tip.style.top = `${at.top - tip.offsetHeight - 6 > 0 ? at.top - tip.offsetHeight - 6 : at.bottom + 6}px`;
  };
  const hide = () => {
    $("tip").hidden = true;
    box.querySelector(".current")?.classList.remove("current");
  };
  box.addEventListener("pointerover", (event) => {
    if (event.target.dataset?.token) show(Number(event.target.dataset.token), false);
  });
  box.addEventListener("pointerleave", (event) => {
    if (event.pointerType === "mouse") hide(); // a finger leaves at once, and what it asked for stays
  });
  box.addEventListener("blur", hide);
  box.addEventListener("keydown", (event) => {
    const last = answer.spans.length - 1;
    const moves = { ArrowRight: answer.current + 1, ArrowLeft: answer.current - 1, Home: 0, End: last };
    if (event.key === "Escape") hide();
    if (!(event.key in moves) || last < 0) return;
    event.preventDefault();
    answer.current = Math.max(0, Math.min(last, moves[event.key]));
    show(answer.current, true);
  });
}

const hideTip = () => {
  $("tip").hidden = true;
};
document.addEventListener("pointerdown", (event) => event.target.dataset?.token || hideTip());
document.addEventListener("scroll", () => $("tip").getAttribute("aria-live") === "off" && hideTip(), { passive: true });
