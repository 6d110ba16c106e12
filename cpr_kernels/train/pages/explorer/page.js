// The page: what is chosen, and everything redrawn when it changes. The choice lives in the address.

const body = JSON.parse(document.getElementById("data").textContent);
const runs = body.runs.map((run) => Object.assign(openRun(run, body.albums), { run }));
const el = (id) => document.getElementById(id);
const SHOWN = 12; // thumbnails of a group before "more"

const choice = { query: 0, stage: 0, axes: null, compare: false, class: "", panes: [{ run: 0, schedule: runs[0].schedule }, { run: Math.min(1, runs.length - 1), schedule: null }] };

const alternatives = (run) => {
  const names = run.views.slice(0, run.plain).map((view) => view.name);
  const list = [["as trained", run.schedule], ...names.map((name) => [`${name} alone`, `${name}:${run.topk}`])];
  if (!run.mines) list[0][0] = "a cascade";
  if (names.length > 1) list.push(["all views together", `${names.join("+")}:${run.topk}`]);
  return list;
};
choice.panes[1].schedule = runs.length > 1 ? runs[1].schedule : alternatives(runs[0])[1][1];

function readAddress() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  if (wanted.has("query")) choice.query = Math.max(0, Math.min(runs[0].entries - 1, parseInt(wanted.get("query")) || 0));
  if (wanted.has("stage")) choice.stage = Math.max(0, (parseInt(wanted.get("stage")) || 1) - 1);
  choice.compare = wanted.get("compare") === "1";
  for (const [i, pane] of choice.panes.entries()) {
    const number = parseInt(wanted.get("run" + i));
    if (number >= 0 && number < runs.length) pane.run = number;
    if (wanted.get("schedule" + i)) pane.schedule = wanted.get("schedule" + i);
  }
}

function writeAddress() {
  const address = new URLSearchParams({ query: choice.query });
  if (choice.stage) address.set("stage", choice.stage + 1);
  if (choice.compare) address.set("compare", 1);
  choice.panes.slice(0, choice.compare ? 2 : 1).forEach((pane, i) => {
    address.set("run" + i, pane.run);
    address.set("schedule" + i, pane.schedule);
  });
  try { history.replaceState(null, "", "#" + address); } catch (refused) { /* some viewers of local files allow no address */ }
}

// The same clip in another run: an entry of the same video, or none.
function queryIn(run) {
  if (run === runs[0]) return choice.query;
  const id = runs[0].album.videos[runs[0].videos[choice.query]].id;
  return run.videos.findIndex((video) => run.album.videos[video].id === id);
}

function setQuery(entry) {
  choice.query = (entry + runs[0].entries) % runs[0].entries;
  draw();
}

function listed() {
  const wanted = choice.class, part = el("find").value.toLowerCase(), run = runs[0], seen = new Set(), found = [];
  for (let entry = 0; entry < run.entries; entry++) {
    const video = run.videos[entry];
    if (seen.has(video) || (wanted !== "" && run.classes[entry] !== +wanted)) continue;
    if (part && !(run.album.videos[video].id + " " + (run.album.classes[run.classes[entry]] ?? "")).toLowerCase().includes(part)) continue;
    seen.add(video);
    found.push(entry);
  }
  return found;
}

// The clips around the chosen one; more on either side on request.
function drawPicker(before = 8, after = 40) {
  const run = runs[0], entries = listed(), video = run.videos[choice.query];
  const at = Math.max(0, entries.findIndex((entry) => run.videos[entry] === video));
  const start = at < 30 ? 0 : Math.max(0, at - before), end = Math.min(entries.length, at + after);
  const shown = entries.slice(start, end).map((entry) => clip(run, entry, run.videos[entry] === video ? "chosen" : ""));
  shown.forEach((button) => (button.onclick = () => setQuery(+button.dataset.entry)));
  if (start > 0) shown.unshift(make("button", { textContent: `${start} before`, onclick: () => drawPicker(before + 100, after) }));
  if (end < entries.length) shown.push(make("button", { textContent: `${entries.length - end} more`, onclick: () => drawPicker(before, after + 200) }));
  if (!entries.length) shown.push(make("p", { className: "soft", textContent: "no clip is called so" }));
  el("picker").replaceChildren(...shown);
  const chosen = el("picker").querySelector(".chosen");
  if (chosen && after === 40) el("picker").scrollTop = Math.max(0, chosen.offsetTop - el("picker").offsetTop - 40);
}

