"""Several views of a picture: cut from one decoding, their features averaged, in a feature space of their own."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import simplejpeg

import features.calibrate as gate
import features.extractor
import features.pictures
from configs.artifacts import ArtifactError
from configs.compose import Paths
from features.build_index import build
from features.calibrate import calibrate
from features.config import BackboneConfig, ExtractionConfig, FeatureSpaceConfig, ImageFeaturesConfig, IndexConfig
from features.extract import extract
from features.extractor import Extractor, PartExtractor, open_network
from features.image_features import FeatureStore, open_features, seal_store
from features.inverted_index import open_index
from features.pictures import decode
from features.reduce import reduce
from features.spaces import calibration_directory, extracted_directory, feature_space, overrides, store_directory
from tests.synthetic import BACKBONE, GATE, copy_line, train_config
from tests.test_calibrate import SMALL
from tests.test_reduce import config as reduce_config
from tests.tiny import HISTOGRAM, NUM_PICTURES, picture, tagged, write_collection
from train.fit import fit
from train.runs import features_of, open_run

SIDE = 32
# Pictures of the tiny tree are 40 px high and 48 wide, so nothing is resized and every view is a slice of the picture.
PIXELS = BackboneConfig(name="pixels", architecture="pixels", width=3 * SIDE**2, resize_px=40, crop_px=SIDE)
# Where views begin, from top and left, and whether they are mirrored.
CENTRE, CORNERS = (4, 8), [(0, 0), (0, 16), (8, 0), (8, 16)]
CUTS = {
    1: [(CENTRE, False)],
    2: [(CENTRE, False), (CENTRE, True)],
    10: [(at, mirrored) for at in [CENTRE, *CORNERS] for mirrored in (False, True)],
}


@pytest.fixture
def data(tiny_data, tmp_path):
    """The tiny collection and its index, without features."""
    shutil.copytree(tiny_data, tmp_path / "data", ignore=shutil.ignore_patterns("image_features"))
    return tmp_path / "data"


@pytest.fixture
def passes(monkeypatch):
    """A network that gives a picture's pixels back; the list holds how many pictures every pass had."""
    seen = []

    def run(pictures):
        seen.append(len(pictures))
        return lambda: pictures.reshape(len(pictures), -1).astype(np.float32)

    monkeypatch.setattr(features.extractor, "open_network", lambda *a: run)
    return seen


def config(data, views, backbone=PIXELS, **values):
    paths = Paths(data=str(data))
    return ImageFeaturesConfig(paths, backbone, views=views, device="cpu", batch_size=4, part_size=8, **values)


def features_by_row(cfg, rows=None, network=None):
    index, _ = open_index(cfg.paths)
    extractor = Extractor(cfg, index, network or features.extractor.open_network(cfg, None))
    try:
        return extractor.features(np.arange(index.num_images) if rows is None else rows)
    finally:
        extractor.close()


def slices(jpeg, views):
    whole = simplejpeg.decode_jpeg(jpeg, "RGB").transpose(2, 0, 1)
    for (top, left), mirrored in CUTS[views]:
        cut = whole[:, top : top + SIDE, left : left + SIDE]
        yield cut[:, :, ::-1] if mirrored else cut


@pytest.mark.parametrize("views", [1, 2, 10])
def test_a_feature_is_the_mean_of_what_the_network_gives_for_each_view(views, data, passes):
    found = features_by_row(config(data, views))
    index, _ = open_index(Paths(data=str(data)))
    reader = features.pictures.JpegReader(data / "collection")
    for row, feature in enumerate(found):
        jpeg = reader.read(index.locations[row], index.image_id(row))
        expected = np.mean([cut.ravel() for cut in slices(jpeg, views)], axis=0, dtype=np.float64)
        assert feature == pytest.approx(expected, abs=1e-4)
    reader.close()
    assert passes == [4] * (NUM_PICTURES * views // 4)


@pytest.mark.parametrize("views", [1, 2, 10])
def test_views_are_cut_from_one_decoding(views, monkeypatch):
    decoded = []
    real = features.pictures.decode_jpeg
    monkeypatch.setattr(features.pictures, "decode_jpeg", lambda *a, **k: decoded.append(1) or real(*a, **k))
    assert decode(picture(3), PIXELS, views).shape == (views, 3, SIDE, SIDE)
    assert decoded == [1]


@pytest.mark.parametrize("runtime", ["openvino", "torch"])
def test_a_mirror_image_changes_nothing_where_a_picture_is_its_own(runtime, tmp_path):
    stripes = np.repeat(np.random.default_rng(0).integers(0, 256, (5, 1, 3), dtype=np.uint8), 8, axis=0)
    own_mirror_image = np.repeat(stripes, 40, axis=1)
    network, moved = open_network(config(tmp_path, 1, SMALL, runtime=runtime), None), []
    for number, pixels in enumerate([own_mirror_image, own_mirror_image.transpose(1, 0, 2)]):
        data = tmp_path / str(number)
        jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), colorspace="RGB")
        write_collection(data / "collection", [tagged(1, "stripes")], jpeg)
        build(IndexConfig(paths=Paths(data=str(data))))
        one, two = (features_by_row(config(data, views, SMALL), network=network) for views in (1, 2))
        moved.append(np.abs(two - one).max())
    assert moved[0] == 0
    assert moved[1] > 0.01


def test_the_time_told_before_an_extraction_counts_views(data, passes, monkeypatch):
    clock = SimpleNamespace(perf_counter=lambda: float(len(passes)))  # a pass a second
    monkeypatch.setattr(features.extractor, "time", clock)
    rates = {}
    for views in (1, 2, 10):
        worker = PartExtractor(config(data, views))
        rates[views] = worker.rate(open_index(Paths(data=str(data)))[0].image_ids[:16])
        worker.close()
    assert rates == {1: 4.0, 2: 2.0, 10: 0.4}  # images a second, four a pass


