"""A worker for tests of executors, in a module that Ray's processes can import."""

import os
import signal
from pathlib import Path

from configs.artifacts import ArtifactError


class Writer:
    """Leaves a file a part; kills its process at a part as often as told, refuses another."""

    def __init__(self, directory: Path, kill_at=None, kills=0, refuse=None):
        self.directory, self.kill_at, self.kills, self.refuse = directory, kill_at, kills, refuse
        (directory / f"opened-{os.getpid()}").touch()

    def __call__(self, part: int) -> int:
        if part == self.refuse:
            raise ArtifactError(f"part {part} is damaged")
        deaths = len(list(self.directory.glob("killed-*")))
        if part == self.kill_at and deaths < self.kills:
            (self.directory / f"killed-{deaths}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        (self.directory / f"part-{part}").write_text(str(part * part))
        return part * part

    def close(self):
        (self.directory / "closed").touch()