function step(by) {
  const entries = listed();
  if (!entries.length) return;
  const at = entries.findIndex((entry) => runs[0].videos[entry] === runs[0].videos[choice.query]);
  setQuery(entries[(at + by + entries.length) % entries.length]);
}

function drawPane(pane, number) {
  const run = runs[pane.run], box = make("section", { className: "pane" });
  box.setAttribute("aria-label", "cascade " + (number + 1));
  box.append(settings(pane, run));
  let stages;
  try {
    stages = parseSchedule(pane.schedule, run);
  } catch (sentence) {
    box.append(make("p", { className: "error", textContent: "schedule: " + sentence }));
    return box;
  }
  const query = queryIn(run);
  if (query < 0) {
    box.append(make("p", { className: "error", textContent: `the queue of ${run.name} does not hold this clip; pick another` }));
    return box;
  }
  const traced = cascade(run, stages, query);
  if (traced.length < stages.length) {
    const left = [...new Set(stages.filter((stage) => !traced.some((one) => one.judge === stage.judge)).map((stage) => stage.judge))].join(", ");
    box.append(make("p", { className: "soft", textContent: `this clip has no ${left}: as in training, that stage is left out` + (traced.length ? "" : ", and nothing is mined") }));
  }
  if (!traced.length) {
    box.append(make("div", { className: "ask" }, clip(run, query, "big chosen")));
    return box;
  }
  const shown = Math.min(choice.stage, traced.length - 1);
  const last = traced[traced.length - 1];
  const picks = make("div", { className: "row picks" }, ...last.kept.slice(0, 40).map((entry) => thumb(run, entry, query)));
  const share = make("p", { className: "soft share", textContent: "PMR of this schedule: …" });
  const found = make("div", {}, make("h3", { textContent: `mined: ${last.kept.length}` + (labelled(run) ? `, ${last.right} right` : "") }), picks, share);
  found.style.flex = "1 1 14rem";
  box.append(make("div", { className: "ask" }, clip(run, query, "big chosen"), found));
  box.append(make("div", { className: "split" }, stageTable(run, traced, shown), scatterOf(run, traced, query, shown)));
  box.append(...groups(run, traced, query, shown));
  if (labelled(run)) later(() => average(run, stages, share));
  else share.textContent = "the videos have no classes: which of these are right is not known";
  return box;
}

function thumb(run, entry, query, text = null) {
  const button = clip(run, entry, mark(run, entry, query), text);
  button.onclick = () => (run === runs[0] ? setQuery(entry) : null);
  return button;
}

function settings(pane, run) {
  const line = make("div", { className: "settings" });
  if (runs.length > 1) {
    const which = make("select", { ariaLabel: "run", onchange: () => { pane.run = +which.value; pane.schedule = runs[pane.run].schedule; draw(); } }, ...runs.map((one, i) => make("option", { value: i, textContent: one.name, selected: i === pane.run })));
    line.append(which);
  } else line.append(make("strong", { textContent: run.name }));
  const known = alternatives(run);
  const preset = make("select", { ariaLabel: "schedule by name", onchange: () => { if (preset.value) { pane.schedule = preset.value; draw(); } } }, ...known.map(([name, text]) => make("option", { value: text, textContent: name, selected: text === pane.schedule })));
  if (!known.some(([, text]) => text === pane.schedule)) preset.append(make("option", { value: "", textContent: "your own", selected: true }));
  const text = make("input", { value: pane.schedule, ariaLabel: "schedule: stages as view:keep", spellcheck: false, onchange: () => { pane.schedule = text.value.trim(); draw(); } });
  line.append(preset, text);
  return line;
}

