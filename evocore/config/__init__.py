"""The config room: InternEvo's Python config files as a typed, checked and explained ``Config``.

Nothing here imports torch, so that the command line stays quick.
"""

from evocore.config.checks import check, require_runnable
from evocore.config.loaded import LoadedConfig, load_config, load_values
from evocore.config.release import ReleasedModel
from evocore.config.report import report_facts, report_text
from evocore.config.resolved import config_from_values, load_resolved, save_resolved
from evocore.config.schema import Config
from evocore.config.schema_keys import Key, leaves, schema_keys
from evocore.config.source_file import read_base

__all__ = [
    "Config",
    "Key",
    "LoadedConfig",
    "ReleasedModel",
    "check",
    "config_from_values",
    "leaves",
    "load_config",
    "load_resolved",
    "load_values",
    "read_base",
    "report_facts",
    "report_text",
    "require_runnable",
    "save_resolved",
    "schema_keys",
]
