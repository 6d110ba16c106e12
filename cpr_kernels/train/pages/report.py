"""Writes `report.html`: one self-contained page about the results of one run, or of several side by side."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from .. import TrainError
from ..data.manifest import Manifest
from ..evaluate.features import Protocol
from ..evaluate.modality_gain import gain_per_modality
from ..evaluate.paired_gain import paired_gains
from ..evaluate.retrieval import Evaluation
from ..pretrain.config import TrainConfig
from ..pretrain.phases import make_plan
from ..pretrain.run_folder import config_of
from ..runtime.files import read_json, write_atomically
from ..runtime.run_log import read_lines
from ..views.names import label, name_of_all_views
from . import plots
from .agreement import plan_tables, tracking
from .policy import content_policy, isolated
from .thumbnails import Album

TEMPLATE = "report.html.jinja"
QUERIES, QUERIES_OF_MANY = 6, 2  # shown for each phase of one run, and of one run among several


def write_report(
    runs: Sequence[Path],
    out: Path,
    title: str = "Cascade positive retrieval",
    inside: str = "",
    says: Sequence[str] = (),
    data: Path | None = None,
    baseline: Path | None = None,
) -> Path:
    """Writes one HTML page, pictures and plots inside, about one run or several; returns its path.

    A run on videos with classes must have been evaluated (`eval.json`); one without has no figures, and the page
    states that. `inside` is the name of an explorer's page beside it, to link to.
    `says`: sentences on the results, shown as a list below the page's own. `data`: where the runs' data set is, if it
    was moved. `baseline`: an evaluated run to compare the first one with, on the same test videos.
    """
    import jinja2

    if not runs:
        raise TrainError("runs: give at least one folder of a run")
    several = len(runs) > 1
    sections = [_section(Path(run), QUERIES_OF_MANY if several else QUERIES, data) for run in runs]
    recall = [row for section in sections for row in _recall_rows(section, several)]
    mining = [row for section in sections for row in _mining_rows(section, several)]
    compared_with = _compared_with(Path(runs[0]), baseline, sections[0], data) if baseline else None
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(Path(__file__).with_name(TEMPLATE).read_text())
    style = Path(__file__).with_name("report.css").read_text()
    page = template.render(
        style=style, policy=content_policy(style),
        title=title, lead=_lead(sections), says=says, compared_with=compared_with,
        protocol=sections[0]["protocol"], recall=recall, mining=mining,
        runs=sections, versions=_versions(), inside=inside, compared=_side_by_side(sections) if several else None,
    )  # fmt: skip
    write_atomically(out, page.encode())
    return out


def _compared_with(
    run: Path, baseline: Path, section: dict[str, Any], data: Path | None
) -> dict[str, Any] | None:
    """Returns the baseline's name, the epochs of both after their start, and R@1 beside; None without classes."""
    if not section["evaluation"]:
        return None
    config = config_of(baseline, data)
    epochs = [
        [(phase.name, phase.epochs) for phase in make_plan(one) if not phase.pretrains]
        for one in (section["config"], config)
    ]
    return {
        "name": method_name(config), "as_long": epochs[0] == epochs[1],
        "gains": paired_gains(run, baseline, section["protocol"], data),
    }  # fmt: skip


def _section(run: Path, shown: int, data: Path | None) -> dict[str, Any]:
    config = config_of(run, data)
    manifest = Manifest.load(config.data)
    epochs = [line for line in read_lines(run / "log.jsonl") if line["kind"] == "epoch"]
    evaluation = _evaluation(run) if manifest.classes else {"phases": [], "protocol": {}}
    names, album = way_names(config), Album(config.data, manifest, config.views)
    return {
        "run": run,
        "title": " ".join((run.name if run.name != "run" else run.parent.name).replace("_", " ").split()),
        "names": names,
        "config": config,
        "epochs": epochs,
        "evaluation": evaluation["phases"],
        "protocol": Protocol(**evaluation["protocol"]),
        "pmr_plot": _curves(epochs, names, "pmr", "PMR and agreement, %"),
        "tracking": tracking(epochs),
        "plans": plan_tables(run),
        "cmr_plot": _curves(epochs, names, "cmr_median", "median CMR, % of a class's videos"),
        "cmr_plots": [
            {
                "phase": line["phase"], "bars": _cmr_bars(line["mining"], names),
                "ends": _best_and_worst(line["mining"]["mined"]["cmr"]),
            }
            for line in last_epochs(epochs) if "mined" in line["mining"]
        ],
        "galleries": _galleries(run, album, names, shown),
        "gains": gain_per_modality(
            run, config, Protocol(**evaluation["protocol"]), album.clip, shown
        ) if len(config.views) > 1 and manifest.classes else [],
        "settings": _settings(run, config, manifest),
    }  # fmt: skip


