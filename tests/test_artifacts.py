"""Artifacts: whole or not there, and damage is seen."""

import contextlib
import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import configs.artifacts as artifacts
import configs.generations as generations_module
from configs.artifacts import (
    ArtifactError,
    atomic_open,
    atomic_write,
    exclusive,
    map_array,
    open_artifact,
    read_manifest,
    remove_partials,
    require_match,
    save_array,
    seal,
    verify,
)
from configs.generations import add_generation, current_generation, generations


def fail(*args, **kwargs):
    raise OSError(28, "No space left on device")


def sealed(directory, content=b"content", kind="thing", **values):
    directory.mkdir(parents=True, exist_ok=True)
    atomic_write(directory / "a.bin", content)
    save_array(directory / "b.npy", np.arange(6, dtype=np.float32).reshape(2, 3))
    return seal(directory, kind, config={"paths": str(directory)}, files=["a.bin", "b.npy"], **values)


def test_a_written_file_holds_what_was_given(tmp_path):
    atomic_write(tmp_path / "x", "é")
    assert (tmp_path / "x").read_bytes() == "é".encode()


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_content_and_no_litter(broken, tmp_path, monkeypatch):
    atomic_write(tmp_path / "x", "old")
    owner = artifacts.os if broken == "fsync" else type(tmp_path)
    monkeypatch.setattr(owner, broken, fail)
    with pytest.raises(OSError, match="No space"):
        atomic_write(tmp_path / "x", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_text() == "old"


def test_a_writer_that_raises_leaves_the_old_content(tmp_path):
    atomic_write(tmp_path / "x", "old")

    def write():
        with atomic_open(tmp_path / "x") as stream:
            stream.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def dead_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(tmp_path):
    gone, living = dead_pid(), os.getppid()
    for pid in (gone, os.getpid(), living):
        (tmp_path / f".partial-{pid}-x").write_text("")
    (tmp_path / f".partial-{gone}").mkdir()
    (tmp_path / f".partial-{gone}" / "y").write_text("")
    remove_partials(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f".partial-{living}-x"]


def test_a_partial_name_of_nobody_is_left_alone(tmp_path):
    (tmp_path / ".partial-mine").write_text("")
    remove_partials(tmp_path)
    assert (tmp_path / ".partial-mine").exists()


def test_what_was_sealed_opens(tmp_path):
    manifest = sealed(tmp_path / "a", facts={"n": 2}, must_match={"space": "s"}, provenance={"of": "p"})
    assert open_artifact(tmp_path / "a", "thing", make="make thing") == manifest
    assert manifest.files["b.npy"]["shape"] == [2, 3]
    assert manifest.files["b.npy"]["dtype"] == "float32"


def test_a_sealed_artifact_has_no_problems(tmp_path):
    sealed(tmp_path / "a")
    assert verify(tmp_path / "a") == []


def test_an_unsealed_directory_is_named_with_the_command_that_makes_it(tmp_path):
    with pytest.raises(ArtifactError, match=r"no finished thing artifact.*manifest\.json is missing.*`make thing`"):
        open_artifact(tmp_path, "thing", make="make thing")


def test_an_artifact_of_another_kind_is_refused(tmp_path):
    sealed(tmp_path / "a")
    with pytest.raises(ArtifactError, match="holds a thing artifact, expected index"):
        open_artifact(tmp_path / "a", "index", make="make index")


def test_another_format_is_refused_with_both_numbers(tmp_path):
    sealed(tmp_path / "a", schema_version=2)
    with pytest.raises(ArtifactError, match="format 2 of thing, this version reads 1"):
        open_artifact(tmp_path / "a", "thing", make="make thing")


@pytest.mark.parametrize("text", ["", "{", "[]", "5", "null", '{"kind": "x"}', "\xff", '{"files": 1}', "[" * 5000])
def test_a_manifest_that_is_none_is_refused(text, tmp_path):
    (tmp_path / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ArtifactError, match="is no manifest"):
        read_manifest(tmp_path)


def test_a_manifest_that_is_none_is_a_problem_and_not_the_end_of_verify(tmp_path):
    (tmp_path / "manifest.json").write_text("{")
    assert len(verify(tmp_path)) == 1


def test_a_missing_file_is_found(tmp_path):
    sealed(tmp_path / "a")
    (tmp_path / "a" / "a.bin").unlink()
    assert verify(tmp_path / "a") == [f"{tmp_path}/a/a.bin: missing"]


@pytest.mark.parametrize("name", ["a.bin", "b.npy", "manifest.json"])
def test_every_flipped_byte_is_found(name, tmp_path):
    sealed(tmp_path / "a", content=b"some content", facts={"n": 10}, must_match={"space": "é"})
    path = tmp_path / "a" / name
    content = path.read_bytes()
    for at in range(len(content)):
        flipped = bytearray(content)
        flipped[at] ^= 1 << (at % 8)
        path.write_bytes(flipped)
        assert len(verify(tmp_path / "a")) == 1, f"byte {at}"


@pytest.mark.parametrize("name", ["a.bin", "b.npy", "manifest.json"])
def test_every_cut_is_found(name, tmp_path):
    sealed(tmp_path / "a")
    path = tmp_path / "a" / name
    content = path.read_bytes()
    for length in random.Random(0).sample(range(len(content)), min(len(content), 60)):
        path.write_bytes(content[:length])
        assert len(verify(tmp_path / "a")) == 1, f"cut to {length}"


def test_the_content_id_depends_on_content_alone(tmp_path, monkeypatch):
    one = sealed(tmp_path / "a")
    monkeypatch.setattr(artifacts, "commit_id", lambda: "another")
    monkeypatch.setattr(artifacts, "library_versions", lambda: {})
    two = sealed(tmp_path / "elsewhere" / "b", facts={"seconds": 3}, provenance={"of": "x"}, recipe="r")
    assert one.content_id == two.content_id


@pytest.mark.parametrize("change", [{"content": b"other"}, {"kind": "else"}, {"must_match": {"space": "s"}}])
def test_the_content_id_tells_content_kind_and_space_apart(change, tmp_path):
    assert sealed(tmp_path / "a").content_id != sealed(tmp_path / "b", **change).content_id


def test_files_described_before_are_not_hashed_again(tmp_path, monkeypatch):
    earlier = sealed(tmp_path / "a")
    monkeypatch.setattr(artifacts, "describe_file", fail)
    assert seal(tmp_path / "a", "thing", config={}, files=earlier.files, described=earlier.files).files == earlier.files


def test_spaces_that_differ_are_both_named():
    with pytest.raises(ArtifactError, match=r"the run has feature space aaaaaaaaaaaa, the index has bbbbbbbbbbbb"):
        require_match({"feature_space": "a" * 64}, {"feature_space": "b" * 64}, "the run", "the index")


def test_spaces_that_only_one_side_has_are_no_mismatch():
    require_match({"gate": "g", "word_space": "w"}, {"gate": "g"}, "one", "two")


@pytest.mark.parametrize("dtype", ["u1", "<i4", ">i4", "<f2", "?", "S16"])
def test_an_array_comes_back_as_it_was_in_little_endian(dtype, tmp_path):
    array = np.arange(6).astype(dtype).reshape(2, 3)
    save_array(tmp_path / "x.npy", array)
    back = map_array(tmp_path / "x.npy", np.dtype(dtype).newbyteorder("<"), (2, None))
    assert (back == array).all()


def test_an_array_without_rows_comes_back(tmp_path):
    save_array(tmp_path / "x.npy", np.zeros((0, 2), np.int32))
    assert map_array(tmp_path / "x.npy", "<i4", (None, 2)).shape == (0, 2)


def test_a_mapped_array_cannot_be_written(tmp_path):
    save_array(tmp_path / "x.npy", np.zeros(3))
    with pytest.raises(ValueError, match="read-only"):
        map_array(tmp_path / "x.npy", "<f8", (3,))[0] = 1


@pytest.mark.parametrize(("dtype", "shape"), [("<i8", (2, 3)), ("<i4", (3, 2)), ("<i4", (6,)), ("<i4", (None,))])
def test_another_type_or_shape_is_named(dtype, shape, tmp_path):
    save_array(tmp_path / "x.npy", np.zeros((2, 3), np.int32))
    with pytest.raises(ArtifactError, match=r"should hold .*found int32 \(2, 3\)"):
        map_array(tmp_path / "x.npy", dtype, shape)


def test_a_missing_array_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"x\.npy' is missing"):
        map_array(tmp_path / "x.npy", "<i4", (1,))


