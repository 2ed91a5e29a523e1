// The plot of the errors of one or two results, by iteration.
"use strict";

const WHOLE_STEPS = [0, 1, 2, 3, 4, 5].flatMap((power) => [1, 2, 5].map((step) => step * 10 ** power));
const PLOT_HEIGHT = 260;

class ErrorPlot {
  // `section` is hidden when there is nothing to draw; `about` says what the errors are.
  constructor(section, place, about) {
    Object.assign(this, { section, place, about, shown: [] });
    new ResizeObserver(() => this.plot?.setSize(this.size())).observe(place);
    const again = () => this.show(this.shown);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
    new MutationObserver(again).observe(document.documentElement, { attributeFilter: ["data-theme"] });
  }

  size() {
    return { width: Math.max(this.place.clientWidth, 200), height: PLOT_HEIGHT };
  }

  // Results: each a `title` and its `figures`.
  show(results) {
    this.shown = results;
    this.plot?.destroy();
    this.plot = undefined;
    const series = results
      .map(({ title, figures }) => ({ title, figures, values: (figures.errors || []).filter(Number.isFinite) }))
      .filter(({ values }) => values.length > 1);
    this.section.hidden = series.length === 0;
    if (!series.length) return;
    const points = [...new Set(series.flatMap(iterationsOf))].sort((a, b) => a - b);
    this.plot = new uPlot(this.options(series), [points, ...series.map((one) => valuesAt(one, points))], this.place);
    this.place.setAttribute("aria-label", series.map(({ title, values }) =>
      `${title}: from ${plain(values[0])} to ${plain(values.at(-1))}`).join("; "));
    const [{ figures, values }] = series;
    const number = figures.iterations || values.length;
    const spread = number > values.length ? ` Of ${number} iterations, ${values.length} are shown.` : "";
    this.about.textContent = `${figures.errors_are ? `${figures.engine}: ${figures.errors_are}.` : ""}${spread}`;
  }

  options(series) {
    const style = getComputedStyle(document.documentElement);
    const color = (name) => resolved(style.getPropertyValue(name));
    const lines = [color("--link"), color("--partial")];
    const line = { stroke: color("--line"), width: 1 };
    const axis = { stroke: color("--text"), grid: line, ticks: line };
    const isLog = series.every(({ values }) => values.every((value) => value > 0));
    return {
      ...this.size(),
      scales: { x: { time: false }, y: isLog ? { distr: 3 } : {} },
      axes: [
        { ...axis, label: "Iteration", incrs: WHOLE_STEPS },
        { ...axis, size: 70, values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : plain(tick))) },
      ],
      series: [
        { label: "Iteration" },
        ...series.map(({ title }, n) => ({
          label: title, stroke: lines[n % 2], width: 2, dash: n ? [6, 4] : undefined, spanGaps: true,
          value: (_, value) => (value === null ? "" : plain(value, 4)),
        })),
      ],
    };
  }
}

// The iteration of each error: a long run keeps one of several.
function iterationsOf({ figures, values }) {
  const step = Math.max(1, Math.ceil((figures.iterations || values.length) / values.length));
  return values.map((_, n) => 1 + n * step);
}

function valuesAt(one, points) {
  const at = new Map(iterationsOf(one).map((iteration, n) => [iteration, one.values[n]]));
  return points.map((point) => at.get(point) ?? null);
}

// A color as canvases take it: they know no light-dark().
function resolved(text) {
  const probe = document.createElement("span");
  probe.style.color = text;
  document.body.append(probe);
  const { color } = getComputedStyle(probe);
  probe.remove();
  return color;
}
