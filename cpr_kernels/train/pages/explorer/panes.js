// One cascade: its settings, what it mines, its stages, the scatter, and who was thrown out by whom.

// What a pane shows: {pane, run, stages, query, traced, values}, or {pane, run, wrong}, a sentence.
async function answerFor(pane) {
  const run = runs[pane.run];
  let stages;
  try {
    stages = parseSchedule(pane.schedule, run);
  } catch (sentence) {
    if (typeof sentence !== "string") throw sentence;
    return { pane, run, wrong: "schedule: " + sentence };
  }
  const query = queryIn(run);
  if (query < 0) return { pane, run, wrong: `the queue of ${run.name} does not hold this clip; pick another` };
  const judges = run.views.flatMap((view, number) => (view.bias ? [] : [number]));
  const wanted = new Set([...judges.slice(0, 2), ...(choice.axes ?? []).map((axis) => judges[axis]), ...stages.flatMap((stage) => stage.weights.map(([view]) => view))]);
  const shown = judges.filter((view) => wanted.has(view));
  return { pane, run, stages, query, ...(await ask("trace", run.number, stages, query, shown)) };
}

function drawPane({ pane, run, wrong, stages, query, traced, values }, number) {
  const box = make("section", { className: "pane" });
  box.setAttribute("aria-label", choice.compare ? `cascade ${number + 1}` : "cascade");
  box.append(settings(pane, run, number));
  const say = (text, className = "soft") => box.append(make("p", { className, textContent: text }));
  if (wrong) {
    say(wrong, "error");
    return { box };
  }
  if (traced.length < stages.length) {
    const left = [...new Set(stages.filter((stage) => !traced.some((one) => one.judge === stage.judge)).map((stage) => stage.judge))].join(", ");
    say(run.kind === "table" ? "this row lacks a view, so nothing is mined for it" : `this clip has no ${left}: as in training, that stage is left out` + (traced.length ? "" : ", and nothing is mined"));
  }
  if (!traced.length) {
    box.append(make("div", { className: "ask" }, clip(run, query, "big", shortName(run, query))));
    return { box };
  }
  const shown = Math.min(choice.stage, traced.length - 1), last = traced.at(-1), mined = best(last.kept, last.score, 40);
  const picks = make("div", { className: "row picks" }, ...mined.map((entry) => thumb(run, entry, query)));
  const share = make("p", { className: "soft share", textContent: "PMR of this schedule: …" });
  const right = labelled(run) && run.classes[query] >= 0 ? `, ${last.right} of the same class` : "";
  const found = make("div", { className: "found" }, make("h2", { textContent: `mined: ${count(last.kept.length)}${right}` }), picks, share);
  const asked = make("div", { className: "asked" }, make("h2", { textContent: "query" }), clip(run, query, "big", shortName(run, query)), make("p", { className: "soft class", dir: "auto", textContent: classOf(run, query) }));
  box.append(make("div", { className: "ask" }, asked, found));
  box.append(make("div", { className: "split" }, stageTable(run, traced, shown, query), scatterOf(run, traced, query, shown, values), make("div", { className: "groups" }, ...groups(run, traced, query, shown))));
  if (labelled(run)) average(run, stages, share);
  else share.textContent = "without classes, which of these are right is not known";
  return { box, run, mined: new Set(last.kept), found };
}

// With two panes on the same rows: how many are mined by both, and marks on those that only one mines.
function compareMined([one, other]) {
  if (!one?.mined || !other?.mined || one.run !== other.run) return;
  const both = [...one.mined].filter((entry) => other.mined.has(entry)).length;
  for (const [pane, peer] of [[one, other], [other, one]]) {
    pane.found.querySelector("h2").append(`; ${both} by both`);
    for (const card of pane.found.querySelectorAll(".picks .clip")) card.classList.toggle("only", !peer.mined.has(+card.dataset.entry));
  }
}

function thumb(run, entry, query, text = null) {
  const button = clip(run, entry, mark(run, entry, query), text);
  button.onclick = () => (run === runs[0] ? setQuery(entry) : null);
  return button;
}

