"""The command line: what composes, what is refused, and with which words."""

import ast
import logging
import re
import shlex
import subprocess
import sys
from dataclasses import fields

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

import crawl.collect
import crawl.takedown  # noqa: F401
import features.build_index
import features.embed_tags
import features.extract
import features.forget
import features.reduce  # noqa: F401
import serve.__main__
import serve.judgements
import serve.publish  # noqa: F401
import train.compare
import train.evaluate
import train.export
import train.fit
import train.results
import train.reverse
import train.sweep  # noqa: F401 - importing a stage registers its schema
from configs.artifacts import ArtifactError
from configs.compose import (
    CONFIG_DIR,
    ConfigError,
    expand_argument_files,
    gather,
    refuse_hydra_outputs,
    resolved,
    run_stage,
    typed,
)
from crawl.config import CrawlConfig, ForgetConfig, GateOptions, TakedownConfig
from crawl.source_config import SOURCES, WebDatasetSource
from features.config import (
    BackboneConfig,
    ImageFeaturesConfig,
    IndexConfig,
    ReduceConfig,
    TagVectorsConfig,
    WordsConfig,
)
from serve.config import JudgementsConfig, PublishConfig, ServeConfig
from train.config import (
    OBJECTIVES,
    AuditConfig,
    CompareConfig,
    EvaluateConfig,
    ExportConfig,
    ReproduceConfig,
    ReverseConfig,
    SweepConfig,
    TrainConfig,
)
from train.search import probes
from train.sweep import open_axes, open_space

ROOT = CONFIG_DIR.parent
STAGES = {
    "crawl": (CrawlConfig, ["source=sample"]),
    "takedown": (TakedownConfig, []),
    "forget": (ForgetConfig, []),
    "index": (IndexConfig, []),
    "tag_vectors": (TagVectorsConfig, []),
    "image_features": (ImageFeaturesConfig, []),
    "reduce": (ReduceConfig, ["pca=256"]),
    "audit": (AuditConfig, []),
    "train": (TrainConfig, []),
    "evaluate": (EvaluateConfig, []),
    "compare": (CompareConfig, ["runs=[a,b]"]),
    "reverse": (ReverseConfig, []),
    "sweep": (SweepConfig, []),
    "reproduce": (ReproduceConfig, []),
    "export": (ExportConfig, []),
    "publish": (PublishConfig, []),
    "judgements": (JudgementsConfig, []),
    "serve": (ServeConfig, []),
}
REFUSALS = (HydraException, OmegaConfBaseException, ConfigError)


def options(group):
    return sorted(path.stem for path in (CONFIG_DIR / group).glob("*.yaml"))


def composed(stage, *overrides):
    schema, needed = STAGES[stage]
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return typed(compose(stage, [*needed, *overrides]), schema)


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_composes_into_its_dataclass(stage):
    assert type(composed(stage)) is STAGES[stage][0]


def test_every_yaml_of_the_top_folder_is_a_stage_or_what_they_share():
    assert {path.stem for path in CONFIG_DIR.glob("*.yaml")} == {*STAGES, "stage"}


@pytest.mark.parametrize(("stage", "group"), [("image_features", "backbone"), ("train", "backbone")])
@pytest.mark.parametrize("option", options("backbone"))
def test_every_backbone_composes(stage, group, option):
    named = ["backbone.architecture=some/model"] if option in ("torchvision", "huggingface") else []
    assert composed(stage, f"{group}={option}", *named).backbone.name == ("some-model" if named else option)


@pytest.mark.parametrize("option", options("executor"))
def test_every_executor_composes(option):
    assert composed("image_features", f"executor={option}", "executor.cpus=0.5").executor.name == option


@pytest.mark.parametrize("option", options("objective"))
def test_every_objective_composes(option):
    assert composed("train", f"objective={option}").objective == option


@pytest.mark.parametrize("option", options("words"))
def test_every_word_table_composes(option):
    assert composed("tag_vectors", f"words={option}").words.name == option


@pytest.mark.parametrize("option", options("source"))
def test_every_source_composes_into_a_type_of_its_own(option):
    kinds = {kind.name: kind for kind in SOURCES} | {"sample": WebDatasetSource}
    assert type(composed("crawl", f"source={option}", "source.path=x").source) is kinds[option]


@pytest.mark.parametrize("name", options("experiment"))
def test_every_experiment_composes_and_names_its_run(name):
    assert composed("train", f"experiment={name}").run != TrainConfig().run


@pytest.mark.parametrize("name", options("sweep"))
def test_every_recorded_sweep_composes_and_so_does_what_it_tries(name):
    cfg = composed("sweep", f"sweep={name}")
    assert cfg.name == name
    for chosen in probes(open_space(open_axes(cfg)[0], cfg)):
        composed("train", *(f"{key}={value}" for key, value in chosen.items()))


