"""From the command line to a typed config: Hydra composes, the dataclass decides what is allowed."""

from __future__ import annotations

import errno
import logging
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import hydra
from hydra.core.config_store import ConfigStore
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


def resolved(config: Any) -> dict[str, Any]:
    """Return a typed config as plain nested values, as manifests and `config.yaml` keep it."""
    if not is_dataclass(config) or isinstance(config, type):
        raise TypeError(f"expected a dataclass instance, got {config!r}")
    return asdict(config)


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


def run_stage(stage: Callable[[T], object], schema: type[T], name: str) -> None:
    """Run a stage from the command line: overrides in, one line on standard error where it cannot go on."""

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

    try:
        sys.argv[1:] = refuse_hydra_outputs(expand_argument_files(sys.argv[1:]))
        main()
    except ConfigError as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("stopped; the same command goes on from here") from None
