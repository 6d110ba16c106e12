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


COMMANDS: dict[str, Callable[[list[str]], int]] = {"explore": explore}
