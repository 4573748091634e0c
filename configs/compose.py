"""From the command line to a typed config: Hydra composes, the dataclass decides what is allowed."""

from __future__ import annotations

import errno
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, OverrideType, Quote, QuotedString, ValueType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from configs.artifacts import ArtifactError

CONFIG_DIR = Path(__file__).resolve().parent

# What the disk or the system says no to; any other OSError is a fault of ours and keeps its traceback.
STORAGE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}

T = TypeVar("T")


class ConfigError(ValueError):
    """A config that cannot be used: an unknown key, a wrong type, a value out of range."""


def _refuse_environment(*_: object) -> None:
    raise ConfigError("${oc.env:...} is refused: configs are saved, and the environment may hold secrets")


# In the resolver's own place, so that no spelling of the interpolation gets around it.
OmegaConf.register_new_resolver("oc.env", _refuse_environment, replace=True)


@dataclass
class Paths:
    """Where artifacts lie, relative to the working directory."""

    data: str = "data"  # collection, index, vectors, features, served
    runs: str = "runs"  # trained towers and their evaluations

    def artifact(self, name: str) -> Path:
        """Return the directory of a data artifact, such as `index`."""
        return Path(self.data) / name

    def run(self, name: str) -> Path:
        """Return the directory of a run."""
        return Path(self.runs) / name


def is_name(text: str) -> bool:
    """Tell whether a text may name a directory of ours: letters, digits, `.`, `_`, `-`, no dot first."""
    return bool(text) and not text.startswith(".") and all(char.isalnum() or char in "._-" for char in text)


def check_name(key: str, value: str) -> None:
    """Refuse a value that is no name, such as one that leads out of its folder."""
    if not is_name(value):
        raise ValueError(f"{key} must be a name of letters, digits, '.', '_' and '-', got {value!r}")


def register(stage: str, schema: type, groups: dict[str, type] | None = None) -> None:
    """Make `<stage>_schema`, and a schema per group option (`source/folder`), known to Hydra."""
    store = ConfigStore.instance()
    store.store(name=f"{stage}_schema", node=schema)
    for option, node in (groups or {}).items():
        group, _, name = option.partition("/")
        store.store(group=group, name=f"{name}_schema", node=node)


