"""A real SLURM of several nodes on this one machine: controller, node daemons and munge of its own, in one folder.

Nodes are called unode1, unode2, ...; their names go into /etc/hosts while the cluster runs, since ranks meet by name.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import psutil

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
SECONDS = 60
HOSTS = Path("/etc/hosts")
HOSTS_MARK = "# unimmad test cluster"


def missing() -> str:
    """Why there can be no cluster here; empty where there can."""
    absent = [name for name in PROGRAMS if find_program(name) is None]
    if absent:
        return f"SLURM is not installed (no {', '.join(absent)}): apt-get install slurmctld slurmd slurm-client munge"
    if os.geteuid() != 0:
        return "only root can start SLURM's daemons"
    if not os.access(HOSTS, os.W_OK):
        return f"{HOSTS} can't be written, and nodes need names"
    return ""


def find_program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/local/sbin:/usr/sbin:/sbin")


class LocalCluster:
    """Nodes with ``cpus`` each, a partition ``debug`` (preemptible, the default) and ``urgent``, which preempts it."""

    def __init__(self, folder: Path, nodes: int = 4, cpus: int = 8, gpus: int = 0) -> None:
        self.folder = folder
        self.names = [f"unode{number}" for number in range(1, nodes + 1)]
        self.configuration = folder / "slurm.conf"
        self._cpus, self._gpus = cpus, gpus
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def environment(self) -> dict[str, str]:
        """For commands that are to speak to this cluster."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))}
        return {**inherited, "SLURM_CONF": str(self.configuration)}

    def start(self) -> None:
        for name in ("state", "spool", "log"):
            (self.folder / name).mkdir(parents=True)
        self._write_configuration()
        self._name_nodes()
        self._start_munge()
        self._run("slurmctld", "slurmctld", "-D", "-f", str(self.configuration))
        for name in self.names:
            self.start_node(name)
        self._wait_for_nodes()

    def start_node(self, name: str) -> None:
        (self.folder / "spool" / name).mkdir(exist_ok=True)
        self._run(name, "slurmd", "-D", "-N", name, "-f", str(self.configuration))

    def fail_node(self, name: str) -> None:
        """As if its power went: daemon, step managers and tasks at once, without a word to the controller."""
        victims = [psutil.Process(self._daemons.pop(name).pid), *self._processes_of_jobs(name)]
        for victim in victims:
            _kill(victim)

    def revive_node(self, name: str) -> None:
        self.start_node(name)
        self._wait_for_nodes()

    def command(self, *argv: str) -> str:
        done = subprocess.run(argv, env=self.environment, capture_output=True, text=True, timeout=SECONDS, check=False)
        assert done.returncode == 0, f"{argv}: {done.stderr}"
        return done.stdout

    def job(self, job_id: str) -> dict[str, str]:
        """What the controller says of a job."""
        argv = self.command("scontrol", "show", "job", "-o", job_id).splitlines()[0].split()
        return dict(word.split("=", 1) for word in argv if "=" in word)

    def stop(self) -> None:
        """End all that ``start`` started, and what its jobs left."""
        try:
            if "slurmctld" in self._daemons:
                subprocess.run(["scancel", "--state=PENDING"], env=self.environment, timeout=SECONDS, check=False)
                subprocess.run(["scancel", "--state=RUNNING"], env=self.environment, timeout=SECONDS, check=False)
        finally:
            for leftover in self._processes_of_jobs(None):
                _kill(leftover)
            for daemon in self._daemons.values():
                daemon.terminate()
            for daemon in self._daemons.values():
                try:
                    daemon.wait(10)
                except subprocess.TimeoutExpired:
                    daemon.kill()
                    daemon.wait()
            for leftover in self._processes_of_jobs(None):
                _kill(leftover)
            self._forget_nodes()

    def _write_configuration(self) -> None:
        control, *ports = _free_ports(1 + len(self.names))
        # Partition debug gives way to urgent; a requeued job waits cred_expire seconds (5 at least).
        lines = [
            "ClusterName=unimmad",
            "SlurmctldHost=localhost(127.0.0.1)",
            f"SlurmctldPort={control}",
            "SlurmUser=root",
            "SlurmdUser=root",
            "AuthType=auth/munge",
            "CredType=cred/munge",
            f"AuthInfo=socket={self._munge_socket},cred_expire=5",
            f"StateSaveLocation={self.folder}/state",
            f"SlurmdSpoolDir={self.folder}/spool/%n",
            f"SlurmctldPidFile={self.folder}/state/slurmctld.pid",
            f"SlurmdPidFile={self.folder}/state/%n.pid",
            f"SlurmctldLogFile={self.folder}/log/slurmctld.log",
            f"SlurmdLogFile={self.folder}/log/%n.log",
            "MailProg=/bin/true",
            "ProctrackType=proctrack/linuxproc",
            "TaskPlugin=task/none",
            "SwitchType=switch/none",
            "MpiDefault=none",
            "PropagateResourceLimits=NONE",
            "AccountingStorageType=accounting_storage/none",
            "JobAcctGatherType=jobacct_gather/none",
            "SelectType=select/cons_tres",
            "SelectTypeParameters=CR_CPU",
            "SlurmdParameters=config_overrides",
            "ReturnToService=2",
            "SlurmctldTimeout=10",
            "SlurmdTimeout=10",
            "KillWait=5",
            "OverTimeLimit=0",
            "SchedulerParameters=bf_interval=2,sched_interval=2,sched_min_interval=0",
            "PreemptType=preempt/partition_prio",
            "PreemptMode=REQUEUE",
            "SlurmctldParameters=preempt_send_user_signal",
            *self._gpu_lines(),
        ]
        for name, port in zip(self.names, ports, strict=True):
            gres = f" Gres=gpu:{self._gpus}" if self._gpus else ""
            lines.append(
                f"NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs={self._cpus} "
                f"RealMemory=100000{gres} State=UNKNOWN"
            )
        nodes = ",".join(self.names)
        lines += [
            f"PartitionName=debug Nodes={nodes} Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=60 State=UP",
            f"PartitionName=urgent Nodes={nodes} PriorityTier=9 PreemptMode=OFF State=UP",
        ]
        self.configuration.write_text("\n".join(lines) + "\n")

    def _gpu_lines(self) -> list[str]:
        if not self._gpus:
            return []
        files = [self.folder / f"gpu{number}" for number in range(self._gpus)]
        for file in files:
            file.touch()
        lines = ["AutoDetect=off", *(f"Name=gpu File={file}" for file in files)]
        (self.folder / "gres.conf").write_text("\n".join(lines) + "\n")
        return ["GresTypes=gpu"]

    @property
    def _munge_socket(self) -> Path:
        return self.folder / "munge" / "socket"

    def _start_munge(self) -> None:
        folder = self._munge_socket.parent
        folder.mkdir()
        # munged refuses a socket that others can't reach, and a key that they can.
        folder.chmod(0o755)
        key = folder / "key"
        key.touch(0o600)
        key.write_bytes(os.urandom(128))
        self._run(
            "munged",
            *("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={self._munge_socket}"),
            *(f"--pid-file={folder}/pid", f"--log-file={folder}/log", f"--seed-file={folder}/seed"),
        )
        self._wait(lambda: self._munge_socket.exists(), "munged to open its socket")

    def _run(self, name: str, program: str, *argv: str) -> None:
        path = find_program(program)
        assert path is not None
        with (self.folder / "log" / f"{name}.out").open("ab") as log:
            self._daemons[name] = subprocess.Popen(
                [path, *argv], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment,
                start_new_session=True,
            )  # fmt: skip

    def _wait_for_nodes(self) -> None:
        self._wait(self._all_up, f"nodes {', '.join(self.names)} to be up")

    def _all_up(self) -> bool:
        done = subprocess.run(
            ["sinfo", "-h", "-N", "-p", "debug", "-o", "%T"],
            env=self.environment, capture_output=True, text=True, timeout=SECONDS, check=False,
        )  # fmt: skip
        states = done.stdout.split()
        return len(states) == len(self.names) and set(states) <= {"idle", "mixed", "allocated", "completing"}

    def _wait(self, holds, what: str) -> None:
        deadline = time.monotonic() + SECONDS
        while not holds():
            for name, daemon in self._daemons.items():
                assert daemon.poll() is None, f"{name} ended: {self._said(name)}"
            assert time.monotonic() < deadline, f"waited {SECONDS} s for {what}: {self._said('slurmctld')}"
            time.sleep(0.2)

    def _said(self, name: str) -> str:
        paths = [self.folder / "log" / f"{name}{suffix}" for suffix in (".out", ".log")]
        return "\n".join(path.read_text(errors="replace")[-2000:] for path in paths if path.is_file())

    def _processes_of_jobs(self, node: str | None) -> list[psutil.Process]:
        """Tasks of this cluster's jobs and the managers above them; on one node, or on all."""
        found = {}
        for process in psutil.process_iter():
            try:
                values = process.environ()
                if values.get("SLURM_CONF") != str(self.configuration) or "SLURMD_NODENAME" not in values:
                    continue
                if node in (None, values["SLURMD_NODENAME"]):
                    found[process.pid] = process
                    found |= {up.pid: up for up in process.parents() if up.name() == "slurmstepd"}
            except psutil.Error:
                continue
        return list(found.values())

    def _name_nodes(self) -> None:
        self._forget_nodes()
        host = socket.gethostname()
        names = " ".join([*self.names, host])
        # In place: a container's /etc/hosts can't be replaced.
        HOSTS.write_text(f"{HOSTS.read_text().rstrip()}\n127.0.0.1 {names} {HOSTS_MARK}\n")

    def _forget_nodes(self) -> None:
        lines = [line for line in HOSTS.read_text().splitlines() if not line.endswith(HOSTS_MARK)]
        HOSTS.write_text("\n".join(lines) + "\n")


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def _kill(process: psutil.Process) -> None:
    try:
        process.send_signal(signal.SIGKILL)
    except psutil.Error:
        return