@pytest.mark.parametrize(
    ("group", "name"), [(group, name) for group in ("experiment", "sweep") for name in options(group)]
)
def test_every_experiment_and_recorded_sweep_opens_with_four_lines_of_comment(group, name):
    header = (CONFIG_DIR / group / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[:4]
    assert len(header) == 4
    assert all(line.startswith("#") for line in header)


@pytest.mark.parametrize(
    ("stage", "override", "named"),
    [
        ("train", "margni=0.3", "margni"),
        ("train", "+margni=0.3", "margni"),
        ("train", "++margni=0.3", "margni"),
        ("train", "paths.dta=x", "dta"),
        ("train", "+paths.dta=x", "paths.dta"),
        ("train", "++paths.dta=x", "paths.dta"),
        ("train", "+backbone.deep.er=1", "backbone.deep"),
        ("train", "+foo={}", "foo"),
        ("train", "+foo=null", "foo"),
        ("train", "+foo=[]", "foo"),
        ("crawl", "source.foo=1", "foo"),
        ("crawl", "+source.foo=1", "source.foo"),
        ("crawl", "++source.foo=1", "source.foo"),
        ("crawl", "+gate.qualty=3", "gate.qualty"),
        ("tag_vectors", "+words.foo=1", "words.foo"),
        ("image_features", "+backbone.foo=1", "backbone.foo"),
        ("evaluate", "+histogram.foo=1", "histogram.foo"),
    ],
)
def test_unknown_keys_are_refused_in_every_form(stage, override, named):
    with pytest.raises(REFUSALS, match=named):
        composed(stage, override)


def test_several_unknown_keys_are_named_together():
    with pytest.raises(ConfigError, match=r"TrainConfig has no field margni, sed"):
        composed("train", "+sed=1", "+margni=0.3")


@pytest.mark.parametrize("override", ["margin=wide", "seed=1.5", "margin=null", "paths=data", "margin=[1]"])
def test_values_of_another_type_are_refused(override):
    with pytest.raises(REFUSALS, match=override.split("=")[0]):
        composed("train", override)


@pytest.mark.parametrize("option", ["objective=hnge", "backbone=vgg", "experiment=none_such"])
def test_an_unknown_option_of_a_group_is_refused(option):
    with pytest.raises(REFUSALS, match=option.split("=")[1]):
        composed("train", option)


def test_the_source_must_be_chosen():
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"), pytest.raises(REFUSALS, match="source"):
        typed(compose("crawl"), CrawlConfig)


def test_a_value_that_must_be_given_is_asked_for():
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"), pytest.raises(ConfigError, match=r"source\.path"):
        typed(compose("crawl", ["source=folder"]), CrawlConfig)


@pytest.mark.parametrize(
    ("stage", "override", "words"),
    [
        ("train", "margin=2.5", r"margin must lie in \(0, 2\), got 2\.5"),
        ("train", "temperature=0", "temperature must be above 0, got 0"),
        ("train", "hard_negative_share=0", r"hard_negative_share must lie in \(0, 1\], got 0"),
        ("train", "frequency_weighting=2", r"frequency_weighting must lie in \[0, 1\], got 2"),
        ("train", "weight_averaging=1", r"weight_averaging must lie in \[0, 1\), got 1"),
        ("train", "warmup_epochs=-1", "warmup_epochs must be 0 or more, got -1"),
        ("train", "tag_residual=inf", "tag_residual must be 0 or more, got inf"),
        ("train", "depth=0", "depth must be 1 or more, got 0"),
        ("train", "normalisation=batch", "normalisation must be one of none, layer"),
        ("train", "learning_rate=nan", "learning_rate must be above 0, got nan"),
        ("train", "run=a/b", "run must be a name"),
        ("crawl", "shard_size=20000", r"shard_size must lie in 1\.\.10000, got 20000"),
        ("crawl", "gate.max_side_px=32", r"64\.\.4096, got 32"),
        ("crawl", "gate.quality=0", r"1\.\.100, got 0"),
        ("crawl", "gate.max_bytes=0", "max_bytes must be at least 1, got 0"),
        ("crawl", "gate.min_side_px=-4", "min_side_px must be at least 1, got -4"),
        ("crawl", "gate.max_aspect=0.5", r"max_aspect must be at least 1, got 0\.5"),
        ("crawl", "gate.max_aspect=nan", "max_aspect must be at least 1, got nan"),
        ("crawl", "gate.timeout_s=nan", "timeout_s must be above 0, got nan"),
        ("crawl", "gate.memory_mb=100", "memory_mb must be at least 256, got 100"),
        ("crawl", "workers=-1", "got -1"),
        ("image_features", "backbone.crop_px=300", r"32\.\.resize_px=256, got 300"),
        ("image_features", "backbone.std=[0.2,0.2,0]", r"std .*three numbers above 0, got \[0\.2, 0\.2, 0\.0\]"),
        ("image_features", "backbone.mean=[0.5]", r"mean .*three numbers, got \[0\.5\]"),
        ("image_features", "batch_size=-1", "got -1"),
        ("image_features", "device=tpu", "tpu"),
        ("evaluate", "split=train", "train"),
        ("compare", "runs=[a]", r"runs must name two or more runs, got \['a'\]"),
        ("compare", "pairs=some", "pairs must be baseline or all, got 'some'"),
        ("compare", "name=../x", "name must be a name, got '../x'"),
        ("compare", "pictures=50", r"pictures must lie in 0\.\.20, got 50"),
        ("serve", "port=70000", r"0\.\.65535 .*got 70000"),
    ],
)
def test_a_value_out_of_range_is_named_with_its_range(stage, override, words):
    with pytest.raises(ConfigError, match=words):
        composed(stage, override)


@pytest.mark.parametrize(
    ("objective", "knob"),
    [
        ("infonce", "margin=0.5"),
        ("hinge", "temperature=0.05"),
        ("hinge", "warmup_epochs=3"),
        ("full_vocabulary", "hard_negative_share=0.5"),
        ("hinge_means", "frequency_weighting=0.5"),
    ],
)
def test_a_knob_that_the_objective_does_not_look_at_is_refused(objective, knob):
    with pytest.raises(ConfigError, match=f"{knob} means nothing to objective={objective}, which looks at"):
        composed("train", f"objective={objective}", knob)


def test_every_knob_that_an_objective_looks_at_can_be_turned():
    for objective, knobs in OBJECTIVES.items():
        turned = {"margin": 0.5, "temperature": 0.05, "warmup_epochs": 3}
        composed("train", f"objective={objective}", *(f"{name}={turned.get(name, 0.5)}" for name in knobs))


def test_there_is_a_yaml_for_every_objective():
    assert options("objective") == sorted(OBJECTIVES)


@pytest.mark.parametrize("source", ["table", "webdataset"])
def test_an_empty_tag_separator_is_refused(source):
    with pytest.raises(ConfigError, match="tag_separator"):
        composed("crawl", f"source={source}", "source.path=x", "source.tag_separator=''")


def test_seeds_and_patterns_of_runs_need_no_quotes():
    assert composed("compare", "runs=[a-0+a-1,best-*]").runs == ["a-0+a-1", "best-*"]


def test_several_problems_of_a_training_are_told_at_once():
    with pytest.raises(ConfigError, match=r"optimizer.*margin.*max_epochs"):
        composed("train", "optimizer=lbfgs", "margin=-1", "max_epochs=0")


@pytest.mark.parametrize(
    "secret", ["${oc.env:TAGTOWER_SECRET}", "${ oc.env:TAGTOWER_SECRET}", "${oc.${words}:TAGTOWER_SECRET}"]
)
def test_the_environment_never_gets_into_a_config(secret, monkeypatch):
    monkeypatch.setenv("TAGTOWER_SECRET", "hunter2")
    with pytest.raises(REFUSALS, match=r"environment|words"):
        composed("train", f"paths.data='{secret}'")


def test_the_resolver_of_the_environment_is_out_of_reach_by_any_spelling(monkeypatch):
    monkeypatch.setenv("TAGTOWER_SECRET", "hunter2")
    with pytest.raises(ConfigError, match="environment"):
        composed("train", "run=env", "paths.data='${oc.${run}:TAGTOWER_SECRET}'")


def test_other_interpolations_are_resolved():
    assert composed("train", "paths.data='${paths.runs}/x'").paths.data == "runs/x"


def test_a_resolved_config_is_plain_values():
    assert resolved(IndexConfig()) == {"paths": {"data": "data", "runs": "runs"}, "tag2picid": False}


def test_an_argument_file_holds_one_override_a_line(tmp_path):
    (tmp_path / "o").write_text("\ufeffrun=wide\n\n  # a comment\r\nsource.path='a b, c'\n", encoding="utf-8")
    assert expand_argument_files(["x=1", f"@{tmp_path}/o"]) == ["x=1", "run=wide", "source.path='a b, c'"]


@pytest.mark.parametrize("name", ["missing", "", "."])
def test_an_argument_file_that_is_not_there_is_named(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"@{name}"):
        expand_argument_files([f"@{name}"])


def test_an_argument_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "o").write_bytes(b"run=\xff\xfe")
    with pytest.raises(ConfigError, match="UTF-8"):
        expand_argument_files([f"@{tmp_path}/o"])


