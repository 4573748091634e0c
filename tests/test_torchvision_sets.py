"""Source `torchvision`: tiny roots in each set's own layout are read, nothing is downloaded."""

import hashlib
import io
import json
import pickle

import numpy as np
import pytest
import scipy.io
from PIL import Image
from torchvision import datasets

from configs.artifacts import ArtifactError
from configs.compose import ConfigError, compose_typed
from crawl.config import CrawlConfig, GateOptions
from crawl.ingest import ingest
from crawl.source_config import TORCHVISION_SETS, TorchvisionSource
from crawl.sources import open_source
from crawl.sources.torchvision_sets import SETS, bmp, readable, words_told
from tests.tiny import picture

ALWAYS = "torchvision.datasets.{}.check_integrity"


def opened(root, name, **values):
    return open_source(TorchvisionSource(path=str(root), set=name, **values), 2**20)


def put(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture(seed))


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def imagenette(root, _):
    for split, wnid in (("train", "n03417042"), ("train", "n01440764"), ("val", "n03417042")):
        put(root / "imagenette2" / split / wnid / f"{split}.jpeg")
    (root / "imagenette2" / "val" / "n01440764").mkdir()
    put(root / "imagenette2" / "val" / "n01440764" / "a.jpeg")
    return [("tench", "Tinca tinca"), ("garbage truck", "dustcart")] * 2


def caltech101(root, _):
    put(root / "caltech101" / "101_ObjectCategories" / "grand_piano" / "image_0001.jpg")
    put(root / "caltech101" / "101_ObjectCategories" / "ant" / "image_0001.jpg")
    (root / "caltech101" / "101_ObjectCategories" / "BACKGROUND_Google").mkdir()
    return [("ant",), ("grand piano",)]


def caltech256(root, _):
    put(root / "caltech256" / "256_ObjectCategories" / "001.ak47" / "001_0001.jpg")
    put(root / "caltech256" / "256_ObjectCategories" / "002.american-flag" / "002_0001.jpg")
    return [("ak47",), ("american-flag",)]


def voc2007(root, _):
    base = root / "VOCdevkit" / "VOC2007"
    for name, things in {"000001": ("dog", "person"), "000002": ("tvmonitor", "dog")}.items():
        put(base / "JPEGImages" / f"{name}.jpg")
        objects = "".join(
            f"<object><name>{each}</name><part><name>head</name></part></object>" for each in (*things, things[0])
        )
        write(base / "Annotations" / f"{name}.xml", f"<annotation>{objects}</annotation>")
    write(base / "ImageSets" / "Main" / "trainval.txt", "000001\n")
    write(base / "ImageSets" / "Main" / "test.txt", "000002\n")
    return [("dog", "person"), ("tvmonitor", "dog")]


def voc2012(root, _):
    base = root / "VOCdevkit" / "VOC2012"
    put(base / "JPEGImages" / "2008_000002.jpg")
    write(
        base / "Annotations" / "2008_000002.xml", "<annotation><object>\n<pose/><name>cat</name></object></annotation>"
    )
    write(base / "ImageSets" / "Main" / "trainval.txt", "2008_000002\n")
    return [("cat",)]


def food101(root, _):
    base = root / "food-101"
    for split, name in (("train", "apple_pie/2"), ("test", "apple_pie/1")):
        put(base / "images" / f"{name}.jpg")
        write(base / "meta" / f"{split}.json", json.dumps({"apple_pie": [name]}))
    return [("apple pie",)] * 2


def oxford_iiit_pet(root, _):
    base = root / "oxford-iiit-pet"
    for split, line in (("trainval", "Abyssinian_1 1 1 1"), ("test", "yorkshire_terrier_2 1 2 1")):
        put(base / "images" / f"{line.split()[0]}.jpg")
        write(base / "annotations" / f"{split}.txt", f"{line}\n")
    return [("Abyssinian", "Cat"), ("Yorkshire Terrier", "Dog")]


def flowers102(root, patch):
    patch.setattr(ALWAYS.format("flowers102"), lambda *_, **__: True)
    base = root / "flowers-102"
    for number in range(1, 7):
        put(base / "jpg" / f"image_{number:05d}.jpg")
    scipy.io.savemat(base / "imagelabels.mat", {"labels": [[40, 74, 1, 40, 74, 1]]})
    scipy.io.savemat(base / "setid.mat", {"trnid": [[1, 4]], "valid": [[2, 5]], "tstid": [[3, 6]]})
    return [(name,) for name in ("lenten rose", "rose", "pink primrose") for _ in range(2)]


def dtd(root, _):
    base = root / "dtd" / "dtd"
    for split in ("train", "val", "test"):
        put(base / "images" / "banded" / f"banded_{split}.jpg")
        write(base / "labels" / f"{split}1.txt", f"banded/banded_{split}.jpg\n")
    return [("banded",)] * 3


