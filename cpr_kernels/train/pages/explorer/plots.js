// Figures of a run over its training: PMR over epochs, CMR by class. Drawn at their size, so that text is 12 px everywhere.

const wayName = (run, way) => ({ mined: "mined", both: "sum of both", all: "sum of all" })[way] ?? (run.views.find((view) => view.name === way)?.label ?? way) + " alone";

// PMR of every way of mining, over the epochs of a run.
function pmrPlot(run, width) {
  const ways = [...new Set(run.epochs.flatMap((epoch) => Object.keys(epoch.pmr)))];
  const top = Math.max(0.05, ...run.epochs.flatMap((epoch) => Object.values(epoch.pmr))) * 1.08;
  const height = 250, left = 40, bottom = 26;
  const x = (i) => left + (run.epochs.length < 2 ? 0.5 : i / (run.epochs.length - 1)) * (width - left - 10);
  const y = (value) => height - bottom - (value / top) * (height - bottom - 22);
  const parts = [];
  for (const [share] of ticks(0, top, 5)) {
    parts.push(shape("line", { x1: left, x2: width - 8, y1: y(share), y2: y(share), class: "rule" }));
    parts.push(shape("text", { x: left - 5, y: y(share) + 4, "text-anchor": "end" }, `${+(100 * share).toFixed(1)}%`));
  }
  let free = 0;
  run.epochs.forEach((epoch, i) => {
    if (i && run.epochs[i - 1].phase === epoch.phase) return;
    parts.push(shape("line", { x1: x(i), x2: x(i), y1: 16, y2: height - bottom, class: "rule strong" }));
    if (x(i) < free) return;
    const text = shortened(epoch.phase, 14);
    parts.push(shape("text", { x: x(i) + 3, y: 12 }, text));
    free = x(i) + 8 * text.length;
  });
  for (const way of ways) {
    const at = run.epochs.flatMap((epoch, i) => (way in epoch.pmr ? [[x(i).toFixed(1), y(epoch.pmr[way]).toFixed(1)]] : []));
    const { colour: stroke, dash, path } = markOf(way);
    parts.push(shape("polyline", { points: at.map((point) => point.join()).join(" "), fill: "none", stroke, "stroke-width": 2, "stroke-dasharray": dash }));
    const every = Math.ceil(at.length / 12);
    at.forEach(([cx, cy], i) => { if (i % every === 0 || i === at.length - 1) parts.push(shape("path", { d: path, fill: stroke, transform: `translate(${cx} ${cy}) scale(3.5)` })); });
  }
  parts.push(shape("text", { x: width - 8, y: height - 7, "text-anchor": "end" }, run.epochs.length > 1 ? `epochs 1 to ${run.epochs.length}` : "epoch 1"));
  return [picture(width, height, "PMR over epochs", parts), legend(run, ways)];
}

// CMR of the last epoch, class by class.
function cmrPlot(run, width) {
  const last = run.epochs[run.epochs.length - 1];
  const ways = Object.keys(last.cmr).filter((way) => way !== "both" && way !== "all");
  const classes = Object.keys(last.cmr[ways[0]]).sort((a, b) => last.cmr[ways[0]][b] - last.cmr[ways[0]][a]);
  const bar = 13, gap = bar * ways.length + 9, left = Math.min(150, width * 0.4), height = classes.length * gap + 4;
  const parts = classes.flatMap((name, row) => [
    shape("text", { x: left - 6, y: row * gap + (bar * ways.length) / 2 + 4, "text-anchor": "end" }, shortened(name, Math.floor(left / 7.5))),
    ...ways.flatMap((way, i) => {
      const value = last.cmr[way][name] ?? 0, long = value * (width - left - 40);
      return [
        shape("rect", { x: left, y: row * gap + bar * i + 1, width: long.toFixed(1), height: bar - 2, fill: markOf(way).colour }),
        shape("text", { x: left + 4 + long, y: row * gap + bar * i + 11 }, (100 * value).toFixed(0)),
      ];
    }),
  ]);
  return [picture(width, height, "CMR by class", parts), legend(run, ways)];
}

// The first letters of a name that fit; letters of Chinese, Japanese and Korean are two wide.
function shortened(name, most) {
  let wide = 0;
  const letters = [...name], end = letters.findIndex((letter) => (wide += letter >= "\u2e80" ? 2 : 1) > most);
  return end < 0 ? name : letters.slice(0, Math.max(1, end - 1)).join("") + "…";
}

function legend(run, ways) {
  const row = make("p", { className: "legend" });
  for (const way of ways) {
    const { colour: stroke, dash, path } = markOf(way);
    const key = picture(34, 12, "", [shape("line", { x1: 2, x2: 32, y1: 6, y2: 6, stroke, "stroke-width": 2, "stroke-dasharray": dash }), shape("path", { d: path, fill: stroke, transform: "translate(17 6) scale(4)" })]);
    row.append(make("span", {}, key, " ", wayName(run, way)));
  }
  return row;
}

function drawHistory() {
  const parts = [], room = Math.min(el("history").clientWidth || 600, 1250), wide = room > 820 ? (room - 24) / 2 : room;
  for (const run of runs.filter((one) => one.kind !== "table")) {
    if (!run.epochs.length) { parts.push(make("p", { className: "soft", textContent: `${run.name}: its log holds no mining figures (${run.album.classes.length ? "the queue was never full" : "its videos have no classes"})` })); continue; }
    const last = run.epochs[run.epochs.length - 1];
    const plots = make("div", { className: "plots" }, make("div", {}, make("h3", { textContent: "PMR over time: the share of mined positives with their clip's class" }), ...pmrPlot(run, wide)));
    if (Object.keys(last.cmr).length) plots.append(make("div", {}, make("h3", { textContent: `CMR by class, last epoch of ${last.phase}: share of the class's videos that were found, %` }), ...cmrPlot(run, wide)));
    parts.push(make("h2", { textContent: run.name }), plots);
  }
  el("history").replaceChildren(...parts);
}
