"""Executors: every part once, the same on Ray, a worker killed midway made good."""

import os
from functools import partial
from types import SimpleNamespace

import pytest

from configs.artifacts import ArtifactError
from configs.executors import ExecutorConfig, _room, map_parts
from tests.conftest import WORKERS
from tests.part_writer import Writer


def written(directory):
    return {path.name: path.read_text() for path in directory.glob("part-*")}


def test_the_local_executor_does_every_part_in_order_and_closes_its_worker(tmp_path):
    assert list(map_parts(partial(Writer, tmp_path), [3, 1, 2], ExecutorConfig())) == [9, 1, 4]
    assert len(list(tmp_path.glob("opened-*"))) == 1
    assert (tmp_path / "closed").exists()


def test_the_local_executor_closes_its_worker_after_an_error_too(tmp_path):
    with pytest.raises(ArtifactError, match="part 1 is damaged"):
        list(map_parts(partial(Writer, tmp_path, refuse=1), [3, 1, 2], ExecutorConfig()))
    assert (tmp_path / "closed").exists()
    assert written(tmp_path) == {"part-3": "9"}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"name": "slurm"}, "one of local, ray, got 'slurm'"),
        ({"cpus": 0}, "cpus above 0"),
        ({"workers": -1}, "-1"),
    ],
)
def test_values_out_of_range_are_refused(values, said):
    with pytest.raises(ValueError, match=said):
        ExecutorConfig(**values)


def test_ray_gives_the_same_and_does_again_what_a_killed_worker_had(tmp_path, caplog, cluster):
    worker = partial(Writer, tmp_path, kill_at=5, kills=2)
    with caplog.at_level("WARNING"):
        done = list(map_parts(worker, list(range(12)), ExecutorConfig(**cluster)))
    assert sorted(done) == [part * part for part in range(12)]
    assert written(tmp_path) == {f"part-{part}": str(part * part) for part in range(12)}
    assert caplog.text.count("a worker died") == 2
    assert f"opened-{os.getpid()}" not in {path.name for path in tmp_path.iterdir()}


def test_ray_gives_up_on_a_part_whose_workers_die_again_and_again(tmp_path, cluster):
    worker = partial(Writer, tmp_path, kill_at=2, kills=99)
    with pytest.raises(ArtifactError, match="died 2 times"):
        list(map_parts(worker, [1, 2], ExecutorConfig(**cluster, retries=1)))


def test_an_error_on_ray_is_the_error_of_the_part(tmp_path, cluster):
    with pytest.raises(ArtifactError, match="part 1 is damaged"):
        list(map_parts(partial(Writer, tmp_path, refuse=1), [1], ExecutorConfig(**cluster)))


def test_a_worker_that_fits_nowhere_is_refused(cluster):
    with pytest.raises(ArtifactError, match=r"no worker with 0\.5 CPUs and 64 GPUs fits .*lower executor"):
        list(map_parts(Writer, [1], ExecutorConfig(**cluster, gpus=64)))


def test_a_cluster_that_is_not_there_is_named():
    with pytest.raises(ArtifactError, match=r"no Ray cluster answers at '127.*ray start --head"):
        list(map_parts(Writer, [1], ExecutorConfig(**WORKERS, address="127.0.0.1:9")))


def test_a_worker_needs_one_machine_that_holds_it():
    machines = [{"CPU": 1.0}, {"CPU": 1.0, "GPU": 2.0}, {"GPU": 4.0}]
    ray = SimpleNamespace(nodes=lambda: [{"Alive": True, "Resources": each} for each in machines])
    assert _room(ray, ExecutorConfig(name="ray", cpus=0.5)) == 4
    assert _room(ray, ExecutorConfig(name="ray", cpus=0.5, gpus=1)) == 2
    with pytest.raises(ArtifactError, match="no worker with 2 CPUs"):
        _room(ray, ExecutorConfig(name="ray", cpus=2))
