// Entries by their similarity to the query in two views, every stage's threshold, and scores or ranks on the axes.

// Ranks of all entries in one view, 1 is the nearest: Float64Array.
function ranks(values) {
  const sorted = values.slice().sort();
  return Float64Array.from(values, (value) => rankAmong(sorted, value));
}

function rankAmong(sorted, value) {
  let low = 0, high = sorted.length; // the first place above value
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] > value) high = middle;
    else low = middle + 1;
  }
  return sorted.length - low + 1;
}

// An axis: where an entry is, from 0 to 1; its ticks; where a score is.
function axisOf(run, view, query, stage, ranked) {
  const values = view < 0 ? Float64Array.from({ length: run.entries }, (_, i) => (i * 0.618) % 1) : similarities(run, view, query);
  const byRank = ranked && view >= 0;
  const at = byRank ? ranks(values).map((rank) => -Math.log10(rank)) : values;
  let low = Infinity, high = -Infinity;
  for (const list of [stage.kept, stage.out]) for (const entry of list) { low = Math.min(low, at[entry]); high = Math.max(high, at[entry]); }
  const room = (high - low) * 0.04 || 0.01;
  [low, high] = [low - room, byRank ? Math.min(high + room, 0.08) : high + room];
  const share = (value) => (value - low) / (high - low);
  const marks = (wanted) => (view < 0 ? [] : !byRank ? ticks(low, high, wanted) : rankTicks(low, high, wanted));
  const sorted = byRank ? values.slice().sort() : null;
  const ofScore = (score) => (byRank ? -Math.log10(rankAmong(sorted, score)) : score);
  const label = view < 0 ? "(one view only)" : (byRank ? "rank in " : "similarity in ") + run.views[view].label;
  return { view, at, share, marks, ofScore, label, low, high, byRank, inside: (entry) => at[entry] >= low && at[entry] <= high };
}

function rankTicks(low, high, wanted) {
  const found = [], parts = high - low < 1.6 && wanted > 3 ? [1, 2, 5] : [1];
  for (let power = 0; power <= 9; power++) for (const part of parts) {
    const rank = part * 10 ** power, at = -Math.log10(rank);
    if (at >= low && at <= high) found.push([at, rank < 10000 ? count(rank) : rank / 1000 + "k"]);
  }
  return found.reverse(); // from low to high
}

function scatter(canvas, run, stages, query, axes, shown, ranked) {
  const ratio = window.devicePixelRatio || 1, stage = stages[shown];
  const width = canvas.clientWidth || 480, height = Math.round(Math.max(300, Math.min(width * 0.8, 520)));
  const box = { left: 52, right: width - 10, top: 16, bottom: height - 40 };
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  canvas.style.aspectRatio = `${width}/${height}`;
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  const [across, up] = axes.map((view) => axisOf(run, view, query, stage, ranked));
  const toX = (value) => box.left + across.share(value) * (box.right - box.left);
  const toY = (value) => box.bottom - up.share(value) * (box.bottom - box.top);
  frame(pen, box, across, up, toX, toY);
  const dots = points(pen, run, stages, query, shown, { across, up, toX, toY });
  thresholds(pen, run, stages, shown, { across, up, toX, toY, box });
  return dots;
}

function frame(pen, box, across, up, toX, toY) {
  const wide = box.right - box.left;
  pen.font = "12px system-ui, sans-serif";
  pen.lineWidth = 1;
  pen.strokeStyle = colour("line");
  pen.fillStyle = colour("soft");
  const rule = (x0, y0, x1, y1) => { pen.beginPath(); pen.moveTo(x0, y0); pen.lineTo(x1, y1); pen.stroke(); };
  pen.textAlign = "center";
  let last = -Infinity;
  for (const [value, text] of across.marks(Math.max(2, Math.floor(wide / 90)))) {
    const x = toX(value), half = pen.measureText(text).width / 2;
    rule(x, box.top, x, box.bottom);
    if (x - half < last + 8) continue;
    pen.fillText(text, Math.min(x, box.right - half), box.bottom + 15);
    last = x + half;
  }
  pen.textAlign = "right";
  last = Infinity;
  for (const [value, text] of up.marks(Math.max(2, Math.floor((box.bottom - box.top) / 55)))) {
    const y = toY(value);
    rule(box.left, y, box.right, y);
    if (y > last - 15) continue;
    pen.fillText(text, box.left - 6, y + 4);
    last = y;
  }
  pen.textAlign = "center";
  pen.fillStyle = colour("ink");
  pen.fillText(across.label + " →", (box.left + box.right) / 2, box.bottom + 33);
  pen.save();
  pen.translate(12, (box.top + box.bottom) / 2);
  pen.rotate(-Math.PI / 2);
  pen.fillText(up.label + " →", 0, 0);
  pen.restore();
  pen.textAlign = "left";
}