def _leaf_keys(tree: Any, prefix: str = "") -> set[str]:
    """Dotted names of all leaves; an empty mapping is a leaf of its own."""
    if not isinstance(tree, dict) or not tree:
        return {prefix}
    return set().union(*(_leaf_keys(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in tree.items()))


def typed(cfg: DictConfig, schema: type[T]) -> T:
    """Turn a composed config into its dataclass and run its value checks.

    Hydra's `+key=value` adds keys the schema does not have; they are refused here,
    because a misspelt override would otherwise train with the default.

    Raises:
        ConfigError: unknown or missing keys, wrong types, values out of range.
    """
    try:
        if missing := sorted(str(key) for key in OmegaConf.missing_keys(cfg)):
            raise ConfigError(
                f"{schema.__name__} needs a value for {', '.join(missing)}; give it as `{missing[0]}=<value>`"
            )
        config = OmegaConf.to_object(cfg)
    except ConfigError:
        raise
    except (OmegaConfBaseException, ValueError) as error:
        raise ConfigError(str(error).splitlines()[0]) from error
    if not isinstance(config, schema):
        raise TypeError(f"expected a {schema.__name__} config, got {type(config).__name__}")
    unknown = _leaf_keys(OmegaConf.to_container(cfg, resolve=True)) - _leaf_keys(resolved(config))
    if unknown:
        raise ConfigError(f"{schema.__name__} has no field {', '.join(sorted(unknown))}")
    return config


def compose_typed(stage: str, schema: type[T], overrides: list[str]) -> T:
    """Compose a stage's config inside a program, from overrides as the command line has them.

    Raises:
        ConfigError: as `typed`, and where Hydra refuses an override.
    """
    started = GlobalHydra.instance().is_initialized()  # by the stage that asks, on the same folder
    try:
        with nullcontext() if started else hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            composed = hydra.compose(stage, overrides)
    except (HydraException, OmegaConfBaseException) as error:
        told = [error, *([error.__cause__] if isinstance(error.__cause__, OmegaConfBaseException) else [])]
        raise ConfigError(": ".join(str(each).splitlines()[0].rstrip(".") for each in told)) from error
    return typed(composed, schema)


def override(key: str, value: str) -> str:
    """Return an override that gives a key a text as it is, whatever signs of Hydra's are in it."""
    return f"{key}={QuotedString(value, Quote.single).with_quotes()}"


@dataclass(frozen=True)
class Axis:
    """What a sweep tries for one key: values in order, or an interval to search."""

    key: str
    values: tuple[str, ...] = ()  # as overrides have them; none for an interval
    ordered: bool = False  # the values ascend, so that neighbours are alike
    low: float = 0.0
    high: float = 0.0
    whole: bool = False  # the interval's whole numbers alone
    log: bool = False  # searched by ratio, not by difference


def parse_axis(key: str, text: str) -> Axis:
    """Read one axis in Hydra's sweep syntax: a value, `a,b`, `choice()`, `range()`, `interval()`, `tag(log, ...)`.

    Raises:
        ConfigError: no such syntax, `glob()`, or no value at all.
    """
    try:
        parsed = OverridesParser.create().parse_override(f"{key}={text}")
    except HydraException as error:
        raise ConfigError(f"`{key}={text}` is not Hydra's sweep syntax: {str(error).splitlines()[0]}") from error
    if parsed.type is not OverrideType.CHANGE or parsed.value_type is ValueType.GLOB_CHOICE_SWEEP:
        raise ConfigError(f"`{key}={text}` is refused: give values as `a,b`, choice(), range() or interval()")
    if isinstance(found := parsed.value(), IntervalSweep):
        return _interval(key, text, found)
    values = tuple(parsed.sweep_string_iterator()) if parsed.is_sweep_override() else (_element(parsed),)
    if not values:
        raise ConfigError(f"`{key}={text}` has no value to try")
    return Axis(key, tuple(dict.fromkeys(values)), ordered=_ascend(values))


def _element(parsed: Override) -> str:
    return str(parsed.get_value_element_as_str())


def _interval(key: str, text: str, found: IntervalSweep) -> Axis:
    low, high = found.start, found.end
    log = "log" in found.tags
    if low is None or high is None or not low < high or (log and low <= 0):
        above = ", above 0 where it is searched by ratio" if log else ""
        raise ConfigError(f"`{key}={text}` must go from a lower to a higher number{above}")
    whole = "int" in found.tags or (isinstance(low, int) and isinstance(high, int))
    return Axis(key, low=float(low), high=float(high), whole=whole, log=log)


def _ascend(values: tuple[str, ...]) -> bool:
    try:
        numbers = [float(value) for value in values]
    except ValueError:
        return False
    return numbers == sorted(numbers)


def resolved(config: Any) -> dict[str, Any]:
    """Return a typed config as plain nested values, as manifests and `config.yaml` keep it."""
    if not is_dataclass(config) or isinstance(config, type):
        raise TypeError(f"expected a dataclass instance, got {config!r}")
    return asdict(config)


def restored(values: Mapping[str, Any], schema: type[T], paths: Paths) -> T:
    """Return the config that a manifest keeps, for the places where its artifacts lie now.

    Raises:
        ConfigError: it is of another version, with keys or values that this one does not know.
    """
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.create({**values, "paths": resolved(paths)}))
        return typed(cast("DictConfig", merged), schema)
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0]) from error


def recipe_config(config: Any) -> dict[str, Any]:
    """Return what of a config shapes an artifact: all but the paths, since a project may be moved."""
    return {name: value for name, value in resolved(config).items() if name != "paths"}


