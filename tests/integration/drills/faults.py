"""Faults of the processes on the server, and of its disks."""

import tempfile
import time

from tests.integration.drills.measure import Row, Site, measure
from tests.integration.drills.server import Server
from tests.support.netns_machine import wait_until

LOGS = "/var/log/elastic-vllm"
LIVE_RESTORE = "/etc/docker/daemon.json"


def _processes(server: Server, role: str) -> list[tuple[int, int, str]]:
    """List a container's processes: PID, memory in KiB, command line."""
    rows = server.container(role).top(ps_args="-eo pid,rss,args")["Processes"]
    return [(int(pid), int(rss), args) for pid, rss, args in rows]


def _kill(server: Server, signal: str, *pids: int) -> None:
    # The end of one process can end others before their turn.
    server.shell(f"kill -{signal} {' '.join(map(str, pids))} 2>/dev/null || true")


def _engine(server: Server) -> int:
    """Return the PID of vLLM's engine: the largest process."""
    return max(_processes(server, "vllm"), key=lambda process: process[1])[0]


def _api_server(server: Server) -> int:
    """Return the PID of the process that listens: the first of Python's."""
    return min(pid for pid, _, args in _processes(server, "vllm") if "api_server" in args and "/bin/sh" not in args)


# --- Processes


def vllm_killed(site: Site) -> Row:
    server = site.server
    return measure(
        site,
        "vLLM killed (`kill -9`, all its processes)",
        lambda: _kill(server, "KILL", *(pid for pid, _, _ in _processes(server, "vllm"))),
    )


def vllm_out_of_memory(site: Site) -> Row:
    """The kernel finds no memory left for the container and kills the engine."""
    server = site.server
    container = server.container("vllm")
    limit = f"/sys/fs/cgroup/memory/docker/{container.id}/memory"
    script = f"""
      echo 1000 >/proc/{_engine(server)}/oom_score_adj
      echo $(($(cat {limit}.usage_in_bytes) + 33554432)) >{limit}.limit_in_bytes
      docker exec {container.name} python3 -c 'bytearray(268435456)' || true"""
    return measure(site, "out of memory in vLLM: the kernel kills its engine", lambda: server.shell(script))


def engine_hangs(site: Site) -> Row:
    server = site.server
    return measure(site, "engine hangs (`SIGSTOP`)", lambda: _kill(server, "STOP", _engine(server)))


def api_server_hangs(site: Site) -> Row:
    server = site.server
    return measure(site, "vLLM's API server hangs (`SIGSTOP`)", lambda: _kill(server, "STOP", _api_server(server)))


def nginx_killed(site: Site) -> Row:
    server = site.server
    master = int(server.container("nginx").attrs["State"]["Pid"])
    return measure(site, "Nginx killed (`kill -9`)", lambda: _kill(server, "KILL", master))


def nginx_worker_killed(site: Site) -> Row:
    server = site.server
    worker = next(pid for pid, _, args in _processes(server, "nginx") if "worker" in args)
    return measure(site, "one worker of Nginx killed (`kill -9`)", lambda: _kill(server, "KILL", worker))


def dockerd_killed(site: Site) -> Row:
    return _dockerd_killed(site, "dockerd killed (`kill -9`), Docker installed by `up`", live_restore=True)


def dockerd_killed_as_the_distribution_has_it(site: Site) -> Row:
    return _dockerd_killed(site, "dockerd killed (`kill -9`), Docker without `live-restore`", live_restore=False)


def _dockerd_killed(site: Site, fault: str, *, live_restore: bool) -> Row:
    server = site.server

    def kill() -> None:
        killed = int(server.shell("cat /run/dockerd.pid"))
        _kill(server, "KILL", killed)
        wait_until(lambda: server.shell("cat /run/dockerd.pid").strip() not in {"", str(killed)})
        server.wait_for_docker()

    _set_live_restore(server, on=live_restore)
    try:
        return measure(site, fault, kill, longer=4)
    finally:
        _set_live_restore(server, on=True)


def _set_live_restore(server: Server, *, on: bool) -> None:
    """Set live-restore as keep-containers.sh does; the running Docker applies it."""
    value = str(on).lower()
    server.shell(f"""printf '{{"live-restore": {value}}}' >{LIVE_RESTORE}; kill -HUP $(cat /run/dockerd.pid)""")
    read = "docker info --format '{{.LiveRestoreEnabled}}'"
    wait_until(lambda: server.shell(read).strip() == value)


def reboot(site: Site) -> Row:
    """Seconds count from the power cut; a real machine's boot takes longer."""

    def cut_power() -> None:
        site.server.power_off()
        site.server.boot()

    return measure(site, "host loses power and boots", cut_power)


# --- Disks


def logs_full(site: Site) -> Row:
    server, log = site.server, f"{LOGS}/{site.server.stack}/access.log"
    server.shell(f"dd if=/dev/zero of={LOGS}/filler bs=4k 2>/dev/null || true")
    server.shell(f"! dd if=/dev/zero of={log} bs=5000 count=1 oflag=append conv=notrunc")  # more than its last page has
    try:
        row = measure(site, "disk with the log files full", lambda: None)
    finally:
        server.shell(f"rm {LOGS}/filler")
    time.sleep(1.5)  # Nginx tries again a second after it has met a full disk
    lines = int(server.shell(f"wc -l <{log}"))
    assert site.endpoint.ask("/v1/models") == "200"
    assert int(server.shell(f"wc -l <{log}")) > lines, "with room again, requests are logged again"
    return row


def weights_full(site: Site) -> Row:
    """Another model is to be fetched, and the disk has no room for it."""
    server = site.server
    with tempfile.TemporaryDirectory(prefix="elastic-vllm-full-") as disk:
        server.shell(f"mount -t tmpfs -o size=16m full {disk}")
        other = {"model": "acme/other", "modelSource": "hub", "modelRevision": "a1" * 20, "weightsDirectory": disk}
        settings = [word for key, value in other.items() for word in ("--set", f"{key}={value}")]
        output: list[str] = []

        def change_model() -> None:
            done = server.rehearse("up", *settings, "--set", "weightsGb=1")
            assert done.returncode == 1, done.stdout
            output.append(done.stdout + done.stderr)

        row = measure(site, "disk with the weights full while another model is fetched", change_model)
        server.shell(f"umount {disk}")
    assert "too little disk for the weights: 0 GB free" in output[0], output[0]
    return row