def _evaluation(run: Path) -> dict[str, Any]:
    """What `cpr evaluate` found."""
    if not (run / "eval.json").is_file():
        raise TrainError(f"run: {run} has no eval.json; run `cpr evaluate --run {run}` first")
    return read_json(run / "eval.json", "run", f"run `cpr evaluate {run}` again", Evaluation)


def method_name(config: TrainConfig) -> str:
    """Returns the name of a run's mining method, in words."""
    mining = config.mining
    if mining.method == "cpr":
        name = f"cascade, {mining.stages} stages"
    else:
        named = {
            "custom": f"schedule {mining.schedule}",
            "auto": "plan tuned on the queue",
            "infonce": "InfoNCE",
        }
        name = named.get(mining.method, mining.method)
    return f"{name}, top 1 to {mining.topk}" if mining.progressive else name


def way_names(config: TrainConfig) -> dict[str, str]:
    """Returns {way of mining: its name on the page}, in the order of the page: the run's own first, the sum last."""
    singles = {view: f"{label(view)} alone" for view in reversed(config.views)}
    several = (
        {name_of_all_views(config.views): f"sum of {name_of_all_views(config.views)}"}
        if len(config.views) > 1
        else {}
    )
    return {"mined": method_name(config), **singles, **several}


def last_epochs(epochs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the last epoch line of each phase that has figures."""
    last: dict[str, dict[str, Any]] = {}
    for line in epochs:
        if line["mining"]:
            last[line["phase"]] = line
    return list(last.values())


def _best_and_worst(cmr: dict[str, float], shown: int = 3) -> str:
    """Names the classes of which most and least was found."""
    ranked = sorted(cmr.items(), key=lambda entry: -entry[1])
    shown = max(1, min(shown, len(ranked) // 2))
    top, bottom = (
        ", ".join(f"{isolated(label)} {100 * share:.0f} %" for label, share in some)
        for some in (ranked[:shown], ranked[-shown:])
    )
    return f"Most found: {top}. Least: {bottom}."


def _curves(epochs: list[dict[str, Any]], names: dict[str, str], metric: str, label: str) -> str:
    lines: dict[str, list[tuple[float, float]]] = {}
    phases: list[tuple[float, str]] = []
    for number, line in enumerate(epochs, start=1):
        if not phases or phases[-1][1] != line["phase"]:
            phases.append((number, line["phase"]))
        for way, figures in line["mining"].items():
            lines.setdefault(way, []).append((number, figures[metric]))
        if metric == "pmr" and "mined" in line.get("agreement", {}):  # version 0.1 wrote none
            lines.setdefault("agreement", []).append((number, line["agreement"]["mined"]))
    names = {**names, "agreement": "agreement of the views (no labels)"}
    ordered = {way: lines[way] for way in names if way in lines}
    return plots.curves(ordered, names, phases, label) if ordered else ""


def _side_by_side(sections: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns a row per run with its last phase's mining, retrieval and probe, and the plot of each run's PMR."""
    rows, lines = [], {}
    for section in sections:
        mined = [line["mining"]["mined"] for line in section["epochs"] if "mined" in line["mining"]]
        last = section["evaluation"][-1] if section["evaluation"] else {"recall": {}}
        rows.append({
            "title": section["title"],
            "method": section["names"]["mined"] if section["config"].cycles else "none: pretraining only",
            "pmr": mined[-1]["pmr"] if mined else None, "cmr": mined[-1]["cmr_median"] if mined else None,
            "r1": ", ".join(f"{view} {100 * shares['1']:.1f}" for view, shares in last["recall"].items()),
            "probe": ", ".join(f"{view} {100 * share:.1f}" for view, share in last.get("probe", {}).items()),
        })  # fmt: skip
        if mined:
            lines[section["title"]] = [(number, way["pmr"]) for number, way in enumerate(mined, start=1)]
    names = {title: title for title in lines}
    plot = plots.curves(lines, names, [], "PMR, % of mined positives") if lines else ""
    return {"rows": rows, "plot": plot}


def _cmr_bars(mining: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    shown: list[str] = [way for way in names if way in mining and way not in ("both", "all")]
    classes = sorted(mining["mined"]["cmr"], key=lambda label: -mining["mined"]["cmr"][label])
    series = {way: [mining[way]["cmr"][label] for label in classes] for way in shown}
    return plots.bars(classes, series, names)


def _galleries(run: Path, album: Album, names: dict[str, str], shown: int) -> list[dict[str, Any]]:
    """Returns, for each phase, the first clips of its last batch, one per class, and what each way of mining picked."""
    last: dict[str, dict[str, Any]] = {}
    for line in read_lines(run / "mined.jsonl"):
        if line["picks"]:
            last[line["phase"]] = line
    mined = {phase: line for phase, line in last.items() if "mined" in line["picks"]}
    return [
        {"phase": phase, "queries": _queries(line, album, names, shown)}
        for phase, line in (mined or last).items()
    ]


def _queries(line: dict[str, Any], album: Album, names: dict[str, str], shown: int) -> list[dict[str, Any]]:
    queries: list[dict[str, Any]] = []
    seen = set()
    for row, video in enumerate(line["videos"]):
        label = album.label(video)
        if label in seen or len(queries) == shown:
            continue
        seen.update([label] if label else [])
        ways = []
        for way in (way for way in names if way in line["picks"] and way not in ("both", "all")):
            picks = [
                {**album.clip(pick), "right": album.label(pick) == label if label else None}
                for pick in line["picks"][way][row]
                if pick >= 0
            ]
            ways.append(
                {"name": names[way], "picks": picks, "right": sum(bool(pick["right"]) for pick in picks)}
            )
        queries.append({"clip": album.clip(video), "ways": ways})
    return queries


def _recall_rows(section: dict[str, Any], several: bool) -> list[dict[str, Any]]:
    rows = []
    for phase in section["evaluation"]:
        name = f"{section['title']}, {phase['phase']}" if several else phase["phase"]
        for view, shares in phase["recall"].items():
            rows.append(
                {
                    "name": name,
                    "view": view,
                    "shares": list(shares.values()),
                    "probe": phase.get("probe", {}).get(view),
                    "strong": view in ("both", "all"),
                }
            )
    return rows


def _mining_rows(section: dict[str, Any], several: bool) -> list[dict[str, Any]]:
    rows = []
    for line in last_epochs(section["epochs"]):
        phase = f"{section['title']}, {line['phase']}" if several else line["phase"]
        for way in (way for way in section["names"] if way in line["mining"]):
            figures = line["mining"][way]
            rows.append({
                "phase": phase, "name": section["names"][way], "pmr": figures["pmr"],
                "r1": figures.get("r1"), "cmr": figures["cmr_median"], "strong": way == "mined",
            })  # fmt: skip
    return rows


def _lead(sections: list[dict[str, Any]]) -> list[str]:
    """Returns one sentence per run with the results of mining and retrieval."""
    sentences = []
    for section in sections:
        words = [f"{isolated(section['title'])}:"] if section["title"] else []
        mined = [line["mining"] for line in last_epochs(section["epochs"]) if "mined" in line["mining"]]
        if mined:
            shown = [way for way in section["names"] if way in mined[-1]]
            shares = [f"{section['names'][way]} {100 * mined[-1][way]['pmr']:.0f} %" for way in shown]
            words.append(f"Right among the mined positives: {', '.join(shares)}.")
        measured = section["evaluation"]
        if not measured:
            words.append("The videos have no classes: mining and retrieval are shown, not measured.")
            sentences.append(" ".join(words))
            continue
        phases = measured if len(measured) == 1 else [measured[0], measured[-1]]
        gains = [
            f"{view} " + " to ".join(f"{100 * phase['recall'][view]['1']:.1f}" for phase in phases) + " %"
            for view in phases[0]["recall"]
        ]
        words.append(
            f"R@1 after {' and after '.join(phase['phase'] for phase in phases)}: {', '.join(gains)}."
        )
        sentences.append(" ".join(words))
    return sentences


def _settings(run: Path, config: TrainConfig, manifest: Manifest) -> list[tuple[str, str]]:
    steps = [line for line in read_lines(run / "log.jsonl") if line["kind"] == "step"]
    counts = {split: sum(video.split == split for video in manifest.videos) for split in ("train", "test")}
    spent = run / "timings.json"
    timings = read_json(spent, "run", "delete it", dict[str, float]) if spent.is_file() else {}
    rows = [
        ("videos", f"{counts['train']} train, {counts['test']} test, {len(manifest.skipped)} files skipped"),
        ("frames", ", ".join(f"{name} {value}" for name, value in asdict(manifest.settings).items())),
    ]  # fmt: skip
    for phase in make_plan(config):
        mining = f", mining {phase.schedule}" if phase.schedule else ", mining by a tuned plan" * phase.tuned
        rows.append((phase.name, f"{phase.epochs} epochs of {' and '.join(phase.train)}{mining}"))
    for name, value in asdict(config).items():
        if name not in ("data", "out"):
            rows.append(
                (
                    name,
                    ", ".join(f"{k} {v}" for k, v in value.items())
                    if isinstance(value, dict)
                    else str(value),
                )
            )
    seconds = sum(line["seconds"] for line in steps)
    rows.append(
        ("training steps", f"{len(steps)} in {seconds:.0f} s, {seconds / max(len(steps), 1):.2f} s each")
    )
    rows += [(name, f"{value:.0f} s") for name, value in timings.items()]
    return rows


def _versions() -> list[tuple[str, str]]:
    names = ("cpr_kernels", "torch", "av", "opencv-contrib-python-headless", "numpy", "lmdb")
    versions = []
    for name in names:
        try:
            versions.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            versions.append((name, "not installed as a package"))
    return [
        *versions,
        ("python", platform.python_version()),
        ("machine", f"{platform.machine()}, {platform.system()}"),
    ]
