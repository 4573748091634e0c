"""Stands in for train.fit where only the process matters: `python -m tests.stub_trainer margin=0.3 run=... seed=0 ...`.

It prints the threads it may use, and ends as its margin says.
"""

import os
import signal
import sys
import time
from pathlib import Path

from configs.artifacts import exclusive, seal

ENDS = {"0.66": "collapse", "0.77": "killed", "0.88": "traceback", "0.99": "waits"}


def main(arguments):
    given = {key: value.strip("'") for key, _, value in (each.partition("=") for each in arguments)}
    run_dir = Path(given["paths.runs"]) / given["run"]
    how = ENDS.get(given["margin"], "")
    print("threads", os.environ.get("OMP_NUM_THREADS"), flush=True)
    if how == "collapse":
        sys.exit("a warning\nerror: all pictures became one embedding")
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "traceback":
        raise MemoryError("of the card")
    with exclusive(run_dir):
        (run_dir / "held").touch()
        deadline = time.monotonic() + 60  # a test that was killed leaves nothing behind for long
        while how == "waits" and not (run_dir / "go").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        facts = {"val_map": float(given["margin"]) + int(given["seed"]) / 100, "num_epochs": 3}
        seal(run_dir, "run", config={}, files=[], facts=facts)


if __name__ == "__main__":
    main(sys.argv[1:])