def test_bytes_behind_an_array_are_refused(tmp_path):
    save_array(tmp_path / "x.npy", np.zeros(3, np.int32))
    with (tmp_path / "x.npy").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(ArtifactError, match="has 141 bytes, its header says 140"):
        map_array(tmp_path / "x.npy", "<i4", (3,))


class Armed:
    def __reduce__(self):
        return os._exit, (66,)


@pytest.mark.parametrize("kind", ["object", "pickle", "zip"])
def test_arrays_that_would_be_unpickled_or_unpacked_are_refused(kind, tmp_path):
    with (tmp_path / "x.npy").open("wb") as stream:
        if kind == "zip":
            np.savez(stream, a=np.zeros(3))
        elif kind == "object":
            np.save(stream, np.array([Armed()], dtype=object), allow_pickle=True)
        else:
            stream.write(__import__("pickle").dumps(Armed()))
    with pytest.raises(ArtifactError, match="no readable array"):
        map_array(tmp_path / "x.npy", "<f8", (3,))


@pytest.mark.filterwarnings("ignore:Data type alias 'a':DeprecationWarning", "ignore:Reading `.npy`:UserWarning")
@settings(max_examples=300, deadline=None)
@given(at=st.integers(0, 127), value=st.integers(0, 255))
def test_a_damaged_header_is_an_artifact_error_or_does_not_matter(tmp_path_factory, at, value):
    path = tmp_path_factory.getbasetemp() / "damaged.npy"
    save_array(path, np.arange(12, dtype="<f4").reshape(3, 4))
    content = bytearray(path.read_bytes())
    content[at] = value
    path.write_bytes(content)
    with contextlib.suppress(ArtifactError):
        assert map_array(path, "<f4", (3, 4)).shape == (3, 4)


