"""Mining on 6,773 real CCV videos in three views: what each further view, and a cascade over all three, brings."""

from __future__ import annotations

import json

import pytest
from places import SHARED_DATA

from cpr_kernels.__main__ import main

TABLE = SHARED_DATA / "features" / "ccv_20cls_3views_20d.npz"
TWO_PICKS = 2.5 / (5 * 6773)  # close scores may swap between summation orders
ROWS = {  # options of `cpr mine`, as in the README: PMR
    "--preset coclr --order view1": 0.19477,
    "--preset coclr --order view2": 0.31011,
    "--preset coclr --order view3": 0.18825,
    "--preset oracle --order view1,view2": 0.32889,
    "--preset oracle --order view1,view2,view3": 0.33025,
    "--order view2,view1": 0.32128,
    "--order view2,view3,view1": 0.31431,
    "--order view1,view2,view3": 0.26482,
    "--schedule view3:0.25,view1+view2+view3:5": 0.32881,
}


@pytest.fixture(scope="module")
def pmr():
    if not TABLE.is_file():
        pytest.skip("shared/data/features, with the real feature tables, is not beside the checkout")

    def measured(options, capsys):
        assert main(["mine", str(TABLE), *options.split(), "--center", "--sample", "0", "--json"]) == 0
        return json.loads(capsys.readouterr().out)["pmr"]

    return measured


@pytest.mark.parametrize("options", ROWS)
def test_the_figures_of_the_readme(pmr, options, capsys):
    assert pmr(options, capsys) == pytest.approx(ROWS[options], abs=TWO_PICKS)
