"""On a machine with control groups: a clone with a limit and a pin keeps to them while it is busy."""

from __future__ import annotations

import pytest

from tests.machines.labs import Lab
from tests.whole_machines import whole_machines

pytestmark = pytest.mark.machines

BUSY = "setsid timeout 300 sh -c 'while :; do :; done' >/dev/null 2>&1 </dev/null &"
# Of the thread of the node's processor: the name, its processors, and its time on a processor with that of the
# machine, at the start and at the end of an interval. The first is in nanoseconds, the second in seconds.
USE = """
for task in /proc/$(cat /run/libvirt/qemu/lab.node1.pid)/task/*; do
  case $(cat $task/comm) in "CPU 0/"*) vcpu=$task ;; esac
done
taskset -pc $(basename $vcpu) | sed 's/.*: //'
for second in 0 20; do sleep $second; cut -d' ' -f1 $vcpu/schedstat /proc/uptime; done
"""


def test_a_busy_clone_gets_its_share_of_its_processor(suite: str) -> None:
    with whole_machines("green", suite=suite) as (machine,):
        lab = Lab(machine)
        lab.warm()
        bare = lab.survey()
        lab.wait("local create -n 1 --cpu-limit 25% --pin 1 --boot clone")
        assert lab.starts() == (1, 0)
        (node,) = lab.json("status")["nodes"]
        assert (node["cpu_limit_percent"], node["processors"]) == (25, [1])
        scheduled = dict(line.split(": ") for line in lab.root("virsh -q schedinfo lab.node1").splitlines() if line)
        kept = {name.strip(): value.strip() for name, value in scheduled.items()}
        assert (kept["vcpu_period"], kept["vcpu_quota"]) == ("10000", "2500")

        lab.vcluster(f'exec -w node1 -- sh -c "{BUSY}"', 300)
        processors, ran_ns, up_s, ran_later_ns, up_later_s = lab.root(USE).split()
        share = (int(ran_later_ns) - int(ran_ns)) / 1e9 / (float(up_later_s) - float(up_s))
        assert processors == "1"
        assert 0.20 <= share <= 0.30

        assert lab.vcluster("verify lab").splitlines()[-1].endswith("promises are kept")
        lab.clear()
        assert lab.survey() == bare
