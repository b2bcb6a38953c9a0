"""What one machine is and has: read here, or sent to another host's Python as it stands.

Standard library only, as it runs where ds-train may be missing: imports of our own are left out of
what is sent, and each is one line. Nothing is judged here; functions return plain values for JSON.
"""

from __future__ import annotations

import glob
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
from typing import Any

from ds_train.doctor.probe_gpus import cuda_home, folder_of, gpus, nccl_version, torch_cuda

PACKAGES = ("torch", "deepspeed", "ds-train", "transformers", "peft")


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
        "rdma": os.path.isdir("/sys/class/infiniband"),
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


def code_hash() -> Any:
    """Of the package's own files: two checkouts may have the same version and other code."""
    folder = folder_of("ds_train")
    if folder is None:
        return None
    digest = hashlib.sha256()
    for path in sorted(glob.glob(os.path.join(folder, "**", "*.py"), recursive=True)):
        digest.update(os.path.relpath(path, folder).encode())
        with open(path, "rb") as file:
            digest.update(file.read())
    return digest.hexdigest()[:12]


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