def expand_argument_files(arguments: list[str]) -> list[str]:
    """Replace each `@file` by the overrides in that file, one a line; blank lines and # comments are skipped."""
    expanded: list[str] = []
    for argument in arguments:
        if not argument.startswith("@"):
            expanded.append(argument)
            continue
        path = Path(argument[1:])
        if not path.is_file():
            raise ConfigError(f"no file '{path}' with overrides (one `key=value` a line), as `{argument}` asks for")
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise ConfigError(f"'{path}' is not UTF-8 ({error}), so its overrides cannot be read") from error
        lines = (line.strip() for line in text.splitlines())
        expanded += [line for line in lines if line and not line.startswith("#")]
    return expanded


def refuse_hydra_outputs(arguments: list[str]) -> list[str]:
    """Return the arguments, or refuse those by which Hydra would run several jobs or write files of its own."""
    for argument in arguments:
        name = argument.lstrip("+~").partition("=")[0].split("/")[0].split(".")[0]
        if argument in ("-m", "--multirun") or name == "hydra":
            raise ConfigError(f"`{argument}` is refused: a stage runs once and writes nothing but its artifact")
        if argument.startswith("~"):
            raise ConfigError(f"`{argument}` is refused: every key has a value; give the one you want instead")
    return arguments


def gather(arguments: list[str], schema: type, name: str, rest: str) -> list[str]:
    """Put the overrides of keys that a stage's schema lacks into its mapping `rest`, texts as they are."""
    known = {field.name for field in fields(schema)} | {name}  # the stage's presets are a group of its name
    own, others = [], {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or key.lstrip("+").partition(".")[0] in known:
            own.append(argument)
        elif not re.fullmatch(r"[A-Za-z_][\w./]*", key):
            raise ConfigError(f"`{argument}` is refused: {name} takes plain `key=value`")
        else:
            others[key] = QuotedString(value, Quote.single).with_quotes()
    return [*own, *(f"++{rest}={{{key}:{value}}}" for key, value in others.items())]


def _in_a_line(error: Exception) -> str:
    """Return what Hydra and OmegaConf say of a wrong override as one line, and a way out where lists are concerned."""
    texts = [str(each) for each in (error, error.__cause__) if each]
    told = (re.split(r"Config search path:|full_key:|\n *See https|\nTo append", text)[0] for text in texts)
    told = (re.sub(r"\w+_schema\b", "", text) for text in told)  # which nobody chooses
    line = ": ".join(" ".join(text.split()).rstrip(".") for text in told)
    if written := getattr(error, "override", ""):
        line = f"`{written}` is no override as Hydra writes them: {line}"
    return f"{line}. Write lists in brackets: [a,b]." if "ListConfig" in line else line


def run_stage(stage: Callable[[T], object], schema: type[T], name: str, rest: str = "") -> None:
    """Run a stage from the command line: overrides in, one line on standard error where it cannot go on.

    Args:
        stage: called with the typed config.
        schema: its dataclass.
        name: of its YAML in `configs/`.
        rest: mapping of the schema that takes the overrides of keys which the schema lacks.
    """

    @hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=name)
    def main(cfg: DictConfig) -> None:
        logging.captureWarnings(True)
        try:
            stage(typed(cfg, schema))
        except (ArtifactError, ConfigError) as error:
            raise SystemExit(f"error: {error}") from None
        except OSError as error:
            if error.errno not in STORAGE_ERRORS:
                raise
            raise SystemExit(f"error: {error}; nothing finished was harmed, run the same command again") from None

    os.environ["HYDRA_FULL_ERROR"] = "1"  # that is, let it raise what it would print over many lines
    try:
        arguments = refuse_hydra_outputs(expand_argument_files(sys.argv[1:]))
        sys.argv[1:] = gather(arguments, schema, name, rest) if rest else arguments
        main()
    except ConfigError as error:
        raise SystemExit(f"error: {error}") from None
    except (HydraException, OmegaConfBaseException) as error:
        raise SystemExit(f"error: {_in_a_line(error)}") from None
    except KeyboardInterrupt:
        raise SystemExit("stopped; the same command goes on from here") from None