function stageTable(run, traced, shown) {
  const rows = traced.map((stage, s) => {
    const share = stage.kept.length ? stage.right / stage.kept.length : 0;
    const filled = make("i"), meter = make("span", { className: "meter" }, filled);
    filled.style.width = `${100 * share}%`;
    const cells = [s + 1, stage.judge, stage.kept.length, stage.out.length, `${stage.before.right - stage.right}`, isFinite(stage.threshold) ? stage.threshold.toFixed(3) : ""].map((value) => make("td", { textContent: value }));
    cells[5].className = "wide";
    const rightShare = labelled(run) ? [make("td", {}, meter, ` ${(100 * share).toFixed(0)}%`)] : [];
    if (!labelled(run)) cells.splice(4, 1);
    const row = make("tr", { tabIndex: 0, onclick: () => { choice.stage = s; draw(); } }, ...cells, ...rightShare);
    row.onkeydown = (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); row.onclick(); } };
    row.setAttribute("aria-selected", s === shown);
    return row;
  });
  const heads = ["", "judge", "stay", "go", "right ones lost", "threshold", "right"].map((text) => make("th", { textContent: text }));
  heads[5].className = "wide";
  if (!labelled(run)) heads.splice(4, 1), heads.pop();
  return make("div", { className: "scroll" }, make("table", {}, make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...rows)));
}

function scatterOf(run, traced, query, shown) {
  const holder = make("div"), canvas = make("canvas", { tabIndex: -1 });
  const judges = run.views.filter((view) => !view.bias), many = judges.length;
  const axes = many < 2 ? [0, -1] : (choice.axes ?? [many - 1, many - run.plain]).map((view) => Math.min(view, many - 1));
  if (many > 2) {
    const line = make("p", { className: "soft", textContent: "across, up: " });
    axes.forEach((view, i) => {
      const pick = make("select", { ariaLabel: i ? "view going up" : "view going across", onchange: () => { choice.axes = axes.map((old, k) => (k === i ? +pick.value : old)); draw(); } }, ...judges.map((one, v) => make("option", { value: v, textContent: one.label, selected: v === view })));
      line.append(pick, " ");
    });
    holder.append(line, make("p", { className: "soft", textContent: "stages by other views have no line here" }));
  }
  holder.append(canvas);
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `entries by similarity, after stage ${shown + 1}`);
  let tip = null;
  const hide = () => { tip?.remove(); tip = null; };
  requestAnimationFrame(() => {
    const dots = scatter(canvas, run, traced, query, axes, shown);
    const near = (event) => {
      const box = canvas.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
      let best = null, least = 100;
      for (const [dx, dy, entry] of dots) { const apart = (dx - x) ** 2 + (dy - y) ** 2; if (apart < least) [least, best] = [apart, entry]; }
      return best;
    };
    canvas.onmousemove = (event) => {
      hide();
      const entry = near(event);
      if (entry === null) return;
      const values = judges.map((view, i) => `${view.label} ${similarities(run, i, query)[entry].toFixed(3)}`).join(", ");
      tip = make("div", { className: "tip" }, thumb(run, entry, query), values);
      tip.style.left = Math.min(event.clientX + 14, innerWidth - 135) + "px";
      tip.style.top = Math.min(event.clientY + 12, innerHeight - 230) + "px";
      document.body.append(tip);
    };
    canvas.onmouseleave = hide;
    canvas.onclick = (event) => { const entry = near(event); hide(); if (entry !== null && run === runs[0]) setQuery(entry); };
  });
  return holder;
}

function groups(run, traced, query, shown) {
  const stage = traced[shown], right = (entry) => labelled(run) && run.classes[entry] === run.classes[query];
  const parts = [
    [`stage ${shown + 1}: ${stage.judge} keeps ${stage.kept.length}`, stage.kept],
    [`right, but thrown out by ${stage.judge} here`, stage.out.filter(right)],
    [`thrown out by ${stage.judge} here, nearest first`, stage.out],
  ];
  return parts.filter(([, list]) => list.length).map(([title, list]) => {
    const row = make("div", { className: "row" });
    const fill = (count) => {
      row.replaceChildren(...list.slice(0, count).map((entry) => thumb(run, entry, query)));
      if (list.length > count) row.append(make("button", { textContent: `${list.length - count} more`, onclick: () => fill(count + 60) }));
    };
    fill(SHOWN);
    return make("div", { className: "group" }, make("h3", { textContent: title }), row);
  });
}

const later = (work) => setTimeout(work, 30);
const averages = new Map();