def test_progress_counts_images_not_views(data, passes):
    worker = PartExtractor(config(data, 10))
    done = []
    worker.advance = done.append
    extracted_directory(config(data, 10), open_index(Paths(data=str(data)))[1].must_match["gate"]).mkdir(parents=True)
    worker(np.asarray(open_index(Paths(data=str(data)))[0].image_ids[:6]))
    worker.close()
    assert done == [4, 2]


def test_views_lie_in_directories_of_their_own_and_are_never_mixed(data, passes):
    found = [extract(config(data, views)) for views in (1, 2, 10)]
    assert [each.name.rpartition("-")[0] for each in found] == ["pixels", "pixels-views2", "pixels-views10"]
    assert len({each.name.rpartition("-")[2] for each in found}) == 3
    index, manifest = open_index(Paths(data=str(data)))
    for views in (1, 2, 10):
        space = FeatureSpaceConfig(Paths(data=str(data)), PIXELS, views=views)
        stored, _ = open_features(space, manifest.must_match["gate"], index.image_ids)
        assert (stored == features_by_row(config(data, views)).astype(np.float16)).all()


@pytest.mark.parametrize(
    ("backbone", "space"),
    [
        (HISTOGRAM, "0c147176c0d4d18269d1dddefcb438f7aad6cfef2349b659a8c5f06aadd81713"),
        (SMALL, "c124edeb156736fc5c954f3fd9ad92214e75cd9c218bb7644265a702521e24f2"),
    ],
)
def test_one_view_has_the_space_and_the_directories_it_had_before_there_were_several(backbone, space):
    cfg = FeatureSpaceConfig(backbone=backbone)
    assert feature_space(cfg, "g") == space
    assert store_directory(cfg, "g").name == f"{backbone.name}-{space[:8]}"
    low = FeatureSpaceConfig(backbone=backbone, precision="bf16")
    assert calibration_directory(low, "g").name == f"{backbone.name}-{space[:8]}-bf16"


def test_features_of_views_that_are_missing_name_the_command():
    cfg = FeatureSpaceConfig(backbone=SMALL, views=2, pca=8.0)
    assert overrides(cfg).endswith(" views=2 pca=8")
    with pytest.raises(ArtifactError, match=r'make image_features ARGS=".* views=2"'):
        open_features(FeatureSpaceConfig(backbone=SMALL, views=2), "g", [])


@pytest.mark.parametrize("views", [-1, 0, 3, 5, 11])
def test_another_number_of_views_is_refused(views):
    with pytest.raises(ValueError, match=rf"views must be one of 1, 2, 10, got {views}"):
        ExtractionConfig(views=views)


def test_views_of_a_colour_histogram_are_refused():
    with pytest.raises(ValueError, match=r"views=2 is for networks; .* say views=1"):
        ExtractionConfig(backbone=HISTOGRAM, views=2)


def test_corners_of_a_backbone_that_looks_at_whole_pictures_are_refused(data, passes):
    squashing = replace(PIXELS, squash=True)
    with pytest.raises(ArtifactError, match=r"backbone 'pixels' looks at whole pictures: say views=2"):
        extract(config(data, 10, squashing))
    assert not passes
    extract(config(data, 2, squashing))


def test_a_lower_precision_is_judged_on_the_views_it_is_used_for(data, passes, monkeypatch):
    seen = []
    monkeypatch.setattr(gate, "open_network", features.extractor.open_network)
    monkeypatch.setattr(gate, "QUANTISATION_IMAGES", 6)
    monkeypatch.setattr(gate, "MIN_JUDGED", 14)
    monkeypatch.setattr(gate, "neighbours_kept", lambda before, after: seen.append((before, after)) or 0.97)
    cfg = config(data, 2, precision="bf16")
    index, manifest = open_index(cfg.paths)
    calibrate(cfg, index, manifest.must_match["gate"])
    rows = np.flatnonzero(np.asarray(index.splits) == 0)[6:]
    assert all((judged == features_by_row(cfg, rows)).all() for judged in seen[0])
    assert calibration_directory(cfg, manifest.must_match["gate"]).name.startswith("pixels-views2-")


@pytest.mark.usefixtures("one_thread")
def test_towers_train_on_views_and_on_their_principal_components(line, tmp_path):
    paths = copy_line(line, tmp_path)
    index, manifest = open_index(paths)
    cfg = FeatureSpaceConfig(paths, BACKBONE, views=2)
    store = FeatureStore(store_directory(cfg, GATE), BACKBONE.width)
    store.directory.mkdir()
    store.add(index.image_ids, np.random.default_rng(5).normal(size=(index.num_images, BACKBONE.width)))
    seal_store(store, cfg, feature_space(cfg, GATE), manifest)
    small = replace(reduce_config(paths), views=2)
    assert reduce(small).name.startswith("synthetic-views2-pca8-")
    for run, pca in (("whole", 0.0), ("small", 8.0)):
        fit(train_config(paths, f"views_{run}", views=2, pca=pca, max_epochs=1))
        _, sealed, inputs = open_run(paths, f"views_{run}")
        assert features_of(sealed, paths) == FeatureSpaceConfig(paths, BACKBONE, views=2, pca=pca)
        assert inputs.store.directory.name.startswith("synthetic-views2-")
    del sealed.config["views"]  # a run older than views
    assert features_of(sealed, paths).views == 1
