"""An exported run gives what its towers give, by another runtime and from its own files."""

import json

import numpy as np
import pytest
import torch

import train.export
from configs.artifacts import ArtifactError, read_manifest, verify
from features.runtimes import run_onnx
from tests.synthetic import NO_VECTOR, train_config
from train.config import ExportConfig
from train.export import export, judge, onnx_of
from train.fit import fit
from train.runs import open_gallery, open_run
from train.towers import TwoTowers, embed

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def exported(line):
    """A run with everything a tower can have."""
    extras = {"tag_residual": 0.5, "depth": 3, "normalisation": "layer", "withhold_tags": 0.2}
    fit(train_config(line, run="exported", max_epochs=1, **extras))
    return export(ExportConfig(line, "exported"))


def test_an_export_is_sealed_and_tells_how_far_it_is_from_torch(exported):
    assert verify(exported) == []
    manifest = read_manifest(exported)
    assert set(manifest.files) == {"image_tower.onnx", "tag_tower.onnx", "tags.txt", "tag_embeddings.npy"}
    assert all(difference < 1e-5 for difference in manifest.facts["largest_difference"].values())
    assert manifest.provenance["run"] == read_manifest(exported.parent).content_id


def test_the_files_alone_rank_images_as_the_run_does(line, exported):
    gallery = open_gallery(line, "exported")
    images = run_onnx((exported / "image_tower.onnx").read_bytes(), gallery.inputs.features.astype(np.float32))
    tags = (exported / "tags.txt").read_text(encoding="utf-8").splitlines()
    embeddings = np.load(exported / "tag_embeddings.npy")
    for tag in ("dog", "traffic light", "boat"):
        scores = images @ embeddings[tags.index(tag)]
        found = [(gallery.inputs.index.image_id(row), float(scores[row])) for row in np.argsort(-scores)[:5]]
        expected = gallery.search(tag, k=5)
        assert [image_id for image_id, _ in found] == [image_id for image_id, _ in expected]
        assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=1e-5)
    assert NO_VECTOR not in tags


def test_the_tag_tower_embeds_a_tag_that_training_did_not_see(line, exported):
    towers, _, inputs = open_run(line, "exported")
    unseen = next(tag for tag in inputs.index.tags if tag != NO_VECTOR and int(towers.residual_rows([tag])[0]) < 0)
    vector = np.array(inputs.vectors.vectors[[inputs.index.tag_row(unseen)]])
    tags = (exported / "tags.txt").read_text(encoding="utf-8").splitlines()
    found = run_onnx((exported / "tag_tower.onnx").read_bytes(), vector)[0]
    np.testing.assert_allclose(found, np.load(exported / "tag_embeddings.npy")[tags.index(unseen)], atol=1e-5)


@pytest.mark.parametrize("rows", [1, 3, 500])
def test_any_number_of_rows_goes_through(exported, rows):
    asked = np.random.default_rng(0).normal(size=(rows, 24)).astype(np.float32)
    found = run_onnx((exported / "image_tower.onnx").read_bytes(), asked)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), np.ones(rows), rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"depth": 1}, {"activation": "none"}, {"depth": 4, "normalisation": "layer"}])
def test_every_kind_of_tower_is_exported(options):
    torch.manual_seed(0)
    tower = TwoTowers(5, 7, hidden_dim=6, embed_dim=4, **options).eval().image
    tower.scale_by(torch.randn(20, 7) * 3 + 1)
    assert judge(tower, onnx_of(tower, "features"), np.random.default_rng(0).normal(size=(9, 7))) < 1e-5


def test_equal_towers_are_equal_bytes_that_name_no_machine(caplog, capsys):
    torch.manual_seed(0)
    tower = TwoTowers(5, 7, hidden_dim=6, embed_dim=4).eval().image
    with caplog.at_level("INFO"):
        one, two = onnx_of(tower, "features"), onnx_of(tower, "features")
    assert caplog.text + "".join(capsys.readouterr()) == ""
    assert one == two
    assert b"train" not in one
    assert b".py" not in one


def test_a_tower_that_was_exported_otherwise_than_it_is_is_refused():
    torch.manual_seed(0)
    one, other = (TwoTowers(5, 7, hidden_dim=6, embed_dim=4).eval().image for _ in range(2))
    with pytest.raises(ArtifactError, match=r"differs from the trained one by [\d.]+ in a coordinate, more than 1e-05"):
        judge(one, onnx_of(other, "features"), np.ones((3, 7)))


def test_an_export_of_the_same_run_says_done_and_one_of_another_run_is_made_anew(line, exported, caplog):
    with caplog.at_level("INFO", "train.export"):
        assert export(ExportConfig(line, "exported")) == exported
    assert "already done" in caplog.text
    path = exported / "manifest.json"
    before = json.loads(path.read_text())
    path.write_text(json.dumps(before | {"recipe": "of an earlier run"}))
    export(ExportConfig(line, "exported"))
    assert json.loads(path.read_text())["content_id"] == before["content_id"]


def test_an_export_that_stops_half_way_is_not_sealed(line, exported, monkeypatch):
    fit(train_config(line, run="half-exported", max_epochs=1))
    monkeypatch.setattr(train.export, "TOLERANCE", 0.0)
    with pytest.raises(ArtifactError, match="nothing was sealed"):
        export(ExportConfig(line, "half-exported"))
    assert read_manifest(line.run("half-exported") / "export") is None


def test_embeddings_of_the_export_are_those_of_the_image_tower(line, exported):
    towers, _, inputs = open_run(line, "exported")
    found = run_onnx((exported / "image_tower.onnx").read_bytes(), inputs.features[:50].astype(np.float32))
    np.testing.assert_allclose(found, embed(towers.image, torch.from_numpy(inputs.features[:50])).numpy(), atol=1e-5)
