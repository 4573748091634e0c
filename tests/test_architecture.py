"""The shape of the code, held by reading it: arrows, homes of libraries, one way to write a file."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ARROWS = ["configs", "crawl", "features", "train", "serve"]
MODULES = sorted(path for package in ARROWS for path in (ROOT / package).rglob("*.py"))

# The one home of each heavy library, as prefixes of paths.
HOMES = {
    "pytorch_lightning": ["train/"],
    "lightning": [],
    "flask": ["serve/"],
    "waitress": ["serve/"],
    "flask_smorest": ["serve/api/"],
    "marshmallow": ["serve/api/"],
    "granian": ["serve/"],
    "prometheus_client": ["serve/"],
    "sqlite3": ["crawl/fetch/database.py", "crawl/known.py", "serve/judgements.py"],
    "gensim": ["features/"],
    "openvino": ["features/"],
    "nncf": ["features/calibrate.py"],
    "transformers": ["features/huggingface.py", "crawl/screen.py"],
    "huggingface_hub": ["features/huggingface.py"],
    "ray": ["configs/executors.py"],
    "optuna": ["train/search.py"],
    "matplotlib": ["train/plots.py", "train/panels.py"],
    "sklearn": [],
    "torchvision": ["features/", "crawl/sources/torchvision_sets.py"],
    "PIL": ["crawl/ingest/"],
    "simplejpeg": ["crawl/ingest/"],
    "hydra": ["configs/compose.py"],
    "pickle": ["features/backbones.py", "features/foreign_words.py", "train/module.py"],
    "urllib.request": ["crawl/"],
    "http.client": ["crawl/", "features/foreign_words.py"],  # the downloader's errors
    "requests": [],
    "lark": ["serve/query.py"],
    "faiss": ["serve/gallery.py"],
    "scrapy": ["crawl/fetch/"],
    "twisted": ["crawl/fetch/"],
    "protego": ["crawl/fetch/manners.py"],
    "tldextract": ["crawl/fetch/shares.py"],
    "lxml": ["crawl/sources/"],
    "parsel": ["crawl/sources/page.py"],
    "extruct": ["crawl/sources/structured.py"],
}

# Calls that write to a path past `atomic_open`, and why each of these may.
WRITERS = {
    ("configs/artifacts.py", "open"): "atomic_open itself",
    ("configs/artifacts.py", "os.open"): "the lock, which holds nothing",
    ("configs/artifacts.py", "np.save"): "into the stream of atomic_open",
    ("crawl/shards.py", "open"): "the tar grows under a partial name and is renamed by commit",
    ("crawl/ingest/worker.py", "os.open"): "the null device",
    ("serve/publish.py", "shutil.copyfile"): "into a generation not yet named, where hard links are not to be had",
    ("train/module.py", "torch.save"): "into a buffer that atomic_write puts in place",
}


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def imported(path):
    """Absolute names of all modules imported in a file, at any depth of nesting."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module)
    return names


def tops(path):
    return {name.split(".")[0] for name in imported(path)}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_follow_the_arrows(path):
    package = path.relative_to(ROOT).parts[0]
    later = set(ARROWS[ARROWS.index(package) + 1 :]) | {"tests"}
    assert not tops(path) & later


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_are_absolute(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]


@pytest.mark.parametrize("library", HOMES)
def test_a_heavy_library_has_one_home(library):
    users = [name_of(path) for path in MODULES if library in tops(path) | imported(path)]
    assert [user for user in users if not user.startswith(tuple(HOMES[library]))] == []


def dotted(node):
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def writes(call):
    """The name of a call that writes to a path, or nothing."""
    name = dotted(call.func)
    last = name.rpartition(".")[2]
    texts = [each.value for each in [*call.args, *(k.value for k in call.keywords)] if isinstance(each, ast.Constant)]
    if last == "open" and name != "os.open":
        modes = [text for text in texts if isinstance(text, str) and re.fullmatch(r"[rwaxbt+]+", text)]
        return "open" if any(set(mode) & set("wax+") for mode in modes) else ""
    if name == "os.open":
        return name if re.search(r"O_(WRONLY|RDWR|CREAT)", ast.dump(call)) else ""
    if last in {"write_text", "write_bytes", "savez", "savetxt", "tofile", "to_csv", "save_file"}:
        return last
    return name if name in {"np.save", "torch.save", "json.dump", "shutil.copy", "shutil.copyfile"} else ""


def written(path):
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    return {(name_of(path), name) for call in calls if (name := writes(call))}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_files_are_written_by_atomic_open_alone(path):
    assert written(path) <= WRITERS.keys()


def test_every_exception_from_the_one_way_to_write_is_in_use():
    assert WRITERS.keys() - set().union(*map(written, MODULES)) == set()


def tracked_texts():
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        if path.is_file() and path.stat().st_size < 2**20:
            yield name, path.read_bytes().decode(errors="replace")


FOREIGN = re.compile(
    r"(?<![\w.<>$])/(?:home|root|Users|work|mnt|scratch)/\w"
    r"|py[p]i[.]org|python[h]osted|index-url\s*=|artifactory|jfrog|nexus\d*\.|mirror\.[a-z]",
)


def test_no_tracked_file_names_a_machine_or_a_package_registry():
    found = [
        f"{name}: {match.group()}"
        for name, text in tracked_texts()
        if name != "tests/test_architecture.py" and (match := FOREIGN.search(text))
    ]
    assert found == []
