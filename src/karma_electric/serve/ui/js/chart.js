// The mean drift of every answer as a line per column, with the threshold and the alarm level.

import uPlot from "../vendor/uPlot.esm.js";
import { el, replace, signed } from "./dom.js";

const HEIGHT = 190;

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

export const alarmLevel = (reference) => reference?.alarm?.level ?? null;

export class DriftChart {
  // columns: [{name, colour, dash}]
  constructor(place, key, table) {
    this.place = place;
    this.key = key;
    this.table = table;
    this.plot = null;
    this.rows = [];
    this.columns = [];
    this.alarm = null;
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    new ResizeObserver(() => this.plot?.setSize({ width: this.#width(), height: HEIGHT })).observe(place);
  }

  #width() {
    return Math.max(220, this.place.clientWidth);
  }

  // rows: per answer {turn, values: [number or null per column]}
  show(columns, rows, alarm) {
    this.columns = columns;
    this.rows = rows;
    this.alarm = alarm;
    this.draw();
    this.#list();
  }

  draw() {
    this.plot?.destroy();
    this.plot = null;
    if (!this.rows.some((row) => row.values.some((value) => value !== null))) {
      replace(this.place, el("p", { class: "quiet" }, "No answer has been measured yet."));
      return;
    }
    replace(this.place);
    const turns = this.rows.map((row) => row.turn);
    const lines = this.columns.map((_, column) => this.rows.map((row) => row.values[column]));
    const known = lines.flat().filter((value) => value !== null);
    const levels = [0, ...(this.alarm === null ? [] : [this.alarm])];
    const low = Math.min(...known, ...levels);
    const high = Math.max(...known, ...levels);
    const room = Math.max(0.25, 0.12 * (high - low));
    const font = "11px system-ui, sans-serif";
    const axis = { stroke: colour("--quiet"), font, labelFont: font, grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false } };
    this.plot = new uPlot(
      {
        width: this.#width(),
        height: HEIGHT,
        legend: { show: false },
        cursor: { show: false },
        select: { show: false },
        scales: { x: { time: false, range: [0.5, Math.max(4, turns.at(-1)) + 0.5] }, y: { range: [low - room, high + room] } },
        axes: [
          { ...axis, incrs: [1, 2, 5, 10, 20, 50], label: "answer", labelSize: 16, size: 24, gap: 2 },
          { ...axis, size: 40, gap: 4, values: (_, ticks) => ticks.map((tick) => signed(tick, 1)), label: "mean drift, SD", labelSize: 16 },
        ],
        series: [
          {},
          ...this.columns.map((column) => ({
            label: column.name,
            stroke: colour(column.colour),
            width: 2,
            dash: column.dash,
            spanGaps: true,
            points: { show: true, size: 7, fill: column.dash ? colour("--back") : colour(column.colour), stroke: colour(column.colour) },
          })),
        ],
        hooks: { drawAxes: [(plot) => this.#levels(plot)] },
      },
      [turns, ...lines],
      this.place,
    );
    const canvas = this.place.querySelector("canvas");
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `Line chart of the mean drift of ${turns.length} answers; the table below has the numbers.`);
  }

  #levels(plot) {
    const ratio = devicePixelRatio;
    const { ctx, bbox } = plot;
    const line = (value, name, dash) => {
      const y = plot.valToPos(value, "y", true);
      ctx.save();
      ctx.strokeStyle = ctx.fillStyle = colour("--text");
      ctx.lineWidth = ratio;
      ctx.setLineDash(dash.map((length) => length * ratio));
      ctx.beginPath();
      ctx.moveTo(bbox.left, y);
      ctx.lineTo(bbox.left + bbox.width, y);
      ctx.stroke();
      ctx.font = `${11 * ratio}px system-ui, sans-serif`;
      ctx.textAlign = "right";
      ctx.textBaseline = "bottom";
      ctx.fillText(name, bbox.left + bbox.width - 2 * ratio, y - 2 * ratio);
      ctx.restore();
    };
    line(0, "threshold 0", [6, 3]);
    if (this.alarm !== null) line(this.alarm, `alarm ${signed(this.alarm)}`, [2, 3]);
  }

  #list() {
    const measured = this.rows.some((row) => row.values.some((value) => value !== null));
    this.table.closest("details").hidden = this.key.hidden = !measured;
    replace(
      this.key,
      ...this.columns.map((column) => el("li", {}, el("span", { class: `line ${column.dash ? "dashed" : ""} ${column.class}`, "aria-hidden": "true" }), column.name)),
    );
    replace(
      this.table,
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Answer"), ...this.columns.map((column) => el("th", { scope: "col" }, `${column.name}, SD`)))),
      el("tbody", {}, ...this.rows.map((row) => el("tr", {}, el("th", { scope: "row" }, String(row.turn)), ...row.values.map((value) => el("td", {}, signed(value)))))),
    );
  }
}
