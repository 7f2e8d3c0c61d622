"""Slurm, PostgreSQL and an MLflow server for tests: real ones, on loopback, with all state in a given folder.

Each context manager starts its daemons, waits until they answer, and leaves none running, whatever its body
does. A folder has to be one that other users can enter (PostgreSQL refuses to run as root) and short enough
for the sockets in it (about 80 characters).
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil

INSTALL = "run .ci/slurm-packages"
PROGRAMS = ("sbatch", "slurmctld", "slurmd", "munged", "initdb")

NODE_CORES = 2
"""Of the cluster's one node, whatever this machine has: nothing binds a job to cores."""

START_S = 60.0
"""How long a service may take to answer; a busy machine needs some seconds."""
STOP_S = 10
"""How long a daemon or a job may take to end by itself before it is killed."""

SLURM_CONF = """\
ClusterName=dxc
SlurmctldHost={host}({address})
SlurmctldPort={controller_port}
SlurmdPort={node_port}
{binding}
SlurmUser=root
# requeued jobs wait for cred_expire, and then for the next round of the scheduler
AuthInfo=socket={folder}/munge.socket,cred_expire=10
SchedulerParameters=sched_interval=2,bf_interval=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
# nothing that needs cgroups: containers often have none to give
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
# cores are handed out, memory is not: a job may ask for it, nothing counts or enforces it
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
KillWait={kill_wait_s}
ReturnToService=2
# the node is what is written here, not what slurmd sees
SlurmdParameters=config_overrides
NodeName={host} NodeAddr={address} Sockets=1 CoresPerSocket={cores} ThreadsPerCore=1 RealMemory={memory_mb}
PartitionName=debug Nodes={host} Default=YES
"""


def missing() -> str:
    """'' where all three services can run, else a sentence that says what is missing and how to get it."""
    lacks = [name for name in PROGRAMS if not _program(name)]
    wants = [f"{', '.join(lacks)} ({INSTALL})"] if lacks else []
    if importlib.util.find_spec("psycopg2") is None:
        wants.append("psycopg2 (pip install psycopg2-binary)")
    if os.geteuid() != 0:
        wants.append("root")
    return f"Slurm and PostgreSQL for tests need {' and '.join(wants)}" if wants else ""


@contextlib.contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """A cluster of one node with two cores, this machine, and one partition `debug`. Needs root.

    Yields the variables that point sbatch, squeue, scancel and sinfo to it: add them to their environment.
    On exit its jobs are cancelled, or killed where they do not end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)  # munged refuses to put its socket where clients cannot reach it
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))
    conf = folder / "slurm.conf"
    conf.write_text(_slurm_conf(folder))
    env = {"SLURM_CONF": str(conf)}

    def node_is_idle() -> bool:
        return _output(["sinfo", "--noheader", "--format=%T"], env) == "idle"

    munge_socket = folder / "munge.socket"
    munge_files = [f"--key-file={key}", f"--seed-file={folder}/munge.seed", f"--pid-file={folder}/munged.pid"]
    munged = ["munged", "--foreground", f"--socket={munge_socket}", *munge_files]
    try:
        with contextlib.ExitStack() as daemons:
            running = [daemons.enter_context(_daemon(folder, munged, env))]
            _wait_until(munge_socket.exists, folder, running)
            for name in ("slurmctld", "slurmd"):
                running.append(daemons.enter_context(_daemon(folder, [name, "-D"], env)))
            _wait_until(node_is_idle, folder, running)
            try:
                yield env
            finally:
                _cancel_jobs(env)
    finally:
        # The processes of a job are no daemon's children: where Slurm could not end them they are still there.
        _poll(lambda: not _kill(processes_of(env)), STOP_S)


def processes_of(cluster: Mapping[str, str]) -> list[psutil.Process]:
    """What runs for the cluster with these variables: daemons, jobs and clients."""
    conf = cluster["SLURM_CONF"]
    # slurmstepd writes its title over its environment, but stays in the folder that slurmd was started in
    return [
        process
        for process in psutil.process_iter(["environ", "cwd"])
        if (process.info["environ"] or {}).get("SLURM_CONF") == conf
        or process.info["cwd"] == str(Path(conf).parent)
    ]


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """A PostgreSQL server with an empty database `mlflow`, run as the user `postgres`. Needs root.

    Yields the database's SQLAlchemy URI; it holds a password made for this server.
    """
    folder.mkdir(parents=True, exist_ok=True)
    password = secrets.token_hex(16)
    password_file = folder / "password"
    password_file.touch(mode=0o600)
    password_file.write_text(password)
    for path in (folder, password_file):
        shutil.chown(path, "postgres")
    programs = Path(_program("initdb")).parent
    data = folder / "data"
    as_postgres = ("--reuid=postgres", "--regid=postgres", "--init-groups")
    initdb = [f"--pgdata={data}", "--username=postgres", f"--pwfile={password_file}", "--auth=scram-sha-256"]
    made = subprocess.run(
        ["setpriv", *as_postgres, programs / "initdb", *initdb, "--encoding=UTF8", "--locale=C", "--no-sync"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    if made.returncode:
        raise RuntimeError(f"initdb: {made.stdout}{made.stderr}")

    (port,) = free_ports(1)
    options = ("-D", data, "-p", port, "-k", folder, "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off")
    login = {"PGHOST": "127.0.0.1", "PGPORT": str(port), "PGUSER": "postgres", "PGPASSWORD": password}

    def database_is_made() -> bool:
        return _output([programs / "createdb", "mlflow"], login) is not None

    # SIGINT is its fast stop: SIGTERM would wait for every client to leave.
    command = (programs / "postgres", *options)
    with _daemon(folder, command, stop=signal.SIGINT, identity=as_postgres) as server:
        _wait_until(database_is_made, folder, [server])
        yield f"postgresql+psycopg2://postgres:{password}@127.0.0.1:{port}/mlflow"


@contextlib.contextmanager
def mlflow_server(folder: Path, store_uri: str) -> Iterator[str]:
    """An MLflow server of two workers in front of the store at `store_uri`; it keeps artifacts in `folder`.

    Yields its http URL, which is also the tracking URI: clients need neither the store nor the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    env = {
        "MLFLOW_BACKEND_STORE_URI": store_uri,  # not an option: every user sees command lines, passwords too
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # it would start more processes, for language models
    }
    options = ("--host", "127.0.0.1", "--port", port, "--workers", 2)
    artifacts = ("--serve-artifacts", "--artifacts-destination", folder / "artifacts")

    def is_healthy() -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
            return bool(answer.status == 200)
        return False

    command = (sys.executable, "-m", "mlflow", "server", *options, *artifacts)
    with _daemon(folder, command, env) as server:
        _wait_until(is_healthy, folder, [server])
        yield url