function settings(pane, run, number) {
  const row = make("div", { className: "settings" }), which = choice.compare ? ` of cascade ${number + 1}` : "";
  if (runs.length > 1) {
    const pick = make("select", { ariaLabel: "run" + which, onchange: () => { pane.run = +pick.value; pane.schedule = runs[pane.run].schedule; draw(); } }, ...runs.map((one, i) => make("option", { value: i, textContent: one.name, selected: i === pane.run })));
    row.append(pick);
  }
  const known = run.schedules.findIndex(([, text]) => text === pane.schedule);
  const preset = make("select", { ariaLabel: "schedule by name" + which, onchange: () => { if (preset.value) { pane.schedule = preset.value; draw(); } } }, ...run.schedules.map(([name, text], i) => make("option", { value: text, textContent: name, selected: i === known })));
  if (known < 0) preset.append(make("option", { value: "", textContent: "your own", selected: true }));
  const text = make("input", { value: pane.schedule, ariaLabel: "schedule: stages as view:keep" + which, spellcheck: false, onchange: () => { pane.schedule = text.value.trim(); draw(); } });
  row.append(preset, text);
  return row;
}

function stageTable(run, traced, shown, query) {
  const known = labelled(run) && run.classes[query] >= 0, most = Math.log(traced[0].before.count + 1);
  const cell = (text, className = "") => make("td", { textContent: text, className });
  const first = make("tr", { className: "all" }, cell(""), cell("all others"), survivors(traced[0].before.count, most), cell(""), ...(known ? [cell("", "lost"), rightShare(traced[0].before.right, traced[0].before.count)] : []));
  const rows = traced.map((stage, s) => {
    const button = make("button", { onclick: () => { choice.stage = s; draw(); } }, String(s + 1));
    button.setAttribute("aria-pressed", s === shown);
    button.setAttribute("aria-label", `stage ${s + 1}, ${stage.judge}`);
    const judge = make("td", {}, ...marksOf(run, stage.weights), " ", ...stage.judge.split(/(?<=[+_])/).flatMap((part) => [make("wbr"), part]));
    const lost = known ? [cell(count(stage.before.right - stage.right), "lost"), rightShare(stage.right, stage.kept.length)] : [];
    return make("tr", { className: s === shown ? "shown" : "" }, make("td", {}, button), judge, survivors(stage.kept.length, most), cell(count(stage.out.length)), ...lost);
  });
  const heads = ["stage", "judge", "stay", "out", ...(known ? ["right lost", "right"] : [])].map((text) => make("th", { textContent: text, scope: "col", className: text === "right lost" ? "lost" : "" }));
  return make("div", { className: "scroll" }, make("table", {}, make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, first, ...rows)));
}

// How many are left, with a bar of its logarithm.
function survivors(number, most) {
  const bar = make("i");
  bar.style.width = `${(100 * Math.log(number + 1)) / most}%`;
  return make("td", { className: "stay" }, make("span", { className: "bar" }, bar), make("span", { textContent: count(number) }));
}

function rightShare(right, number) {
  const share = number ? (100 * right) / number : 0, bar = make("i");
  bar.style.width = `${share}%`;
  return make("td", { className: "share" }, make("span", { className: "bar good" }, bar), make("span", { textContent: `${share.toFixed(share < 9.95 ? 1 : 0)}%` }));
}

function scatterOf(run, traced, query, shown, values) {
  const holder = make("div", { className: "chart" }), canvas = make("canvas");
  const judges = run.views.filter((view) => !view.bias), many = judges.length;
  const axes = many < 2 ? [0, -1] : (choice.axes ?? firstAxes(run, traced)).map((view) => Math.min(view, many - 1));
  const controls = make("div", { className: "controls" });
  if (many > 2) axes.forEach((view, i) => {
    const pick = make("select", { onchange: () => { choice.axes = axes.map((old, k) => (k === i ? +pick.value : old)); draw(); } }, ...judges.map((one, v) => make("option", { value: v, textContent: one.label, selected: v === view })));
    controls.append(make("label", {}, i ? "up " : "across ", pick));
  });
  for (const [ranked, text] of [[false, "scores"], [true, "ranks"]]) {
    const button = make("button", { textContent: text, title: "what the axes show (a)", onclick: () => { choice.ranked = ranked; draw(); } });
    button.setAttribute("aria-pressed", choice.ranked === ranked);
    controls.append(button);
  }
  const note = `Every entry by its ${choice.ranked ? "rank" : "similarity"} in two views; lines are the stages' thresholds, thick that of stage ${shown + 1}.` + (traced.some((stage) => stage.weights.some(([view]) => !axes.includes(view))) ? " Stages by other views have no line here." : "");
  holder.append(controls, canvas, make("p", { className: "soft", textContent: note }));
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `entries by ${choice.ranked ? "rank" : "similarity"} in two views, after stage ${shown + 1}`);
  requestAnimationFrame(() => watch(canvas, run, traced, query, values, scatter(canvas, run, traced, query, axes, shown, choice.ranked, values)));
  return holder;
}

