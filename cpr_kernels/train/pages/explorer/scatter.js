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
function axisOf(run, view, stage, ranked, similar) {
  const values = view < 0 ? Float64Array.from({ length: run.entries }, (_, i) => (i * 0.618) % 1) : similar[view];
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

function scatter(canvas, run, stages, query, axes, shown, ranked, values) {
  const ratio = window.devicePixelRatio || 1, stage = stages[shown];
  const width = canvas.clientWidth || 480, height = Math.round(Math.max(300, Math.min(width * 0.8, 520)));
  const box = { left: 52, right: width - 10, top: 16, bottom: height - 40 };
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  canvas.style.aspectRatio = `${width}/${height}`;
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  const [across, up] = axes.map((view) => axisOf(run, view, stage, ranked, values));
  const toX = (value) => box.left + across.share(value) * (box.right - box.left);
  const toY = (value) => box.bottom - up.share(value) * (box.bottom - box.top);
  frame(pen, box, across, up, toX, toY);
  const seen = points(pen, run, stages, query, shown, { across, up, toX, toY });
  thresholds(pen, run, stages, shown, { across, up, toX, toY, box });
  return (x, y) => nearestOf(seen, toX, toY, across.at, up.at, x, y);
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

// The entry seen within 10 pixels of a place and nearest to it, of several there the one drawn last; or null.
function nearestOf(seen, toX, toY, across, up, x, y) {
  let chosen = null, least = 100;
  for (const entry of seen) {
    const apart = (toX(across[entry]) - x) ** 2 + (toY(up[entry]) - y) ** 2;
    if (apart <= least) [least, chosen] = [apart, entry];
  }
  return chosen;
}

// Squares of a side of two pixels of the screen, many over each other, by how many cover a pixel: quicker than as many rectangles.
function cloud(pen, places, fill, alpha) {
  const { width, height } = pen.canvas, layer = make("canvas", { width, height }), under = layer.getContext("2d");
  const covers = new Uint16Array(width * height), ratio = pen.getTransform().a;
  for (const [x, y] of places) {
    const at = Math.round(y * ratio) * width + Math.round(x * ratio);
    for (const corner of [at, at + 1, at + width, at + width + 1]) covers[corner]++;
  }
  under.fillStyle = fill;
  under.fillRect(0, 0, 1, 1);
  const image = under.createImageData(width, height), [red, green, blue] = under.getImageData(0, 0, 1, 1).data;
  for (let pixel = 0; pixel < covers.length; pixel++) {
    if (covers[pixel]) image.data.set([red, green, blue, 255 * (1 - (1 - alpha) ** covers[pixel])], 4 * pixel);
  }
  under.putImageData(image, 0, 0);
  pen.save();
  pen.resetTransform();
  pen.globalAlpha = 1;
  pen.drawImage(layer, 0, 0);
  pen.restore();
}

// Draws the entries, those that stay last; returns them in this order.
function points(pen, run, stages, query, shown, { across, up, toX, toY }) {
  const last = stages[shown], many = run.entries > 2000, seen = [];
  const fate = new Uint8Array(run.entries); // 1 fell at this stage, 2 is alive
  for (const entry of last.out) fate[entry] = 1;
  for (const entry of last.kept) fate[entry] = 2;
  const dot = (entry, fill, radius, alpha, square) => {
    const x = toX(across.at[entry]), y = toY(up.at[entry]);
    pen.globalAlpha = alpha;
    pen.fillStyle = fill;
    if (square) pen.fillRect(x - radius, y - radius, 2 * radius, 2 * radius);
    else { pen.beginPath(); pen.arc(x, y, radius, 0, 7); pen.fill(); }
    seen.push(entry);
  };
  const dots = (list, fill, radius, alpha, square) => {
    if (list.length < 5000) return list.forEach((entry) => dot(entry, fill, radius, alpha, square));
    cloud(pen, list.map((entry) => [toX(across.at[entry]), toY(up.at[entry])]), fill, alpha);
    for (const entry of list) seen.push(entry);
  };
  const good = colour("good"), bad = colour("bad"), grey = colour("dot"), chosen = colour("mark"), own = run.sources[query];
  const gone = [];
  for (let entry = 0; entry < run.entries; entry++) if (!fate[entry] && run.sources[entry] !== own && across.inside(entry) && up.inside(entry)) gone.push(entry);
  dots(gone, grey, many ? 1 : 1.8, many ? 0.2 : 0.35, true);
  const right = (entry) => labelled(run) && isRight(run, entry, query);
  const size = last.kept.length > 500 ? 0.55 : 1, known = labelled(run);
  const [outWrong, outRight, keptWrong, keptRight] = [last.out, last.kept].flatMap((list) => [false, true].map((of) => Array.from(list).filter((entry) => right(entry) === of)));
  dots(outWrong, grey, many ? 1.3 : 2.4, many ? 0.5 : 0.75, true);
  dots(outRight, good, many ? 1.8 : 2.6, 0.7, false);
  dots(keptWrong, known ? bad : chosen, (known ? 3.4 : 4.2) * size, last.kept.length > 500 ? 0.5 : 0.85, known);
  dots(keptRight, good, 4.2 * size, 0.9, false);
  pen.globalAlpha = 1;
  return seen;
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
