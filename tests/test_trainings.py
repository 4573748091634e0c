"""Trainings in processes of their own: one that dies costs itself, and none is trained twice at once."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import train.trainings
from configs.artifacts import exclusive
from train.trainings import Stopped, Trainings, is_held, reason

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _stubbed(monkeypatch):
    monkeypatch.setattr(train.trainings, "TRAIN", "tests.stub_trainer")
    monkeypatch.setattr(train.trainings, "LOOK_AGAIN_S", 0.02)


def overrides(runs, run, margin):
    return [f"margin={margin}", f"run={run}", "seed=0", f"paths.runs='{runs}'"]


def test_a_training_that_ends_well_gives_its_manifest(tmp_path):
    manifest, printed = Trainings().train(tmp_path / "a", overrides(tmp_path, "a", 0.3))
    assert manifest.facts["val_map"] == 0.3
    assert printed.startswith("threads ")


@pytest.mark.parametrize(
    ("margin", "why"),
    [
        (0.66, "all pictures became one embedding"),
        (0.77, "killed by SIGKILL, as where memory runs out"),
        (0.88, "MemoryError: of the card"),
    ],
)
def test_a_training_that_dies_says_why(tmp_path, margin, why):
    manifest, printed = Trainings().train(tmp_path / "a", overrides(tmp_path, "a", margin))
    assert manifest is None
    assert reason(printed) == why


@pytest.mark.parametrize(
    ("printed", "why"),
    [
        ("epoch 1\nerror: collapsed\n", "collapsed"),
        ("torch.OutOfMemoryError: CUDA out of memory\n  in a frame\n", "torch.OutOfMemoryError: CUDA out of memory"),
        ("x.py:3: UserWarning: old\nepoch 1\n", "epoch 1"),
        ("last words\n\n(exit status 3)", "last words"),
        ("\n(exit status 3)", "(exit status 3)"),
    ],
)
def test_the_reason_is_the_last_error_or_the_last_line(printed, why):
    assert reason(printed) == why


def test_threads_are_shared_out(tmp_path, monkeypatch):
    monkeypatch.setattr(train.trainings.os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [Trainings(jobs).environment["OMP_NUM_THREADS"] for jobs in (1, 3, 20)] == ["8", "2", "1"]
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert Trainings(2).environment["OMP_NUM_THREADS"] == "2"
    assert Trainings(2).train(tmp_path / "a", overrides(tmp_path, "a", 0.3))[1] == "threads 2\n"


def test_a_run_that_is_finished_is_not_trained_again(tmp_path):
    Trainings().train(tmp_path / "a", overrides(tmp_path, "a", 0.3))
    manifest, printed = Trainings().train(tmp_path / "a", overrides(tmp_path, "a", 0.66))
    assert (manifest.facts["val_map"], printed) == (0.3, "")


def test_a_run_that_another_process_trains_is_waited_for(tmp_path, caplog):
    caplog.set_level("INFO")
    command = [sys.executable, "-m", "tests.stub_trainer", *overrides(tmp_path, "a", 0.99)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=ROOT):
        wait_until((tmp_path / "a" / "held").exists)
        threading.Timer(0.3, (tmp_path / "a" / "go").touch).start()
        manifest, printed = Trainings().train(tmp_path / "a", overrides(tmp_path, "a", 0.66))
    assert (manifest.facts["val_map"], printed) == (0.99, "")
    assert "waiting for" in caplog.text


def test_what_another_process_says_it_is_writing_is_tried_again(tmp_path, monkeypatch):
    ends = iter([(1, "error: another process is writing 'a'; wait\n"), (1, "error: collapsed\n")])
    monkeypatch.setattr(Trainings, "_process", lambda *_: next(ends))
    assert reason(Trainings().train(tmp_path / "a", [])[1]) == "collapsed"


def test_stopping_ends_what_trains_and_what_waits(tmp_path):
    trainings, ended = Trainings(2), []

    def end(run):
        with pytest.raises(Stopped):
            trainings.train(tmp_path / run, overrides(tmp_path, run, 0.99))
        ended.append(run)

    with exclusive(tmp_path / "held"):
        threads = [threading.Thread(target=end, args=(run,)) for run in ("a", "held")]
        for thread in threads:
            thread.start()
        wait_until((tmp_path / "a" / "held").exists)
        trainings.stop()
        for thread in threads:
            thread.join(timeout=20)
    assert sorted(ended) == ["a", "held"]
    assert not is_held(tmp_path / "a")


def wait_until(holds):
    """Look again until something holds that another process brings about, for a minute at most."""
    pause, deadline = threading.Event(), time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        pause.wait(0.02)
