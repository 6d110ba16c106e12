// Draws the page, and binds its controls and keys.

const drawing = { now: null, again: false };

// Draws what is chosen. The panes follow when they are mined; what is chosen meanwhile is drawn after them.
function draw() {
  document.body.classList.toggle("compared", choice.compare);
  el("compare").setAttribute("aria-pressed", choice.compare);
  el("list").value = choice.list;
  drawPicker();
  writeAddress();
  drawing.again = true;
  drawing.now ??= drawPanes().finally(() => (drawing.now = null));
}

async function drawPanes() {
  while (drawing.again) {
    drawing.again = false;
    const began = performance.now();
    el("panes").setAttribute("aria-busy", true);
    const found = await Promise.all(choice.panes.slice(0, choice.compare ? 2 : 1).map(answerFor));
    const active = document.activeElement, held = active?.closest?.("#panes") ? pathTo(active) : null, panes = found.map(drawPane);
    document.querySelectorAll(".tip").forEach((tip) => tip.remove());
    compareMined(panes);
    el("panes").replaceChildren(...panes.map((pane) => pane.box));
    el("panes").setAttribute("aria-busy", false);
    if (held) at(held)?.focus({ preventScroll: true });
    document.body.dataset.milliseconds = Math.round(performance.now() - began);
  }
}

// Returns when everything chosen is drawn.
async function drawn() {
  while (drawing.now) await drawing.now;
}

// A control in the panes, by its place, so that it keeps the focus when they are drawn anew.
function pathTo(element) {
  const path = [];
  for (let one = element; one.id !== "panes"; one = one.parentElement) path.unshift([...one.parentElement.children].indexOf(one));
  return path;
}

const at = (path) => path.reduce((element, place) => element?.children[place], el("panes"));

function toggle(name, button) {
  el(button).setAttribute("aria-pressed", document.body.classList.toggle(name));
}

document.addEventListener("keydown", (event) => {
  if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) || event.ctrlKey || event.metaKey || event.altKey) return;
  const stages = Math.max(1, document.querySelectorAll(".pane")[0]?.querySelectorAll("tbody button").length ?? 1);
  const move = (by) => { choice.stage = Math.max(0, Math.min(stages - 1, Math.min(choice.stage, stages - 1) + by)); draw(); };
  const does = { ArrowLeft: () => step(-1), ArrowRight: () => step(1), ArrowUp: () => move(-1), ArrowDown: () => move(1), r: () => el("any").click(), c: () => el("compare").click(), a: () => { choice.ranked = !choice.ranked; draw(); }, l: () => el("list").focus(), f: () => el("flow").click(), p: () => el("play").click(), "?": () => el("keys").click(), "/": () => el("find").focus() }[event.key];
  if (does) { event.preventDefault(); does(); }
});

el("previous").onclick = () => step(-1);
el("next").onclick = () => step(1);
el("any").onclick = () => { const rows = listed(); if (rows.length) setQuery(rows[Math.floor(Math.random() * rows.length)][0]); };
el("compare").onclick = () => { choice.compare = !choice.compare; draw(); };
el("flow").onclick = () => toggle("flow", "flow");
el("play").onclick = () => toggle("playing", "play");
el("keys").onclick = () => { el("help").hidden = !el("help").hidden; el("keys").setAttribute("aria-expanded", !el("help").hidden); };
el("find").oninput = () => drawPicker();
el("class").append(make("option", { value: "", textContent: "all" }), ...runs[0].album.classes.map((name, i) => make("option", { value: i, textContent: name })));
el("class").onchange = () => { choice.class = el("class").value; drawPicker(); };
el("class").parentElement.hidden = el("legend").hidden = !runs.some(labelled);
const whole = runs[0].kind === "table" ? "all rows" : "all clips";
el("list").append(make("option", { value: "", textContent: whole }), ...runs[0].lists.map((list) => make("option", { value: list.name, textContent: list.title })));
el("list").onchange = () => { choice.list = el("list").value; const rows = listed(); if (choice.list && rows.length) setQuery(rows[0][0]); else draw(); };
el("list").parentElement.hidden = !runs[0].lists.length;
el("flow").hidden = !body.albums.some((album) => album.flow);
el("play").hidden = !body.albums.some((album) => album.frames > 1);
for (const text of document.querySelectorAll("[data-for]")) text.hidden = !runs.some((run) => run.kind === text.dataset.for);
el("tuned").hidden = !runs.some((run) => run.views.length > run.plain);
document.body.classList.toggle("texts", !body.albums.some((album) => album.videos.some(pictured)));
el("title").textContent = document.title = body.title;
el("lead").textContent = runs.map((run) => `\u2068${run.name}\u2069: ${count(run.entries)} ` + (run.kind === "table" ? "rows" : `entries in the queue at the end of ${run.phase}`)).join("; ") + ". Pick one; it is compared with all others.";
el("note").textContent = [...new Set(runs.map((run) => run.note))].join(" ");
addEventListener("hashchange", () => { readAddress(); draw(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw());
let resized = 0;
addEventListener("resize", () => { clearTimeout(resized); resized = setTimeout(() => { draw(); drawHistory(); }, 150); });
startMiner(mined);
for (const view of runs.flatMap((run) => run.views)) view.data = null; // the worker has it
readAddress();
draw();
drawHistory();
