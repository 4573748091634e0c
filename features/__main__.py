"""All feature stages in a row: index, tag_vectors, image_features, reduce with `pca=`, and the colour histograms.

Each override goes to the stages whose config has its key; one that no stage has is refused before any work.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields

from configs.compose import ConfigError, expand_argument_files, refuse_hydra_outputs
from features.config import ImageFeaturesConfig, IndexConfig, ReduceConfig, TagVectorsConfig

EXTRACT = "features.extract"
STAGES = {
    "features.build_index": IndexConfig,
    "features.embed_tags": TagVectorsConfig,
    EXTRACT: ImageFeaturesConfig,
}
REDUCE = {"features.reduce": ReduceConfig}


def key_of(override: str) -> str:
    """Return the first part of an override's key: `paths` of `paths.data=x`."""
    return override.lstrip("+").partition("=")[0].partition(".")[0]


def commands(overrides: list[str]) -> list[list[str]]:
    """Return module and overrides of every stage, in order.

    Raises:
        ConfigError: an override that belongs to none of them.
    """
    reduced = any(key_of(each) == "pca" and each.partition("=")[2] != "0" for each in overrides)
    stages = STAGES | (REDUCE if reduced else {})
    keys = {module: {field.name for field in fields(schema)} for module, schema in stages.items()}
    if not reduced:
        overrides = [each for each in overrides if key_of(each) != "pca"]
    if strange := [each for each in overrides if not any(key_of(each) in known for known in keys.values())]:
        raise ConfigError(f"no feature stage has a key for {', '.join(strange)}")
    routed = {module: [each for each in overrides if key_of(each) in known] for module, known in keys.items()}
    # Evaluation's floor is one for all: it stands on histograms as they are, whatever the features stand on.
    histogram = [each for each in routed[EXTRACT] if key_of(each) not in ("backbone", "precision", "runtime")]
    in_order = [[module, *chosen] for module, chosen in routed.items()]
    return [*in_order[: len(STAGES)], [EXTRACT, "backbone=color_histogram", *histogram], *in_order[len(STAGES) :]]


def main(arguments: list[str]) -> int:
    """Run the stages until one fails; return its exit status."""
    try:
        stages = commands(refuse_hydra_outputs(expand_argument_files(arguments)))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for command in stages:
        status = subprocess.run([sys.executable, "-m", *command]).returncode  # noqa: S603 - our own modules
        if status:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
