"""Does an index pay? What is refused, and from which queue and stage 1 on FAISS is faster than the exact cascade."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

MAX_SHARE = 0.1  # of the queue that stage 1 may keep: beyond, a search returns entries slower than a sweep scores them


def why_not_schedule(keep: int, num_keys: int, max_k: int = 2**31 - 1) -> str | None:
    """None where an index can serve a stage 1 that keeps `keep` of `num_keys`, else the sentence that says why not."""
    if num_keys and keep > max(MAX_SHARE * num_keys, 16):
        return (
            f"stage 1 keeps {keep:,} of {num_keys:,} entries ({keep / num_keys:.0%}), and an index pays up to "
            f"{MAX_SHARE:.0%}: returning that many neighbours takes longer than scoring the whole queue; "
            "use backend='auto', or a stage 1 that keeps less"
        )
    if keep > max_k:
        return f"stage 1 keeps {keep:,} entries, and a FAISS search on a GPU returns at most {max_k:,}"
    return None
