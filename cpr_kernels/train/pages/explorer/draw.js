// Pictures: the scatter of two views, lines over epochs, bars by class, thumbnails.

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

const addresses = new Map(); // album, video and picture: its address, made when first shown

function address(run, entry, picture, encoded) {
  const key = run.run.album + ":" + run.videos[entry] + ":" + picture;
  if (!addresses.has(key)) {
    const bytes = Uint8Array.from(atob(encoded), (letter) => letter.charCodeAt(0));
    addresses.set(key, URL.createObjectURL(new Blob([bytes], { type: "image/jpeg" })));
  }
  return addresses.get(key);
}

// The extra pictures of a video, beside its frames: one of each view that has its own, such as sound.
function extraPictures(run, entry) {
  const held = run.album.videos[run.videos[entry]].extra ?? {};
  return run.views.filter((view) => view.name in held).map((view) => {
    const { caption, why, jpeg } = held[view.name];
    const image = make("i");
    if (jpeg) image.style.backgroundImage = `url(${address(run, entry, view.name, jpeg)})`;
    return make("span", { className: "beside", title: why }, image, caption);
  });
}

function clip(run, entry, kind = "", text = null) {
  const video = run.album.videos[run.videos[entry]];
  const strip = make("span", { className: "strip" });
  const frames = run.album.frames;
  strip.style.cssText = `background-image:url(${address(run, entry, "strip", video.strip)});background-size:${100 * frames}% ${run.album.flow ? 200 : 100}%;--frames:${frames};--length:${frames / 8}s`;
  const name = run.album.classes[video.class] ?? video.id.split("/").pop();
  const button = make("button", { className: "clip " + kind, title: video.id + " · " + name }, strip, ...extraPictures(run, entry), make("span", { className: "name", textContent: text ?? name }));
  button.dataset.entry = entry;
  return button;
}

const labelled = (run) => run.album.classes.length > 1;

const mark = (run, entry, query) => (!labelled(run) ? "" : run.classes[entry] === run.classes[query] ? "right" : "wrong");

// Entries by their similarity in two views, and every stage's threshold; as near as the entries that stage `shown` judges.
function scatter(canvas, run, stages, query, axes, shown) {
  const ratio = window.devicePixelRatio || 1;
  const width = canvas.clientWidth || 480, height = Math.round(Math.min(width * 0.75, 460)), pad = 34;
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  canvas.style.aspectRatio = `${width}/${height}`;
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  const [x, y] = axes.map((view) => (view < 0 ? Float64Array.from({ length: run.entries }, (_, i) => (i * 0.618) % 1) : similarities(run, view, query)));
  const own = (entry) => run.sources[entry] === run.sources[query];
  const last = stages[shown];
  const ends = (values) => {
    let low = Infinity, high = -Infinity;
    for (const list of [last.kept, last.out]) for (const i of list) { low = Math.min(low, values[i]); high = Math.max(high, values[i]); }
    const room = (high - low) * 0.05 || 0.01;
    return [low - room, high + room];
  };
  const [x0, x1] = ends(x), [y0, y1] = ends(y);
  const toX = (value) => pad + ((value - x0) / (x1 - x0)) * (width - pad - 8);
  const toY = (value) => height - pad - ((value - y0) / (y1 - y0)) * (height - pad - 8);
  const alive = new Set(last.kept);
  const fell = new Set(last.out);
  const dots = [];
  const dot = (entry, fill, radius, alpha, square = false) => {
    pen.globalAlpha = alpha;
    pen.fillStyle = fill;
    pen.beginPath();
    if (square) pen.rect(toX(x[entry]) - radius, toY(y[entry]) - radius, 2 * radius, 2 * radius);
    else pen.arc(toX(x[entry]), toY(y[entry]), radius, 0, 7);
    pen.fill();
    dots.push([toX(x[entry]), toY(y[entry]), entry]);
  };
  const many = run.entries > 2000 ? 0.5 : 1;
  const size = run.entries > 2000 ? 0.6 : 1;
  const inside = (i) => x[i] >= x0 && x[i] <= x1 && y[i] >= y0 && y[i] <= y1;
  const fills = { good: colour("good"), bad: colour("bad"), dot: colour("dot") };
  const right = (i) => labelled(run) && run.classes[i] === run.classes[query];
  for (let i = 0; i < run.entries; i++) if (!own(i) && !alive.has(i) && !fell.has(i) && inside(i)) dot(i, fills.dot, 2, 0.35 * many);
  for (const i of last.out) dot(i, right(i) ? fills.good : fills.dot, 2.6, 0.75 * many);
  if (!labelled(run)) for (const i of last.kept) dot(i, colour("mark"), 4.2 * size, 0.9);
  else for (const i of last.kept) if (!right(i)) dot(i, fills.bad, 3.4 * size, 0.9 * many, true);
  for (const i of last.kept) if (right(i)) dot(i, fills.good, 4.2 * size, 0.9);
  pen.globalAlpha = 1;
  thresholds(pen, stages, shown, axes, { toX, toY, x0, x1, y0, y1, pad, width, height });
  pen.fillStyle = colour("soft");
  pen.font = "12px system-ui, sans-serif";
  const label = (view) => (view < 0 ? "(one view only)" : "similarity in " + run.views[view].label);
  pen.fillText(label(axes[0]) + " →", pad, height - 6);
  pen.save();
  pen.translate(12, height - pad);
  pen.rotate(-Math.PI / 2);
  pen.fillText(label(axes[1]) + " →", 0, 0);
  pen.restore();
  for (const [value, at, text] of [[x0, "left", ""], [x1, "right", ""]]) {
    pen.textAlign = at;
    pen.fillText(value.toFixed(2) + text, toX(value), height - pad + 14);
  }
  pen.textAlign = "left";
  pen.fillText(y1.toFixed(2), pad + 2, 12);
  return dots;
}

