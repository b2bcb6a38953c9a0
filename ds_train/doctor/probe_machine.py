"""What one machine is and has: read here, or sent to another host's Python as it stands.

Standard library only and no import of the package, as it runs where ds-train may be missing.
Nothing is judged here; every function returns plain values for JSON.
"""

from __future__ import annotations

import glob
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import resource
import shutil
import socket
import subprocess
import sys
from typing import Any

PACKAGES = ("torch", "deepspeed", "ds-train", "transformers", "peft")
GPU_FIELDS = (
    "index,name,uuid,driver_version,memory.total,memory.used,ecc.errors.uncorrected.volatile.total"
)
PROCESS_FIELDS = "gpu_uuid,pid,used_memory,process_name"


def facts(paths: Any, names: Any = (), need_write: Any = ()) -> Any:
    """Everything that is known without the other hosts.

    Args:
        paths: name -> file or folder that a run reads; names: hosts to resolve;
        need_write: folders that a run writes into, which may not be there yet.
    """
    return {
        "hostname": socket.gethostname(),
        "python": platform.python_version(),
        "executable": sys.executable,
        "versions": versions(),
        "code": code_hash(),
        "torch_cuda": torch_cuda(),
        "nccl": nccl_version(),
        "gpus": gpus(),
        "cuda_home": cuda_home(),
        "compiler": compiler(),
        "ninja": shutil.which("ninja", path=_path_with_python()),
        "memlock": resource.getrlimit(resource.RLIMIT_MEMLOCK)[0],
        "nofile": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "shm": shared_memory(),
        "build_locks": build_locks(),
        "resolved": {name: resolve(name) for name in names},
        "first_address": first_address(),
        "own_address": resolve(socket.gethostname()),
        "paths": {name: path_facts(path) for name, path in paths.items()},
        "folders": {folder: folder_facts(folder) for folder in need_write},
        "chosen": {
            k: v for k, v in os.environ.items() if k in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")
        },
    }


def _path_with_python() -> Any:
    """PATH, and the folder of this Python: a virtual environment need not be activated."""
    return os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])


def versions() -> Any:
    """Installed versions from their metadata: importing torch would take seconds."""
    found: dict[str, Any] = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def _folder_of(name: Any) -> Any:
    spec = importlib.util.find_spec(name)
    return os.path.dirname(spec.origin) if spec is not None and spec.origin else None


def code_hash() -> Any:
    """Of the package's own files: two checkouts may have the same version and other code."""
    folder = _folder_of("ds_train")
    if folder is None:
        return None
    digest = hashlib.sha256()
    for path in sorted(glob.glob(os.path.join(folder, "**", "*.py"), recursive=True)):
        digest.update(os.path.relpath(path, folder).encode())
        with open(path, "rb") as file:
            digest.update(file.read())
    return digest.hexdigest()[:12]


def torch_cuda() -> Any:
    """The CUDA version that torch was built for, "" of a CPU build, None without torch."""
    folder = _folder_of("torch")
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


def compiler() -> Any:
    """The C++ compiler that torch would take, and its version."""
    name = os.environ.get("CXX") or "c++"
    path = shutil.which(name) or shutil.which("g++")
    if path is None:
        return None
    done = subprocess.run([path, "-dumpfullversion"], capture_output=True, text=True, timeout=15)
    return {"path": path, "version": done.stdout.strip()}


def shared_memory() -> Any:
    """/dev/shm in bytes, and what DeepSpeed's CPU all-reduce has left there."""
    try:
        stat = os.statvfs("/dev/shm")
    except OSError:
        return None
    left = glob.glob("/dev/shm/deepspeed_allreduce_buffer_*")
    return {
        "total": stat.f_blocks * stat.f_frsize,
        "free": stat.f_bavail * stat.f_frsize,
        "left_over": len(left),
    }


def build_locks() -> Any:
    """Lock files of extensions being compiled: one of a killed build makes all later runs wait."""
    root = os.environ.get("TORCH_EXTENSIONS_DIR") or os.path.expanduser("~/.cache/torch_extensions")
    return [
        {"path": path, "seconds": _age(path)}
        for path in glob.glob(os.path.join(root, "**", "lock"), recursive=True)
    ]


def _age(path: Any) -> Any:
    import time

    try:
        return time.time() - os.path.getmtime(path)
    except OSError:
        return 0.0


def first_address() -> Any:
    """What DeepSpeed's launcher takes for rank 0: the first that `hostname -I` says."""
    if shutil.which("hostname") is None:
        return None
    done = subprocess.run(["hostname", "-I"], capture_output=True, text=True, timeout=15)
    return next(iter(done.stdout.split()), None)


def resolve(name: Any) -> Any:
    """Addresses (IPv4) of a host name as this machine sees it; [] where it has none."""
    try:
        found = socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)
    except OSError:
        return []
    return sorted({entry[4][0] for entry in found})


def path_facts(path: Any) -> Any:
    """Whether a file or folder can be read, and what tells one content from another."""
    if not os.path.exists(path):
        files = [name for name in glob.glob(path) if os.path.isfile(name)]
        sizes = [os.path.getsize(name) for name in files]
        return {"readable": True, "bytes": sum(sizes), "files": len(sizes)} if files else None
    if not os.access(path, os.R_OK):
        return {"readable": False, "bytes": None}
    if os.path.isdir(path):
        files = [os.path.join(path, name) for name in sorted(os.listdir(path))]
        sizes = [os.path.getsize(name) for name in files if os.path.isfile(name)]
        return {"readable": True, "bytes": sum(sizes), "files": len(sizes)}
    return {"readable": True, "bytes": os.path.getsize(path), "files": 1}


def folder_facts(folder: Any) -> Any:
    """The folder, or the nearest one above that is there: free bytes, and if it is writable."""
    place = os.path.abspath(folder)
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    stat = os.statvfs(place)
    name = os.path.join(place, f".ds-train-doctor-{socket.gethostname()}-{os.getpid()}")
    error = None
    try:
        with open(name, "w") as file:
            file.write("x")
        os.unlink(name)
    except OSError as fault:
        error = fault.strerror
    return {"place": place, "free": stat.f_bavail * stat.f_frsize, "error": error}