@pytest.mark.parametrize("error", [ArtifactError("no index"), ConfigError("no index"), OSError(28, "no index")])
def test_a_stage_that_cannot_go_on_says_so_in_one_line(error, monkeypatch):
    def stage(cfg):
        raise error

    monkeypatch.setattr(sys, "argv", ["index"])
    level = logging.getLogger().level
    with pytest.raises(SystemExit, match=r"error: .*no index"):
        run_stage(stage, IndexConfig, "index")
    logging.captureWarnings(False)
    logging.getLogger().setLevel(level)


def test_a_typo_on_the_command_line_ends_with_its_name_and_writes_nothing(tmp_path):
    command = [sys.executable, "-m", "features.build_index", "+tag2picd=true", f"paths.data={tmp_path}/data"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.returncode == 1
    assert run.stderr.strip() == "error: IndexConfig has no field tag2picd"
    assert not list(tmp_path.iterdir())


CONFIG_FILES = sorted(ROOT.glob("*/config.py"))
NESTED = {"paths", "source", "gate", "screen", "fetch", "words", "backbone", "executor"}  # their classes tell


@pytest.mark.parametrize("path", CONFIG_FILES, ids=lambda path: path.parent.name)
def test_every_config_field_has_a_comment(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    silent = []
    for node in ast.walk(ast.parse("\n".join(lines))):
        for statement in node.body if isinstance(node, ast.ClassDef) else []:
            if isinstance(statement, ast.AnnAssign) and "#" not in lines[statement.end_lineno - 1]:
                silent.append(statement.target.id)
    assert set(silent) <= NESTED


@pytest.mark.parametrize("schema", [GateOptions, WordsConfig, BackboneConfig, *(each[0] for each in STAGES.values())])
def test_every_config_has_a_docstring_of_its_own(schema):
    assert schema.__doc__
    assert not schema.__doc__.startswith(f"{schema.__name__}(")
    assert fields(schema)


@pytest.mark.parametrize("experiment", ["original", "random_negative"])
def test_a_group_on_the_command_line_wins_over_the_experiment(experiment):
    assert composed("train", f"experiment={experiment}", "objective=hinge").objective == "hinge"
    assert composed("train", f"experiment={experiment}").objective != "hinge"


@pytest.mark.parametrize(
    "argument", ["-m", "--multirun", "hydra.output_subdir=.hydra", "+hydra.foo=1", "~margin", "hydra/job_logging=x"]
)
def test_what_would_let_hydra_write_or_drop_a_key_is_refused(argument):
    with pytest.raises(ConfigError, match="is refused"):
        refuse_hydra_outputs([argument])


README = (CONFIG_DIR.parent / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(
    r"make (crawl|tag_vectors|image_features|reduce|audit|train|evaluate|compare|export|publish|serve) "
    r'(?:PORT=\d+ )?ARGS="([^"]+)"',
    README,
)


@pytest.mark.parametrize(("stage", "overrides"), COMMANDS)
def test_every_command_of_the_readme_composes(stage, overrides):
    composed(stage, *overrides.split())


RESTS = {"sweep": "axes", "reproduce": "collections"}  # what takes the overrides that are not the stage's own


@pytest.mark.parametrize(("stage", "overrides"), re.findall(r'make (sweep|reproduce) ARGS="([^"]+)"', README))
def test_every_command_of_the_readme_with_overrides_of_others_composes(stage, overrides):
    arguments = gather(shlex.split(overrides), STAGES[stage][0], stage, RESTS[stage])
    cfg = composed(stage, *arguments)
    if stage == "sweep":
        for chosen in probes(open_space(open_axes(cfg)[0], cfg)):
            composed("train", *(f"{key}={value}" for key, value in chosen.items()))


def test_the_readme_has_commands():
    assert {"crawl", "train", "evaluate", "serve"} <= {stage for stage, _ in COMMANDS}


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("source.start=http://x.org", r"str is not a ListConfig, list or tuple\. Write lists in brackets: \[a,b\]\.$"),
        ("source.pictur=img", r"^error: Could not override 'source\.pictur': Key 'pictur' not in 'WebSource'$"),
        ("source=webb", "Could not find 'source/webb' Available options in 'source': .*web webdataset"),
        ("source.picture=img[[", r"`source\.picture=img\[\[` is no override .* expecting <EOF>$"),
        ("fetch.gap_s=fast", "Value 'fast' of type 'str' could not be converted to Float$"),
        ("paths.data", "missing EQUAL"),
    ],
)
def test_a_wrong_override_is_told_in_one_line(override, told, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")
    monkeypatch.setattr(sys, "argv", ["collect", "source=web", override])
    with pytest.raises(SystemExit) as ended:
        run_stage(print, CrawlConfig, "crawl")
    assert re.search(told, str(ended.value))
    assert "\n" not in str(ended.value)
