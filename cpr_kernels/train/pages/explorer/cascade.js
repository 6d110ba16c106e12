"use strict";
// The cascade itself. A number of an embedding is data * rows[entry] * columns[d], all in double precision.

function decoded(text, Kind) {
  if (Uint8Array.fromBase64) return new Kind(Uint8Array.fromBase64(text).buffer);
  const letters = atob(text), bytes = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i++) bytes[i] = letters.charCodeAt(i);
  return new Kind(bytes.buffer);
}

// What is mined of a run of the page's data; its embeddings become typed arrays when first used.
function mineable(run, albums) {
  const { entries, kind } = run, { videos } = albums[run.album], row = (entry) => (run.videos ? run.videos[entry] : entry);
  const sources = run.sources ?? Int32Array.from({ length: entries }, (_, entry) => row(entry));
  const classes = Int32Array.from({ length: entries }, (_, entry) => videos[row(entry)].class);
  return { entries, kind, sources, classes, views: run.views, kept: new Map() };
}

function opened(run, number) {
  const view = run.views[number];
  if (!view.integers) {
    view.integers = decoded(view.data, view.bits === 16 ? Int16Array : Int8Array);
    view.scale = Float64Array.from(decoded(view.rows, Float32Array));
    view.width = Float64Array.from(decoded(view.columns, Float32Array));
    view.lacks = new Set(view.missing);
    view.data = null;
  }
  return view;
}

// Inner products of one entry with all, in one view: Float64Array.
function similarities(run, number, query) {
  const key = number + ":" + query;
  if (run.kept.has(key)) return run.kept.get(key);
  const { integers, scale, width, size, bias } = opened(run, number), found = new Float64Array(run.entries);
  const own = bias ? 1 : scale[query];
  const ask = Float64Array.from(width, (wide, d) => (bias ? wide : integers[query * size + d] * own * wide * wide));
  for (let entry = 0, at = 0; entry < run.entries; entry++) {
    let sum = 0;
    for (let d = 0; d < size; d++) sum += ask[d] * integers[at++];
    found[entry] = sum * scale[entry];
  }
  if (run.kept.size > 24) run.kept.clear();
  run.kept.set(key, found);
  return found;
}

// "flow:80,rgb:0.5,2*flow+rgb:5" to [{judge, weights: [[view, weight]], keep}]; throws a sentence.
// A share is of what the stage before kept; shares in a row multiply and are rounded down once.
function parseSchedule(text, run) {
  let left = run.entries;
  const cut = (piece, mark) => { const at = piece.lastIndexOf(mark); return at < 0 ? ["", piece] : [piece.slice(0, at).trim(), piece.slice(at + 1).trim()]; };
  const stages = text.split(",").map((part) => {
    const [judge, amount] = cut(part.trim(), ":");
    const number = amount.includes("/") ? amount.split("/").reduce((a, b) => a / b) : Number(amount);
    if (!judge || !(number > 0)) throw `cannot read "${part.trim()}": write stages as view:keep, for example ${run.views[0].name}:0.5,${run.views[0].name}:5`;
    const weights = judge.split("+").map((term) => {
      const [first, name] = cut(term.trim(), "*");
      const view = run.views.findIndex((one) => one.name === name);
      if (view < 0) throw `no view "${name}": there is ${run.views.map((one) => one.name).join(", ")}`;
      const weight = first === "" ? 1 : Number(first);
      if (!isFinite(weight)) throw `"${first}" is no weight`;
      return [view, weight];
    });
    const share = /[./]|e-/i.test(amount);
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
// keeps as many as the last was to. In a table, a query that lacks a view (its row is NaN) mines nothing.
function answering(run, stages, query) {
  const views = [...new Set(stages.flatMap((stage) => stage.weights.map(([view]) => view)))];
  if (views.some((number) => opened(run, number).lacks.has(query) && !run.views[number].bias)) return [];
  if (run.kind === "table") return stages;
  const has = new Set(views.filter((number) => {
    const { integers, size, bias } = run.views[number];
    return !bias && integers.subarray(query * size, (query + 1) * size).some((value) => value);
  }));
  const left = stages.filter((stage) => stage.weights.some(([view]) => has.has(view)));
  return left.map((stage, s) => (s === left.length - 1 ? { ...stage, keep: stages[stages.length - 1].keep } : stage));
}

// The `keep` best of a pool (its indices ascend) and the rest, Int32Arrays that still ascend; ties go to the lower index.
function halves(pool, score, keep) {
  if (pool.length <= keep) return [pool, new Int32Array(0)];
  const values = Float64Array.from(pool, (entry) => score[entry]).sort(), least = values[values.length - keep];
  let ties = 0;
  for (let i = values.length - keep; i < values.length && values[i] === least; i++) ties++;
  const kept = new Int32Array(keep), out = new Int32Array(pool.length - keep);
  let inside = 0, outside = 0;
  for (const entry of pool) {
    if (score[entry] > least || (score[entry] === least && ties-- > 0)) kept[inside++] = entry;
    else out[outside++] = entry;
  }
  return [kept, out];
}

// The first `count` of a list, best first, ties to the lower index.
function best(list, score, count = Infinity) {
  if (list.length < 2 * count) return Array.from(list).sort((a, b) => score[b] - score[a] || a - b).slice(0, count);
  const found = [];
  for (const entry of list) {
    if (found.length === count && score[entry] <= score[found[count - 1]]) continue;
    let place = found.length;
    while (place && score[found[place - 1]] < score[entry]) place--;
    found.splice(place, 0, entry);
    if (found.length > count) found.pop();
  }
  return found;
}

// What each stage keeps and throws out, with its scores and its threshold. Lists ascend; `best` orders them.
function cascade(run, asked, query) {
  const stages = answering(run, asked, query), used = new Set(stages.flatMap((stage) => stage.weights.map(([view]) => view)));
  const lacking = [...used].map((number) => opened(run, number).lacks).filter((lacks) => lacks.size);
  let pool = new Int32Array(run.entries), eligible = 0;
  for (let entry = 0; entry < run.entries; entry++) {
    const source = run.sources[entry];
    if (source >= 0 && source !== run.sources[query] && !lacking.some((lacks) => lacks.has(entry))) pool[eligible++] = entry;
  }
  pool = pool.slice(0, eligible);
  const right = (list) => list.reduce((count, entry) => count + isRight(run, entry, query), 0);
  return stages.map((stage) => {
    const judged = stage.weights.map(([view, weight]) => [similarities(run, view, query), weight]);
    const score = judged.length === 1 && judged[0][1] === 1 ? judged[0][0] : new Float64Array(run.entries);
    if (score !== judged[0][0]) for (const entry of pool) for (const [values, weight] of judged) score[entry] += weight * values[entry];
    const [kept, out] = halves(pool, score, stage.keep), before = { count: pool.length, right: right(pool) };
    pool = kept;
    const threshold = kept.reduce((least, entry) => Math.min(least, score[entry]), Infinity);
    return { ...stage, kept, out, before, score, right: right(kept), threshold };
  });
}

const isRight = (run, entry, query) => run.classes[entry] >= 0 && run.classes[entry] === run.classes[query];
