// The page of red-team runs: which run, its arms, the scenarios that the filters leave.

import { getJson, getText, setKey } from "./api.js";
import { $, download, el, percent, plural, replace } from "./dom.js";
import { badge, showTranscript } from "./transcript.js";

const OUTCOMES = ["pass", "partial", "fail", "unscored"];
const PAGE = 100;

let runs = [];
let run = null; // overview of the chosen one
let listed = 0;
let asked = 0; // number of the newest request for a list; older answers are dropped

const filters = $("filters");
const path = (name, rest = "") => `karma/runs/${encodeURIComponent(name)}${rest}`;

async function load() {
  try {
    ({ runs } = await getJson("karma/runs"));
  } catch (failure) {
    told(failure.status === 404 ? "This server shows no runs. Start it with: karma serve MODEL --runs runs" : failure.message, true);
    if (failure.status === 401) {
      $("key").hidden = false;
      $("key-field").focus();
    }
    return;
  }
  $("key").hidden = true;
  if (!runs.length) {
    told("There is no red-team run in that folder yet. Make one: karma redteam run recipes/demo.toml", true);
    return;
  }
  replace($("run"), ...runs.map((one) => el("option", { value: one.id }, one.id.replaceAll("~", "/"))));
  $("run").disabled = runs.length < 2;
  $("page").hidden = false;
  open();
}

function told(text, bad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", bad);
}

// What the address names: #run=demo&case=ID&seed=0
function place() {
  const named = new URLSearchParams(location.hash.slice(1));
  return { run: named.get("run"), scenario: named.get("case"), seed: Number(named.get("seed") ?? 0) };
}

const address = (scenario, seed) => `#${new URLSearchParams({ run: run.id, case: scenario, seed: String(seed) })}`;

// Shows the run and the scenario of the address, or the first run.
async function open() {
  const wanted = place();
  const chosen = runs.find((one) => one.id === wanted.run) ?? runs[0];
  if (run?.id !== chosen.id) {
    run = chosen;
    $("run").value = run.id;
    if (run.problem) {
      told(`${run.id} cannot be read: ${run.problem}`, true);
      for (const id of ["arms", "cases", "judge", "count"]) replace($(id));
      return;
    }
    told(`${plural(run.cases, run.seeds.length > 1 ? "answer set" : "scenario")} of ${run.suite ?? "a suite that is not here"}${run.seeds.length > 1 ? `, ${plural(run.seeds.length, "seed")}` : ""}${run.created ? `, ${run.created.slice(0, 10)}` : ""}`);
    showArms();
    offerFilters();
    await list();
  }
  if (wanted.scenario) await choose(wanted.scenario, wanted.seed);
}

function showArms() {
  const pairs = run.arms.some((arm) => Object.keys(arm.changed).length);
  const header = ["Arm", ...OUTCOMES, "pass rate of those scored (95% interval)", ...(run.arms.some((arm) => arm.mean_cap_rate !== null) ? ["cap rate"] : []), ...(pairs ? ["against the arm before"] : [])];
  replace(
    $("arms"),
    el("thead", {}, el("tr", {}, ...header.map((name) => el("th", { scope: "col" }, name)))),
    el(
      "tbody",
      {},
      ...run.arms.map((arm) => {
        const rate = arm.pass_rate_scored;
        const before = Object.entries(arm.changed).at(-1);
        return el(
          "tr",
          {},
          el("th", { scope: "row" }, arm.name),
          ...OUTCOMES.map((outcome) => el("td", {}, String(arm.counts?.[outcome] ?? "–"))),
          el("td", {}, rate?.value === null || !rate ? "none scored" : `${percent(rate.value)} (${percent(rate.low)} to ${percent(rate.high)})`),
          header.includes("cap rate") ? el("td", {}, percent(arm.mean_cap_rate)) : null,
          pairs ? el("td", {}, before ? `${before[1].any} differ from ${before[0]}: ${before[1].gained} gained, ${before[1].lost} lost` : "") : null,
        );
      }),
    ),
  );
  const { judge } = run;
  $("judge").textContent = judge
    ? `Judge: ${judge.scorer}. ${kappa()} on ${plural(judge.n, "labelled answer")}${judge.between_raters ? ", between two raters" : judge.half === "B" ? " that it was not tuned on" : ""}; of answers labelled pass it passes ${percent(judge.sensitivity)}, of the others it does not pass ${percent(judge.specificity)}. Unscored answers are never counted as passes.`
    : "No judge was measured beside these arms: how far its verdicts can be trusted is not known.";
}

const kappa = () => {
  const { kappa: value, kappa_interval: interval } = run.judge;
  if (value === null) return "Kappa undefined";
  return `Cohen's kappa ${value.toFixed(2)}${interval ? ` (95% interval ${interval[0].toFixed(2)} to ${interval[1].toFixed(2)})` : ""}`;
};