def free_ports(count: int) -> list[int]:
    """As many different TCP ports that nothing listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _slurm_conf(folder: Path) -> str:
    controller_port, node_port = free_ports(2)
    try:
        address = socket.gethostbyname(socket.gethostname())
    except OSError:
        address = ""
    # These make Slurm listen on the address of the host's name instead of on all. In a container that is no
    # loopback address, and clients would not find it at the loopback address they are told.
    binding = "CommunicationParameters=NoCtldInAddrAny,NoInAddrAny" if address.startswith("127.") else ""
    return SLURM_CONF.format(
        folder=folder,
        host=socket.gethostname().split(".")[0],
        address=address if binding else "127.0.0.1",
        binding=binding,
        controller_port=controller_port,
        node_port=node_port,
        kill_wait_s=STOP_S,
        cores=NODE_CORES,
        memory_mb=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20 // 2,
    )


def _cancel_jobs(env: Mapping[str, str]) -> None:
    """Cancel all jobs and wait until they have ended or Slurm has killed them."""
    _output(["scancel", "--partition=debug"], env)
    _poll(lambda: not _output(["squeue", "--noheader"], env), 2 * STOP_S)


def _kill(processes: Sequence[psutil.Process]) -> Sequence[psutil.Process]:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    return processes


@contextlib.contextmanager
def _daemon(
    folder: Path,
    command: Sequence[object],
    env: Mapping[str, str] | None = None,
    *,
    stop: signal.Signals = signal.SIGTERM,
    identity: Sequence[str] = (),
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program that stays in the foreground, as who setpriv's options `identity` say; `stop` ends its group.

    Its output goes to NAME.log in `folder`.
    """
    # The kernel stops it should the tests be killed. Ctrl-C reaches the tests alone, as a session of its own
    # keeps it from the daemon: so all end in order.
    bound = ("setpriv", *identity, f"--pdeathsig={stop.name.removeprefix('SIG')}")
    with (folder / f"{Path(str(command[0])).name}.log").open("ab") as log:
        process = subprocess.Popen(
            [*bound, *map(str, command)],
            cwd=folder,
            env=_environment(env),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, stop)
            process.wait(STOP_S)
        with contextlib.suppress(ProcessLookupError):  # workers that are slower than their parent, or stuck
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_until(
    ready: Callable[[], bool],
    folder: Path,
    daemons: Sequence[subprocess.Popen[bytes]],
    seconds: float = START_S,
) -> None:
    """Wait; RuntimeError with the ends of the logs when it takes too long or a daemon has ended."""

    def ended() -> bool:
        return any(daemon.poll() is not None for daemon in daemons)

    if not _poll(lambda: ended() or ready(), seconds) or ended():
        reason = "a daemon ended" if ended() else f"no answer for {seconds:g} s"
        tails = [f"--- {log.name}\n{log.read_text()[-2000:]}" for log in sorted(folder.glob("*.log"))]
        raise RuntimeError("\n".join([f"{folder.name} did not start: {reason}", *tails]))


def _poll(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether the condition holds before that time is over."""
    deadline = time.monotonic() + seconds
    while not (holds := condition()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return holds


def _output(command: Sequence[object], env: Mapping[str, str]) -> str | None:
    """What a client prints; None where it fails or hangs, as they do while their server starts or stops."""
    try:
        done = subprocess.run(
            [*map(str, command)], env=_environment(env), capture_output=True, text=True, timeout=5, check=True
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip()


def _environment(more: Mapping[str, str] | None) -> dict[str, str]:
    """This process's environment and `more`, with Debian's folder of daemons on the path."""
    return os.environ | {"PATH": _path()} | dict(more or {})


def _path() -> str:
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"


def _program(name: str) -> str:
    """Where a program is, '' where it is not. Debian keeps PostgreSQL's off the path, a folder per version."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    found = shutil.which(name, path=":".join([_path(), *map(str, reversed(versions))]))
    return str(Path(found).resolve()) if found else ""  # resolved, for the other programs beside it