@pytest.mark.parametrize("length", [0, 1, 6, 10, 100, 127, 128, 139])
def test_a_cut_array_is_an_artifact_error(length, tmp_path):
    save_array(tmp_path / "x.npy", np.zeros(3, np.int32))
    (tmp_path / "x.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:length])
    with pytest.raises(ArtifactError):
        map_array(tmp_path / "x.npy", "<i4", (3,))


def add(root, recipe="r", content=b"content", **values):
    return add_generation(root, "thing", recipe, lambda directory: sealed(directory, content, recipe=recipe), **values)


def in_force(root):
    return (current_generation(root, "make thing") / "a.bin").read_bytes()


def test_the_first_generation_is_named_by_its_content_and_put_in_force(tmp_path):
    directory, built = add(tmp_path)
    assert built
    assert directory == current_generation(tmp_path, "make thing")
    assert directory.name == read_manifest(directory).content_id[:12]


def test_the_same_recipe_is_not_built_again(tmp_path):
    first, _ = add(tmp_path)
    assert add_generation(tmp_path, "thing", "r", fail) == (first, False)


def test_going_back_to_a_recipe_puts_its_generation_in_force_again(tmp_path):
    add(tmp_path, "r", b"one")
    add(tmp_path, "s", b"two")
    assert not add(tmp_path, "r", b"never built")[1]
    assert in_force(tmp_path) == b"one"


def test_only_the_last_generations_stay_and_the_current_one_among_them(tmp_path):
    for number in range(4):
        add(tmp_path, str(number), str(number).encode())
    assert in_force(tmp_path) == b"3"
    assert sorted((path / "a.bin").read_bytes() for path in generations(tmp_path)) == [b"2", b"3"]


def test_nothing_in_force_is_named_with_the_command(tmp_path):
    with pytest.raises(ArtifactError, match=r"no generation in force.*Run `make thing`"):
        current_generation(tmp_path, "make thing")


class Killed(BaseException):
    """As a kill leaves it: no handler of ours may tidy up."""


def killed(*args, **kwargs):
    raise Killed


def die_in_build(root, monkeypatch):
    def build(directory):
        (directory / "a.bin").write_bytes(b"half")
        raise Killed

    add_generation(root, "thing", "s", build)


def die_before_rename(root, monkeypatch):
    monkeypatch.setattr(type(root), "rename", killed)
    add(root, "s", b"two")


def die_before_pointer(root, monkeypatch):
    monkeypatch.setattr(generations_module, "_point_to", killed)
    add(root, "s", b"two")


DEATHS = {"in build": die_in_build, "before the rename": die_before_rename, "before the pointer": die_before_pointer}


@pytest.mark.parametrize("die", DEATHS.values(), ids=DEATHS)
def test_a_kill_leaves_the_old_generation_in_force_and_the_next_run_heals(die, tmp_path, monkeypatch):
    add(tmp_path, "r", b"one")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        die(tmp_path, patch)
    assert in_force(tmp_path) == b"one"
    add(tmp_path, "s", b"two")
    assert in_force(tmp_path) == b"two"
    assert not list(tmp_path.glob(".partial-*"))


def test_a_kill_in_pruning_leaves_no_half_generation_behind(tmp_path, monkeypatch):
    add(tmp_path, "r", b"one")
    add(tmp_path, "s", b"two")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(artifacts.shutil, "rmtree", killed)
        add(tmp_path, "t", b"three")
    assert in_force(tmp_path) == b"three"
    add(tmp_path, "u", b"four")
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == [
        path.name for path in generations(tmp_path)
    ]


def test_equal_content_by_another_recipe_never_takes_away_the_one_in_force(tmp_path, monkeypatch):
    add(tmp_path, "r", b"same")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(type(tmp_path), "rename", killed)
        add(tmp_path, "s", b"same")
    assert in_force(tmp_path) == b"same"
    assert add(tmp_path, "s", b"same")[1]
    assert read_manifest(current_generation(tmp_path, "make thing")).recipe == "s"


def test_a_manifest_is_written_as_it_is_read(tmp_path):
    sealed(tmp_path / "a", facts={"share": 0.1, "many": 10**20, "words": ["é", None]})
    stored = json.loads((tmp_path / "a" / "manifest.json").read_text(encoding="utf-8"))
    assert stored["facts"] == {"share": 0.1, "many": 10**20, "words": ["é", None]}


def test_a_directory_is_written_by_one_process_at_a_time(tmp_path):
    with (
        exclusive(tmp_path),
        pytest.raises(ArtifactError, match=r"another process is writing"),
        exclusive(tmp_path),
    ):
        pass
    with exclusive(tmp_path):
        pass