// The last two views by which different stages judge, or the first two.
function firstAxes(run, traced) {
  const used = [...new Set(traced.flatMap((stage) => stage.weights.map(([view]) => view)))].filter((view) => !run.views[view].bias);
  return used.length > 1 ? [used[0], used[1]] : [used[0], used[0] === 0 ? 1 : 0];
}

// The nearest dot under the pointer: its card and its scores; a click makes it the query.
function watch(canvas, run, traced, query, values, nearest) {
  let tip = null;
  const hide = () => { tip?.remove(); tip = null; };
  const near = (event) => {
    const box = canvas.getBoundingClientRect();
    return nearest(event.clientX - box.left, event.clientY - box.top);
  };
  canvas.onmousemove = (event) => {
    const entry = near(event);
    if (tip && +tip.dataset.entry === entry) return;
    hide();
    if (entry === null) return;
    const scores = Object.entries(values).map(([view, of]) => `${run.views[view].label} ${of[entry].toFixed(3)}`).join(", ");
    const fate = fateOf(traced, entry), says = fate === null ? "not eligible" : fate < 0 ? "mined" : `out at stage ${fate + 1}, by ${traced[fate].judge}`;
    tip = make("div", { className: "tip" }, thumb(run, entry, query), make("b", { textContent: says }), make("br"), scores);
    tip.dataset.entry = entry;
    tip.style.left = Math.max(4, Math.min(event.clientX + 14, innerWidth - 180)) + "px";
    tip.style.top = Math.max(4, Math.min(event.clientY + 12, innerHeight - 260)) + "px";
    document.body.append(tip);
  };
  canvas.onmouseleave = hide;
  canvas.onclick = (event) => { const entry = near(event); hide(); if (entry !== null && run === runs[0]) setQuery(entry); };
}

function groups(run, traced, query, shown) {
  const stage = traced[shown], right = (entry) => labelled(run) && isRight(run, entry, query), name = `stage ${shown + 1} (${stage.judge})`;
  const parts = [
    [`kept by ${name}: ${count(stage.kept.length)}`, stage.kept],
    [`same class, thrown out by ${name}`, stage.out.filter(right)],
    [`thrown out by ${name}, nearest first`, stage.out],
  ];
  return parts.filter(([, list]) => list.length).map(([title, list]) => {
    const row = make("div", { className: "row" });
    const fill = (wanted) => {
      row.replaceChildren(...best(list, stage.score, wanted).map((entry) => thumb(run, entry, query)));
      if (list.length > wanted) row.append(make("button", { textContent: `${count(list.length - wanted)} more`, onclick: () => fill(wanted + 60) }));
    };
    fill(SHOWN);
    return make("div", { className: "group" }, make("h2", { textContent: title }), row);
  });
}

// Which stage threw an entry out (from 0); -1 where it was mined, null where it was never eligible.
function fateOf(traced, entry) {
  const stage = traced.findIndex((one) => one.out.includes(entry));
  return stage >= 0 ? stage : traced.at(-1)?.kept.includes(entry) ? -1 : null;
}

const averages = new Map();

// Says the share of right picks over evenly spread queries, as far as they are mined.
async function average(run, stages, place) {
  const key = run.number + JSON.stringify(stages.map((stage) => [stage.judge, stage.keep]));
  const wanted = Math.min(run.entries, run.entries > 20000 ? 40 : 200), sum = averages.get(key) ?? { at: 0, right: 0, mined: 0 };
  averages.set(key, sum);
  const say = () => {
    const done = sum.at >= wanted;
    place.textContent = `PMR of this schedule over ${sum.at} ${run.kind === "table" ? "rows" : "clips"}${done ? "" : " so far"}: ${(100 * sum.right / Math.max(sum.mined, 1)).toFixed(1)} %`;
    place.dataset.done = done;
  };
  if (sum.at) say();
  await new Promise((done) => setTimeout(done, 30)); // what is drawn now comes first
  while (sum.at < wanted && place.isConnected) {
    const found = await ask("average", run.number, stages, sum.at, wanted);
    Object.assign(sum, { at: found.at, right: sum.right + found.right, mined: sum.mined + found.mined });
    say();
  }
}
