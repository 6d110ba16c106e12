"""The commands that use what was trained: look inside, hand over, go on."""

from __future__ import annotations

from collections.abc import Callable

from .command import by_place, guarded, parse


def explore(argv: list[str]) -> int:
    """`cpr explore RUN [RUN ...] [--out PAGE]`."""

    def work() -> None:
        from .explore import Explore
        from .explore import explore as write_page

        options = parse(Explore, by_place(argv, "--runs"), "explore")
        print(write_page(options.runs, options.out, options.title))

    return guarded(work)


def export(argv: list[str]) -> int:
    """`cpr export SOURCE --out model.cpr`."""

    def work() -> None:
        from .export import Export
        from .export import export as write_artifact

        out = write_artifact(parse(Export, by_place(argv, "--source"), "export"))
        print(f"{out} ({out.stat().st_size / 1e6:.1f} MB); next: cpr predict {out} VIDEO ...")

    return guarded(work)


def update(argv: list[str]) -> int:
    """`cpr update RUN --videos NEW --out RUN2`."""

    def work() -> None:
        from .update import Update, show
        from .update import update as go_on

        settings = parse(Update, by_place(argv, "--run"), "update")
        show(go_on(settings))
        print(f"{settings.out}; next: cpr report {settings.out}")

    return guarded(work)


COMMANDS: dict[str, Callable[[list[str]], int]] = {"explore": explore, "export": export, "update": update}