def sun397(root, _):
    put(root / "SUN397" / "a" / "apartment_building" / "outdoor" / "sun_b.jpg")
    put(root / "SUN397" / "a" / "abbey" / "sun_a.jpg")
    write(root / "SUN397" / "ClassName.txt", "/a/abbey\n/a/apartment_building/outdoor\n")
    return [("abbey",), ("apartment building", "outdoor")]


def fgvc_aircraft(root, _):
    base = root / "fgvc-aircraft-2013b" / "data"
    write(base / "variants.txt", "707-320\nBoeing 717\n")
    for split, line in (("trainval", "1 Boeing 717"), ("test", "2 707-320")):
        put(base / "images" / f"{line[0]}.jpg")
        write(base / f"images_variant_{split}.txt", f"{line}\n")
    return [("Boeing 717",), ("707-320",)]


def eurosat(root, _):
    for name in ("SeaLake", "AnnualCrop"):
        put(root / "eurosat" / "2750" / name / f"{name}_1.jpg")
    return [("Annual Crop",), ("Sea Lake",)]


def stanford_cars(root, _):
    base = root / "stanford_cars"
    (base / "devkit").mkdir(parents=True)
    for file, folder in (("devkit/cars_train_annos", "cars_train"), ("cars_test_annos_withlabels", "cars_test")):
        pairs = np.array([("1.jpg", 2), ("2.jpg", 1)], dtype=[("fname", "O"), ("class", "O")])
        scipy.io.savemat(base / f"{file}.mat", {"annotations": pairs})
        put(base / folder / "1.jpg")
        put(base / folder / "2.jpg")
    names = np.array(["Audi TT", "BMW X5"], dtype=object)
    scipy.io.savemat(base / "devkit" / "cars_meta.mat", {"class_names": names})
    return [("BMW X5",), ("Audi TT",)] * 2


def places365(root, patch):
    patch.setattr(ALWAYS.format("places365"), lambda *_, **__: True)
    write(root / "categories_places365.txt", "/a/airfield 0\n/b/bedroom 1\n")
    write(root / "places365_train_standard.txt", "/a/airfield/1.jpg 0\n")
    write(root / "places365_val.txt", "2.jpg 1\n")
    put(root / "data_256_standard" / "a" / "airfield" / "1.jpg")
    put(root / "val_256" / "2.jpg")
    return [("airfield",), ("bedroom",)]


def cifar(base, files, meta, key, names, coarse):
    def make(root, patch):
        patch.setattr(ALWAYS.format("cifar"), lambda *_, **__: True)
        folder = root / base
        folder.mkdir(parents=True)
        for number, file in enumerate(files):
            batch = {"data": np.full((1, 3072), number, np.uint8), "fine_labels" if coarse else "labels": [number % 2]}
            (folder / file).write_bytes(pickle.dumps(batch))
        (folder / meta).write_bytes(pickle.dumps({key: list(names)}))
        return [readable(names[number % 2]) for number in range(len(files))]

    return make


def array_set(kind, names):
    """Sets whose own files are binary: torchvision's reading of them is replaced by what it gives."""

    def make(_, patch):
        class Stub:
            classes = names

            def __init__(self, root, train=True, split="", download=False):
                self.data = np.full((2, 28, 28), int(train), np.uint8)
                self.targets = [1, 0]

        patch.setattr(datasets, kind, Stub)
        return [readable(names[1]), readable(names[0])] * 2

    return make


def stl10(root, patch):
    patch.setattr(ALWAYS.format("stl10"), lambda *_, **__: True)
    folder = root / "stl10_binary"
    folder.mkdir()
    for split in ("train", "test"):
        (folder / f"{split}_X.bin").write_bytes(bytes(range(3)) * 9216)
        (folder / f"{split}_y.bin").write_bytes(b"\x02")
    (folder / "class_names.txt").write_text("airplane\nbird\n")
    return [("bird",)] * 2


