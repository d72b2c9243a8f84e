"""A real S3 server for tests: one node of Ceph with its RADOS Gateway, on 127.0.0.1, in a folder of its own.

It needs the programs of three packages (Debian, Ubuntu: `apt-get install -y --no-install-recommends ceph-mon ceph-osd radosgw`)
and no rights. Its parts can be killed as a power failure would and started again; what they had answered for is there then.

The settings are those of a cluster with one copy of everything and nobody to wait for: never use them for data that matters.
"""

import http.client
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal
from uuid import uuid4

Part = Literal["mon", "osd", "rgw"]

PARTS: Final[tuple[Part, ...]] = ("mon", "osd", "rgw")
"""What keeps the map of the cluster, what keeps the bytes, and what speaks S3, in the order of starting."""

PROGRAMS: Final = ("ceph", "ceph-authtool", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")

ACCESS_KEY: Final = "FOLIOTESTACCESSKEY7Q2M"
SECRET_KEY: Final = "folio-test-secret-key-b81e0c5f4d"
"""Of the one user. Long and odd, so that a test can look for them in everything that Folio writes."""

READY_S: Final = 180
"""The longest wait for a part to answer; a start takes seconds, but may share the machine."""

CONFIGURATION: Final = """
[global]
fsid = {fsid}
mon_initial_members = a
mon_host = [v2:127.0.0.1:{mon_port}/0]
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
keyring = {folder}/keyring
auth_allow_insecure_global_id_reclaim = false
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 1
osd_pool_default_pgp_num = 1
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_data_avail_crit = 1
mon_data_avail_warn = 2
mon_max_pg_per_osd = 1000
paxos_propose_interval = 0.05
paxos_min_wait = 0.01
ms_initial_backoff = 0.05
ms_max_backoff = 0.5
objecter_tick_interval = 0.5
mon_client_hunt_interval = 0.5
mon_client_ping_interval = 1
run_dir = {folder}
admin_socket =
log_file = {folder}/$name.log
log_to_stderr = false
mon_cluster_log_file = {folder}/cluster.log
crash_dir = {folder}
mon_data = {folder}/mon
osd_data = {folder}/osd
osd_objectstore = bluestore
bluestore_block_create = true
bluestore_block_size = {block_bytes}
bluestore_fsck_on_mount = false
osd_memory_target = 939524096
osd_client_watch_timeout = 3
ms_async_op_threads = 1
osd_op_num_shards = 2
osd_op_num_threads_per_shard = 1
[client.rgw.a]
rgw_data = {folder}/rgw
rgw_frontends = beast endpoint=127.0.0.1:{s3_port} tcp_nodelay=1
rgw_thread_pool_size = 64
rgw_enable_usage_log = false
rgw_run_sync_thread = false
rgw_dns_name = 127.0.0.1
"""

BLOCK_BYTES: Final = 4 << 30
"""Room for objects, in a file that takes up only what is used of it."""


def missing_programs() -> list[str]:
    """List what must be installed first."""
    return [program for program in PROGRAMS if shutil.which(program) is None]


def needs_ceph() -> bool:
    """Whether a missing server is a failure and not a reason to skip; `.ci/run` says so with FOLIO_NEEDS_CEPH=1."""
    return os.environ.get("FOLIO_NEEDS_CEPH") == "1"


class Gateway:
    """A cluster that runs until it is stopped, or this process ends."""

    def __init__(self, folder: Path) -> None:
        """Make a cluster in a new folder and start it.

        Raises:
            RuntimeError: a part does not start; the message has the end of its log.
        """
        folder.mkdir(parents=True)
        self._folder = folder
        self._s3_port, mon_port = _free_ports(2)
        self.endpoint = f"http://127.0.0.1:{self._s3_port}"
        self._fsid = str(uuid4())
        self._running: dict[Part, subprocess.Popen[bytes]] = {}
        for part in PARTS:
            (folder / part).mkdir()
        (folder / "ceph.conf").write_text(
            CONFIGURATION.format(
                fsid=self._fsid, folder=folder, mon_port=mon_port, s3_port=self._s3_port, block_bytes=BLOCK_BYTES
            )
        )
        try:
            self._first_start(mon_port)
        except BaseException:
            self.stop()
            raise

    def kill(self, *parts: Part) -> None:
        """Kill parts with SIGKILL; none named: all of them at once."""
        chosen = [self._running.pop(part) for part in reversed(parts or PARTS)]
        for process in chosen:
            process.kill()
        for process in chosen:
            process.wait()

    def start(self, *parts: Part) -> None:
        """Start parts that were killed; none named: all of them. Returns when S3 answers again."""
        boots = self._boots_of_osd()
        for part in parts or PARTS:
            self._spawn(part)
            if part == "osd":  # a gateway that starts before it waits for ten seconds before it looks again
                self._until("osd", lambda: self._boots_of_osd() > boots)
        self._until("rgw", self._answers)

    def stop(self) -> None:
        """Stop what runs and remove the folder."""
        self.kill(*self._running)
        shutil.rmtree(self._folder, ignore_errors=True)

    def admin(self, *arguments: str) -> str:
        """Run a command of radosgw-admin and give what it printed."""
        return self._run("radosgw-admin", "-n", "client.rgw.a", "-c", self._configuration, *arguments)

    @property
    def _configuration(self) -> str:
        return str(self._folder / "ceph.conf")

    def _first_start(self, mon_port: int) -> None:
        self._make_keyring()
        monmap = str(self._folder / "monmap")
        self._run("monmaptool", "--create", "--fsid", self._fsid, "--addv", "a", f"[v2:127.0.0.1:{mon_port}]", monmap)
        keyring = str(self._folder / "keyring")
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring, "-c", self._configuration)
        self._spawn("mon")
        osd = str(uuid4())
        self._run("ceph", "-c", self._configuration, "osd", "new", osd)  # waits for the mon
        self._run("ceph", "-c", self._configuration, "auth", "import", "-i", keyring)
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd, "-c", self._configuration)
        self.start("osd", "rgw")
        user = ("--uid=folio", "--display-name=folio", f"--access-key={ACCESS_KEY}", f"--secret-key={SECRET_KEY}")
        self.admin("user", "create", *user)

    def _make_keyring(self) -> None:
        """Put every identity into one file: it never leaves this machine, nor outlives the test."""
        file, create = str(self._folder / "keyring"), ["--create-keyring"]
        everything = ("mon", "allow *", "osd", "allow *", "mgr", "allow *")
        for name, rights in {
            "mon.": ("mon", "allow *"),
            "client.admin": everything,
            "client.rgw.a": ("mon", "allow rwx", "osd", "allow rwx"),
            "osd.0": ("mon", "allow profile osd", "osd", "allow *"),
        }.items():
            caps = [word for kind, right in zip(rights[::2], rights[1::2], strict=True) for word in ("--cap", kind, right)]
            self._run("ceph-authtool", *create, file, "--gen-key", "-n", name, *caps)
            create = []

    def _spawn(self, part: Part) -> None:
        programs = {
            "mon": ["ceph-mon", "-i", "a"],
            "osd": ["ceph-osd", "-i", "0"],
            "rgw": ["radosgw", "-n", "client.rgw.a"],
        }
        # Where there is setpriv, it sees to it that a test run that is killed leaves nothing behind.
        tied = ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []
        with (self._folder / f"{part}.out").open("ab") as out:
            command = [*tied, *programs[part], "-f", "-c", self._configuration]
            self._running[part] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, env=_environment()
            )

    def _boots_of_osd(self) -> int:
        log = self._folder / "osd.0.log"
        return log.read_text(errors="replace").count("state: booting -> active") if log.exists() else 0

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self._s3_port, timeout=5)
        try:
            connection.request("GET", "/")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def _until(self, part: Part, ready: Callable[[], bool]) -> None:
        end = time.monotonic() + READY_S
        while not ready():
            if self._running[part].poll() is not None or time.monotonic() > end:
                said = "".join(file.read_text(errors="replace")[-2000:] for file in sorted(self._folder.glob(f"*{part}*.out")))
                raise RuntimeError(f"{part} of the Ceph test cluster does not answer: {said}")
            time.sleep(0.05)

    def _run(self, *command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, timeout=READY_S, env=_environment(), check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} exited with {done.returncode}: {done.stderr[-2000:]}")
        return done.stdout


def _environment() -> dict[str, str]:
    """This process's environment, without what Ceph would take for options of its own."""
    return {name: value for name, value in os.environ.items() if not name.startswith("CEPH_")}


def _free_ports(number: int) -> list[int]:
    """Find ports of 127.0.0.1 that nobody listens on now."""
    sockets = [socket.socket() for _ in range(number)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
