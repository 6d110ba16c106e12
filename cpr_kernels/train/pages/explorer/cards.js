// Rows as cards: a thumbnail that plays, or a text; the name, and whether the class is the query's.

const addresses = new Map(); // album, video and picture: its address, made when first shown

function address(run, entry, part, encoded) {
  const key = run.run.album + ":" + run.videos[entry] + ":" + part;
  if (!addresses.has(key)) addresses.set(key, URL.createObjectURL(new Blob([decoded(encoded, Uint8Array)], { type: "image/webp" })));
  return addresses.get(key);
}

const videoOf = (run, entry) => run.album.videos[run.videos[entry]];
const nameOf = (run, entry) => videoOf(run, entry).id ?? `row ${entry}`;
const shortName = (run, entry) => nameOf(run, entry).split("/").pop().replace(/(.)\.(avi|gif|jpe?g|mkv|mov|mp4|mpe?g|png|webm|webp)$/i, "$1");

// A name that may break after what joins its parts.
const broken = (name) => name.split(/(?<=[_/.-])/).flatMap((part, i) => (i ? [make("wbr"), part] : [part]));
const classOf = (run, entry) => run.album.classes[run.classes[entry]] ?? "";
const titleOf = (run, entry) => [nameOf(run, entry), classOf(run, entry)].filter(Boolean).join(" · ");

// The extra pictures of a video, beside its frames: one of each view that has its own, such as sound.
function extraPictures(run, entry) {
  const held = videoOf(run, entry).extra ?? {};
  return run.views.filter((view) => view.name in held).map((view) => {
    const { caption, why, data } = held[view.name];
    const image = make("i");
    if (data) image.style.backgroundImage = `url(${address(run, entry, view.name, data)})`;
    return make("span", { className: "beside", title: why }, image, caption);
  });
}

const pictured = (video) => Boolean(video.strip || video.cell !== undefined);

function face(run, entry) {
  const video = videoOf(run, entry), { frames, flow } = run.album;
  if (video.cell !== undefined) return cell(run, video.cell);
  if (!video.strip) return make("span", { className: "text", dir: "auto" }, ...(video.text ? [video.text] : broken(nameOf(run, entry))));
  const strip = make("span", { className: "strip" });
  strip.style.cssText = `background-image:url(${address(run, entry, "strip", video.strip)});background-size:${100 * frames}% ${flow ? 200 : 100}%;--frames:${frames};--length:${frames / 8}s`;
  return strip;
}

// A thumbnail out of a sheet of many.
function cell(run, place) {
  const { columns, cells, data } = run.album.sheets, size = columns * columns, sheet = Math.floor(place / size), inside = place - sheet * size;
  const key = `${run.run.album}:${sheet}`, rows = Math.min(columns, Math.ceil((cells - sheet * size) / columns));
  if (!addresses.has(key)) addresses.set(key, URL.createObjectURL(new Blob([decoded(data[sheet], Uint8Array)], { type: "image/webp" })));
  const share = (at, of) => (of > 1 ? (100 * at) / (of - 1) : 0), strip = make("span", { className: "strip still" });
  strip.style.cssText = `background-image:url(${addresses.get(key)});background-size:${100 * columns}% ${100 * rows}%;background-position:${share(inside % columns, columns)}% ${share(Math.floor(inside / columns), rows)}%`;
  return strip;
}

function clip(run, entry, kind = "", text = null) {
  const said = { right: "same class", wrong: "another class" }[kind];
  const caption = text ?? (classOf(run, entry) || shortName(run, entry));
  const button = make("button", { className: "clip " + kind, title: titleOf(run, entry) + (said ? ` (${said})` : "") }, face(run, entry), ...extraPictures(run, entry));
  if (caption !== button.querySelector(".text")?.textContent) button.append(make("span", { className: "name", dir: "auto" }, ...broken(caption)));
  if (said) button.append(make("span", { className: "hidden", textContent: said }));
  button.dataset.entry = entry;
  return button;
}

const labelled = (run) => run.album.classes.length > 1;
const mark = (run, entry, query) => (!labelled(run) || run.classes[entry] < 0 || run.classes[query] < 0 ? "" : isRight(run, entry, query) ? "right" : "wrong");

// A row of the list: its picture, its name, its class, and what the list says of it.
function line(run, entry, said) {
  const under = classOf(run, entry);
  const words = make("span", { className: "words" }, make("b", { dir: "auto", textContent: shortName(run, entry) }), make("small", { dir: "auto", textContent: under || (videoOf(run, entry).text ?? "") }));
  const button = make("button", { className: "line", title: titleOf(run, entry) }, ...(pictured(videoOf(run, entry)) ? [face(run, entry)] : []), words);
  if (said) words.append(make("em", { dir: "auto", textContent: said }));
  button.dataset.entry = entry;
  return button;
}