// Draws the entries, those that stay last; returns [x, y, entry] of each.
function points(pen, run, stages, query, shown, { across, up, toX, toY }) {
  const last = stages[shown], many = run.entries > 2000, dots = [];
  const fate = new Uint8Array(run.entries); // 1 fell at this stage, 2 is alive
  for (const entry of last.out) fate[entry] = 1;
  for (const entry of last.kept) fate[entry] = 2;
  const dot = (entry, fill, radius, alpha, square) => {
    const x = toX(across.at[entry]), y = toY(up.at[entry]);
    pen.globalAlpha = alpha;
    pen.fillStyle = fill;
    if (square) pen.fillRect(x - radius, y - radius, 2 * radius, 2 * radius);
    else { pen.beginPath(); pen.arc(x, y, radius, 0, 7); pen.fill(); }
    dots.push([x, y, entry]);
  };
  const good = colour("good"), bad = colour("bad"), grey = colour("dot"), chosen = colour("mark"), own = run.sources[query];
  for (let entry = 0; entry < run.entries; entry++) {
    if (!fate[entry] && run.sources[entry] !== own && across.inside(entry) && up.inside(entry)) dot(entry, grey, many ? 1 : 1.8, many ? 0.2 : 0.35, true);
  }
  const right = (entry) => labelled(run) && isRight(run, entry, query);
  for (const entry of last.out) if (!right(entry)) dot(entry, grey, many ? 1.3 : 2.4, many ? 0.5 : 0.75, true);
  for (const entry of last.out) if (right(entry)) dot(entry, good, many ? 1.8 : 2.6, 0.7, false);
  const size = last.kept.length > 500 ? 0.55 : 1;
  for (const entry of last.kept) if (!right(entry)) dot(entry, labelled(run) ? bad : chosen, (labelled(run) ? 3.4 : 4.2) * size, 0.85, labelled(run));
  for (const entry of last.kept) if (right(entry)) dot(entry, good, 4.2 * size, 0.9, false);
  pen.globalAlpha = 1;
  return dots;
}

// A stage of one view is a straight line at its threshold; of both, a slanted one, which ranks do not have.
function thresholds(pen, run, stages, shown, { across, up, toX, toY, box }) {
  const placed = [];
  stages.forEach((stage, s) => {
    const newest = s === shown, weight = [across, up].map((axis) => stage.weights.reduce((sum, [view, w]) => sum + (view === axis.view ? w : 0), 0));
    const elsewhere = stage.weights.some(([view]) => view !== across.view && view !== up.view);
    if (elsewhere || !isFinite(stage.threshold) || (!weight[0] && !weight[1]) || (weight[0] && weight[1] && across.byRank)) return;
    let ends;
    if (!weight[1]) ends = [[across.ofScore(stage.threshold / weight[0]), up.low], [across.ofScore(stage.threshold / weight[0]), up.high]];
    else if (!weight[0]) ends = [[across.low, up.ofScore(stage.threshold / weight[1])], [across.high, up.ofScore(stage.threshold / weight[1])]];
    else ends = [across.low, across.high].map((x) => [x, (stage.threshold - weight[0] * x) / weight[1]]);
    const [[x0, y0], [x1, y1]] = ends.map(([x, y]) => [toX(x), toY(y)]);
    pen.strokeStyle = stage.weights.length > 1 ? colour("mark") : markOf(run.views[stage.weights[0][0]].name).colour;
    pen.lineWidth = newest ? 2.4 : 1.3;
    pen.setLineDash(newest ? [] : [3, 4]);
    pen.save();
    pen.beginPath();
    pen.rect(box.left, box.top, box.right - box.left, box.bottom - box.top);
    pen.clip();
    pen.beginPath();
    pen.moveTo(x0, y0);
    pen.lineTo(x1, y1);
    pen.stroke();
    pen.restore();
    badge(pen, String(s + 1), newest, weight[1] ? [box.right - 8, y1] : [x1, box.top], box, placed);
  });
  pen.setLineDash([]);
}

// A stage's number at the end of its line, moved along the frame where another one is there already.
function badge(pen, text, newest, [x, y], box, placed) {
  if (x < box.left - 1 || y < box.top - 1 || y > box.bottom + 1) return;
  while (placed.some(([px, py]) => Math.abs(px - x) < 15 && Math.abs(py - y) < 15)) y === box.top || y < box.top + 60 && x < box.right - 20 ? (y += 15) : (x -= 15);
  placed.push([x, y]);
  pen.setLineDash([]);
  pen.fillStyle = newest ? pen.strokeStyle : colour("page");
  pen.lineWidth = 1;
  pen.beginPath();
  pen.arc(x, y, 7.5, 0, 7);
  pen.fill();
  pen.stroke();
  pen.fillStyle = newest ? colour("page") : colour("ink");
  pen.font = "600 11px system-ui, sans-serif";
  pen.textAlign = "center";
  pen.fillText(text, x, y + 4);
  pen.textAlign = "left";
}
