"""`make verify`: every artifact below the two roots, one line a problem."""

import pytest

from configs.artifacts import atomic_write, seal
from configs.verify import artifacts, main


@pytest.fixture
def roots(tmp_path):
    for name in ("data/one", "runs/two/evaluation/test", "runs/two"):
        directory = tmp_path / name
        directory.mkdir(parents=True, exist_ok=True)
        atomic_write(directory / "x", name)
        seal(directory, "thing", config={}, files=["x"])
    return tmp_path


def arguments(roots):
    return [f"paths.data={roots}/data", f"paths.runs={roots}/runs"]


def test_whole_artifacts_are_counted(roots, capsys):
    assert main(arguments(roots)) == 0
    assert "3 artifacts under" in capsys.readouterr().out


def test_a_damaged_file_is_named(roots, capsys):
    (roots / "runs/two/evaluation/test/x").write_text("other bytes of any length")
    assert main(arguments(roots)) == 1
    assert f"{roots}/runs/two/evaluation/test/x: " in capsys.readouterr().out


def test_a_broken_manifest_does_not_hide_the_problems_behind_it(roots, capsys):
    (roots / "data/one/manifest.json").write_text("{")
    (roots / "runs/two/x").write_text("damaged!")
    assert main(arguments(roots)) == 1
    out = capsys.readouterr().out
    assert "data/one/manifest.json" in out
    assert "runs/two/x" in out


def test_a_pointer_to_nothing_is_a_problem(roots, capsys):
    (roots / "data" / "current").write_text("no such generation\n")
    assert main(arguments(roots)) == 1
    assert f"{roots}/data/current: " in capsys.readouterr().out


def test_unfinished_work_is_no_artifact(roots):
    (roots / "data/.partial-1").mkdir()
    (roots / "data/.partial-1/manifest.json").write_text("{}")
    assert len(artifacts([roots / "data", roots / "runs"])) == 3


def test_other_arguments_are_refused(capsys):
    assert main(["paths.dta=x"]) == 2
    assert "paths.dta" in capsys.readouterr().err


def test_a_named_folder_that_is_not_there_is_an_error(tmp_path, capsys):
    assert main([f"paths.data={tmp_path}/typo", f"paths.runs={tmp_path}"]) == 2
    assert "typo" in capsys.readouterr().err


def test_nothing_there_is_no_problem(tmp_path, capsys):
    assert main([f"paths.data={tmp_path}", f"paths.runs={tmp_path}"]) == 0
    assert "0 artifacts" in capsys.readouterr().out
