"""Hosts in network namespaces are broken in sixteen ways, and `ds-train doctor` names each of them.

Every fault is undone afterwards; all tests share the hosts of the session. Skipped, with the
reason, where hosts can't be made.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
import yaml
from testbed import REPO, Testbed, need_pdsh

pytestmark = pytest.mark.distributed
ENVIRONMENT = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)}
OF_THIS_MACHINE = {"CUDA toolkit", "GPUs", "GPU in use", "GPU memory", "extension lock"}
CLOCK = """
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
/* five minutes ahead: only what this library is loaded into sees it */
int clock_gettime(clockid_t id, struct timespec *now) {
    int code = (int)syscall(SYS_clock_gettime, id, now);
    if (id == CLOCK_REALTIME) now->tv_sec += 300;
    return code;
}
"""


@dataclass
class Cluster:
    """The hosts, a recipe for them, and a folder that they share."""

    hosts: Testbed
    folder: Path

    @property
    def run_folder(self) -> Path:
        return self.folder / "run"

    def doctor(self, *options: str) -> tuple[int, dict[str, Any], str]:
        """Exit code, the JSON report, what was printed."""
        report = self.folder / "doctor.json"
        command = [sys.executable, "-m", "ds_train", "doctor", str(self.folder / "recipe.yaml")]
        done = self.hosts.run(
            "node-0", *command, "--json", str(report), *options, cwd=REPO, environment=ENVIRONMENT
        )
        assert report.is_file(), done.stdout
        found = json.loads(report.read_text())
        report.unlink()
        return done.returncode, found, done.stdout

    @contextmanager
    def broken(self, host: str, command: str, undo: str) -> Iterator[None]:
        """A host as it is after a shell command."""
        self.hosts.check(host, "sh", "-c", command)
        try:
            yield
        finally:
            self.hosts.check(host, "sh", "-c", undo)


@pytest.fixture(scope="module")
def cluster(testbed: Testbed, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    folder = tmp_path_factory.mktemp("shared")
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    (folder / "rows.jsonl").write_text('{"text": "x"}\n')
    (folder / "run").mkdir()
    recipe = {
        "output_dir": str(folder / "run"),
        "model": {"name_or_path": str(folder / "model")},
        "data": {
            "train": [{"path": str(folder / "rows.jsonl")}],
            "max_length": 64,
            "cache_dir": str(folder / "cache"),
        },
        "train": {"global_batch_size": 6, "per_device_train_batch_size": 2, "max_steps": 4},
        "cluster": {"hostfile": str(testbed.hostfile)},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return Cluster(testbed, folder)


def failures(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Check -> its failure; what may be wrong with this machine itself is left out."""
    found = [
        finding
        for finding in report["findings"]
        if finding["status"] == "fail" and finding["check"] not in OF_THIS_MACHINE
    ]
    assert all(finding["remedy"] for finding in found), "every failure has its remedy"
    return {finding["check"]: finding for finding in found}


def test_whole_hosts_have_no_failure(cluster: Cluster) -> None:
    code, report, printed = cluster.doctor("--no-all-reduce")
    assert failures(report) == {}, printed
    own = [one for one in report["findings"] if one["status"] == "fail"]  # of this machine itself
    assert code == bool(own), printed
    assert report["seconds"] < 60
    assert {"ssh", "clock", "MTU", "ports", "output folder", "torch"} <= {
        finding["check"] for finding in report["findings"]
    }
    assert sorted(path.name for path in cluster.run_folder.iterdir()) == [], "leaves nothing there"


def host_down(_: Cluster) -> tuple[str, str]:
    return "ip link set eth0 down", "ip link set eth0 up"


def no_route(_: Cluster) -> tuple[str, str]:
    return "ip route add blackhole 10.213.7.3", "ip route del blackhole 10.213.7.3"


