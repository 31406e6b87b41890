"""A real Slurm of one node, with partitions cpu and gpu, on this machine."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

NEEDED = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "squeue", "scontrol", "scancel")
# a device that every machine has stands for the GPU: jobs on it run on the processor
SETTINGS = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={folder}/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
MinJobAge=3600
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_min_interval=100000
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} Gres=gpu:1
PartitionName=cpu Nodes=ALL Default=YES
PartitionName=gpu Nodes=ALL
"""


PATH = f"{os.environ['PATH']}:/usr/sbin"  # of daemons


def missing():
    """Name the programs that are not installed."""
    return [name for name in NEEDED if not shutil.which(name, path=PATH)]


class Cluster:
    """Its daemons run until it is stopped; ``variables`` point commands at it."""

    def __init__(self, folder: Path):
        self.folder = folder
        conf = str(folder / "slurm.conf")
        path = [str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
        self.variables = {"SLURM_CONF": conf, "PATH": os.pathsep.join(path)}
        self.daemons = {}
        for name in ("state", "spool", "bin"):
            (folder / name).mkdir(parents=True)
        # Snakemake's job step drops all of SLURM_*, where it is found with it
        srun = folder / "bin/srun"
        srun.write_text(f'#!/bin/sh\nSLURM_CONF={conf} exec {shutil.which("srun")} "$@"\n')
        srun.chmod(0o755)
        folder.chmod(0o755)  # munge refuses a socket that others could not reach
        (folder / "munge.key").touch(mode=0o600)
        (folder / "munge.key").write_bytes(secrets.token_bytes(128))
        (folder / "gres.conf").write_text("Name=gpu File=/dev/null\n")
        (folder / "slurm.conf").write_text(
            SETTINGS.format(
                folder=folder,
                host=socket.gethostname().split(".")[0],
                ports=_free_ports(2),
                user=subprocess.check_output(["id", "-un"], text=True).strip(),
                cpus=os.cpu_count(),
                memory=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * 9 // 10 >> 20,
            )
        )

    def __enter__(self):
        places = {"socket": "socket", "key-file": "key", "pid-file": "pid", "seed-file": "seed"}
        places |= {"log-file": "log"}
        files = [f"--{name}={self.folder}/munge.{end}" for name, end in places.items()]
        self.start("munged", "--foreground", "--force", *files)
        self.start_controller()
        self.start("slurmd", "-D")
        self._wait_for(lambda: "idle" in self.ask("sinfo", "-h", "-o", "%t"), "a node that is idle")
        return self

    def __exit__(self, *_):
        for name in reversed(list(self.daemons)):
            self.stop(name)

    def start(self, name, *arguments):
        """Start a daemon as a child of this process."""
        with (self.folder / f"{name}.out").open("ab") as out:
            self.daemons[name] = subprocess.Popen(
                [shutil.which(name, path=PATH), *arguments],
                env=os.environ | self.variables,
                stdout=out,
                stderr=out,
            )

    def start_controller(self):
        """Start slurmctld, on the state that an earlier one left."""
        self.start("slurmctld", "-D")
        self._wait_for(lambda: "UP" in self.ask("scontrol", "ping"), "the controller")

    def stop(self, name):
        """Stop a daemon; slurmctld writes its state first."""
        daemon = self.daemons.pop(name)
        daemon.terminate()
        try:
            daemon.wait(30)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()

    def ask(self, *command):
        """What a command says of the cluster."""
        env = os.environ | self.variables
        return subprocess.run(command, env=env, capture_output=True, text=True).stdout

    def jobs(self):
        """All jobs so far: id, state, partition and what the job runs."""
        listed = self.ask("squeue", "--states=all", "--noheader", "--sort=i", "-o", "%i|%T|%P|%k")
        return [line.split("|") for line in listed.splitlines()]

    def _wait_for(self, condition, what):
        for _ in range(300):
            if condition():
                return
            time.sleep(0.1)
        said = "\n".join(path.read_text() for path in sorted(self.folder.glob("*.log")))
        raise AssertionError(f"Slurm did not get {what}:\n{said[-3000:]}")


def _free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
