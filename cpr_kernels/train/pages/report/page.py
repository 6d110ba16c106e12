"""Writes `report.html`: one self-contained page about the results of one run, or of several side by side."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ....plot_style import SHAPES, Mark, page_variables
from ... import TrainError
from ...data.manifest import Manifest
from ...evaluate.features import Protocol
from ...evaluate.modality_gain import gain_per_modality
from ...evaluate.retrieval import Evaluation
from ...pretrain.run_folder import config_of
from ...runtime.files import read_json, write_atomically
from ...runtime.run_log import read_lines
from ..policy import content_policy
from ..thumbnails import Album
from . import settings, verdict
from .agreement import plan_tables, tracking
from .galleries import galleries
from .names import SUMS, title_of, view_name, way_marks, way_names
from .trends import chance_of_mining, class_recalls, last_epochs, trends

TEMPLATE = "report.html.jinja"
QUERIES, QUERIES_OF_MANY = 6, 2  # shown for each phase of one run, and of one run among several
HEADINGS = re.compile(r'<h2 id="([^"]+)">(.*?)</h2>')


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
    was moved. `baseline`: an evaluated run to compare with on the same test videos: the first one, or each of several.
    """
    import jinja2

    if not runs:
        raise TrainError("runs: give at least one folder of a run")
    several = len(runs) > 1
    shown = QUERIES_OF_MANY if several else QUERIES
    sections = [_section(Path(run), f"run{i}-" if several else "", shown, data) for i, run in enumerate(runs)]
    first = sections[0]
    tabulated = [
        settings.settings_of(one["run"], one["config"], one["manifest"], one["lines"]) for one in sections
    ]
    columns, against = [one["title"] for one in sections], None
    if baseline:
        other = config_of(baseline, data)
        columns.append(title_of(baseline))
        same = other.data == first["config"].data
        known = first["manifest"] if same else Manifest.load(other.data)
        tabulated.append(settings.settings_of(baseline, other, known, read_lines(baseline / "log.jsonl")))
        if first["evaluation"] and not several:
            against = verdict.against(first, baseline, other, data)
    marks = _Marks()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(Path(__file__).with_name(TEMPLATE).read_text())
    style = page_variables() + Path(__file__).with_name("report.css").read_text()
    page = template.render(
        style=style, policy=content_policy(style), contents=HEADINGS.findall, use=marks.add, marks=marks.used,
        humps=_humps, view_name=view_name,
        title=title, says=says, inside=inside, runs=sections, several=several, against=against,
        leads=[(one["title"], verdict.lead(one, several)) for one in sections],
        protocol=first["protocol"], chance=_chance_of_recall(first),
        recall=[row for one in sections for row in _recall_rows(one, several)],
        mining=[row for one in sections for row in _mining_rows(one, several)],
        compared=verdict.compared(sections, baseline, data) if several else None,
        pmr=None if several else verdict.mined_tile(first, way_marks(first["config"])), signed=verdict.signed,
        columns=columns, settings=settings.table(tabulated, first["config"]), versions=settings.versions(),
    )  # fmt: skip
    write_atomically(out, page.encode())
    return out


class _Marks:
    """Collects the marks that a page draws many times, to define each once."""

    def __init__(self) -> None:
        self.used: dict[str, Mark] = {}

    def add(self, mark: Mark) -> str:
        """Returns the anchor of a mark's definition."""
        anchor = f"mark-{mark.colour[1:]}-{list(SHAPES).index(mark.marker)}"
        self.used[anchor] = mark
        return anchor


def _humps(name: str) -> Any:
    """Returns a name as HTML that can break between its words, as in PlayingGuitar."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"(?<=[a-z])(?=[A-Z])", "<wbr>", str(escape(name))))


def _section(run: Path, prefix: str, shown: int, data: Path | None) -> dict[str, Any]:
    """Returns what the page shows of one run; `prefix` begins the anchors of its parts."""
    config = config_of(run, data)
    manifest = Manifest.load(config.data)
    lines = read_lines(run / "log.jsonl")
    epochs = [line for line in lines if line["kind"] == "epoch"]
    evaluation = _evaluation(run) if manifest.classes else {"phases": [], "protocol": {}}
    names, marks, album = (
        way_names(config),
        way_marks(config),
        Album(config.data, manifest, config.views),
    )
    protocol, chance = Protocol(**evaluation["protocol"]), chance_of_mining(manifest)
    several_views = len(config.views) > 1 and manifest.classes
    return {
        "run": run, "id": prefix, "title": title_of(run), "names": names, "config": config, "manifest": manifest,
        "lines": lines, "epochs": epochs,
        "evaluation": evaluation["phases"], "protocol": protocol, "chance": chance,
        "measured": any(line["mining"] for line in epochs), "trends": trends(config, lines, chance),
        "tracking": tracking(epochs),
        "plans": plan_tables(run),
        "recalls": class_recalls(config, epochs),
        "galleries": galleries(run, album, names, marks, shown),
        "gains": gain_per_modality(run, config, protocol, album.clip, shown) if several_views else [],
    }  # fmt: skip


def _evaluation(run: Path) -> dict[str, Any]:
    """What `cpr evaluate` found."""
    if not (run / "eval.json").is_file():
        raise TrainError(f"run: {run} has no eval.json; run `cpr evaluate --run {run}` first")
    return read_json(run / "eval.json", "run", f"run `cpr evaluate {run}` again", Evaluation)


def _chance_of_recall(section: dict[str, Any]) -> list[float]:
    if not section["evaluation"]:
        return []
    return verdict.chance_of_recall(section["manifest"], section["protocol"])


def _recall_rows(section: dict[str, Any], several: bool) -> list[dict[str, Any]]:
    return [
        {
            "name": f"{section['title']}, {phase['phase']}" if several else phase["phase"], "view": view,
            "shares": list(shares.values()), "probe": phase.get("probe", {}).get(view), "strong": view in SUMS,
        }
        for phase in section["evaluation"] for view, shares in phase["recall"].items()
    ]  # fmt: skip


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
