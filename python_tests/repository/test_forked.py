"""Programs in forked processes are what `python` runs: arguments, output, status, signals, folder and environment."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from forked import Program, run_python


def test_a_program_has_its_own_arguments_folder_environment_and_output(tmp_path: Path) -> None:
    code = "import os, sys; print(sys.argv, os.getcwd(), os.environ); print(__name__, file=sys.stderr); sys.exit(3)"
    ran = run_python("-c", code, "a", "b c", cwd=tmp_path, env={"ONE": "1"})
    assert (ran.returncode, ran.stderr) == (3, "__main__\n")
    assert ran.stdout == f"['-c', 'a', 'b c'] {tmp_path} environ({{'ONE': '1'}})\n"
    assert "ONE" not in os.environ and Path.cwd() != tmp_path


def test_a_module_and_a_script_run_as_main(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("value = 7")
    (tmp_path / "script.py").write_text("import sys, beside; print(__name__, sys.argv[1:], beside.value)")
    for words in (["-m", "script", "x"], [tmp_path / "script.py", "x"]):
        assert run_python(*words, cwd=tmp_path).stdout == "__main__ ['x'] 7\n"


def test_the_status_is_that_of_an_error_and_of_a_signal() -> None:
    failed = run_python("-c", "raise ValueError('no such row')")
    assert failed.returncode == 1 and failed.stderr.endswith("ValueError: no such row\n")
    assert run_python("-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)").returncode == -9
    running = Program(["-c", "import time; time.sleep(100)"])
    os.kill(running.pid, signal.SIGTERM)
    assert running.wait(timeout=60) == -signal.SIGTERM


def test_torch_is_there_and_has_the_threads_that_the_environment_names() -> None:
    code = "import sys; there = 'torch' in sys.modules; import torch; print(there, torch.get_num_threads())"
    assert run_python("-c", code, env=os.environ | {"OMP_NUM_THREADS": "1"}).stdout == "True 1\n"