// A stage of one view is a straight line at its threshold; of both, a slanted one.
function thresholds(pen, stages, shown, axes, box) {
  stages.forEach((stage, s) => {
    const newest = s === shown;
    pen.strokeStyle = pen.fillStyle = colour(newest ? "mark" : "soft");
    pen.lineWidth = newest ? 1.8 : 1;
    pen.setLineDash(newest ? [] : [3, 4]);
    const weight = axes.map((axis) => stage.weights.reduce((sum, [view, w]) => sum + (view === axis ? w : 0), 0));
    const elsewhere = stage.weights.some(([view]) => !axes.includes(view));
    if (elsewhere || !isFinite(stage.threshold) || (!weight[0] && !weight[1])) return;
    let from, to;
    if (!weight[1]) [from, to] = [[stage.threshold / weight[0], box.y0], [stage.threshold / weight[0], box.y1]];
    else {
      const at = (x) => (stage.threshold - weight[0] * x) / weight[1];
      [from, to] = [[box.x0, at(box.x0)], [box.x1, at(box.x1)]];
    }
    pen.save();
    pen.beginPath();
    pen.rect(box.pad, 0, box.width - box.pad, box.height - box.pad);
    pen.clip();
    pen.beginPath();
    pen.moveTo(box.toX(from[0]), box.toY(from[1]));
    pen.lineTo(box.toX(to[0]), box.toY(to[1]));
    pen.stroke();
    pen.font = "600 11px system-ui, sans-serif";
    const end = weight[1] ? [box.width - 14, box.toY(to[1]) - 3] : [box.toX(from[0]) + 3, 12 + 12 * (s % 6)];
    pen.fillText(String(s + 1), Math.min(end[0], box.width - 14), Math.max(10, Math.min(end[1], box.height - box.pad - 3)));
    pen.restore();
  });
  pen.setLineDash([]);
}

const STYLES = { mined: ["#0b62c4", ""], both: ["#8a8f98", "2 3"], all: ["#8a8f98", "2 3"] };
const OTHERS = [["#c77700", "7 4"], ["#16915a", "9 3 2 3"], ["#a04bc0", "4 2"]];
const styleOf = (way, ways) => STYLES[way] ?? OTHERS[ways.filter((one) => !STYLES[one]).indexOf(way) % OTHERS.length];

const wayName = (run, way) => ({ mined: "mined", both: "sum of both", all: "sum of all" })[way] ?? (run.views.find((view) => view.name === way)?.label ?? way) + " alone";

// An element of SVG; children are elements or texts.
function shape(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const picture = (width, height, label, parts) => shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label }, ...parts);