def firewall(_: Cluster) -> tuple[str, str]:
    if shutil.which("nft") is None:
        pytest.skip("there is no nft, which makes the firewall; install nftables")
    chain = "{ type filter hook input priority 0; }"
    rule = "tcp dport 1024-65535 ct state new drop"
    break_it = f"nft add table inet f && nft 'add chain inet f in {chain}'"
    return f"{break_it} && nft add rule inet f in {rule}", "nft delete table inet f"


def small_mtu(_: Cluster) -> tuple[str, str]:
    return "ip link set eth0 mtu 1280", "ip link set eth0 mtu 1500"


def read_only(cluster: Cluster) -> tuple[str, str]:
    run = cluster.run_folder
    return f"mount --bind {run} {run} && mount -o remount,ro,bind {run}", f"umount {run}"


def not_shared(cluster: Cluster) -> tuple[str, str]:
    return f"mount -t tmpfs own {cluster.run_folder}", f"umount {cluster.run_folder}"


def full_disk(cluster: Cluster) -> tuple[str, str]:
    run = cluster.run_folder
    fill = f"head -c 1M /dev/zero > {run}/fill || true"
    return f"mount -t tmpfs -o size=64k full {run}; {fill}", f"umount {run}"


def model_missing(cluster: Cluster) -> tuple[str, str]:
    parent = cluster.folder / "model"
    return f"mount -t tmpfs none {parent}", f"umount {parent}"


def other_version(cluster: Cluster) -> tuple[str, str]:
    metadata = Path(str(distribution("deepspeed").locate_file("")))
    (real,) = metadata.glob("deepspeed-*.dist-info/METADATA")
    other = cluster.folder / "METADATA"
    version = distribution("deepspeed").version
    other.write_text(real.read_text().replace(f"Version: {version}\n", "Version: 0.1.2\n", 1))
    return f"mount --bind {other} {real}", f"umount {real}"


def other_code(cluster: Cluster) -> tuple[str, str]:
    real, other = REPO / "ds_train" / "units.py", cluster.folder / "units.py"
    other.write_text(real.read_text() + "\n# edited on one host\n")
    return f"mount --bind {other} {real}", f"umount {real}"


def name_unknown(cluster: Cluster) -> tuple[str, str]:
    other = cluster.folder / "hosts"
    other.write_text("127.0.0.1 localhost\n10.213.7.1 node-0\n10.213.7.2 node-1\n")
    return f"mount --bind {other} /etc/hosts", "umount /etc/hosts"


def small_shm(_: Cluster) -> tuple[str, str]:
    return "mount -o remount,size=64m /dev/shm", "mount -o remount,size=50% /dev/shm"


def wants_password(cluster: Cluster) -> tuple[str, str]:
    """Of two lines sshd takes the first."""
    return with_sshd(cluster, "node-1", "AuthorizedKeysFile none", first=True)


def clock_ahead(cluster: Cluster) -> tuple[str, str]:
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler, which makes the wrong clock")
    source, library = cluster.folder / "clock.c", cluster.folder / "clock.so"
    source.write_text(CLOCK)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    return with_sshd(cluster, "node-1", f"SetEnv LD_PRELOAD={library}")


def with_sshd(cluster: Cluster, host: str, line: str, first: bool = False) -> tuple[str, str]:
    """Commands that put a line into a host's sshd settings, and take it out again.

    sshd starts anew at SIGHUP; its log says when it listens again.
    """
    place = cluster.hosts.folder
    settings, kept = place / f"{host}.sshd", place / f"{host}.sshd.kept"
    add = f"sed -i '1i {line}'" if first else f"sed -i '$a {line}'"
    reload = (
        f"count() {{ grep -c 'Server listening' {place}/{host}.log; }}; n=$(count); "
        f"kill -HUP $(cat {place}/{host}.pid); "
        "for i in $(seq 50); do [ $(count) -gt $n ] && break; sleep 0.1; done"
    )
    return (
        f"cp {settings} {kept} && {add} {settings} && {reload}",
        f"mv {kept} {settings} && {reload}",
    )