MADE = {
    **{each.__name__: each for each in (
        imagenette, caltech101, caltech256, voc2007, voc2012, food101, oxford_iiit_pet, flowers102, dtd, sun397,
        fgvc_aircraft, eurosat, stanford_cars, places365, stl10,
    )},
    "cifar10": cifar("cifar-10-batches-py", [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"], "batches.meta",
                     "label_names", ("airplane", "bird"), False),
    "cifar100": cifar("cifar-100-python", ["train", "test"], "meta", "fine_label_names", ("aquarium_fish", "apple"),
                      True),
    "mnist": array_set("MNIST", datasets.MNIST.classes),
    "fashion_mnist": array_set("FashionMNIST", datasets.FashionMNIST.classes),
    "kmnist": array_set("KMNIST", datasets.KMNIST.classes),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(SETS.keys() - {"flickr8k", "flickr30k"}))
def test_a_set_in_its_own_layout_gives_its_pictures_with_their_class_names(name, tmp_path, monkeypatch):
    expected = MADE[name](tmp_path, monkeypatch)
    source = opened(tmp_path, name)
    items = list(source.items())
    assert [item.tags for item in items] == expected
    assert [item.problem for item in items] == [None] * len(items)
    assert all(ingest(item.data, GateOptions()).jpeg for item in items)
    assert {item.extra["dataset"] for item in items} == {name}
    assert [item.key for item in opened(tmp_path, name).items(1)] == [item.key for item in items[1:]]
    assert opened(tmp_path, name).fingerprint() == source.fingerprint()


def test_the_table_has_the_sets_of_the_config():
    assert sorted(SETS) == sorted(TORCHVISION_SETS)


def test_pages_and_known_licences_are_kept(tmp_path):
    imagenette(tmp_path, None)
    item = next(opened(tmp_path, "imagenette").items())
    assert item.provenance == {"page_url": "https://github.com/fastai/imagenette", "licence": "Apache-2.0"}


@pytest.mark.parametrize("name", ["flickr8k", "flickr30k"])
@pytest.mark.parametrize("suffix", ["html", "txt"])
def test_captions_give_the_words_that_several_of_them_tell(name, suffix, tmp_path):
    put(tmp_path / "12_ab.jpg")
    captions = ["A dog runs on the beach .", "The brown dog is on a beach", "A cat ?"]
    file = tmp_path / f"captions.{suffix}"
    if suffix == "html":
        rows = "".join(f"<li>{each}</li>" for each in captions)
        file.write_text(f"<table><tr><td><a>http://www.flickr.com/photos/x/12/</a><ul>{rows}</ul></td></tr></table>")
    else:
        file.write_text("".join(f"12_ab.jpg#{number}\t{each}\n" for number, each in enumerate(captions)))
    (item,) = opened(tmp_path, name, annotations=str(file)).items()
    assert item.tags == ("beach", "dog")
    assert item.provenance["caption"].startswith("A dog runs on the beach .")
    assert item.data == picture(0)


def test_of_a_single_caption_all_words_count_but_common_ones():
    assert words_told(["The two DOGS near a tree"]) == ("dogs", "tree")


def test_a_set_that_is_not_there_names_the_way_to_it(tmp_path):
    with pytest.raises(ArtifactError, match=r"finds no imagenette .* source\.download=true"):
        opened(tmp_path, "imagenette")


def test_a_file_that_is_listed_and_missing_is_refused_by_name(tmp_path):
    food101(tmp_path, None)
    (tmp_path / "food-101" / "images" / "apple_pie" / "1.jpg").unlink()
    first, second = opened(tmp_path, "food101").items()
    assert (first.problem, second.problem.reason) == (None, "missing")


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["source.set=imagenet"], "source.set must be one of"),
        (["source.set=flickr8k"], "source.annotations"),
        (["source.set=cifar10", "source.annotations=x"], "source.annotations"),
        (["source.set=flickr8k", "source.annotations=x", "source.download=true"], "source.download"),
    ],
)
def test_what_cannot_be_meant_is_refused(overrides, told):
    with pytest.raises(ConfigError, match=told):
        compose_typed("crawl", CrawlConfig, ["source=torchvision", "source.path=x", *overrides])


@pytest.mark.parametrize(
    ("name", "tags"),
    [
        ("airplane_cabin", ("airplane cabin",)),
        ("AnnualCrop", ("Annual Crop",)),
        ("T-shirt/top", ("T-shirt", "top")),
        ("0 - zero", ("zero",)),
        ("001.ak47", ("ak47",)),
        ("/a/abbey", ("abbey",)),
        ("pink-yellow dahlia?", ("pink-yellow dahlia",)),
        ("737-200", ("737-200",)),
        ("F-16A/B", ("F-16A", "B")),
    ],
)
def test_a_class_name_becomes_words(name, tags):
    assert readable(name) == tags


@pytest.mark.parametrize("shape", [(5, 7, 3), (4, 4), (1, 1, 3)])
def test_an_array_becomes_a_file_that_holds_its_pixels(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    with Image.open(io.BytesIO(bmp(pixels))) as image:
        back = np.asarray(image.convert("RGB"))
    assert (back == (pixels if pixels.ndim == 3 else pixels[:, :, None])).all()


def test_the_bytes_of_an_array_never_change_because_they_name_the_image():
    pixels = np.arange(75, dtype=np.uint8).reshape(5, 5, 3)
    assert hashlib.sha256(bmp(pixels)).hexdigest()[:16] == "012dc9a4f45d3175"
