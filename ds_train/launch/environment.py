"""The variables of ranks on other hosts: a file that the deepspeed launcher reads.

The launcher itself hands on PYTHON*, MLFLOW*, MV2*, UCX* and, beside a GPU, NCCL*; everything else
is what the login shell of the other host has. Its file is called .deepspeed_env, in the home and
the working folder; DS_ENV_FILE names another one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

ENV_FILE = "launch.env"
"""In the run folder: what the hosts of the run were given."""

_PREFIXES = ("NCCL_", "GLOO_", "OMP_", "TORCH_NCCL_", "DS_ACCELERATOR", "DS_SKIP_CUDA_CHECK")
_NAMES = ("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "CUDA_HOME", "TORCH_EXTENSIONS_DIR")
"""What of this machine's environment goes along. No tokens: the file is readable."""

_SHELL = '"$`\\\n'


def user_files() -> list[Path]:
    """The user's files of variables, later ones winning, as the launcher looks for them."""
    name = os.environ.get("DS_ENV_FILE", ".deepspeed_env")
    return [path for path in (Path.home() / name, Path(name)) if path.is_file()]


def env_file_text(variables: Mapping[str, str], environment: Mapping[str, str]) -> str:
    """The lines KEY=VALUE of the whole file; arguments as of `remote_variables`."""
    found = remote_variables(variables, environment)
    return "".join(f"{name}={value}\n" for name, value in found.items())


def remote_variables(
    variables: Mapping[str, str], environment: Mapping[str, str]
) -> dict[str, str]:
    """What ranks on other hosts get.

    Args:
        variables: `cluster.env`, which wins over the user's files and over `environment`.
        environment: this machine's; a value that the remote shell would change stays here.
    """
    found = {
        name: value
        for name, value in environment.items()
        if (name.startswith(_PREFIXES) or name in _NAMES) and not set(value) & set(_SHELL)
    }
    for path in user_files():
        pairs = (line.split("=", 1) for line in path.read_text(encoding="utf-8").splitlines())
        found |= {name.strip(): value for name, value in pairs}
    return found | dict(variables)
