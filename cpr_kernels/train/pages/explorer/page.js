// What is chosen, and the list of rows beside it. The choice is in the address.

const body = JSON.parse(document.getElementById("data").textContent);
const mined = body.runs.map((run) => mineable(run, body.albums));
const runs = body.runs.map((run, number) => ({ ...run, ...mined[number], number, run, album: body.albums[run.album], videos: run.videos ?? Array.from({ length: run.entries }, (_, entry) => entry) }));
const el = (id) => document.getElementById(id);
const SHOWN = 12; // cards of a group before "more"

const choice = { query: 0, stage: 0, axes: null, ranked: false, compare: false, class: "", list: "", panes: [{ run: 0, schedule: runs[0].schedule }, { run: Math.min(1, runs.length - 1), schedule: null }] };
choice.panes[1].schedule = runs.length > 1 ? runs[1].schedule : (runs[0].schedules.find(([, text]) => text !== runs[0].schedule) ?? runs[0].schedules[0])[1];

function readAddress() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  if (wanted.has("query")) choice.query = Math.max(0, Math.min(runs[0].entries - 1, parseInt(wanted.get("query")) || 0));
  if (wanted.has("stage")) choice.stage = Math.max(0, (parseInt(wanted.get("stage")) || 1) - 1);
  choice.compare = wanted.get("compare") === "1";
  choice.ranked = wanted.get("axes") === "ranks";
  const list = runs[0].lists.find((one) => one.name === wanted.get("list"));
  choice.list = list?.name ?? "";
  if (list && !wanted.has("query")) choice.query = list.rows[0][0];
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
  if (choice.ranked) address.set("axes", "ranks");
  if (choice.list) address.set("list", choice.list);
  choice.panes.slice(0, choice.compare ? 2 : 1).forEach((pane, i) => {
    address.set("run" + i, pane.run);
    address.set("schedule" + i, pane.schedule);
  });
  try { history.replaceState(null, "", "#" + address); } catch (refused) { /* some viewers of local files allow no address */ }
}

// The same clip in another run: an entry of the same video, or -1.
function queryIn(run) {
  if (run === runs[0]) return choice.query;
  const id = nameOf(runs[0], choice.query);
  return run.videos.findIndex((video) => run.album.videos[video].id === id);
}

function setQuery(entry) {
  choice.query = (entry + runs[0].entries) % runs[0].entries;
  draw();
}

const found = { key: null, rows: [] };

// The rows of the chosen list, of the chosen class, that hold the letters: [[entry, what the list says]].
function listed() {
  const part = el("find").value.trim().toLowerCase(), key = JSON.stringify([choice.list, choice.class, part]), run = runs[0];
  if (found.key === key) return found.rows;
  const wanted = choice.class === "" ? null : +choice.class, seen = new Set();
  const fits = (entry) => (wanted === null || run.classes[entry] === wanted) && (!part || `${titleOf(run, entry)} ${videoOf(run, entry).text ?? ""}`.toLowerCase().includes(part));
  const list = run.lists.find((one) => one.name === choice.list);
  found.rows = [];
  if (list) found.rows = list.rows.filter(([entry]) => fits(entry));
  else for (let entry = 0; entry < run.entries; entry++) {
    if (seen.has(run.videos[entry]) || !fits(entry)) continue;
    seen.add(run.videos[entry]);
    found.rows.push([entry, ""]);
  }
  found.key = key;
  return found.rows;
}

const placeIn = (rows) => rows.findIndex(([entry]) => (choice.list ? entry === choice.query : runs[0].videos[entry] === runs[0].videos[choice.query]));

// The rows around the chosen one; more on either side on request.
function drawPicker(before = 6, after = 50) {
  const run = runs[0], rows = listed(), at = placeIn(rows), near = Math.max(0, at);
  const start = near < 30 ? 0 : Math.max(0, near - before), end = Math.min(rows.length, near + after);
  const shown = rows.slice(start, end).map(([entry, said], i) => {
    const button = line(run, entry, said);
    if (start + i === at) button.setAttribute("aria-current", "true");
    button.onclick = () => setQuery(entry);
    return button;
  });
  if (start > 0) shown.unshift(make("button", { textContent: `${count(start)} before`, onclick: () => drawPicker(before + 100, after) }));
  if (end < rows.length) shown.push(make("button", { textContent: `${count(rows.length - end)} more`, onclick: () => drawPicker(before, after + 200) }));
  if (!rows.length) shown.push(make("p", { className: "soft", textContent: "nothing is called so" }));
  const list = run.lists.find((one) => one.name === choice.list);
  el("says").textContent = list?.says ?? "";
  el("says").hidden = !list;
  el("picker").replaceChildren(...shown);
  const chosen = el("picker").querySelector("[aria-current]");
  if (chosen && after === 50) {
    el("picker").scrollTop = Math.max(0, chosen.offsetTop - el("picker").offsetTop - 60);
    el("picker").scrollLeft = Math.max(0, chosen.offsetLeft - el("picker").offsetLeft - 60);
  }
}

function step(by) {
  const rows = listed();
  if (!rows.length) return;
  const at = placeIn(rows);
  setQuery(rows[at < 0 ? (by > 0 ? 0 : rows.length - 1) : (at + by + rows.length) % rows.length][0]);
}