// The share of right picks over evenly spread queries, a few at a time so that the page stays quick.
function average(run, stages, place) {
  const key = run.name + JSON.stringify(stages.map((stage) => [stage.judge, stage.keep]));
  const count = Math.min(run.entries, 200), sum = averages.get(key) ?? { at: 0, right: 0, mined: 0, busy: false };
  averages.set(key, sum);
  const tell = () => {
    const done = sum.at >= count;
    place.textContent = `PMR of this schedule over ${sum.at} clips${done ? "" : " so far"}: ${(100 * sum.right / Math.max(sum.mined, 1)).toFixed(1)} %`;
    place.dataset.done = done;
  };
  const some = () => {
    const until = performance.now() + 12;
    while (sum.at < count && performance.now() < until) {
      const last = cascade(run, stages, Math.floor((sum.at * run.entries) / count)).at(-1);
      sum.right += last?.right ?? 0;
      sum.mined += last?.kept.length ?? 0;
      sum.at++;
    }
    tell();
    if (sum.at < count && place.isConnected) later(some);
  };
  some();
}

function drawHistory() {
  const parts = [];
  for (const run of runs) {
    if (!run.epochs.length) { parts.push(make("p", { className: "soft", textContent: `${run.name}: its log holds no mining figures (${run.album.classes.length ? "the queue was never full" : "its videos have no classes"})` })); continue; }
    const last = run.epochs[run.epochs.length - 1];
    const plots = make("div", { className: "plots" }, make("div", {}, make("h3", { textContent: "PMR over time: the share of mined positives with their clip's class" }), ...pmrPlot(run)));
    if (Object.keys(last.cmr).length) plots.append(make("div", {}, make("h3", { textContent: `CMR by class, last epoch of ${last.phase}: share of the class's videos that were found, %` }), ...cmrPlot(run)));
    parts.push(make("h2", { textContent: run.name }), plots);
  }
  el("history").replaceChildren(...parts);
}

function draw() {
  const began = performance.now();
  document.body.classList.toggle("compared", choice.compare);
  el("compare").setAttribute("aria-pressed", choice.compare);
  drawPicker();
  el("panes").replaceChildren(...choice.panes.slice(0, choice.compare ? 2 : 1).map(drawPane));
  writeAddress();
  document.body.dataset.milliseconds = Math.round(performance.now() - began);
}

function toggle(name, button) {
  el(button).setAttribute("aria-pressed", document.body.classList.toggle(name));
}

document.addEventListener("keydown", (event) => {
  if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) || event.ctrlKey || event.metaKey || event.altKey) return;
  const stages = document.querySelectorAll(".pane tbody")[0]?.rows.length ?? 1;
  const move = (by) => { choice.stage = Math.max(0, Math.min(stages - 1, Math.min(choice.stage, stages - 1) + by)); draw(); };
  const does = { ArrowLeft: () => step(-1), ArrowRight: () => step(1), ArrowUp: () => move(-1), ArrowDown: () => move(1), r: () => el("any").click(), c: () => el("compare").click(), f: () => el("flow").click(), p: () => el("play").click(), "?": () => el("keys").click(), "/": () => el("find").focus() }[event.key];
  if (does) { event.preventDefault(); does(); }
});

el("previous").onclick = () => step(-1);
el("next").onclick = () => step(1);
el("any").onclick = () => { const entries = listed(); if (entries.length) setQuery(entries[Math.floor(Math.random() * entries.length)]); };
el("compare").onclick = () => { choice.compare = !choice.compare; draw(); };
el("flow").onclick = () => toggle("flow", "flow");
el("play").onclick = () => toggle("playing", "play");
el("keys").onclick = () => { el("help").hidden = !el("help").hidden; el("keys").setAttribute("aria-expanded", !el("help").hidden); };
el("find").oninput = () => drawPicker();
el("class").append(make("option", { value: "", textContent: "all" }), ...runs[0].album.classes.map((name, i) => make("option", { value: i, textContent: name })));
el("class").onchange = () => { choice.class = el("class").value; drawPicker(); };
el("class").parentElement.hidden = el("legend").hidden = !runs.some(labelled);
el("flow").hidden = !body.albums.some((album) => album.flow);
el("title").textContent = document.title = body.title;
el("lead").textContent = runs.map((run) => `\u2068${run.name}\u2069: ${run.entries.toLocaleString("en")} entries in the queue at the end of ${run.phase}`).join("; ") + ". Pick a clip; each is compared with all others.";
addEventListener("hashchange", () => { readAddress(); draw(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw());
let resized = 0;
addEventListener("resize", () => { clearTimeout(resized); resized = setTimeout(draw, 150); });
readAddress();
draw();
drawHistory();