function offerFilters() {
  const options = (name, values, first) => replace(filters[name], ...(first ? [el("option", { value: "" }, first)] : []), ...values.map(([value, text]) => el("option", { value }, text)));
  const counted = (counts) => Object.entries(counts).map(([name, count]) => [name, `${name} (${count})`]);
  const arms = run.arms.map((arm) => [arm.name, arm.name]);
  options("category", counted(run.categories), "all");
  options("difficulty", counted(run.difficulties), "all");
  options("outcome", OUTCOMES.map((name) => [name, name]), "all");
  options("arm", arms, "any");
  options("first", arms);
  options("second", arms);
  filters.reset();
  filters.first.value = arms.at(-2)?.[0] ?? arms[0][0];
  filters.second.value = arms.at(-1)[0];
  filters.change.disabled = filters.first.disabled = filters.second.disabled = arms.length < 2;
  countLabels(run.labels);
}

function countLabels(count) {
  run.labels = count;
  $("labels").hidden = !count;
  $("labels-note").textContent = count ? `${plural(count, "label")} by people; as a file for karma judge calibrate` : "";
}

function query(offset) {
  const data = new FormData(filters);
  const found = new URLSearchParams();
  for (const [name, value] of data) if (value) found.set(name, value);
  if (!found.get("change")) for (const name of ["change", "first", "second"]) found.delete(name);
  found.set("offset", offset);
  found.set("limit", PAGE);
  return found;
}

async function list({ more = false } = {}) {
  const number = ++asked;
  const offset = more ? listed : 0;
  let found;
  try {
    found = await getJson(path(run.id, `/cases?${query(offset)}`));
  } catch (failure) {
    if (number === asked) $("count").textContent = failure.message;
    return;
  }
  if (number !== asked) return;
  listed = offset + found.cases.length;
  $("count").textContent = `${found.matched} of ${found.total} ${found.matched > listed ? `(first ${listed} shown)` : ""}`.trim();
  const items = found.cases.map(item);
  if (more) {
    $("cases").append(...items);
    items[0]?.querySelector("a").focus();
  } else replace($("cases"), ...(items.length ? items : [el("li", { class: "quiet" }, "Nothing fits these filters.")]));
  $("more").hidden = listed >= found.matched;
  markChosen();
}

function item(found) {
  const several = run.seeds.length > 1;
  return el(
    "li",
    {},
    el(
      "a",
      { href: address(found.id, found.seed), "data-case": `${found.id} ${found.seed}` },
      el("span", { class: "id" }, `${found.id}${several ? `, seed ${found.seed}` : ""}`),
      el("span", { class: "prompt", dir: "auto" }, found.prompt),
      el("span", { class: "meta quiet" }, `${found.difficulty}, ${plural(found.turns, "turn")}`),
      el(
        "span",
        { class: "outcomes" },
        ...Object.entries(found.arms).map(([arm, { outcome, label }]) => el("span", { class: "one" }, `${arm} `, badge(outcome), label ? [" labelled ", badge(label)] : null)),
      ),
    ),
  );
}

function markChosen() {
  const { scenario, seed } = place();
  for (const link of $("cases").querySelectorAll("a")) {
    if (link.dataset.case === `${scenario} ${seed}`) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
}

async function choose(scenario, seed) {
  markChosen();
  const wanted = run.id;
  let found;
  try {
    found = await getJson(path(run.id, `/transcript?${new URLSearchParams({ scenario, seed: String(seed) })}`));
  } catch (failure) {
    replace($("transcript"), el("p", { class: "bad" }, failure.message));
    return;
  }
  if (run.id !== wanted || place().scenario !== scenario || place().seed !== seed) return;
  showTranscript($("transcript"), found, { run, path: path(run.id, "/relabels"), judge: run.judge && { scorer: run.judge.scorer, words: run.judge.kappa === null ? null : `kappa ${run.judge.kappa.toFixed(2)}` }, onLabel: labelled });
  $("transcript").focus({ preventScroll: true });
  const { top } = $("transcript").getBoundingClientRect();
  if (top < 0 || top > innerHeight / 2) $("transcript").scrollIntoView();
}

// A label was saved: the lists and the transcript show it.
async function labelled(scenario, seed) {
  countLabels(run.labels + 1);
  await Promise.all([list(), choose(scenario, seed)]);
}

let waiting = 0;
filters.addEventListener("input", () => {
  clearTimeout(waiting);
  waiting = setTimeout(() => list(), 150);
});
filters.addEventListener("submit", (event) => event.preventDefault());
$("more").addEventListener("click", () => list({ more: true }));
$("run").addEventListener("change", () => {
  replace($("transcript"), el("p", { class: "quiet" }, "Choose a scenario to read what every arm answered."));
  location.hash = new URLSearchParams({ run: $("run").value });
});
$("labels").addEventListener("click", async () => {
  try {
    download(await getText(path(run.id, "/labelled.jsonl")), `${run.id}-labels.jsonl`, "application/x-ndjson");
  } catch (failure) {
    $("labels-note").textContent = failure.message;
  }
});
addEventListener("hashchange", () => runs.length && open());
$("key").addEventListener("submit", async (event) => {
  event.preventDefault();
  setKey($("key-field").value);
  $("key-field").value = "";
  await load();
});

load();
