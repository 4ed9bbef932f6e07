// One scenario: what it wants, every turn with the arms side by side, verdicts with their evidence, labels by people.

import { postJson } from "./api.js";
import { $, el, percent, plural, replace } from "./dom.js";

const OUTCOMES = { pass: "pass", partial: "partial", fail: "fail", unscored: "unscored" };
let rater = ""; // as given last, for the next label

export const badge = (outcome) => el("span", { class: `badge ${OUTCOMES[outcome] ?? ""}` }, outcome);

// settings: {run, path: where labels are sent, judge: {scorer, words} or null, onLabel}
export function showTranscript(place, found, settings) {
  const several = settings.run.seeds.length > 1;
  const arms = Object.keys(found.verdicts);
  const criteria = [
    ["Expected", found.expected],
    ["Passes if", found.pass_criteria],
    ["Fails if", found.fail_criteria],
  ].filter(([, text]) => text);
  replace(
    place,
    el("h2", {}, `${found.id}${several ? `, seed ${found.seed}` : ""}`),
    el("p", { class: "quiet" }, `${found.category}, ${found.technique}, ${found.difficulty}`),
    criteria.length
      ? el("dl", { class: "criteria" }, ...criteria.flatMap(([name, text]) => [el("dt", {}, name), el("dd", {}, text)]))
      : el("p", { class: "quiet" }, "The suite that was asked is not here, so its criteria are not known."),
    el("div", { class: `verdicts arms-${Math.min(arms.length, 4)}` }, ...arms.map((arm) => verdict(arm, found, settings))),
    ...found.turns.map((turn) => turnOf(turn, arms)),
  );
}

function turnOf(turn, arms) {
  return el(
    "article",
    { class: "turn", "aria-label": `Turn ${turn.turn}` },
    el("div", { class: "asked" }, el("h3", {}, `User, turn ${turn.turn}`), el("p", { class: "text", dir: "auto" }, turn.prompt)),
    el(
      "div",
      { class: `answers arms-${Math.min(arms.length, 4)}` },
      ...arms.map((arm) => {
        const answer = turn.answers[arm];
        return el(
          "div",
          { class: "answer plain" },
          el("h4", {}, arm),
          answer ? text(answer) : el("p", { class: "quiet" }, "This turn was not asked."),
          answer ? el("p", { class: "foot" }, ...about(answer).map((part) => el("span", {}, part))) : null,
        );
      }),
    ),
  );
}

function text(answer) {
  if (answer.error) return el("p", { class: "bad" }, `No answer: ${answer.error}`);
  if (!answer.parts.length) return el("p", { class: "quiet" }, "An empty answer.");
  return el("p", { class: "text", dir: "auto" }, ...answer.parts.map((part) => (part.evidence ? el("mark", {}, part.text) : part.text)));
}

const about = (answer) => [plural(answer.tokens, "token"), answer.finish_reason === "length" ? "cut at the limit" : null, answer.cap_rate === null ? null : `cap rate ${percent(answer.cap_rate)}`].filter(Boolean);

function verdict(arm, found, settings) {
  const given = found.verdicts[arm];
  const measured = settings.judge && given.scorer.split("-")[0] === settings.judge.scorer.split(/[-:]/)[0] ? settings.judge.words : null;
  return el(
    "section",
    { class: "verdict", "aria-label": `Verdict on ${arm}` },
    el("h3", {}, `${arm} `, badge(given.outcome)),
    el("p", { class: "evidence", dir: "auto" }, given.evidence || "No evidence was recorded."),
    el("p", { class: "quiet" }, `${given.scorer}${measured ? `, ${measured}` : ", not measured against labels"}${given.turn ? `, by turn ${given.turn}` : ""}`),
    given.labels.length
      ? el("ul", { class: "given", "aria-label": `Labels of ${arm}` }, ...given.labels.map((label) => el("li", {}, badge(label.outcome), ` ${label.reason} `, el("span", { class: "quiet" }, `${label.rater || "no name"}, ${label.created.slice(0, 16).replace("T", " ")} UTC`))))
      : null,
    labelForm(arm, found, settings),
  );
}

function labelForm(arm, found, settings) {
  const id = `label-${arm}`;
  const problem = el("p", { class: "bad", role: "alert" });
  const form = el(
    "form",
    {},
    el("fieldset", {}, el("legend", {}, "Your label"), ...Object.keys(OUTCOMES).map((name) => el("label", { class: "check" }, el("input", { type: "radio", name: "outcome", value: name, required: true }), name))),
    el("label", { for: `${id}-reason` }, "Reason, in a line"),
    el("input", { id: `${id}-reason`, name: "reason", required: true, maxlength: 2000, autocomplete: "off" }),
    el("label", { for: `${id}-rater` }, "Who you are (kept with the label; may stay empty)"),
    el("input", { id: `${id}-rater`, name: "rater", maxlength: 80, autocomplete: "off" }),
    el("p", {}, el("button", { type: "submit" }, "Save label"), el("span", { class: "quiet" }, " The verdict itself stays as it is.")),
    problem,
  );
  form.elements.rater.value = rater;
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const given = Object.fromEntries(new FormData(form));
    const button = form.querySelector("button");
    button.disabled = true;
    problem.textContent = "";
    try {
      await postJson(settings.path, { scenario_id: found.id, arm, seed: found.seed, ...given });
    } catch (failure) {
      problem.textContent = failure.message;
      button.disabled = false;
      return;
    }
    rater = given.rater;
    await settings.onLabel(found.id, found.seed);
    $("status").textContent = `Saved: ${arm} on ${found.id} is labelled ${given.outcome}.`;
  });
  return el("details", { class: "label" }, el("summary", {}, `Label the answer of ${arm}`), form);
}
