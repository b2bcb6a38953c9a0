"""GPUs, driver and CUDA, as nvidia-smi, nvcc and torch's files say. Sent like probe_machine."""

from __future__ import annotations

import glob
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
from typing import Any

GPU_FIELDS = (
    "index,name,uuid,driver_version,memory.total,memory.used,ecc.errors.uncorrected.volatile.total"
)
PROCESS_FIELDS = "gpu_uuid,pid,used_memory,process_name"


def folder_of(name: Any) -> Any:
    """Where a package lies, found without importing it; None where it is not installed."""
    spec = importlib.util.find_spec(name)
    return os.path.dirname(spec.origin) if spec is not None and spec.origin else None


def torch_cuda() -> Any:
    """The CUDA version that torch was built for, "" of a CPU build, None without torch."""
    folder = folder_of("torch")
    if folder is None:
        return None
    try:
        with open(os.path.join(folder, "version.py"), encoding="utf-8") as file:
            match = re.search(r"^cuda\b[^=\n]*=\s*'([^']+)'", file.read(), re.MULTILINE)
    except OSError:
        return None
    return match[1] if match else ""


def nccl_version() -> Any:
    """Of the package that torch loads it from; None of a CPU build."""
    for distribution in importlib.metadata.distributions():
        if (distribution.metadata["Name"] or "").startswith("nvidia-nccl"):
            return distribution.version
    return None


def _query(kind: Any, fields: Any) -> Any:
    command = ["nvidia-smi", f"--query-{kind}={fields}", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=15)
    if done.returncode != 0:
        raise OSError((done.stdout or done.stderr).strip().splitlines()[:1])
    return [
        [cell.strip() for cell in line.split(",")]
        for line in done.stdout.splitlines()
        if line.strip()
    ]


def gpus() -> Any:
    """The GPUs that nvidia-smi shows, with the processes on each; why none, where it fails."""
    present = len([p for p in glob.glob("/dev/nvidia*") if re.fullmatch(r"/dev/nvidia\d+", p)])
    if shutil.which("nvidia-smi") is None:
        return {"devices": [], "present": present, "error": None}
    try:
        devices = [_device(row) for row in _query("gpu", GPU_FIELDS)]
        processes = _query("compute-apps", PROCESS_FIELDS)
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        return {"devices": [], "present": present, "error": str(error)}
    for uuid, pid, used, name in processes:
        for device in devices:
            if device["uuid"] == uuid:
                device["processes"].append({"pid": int(pid), "mib": _mib(used), "name": name})
    return {"devices": devices, "present": present, "error": None}


def _device(row: Any) -> Any:
    index, name, uuid, driver, total, used, ecc = row
    return {
        "index": int(index), "name": name, "uuid": uuid, "driver": driver,
        "total_mib": _mib(total), "used_mib": _mib(used),
        # "[N/A]" where the card has no ECC
        "ecc": int(ecc) if ecc.isdecimal() else None,
        "processes": [],
    }  # fmt: skip


def _mib(text: Any) -> Any:
    return int(text) if text.isdecimal() else None


def cuda_home() -> Any:
    """CUDA_HOME (or the toolkit that nvcc on the PATH belongs to) and its version."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = os.path.join(home, "bin", "nvcc") if home else shutil.which("nvcc")
    version = None
    if nvcc and os.path.exists(nvcc):
        done = subprocess.run([nvcc, "--version"], capture_output=True, text=True, timeout=15)
        match = re.search(r"release (\d+\.\d+)", done.stdout)
        version = match[1] if match else None
    return {"home": home, "nvcc": nvcc, "version": version}