// PMR of every way of mining, over the epochs of a run.
function pmrPlot(run) {
  const ways = [...new Set(run.epochs.flatMap((epoch) => Object.keys(epoch.pmr)))];
  const top = Math.max(0.05, ...run.epochs.flatMap((epoch) => Object.values(epoch.pmr))) * 1.08;
  const width = 460, height = 230, left = 38, bottom = 24;
  const x = (i) => left + (run.epochs.length < 2 ? 0.5 : i / (run.epochs.length - 1)) * (width - left - 8);
  const y = (value) => height - bottom - (value / top) * (height - bottom - 14);
  const apart = [0.01, 0.02, 0.05, 0.1, 0.2].find((step) => top / step < 7) ?? 0.25;
  const parts = [];
  for (let share = 0; share <= top; share += apart) {
    parts.push(shape("line", { x1: left, x2: width - 8, y1: y(share), y2: y(share), stroke: "currentColor", opacity: 0.12 }));
    parts.push(shape("text", { x: left - 4, y: y(share) + 4, "text-anchor": "end" }, `${(100 * share).toFixed(0)}%`));
  }
  run.epochs.forEach((epoch, i) => {
    if (i && run.epochs[i - 1].phase === epoch.phase) return;
    parts.push(shape("line", { x1: x(i), x2: x(i), y1: 10, y2: height - bottom, stroke: "currentColor", opacity: 0.35 }));
    parts.push(shape("text", { x: x(i) + 3, y: 18 }, epoch.phase));
  });
  for (const way of ways) {
    const points = run.epochs.flatMap((epoch, i) => (way in epoch.pmr ? [[x(i).toFixed(1), y(epoch.pmr[way]).toFixed(1)]] : []));
    const [stroke, dash] = styleOf(way, ways);
    parts.push(shape("polyline", { points: points.join(" "), fill: "none", stroke, "stroke-width": 2.2, "stroke-dasharray": dash }));
    if (points.length === 1) parts.push(shape("circle", { cx: points[0][0], cy: points[0][1], r: 3, fill: stroke }));
  }
  parts.push(shape("text", { x: width - 8, y: height - 8, "text-anchor": "end" }, `epochs 1 to ${run.epochs.length}`));
  return [picture(width, height, "PMR over epochs", parts), legend(run, ways)];
}

// CMR of the last epoch, class by class.
function cmrPlot(run) {
  const last = run.epochs[run.epochs.length - 1];
  const ways = Object.keys(last.cmr).filter((way) => way !== "both" && way !== "all");
  const classes = Object.keys(last.cmr[ways[0]]).sort((a, b) => last.cmr[ways[0]][b] - last.cmr[ways[0]][a]);
  const line = 9 * ways.length + 7, left = 130, width = 460, height = classes.length * line + 18;
  const parts = classes.flatMap((name, row) => [
    shape("text", { x: left - 5, y: row * line + line / 2 + 2, "text-anchor": "end" }, shortened(name, 17)),
    ...ways.flatMap((way, i) => {
      const value = last.cmr[way][name] ?? 0, long = value * (width - left - 46);
      return [
        shape("rect", { x: left, y: row * line + 9 * i + 1, width: long.toFixed(1), height: 7.5, fill: styleOf(way, ways)[0] }),
        shape("text", { x: left + 3 + long, y: row * line + 9 * i + 8, "font-size": 8 }, (100 * value).toFixed(0)),
      ];
    }),
  ]);
  return [picture(width, height, "CMR by class", parts), legend(run, ways)];
}

// The first letters of a name that fit beside the bars; letters of Chinese, Japanese and Korean are two wide.
function shortened(name, most) {
  let wide = 0;
  const letters = [...name], end = letters.findIndex((letter) => (wide += letter >= "\u2e80" ? 2 : 1) > most);
  return end < 0 ? name : letters.slice(0, Math.max(1, end - 1)).join("") + "…";
}

function legend(run, ways) {
  const row = make("p", { className: "soft" });
  for (const way of ways) {
    const [stroke, dash] = styleOf(way, ways);
    const line = picture(30, 10, "", [shape("line", { x1: 2, x2: 26, y1: 5, y2: 5, stroke, "stroke-width": 3, "stroke-dasharray": dash })]);
    line.style.cssText = "width:30px;height:10px";
    row.append(line, wayName(run, way) + "  ");
  }
  return row;
}
