"""What a run is: one YAML file, validated as a whole before anything is touched.

Every field has a home in ``models`` (a task's in ``scalepet.data``, a method's in its builder), a
meaning, which ``scalepet train --fields`` shows, and a check. Every fault of a file is listed at
once, with its value and what is allowed.
"""

from scalepet.config.check import check_config, check_stream_config
from scalepet.config.listing import fields_as_yaml
from scalepet.config.models import (
    BackboneConfig,
    EvaluateConfig,
    FurtherMethod,
    LaeConfig,
    LearnConfig,
    MethodConfig,
    OfflineConfig,
    RunConfig,
    Setup,
    StreamConfig,
    TrainConfig,
    WandbConfig,
    plain,
)
from scalepet.config.options import method_options, same_as
from scalepet.config.read import read_config, read_overrides, read_stream_config
from scalepet.config.study import StudyConfig
from scalepet.config.study_check import read_study_config
from scalepet.config.study_listing import study_fields_as_yaml

__all__ = [
    "BackboneConfig",
    "EvaluateConfig",
    "FurtherMethod",
    "LaeConfig",
    "LearnConfig",
    "MethodConfig",
    "OfflineConfig",
    "RunConfig",
    "Setup",
    "StreamConfig",
    "StudyConfig",
    "TrainConfig",
    "WandbConfig",
    "check_config",
    "check_stream_config",
    "fields_as_yaml",
    "method_options",
    "plain",
    "read_config",
    "read_overrides",
    "read_stream_config",
    "read_study_config",
    "same_as",
    "study_fields_as_yaml",
]