Make = Callable[[Cluster], tuple[str, str]]
FAULTS: dict[Make, tuple[str, str]] = {
    host_down: ("ssh", "is not reached"),
    no_route: ("ports", "does not reach node-2"),
    firewall: ("ports", "not reached by node-0, node-2 (no answer)"),
    small_mtu: ("MTU", "1280 on {host} (eth0), 1500 elsewhere"),
    read_only: ("output folder", "Read-only file system"),
    not_shared: ("output folder", "is another folder there"),
    full_disk: ("output folder", "No space left on device"),
    model_missing: ("files", "0 bytes on {host}"),
    other_version: ("deepspeed", "0.1.2 on {host}"),
    other_code: ("ds-train code", "on {host}"),
    name_unknown: ("resolution", "finds no address of node-2"),
    small_shm: ("shared memory", "free of 64.00 MiB"),
    wants_password: ("ssh", "wants a password"),
    clock_ahead: ("clock", "300.0 s ahead of the others"),
}
"""What breaks a host -> the check that must name it, and its words."""

AT_ONCE: list[tuple[Make, Make | None]] = [
    (host_down, None),
    (no_route, None),
    (firewall, full_disk),
    (not_shared, small_mtu),
    (read_only, other_version),
    (clock_ahead, other_code),
    (name_unknown, model_missing),
    (wants_password, small_shm),
]
"""On node-1 and on node-2."""


@pytest.mark.parametrize("makes", AT_ONCE, ids=lambda m: "-".join(x.__name__ for x in m if x))
def test_faults_are_named(cluster: Cluster, makes: tuple[Make, Make | None]) -> None:
    """Each of two faults, with its host; nothing else is said to be wrong."""
    broken = {f"node-{place}": make for place, make in enumerate(makes, 1) if make is not None}
    with ExitStack() as undo:
        for host, make in broken.items():
            undo.enter_context(cluster.broken(host, *make(cluster)))
        code, report, printed = cluster.doctor("--no-all-reduce")
    assert code == 1
    found = failures(report)
    for host, make in broken.items():
        check, words = FAULTS[make]
        assert check in found, printed
        assert words.format(host=host) in found[check]["text"], printed
        assert found[check]["hosts"] == [host], printed
    assert set(found) == {FAULTS[make][0] for make in broken.values()}, printed


def test_every_fault_is_tried() -> None:
    assert {make for makes in AT_ONCE for make in makes if make is not None} == set(FAULTS)


def test_an_address_of_rank_0_that_only_it_reaches(cluster: Cluster) -> None:
    """As with Docker's bridge: `hostname -I` says it first, and the launcher takes it."""
    own, other = "10.213.7.1/24 dev eth0", "10.99.0.1/24 dev eth0"
    make = f"ip address del {own} && ip address add {other} && ip address add {own}"
    with cluster.broken("node-0", make, f"ip address del {other}"):
        assert cluster.hosts.check("node-0", "hostname", "-I").split()[0] == "10.99.0.1"
        code, report, printed = cluster.doctor("--no-all-reduce")
    assert code == 1
    assert set(failures(report)) == {"master address"}, printed
    assert failures(report)["master address"]["hosts"] == ["node-0"]


def test_a_slow_link_is_found_by_the_all_reduce(cluster: Cluster) -> None:
    need_pdsh()
    shape = "tc qdisc add dev eth0 root tbf rate 40mbit burst 64kb latency 400ms"
    with cluster.broken("node-2", shape, "tc qdisc del dev eth0 root"):
        code, report, printed = cluster.doctor()
    assert code == 1, printed
    found = failures(report)
    assert set(found) == {"links"}, printed
    assert found["links"]["hosts"] == ["node-2"]
    assert "all its links are slow" in found["links"]["text"]
    assert [entry["bytes"] for entry in report["all_reduce"]["ring"]][:2] == [8, 4096]
    assert len(report["all_reduce"]["pairs"]) == 3
