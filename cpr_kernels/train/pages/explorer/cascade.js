"use strict";
// The cascade itself, over embeddings of 16-bit integers: their products and sums are exact in double precision.

// Runs of the page's data, their embeddings as typed arrays.
function openRun(run, albums) {
  const album = albums[run.album];
  const views = run.views.map((view) => {
    const text = atob(view.data);
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    return { ...view, rows: new Int16Array(bytes.buffer), data: null };
  });
  const classes = run.videos.map((video) => album.videos[video].class);
  return { ...run, album, views, classes, entries: run.videos.length, kept: new Map() };
}

// Inner products of one entry with all, in one view: Float64Array, scaled back to real numbers.
function similarities(run, view, query) {
  const key = view + ":" + query;
  if (run.kept.has(key)) return run.kept.get(key);
  const { rows, size, scale, bias } = run.views[view];
  if (bias) return Float64Array.from(rows, (value) => value * scale); // a score of its own, whatever the query
  const found = new Float64Array(run.entries);
  const ask = Float64Array.from(rows.subarray(query * size, (query + 1) * size));
  for (let entry = 0, at = 0; entry < run.entries; entry++) {
    let sum = 0;
    for (let d = 0; d < size; d++) sum += ask[d] * rows[at++];
    found[entry] = sum * scale * scale;
  }
  if (run.kept.size > 64) run.kept.clear();
  run.kept.set(key, found);
  return found;
}

// "flow:80,rgb:0.5,2*flow+rgb:5" to [{text, weights: [[view, weight]], keep}]; throws a sentence.
// A share is of what the stage before kept; shares in a row multiply and are rounded down once.
function parseSchedule(text, run) {
  let left = run.entries;
  const stages = text.split(",").map((part) => {
    const [judge, amount] = part.trim().split(":").map((piece) => piece.trim());
    const number = amount && amount.includes("/") ? amount.split("/").reduce((a, b) => a / b) : Number(amount);
    if (!judge || !(number > 0)) throw `cannot read "${part.trim()}": write stages as view:keep, for example flow:0.5,rgb:5`;
    const weights = judge.split("+").map((term) => {
      const [first, second] = term.split("*").map((piece) => piece.trim());
      const name = second === undefined ? first : second;
      const view = run.views.findIndex((one) => one.name === name);
      if (view < 0) throw `no view "${name}": this run has ${run.views.map((one) => one.name).join(", ")}`;
      const weight = second === undefined ? 1 : Number(first);
      if (!isFinite(weight)) throw `"${first}" is no weight`;
      return [view, weight];
    });
    const share = /[./]/.test(amount);
    if (share && number > 1) throw `"${part.trim()}" keeps a share above 1: write a count without a point`;
    left = share ? left * number : Math.min(number, run.entries);
    const keep = Math.floor(left + 1e-9);
    if (keep < 1) throw `"${part.trim()}" keeps less than one of ${run.entries} entries`;
    return { judge, weights, keep };
  });
  stages.forEach((stage, s) => {
    if (s && stage.keep > stages[s - 1].keep) throw `stage ${s + 1} keeps ${stage.keep}, more than the ${stages[s - 1].keep} before it`;
  });
  return stages;
}

// As in training: a stage that only views judge which the query lacks (its row is 0) is left out, and the last one left
// keeps as many as the last was to.
function answering(run, stages, query) {
  const has = run.views.map(({ rows, size, bias }) => !bias && rows.subarray(query * size, (query + 1) * size).some((value) => value));
  const left = stages.filter((stage) => stage.weights.some(([view]) => has[view]));
  return left.map((stage, s) => (s === left.length - 1 ? { ...stage, keep: stages[stages.length - 1].keep } : stage));
}

// What each stage keeps and throws out, best first, ties to the lower index; and its threshold.
function cascade(run, asked, query) {
  const stages = answering(run, asked, query);
  let pool = [];
  for (let entry = 0; entry < run.entries; entry++) if (run.sources[entry] !== run.sources[query]) pool.push(entry);
  const right = (list) => list.reduce((count, entry) => count + (run.classes[entry] === run.classes[query]), 0);
  return stages.map((stage) => {
    const judged = stage.weights.map(([view, weight]) => [similarities(run, view, query), weight]);
    const score = new Float64Array(run.entries);
    for (const entry of pool) for (const [values, weight] of judged) score[entry] += weight * values[entry];
    const order = pool.slice().sort((a, b) => score[b] - score[a] || a - b);
    const kept = order.slice(0, stage.keep);
    const out = order.slice(stage.keep);
    const before = { count: pool.length, right: right(pool) };
    pool = kept;
    return { ...stage, kept, out, before, score, right: right(kept), threshold: kept.length ? score[kept[kept.length - 1]] : NaN };
  });
}
