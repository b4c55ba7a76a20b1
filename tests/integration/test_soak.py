"""A short soak with mixed traffic; the long one is `python -m scripts.maintain.soak --minutes 30`."""

import subprocess
import sys

from scripts.maintain.soak import GROWTH_DESCRIPTORS, GROWTH_KIB, Size, growth
from tests.integration.conftest import ROOT, STACK, Deployment

MINUTES = 0.25


def test_mixed_traffic_meets_no_error_and_leaves_nothing_in_nginx(deployed: Deployment) -> None:
    command = [sys.executable, "-m", "scripts.maintain.soak", "--stack", STACK, "--minutes", str(MINUTES)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    for kind in ("streams", "tool calls", "clients that leave", "slow readers", "bodies of 10 mb", "refusals"):
        assert f" {kind}" in done.stdout, done.stdout


def test_growth_is_found() -> None:
    steady = [Size(50_000, 60)] * 9
    assert growth(steady) == []
    leaking = [Size(50_000 + GROWTH_KIB * number // 4, 60 + GROWTH_DESCRIPTORS * number // 4) for number in range(9)]
    assert len(growth(leaking)) == 2
